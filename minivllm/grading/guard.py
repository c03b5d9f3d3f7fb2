"""Limits that a process puts on itself before a student's code runs in it."""

from __future__ import annotations

import sys
from collections.abc import Callable

FORBIDDEN = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
    "os.kill", "ctypes.", "pty.", "gc.get_", "os.remove", "os.rename", "os.mkdir", "os.link",
    "os.symlink", "os.chmod", "os.chown", "os.truncate", "shutil.",
)  # fmt: skip


def lock_child(memory: int, seconds: float, refuse: Callable[[str], object]) -> None:
    """Limit memory and processor time; end the process at the first forbidden call."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    whole = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 2))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event.startswith(FORBIDDEN):
            refuse(f"Your code called {event}: an answer may only compute.")
        if event == "import" and str(args[0]).startswith("minivllm.grading"):
            refuse(
                "Your code imported minivllm.grading: an answer may use minivllm, not its grader."
            )

    for name in [name for name in sys.modules if name.startswith("minivllm.grading")]:
        del sys.modules[name]
    sys.addaudithook(hook)
