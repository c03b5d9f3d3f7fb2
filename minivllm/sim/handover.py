"""From a simulated configuration to a real server. (`measured` comes back with its measurements.)

    print(vllm_serve(setup))                      # vllm serve ... --max-num-batched-tokens 2048
    print(vllm_bench(setup))                      # vllm bench serve ... --save-result

Names are those of vLLM 0.22.1; knobs that came later have those of the newest release.
"""

from __future__ import annotations

import math
import shlex
from typing import Any

from minivllm.core import SchedulerConfig
from minivllm.core.releases import CHANGES, NEWEST
from minivllm.sim.config import SimulationConfig
from minivllm.sim.models import get_model
from minivllm.sim.results import PERCENTILES
from minivllm.sim.workload import ClosedLoop, Mix, OpenLoop

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
    "max_num_active_seqs": ("--max-num-active-seqs", "v0.33.0:vllm/engine/arg_utils.py:1761"),
    "max_num_queued_reqs": ("--max-num-queued-reqs", "v0.33.0:vllm/engine/arg_utils.py:1765"),
    "max_num_queued_tokens": ("--max-num-queued-tokens", "v0.33.0:vllm/engine/arg_utils.py:1768"),
    "long_prefill_token_threshold_adaptive": (
        "--long-prefill-token-threshold-adaptive",
        "v0.33.0:vllm/engine/arg_utils.py:1776",
    ),
    "watermark": ("--watermark", "v0.33.0:vllm/engine/arg_utils.py:1801"),
    "prefill_schedule_interval": (
        "--prefill-schedule-interval",
        "v0.33.0:vllm/engine/arg_utils.py:1803",
    ),
}
"""Our knob -> the flag of `vllm serve`, and the line that defines it. `LLM(...)` takes the same
name with underscores."""

NEWER_KNOBS = frozenset(change.name for change in CHANGES if not change.is_switch)
"""Printed only where they are set: older releases have no such flag."""

NO_FLAG = {
    "preemption_mode": "vLLM's V1 always recomputes",
    "num_cpu_blocks": "without swap there is no CPU pool",
    "victim": "the scheduling policy chooses",
    "admission_control": "vLLM always refuses what can never fit",
    "keep_upstream_bugs": "a release is what it is",
    "vllm_version": "the release is the one that is installed",
    "num_speculative_tokens": "it stands in --speculative-config, beside a method",
    "num_speculative_tokens_per_batch_size": "it stands in --speculative-config, beside a method",
    "num_lookahead_tokens": "a draft model in --speculative-config brings them",
}
"""Our knobs that vLLM has no flag for, and why."""

SPECULATION = (
    "num_speculative_tokens",
    "num_speculative_tokens_per_batch_size",
    "num_lookahead_tokens",
)
"""Knobs that `speculative_config` sets."""

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


def _settings(setup: SimulationConfig) -> dict[str, Any]:
    """The knobs that vLLM has a flag for: our name -> vLLM's value.

    The size of the cache is either a number of blocks, if the setup sets one, or a share of
    the memory; then vLLM measures what fits, as the simulator estimates it.
    """
    config = setup.config()
    settings = {
        knob: getattr(config, knob)
        for knob in VLLM_FLAGS
        if knob not in ("tensor_parallel", "gpu_memory_utilization", "num_gpu_blocks")
        and (knob not in NEWER_KNOBS or getattr(config, knob) != getattr(SchedulerConfig, knob))
    }
    settings["tensor_parallel"] = setup.tensor_parallel
    if "num_gpu_blocks" in setup.knobs:
        # vLLM counts the null block, which belongs to no request, among its blocks.
        settings["num_gpu_blocks"] = config.num_gpu_blocks + 1
    else:
        settings["gpu_memory_utilization"] = setup.gpu_memory_utilization
    return settings


def without_flag(setup: SimulationConfig) -> dict[str, str]:
    """The setup's knobs that vLLM cannot be told: knob -> what is set, and why it has no flag.
    Knobs that stand at their default are left out: there the two agree."""
    config = setup.config()
    default = SchedulerConfig(num_gpu_blocks=1, vllm_version=NEWEST)
    return {
        knob: f"{knob}={getattr(config, knob)!r}: {why}"
        for knob, why in NO_FLAG.items()
        if getattr(config, knob) != getattr(default, knob)
    }


def _notes(setup: SimulationConfig) -> list[str]:
    return [f"# vLLM has no flag for {note}" for note in without_flag(setup).values()]


def vllm_serve(setup: SimulationConfig) -> str:
    """The setup as a `vllm serve` command, one flag a line. What vLLM 0.22.1 has no flag for
    stands below as comments."""
    lines = [f"vllm serve {shlex.quote(get_model(setup.model).hf_name)}"]
    for knob, value in _settings(setup).items():
        flag = VLLM_FLAGS[knob][0]
        if isinstance(value, bool):
            lines.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            lines.append(f"{flag} {value}")
    return "\n".join([" \\\n    ".join(lines), *_notes(setup)])


def llm_arguments(setup: SimulationConfig, engine: str = "vllm") -> str:
    """The setup as Python: a call of `LLM(...)`.

    Args:
        setup: what was simulated.
        engine: "vllm", or "minivllm", which has every knob, by our names, and runs on one device.

    Raises:
        ValueError: on another engine, or if minivllm is to run tensor-parallel.
    """
    arguments: dict[str, Any] = {"model": get_model(setup.model).hf_name}
    if engine == "vllm":
        for knob, value in _settings(setup).items():
            arguments[VLLM_FLAGS[knob][0].removeprefix("--").replace("-", "_")] = value
    elif engine == "minivllm":
        if setup.tensor_parallel > 1:
            raise ValueError(
                f"tensor_parallel={setup.tensor_parallel}: minivllm runs on one device"
            )
        arguments |= setup.config().to_dict()
        for knob in ("keep_upstream_bugs", *SPECULATION):
            del arguments[knob]
        if "num_gpu_blocks" not in setup.knobs:
            del arguments["num_gpu_blocks"]
            arguments["gpu_memory_utilization"] = setup.gpu_memory_utilization
    else:
        raise ValueError(f"engine must be vllm or minivllm, got {engine!r}")
    lines = "".join(f"    {name}={value!r},\n" for name, value in arguments.items())
    notes = "".join(f"{note}\n" for note in _notes(setup)) if engine == "vllm" else ""
    return f"from {engine} import LLM\n\n{notes}llm = LLM(\n{lines})"


def vllm_bench(setup: SimulationConfig) -> str:
    """The setup's traffic as a `vllm bench serve` command, as near as its options come: random
    prompts of the mix's mean lengths.

    Raises:
        ValueError: for a trace: vLLM's benchmark would need its prompts as text.
    """
    workload = setup.workload
    if not isinstance(workload, (OpenLoop, ClosedLoop)):
        raise ValueError("workload: only an OpenLoop or a ClosedLoop can be named in flags")
    assert isinstance(workload.mix, Mix)
    prompt, output = workload.mix.mean_lengths()
    flags: dict[str, Any] = {
        "--model": shlex.quote(get_model(setup.model).hf_name),
        "--dataset-name": "random",
        "--random-input-len": round(prompt),
        "--random-output-len": round(output),
        "--ignore-eos": "",
        "--seed": setup.seed,
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
