"""Read a submission: the answers by cell id or metadata, and what was done to the rest.

Nothing in it is trusted, not even that it is JSON.

Which cell is which, after each way of saving (tests/test_saved_notebooks.py tries them):

- JupyterLab, Notebook and VS Code keep ids. A cell that is copied, split or pasted there gets a new
  id and keeps its metadata: beside its original it is ignored, alone it takes its place.
- A notebook without ids (format 4.4, Colab), or with new ones (the upgrade of such a notebook to
  4.5, jupytext from text): the metadata decide, or the id that Colab writes into them.
- An editor or a filter that drops both leaves nothing to find an answer by: that is said."""

from __future__ import annotations

import ast
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_NOTEBOOK = 20_000_000  # bytes; a notebook with every figure in it has fewer
MAX_ANSWER = 100_000  # characters of one cell
KINDS = {
    "answer": "answer",
    "graded": "check",
    "free-text": "text",
}  # role -> what an id begins with
NAMELESS = (
    "has neither the cell ids nor the cell metadata of the exercise, and answers can be found by "
    "nothing else. The editor or filter that saved it dropped both (Deepnote and Kaggle may, and "
    "jupytext with cell_metadata_filter=-all does). Copy the answers into a fresh notebook of the "
    "exercise and save that with JupyterLab, VS Code or Colab"
)


@dataclass
class Submission:
    """What was handed in for one exercise.

    Attributes:
        answers: Source of the answer cell by part id.
        texts: The student's own words by cell id, "text-04".
        faults: Why a part cannot earn points, by part id.
        unreadable: Why nothing could be read; empty if something was.
        notes: What the report should mention, without a loss of points.
        handed_out: The mark of the notebook that was handed out, `metadata.minivllm.stubs`.
    """

    answers: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    unreadable: str = ""
    notes: list[str] = field(default_factory=list)
    handed_out: str = ""


def read(path: Path, pristine: dict[str, Any], part_ids: list[str]) -> Submission:
    """Read `path`, a submitted notebook, beside the pristine one it was made from."""
    try:
        notebook = _notebook(path)
        cells = _cells(notebook)
    except FileNotFoundError:
        return Submission(unreadable="not handed in")
    except OSError as error:
        return Submission(unreadable=f"cannot be read: {error.strerror}")
    except ValueError as error:
        return Submission(unreadable=str(error))
    found = Submission(handed_out=_about(notebook, "stubs"))
    graded = {cell["id"]: _text(cell) for cell in pristine["cells"]}
    names = _names(cells, graded)
    if not any(names):
        return Submission(unreadable=NAMELESS)
    by_id: dict[str, list[dict[str, Any]]] = {}
    for name, cell in zip(names, cells):
        by_id.setdefault(name, []).append(cell)
    for part_id in part_ids:
        fault = _take_answer(found, part_id, by_id) or _look_at_graded(part_id, by_id, graded)
        if fault:
            found.faults[part_id] = fault
    for cell_id in graded:
        if cell_id.startswith("text-") and by_id.get(cell_id):
            found.texts[cell_id] = _text(by_id[cell_id][0])[:MAX_ANSWER]
    if not any(cell.get("id") in graded for cell in cells if isinstance(cell.get("id"), str)):
        found.notes.append("The cells have lost their ids; answers were read by their metadata.")
    order = [cell_id for cell_id in by_id if cell_id in graded]
    if order != [cell_id for cell_id in graded if cell_id in by_id]:
        found.notes.append("The cells stand in another order; answers were read by their ids.")
    return found


def exercise_in(path: Path) -> str:
    """The exercise that a notebook's own metadata name; empty if none, or if it cannot be read."""
    try:
        return _about(_notebook(path), "exercise")
    except (OSError, ValueError):
        return ""


def _about(notebook: Any, key: str) -> str:
    """What a notebook's metadata say of it under "minivllm"; empty if nothing."""
    try:
        value = notebook["metadata"]["minivllm"][key]
    except (LookupError, TypeError):
        return ""
    return value if isinstance(value, str) else ""


