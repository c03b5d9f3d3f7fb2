"""The model: its configuration, its weights, and a forward pass over a paged KV cache."""
