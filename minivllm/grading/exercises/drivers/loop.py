"""Run workloads on a scheduler, step by step, and write down what it decided.

The child runs the student's scheduler with it, the judge the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minivllm.core import (
    Request,
    RequestStatus,
    SamplingParams,
    Scheduler,
    SchedulerConfig,
    SchedulerOutput,
)

MAX_STEPS = 400
"""A run that is longer than this counts as endless."""

Sampler = Callable[[Scheduler, SchedulerOutput], dict[str, int]]


def sampled_token(request_index: int, num_output_tokens: int) -> int:
    """The token that stands in for a model's, as in the recorded traces of vLLM."""
    return 3 + (request_index * 7919 + num_output_tokens * 104729) % 990


def run(
    make: Callable[[SchedulerConfig], Scheduler],
    workload: dict[str, Any],
    *,
    execute: Sampler | None = None,
    observe: Callable[[Scheduler, SchedulerOutput, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """One workload: `config` (knobs), `requests` (see `full_row`), perhaps `aborts` ([step, id]).

    Args:
        make: the scheduler's class, or a function that builds one.
        execute: the model; the stand-in if there is none.
        observe: adds to the evidence of a step, between `schedule()` and the update.

    Returns:
        `problem` (None, or why the run could not even begin), `outcome` (`finished`, `stuck`,
        `endless`), `steps`, `refused` (id -> status, error, number of output tokens) and `outputs`
        (id -> status and output tokens).
    """
    scheduler = make(SchedulerConfig(**workload["config"]))
    if not isinstance(scheduler, Scheduler):
        return {"problem": f"called with a config it returns {scheduler!r:.80}, not a Scheduler"}
    rows = [full_row(row, index) for index, row in enumerate(workload["requests"])]
    index_of = {row["id"]: index for index, row in enumerate(rows)}
    arrivals = sorted(rows, key=lambda row: row.get("arrival_step", 0))
    aborts: dict[int, list[str]] = {}
    for step, request_id in workload.get("aborts", ()):
        aborts.setdefault(step, []).append(request_id)
    last_from_outside = max([*aborts, *(row.get("arrival_step", 0) for row in rows)], default=0)
    requests: dict[str, Request] = {}
    refused: dict[str, Any] = {}
    steps: list[dict[str, Any]] = []
    outcome = "endless"

    for now in range(MAX_STEPS):
        while arrivals and arrivals[0].get("arrival_step", 0) <= now:
            row = arrivals.pop(0)
            request = requests[row["id"]] = make_request(row)
            told = scheduler.add_request(request)
            if told is not True:
                refused[row["id"]] = {
                    "returned": told if told is None else bool(told),
                    "status": request.status.name,
                    "error": request.error if isinstance(request.error, str) else None,
                    "num_output_tokens": request.num_output_tokens,
                    "known": row["id"] in scheduler.requests,
                }
        for request_id in aborts.get(now, ()):
            scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        step, output = plan(scheduler)
        if observe is not None:
            observe(scheduler, output, step)
        if execute is not None:
            step["sampled"] = execute(scheduler, output)
        else:
            step["sampled"] = {
                id_: sampled_token(index_of[id_], scheduler.requests[id_].num_output_tokens)
                for id_ in step["computed_after"]
                if scheduler.requests[id_].num_computed_tokens == scheduler.requests[id_].num_tokens
            }
        outputs = scheduler.update_from_output(output, step["sampled"])
        step["finished"] = sorted(o.request_id for o in outputs if o.finish_reason is not None)
        steps.append(step)
        if now >= last_from_outside:
            if not scheduler.requests:
                outcome = "finished"
                break
            if not step["scheduled"] and not step["preempted"]:
                outcome = "stuck"
                break
    return {
        "problem": None,
        "outcome": outcome,
        "steps": steps,
        "refused": refused,
        "outputs": {
            id_: {
                "status": request.status.name,
                "token_ids": list(request.output_token_ids),
                "error": request.error if isinstance(request.error, str) else None,
            }
            for id_, request in requests.items()
        },
        "free_blocks_at_end": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
        "num_recomputed_tokens": scheduler.stats.num_recomputed_tokens,
    }


def full_row(row: dict[str, Any], index: int) -> dict[str, Any]:
    """A request of a workload with its id and its prompt spelled out.

    Args:
        row: `id` (or `request_id`), `prompt_token_ids` (or `num_prompt_tokens`: as many tokens that
            no other prompt has), `max_tokens`, and perhaps `arrival_step`, `arrival_time`,
            `priority`, `eos_token_id`.
        index: its place in the workload.
    """
    row = dict(row)
    if "request_id" in row:
        row["id"] = row.pop("request_id")
    if "num_prompt_tokens" in row:
        count = row.pop("num_prompt_tokens")
        row.setdefault("prompt_token_ids", [1000 * (index + 1) + i for i in range(count)])
    return row


def brief(workload: Mapping[str, Any], config: Sequence[str] = ()) -> dict[str, Any]:
    """A workload as a message shows it; `run` takes it as it is.

    Prompts are given by their length where their tokens make no difference.

    Args:
        config: the knobs to show; all of them if empty.
    """
    knobs = workload["config"]
    rows = []
    for row in workload["requests"]:
        row = {key: value for key, value in row.items() if value is not None or key == "max_tokens"}
        if not knobs.get("enable_prefix_caching", True):
            row["num_prompt_tokens"] = len(row.pop("prompt_token_ids"))
        rows.append(row)
    shown = {key: knobs[key] for key in config or knobs if key in knobs}
    found: dict[str, Any] = {"config": shown, "requests": rows}
    if workload.get("aborts"):
        found["aborts"] = workload["aborts"]
    return found


def make_request(row: dict[str, Any]) -> Request:
    """The scheduler's request of a workload's row."""
    return Request(
        row["id"],
        row["prompt_token_ids"],
        SamplingParams(max_tokens=row["max_tokens"], ignore_eos="eos_token_id" not in row),
        priority=row.get("priority", 0),
        arrival_time=row.get("arrival_time"),
        eos_token_id=row.get("eos_token_id"),
    )


def plan(scheduler: Scheduler) -> tuple[dict[str, Any], SchedulerOutput]:
    """Plan one step: what was decided, in the words of the recorded traces, and the plan."""
    output = scheduler.schedule()
    scheduled = {id_: scheduler.requests[id_] for id_ in output.num_scheduled_tokens}
    step = {
        "scheduled": [[id_, tokens] for id_, tokens in output.num_scheduled_tokens.items()],
        "computed_after": {id_: r.num_computed_tokens for id_, r in scheduled.items()},
        "preempted": sorted(output.preempted_req_ids),
        "running": [request.request_id for request in scheduler.running],
        "waiting": sorted(set(scheduler.requests) - {r.request_id for r in scheduler.running}),
        "free_blocks": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
    }
    return step, output
