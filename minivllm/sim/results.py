"""What a run gave: per request, over time, and in total.

Memory does not grow with simulated time: latencies go into histograms, what happens over time
into a fixed number of buckets whose width doubles, and of the requests at most `max_records` are
kept, a uniform sample if there are more.

Floats are added with `fsum`: `sum` gives another last bit since Python 3.12.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from math import fsum
from random import Random
from typing import Any

from minivllm.core.config import check_int
from minivllm.sim.checks import check_number


def percentile(ordered: Sequence[float], percent: float) -> float:
    """A percentile of sorted values, linear between neighbours; NaN of nothing."""
    if not ordered:
        return math.nan
    position = (len(ordered) - 1) * percent / 100
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


class Histogram:
    """Counts of positive values in bins 2 % wide: percentiles to 1 %, in bounded memory.

    Mean, minimum, maximum and number are exact.
    """

    RATIO = 1.02
    LOWEST = 1e-6

    def __init__(self) -> None:
        self.edges = [0.0, self.LOWEST]
        while self.edges[-1] < 1e6:  # 1 µs to 11 days: 1,396 bins
            self.edges.append(self.edges[-1] * self.RATIO)
        self.edges.append(math.inf)
        self.counts: dict[int, int] = {}
        self.count = 0
        self.total = 0.0
        self.low = math.inf
        self.high = 0.0

    def add(self, value: float, count: int = 1) -> None:
        """Count `value` in, `count` times."""
        index = bisect_left(self.edges, value)
        self.counts[index] = self.counts.get(index, 0) + count
        self.count += count
        self.total += value * count
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value

    @property
    def mean(self) -> float:
        """Exact mean; NaN of nothing."""
        return self.total / self.count if self.count else math.nan

    def percentile(self, percent: float) -> float:
        """A percentile, to within 1 %; NaN of nothing."""
        if not self.count:
            return math.nan
        rank = (self.count - 1) * percent / 100
        seen = 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen > rank:
                low, high = self.edges[index - 1 if index else 0], self.edges[index]
                return min(max((low + high) / 2, self.low), self.high)
        return self.high

    def points(self) -> list[tuple[float, float]]:
        """(value, share of values at most that large), for a plot."""
        seen, points = 0, []
        for index in sorted(self.counts):
            seen += self.counts[index]
            points.append((min(self.edges[index], self.high), seen / self.count))
        return points


@dataclass(slots=True)
class RequestRecord:
    """One request that finished. Times are in seconds."""

    index: int
    """Number in the order of arrival."""
    kind: str
    arrival: float
    prompt_len: int
    output_len: int
    priority: int
    queue_time: float
    """From arrival to the start of the step that first computed any of it."""
    ttft: float
    """From arrival to the first output token."""
    tpot: float
    """Mean time between output tokens; 0 if there is only one."""
    max_itl: float
    """Longest time between two output tokens."""
    e2e: float
    """From arrival to the last output token."""
    num_preemptions: int
    num_cached_tokens: int
    """Prompt tokens that the prefix cache gave (at the latest admission)."""

    def to_dict(self) -> dict[str, Any]:
        """As a row of a table."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class SLO:
    """A service-level objective: what a user would call served well. None: no matter.

    Raises:
        ValueError: if a limit is not positive, or none is given.
    """

    ttft: float | None = None
    """Seconds to the first token, at most."""
    tpot: float | None = None
    """Seconds between tokens, on average over a request, at most."""
    max_itl: float | None = None
    """Seconds between any two tokens, at most."""
    e2e: float | None = None
    """Seconds to the last token, at most."""

    def __post_init__(self) -> None:
        limits = [f.name for f in fields(self) if getattr(self, f.name) is not None]
        if not limits:
            raise ValueError("an SLO needs a limit: ttft, tpot, max_itl or e2e")
        for name in limits:
            check_number(name, getattr(self, name), above=0)

    def met(self, record: RequestRecord) -> bool:
        """Whether a request was served so."""
        return (
            (self.ttft is None or record.ttft <= self.ttft)
            and (self.tpot is None or record.tpot <= self.tpot)
            and (self.max_itl is None or record.max_itl <= self.max_itl)
            and (self.e2e is None or record.e2e <= self.e2e)
        )


