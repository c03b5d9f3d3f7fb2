"""The grader: exercises made from solutions, the judge, the reports, the templates for CI.

What a submission may try against it is in test_grading_attacks.py.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_course import LETTERS, ToyCourse

from minivllm.grading import report
from minivllm.grading.check import NotYet, payload_for
from minivllm.grading.generate import main as generate
from minivllm.grading.generate import stub_of
from minivllm.grading.handed_in import find_submissions
from minivllm.grading.judge import exercises, parts, plain
from minivllm.grading.notebook import clean, shown_names
from minivllm.grading.part import (
    Failed,
    want_bool,
    want_dict,
    want_int,
    want_list,
    want_number,
    want_str,
)
from minivllm.grading.runner import ExerciseResult, PartResult, SubmissionResult

ROOT = Path(__file__).resolve().parents[1]
CI = ROOT / "exercises" / "ci"


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> ToyCourse:
    return ToyCourse(tmp_path_factory.mktemp("toy"))


# ------------------------------------------------------------------ the real exercises


def test_exercises_are_what_the_solutions_make() -> None:
    """`make exercises` has been run since a solution was changed."""
    assert generate(["--check"]) == 0


@pytest.mark.parametrize("name", exercises())
def test_an_exercise_has_all_that_a_student_needs(name: str) -> None:
    exercise = json.loads((ROOT / "exercises" / f"{name}.ipynb").read_text())
    solution = json.loads((ROOT / "solutions" / f"{name}.ipynb").read_text())
    text = "\n".join("".join(cell["source"]) for cell in exercise["cells"])
    for part in exercises()[name].PARTS:
        assert (ROOT / "book" / f"{part.chapter}.md").exists(), f"{part.id}: {part.chapter}"
        assert part.points > 0
    count = len(exercises()[name].PARTS)
    assert text.count("<details>") >= 3 * count, "three hints for each part"
    assert "### " not in text.replace("#### ", "").replace("\n### ", "") or "SOLUTION" not in text
    ids = {cell["id"] for cell in exercise["cells"]}
    texts = {i for i in ids if i.startswith("text-")}
    models = {c["id"] for c in solution["cells"] if c["id"].startswith("model-")}
    assert texts, "a place for the student's own words"
    assert {i.removeprefix("text-") for i in texts} == {i.removeprefix("model-") for i in models}
    assert not ids & models, "the model answer is not handed out"
    rubric = "\n".join("".join(c["source"]) for c in solution["cells"] if c["id"] in models)
    assert "Rubric" in rubric
    assert re.search(r"\w+\.py:\d+|\.py#L\d+", rubric), "the rubric cites a line of vLLM"


@pytest.mark.slow
def test_solutions_score_all_and_exercises_as_shipped_nothing(tmp_path: Path) -> None:
    """Also: the checks' own words are all that goes wrong in the exercises as shipped."""
    out = tmp_path / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "minivllm.grading", "solutions", "exercises", "-n", "2"),
            *("--report", out, "--html", tmp_path / "report.html"),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    solved, shipped = json.loads(out.read_text())["submissions"]
    assert solved["points"] == solved["out_of"] == 143, done.stdout
    extra = sum(p.points for p in parts().values()) - 143
    assert sum(e["points"] for e in solved["extras"]) == extra > 0, done.stdout
    assert sum(e["points"] for e in [*shipped["exercises"], *shipped["extras"]]) == 0
    shipped["exercises"] += shipped["extras"]
    for exercise in [*solved["exercises"], *solved["extras"], *shipped["exercises"]]:
        assert not exercise["notes"], f"{exercise['name']}: {exercise['notes']}"
    for exercise in shipped["exercises"]:
        for part in exercise["parts"]:
            assert not part["broken"], part
            assert not re.match("The (answer|graded) cell", part["says"]), part
    page = (tmp_path / "report.html").read_text()
    assert page.count("Model answer and rubric") >= 2 * len(exercises())


