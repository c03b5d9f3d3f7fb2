"""What if: the recorded requests again, under other knobs, by a clock that jumps.

The scheduler is the server's, and what is simulated is time. What a step costs is fitted to the
recording's own steps; arrivals, prompts, prefixes and lengths of outputs are those recorded.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from math import fsum, inf
from random import Random
from statistics import median
from typing import Any, NamedTuple

from minivllm.core import AsyncScheduler, Request, SamplingParams, Scheduler, SchedulerConfig
from minivllm.core.output import SchedulerOutput
from minivllm.incident.ledger import Ledger, Served, Step
from minivllm.incident.units import duration
from minivllm.runs.explain import count
from minivllm.runs.recorded import config_of
from minivllm.runs.recording import HASH_BYTES, RecordedRequest
from minivllm.sim import Arrival, FittedCost, SimResult, Simulation, StepLoad, Trace
from minivllm.sim.calibrate.fitting import fit
from minivllm.sim.cost import CostModel, scheduled_requests
from minivllm.sim.results import percentile
from minivllm.sim.simulate import Clock

METRICS = ("ttft", "itl", "e2e")

MAX_FITTED = 4_000
"""Steps that a fit looks at: of more, so many at random."""

MIN_FITTED = 8

ALIASES = {
    "release": "vllm_version",
    "blocks": "num_gpu_blocks",
    "queue": "policy",
    "budget": "max_num_batched_tokens",
    "threshold": "long_prefill_token_threshold",
}
"""Short names of knobs."""

KNOBS = {knob.name: knob for knob in fields(SchedulerConfig)}


def parse_knob(text: str) -> dict[str, Any]:
    """`name=value`, one knob or several with commas between, as knobs of `SchedulerConfig`.

    A number may be given as a share of what it was: `blocks=*1.5`.

    Raises:
        ValueError: naming the knob and what it takes.
    """
    knobs: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        name = ALIASES.get(name.replace("-", "_"), name.replace("-", "_"))
        if not equals or name not in KNOBS:
            raise ValueError(
                f"--what-if {part!r}: it takes KNOB=VALUE; knobs are {', '.join(KNOBS)}, and for "
                f"short {', '.join(ALIASES)}"
            )
        knobs[name] = _value(name, value)
    return knobs


def _value(name: str, text: str) -> Any:
    kind = str(KNOBS[name].type)
    if "bool" in kind:
        if text.lower() not in ("true", "false", "1", "0", "on", "off"):
            raise ValueError(f"--what-if {name}={text}: it is on or off")
        return text.lower() in ("true", "1", "on")
    if "int" in kind or "float" in kind:
        if text.startswith("*"):
            return text
        try:
            return float(text) if "float" in kind else int(text)
        except ValueError:
            if "None" in kind and text.lower() == "none":
                return None
            raise ValueError(f"--what-if {name}={text}: it is a number") from None
    return text


def changed_config(ledger: Ledger, knobs: Mapping[str, Any]) -> SchedulerConfig:
    """The server's configuration with some knobs turned.

    Raises:
        ValueError: if they do not go together, or with the recording.
    """
    config = config_of(ledger.recording, ledger.replay.config.vllm_version)
    turned = dict(knobs)
    for name, value in knobs.items():
        if isinstance(value, str) and value.startswith("*"):
            try:
                turned[name] = int(getattr(config, name) * float(value[1:]))
            except (TypeError, ValueError):
                raise ValueError(f"{name}={value}: * and a number is expected") from None
    new = replace(config, **turned)
    if new.enable_prefix_caching and new.block_size % config.block_size:
        raise ValueError(
            f"block_size={new.block_size}: the recording has hashes of {config.block_size} tokens, "
            f"so that only its multiples can be tried, or enable_prefix_caching=off"
        )
    return new


def fit_cost(ledger: Ledger) -> RecordedCost:
    """What a step of this server costs, from its own steps.

    The form is `minivllm.sim.calibrate`'s, or, where the steps are too few or too much alike for
    it, a constant and a price of each token.

    Raises:
        ValueError: if there are fewer than `MIN_FITTED` steps.
    """
    steps = ledger.timed()
    if len(steps) < MIN_FITTED:
        raise ValueError(
            f"{len(steps)} steps are timed; at least {MIN_FITTED} are needed to price a step"
        )
    title = f"steps of {ledger.recording.name}"
    pauses: list[Step] = []
    while True:
        cost = _fit([(step.load, step.seconds) for step in steps], title)
        far_off = [s for s in steps if s.seconds > PAUSE * cost.step_time(s.load)]
        if not far_off or len(steps) - len(far_off) < MIN_FITTED:
            break
        pauses += far_off  # a long one hid shorter ones: it had a share in the fit
        steps = [s for s in steps if s.seconds <= PAUSE * cost.step_time(s.load)]
    stood_still = [Pause(s.begun, s.seconds - cost.step_time(s.load)) for s in pauses]
    return RecordedCost(
        cost, [(s.load, s.seconds) for s in steps], sorted(p for p in stood_still if p.seconds > 0)
    )


def _fit(steps: Sequence[tuple[StepLoad, float]], title: str) -> FittedCost:
    chosen = steps if len(steps) <= MAX_FITTED else Random(0).sample(steps, MAX_FITTED)
    try:
        return fit(chosen, title=title, pauses=True)
    except ValueError:
        return _line_through(chosen, title)


def _line_through(steps: Sequence[tuple[StepLoad, float]], title: str) -> FittedCost:
    """A constant, and seconds for each token: least squares."""
    n = len(steps)
    mean_x = fsum(load.num_tokens for load, _ in steps) / n
    mean_y = fsum(seconds for _, seconds in steps) / n
    spread = fsum((load.num_tokens - mean_x) ** 2 for load, _ in steps)
    both = fsum((load.num_tokens - mean_x) * (seconds - mean_y) for load, seconds in steps)
    slope = max(both / spread, 0.0) if spread else 0.0
    constant = mean_y - slope * mean_x
    if constant < 0:
        slope, constant = mean_y / mean_x, 0.0
    return FittedCost(constant, {}, {0: slope}, title)


class Pause(NamedTuple):
    """The machine stood still: a step took more than `PAUSE` times what its load explains."""

    start: float
    """Seconds of the recording's clock."""
    seconds: float
    """What the step took too long."""


