"""A course of two small exercises, as a copy of the package, to grade bad submissions against.

Exercise 90 has value parts (`x_a` should be 7 times 13), exercise 91 has code parts (`f_a` should
add two numbers). Nothing here depends on the real exercises.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
LETTERS = "abcdefgh"

VALUES = """
from minivllm.grading.part import Failed, Part, want_int

TITLE = "Toy values"


def check(value: object) -> None:
    if want_int(value, "x") != 7 * 13:
        raise Failed("x should be seven times thirteen.", workload={"a": 7, "b": 13})


PARTS = tuple(
    Part(f"{number}{c}", f"value {c}", 2, f"x_{c}", "value", check, "01-two-numbers-racing")
    for c in "LETTERS"
)
"""

CODES = """
import random

from minivllm.grading.part import Failed, Part
from minivllm.grading.sandbox import Limits, Student

TITLE = "Toy functions"


def check(student: Student) -> None:
    cases = [[random.Random(i).randrange(10**6), i] for i in range(20)]
    got = student.call(
        "minivllm.grading.exercises.drivers.toy:run", limits=Limits(seconds=2), cases=cases
    )
    if got != [a + b for a, b in cases]:
        raise Failed("f should add its two numbers.", workload=cases[0])


PARTS = tuple(
    Part(f"{number}{c}", f"function {c}", 3, f"f_{c}", "code", check, "01-two-numbers-racing")
    for c in "LETTERS"
)
"""

DRIVER = """
def run(f, cases):
    return [f(a, b) for a, b in cases]
"""


class ToyCourse:
    """The course in `root`, and ways to hand something in and have it graded."""

    def __init__(self, root: Path) -> None:
        self.root = root / "course"
        self.submissions = root / "submissions"
        package = self.root / "minivllm"
        skip = shutil.ignore_patterns("__pycache__", "e[0-9x]*.py", "d[0-9x]*.py", "data")
        for name in ("grading", "core"):
            shutil.copytree(ROOT / "minivllm" / name, package / name, ignore=skip)
        shutil.copy(ROOT / "minivllm" / "__init__.py", package)
        checks = package / "grading" / "exercises"
        (checks / "drivers" / "toy.py").write_text(DRIVER)
        for folder in ("exercises", "solutions"):
            (self.root / folder).mkdir()
        # Enough notebooks that each attack has a cell of its own: 80-84 values, 85-89 functions.
        self.values = [f"{n}_values" for n in range(80, 88)]
        self.codes = [f"{n}_functions" for n in range(90, 93)]
        for name in [*self.values, *self.codes]:
            text = VALUES if name in self.values else CODES
            text = f"number = '{name[:2]}'\n" + text.replace("LETTERS", LETTERS)
            (checks / f"e{name}.py").write_text(text)
            nbformat.write(self.solution(name), self.root / "solutions" / f"{name}.ipynb")
        self.run("-m", "minivllm.grading.generate")

    def right(self, part: str) -> str:
        """The right answer's source."""
        letter = part[2]
        if part[:2] < "90":
            return f"x_{letter} = 7 * 13"
        return f"def f_{letter}(a, b):\n    return a + b"

    def wrong(self, part: str) -> str:
        """A wrong answer's source."""
        return self.right(part).replace("*", "+").replace("a + b", "a - b")

    def solution(self, name: str) -> Any:
        """The solution's notebook."""
        cells = [new_markdown_cell("# Toy", id="title")]
        for letter in LETTERS:
            part = name[:2] + letter
            bound = f"x_{letter}" if name in self.values else f"f_{letter}"
            source = f"### BEGIN SOLUTION\n{self.right(part)}\n### END SOLUTION\n"
            source += f"### STUB\n# {bound} = None\n### END STUB"
            for role, text in (("answer", source), ("graded", "")):
                about = {"minivllm": {"role": role, "part": part}}
                cells.append(new_code_cell(text, metadata=about))
        about = {"minivllm": {"role": "free-text", "part": name[:2]}}
        cells.append(new_markdown_cell("*Write here.*", metadata=about))
        about = {"minivllm": {"role": "model-answer", "part": name[:2]}}
        cells.append(new_markdown_cell("Because it **is** so.", metadata=about))
        return new_notebook(cells=cells)

    def notebook(self, name: str, answers: dict[str, str] | None = None) -> dict[str, Any]:
        """The exercise as handed out, with right answers, and `answers` by part."""
        notebook = json.loads((self.root / "exercises" / f"{name}.ipynb").read_text())
        for cell in notebook["cells"]:
            kind, _, part = cell["id"].partition("-")
            if kind == "answer":
                cell["source"] = (answers or {}).get(part, self.right(part))
        return notebook

    def hand_in(self, who: str, name: str, notebook: object) -> Path:
        """Put a notebook (or any text) into a submission's folder."""
        folder = self.submissions / who
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.ipynb"
        path.write_text(notebook if isinstance(notebook, str) else json.dumps(notebook))
        return path

    def run(
        self, *args: str, env: dict[str, str] | None = None, code: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run this course's Python with `args`, expecting the exit status `code`."""
        done = subprocess.run(
            [sys.executable, *args],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root), **(env or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def grade(self, *folders: Path, options: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
        """Grade; by submission and part what the JSON report says."""
        report = self.root / "report.json"
        args = ["-m", "minivllm.grading", *map(str, folders), "--report", str(report), "-n", "3"]
        self.run(*args, "--cell-timeout", "4", *options, code=None)
        return {
            result["name"]: {
                part["id"]: part for exercise in result["exercises"] for part in exercise["parts"]
            }
            for result in json.loads(report.read_text())["submissions"]
        }