ENDS_WHILE_LOOKED_AT = """
import sys, time
from minivllm.grading import notebook
from minivllm.grading.__main__ import main

has_ended, post, told = notebook._has_ended, notebook._post, []

def posted(answer, part_id, *where):
    told.append(part_id)
    post(answer, part_id, *where)

def looked_at(pid):
    said = has_ended(pid)
    while "80h" in told and not has_ended(pid):  # the last cell, and nbval, end just now
        time.sleep(0.01)
    told.clear()
    return said

notebook._post, notebook._has_ended = posted, looked_at
sys.exit(main())
"""


def test_a_kernel_that_ends_between_two_looks_has_not_ended_its_own_process(course: ToyCourse):
    """nbval ends the kernel after the last cell; on a busy machine the runner is late to hear."""
    course.hand_in("quick", "80_values", course.notebook("80_values"))
    report = course.root / "quick.json"
    course.run(
        *("-c", ENDS_WHILE_LOOKED_AT, str(course.submissions / "quick"), "--report", str(report)),
        code=None,
    )
    graded = json.loads(report.read_text())["submissions"][0]["exercises"]
    values = next(e for e in graded if e["name"] == "80_values")
    assert [p["points"] for p in values["parts"]] == [2] * len(LETTERS), values


# ------------------------------------------------------------------ making exercises

WORDS = st.text(alphabet="abc xyz=()_", max_size=12).map(lambda s: f"v{s}".rstrip())


