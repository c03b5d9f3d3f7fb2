"""Exercise 9's driver: a core that only recomputes (see `without_swap`), and the student's swap."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from minivllm.core import Request, Scheduler, SchedulerOutput
from minivllm.grading.exercises.drivers import loop, toy
from minivllm.grading.exercises.drivers.without import without_swap

without_swap()


def observe(scheduler: Scheduler, output: SchedulerOutput, step: dict[str, Any]) -> None:
    """Add a step's copies and block tables to its evidence."""
    step["out"] = [list(pair) for pair in output.blocks_to_swap_out]
    step["in"] = [list(pair) for pair in output.blocks_to_swap_in]
    manager = scheduler.kv_cache_manager
    step["tables"] = {id_: manager.get_block_ids(id_) for id_ in output.num_scheduled_tokens}


def watched(scheduler: Any, told: list[dict[str, Any]]) -> Any:
    """The scheduler, with what each of its preemptions did added to `told`."""
    if not isinstance(scheduler, Scheduler):
        return scheduler
    preempt = scheduler._preempt_request

    def preempt_request(request: Request, output: SchedulerOutput) -> Any:
        id_ = request.request_id
        before = {
            "step": scheduler.step,
            "id": id_,
            "computed": request.num_computed_tokens,
            "table": len(scheduler.kv_cache_manager.get_block_ids(id_)),
        }
        counter, out = request.num_preemptions, len(output.blocks_to_swap_out)
        named = len(output.preempted_req_ids)
        result = preempt(request, output)
        told.append(
            before
            | {
                "status": getattr(request.status, "name", str(request.status)),
                "counted": request.num_preemptions - counter,
                "named": list(output.preempted_req_ids[named:]),
                "waiting": [r.request_id for r in scheduler.waiting],
                "out": len(output.blocks_to_swap_out) - out,
            }
        )
        return result

    scheduler._preempt_request = preempt_request  # type: ignore[method-assign]
    return scheduler


def serve(make: Any, workloads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Serve each workload with the student's scheduler and the toy model: the raw run.

    Adds `preemptions`, what each one did. A run that raises is told as `raised`; `serve_alone`
    raises again.
    """
    results = []
    for workload in workloads:
        told: list[dict[str, Any]] = []
        result: dict[str, Any] = {"raised": True, "problem": None}
        with suppress(Exception):
            result = _serve(make, workload, told)
        results.append({**result, "preemptions": told})
    return results


def serve_alone(make: Any, workload: dict[str, Any]) -> None:
    """Serve one workload, and raise what it raises."""
    _serve(make, workload, [])


def _serve(make: Any, workload: dict[str, Any], told: list[dict[str, Any]]) -> dict[str, Any]:
    model = toy.ToyModel(workload["config"]["block_size"])
    return loop.run(
        lambda config: watched(make(config), told),
        workload,
        execute=model.execute,
        observe=observe,
    )