class RecordedCost:
    """A fitted cost, and how far the server's steps lay from it.

    A step costs what the fit says, times a factor that some recorded step of about that length had:
    a queue is made by the long steps.

    Args:
        fitted: the mean step.
        steps: loads and seconds, at least one; without the pauses.
        pauses: when the machine stood still. They are no luck of a step: a run that misses one
            would seem to cure it.
    """

    def __init__(
        self,
        fitted: FittedCost,
        steps: Sequence[tuple[StepLoad, float]],
        pauses: Sequence[Pause] = (),
    ) -> None:
        self.fitted = fitted
        self.pauses = pauses
        rows = sorted((fitted.step_time(load), seconds) for load, seconds in steps)
        self._expected = [expected for expected, _ in rows]
        self._factors = [seconds / expected for expected, seconds in rows]
        errors = sorted(abs(factor - 1) for factor in self._factors)
        self.error = {"num_steps": float(len(steps)), "median_step_error": percentile(errors, 50)}
        self.begin()

    def begin(self) -> None:
        """The next run meets the same luck as the one before."""
        self._rng = Random(0)

    @property
    def name(self) -> str:
        return self.fitted.title

    def step_time(self, load: StepLoad) -> float:
        expected = self.fitted.step_time(load)
        low = bisect_left(self._expected, expected / ALIKE)
        high = bisect_left(self._expected, expected * ALIKE)
        if high - low >= MIN_ALIKE:
            return expected * self._factors[low + int(self._rng.random() * (high - low))]
        if low == high:  # none alike: the nearest
            low = min(low, len(self._factors) - 1)
            high = low + 1
        factors = self._factors[low:high]
        return expected * fsum(factors) / len(factors)

    def to_dict(self) -> dict[str, Any]:
        return {**self.fitted.to_dict(), "error": self.error}


