"""Who is preempted when the blocks run out: one small function, and it can be replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minivllm.core.config import SchedulerConfig, check_choice
from minivllm.core.request import Request

VictimPolicy = Callable[[Sequence[Request]], Request]
"""Takes RUNNING in order of admission, at least one request; returns the one to preempt."""


def last_admitted(running: Sequence[Request]) -> Request:
    """FCFS: whoever came last goes first (vllm/v1/core/sched/scheduler.py:481)."""
    return running[-1]


def priority_key(request: Request) -> tuple[int, float]:
    """What PRIORITY compares: (priority, arrival time); the larger yields."""
    return (request.priority, request.arrival_time or 0.0)


def priority(running: Sequence[Request]) -> Request:
    """PRIORITY: the least urgent; of those, the latest arrival; of equals, the last admitted."""
    return max(reversed(running), key=priority_key)


def priority_as_upstream(running: Sequence[Request]) -> Request:
    """vLLM's PRIORITY (scheduler.py:457): of equals, `max` returns the first admitted.

    Two long prompts with equal keys can then take turns for ever: each time that one needs a
    block, the other, further ahead, loses all it has computed. vLLM's arrival times come from a
    clock and are seldom equal.
    """
    return max(running, key=priority_key)


def least_computed(running: Sequence[Request]) -> Request:
    """Whoever loses the fewest computed tokens; of those, the last admitted (vLLM RFC #54644)."""
    return min(reversed(running), key=lambda request: request.num_computed_tokens)


VICTIM_POLICIES: dict[str, VictimPolicy] = {
    "last_admitted": last_admitted,
    "priority": priority,
    "priority_as_upstream": priority_as_upstream,
    "least_computed": least_computed,
}


def victim_policy_name(config: SchedulerConfig) -> str:
    """The policy that a configuration asks for, by name.

    Raises:
        ValueError: if `config.victim` is no name in `VICTIM_POLICIES`.
    """
    if config.victim is not None:
        check_choice("victim", config.victim, tuple(VICTIM_POLICIES))
        return config.victim
    if config.policy == "fcfs":
        return "last_admitted"
    return "priority_as_upstream" if config.keep_upstream_bugs else "priority"