@dataclass(slots=True)
class Bucket:
    """A stretch of simulated time. What is named an integral is a value times seconds."""

    in_system: float = 0.0
    """Integral of the requests that have arrived and not finished."""
    running: float = 0.0
    """Integral of the requests in RUNNING."""
    kv_usage: float = 0.0
    """Integral of the share of blocks in use."""
    busy: float = 0.0
    """Seconds in which a step ran."""
    max_kv_usage: float = 0.0
    steps: int = 0
    arrivals: int = 0
    finished: int = 0
    sojourn: float = 0.0
    """Seconds in the system, of the requests that arrived here, all together."""
    output_tokens: int = 0
    computed_tokens: int = 0
    """Tokens computed, of prompts and of outputs."""
    preemptions: int = 0

    def merge(self, other: Bucket) -> None:
        """Add another stretch to this one."""
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            merged = max(mine, theirs) if f.name == "max_kv_usage" else mine + theirs
            setattr(self, f.name, merged)


class Timeline:
    """Simulated time in `size` to `2 * size` buckets of equal width, a power of two seconds."""

    def __init__(self, size: int = 128) -> None:
        self.size = size
        self.width = 2.0**-10
        self.buckets: list[Bucket] = []

    def at(self, time: float) -> Bucket:
        """The bucket that `time` lies in."""
        index = int(time / self.width)
        while index >= 2 * self.size:
            self._halve()
            index = int(time / self.width)
        while index >= len(self.buckets):
            self.buckets.append(Bucket())
        return self.buckets[index]

    def _halve(self) -> None:
        """Merge neighbours: half as many buckets, twice as wide."""
        for even, odd in zip(self.buckets[::2], self.buckets[1::2], strict=False):
            even.merge(odd)
        self.buckets = self.buckets[::2]
        self.width *= 2

    def add_span(
        self, start: float, end: float, in_system: int, running: int = 0,
        kv_usage: float = 0.0, busy: bool = False,
    ) -> None:  # fmt: skip
        """Integrate over `[start, end)`, whichever buckets that lies in."""
        self.at(end)  # first: it may change the width
        while start < end:
            bucket = self.at(start)
            edge = (int(start / self.width) + 1) * self.width
            seconds = (end if end < edge else edge) - start
            bucket.in_system += in_system * seconds
            if busy:
                bucket.running += running * seconds
                bucket.kv_usage += kv_usage * seconds
                bucket.busy += seconds
                if kv_usage > bucket.max_kv_usage:
                    bucket.max_kv_usage = kv_usage
            start = edge

    def to_rows(self) -> list[dict[str, Any]]:
        """One row for each bucket: means where there are integrals."""
        rows = []
        for index, b in enumerate(self.buckets):
            rows.append(
                {
                    "time": (index + 0.5) * self.width,
                    "in_system": b.in_system / self.width,
                    "running": b.running / self.width,
                    "waiting": (b.in_system - b.running) / self.width,
                    "kv_usage": b.kv_usage / self.width,
                    "max_kv_usage": b.max_kv_usage,
                    "busy": b.busy / self.width,
                    "steps": b.steps,
                    "arrivals": b.arrivals,
                    "finished": b.finished,
                    "output_tokens_per_s": b.output_tokens / self.width,
                    "computed_tokens_per_s": b.computed_tokens / self.width,
                    "preemptions": b.preemptions,
                }
            )
        return rows


T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
"""Student's t, two-sided 95 %, for 1 to 15 degrees of freedom; beyond, close to 2."""


def mean_and_half_width(batches: Sequence[float]) -> tuple[float, float]:
    """Mean of batch means, and half the width of its 95 % confidence interval."""
    n = len(batches)
    mean = fsum(batches) / n
    if n < 2:
        return mean, math.inf
    deviation = math.sqrt(fsum((b - mean) ** 2 for b in batches) / (n - 1) / n)
    return mean, deviation * (T95[n - 2] if n - 2 < len(T95) else 2.1)


