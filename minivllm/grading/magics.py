"""IPython's magics in an answer cell: named, since an answer is judged as plain Python."""

from __future__ import annotations

import ast
import re

MAGIC = re.compile(
    r"\s*(?:[^=#'\"]+=\s*)?(%%?[A-Za-z]\w*|![^\s=]\S*|\?{1,2}\w+)|\s*([\w.]+\?{1,2})\s*$"
)


def magic_in(source: str) -> tuple[int, str]:
    """Line and name of the first magic (`%%time`, `!ls`, `name?`) that keeps `source` from being
    Python; (0, "") if there is none, or something else is wrong before it."""
    try:
        ast.parse(source)
    except SyntaxError as error:
        lines = source.splitlines()
        number = error.lineno or 0
        found = MAGIC.match(lines[number - 1]) if 0 < number <= len(lines) else None
        if found:
            return number, found[1] or found[2]
    except (ValueError, RecursionError, MemoryError):
        pass
    return 0, ""


def words_for_magic(source: str) -> str:
    """What to say about the first magic in an answer cell; an empty string if there is none."""
    number, name = magic_in(source)
    if not name:
        return ""
    return (
        f"Line {number} of the answer cell, `{name[:40]}`, is a magic of IPython's and not Python. "
        f"Answers are judged as plain Python: delete it, or use it in a cell of your own, and run "
        f"the answer cell again."
    )


def without_magics(source: str, most: int = 20) -> str:
    """`source` with up to `most` lines that are magics made empty statements."""
    lines = source.splitlines()
    for _ in range(most):
        number, name = magic_in("\n".join(lines))
        if not name:
            break
        line = lines[number - 1]
        lines[number - 1] = line[: len(line) - len(line.lstrip())] + "pass"
    return "\n".join(lines)
