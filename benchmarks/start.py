"""How long it takes until something runs: imports, and the engine from a warm weight cache."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from benchmarks import summary
from benchmarks.workloads import ROOT

STARTS = {
    "python": ("Python itself", "pass"),
    "core": ("import minivllm.core", "import minivllm.core"),
    "widget": ("import minivllm.stepper.widget", "import minivllm.stepper.widget"),
    "torch": ("import torch", "import torch"),
    "engine": ("LLM() ready", "from minivllm import LLM; LLM({model!r})"),
}
"""Name -> what it is called, and what a fresh interpreter is told to do."""


def measure(model: str, repeats: int) -> dict[str, Any]:
    """Seconds from the start of a fresh process to its end, of each; in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    for number in range(repeats + 1):
        for name, (_, code) in STARTS.items():
            # Once to warm the files' cache, unmeasured.
            if (taken := _once(code.format(model=model))) and number:
                seconds[name].append(taken)
    return {
        name: {"label": STARTS[name][0], **summary.spread(values)}
        for name, values in seconds.items()
    }


def _once(code: str) -> float:
    # Ended without ado: tearing torch down is no part of being ready.
    code = f"{code}\nimport os; os._exit(0)"
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - started