@dataclass(frozen=True)
class LittlesLaw:
    """L = λ W, each side measured by itself: L by counting heads over time, λ and W by asking.

    From an empty system to an empty one the two sides are the same sum, added up in two ways
    (`exact_error`: rounding only). In a window cut out of a run they differ by the requests that
    cross its edges; `half_width` says by how much the window's L - λ W scatters.
    """

    L: float
    """Requests in the system, averaged over the window."""
    lam: float
    """Arrivals a second in the window."""
    W: float
    """Seconds in the system, averaged over the requests that arrived in the window."""
    difference: float
    """L - λ W in the window."""
    half_width: float
    """Half the 95 % confidence interval of that difference, by batch means."""
    exact_error: float
    """|L - λ W| / L over the whole run, from empty to empty."""

    @property
    def holds(self) -> bool:
        """The identity over the whole run, and the window's sides equal within confidence. The
        second needs a steady state: a queue that grows all the time has none.

        Rounding may leave 1e-6; the window's difference must lie in its interval or be below 1 %.
        """
        tolerance = max(self.half_width, 0.01 * self.L)
        return self.exact_error < 1e-6 and abs(self.difference) <= tolerance


PERCENTILES = (50, 90, 99)

METRICS = {"ttft": "TTFT", "itl": "ITL", "tpot": "TPOT", "e2e": "E2E", "queue_time": "queue"}
"""Latencies that every run counts in a histogram, and what a table calls them."""

RECORD_METRICS = ("ttft", "tpot", "max_itl", "e2e", "queue_time")
"""Latencies of a single request."""


