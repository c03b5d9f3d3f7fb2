"""Examine a scheduler under test: how many workloads it decides as vLLM did, class by class.

    python -m minivllm.conformance run TRACES ... [--release R] -- COMMAND [ARGUMENT ...]

For each class of decision: in how many workloads it agrees in every step, in how many it differs
(and in how many of those this class was the first to), and how many are not supported: they need a
feature that the scheduler says it lacks, or it cannot tell decisions of this class. A scheduler
that dies, hangs or answers nonsense ends the run; with `--keep-going` it is started again, and such
workloads are counted. Then the smallest workload that differs in one class (`--smallest`, or the
first of the table that does), taken apart until no piece can go: what vLLM decides about that one
is what `minivllm` does, which decides as vLLM wherever there is a recording. The exit status is 0
if nothing differs, 1 if anything does, 2 if nothing could be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minivllm.runs.agreement import CLASSES, first_differences, needs, told
from minivllm.runs.conformance import decide, read_traces, release_of, replay
from minivllm.runs.shrink import shrink, size
from minivllm.runs.under_test import SchedulerUnderTest, UnderTestError

Differences = dict[str, tuple[int, Any, Any]]


@dataclass
class Tally:
    """Workloads, counted by how they went."""

    total: int = 0
    lacking: Counter[str] = field(default_factory=Counter)
    """Workloads left out, by the first feature that they need and the scheduler lacks."""
    differ: Counter[str] = field(default_factory=Counter)
    """Workloads that differ, by class."""
    first: Counter[str] = field(default_factory=Counter)
    """Workloads that differ, by the class that did so first."""
    failed: list[str] = field(default_factory=list)
    """What was wrong, for each workload that the scheduler did not bring to its end."""
    smallest: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The smallest workload that differs, of those in the corpus, by class."""

    @property
    def num_compared(self) -> int:
        """Workloads that the scheduler could be asked about."""
        return self.total - self.lacking.total() - len(self.failed)

    def count(self, workload: dict[str, Any], differences: Differences) -> None:
        """Count one workload that was compared."""
        self.differ.update(differences.keys())
        if differences:  # of one step, in the order of the table
            self.first[min(differences, key=lambda name: differences[name][0])] += 1
        for name in differences:
            if name not in self.smallest or size(workload) < size(self.smallest[name]):
                self.smallest[name] = workload

    def rows(self, decides: Sequence[str]) -> list[dict[str, Any]]:
        """The table, one row for each class."""
        rows: list[dict[str, Any]] = []
        for name in CLASSES:
            compared = self.num_compared if name in decides else 0
            failed = len(self.failed) if name in decides else 0
            row = {"class": name, "agree": compared - self.differ[name]}
            row |= {"differ": self.differ[name], "first": self.first[name]}
            rows.append({**row, "not_supported": self.total - compared - failed})
        return rows


def compare(
    workload: dict[str, Any], under_test: SchedulerUnderTest, label: str, recorded: bool = True
) -> Differences:
    """By class, where the scheduler first decides otherwise: (step, its decision, vLLM's).

    Args:
        workload: a trace.
        under_test: to be asked.
        label: for errors.
        recorded: False: compare with what minivllm decides now, not with the steps.
    """
    theirs = told(workload["steps"] if recorded else decide(workload))
    num_steps = len(theirs) + (workload.get("ends", True) and 1)  # one more shows who goes on
    ours = under_test.run(workload, num_steps, label)
    classes = [name for name in CLASSES if name in under_test.decides]
    found = first_differences(ours, theirs, classes)
    return {name: found[name] for name in classes if name in found}


def examine(
    workloads: Iterable[tuple[str, dict[str, Any]]],
    under_test: SchedulerUnderTest,
    keep_going: bool = False,
) -> Tally:
    """Ask about every workload that it supports; each comes with its label.

    Raises:
        UnderTestError: if it fails, unless `keep_going`: then it is counted and started again.
    """
    tally = Tally()
    for label, workload in workloads:
        tally.total += 1
        lacking = [name for name in needs(workload) if name in under_test.lacks]
        if lacking:
            tally.lacking[lacking[0]] += 1
            continue
        try:
            tally.count(workload, compare(workload, under_test, label))
        except UnderTestError as error:
            if not keep_going:
                raise
            tally.failed.append(str(error))
            under_test.restart()
    return tally


