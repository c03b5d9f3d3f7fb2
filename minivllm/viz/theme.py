"""The book's colours and its two Plotly templates, light and dark.

Figures name a *role* (`COLORS.prefill`), never a hex code of their own: the book's pages swap each
role's light colour for its dark one when the reader changes the theme, so one figure serves both.
Every colour has a contrast of at least 3:1 against its page, and the order of `CATEGORICAL` keeps
neighbours apart for readers with colour-vision deficiency (after Okabe and Ito, 2008).

No Plotly is imported here: a template is plain data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


@dataclass(frozen=True)
class Palette:
    """One colour for each thing that a figure of the scheduler shows."""

    prefill: str  # prompt tokens computed in a step
    decode: str  # the one token a running request adds
    cached: str  # tokens found in the prefix cache: not computed
    preempted: str  # work thrown away
    waiting: str  # in the queue
    budget: str  # the limit of a step
    accent: str  # whatever else must stand out
    free: str  # an empty slot or block
    ink: str  # text and axes
    muted: str  # secondary text
    grid: str  # grid lines
    paper: str  # the page


LIGHT = Palette(
    prefill="#0b6bb5",
    decode="#0a8a66",
    cached="#8a5bb8",
    preempted="#c8451b",
    waiting="#6f7987",
    budget="#a86a00",
    accent="#b8397f",
    free="#dfe3e8",
    ink="#1f2937",
    muted="#5b6675",
    grid="#e3e7ec",
    paper="#ffffff",
)

DARK = Palette(
    prefill="#5db3f5",
    decode="#3ecf9f",
    cached="#c19bea",
    preempted="#ff8a63",
    waiting="#98a3b3",
    budget="#f0b441",
    accent="#f28bc0",
    free="#333a45",
    ink="#e4e8ee",
    muted="#a4afbd",
    grid="#2f3742",
    paper="#14181e",
)

COLORS = LIGHT  # what a figure's code names; the dark twin is put in when the page is dark

# For "request 0, request 1, ...": as many as a figure should ever tell apart by colour.
CATEGORICAL = (
    LIGHT.prefill,
    LIGHT.budget,
    LIGHT.decode,
    LIGHT.cached,
    LIGHT.preempted,
    LIGHT.accent,
    LIGHT.waiting,
)


def light_to_dark() -> dict[str, str]:
    """The hex code of each role in the light palette, mapped to the dark one's."""
    return dict(zip(astuple(LIGHT), astuple(DARK)))


def template(palette: Palette, *, transparent: bool = True) -> dict[str, Any]:
    """A Plotly template as plain data: fonts, axes, margins, hover labels, colours.

    `transparent` is for the book's pages: their background shows, and the title stands above the
    figure as HTML. Off, for a notebook, the figure brings its own paper and has room for its title.
    """
    swap = light_to_dark() if palette is DARK else {}
    background = "rgba(0,0,0,0)" if transparent else palette.paper
    axis = {
        "automargin": True,
        "gridcolor": palette.grid,
        "linecolor": palette.grid,
        "zerolinecolor": palette.grid,
        "tickcolor": palette.grid,
        "ticks": "outside",
        "title": {"standoff": 10},
    }
    button = {"bgcolor": background, "bordercolor": palette.muted, "font": {"color": palette.ink}}
    return {
        "layout": {
            "autosize": True,
            "font": {"family": FONT, "size": 14, "color": palette.ink},
            "title": {"font": {"size": 17}, "x": 0, "xref": "paper", "xanchor": "left"},
            "paper_bgcolor": background,
            "plot_bgcolor": background,
            "colorway": [swap.get(color, color) for color in CATEGORICAL],
            "margin": {"l": 56, "r": 16, "t": 24 if transparent else 88, "b": 48},
            "xaxis": axis,
            "yaxis": axis,
            "legend": {
                "orientation": "h",
                "traceorder": "normal",
                "x": 0,
                "y": 1.02,
                "yanchor": "bottom",
            },
            "hoverlabel": {"font": {"family": FONT}, "align": "left"},
            "sliderdefaults": {
                "bgcolor": palette.free,
                "activebgcolor": palette.prefill,
                "bordercolor": palette.free,
                "tickcolor": palette.muted,
                "font": {"color": palette.ink},
            },
            "updatemenudefaults": button,
            "annotationdefaults": {"font": {"color": palette.ink}, "arrowcolor": palette.muted},
            "shapedefaults": {"line": {"color": palette.muted}},
        }
    }


def filled(color: str, pattern: str = "") -> dict[str, Any]:
    """A Plotly marker for bars: a colour, and a pattern as the second cue beside it."""
    look = {"shape": pattern, "fillmode": "overlay", "fgcolor": COLORS.paper, "size": 6}
    return {"color": color, "line": {"width": 0}, "pattern": look}


def request_axis(request_ids: Sequence[str]) -> dict[str, Any]:
    """A Plotly y axis with one row for each request, the first on top."""
    return {
        "title": {"text": "request"},
        "categoryorder": "array",
        "categoryarray": list(reversed(request_ids)),
        "type": "category",
    }
