"""What a replay shows, written down: each step's load, seconds and bound; each request's times."""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import sub

from minivllm.core import EngineCoreOutput, Request, SchedulerOutput
from minivllm.core.kv_cache_manager import cdiv
from minivllm.runs.recorded import Replay
from minivllm.runs.recording import Planned, RecordedRequest, Recording, Updated
from minivllm.sim.cost import StepLoad

RESOURCES = ("tokens", "seats", "blocks", "threshold", "cadence")
"""What can bound a step."""

BOUND_BY = {
    "max_num_batched_tokens": "tokens",
    "enable_chunked_prefill": "tokens",
    "max_num_seqs": "seats",
    "max_num_active_seqs": "seats",
    "num_gpu_blocks": "blocks",
    "watermark": "blocks",
    "preempted_in_this_step": "blocks",
    "prefill_schedule_interval": "cadence",
}
"""Why admission stopped -> what was short."""


MAX_BEHIND = 200
"""Of a long queue, so many are asked whether they would have fitted."""


@dataclass(slots=True)
class Step:
    """One step of the server."""

    step: int
    start: float
    """Seconds of the recording's clock: when it was planned."""
    load: StepLoad
    bound: tuple[str, ...]
    """Of `RESOURCES`."""
    num_waiting: int
    num_running: int
    num_preempted: int
    num_recomputed: int
    usage: float
    head_blocks_others: int
    """Requests behind the head of the queue that would have fitted."""
    largest: tuple[int, int]
    """Who had the most tokens of a prompt, and how many; (-1, 0): nobody."""
    end: float = 0.0
    """When its tokens were there."""
    seconds: float = 0.0
    """What it took, the work between two steps included, if the next followed at once."""
    host: float = 0.0
    """Of that, between its tokens and the next plan."""
    more: bool = False
    """Whether there was anything left to do after it."""

    @property
    def begun(self) -> float:
        """When it began to compute: later than planned, if the one before was still under way."""
        return max(self.start, self.end - self.seconds)


@dataclass(slots=True)
class Served:
    """One request's times, in seconds, from when the server got it."""

    number: int
    request_id: str
    arrival: float
    prompt_len: int
    output_len: int
    status: str
    queue: float
    """Until it was first scheduled."""
    ttft: float
    e2e: float
    max_itl: float
    max_itl_from: float
    """When that longest gap between two tokens began."""
    num_preemptions: int


@dataclass(slots=True)
class Victim:
    """What preemptions took from one request."""

    number: int
    times: int = 0
    tokens: int = 0
    """Computed, and dropped."""
    seconds: float = 0.0
    """From being preempted to being scheduled again, all times together."""
    steps: list[int] = field(default_factory=list)
    """Those that preempted it."""
    since: float | None = None


