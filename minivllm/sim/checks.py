"""Checks of what a user passes in: each error names the field, the value and the limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


def lookup(field: str, value: object, table: Mapping[str, T], kind: type[T]) -> T:
    """`table[value]`, whatever the case; a `value` that is a `kind` already passes through.

    Raises:
        ValueError: naming the field and the names that are known, and what may have been meant.
    """
    if isinstance(value, kind):
        return value
    key = str(value).lower()
    if key in table:
        return table[key]
    close = get_close_matches(key, table, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"{field} {value!r} is not known; known are {', '.join(sorted(table))}.{hint}")


def check_number(
    field: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> float:
    """`value` as a float, if it is a finite number within the limits that are given.

    Raises:
        ValueError: on anything else: NaN and infinity, a string, a bool, a number out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{field} must be a finite number, got {value!r}")
    if above is not None and value <= above:
        raise ValueError(f"{field} must be greater than {above:g}, got {value}")
    if least is not None and value < least:
        raise ValueError(f"{field} must be at least {least:g}, got {value}")
    if most is not None and value > most:
        raise ValueError(f"{field} must be at most {most:g}, got {value}")
    return float(value)
