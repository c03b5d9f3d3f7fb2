"""From less than a recording: what a server's flags, its log, its metrics and a benchmark tell.

Each file says a part: flags and the log the configuration, `/metrics` the load and what became of
it, `vllm bench serve` both of its own requests. `Known` puts the parts together, says where each
number comes from, and what is missing and how to get it.
"""

from __future__ import annotations

import ast
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minivllm.core import SchedulerConfig
from minivllm.core.releases import RELEASES
from minivllm.incident.units import duration
from minivllm.runs.recording import is_recording
from minivllm.sim.handover import VLLM_FLAGS
from minivllm.sim.measured import BenchResult, read_bench
from minivllm.text_file import read_text

FLAG_OF = {flag: knob for knob, (flag, _) in VLLM_FLAGS.items()}
FLAG_OF["--max-num-scheduled-tokens"] = "max_num_batched_tokens"

HOW_TO_GET = {
    "vllm_version": "the server's log says `Initializing a V1 LLM engine (v…)`; `vllm --version`",
    "num_gpu_blocks": "the server's log says `KV cache size: … tokens`, and /metrics has "
    "vllm:cache_config_info: of all numbers it decides the most",
    "block_size": "/metrics has it in vllm:cache_config_info; the log, if it was set",
    "max_model_len": "the server's log has max_seq_len, the flag is --max-model-len",
    "max_num_batched_tokens": "the server's log says `Chunked prefill is enabled with "
    "max_num_batched_tokens=…`",
    "max_num_seqs": "--max-num-seqs; where it is not set, it depends on the GPU: curl the server's "
    "/server_info, or set it",
    "enable_prefix_caching": "the server's log and vllm:cache_config_info have it",
}
"""What every scheduler needs, and where a server says it."""

BY_DEFAULT = {
    "policy": "fcfs",
    "long_prefill_token_threshold": 0,
    "enable_chunked_prefill": True,
    "watermark": 0.0,
}
"""What holds if no flag says otherwise."""


