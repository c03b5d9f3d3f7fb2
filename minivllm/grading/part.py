"""What an exercise is made of: parts, verdicts in words, and helpers that read hostile answers.

An exercise module (`minivllm.grading.exercises.e04_the_clamp`) has `TITLE` and `PARTS`. A part's
`check` runs in the judge's process, never beside the student's code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn


class Failed(Exception):
    """A check's verdict in words that teach.

    Args:
        says: What was expected and what happened, never the answer.
        chapter: The page that explains it, "05-chunked-prefill-and-the-budget"; the part's own
            chapter where it is empty.
        workload: The smallest failing workload, JSON-able; shown below the words.
        label: What `workload` is where it is not that ("Your workload"); it then ends the words.
    """

    def __init__(
        self, says: str, *, chapter: str = "", workload: object = None, label: str = ""
    ) -> None:
        if label and workload is not None:
            says, workload = f"{says}\n\n{label}: {repr(workload)[:2000]}", None
        super().__init__(says)
        self.says = says
        self.chapter = chapter
        self.workload = workload


@dataclass(frozen=True)
class Part:
    """One question with one answer cell and one graded cell.

    Attributes:
        id: "04b": exercise 04, part b; unique among all exercises.
        title: One line.
        points: What it is worth; all or nothing.
        answer: The name that the answer cell binds: a variable, a function or a class.
        kind: "value": `check(value)` gets plain JSON data. "code": `check(student)` gets a
            `sandbox.Student` that holds the source of the answer cell.
        check: Returns None if the answer is right, else raises Failed.
        chapter: Where the book explains it, "04-one-step-of-the-scheduler".
        earlier: Checks by the words that the question had before, by the mark of the notebook that
            was handed out with them (`metadata.minivllm.stubs`).
    """

    id: str
    title: str
    points: int
    answer: str
    kind: Literal["value", "code"]
    check: Callable[..., None]
    chapter: str
    earlier: Mapping[str, Callable[..., None]] = field(default_factory=dict, compare=False)

    def handed_out_as(self, mark: str) -> Part:
        """The part as the notebook with this mark asked it."""
        return replace(self, check=self.earlier.get(mark, self.check))


# ------------------------------------------------------------------ reading hostile answers


def shown(value: object, limit: int = 120) -> str:
    """`value` as Python writes it, cut to `limit` characters."""
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__} that cannot be printed>"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def not_answered(value: object) -> bool:
    """Whether `value` is what a stub leaves: None, "...", nothing, or containers of only that."""
    if value is None or value is ... or value == "...":
        return True
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, dict):
        return all(not_answered(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(not_answered(item) for item in value)
    return False


def wrong_shape(what: str, wanted: str, got: object) -> NoReturn:
    """Say that `what` should be `wanted` and is not."""
    if not_answered(got):
        raise Failed(f"{what} is not answered yet: it should be {wanted}.")
    raise Failed(
        f"{what} should be {wanted}; it is {shown(got)}, a value of type {type(got).__name__}."
    )


def want_int(value: object, what: str, *, low: int | None = None, high: int | None = None) -> int:
    """`value` as an int in low..high; a whole float counts, True and False do not."""
    wanted = "a whole number"
    if low is not None and high is not None:
        wanted += f" from {low} to {high}"
    elif low is not None:
        wanted += f", at least {low}"
    elif high is not None:
        wanted += f", at most {high}"
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        wrong_shape(what, wanted, value)
    if (low is not None and value < low) or (high is not None and value > high):
        wrong_shape(what, wanted, value)
    return value


def want_number(
    value: object, what: str, *, low: float | None = None, high: float | None = None
) -> float:
    """`value` as a finite float in low..high."""
    wanted = "a number"
    if low is not None:
        wanted += f", at least {low}"
    if high is not None:
        wanted += f", at most {high}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        wrong_shape(what, wanted, value)
    try:
        number = float(value)
    except OverflowError:
        wrong_shape(what, wanted, value)
    if not math.isfinite(number):
        wrong_shape(what, wanted, value)
    if (low is not None and number < low) or (high is not None and number > high):
        wrong_shape(what, wanted, value)
    return number


def want_str(value: object, what: str, *, choices: Collection[str] = ()) -> str:
    """`value` as a string, one of `choices` if there are any."""
    options = sorted(choices) if isinstance(choices, (set, frozenset)) else list(choices)
    wanted = f"one of {', '.join(map(repr, options))}" if options else "a string"
    if not isinstance(value, str) or not value.strip() or (choices and value not in choices):
        wrong_shape(what, wanted, value)
    return value


def want_bool(value: object, what: str) -> bool:
    """`value` as True or False."""
    if not isinstance(value, bool):
        wrong_shape(what, "True or False", value)
    return value


def want_list(
    value: object, what: str, *, length: int | None = None, low: int = 0, high: int = 10_000
) -> list[Any]:
    """`value` as a list of `length` items, or of low..high items."""
    wanted = "a list" if length is None else f"a list of {length} items"
    if not isinstance(value, (list, tuple)):
        wrong_shape(what, wanted, value)
    if not_answered(value) and (length or low):
        wrong_shape(what, wanted, value)
    if length is not None and len(value) != length:
        raise Failed(f"{what} should be {wanted}; it has {len(value)}.")
    if not low <= len(value) <= high:
        raise Failed(f"{what} should have {low} to {high} items; it has {len(value)}.")
    return list(value)


def want_dict(
    value: object,
    what: str,
    *,
    keys: Iterable[str] | None = None,
    optional: Iterable[str] = (),
    high: int = 10_000,
) -> dict[str, Any]:
    """`value` as a dict with all of `keys`, perhaps `optional` ones, and no others.

    Without `keys` any string keys will do.
    """
    needed = list(keys) if keys is not None else []
    wanted = "a dict"
    if needed:
        wanted += f" with the keys {', '.join(map(repr, needed))}"
    if not isinstance(value, dict):
        wrong_shape(what, wanted, value)
    if len(value) > high:
        raise Failed(f"{what} should have at most {high} entries; it has {len(value)}.")
    if needed and (not value or all(not_answered(value.get(key)) for key in needed)):
        raise Failed(f"{what} is not answered yet: it should be {wanted}.")
    if keys is not None:
        missing = [key for key in needed if key not in value]
        unknown = [key for key in value if key not in {*needed, *optional}]
        if missing or unknown:
            parts = [f"{', '.join(map(shown, missing))} missing"] if missing else []
            parts += [f"{', '.join(map(shown, unknown[:5]))} not known"] if unknown else []
            raise Failed(f"{what} should be {wanted}: {'; '.join(parts)}.")
    return {str(key): item for key, item in value.items()}
