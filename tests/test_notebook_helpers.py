"""A tool that a notebook hands to its reader does what it is asked, not one fixed thing."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import minivllm.grading.exercises.e11_frequent_preemptions as e11

SOLUTIONS = Path(__file__).resolve().parents[1] / "solutions"


def source(notebook: str, cell_id: str) -> str:
    """The text of one cell."""
    cells = json.loads((SOLUTIONS / notebook).read_text(encoding="utf-8"))["cells"]
    (cell,) = [cell for cell in cells if cell["id"] == cell_id]
    return "".join(cell["source"])


def test_show_of_exercise_11_turns_the_knob_that_it_is_given() -> None:
    asked: list[dict[str, Any]] = []

    def compare(**knobs: Any) -> dict[str, tuple[float, float]]:
        asked.append(knobs)
        return dict.fromkeys(e11.METRICS, (1.0, 1.0 + len(str(knobs))))

    scope: dict[str, Any] = {"compare": compare}
    exec(source("11_frequent_preemptions.ipynb", "try-11b-run"), scope)
    told = []
    for knobs in ({"max_num_seqs": 48}, {"tensor_parallel_size": 2}):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            scope["show"](**knobs)
        told.append(out.getvalue())
    assert asked == [{"max_num_seqs": 48}, {"tensor_parallel_size": 2}]
    assert told[0] != told[1]
