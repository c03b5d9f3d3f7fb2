"""Submissions as course systems export them: who is found, with which files, and what is not."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from toy_course import ToyCourse

from minivllm.grading.handed_in import HandedIn, find_submissions

NAMES = ["04_the_clamp", "05_preemption_loop", "13_never_fits"]
FOUR, FIVE = "04_the_clamp.ipynb", "05_preemption_loop.ipynb"


def put(root: Path, *files: str) -> None:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def packed(root: Path, name: str, *files: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(root / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.writestr(file, file)


class Found:
    """What a search came to: by name the exercises' numbers, and which file it was."""

    def __init__(self, root: Path, *folders: Path) -> None:
        scratch = root.parent / f"{root.name}-scratch"
        scratch.mkdir()
        self.all, self.passed_over = find_submissions(folders or [root], NAMES, scratch)
        self.who = {one.name: " ".join(sorted(n[:2] for n in one.notebooks)) for one in self.all}
        self.how = {one.recognised for one in self.all}

    def one(self, name: str) -> HandedIn:
        return next(one for one in self.all if one.name == name)

    def file(self, name: str, exercise: str = "04_the_clamp") -> str:
        return self.one(name).notebooks[exercise].name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "class"


def test_moodle_s_folders(root: Path) -> None:
    put(root, f"Ada Lovelace_1_assignsubmission_file_/{FOUR}")
    put(
        root,
        f"Alan Turing_2_assignsubmission_file_/{FOUR}",
        "Kurt_3_assignsubmission_onlinetext_/a",
    )
    found = Found(root)
    assert found.who == {
        "Ada Lovelace_1_assignsubmission_file_": "04",
        "Alan Turing_2_assignsubmission_file_": "04",
    }
    assert found.how == {"a folder"}
    (passed_over,) = found.passed_over
    assert "Kurt_3" in passed_over


def test_moodle_s_files_without_folders(root: Path) -> None:
    put(root, f"Ada Lovelace_1_assignsubmission_file_{FOUR}")
    put(root, f"Ada Lovelace_1_assignsubmission_file_{FIVE}")
    put(root, f"Alan_Turing_2_assignsubmission_file_{FOUR}")
    found = Found(root)
    assert found.who == {"Ada Lovelace_1": "04 05", "Alan_Turing_2": "04"}
    assert found.how == {"Moodle's files without folders"}


def test_canvas_s_renamed_files(root: Path) -> None:
    put(root, f"lovelaceada_12_901_{FOUR}", f"lovelaceada_12_902_{FIVE}")
    put(root, f"turingalan_LATE_13_903_{FOUR}", "turingalan_LATE_13_904_notes.ipynb")
    put(root, "godelkurt_14_99_04_the_clamp-9.ipynb", "godelkurt_14_100_04_the_clamp-10.ipynb")
    put(root, f"lovelaceada_15_905_{FOUR}", "readme_1_2_text.txt")
    found = Found(root)
    assert found.who == {
        "lovelaceada_12": "04 05",
        "turingalan_13": "04",
        "godelkurt_14": "04",
        "lovelaceada_15": "04",
    }
    assert found.file("godelkurt_14") == "godelkurt_14_100_04_the_clamp-10.ipynb"
    assert found.how == {"Canvas's renamed files"}
    assert len(found.passed_over) == 2
    assert "godelkurt_14_99" in found.passed_over[0]
    assert "_notes.ipynb: a notebook of no exercise" in found.passed_over[1]


def test_blackboard_s_renamed_files(root: Path) -> None:
    put(root, f"Clamp_ada_attempt_2026-10-01-09-00-00_{FOUR}")
    put(root, f"Clamp_ada_attempt_2026-10-02-08-00-00_{FOUR}", "Clamp_ada_attempt_2026.txt")
    found = Found(root)
    assert found.who == {"ada": "04"}
    assert "2026-10-02" in found.file("ada")


def test_nbgrader_s_tree(root: Path) -> None:
    put(root, f"submitted/ada/clamp/{FOUR}", f"submitted/ada/loop/{FIVE}")
    put(root, f"submitted/alan/clamp/{FOUR}", "submitted/alan/clamp/timestamp.txt")
    put(root, "submitted/eve/clamp/timestamp.txt")
    put(root, f"source/clamp/{FOUR}", f"autograded/ada/clamp/{FOUR}")
    whole = Found(root)
    assert whole.who == {"ada": "04 05", "alan": "04"}
    assert whole.how == {"nbgrader's tree"}
    assert len(whole.passed_over) == 1
    below = Found(root / "submitted")
    assert below.who == whole.who


