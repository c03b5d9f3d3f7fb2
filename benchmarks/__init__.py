"""How fast the engine is beside its peers: `make bench`. README.md says how to read it."""
