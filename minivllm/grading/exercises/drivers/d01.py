"""Runs beside the answers to exercise 1. Nothing is judged here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def after_steps(after_step: Callable[..., Any], cases: Sequence[dict[str, Any]]) -> list[Any]:
    """What `after_step(requests, token_budget)` returns for each case."""
    return [
        after_step([tuple(pair) for pair in case["requests"]], case["token_budget"])
        for case in cases
    ]
