"""Who is preempted when the blocks run out: one small function, and it can be replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minivllm.core.request import Request

VictimPolicy = Callable[[Sequence[Request]], Request]
"""Takes RUNNING in order of admission, at least one request; returns the one to preempt."""


def last_admitted(running: Sequence[Request]) -> Request:
    """FCFS: whoever came last goes first (vllm/v1/core/sched/scheduler.py:481)."""
    return running[-1]


def priority(running: Sequence[Request]) -> Request:
    """PRIORITY: the least urgent; of those, the latest arrival (scheduler.py:457)."""
    return max(running, key=lambda request: (request.priority, request.arrival_time))


def least_computed(running: Sequence[Request]) -> Request:
    """Whoever loses the fewest computed tokens; of those, the last admitted (vLLM RFC #54644)."""
    return min(reversed(running), key=lambda request: request.num_computed_tokens)


VICTIM_POLICIES: dict[str, VictimPolicy] = {
    "last_admitted": last_admitted,
    "priority": priority,
    "least_computed": least_computed,
}
