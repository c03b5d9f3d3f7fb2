"""Does our scheduler decide as vLLM's? Replay what vLLM decided, and compare every step.

    python -m minivllm.conformance TRACES.jsonl.gz

The file says which release it was recorded from, and is compared with that one (`--as` another).
A trace holds a configuration, requests with their arrival steps, aborts, and all that vLLM's
unmodified scheduler did with them: who was scheduled with how many tokens in which order, who
was preempted, both queues, every block table by block id, the free blocks, who finished. Where its
configuration says `async_scheduling`, each plan was made before the tokens of the last one were
known. The exit status is 0 if every workload is identical, 1 at the first difference in any, 2 if
nothing could be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from lzma import LZMAError
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
from minivllm.core.output import TokenIds
from minivllm.core.releases import CHANGES, REFERENCE, RELEASES, check_version
from minivllm.runs import InputLog
from minivllm.runs.agreement import QUEUE_CAPS
from minivllm.runs.guesses import Guesses, verified
from minivllm.runs.scenario import Scenario
from minivllm.text_file import open_text

TRACED_KNOBS = (
    "block_size",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_seqs",
    "long_prefill_token_threshold",
    "policy",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "reserve_full_prompt",
)
"""What every trace's configuration says under our names, beside `num_usable_blocks`."""

DRAFT_KNOBS = ("num_speculative_tokens", "num_lookahead_tokens")
"""What it says if tokens are proposed."""

FORMAT = 1
"""Of the traces; `trace.schema.json` is its schema. A file that does not say its format has 1."""


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


def release_of(workload: dict[str, Any]) -> str:
    """The release that a workload was recorded from, without the build that a wheel adds to it.

    Raises:
        ValueError: if it does not say, or `minivllm.core.releases` does not know the release.
    """
    version = str(workload.get("vllm", "")).split("+")[0]
    if version not in RELEASES:
        said = f"was recorded from vLLM {version}" if version else "does not say its vLLM ('vllm')"
        raise ValueError(
            f"it {said}; the releases that can be compared are {', '.join(RELEASES)}. "
            f"Name one of them with --as RELEASE to compare nevertheless."
        )
    return version


def trace_config(config: dict[str, Any], version: str = REFERENCE) -> SchedulerConfig:
    """The knobs of a trace, under our names.

    Our safeguards are off. The traces begin behind vLLM's front door, so no request is refused;
    and where vLLM should not be followed (`SchedulerConfig.keep_upstream_bugs`), we follow it.
    """
    knobs = dict(config)
    knobs["num_gpu_blocks"] = knobs.pop("num_usable_blocks")
    knobs.pop("async_scheduling", None)
    return SchedulerConfig(
        vllm_version=version, admission_control=False, keep_upstream_bugs=True, **knobs
    )


def workload_of(scenario: Scenario) -> dict[str, Any]:
    """A scenario as a workload without steps: for a release to be asked about it.

    Its sampled tokens are the traces', not the scenario's.

    Raises:
        ValueError: naming a knob that vLLM does not have.
    """
    knobs = scenario.scheduler_config().to_dict()
    defaults = SchedulerConfig(num_gpu_blocks=1).to_dict()
    for name in ("preemption_mode", "num_cpu_blocks", "victim"):
        if knobs[name] != defaults[name]:
            raise ValueError(f"{name}={knobs[name]!r} is no knob of vLLM's")
    config = {name: knobs[name] for name in TRACED_KNOBS}
    config["num_usable_blocks"] = knobs["num_gpu_blocks"]
    if knobs["num_speculative_tokens"]:
        config |= {name: knobs[name] for name in DRAFT_KNOBS}
    config |= {
        change.name: knobs[change.name]
        for change in CHANGES
        if not change.is_switch and knobs[change.name] != defaults[change.name]
    }
    arrivals = sorted(scenario.requests, key=lambda request: request.arrival_step)
    requests = []
    for index, row in enumerate(arrivals):
        request = {
            "id": row.request_id,
            "arrival_step": row.arrival_step,
            "arrival_time": float(index if row.arrival_time is None else row.arrival_time),
            "prompt_token_ids": row.token_ids(scenario.seed),
            "max_tokens": row.max_tokens,
            "priority": row.priority,
        }
        requests.append({**request, "min_tokens": row.min_tokens} if row.min_tokens else request)
    return {
        "vllm": knobs["vllm_version"],
        "config": config,
        "requests": requests,
        "aborts": [],
    }


def replay(
    workload: dict[str, Any], *, version: str | None = None, record: bool = False
) -> Difference | None:
    """Run one workload through our scheduler; the first difference, or None.

    Args:
        workload: one line of a trace file, parsed.
        version: the release to decide as; None: the one that was recorded.
        record: record snapshots on the way (the decisions must not depend on it).
    """
    steps = decisions(make_scheduler(workload, version, record=record), workload)
    for step, (theirs, ours) in enumerate(zip(workload["steps"], steps)):
        for name, value in ours.items():
            if value != theirs[name]:
                return Difference(step, name, value, theirs[name])
    return None


