"""Judge an answer in a fresh process, with a `minivllm` that no student's code has touched."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from minivllm.grading.part import Failed, Part, not_answered
from minivllm.grading.sandbox import Student, end_group

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package minivllm
SECONDS = 60.0  # of wall time for one part
MAX_PAYLOAD = 1_000_000  # bytes of JSON
MAX_DEPTH = 40
MEMORY = 3 << 30
TOO_LONG = "Judging this answer took longer than {:.0f} s: is a number in it too large?"
TOO_LARGE = "Judging this answer took more memory than there is: is a number in it too large?"

BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from minivllm.grading.judge import main; sys.path.pop(0); main()"
)


@dataclass(frozen=True)
class Verdict:
    """What the judge says about one part.

    Attributes:
        part: "04b".
        passed: Whether the answer is right.
        points: What it earns: all of `out_of` or nothing.
        says: Why not, in words; empty when it passed.
        chapter: The page to read.
        workload: The smallest failing workload, or None.
        broken: Whether the check itself went wrong: an error of the grader's, to be reported.
    """

    part: str
    passed: bool
    points: int
    out_of: int
    says: str = ""
    chapter: str = ""
    workload: Any = None
    broken: bool = False

    def text(self) -> str:
        """The verdict as the graded cell shows it."""
        if self.passed:
            return f"{self.part} passed: {self.points} of {self.out_of} points."
        lines = [f"{self.part} not yet: 0 of {self.out_of} points.", "", self.says]
        if self.workload is not None:
            lines += ["", f"Smallest failing workload: {workload_text(self.workload)}"]
        if self.chapter:
            lines += ["", f"Read: book/{self.chapter}.md"]
        return "\n".join(lines)


def workload_text(workload: Any) -> str:
    """A workload as Python writes it, so that it can be pasted into a cell."""
    return (workload if isinstance(workload, str) else repr(workload))[:2000]


@cache
def exercises() -> dict[str, Any]:
    """Every exercise module by the name of its notebook, "04_the_clamp", in order."""
    package = importlib.import_module("minivllm.grading.exercises")
    names = sorted(
        m.name for m in pkgutil.iter_modules(package.__path__) if m.name[:1] == "e" and not m.ispkg
    )
    return {name[1:]: importlib.import_module(f"{package.__name__}.{name}") for name in names}


def is_extra(name: str) -> bool:
    """Whether an exercise stands beside the course's thirteen: "x1_static_batches" does."""
    return name.startswith("x")


def number_of(name: str) -> str:
    """An exercise's number as people write it: "4" of "04_the_clamp", "X1" of an extra one."""
    return name.split("_")[0].lstrip("0").upper()


@cache
def parts() -> dict[str, Part]:
    """Every part of every exercise by its id."""
    found: dict[str, Part] = {}
    for name, module in exercises().items():
        for part in module.PARTS:
            if part.id in found:
                raise ValueError(f"part {part.id!r} stands twice, again in {name}")
            found[part.id] = part
    return found


def find_part(part_id: str) -> Part:
    """The part `part_id`, loading only the module of its exercise.

    Raises:
        KeyError: There is no such part.
    """
    package = importlib.import_module("minivllm.grading.exercises")
    for module_info in pkgutil.iter_modules(package.__path__):
        if module_info.name.startswith(f"e{part_id[:2]}_"):
            module = importlib.import_module(f"{package.__name__}.{module_info.name}")
            for part in module.PARTS:
                if part.id == part_id:
                    return part
    raise KeyError(f"there is no part {part_id!r}")


def plain(value: object, depth: int = 0) -> Any:
    """`value` as plain JSON data: tuples become lists, numbers as keys become strings.

    Raises:
        Failed: It holds something else, or is nested too deeply.
    """
    if depth > MAX_DEPTH:
        raise Failed(f"The answer is nested more than {MAX_DEPTH} levels deep.")
    if value is None or isinstance(value, (bool, int, float, str)):
        # A subclass may lie about what it is: rebuild the plain value.
        for kind in (bool, int, float, str):
            if isinstance(value, kind):
                return kind(value)
        return None
    if isinstance(value, dict):
        wrong = [key for key in value if not isinstance(key, (str, int, float))]
        if wrong:
            raise Failed(f"The keys of a dict should be strings or numbers, not {wrong[0]!r:.80}.")
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth + 1) for item in value]
    if value is ...:
        return None
    if isinstance(value, (set, frozenset)):
        raise Failed("A set has no order and cannot be stored as JSON: give a list.")
    item = getattr(value, "item", None)  # a number of NumPy's or PyTorch's
    if callable(item) and getattr(value, "shape", None) == ():
        return plain(item(), depth + 1)
    raise Failed(
        f"The answer should be made of numbers, strings, lists and dicts; "
        f"it holds a value of type {type(value).__name__}."
    )


