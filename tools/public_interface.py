"""What other people's code may rely on: the names in the `__all__` of the public packages.

    python tools/public_interface.py            writes tests/data/public-interface.txt
    python tools/public_interface.py --check    says what differs; exit status 1 if anything does

A line for each name, and for each public method, property and field of a class, with its signature.
`tests/test_public_interface.py` fails when the file and the code differ.
"""

from __future__ import annotations

import difflib
import enum
import inspect
import re
import sys
import types
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FILE = ROOT / "tests" / "data" / "public-interface.txt"
PACKAGES = ("minivllm", "minivllm.core", "minivllm.runs", "minivllm.sim", "minivllm.stepper",
            "minivllm.grading")  # fmt: skip


def listing() -> str:
    """The interface as text."""
    lines = []
    for package in PACKAGES:
        module = import_module(package)
        lines.append(f"# {package}")
        for name in sorted(module.__all__):
            lines += described(name, getattr(module, name))
        lines.append("")
    return "\n".join(lines)


def described(name: str, thing: Any) -> Iterator[str]:
    """The lines of one name."""
    # For Python 3.10 an alias such as Callable[[int], str] is a type.
    if isinstance(thing, type) and not isinstance(thing, types.GenericAlias):
        # How an enumeration is called is Python's, and told otherwise by each of its releases.
        yield f"{name}(value)" if issubclass(thing, enum.Enum) else f"{name}{signature(thing)}"
        for attribute in sorted(set(members(thing))):
            yield f"{name}.{members(thing)[attribute]}"
    elif inspect.isfunction(thing):
        yield f"{name}{signature(thing)}"
    else:
        yield f"{name} = {thing}" if callable(thing) else f"{name}: {type(thing).__name__}"


def members(cls: type) -> dict[str, str]:
    """Public members that minivllm defines: name -> how it is listed."""
    found = {}
    for base in reversed(cls.__mro__):
        if base.__module__.partition(".")[0] != "minivllm":
            continue
        fields = inspect.get_annotations(base)
        for name, value in {**dict.fromkeys(fields), **vars(base)}.items():
            if name.startswith("_"):
                continue
            if isinstance(value, enum.Enum):
                found[name] = f"{name} = {value.value!r}"
            elif isinstance(value, (staticmethod, classmethod)):
                found[name] = f"{name}{signature(value.__func__)}"
            elif inspect.isfunction(value):
                found[name] = f"{name}{signature(value)}"
            else:
                found[name] = name
    return found


class Bare(str):
    """An annotation as it was written, without quotes around it."""

    __repr__ = str.__str__


def signature(thing: Any) -> str:
    """`(a: int, b: str = 'x') -> bool`; a default that is an object by its type alone."""
    try:
        found = inspect.signature(thing)
    except ValueError:  # a TypedDict
        return ""
    parameters = [p.replace(annotation=bare(p.annotation)) for p in found.parameters.values()]
    text = str(
        found.replace(parameters=parameters, return_annotation=bare(found.return_annotation))
    )
    return re.sub(r"<([\w. ]+?)(?: object)? at 0x[0-9a-f]+>", r"<\1>", text)


def bare(annotation: Any) -> Any:
    return Bare(annotation) if isinstance(annotation, str) else annotation


def main() -> int:
    """Write the file, or compare."""
    now = listing()
    if "--check" not in sys.argv[1:]:
        FILE.write_text(now, encoding="utf-8")
        return 0
    before = FILE.read_text(encoding="utf-8")
    difference = difflib.unified_diff(before.splitlines(), now.splitlines(), "listed", "code", n=0)
    print("\n".join(difference))
    return int(before != now)


if __name__ == "__main__":
    sys.exit(main())
