"""Which cells run in a page, and the session that runs them: here in CPython."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "book" / "live"))

from live_needs import needs  # noqa: E402
from minivllm_book import is_notebook  # noqa: E402
from minivllm_cells import MAX_PRINTED, Cells  # noqa: E402
from minivllm_live import notebook_cells  # noqa: E402

from tools.archives import archive_of, page_files, plotly_files  # noqa: E402


def reasons(*cells: str) -> list[str]:
    """The reason of each cell."""
    return [found.reason for found in needs(cells)]


@pytest.mark.parametrize(
    "cell",
    [
        "import json, random\nfrom minivllm.core import Scheduler",
        "import plotly.graph_objects as go\nfrom minivllm.viz import offline\noffline.install()",
        "from minivllm.sim import SimulationConfig",
        "from minivllm import SamplingParams",
        "from minivllm import LLM, LLMEngine\nengine = LLMEngine(record=True)",
        "from minivllm.stepper import SchedulerStepper, record",
    ],
)
def test_what_a_page_has_is_live(cell: str) -> None:
    assert reasons(cell) == [""]


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("import torch", "imports torch"),
        ("def f():\n    import numpy as np", "imports numpy"),
        ("import minivllm.runner", "minivllm.runner, which needs PyTorch"),
        ("from minivllm import LLM\nLLM(speculative_config={})", "has tokens proposed"),
        ("from minivllm.models.loader import load_model", "needs PyTorch"),
        ("import subprocess", "cannot start a process"),
    ],
)
def test_what_a_page_has_not(cell: str, words: str) -> None:
    assert words in reasons(cell)[0]


def test_without_a_model_its_cells_say_so() -> None:
    cells = ["from minivllm import LLM\nx = LLM()", "print(x)", "y = 1"]
    first, second, third = needs(cells, "this site was built without one.")
    assert first.reason == "It runs a model: this site was built without one."
    assert "uses x" in second.reason
    assert third.reason == ""


def test_names_of_such_cells_are_followed_and_the_rest_is_set_up() -> None:
    first, second, third, fourth = needs(
        [
            "import torch\nimport time\nrows = []\nfor _ in 'ab':\n    rows.append(torch.ones(1))",
            "total = sum(rows)",
            "print(total)",
            "total = time.time()\nprint([torch for torch in (1, 2)])",
        ]
    )
    assert first.setup == "import time\nrows = []"
    assert "uses rows" in second.reason
    assert "uses total" in third.reason
    assert fourth.reason == ""


def run(*codes: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Results and outputs of cells, one after the other."""
    outputs: list[dict[str, Any]] = []
    cells = Cells(outputs.append)
    return [cells.run(code) for code in codes], outputs


def test_a_session_shows_what_a_notebook_shows() -> None:
    results, outputs = run("x = 2\nprint(x)\nx + 1", "x;", "None", "_")
    assert [row["ok"] for row in results] == [True] * 4
    assert "".join(row["text"] for row in outputs if "text" in row) == "2\n"
    assert [row["data"] for row in outputs if "data" in row] == [
        {"text/plain": "3"},
        {"text/plain": "3"},
    ]


def test_a_traceback_begins_in_the_cell_and_the_session_goes_on() -> None:
    results, outputs = run("def f():\n    return 1 / 0\ny = 1", "f()", "y")
    assert [row["ok"] for row in results] == [True, False, True]
    told = "\n".join(outputs[0]["traceback"])
    assert "minivllm_cells" not in told
    assert "Cell [1], line 2, in f" in told
    assert "return 1 / 0" in told


def test_too_much_print_is_cut() -> None:
    _, outputs = run(f"print('x' * {MAX_PRINTED + 10})")
    text = "".join(row["text"] for row in outputs)
    assert len(text) < MAX_PRINTED + 100
    assert "11 more characters are not shown" in text


def test_completion_reads_no_property() -> None:
    cells = Cells(lambda _: None)
    cells.run("class A:\n    @property\n    def bad(self): raise SystemExit\n    good = 1\na = A()")
    assert [o["label"] for o in cells.complete("x = a.")["options"]] == ["bad", "good"]
    assert cells.complete("a.bad.") == {"start": 6, "options": []}
    assert cells.complete("impo")["options"] == []
    assert cells.complete("sor")["options"][0] == {"label": "sorted", "type": "function"}


def test_all_that_live_cells_import_is_in_the_archive(tmp_path: Path) -> None:
    """The import statements of every live cell, where there is no minivllm but the page's."""
    lines = set()
    paths = [*(ROOT / "book").glob("*.md"), *(ROOT / "exercises").glob("*.ipynb")]
    for path in filter(is_notebook, paths):
        for row in notebook_cells(path):
            if row["type"] != "code":
                continue
            source = row["setup"] if row["needs"] else row["source"]
            nodes = ast.walk(ast.parse(source))
            lines |= {ast.unparse(n) for n in nodes if isinstance(n, (ast.Import, ast.ImportFrom))}
    for name, data in page_files().items():
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    no_torch = "import sys\nsys.modules['torch'] = sys.modules['numpy'] = None\n"
    code = f"{no_torch}sys.path.insert(0, {str(tmp_path)!r})\n" + "\n".join(sorted(lines))
    code += f"\nimport minivllm\nassert minivllm.__file__.startswith({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(lines) > 50


def test_the_same_files_give_the_same_archive() -> None:
    files = page_files()
    assert archive_of(files) == archive_of(dict(reversed(files.items())))
    assert {"minivllm/core/scheduler.py", "minivllm_page.py", "IPython/lib/pretty.py"} <= set(files)
    assert not [name for name in files if name.startswith(("minivllm/runner", "solutions"))]
    assert not [name for name in files if "torch_executor" in name]
    assert "plotly/validators/_validators.json" in plotly_files()
