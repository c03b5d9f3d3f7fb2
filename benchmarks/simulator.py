"""How fast the simulator is, and how much memory it takes.

    python benchmarks/simulator.py            two minutes
    python benchmarks/simulator.py --quick    a tenth of the traffic

Seconds are CPU seconds of one process (`time.process_time`), so a busy machine disturbs them
little. A request-step is one request scheduled in one step: what a step does for 256 running
requests counts 256. Each measurement has a process of its own; memory is its largest resident set.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from minivllm.core import SchedulerConfig
from minivllm.sim import (
    ClosedLoop,
    Constant,
    Mix,
    OpenLoop,
    SimResult,
    SimulationConfig,
    roofline,
    simulate,
)


def full_batch(scale: float) -> SimResult:
    """256 users without a pause, each decoding 1,000 tokens at a time: 256 are always running."""
    mix = Mix.of("64 in, 1,000 out", Constant(64), Constant(1000))
    workload = ClosedLoop(mix, 256, num_requests=max(256, int(2048 * scale)))
    config = SchedulerConfig(num_gpu_blocks=20_000, max_num_seqs=256, max_model_len=2048)
    return simulate(workload, roofline("llama-3-8b", "h100"), config)


def chats(scale: float) -> SimResult:
    """An hour of 20 chats a second: 72,000 requests of 200 prompt and about 200 output tokens.

    Records are kept of 10,000 requests, so that what grows with time would show in the memory.
    """
    return SimulationConfig(OpenLoop("chat", 20, duration=3600 * scale)).run(max_records=10_000)


def documents(scale: float) -> SimResult:
    """Ten minutes of exercise 10's mix: every tenth prompt has 16,000 tokens, taken in chunks."""
    workload = OpenLoop("chat90-doc10", 10, duration=600 * scale)
    knobs = {"max_num_batched_tokens": 2048, "long_prefill_token_threshold": 512}
    return SimulationConfig(workload, knobs=knobs).run()


WORKLOADS: dict[str, Callable[[float], SimResult]] = {
    "full_batch": full_batch,
    "chats": chats,
    "documents": documents,
}


def measure(name: str, scale: float) -> dict[str, Any]:
    """Run a workload here, and measure this process."""
    started = time.process_time()
    result = WORKLOADS[name](scale)
    seconds = time.process_time() - started
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "simulated": result.duration,
        "requests": result.num_finished,
        "steps": result.stats["num_steps"],
        "request_steps": result.stats["num_scheduled_reqs"],
        "batch": result.stats["avg_batch_size"],
        "cpu": seconds,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


def measure_apart(name: str, scale: float) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--scale", str(scale)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a tenth of the traffic")
    parser.add_argument("--one", choices=WORKLOADS, help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=float, default=1.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.scale)))
        return
    scale = 0.1 if options.quick else 1.0
    print(f"CPython {platform.python_version()} on {platform.machine()}, one core\n")
    head = ("workload", "simulated s", "requests", "steps", "batch", "CPU s", "request-steps/s",
            "x real time", "MiB")  # fmt: skip
    print("".join(f"{cell:>{16 if i == 6 else 12}}" for i, cell in enumerate(head)))
    for name, share in (
        ("full_batch", 1.0), ("documents", 1.0), ("chats", 0.25), ("chats", 1.0),
    ):  # fmt: skip
        row = measure_apart(name, scale * share)
        print(
            f"{name:>12}{row['simulated']:>12,.0f}{row['requests']:>12,}{row['steps']:>12,}"
            f"{row['batch']:>12.1f}{row['cpu']:>12.1f}{row['request_steps'] / row['cpu']:>16,.0f}"
            f"{row['simulated'] / row['cpu']:>12.0f}{row['memory'] / 2**20:>12.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
