"""A few lines of the code that runs, quoted where the text speaks of them."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]


class Excerpt:
    """Lines of source; a notebook and the book's pages show them highlighted."""

    def __init__(self, code: str, language: str = "python") -> None:
        self.code = code
        self.language = language

    def _repr_markdown_(self) -> str:
        return f"```{self.language}\n{self.code}\n```"

    def __repr__(self) -> str:
        return self.code


def excerpt(code: Any, first: str, last: str) -> Excerpt:
    """The lines of a function or class from the one with `first` to the next one with `last`.

    The page is made from the code itself: a line that is gone breaks the build, not the text.

    Args:
        code: a function, method or class.
        first: a part of the first line to show.
        last: a part of the last; the same line if it holds both.

    Raises:
        ValueError: if `first` is in no line or in several, or `last` in none from there on.
    """
    return _cut(inspect.getsource(code).splitlines(), first, last, code.__qualname__)


def excerpt_of_file(path: str, first: str, last: str) -> Excerpt:
    """As `excerpt`, for code that cannot be imported everywhere, such as a GPU's kernel.

    Args:
        path: below the package's folder, e.g. `models/attention/triton.py`.
        first: a part of the first line to show.
        last: a part of the last; the same line if it holds both.

    Raises:
        ValueError: as `excerpt`.
    """
    found = _cut((PACKAGE / path).read_text(encoding="utf-8").splitlines(), first, last, path)
    found.language = "c" if path.endswith(".c") else "python"
    return found


def _cut(lines: list[str], first: str, last: str, where: str) -> Excerpt:
    starts = [number for number, line in enumerate(lines) if first in line]
    if len(starts) != 1:
        raise ValueError(f"{first!r} is in {len(starts)} lines of {where}, not in one")
    start = starts[0]
    for end in range(start, len(lines)):
        if last in lines[end]:
            return Excerpt(textwrap.dedent("\n".join(lines[start : end + 1])))
    raise ValueError(f"{last!r} is in no line of {where} after {first!r}")
