"""Run a policy on the bench's workloads and say what it does to whom."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import mean
from typing import Any

from minivllm.core import Request, Scheduler, SchedulerOutput
from minivllm.sim.bench.policies import POLICIES
from minivllm.sim.bench.policy import BrokenPolicy, Policy, PolicyScheduler, broken_invariant
from minivllm.sim.bench.workloads import HELD_BACK, SHOWN, BenchWorkload
from minivllm.sim.cost import CostModel, RooflineCost, StepLoad, roofline
from minivllm.sim.results import percentile
from minivllm.sim.simulate import Simulation
from minivllm.sim.trace import Trace
from minivllm.sim.workload import Arrival

MAX_STEPS = 20_000
"""Of a run on the bench: its workloads need less than a tenth of that."""


@lru_cache(maxsize=1)
def bench_cost() -> RooflineCost:
    """What a step costs: Llama 3 8B on an H100."""
    return roofline("llama-3-8b", "h100")


@dataclass(frozen=True)
class Outcome:
    """A policy on one workload. Times are in seconds of simulated time.

    Attributes:
        throughput: output tokens a second, from the first arrival to the last token.
        recompute_tax: computed tokens that had been computed before, as a share of all.
        ttft: 95th percentile of the time to the first token.
        slowdown: 95th percentile of how many times longer a request takes than alone.
        fairness: Jain's index of the kinds' mean slowdowns, from 1 / kinds to 1.
        by_kind: kind → mean slowdown.
        preemptions: how many.
    """

    workload: str
    throughput: float
    recompute_tax: float
    ttft: float
    slowdown: float
    fairness: float
    by_kind: dict[str, float]
    preemptions: int


class PolicyRun(Simulation):
    """A simulation under a policy, every step of it checked."""

    make_scheduler: type[Scheduler] = PolicyScheduler

    def __init__(self, workload: BenchWorkload, policy: Policy, cost: CostModel) -> None:
        trace = Trace(workload.arrivals, name=workload.name)
        super().__init__(trace, cost, workload.config(), on_step=self._check)
        assert isinstance(self.scheduler, PolicyScheduler)
        self.scheduler.set_policy(policy)
        self.policy = policy
        self._num_steps = 0

    def _make_request(self, index: int, arrival: Arrival) -> Request:
        self.policy.kind[str(index)] = arrival.kind
        return super()._make_request(index, arrival)

    def _check(self, start: float, seconds: float, plan: SchedulerOutput, load: StepLoad) -> None:
        self._num_steps += 1
        if self._num_steps > MAX_STEPS:
            left = len(self.scheduler.requests)
            raise BrokenPolicy(f"{left} requests are unfinished after {MAX_STEPS:,} steps")
        if words := broken_invariant(self.scheduler, plan):
            raise BrokenPolicy(f"step {self.scheduler.step}: {words}")


def run(policy: type[Policy], workload: BenchWorkload, cost: CostModel | None = None) -> Outcome:
    """Run a workload under a policy to its end.

    Raises:
        BrokenPolicy: the run does not end, or an invariant breaks.
    """
    cost = cost or bench_cost()
    simulation = PolicyRun(workload, policy(), cost)
    try:
        result = simulation.run()
    except RuntimeError as error:  # nobody is admitted, and nobody else will come
        raise BrokenPolicy(f"the run does not end: {error}") from error
    if result.num_finished != len(workload.arrivals):
        raise BrokenPolicy(f"{result.num_finished} of {len(workload.arrivals)} requests finished")
    by_kind: dict[str, list[float]] = defaultdict(list)
    slowdowns = []
    for record in result.records:
        alone = seconds_alone(record.prompt_len, record.output_len, cost, workload)
        slowdowns.append(record.e2e / alone)
        by_kind[record.kind].append(record.e2e / alone)
    means = {kind: mean(values) for kind, values in sorted(by_kind.items())}
    computed = result.stats["num_scheduled_tokens"]
    return Outcome(
        workload=workload.name,
        throughput=result.num_output_tokens / (result.duration - workload.arrivals[0].time),
        recompute_tax=result.stats["num_recomputed_tokens"] / computed,
        ttft=percentile(sorted(record.ttft for record in result.records), 95),
        slowdown=percentile(sorted(slowdowns), 95),
        fairness=jain(list(means.values())),
        by_kind=means,
        preemptions=result.stats["num_preemptions"],
    )


def seconds_alone(
    prompt_len: int, output_len: int, cost: CostModel, workload: BenchWorkload
) -> float:
    """How long a request takes with the machine to itself: its prompt in pieces, then decodes."""
    seconds, done = 0.0, 0
    while done < prompt_len:
        piece = min(workload.max_num_batched_tokens, prompt_len - done)
        seconds += _step(cost, piece, done, done + piece == prompt_len)
        done += piece
    first, last = _step(cost, 1, done, True), _step(cost, 1, done + output_len, True)
    return seconds + (output_len - 1) * (first + last) / 2  # the context grows evenly


def _step(cost: CostModel, num_tokens: int, context: int, sampled: bool) -> float:
    load = StepLoad()
    load.add(num_tokens, context, sampled)
    return cost.step_time(load)


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: (Σx)² / (n Σx²)."""
    return math.fsum(values) ** 2 / (len(values) * math.fsum(value**2 for value in values))


