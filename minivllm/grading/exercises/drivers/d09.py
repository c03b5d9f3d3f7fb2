"""Exercise 9's driver: a core that only recomputes (see `without_swap`), and the student's swap."""

from __future__ import annotations

from typing import Any

from minivllm.core import Scheduler, SchedulerOutput
from minivllm.grading.exercises.drivers import loop, toy
from minivllm.grading.exercises.drivers.without import without_swap

without_swap()


def observe(scheduler: Scheduler, output: SchedulerOutput, step: dict[str, Any]) -> None:
    """Add a step's copies and block tables to its evidence."""
    step["out"] = [list(pair) for pair in output.blocks_to_swap_out]
    step["in"] = [list(pair) for pair in output.blocks_to_swap_in]
    manager = scheduler.kv_cache_manager
    step["tables"] = {id_: manager.get_block_ids(id_) for id_ in output.num_scheduled_tokens}


def serve(make: Any, workloads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Serve each workload with the student's scheduler and the toy model: the raw run.

    A workload during which the code raises ends the list: it is run again alone, to raise.
    """
    results = []
    for workload in workloads:
        model = toy.ToyModel(workload["config"]["block_size"])
        results.append(loop.run(make, workload, execute=model.execute, observe=observe))
    return results
