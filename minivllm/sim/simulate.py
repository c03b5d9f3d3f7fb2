"""The simulator: the engine's own scheduler under a clock that jumps.

    while there is anything to do:
        requests that have arrived go to the scheduler
        plan = scheduler.schedule()                  the real one: minivllm.core
        clock += cost.step_time(plan)                in place of the model
        scheduler.update_from_output(plan, tokens)   any tokens: max_tokens ends the output

Every decision is the scheduler's. What is simulated is time, and when there is nothing to do the
clock jumps to the next arrival.
"""

from __future__ import annotations

import math
import time as wall_clock
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import sub
from typing import Any

from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig
from minivllm.core.config import check_choice, check_int
from minivllm.core.output import EngineCoreOutput, SchedulerOutput, TokenIds
from minivllm.runs.guesses import ACCEPTANCE_RATE, Guesses, propose, sampled_tokens
from minivllm.sim.checks import check_number
from minivllm.sim.cost import CostModel, StepLoad, scheduled_requests
from minivllm.sim.results import RequestRecord, SimResult
from minivllm.sim.workload import Arrival, Source, Workload

MAX_NUM_REFUSALS = 5
"""Of refused requests, the reasons of so many are kept."""

MAX_REFUSED_IN_A_ROW = 10_000
"""After so many, with nothing running, a run gives up: users who never think, and whose every
request is refused, would ask for ever without the clock moving."""


