"""The view's modules as one text: anywidget takes no more, and a page on a disk loads no module.

The modules run as they are where a server serves them. Joined, they share one scope.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from posixpath import dirname, join, normpath

STATIC = Path(__file__).parent / "static"

# A module says all that it shares in these forms, each at the start of a line.
_FROM = re.compile(r'^(import|export) \{([\w$, ]+)\} from "(\.[^"]+)";\n', re.MULTILINE)
_OWN = re.compile(r"^(export )?(?:const|let|class|(?:async )?function) ([\w$]+)", re.MULTILINE)
_OTHER = re.compile(r"^(?:import|export(?! default)|var|(?:const|let)(?! [\w$])).*", re.MULTILINE)


def source(name: str) -> str:
    """A module as it is written; `name` is its path below `static`."""
    return (STATIC / name).read_text(encoding="utf-8")


def joined(entry: str, read: Callable[[str], str] = source) -> str:
    """`entry` after all that it imports, each module once; only `export default` stays exported.

    Raises:
        ValueError: a name is not exported where it is imported from, two modules declare it, a
            module imports itself by way of others, or says what it shares in another form.
        OSError: there is no such module.
    """
    texts: dict[str, str] = {}
    exports: dict[str, set[str]] = {}
    homes: dict[str, str] = {}

    def add(name: str) -> None:
        if name in texts:
            return
        if name in exports:
            raise ValueError(f"{name} imports itself, by way of others")
        text, exports[name] = read(name), set()
        for verb, names, path in _FROM.findall(text):
            other = normpath(join(dirname(name), path))
            wanted = set(names.replace(",", " ").split())
            add(other)
            if missing := sorted(wanted - exports[other]):
                raise ValueError(f"{name} wants {missing[0]} from {other}, which has none")
            exports[name] |= wanted if verb == "export" else set()
        text = _FROM.sub("", text)
        for shared, own in _OWN.findall(text):
            if homes.setdefault(own, name) != name:
                raise ValueError(f"{own} is declared in {homes[own]} and in {name}")
            exports[name] |= {own} if shared else set()
        texts[name] = re.sub(r"^export (?!default|\{)", "", text, flags=re.MULTILINE)
        if form := _OTHER.search(texts[name]):
            raise ValueError(f"{name}: cannot join {form[0]!r}")

    add(normpath(entry))
    return "\n".join(texts.values())
