"""Runs beside the answers to exercise 8, on a core that keeps no statistics.

On import `SchedulerStats` is taken out of `minivllm.core`; a scheduler's `stats` and an output's
`stats` raise when they are read. What stays is what a collector may look at: the scheduler, its
queues, its block pool and `kv_cache_manager.usage`, and all else in the step's output.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import minivllm.core as core
import minivllm.core.scheduler as scheduler_module
from minivllm.core import Scheduler, SchedulerOutput
from minivllm.runs.scenario import Scenario, sampled_token_id


class _Gone:
    """What stands where the statistics were."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    num_finished = num_refused = 0
    """The core adds to these as it goes; the sum is dropped."""

    def add_step(self, step: Any) -> None:
        """The core still tells; nobody keeps it."""

    def __setattr__(self, name: str, value: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the core keeps no statistics here, {name!r} neither: you write them")


def _take_out() -> None:
    scheduler_module.SchedulerStats = _Gone  # type: ignore[misc, assignment]
    for module in (core, sys.modules["minivllm.core.stats"]):
        del module.SchedulerStats
    plan = Scheduler.schedule

    def schedule(self: Scheduler) -> SchedulerOutput:
        output = plan(self)
        output.stats = _Gone()  # type: ignore[assignment]
        return output

    Scheduler.schedule = schedule  # type: ignore[method-assign]


def steps_of(scenario: Scenario) -> Any:
    """Run a scenario; yields (scheduler, output) right after each `schedule()`."""
    scheduler = Scheduler(scenario.scheduler_config())
    arrivals = sorted(scenario.requests, key=lambda request: request.arrival_step)
    while arrivals or scheduler.has_unfinished_requests():
        while arrivals and arrivals[0].arrival_step <= scheduler.step:
            scheduler.add_request(arrivals.pop(0).make_request(scenario.seed))
        output = scheduler.schedule()
        yield scheduler, output
        sampled = {}
        for id_ in output.num_scheduled_tokens:
            request = scheduler.requests[id_]
            if request.is_caught_up:
                sampled[id_] = sampled_token_id(scenario.seed, request)
        scheduler.update_from_output(output, sampled)


def collect(stats_class: Callable[[], Any], workloads: Sequence[dict[str, Any]]) -> list[Any]:
    """What a collector says before the first step and after each one, for every workload."""
    told = []
    for workload in workloads:
        stats = stats_class()
        rows = [_row(stats)]
        for scheduler, output in steps_of(Scenario.from_dict(workload)):
            tokens = dict(output.num_scheduled_tokens)
            stats.on_step(scheduler, output)
            rows.append({**_row(stats), "tokens": tokens})
        told.append(rows)
    return told


def _row(stats: Any) -> dict[str, Any]:
    names = ("num_preemptions", "avg_batch_size", "mean_kv_cache_usage")
    return {name: getattr(stats, name) for name in names}


def try_test(test_stats: Callable[[Any], Any], names: Sequence[str]) -> list[str]:
    """How a student's test ends for each collector in `COLLECTORS`: `passed`, or what it raised."""
    return [_end_of(test_stats, COLLECTORS[name]()) for name in names]


def _end_of(test_stats: Callable[[Any], Any], stats_class: Any) -> str:
    try:
        test_stats(stats_class)
    except AssertionError as error:
        return f"AssertionError: {error}"[:300]
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return "passed"


# --- collectors, right and wrong ------------------------------------------------------------------


class Sums:
    """A right collector: three sums. The wrong ones below change one thing each."""

    def __init__(self) -> None:
        self.num_preemptions = 0
        self.num_reqs = self.num_nonempty = self.num_steps = 0
        self.usage = 0.0

    def on_step(self, scheduler: Scheduler, output: SchedulerOutput) -> None:
        self.num_steps += 1
        self.num_preemptions += self.preemptions(scheduler, output)
        batch = self.batch(scheduler, output)
        self.num_reqs += batch
        self.num_nonempty += batch > 0
        self.usage += self.share(scheduler)

    @property
    def avg_batch_size(self) -> float:
        return self.num_reqs / self.num_nonempty if self.num_nonempty else 0.0

    @property
    def mean_kv_cache_usage(self) -> float:
        return self.usage / self.num_steps if self.num_steps else 0.0

    def preemptions(self, scheduler: Scheduler, output: SchedulerOutput) -> int:
        return len(output.preempted_req_ids)

    def batch(self, scheduler: Scheduler, output: SchedulerOutput) -> int:
        return len(output.num_scheduled_tokens)

    def share(self, scheduler: Scheduler) -> float:
        return scheduler.kv_cache_manager.usage


class Lists(Sums):
    """Another right one: keeps every step, and adds up in another order, so rounds otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.shares: list[float] = []

    def on_step(self, scheduler: Scheduler, output: SchedulerOutput) -> None:
        super().on_step(scheduler, output)
        self.shares.append(self.share(scheduler))

    @property
    def mean_kv_cache_usage(self) -> float:
        count = len(self.shares)
        return sum(share / count for share in reversed(self.shares)) if count else 0.0


class DistinctRequests(Sums):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def preemptions(self, scheduler: Scheduler, output: SchedulerOutput) -> int:
        new = set(output.preempted_req_ids) - self.seen
        self.seen |= new
        return len(new)


class StepsThatPreempt(Sums):
    def preemptions(self, scheduler: Scheduler, output: SchedulerOutput) -> int:
        return int(bool(output.preempted_req_ids))


class LivingOnly(Sums):
    def on_step(self, scheduler: Scheduler, output: SchedulerOutput) -> None:
        super().on_step(scheduler, output)
        self.num_preemptions = sum(r.num_preemptions for r in scheduler.requests.values())


class AllSteps(Sums):
    @property
    def avg_batch_size(self) -> float:
        return self.num_reqs / self.num_steps if self.num_steps else 0.0


class RunningQueue(Sums):
    def batch(self, scheduler: Scheduler, output: SchedulerOutput) -> int:
        return len(scheduler.running)


class TokensNotRequests(Sums):
    def batch(self, scheduler: Scheduler, output: SchedulerOutput) -> int:
        return output.total_num_scheduled_tokens


class BusySteps(Sums):
    @property
    def mean_kv_cache_usage(self) -> float:
        return self.usage / self.num_nonempty if self.num_nonempty else 0.0


class NullBlock(Sums):
    def share(self, scheduler: Scheduler) -> float:
        pool = scheduler.kv_cache_manager.block_pool
        return 1.0 - pool.get_num_free_blocks() / pool.num_gpu_blocks


class BlockTables(Sums):
    def share(self, scheduler: Scheduler) -> float:
        tables = scheduler.kv_cache_manager.req_to_blocks.values()
        return sum(map(len, tables)) / scheduler.config.num_gpu_blocks


class Peak(Sums):
    peak = 0.0

    def share(self, scheduler: Scheduler) -> float:
        self.peak = max(self.peak, scheduler.kv_cache_manager.usage)
        return 0.0

    @property
    def mean_kv_cache_usage(self) -> float:
        return self.peak


class SharedState(Sums):
    total = 0

    def preemptions(self, scheduler: Scheduler, output: SchedulerOutput) -> int:
        SharedState.total += len(output.preempted_req_ids)
        return SharedState.total - self.num_preemptions


def _named(kind: type[Sums]) -> Callable[[], type[Sums]]:
    """A fresh class of the same name for all: the test sees what it does, not what it is called."""

    def make() -> type[Sums]:
        if hasattr(kind, "total"):
            kind.total = 0
        return type("Stats", (kind,), {})

    return make


COLLECTORS: Mapping[str, Callable[[], type[Sums]]] = {
    kind.__name__: _named(kind)
    for kind in (
        Sums, Lists, DistinctRequests, StepsThatPreempt, LivingOnly, AllSteps, RunningQueue,
        TokensNotRequests, BusySteps, NullBlock, BlockTables, Peak, SharedState,
    )
}  # fmt: skip

_take_out()
