"""Evaluates calls of an exercise's helpers as its reader has them; see test_notebook_helpers.py.

    python notebook_helpers_child.py NOTEBOOK < a JSON list of expressions

prints the helpers' names and, for each expression, its value and what it printed. A process of its
own, since some notebooks take parts of the core out.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import re
import sys
from types import ModuleType
from typing import Any

MARKED = re.compile(r"^### (BEGIN SOLUTION|STUB)$.*?^### END (SOLUTION|STUB)$", re.DOTALL | re.M)
NAMED = re.compile(r"`from (minivllm\.grading[\w.]*) import ([\w, ]+)`")
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


def text(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def handed_out(cells: list[dict[str, Any]]) -> list[ast.stmt]:
    """What the cells import and define outside of answers, and what their prose says to import."""
    found: list[ast.stmt] = []
    for cell in cells:
        if cell["cell_type"] == "markdown":
            lines = [f"from {module} import {names}" for module, names in NAMED.findall(text(cell))]
            found += ast.parse("\n".join(lines)).body
        elif not cell["id"].startswith("check-"):
            body = ast.parse(MARKED.sub("", text(cell))).body
            found += [node for node in body if isinstance(node, DEFINITIONS)]
            # `without_swap()`: what the cells after it run on.
            found += [n for n in body if re.fullmatch(r"without_\w+\(\)", ast.unparse(n))]
    return found


def is_handed(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").startswith("minivllm.grading.exercises")
    return isinstance(node, (ast.FunctionDef, ast.ClassDef))


def takes_arguments(helper: Any) -> bool:
    if isinstance(helper, ModuleType):
        return True
    return callable(helper) and bool(inspect.signature(helper).parameters)


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        cells = json.load(file)["cells"]
    scope: dict[str, Any] = {"__name__": "notebook"}
    helpers: set[str] = set()
    for node in handed_out(cells):
        before = dict(scope)
        exec(compile(ast.Module([node], []), "notebook", "exec"), scope)
        new = {name for name, value in scope.items() if before.get(name, scope) is not value}
        if is_handed(node):
            helpers |= {name for name in new if takes_arguments(scope[name])}

    def answer(part: str, name: str) -> Any:
        """What the solution's answer cell of a part binds to `name`."""
        (source,) = [text(cell) for cell in cells if cell["id"] == f"answer-{part}"]
        own = dict(scope)
        exec(source, own)
        return own[name]

    def load(*rows: tuple[str, int, int, int], **knobs: Any) -> dict[str, Any]:
        """A workload of (id, arrival step, prompt tokens, output tokens)."""
        keys = ("request_id", "arrival_step", "num_prompt_tokens", "max_tokens")
        config = {"num_gpu_blocks": 64, "block_size": 4, "enable_prefix_caching": False, **knobs}
        return {"config": config, "requests": [dict(zip(keys, row)) for row in rows]}

    class Nobody:
        """Watches a run and keeps nothing."""

        def on_step(self, scheduler: Any, output: Any) -> None:
            pass

    own = {"answer": answer, "load": load, "Nobody": Nobody}
    results = []
    for expression in json.load(sys.stdin):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            value = eval(expression, scope | own)
        results.append({"value": value, "said": out.getvalue()})
    print(json.dumps({"helpers": sorted(helpers), "results": results}, default=str))


if __name__ == "__main__":
    main()
