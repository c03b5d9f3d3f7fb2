"""Plotly for all figures; where it is missing, the line that installs it."""

from __future__ import annotations

from minivllm.extras import extra

with extra("notebook", "a figure"):
    import plotly.graph_objects as go
    import plotly.io as pio
    from plotly.io.base_renderers import MimetypeRenderer
    from plotly.subplots import make_subplots
    from plotly.utils import PlotlyJSONEncoder

__all__ = ["MimetypeRenderer", "PlotlyJSONEncoder", "go", "make_subplots", "pio"]
