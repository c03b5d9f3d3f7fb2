"""Figures of what the scheduler does: colours, the offline Plotly renderer, the drawings."""
