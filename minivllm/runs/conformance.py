"""Does our scheduler decide as vLLM's? Replay what vLLM decided, and compare every step.

    python -m minivllm.conformance TRACES.jsonl.gz

A trace holds a configuration, requests with their arrival steps, aborts, and all that vLLM's
unmodified scheduler did with them: who was scheduled with how many tokens in which order, who
was preempted, both queues, every block table by block id, the free blocks, who finished. Where its
configuration says `async_scheduling`, each plan was made before the tokens of the last one were
known. The exit status is 0 if every workload is identical, 1 at the first difference in any.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivllm.core import (
    AsyncScheduler,
    Request,
    RequestStatus,
    SamplingParams,
    Scheduler,
    SchedulerConfig,
    SchedulerOutput,
)
from minivllm.runs import InputLog
from minivllm.text_file import open_text


@dataclass(frozen=True)
class Difference:
    """The first place where we part from vLLM."""

    step: int
    field: str
    ours: Any
    theirs: Any

    def __str__(self) -> str:
        return (
            f"step {self.step}, {self.field}:\n    ours:   {self.ours}\n    theirs: {self.theirs}"
        )


def sampled_token(request_index: int, num_output_tokens: int) -> int:
    """The token that stands in for a model's in the traces."""
    return 3 + (request_index * 7919 + num_output_tokens * 104729) % 990


def trace_config(config: dict[str, Any]) -> SchedulerConfig:
    """The knobs of a trace, under our names.

    Our safeguards are off. The traces begin behind vLLM's front door, so no request is refused;
    and where vLLM should not be followed (`SchedulerConfig.keep_upstream_bugs`), we follow it.
    """
    knobs = dict(config)
    knobs["num_gpu_blocks"] = knobs.pop("num_usable_blocks")
    knobs.pop("async_scheduling", None)
    return SchedulerConfig(admission_control=False, keep_upstream_bugs=True, **knobs)


def replay(workload: dict[str, Any], *, record: bool = False) -> Difference | None:
    """Run one workload through our scheduler; the first difference, or None.

    Args:
        workload: one line of a trace file, parsed.
        record: record snapshots on the way (the decisions must not depend on it).
    """
    num_ahead = int(workload["config"].get("async_scheduling", False))
    make_scheduler = AsyncScheduler if num_ahead else Scheduler
    observer = InputLog() if record and not num_ahead else None
    scheduler = make_scheduler(trace_config(workload["config"]), observer=observer)
    in_flight: list[tuple[SchedulerOutput, dict[str, int]]] = []
    index_of = {spec["id"]: index for index, spec in enumerate(workload["requests"])}
    arrivals: dict[int, list[dict[str, Any]]] = {}
    for spec in workload["requests"]:
        arrivals.setdefault(spec["arrival_step"], []).append(spec)
    aborts: dict[int, list[str]] = {}
    for step, request_id in workload["aborts"]:
        aborts.setdefault(step, []).append(request_id)

    for step, theirs in enumerate(workload["steps"]):
        for spec in arrivals.get(step, ()):
            params = SamplingParams(max_tokens=spec["max_tokens"], ignore_eos=True)
            scheduler.add_request(
                Request(
                    spec["id"],
                    spec["prompt_token_ids"],
                    params,
                    priority=spec["priority"],
                    arrival_time=spec["arrival_time"],
                )
            )
        for request_id in aborts.get(step, ()):
            scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

        ours = run_step(scheduler, index_of, in_flight, num_ahead)
        for name, value in ours.items():
            if value != theirs[name]:
                return Difference(step, name, value, theirs[name])
    return None


def run_step(
    scheduler: Scheduler,
    index_of: dict[str, int],
    in_flight: list[tuple[SchedulerOutput, dict[str, int]]],
    num_ahead: int,
) -> dict[str, Any]:
    """One step of ours, in the words of the traces: a plan, and an update with the tokens of this
    one or, async, of the one before it."""
    output = scheduler.schedule()
    manager = scheduler.kv_cache_manager
    scheduled = {id_: scheduler.requests[id_] for id_ in output.num_scheduled_tokens}
    sampled = {
        id_: sampled_token(index_of[id_], request.next_output_index)
        for id_, request in scheduled.items()
        if request.num_computed_tokens >= len(request.all_token_ids)
    }
    ours = {
        "scheduled": [[id_, tokens] for id_, tokens in output.num_scheduled_tokens.items()],
        "computed_after": {id_: r.num_computed_tokens for id_, r in scheduled.items()},
        "preempted": sorted(output.preempted_req_ids),
        "running": [request.request_id for request in scheduler.running],
        "waiting": [request.request_id for request in scheduler.waiting],
        "block_ids": {id_: manager.get_block_ids(id_) for id_ in scheduled},
        "free_blocks": manager.block_pool.get_num_free_blocks(),
        "sampled": sampled,
    }
    in_flight.append((output, sampled))
    outputs = []
    if len(in_flight) > num_ahead:
        outputs = scheduler.update_from_output(*in_flight.pop(0))
    ours["finished"] = sorted(out.request_id for out in outputs if out.finish_reason is not None)
    return ours


def read_traces(path: Path) -> Iterator[dict[str, Any]]:
    """The workloads of a `.jsonl` or `.jsonl.gz` file.

    Raises:
        ValueError: if the file cannot be read, or a line is not a workload.
    """
    try:
        with open_text(path) as lines:
            for number, line in enumerate(lines, 1):
                try:
                    workload = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
                missing = [
                    key
                    for key in ("config", "requests", "aborts", "steps")
                    if not isinstance(workload, dict) or key not in workload
                ]
                if missing:
                    raise ValueError(f"{path}, line {number}: no {missing[0]!r} in the workload")
                yield workload
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m minivllm.conformance",
        description="Compare our scheduler with recorded decisions of vLLM, step by step.",
    )
    parser.add_argument("file", type=Path, help="recorded traces, .jsonl or .jsonl.gz")
    path = parser.parse_args(argv).file

    total = identical = 0
    first: tuple[int, Difference] | None = None
    try:
        for total, workload in enumerate(read_traces(path), 1):
            difference = replay(workload)
            identical += difference is None
            if difference is not None and first is None:
                first = (total, difference)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if total == 0:
        print(f"error: {path} holds no workload", file=sys.stderr)
        return 2
    print(f"{identical}/{total} workloads identical")
    if first is not None:
        print(f"first difference: workload {first[0]}, {first[1]}")
    return 0 if identical == total else 1


if __name__ == "__main__":
    sys.exit(main())