@dataclass
class Ledger:
    """A recording, replayed and written down: `Ledger.of(recording)`."""

    recording: Recording
    replay: Replay = field(init=False)
    steps: list[Step] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    itl: array[float] = field(default_factory=lambda: array("d"))
    """Seconds between tokens, all of them."""
    victims: dict[int, Victim] = field(default_factory=dict)
    gainers: Counter[int] = field(default_factory=Counter)
    """For whom others were preempted, and how often."""
    admitted_tokens: int = 0
    """Prompt tokens of first admissions."""
    hit_tokens: int = 0
    """Of those, given by the prefix cache."""
    lost_tokens: int = 0
    """Of those, computed before, cached then, and evicted since."""
    num_evictions: int = 0
    aborted_unscheduled: int = 0
    _seen: set[bytes] = field(default_factory=set)
    _noted: dict[str, int] = field(default_factory=dict)
    """Of each unfinished request, how many hashes are among the seen."""
    _next: int = 0
    """The step whose tokens come next."""

    @classmethod
    def of(cls, recording: Recording, version: str | None = None) -> Ledger:
        """Replay a recording to its end, or to the first difference.

        Raises:
            RecordingError: if it cannot be replayed.
        """
        ledger = cls(recording)
        ledger.replay = Replay(
            recording,
            version=version,
            on_plan=ledger._planned,
            on_update=ledger._updated,
            on_end=ledger._ended,
        )
        ledger._next = -len(ledger.replay.under_way)
        ledger.replay.run()
        for number, request in ledger.replay.live.items():
            ledger._note_times(recording.requests[number], request)
        ledger._time_steps()
        return ledger

    # --- told by the replay ---------------------------------------------------------------

    def _planned(self, event: Planned, plan: SchedulerOutput) -> None:
        replay = self.replay
        scheduler = replay.scheduler
        tokens = plan.num_scheduled_tokens
        numbers = replay.numbers
        for preemption in plan.preemptions:
            number = numbers[preemption.victim.request_id]
            victim = self.victims.setdefault(number, Victim(number))
            victim.times += 1
            victim.tokens += preemption.num_computed_tokens
            victim.since = event.time
            victim.steps.append(replay.num_steps - 1)
            self.gainers[numbers[preemption.for_request.request_id]] += 1
        for request in plan.scheduled_resumed_reqs:
            victim_ = self.victims.get(numbers[request.request_id])
            if victim_ is not None and victim_.since is not None:
                victim_.seconds += event.time - victim_.since
                victim_.since = None
        caching = scheduler.config.enable_prefix_caching
        for request in plan.scheduled_new_reqs if caching else ():
            self._admitted(request)
        self.num_evictions += len(plan.evictions)
        largest = (-1, 0)
        if len(tokens) < plan.total_num_scheduled_tokens:
            id_ = max(tokens, key=lambda id_: tokens[id_])
            largest = numbers[id_], tokens[id_]
        self.steps.append(
            Step(
                replay.num_steps - 1,
                event.time,
                StepLoad.of_plan(plan),
                self._bound(plan),
                len(scheduler.waiting),
                len(scheduler.running),
                len(plan.preempted_req_ids),
                plan.stats.num_recomputed_tokens,
                plan.stats.kv_cache_usage,
                self._behind_head(plan),
                largest,
            )
        )

    def _admitted(self, request: Request) -> None:
        """What the cache gave, and what it would have given, had it never forgotten."""
        size = self.replay.config.block_size
        self.admitted_tokens += request.num_prompt_tokens
        self.hit_tokens += request.num_cached_tokens
        known = 0
        for block_hash in islice(request.block_hashes, (request.num_prompt_tokens - 1) // size):
            if block_hash not in self._seen:
                break
            known += size
        self.lost_tokens += max(known - request.num_cached_tokens, 0)

    def _bound(self, plan: SchedulerOutput) -> tuple[str, ...]:
        found = set()
        stop = plan.admission_stopped
        if stop is not None:
            found.add(BOUND_BY[stop.reason])
        if plan.preemptions:
            found.add("blocks")
        threshold = plan.long_prefill_token_threshold
        for id_ in plan.num_left_tokens:
            capped = plan.num_scheduled_tokens.get(id_) == threshold > 0
            found.add("threshold" if capped else "tokens")
        return tuple(resource for resource in RESOURCES if resource in found)

    def _behind_head(self, plan: SchedulerOutput) -> int:
        """Who waits only because the head of the queue does not fit."""
        stop = plan.admission_stopped
        if stop is None or stop.reason not in ("num_gpu_blocks", "watermark"):
            return 0
        scheduler, config = self.replay.scheduler, self.replay.scheduler.config
        free = stop.num_free_blocks or 0
        if scheduler.running:
            free -= config.watermark_blocks
        seats = (config.max_num_active_seqs or config.max_num_seqs) - len(scheduler.running)
        num_behind = 0
        for request in islice(scheduler.waiting, 1, MAX_BEHIND):
            needed = cdiv(request.num_tokens, config.block_size)
            if num_behind < seats and needed <= free:
                free -= needed
                num_behind += 1
        return num_behind

    def _updated(
        self, event: Updated, plan: SchedulerOutput, outputs: list[EngineCoreOutput]
    ) -> None:
        if self._next >= 0:
            self.steps[self._next].end = event.time
            self.steps[self._next].host = event.duration
            self.steps[self._next].more = bool(self.replay.scheduler.requests)
        self._next += 1
        if not self.replay.config.enable_prefix_caching:
            return
        size, live = self.replay.config.block_size, self.replay.scheduler.requests
        for id_ in plan.num_scheduled_tokens:
            request = live.get(id_)
            if request is not None:
                full, noted = request.num_computed_tokens // size, self._noted.get(id_, 0)
                if full > noted:
                    self._seen.update(request.block_hashes[noted:full])
                    self._noted[id_] = full

    def _ended(self, recorded: RecordedRequest, request: Request) -> None:
        self._noted.pop(request.request_id, None)
        self._note_times(recorded, request)

    def _note_times(self, recorded: RecordedRequest, request: Request) -> None:
        times = request.metrics.token_times
        first_scheduled = request.metrics.first_scheduled_time
        if not times or first_scheduled is None or recorded.time == 0.0:
            self.aborted_unscheduled += not times
            return  # it was aborted before, or had begun before the recording
        gaps = array("d", map(sub, times[1:], times))
        self.itl.extend(gaps)
        longest = max(gaps, default=0.0)
        self.served.append(
            Served(
                recorded.number,
                recorded.request_id,
                recorded.arrival,
                recorded.prompt_len,
                len(times),
                recorded.status,
                first_scheduled - recorded.arrival,
                times[0] - recorded.arrival,
                times[-1] - recorded.arrival,
                longest,
                times[gaps.index(longest)] if gaps else 0.0,
                request.num_preemptions,
            )
        )

    # --- afterwards -----------------------------------------------------------------------

    def _time_steps(self) -> None:
        """What each step took: to the next plan, if that came at once; else to its tokens."""
        ahead = bool(self.recording.header.get("async"))
        before = 0.0
        for index, step in enumerate(self.steps):
            if not step.end:  # its tokens are not in the recording
                continue
            if ahead:
                step.seconds = step.end - max(before, step.start)
                before = step.end
                continue
            if step.more and index + 1 < len(self.steps):  # it goes on at once
                step.host = self.steps[index + 1].start - step.end
            step.seconds = step.end + step.host - step.start

    def timed(self) -> list[Step]:
        """The steps that computed something, and whose time is known."""
        return [step for step in self.steps if step.seconds > 0 and step.load.num_tokens]

    def between(self, start: float, end: float) -> Iterator[Step]:
        """Steps that ended after `start` and began before `end`."""
        # Of those planned before, two may be under way (asynchronous scheduling).
        index = max(bisect_right(self.steps, start, key=lambda step: step.start) - 2, 0)
        while index < len(self.steps) and self.steps[index].start < end:
            if self.steps[index].end > start:
                yield self.steps[index]
            index += 1

    def slowest_of(self, start: float, end: float) -> Step | None:
        """The step that took the most of a stretch of time."""
        return max(self.between(start, end), key=lambda step: step.seconds, default=None)

    def worst(self, count: int) -> list[Served]:
        """The requests with the longest gaps between two tokens."""
        return heapq.nlargest(count, self.served, key=lambda served: served.max_itl)