def _cells(notebook: Any) -> list[dict[str, Any]]:
    """The cells of a notebook.

    Raises:
        ValueError: It is none.
    """
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise ValueError("is not a notebook: there is no list of cells in it")
    return cells


def _notebook(path: Path) -> Any:
    """What the JSON file at `path` holds.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no regular file, too large, or not JSON; says which.
    """
    if path.is_symlink():
        raise ValueError("is a symbolic link: hand in the file itself")
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a regular file")
        if status.st_size > MAX_NOTEBOOK:
            raise ValueError(
                f"is larger than {MAX_NOTEBOOK:,} bytes: clear its outputs and hand it in again"
            )
        data = file.read(MAX_NOTEBOOK + 1)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not valid JSON: {error!s:.200}") from None


def _names(cells: list[dict[str, Any]], handed_out: dict[str, str]) -> list[str]:
    """For each cell which of the cells that were handed out it is; an empty string for others.

    A cell whose own id fits is that one. For an id that fits no cell the metadata decide; of
    several an answer beats the untouched stub, and the untouched graded cell a changed one.
    """
    ids, roles = [], []
    for cell in cells:
        metadata = cell.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        both = (cell.get("id"), metadata.get("id"))  # the second is Colab's
        ids.append(next((i for i in both if isinstance(i, str) and i in handed_out), ""))
        about = metadata.get("minivllm")
        role, part = (about.get("role"), about.get("part")) if isinstance(about, dict) else ("", "")
        name = f"{KINDS[role]}-{part}" if isinstance(role, str) and role in KINDS else ""
        roles.append(name if name in handed_out else "")
    names = [i or (role if role not in ids else "") for i, role in zip(ids, roles)]
    for name in set(names) - {"", *ids}:
        texts = {
            index: _text(cells[index]).strip()
            for index in range(len(cells))
            if names[index] == name
        }
        untouched = [index for index, text in texts.items() if text == handed_out[name].strip()]
        best = untouched if name.startswith("check-") else [i for i in texts if i not in untouched]
        kept = {texts[index]: index for index in best or texts}
        for index in texts.keys() - kept.values():
            names[index] = ""
    return names


def _text(cell: dict[str, Any]) -> str:
    source = cell.get("source", "")
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    # A lone half of a surrogate pair cannot be written to any file.
    return source.encode("utf-8", "replace").decode() if isinstance(source, str) else ""


def _take_answer(found: Submission, part_id: str, by_id: dict[str, list[dict[str, Any]]]) -> str:
    """Take the answer cell of a part; what is wrong with it, or an empty string."""
    cells = by_id.get(f"answer-{part_id}", [])
    if not cells:
        return f"The answer cell (id answer-{part_id}) is missing."
    if len(cells) > 1:
        return _several(cells, f"answer-{part_id}")
    if cells[0].get("cell_type") != "code":
        return f"The answer cell (id answer-{part_id}) is not a code cell any more."
    source = _text(cells[0])
    if len(source) > MAX_ANSWER:
        return f"The answer cell has more than {MAX_ANSWER:,} characters."
    found.answers[part_id] = source
    return ""


def _several(cells: list[dict[str, Any]], cell_id: str) -> str:
    return (
        f"There are {len(cells)} cells with the id or the metadata of {cell_id}: join them in one, "
        f"or keep one."
    )


def _look_at_graded(
    part_id: str, by_id: dict[str, list[dict[str, Any]]], graded: dict[str, str]
) -> str:
    """What was done to the graded cell of a part, or an empty string."""
    cells = by_id.get(f"check-{part_id}", [])
    if not cells:
        return f"The graded cell (id check-{part_id}) was deleted: put it back."
    if len(cells) > 1:
        return _several(cells, f"check-{part_id}")
    if cells[0].get("cell_type") != "code" or not _same_code(
        _text(cells[0]), graded[f"check-{part_id}"]
    ):
        return f"The graded cell (id check-{part_id}) was changed: put it back as it was."
    return ""


def _same_code(one: str, other: str) -> bool:
    """Whether two texts are the same program, whatever their blanks and comments."""
    if one.strip() == other.strip():
        return True
    try:
        return ast.dump(ast.parse(one)) == ast.dump(ast.parse(other))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
