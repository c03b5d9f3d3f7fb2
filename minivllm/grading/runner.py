"""Grade submissions: answer cells into pristine notebooks, nbval in a locked-up process, the judge
outside it.

What happens to one notebook of a submission:

1. `handed_in` finds it, `submission` reads it as data. Only the answer cells (by id, or by their
   metadata) and the student's own words are taken; what was done to graded cells is noted. Nothing
   of it is executed or imported here.
2. The answers go into a copy of the pristine notebook, which comes from the grader's own folder, in
   a scratch directory. nbval runs it in a fresh process with an environment of its own. The kernel
   locks itself up (`kernel`, `guard`) before the first cell. Of the checks it sees the names that
   the pristine notebook itself imports.
3. `check`, in the kernel, only leaves the answer in a mailbox. The runner has it judged in another
   fresh process (`judge`) and puts the verdict's words back. For a code part the answer is the text
   of the submission's cell, whatever the mailbox says; it runs in the judge's children (`sandbox`).
4. A part earns its points if its cells passed in nbval, *and* the judge passed the answer, *and*
   nothing was refused while its answer ran.
5. If the kernel hangs, dies or is ended, or a graded cell passes without asking the judge, the part
   whose cell it was loses its points, its answer is replaced by the stub, and the notebook runs
   again for the others.

# What this defends against, and what not

The kernel belongs to the student: whatever is patched there can change the payload, which is only
another answer, or make a cell pass, which earns nothing without the judge. Defended, and tested in
tests/test_grading_attacks.py: edited, deleted, doubled and reordered cells; stored outputs; files
beside the notebook; a patched `minivllm`, `json`, `builtins` or `check`; printed verdicts; exits;
loops; forks; memory; disk; output; network; `solutions/`; symbolic links; notebooks that are none;
letters forged in the mailbox; asking the judge many times; signals to the parent; looking for the
checks.

Not defended:

- Before handing in, students have this package on their own machine. They can read the checks and
  ask the judge as often as they like. Hidden workloads are hidden from a look at the notebook, not
  from a determined reader; a solution copied from elsewhere is a solution.
- A name that a notebook imports from its checks leads, for who digs, to the rest of that module. It
  is the same module that they had on their own machine.
- A code answer shares its process with the driver that exercises it, and can make it report
  anything. It gains nothing by that: the evidence is compared, on hidden workloads, with a
  reference that only the judge's process computes, so a lie that passes is a right answer. What a
  driver takes out of the core before the student's code runs still stands in the package's files:
  who loads a module of `minivllm.core` once more (`importlib.reload`, `find_spec` and
  `exec_module`, `sys.modules.pop` and an import) has it back, as who copies its text has. That is
  deliberate enough to be seen by whoever reads the answer.
- Without Linux's Landlock and seccomp (macOS, or other processors than x86-64 and arm64) only the
  audit hook and the resource limits are left. They stop accidents and plain attempts; code that
  digs through the interpreter gets round them. The report names the defences it ran with. Grade
  submissions of people you do not trust on Linux, in a container or a CI job without secrets.
- A hole in Linux, in Python's own C code or in nbval's handling of messages.
- Processor time: a submission can use all of its time limits.
- Where the grader is started: `python -m` imports from the current folder first, so start it in the
  course's folder, not in a submission's.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minivllm.grading import submission as submissions
from minivllm.grading.handed_in import find_submissions
from minivllm.grading.judge import ROOT, exercises, is_extra
from minivllm.grading.magics import words_for_magic
from minivllm.grading.notebook import NEVER_ASKED, Evidence, Settings, run_until_it_ends
from minivllm.grading.part import Part

UNTOUCHED = "*Write here.*"


@dataclass
class PartResult:
    """What one part earned, and why not more."""

    id: str
    title: str
    points: int
    out_of: int
    passed: bool
    says: str = ""
    chapter: str = ""
    workload: Any = None
    broken: bool = False


@dataclass
class ExerciseResult:
    """What one notebook of a submission earned."""

    name: str
    title: str
    file: str
    parts: list[PartResult]
    texts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def points(self) -> int:
        """Points earned."""
        return sum(part.points for part in self.parts)

    @property
    def out_of(self) -> int:
        """Points there are."""
        return sum(part.out_of for part in self.parts)

    def as_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        return {**asdict(self), "points": self.points, "out_of": self.out_of}


@dataclass
class SubmissionResult:
    """What one submission earned.

    Attributes:
        exercises: What counts, in order: those of the course, or all that `--only` names.
        extras: Extra exercises that were handed in besides. Their points stand in the report and
            in no total.
    """

    name: str
    folder: str
    exercises: list[ExerciseResult]
    pass_mark: float
    recognised: str = "a folder"
    extras: list[ExerciseResult] = field(default_factory=list)

    @property
    def points(self) -> int:
        """Points earned."""
        return sum(exercise.points for exercise in self.exercises)

    @property
    def out_of(self) -> int:
        """Points there are."""
        return sum(exercise.out_of for exercise in self.exercises)

    @property
    def percent(self) -> float:
        """Points earned of 100."""
        return 100 * self.points / self.out_of if self.out_of else 0.0

    @property
    def passed(self) -> bool:
        """Whether the pass mark is reached."""
        return self.percent >= self.pass_mark

    def as_dict(self) -> dict[str, Any]:
        """For the JSON report."""
        return {
            "name": self.name,
            "folder": self.folder,
            "recognised": self.recognised,
            "points": self.points,
            "out_of": self.out_of,
            "percent": round(self.percent, 2),
            "passed": self.passed,
            "exercises": [exercise.as_dict() for exercise in self.exercises],
            "extras": [exercise.as_dict() for exercise in self.extras],
        }


@dataclass(frozen=True)
class Course:
    """The grader's own notebooks: `exercises/` and `solutions/` below `root`."""

    root: Path = ROOT

    def pristine(self, name: str) -> dict[str, Any]:
        """The untouched notebook of the exercise `name`.

        Raises:
            FileNotFoundError: It is not there.
        """
        path = self.root / "exercises" / f"{name}.ipynb"
        return json.loads(path.read_text(encoding="utf-8"))

    def model_answers(self, name: str) -> dict[str, str]:
        """Model answers and rubrics by part, "04", from the solution."""
        path = self.root / "solutions" / f"{name}.ipynb"
        if not path.exists():
            return {}
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return {
            cell["id"].removeprefix("model-"): "".join(cell["source"])
            for cell in cells
            if cell["id"].startswith("model-")
        }

    def _has(self, name: str) -> bool:
        """Whether the course has this exercise: one made before the extra ones has not."""
        return (self.root / "exercises" / f"{name}.ipynb").exists()

    def names(self, only: Iterable[str] = ()) -> list[str]:
        """The exercises, "04_the_clamp", in order; of `only`, by name or number, if any.

        Raises:
            FileNotFoundError: There is none, or no notebook for one.
        """
        if not (self.root / "exercises").is_dir():
            raise FileNotFoundError(
                f"{self.root} has no exercises/: name a clone of the book with --course DIR"
            )
        wanted = list(only)
        names = [
            name
            for name in exercises()
            if any(name == w or name.split("_")[0] == w.lower() for w in wanted)
            or (not wanted and (not is_extra(name) or self._has(name)))
        ]
        if not names:
            raise FileNotFoundError(f"no exercise is named {', '.join(wanted)}")
        for name in names:
            self.pristine(name)
        return names