@given(
    st.lists(st.tuples(st.sampled_from(["plain", "solution", "stub"]), WORDS), max_size=12),
    st.sampled_from(["", "    "]),
)
def test_a_stub_keeps_all_but_the_solution(lines: list[tuple[str, str]], indent: str) -> None:
    source, expected = ["### BEGIN SOLUTION", "secret", "### END SOLUTION"], []
    source += ["### STUB", "# given", "### END STUB"]
    expected.append("given")
    for kind, text in lines:
        if kind == "plain":
            source.append(indent + text)
            expected.append(indent + text)
        elif kind == "solution":
            source += [
                f"{indent}### BEGIN SOLUTION",
                f"{indent}secret",
                f"{indent}### END SOLUTION",
            ]
        else:
            source += [f"{indent}### STUB", f"{indent}# {text}", f"{indent}### END STUB"]
            expected.append(indent + text)
    assert stub_of("\n".join(source)).splitlines() == expected


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("x = 1", "needs"),
        ("### BEGIN SOLUTION\n### END SOLUTION", "needs"),
        ("### BEGIN SOLUTION\n### STUB\n### END STUB", "inside"),
        ("### END SOLUTION", "without its beginning"),
        ("### BEGIN SOLUTION\nx\n### END STUB", "without its beginning"),
        ("### BEGIN SOLUTION\n### END SOLUTION\n### STUB\nx\n### END STUB", "a comment"),
        ("### BEGIN SOLUTION\n### END SOLUTION\n### STUB\n# x", "no end"),
    ],
)
def test_unbalanced_markers_are_refused(source: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        stub_of(source)


def test_answers_are_not_overwritten(course: ToyCourse) -> None:
    path = course.root / "exercises" / "80_values.ipynb"
    before = path.read_text()
    path.write_text(json.dumps(course.notebook("80_values")))
    answered = path.read_text()
    done = course.run("-m", "minivllm.grading.generate", code=1)
    assert "holds answers" in done.stderr
    assert path.read_text() == answered
    course.run("-m", "minivllm.grading.generate", "--check", code=1)
    course.run("-m", "minivllm.grading.generate", "--force")
    assert path.read_text() == before
    course.run("-m", "minivllm.grading.generate", "--check")
    assert "secret" not in before
    assert "7 * 13" not in before


# ------------------------------------------------------------------ answers, the judge

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(JSON)
def test_hostile_values_get_words_and_no_error(value: Any) -> None:
    readers = [
        lambda: want_int(value, "x", low=0, high=9),
        lambda: want_number(value, "x", low=0),
        lambda: want_str(value, "x", choices=("a", "b")),
        lambda: want_bool(value, "x"),
        lambda: want_list(value, "x", length=2),
        lambda: want_dict(value, "x", keys=("a",), optional=("b",)),
    ]
    assert all(words_of(read).startswith("x ") for read in readers)


def words_of(read: Callable[[], object]) -> str:
    """What `read` says is wrong; "x is right" if nothing is."""
    try:
        read()
    except Failed as failed:
        return failed.says
    return "x is right"


def test_want_int_is_strict() -> None:
    assert want_int(3.0, "x") == 3
    for wrong in (True, 3.5, "3", None, float("nan"), float("inf"), [], [3]):
        with pytest.raises(Failed):
            want_int(wrong, "x")
    with pytest.raises(Failed, match="from 0 to 9"):
        want_int(10, "x", low=0, high=9)


@given(JSON)
def test_plain_is_json_and_changes_nothing_that_is(value: Any) -> None:
    text = json.dumps(plain(value))
    assert text == json.dumps(value)


def test_a_code_answer_is_the_text_of_its_cell() -> None:
    with pytest.raises(NotYet, match="define it in the answer cell"):
        payload_for(type("Made", (), {}))
    assert payload_for({"a": (1, 2)}) == {"a": (1, 2)}


def test_nothing_around_the_judge_changes_it(course: ToyCourse, tmp_path: Path) -> None:
    """Neither the environment nor the folder it is started in."""
    for name in ("minivllm", "json", "sitecustomize", "usercustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'trapped')!r}, 'w')")
    code = (
        f"import sys; sys.path.insert(0, {str(course.root)!r}); import os; "
        "from minivllm.grading.judge import judge; "
        f"os.chdir({str(tmp_path)!r}); "
        "os.environ.update(PYTHONPATH='.', PYTHONSTARTUP='json.py', PYTHONINSPECT='1'); "
        "print(judge('80a', 91).passed, judge('80a', 90).passed,"
        " judge('90a', 'def f_a(a, b): return a + b').passed,"
        " judge('90a', 'def f_a(a, b): return a * b').passed)"
    )
    done = course.run("-I", "-c", code)
    assert done.stdout.split() == ["True", "False", "True", "False"]
    assert not (tmp_path / "trapped").exists()


def test_in_place_with_nbval(course: ToyCourse) -> None:
    """`pytest --nbval`, as `make grade` runs it: answers pass, the rest fails with the words."""
    answers = {"80b": "x_b = 1", "90a": "class f_a:\n    pass", "90b": "f_b = None"}
    folder = course.root / "in-place"
    folder.mkdir()
    for name in ("80_values", "90_functions"):
        (folder / f"{name}.ipynb").write_text(json.dumps(course.notebook(name, answers)))
    done = course.run(
        *("-m", "pytest", "--nbval", "-p", "no:cacheprovider", "-q", "in-place"), code=1
    )
    count = 4 * len(LETTERS)
    assert f"3 failed, {count - 3} passed" in done.stdout, done.stdout
    assert "x should be seven times thirteen." in done.stdout
    assert "90b not yet: 0 of 3 points." in done.stdout
    assert "Read: book/01-two-numbers-racing.md" in done.stdout
    assert "check.py" not in done.stdout, "no traceback of the grader's"


def test_a_notebook_sees_of_its_checks_what_it_imports(course: ToyCourse) -> None:
    text = "from minivllm.grading.exercises.e80_values import want_int, nothing  # and no more"
    assert shown_names({"cells": [{"source": text}]}) == {"e80_values": ["want_int", "nothing"]}
    code = (
        "from minivllm.grading.kernel import show_only; show_only({'e80_values': ['want_int']}); "
        "from minivllm.grading.exercises.e80_values import want_int; "
        "import minivllm.grading.exercises.e80_values as checks; "
        "from minivllm.grading.exercises import e80_values as again; "
        "print(want_int(3, 'x'), hasattr(checks, 'PARTS'), hasattr(again, 'PARTS'))"
    )
    assert course.run("-c", code).stdout.split() == ["3", "False", "False"]


# ------------------------------------------------------------------ submissions and exit status


def test_submissions_side_by_side(course: ToyCourse, tmp_path: Path) -> None:
    """Names, points, gradebook and exit status of three submissions, one of them in exercises/."""
    half = {f"80{c}": "x = 1" for c in LETTERS[:5]}
    course.submissions = tmp_path / "class"
    course.hand_in("ada", "80_values", course.notebook("80_values"))
    course.hand_in("bob/exercises", "80_values", course.notebook("80_values", half))
    text = course.notebook("80_values", {f"80{c}": "" for c in LETTERS})
    text["cells"][-1]["source"] = ["<script>alert(1)</script> It is ", "so **because**."]
    course.hand_in("=cmd()", "80_values", text)
    (course.submissions / "link").symlink_to(course.root / "solutions")
    (course.submissions / "notes").mkdir()
    args = ["-m", "minivllm.grading", str(course.submissions), "--only", "80"]
    done = course.run(
        *args, "--csv", str(tmp_path / "g.csv"), "--html", str(tmp_path / "r.html"), code=1
    )
    rows = list(csv.reader(io.StringIO((tmp_path / "g.csv").read_text())))
    assert rows[0] == ["submission", "80_values (16)", "total (16)", "percent", "passed"]
    assert [row[0] for row in rows[1:]] == ["'=cmd()", "ada", "bob"]
    assert [row[2] for row in rows[1:]] == ["0", "16", "6"]
    assert "ada: 16 of 16 points (100 %), passed" in done.stdout
    page = (tmp_path / "r.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; It is so **because**." in page
    assert "<strong>is</strong>" in page, "the model answer is beside it"
    assert "<script" not in page
    course.run(*args[:2], str(course.submissions / "ada"), "--only", "80", code=0)


@pytest.mark.parametrize(("mark", "passed"), [(0, True), (37.5, True), (37.6, False), (100, False)])
def test_pass_mark(mark: float, passed: bool) -> None:
    results = [PartResult("80a", "", 6, 6, True), PartResult("80b", "", 0, 10, False)]
    exercise = ExerciseResult("80_values", "", "", results)
    assert SubmissionResult("bob", "", [exercise], mark).passed == passed


def test_nothing_to_grade(course: ToyCourse, tmp_path: Path) -> None:
    assert "no notebook" in course.run("-m", "minivllm.grading", str(tmp_path), code=2).stderr
    linked = tmp_path / "linked"
    linked.symlink_to(course.root / "solutions")
    assert "symbolic link" in course.run("-m", "minivllm.grading", str(linked), code=2).stderr
    done = course.run("-m", "minivllm.grading", "solutions", "--only", "99", code=2)
    assert "no exercise is named 99" in done.stderr
    with pytest.raises(FileNotFoundError, match="not a folder"):
        find_submissions([tmp_path / "nothing"], ["80_values"], tmp_path)


def test_names_of_submissions(tmp_path: Path) -> None:
    for place in ("ada", "bob/exercises", "class/eve", "class/ada/exercises", "class/none"):
        (tmp_path / place).mkdir(parents=True)
        if "none" not in place:
            (tmp_path / place / "80_values.ipynb").touch()
    (tmp_path / "class" / "link").symlink_to(tmp_path / "ada")
    (tmp_path / "class" / "file.txt").touch()
    folders = [tmp_path / name for name in ("ada", "bob", "class")]
    found, passed_over = find_submissions(folders, ["80_values"], tmp_path)
    names = [one.name for one in found]
    both = [str(tmp_path / "ada"), str(tmp_path / "class" / "ada" / "exercises")]
    assert names == [both[0], "bob", both[1], "eve"]
    assert len(passed_over) == 2
    (bob,), _ = find_submissions([tmp_path / "bob" / "exercises"], ["80_values"], tmp_path)
    assert bob.name == "bob"


# ------------------------------------------------------------------ reports

NASTY = (
    "\x1b[31m::error file=x::y\n##[group]z\n::add-mask::q\r\x00 | <img src=x> `a` %0A "
    "[l](javascript:1) \ud7ff\ufffe"
)


@pytest.fixture
def nasty() -> list[SubmissionResult]:
    part = PartResult("04a", "Caps", 0, 3, False, NASTY, "05-chunked", {"a": NASTY})
    exercise = ExerciseResult(
        "04_the_clamp", "Clamp", "a,b:c/04.ipynb", [part], {"text-04": NASTY}, [NASTY], 1.0
    )
    return [SubmissionResult(NASTY, "folder", [exercise], 60.0)]


def test_student_text_stays_text(nasty: list[SubmissionResult], tmp_path: Path) -> None:
    """No command to a CI, no markup, no control character comes through."""
    text = report.as_text(nasty)
    assert not re.search(r"^\s*(::|##\[)", text, re.MULTILINE)
    assert "::" not in text
    assert "\x1b" not in text + report.step_summary(nasty)
    root = ElementTree.fromstring(report.as_junit(nasty))
    assert root.find(".//failure") is not None
    errors = report.github_errors(nasty, tmp_path)
    assert len(errors) == 1
    assert "\n" not in errors[0]
    assert errors[0].startswith("::error file=")
    summary = report.step_summary(nasty)
    assert "<img" not in summary
    assert "](" not in summary
    rows = [line for line in summary.splitlines() if line.startswith("| 04")]
    assert len(rows) == 1
    assert rows[0].count("|") == 5
    assert json.loads(report.as_json(nasty, 60))["submissions"][0]["points"] == 0
    told = json.loads(base64.b64decode(report.classroom(nasty)))
    assert (told["max_score"], told["tests"][0]["score"], told["status"]) == (3, 0, "fail")


def test_an_extra_exercise_is_shown_and_in_no_total(tmp_path: Path) -> None:
    counted = ExerciseResult("04_the_clamp", "", "", [PartResult("04a", "", 3, 3, True)])
    part = PartResult("x1a", "Toy", 0, 5, False, "Not yet.")
    extra = ExerciseResult("x1_toy", "", "", [part, PartResult("x1b", "", 2, 2, True)])
    ada = SubmissionResult("ada", "", [counted], 60.0, extras=[extra])
    results = [ada, SubmissionResult("bob", "", [counted], 60.0)]
    assert (ada.points, ada.out_of, ada.passed) == (3, 3, True)
    head, *rows = csv.reader(io.StringIO(report.as_csv(results)))
    assert head[1:] == ["04_the_clamp (3)", "total (3)", "percent", "passed", "x1_toy (7)"]
    assert [row[-1] for row in rows] == ["2", ""]
    for text in (report.as_text(results), report.step_summary(results)):
        assert text.count("x1a") == 1
    assert "x1_toy" in report.as_html(results, report.Course(tmp_path))
    assert json.loads(report.as_json(results, 60))["submissions"][0]["extras"][0]["out_of"] == 7
    assert (
        "x1a" not in report.as_junit(results) + base64.b64decode(report.classroom(results)).decode()
    )
    assert not report.github_errors(results, tmp_path)


def test_annotations_name_files_as_the_repository_does(tmp_path: Path) -> None:
    (tmp_path / "submission" / ".git").mkdir(parents=True)
    file = tmp_path / "submission" / "exercises" / "04.ipynb"
    assert report.in_repository(file, tmp_path) == "exercises/04.ipynb"
    assert report.in_repository(tmp_path / "x" / "04.ipynb", tmp_path) == "x/04.ipynb"


# ------------------------------------------------------------------ templates for CI


def test_ci_requirements_are_the_course_s() -> None:
    def pins(path: Path) -> set[str]:
        lines = path.read_text().splitlines()
        return {line for line in lines if "==" in line and not line.startswith("#")}

    assert pins(CI / "requirements.txt") <= pins(ROOT / "requirements.txt")


@pytest.fixture
def pushed(course: ToyCourse, tmp_path: Path) -> Path:
    """A workspace in which a student has pushed: submission/exercises, with one part wrong, and a
    minivllm of the student's own beside them, which must not be used. The course has two exercises
    and lies in course/."""
    own = tmp_path / "course"
    shutil.copytree(course.root, own, ignore=shutil.ignore_patterns("__pycache__"))
    names = [course.values[0], course.codes[0]]
    for name in {*course.values, *course.codes} - set(names):
        (own / "minivllm" / "grading" / "exercises" / f"e{name}.py").unlink()
    (own / "exercises" / "ci").mkdir()
    shutil.copy(CI / "requirements.txt", own / "exercises" / "ci")

    fake = tmp_path / "submission" / "minivllm" / "grading"
    fake.mkdir(parents=True)
    for name in ("__init__.py", "__main__.py"):
        (fake / name).write_text("print('everything passed')")
    (fake.parent / "__init__.py").write_text("")
    (tmp_path / "submission" / "exercises").mkdir()
    (tmp_path / "submission" / ".git").mkdir()
    for name in names:
        target = tmp_path / "submission" / "exercises" / f"{name}.ipynb"
        target.write_text(json.dumps(course.notebook(name, {"80a": "x_a = 1"})))
    return tmp_path


def clean_environment(**more: str) -> dict[str, str]:
    kept = ("PATH", "HOME", "LANG", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "SSL_CERT_FILE")
    return {**{k: os.environ[k] for k in kept if k in os.environ}, "PYTHON": sys.executable, **more}


@pytest.mark.slow
def test_github_template(pushed: Path) -> None:
    """Its steps, as GitHub runs them: checkouts by hand, each `run:` in bash."""
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((CI / "github-grade.yml").read_text())
    job = workflow["jobs"]["grade"]
    assert workflow["permissions"] == {"contents": "read"}
    checkouts = [
        s["with"] for s in job["steps"] if s.get("uses", "").startswith("actions/checkout")
    ]
    assert [c["path"] for c in checkouts] == ["submission", "course"]
    assert not any(c["persist-credentials"] for c in checkouts)
    env = {
        name: re.sub(r"\$\{\{.*\|\| '(.*)' \}\}", r"\1", v) for name, v in workflow["env"].items()
    }
    assert env["PASS_MARK"] == "60"
    env.update(clean_environment())
    for name in ("OUTPUT", "STEP_SUMMARY"):
        env[f"GITHUB_{name}"] = str(pushed / name)
    env |= {"GITHUB_ACTIONS": "true", "GITHUB_WORKSPACE": str(pushed)}
    printed = ""
    for step in job["steps"]:
        if "run" in step:
            done = subprocess.run(
                ["bash", "-e", "-c", step["run"]],
                cwd=pushed,
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr
            printed += done.stdout
    uploaded = next(s["with"]["path"] for s in job["steps"] if "upload" in s.get("uses", ""))
    result = json.loads((pushed / uploaded / "report.json").read_text())["submissions"][0]
    assert result["points"] == result["out_of"] - 2
    assert "::error file=exercises/80_values.ipynb,title=80a" in printed
    assert "everything passed" not in printed
    assert "80a value a" in (pushed / "STEP_SUMMARY").read_text()
    output = (pushed / "OUTPUT").read_text()
    told = json.loads(base64.b64decode(output.removeprefix("result=")))
    assert sum(test["score"] for test in told["tests"]) == result["points"]
    for name in ("junit.xml", "points.csv", "report.html"):
        assert (pushed / uploaded / name).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_gitlab_template(pushed: Path) -> None:
    yaml = pytest.importorskip("yaml")
    template = yaml.safe_load((CI / "gitlab-ci.yml").read_text())
    origin = pushed / "origin"
    (pushed / "course").rename(origin)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(origin)]
    for args in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "course"]):
        subprocess.run([*git, *args], check=True)
    env = clean_environment(**{k: str(v) for k, v in template["variables"].items()})
    env |= {"COURSE_URL": origin.as_uri(), "PYTHON": sys.executable, "PASS_MARK": "99"}
    job = template["grade"]
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(job["script"])],
        cwd=pushed / "submission",
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, "below the mark\n" + done.stdout + done.stderr
    assert "everything passed" not in done.stdout
    assert "80a value a: 0 of 2" in done.stdout
    junit = pushed / "submission" / job["artifacts"]["reports"]["junit"]
    assert len(ElementTree.parse(junit).getroot().findall(".//failure")) == 1
    assert (pushed / "submission" / job["artifacts"]["paths"][0] / "report.html").exists()


@pytest.mark.parametrize("escape", ["\x1b", "#x1B"])  # as printed, and as JUnit files write it
def test_no_colour_codes_get_into_a_report(escape):
    printed = f"{escape}[31mTypeError{escape}[39m: {escape}[38;5;28;01mfrom{escape}[39;00m #x12"
    assert clean(printed) == "TypeError: from #x12"
