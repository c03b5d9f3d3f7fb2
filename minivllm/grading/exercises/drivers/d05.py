"""Runs beside the answers to exercise 5. Nothing is judged here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any


def loops(preemption_loop: Callable[..., Any], cases: Sequence[dict[str, Any]]) -> list[Any]:
    """What `preemption_loop(running, num_free_blocks)` returns for each case."""
    return [preemption_loop(deepcopy(case["running"]), case["num_free_blocks"]) for case in cases]