class PausingCost:
    """A cost model on a machine that stands still at given times, whatever runs on it then.

    Args:
        cost: of a step without a pause.
        pauses: in order; none begins before the one before is over.
        clock: when a step begins.
        origin: what the pauses' clock shows when `clock` shows 0.
    """

    def __init__(
        self, cost: CostModel, pauses: Sequence[Pause], clock: Clock, origin: float
    ) -> None:
        self.cost, self.clock = cost, clock
        self._pauses = [(start - origin, seconds) for start, seconds in pauses]
        self._ends = [start + seconds for start, seconds in self._pauses]

    @property
    def name(self) -> str:
        return self.cost.name

    def step_time(self, load: StepLoad, begun: float | None = None) -> float:
        """Seconds from `begun` (None: now) until the step has run, pauses on the way included."""
        begun = self.clock.now if begun is None else begun
        end = begun + self.cost.step_time(load)
        for start, seconds in self._pauses[bisect_right(self._ends, begun) :]:
            if start >= end:
                break
            end += min(seconds, start + seconds - begun)
        return end - begun

    def to_dict(self) -> dict[str, Any]:
        return self.cost.to_dict()


PAUSE = 5.0
"""A step that takes so many times what its load explains met a pause of the machine."""

ALIKE = 1.5
"""Steps whose expected times differ by less have the same luck."""

MIN_ALIKE = 10
"""Of fewer, a step takes the mean: one of them may have been an accident."""


@dataclass
class Traffic:
    """The recorded requests, as the simulator takes them."""

    requests: list[RecordedRequest]
    """In the order in which they reached the scheduler."""
    output_lens: list[int]
    reached: list[float]
    """Seconds of the recording's clock: when each was there to be scheduled. Later than its arrival
    by what that takes while nothing runs, and so late that it misses the plans that it missed."""
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, ledger: Ledger) -> Traffic:
        """Those of a recording that have a token.

        Raises:
            ValueError: if none has.
        """
        traffic = cls([], [], [])
        cut = aborted = 0
        for number, recorded in sorted(ledger.recording.requests.items()):
            output_len = recorded.num_output_tokens
            if output_len is None:
                output_len = getattr(ledger.replay.live.get(number), "num_output_tokens", 0)
                cut += 1
            aborted += "ABORTED" in recorded.status
            if output_len:
                traffic.requests.append(recorded)
                traffic.output_lens.append(output_len)
        if not traffic.requests:
            raise ValueError(f"{ledger.recording.name}: no request has a token")
        usual = percentile(sorted(r.time - r.arrival for r in traffic.requests), 10)
        starts = [step.start for step in ledger.steps]
        for recorded in traffic.requests:
            missed = bisect_left(starts, recorded.time - 1e-9) - 1
            reached = max(recorded.arrival + usual, starts[missed] if missed >= 0 else 0.0)
            traffic.reached.append(max([reached, *traffic.reached[-1:]]))
        if cut:
            traffic.notes.append(f"{cut} requests were not over: they count with what they had")
        if aborted:
            traffic.notes.append(f"{aborted} requests were aborted: they end where they did")
        if ledger.recording.state is not None:
            traffic.notes.append("the recording begins in the middle: who was there arrives at 0 s")
        return traffic

    @property
    def mean_delay(self) -> float:
        """Seconds between the server's front door and its scheduler."""
        delays = (there - r.arrival for r, there in zip(self.requests, self.reached))
        return fsum(delays) / len(self.requests)

    def part(self, start: int, end: int) -> Traffic:
        """Some consecutive requests of it."""
        place = slice(start, end)
        return Traffic(
            self.requests[place], self.output_lens[place], self.reached[place], self.notes
        )

    def worst(self, ledger: Ledger, number: int) -> Traffic:
        """The so many consecutive requests that took the longest; all, if there are no more."""
        if len(self.requests) <= number:
            return self
        took = {served.number: served.e2e for served in ledger.served}
        sums = [0.0, *accumulate(took.get(request.number, 0.0) for request in self.requests)]
        starts = range(len(sums) - number)
        start = max(starts, key=lambda start: sums[start + number] - sums[start])
        return self.part(start, start + number)

    def trace(self) -> Trace:
        """Who arrives when at the scheduler, in the order of `requests`."""
        rows = zip(self.requests, self.output_lens, self.reached, strict=True)
        return Trace(
            tuple(
                Arrival(there - self.reached[0], r.prompt_len, n, priority=r.priority)
                for r, n, there in rows
            ),
            "recorded",
        )


