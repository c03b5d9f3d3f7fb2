"""From a simulated configuration to a real server, and back with its measurements.

    print(vllm_serve(scenario))                      # vllm serve ... --max-num-batched-tokens 2048
    print(vllm_bench(scenario))                      # vllm bench serve ... --save-result
    measured = read_bench("measured.json")
    result = scenario.with_(workload=measured.to_trace()).run()
    print(comparison_table(side_by_side(result, measured)))

Names are those of vLLM 0.22.1.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minivllm.core import SchedulerConfig
from minivllm.sim.checks import check_number
from minivllm.sim.models import get_model
from minivllm.sim.results import PERCENTILES, SimResult, percentile
from minivllm.sim.scenario import Scenario
from minivllm.sim.trace import Trace
from minivllm.sim.workload import Arrival, ClosedLoop, Mix, OpenLoop

VLLM_FLAGS: dict[str, tuple[str, str]] = {
    "max_model_len": ("--max-model-len", "vllm/engine/arg_utils.py:802"),
    "tensor_parallel": ("--tensor-parallel-size", "vllm/engine/arg_utils.py:970"),
    "block_size": ("--block-size", "vllm/engine/arg_utils.py:1117"),
    "gpu_memory_utilization": ("--gpu-memory-utilization", "vllm/engine/arg_utils.py:1119"),
    "num_gpu_blocks": ("--num-gpu-blocks-override", "vllm/engine/arg_utils.py:1126"),
    "enable_prefix_caching": ("--enable-prefix-caching", "vllm/engine/arg_utils.py:1129"),
    "max_num_batched_tokens": ("--max-num-batched-tokens", "vllm/engine/arg_utils.py:1360"),
    "max_num_seqs": ("--max-num-seqs", "vllm/engine/arg_utils.py:1367"),
    "long_prefill_token_threshold": (
        "--long-prefill-token-threshold",
        "vllm/engine/arg_utils.py:1381",
    ),
    "policy": ("--scheduling-policy", "vllm/engine/arg_utils.py:1387"),
    "enable_chunked_prefill": ("--enable-chunked-prefill", "vllm/engine/arg_utils.py:1390"),
    "reserve_full_prompt": ("--scheduler-reserve-full-isl", "vllm/engine/arg_utils.py:1403"),
}
"""Our knob -> the flag of `vllm serve`, and the line that defines it. `LLM(...)` takes the same
name with underscores."""

NO_FLAG = {
    "preemption_mode": "vLLM's V1 always recomputes",
    "num_cpu_blocks": "without swap there is no CPU pool",
    "victim": "the scheduling policy chooses",
    "admission_control": "vLLM always refuses what can never fit",
    "keep_upstream_bugs": "vLLM 0.22.1 is what it is",
}
"""Our knobs that vLLM has no flag for, and why."""

BENCH_FLAGS: dict[str, str] = {
    "--max-concurrency": "vllm/benchmarks/serve.py:1287",
    "--model": "vllm/benchmarks/serve.py:1301",
    "--request-rate": "vllm/benchmarks/serve.py:1357",
    "--burstiness": "vllm/benchmarks/serve.py:1366",
    "--save-result": "vllm/benchmarks/serve.py:1394",
    "--save-detailed": "vllm/benchmarks/serve.py:1399",
    "--result-filename": "vllm/benchmarks/serve.py:1425",
    "--ignore-eos": "vllm/benchmarks/serve.py:1434",
    "--percentile-metrics": "vllm/benchmarks/serve.py:1440",
    "--metric-percentiles": "vllm/benchmarks/serve.py:1450",
    "--seed": "vllm/benchmarks/datasets/datasets.py:1408",
    "--num-prompts": "vllm/benchmarks/datasets/datasets.py:1410",
    "--dataset-name": "vllm/benchmarks/datasets/datasets.py:1416",
    "--random-input-len": "vllm/benchmarks/datasets/datasets.py:1662",
    "--random-output-len": "vllm/benchmarks/datasets/datasets.py:1668",
}
"""Flags of `vllm bench serve` that `vllm_bench` prints, and the lines that define them."""


def _settings(scenario: Scenario) -> dict[str, Any]:
    """The knobs that vLLM has a flag for: our name -> vLLM's value.

    The size of the cache is either a number of blocks, if the scenario sets one, or a share of
    the memory; then vLLM measures what fits, as the simulator estimates it.
    """
    config = scenario.config()
    settings = {
        knob: getattr(config, knob)
        for knob in VLLM_FLAGS
        if knob not in ("tensor_parallel", "gpu_memory_utilization", "num_gpu_blocks")
    }
    settings["tensor_parallel"] = scenario.tensor_parallel
    if "num_gpu_blocks" in scenario.knobs:
        # vLLM counts the null block, which belongs to no request, among its blocks.
        settings["num_gpu_blocks"] = config.num_gpu_blocks + 1
    else:
        settings["gpu_memory_utilization"] = scenario.gpu_memory_utilization
    return settings


def without_flag(scenario: Scenario) -> dict[str, str]:
    """The scenario's knobs that vLLM cannot be told: knob -> what is set, and why it has no flag.
    Knobs that stand at their default are left out: there the two agree."""
    config = scenario.config()
    default = SchedulerConfig(num_gpu_blocks=1)
    return {
        knob: f"{knob}={getattr(config, knob)!r}: {why}"
        for knob, why in NO_FLAG.items()
        if getattr(config, knob) != getattr(default, knob)
    }


def _notes(scenario: Scenario) -> list[str]:
    return [f"# vLLM has no flag for {note}" for note in without_flag(scenario).values()]


def vllm_serve(scenario: Scenario) -> str:
    """The scenario as a `vllm serve` command, one flag a line. What vLLM 0.22.1 has no flag for
    stands below as comments."""
    lines = [f"vllm serve {shlex.quote(get_model(scenario.model).hf_name)}"]
    for knob, value in _settings(scenario).items():
        flag = VLLM_FLAGS[knob][0]
        if isinstance(value, bool):
            lines.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            lines.append(f"{flag} {value}")
    return "\n".join([" \\\n    ".join(lines), *_notes(scenario)])


def llm_arguments(scenario: Scenario, engine: str = "vllm") -> str:
    """The scenario as Python: a call of `LLM(...)`.

    Args:
        scenario: what was simulated.
        engine: "vllm", or "minivllm", which has every knob, by our names, and runs on one device.

    Raises:
        ValueError: on another engine, or if minivllm is to run tensor-parallel.
    """
    arguments: dict[str, Any] = {"model": get_model(scenario.model).hf_name}
    if engine == "vllm":
        for knob, value in _settings(scenario).items():
            arguments[VLLM_FLAGS[knob][0].removeprefix("--").replace("-", "_")] = value
    elif engine == "minivllm":
        if scenario.tensor_parallel > 1:
            raise ValueError(
                f"tensor_parallel={scenario.tensor_parallel}: minivllm runs on one device"
            )
        arguments |= scenario.config().to_dict()
        del arguments["keep_upstream_bugs"]
        if "num_gpu_blocks" not in scenario.knobs:
            del arguments["num_gpu_blocks"]
            arguments["gpu_memory_utilization"] = scenario.gpu_memory_utilization
    else:
        raise ValueError(f"engine must be vllm or minivllm, got {engine!r}")
    lines = "".join(f"    {name}={value!r},\n" for name, value in arguments.items())
    notes = "".join(f"{note}\n" for note in _notes(scenario)) if engine == "vllm" else ""
    return f"from {engine} import LLM\n\n{notes}llm = LLM(\n{lines})"


def vllm_bench(scenario: Scenario) -> str:
    """The scenario's traffic as a `vllm bench serve` command, as near as its options come: random
    prompts of the mix's mean lengths.

    Raises:
        ValueError: for a trace: vLLM's benchmark would need its prompts as text.
    """
    workload = scenario.workload
    if not isinstance(workload, (OpenLoop, ClosedLoop)):
        raise ValueError("workload: only an OpenLoop or a ClosedLoop can be named in flags")
    assert isinstance(workload.mix, Mix)
    prompt, output = workload.mix.mean_lengths()
    flags: dict[str, Any] = {
        "--model": shlex.quote(get_model(scenario.model).hf_name),
        "--dataset-name": "random",
        "--random-input-len": round(prompt),
        "--random-output-len": round(output),
        "--ignore-eos": "",
        "--seed": scenario.seed,
    }
    if isinstance(workload, OpenLoop):
        flags["--request-rate"] = f"{workload.rate:g}"
        if workload.burstiness != 1:
            flags["--burstiness"] = f"{workload.burstiness:g}"
        count = workload.num_requests or math.ceil(workload.rate * (workload.duration or 0))
    else:
        flags["--max-concurrency"] = workload.users
        count = workload.num_requests or 10 * workload.users
    flags |= {
        "--num-prompts": count,
        "--percentile-metrics": "ttft,tpot,itl,e2el",
        "--metric-percentiles": ",".join(map(str, PERCENTILES)),
        "--save-result": "",
        "--save-detailed": "",
        "--result-filename": "measured.json",
    }
    lines = [f"{flag} {value}".rstrip() for flag, value in flags.items()]
    notes = [f"# every request has the mean lengths; the mix {workload.mix.name} varies them"]
    if any(kind.num_prefix_groups for _, kind in workload.mix.parts):
        notes.append(f"# no two prompts begin alike; those of {workload.mix.name} share prefixes")
    if isinstance(workload, ClosedLoop) and workload.think_time:
        notes.append(f"# vLLM's users do not think; these do, for {workload.think_time:g} s")
    return "\n".join([" \\\n    ".join(["vllm bench serve", *lines]), *notes])


# --- measurements come back -----------------------------------------------------------------


@dataclass
class BenchResult:
    """What `vllm bench serve` measured. Times in seconds."""

    duration: float
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
    statistics: dict[str, float] = field(default_factory=dict)
    """Means, percentiles and throughputs that the file gives, by `SimResult.summary`'s names."""

    @property
    def has_requests(self) -> bool:
        """Whether the file tells the requests apart (`--save-detailed`)."""
        return bool(self.ttft)

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


