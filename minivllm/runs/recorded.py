"""A recording run again: our scheduler of that release, on the server's inputs, step by step.

Every call that the server's scheduler got is made again, in its order: requests, aborts, plans,
tokens. What tokens said is not known and not needed: a request ends where it ended, and its blocks
have the hashes that were recorded.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain
from types import SimpleNamespace
from typing import Any

from minivllm.core import (
    AsyncScheduler,
    EngineCoreOutput,
    Request,
    RequestStatus,
    SamplingParams,
    Scheduler,
    SchedulerConfig,
    SchedulerOutput,
    StepStats,
)
from minivllm.core.block_pool import FreeKVCacheBlockQueue
from minivllm.core.releases import RELEASES, check_version
from minivllm.runs import History, Recorder
from minivllm.runs.recording import (
    HASH_BYTES,
    Added,
    Ended,
    Event,
    Planned,
    RecordedRequest,
    Recording,
    RecordingError,
    Updated,
    blocks_crc,
)
from minivllm.runs.scenario import ScenarioError

STOP_TOKEN = 1
"""Ends a request that a stop token, or the model's EOS, ended."""


@dataclass(frozen=True)
class Difference:
    """The first place where we part from the server."""

    step: int
    time: float
    field: str
    ours: Any
    theirs: Any

    def __str__(self) -> str:
        return (
            f"step {self.step:,} at {self.time:.3f} s, {self.field}:\n"
            f"    ours:    {_short(self.ours)}\n    server's: {_short(self.theirs)}"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"


def release_of(recording: Recording) -> str:
    """The release that the recording was made from, if we know it.

    Raises:
        RecordingError: naming those that we know.
    """
    if recording.version not in RELEASES:
        raise RecordingError(
            f"{recording.name}: recorded from vLLM {recording.version}; the releases that can be "
            f"replayed are {', '.join(RELEASES)}. Name one of them with --as to try nevertheless."
        )
    return recording.version


def config_of(recording: Recording, version: str | None = None, **knobs: Any) -> SchedulerConfig:
    """The server's knobs, as a configuration of our scheduler.

    The scheduler stands behind the server's front door, so it refuses nobody; and it follows vLLM
    where it should not be followed.

    Raises:
        RecordingError: if they are no configuration.
    """
    version = check_version(version) if version else release_of(recording)
    try:
        return SchedulerConfig.from_dict(
            {
                "vllm_version": version,
                "admission_control": False,
                "keep_upstream_bugs": True,
                **recording.header["knobs"],
                **knobs,
            }
        )
    except (TypeError, ValueError) as error:
        raise RecordingError(f"{recording.name}: {error}") from None


def make_request(recorded: RecordedRequest) -> Request:
    """Our request for one of the recording."""
    request = Request(
        recorded.request_id,
        [0] * recorded.prompt_len,
        SamplingParams(
            max_tokens=max(recorded.max_tokens, 1),
            min_tokens=min(recorded.min_tokens, max(recorded.max_tokens, 1)),
            stop_token_ids=[STOP_TOKEN],
            ignore_eos=True,
        ),
        priority=recorded.priority,
        arrival_time=recorded.arrival_time,
    )
    request.block_hashes = recorded.block_hashes
    return request


OnPlan = Callable[[Planned, SchedulerOutput], None]
OnUpdate = Callable[[Updated, SchedulerOutput, list[EngineCoreOutput]], None]
OnEnd = Callable[[RecordedRequest, Request], None]


class Replay:
    """One run of a recording.

    Args:
        recording: what the server did.
        version: decide as this release; None: as the server's.
        on_plan: called after each step that was decided as the server did.
        on_update: called after the tokens of each plan.
        on_end: called for each request that is over.

    Raises:
        RecordingError: if the recording cannot be run.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        version: str | None = None,
        on_plan: OnPlan | None = None,
        on_update: OnUpdate | None = None,
        on_end: OnEnd | None = None,
    ) -> None:
        self.recording = recording
        self.config = config_of(recording, version)
        self.now = 0.0
        make_scheduler = AsyncScheduler if recording.header.get("async") else Scheduler
        self.scheduler = make_scheduler(self.config, clock=lambda: self.now, keep_step_stats=False)
        self.on_plan = on_plan
        self.on_update = on_update
        self.on_end = on_end
        self.num_steps = 0
        """Decided as the server did."""
        self.difference: Difference | None = None
        self.live: dict[int, Request] = {}
        """Unfinished requests by their number."""
        self.numbers: dict[str, int] = {}
        self.under_way: deque[tuple[SchedulerOutput, dict[str, int]]] = deque()
        self._events: Iterator[Event] = recording.events()
        if recording.state is not None:
            try:
                self._take_state(recording.state)
            except (ValueError, TypeError, KeyError, IndexError, AssertionError) as error:
                raise RecordingError(
                    f"{recording.name}: its header's state is broken: {error}"
                ) from None

    # --- one event after another ----------------------------------------------------------

    def run(self, num_steps: int | None = None, *, updates: bool = False) -> Replay:
        """Go on until `num_steps` steps are planned; None: to the end, or the first difference.

        Args:
            num_steps: where to stop.
            updates: take what came between that plan and the next as well.
        """
        while self.difference is None:
            enough = num_steps is not None and self.num_steps >= num_steps
            if enough and not updates:
                break
            event = next(self._events, None)
            if event is None:
                break
            if enough and isinstance(event, Planned):
                self._events = chain((event,), self._events)
                break
            self.now = event.time
            if isinstance(event, Planned):
                self._plan(event)
            elif isinstance(event, Updated):
                self._update(event)
            elif isinstance(event, Added):
                self._add(event.number)
            elif isinstance(event, Ended):
                self._end(event)
            else:
                done = self.scheduler.kv_cache_manager.block_pool.reset_prefix_cache()
                self._compare("reset of the prefix cache", done, event.done)
        return self

    def _add(self, number: int) -> None:
        recorded = self.recording.requests[number]
        request = make_request(recorded)
        if request.request_id in self.scheduler.requests:
            raise RecordingError(
                f"{self.recording.name}: request {number} has the id of one that is unfinished"
            )
        self.scheduler.add_request(request)
        self.live[number] = request
        self.numbers[request.request_id] = number

    def _end(self, event: Ended) -> None:
        for end in event.ends:
            request = self.live.get(end.number)
            if request is None or request.is_finished:
                self._compare("requests that can be ended", None, end.number)
                return
            self._compare(f"output tokens of request {end.number}",
                          request.num_output_tokens, end.num_output_tokens)  # fmt: skip
            self.scheduler.finish_requests(request.request_id, RequestStatus.FINISHED_ABORTED)
            self._forget(end.number)

    def _forget(self, number: int) -> None:
        request = self.live.pop(number)
        del self.numbers[request.request_id]
        if self.on_end is not None:
            self.on_end(self.recording.requests[number], request)

    def _plan(self, event: Planned) -> None:
        plan = self.scheduler.schedule()
        number_of = self.numbers
        numbers = [number_of[id_] for id_ in plan.num_scheduled_tokens]
        tokens = list(plan.num_scheduled_tokens.values())
        if numbers != event.numbers or tokens != event.tokens:
            ours, theirs = list(zip(numbers, tokens)), list(zip(event.numbers, event.tokens))
            self._compare("who is scheduled, with how many tokens", ours, theirs)
        if plan.preempted_req_ids or event.preempted:
            preempted = sorted(number_of[id_] for id_ in plan.preempted_req_ids)
            self._compare("who is preempted", preempted, event.preempted)
        scheduler = self.scheduler
        self._compare("running requests", len(scheduler.running), event.num_running)
        self._compare("waiting requests", len(scheduler.waiting), event.num_waiting)
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        self._compare("free blocks", free, event.num_free_blocks)
        if self.difference is None:
            blocks = {number_of[id_]: ids for id_, ids in plan.new_block_ids.items()}
            if event.crc != blocks_crc(blocks):
                self._compare("ids of the blocks handed out (a checksum)", blocks, event.crc)
        if self.difference is not None:
            return
        requests = scheduler.requests
        sampling = [
            id_
            for id_ in plan.num_scheduled_tokens
            if requests[id_].num_computed_tokens >= len(requests[id_].all_token_ids)
        ]
        # Nobody else's tokens: what a request says is in its blocks' hashes, if they are known.
        self.under_way.append((plan, {id_: 2 + number_of[id_] for id_ in sampling}))
        self.num_steps += 1
        if self.on_plan is not None:
            self.on_plan(event, plan)

    def _update(self, event: Updated) -> None:
        if not self.under_way:
            self._compare("plans under way", 0, "one whose tokens came")
            return
        plan, sampled = self.under_way.popleft()
        for end in event.ends:
            request = self.live.get(end.number)
            if request is not None and end.status != "FINISHED_LENGTH_CAPPED":
                sampled[request.request_id] = STOP_TOKEN
        try:
            outputs = self.scheduler.update_from_output(plan, sampled)
        except ValueError as error:  # a token for one who was to have none
            self._compare("who got a token", str(error), [end.number for end in event.ends])
            return
        ours = [self.numbers[out.request_id] for out in outputs if out.finish_reason is not None]
        self._compare("who finished", ours, [end.number for end in event.ends])
        for end in event.ends if self.difference is None else ():
            num_tokens = self.live[end.number].num_output_tokens
            self._compare(
                f"output tokens of request {end.number}", num_tokens, end.num_output_tokens
            )
            self._forget(end.number)
        if self.difference is None and self.on_update is not None:
            self.on_update(event, plan, outputs)

    def _compare(self, field: str, ours: Any, theirs: Any) -> None:
        if ours != theirs and self.difference is None:
            self.difference = Difference(self.num_steps, self.now, field, ours, theirs)

    # --- a recording that begins in the middle ----------------------------------------------

    def _take_state(self, state: dict[str, Any]) -> None:
        """Bring the scheduler to where the server's stood when the segment began."""
        scheduler, manager = self.scheduler, self.scheduler.kv_cache_manager
        pool = manager.block_pool
        size = len(pool.blocks)
        for row in state["requests"]:
            number = row["request"][0]
            recorded = self.recording.requests[number]
            request = make_request(recorded)
            for _ in range(row["num_output_tokens"]):
                request.append_output_token_id(2 + number)
            request.num_computed_tokens = row["num_computed_tokens"]
            on_their_way = row["num_output_placeholders"]
            num_outputs = request.num_output_tokens + on_their_way
            last = num_outputs >= (request.max_tokens or 0) or (
                request.num_prompt_tokens + num_outputs >= self.config.max_model_len
            )
            # vLLM counts the last token that may come too; here nothing can follow it.
            request.num_output_placeholders = max(on_their_way - last, 0)
            request.num_preemptions = row["num_preemptions"]
            request.is_prefill_chunk = row.get("is_prefill_chunk", False)
            request.status = RequestStatus.__members__.get(row["status"], RequestStatus.WAITING)
            scheduler.requests[request.request_id] = request
            self.live[number] = request
            self.numbers[request.request_id] = number
            blocks = [pool.blocks[_block(block_id, size)] for block_id in row["blocks"]]
            for block in blocks:
                block.ref_cnt += 1
            if blocks:
                manager.req_to_blocks[request.request_id] = blocks
        scheduler.running = [self.live[number] for number in state["running"]]
        for number in state["waiting"]:  # in the order of the queue, whatever its policy
            scheduler.waiting.add_request(self.live[number])
        hashes = base64.b64decode(state["hashes"])
        for index, block_id in enumerate(accumulate(state["hashed"])):
            block_hash = hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]
            pool.cache_full_block(pool.blocks[_block(block_id, size)], block_hash)
        for id_, blocks in manager.req_to_blocks.items():
            hashed = next((i for i, b in enumerate(blocks) if b.block_hash is None), len(blocks))
            manager.num_cached_block[id_] = hashed
        free = [pool.blocks[_block(block_id, size)] for block_id in accumulate(state["free"])]
        if any(block.ref_cnt for block in free) or len(set(map(id, free))) < len(free):
            raise ValueError("a block is free and in use")
        pool.free_block_queue = FreeKVCacheBlockQueue(free)
        if state.get("prefill_cadence"):
            since, is_behind = state["prefill_cadence"]
            scheduler.prefill_cadence.last_prefill_step = -since
            scheduler.prefill_cadence.is_behind = bool(is_behind)
        for plan in state["under_way"]:
            self._under_way_before(plan)

    def _under_way_before(self, rows: list[list[int]]) -> None:
        """A plan that was made before the segment began, and whose tokens come later."""
        scheduler = self.scheduler
        step = -1 - len(self.under_way)
        requests = {self.live[number].request_id: computed for number, computed in rows}
        plan = SchedulerOutput(
            step, StepStats(step), num_scheduled_tokens=dict.fromkeys(requests, 0)
        )
        if isinstance(scheduler, AsyncScheduler):
            scheduler._in_flight[step] = (plan, dict(requests))
        sampled = {
            id_: 2 + self.numbers[id_]
            for id_, computed in requests.items()
            if computed >= len(scheduler.requests[id_].all_token_ids)
        }
        self.under_way.append((plan, sampled))


