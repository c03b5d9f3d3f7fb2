"""A notebook keeps its points whatever editor saved it, as long as ids or metadata are left."""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from minivllm.grading.judge import exercises
from minivllm.grading.notebook import Settings
from minivllm.grading.runner import Course, grade_notebook
from minivllm.grading.submission import Submission, read

NAME = "04_the_clamp"
PARTS = [part.id for part in exercises()[NAME].PARTS]
PRISTINE = Course().pristine(NAME)
Notebook = dict[str, Any]


def solved() -> Notebook:
    """The exercise with the solution's answers and words of one's own."""
    notebook = copy.deepcopy(PRISTINE)
    solution = json.loads((Course().root / "solutions" / f"{NAME}.ipynb").read_text())
    answers = {cell["id"]: "".join(cell["source"]) for cell in solution["cells"]}
    for cell in notebook["cells"]:
        if cell["id"].startswith("answer-"):
            cell["source"] = answers[cell["id"]]
        if cell["id"].startswith("text-"):
            cell["source"] = "In my own words."
    return notebook


ANSWERS = {
    cell["id"].removeprefix("answer-"): cell["source"]
    for cell in solved()["cells"]
    if cell["id"].startswith("answer-")
}


def find(notebook: Notebook, cell_id: str) -> tuple[int, dict[str, Any]]:
    return next((i, c) for i, c in enumerate(notebook["cells"]) if c["id"] == cell_id)


def new_id() -> str:
    return uuid.uuid4().hex[:8]


# --- what editors do ------------------------------------------------------------------------------


def jupyterlab(notebook: Notebook) -> None:
    """Sources are lists of lines, outputs and counts are there."""
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"]).splitlines(keepends=True)
        if cell["cell_type"] == "code":
            cell["execution_count"] = 3
            cell["metadata"]["trusted"] = True


def replaced_ids(notebook: Notebook) -> None:
    for cell in notebook["cells"]:
        cell["id"] = new_id()


def format_4_4(notebook: Notebook) -> None:
    for cell in notebook["cells"]:
        del cell["id"]
    notebook["nbformat_minor"] = 4


def upgraded(notebook: Notebook) -> None:
    """Saved as 4.4, and later as 4.5: nbformat makes new ids."""
    format_4_4(notebook)
    newer = nbformat.v4.upgrade(nbformat.from_dict(notebook), from_version=4, from_minor=4)
    notebook.clear()
    notebook.update(json.loads(nbformat.writes(newer)))
    assert all(len(cell["id"]) == 8 for cell in notebook["cells"])


def colab(notebook: Notebook) -> None:
    """Format 4.0, without ids; Colab's own go into the metadata."""
    for cell in notebook["cells"]:
        del cell["id"]
        cell["metadata"] |= {"id": new_id() + "XyZ_", "outputId": new_id()}
    notebook["nbformat_minor"] = 0
    notebook["metadata"]["colab"] = {"provenance": []}


def ids_in_metadata_alone(notebook: Notebook) -> None:
    """Colab again, where it took the ids over and a filter dropped what is not Colab's."""
    for cell in notebook["cells"]:
        cell["metadata"] = {"id": cell.pop("id")}


def vs_code(notebook: Notebook) -> None:
    for cell in notebook["cells"]:
        cell["metadata"]["vscode"] = {"languageId": "python"}


def kaggle(notebook: Notebook) -> None:
    format_4_4(notebook)
    for cell in notebook["cells"]:
        cell["metadata"] |= {"_uuid": str(uuid.uuid4()), "execution": {}, "trusted": True}


def jupytext_as(text_format: str) -> Callable[[Notebook], None]:
    def round_trip(notebook: Notebook) -> None:
        jupytext = pytest.importorskip("jupytext")
        text = jupytext.writes(nbformat.from_dict(notebook), fmt=text_format)
        back = json.loads(nbformat.writes(jupytext.reads(text, fmt=text_format)))
        assert not {c["id"] for c in notebook["cells"]} & {c.get("id") for c in back["cells"]}
        notebook.clear()
        notebook.update(back)

    return round_trip


def pasted_copy(notebook: Notebook) -> None:
    """A copy of an answer cell to try things in, as JupyterLab pastes it: with a new id."""
    for cell_id in ("answer-04b", "check-04c"):
        index, cell = find(notebook, cell_id)
        notebook["cells"].insert(index, {**copy.deepcopy(cell), "id": new_id(), "source": "1 / 0"})


def cut_and_pasted(notebook: Notebook) -> None:
    index, cell = find(notebook, "answer-04b")
    cell["id"] = new_id()
    notebook["cells"].insert(index + 2, notebook["cells"].pop(index))


def stub_beside_the_answer(notebook: Notebook) -> None:
    """The stub was kept in a copy, and then all ids were replaced."""
    index, _ = find(notebook, "answer-04b")
    _, stub = find(PRISTINE, "answer-04b")
    notebook["cells"].insert(index, copy.deepcopy(stub))
    notebook["cells"].append(copy.deepcopy(find(notebook, "answer-04c")[1]))
    changed = copy.deepcopy(find(notebook, "check-04a")[1])
    notebook["cells"].append(changed | {"source": "print('passed')"})
    replaced_ids(notebook)


