"""Child processes that can be started, stopped, asked and lost without harm to the others."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workloads import ROOT


class WorkerError(Exception):
    """A worker said no, died or hung; the message says which, and where its log is."""


class Worker:
    """One child process of `benchmarks.worker`; stopped (SIGSTOP) while it is not asked.

    Args:
        name: for messages and the log.
        python: the interpreter; or `command`, all of it.
        environment: on top of this process's own.
        log: where its stderr goes.
    """

    def __init__(
        self,
        name: str,
        *,
        python: str = sys.executable,
        command: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        log: Path,
    ) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        # The peers' interpreter finds this package, and nothing of ours that they have too.
        extra = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environment or {})}
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                list(command or [python, "-m", "benchmarks.worker"]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=ROOT,
                env={**os.environ, **extra},
                start_new_session=True,  # a group of its own: signals reach its children too
            )
        self._unread = b""
        assert self.process.stdin is not None
        # A worker that does not read must not block the driver: its pipe holds 64 KiB.
        os.set_blocking(self.process.stdin.fileno(), False)

    def ask(self, timeout: float, **command: Any) -> dict[str, Any]:
        """Let it run until it has answered.

        Raises:
            WorkerError: if it dies, does not answer in time, or answers with an error.
        """
        what = command.get("do", "")
        if self.process.returncode is not None:
            raise WorkerError(f"{self.name}: has ended and cannot {what} (log: {self.log})")
        deadline = time.monotonic() + timeout
        try:
            self._signal(signal.SIGCONT)
            self._write((json.dumps(command) + "\n").encode(), deadline, timeout, what)
            line = self._read_line(deadline, timeout, what)
        except BrokenPipeError:
            raise self._died(what) from None
        self._signal(signal.SIGSTOP)
        reply = json.loads(line)
        if not reply.pop("ok"):
            raise WorkerError(f"{self.name}: {what} failed: {reply['error']} (log: {self.log})")
        return reply

    def _write(self, data: bytes, deadline: float, timeout: float, what: str) -> None:
        assert self.process.stdin is not None
        pipe = self.process.stdin.fileno()
        while data:
            if not select.select([], [pipe], [], max(0.0, deadline - time.monotonic()))[1]:
                raise self._too_slow(timeout, what)
            data = data[os.write(pipe, data) :]

    def _too_slow(self, timeout: float, what: str) -> WorkerError:
        self.close()
        return WorkerError(
            f"{self.name}: {what} took longer than {timeout:g} s and was ended; "
            f"raise --timeout if it was only slow (log: {self.log})"
        )

    def _read_line(self, deadline: float, timeout: float, what: str) -> bytes:
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if not select.select([pipe], [], [], max(0.0, left))[0]:
                raise self._too_slow(timeout, what)
            data = os.read(pipe, 1 << 16)
            if not data:
                raise self._died(what)
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _died(self, what: str) -> WorkerError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.poll()
        how = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit code {code})"
        self.close()
        last = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        words = "".join(f"\n    {line}" for line in last)
        return WorkerError(f"{self.name}: died during {what}{how} (log: {self.log}){words}")

    def _signal(self, number: int) -> None:
        if self.process.returncode is not None:
            return  # its number may be another's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
