"""The smallest workload on which a policy loses: what is left when nothing more can be left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain

from minivllm.sim.bench.judge import run
from minivllm.sim.bench.policies import FCFS
from minivllm.sim.bench.policy import Policy
from minivllm.sim.bench.workloads import SHOWN, BenchWorkload
from minivllm.sim.workload import Arrival

LOSES_BY = 1.1
MAX_RUNS = 400
"""Of a search; it stops there with what it has."""


def loss(policy: type[Policy], workload: BenchWorkload) -> float:
    """How many times larger the p95 slowdown is than FCFS's."""
    return run(policy, workload).slowdown / run(FCFS, workload).slowdown


def smallest_loss(
    policy: type[Policy], workloads: Iterable[BenchWorkload] = SHOWN, max_runs: int = MAX_RUNS
) -> BenchWorkload | None:
    """A workload on which the policy's p95 slowdown is a tenth above FCFS's, made small.

    It starts from the one where the policy loses most. Requests are left out, in halves, then
    quarters, then one by one; then lengths are halved, as long as the loss stays.

    Returns:
        None if the policy loses on none of `workloads`.

    Raises:
        BrokenPolicy: as `run`.
    """
    listed = list(workloads)
    losses = [loss(policy, workload) for workload in listed]
    worst = max(range(len(listed)), key=losses.__getitem__)
    if losses[worst] <= LOSES_BY:
        return None
    runs_left = max_runs

    def loses(arrivals: tuple[Arrival, ...]) -> bool:
        nonlocal runs_left
        runs_left -= 1
        return loss(policy, replace(listed[worst], arrivals=arrivals)) > LOSES_BY

    arrivals = listed[worst].arrivals
    size = len(arrivals) // 2
    while size and runs_left > 0:
        shorter = _first(_without(arrivals, size), loses, lambda: runs_left > 0)
        if shorter is None:
            size //= 2
        else:
            arrivals = shorter
            size = min(size, len(arrivals) // 2)
    while runs_left > 0:  # a shorter request may make another one needless
        smaller = chain(_without(arrivals, 1), _halved(arrivals))
        shorter = _first(smaller, loses, lambda: runs_left > 0)
        if shorter is None:
            break
        arrivals = shorter
    return replace(listed[worst], name=f"from {listed[worst].name}", arrivals=arrivals)


def _first(
    candidates: Iterator[tuple[Arrival, ...]],
    loses: Callable[[tuple[Arrival, ...]], bool],
    may_go_on: Callable[[], bool],
) -> tuple[Arrival, ...] | None:
    for candidate in candidates:
        if not may_go_on():
            return None
        if loses(candidate):
            return candidate
    return None


def _without(arrivals: tuple[Arrival, ...], size: int) -> Iterator[tuple[Arrival, ...]]:
    """Without `size` neighbours, the last first; never empty."""
    for start in reversed(range(0, len(arrivals), size)):
        if rest := arrivals[:start] + arrivals[start + size :]:
            yield rest


def _halved(arrivals: tuple[Arrival, ...]) -> Iterator[tuple[Arrival, ...]]:
    """With one length of one request halved, the largest first."""
    places = [(i, name) for i in range(len(arrivals)) for name in ("prompt_len", "output_len")]
    places.sort(key=lambda place: -getattr(arrivals[place[0]], place[1]))
    for index, name in places:
        length = getattr(arrivals[index], name)
        if length > 1:
            shorter = replace(arrivals[index], **{name: length // 2})
            yield (*arrivals[:index], shorter, *arrivals[index + 1 :])
