"""One engine in a process of its own, told what to do in lines of JSON.

    python -m benchmarks.worker        (the driver starts it, see engines.py)

Commands come on stdin, replies leave on what was stdout: libraries that print get stderr instead.
It is imported under the peers' interpreter too, so it must not need minivllm.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from typing import Any


def peak_rss() -> int:
    """Most bytes of memory that this process has held at once."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def die_with_parent() -> None:
    """Linux: a stopped worker must not outlive a driver that was killed."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG


def answer(state: dict[str, Any], command: dict[str, Any]) -> dict[str, Any]:
    """Carry out one command."""
    what = command["do"]
    if what == "load":
        from benchmarks.adapters import ADAPTERS

        started = time.perf_counter()
        state["engine"] = ADAPTERS[command["kind"]](command["options"])
        info = state["engine"].info()
        return {"seconds": time.perf_counter() - started, "peak_rss": peak_rss(), **info}
    if what == "run":
        before = time.process_time()
        result = state["engine"].run(command["requests"])
        return {**result, "cpu_seconds": time.process_time() - before, "peak_rss": peak_rss()}
    if what == "scheduler":
        from benchmarks.scheduler_worker import measure

        return measure(**command["case"])
    raise ValueError(f"command {what!r} is unknown")


def main() -> None:
    """Answer commands until stdin ends."""
    die_with_parent()
    commands, replies = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    state: dict[str, Any] = {}
    for line in commands:
        try:
            reply = {"ok": True, **answer(state, json.loads(line))}
        except Exception as error:  # the driver reports it; the process is of no more use
            traceback.print_exc()
            reply = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
    # Engines hang in their destructors now and then; nothing is left to save.
    os._exit(0)


if __name__ == "__main__":
    main()
