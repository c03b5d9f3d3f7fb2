"""What a real server's benchmark measured, and a simulated run beside it.

    measured = read_bench("measured.json")           # of vllm bench serve --save-result
    result = setup.with_(workload=measured.traffic()).run()
    print(comparison_table(side_by_side(result, measured)))

Names are those of vLLM 0.22.1.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minivllm.sim.checks import check_number
from minivllm.sim.results import PERCENTILES, SimResult, percentile
from minivllm.sim.trace import Trace
from minivllm.sim.workload import Arrival
from minivllm.text_file import read_text


@dataclass
class BenchResult:
    """What `vllm bench serve` measured, of what traffic. Times in seconds."""

    duration: float
    name: str = "the result"
    prompt_lens: list[int] = field(default_factory=list)
    output_lens: list[int] = field(default_factory=list)
    start_times: list[float] = field(default_factory=list)
    """When each request was sent, from the first; empty if the file has none."""
    ttft: list[float] = field(default_factory=list)
    itl: list[float] = field(default_factory=list)
    """Between all tokens of all requests."""
    tpot: list[float] = field(default_factory=list)
    e2e: list[float] = field(default_factory=list)
    num_finished: int = 0
    num_failed: int = 0
    total_input_tokens: int | None = None
    total_output_tokens: int | None = None
    """Of all that finished; None: the file does not say."""
    request_rate: float | None = None
    """Requests a second; infinity: all at once; None: the file does not say."""
    burstiness: float = 1.0
    max_concurrency: int | None = None
    statistics: dict[str, float] = field(default_factory=dict)
    """Means, percentiles and throughputs that the file gives, by `SimResult.summary`'s names."""
    notes: list[str] = field(default_factory=list)
    """What whoever compares should know about the file."""

    @property
    def has_requests(self) -> bool:
        """Whether the file tells the requests apart (`--save-detailed`)."""
        return bool(self.ttft)

    def traffic(self, seed: int = 0) -> Trace:
        """The requests, as nearly as the file tells them: as they were sent (`to_trace`), or of
        their lengths at its rate, or as many of their mean lengths. The trace's `notes` say what is
        missing, and how to get it.

        Args:
            seed: of arrival times that have to be drawn.

        Raises:
            ValueError: if the file says nothing about its requests.
        """
        if self.start_times:
            return self.to_trace(self.name)
        notes = []
        lengths = list(zip(self.prompt_lens, self.output_lens, strict=True))
        if not lengths:
            if not (self.num_finished and self.total_input_tokens and self.total_output_tokens):
                raise ValueError(
                    f"{self.name}: it does not say what its requests were like: input_lens, "
                    f"output_lens and start_times are missing, and total_input_tokens or "
                    f"total_output_tokens too. {HOW_TO_GET_THEM}"
                )
            prompts, outputs = (
                _shares(total, self.num_finished)
                for total in (self.total_input_tokens, self.total_output_tokens)
            )
            lengths = list(zip(prompts, outputs, strict=True))
            notes.append(
                f"{self.name}: input_lens and output_lens are missing, so that every request has "
                f"the mean lengths, {sum(prompts) / len(prompts):.4g} tokens in and "
                f"{sum(outputs) / len(outputs):.4g} out. {HOW_TO_GET_THEM}"
            )
        rate, how = self.request_rate, "at its request_rate, {:g}/s, at random times"
        if rate is None and self.max_concurrency is None:
            rate, how = len(lengths) / self.duration, "at the rate of its throughput, {:g}/s"
        if rate is None or rate == math.inf:
            how = "all at once"
            if self.max_concurrency is not None:
                how = f"{self.max_concurrency} at a time (max_concurrency)"
        else:
            how = how.format(rate)
        notes.append(
            f"{self.name}: start_times is missing, so that requests are sent {how}. "
            f"{HOW_TO_GET_THEM}"
        )
        trace = Trace(
            tuple(Arrival(0.0, *pair) for pair in lengths),
            self.name,
            self.max_concurrency,
            notes=tuple(notes),
        )
        return trace if rate in (None, math.inf) else trace.at_rate(rate, self.burstiness, seed)

    def to_trace(self, name: str = "measured") -> Trace:
        """The requests as they were sent: simulate these to compare like with like.

        Raises:
            ValueError: if the file has no start times (`--save-detailed` writes them).
        """
        if not self.start_times:
            raise ValueError("start_times: the file has none; run the benchmark --save-detailed")
        return Trace(
            tuple(
                Arrival(round(start, 9), prompt, output)
                for start, prompt, output in zip(
                    self.start_times, self.prompt_lens, self.output_lens, strict=True
                )
            ),
            name,
        )


