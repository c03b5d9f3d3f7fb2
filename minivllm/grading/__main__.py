"""`python -m minivllm.grading DIR`: grade submissions."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from minivllm.grading import report, sandbox
from minivllm.grading.judge import ROOT
from minivllm.grading.notebook import Settings
from minivllm.grading.runner import Course, grade

EPILOG = """
A DIR is a submission if it holds the notebooks, or has them in exercises/; else each folder in it
is one. In GitHub Actions, parts that were not passed become annotations of the notebooks.

exit status: 0 every submission reaches the pass mark; 1 one does not; 2 nothing could be graded.
"""


def main(argv: list[str] | None = None, prog: str = "python -m minivllm.grading") -> int:
    """Grade, print the summary, write the reports; the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Grade submissions of the exercises.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dirs", nargs="*", type=Path, metavar="DIR", help="what was handed in")
    parser.add_argument("--list", action="store_true", help="list the exercises and their points")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write it as JUnit XML")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a gradebook")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write a page that shows the students' own words beside the model answers",
    )
    parser.add_argument(
        "-n", "--jobs", type=int, default=min(4, os.cpu_count() or 1), help="notebooks at a time"
    )
    parser.add_argument(
        "--pass-mark", type=float, default=60.0, metavar="PERCENT", help="default: %(default)g"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NN", help="grade only this exercise"
    )
    parser.add_argument(
        "--cell-timeout", type=float, default=15.0, metavar="SECONDS", help="for one answer cell"
    )
    parser.add_argument(
        "--memory", type=int, default=3072, metavar="MIB", help="address space of one notebook"
    )
    parser.add_argument(
        "--course",
        type=Path,
        default=ROOT,
        metavar="DIR",
        help="the grader's own exercises/ and solutions/ (default: beside the package)",
    )
    options = parser.parse_args(argv)
    if options.list:
        print("\n".join(report.titles()))
        return 0
    if not options.dirs:
        parser.error("which DIR?")
    if not sandbox.POSIX:
        parser.error(sandbox.NEEDS_POSIX)
    course = Course(options.course)
    settings = Settings(cell_seconds=options.cell_timeout, memory=options.memory << 20)
    try:
        results = grade(
            options.dirs,
            course=course,
            only=options.only,
            jobs=options.jobs,
            pass_mark=options.pass_mark,
            settings=settings,
        )
    except OSError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(report.as_text(results))
    writers = {
        options.report: lambda: report.as_json(results, options.pass_mark),
        options.junit: lambda: report.as_junit(results),
        options.csv: lambda: report.as_csv(results),
        options.html: lambda: report.as_html(results, course),
    }
    for path, write in writers.items():
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(write(), encoding="utf-8")
    if os.environ.get("GITHUB_ACTIONS") == "true":
        workspace = Path(os.environ.get("GITHUB_WORKSPACE", "."))
        print("\n".join(report.github_errors(results, workspace)))
    if output := os.environ.get("GITHUB_OUTPUT"):
        with open(output, "a", encoding="utf-8") as file:
            file.write(f"result={report.classroom(results)}\n")
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8") as file:
            file.write(report.step_summary(results))
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
