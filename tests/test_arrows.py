"""Which room of the package may import which: as data, held to the code and to CONTRIBUTING.

An import counts wherever it stands, inside a function too, and so does a module's name given to
`import_module`. One under `TYPE_CHECKING` brings in a name and runs nothing: it counts as an arrow
between rooms, but not in a circle of modules inside one.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import minivllm

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minivllm"

ALLOWED: dict[str, set[str]] = {
    "command": {"incident", "grading", "sim", "runs", "extras"},
    "incident": {"sim", "viz", "runs", "core", "text_file", "extras"},
    "grading": {"sim", "runs", "core"},
    "sim": {"viz", "engine", "runs", "core", "text_file", "extras"},
    "stepper": {"runs", "core", "extras"},
    "viz": {"runs", "core", "extras"},
    "engine": {"models", "tokenizer", "runs", "core"},
    "models": {"tokenizer", "core", "text_file"},
    "tokenizer": {"text_file"},
    "runs": {"core", "text_file"},
    "core": set(),
    "text_file": set(),
    "extras": set(),
}
"""Room -> the rooms that it may import. A new arrow is a decision: here and in CONTRIBUTING."""

MODULES = {
    "llm": "engine", "engine": "engine", "runner": "engine", "sampler": "engine",
    "sizes": "engine", "outputs": "engine", "logits_processors": "engine", "logprobs": "engine",
    "inputs": "engine", "spec_decode": "engine", "executor": "engine",
    "logprobs_tensors": "engine", "bad_words": "engine", "noise": "engine",
    "tokenizer": "tokenizer", "tokenizer_files": "tokenizer", "byte_level_bpe": "tokenizer",
    "detokenizer": "tokenizer",
    "chat": "tokenizer", "conformance": "runs", "__main__": "command", "vllm": "runs",
}  # fmt: skip
"""Modules that lie beside the packages -> their room. `minivllm` itself is the door: what it offers
counts as an import of where that lives."""

TYPES_ONLY = {("viz", "stepper")}
"""Arrows that may carry names for annotations and nothing else."""

TO_MEND: dict[str | tuple[str, str], str] = {}
"""Arrows, and a module of each circle, that are there and must go. One that is gone is an error
here too, so that the list only gets shorter."""


class Import(NamedTuple):
    importer: str
    imported: str
    only_types: bool


def modules() -> dict[str, Path]:
    """Every module of the package, "minivllm.core.scheduler", and its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, source: str, known: Iterable[str]) -> Iterator[Import]:
    """What of ours a module imports; `known` are our modules."""
    tree = ast.parse(source)
    for_types: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for_types |= {inner for child in node.body for inner in ast.walk(child)}
    for node in ast.walk(tree):
        wanted: list[str] = []
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}:{node.lineno}: write the import out, from minivllm"
            wanted = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            wanted = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        for full in wanted:
            if full.partition(".")[0] != "minivllm":
                continue
            module = full if full in known else full.rpartition(".")[0] or full
            if module == "minivllm":
                module = minivllm._HOME.get(full.rpartition(".")[2], "")
            if module and module != name:
                yield Import(name, module, node in for_types)


@cache
def all_imports() -> list[Import]:
    known = modules()
    return [
        found
        for name, path in known.items()
        if name != "minivllm"
        for found in imports_of(name, path.read_text(encoding="utf-8"), known)
    ]


def room(module: str) -> str:
    name = module.split(".")[1]
    return MODULES.get(name, name)


def circles(imports: Iterable[Import]) -> set[str]:
    """A module of each circle: it is taken out, and we look again, until there is none."""
    graph: dict[str, set[str]] = {}
    for found in imports:
        if not found.only_types:
            graph.setdefault(found.importer, set()).add(found.imported)
    met = set()
    while circle := _a_circle(graph):
        met.add(min(circle))
        del graph[min(circle)]
    return met


def _a_circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_module_has_a_room() -> None:
    rooms = {room(name) for name in modules() if name != "minivllm"}
    assert rooms == set(ALLOWED), "a new package needs a line in ALLOWED and in CONTRIBUTING"


