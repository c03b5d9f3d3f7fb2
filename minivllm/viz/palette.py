"""One look for each request, the same in every figure and, in hue, in the stepper.

Request 0 is the first that arrived. Eight hues tell eight requests apart; the next eight are
striped. Colour never stands alone: a figure adds a symbol, a dash or a pattern, and the id.

The stepper fills areas and writes dark on light (`--mv-c0` and so on in its view.css). A figure
draws lines and writes light on dark, so it takes the stepper's dark page's fills on a light page,
and the other way round.
"""

from __future__ import annotations

REQUEST_COLORS = (
    "#2d6cab", "#94610a", "#17755a", "#a04c7c", "#6651b0", "#6e6510", "#1c7485", "#835630",
)  # fmt: skip
"""Lines and fills on a light page: blue, amber, green, pink, violet, olive, cyan, brown."""

REQUEST_COLORS_DARK = (
    "#5ba3e6", "#eba32a", "#35b585", "#e593bd", "#a795ec", "#c9bb3c", "#51c3d6", "#c99a74",
)  # fmt: skip
"""The same hues on a dark page."""

REQUEST_SYMBOLS = (
    "circle", "square", "diamond", "triangle-up", "cross", "star", "triangle-down", "hexagon",
)  # fmt: skip
"""Plotly's marker symbols: the second cue of lines and points."""

REQUEST_DASHES = ("solid", "dash", "dot", "dashdot")
"""Plotly's line styles: one for each round of eight colours."""

REQUEST_PATTERNS = ("", "/", "\\", "x")
"""Plotly's fill patterns: one for each round of eight colours."""


def request_color(index: int) -> str:
    """The colour of the request that arrived as number `index`, from 0."""
    return REQUEST_COLORS[index % len(REQUEST_COLORS)]


def request_symbol(index: int) -> str:
    """Its marker symbol."""
    return REQUEST_SYMBOLS[index % len(REQUEST_SYMBOLS)]


def request_dash(index: int) -> str:
    """Its line style."""
    return REQUEST_DASHES[index // len(REQUEST_COLORS) % len(REQUEST_DASHES)]


def request_pattern(index: int) -> str:
    """Its fill pattern."""
    return REQUEST_PATTERNS[index // len(REQUEST_COLORS) % len(REQUEST_PATTERNS)]


def request_light_to_dark() -> dict[str, str]:
    """Each request colour of a light page, mapped to its dark twin."""
    return dict(zip(REQUEST_COLORS, REQUEST_COLORS_DARK))
