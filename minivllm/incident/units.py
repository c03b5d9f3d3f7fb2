"""Seconds in the unit that fits them: a recording may last an hour, or a tenth of a second."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

UNITS = (("s", 1.0, 3), ("ms", 1e3, 2), ("µs", 1e6, 2))
"""Name, how many of it a second has, and decimals in a table."""


def duration(seconds: float) -> str:
    """`1,234 s`, `2.40 s`, `48.1 ms`, `5.00 µs`: three digits."""
    if seconds <= 0:
        return "0 s"
    name, scale, _ = next((unit for unit in UNITS if seconds * unit[1] >= 1), UNITS[-1])
    value = seconds * scale
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f} {name}"


def unit_of(values: Iterable[float]) -> tuple[str, float, int]:
    """The largest of `UNITS` in which none of some seconds above 0 is a mere 0.00…"""
    least = min((value for value in values if 0 < value < inf), default=1.0)
    return next((unit for unit in UNITS if least * unit[1] >= 0.01), UNITS[-1])