STATISTIC = re.compile(r"(mean|median|p\d+(?:\.\d+)?)_(ttft|itl|tpot|e2el)_ms")
"""Statistics of latencies, as the file names them."""

THROUGHPUTS = ("request_throughput", "output_throughput")


def read_bench(source: str | Path | dict[str, Any]) -> BenchResult:
    """Read the JSON that `vllm bench serve --save-result` writes (vllm/benchmarks/serve.py:987),
    with or without `--save-detailed`. Failed requests are counted and left out.

    Args:
        source: a path, or what was read from it.

    Raises:
        ValueError: naming the file, the field and what is wrong with it.
    """
    name = "the result"
    if not isinstance(source, dict):
        name = Path(source).name
        try:
            source = json.loads(Path(source).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{name}: not JSON: {error}") from None
    if not isinstance(source, dict) or "duration" not in source:
        raise ValueError(f"{name}: duration is missing; is it a result of `vllm bench serve`?")
    try:
        return _read_bench(source)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _read_bench(source: dict[str, Any]) -> BenchResult:
    result = BenchResult(check_number("duration", source["duration"], above=0))
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
        result.num_finished = _count("completed", source.get("completed", 0))
        result.num_failed = _count("failed", source.get("failed", 0))
        return result

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


def side_by_side(
    simulated: SimResult, measured: BenchResult, *, percentiles: Sequence[float] = PERCENTILES
) -> list[dict[str, Any]]:
    """A simulated run beside a measured one: rows of `metric`, `measured`, `simulated` and
    `ratio` (simulated / measured; NaN if nothing was measured to divide by).

    What the file does not hold is left out. Of the requests, if the file tells them apart,
    `percentiles` are worked out; else come those that it gives.
    """
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