@dataclass
class SimResult:
    """A finished run."""

    cost: dict[str, Any]
    workload: dict[str, Any]
    config: dict[str, Any]
    seed: int
    duration: float = 0.0
    """Seconds of simulated time, from 0 to the end of the last step."""
    wall_time: float = 0.0
    """Seconds that the simulation took. In no table: it is not the same twice."""
    num_arrived: int = 0
    num_finished: int = 0
    num_refused: int = 0
    refusals: list[str] = field(default_factory=list)
    """Why the first few were refused."""
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    stats: dict[str, Any] = field(default_factory=dict)
    """The scheduler's totals (`minivllm.core.SchedulerStats`)."""
    records: list[RequestRecord] = field(default_factory=list)
    """Finished requests, in the order in which they finished; a sample beyond `max_records`."""
    timeline: Timeline = field(default_factory=Timeline)
    ttft: Histogram = field(default_factory=Histogram)
    itl: Histogram = field(default_factory=Histogram)
    tpot: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)
    queue_time: Histogram = field(default_factory=Histogram)
    max_records: int = 100_000
    _sampler: Random = field(default_factory=lambda: Random(0), repr=False)

    def add_record(self, record: RequestRecord) -> None:
        """Count a finished request in; keep it, or, beyond `max_records`, perhaps (reservoir
        sampling: every request has the same chance)."""
        self.num_finished += 1
        self.num_prompt_tokens += record.prompt_len
        self.num_output_tokens += record.output_len
        self.ttft.add(record.ttft)
        self.e2e.add(record.e2e)
        self.queue_time.add(record.queue_time)
        if record.output_len > 1:
            self.tpot.add(record.tpot)
        if len(self.records) < self.max_records:
            self.records.append(record)
        elif self.max_records:
            place = int(self._sampler.random() * self.num_finished)
            if place < self.max_records:
                self.records[place] = record

    @property
    def kinds(self) -> list[str]:
        """The kinds of requests among the records."""
        return sorted({record.kind for record in self.records})

    def values(self, metric: str, kind: str | None = None) -> list[float]:
        """A metric of the records, sorted: `ttft`, `tpot`, `max_itl`, `e2e`, `queue_time`.

        A request with a single output token has no time between tokens: it is left out of `tpot`
        and `max_itl`, as in `vllm bench serve`.

        Raises:
            ValueError: on an unknown metric.
        """
        if metric not in RECORD_METRICS:
            known = ", ".join(sorted({*METRICS, *RECORD_METRICS}))
            raise ValueError(f"metric {metric!r} is not known; known are {known}")
        least = 2 if metric in ("tpot", "max_itl") else 1
        return sorted(
            getattr(record, metric)
            for record in self.records
            if record.output_len >= least and (kind is None or record.kind == kind)
        )

    def percentile(self, metric: str, percent: float, kind: str | None = None) -> float:
        """A percentile of a metric: exact while all records are kept; to 1 % beyond, and for
        `itl`; of the sample, beyond, for `max_itl` and for one kind.

        Raises:
            ValueError: on an unknown metric, or `itl` of one kind (it is not kept apart).
        """
        check_number("percent", percent, least=0, most=100)
        if metric == "itl" and kind is not None:
            raise ValueError("itl is not kept for each kind; ask for tpot or max_itl")
        all_kept = len(self.records) == self.num_finished
        if metric == "itl" or (metric in METRICS and kind is None and not all_kept):
            histogram: Histogram = getattr(self, metric)
            return histogram.percentile(percent)
        return percentile(self.values(metric, kind), percent)

    def goodput(self, slo: SLO) -> float:
        """Requests a second that met an SLO; NaN if no records are kept to tell by."""
        if not self.num_finished or not self.duration:
            return 0.0
        return self.attainment(slo) * self.num_finished / self.duration

    def attainment(self, slo: SLO) -> float:
        """Share of the finished requests that met an SLO, 0 to 1, of the sample, if the records
        are one; NaN of none."""
        if not self.records:
            return math.nan
        return sum(slo.met(record) for record in self.records) / len(self.records)

    @property
    def request_throughput(self) -> float:
        """Requests finished in a second."""
        return self.num_finished / self.duration if self.duration else 0.0

    @property
    def output_throughput(self) -> float:
        """Output tokens in a second."""
        return self.num_output_tokens / self.duration if self.duration else 0.0

    def littles_law(self, *, warmup: float = 0.2, num_batches: int = 10) -> LittlesLaw:
        """Check L = λ W.

        Args:
            warmup: share of the time between the first arrival and the last that is cut off at
                either end: filling up, and stragglers. (Draining, after it, is never counted.)
            num_batches: pieces of the window, for the confidence.

        Raises:
            ValueError: if the window holds fewer buckets than batches, or an argument is out of
                range.
        """
        buckets = self.timeline.buckets
        width = self.timeline.width
        check_number("warmup", warmup, least=0, most=0.5)
        check_int("num_batches", num_batches, 2)
        with_arrivals = [i for i, bucket in enumerate(buckets) if bucket.arrivals]
        first, last = (with_arrivals[0], with_arrivals[-1] + 1) if with_arrivals else (0, 0)
        cut = int((last - first) * warmup)
        window = buckets[first + cut : last - cut]
        size = len(window) // num_batches
        if size == 0:
            raise ValueError(
                f"num_batches={num_batches} is more than the {len(window)} buckets of the window; "
                f"lower it, or simulate for longer"
            )
        window = window[: size * num_batches]
        seconds = len(window) * width
        arrivals = sum(b.arrivals for b in window)
        lam = arrivals / seconds
        mean_time = fsum(b.sojourn for b in window) / arrivals if arrivals else 0.0
        differences = [
            fsum(b.in_system - b.sojourn for b in window[i * size : (i + 1) * size])
            / (size * width)
            for i in range(num_batches)
        ]
        difference, half_width = mean_and_half_width(differences)
        total = fsum(b.in_system for b in buckets)
        sojourn = fsum(b.sojourn for b in buckets)
        return LittlesLaw(
            L=fsum(b.in_system for b in window) / seconds,
            lam=lam,
            W=mean_time,
            difference=difference,
            half_width=half_width,
            exact_error=abs(total - sojourn) / total if total else 0.0,
        )

    def summary(self, slo: SLO | None = None) -> dict[str, Any]:
        """The run in one flat row: counts, throughput, latencies in seconds, shares 0 to 1."""
        row: dict[str, Any] = {
            "num_finished": self.num_finished,
            "num_refused": self.num_refused,
            "duration": self.duration,
            "request_throughput": self.request_throughput,
            "output_throughput": self.output_throughput,
        }
        for metric in METRICS:
            histogram: Histogram = getattr(self, metric)
            row[f"mean_{metric}"] = histogram.mean
            for percent in PERCENTILES:
                row[f"p{percent}_{metric}"] = self.percentile(metric, percent)
        row["max_itl"] = self.itl.high
        for name in (
            "num_steps", "num_preemptions", "num_recomputed_tokens", "num_swapped_out_blocks",
            "avg_batch_size", "prefix_cache_hit_rate",
        ):  # fmt: skip
            row[name] = self.stats[name]
        busy = fsum(b.busy for b in self.timeline.buckets)
        row["busy"] = busy / self.duration if self.duration else 0.0
        usage = fsum(b.kv_usage for b in self.timeline.buckets)
        row["mean_kv_usage"] = usage / busy if busy else 0.0
        row["max_kv_usage"] = max((b.max_kv_usage for b in self.timeline.buckets), default=0.0)
        if slo is not None:
            row["goodput"] = self.goodput(slo)
            row["slo_attainment"] = self.attainment(slo)
        return row

    def to_rows(self) -> list[dict[str, Any]]:
        """The records as rows: `pandas.DataFrame(result.to_rows())`."""
        return [record.to_dict() for record in self.records]

    def to_dict(self, *, records: bool = True) -> dict[str, Any]:
        """All of it as JSON-serialisable data; equal for equal runs."""
        data: dict[str, Any] = {
            "cost": self.cost,
            "workload": self.workload,
            "config": self.config,
            "seed": self.seed,
            "num_arrived": self.num_arrived,
            "refusals": self.refusals,
            "summary": self.summary(),
            "stats": self.stats,
            "timeline": self.timeline.to_rows(),
        }
        if records:
            data["records"] = self.to_rows()
        return data

    def table(self, slo: SLO | None = None) -> str:
        """The run as text: throughput, then a line for each latency."""
        row = self.summary(slo)
        lines = [
            f"{self.num_finished:,} requests in {self.duration:,.1f} s simulated: "
            f"{self.request_throughput:.2f} req/s, {self.output_throughput:,.0f} output tokens/s",
            f"busy {row['busy']:.0%}, batch {row['avg_batch_size']:.1f} requests on average, "
            f"KV cache {row['mean_kv_usage']:.0%} full on average and "
            f"{row['max_kv_usage']:.0%} at most, {row['num_preemptions']:,} preemptions",
        ]
        if self.num_refused:
            lines.append(f"{self.num_refused:,} refused; the first: {self.refusals[0]}")
        if slo is not None:
            lines.append(
                f"goodput {row['goodput']:.2f} req/s: {row['slo_attainment']:.1%} met the SLO"
            )
        lines += ["", _line("seconds", "mean", "p50", "p90", "p99", "max")]
        for metric, title in METRICS.items():
            values = [row[f"mean_{metric}"], *(row[f"p{p}_{metric}"] for p in PERCENTILES)]
            values.append(getattr(self, metric).high)
            lines.append(_line(title, *(f"{value:.4f}" for value in values)))
        if len(self.kinds) > 1:
            for kind in self.kinds:
                for metric in ("ttft", "max_itl"):
                    ordered = self.values(metric, kind) or [math.nan]
                    values = [fsum(ordered) / len(ordered)]
                    values += [percentile(ordered, p) for p in (*PERCENTILES, 100)]
                    lines.append(_line(f"{kind} {metric}", *(f"{value:.4f}" for value in values)))
        return "\n".join(lines)


def _line(title: str, *cells: str) -> str:
    return f"{title:<14}" + "".join(f"{cell:>11}" for cell in cells)


def merge_rows(rows: Iterable[dict[str, Any]]) -> list[str]:
    """All columns of some rows, in the order in which they first appear."""
    return list(dict.fromkeys(column for row in rows for column in row))