@dataclass(frozen=True)
class Bench:
    """A policy on all workloads, beside FCFS on the same."""

    outcomes: tuple[Outcome, ...]
    fcfs: tuple[Outcome, ...]

    def who_pays(self, outcome: Outcome, base: Outcome) -> str:
        """The kinds that a policy slows down by more than a tenth, against FCFS."""
        worse = {
            kind: now / base.by_kind[kind]
            for kind, now in outcome.by_kind.items()
            if now > 1.1 * base.by_kind[kind]
        }
        told = sorted(worse, key=lambda kind: -worse[kind])
        return ", ".join(f"{kind} ({worse[kind]:.1f} times)" for kind in told) or "nobody"

    @property
    def losses(self) -> list[str]:
        """Workloads whose slowest requests are slowed down by more than a tenth, against FCFS."""
        pairs = zip(self.outcomes, self.fcfs)
        return [now.workload for now, base in pairs if now.slowdown > 1.1 * base.slowdown]

    def rows(self) -> list[list[str]]:
        """A row of text for each workload, as in `HEADER`."""
        rows = []
        for now, base in zip(self.outcomes, self.fcfs):
            rows.append(
                [
                    now.workload,
                    against(now.throughput, base.throughput, ".0f"),
                    f"{100 * now.recompute_tax:.1f} %",
                    against(now.ttft, base.ttft, ".2f"),
                    against(now.slowdown, base.slowdown, ".1f"),
                    against(now.fairness, base.fairness, ".2f"),
                    self.who_pays(now, base),
                ]
            )
        return rows

    def table(self) -> Any:
        """The rows as a table, for a notebook and a page."""
        from minivllm.viz.words import table

        return table(HEADER, self.rows())

    def score(self) -> dict[str, float]:
        """One number for each measure: the geometric mean of its ratio to FCFS's, and the sum of
        preemptions. A throughput or fairness above 1 is better, a time below 1."""
        ratio: dict[str, float] = {}
        for name in ("throughput", "ttft", "slowdown", "fairness"):
            pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(self.outcomes, self.fcfs)]
            ratio[name] = math.exp(mean(math.log(now / base) for now, base in pairs))
        return ratio


HEADER = (
    "workload",
    "tokens/s (FCFS)",
    "recomputed",
    "p95 first token, s (FCFS)",
    "p95 slowdown (FCFS)",
    "fairness (FCFS)",
    "who pays",
)


def against(now: float, base: float, form: str) -> str:
    """A number and FCFS's in brackets."""
    return f"{now:{form}} ({base:{form}})"


@lru_cache(maxsize=64)
def fcfs_on(workload: BenchWorkload) -> Outcome:
    """FCFS's outcome, once for all comparisons."""
    return run(POLICIES["fcfs"], workload)


def bench(policy: type[Policy], workloads: Iterable[BenchWorkload] = (*SHOWN, *HELD_BACK)) -> Bench:
    """Run a policy on all workloads, those held back too.

    Raises:
        BrokenPolicy: on the first workload where a run does not end, or an invariant breaks.
    """
    listed = tuple(workloads)
    outcomes = [_named_run(policy, workload) for workload in listed]
    return Bench(tuple(outcomes), tuple(fcfs_on(workload) for workload in listed))


def _named_run(policy: type[Policy], workload: BenchWorkload) -> Outcome:
    try:
        return run(policy, workload)
    except BrokenPolicy as error:
        raise BrokenPolicy(f"{policy.__name__} on “{workload.name}”: {error}") from error