SAVED: dict[str, Callable[[Notebook], None]] = {
    "JupyterLab": jupyterlab,
    "VS Code": vs_code,
    "replaced ids": replaced_ids,
    "format 4.4": format_4_4,
    "4.4, then 4.5": upgraded,
    "Colab": colab,
    "Colab's ids": ids_in_metadata_alone,
    "Kaggle": kaggle,
    "jupytext py:percent": jupytext_as("py:percent"),
    "jupytext py:light": jupytext_as("py:light"),
    "jupytext md": jupytext_as("md"),
    "jupytext md:myst": jupytext_as("md:myst"),
    "a copy beside its original": pasted_copy,
    "cut and pasted": cut_and_pasted,
    "stubs and doubles, ids replaced": stub_beside_the_answer,
}


def read_again(notebook: Notebook, folder: Path) -> Submission:
    path = folder / f"{NAME}.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return read(path, PRISTINE, PARTS)


@pytest.mark.parametrize("save", SAVED.values(), ids=SAVED)
def test_every_answer_is_found_after(save: Callable[[Notebook], None], tmp_path: Path) -> None:
    notebook = solved()
    save(notebook)
    found = read_again(notebook, tmp_path)
    assert not found.unreadable
    assert not found.faults
    assert {part: text.strip() for part, text in found.answers.items()} == ANSWERS
    assert [text.strip() for text in found.texts.values()] == ["In my own words."]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_hides_nothing(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / f"{NAME}.ipynb"
    path.write_text(json.dumps(solved()).replace("\\n", "\\r\\n"), encoding=encoding)
    found = read(path, PRISTINE, PARTS)
    assert not found.unreadable
    assert not found.faults


def test_replaced_ids_earn_all_points(tmp_path: Path) -> None:
    notebook = solved()
    replaced_ids(notebook)
    path = tmp_path / f"{NAME}.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    result = grade_notebook(Course(), NAME, path, Settings())
    assert (result.points, result.out_of) == (14, 14)
    assert result.notes == ["The cells have lost their ids; answers were read by their metadata."]


BELOW_ZERO = """
def clamp(
    num_tokens, num_computed_tokens, token_budget, long_prefill_token_threshold, max_model_len
):
    caps = [num_tokens - num_computed_tokens, long_prefill_token_threshold or token_budget]
    return min(*caps, token_budget, max_model_len - 1 - num_computed_tokens)
"""


@pytest.mark.parametrize(("mark", "points"), [("b93bfb53f7faad10", 14), (None, 11)])
def test_a_notebook_is_judged_by_the_words_it_was_handed_out_with(
    mark: str | None, points: int, tmp_path: Path
) -> None:
    """04c did not always ask for 0 where a cap leaves nothing; the mark is of that time."""
    notebook = solved()
    replaced_ids(notebook)
    notebook["metadata"]["minivllm"]["stubs"] = mark or PRISTINE["metadata"]["minivllm"]["stubs"]
    for cell in notebook["cells"]:
        about = cell["metadata"].get("minivllm")
        if about and (about["role"], about["part"]) == ("answer", "04c"):
            cell["source"] = BELOW_ZERO
    path = tmp_path / f"{NAME}.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert grade_notebook(Course(), NAME, path, Settings()).points == points


def test_without_ids_and_metadata_it_says_what_is_impossible(tmp_path: Path) -> None:
    notebook = solved()
    for cell in notebook["cells"]:
        cell["id"], cell["metadata"] = new_id(), {"deepnote_cell_type": "code"}
    found = read_again(notebook, tmp_path)
    assert not found.answers
    for word in ("ids", "metadata", "Deepnote", "fresh notebook", "JupyterLab"):
        assert word in found.unreadable


def test_two_answers_and_no_id_are_not_guessed_at(tmp_path: Path) -> None:
    """JupyterLab's split gives both halves new ids: which half is the answer, nobody can say."""
    notebook = solved()
    index, cell = find(notebook, "answer-04b")
    notebook["cells"].insert(index, copy.deepcopy(cell) | {"id": new_id(), "source": "half = 1"})
    cell["id"] = new_id()
    found = read_again(notebook, tmp_path)
    assert list(found.faults) == ["04b"]
    assert "There are 2 cells" in found.faults["04b"]
    assert "join them" in found.faults["04b"]


def test_metadata_cannot_take_the_place_of_an_id(tmp_path: Path) -> None:
    """A cell that has the id of one part and the metadata of another is the former."""
    notebook = solved()
    find(notebook, "answer-04b")[1]["metadata"]["minivllm"]["part"] = "04a"
    find(notebook, "answer-04c")[1]["id"] = "answer-99"
    found = read_again(notebook, tmp_path)
    assert not found.faults
    assert found.answers == ANSWERS