@dataclass
class Known:
    """What some files tell of a server."""

    knobs: dict[str, Any] = field(default_factory=dict)
    """Under the names of `SchedulerConfig`, and `vllm_version`."""
    told_by: dict[str, str] = field(default_factory=dict)
    """Knob -> the file that said it."""
    load: dict[str, float] = field(default_factory=dict)
    """Requests, tokens and rates, by name."""
    outcome: dict[str, float] = field(default_factory=dict)
    """Latencies in seconds, shares and counts, by name."""
    bench: BenchResult | None = None
    is_async: bool | None = None
    notes: list[str] = field(default_factory=list)
    _tokens: int | None = None
    """Of the whole KV cache, by the log."""
    _flags_seen: bool = False

    def set(self, knob: str, value: Any, by: str) -> None:
        """Take one knob; two files that say different things are noted."""
        if knob in self.knobs and self.knobs[knob] != value:
            self.notes.append(
                f"{knob} is {self.knobs[knob]} by {self.told_by[knob]} and {value} by {by}; the "
                f"first is taken"
            )
            return
        self.knobs[knob] = value
        self.told_by.setdefault(knob, by)

    def finish(self) -> Known:
        """Draw the conclusions that need more than one line."""
        size = self.knobs.get("block_size")
        if self._tokens is not None and size and "num_gpu_blocks" not in self.knobs:
            # The log counts the null block's slots too.
            self.set("num_gpu_blocks", self._tokens // size - 1, "the log's KV cache size")
        if self._flags_seen:
            for knob, value in BY_DEFAULT.items():
                if knob not in self.knobs:
                    self.set(knob, value, "default")
        return self

    @property
    def missing(self) -> dict[str, str]:
        """What a scheduler needs and no file said -> how to get it."""
        return {knob: how for knob, how in HOW_TO_GET.items() if knob not in self.knobs}

    def config(self) -> SchedulerConfig:
        """The server's configuration.

        Raises:
            ValueError: naming what is missing, and how to get it.
        """
        if self.missing:
            knob, how = next(iter(self.missing.items()))
            raise ValueError(f"{knob} is not known: {how}")
        names = SchedulerConfig.__dataclass_fields__
        return SchedulerConfig(**{k: v for k, v in self.knobs.items() if k in names})


def read_sources(paths: Sequence[Path]) -> Known:
    """Read whatever some files are: flags, a log, one or two scrapes of /metrics, a benchmark.

    Raises:
        ValueError: naming a file that is none of these.
        OSError: if one cannot be read.
    """
    known = Known()
    scrapes = []
    for path in paths:
        text = read_text(path)
        kind = kind_of(text)
        if kind == "metrics":
            scrapes.append((path.name, text))
        elif kind == "bench":
            known.bench = read_bench(path)
            _take_bench(known, known.bench)
        elif kind == "flags":
            read_flags(text, known, path.name)
        elif kind == "log":
            read_log(text, known, path.name)
        else:
            raise ValueError(
                f"{path.name}: it is no recording, no log of `vllm serve` and no command line of "
                f"it, no scrape of /metrics, and no result of `vllm bench serve`"
            )
    if scrapes:
        read_metrics(scrapes, known)
    return known.finish()


def kind_of(text: str) -> str:
    """`metrics`, `bench`, `flags`, `log`, or "" for none of these."""
    start = text.lstrip()[:4096]
    if start.startswith("{") and '"duration"' in text:
        return "bench"
    if re.search(r"^vllm:\w+(\{| )", text, re.MULTILINE):
        return "metrics"
    # A log may quote the command, so a log's own lines decide first.
    if re.search(r"\b(INFO|WARNING|ERROR) \d\d-\d\d \d\d:\d\d:\d\d ", text):
        return "log"
    return "flags" if re.search(r"(^|\s)(vllm serve|--[a-z])", text) else ""


# --- flags ----------------------------------------------------------------------------------


def read_flags(text: str, known: Known, name: str = "the flags") -> None:
    """Take a command line, `vllm serve MODEL --max-num-seqs 64 …`.

    Raises:
        ValueError: on a flag whose value is none.
    """
    known._flags_seen = True
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    index = 0
    while index < len(words):
        word = words[index]
        index += 1
        if not word.startswith("--"):
            continue
        flag, equals, value = word.replace("_", "-").partition("=")
        value = word.partition("=")[2]
        off = flag.startswith("--no-")
        knob = FLAG_OF.get(flag.replace("--no-", "--", 1) if off else flag)
        takes_value = index < len(words) and not words[index].startswith("--")
        if knob is None:
            if flag == "--async-scheduling" or flag == "--no-async-scheduling":
                known.is_async = not off
            continue
        if off:
            known.set(knob, False, name)
        elif equals:
            _set_knob(known, knob, value, name)
        elif takes_value and not isinstance(_default(knob), bool):
            _set_knob(known, knob, words[index], name)
            index += 1
        else:
            known.set(knob, True, name)


def _default(knob: str) -> Any:
    return getattr(SchedulerConfig, knob, None)


def _set_knob(known: Known, knob: str, text: str | float, name: str) -> None:
    """Take a knob's value as flags and logs write it: `2048`, `2k`, `0.05`, `True`, `fcfs`."""
    value: Any = text
    if isinstance(text, str):
        units = {"k": 1_000, "m": 1_000_000, "K": 1 << 10, "M": 1 << 20}
        if text in ("True", "False", "true", "false"):
            value = text.lower() == "true"
        elif match := re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text):
            number = float(match[1]) * units.get(match[2], 1)
            value = int(number) if number == int(number) and "." not in match[1] else number
        elif knob != "policy":
            raise ValueError(f"{name}: {VLLM_FLAGS[knob][0]} must be a number, got {text!r:.40}")
    if knob == "num_gpu_blocks" and isinstance(value, int):
        value -= 1  # vLLM counts the null block
    known.set(knob, value, name)


# --- the log --------------------------------------------------------------------------------

