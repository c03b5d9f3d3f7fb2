"""What the numbers were measured on, and how fast its memory is.

python -m benchmarks.machine --threads 2      prints the bandwidth, as JSON
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.workloads import ROOT


def describe(threads: int) -> dict[str, Any]:
    """The machine in words; no path and no host name in them."""
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "threads": threads,
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def busy_seconds() -> float | None:
    """Core-seconds that all processes together have used since the start; None: not known here."""
    try:
        fields = [int(part) for part in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
    except (OSError, ValueError):
        return None
    # user nice system idle iowait irq softirq steal, then guests, which user holds already
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text().split("\n\n")[0].splitlines()
        pairs = (line.partition(":") for line in lines)
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        flags = set(fields.get("flags", "").split())
        best = next((f for f in ("avx512f", "avx2") if f in flags), "")
        name = fields.get("model name") or platform.machine()
        return f"{name} ({best})" if best else name
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def bandwidth(threads: int, mib: int = 512) -> float:
    """Bytes a second that this machine reads from memory, in a process with so many threads."""
    return max(measure_apart("benchmarks.machine", threads, f"--mib={mib}").values())


def measure_apart(module: str, threads: int, *options: str) -> Any:
    """What `python -m module` prints as JSON, in a process of its own with so many threads."""
    done = subprocess.run(
        [sys.executable, "-m", module, f"--threads={threads}", *options],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)},
    )
    return json.loads(done.stdout)


def measure_bandwidth(mib: int, repeats: int = 8) -> dict[str, float]:
    """Best bytes a second of three kernels that read and hardly write.

    Two buffers in turn, each far larger than any cache, so that nothing is found there again; the
    best of several, because whatever disturbs only ever slows. A matrix times a vector is what
    decoding does; a plain sum and a dot product are there in case that one is not limited by
    memory.
    """
    import torch

    rows, columns = mib * (1 << 20) // 4 // 4096, 4096
    matrices = [torch.ones(rows, columns) for _ in range(2)]
    vector = torch.ones(columns)
    other = [matrix.view(-1) for matrix in matrices]
    half = other[0].numel() // 2
    kernels = {
        "matrix times vector": lambda i: torch.mv(matrices[i], vector),
        "sum": lambda i: other[i].sum(),
        "dot product": lambda i: torch.dot(other[i][:half], other[i][half : 2 * half]),
    }
    best = {}
    for name, kernel in kernels.items():
        kernel(0)
        seconds = []
        for repeat in range(repeats):
            started = time.perf_counter()
            kernel(repeat % 2)
            seconds.append(time.perf_counter() - started)
        best[name] = matrices[0].nbytes / min(seconds)
    return best


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the bandwidth of memory.")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--mib", type=int, default=512)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    print(json.dumps(measure_bandwidth(options.mib)))


if __name__ == "__main__":
    main()