class WhatIf(Simulation):
    """The recorded traffic under a configuration, with steps that cost what a model says."""

    def __init__(
        self,
        traffic: Traffic,
        cost: CostModel,
        config: SchedulerConfig,
        *,
        ahead: bool,
        hash_size: int,
        pauses: Sequence[Pause] = (),
    ) -> None:
        self.make_scheduler = AsyncScheduler if ahead else Scheduler
        super().__init__(traffic.trace(), cost, config, on_refused="count")
        self.cost = self._pausing = PausingCost(cost, pauses, self.clock, traffic.reached[0])
        self.traffic = traffic
        self.ahead = ahead
        self._merged = config.block_size // hash_size
        self._under_way: list[tuple[SchedulerOutput, dict[str, int], StepLoad, float]] = []

    def _make_request(self, index: int, arrival: Arrival) -> Request:
        recorded = self.traffic.requests[index]
        request = Request(
            str(index),
            [0] * recorded.prompt_len,
            SamplingParams(max_tokens=arrival.output_len, ignore_eos=True),
            priority=recorded.priority,
            arrival_time=recorded.arrival_time,
        )
        if not self._merged:
            return request  # smaller blocks than recorded: without a prefix cache
        # A chained hash stands for all before it: of blocks twice as large, every second will do.
        hashes, size = recorded.hashes, HASH_BYTES * self._merged
        last = HASH_BYTES * (self._merged - 1)
        request.block_hashes = [
            hashes[i + last : i + size] for i in range(0, len(hashes) - size + 1, size)
        ]
        return request

    def step(self) -> bool:
        """As `Simulation.step`; asynchronous scheduling plans a step while another runs."""
        if not self.ahead:
            return super().step()
        clock, scheduler = self.clock, self.scheduler
        self._submit_arrived()
        if not scheduler.requests and not self._under_way:
            return self._jump()
        plan = scheduler.schedule() if scheduler.requests else None
        if plan is not None and (plan.num_scheduled_tokens or plan.preempted_req_ids):
            load = StepLoad.of_plan(plan)
            tokens = {
                request.request_id: self._tokens[request.request_id]
                for request in scheduled_requests(plan)
                if request.num_computed_tokens >= len(request.all_token_ids)
            }
            begun = max(clock.now, self._under_way[-1][-1]) if self._under_way else clock.now
            self._under_way.append(
                (plan, tokens, load, begun + self._pausing.step_time(load, begun))
            )
            if len(self._under_way) < 2:
                return True
        elif not self._under_way:
            return self._jump(len(scheduler.requests))
        self._finish_oldest()
        return True

    def _finish_oldest(self) -> None:
        clock, timeline = self.clock, self.result.timeline
        plan, tokens, load, end = self._under_way.pop(0)
        start, clock.now = clock.now, end
        in_system = len(self.scheduler.requests)
        outputs = self.scheduler.update_from_output(plan, tokens)
        self._count_gaps(plan, outputs, False, end)
        timeline.add_span(
            start, end, in_system, plan.stats.num_running_reqs, plan.stats.kv_cache_usage, True
        )
        bucket = timeline.at(end)
        bucket.steps += 1
        bucket.output_tokens += len(outputs)
        bucket.computed_tokens += load.num_tokens
        bucket.preemptions += len(plan.preempted_req_ids)
        self._last_end = end