ENGINE = re.compile(r"Initializing a V1 LLM engine \(v([\d.]+)[^)]*\) with config: (.*)")
ARGUMENTS = re.compile(r"non-default args: (\{.*\})")
CACHE = re.compile(r"KV cache size: (\d[\d,]*) tokens")
BUDGET = re.compile(r"Chunked prefill is enabled with max_num_batched_tokens=(\d+)")
ASYNC = re.compile(r"Asynchronous scheduling is (enabled|disabled)")
OVERRIDE = re.compile(r"Overriding num_gpu_blocks=\d+ with num_gpu_blocks_override=(\d+)")
MONITOR = {
    "prompt": re.compile(r"Avg prompt throughput: ([\d.]+) tokens/s"),
    "output": re.compile(r"Avg generation throughput: ([\d.]+) tokens/s"),
    "running": re.compile(r"Running: (\d+) reqs"),
    "waiting": re.compile(r"Waiting: (\d+) reqs"),
    "preemptions": re.compile(r"Preemptions: (\d+)"),
    "usage": re.compile(r"KV cache usage: ([\d.]+)%"),
    "hits": re.compile(r"Prefix cache hit rate: ([\d.]+)%"),
}
"""The line that a server writes every ten seconds; releases differ in its parts."""


def read_log(text: str, known: Known, name: str = "the log") -> None:
    """Take the start-up lines of `vllm serve`, and those that it writes every ten seconds."""
    rows: list[dict[str, float]] = []
    for line in text.splitlines():
        if match := ENGINE.search(line):
            if match[1] in RELEASES:
                known.set("vllm_version", match[1], name)
            else:
                known.notes.append(f"{name}: vLLM {match[1]} is not known here")
            if found := re.search(r"\bmax_seq_len=(\d+)", match[2]):
                known.set("max_model_len", int(found[1]), name)
            for knob in ("enable_prefix_caching", "enable_chunked_prefill"):
                if found := re.search(rf"\b{knob}=(True|False)", match[2]):
                    known.set(knob, found[1] == "True", name)
        elif match := ARGUMENTS.search(line):
            _take_arguments(match[1], known, name)
        elif match := CACHE.search(line):
            known._tokens = int(match[1].replace(",", ""))
        elif match := OVERRIDE.search(line):
            known.set("num_gpu_blocks", int(match[1]) - 1, name)
        elif match := BUDGET.search(line):
            known.set("max_num_batched_tokens", int(match[1]), name)
        elif match := ASYNC.search(line):
            known.is_async = match[1] == "enabled"
        elif "Avg prompt throughput" in line:
            parts = ((part, form.search(line)) for part, form in MONITOR.items())
            rows.append({part: float(value[1]) for part, value in parts if value})
    known._flags_seen = True
    if rows:
        _take_monitor(rows, known)


def _take_monitor(rows: Sequence[dict[str, float]], known: Known) -> None:
    """What the server said of itself every ten seconds, while it had anything to do."""
    busy = [row for row in rows if row.get("running") or row.get("waiting")] or rows
    for part, name in (("prompt", "prompt_tokens_per_s"), ("output", "output_tokens_per_s")):
        known.load[name] = _mean([row.get(part, 0.0) for row in busy])
    known.outcome["mean_running"] = _mean([row.get("running", 0.0) for row in busy])
    known.outcome["max_waiting"] = max(row.get("waiting", 0.0) for row in rows)
    known.outcome["max_kv_usage"] = max(row.get("usage", 0.0) for row in rows) / 100
    if "hits" in rows[-1]:
        known.outcome["prefix_cache_hit_rate"] = rows[-1]["hits"] / 100
    if preemptions := sum(row.get("preemptions", 0.0) for row in rows):
        known.outcome["num_preemptions"] = preemptions


def _take_arguments(text: str, known: Known, name: str) -> None:
    """The line in which a server repeats its flags."""
    try:
        given = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        known.notes.append(f"{name}: its line of arguments is cut, or has more than plain values")
        given = dict(re.findall(r"'(\w+)': (\d[\d.]*|True|False)[,}]", text))
    for argument, value in given.items() if isinstance(given, dict) else ():
        knob = FLAG_OF.get("--" + str(argument).replace("_", "-"))
        if knob is not None and isinstance(value, (str, int, float, bool)):
            _set_knob(known, knob, value, name)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# --- /metrics -------------------------------------------------------------------------------

