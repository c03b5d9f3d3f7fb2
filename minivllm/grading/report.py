"""Reports: for people (text, HTML, GitHub), for programs (JSON, JUnit, CSV).

Everything that a student wrote is data here: escaped, cut, and never a command to the CI that
prints it. Extra exercises stand in what people read, in JSON and in the gradebook; what turns a
build red (JUnit, annotations, GitHub Classroom) leaves them out.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import os
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import minivllm
from minivllm.grading.guard import defences
from minivllm.grading.judge import exercises, is_extra, workload_text
from minivllm.grading.notebook import clean
from minivllm.grading.runner import (
    UNTOUCHED,
    Course,
    ExerciseResult,
    PartResult,
    SubmissionResult,
)

MAX_TEXT = 20_000


def quiet(text: str) -> str:
    """`text` for a CI's log: no control characters, nothing that GitHub reads as a command."""
    return clean(text)[:MAX_TEXT].replace("::", ":\u200b:").replace("##[", "##\u200b[")


def as_json(results: list[SubmissionResult], pass_mark: float) -> str:
    """The whole result for programs."""
    return json.dumps(
        {
            "format": 1,
            "minivllm": minivllm.__version__,
            "defences": defences(),
            "pass_mark": pass_mark,
            "submissions": [result.as_dict() for result in results],
        },
        indent=1,
    )


def as_junit(results: list[SubmissionResult]) -> str:
    """One test suite for each notebook of each submission, one case for each part."""
    root = ElementTree.Element("testsuites", name="minivllm.grading")
    for result in results:
        for exercise in result.exercises:
            failed = [part for part in exercise.parts if not part.passed]
            suite = ElementTree.SubElement(
                root,
                "testsuite",
                name=_xml(f"{result.name}/{exercise.name}"),
                tests=str(len(exercise.parts)),
                failures=str(sum(not part.broken for part in failed)),
                errors=str(sum(part.broken for part in failed)),
                time=str(exercise.seconds),
            )
            for part in exercise.parts:
                case = ElementTree.SubElement(
                    suite,
                    "testcase",
                    classname=_xml(f"{result.name}.{exercise.name}"),
                    name=f"{part.id} {part.title}",
                    file=_xml(exercise.file),
                )
                if not part.passed:
                    kind = "error" if part.broken else "failure"
                    words = _xml(says(part))
                    first = words.splitlines()[0] if words else ""
                    ElementTree.SubElement(case, kind, message=first[:300]).text = words
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _xml(text: str) -> str:
    return clean(text)[:MAX_TEXT]


def as_csv(results: list[SubmissionResult]) -> str:
    """One row for each submission: points by exercise, total, percent; then the extra exercises
    that somebody handed in."""
    out = io.StringIO()
    writer = csv.writer(out)
    extras = {e.name: e.out_of for result in results for e in result.extras}
    if results:
        names = [exercise.name for exercise in results[0].exercises]
        tops = [exercise.out_of for exercise in results[0].exercises]
        columns = [f"{name} ({top})" for name, top in zip(names, tops)]
        beside = [f"{name} ({top})" for name, top in sorted(extras.items())]
        total = f"total ({sum(tops)})"
        writer.writerow(["submission", *columns, total, "percent", "passed", *beside])
    for result in results:
        name = clean(result.name)
        safe = f"'{name}" if name[:1] in "=+-@\t" else name  # no formula for a spreadsheet
        points = [exercise.points for exercise in result.exercises]
        passed = "yes" if result.passed else "no"
        earned = {exercise.name: exercise.points for exercise in result.extras}
        beside = [str(earned.get(name, "")) for name in sorted(extras)]
        writer.writerow([safe, *points, result.points, f"{result.percent:.1f}", passed, *beside])
    return out.getvalue()


def says(part: PartResult) -> str:
    """The words for a part that was not passed."""
    lines = [part.says]
    if part.workload is not None:
        lines.append(f"Smallest failing workload: {workload_text(part.workload)}")
    if part.chapter:
        lines.append(f"Read: book/{part.chapter}.md")
    return "\n".join(lines)