def grade(
    folders: Iterable[Path],
    *,
    course: Course | None = None,
    only: Iterable[str] = (),
    jobs: int = 2,
    pass_mark: float = 60.0,
    settings: Settings | None = None,
) -> list[SubmissionResult]:
    """Grade every submission in `folders`, `jobs` notebooks at a time.

    Args:
        only: Exercises by number ("04") or name; all when empty. Totals count only these; when
            it is empty they leave the extra ones out, which are graded where they are handed in.
    """
    course = course or Course()
    settings = settings or Settings()
    names = course.names(only := list(only))
    extras = set() if only else {name for name in names if is_extra(name)}
    with (
        tempfile.TemporaryDirectory(prefix="handed-in-") as scratch,
        ThreadPoolExecutor(max(1, jobs)) as pool,
    ):
        found, passed_over = find_submissions(folders, names, Path(scratch))
        for how, count in Counter(one.recognised for one in found).items():
            print(f"recognised: {count} × {how}", file=sys.stderr)
        for line in passed_over:
            print(f"passed over: {line}", file=sys.stderr)
        futures = [
            {
                name: pool.submit(
                    grade_notebook,
                    course,
                    name,
                    one.notebooks.get(name, one.folder / f"{name}.ipynb"),
                    settings,
                )
                for name in names
                if name not in extras or name in one.notebooks
            }
            for one in found
        ]
        return [
            SubmissionResult(
                one.name,
                str(one.folder),
                [f.result() for name, f in row.items() if name not in extras],
                pass_mark,
                one.recognised,
                [f.result() for name, f in row.items() if name in extras],
            )
            for one, row in zip(found, futures)
        ]


