"""Exercise 13's driver: a core without admission control, and the student's."""

from __future__ import annotations

from typing import Any

from minivllm.grading.exercises.drivers import loop
from minivllm.grading.exercises.drivers.without import without_admission_control

without_admission_control()


def serve(make: Any, workloads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Serve each workload: who was refused and how, who got how many tokens, how it ended."""
    results = []
    for workload in workloads:
        result = loop.run(make, workload)
        kept = ("problem", "outcome", "refused", "outputs", "free_blocks_at_end")
        result["num_steps"] = len(result.get("steps", ()))
        results.append({key: result.get(key) for key in (*kept, "num_steps")})
    return results