HOW_TO_GET_THEM = "`vllm bench serve --save-result --save-detailed` writes them."


def _shares(total: int, count: int) -> list[int]:
    """`total` in `count` whole numbers that differ by 1 at most; none below 1."""
    return [max(1, (index + 1) * total // count - index * total // count) for index in range(count)]


STATISTIC = re.compile(r"(mean|median|p\d+(?:\.\d+)?)_(ttft|itl|tpot|e2el)_ms")
"""Statistics of latencies, as the file names them."""

THROUGHPUTS = ("request_throughput", "output_throughput")


def read_bench(source: str | Path | dict[str, Any], number: int | None = None) -> BenchResult:
    """Read the JSON that `vllm bench serve --save-result` writes (vllm/benchmarks/serve.py:987),
    with or without `--save-detailed`. Failed requests are counted and left out.

    Args:
        source: a path, or what was read from it.
        number: which of several results in the file (`--append-result`), from 1; None: the last.

    Raises:
        ValueError: naming the file, the field and what is wrong with it.
    """
    results, name = _results_in(source)
    if number is not None and not 1 <= number <= len(results):
        raise ValueError(f"{name}: there is no result {number}, it holds {len(results)}")
    number = number or len(results)
    result = _read_result(results[number - 1], name)
    if len(results) > 1:
        result.notes.insert(
            0, f"{name}: it holds {len(results)} results (--append-result); this is the {number}."
        )
    return result


def read_benches(source: str | Path) -> list[BenchResult]:
    """All results in a file: `vllm bench serve --append-result` writes one after another.

    Raises:
        ValueError: as for `read_bench`, naming the result's number too.
    """
    results, name = _results_in(source)
    return [
        _read_result(result, f"{name}, result {number}" if len(results) > 1 else name)
        for number, result in enumerate(results, start=1)
    ]


def _results_in(source: str | Path | dict[str, Any]) -> tuple[list[Any], str]:
    """The results in a file, at least one, and how to call it."""
    if isinstance(source, dict):
        return [source], "the result"
    text, name = read_text(source), Path(source).name
    decoder, results, end = json.JSONDecoder(), [], 0
    while rest := text[end:].lstrip(" \t\r\n\ufeff"):
        try:
            value, length = decoder.raw_decode(rest)
        except ValueError as error:
            raise ValueError(f"{name}: not JSON: {error}") from None
        results += value if value and isinstance(value, list) else [value]
        end = len(text) - len(rest) + length
    if not results:
        raise ValueError(f"{name}: not JSON: it is empty")
    return results, name


def _read_result(source: Any, name: str) -> BenchResult:
    if not isinstance(source, dict) or "duration" not in source:
        raise ValueError(f"{name}: duration is missing; is it a result of `vllm bench serve`?")
    try:
        result = _read_bench(source, name)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if result.num_failed:
        result.notes.append(
            f"{name}: {result.num_failed} of {result.num_failed + result.num_finished} requests "
            f"failed; they are left out here, though they may have kept the server busy"
        )
    if "ramp_up_strategy" in source and not result.start_times:
        result.notes.append(f"{name}: its rate rose while it ran (ramp_up_strategy)")
    return result


def _read_bench(source: dict[str, Any], name: str) -> BenchResult:
    result = BenchResult(check_number("duration", source["duration"], above=0), name)
    _read_traffic(source, result)
    if "completed" in source and not result.num_finished:
        raise ValueError(
            f"no request completed, all {result.num_failed} requests failed: there is nothing to "
            f"compare"
        )
    for key, value in source.items():
        if match := STATISTIC.fullmatch(key):
            statistic, metric = match.groups()
            statistic = "p50" if statistic == "median" else statistic
            metric = "e2e" if metric == "e2el" else metric
            result.statistics[f"{statistic}_{metric}"] = check_number(key, value, least=0) / 1000
        elif key in THROUGHPUTS:
            result.statistics[key] = check_number(key, value, least=0)
    columns = _columns(source)
    if not columns:
        if not result.statistics:
            raise ValueError("it holds neither statistics (mean_ttft_ms, ...) nor requests")
        return result

    result.num_finished = result.num_failed = 0  # what the requests say counts
    starts = columns.get("start_times")
    first = min(starts) if starts else 0.0
    errors = columns.get("errors")
    for index, (prompt, output, ttft, gaps) in enumerate(
        zip(*(columns[name] for name in REQUEST_FIELDS), strict=True)
    ):
        if output == 0 or (errors and errors[index]):
            result.num_failed += 1
            continue
        result.num_finished += 1
        result.prompt_lens.append(prompt)
        result.output_lens.append(output)
        result.ttft.append(ttft)
        result.itl += gaps
        result.e2e.append(ttft + sum(gaps))
        if output > 1:
            result.tpot.append(sum(gaps) / (output - 1))
        if starts:
            result.start_times.append(starts[index] - first)
    if not result.num_finished:
        raise ValueError(f"all {result.num_failed} requests failed")
    return result


def _read_traffic(source: dict[str, Any], result: BenchResult) -> None:
    """How many requests of how many tokens, and when they were sent."""
    for name in ("total_input_tokens", "total_output_tokens", "max_concurrency"):
        if source.get(name) is not None:
            setattr(result, name, _count(name, source[name]))
    rate = source.get("request_rate")
    if rate is not None:
        rate = (
            math.inf if rate in ("inf", math.inf) else check_number("request_rate", rate, above=0)
        )
    result.request_rate = rate
    if source.get("burstiness") is not None:
        result.burstiness = check_number("burstiness", source["burstiness"], above=0)
    result.num_finished = _count("completed", source.get("completed", 0))
    num_sent = _count("num_prompts", source.get("num_prompts", result.num_finished))
    result.num_failed = _count(
        "failed", source.get("failed", max(num_sent - result.num_finished, 0))
    )


def _count(name: str, value: Any) -> int:
    number = check_number(name, value, least=0)
    if number != int(number):
        raise ValueError(f"{name} must be a whole number, got {value}")
    return int(number)


def _gaps(name: str, value: Any) -> list[float]:
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list of seconds, got {value!r:.40}")
    return [check_number(f"{name}[{i}]", gap, least=0) for i, gap in enumerate(value)]


REQUEST_FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "input_lens": _count,
    "output_lens": _count,
    "ttfts": lambda name, value: check_number(name, value, least=0),
    "itls": _gaps,
}
"""Lists with an entry for each request, and how to read one."""

OPTIONAL_FIELDS: dict[str, Callable[[str, Any], Any]] = {
    "start_times": check_number,
    "errors": lambda _, value: value,
}


def _columns(source: dict[str, Any]) -> dict[str, list[Any]]:
    """The lists with an entry for each request, checked; empty without `--save-detailed`."""
    readers = {**REQUEST_FIELDS, **OPTIONAL_FIELDS}
    given = {name: source[name] for name in readers if name in source}
    if not given:
        return {}
    missing = [name for name in REQUEST_FIELDS if name not in given]
    if missing:
        raise ValueError(f"{missing[0]} is missing, while {', '.join(given)} are there")
    for name, values in given.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{name} must be a list with an entry for each request")
    for name, values in given.items():
        if len(values) != len(given["ttfts"]):
            raise ValueError(f"{name} has {len(values)} entries, ttfts {len(given['ttfts'])}")
    return {
        name: [readers[name](f"{name}[{i}]", value) for i, value in enumerate(values)]
        for name, values in given.items()
    }


MAX_UNLIKE = 0.05
"""Counts and mean lengths that differ by less are alike."""


def unlike(simulated: SimResult, measured: BenchResult) -> list[str]:
    """In what the traffic of two runs differs: requests that finished, their mean lengths, and how
    they arrived; a sentence for each. Empty: in nothing that the file tells."""
    count = measured.num_finished
    totals = (
        ("tokens in a prompt", simulated.num_prompt_tokens,
         sum(measured.prompt_lens) or measured.total_input_tokens),
        ("tokens in an output", simulated.num_output_tokens,
         sum(measured.output_lens) or measured.total_output_tokens),
    )  # fmt: skip
    pairs: list[tuple[str, float, float]] = []
    if count:
        pairs.append(("requests", simulated.num_finished, count))
        pairs += [
            (what, ours / max(simulated.num_finished, 1), theirs / count)
            for what, ours, theirs in totals
            if theirs is not None
        ]
    said = [
        f"{what}: {ours:.4g} simulated, {theirs:.4g} measured"
        for what, ours, theirs in pairs
        if abs(ours - theirs) > MAX_UNLIKE * theirs
    ]
    missing = [what for what, _, theirs in totals if theirs is None]
    if missing:
        said.append(f"{' and '.join(missing)}: the file does not say. {HOW_TO_GET_THEM}")
    for ours, theirs, what in (
        ("rate", measured.request_rate, "requests a second"),
        ("users", measured.max_concurrency, "requests at a time"),
    ):
        value = simulated.workload.get(ours)
        if value is not None and theirs is not None and value != theirs:
            said.append(f"{what}: {value:g} simulated, {theirs:g} measured")
    return [f"{measured.name}: unlike traffic, {sentence}" for sentence in said]


def side_by_side(
    simulated: SimResult, measured: BenchResult, *, percentiles: Sequence[float] = PERCENTILES
) -> list[dict[str, Any]]:
    """A simulated run beside a measured one: rows of `metric`, `measured`, `simulated` and
    `ratio` (simulated / measured; NaN if nothing was measured to divide by).

    What the file does not hold is left out. Of the requests, if the file tells them apart,
    `percentiles` are worked out; else come those that it gives. Traffic that is not alike
    (`unlike`) is a warning.
    """
    for difference in unlike(simulated, measured):
        warnings.warn(difference, stacklevel=2)
    theirs: dict[str, float] = {}
    if measured.has_requests:
        theirs["request_throughput"] = measured.num_finished / measured.duration
        theirs["output_throughput"] = sum(measured.output_lens) / measured.duration
        for metric in ("ttft", "itl", "tpot", "e2e"):
            values = sorted(getattr(measured, metric))
            if values:
                theirs[f"mean_{metric}"] = sum(values) / len(values)
                for percent in percentiles:
                    theirs[f"p{percent:g}_{metric}"] = percentile(values, percent)
    else:
        theirs = measured.statistics
    rows = []
    for name, value in theirs.items():
        if name in THROUGHPUTS:
            ours = getattr(simulated, name)
        else:
            statistic, metric = name.split("_", 1)
            ours = (
                getattr(simulated, metric).mean
                if statistic == "mean"
                else simulated.percentile(metric, float(statistic[1:]))
            )
        ratio = ours / value if value else math.nan
        rows.append({"metric": name, "measured": value, "simulated": ours, "ratio": ratio})
    return rows


def comparison_table(rows: Sequence[dict[str, Any]]) -> str:
    """`side_by_side`'s rows as text."""
    lines = [f"{'metric':<20}{'measured':>12}{'simulated':>12}{'ratio':>8}"]
    lines += [
        f"{r['metric']:<20}{r['measured']:>12.4f}{r['simulated']:>12.4f}{r['ratio']:>8.2f}"
        for r in rows
    ]
    return "\n".join(lines)
