"""Checks of what a user passes in: each error names the field, the value and the limit."""

from __future__ import annotations

import math


def check_number(
    field: str, value: object, *, above: float | None = None, least: float | None = None
) -> float:
    """`value` as a float, if it is a finite number above, or at least, a limit.

    Raises:
        ValueError: on anything else: NaN and infinity, a string, a bool, a number out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{field} must be a finite number, got {value!r}")
    if above is not None and value <= above:
        raise ValueError(f"{field} must be greater than {above:g}, got {value}")
    if least is not None and value < least:
        raise ValueError(f"{field} must be at least {least:g}, got {value}")
    return float(value)