SAMPLE = re.compile(r"^(vllm:\w+)(\{.*\})? ([-+\w.]+)(?: \d+)?$")

COUNTERS = {
    "vllm:prompt_tokens_total": ("load", "prompt_tokens"),
    "vllm:generation_tokens_total": ("load", "output_tokens"),
    "vllm:request_success_total": ("load", "requests"),
    "vllm:num_preemptions_total": ("outcome", "num_preemptions"),
}
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": "mean_ttft",
    "vllm:inter_token_latency_seconds": "mean_itl",
    "vllm:time_per_output_token_seconds": "mean_itl",
    "vllm:e2e_request_latency_seconds": "mean_e2e",
    "vllm:request_queue_time_seconds": "mean_queue_time",
    "vllm:request_prefill_time_seconds": "mean_prefill_time",
    "vllm:request_decode_time_seconds": "mean_decode_time",
}


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for line in text.splitlines():
        match = SAMPLE.match(line.strip())
        if match:
            try:
                value = float(match[3])
            except ValueError:
                continue
            yield match[1], dict(re.findall(r'(\w+)="([^"]*)"', match[2] or "")), value


def read_metrics(scrapes: Sequence[tuple[str, str]], known: Known) -> None:
    """Take one scrape of /metrics, of all since the server began, or two: of what lies between.

    Raises:
        ValueError: if the second is older than the first.
    """
    totals = []
    for name, text in scrapes[:2]:
        total: dict[str, float] = {}
        for metric, labels, value in _samples(text):
            total[metric] = total.get(metric, 0.0) + value  # engines, models and reasons together
            if metric == "vllm:cache_config_info":
                _take_cache_info(labels, known, name)
        totals.append(total)
    last, first = totals[-1], totals[0] if len(totals) > 1 else {}
    if len(totals) == 1:
        known.notes.append(
            f"{scrapes[0][0]}: one scrape tells of all since the server began; a second one, "
            f"given after it, would tell of the time between"
        )
    grown = {metric: value - first.get(metric, 0.0) for metric, value in last.items()}
    if grown.get("vllm:generation_tokens_total", 0.0) < 0:
        raise ValueError(
            f"{scrapes[0][0]} is later than {scrapes[1][0]}, or the server began anew between them"
        )
    for metric, (where, name) in COUNTERS.items():
        if metric in grown:
            getattr(known, where)[name] = grown[metric]
    for metric, name in HISTOGRAMS.items():
        count = grown.get(f"{metric}_count", 0.0)
        if count and name not in known.outcome:
            known.outcome[name] = grown[f"{metric}_sum"] / count
    asked = grown.get("vllm:prefix_cache_queries_total", 0.0)
    if asked:
        hits = grown.get("vllm:prefix_cache_hits_total", 0.0)
        known.outcome["prefix_cache_hit_rate"] = hits / asked


def _take_cache_info(labels: dict[str, str], known: Known, name: str) -> None:
    for knob in ("block_size", "num_gpu_blocks", "enable_prefix_caching"):
        value = labels.get(knob, "None")
        if value != "None":
            _set_knob(known, knob, value, name)


# --- a benchmark ----------------------------------------------------------------------------


def _take_bench(known: Known, bench: BenchResult) -> None:
    known.notes += bench.notes
    known.load["requests"] = bench.num_finished
    if bench.total_input_tokens:
        known.load["prompt_tokens"] = bench.total_input_tokens
    if bench.total_output_tokens:
        known.load["output_tokens"] = bench.total_output_tokens
    known.load["seconds"] = bench.duration
    for name in ("mean_ttft", "mean_itl", "mean_e2e"):
        values = getattr(bench, name.removeprefix("mean_"))
        if name in bench.statistics:
            known.outcome[name] = bench.statistics[name]
        elif values:
            known.outcome[name] = _mean(values)
    if not bench.has_requests:
        known.notes.append(f"{bench.name}: --save-detailed would tell the requests apart")