def test_nbgrader_s_timestamps(root: Path) -> None:
    for time in ("2026-10-01 09:00:00", "2026-10-03 09:00:00", "2026-10-02 09:00:00"):
        put(root, f"ada+clamp+{time}.948203 UTC+x7/{FOUR}")
        put(root / "tree", f"submitted/alan/clamp/{time}/{FOUR}")
    put(root, f"ada+loop+2026-09-01 09:00:00 UTC/{FIVE}")
    shutil.move(root / "tree", root.parent / "tree")
    found = Found(root)
    assert found.who == {"ada": "04 05"}
    assert "2026-10-03" in str(found.one("ada").notebooks["04_the_clamp"])
    assert found.how == {"nbgrader's exchange"}
    assert [line.endswith("an earlier attempt") for line in found.passed_over] == [True, True]
    tree = Found(root.parent / "tree")
    assert "2026-10-03" in str(tree.one("alan").notebooks["04_the_clamp"])


def test_a_repository_inside(root: Path) -> None:
    put(root, f"ada/continuous-batching-main/exercises/{FOUR}")
    put(root, f"ada/continuous-batching-main/.git/{FIVE}", f"ada/continuous-batching-main/x/{FIVE}")
    put(root, f"alan/work/course/{FOUR}", f"alan/work/course/.ipynb_checkpoints/{FOUR}")
    put(root, f"eve/{'deep/' * 8}{FOUR}")
    found = Found(root)
    assert found.who == {"ada": "04", "alan": "04"}
    assert found.how == {"a folder with the notebooks further in"}
    assert "eve" in found.passed_over[0]


def test_two_people_in_one_folder_are_two(root: Path) -> None:
    """Also where their exercises differ: nothing says that they are one."""
    put(
        root,
        f"monday/ada/{FOUR}",
        "monday/ada/01_two_numbers.ipynb",
        f"monday/alan/{FIVE}",
        f"tuesday/eve/{FOUR}",
    )
    put(root, f"s2026123456/a/{FOUR}", f"s2026123456/b/{FOUR}")
    found = Found(root)
    assert found.who == {
        "monday/ada": "04",
        "monday/alan": "05",
        "tuesday": "04",
        "s2026123456/a": "04",
        "s2026123456/b": "04",
    }
    assert not found.passed_over, "an exercise that is not graded now is no stray"


def test_a_folder_for_each_exercise_is_one_submission(root: Path) -> None:
    put(root, f"ada/exercise 04/{FOUR}", f"ada/exercise 05/{FIVE}", f"alan/{FOUR}")
    assert Found(root).who == {"ada": "04 05", "alan": "04"}


def test_copies_that_browsers_and_editors_make(root: Path) -> None:
    put(root, f"ada/{FOUR}", "ada/04_the_clamp (1).ipynb", "ada/04_the_clamp-Copy1.ipynb")
    put(root, "alan/04_the_clamp (2).ipynb", "alan/04_the_clamp (10).ipynb", "alan/notes.txt")
    put(root, f"eve/Copy of {FOUR}", "kurt/04_the_clamp_kurt.ipynb", "x/104_the_clampers.ipynb")
    metadata = {"metadata": {"minivllm": {"exercise": "04_the_clamp"}}, "cells": []}
    put(root, "edsger/Untitled.ipynb", "edsger/list.ipynb")
    (root / "edsger" / "Untitled.ipynb").write_text(json.dumps(metadata))
    (root / "edsger" / "list.ipynb").write_text("[{}]")
    found = Found(root)
    assert found.who == dict.fromkeys(("ada", "alan", "edsger", "eve", "kurt"), "04")
    assert found.file("ada") == FOUR
    assert found.file("alan") == "04_the_clamp (10).ipynb"
    told = "\n".join(found.passed_over)
    for left_out in ("(1)", "-Copy1", "(2)", "list.ipynb", "104_the_clampers"):
        assert f"{left_out}" in told


