"""Exercise 7's drivers: a core without PRIORITY (see `without_priority`), and the student's."""

from __future__ import annotations

from typing import Any

from minivllm.core import Request, RequestStatus, SamplingParams
from minivllm.grading.exercises.drivers import loop
from minivllm.grading.exercises.drivers.without import without_priority

without_priority()


def victims(select_victim: Any, cases: list[list[dict[str, Any]]]) -> list[Any]:
    """Whom the student's function picks of each list of running requests: an id, or what it gave.

    Each case is RUNNING in order of admission. A list that came back changed is told too.
    """
    picked: list[Any] = []
    for rows in cases:
        running = []
        for row in rows:
            request = Request(
                row["id"],
                [1] * row["num_computed_tokens"],
                SamplingParams(max_tokens=8),
                priority=row["priority"],
                arrival_time=row["arrival_time"],
            )
            request.status = RequestStatus.RUNNING
            request.num_computed_tokens = row["num_computed_tokens"]
            running.append(request)
        before = list(running)
        victim = select_victim(running)
        if running != before:
            picked.append({"changed": True})
        elif isinstance(victim, Request):
            picked.append({"id": victim.request_id})
        else:
            picked.append({"not_a_request": repr(victim)[:80]})
    return picked


def decide(make: Any, workloads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the student's scheduler decides on each workload, step by step."""
    results = []
    for workload in workloads:
        result = loop.run(make, workload)
        results.append(
            {
                "problem": result["problem"],
                "outcome": result.get("outcome"),
                "steps": result.get("steps", []),
            }
        )
    return results