class Clock:
    """Simulated time: the scheduler calls it, the simulator sets it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Simulation:
    """One run. `simulate` makes one and runs it to its end; `step` by step, one can watch.

    Args:
        workload: who asks for what, and when.
        cost: what a step costs.
        config: the scheduler's knobs.
        seed: of the workload.
        until: seconds of simulated time after which the run stops, requests in flight or not.
        on_refused: what to do about a request that can never fit: "raise", or "count" it.
        acceptance_rate: how often a proposed token is right, 0 to 1, where those before it were
            (`num_speculative_tokens`).
        draft_cost: of a draft model's steps, which come on top; None: to propose costs no time, as
            with a prompt look-up.
        max_records: requests to keep records of; beyond, a uniform sample.
        on_step: called after each step with (start, seconds, plan, load): to watch.

    Raises:
        ValueError: on an argument out of range.
    """

    make_scheduler: type[Scheduler] = Scheduler

    def __init__(
        self,
        workload: Workload,
        cost: CostModel,
        config: SchedulerConfig,
        *,
        seed: int = 0,
        until: float | None = None,
        on_refused: str = "raise",
        max_records: int = 100_000,
        acceptance_rate: float = ACCEPTANCE_RATE,
        draft_cost: CostModel | None = None,
        on_step: Callable[[float, float, SchedulerOutput, StepLoad], None] | None = None,
    ) -> None:
        check_choice("on_refused", on_refused, ("raise", "count"))
        check_int("max_records", max_records, 0)
        check_int("seed", seed, 0)
        self.until = math.inf if until is None else check_number("until", until, above=0)
        self.cost = cost
        self.draft_cost = draft_cost if config.num_speculative_tokens else None
        self.clock = Clock()
        self.scheduler = self.make_scheduler(config, clock=self.clock, keep_step_stats=False)
        self.source: Source = workload.start(seed)
        self.on_refused = on_refused
        self.on_step = on_step
        self.result = SimResult(
            cost.to_dict(), workload.to_dict(), config.to_dict(), seed, max_records=max_records
        )
        self._arrivals: dict[str, tuple[int, Arrival]] = {}
        """Unfinished requests: their number and what was asked."""
        self._tokens: dict[str, int] = {}
        """What each unfinished request says, again and again."""
        share = check_number("acceptance_rate", acceptance_rate, least=0, most=1)
        self._guesses = Guesses(lambda request, _: self._tokens[request.request_id], share, seed)
        self._steady = False
        """Whether the last step gave a token to every running request."""
        self._last_end = 0.0
        self._refused_in_a_row = 0
        self._shared: dict[str | int, int] = {}
        """Prefix groups, and hash ids: the number of each."""

    # --- arrivals -------------------------------------------------------------------------

    def _submit(self, arrival: Arrival) -> None:
        """Hand a request to the scheduler, dated when it arrived."""
        index = self.result.num_arrived
        self.result.num_arrived += 1
        request = self._make_request(index, arrival)
        now = self.clock.now
        self.clock.now = arrival.time
        accepted = self.scheduler.add_request(request)
        self.clock.now = now
        if accepted:
            self._refused_in_a_row = 0
            self._arrivals[request.request_id] = (index, arrival)
            self._tokens[request.request_id] = 2 * index
            self.result.timeline.at(arrival.time).arrivals += 1
            self.result.timeline.add_span(arrival.time, now, 1)
            return
        assert request.error is not None
        if self.on_refused == "raise":
            raise ValueError(
                f"{request.error} To go on without it: on_refused='count' (--count-refused)."
            )
        self.result.num_refused += 1
        if len(self.result.refusals) < MAX_NUM_REFUSALS:
            self.result.refusals.append(request.error)
        self._refused_in_a_row += 1
        if self._refused_in_a_row > MAX_REFUSED_IN_A_ROW and not self.scheduler.requests:
            raise ValueError(
                f"workload: {self._refused_in_a_row:,} requests refused in a row, and none is "
                f"running. The latest: {request.error}"
            )
        self.source.finished(now)

    def _make_request(self, index: int, arrival: Arrival) -> Request:
        """Its tokens are made up: equal inside a shared prefix, nobody else's outside it."""
        parts: list[tuple[str | int, int]] = [(arrival.prefix_group, arrival.prefix_len)]
        if arrival.hash_ids:
            parts = [(hash_id, arrival.hash_size) for hash_id in arrival.hash_ids]
        prompt: list[int] = []
        for part, length in parts:
            if length and len(prompt) < arrival.prompt_len:
                number = self._shared.setdefault(part, len(self._shared))
                prompt += [2 * number + 1] * min(length, arrival.prompt_len - len(prompt))
        prompt += [2 * index] * (arrival.prompt_len - len(prompt))
        return Request(
            str(index),
            prompt,
            SamplingParams(max_tokens=arrival.output_len, ignore_eos=True),
            priority=arrival.priority,
            arrival_time=arrival.time,
        )

    def _submit_arrived(self) -> None:
        """Everyone who has arrived by now joins the queue."""
        while self.source.next_time() <= self.clock.now:
            self._submit(self.source.pop())

    # --- one step -------------------------------------------------------------------------

    def step(self) -> bool:
        """Take one step, or jump to the next arrival.

        Returns:
            False if there is nothing left to do, or `until` is reached.

        Raises:
            RuntimeError: if requests wait and can never be scheduled (`admission_control` off).
        """
        clock, scheduler = self.clock, self.scheduler
        if clock.now >= self.until:
            return False
        self._submit_arrived()
        if not scheduler.requests:
            return self._jump()
        plan = scheduler.schedule()
        if not plan.num_scheduled_tokens and not plan.preempted_req_ids:
            return self._jump(len(scheduler.requests))

        steady = self._is_steady(plan)
        if steady:
            load = StepLoad.of_decode(
                plan.scheduled_running_reqs,
                len(plan.blocks_to_swap_out) + len(plan.blocks_to_swap_in),
            )
            tokens: Mapping[str, TokenIds] = self._tokens
        else:
            load = StepLoad.of_plan(plan)
            tokens = self._sample(plan)
        start = clock.now
        seconds = self.cost.step_time(load)
        if self.draft_cost is not None:
            seconds += self._draft_seconds(self.draft_cost, plan, load, tokens)
        if not 0 < seconds < math.inf:
            raise ValueError(f"cost: a step must take a positive, finite time, got {seconds} s")
        end = start + seconds
        clock.now = end

        in_system = len(scheduler.requests)
        outputs = scheduler.update_from_output(plan, tokens)
        propose(scheduler, plan, tokens, self._guesses)
        self._count_gaps(plan, outputs, steady, end)
        timeline = self.result.timeline
        timeline.add_span(
            start, end, in_system, plan.stats.num_running_reqs, plan.stats.kv_cache_usage, True
        )
        bucket = timeline.at(end)
        bucket.steps += 1
        bucket.output_tokens += sum(len(output.new_token_ids) for output in outputs)
        bucket.computed_tokens += load.num_tokens
        bucket.preemptions += len(plan.preempted_req_ids)
        self._last_end = end
        if self.on_step is not None:
            self.on_step(start, seconds, plan, load)
        return True

    def _draft_seconds(
        self, cost: CostModel, plan: SchedulerOutput, load: StepLoad, request_ids: Iterable[str]
    ) -> float:
        """What a draft model adds to a step: it computes the step's tokens and the new one of each
        request that got one, which gives the first proposal, and then a token each for the next.

        Source: vllm/v1/spec_decode/llm_base_proposer.py:427.
        """
        contexts = [self.scheduler.requests[id_].num_tokens + 1 for id_ in request_ids]
        count, context = len(contexts), sum(contexts)
        first = replace(
            load,
            num_tokens=load.num_tokens + count,
            num_sampled=count,
            kv_tokens=load.kv_tokens + count,
            attention_pairs=load.attention_pairs + context,
            swap_blocks=0,
        )
        seconds = cost.step_time(first) if first.num_tokens else 0.0
        for done in range(1, plan.num_spec_tokens_to_schedule if count else 0):
            read = context + done * count
            seconds += cost.step_time(StepLoad(count, count, count, read, read))
        return seconds

    def _jump(self, in_system: int = 0) -> bool:
        """Skip idle time. False if no one is on the way."""
        arrival = self.source.next_time()
        if arrival == math.inf:
            if in_system:
                raise RuntimeError(
                    f"{in_system} requests wait, nothing is running and nothing fits: "
                    f"{next(iter(self.scheduler.waiting))} can never be scheduled. Raise "
                    f"num_gpu_blocks, or turn admission_control on to be told at once."
                )
            return False
        arrival = min(arrival, self.until)
        self.result.timeline.add_span(self.clock.now, arrival, in_system)
        self.clock.now = arrival
        self._steady = False
        return True

    def _is_steady(self, plan: SchedulerOutput) -> bool:
        """Whether this step decodes one token of each running request, all of which had one in
        the step before. Most steps do, and they can be counted wholesale."""
        steady = (
            self._steady
            and not self.scheduler.config.num_speculative_tokens
            and not plan.scheduled_new_reqs
            and not plan.scheduled_resumed_reqs
            and len(plan.num_scheduled_tokens) == len(self.scheduler.running)
        )
        self._steady = steady
        return steady

    def _sample(self, plan: SchedulerOutput) -> Mapping[str, TokenIds]:
        """What each request gets whose last known token this step computes."""
        tokens = sampled_tokens(self.scheduler, plan, self._guesses.token_at)
        self._steady = len(tokens) == len(self.scheduler.running)
        return tokens

    def _count_gaps(
        self,
        plan: SchedulerOutput,
        outputs: Sequence[EngineCoreOutput],
        steady: bool,
        end: float,
    ) -> None:
        """Record the times between tokens, and the requests that are done."""
        itl = self.result.itl
        if steady and outputs:
            itl.add(end - self._last_end, len(outputs))
            if all(output.finish_reason is None for output in outputs):
                return
        requests = {request.request_id: request for request in scheduled_requests(plan)}
        for output in outputs:
            request = requests[output.request_id]
            if not steady:
                times = request.metrics.token_times
                before = -1 - len(output.new_token_ids)  # tokens of one step come together
                if len(times) >= -before:
                    itl.add(times[-1] - times[before])
            if output.finish_reason is not None:
                self._finish(request)

    def _finish(self, request: Request) -> None:
        index, arrival = self._arrivals.pop(request.request_id)
        del self._tokens[request.request_id]
        metrics = request.metrics
        times = metrics.token_times
        assert metrics.first_scheduled_time is not None
        gaps = len(times) - 1
        end = times[-1]
        self.result.add_record(
            RequestRecord(
                index=index,
                kind=arrival.kind,
                arrival=arrival.time,
                prompt_len=arrival.prompt_len,
                output_len=len(times),
                priority=arrival.priority,
                queue_time=metrics.first_scheduled_time - arrival.time,
                ttft=times[0] - arrival.time,
                tpot=(end - times[0]) / gaps if gaps else 0.0,
                max_itl=max(map(sub, times[1:], times)) if gaps else 0.0,
                e2e=end - arrival.time,
                num_preemptions=request.num_preemptions,
                num_cached_tokens=request.num_cached_tokens,
            )
        )
        timeline = self.result.timeline
        timeline.at(end).finished += 1
        timeline.at(arrival.time).sojourn += end - arrival.time
        self.source.finished(end)

    def run(self) -> SimResult:
        """Step until nothing is left to do."""
        started = wall_clock.perf_counter()
        while self.step():
            pass
        for _, arrival in self._arrivals.values():  # in flight when `until` came
            self.result.timeline.at(arrival.time).sojourn += self.clock.now - arrival.time
        self.result.duration = self.clock.now
        self.result.stats = self.scheduler.stats.to_dict()
        self.result.wall_time = wall_clock.perf_counter() - started
        return self.result


def simulate(
    workload: Workload, cost: CostModel, config: SchedulerConfig, **options: Any
) -> SimResult:
    """Run a workload through the scheduler under a simulated clock. `options` are `Simulation`'s.

    The same arguments give the same result, in CPython and in a browser.

    Raises:
        ValueError: if an argument is out of range, or a request can never fit and `on_refused`
            is "raise".
        RuntimeError: if requests wait for ever (`admission_control` off).
    """
    return Simulation(workload, cost, config, **options).run()