def test_files_named_for_people(root: Path) -> None:
    """In a DIR, where nothing else tells who is who; in a student's folder they are drafts."""
    put(root, f"Ada - {FOUR}", f"Ada - {FIVE}", "04_the_clamp_alan (1).ipynb", f"Eve, {FIVE}")
    found = Found(root)
    assert found.who == {"Ada": "04 05", "alan": "04", "Eve": "05"}
    assert found.how == {"files named for people"}
    other = root.parent / "other"
    put(other, f"ada/draft_{FOUR}", f"ada/final_{FOUR}", f"alan/{FOUR}")
    put(
        root.parent / "lone",
        "a.ipynb",
        "b.ipynb",
        f"Copy of {FOUR}",
        "05_preemption_loop (2).ipynb",
    )
    assert Found(other).who == {"ada": "04", "alan": "04"}
    lone = Found(root.parent / "lone")
    assert len(lone.passed_over) == 2
    assert lone.who == {"lone": "04 05"}


def test_zip_files(root: Path) -> None:
    packed(root, "ada.zip", f"repo-main/exercises/{FOUR}", "repo-main/setup.py", f"__MACOSX/{FIVE}")
    packed(root, "turingalan_13_903_exercises.zip", FOUR, FIVE)
    packed(root / "Eve_1_assignsubmission_file_", "work.zip", f"exercises/{FOUR}")
    packed(root / "whole", "class.zip", f"kurt/{FOUR}", f"max/{FOUR}")
    put(root, "broken.zip")
    everyone = root.parent / "everyone.zip"
    shutil.move(root / "whole" / "class.zip", everyone)
    found = Found(root)
    assert found.who == {
        "ada": "04",
        "turingalan_13": "04 05",
        "Eve_1_assignsubmission_file_": "04",
    }
    assert any("broken.zip: cannot be unpacked" in line for line in found.passed_over)
    assert not list(root.rglob("*.py"))
    assert Found(root.parent / "other", everyone).who == {"kurt": "04", "max": "04"}


def test_a_zip_file_stays_where_it_is_put(root: Path) -> None:
    """Its members are written below the scratch folder, as regular files, up to a size."""
    root.mkdir()
    with zipfile.ZipFile(root / "eve.zip", "w") as archive:
        for name in (f"../../{FOUR}", f"/tmp/{FOUR}", f"C:/{FOUR}", f"a/../../../{FOUR}"):
            archive.writestr(name, "escaped")
        link = zipfile.ZipInfo(FIVE)
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    found = Found(root)
    assert found.who == {"eve": "05"}
    path = found.one("eve").notebooks["05_preemption_loop"]
    assert not path.is_symlink()
    assert path.read_text() == "/etc/passwd"
    assert not list(root.parent.rglob(FOUR))


def test_links_are_not_followed(root: Path) -> None:
    put(root.parent, f"solutions/{FOUR}", "solutions/work.zip")
    put(root, f"ada/{FIVE}")
    (root / "eve").symlink_to(root.parent / "solutions")
    (root / "ada" / "04_the_clamp (1).ipynb").symlink_to(root.parent / "solutions" / FOUR)
    (root / "link.zip").symlink_to(root.parent / "solutions" / "work.zip")
    found = Found(root)
    assert found.who == {"ada": "05"}
    assert any("eve" in line for line in found.passed_over)


def test_nothing_found_says_where_was_looked(root: Path) -> None:
    put(root, "ada/notes.ipynb")
    with pytest.raises(
        FileNotFoundError, match=r"notes.ipynb: a notebook of no exercise.*class: no"
    ):
        Found(root)


@pytest.mark.slow
def test_an_export_is_graded(tmp_path: Path) -> None:
    """Canvas's and a zip file side by side: points, names, and what was recognised."""
    course = ToyCourse(tmp_path)
    whole = course.notebook("80_values")
    half = course.notebook("80_values", {"80a": "x_a = 1"})
    export = course.submissions
    export.mkdir()
    (export / "lovelaceada_12_901_80_values-1.ipynb").write_text(json.dumps(whole))
    with zipfile.ZipFile(export / "turingalan_13_902_work.zip", "w") as archive:
        archive.writestr("repo/exercises/80_values.ipynb", json.dumps(half))
    (export / "notes.ipynb").write_text("{}")
    report = tmp_path / "report.json"
    args = ["-m", "minivllm.grading", str(export), "--only", "80", "--report", str(report)]
    done = course.run(*args)
    results = json.loads(report.read_text())["submissions"]
    assert [(one["name"], one["points"]) for one in results] == [
        ("lovelaceada_12", 16), ("turingalan_13", 14),
    ]  # fmt: skip
    assert results[0]["recognised"] == "Canvas's renamed files"
    assert "recognised: 1 × Canvas's renamed files" in done.stderr
    assert "notes.ipynb: a notebook of no exercise" in done.stderr