def grade_notebook(course: Course, name: str, path: Path, settings: Settings) -> ExerciseResult:
    """Grade one notebook. Whatever is in it, this returns a result."""
    begun = time.monotonic()
    module = exercises()[name]
    parts: tuple[Part, ...] = module.PARTS
    pristine = course.pristine(name)
    handed_in = submissions.read(path, pristine, [part.id for part in parts])
    result = ExerciseResult(name, module.TITLE, str(path), [], handed_in.texts, handed_in.notes)
    if handed_in.unreadable:
        lost = {part.id: f"{path.name} {handed_in.unreadable}." for part in parts}
        evidence = Evidence(lost)
    else:
        evidence = Evidence(dict(handed_in.faults), handed_out=handed_in.handed_out)
        try:
            run_until_it_ends(pristine, parts, handed_in.answers, settings, evidence)
        except Exception as error:  # one submission must not stop the grading of the others
            evidence.fault = f"The grader could not run this notebook: {error!r:.300}"
            evidence.verdicts.clear()
    result.notes += [
        f"The notebook's own cell {cell} {what}."
        for cell, what in evidence.cells.items()
        if what and not cell.startswith(("answer-", "check-"))
    ]
    result.parts = [_result_of(part, evidence) for part in parts]
    for told in result.parts:  # a cell under %%timeit binds nothing, and nothing says so
        magic = words_for_magic(handed_in.answers.get(told.id, ""))
        if "NameError" in told.says and magic:
            told.says += f" {magic}"
    result.seconds = round(time.monotonic() - begun, 2)
    return result


def _result_of(part: Part, evidence: Evidence) -> PartResult:
    result = PartResult(part.id, part.title, 0, part.points, False, chapter=part.chapter)
    verdict = evidence.verdicts.get(part.id)
    answer = evidence.cells.get(f"answer-{part.id}")
    graded = evidence.cells.get(f"check-{part.id}")
    if part.id in evidence.lost:
        result.says = evidence.lost[part.id]
    elif answer:
        result.says = f"The answer cell {answer}"
    elif verdict and not verdict.passed:
        result.says, result.workload = verdict.says, verdict.workload
        result.chapter, result.broken = verdict.chapter, verdict.broken
    elif evidence.fault:
        result.says, result.broken = evidence.fault, True
    elif verdict is None or part.id not in evidence.payloads:
        result.says = f"The graded cell {graded or NEVER_ASKED}"
    elif answer is None or graded is None:
        result.says = "The notebook did not get as far as this part."
    elif graded:
        result.says = f"The graded cell {graded}"
    else:
        result.passed, result.points = True, part.points
    return result