def shrunk(workload: dict[str, Any], under_test: SchedulerUnderTest, name: str) -> dict[str, Any]:
    """The smallest workload on which the scheduler differs from minivllm in the class `name`, from
    one that does."""

    def differs(smaller: dict[str, Any]) -> bool:
        if any(name in under_test.lacks for name in needs(smaller)):
            return False
        try:
            return name in compare(smaller, under_test, "shrinking", recorded=False)
        except UnderTestError:
            under_test.restart()
            return False

    if not workload.get("ends", True) or replay(workload) or not differs(workload):
        return workload
    return shrink(workload, differs, max_trials=1000)


def labelled(paths: Sequence[Path], release: str | None) -> Iterable[tuple[str, dict[str, Any]]]:
    """The workloads of files, those of one release if it is named."""
    for path in paths:
        for number, workload in enumerate(read_traces(path), 1):
            label = f"{path.name}, workload {number}"
            try:
                if release in (None, release_of(workload)):
                    yield label, workload
            except ValueError as error:
                raise ValueError(f"{label}: {error}") from None


def report(tally: Tally, under_test: SchedulerUnderTest, name: str | None = None) -> dict[str, Any]:
    """All that there is to say, as JSON; the smallest workload is one that differs in `name`."""
    answer: dict[str, Any] = {
        "name": under_test.name,
        "workloads": tally.total,
        "compared": tally.num_compared,
        "failed": tally.failed,
        "lacking": dict(tally.lacking.most_common()),
        "classes": tally.rows(under_test.decides),
    }
    name = name or next((name for name in CLASSES if name in tally.smallest), None)
    if name in tally.smallest:
        smallest = shrunk(tally.smallest[name], under_test, name)
        found = compare(smallest, under_test, "the smallest", recorded="steps" in smallest)
        step, ours, theirs = found[name]
        answer["smallest"] = {
            "workload": {k: v for k, v in smallest.items() if k != "steps"},
            "class": name,
            "step": step,
            "under_test": ours,
            "vllm": theirs,
        }
    return answer


def told_report(answer: dict[str, Any]) -> str:
    """The report as text."""
    lines = [f"{answer['name']}: {answer['compared']} of {answer['workloads']} workloads compared"]
    lines += [f"  {n} need {name}: not supported" for name, n in answer["lacking"].items()]
    if failed := answer["failed"]:
        lines.append(f"  {len(failed)} not brought to their end; the first: {failed[0]}")
    lines.append(f"{'class':12}{'agree':>8}{'differ':>8}{'first':>8}{'not supported':>15}")
    lines += [
        f"{row['class']:12}{row['agree']:8}{row['differ']:8}{row['first']:8}"
        f"{row['not_supported']:15}"
        for row in answer["classes"]
    ]
    if found := answer.get("smallest"):
        lines += [
            f"the smallest workload that differs so: step {found['step']}, {found['class']}",
            f"    under test: {found['under_test']}",
            f"    vLLM:       {found['vllm']}",
            json.dumps(found["workload"]),
        ]
    return "\n".join(lines)


def main(argv: list[str], prog: str) -> int:
    """The command line, under the name `prog`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compare any scheduler with recorded decisions of vLLM, through a pipe.",
        usage="%(prog)s FILE ... [options] -- COMMAND [ARGUMENT ...]",
        epilog="exit status: 0 nothing differs; 1 something does; 2 nothing could be compared.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="recorded traces")
    parser.add_argument("--release", help="only what was recorded from this release")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for an answer (10)")
    parser.add_argument(
        "--keep-going", action="store_true", help="start it again where it fails, and count that"
    )
    parser.add_argument(
        "--smallest",
        choices=list(CLASSES),
        help="show the smallest workload that differs in this class",
    )
    parser.add_argument("--json", type=Path, help="write the report there too")
    split = argv.index("--") if "--" in argv else len(argv)
    args, command = parser.parse_args(argv[:split]), argv[split + 1 :]
    if not command:
        parser.error("name the scheduler under test: -- COMMAND [ARGUMENT ...]")
    try:
        with SchedulerUnderTest(command, args.timeout) as under_test:
            workloads = labelled(args.files, args.release)
            tally = examine(workloads, under_test, args.keep_going)
            if not tally.num_compared:
                why = f": {tally.failed[0]}" if tally.failed else ""
                raise ValueError(f"none of {tally.total} workloads could be compared{why}")
            answer = report(tally, under_test, args.smallest)
    except (ValueError, UnderTestError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(told_report(answer))
    if args.json:
        args.json.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    return 1 if tally.differ or tally.failed else 0
