"""Run a recorded run again: its inputs, and the tokens that were sampled, are all it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minivllm.core import (
    Request,
    RequestStatus,
    SamplingParams,
    Scheduler,
    SchedulerConfig,
    VictimPolicy,
)
from minivllm.runs.input_log import InputLog
from minivllm.runs.snapshot import History


def replay(
    history: History,
    num_steps: int | None = None,
    *,
    config: SchedulerConfig | None = None,
    select_victim: VictimPolicy | None = None,
) -> Scheduler:
    """A scheduler brought to where a run stood after `num_steps` steps; its observer has a history.

    Args:
        history: the run.
        num_steps: None: all of them, and the pending inputs.
        config: run with other limits instead; the sampled tokens are taken as recorded
            where a request samples in another step too.
        select_victim: the function, if the run used one that has no name.

    Raises:
        ValueError: if the run has fewer steps.
    """
    if num_steps is None:
        num_steps = len(history.steps)
    if not 0 <= num_steps <= len(history.steps):
        raise ValueError(f"the run has {len(history.steps)} steps, not {num_steps}")
    times = [step["time"] for step in history.steps if step["time"] is not None]
    scheduler = Scheduler(config or history.config, observer=InputLog())
    if times:
        scheduler.clock = lambda: times[min(scheduler.step, len(times) - 1)]
    if select_victim is not None:
        scheduler.select_victim = select_victim
    for step in history.steps[:num_steps]:
        apply_inputs(scheduler, step["inputs"])
        output = scheduler.schedule()
        scheduler.update_from_output(output, step["sampled"])
    if num_steps == len(history.steps):
        apply_inputs(scheduler, history.pending_inputs)
    return scheduler


def request_from_dict(data: Mapping[str, Any]) -> Request:
    """The inverse of `recorder.request_to_dict`."""
    return Request(
        data["request_id"],
        data["prompt_token_ids"],
        SamplingParams(**data["sampling_params"]),
        priority=data["priority"],
        arrival_time=data["arrival_time"],
        eos_token_id=data["eos_token_ids"],
        cache_salt=data.get("cache_salt"),
    )


def apply_inputs(scheduler: Scheduler, inputs: Sequence[Mapping[str, Any]]) -> None:
    """Give a scheduler what came from outside before a recorded step."""
    for item in inputs:
        if item["type"] == "add":
            scheduler.add_request(request_from_dict(item["request"]))
        elif item["type"] == "draft":
            scheduler.update_draft_token_ids(item["token_ids"])
        else:
            scheduler.finish_requests(item["request_id"], RequestStatus[item["status"]])
