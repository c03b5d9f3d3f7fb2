"""Read a submission: the answers by cell id, and what was done to the rest. Nothing in it is
trusted, not even that it is JSON."""

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


@dataclass
class Submission:
    """What was handed in for one exercise.

    Attributes:
        answers: Source of the answer cell by part id.
        texts: The student's own words by cell id, "text-04".
        faults: Why a part cannot earn points, by part id.
        unreadable: Why nothing could be read; empty if something was.
        notes: What the report should mention, without a loss of points.
    """

    answers: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    unreadable: str = ""
    notes: list[str] = field(default_factory=list)


def read(path: Path, pristine: dict[str, Any], part_ids: list[str]) -> Submission:
    """Read `path`, a submitted notebook, beside the pristine one it was made from."""
    try:
        cells = _cells(path)
    except FileNotFoundError:
        return Submission(unreadable="not handed in")
    except OSError as error:
        return Submission(unreadable=f"cannot be read: {error.strerror}")
    except ValueError as error:
        return Submission(unreadable=str(error))
    found = Submission()
    by_id: dict[str, list[dict[str, Any]]] = {}
    for cell in cells:
        by_id.setdefault(_id_of(cell), []).append(cell)
    graded = {cell["id"]: _text(cell) for cell in pristine["cells"]}
    for part_id in part_ids:
        fault = _take_answer(found, part_id, by_id) or _look_at_graded(part_id, by_id, graded)
        if fault:
            found.faults[part_id] = fault
    for cell_id in graded:
        if cell_id.startswith("text-") and by_id.get(cell_id):
            found.texts[cell_id] = _text(by_id[cell_id][0])[:MAX_ANSWER]
    order = [cell_id for cell_id in by_id if cell_id in graded]
    if order != [cell_id for cell_id in graded if cell_id in by_id]:
        found.notes.append("The cells stand in another order; answers were read by their ids.")
    return found


def _cells(path: Path) -> list[dict[str, Any]]:
    """The cells of the notebook at `path`.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no regular file, too large, or not a notebook; says which.
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
        notebook = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not valid JSON: {error!s:.200}") from None
    cells = notebook.get("cells") if isinstance(notebook, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) for cell in cells):
        raise ValueError("is not a notebook: there is no list of cells in it")
    return cells


def _id_of(cell: dict[str, Any]) -> str:
    """A cell's id; by its metadata where a tool has dropped or replaced the id."""
    metadata = cell.get("metadata")
    about = metadata.get("minivllm") if isinstance(metadata, dict) else None
    cell_id = cell.get("id")
    if isinstance(cell_id, str) and cell_id.startswith(("answer-", "check-", "text-")):
        return cell_id
    if isinstance(about, dict) and "id" not in cell:
        kind = {"answer": "answer", "graded": "check", "free-text": "text"}
        role, part = about.get("role"), about.get("part")
        if isinstance(role, str) and role in kind and isinstance(part, str):
            return f"{kind[role]}-{part}"
    return cell_id if isinstance(cell_id, str) else ""


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
        return f"There are {len(cells)} cells with the id answer-{part_id}: keep one."
    if cells[0].get("cell_type") != "code":
        return f"The answer cell (id answer-{part_id}) is not a code cell any more."
    source = _text(cells[0])
    if len(source) > MAX_ANSWER:
        return f"The answer cell has more than {MAX_ANSWER:,} characters."
    found.answers[part_id] = source
    return ""


def _look_at_graded(
    part_id: str, by_id: dict[str, list[dict[str, Any]]], graded: dict[str, str]
) -> str:
    """What was done to the graded cell of a part, or an empty string."""
    cells = by_id.get(f"check-{part_id}", [])
    if not cells:
        return f"The graded cell (id check-{part_id}) was deleted: put it back."
    if len(cells) > 1:
        return f"There are {len(cells)} cells with the id check-{part_id}: keep one."
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