def _how_empty(payload: Any) -> str:
    if payload is None:
        return "is still None"
    return "has no value in it yet" if payload and payload != "..." else "is empty"


def judge_here(part: Part, payload: Any) -> Verdict:
    """Judge `payload` in this process, which must be one that no student's code has touched.

    A code answer still runs in children of its own.
    """

    def verdict(
        says: str, chapter: str = "", workload: Any = None, broken: bool = False
    ) -> Verdict:
        return Verdict(
            part.id, False, 0, part.points, says, chapter or part.chapter, workload, broken
        )

    if not_answered(payload):
        return verdict(f"Not answered yet: `{part.answer}` {_how_empty(payload)}.")
    if part.kind == "code" and not isinstance(payload, str):
        return verdict(
            f"`{part.answer}` should be the function or class that the answer cell defines."
        )
    try:
        if part.kind == "code":
            part.check(Student(payload, part.answer))
        else:
            part.check(plain(payload))
    except Failed as failed:
        try:
            workload = json.loads(json.dumps(failed.workload, default=str))
        except (TypeError, ValueError, RecursionError):
            workload = str(failed.workload)[:2000]
        return verdict(failed.says, failed.chapter, workload)
    except MemoryError:
        return verdict(TOO_LARGE)
    except Exception as error:
        import traceback

        where = traceback.extract_tb(error.__traceback__)[-1]
        return verdict(
            f"The check could not judge this answer ({type(error).__name__}: {error!s:.300}, "
            f"{Path(where.filename).name}:{where.lineno}). That is a fault of the check: please "
            "report it, with the answer.",
            broken=True,
        )
    return Verdict(part.id, True, part.points, part.points)


def payload_of(part: Part, source: str) -> Any:
    """What `check` would send for an answer cell whose text is `source`. It runs the text here,
    for a value part: for trusted text only (tests)."""
    if part.kind == "code":
        return source
    namespace: dict[str, Any] = {"__name__": "__answer__"}
    exec(compile(source, f"<answer {part.id}>", "exec"), namespace)
    return plain(namespace[part.answer])


def question_of(part_id: str, payload: Any, handed_out: str = "") -> str:
    """What the judge is asked, as JSON.

    Raises:
        Failed: The payload is no plain data, or too large.
    """
    asked = {"part": part_id, "handed_out": handed_out}
    try:
        question = json.dumps({**asked, "payload": plain(payload)})
    except (TypeError, ValueError, RecursionError) as error:
        raise Failed(f"The answer cannot be stored as JSON: {error!s:.200}") from error
    if len(question) > MAX_PAYLOAD:
        raise Failed(f"The answer is larger than {MAX_PAYLOAD:,} bytes.")
    return question


def judge(part_id: str, payload: Any, *, seconds: float = SECONDS, handed_out: str = "") -> Verdict:
    """Judge `payload` for `part_id` in a fresh process.

    Args:
        payload: Plain JSON data for a value part, the answer cell's source for a code part.
        seconds: Wall time that the judge may take.
        handed_out: The mark of the notebook that the answer was written in; see `Part.earlier`.

    Raises:
        KeyError: There is no such part.
    """
    try:
        part = find_part(part_id)
        points, chapter = part.points, part.chapter
    except (ImportError, AttributeError):  # this kernel's core is stripped; the judge's is not
        points, chapter = 0, ""

    def refused(says: str) -> Verdict:
        return Verdict(part_id, False, 0, points, says, chapter)

    try:
        question = question_of(part_id, payload, handed_out)
    except Failed as failed:
        return refused(failed.says)
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "LANG", "LC_ALL", "TMPDIR")}
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", BOOT, str(ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=environment,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(question, timeout=seconds)
    except subprocess.TimeoutExpired:
        return refused(TOO_LONG.format(seconds))
    finally:
        end_group(process)
    try:
        return Verdict(**json.loads(out.splitlines()[-1]))
    except (IndexError, TypeError, ValueError):
        last = (err.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        if "MemoryError" in err or process.returncode < 0:
            return refused(TOO_LARGE)
        return Verdict(part_id, False, 0, points, f"The judge broke: {last[:300]}", broken=True)


def main() -> None:
    """The judge's process: one question on stdin, one verdict on stdout."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    out = os.dup(1)  # what a check prints must not mix with the verdict
    os.dup2(2, 1)
    question = json.load(sys.stdin)
    part = find_part(question["part"]).handed_out_as(question["handed_out"])
    verdict = judge_here(part, question["payload"])
    os.write(out, (json.dumps(asdict(verdict)) + "\n").encode())