def as_text(results: list[SubmissionResult]) -> str:
    """A summary for the terminal."""
    lines: list[str] = []
    for result in results:
        mark = "passed" if result.passed else "below the pass mark"
        lines += [
            "",
            f"{quiet(result.name)}: {result.points} of {result.out_of} points "
            f"({result.percent:.0f} %), {mark} of {result.pass_mark:g} %",
        ]
        for exercise in (*result.exercises, *result.extras):
            title = f"{exercise.name:24} {exercise.points:3} of {exercise.out_of:3}"
            beside = "   extra, in no total" if exercise in result.extras else ""
            lines.append(f"  {title}   {exercise.seconds:5.1f} s{beside}")
            lines += [f"      note: {quiet(note)}" for note in exercise.notes]
            if len({part.says for part in exercise.parts}) == 1 and exercise.parts[0].says:
                lines.append(f"      {quiet(exercise.parts[0].says)}")
                continue
            for part in exercise.parts:
                if part.passed:
                    lines.append(f"    ✓ {part.id} {part.title}: {part.points}")
                else:
                    lines.append(f"    ✗ {part.id} {part.title}: 0 of {part.out_of}")
                    lines += [f"        {line}" for line in quiet(says(part)).splitlines()]
    return "\n".join(lines)


# ------------------------------------------------------------------ GitHub


def github_errors(results: list[SubmissionResult], workspace: Path) -> list[str]:
    """GitHub's workflow commands: one error for each part that was not passed."""
    lines = []
    for result in results:
        for exercise in result.exercises:
            file = in_repository(Path(exercise.file), workspace)
            for part in exercise.parts:
                if not part.passed:
                    properties = {
                        "file": file,
                        "title": f"{part.id} {part.title}: 0 of {part.out_of} points",
                    }
                    listed = ",".join(f"{k}={_property(v)}" for k, v in properties.items())
                    lines.append(f"::error {listed}::{_data(clean(says(part))[:4000])}")
    return lines


def in_repository(file: Path, workspace: Path) -> str:
    """`file` as GitHub names it: below the checkout that holds it, else below the workspace."""
    absolute = Path(os.path.abspath(file))
    for folder in absolute.parents:
        if (folder / ".git").exists():
            return absolute.relative_to(folder).as_posix()
    return Path(os.path.relpath(absolute, workspace.resolve())).as_posix()


def classroom(results: list[SubmissionResult]) -> str:
    """The points of each part as GitHub Classroom's reporter reads them, for GITHUB_OUTPUT.

    The form is that of classroom-resources/autograding-command-grader, in base64.
    """
    tests = [
        {
            "name": f"{part.id} {part.title}",
            "status": "pass" if part.passed else "fail",
            "score": part.points,
            "message": "" if part.passed else quiet(says(part))[:2000],
            "test_code": "",
            "filename": Path(exercise.file).name,
            "line_no": 0,
            "duration": 0,
        }
        for result in results
        for exercise in result.exercises
        for part in exercise.parts
    ]
    whole = {
        "version": 1,
        "status": "pass" if all(result.passed for result in results) else "fail",
        "max_score": sum(result.out_of for result in results),
        "tests": tests,
    }
    return base64.b64encode(json.dumps(whole).encode()).decode()


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(clean(text)).replace(":", "%3A").replace(",", "%2C")


def step_summary(results: list[SubmissionResult]) -> str:
    """A table for GITHUB_STEP_SUMMARY."""
    lines = []
    for result in results:
        mark = "✅" if result.passed else "❌"
        lines += [
            f"## {mark} {_markdown(result.name)}: {result.points} of {result.out_of} points",
            "",
            f"Pass mark {result.pass_mark:g} %, reached {result.percent:.0f} %.",
            "",
            "| exercise | part | points | what to do |",
            "| --- | --- | ---: | --- |",
        ]
        for exercise in (*result.exercises, *result.extras):
            for part in exercise.parts:
                words = "" if part.passed else _markdown(says(part)[:1000])
                points = f"{part.points}/{part.out_of}"
                lines.append(f"| {exercise.name} | {part.id} {part.title} | {points} | {words} |")
        lines.append("")
    return "\n".join(lines)


def _markdown(text: str) -> str:
    """`text` so that neither Markdown nor HTML in it means anything."""
    escaped = html.escape(quiet(text))
    escaped = re.sub(r"[\\`*_\[\]|!~@$]", lambda sign: f"&#{ord(sign[0])};", escaped)
    return escaped.replace("\n", "<br>")


# ------------------------------------------------------------------ HTML

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top;
  padding: .3rem .6rem; border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent) }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font: inherit }
td pre { min-width: 8rem } .wide { overflow-x: auto }
details { margin: .5rem 0 } summary { cursor: pointer; font-weight: 600 }
.words { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
  gap: 1rem; margin: .5rem 0 1.5rem } .words > div { min-width: 0; padding: .5rem 1rem;
  border: 1px solid color-mix(in srgb, currentColor 25%, transparent); border-radius: .4rem }
