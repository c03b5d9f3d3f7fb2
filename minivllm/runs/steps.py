"""What every figure asks of a run, whatever form it comes in. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from minivllm.runs.snapshot import History, Snapshot


def steps_of(source: Any) -> list[Snapshot]:
    """The snapshots of a run.

    Args:
        source: a `History`; anything with a `history` (a `Scheduler` that is observed, a
            `SchedulerStepper`) or a `scheduler` (an `LLMEngine`); an answer of a stepper's session
            or `record(scenario)`; or the snapshots themselves.

    Raises:
        ValueError: if it is none of these, or has no step.
    """
    found = _find_steps(source)
    if found is None:
        raise ValueError(
            f"cannot draw a {type(source).__name__}: give a History, a Scheduler or an engine "
            f"built with record=True, record(scenario), or snapshots"
        )
    if not found:
        raise ValueError("the run has no step yet: call schedule() or step() first")
    for snapshot in found:
        if not isinstance(snapshot, Mapping) or "scheduled" not in snapshot:
            raise ValueError(f"a snapshot is expected in each step, got {snapshot!r:.60}")
    return found


def _find_steps(source: Any) -> list[Snapshot] | None:
    if isinstance(source, History):
        return source.steps
    if isinstance(source, Mapping):
        if "steps" in source:
            return list(source["steps"])
        return [source] if "scheduled" in source else None  # type: ignore[list-item]
    if isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
        return list(source)
    for name in ("llm_engine", "scheduler", "history"):
        if hasattr(source, name):
            return _find_steps(getattr(source, name))
    return None


def snapshot_of(source: Any, step: int | None = None) -> Snapshot:
    """One step of a run: number `step`, or the last; of a `SchedulerStepper`, the one on show.

    Raises:
        ValueError: if there is no such step.
    """
    steps = steps_of(source)
    if step is None:
        on_show = getattr(source, "snapshot", None)
        return cast("Snapshot", on_show) if isinstance(on_show, dict) and on_show else steps[-1]
    for snapshot in steps:
        if snapshot["step"] == step:
            return snapshot
    first, last = steps[0]["step"], steps[-1]["step"]
    raise ValueError(f"the run has steps {first} to {last}, not {step}")


def arrival_order(steps: Sequence[Snapshot]) -> dict[str, int]:
    """Each request's number in order of arrival, which decides its look."""
    order: dict[str, int] = {}
    for snapshot in steps:
        for event in snapshot["events"]:
            if event["type"] == "arrived":
                order.setdefault(event["request_id"], len(order))
        for request_id in snapshot["requests"]:  # of a part of a run: arrived before it began
            order.setdefault(request_id, len(order))
    return order


def check_requests(wanted: Sequence[str] | None, order: Mapping[str, int]) -> list[str]:
    """The requests to draw, all by default.

    Raises:
        ValueError: naming one that is not in the run.
    """
    if wanted is None:
        return list(order)
    for request_id in wanted:
        if request_id not in order:
            known = ", ".join(list(order)[:8])
            raise ValueError(f"request {request_id!r} is in no step of the run; there is {known}")
    return list(wanted)


def plural(number: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def tick(num_steps: int) -> int:
    """Steps between two labels of an axis: about ten labels in all."""
    for step in (1, 2, 5, 10, 20, 50, 100, 200, 500):
        if num_steps / step <= 12:
            return step
    return max(1, num_steps // 10)
