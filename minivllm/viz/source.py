"""A few lines of the code that runs, quoted where the text speaks of them."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent

DEFINITION = {
    ".py": re.compile(r"(?:def|class) (\w+)"),
    ".c": re.compile(r"(?:[a-z][\w *]*[ *])?(\w+)\("),
}
"""How a line begins that defines a function which is no part of another."""


@dataclass(frozen=True)
class Excerpt:
    """Lines of source; a notebook and the book's pages show them highlighted, with where they are.

    Attributes:
        path: of the file, from the repository's root; empty if it is not in there.
        name: of the function or class that they are from; empty outside of all.
        first_line: number of the first, from 1.
        last_line: number of the last.
    """

    code: str
    path: str
    name: str
    first_line: int
    last_line: int

    @property
    def caption(self) -> str:
        """Where the lines are, as Markdown. On a page book/_ext/minivllm_source.py links it."""
        first, last = self.first_line, self.last_line
        lines = f"lines {first}–{last}" if last > first else f"line {last}"
        return ", ".join([*(f"`{part}`" for part in (self.path, self.name) if part), lines])

    def _repr_markdown_(self) -> str:
        fence = f"```{'c' if self.path.endswith('.c') else 'python'}\n{self.code}\n```"
        return f"{self.caption}\n\n{fence}" if self.path else fence

    def __repr__(self) -> str:
        return self.code


def excerpt(
    code: Any, first: str, last: str, *, without: Sequence[tuple[str, str]] = ()
) -> Excerpt:
    """The lines of a function or class from the one with `first` to the next one with `last`.

    The page is made from the code itself: a line that is gone breaks the build, not the text.

    Args:
        code: a function, method or class.
        first: a part of the first line to show.
        last: a part of the last; the same line if it holds both.
        without: lines to leave out, each run by a part of its first and of its last, in order; a
            comment in their place says how many.

    Raises:
        ValueError: if `first` is in no line or in several, or `last` in none from there on.
    """
    lines, number = inspect.getsourcelines(code)
    file = Path(inspect.getsourcefile(code) or "").resolve()
    path = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else ""
    name = code.__qualname__
    start, text = _cut([line.rstrip("\n") for line in lines], first, last, name)
    end = number + start + text.count("\n")
    for first, last in without:
        at, left_out = _cut(text.splitlines(), first, last, name)
        shown, count = text.splitlines(), left_out.count("\n") + 1
        indent = shown[at][: len(shown[at]) - len(shown[at].lstrip())]
        shown[at : at + count] = [f"{indent}# ({count} line{'s' * (count > 1)} left out)"]
        text = "\n".join(shown)
    return Excerpt(text, path, name, number + start, end)


def excerpt_of_file(path: str, first: str, last: str) -> Excerpt:
    """As `excerpt`, for code that cannot be imported everywhere, such as a GPU's kernel.

    Args:
        path: below the package's folder, e.g. `models/attention/triton.py`.
        first: a part of the first line to show.
        last: a part of the last; the same line if it holds both.

    Raises:
        ValueError: as `excerpt`.
    """
    file = PACKAGE / path
    lines = file.read_text(encoding="utf-8").splitlines()
    start, text = _cut(lines, first, last, path)
    found = None
    for line in lines[start::-1]:  # the nearest definition, unless the lines stand in no function
        found = DEFINITION[file.suffix].match(line)
        if found or (lines[start] and not lines[start][0].isspace()):
            break
    name = found[1] if found else ""
    end = start + 1 + text.count("\n")
    return Excerpt(text, file.relative_to(ROOT).as_posix(), name, start + 1, end)


def _cut(lines: list[str], first: str, last: str, where: str) -> tuple[int, str]:
    """The index of the first line, and the lines' text without the indentation they share."""
    starts = [number for number, line in enumerate(lines) if first in line]
    if len(starts) != 1:
        raise ValueError(f"{first!r} is in {len(starts)} lines of {where}, not in one")
    start = starts[0]
    for end in range(start, len(lines)):
        if last in lines[end]:
            return start, textwrap.dedent("\n".join(lines[start : end + 1]))
    raise ValueError(f"{last!r} is in no line of {where} after {first!r}")