.words code, td code { overflow-wrap: anywhere } h4 { margin: .3rem 0 }
.passed { color: light-dark(#0a6b2d, #6fd08c) } .not { color: light-dark(#a3261d, #ff9a90) }
"""


def as_html(results: list[SubmissionResult], course: Course) -> str:
    """One page with everything: points, words, and the student's own text beside the model answer
    and its rubric. It loads nothing and runs nothing."""
    body = ["<h1>Grading report</h1>"]
    if len(results) > 1:
        body.append(_overview(results))
    for number, result in enumerate(results):
        body.append(f'<h2 id="s{number}">{_escape(result.name)}: {_points(result)}</h2>')
        body += [_exercise(exercise, course) for exercise in result.exercises]
        if result.extras:
            body.append("<p>Extra exercises, whose points stand in no total:</p>")
            body += [_exercise(exercise, course) for exercise in result.extras]
    body.append(
        f"<p>minivllm {minivllm.__version__}; the submissions ran behind: "
        f"{', '.join(defences())}. Free text is not scored by the grader: it stands beside the "
        "model answer for a person to read.</p>"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>Grading report</title><style>{STYLE}</style></head><body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


def _overview(results: list[SubmissionResult]) -> str:
    names = [exercise.name for exercise in results[0].exercises]
    head = "".join(f'<th class="number">{_escape(name[:2])}</th>' for name in names)
    rows = "".join(
        f'<tr><td><a href="#s{number}">{_escape(result.name)}</a></td>'
        + "".join(f'<td class="number">{e.points}</td>' for e in result.exercises)
        + f'<td class="number">{result.points}</td><td class="number">{result.percent:.0f} %</td>'
        "</tr>"
        for number, result in enumerate(results)
    )
    return (
        f'<div class="wide"><table><tr><th>submission</th>{head}<th class="number">points</th>'
        f'<th class="number">of 100</th></tr>{rows}</table></div>'
    )


def _points(result: SubmissionResult) -> str:
    kind, word = ("passed", "passed") if result.passed else ("not", "below the pass mark")
    return (
        f'<span class="{kind}">{result.points} of {result.out_of} points '
        f"({result.percent:.0f} %), {word}</span>"
    )


def _exercise(exercise: ExerciseResult, course: Course) -> str:
    rows = "".join(
        f'<tr><td>{part.id}</td><td>{_escape(part.title)}</td><td class="number">'
        f'<span class="{"passed" if part.passed else "not"}">{part.points} of {part.out_of}</span>'
        f"</td><td><pre>{'' if part.passed else _escape(says(part))}</pre></td></tr>"
        for part in exercise.parts
    )
    notes = "".join(f"<p>{_escape(note)}</p>" for note in exercise.notes)
    return (
        f"<h3>{_escape(exercise.name)} {_escape(exercise.title)}: {exercise.points} of "
        f"{exercise.out_of} points</h3>{notes}<table>{rows}</table>"
        + _own_words(exercise, course.model_answers(exercise.name))
    )


def _own_words(exercise: ExerciseResult, models: Mapping[str, str]) -> str:
    texts = {cell.removeprefix("text-"): text for cell, text in exercise.texts.items()}
    blocks = []
    for part_id in sorted({*texts, *models}):
        text = texts.get(part_id, "").strip()
        own = f"<pre>{_escape(text)}</pre>" if text not in ("", UNTOUCHED) else "<p>Nothing.</p>"
        blocks.append(
            f'<div class="words"><div><h4>In the student\'s words ({_escape(part_id)})</h4>{own}'
            f"</div><div><h4>Model answer and rubric</h4>{_rendered(models.get(part_id, ''))}"
            "</div></div>"
        )
    if not blocks:
        return ""
    return f"<details open><summary>In your own words</summary>{''.join(blocks)}</details>"


def _rendered(markdown: str) -> str:
    """The grader's own Markdown as HTML, or as it is where no renderer is installed."""
    try:
        renderer: Any = import_module("markdown_it").MarkdownIt("commonmark", {"html": False})
    except ImportError:
        return f"<pre>{_escape(markdown)}</pre>"
    return str(renderer.enable("table").render(markdown))


def _escape(text: str) -> str:
    return html.escape(clean(text)[:MAX_TEXT])


def titles() -> list[str]:
    """What there is to grade, one line for each exercise."""
    return [
        f"{name}: {module.TITLE} ({sum(part.points for part in module.PARTS)} points"
        f"{', extra: in no total' if is_extra(name) else ''})"
        for name, module in exercises().items()
    ]
