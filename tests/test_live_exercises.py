"""Exercises in the page: the same verdicts, word for word, as the grader's on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import few

from minivllm.grading.judge import exercises, find_part, is_extra, judge_here, payload_of
from minivllm.grading.part import Failed
from tests.stepper_pages import press_run_all
from tests.test_answers import RIGHT, WRONG

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parents[1]
NAMES = list(exercises())
POINTS = {name: sum(part.points for part in module.PARTS) for name, module in exercises().items()}

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("site")]

ANSWER = """(answers) => {
  for (const cell of window.minivllmCells.cells)
    if (cell.index in answers) cell.editor.text = answers[cell.index];
}"""
MARKS = "() => JSON.parse(localStorage.getItem('minivllm-marks') ?? '{}')"


def notebook(folder: str, name: str) -> list[dict[str, Any]]:
    """The cells of a notebook."""
    return json.loads((ROOT / folder / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def solved(name: str) -> dict[int, dict[str, str]]:
    """A reader's edits that solve an exercise, as the page keeps them."""
    by_id = {cell["id"]: "".join(cell["source"]) for cell in notebook("solutions", name)}
    return {
        index: {"original": "".join(cell["source"]), "source": by_id[cell["id"]]}
        for index, cell in enumerate(notebook("exercises", name))
        if cell["metadata"].get("minivllm", {}).get("role") == "answer"
    }


def open_exercise(page: Page, site_url: str, name: str, edits: object) -> None:
    """Go to an exercise that has been edited like this."""
    page.goto(f"{site_url}exercises/{name}.html")
    keep = "([key, text]) => localStorage.setItem(key, text)"
    page.evaluate(keep, [f"minivllm-cells:exercises/{name}", json.dumps(edits)])
    page.reload()
    page.wait_for_function("() => window.minivllmCells")


def run_all(page: Page) -> dict[str, dict[str, int]]:
    """Run the page from top to bottom; the marks that it keeps."""
    press_run_all(page)
    return page.evaluate(MARKS)


@pytest.mark.parametrize("name", few(NAMES, ("05",)))
def test_the_solution_has_all_points_and_the_stub_none(
    page: Page, site_url: str, name: str
) -> None:
    of_this = {part.id: part.points for part in exercises()[name].PARTS}
    open_exercise(page, site_url, name, {})
    page.locator(".mv-code-page [data-act=start]").click()
    shipped = run_all(page)
    assert {part: mark["points"] for part, mark in shipped.items()} == dict.fromkeys(of_this, 0)
    answers = {str(index): edit["source"] for index, edit in solved(name).items()}
    page.evaluate(ANSWER, answers)
    marks = run_all(page)
    assert {part: mark["points"] for part, mark in marks.items()} == of_this
    states = page.evaluate(
        "() => window.minivllmCells.cells.map((cell) => cell.root.dataset.state)"
    )
    assert set(states) == {"done"}


def test_the_points_of_all_exercises() -> None:
    """What the test above adds up to, the extra ones beside it."""
    assert sum(points for name, points in POINTS.items() if not is_extra(name)) == 143
    assert sum(is_extra(name) for name in POINTS) == 3


VERDICTS = """async (questions) => {
  window.minivllmTestJudge ??= new window.minivllmJudge();
  const verdicts = [];
  for (const question of questions) verdicts.push(await window.minivllmTestJudge.verdict(question));
  return verdicts;
}"""
NEEDS_312 = {"08c-floats to the last digit"}
"""`sum` of floats rounds once since Python 3.12, as in the page: the verdict names another run."""
ANSWERS = [(case.values[0], case.values[1], case.id) for case in [*RIGHT, *WRONG]]


@pytest.mark.parametrize("exercise", few([name[:2] for name in NAMES], ("01",)))
def test_every_known_answer_gets_the_same_words_in_the_page(
    page: Page, site_url: str, exercise: str
) -> None:
    """Right and wrong answers of tests/answers, in the page's judge and in this machine's."""
    cases = [case for case in ANSWERS if case[0].startswith(exercise)]
    questions, expected, ids = [], [], []
    for part_id, source, id_ in cases:
        if id_ in NEEDS_312 and sys.version_info < (3, 12):
            continue
        part = find_part(part_id)
        try:
            payload = payload_of(part, source)
        except Failed:
            continue  # refused before any judge sees it
        questions.append(json.dumps({"part": part_id, "payload": payload}))
        text = judge_here(part, json.loads(json.dumps(payload))).text()
        expected.append(text.replace(str(ROOT), "/home/pyodide"))  # where the page has minivllm
        ids.append(id_)
    page.set_default_timeout(600_000)
    page.goto(f"{site_url}exercises/{next(name for name in NAMES if name[:2] == exercise)}.html")
    page.wait_for_function("() => window.minivllmJudge")
    told = [verdict["text"] for verdict in page.evaluate(VERDICTS, questions)]
    differ = {id_: (here, there) for id_, here, there in zip(ids, expected, told) if here != there}
    assert not differ, json.dumps(differ, indent=1, ensure_ascii=False)
    assert len(told) > 5


def test_an_answer_that_loops_is_stopped_and_the_session_goes_on(page: Page, site_url: str) -> None:
    loops = "def preemption_loop(running, num_free_blocks):\n    while True:\n        pass"
    edits = {
        index: {**edit, "source": loops}
        for index, edit in solved("05_preemption_loop").items()
        if "def preemption_loop" in edit["original"]
    }
    open_exercise(page, site_url, "05_preemption_loop", edits)
    graded = page.locator(".cell.mv-code", has_text='check("05c"')
    graded.locator("[data-act=run]").click()
    graded.and_(page.locator("[data-state=failed]")).wait_for(timeout=180_000)
    words = graded.locator(".cell_output").inner_text()
    assert "did not finish within 10 s: is there a loop without end?" in words
    assert "05c not yet: 0 of 4 points." in words
    assert page.evaluate("() => window.minivllmPython.isRunning")


def test_the_download_is_a_submission_and_words_are_in_it(
    page: Page, site_url: str, tmp_path: Path
) -> None:
    name = "05_preemption_loop"
    open_exercise(page, site_url, name, solved(name))
    page.locator(".mv-free-text textarea").fill("The last of RUNNING yields.")
    with page.expect_download() as download:
        page.locator(".mv-code-page [data-act=download]").click()
    assert download.value.suggested_filename == f"{name}.ipynb"
    download.value.save_as(tmp_path / f"{name}.ipynb")
    assert "The last of RUNNING yields." in (tmp_path / f"{name}.ipynb").read_text()
    command = [sys.executable, "-m", "minivllm.grading", str(tmp_path), "--only", name[:2]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "16 of 16 points" in done.stdout, done.stdout + done.stderr


def test_progress_shows_what_the_browser_keeps(page: Page, site_url: str) -> None:
    page.goto(f"{site_url}book/progress.html")
    page.locator(".mv-progress table").wait_for()
    assert page.locator(".mv-progress tfoot").inner_text().split()[-3:] == ["0", "of", "143"]
    marks = {"05a": {"points": 4, "outOf": 4}, "05b": {"points": 0, "outOf": 4}}
    page.evaluate("(text) => localStorage.setItem('minivllm-marks', text)", json.dumps(marks))
    page.reload()
    assert "1 of 4 (05a)" in page.locator(".mv-progress tbody").inner_text()
    assert page.locator(".mv-progress").get_attribute("data-points") == "4"
