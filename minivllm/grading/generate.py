"""Make `exercises/*.ipynb` from `solutions/*.ipynb`, the one source.

    python -m minivllm.grading.generate            writes exercises/
    python -m minivllm.grading.generate --check    exit status 1 if exercises/ differ

In an answer cell of a solution

    ### BEGIN SOLUTION
    cap = min(left, budget)
    ### END SOLUTION
    ### STUB
    # cap = None  # your answer
    ### END STUB

the solution's region is taken out, and the stub's comment signs are. Lines outside both stay. Cells
with the role `model-answer` are left out; outputs are. Graded cells are written by this command.
A notebook in exercises/ whose answer cells have been filled in is not overwritten.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import nbformat

from minivllm.grading.judge import ROOT, exercises

ROLES = ("answer", "graded", "free-text", "model-answer")
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB, END_STUB = "### STUB", "### END STUB"
QUIET = "nbval-ignore-output"  # a graded cell passes or raises; its words are not compared


def stub_of(source: str) -> str:
    """The answer cell that students get, from the solution's.

    Raises:
        ValueError: The markers are missing, unbalanced or in the wrong order.
    """
    lines: list[str] = []
    region, solutions, stubs = "", 0, 0
    for line in source.splitlines():
        mark = line.strip()
        if mark in (BEGIN, STUB):
            if region:
                raise ValueError(f"{mark!r} inside {region!r}")
            region = mark
            solutions += mark == BEGIN
            stubs += mark == STUB
        elif mark in (END, END_STUB):
            if region != (BEGIN if mark == END else STUB):
                raise ValueError(f"{mark!r} without its beginning")
            region = ""
        elif not region:
            lines.append(line)
        elif region == STUB:
            found = re.fullmatch(r"(\s*)#(?: (.*)|)", line)
            if line.strip() and not found:
                raise ValueError(f"a stub's line is a comment, '# …': {line!r}")
            lines.append((found[1] + (found[2] or "")).rstrip() if found else "")
    if region:
        raise ValueError(f"{region!r} has no end")
    if not solutions or not stubs:
        raise ValueError(f"an answer cell needs {BEGIN!r} and {STUB!r}")
    return "\n".join(lines).strip("\n")


def graded_source(part_id: str, answer: str) -> str:
    """The text of a graded cell."""
    return f'from minivllm.grading import check\n\ncheck("{part_id}", {answer})'


def role_of(cell: Any) -> tuple[str, str]:
    """A cell's role and part, ("answer", "04b"); ("", "") for the rest."""
    about = cell.get("metadata", {}).get("minivllm", {})
    return about.get("role", ""), about.get("part", "")


def tidy(notebook: Any, name: str) -> Any:
    """`notebook` with outputs, counts and stray metadata gone and its graded cells written.

    Raises:
        ValueError: Cells are missing, or stand twice, or in the wrong order.
    """
    parts = {part.id: part for part in exercises()[name].PARTS}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "minivllm": {"exercise": name},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: list[str] = []
    for cell in notebook.cells:
        role, part_id = role_of(cell)
        if role and role not in ROLES:
            raise ValueError(f"{name}: no such role: {role!r}")
        cell.metadata = {"minivllm": dict(cell.metadata["minivllm"])} if role else {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.metadata["tags"] = [QUIET]
        if role in ("answer", "graded"):
            if part_id not in parts:
                raise ValueError(f"{name}: {role} cell for a part that is not there: {part_id!r}")
            cell.id = f"{'answer' if role == 'answer' else 'check'}-{part_id}"
            seen.append(cell.id)
            cell.metadata["minivllm"]["points"] = parts[part_id].points
        if role == "graded":
            cell.source = graded_source(part_id, parts[part_id].answer)
            cell.metadata["editable"] = cell.metadata["deletable"] = False
        if role in ("free-text", "model-answer"):
            cell.id = f"{'text' if role == 'free-text' else 'model'}-{part_id}"
    wanted = [f"{kind}-{part_id}" for part_id in parts for kind in ("answer", "check")]
    if seen != wanted:
        raise ValueError(f"{name}: answer and graded cells are {seen}, should be {wanted}")
    ids = [cell.id for cell in notebook.cells]
    if len(set(ids)) != len(ids):
        raise ValueError(f"{name}: a cell id stands twice")
    nbformat.validate(notebook)
    return notebook


def exercise_from(solution: Any, name: str) -> Any:
    """The notebook that students get, from a tidy solution."""
    exercise = nbformat.from_dict(json.loads(json.dumps(solution)))
    exercise.cells = [cell for cell in exercise.cells if role_of(cell)[0] != "model-answer"]
    for cell in exercise.cells:
        if role_of(cell)[0] == "answer":
            try:
                cell.source = stub_of(cell.source)
            except ValueError as error:
                raise ValueError(f"{name}, {cell.id}: {error}") from None
    exercise.metadata["minivllm"]["stubs"] = stubs_mark(exercise)
    return exercise


def stubs_mark(notebook: Any) -> str:
    """A mark of a notebook's answer cells, to tell later whether they have been filled in."""
    stubs = ["".join(c["source"]) for c in notebook["cells"] if role_of(c)[0] == "answer"]
    return hashlib.sha256(json.dumps(stubs).encode()).hexdigest()[:16]


def is_answered(path: Path) -> bool:
    """Whether the notebook at `path` holds answers, which nobody wants to lose."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        return notebook["metadata"]["minivllm"]["stubs"] != stubs_mark(notebook)
    except FileNotFoundError:
        return False
    except (ValueError, LookupError, TypeError):
        return True


def written(notebook: Any) -> str:
    """A notebook's text, the same for the same notebook."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Write the exercises, or with --check say which differ."""
    parser = argparse.ArgumentParser(prog="python -m minivllm.grading.generate")
    parser.add_argument("names", nargs="*", help="04_the_clamp …; all when there are none")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    parser.add_argument("--force", action="store_true", help="overwrite answers")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder of both folders")
    options = parser.parse_args(argv)
    different: list[str] = []
    refused = False
    for name in options.names or exercises():
        source = options.root / "solutions" / f"{name}.ipynb"
        if not source.exists():
            print(f"{source}: missing", file=sys.stderr)
            different.append(name)
            continue
        solution = tidy(nbformat.read(source, as_version=4), name)
        texts = {
            source: written(solution),
            options.root / "exercises" / source.name: written(exercise_from(solution, name)),
        }
        for path, text in texts.items():
            if path.exists() and path.read_text(encoding="utf-8") == text:
                continue
            different.append(name)
            if options.check:
                print(f"{path}: differs from what generate writes", file=sys.stderr)
            elif path.parent.name == "exercises" and is_answered(path) and not options.force:
                print(f"{path}: holds answers, left alone (--force overwrites)", file=sys.stderr)
                refused = True
            else:
                path.write_text(text, encoding="utf-8")
                print(f"wrote {path}")
    return int(refused or (bool(different) and options.check))


if __name__ == "__main__":
    sys.exit(main())
