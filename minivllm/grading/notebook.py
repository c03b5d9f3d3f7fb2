"""Run one notebook with a submission's answers under nbval, with a mailbox for the judge."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from minivllm.grading.check import MAILBOX
from minivllm.grading.judge import MAX_PAYLOAD, ROOT, Verdict, judge
from minivllm.grading.part import Part, shown
from minivllm.grading.sandbox import end_group

PATIENCE = 30.0  # seconds for a cell of the notebook's own, and between two cells
KERNEL_NAME = "minivllm-grading"
FILE_SIZE = 32 << 20  # bytes of one file that a notebook may write
DISK = 256 << 20  # bytes of all of them
MAX_FILES = 10_000
TOO_MUCH = "wrote too many files, or too large ones."
NEVER_ASKED = "never asked the judge: something has replaced `check`."

# nbformat checks no addresses, but would load a grammar of them: a second for each notebook.
BOOT_PYTEST = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from minivllm.grading import guard; "
    "sys.path.pop(0); guard.limit(int(sys.argv.pop(1)), None, int(sys.argv.pop(1))); "
    "sys.modules['rfc3987_syntax'] = None; "
    "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
)
BOOT_KERNEL = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from minivllm.grading.kernel import main; "
    "sys.path.pop(0); main()"
)


@dataclass(frozen=True)
class Settings:
    """Limits of a grading run.

    Attributes:
        cell_seconds: Wall time for one answer cell.
        notebook_seconds: Wall time for one run of one notebook.
        memory: Bytes of address space of the notebook's kernel.
    """

    cell_seconds: float = 15.0
    notebook_seconds: float = 150.0
    memory: int = 3 << 30


@dataclass
class Evidence:
    """What is known about the parts of one notebook.

    Attributes:
        lost: Parts that earn nothing whatever the judge says, and why.
        verdicts: The judge's, by part.
        payloads: What was judged, by part.
        judged: Verdicts of this run and earlier ones, by part and payload.
        cells: By cell id what nbval said: an empty string if the cell passed.
        fault: Something wrong that is no part's doing.
        handed_out: The mark of the notebook that was handed out.
    """

    lost: dict[str, str]
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    payloads: dict[str, Any] = field(default_factory=dict)
    cells: dict[str, str] = field(default_factory=dict)
    judged: dict[tuple[str, str], Verdict] = field(default_factory=dict)
    fault: str = ""
    handed_out: str = ""

    def judge(self, part_id: str, payload: Any) -> Verdict:
        """Have a payload judged, once."""
        key = part_id, json.dumps(payload)
        if key not in self.judged:
            self.judged[key] = judge(part_id, payload, handed_out=self.handed_out)
        self.payloads[part_id], self.verdicts[part_id] = payload, self.judged[key]
        return self.judged[key]


def run_until_it_ends(
    pristine: dict[str, Any],
    parts: tuple[Part, ...],
    answers: dict[str, str],
    settings: Settings,
    evidence: Evidence,
) -> None:
    """Run the notebook; whenever a part breaks the run, again without that part's answer."""
    answers = dict(answers)
    stubs = {
        cell["id"].removeprefix("answer-"): "".join(cell["source"])
        for cell in pristine["cells"]
        if cell["id"].startswith("answer-")
    }
    for _ in range(len(parts) + 1):
        evidence.payloads, evidence.verdicts, evidence.cells = {}, {}, {}
        run = NotebookRun(pristine, parts, {**stubs, **answers}, settings, evidence)
        culprit, why = run.go()
        for part_id, what in run.refused.items():
            evidence.lost.setdefault(part_id, what)
        if not why:
            culprit, why = _silent_part(parts, evidence), NEVER_ASKED
        if not culprit and why is NEVER_ASKED:
            return
        if culprit not in answers:
            evidence.fault = f"The notebook could not be run: {why}"
            return
        whose = "graded" if why is NEVER_ASKED else "answer"
        evidence.lost.setdefault(culprit, f"The {whose} cell {why}")
        del answers[culprit]


