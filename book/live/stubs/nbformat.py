"""So that Plotly finds a notebook format; nothing else of it is used."""

__version__ = "5.10.4"
