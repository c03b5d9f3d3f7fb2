"""The child process: run the student's code beside a driver and tell the parent what came of it."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from types import ModuleType
from typing import Any, NoReturn

DRIVERS = "minivllm.grading.exercises.drivers."
ANSWER_MODULE = "answer"


def main(result_fd: int) -> NoReturn:
    """Read one question from stdin, tell the result on `result_fd`, end the process."""
    question = json.load(sys.stdin)
    told = {"kind": "broken", "says": "nothing happened"}
    try:
        told = answer(question, result_fd)
    except BaseException as error:
        told = {"kind": "broken", "says": f"{type(error).__name__}: {error}"}
    tell(result_fd, told)


def tell(result_fd: int, told: dict[str, Any]) -> NoReturn:
    """Write `told` and end the process at once: no code of the student's runs after this."""
    data = json.dumps(told).encode()
    while data:
        data = data[os.write(result_fd, data) :]
    os._exit(0)


def answer(question: dict[str, Any], result_fd: int) -> dict[str, Any]:
    """Bind the answer, run the driver; what to tell the parent."""
    from minivllm.grading import guard

    module_name, _, function = question["driver"].partition(":")
    if not module_name.startswith(DRIVERS):
        raise ValueError(f"a driver stands below {DRIVERS[:-1]}, not in {module_name}")
    driver = getattr(importlib.import_module(module_name), function)
    sys.setrecursionlimit(5000)
    guard.lock_child(
        question["limits"]["memory"],
        question["limits"]["seconds"],
        lambda says: tell(result_fd, {"kind": "refused", "says": says}),
    )
    module = ModuleType(ANSWER_MODULE)
    sys.modules[ANSWER_MODULE] = module
    source, name = question["source"], question["answer"]
    filename = "<your answer>"
    import linecache

    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    try:
        code = compile(source, filename, "exec")
        exec(code, module.__dict__)
    except BaseException as error:
        return {"kind": "failed", "says": f"Your code {words(error, filename)}"}
    if name not in module.__dict__:
        return {"kind": "failed", "says": f"Your code does not define `{name}`."}
    try:
        value = driver(module.__dict__[name], **question["payload"])
    except BaseException as error:
        if any(frame.filename == filename for frame in traceback.extract_tb(error.__traceback__)):
            return {"kind": "failed", "says": f"Your code {words(error, filename)}"}
        return {"kind": "failed", "says": f"Running your `{name}` {words(error, filename)}"}
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        return {"kind": "failed", "says": f"Your `{name}` returned what cannot be read: {error}"}
    return {"kind": "result", "value": value}


def words(error: BaseException, filename: str) -> str:
    """What happened, with the student's own line."""
    if isinstance(error, SyntaxError) and error.filename == filename:
        return f"is not Python: {error.msg} (line {error.lineno}: {(error.text or '').strip()})."
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == filename]
    where = f" in line {frames[-1].lineno}: `{frames[-1].line}`" if frames else ""
    if isinstance(error, MemoryError):
        return f"asked for more memory than it may use{where}."
    if isinstance(error, SystemExit):
        return f"called exit{where}: an answer must return."
    if isinstance(error, RecursionError):
        return f"called itself without end{where}."
    text = str(error)[:300]
    return f"raised {type(error).__name__}{f': {text}' if text else ''}{where}."
