"""One look for each request, the same in every figure and in the stepper.

Request 0 is the first that arrived. Eight colours tell eight requests apart; the next eight are
striped. Colour never stands alone: a figure adds the symbol or the pattern, and names the request.
"""

from __future__ import annotations

from minivllm.viz.theme import CATEGORICAL, LIGHT, light_to_dark

REQUEST_COLORS = (*CATEGORICAL, LIGHT.ink)
"""On a light page; every colour has its twin in `theme.light_to_dark()`."""

REQUEST_COLORS_DARK = tuple(light_to_dark()[color] for color in REQUEST_COLORS)

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