def _silent_part(parts: tuple[Part, ...], evidence: Evidence) -> str:
    """The first part whose graded cell passed without a word to the judge; empty if none."""
    for part in parts:
        passed = evidence.cells.get(f"check-{part.id}") == ""
        if passed and part.id not in evidence.payloads and part.id not in evidence.lost:
            return part.id
    return ""


class NotebookRun:
    """One run of one notebook under nbval, and the mailbox beside it."""

    def __init__(
        self,
        pristine: dict[str, Any],
        parts: tuple[Part, ...],
        answers: dict[str, str],
        settings: Settings,
        evidence: Evidence,
    ) -> None:
        self.parts = {part.id: part for part in parts}
        self.answers = answers
        self.settings = settings
        self.evidence = evidence
        self.notebook = json.loads(json.dumps(pristine))
        self.ids: list[str] = []  # of the code cells, in nbval's order
        for cell in self.notebook["cells"]:
            if cell["id"].startswith("answer-"):
                cell["source"] = answers[cell["id"].removeprefix("answer-")]
            if cell["cell_type"] == "code":
                self.ids.append(cell["id"])
        self.shown = shown_names(pristine)
        self.refused: dict[str, str] = {}
        self.pid = 0
        self.running = ""  # the cell that has started and not ended
        self.since = 0.0
        self.last_answer = ""
        self.log_read = 0

    def go(self) -> tuple[str, str]:
        """Run; the part that broke the run and why, or two empty strings."""
        scratch = Path(tempfile.mkdtemp(prefix="grading-"))
        try:
            return self._go(scratch.resolve())
        finally:
            try:
                shutil.rmtree(scratch, ignore_errors=True)
            except RecursionError:  # folders in folders in folders
                subprocess.run(["rm", "-rf", "--", str(scratch)], check=False)

    def _go(self, scratch: Path) -> tuple[str, str]:
        own, home, work, mail = (scratch / name for name in ("own", "home", "work", "mail"))
        for folder in (own, home, work, mail, home / "runtime", own / "kernels" / KERNEL_NAME):
            folder.mkdir(parents=True)
        self.log = own / "log"
        self.junit = own / "junit.xml"
        notebook = work / "notebook.ipynb"
        notebook.write_text(json.dumps(self.notebook), encoding="utf-8")
        settings_file = own / "settings.json"
        settings_file.write_text(
            json.dumps(
                {
                    "cells": self.ids,
                    "shown": self.shown,
                    "log": str(self.log),
                    "write": [str(home), str(work), str(mail)],
                    "memory": self.settings.memory,
                    "file_size": FILE_SIZE,
                }
            )
        )
        kernel = [sys.executable, "-I", "-c", BOOT_KERNEL, str(ROOT)]
        (own / "kernels" / KERNEL_NAME / "kernel.json").write_text(
            json.dumps(
                {
                    "argv": [*kernel, "{connection_file}", str(settings_file)],
                    "display_name": KERNEL_NAME,
                    "language": "python",
                }
            )
        )
        command = [sys.executable, "-I", "-c", BOOT_PYTEST, str(ROOT)]
        command += [str(self.settings.memory), str(FILE_SIZE)]
        command += ["--nbval", "-p", "nbval.plugin", "-p", "no:cacheprovider", "-c", os.devnull]
        command += ["--rootdir", str(own), "-q", "--no-header", "--junit-xml", str(self.junit)]
        command += ["--nbval-kernel-name", KERNEL_NAME, "--tb=short", str(notebook)]
        command += ["--nbval-cell-timeout", str(self.settings.notebook_seconds)]
        with (own / "out").open("wb") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=own,
                env=_environment(own, home, mail),
                start_new_session=True,
            )
        mail_fd = os.open(mail, os.O_RDONLY)
        try:
            why = self._watch(process, mail_fd, own)
        finally:
            os.close(mail_fd)
            self._read_log()
            self._end_kernel()
            end_group(process)
        if why:
            return self._culprit(), why
        if not self._read_junit():
            text = (own / "out").read_text(encoding="utf-8", errors="replace")[-500:]
            return self._culprit(), f"ended nbval before it was done. {clean(text)}"
        return "", ""

    def _watch(self, process: subprocess.Popen[bytes], mail_fd: int, own: Path) -> str:
        """Answer letters until the run ends; why it had to be ended, or an empty string."""
        end = time.monotonic() + self.settings.notebook_seconds
        next_look = 0.0
        while process.poll() is None:
            for part_id in self.parts:
                letter = _take_letter(part_id, mail_fd)
                if letter is not None:
                    if _takes_too_much(own.parent):  # an answer may be done between two looks
                        return TOO_MUCH
                    _post(self._answer(part_id, letter), part_id, mail_fd, own)
                    end = time.monotonic() + self.settings.notebook_seconds
                    self.since = time.monotonic()
            self._read_log()
            now = time.monotonic()
            if now > next_look:
                next_look = now + 0.5
                if _takes_too_much(own.parent):
                    return TOO_MUCH
            patience = PATIENCE
            if self.running.startswith("answer-"):
                patience = self.settings.cell_seconds
            if self.pid and now - self.since > patience:
                if not self.running:
                    return "left a kernel that no longer answers."
                return f"did not finish within {patience:g} s: is there a loop without end?"
            if self.pid and self.running and _has_ended(self.pid):
                self._read_log()  # to its end: the cell may have ended well before the process
                if self.running:
                    what = self.refused.get(self.running.partition("-")[2], "")
                    return what.removeprefix("The answer cell ") or "ended its own process."
            if now > end:
                return f"did not finish within {self.settings.notebook_seconds:g} s."
            time.sleep(0.02)
        return ""

    def _answer(self, part_id: str, letter: Any) -> dict[str, Any]:
        """Judge a letter; what to put back into the mailbox."""
        part = self.parts[part_id]
        payload = self.answers[part_id] if part.kind == "code" and letter else letter
        known = self.evidence.payloads
        if part_id not in known:
            self.evidence.judge(part_id, payload)
        elif known[part_id] != payload:
            says = "The judge was asked more than once, with different answers."
            self.evidence.lost.setdefault(part_id, says)
            return {"passed": False, "text": f"{part_id}: {says}"}
        verdict = self.evidence.verdicts[part_id]
        return {"passed": verdict.passed, "text": verdict.text()}

    def _read_log(self) -> None:
        """Follow the kernel's log."""
        try:
            with self.log.open("rb") as file:
                file.seek(self.log_read)
                data = file.read(1 << 20)
        except FileNotFoundError:
            return
        data = data[: data.rfind(b"\n") + 1]
        self.log_read += len(data)
        for line in data.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if not isinstance(entry, dict):
                continue
            if isinstance(entry.get("pid"), int) and not self.pid:
                self.pid, self.since = entry["pid"], time.monotonic()
            if isinstance(entry.get("start"), str):
                self.running, self.since = entry["start"], time.monotonic()
                if self.running.startswith("answer-"):
                    self.last_answer = self.running
            if "end" in entry:
                self.running, self.since = "", time.monotonic()
            if isinstance(entry.get("refused"), str):
                cell = str(entry.get("cell") or self.last_answer)
                kind, _, part_id = cell.partition("-")
                if kind != "answer":  # a thread left behind, or a patched function
                    part_id = self.last_answer.partition("-")[2]
                if part_id in self.parts:
                    says = f"The answer cell {clean(entry['refused'])}: not while grading."
                    self.refused.setdefault(part_id, says)

    def _culprit(self) -> str:
        cell = self.running or self.last_answer
        part_id = cell.partition("-")[2]
        return part_id if part_id in self.parts else self.last_answer.partition("-")[2]

    def _end_kernel(self) -> None:
        if self.pid and not _has_ended(self.pid):
            try:
                os.kill(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                return

    def _read_junit(self) -> bool:
        """Take nbval's results; whether there are any."""
        try:
            cases = ElementTree.parse(self.junit).getroot().iter("testcase")
        except (OSError, ElementTree.ParseError):
            return False
        cells: dict[str, str] = {}
        for case in cases:
            number = re.search(r"Cell (\d+)", case.get("name") or "")
            if number and int(number[1]) < len(self.ids):
                bad = next((c for c in case if c.tag in ("failure", "error", "skipped")), None)
                text = "" if bad is None else _last_line(bad.text or bad.get("message") or "")
                cells[self.ids[int(number[1])]] = text
        self.evidence.cells = cells
        return bool(cells)


def shown_names(notebook: dict[str, Any]) -> dict[str, list[str]]:
    """What a notebook's own text imports from the exercises' modules: names by module."""
    found: dict[str, list[str]] = {}
    pattern = r"from minivllm\.grading\.exercises\.(e\w\d_\w+) import \(?([\w,\s]+)"
    for cell in notebook["cells"]:
        for module, names in re.findall(pattern, "".join(cell["source"])):
            first = names.replace("\n", ",") if "(" in names else names.split("\n")[0]
            found.setdefault(module, []).extend(re.findall(r"\w+", first))
    return found


def _environment(own: Path, home: Path, mail: Path) -> dict[str, str]:
    """Nothing of the grader's own environment: no tokens, no paths, no settings."""
    kept = {k: os.environ[k] for k in ("PATH", "LANG", "LC_ALL", "TZ") if k in os.environ}
    return {
        "LANG": "C.UTF-8",
        **kept,
        "HOME": str(home),
        "TMPDIR": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_PATH": str(own),
        "JUPYTER_PLATFORM_DIRS": "1",
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONHASHSEED": "0",
        MAILBOX: str(mail),
    }


def _take_letter(part_id: str, mail_fd: int) -> Any:
    """Take the payload that was left for a part; None if there is none.

    A letter that cannot be read is an empty string, which no check accepts.
    """
    name = f"{part_id}.payload"
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
    try:
        fd = os.open(name, flags, dir_fd=mail_fd)
    except FileNotFoundError:
        return None
    except OSError:
        fd = -1
    data = b""
    if fd >= 0:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            with open(fd, "rb", closefd=False) as file:
                data = file.read(MAX_PAYLOAD + 1)
        os.close(fd)
    try:
        os.unlink(name, dir_fd=mail_fd)
    except OSError:  # a folder of that name: out of the way with it
        with contextlib.suppress(OSError):
            odd = f"{part_id}.{time.monotonic_ns()}"
            os.rename(name, odd, src_dir_fd=mail_fd, dst_dir_fd=mail_fd)
    if len(data) > MAX_PAYLOAD:
        return data.decode("latin-1")  # for the judge to refuse in its own words
    try:
        letter = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    return "" if letter is None else letter


def _post(answer: dict[str, Any], part_id: str, mail_fd: int, own: Path) -> None:
    """Put a verdict into the mailbox, replacing whatever has that name there."""
    draft = own / "verdict"
    draft.write_text(json.dumps(answer), encoding="utf-8")
    try:
        os.replace(draft, f"{part_id}.verdict", dst_dir_fd=mail_fd)
    except OSError:
        return  # a folder of that name: the graded cell waits in vain


def _takes_too_much(folder: Path) -> bool:
    """Whether the files below `folder` are too many or too large together."""
    todo, files, size = [str(folder)], 0, 0
    while todo and files <= MAX_FILES and size <= DISK:
        # Gone again, or a path too long to follow.
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                files += 1
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                else:
                    size += entry.stat(follow_symlinks=False).st_size
                if files > MAX_FILES:
                    break
    return files > MAX_FILES or size > DISK


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False  # no Linux: the cell's time limit finds it
    return text.rpartition(")")[2].split()[:1] == ["Z"]


def clean(text: str) -> str:
    """`text` without control characters and colours, for reports and terminals.

    In a JUnit file pytest writes a colour's escape character as "#x1B".
    """
    text = re.sub(r"(?:\x1b|#x1B)\[[0-9;?]*[ -/]*[@-~]", "", text)
    return "".join(c for c in text if c in "\n\t" or (c.isprintable() and c != "\u2028"))


def _last_line(text: str) -> str:
    """What nbval's report of a failed cell comes down to."""
    lines = [line.strip() for line in clean(text).splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"\w*(Error|Exception|Exit|Interrupt)\b", line)]
    line = (errors or lines or ["nothing"])[-1]
    if line.startswith("NameError"):
        line += " (only answer cells are graded: what one needs stands in an answer cell)"
    return f"raised {shown(line, 400)[1:-1]}"