def test_no_arrow_but_the_allowed() -> None:
    forbidden: dict[tuple[str, str], list[str]] = {}
    for found in all_imports():
        arrow = room(found.importer), room(found.imported)
        if arrow[0] == arrow[1] or arrow[1] in ALLOWED[arrow[0]]:
            continue
        if not (found.only_types and arrow in TYPES_ONLY):
            forbidden.setdefault(arrow, []).append(f"{found.importer} -> {found.imported}")
    known = {arrow for arrow in TO_MEND if isinstance(arrow, tuple)}
    new = {arrow: lines for arrow, lines in forbidden.items() if arrow not in known}
    assert not new, "move what is needed down to a room that both may import"
    assert known <= forbidden.keys(), f"mended, take out of TO_MEND: {known - forbidden.keys()}"


def test_no_circle_of_modules() -> None:
    inside = [found for found in all_imports() if room(found.importer) == room(found.imported)]
    met = {name.removeprefix("minivllm.") for name in circles(inside)}
    assert met == {name for name in TO_MEND if isinstance(name, str)}


def test_the_allowed_arrows_make_no_circle() -> None:
    graph = {name: set(below) for name, below in ALLOWED.items()}
    for above, below in TYPES_ONLY:
        graph[above].add(below)
    TopologicalSorter(graph).prepare()


def test_only_the_selector_imports_an_attention() -> None:
    package = "minivllm.models.attention"
    backends = {f"{package}.{name}" for name in ("sdpa", "cpu", "triton", "batch_invariant")}
    assert backends <= modules().keys()
    importers = {found.importer for found in all_imports() if found.imported in backends}
    assert importers == {f"{package}.selector"}


def test_only_the_selector_imports_an_executor() -> None:
    package = "minivllm.executor"
    executors = {name for name in modules() if name.startswith(package) and "_executor" in name}
    importers = {found.importer for found in all_imports() if found.imported in executors}
    assert executors
    assert importers == {f"{package}.selector"}


def test_the_engine_imports_nothing_that_a_page_lacks() -> None:
    """All but the torch executor: checked where every such import fails."""
    lacks = "".join(f"sys.modules[{name!r}] = None\n" for name in ("torch", "numpy", "tokenizers"))
    code = f"import sys\n{lacks}import minivllm.llm, minivllm.sizes, minivllm.byte_level_bpe"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_drawing_in_contributing_is_the_data() -> None:
    """Each room's row names what it may import, each in the column that the first row gives it."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"```text\n( +.*?)```", text, re.DOTALL)
    assert block, "no drawing"
    head, *rows = block[1].splitlines()
    columns = {match[0]: match.start() for match in re.finditer(r"\w+", head)}
    drawn = {}
    for row in rows:
        above, _, targets = row.partition("→")
        names = {match[0]: match.start() for match in re.finditer(r"\w+", row)}
        assert all(columns[name] == names[name] for name in targets.split())
        drawn[above.strip()] = set(targets.split())
    assert drawn == ALLOWED
    order = list(drawn)
    for above, targets in drawn.items():
        assert all(order.index(name) > order.index(above) for name in targets), "points up"


@pytest.mark.parametrize(
    ("source", "imported", "only_types"),
    [
        ("def f():\n    from minivllm.sim import sweep", "minivllm.sim.sweep", False),
        ("from minivllm.core.request import Request", "minivllm.core.request", False),
        ("import minivllm.viz.theme as t", "minivllm.viz.theme", False),
        ("if typing.TYPE_CHECKING:\n    from minivllm.engine import LLMEngine",
         "minivllm.engine", True),
        ("from minivllm import LLM", "minivllm.llm", False),
        ("importlib.import_module('minivllm.grading.judge')", "minivllm.grading.judge", False),
    ],
)  # fmt: skip
def test_an_import_is_seen_wherever_it_hides(source, imported, only_types) -> None:
    assert list(imports_of("minivllm.core.x", source, modules())) == [
        Import("minivllm.core.x", imported, only_types)
    ]


def test_a_version_and_others_modules_are_no_arrow() -> None:
    source = "import ast, minivllmish\nfrom minivllm import __version__\nfrom torch import Tensor"
    assert not list(imports_of("minivllm.core.x", source, modules()))


def test_a_circle_is_seen_and_one_of_types_is_not() -> None:
    line = [Import("a", "b", False), Import("b", "c", False)]
    assert not circles([*line, Import("c", "a", True)])
    assert circles([*line, Import("c", "a", False)]) == {"a"}
    twice = [Import("x", "y", False), Import("y", "x", False)]
    assert circles([*line, Import("c", "a", False), *twice]) == {"a", "x"}
