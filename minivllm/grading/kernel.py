"""The kernel in which the runner's nbval executes a submission: IPython's, locked up.

It keeps a log for the runner, one JSON object a line: its process id, the code cells as they start
and end, and what was refused.
"""

from __future__ import annotations

import json
import linecache
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from minivllm.grading import guard

PRINTED_BY_ANSWER = 1_000_000  # bytes; more ends the kernel
PRINTED_BY_OTHERS = 50_000_000  # figures of the notebook's own


def main() -> None:
    """Run a kernel: `connection file` and `settings file` are the last two arguments."""
    connection, settings_file = sys.argv[-2:]
    settings = json.loads(Path(settings_file).read_text(encoding="utf-8"))
    log_fd = os.open(settings["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def log(**entry: Any) -> None:
        os.write(log_fd, (json.dumps(entry) + "\n").encode())

    guard.die_with_parent()
    guard.limit(settings["memory"], None, settings["file_size"])
    from ipykernel.kernelapp import IPKernelApp

    import minivllm.grading.judge  # noqa: F401, what `check` loads, while it can be read

    show_only(settings["shown"])
    guard.lock_kernel_files(settings["write"])
    app = IPKernelApp.instance()
    app.initialize(["-f", connection, "--HistoryManager.enabled=False", "--quiet"])
    sys.path[:] = [path for path in sys.path if path and path != os.getcwd()]
    cells = Cells(settings["cells"], log)
    shell: Any = app.shell
    shell.events.register("pre_run_cell", cells.start)
    shell.events.register("post_run_cell", cells.end)
    cells.count_output()
    guard.lock_kernel(settings["write"], cells.refused)
    log(pid=os.getpid())
    app.start()


def show_only(shown: dict[str, list[str]]) -> None:
    """Load what the notebook's own cells import from exercises' modules, and hide the rest of them.

    Args:
        shown: Names by module, "e05_preemption_loop".
    """
    package = import_module("minivllm.grading.exercises")
    for name, wanted in shown.items():
        whole = import_module(f"{package.__name__}.{name}")
        part = ModuleType(whole.__name__)
        part.__file__ = whole.__file__
        vars(part).update({w: getattr(whole, w) for w in wanted if hasattr(whole, w)})
        linecache.getlines(str(whole.__file__))  # for those who print a source
        sys.modules[whole.__name__] = part
        setattr(package, name, part)


class Cells:
    """Which of the notebook's code cells is running; nbval runs each once, in order."""

    def __init__(self, ids: list[str], log: Callable[..., None]) -> None:
        self.ids = ids
        self.log = log
        self.number = -1
        self.current = ""
        self.left = PRINTED_BY_OTHERS

    def start(self, info: Any) -> None:
        self.number += 1
        self.current = self.ids[self.number] if self.number < len(self.ids) else ""
        is_answer = self.current.startswith("answer-")
        self.left = PRINTED_BY_ANSWER if is_answer else PRINTED_BY_OTHERS
        self.log(start=self.current)

    def end(self, result: Any) -> None:
        self.log(end=self.current)

    def refused(self, what: str) -> None:
        self.log(refused=what, cell=self.current)

    def count_output(self) -> None:
        """End the kernel when a cell prints far too much."""
        from ipykernel.iostream import IOPubThread

        send = IOPubThread.send_multipart

        def counted(thread: Any, parts: Any, *args: Any, **kwargs: Any) -> Any:
            self.left -= sum(len(part) for part in parts)
            if self.left < 0:
                self.log(refused="printed far too much", cell=self.current)
                os.kill(os.getpid(), signal.SIGKILL)
            return send(thread, parts, *args, **kwargs)

        setattr(IOPubThread, "send_multipart", counted)  # noqa: B010, a method to mypy
