"""`check`: what a graded cell calls. It carries the answer to a judge in another process."""

from __future__ import annotations

import ast
import inspect
import json
import linecache
import os
import sys
import time
from pathlib import Path
from typing import Any

from minivllm.grading.magics import without_magics, words_for_magic

MAILBOX = "MINIVLLM_GRADING_MAILBOX"  # a folder: the runner answers there, see `runner`
PATIENCE = 120.0  # seconds to wait for the runner's verdict


class NotYet(AssertionError):
    """A graded cell's answer is not right yet. Shown as the check's words, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


def check(part_id: str, answer: Any) -> None:
    """Have `answer` judged for the part `part_id`; print one line if it is right.

    Raises:
        NotYet: It is not: with what was expected, what happened, and where to read on.
    """
    mailbox = os.environ.get(MAILBOX)
    verdict = (
        _by_runner(Path(mailbox), part_id, answer)
        if mailbox
        else _by_judge(part_id, payload_for(answer))
    )
    if not verdict["passed"]:
        raise NotYet(verdict["text"])
    print(verdict["text"])


def payload_for(answer: Any) -> Any:
    """What is sent to the judge: the source of the cell that defines a class or function, else the
    value as it is."""
    if isinstance(answer, type) or inspect.isroutine(answer):
        return source_of_cell(answer)
    return answer


def source_of_cell(answer: Any) -> str:
    """The text of the whole cell that defines `answer`, a function or a class.

    Raises:
        NotYet: It was defined elsewhere, and there is no text to send; or by a cell with a magic.
    """
    name = getattr(answer, "__name__", "")
    typed = next((text for text in _typed_cells() if _binds(without_magics(text), name)), "")
    if magic := words_for_magic(typed):  # IPython knows another text for such a cell, or none
        raise NotYet(magic)
    for filename in _filenames(answer):
        text = "".join(linecache.getlines(filename))
        if text and _binds(text, name):
            return text
    # A class without a method of its own: IPython keeps the text of each cell that ran here.
    for filename in reversed([f for f in linecache.cache if "ipykernel" in f or "ipython" in f]):
        text = "".join(linecache.getlines(filename))
        if _binds(text, name):
            return text
    raise NotYet(f"There is no cell here that defines `{name}`: define it in the answer cell.")


def _typed_cells() -> list[str]:
    """What was typed into the cells that ran, the newest first; nothing outside IPython."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell.history_manager.input_hist_raw[::-1] if shell else []


def _filenames(answer: Any) -> list[str]:
    members = [answer, *vars(answer).values()] if isinstance(answer, type) else [answer]
    codes = [getattr(inspect.unwrap(m), "__code__", None) for m in members if callable(m)]
    package = str(Path(__file__).resolve().parents[1])
    names = [code.co_filename for code in codes if code]
    return list(dict.fromkeys(name for name in names if not name.startswith(package)))


def _binds(text: str, name: str) -> bool:
    """Whether `text` binds `name` at its top level."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return False
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            if node.name == name:
                return True
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return True
    return False


def _by_judge(part_id: str, payload: Any) -> dict[str, Any]:
    from minivllm.grading.judge import judge

    verdict = judge(part_id, payload)
    return {"passed": verdict.passed, "text": verdict.text()}


def _by_runner(mailbox: Path, part_id: str, answer: Any) -> dict[str, Any]:
    """Put the answer into the runner's mailbox and wait for its verdict.

    Of a function or class it is enough to say that there is one: the runner has the cell's text.
    """
    from minivllm.grading.judge import plain
    from minivllm.grading.part import Failed

    is_code = isinstance(answer, type) or inspect.isroutine(answer)
    try:
        letter = json.dumps("code" if is_code else plain(answer))
    except (Failed, TypeError, ValueError, RecursionError) as error:
        return {"passed": False, "text": f"{part_id} not yet: {error!s:.300}"}
    reply = mailbox / f"{part_id}.verdict"
    reply.unlink(missing_ok=True)
    draft = mailbox / f"{part_id}.draft"
    draft.write_text(letter, encoding="utf-8")
    draft.rename(mailbox / f"{part_id}.payload")
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if reply.exists():
            return json.loads(reply.read_text(encoding="utf-8"))
        time.sleep(0.02)
    return {"passed": False, "text": f"{part_id}: no verdict came within {PATIENCE:.0f} s."}
