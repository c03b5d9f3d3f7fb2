"""Which code cells of a notebook run in a page, and what the others need.

A cell is live if it imports the standard library, Plotly and minivllm's rooms that are in the page
(tools/archives.py) and uses no name that a cell which is not live has made.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import minivllm
from tools.archives import ENGINE, FILES, PLOTLY_PACKAGES, ROOMS

NO_PROCESS = ("multiprocessing", "subprocess")
"""Of the standard library, what a page's Python has not."""
IN_PAGE = {"IPython", "traitlets", *PLOTLY_PACKAGES, *sys.stdlib_module_names} - set(NO_PROCESS)
ENGINE_MODULES = {
    f"minivllm.{name.removesuffix('.py').replace('/', '.')}"
    for name in ENGINE
    if not name.endswith("__init__.py")
}
MODULES = (
    {f"minivllm.{room}" for room in ROOMS}
    | ENGINE_MODULES
    | {f"minivllm.{name.removesuffix('.py')}" for name in FILES}
)
NOT_IN_PAGE = {
    "speculative_config": "It has tokens proposed, which the engine of a page does not.",
}
"""Arguments that the page's engine refuses (minivllm/executor/wasm_executor.py)."""

MUTATORS = {"add", "append", "clear", "extend", "insert", "pop", "remove", "setdefault", "update"}


@dataclass(frozen=True)
class Needs:
    """What a page has to know of a cell.

    Attributes:
        reason: what the cell needs that a page has not, as a sentence; "" if it is live.
        setup: of a cell that is not live, the statements that run all the same, such as imports.
    """

    reason: str
    setup: str


def needs(sources: Sequence[str], no_model: str = "") -> list[Needs]:
    """What each cell of a notebook needs, in order.

    Args:
        no_model: why the page has no model, as a sentence; "": it has one.
    """
    elsewhere: set[str] = set()  # names that only exist where the whole notebook runs
    result = []
    for source in sources:
        reason, setup = "", []
        for statement in ast.parse(source).body:
            modules = list(imported(statement))
            why = next(filter(None, map(_missing, modules)), "") or _refused(statement)
            if no_model and not ENGINE_MODULES.isdisjoint(modules):
                why = why or f"It runs a model: {no_model}"
            if not why and (borrowed := sorted(read(statement) & elsewhere)):
                where = "which comes from a cell above that cannot run in a page"
                why = f"It uses {borrowed[0]}, {where}."
            if why:
                elsewhere |= bound(statement) | changed(statement)
                reason = reason or why
            else:
                elsewhere -= bound(statement)
                if not _only_shows(statement):
                    setup.append(ast.get_source_segment(source, statement) or "")
        result.append(Needs(reason, "\n".join(setup) if reason else ""))
    return result


def imported(tree: ast.AST) -> Iterator[str]:
    """The modules that a cell imports, those of `from minivllm import LLM` by their own place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                home = minivllm._HOME.get(alias.name) if module == "minivllm" else None
                is_room = f"{module}.{alias.name}" in MODULES
                yield home or (f"{module}.{alias.name}" if is_room else module)


def _missing(module: str) -> str:
    """Why a page cannot import a module; "" if it can."""
    top = module.partition(".")[0]
    if top in IN_PAGE or module == "minivllm":
        return ""
    if any(module == known or module.startswith(f"{known}.") for known in MODULES):
        return ""
    if top == "minivllm":
        return f"It imports {module}, which needs PyTorch."
    if top in NO_PROCESS:
        return f"It imports {module}: a page cannot start a process."
    return f"It imports {module}."


def _refused(statement: ast.stmt) -> str:
    """Why a page's engine refuses what a cell asks for; "" if it does not."""
    given = (node.arg for node in ast.walk(statement) if isinstance(node, ast.keyword))
    return next((NOT_IN_PAGE[name] for name in given if name in NOT_IN_PAGE), "")


def runs_a_model(source: str) -> bool:
    """Whether a cell imports the engine, and so may load a model."""
    return not ENGINE_MODULES.isdisjoint(imported(ast.parse(source)))


def read(statement: ast.stmt) -> set[str]:
    """The names that a statement reads, but for arguments and the targets of comprehensions."""
    nodes = list(ast.walk(statement))
    loaded = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    own = {node.arg for node in nodes if isinstance(node, ast.arg)}
    for part in nodes:
        if isinstance(part, ast.comprehension):
            own |= {node.id for node in ast.walk(part.target) if isinstance(node, ast.Name)}
    return loaded - own


def _only_shows(statement: ast.stmt) -> bool:
    """Whether nothing below depends on a statement: it prints, draws or asserts."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        called = statement.value.func
        name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
        return name in ("print", "show", "tell")
    return isinstance(statement, ast.Assert)


def changed(statement: ast.stmt) -> set[str]:
    """The names whose objects a statement changes: `x[0] = …`, `x.y = …`, `x.append(…)`."""
    found = set()
    for node in ast.walk(statement):
        target: ast.AST | None = None
        if isinstance(node, (ast.Subscript, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            target = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            target = node.func.value if node.func.attr in MUTATORS else None
        while isinstance(target, (ast.Subscript, ast.Attribute)):
            target = target.value
        if isinstance(target, ast.Name):
            found.add(target.id)
    return found


def bound(statement: ast.stmt) -> set[str]:
    """The names that a statement binds outside of functions, classes and comprehensions."""
    found: set[str] = set()
    todo: list[ast.AST] = [statement]
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(a.asname or a.name).partition(".")[0] for a in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif not isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp)):
            todo += ast.iter_child_nodes(node)
    return found
