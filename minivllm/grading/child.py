"""The child process: run the student's code beside a driver and tell the parent what came of it."""

from __future__ import annotations

import importlib
import json
import linecache
import os
import sys
from types import ModuleType, TracebackType
from typing import Any, NoReturn

from minivllm.grading.magics import words_for_magic

DRIVERS = "minivllm.grading.exercises.drivers."
ANSWER_MODULE = "answer"
FILENAME = "<your answer>"


def main(result_fd: int) -> NoReturn:
    """Read one question from stdin, tell the result on `result_fd`, end the process."""
    question = json.load(sys.stdin)
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
    source, name, payload = question["source"], question["answer"], question["payload"]
    limits = question["limits"]
    question.clear()
    guard.lock_child(
        limits["memory"],
        limits["seconds"],
        lambda says: tell(result_fd, {"kind": "refused", "says": says}),
    )
    module = ModuleType(ANSWER_MODULE)
    sys.modules[ANSWER_MODULE] = module
    linecache.cache[FILENAME] = (len(source), None, source.splitlines(keepends=True), FILENAME)
    try:
        exec(compile(source, FILENAME, "exec"), module.__dict__)
    except BaseException as error:
        return {"kind": "failed", "says": f"Your code {words(error, source)}"}
    if name not in module.__dict__:
        return {"kind": "failed", "says": f"Your code does not define `{name}`."}
    try:
        value = driver(module.__dict__[name], **payload)
    except BaseException as error:
        whose = "Your code" if own_line(error) else f"Running your `{name}`"
        return {"kind": "failed", "says": f"{whose} {words(error, source)}"}
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        try:
            says = unreadable(value)
        except Exception:  # a class of the student's may do anything when it is looked at
            says = ""
        says = says or f"returned what cannot be read: {error}."
        return {"kind": "failed", "says": f"Your `{name}` {says}"}
    return {"kind": "result", "value": value}


def unreadable(value: object, depth: int = 0) -> str:
    """What is wrong with a result that is no JSON; "" if that cannot be told."""
    if isinstance(value, (dict, list, tuple)) and depth < 6:
        items = value.values() if isinstance(value, dict) else value
        return next(filter(None, (unreadable(item, depth + 1) for item in items)), "")
    if value is None or isinstance(value, (str, int, float, dict, list, tuple)):
        return ""
    kind = type(value).__name__
    kind = f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"
    if hasattr(type(value), "__iter__"):
        return f"should return a list; it returned {kind}."
    return f"should return numbers, strings, lists or dicts; it returned {kind}."


def own_line(error: BaseException) -> int:
    """The last line of the student's that `error` went through; 0 if none."""
    line = 0
    trace: TracebackType | None = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == FILENAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def words(error: BaseException, source: str) -> str:
    """What happened, with the student's own line."""
    if isinstance(error, SyntaxError) and error.filename == FILENAME:
        if magic := words_for_magic(source):
            return f"is not Python. {magic}"
        return f"is not Python: {error.msg} (line {error.lineno}: {(error.text or '').strip()})."
    line, lines = own_line(error), source.splitlines()
    where = f" in line {line}, `{lines[line - 1].strip()}`" if 0 < line <= len(lines) else ""
    if isinstance(error, MemoryError):
        return f"asked for more memory than it may use{where}."
    if isinstance(error, SystemExit):
        return f"called exit{where}: an answer must return."
    if isinstance(error, RecursionError):
        return f"called itself without end{where}."
    try:
        text = str(error)[:300]
    except Exception:
        text = ""
    if isinstance(error, NameError) and not isinstance(error, UnboundLocalError):
        where += f": {text}. What it needs must stand in this cell"
        text = ""
    return f"raised {type(error).__name__}{where}{f': {text}' if text else ''}."
