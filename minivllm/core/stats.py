"""What a run cost: per step, in total, and per request."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(slots=True)
class RequestMetrics:
    """When things happened to one request: by step always, by clock if the scheduler has one.

    Times are in the clock's unit (seconds, for `time.monotonic`).
    """

    arrival_step: int | None = None
    first_scheduled_step: int | None = None
    finished_step: int | None = None
    token_steps: list[int] = field(default_factory=list)
    """The step that produced each output token."""

    arrival_time: float | None = None
    first_scheduled_time: float | None = None
    finished_time: float | None = None
    token_times: list[float] = field(default_factory=list)
    """When each output token was there."""

    @property
    def queue_steps(self) -> int | None:
        """Steps spent waiting before the first token was scheduled."""
        return _span(self.arrival_step, self.first_scheduled_step)

    @property
    def queue_time(self) -> float | None:
        """Time spent waiting before the first token was scheduled."""
        return _span(self.arrival_time, self.first_scheduled_time)

    @property
    def ttft_steps(self) -> int | None:
        """Steps from arrival to the first output token, that step counted in."""
        if not self.token_steps or self.arrival_step is None:
            return None
        return self.token_steps[0] - self.arrival_step + 1

    @property
    def ttft(self) -> float | None:
        """Time to first token, from arrival."""
        return _span(self.arrival_time, self.token_times[0]) if self.token_times else None

    @property
    def inter_token_steps(self) -> list[int]:
        """Steps between one output token and the next."""
        return [b - a for a, b in zip(self.token_steps, self.token_steps[1:], strict=False)]

    @property
    def inter_token_latencies(self) -> list[float]:
        """Time between one output token and the next."""
        return [b - a for a, b in zip(self.token_times, self.token_times[1:], strict=False)]

    @property
    def e2e_latency(self) -> float | None:
        """Time from arrival to the end."""
        return _span(self.arrival_time, self.finished_time)


def _span(start: Any, end: Any) -> Any:
    return None if start is None or end is None else end - start


@dataclass(slots=True)
class StepStats:
    """One step in numbers, as it was when `schedule()` returned."""

    step: int
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    num_scheduled_reqs: int = 0
    """The batch size: requests that got tokens."""
    num_scheduled_tokens: int = 0
    num_recomputed_tokens: int = 0
    """Scheduled tokens that had been computed before a preemption threw them away."""
    num_preemptions: int = 0
    num_admitted: int = 0
    """First admissions and re-admissions."""
    prefix_cache_queries: int = 0
    """Known tokens of the requests admitted in this step (none after a swap: nothing is asked)."""
    prefix_cache_hits: int = 0
    """How many of those the prefix cache gave."""
    num_evictions: int = 0
    """Cached blocks handed out for something else."""
    num_swapped_out_blocks: int = 0
    num_swapped_in_blocks: int = 0
    kv_cache_usage: float = 0.0
    """Share of the blocks in use, 0 to 1."""

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON-serialisable data."""
        return asdict(self)


@dataclass
class SchedulerStats:
    """Totals over all steps; `steps` keeps each one if `keep_steps`.

    Source: vllm/v1/metrics/stats.py (`SchedulerStats`, `PrefixCacheStats`), with one difference:
    prefix cache queries are counted when a request is admitted, not each time that it is tried.
    """

    keep_steps: bool = True
    steps: list[StepStats] = field(default_factory=list)
    num_steps: int = 0
    num_nonempty_steps: int = 0
    num_preemptions: int = 0
    num_scheduled_reqs: int = 0
    num_scheduled_tokens: int = 0
    num_recomputed_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_evictions: int = 0
    num_swapped_out_blocks: int = 0
    num_swapped_in_blocks: int = 0
    num_drafts: int = 0
    """Times that proposed tokens were verified (vLLM's `SpecDecodingStats`, as the next two)."""
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_finished: int = 0
    num_refused: int = 0
    sum_kv_cache_usage: float = 0.0

    def add_step(self, step: StepStats) -> None:
        """Count one step in."""
        self.num_steps += 1
        self.num_nonempty_steps += step.num_scheduled_reqs > 0
        self.num_preemptions += step.num_preemptions
        self.num_scheduled_reqs += step.num_scheduled_reqs
        self.num_scheduled_tokens += step.num_scheduled_tokens
        self.num_recomputed_tokens += step.num_recomputed_tokens
        self.prefix_cache_queries += step.prefix_cache_queries
        self.prefix_cache_hits += step.prefix_cache_hits
        self.num_evictions += step.num_evictions
        self.num_swapped_out_blocks += step.num_swapped_out_blocks
        self.num_swapped_in_blocks += step.num_swapped_in_blocks
        self.sum_kv_cache_usage += step.kv_cache_usage
        if self.keep_steps:
            self.steps.append(step)

    @property
    def avg_batch_size(self) -> float:
        """Requests in a step, averaged over the steps that had any; 0 before the first."""
        return self.num_scheduled_reqs / self.num_nonempty_steps if self.num_nonempty_steps else 0.0

    @property
    def mean_kv_cache_usage(self) -> float:
        """Share of the blocks in use, averaged over all steps; 0 before the first."""
        return self.sum_kv_cache_usage / self.num_steps if self.num_steps else 0.0

    @property
    def prefix_cache_hit_rate(self) -> float:
        """Prompt tokens that the prefix cache gave, of those asked for; 0 before the first."""
        if not self.prefix_cache_queries:
            return 0.0
        return self.prefix_cache_hits / self.prefix_cache_queries

    def to_dict(self) -> dict[str, Any]:
        """The totals and the averages as JSON-serialisable data."""
        data = {
            name: value
            for name, value in vars(self).items()
            if name.startswith(("num_", "prefix_"))
        }
        data["avg_batch_size"] = self.avg_batch_size
        data["mean_kv_cache_usage"] = self.mean_kv_cache_usage
        data["prefix_cache_hit_rate"] = self.prefix_cache_hit_rate
        return data
