"""Run a student's code in a child process of its own, with limits, and bring back its evidence."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minivllm.grading.part import Failed

ROOT = Path(__file__).resolve().parents[2]
MAX_RESULT = 16_000_000  # bytes of JSON that a driver may return
MAX_OUTPUT = 1_000_000  # bytes that the student's code may print before it is ended

POSIX = os.name == "posix"
NEEDS_POSIX = (
    "code answers run in a process with limits, which needs Linux or macOS; on Windows, use WSL"
)

BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from minivllm.grading.child import main; sys.path.pop(0); main(int(sys.argv[2]))"
)


@dataclass(frozen=True)
class Limits:
    """What a child may use.

    Attributes:
        seconds: Processor time; three times as much wall time, for a machine that is busy.
        memory: Bytes of address space.
    """

    seconds: float = 10.0
    memory: int = 1 << 30


class Student:
    """A student's answer cell, run in a fresh and limited child process at each call."""

    def __init__(self, source: str, answer: str) -> None:
        self.source = source
        self.answer = answer

    def call(self, driver: str, /, *, limits: Limits | None = None, **payload: Any) -> Any:
        """Run `driver(obj, **payload)` in the child, where obj is what the answer cell bound.

        Args:
            driver: "minivllm.grading.exercises.drivers.d07:trace": a function in a module below
                `minivllm.grading.exercises.drivers`, which is imported before the student's code
                runs. Such a module holds no secret: the student's code can see it.
            limits: Other limits than the usual 10 s and 1 GiB.
            payload: Keyword arguments for the driver, JSON-able.

        Returns:
            What the driver returned, as JSON gives it back: tuples are lists, keys are strings.

        Raises:
            Failed: In words, with the student's line, when the code raises, hangs, asks for too
                much, does what an answer may not do, or returns what is not JSON.
        """
        return run(self.source, self.answer, driver, payload, limits or Limits())


def run(source: str, answer: str, driver: str, payload: dict[str, Any], limits: Limits) -> Any:
    """Run `driver(obj, **payload)` where `source` bound `answer` to obj; see `Student.call`.

    Raises:
        Failed: The code raised, hung, asked for too much, or did what an answer may not do.
        RuntimeError: The driver or the child itself is at fault.
    """
    question = json.dumps(
        {
            "source": source,
            "answer": answer,
            "driver": driver,
            "payload": payload,
            "limits": asdict(limits),
        }
    )
    status, result, printed = _exchange(question.encode(), limits)
    kind = result.get("kind") if isinstance(result, dict) else None
    if kind == "result":
        return result.get("value")
    if kind in ("failed", "refused"):
        says = str(result.get("says", ""))[:4000]
        raise Failed(says + _said(printed))
    if kind == "broken":
        raise RuntimeError(f"driver {driver}: {result.get('says', '')}")
    raise Failed(_words_for(status, limits) + _said(printed))


def _said(printed: bytes) -> str:
    text = printed.decode(errors="replace").strip()
    return f"\nIt printed: {text[-500:]}" if text else ""


def _words_for(status: int | str, limits: Limits) -> str:
    """Why a child ended that has told nothing itself."""
    if status == "time" or status == -getattr(signal, "SIGXCPU", 24):
        return f"Your code did not finish within {limits.seconds:g} s: is there a loop without end?"
    if status == "output":
        return f"Your code printed more than {MAX_OUTPUT:,} bytes and was ended."
    if status == "result":
        return "Your code returned far too much data."
    if isinstance(status, int) and status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = str(-status)
        return (
            f"Your code's process was ended by {name}: too much memory "
            f"(the limit is {limits.memory >> 20} MiB), or a call that answers may not make."
        )
    return f"Your code ended its own process (exit status {status}) before the check was done."


def _exchange(question: bytes, limits: Limits) -> tuple[int | str, Any, bytes]:
    """Start the child, give it `question`; its exit status or what it broke, its result, its
    output."""
    if not POSIX:
        raise RuntimeError(NEEDS_POSIX)
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", BOOT, str(ROOT), str(writer)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(writer,),
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
        cwd="/",
        start_new_session=True,
    )
    os.close(writer)
    assert process.stdin
    assert process.stdout
    result, printed = bytearray(), bytearray()
    broke = ""
    deadline = time.monotonic() + 3 * limits.seconds + 5.0  # with the child's own start-up
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(reader, selectors.EVENT_READ, result)
            selector.register(process.stdout, selectors.EVENT_READ, printed)
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            left = memoryview(question)
            result_open = True
            while result_open and not broke:
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    broke = "time"
                for key, _ in ready:
                    if key.fileobj is process.stdin:
                        try:
                            left = left[os.write(key.fd, left) :]
                        except (BrokenPipeError, BlockingIOError):
                            left = left[len(left) :]
                        if not left:
                            selector.unregister(process.stdin)
                            process.stdin.close()
                        continue
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fileobj)
                        result_open = result_open and key.fd != reader
                    key.data.extend(data)
                if len(printed) > MAX_OUTPUT:
                    broke = "output"
                if len(result) > MAX_RESULT:
                    broke = "result"
                if time.monotonic() > deadline:
                    broke = "time"
        if not broke:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                broke = "time"
    finally:
        end_group(process)
        os.close(reader)
    try:
        told = json.loads(result) if result and not broke else None
    except (ValueError, RecursionError):
        told = None
    return broke or process.returncode, told, bytes(printed)


def end_group(process: subprocess.Popen[Any]) -> None:
    """Kill `process` and all that it started in its session, and close its pipes."""
    # Windows has no such groups; there the process alone is killed.
    with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()
