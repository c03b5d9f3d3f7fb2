"""Grading in a page: the checks of minivllm.grading, with three Pythons for their three processes.

`check` runs in the session of the cells, the judge in a worker that no student's code has touched,
and code answers in a third that is ended when they loop. Nobody of them can wait for another, so a
question that has no reply yet is raised (`Ask`); the page gets the reply, and what asked runs again
with it. All of it is deterministic, so it comes back to the same place.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from typing import Any

Replies = dict[str, Any]


class Ask(BaseException):
    """A question, as JSON, that the page must get a reply to."""

    def __init__(self, question: str) -> None:
        super().__init__(question)
        self.question = question


def let_check_ask(replies: Replies) -> None:
    """Make `check` of this Python ask the page's judge."""
    from minivllm.grading import check

    sys.modules[check.__module__]._by_judge = lambda part, payload: ask_judge(  # type: ignore[attr-defined]
        part, payload, replies
    )


def ask_judge(part_id: str, payload: Any, replies: Replies) -> dict[str, Any]:
    """The judge's verdict on an answer: `passed` and `text`."""
    from minivllm.grading.judge import question_of
    from minivllm.grading.part import Failed

    try:
        question = question_of(part_id, payload)
    except Failed as failed:
        question = json.dumps({"part": part_id, "refused": failed.says})
    if question not in replies:
        raise Ask(question)
    return replies[question]


def judge(text: str, replies: Replies) -> dict[str, Any]:
    """Judge an answer, given what its code did so far.

    Args:
        text: `part` and `payload`, or `refused`, words that there are already; as JSON text, since
            the page's JavaScript takes 3.0 for 3.
        replies: by question, what the child told: `status`, `told` (JSON) and `printed` (base64).

    Returns:
        `ask`, the next question to the child, and its `limits`; or the verdict with its `text`.
    """
    from minivllm.grading import sandbox
    from minivllm.grading.judge import Verdict, find_part, judge_here

    def exchange(asked: bytes, limits: sandbox.Limits) -> tuple[int | str, Any, bytes]:
        reply = replies.get(asked.decode())
        if reply is None:
            raise Ask(asked.decode())
        return reply["status"], json.loads(reply["told"]), base64.b64decode(reply["printed"])

    sandbox._exchange = exchange
    question = json.loads(text)
    part = find_part(question["part"])
    if "refused" in question:
        verdict = Verdict(part.id, False, 0, part.points, question["refused"], part.chapter)
    else:
        try:
            verdict = judge_here(part, question["payload"])
        except Ask as ask:
            return {"ask": ask.question, "limits": json.loads(ask.question)["limits"]}
    return {**asdict(verdict), "text": verdict.text()}


class NoThirdParty:
    """Refuses what the grader's own child refuses (minivllm.grading.guard), in its words."""

    NAMES = frozenset({"numpy", "pandas", "plotly", "scipy", "torch", "transformers"})

    def __init__(self) -> None:
        self.says = ""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Called for each import that is not loaded yet."""
        package = name.partition(".")[0]
        if package in self.NAMES:
            self.says = f"{package} cannot be used here; the standard library and minivllm can."
            raise ModuleNotFoundError(self.says, name=package)


def child(text: str) -> dict[str, Any]:
    """Run a student's code beside a driver, in modules that no other answer has touched."""
    for name in [n for n in sys.modules if n == "answer" or n.partition(".")[0] == "minivllm"]:
        if not name.startswith("minivllm_"):
            del sys.modules[name]
    from minivllm.grading import child as grading_child
    from minivllm.grading import guard
    from minivllm.grading.sandbox import MAX_OUTPUT

    guard.lock_child = lambda *_: None  # type: ignore[assignment]  # the worker is the lock
    printed, refusing = io.StringIO(), NoThirdParty()
    sys.meta_path.insert(0, refusing)
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            told = grading_child.answer(json.loads(text), -1)
    finally:
        sys.meta_path.remove(refusing)
    if refusing.says:
        told = {"kind": "refused", "says": refusing.says}
    data = printed.getvalue().encode()
    status: int | str = "output" if len(data) > MAX_OUTPUT else 0
    end = base64.b64encode(data[-2_000:]).decode()
    return {"status": status, "told": json.dumps(None if status else told), "printed": end}


def session(work: Callable[..., dict[str, Any]]) -> Any:
    """Something with `handle_json`, for `minivllm_page`."""

    class Session:
        def handle_json(self, text: str) -> str:
            return json.dumps(work(**json.loads(text)))

    return Session()