class RecordedRun:
    """A recording as something that a stepper steps: `SchedulerStepper(RecordedRun(recording))`.

    Args:
        recording: what the server did.
        step: the first to be seen; those before are replayed unseen.
        num_steps: to be there at once; the stepper's own button replays one after another.
        replay: of it, that has not gone further; None: a new one.

    Raises:
        RecordingError: if the recording has no such step, or decisions differ before it.
    """

    def __init__(
        self,
        recording: Recording,
        step: int = 0,
        num_steps: int = 1,
        *,
        replay: Replay | None = None,
    ) -> None:
        self.replay = (replay or Replay(recording)).run(step)
        if self.replay.num_steps < step or not step < recording.num_steps:
            raise RecordingError(
                f"{recording.name}: there is no step {step} to see; {self.replay.num_steps} of "
                f"{recording.num_steps} steps are decided as the server did"
            )
        self.scheduler = self.replay.scheduler
        recorder = Recorder()
        recorder.begin(self.scheduler)
        self.scheduler.observer = recorder
        self.replay.run(step + num_steps)
        self._take_tokens()

    @property
    def history(self) -> History:
        """The steps seen so far."""
        return self.scheduler.history

    def step(self) -> None:
        """Replay one more step."""
        self.replay.run(self.replay.num_steps + 1)
        self._take_tokens()

    def _take_tokens(self) -> None:
        """Go on to just before the next plan, so that the last step has its tokens."""
        self.replay.run(self.replay.num_steps, updates=True)

    def has_unfinished_requests(self) -> bool:
        """Whether there is a step to come."""
        replay = self.replay
        return replay.difference is None and replay.num_steps < replay.recording.num_steps

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        """A recording takes no requests.

        Raises:
            ScenarioError: always.
        """
        raise ScenarioError([{"field": "request", "message": "a recording takes no requests"}])

    def abort_request(self, request_ids: str) -> None:
        """A recording takes no aborts.

        Raises:
            ScenarioError: always.
        """
        raise ScenarioError([{"field": "request_id", "message": "a recording takes no aborts"}])

    def get_tokenizer(self) -> Any:
        """Nobody knows what the tokens say."""
        return SimpleNamespace(decode=None)


def _block(block_id: Any, size: int) -> int:
    """A block id of a state, if it is one; the null block belongs to nobody."""
    if type(block_id) is not int or not 0 < block_id < size:
        raise ValueError(f"block {block_id!r:.40} of {size - 1}")
    return block_id
