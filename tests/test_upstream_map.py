"""The upstream map names every public part of `minivllm.core` once, and each link's line fits."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "book" / "upstream-map.md"
TABLE = json.loads((ROOT / "tools" / "upstream_lines.json").read_text())
OURS_AS_A_WHOLE: set[str] = set()

ROW = re.compile(r"^\| `([\w.]+)` \| (.*?) \|$", re.MULTILINE)
LINK = re.compile(
    r"\[[^\]]*\]\(\S+?/blob/v0\.22\.1/(\S+?)#L(\d+)\)(, inside)?(?:,? `([\w.]+)`)?(?:\. .*)?"
)


def rows() -> list[tuple[str, str]]:
    return ROW.findall(PAGE.read_text())


def public_names() -> set[str]:
    """Classes, methods and functions of the core, as `Class.method`; dunders apart."""
    names = set()
    for file in (ROOT / "minivllm" / "core").glob("*.py"):
        if file.stem in OURS_AS_A_WHOLE:
            continue
        for node in ast.parse(file.read_text()).body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
                continue
            names.add(node.name)
            if isinstance(node, ast.ClassDef):
                names |= {
                    f"{node.name}.{method.name}"
                    for method in node.body
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
                }
    return names


def inherited(name: str) -> bool:
    """A queue's own version of what `RequestQueue` names: the map has the interface once."""
    kind, _, method = name.partition(".")
    return kind in ("FCFSRequestQueue", "PriorityRequestQueue") and bool(method)


def test_every_public_part_of_the_core_is_on_the_map_once():
    named = [ours for ours, _ in rows()]
    assert len(named) == len(set(named))
    missing = {name for name in public_names() - set(named) if not inherited(name)}
    assert not missing, f"book/upstream-map.md lacks {sorted(missing)}"


def test_the_map_names_nothing_that_is_gone():
    every = set()
    for file in (ROOT / "minivllm" / "core").glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                every |= {
                    f"{node.name}.{method.name}"
                    for method in node.body
                    if isinstance(method, ast.FunctionDef)
                }
    stale = {ours for ours, _ in rows()} - every - public_names()
    assert not stale, f"book/upstream-map.md names {sorted(stale)}, which the core has not"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_line_holds_the_symbol_that_the_map_gives_it(row):
    ours, theirs = row
    if theirs == "ours" or theirs.startswith("ours: "):
        return
    found = LINK.fullmatch(theirs)
    assert found, theirs
    path, line, inside, symbol = found.groups()
    if not inside:
        text = TABLE[path][line]
        assert re.match(rf"(class|def) {(symbol or ours).split('.')[-1]}\b", text), text
