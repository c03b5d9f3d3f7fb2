"""The machine that is measured: what it is called, and its peaks."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivllm.sim.hardware import HardwareSpec

if TYPE_CHECKING:
    from minivllm.engine import LLMEngine


def describe(engine: LLMEngine) -> dict[str, Any]:
    """What was measured on what: for the record in the JSON file."""
    import torch

    lanes = getattr(engine.model.ops, "lanes", None)  # of our CPU kernels
    return {
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "device": engine.device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "vector_bits": lanes and 32 * lanes,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "scheduler": engine.scheduler.config.to_dict(),
    }


def _cpu_name() -> str:
    """What Linux calls the processor; elsewhere, what Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def measure_host(num_threads: int | None = None) -> HardwareSpec:
    """This machine's CPU as a `HardwareSpec`: a float32 matrix product, and a large copy."""
    import torch

    if num_threads is not None:
        torch.set_num_threads(num_threads)

    def best(action: Any, repeats: int = 5) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        return min(times)

    size = 1536
    a, b = torch.rand(size, size), torch.rand(size, size)
    flops = 2 * size**3 / best(lambda: a @ b)
    source = torch.rand(64 << 20)  # 256 MiB: no cache holds it
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / best(lambda: target.copy_(source))
    return HardwareSpec(
        "cpu", f"this CPU, {torch.get_num_threads()} threads", flops, bandwidth, 4 * 2.0**30,
        bandwidth, bandwidth, "measured: float32 matrix product and copy",
        flops_efficiency=0.7, bandwidth_efficiency=0.8, step_overhead=4e-3, bytes_per_value=4,
    )  # fmt: skip
