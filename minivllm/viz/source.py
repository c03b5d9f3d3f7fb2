"""A few lines of the code that runs, quoted where the text speaks of them."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any


class Excerpt:
    """Lines of source; a notebook and the book's pages show them as highlighted Python."""

    def __init__(self, code: str) -> None:
        self.code = code

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.code}\n```"

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
    lines = inspect.getsource(code).splitlines()
    starts = [number for number, line in enumerate(lines) if first in line]
    if len(starts) != 1:
        raise ValueError(f"{first!r} is in {len(starts)} lines of {code.__qualname__}, not in one")
    start = starts[0]
    for end in range(start, len(lines)):
        if last in lines[end]:
            return Excerpt(textwrap.dedent("\n".join(lines[start : end + 1])))
    raise ValueError(f"{last!r} is in no line of {code.__qualname__} after {first!r}")