@dataclass
class Prediction:
    """What another configuration would have given."""

    knobs: dict[str, Any]
    config: SchedulerConfig
    result: SimResult
    means: dict[str, float]
    """Seconds, of each of `METRICS`."""

    @property
    def name(self) -> str:
        """The knobs that were turned."""
        return ", ".join(f"{k}={v}" for k, v in self.knobs.items()) or "as it was"


class Oracle:
    """Asks what if of one recording.

    Args:
        ledger: of the recording.
        cost: what a step costs; None: fitted to the recording, with its pauses.

    Raises:
        ValueError: if the recording holds too little.
    """

    def __init__(self, ledger: Ledger, cost: CostModel | None = None) -> None:
        self.ledger = ledger
        self.pauses: Sequence[Pause] = ()
        """When the machine stood still."""
        if cost is None:
            cost = fitted = fit_cost(ledger)
            self.pauses = fitted.pauses
        self.cost: CostModel = cost
        self.traffic = Traffic.of(ledger)

    @property
    def told_pauses(self) -> str:
        """A sentence on them; "" where there is none."""
        seconds = duration(fsum(pause.seconds for pause in self.pauses))
        return (
            f"the machine stood still {count(len(self.pauses), 'time')}, {seconds} in all; no knob "
            f"cures that, so predictions leave it out (how far off they are is taken with it)"
            if self.pauses
            else ""
        )

    def ask(
        self, knobs: Mapping[str, Any], traffic: Traffic | None = None, *, pauses: bool = False
    ) -> Prediction:
        """What some knobs would have given.

        Args:
            knobs: those that are turned.
            traffic: a part of the recorded; None: all.
            pauses: let the machine stand still when it did, to compare with what was measured. To
                compare knobs, leave that out: a run that is over before a pause did not cure it.

        Raises:
            ValueError: if they cannot be.
        """
        config = changed_config(self.ledger, knobs)
        if isinstance(self.cost, RecordedCost):
            self.cost.begin()
        traffic = traffic or self.traffic
        run = WhatIf(
            traffic,
            self.cost,
            config,
            ahead=bool(self.ledger.recording.header.get("async")),
            hash_size=self.ledger.replay.config.block_size,
            pauses=self.pauses if pauses else (),
        )
        result = run.run()
        delay = traffic.mean_delay
        means = {
            "ttft": result.ttft.mean + delay,
            "itl": result.itl.mean,
            "e2e": result.e2e.mean + delay,
        }
        shown = {name: getattr(config, name) for name in knobs}
        return Prediction(shown, config, result, means)


def measured_means(ledger: Ledger, traffic: Traffic | None = None) -> dict[str, float]:
    """Of `METRICS`, in seconds, as the server's own clock has them.

    Args:
        ledger: of the recording.
        traffic: a part of it; None: all.
    """
    served: Sequence[Served] = ledger.served
    if traffic is not None:
        numbers = {request.number for request in traffic.requests}
        served = [s for s in served if s.number in numbers]
    num_gaps = sum(s.output_len - 1 for s in served)
    return {
        "ttft": _mean([s.ttft for s in served]),
        "itl": fsum(s.e2e - s.ttft for s in served) / num_gaps if num_gaps else inf,
        "e2e": _mean([s.e2e for s in served]),
    }


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values) if values else inf


def relative_errors(predicted: Mapping[str, float], true: Mapping[str, float]) -> dict[str, float]:
    """Predicted less measured, in shares of what was measured."""
    return {name: predicted[name] / true[name] - 1 for name in METRICS if 0 < true[name] < inf}


def median_error(errors: Mapping[str, float]) -> float:
    """Of some relative errors, signs aside."""
    return median(abs(error) for error in errors.values())
