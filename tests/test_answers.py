"""Right answers, differently written, pass; wrong ones fail with words that point at the mistake.

`tests/answers/e04.py` holds RIGHT: {part id: {name: source}} and
WRONG: {part id: {misconception: (source, pattern that the words must match)}}.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from minivllm.grading.judge import Verdict, exercises, find_part, judge_here, payload_of
from minivllm.grading.part import Failed

ANSWERS = Path(__file__).parent / "answers"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"answers_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES = {path.stem: load(path) for path in sorted(ANSWERS.glob("e[0-9x][0-9].py"))}
RIGHT = [
    pytest.param(part, source, id=f"{part}-{name}")
    for module in FILES.values()
    for part, sources in module.RIGHT.items()
    for name, source in sources.items()
]
WRONG = [
    pytest.param(part, source, pattern, id=f"{part}-{name}")
    for module in FILES.values()
    for part, sources in module.WRONG.items()
    for name, (source, pattern) in sources.items()
]


def verdict(part_id: str, source: str) -> Verdict:
    part = find_part(part_id)
    try:
        payload = payload_of(part, source)
    except Failed as failed:
        return Verdict(part.id, False, 0, part.points, failed.says)
    return judge_here(part, payload)


@pytest.mark.parametrize(("part", "source"), RIGHT)
def test_right_answer_passes(part: str, source: str) -> None:
    told = verdict(part, source)
    assert told.passed, told.text()


@pytest.mark.parametrize(("part", "source", "pattern"), WRONG)
def test_wrong_answer_gets_words_for_its_misconception(
    part: str, source: str, pattern: str
) -> None:
    told = verdict(part, source)
    assert not told.passed
    assert not told.broken, told.text()
    assert re.search(pattern, told.text(), re.IGNORECASE | re.DOTALL), told.text()


@pytest.mark.parametrize("name", exercises())
def test_every_exercise_has_three_right_and_six_wrong_answers(name: str) -> None:
    module = FILES[f"e{name[:2]}"]
    for part in exercises()[name].PARTS:
        assert len(module.RIGHT[part.id]) >= 1, f"{part.id} has no right answer"
        assert module.WRONG[part.id], f"{part.id} has no wrong answer"
    assert max(len(sources) for sources in module.RIGHT.values()) >= 3
    assert sum(len(sources) for sources in module.WRONG.values()) >= 6


@pytest.mark.parametrize("name", exercises())
@pytest.mark.parametrize("payload", [None, "", [], {}, 0, 1, -1, "x", True, [None], {"": 0}, 1e308])
def test_no_constant_passes_and_none_breaks_a_check(name: str, payload: object) -> None:
    for part in exercises()[name].PARTS:
        told = judge_here(part, payload)
        assert not told.passed
        assert not told.broken, told.text()