# --- told -----------------------------------------------------------------------------------


def is_less(path: Path) -> bool:
    """Whether a file is something else than a recording."""
    with path.open("rb") as file:
        return not is_recording(file.read(1 << 16))


def told(known: Known) -> str:
    """What is known, what is missing and how to get it."""
    lines = ["Configuration:"]
    for knob, value in known.knobs.items():
        lines.append(f"  {knob}={value}   ({known.told_by[knob]})")
    if known.is_async is not None:
        lines.append(f"  asynchronous scheduling {'on' if known.is_async else 'off'}")
    for title, values in (("Load:", known.load), ("Outcome:", known.outcome)):
        if values:
            lines.append(title)
            lines += [f"  {name}: {value:,.4g}" for name, value in values.items()]
    lines += [f"note: {note}" for note in known.notes]
    lines += _readings(known)
    lines.append("Missing:")
    lines += [f"  {knob}: {how}" for knob, how in known.missing.items()]
    lines.append(
        "  each step's decisions and times: serve with --scheduler-cls minivllm.vllm.Recorder"
    )
    if known.bench is None:
        lines.append(
            "  the requests one by one: `vllm bench serve --save-result --save-detailed`, or the "
            "recorder"
        )
    if not known.missing:
        lines.append(f"To simulate it: {sim_command(known)}")
    return "\n".join(lines)


def _readings(known: Known) -> list[str]:
    """What the numbers already say."""
    said = []
    outcome, knobs = known.outcome, known.knobs
    queue, ttft = outcome.get("mean_queue_time"), outcome.get("mean_ttft")
    if queue is not None and ttft:
        said.append(
            f"Of the {duration(ttft)} to a first token, {duration(queue)} ({queue / ttft:.0%}) are "
            f"waiting to be scheduled."
        )
    prefill = outcome.get("mean_prefill_time")
    if prefill is not None and ttft:
        look = ": look at the steps that compute prompts, not at the queue" * (prefill > ttft / 2)
        said.append(
            f"{duration(prefill)} ({prefill / ttft:.0%}) pass from there to the first token{look}."
        )
    requests, preemptions = known.load.get("requests"), outcome.get("num_preemptions")
    if preemptions and requests:
        said.append(
            f"{preemptions:,.0f} preemptions in {requests:,.0f} requests: blocks are short."
        )
    if {"num_gpu_blocks", "block_size"} <= knobs.keys():
        slots = knobs["num_gpu_blocks"] * knobs["block_size"]
        tokens = (known.load.get("prompt_tokens", 0) + known.load.get("output_tokens", 0)) / (
            requests or 1
        )
        if requests and tokens:
            said.append(
                f"The cache holds {slots:,} tokens, {slots / tokens:.1f} requests of the mean "
                f"length of {tokens:,.0f}; max_num_seqs={knobs.get('max_num_seqs', '?')}."
            )
    return said


SIM_FLAGS = {
    "max_num_batched_tokens": "--budget",
    "long_prefill_token_threshold": "--threshold",
    "max_num_seqs": "--max-num-seqs",
    "num_gpu_blocks": "--num-gpu-blocks",
    "block_size": "--block-size",
    "max_model_len": "--max-model-len",
}
"""Knob -> the flag of `python -m minivllm.sim`."""


def sim_command(known: Known) -> str:
    """The simulator's command line for the same configuration."""
    flags = [f"{flag} {known.knobs[knob]}" for knob, flag in SIM_FLAGS.items()
             if known.knobs.get(knob)]  # fmt: skip
    if not known.knobs.get("enable_prefix_caching", True):
        flags.append("--no-prefix-caching")
    if known.knobs.get("policy", "fcfs") != "fcfs":
        flags.append(f"--policy {known.knobs['policy']}")
    if known.bench is not None:
        flags.append(f"--measured {shlex.quote(known.bench.name)}")
    return "python -m minivllm.sim --model MODEL --gpu GPU " + " ".join(flags)