def decide(
    workload: dict[str, Any], version: str | None = None, max_steps: int = 1000
) -> list[dict[str, Any]]:
    """The steps of a trace, decided by our scheduler; `max_steps` if the run does not end."""
    scheduler = make_scheduler(workload, version)
    last_arrival = max((spec["arrival_step"] for spec in workload["requests"]), default=0)
    steps: list[dict[str, Any]] = []
    for row in islice(decisions(scheduler, workload), max_steps):
        steps.append(row)
        if len(steps) > last_arrival and not scheduler.requests:
            break
    return steps


def make_scheduler(
    workload: dict[str, Any], version: str | None = None, *, record: bool = False
) -> Scheduler:
    """Our scheduler, one of them, for a workload. Its arguments are those of `replay`."""
    ahead = workload["config"].get("async_scheduling", False)
    observer = InputLog() if record and not ahead else None
    config = trace_config(workload["config"], version or release_of(workload))
    return (AsyncScheduler if ahead else Scheduler)(config, observer=observer)


def decisions(scheduler: Scheduler, workload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What `scheduler` decides about the arrivals and aborts of a workload, step by step, for ever:
    a run without unfinished requests has empty steps. Where it proposes tokens and the workload was
    not recorded, they are those of `Guesses`."""
    model = Model(workload, scheduler.config)
    arrivals: dict[int, list[dict[str, Any]]] = {}
    for spec in workload["requests"]:
        arrivals.setdefault(spec["arrival_step"], []).append(spec)
    aborts: dict[int, list[str]] = {}
    for step, request_id in workload["aborts"]:
        aborts.setdefault(step, []).append(request_id)

    has_caps = any(name in workload["config"] for name in QUEUE_CAPS)
    for step in count():
        refused = [
            spec["id"]
            for spec in arrivals.get(step, ())
            if not scheduler.add_request(make_request(spec))
        ]
        for request_id in aborts.get(step, ()):
            scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        row = run_step(scheduler, model)
        if has_caps:
            row = {"refused": refused, **row}
        yield row
        if not scheduler.config.num_speculative_tokens:
            continue
        going = [id_ for id_ in row["sampled"] if id_ in scheduler.requests]
        proposed = model.propose(step, going, model.most)
        if not model.num_ahead:
            scheduler.update_draft_token_ids(proposed)


def make_request(spec: dict[str, Any]) -> Request:
    """Our request of a trace's."""
    params = SamplingParams(
        max_tokens=spec["max_tokens"],
        min_tokens=spec.get("min_tokens", 0),
        stop_token_ids=spec.get("stop_token_ids"),
        ignore_eos=True,
    )
    return Request(
        spec["id"],
        spec["prompt_token_ids"],
        params,
        priority=spec["priority"],
        arrival_time=spec["arrival_time"],
    )


@dataclass
class Model:
    """Stands in for a model's runner and its proposer: what they have said of a workload, and what
    they have not told yet."""

    workload: dict[str, Any]
    config: SchedulerConfig
    in_flight: list[tuple[SchedulerOutput, dict[str, TokenIds]]] = field(default_factory=list)
    num_sampled: Counter[str] = field(default_factory=Counter)
    """Output tokens of each request, those that nobody was told of yet too."""
    proposed: dict[str, list[int]] = field(default_factory=dict)
    """The latest of each request."""
    most: int = 0
    """Tokens to propose to each request after the last plan."""

    def __post_init__(self) -> None:
        ids = [spec["id"] for spec in self.workload["requests"]]
        self.index_of = {id_: index for index, id_ in enumerate(ids)}
        """Each request's place in the workload, on which its tokens depend."""
        self.num_ahead = int(self.workload["config"].get("async_scheduling", False))
        """Plans that are made before the tokens of an earlier one are known."""
        self.guesses = Guesses(lambda r, i: sampled_token(self.index_of[r.request_id], i))
        self.guessed_for: dict[str, Request] = {}

    def sample(self, id_: str, drafts: Iterable[int] | None) -> TokenIds:
        """The next token of a request; if any are proposed, those that are right and one more."""
        says, first = partial(sampled_token, self.index_of[id_]), self.num_sampled[id_]
        tokens = verified(drafts or (), first, says)
        self.num_sampled[id_] += len(tokens)
        return tokens[0] if drafts is None else tokens

    def propose(self, step: int, request_ids: Iterable[str], most: int) -> dict[str, list[int]]:
        """What follows a step's tokens: what was recorded, unless that was after another number of
        requests, to which another number of tokens is proposed."""
        steps = self.workload.get("steps", ())
        then: dict[str, Any] = steps[step] if step < len(steps) else {"scheduled": ()}
        as_then = self.config.num_spec_tokens_to_schedule(len(then["scheduled"])) == most
        recorded = then.get("proposed", {}) if as_then else {}
        proposed = {
            id_: recorded[id_] if id_ in recorded else self._guess(id_, most) for id_ in request_ids
        }
        self.proposed |= proposed
        return proposed

    def _guess(self, id_: str, most: int) -> list[int]:
        if id_ not in self.guessed_for:
            spec = self.workload["requests"][self.index_of[id_]]
            self.guessed_for[id_] = make_request(spec)
        request = self.guessed_for[id_]
        return self.guesses.draft_token_ids(request, most, self.num_sampled[id_])

    def run(self, scheduler: Scheduler, plan: SchedulerOutput) -> dict[str, TokenIds]:
        """The tokens of a plan."""
        self.most = plan.num_spec_tokens_to_schedule
        if isinstance(scheduler, AsyncScheduler):
            drafts = {
                request.request_id: self.proposed.get(request.request_id, ())
                for request in plan.scheduled_running_reqs
            }
            scheduler.update_draft_token_ids_in_output(drafts, plan)
        sampled: dict[str, TokenIds] = {}
        for id_ in plan.num_scheduled_tokens:
            request = scheduler.requests[id_]
            if request.num_computed_tokens < len(request.all_token_ids):
                continue
            sampled[id_] = self.sample(id_, plan.scheduled_spec_decode_tokens.get(id_))
        return sampled


def run_step(scheduler: Scheduler, model: Model) -> dict[str, Any]:
    """One step of ours, in the words of the traces: a plan, and an update with the tokens of this
    one or, async, of the one before it."""
    output = scheduler.schedule()
    manager = scheduler.kv_cache_manager
    scheduled = {id_: scheduler.requests[id_] for id_ in output.num_scheduled_tokens}
    ours = {
        "scheduled": [[id_, tokens] for id_, tokens in output.num_scheduled_tokens.items()],
        "computed_after": {id_: r.num_computed_tokens for id_, r in scheduled.items()},
        "preempted": sorted(output.preempted_req_ids),
        "running": [request.request_id for request in scheduler.running],
        "waiting": [request.request_id for request in scheduler.waiting],
        "block_ids": {id_: manager.get_block_ids(id_) for id_ in scheduled},
        "free_blocks": manager.block_pool.get_num_free_blocks(),
    }
    ours["sampled"] = sampled = model.run(scheduler, output)
    if scheduler.config.num_speculative_tokens:
        ours["drafts"] = output.scheduled_spec_decode_tokens
    if scheduler.config.num_speculative_tokens_per_batch_size:
        ours["num_spec_tokens_to_schedule"] = output.num_spec_tokens_to_schedule
    model.in_flight.append((output, sampled))
    outputs = []
    if len(model.in_flight) > model.num_ahead:
        outputs = scheduler.update_from_output(*model.in_flight.pop(0))
    ours["finished"] = sorted(out.request_id for out in outputs if out.finish_reason is not None)
    return ours


def read_traces(path: Path) -> Iterator[dict[str, Any]]:
    """The workloads of a `.jsonl` file, compressed or not (`.gz`, `.xz`).

    Raises:
        ValueError: if the file cannot be read, a line is not a workload, or its format is a later
            one.
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
                if workload.get("format", 1) != FORMAT:
                    raise ValueError(
                        f"{path}, line {number}: format {workload['format']!r}; this minivllm "
                        f"reads format {FORMAT} (minivllm/runs/trace.schema.json). Use a newer "
                        f"minivllm, or record again with tools/record_vllm_traces.py"
                    )
                yield workload
    except (OSError, EOFError, UnicodeDecodeError, LZMAError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def main(argv: list[str] | None = None, prog: str = "python -m minivllm.conformance") -> int:
    """The command line, under the name `prog`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compare our scheduler with recorded decisions of vLLM, step by step.",
        epilog="exit status: 0 every workload is identical; 1 one is not; 2 nothing could be "
        "compared. Commands: run (examine any scheduler), corpus (write the one to run); see "
        "`run --help`.",
    )
    parser.add_argument("file", type=Path, help="recorded traces: .jsonl, .jsonl.gz or .jsonl.xz")
    parser.add_argument(
        "--as", dest="version", metavar="RELEASE", help="compare with this release all the same"
    )
    args = parser.parse_args(argv)
    path, version = args.file, args.version

    total = identical = 0
    recorded = ""
    first: tuple[int, Difference] | None = None
    try:
        if version is not None:
            check_version(version)
        for total, workload in enumerate(read_traces(path), 1):
            try:
                said = str(workload.get("vllm")) if version else release_of(workload)
            except ValueError as error:
                raise ValueError(f"{path}, workload {total}: {error}") from None
            if said != (recorded or said):
                raise ValueError(
                    f"{path}, workload {total}: recorded from vLLM {said}, those before it from "
                    f"{recorded}; a file holds one release"
                )
            recorded = said
            difference = replay(workload, version=version)
            identical += difference is None
            if difference is not None and first is None:
                first = (total, difference)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if total == 0:
        print(f"error: {path} holds no workload", file=sys.stderr)
        return 2
    compared = f", compared with {version} as told" if version else ""
    print(f"vLLM {recorded}{compared}: {identical}/{total} workloads identical")
    if first is not None:
        print(f"first difference: workload {first[0]}, {first[1]}")
    return 0 if identical == total else 1


if __name__ == "__main__":
    sys.exit(main())
