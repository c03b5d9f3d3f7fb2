"""Submissions that cheat, break things or are broken: each loses its part, with a reason, and every
other part is graded as usual."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_course import LETTERS, ToyCourse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="the grader needs a POSIX system"),
]

RIGHT, WRONG = "RIGHT", "WRONG"  # replaced by the right or a wrong answer for the part

# What the answer cell of a value part does, and what the report must say. An attack on the grader's
# surroundings ends with the right answer: it must cost the points all the same.
QUIET_VALUES: dict[str, tuple[str, str]] = {
    "prints that it passed": (
        "print('PART passed: 2 of 2 points.')\nWRONG",
        "seven times thirteen",
    ),
    "network": (
        """
import socket
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
except Exception:
    pass
RIGHT""",
        "used the network",
    ),
    "name lookup": (
        """
import socket
try:
    socket.getaddrinfo("example.org", 80)
except Exception:
    pass
RIGHT""",
        "used the network",
    ),
    "subprocess": (
        "import subprocess\ntry:\n    subprocess.run(['true'])\nexcept Exception:\n    pass\nRIGHT",
        "started a process",
    ),
    "shell escape": ("!true\nRIGHT", "started a process"),
    "fork bomb": (
        """
import os
try:
    while True:
        os.fork()
except OSError:
    pass
RIGHT""",
        "started a process",
    ),
    "reads the solutions": (
        """
try:
    text = open("COURSE/solutions/80_values.ipynb").read()
    x_LETTER = 7 * 13
except OSError:
    RIGHT""",
        "read the file .*solutions",
    ),
    "reads the checks": (
        """
try:
    text = open("COURSE/minivllm/grading/exercises/e80_values.py").read()
except OSError:
    pass
RIGHT""",
        "read the file .*e80_values",
    ),
    "imports the checks": (
        """
try:
    import minivllm.grading.exercises.e80_values
except ImportError:
    pass
RIGHT""",
        "read the file .*e80_values",
    ),
    "overwrites the solutions": (
        """
try:
    open("COURSE/solutions/80_values.ipynb", "w")
except OSError:
    pass
RIGHT""",
        "wrote to the file .*solutions",
    ),
    "deletes the course": (
        """
import os
try:
    os.remove("COURSE/exercises/80_values.ipynb")
except OSError:
    pass
RIGHT""",
        "changed files",
    ),
    "links to the solutions": (
        """
import os
try:
    os.symlink("COURSE/solutions", "here")
    os.listdir("here")
except OSError:
    pass
RIGHT""",
        "changed files",
    ),
    "signals the parent": (
        "import os\ntry:\n    os.kill(os.getppid(), 9)\nexcept OSError:\n    pass\nRIGHT",
        "sent a signal",
    ),
    "stops itself": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "sent a signal"),
    "replaces check": (
        "import minivllm.grading\nminivllm.grading.check = lambda *a: print('passed')\nWRONG",
        "never asked the judge",
    ),
    "lies about being an int": (
        """
class Seven(int):
    def __eq__(self, other):
        return True
    __hash__ = int.__hash__
x_LETTER = Seven(1)""",
        "seven times thirteen",
    ),
    "skips cells": ("# NBVAL_SKIP\nRIGHT", "The answer cell .*|NameError|never asked"),
    "expects an exception": (
        "# NBVAL_RAISES_EXCEPTION\nraise ValueError('x')",
        "never asked the judge.*NameError|NameError|Expected exception",
    ),
    "asks the judge until it agrees": (
        """
from minivllm.grading import check
for guess in range(88, 95):
    try:
        check("PART", guess)
    except AssertionError:
        continue
    x_LETTER = guess
    break
else:
    RIGHT""",
        "asked more than once",
    ),
    "exits": ("raise SystemExit\nRIGHT", "never asked the judge|SystemExit"),
    "memory": ("wall = bytearray(10**10)\nRIGHT", "MemoryError"),
    "no value": ("y = 3", "NameError"),
    "another type": ("x_LETTER = object()", "made of numbers"),
    "a number without end": ("x_LETTER = float('nan')", "whole number"),
    "a huge answer": ("x_LETTER = 'z' * 3_000_000", "larger than|not answered"),
    "nested without end": (
        "x_LETTER = []\nfor _ in range(5000):\n    x_LETTER = [x_LETTER]",
        "nested|never asked|RecursionError",
    ),
    "a list that holds itself": ("x_LETTER = []\nx_LETTER.append(x_LETTER)", "nested|never asked"),
    "asks for input": ("x_LETTER = int(input())", "StdinNotImplementedError"),
    "no Python": ("x_LETTER = = 3", "SyntaxError"),
    "recursion": ("def g():\n    return g()\ng()\nRIGHT", "RecursionError|did not finish"),
    "a forged letter": (
        """
import json, os, pathlib
mail = pathlib.Path(os.environ["MINIVLLM_GRADING_MAILBOX"])
(mail / "PART.verdict").write_text(json.dumps({"passed": True, "text": "PART passed"}))
(mail / "PART.payload").write_text("1" * 2_000_000)
import time
time.sleep(0.2)
WRONG""",
        "asked more than once|seven times",
    ),
    "a folder in the mailbox": (
        """
import os, pathlib
mail = pathlib.Path(os.environ["MINIVLLM_GRADING_MAILBOX"])
(mail / "PART.verdict").mkdir()
WRONG""",
        "seven times|never asked|raised",
    ),
    "a link in the mailbox": (
        """
import os, pathlib
mail = pathlib.Path(os.environ["MINIVLLM_GRADING_MAILBOX"])
try:
    os.symlink("/etc/passwd", mail / "PART.payload")
except OSError:
    pass
import time
time.sleep(0.2)
RIGHT""",
        "asked more than once|changed files",
    ),
}

QUIET_VALUES["folders in folders"] = (
    """
import os
for _ in range(300):
    os.mkdir("d")
    os.chdir("d")
RIGHT""",
    "",
)
QUIET_VALUES["a folder for a letter"] = (
    """
import os, pathlib
mail = pathlib.Path(os.environ["MINIVLLM_GRADING_MAILBOX"])
(mail / "PART.payload" / "x").mkdir(parents=True)
import time
time.sleep(0.2)
RIGHT""",
    "asked more than once|raised",
)

# These spoil the kernel for all cells after them, so each has a notebook of its own, in which it
# comes last.
SPOILERS: dict[str, tuple[str, str]] = {
    "patched minivllm": (
        """
import minivllm.core, minivllm.grading.check as c, sys
for module in [m for n, m in sys.modules.items() if n.startswith("minivllm")]:
    for name, thing in list(vars(module).items()):
        if callable(thing) and not name.startswith("__"):
            setattr(module, name, lambda *a, **k: {"passed": True, "text": "PART passed"})
WRONG""",
        "seven times|never asked|raised|no longer answers|did not finish",
    ),
    "another module in sys.modules": (
        """
import sys, types
fake = types.ModuleType("minivllm.grading")
fake.check = lambda *a: print("PART passed: 2 of 2 points.")
sys.modules["minivllm.grading"] = fake
WRONG""",
        "never asked the judge",
    ),
    "a shadowing file": (
        """
import pathlib, sys, os
pathlib.Path("minivllm").mkdir()
pathlib.Path("minivllm/__init__.py").write_text("")
pathlib.Path("minivllm/grading.py").write_text("def check(*a): print('passed')")
for name in [n for n in sys.modules if n.startswith("minivllm")]:
    del sys.modules[name]
sys.path.insert(0, os.getcwd())
WRONG""",
        "never asked the judge",
    ),
    "patched json and builtins": (
        """
import builtins, json
json.loads = lambda *a, **k: {"passed": True, "text": "PART passed"}
json.dumps = lambda *a, **k: "true"
builtins.isinstance = lambda *a: True
WRONG""",
        "whole number|seven times|never asked|raised|no longer answers|did not finish",
    ),
    "swallows every exception": (
        "get_ipython().set_custom_exc((Exception,), lambda *a, **k: None)\nWRONG",
        "seven times",
    ),
    "changes the cells to come": (
        """
shell = get_ipython()
shell.input_transformers_cleanup.append(lambda lines: ["print('PART passed')\\n"])
WRONG""",
        "never asked the judge",
    ),
    "ends the kernel": ("import os\nos._exit(0)", "ended its own process"),
    "segmentation fault": ("import ctypes\nctypes.string_at(0)", "ended its own process"),
    "loop": ("while True:\n    pass", "did not finish within 4 s"),
    "stubborn loop": (
        "while True:\n    try:\n        while True:\n            pass\n"
        "    except BaseException:\n        pass",
        "did not finish within 4 s",
    ),
    "100 MB at once": ("print('z' * 10**8)\nRIGHT", "printed far too much"),
    "100 MB in small pieces": (
        "for _ in range(10**6):\n    print('z' * 100)\nRIGHT",
        "printed far too much|did not finish",
    ),
    "fills the disk": (
        """
for number in range(1000):
    with open(f"file{number}", "wb") as file:
        file.truncate(30_000_000)
RIGHT""",
        "wrote too many files",
    ),
    "a thread in the background": (
        """
import threading, time
def later():
    while True:
        time.sleep(0.05)
        try:
            open("COURSE/solutions/80_values.ipynb").read()
        except OSError:
            pass
threading.Thread(target=later).start()
time.sleep(0.3)
RIGHT""",
        "read the file",
    ),
    "a thread for each number": (
        """
import threading, time
for _ in range(100_000):
    threading.Thread(target=time.sleep, args=(60,)).start()
RIGHT""",
        "can't start new thread|ended its own process|did not finish|MemoryError",
    ),
}

CODES: dict[str, tuple[str, str]] = {
    "loop": ("def f_LETTER(a, b):\n    while True:\n        pass", "did not finish within 2 s"),
    "loop while defining": ("while a:\n    pass\nRIGHT", "NameError"),
    "exits": (
        "RIGHT\nimport os\nreal = f_LETTER\ndef f_LETTER(a, b):\n    os._exit(0)",
        "ended its",
    ),
    "SystemExit": ("def f_LETTER(a, b):\n    raise SystemExit(0)", "called exit"),
    "memory": ("def f_LETTER(a, b):\n    return len(bytearray(10**10))", "more memory"),
    "memory in pieces": (
        "def f_LETTER(a, b):\n    wall = []\n    while True:\n        wall.append('z' * 10**7)",
        "more memory",
    ),
    "output": (
        "def f_LETTER(a, b):\n    print('z' * 10**8)\n    return a + b",
        "printed more than",
    ),
    "endless output": (
        "def f_LETTER(a, b):\n    while True:\n        print('z' * 1000)",
        "printed more than",
    ),
    "network": (
        """
def f_LETTER(a, b):
    import socket
    try:
        socket.create_connection(("127.0.0.1", 9))
    except Exception:
        pass
    return a + b""",
        "used the network",
    ),
    "fork bomb": (
        "import os\ndef f_LETTER(a, b):\n    while True:\n        os.fork()",
        "started a process",
    ),
    "subprocess": (
        """
import subprocess
def f_LETTER(a, b):
    try:
        subprocess.run(["true"])
    except BaseException:
        pass
    return a + b""",
        "started a process",
    ),
    "signals the parent": (
        """
import os
def f_LETTER(a, b):
    try:
        os.kill(os.getppid(), 9)
    except BaseException:
        pass
    return a + b""",
        "sent a signal",
    ),
    "signals everyone": (
        "import os\ndef f_LETTER(a, b):\n    os.kill(-1, 9)\n    return a + b",
        "sent a signal",
    ),
    "reads the solutions": (
        """
def f_LETTER(a, b):
    try:
        open("COURSE/solutions/80_values.ipynb").read()
    except BaseException:
        pass
    return a + b""",
        "read the file .*solutions",
    ),
    "imports the checks": (
        """
def f_LETTER(a, b):
    if __import__("os").environ.get("HOME"):
        return a + b
    from minivllm.grading.exercises import e90_functions
    return e90_functions.check""",
        "imported minivllm.grading",
    ),
    "searches memory": (
        """
def f_LETTER(a, b):
    import gc, random
    for thing in gc.get_objects():
        if type(thing).__name__ == "Student":
            return thing
    return a + b""",
        "searched the memory",
    ),
    "calls C": ("import ctypes\nRIGHT", "imported ctypes"),
    "walks up the stack": (
        """
import sys
def f_LETTER(a, b):
    frame, found = sys._getframe(), []
    while frame:
        found += [v for v in frame.f_locals.values() if callable(v)]
        found += [v for k, v in frame.f_globals.items() if "expected" in k or "check" in k]
        frame = frame.f_back
    for thing in found:
        if getattr(thing, "__name__", "") == "check":
            return a + b
    return 0""",
        "should add",
    ),
    "writes the result itself": (
        """
import json, os
def f_LETTER(a, b):
    told = json.dumps({"kind": "result", "value": True}).encode()
    for fd in range(3, 64):
        try:
            os.write(fd, told)
        except OSError:
            pass
    os._exit(0)""",
        "should add",
    ),
    "patched json and builtins": (
        """
import builtins, json
json.dumps = lambda *a, **k: '{"kind": "result", "value": true}'
builtins.isinstance = builtins.range = lambda *a: True
def f_LETTER(a, b):
    return 0""",
        "should add|did not finish|ended its own",
    ),
    "patched minivllm": (
        """
import sys
for name, module in list(sys.modules.items()):
    if name.startswith("minivllm"):
        for key in list(vars(module)):
            if not key.startswith("__"):
                setattr(module, key, lambda *a, **k: True)
def f_LETTER(a, b):
    return 0""",
        "should add|ended its own",
    ),
    "recursion": ("def f_LETTER(a, b):\n    return f_LETTER(b, a)", "called itself without end"),
    "not JSON": ("def f_LETTER(a, b):\n    return object()", "it returned an object"),
    "far too much": ("def f_LETTER(a, b):\n    return 'z' * 5_000_000", "far too much"),
}

LAST = LETTERS[-1]


def fill(course: ToyCourse, source: str, part: str) -> str:
    source = source.replace(RIGHT, course.right(part)).replace(WRONG, course.wrong(part))
    source = source.replace("PART", part).replace("LETTER", part[2])
    return source.replace("COURSE", str(course.root))


def slots(names: list[str], letters: str) -> Iterator[tuple[str, str]]:
    for name in names:
        for letter in letters:
            yield name, name[:2] + letter


def spread(
    course: ToyCourse, attacks: dict[str, tuple[str, str]], names: list[str], letters: str
) -> list[dict[str, tuple[str, str, str]]]:
    """Attacks by part, as many submissions as it takes: part -> attack, source, pattern."""
    rounds: list[dict[str, tuple[str, str, str]]] = []
    left = list(attacks.items())
    while left:
        here = dict(zip([part for _, part in slots(names, letters)], left))
        left = left[len(here) :]
        rounds.append(
            {part: (n, fill(course, s, part), why) for part, (n, (s, why)) in here.items()}
        )
    return rounds


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> ToyCourse:
    return ToyCourse(tmp_path_factory.mktemp("toy"))


def judge_attacks(
    course: ToyCourse, who: str, attacks: dict[str, tuple[str, str, str]], names: list[str]
) -> list[str]:
    """Grade a submission with these attacks; what is wrong with the verdicts."""
    answers = {part: source for part, (_, source, _) in attacks.items()}
    used = [name for name in names if any(part[:2] == name[:2] for part in attacks)]
    for name in used:
        course.hand_in(who, name, course.notebook(name, answers))
    only = tuple(o for name in used for o in ("--only", name))
    told = course.grade(course.submissions / who, options=only)[who]
    bad = []
    for part, verdict in told.items():
        if part not in attacks:
            if not verdict["passed"]:
                bad.append(f"{part}, a bystander, lost its points: {verdict['says']}")
            continue
        name, _, pattern = attacks[part]
        if not pattern:
            if not verdict["passed"]:
                bad.append(f"{name}: does no harm and lost its points: {verdict['says']}")
        elif verdict["passed"] or verdict["points"]:
            bad.append(f"{name}: earned its points")
        elif verdict["broken"]:
            bad.append(f"{name}: counts as the grader's fault: {verdict['says']}")
        elif not re.search(pattern, verdict["says"], re.DOTALL):
            bad.append(f"{name}: the report says {verdict['says']!r}, not {pattern!r}")
    return bad


def test_attacks_from_value_cells(course: ToyCourse) -> None:
    bad = []
    for number, attacks in enumerate(spread(course, QUIET_VALUES, course.values, LETTERS[:-1])):
        bad += judge_attacks(course, f"values{number}", attacks, course.values)
    assert not bad, "\n".join(bad)


def test_attacks_that_spoil_the_kernel(course: ToyCourse) -> None:
    bad = []
    for number, attacks in enumerate(spread(course, SPOILERS, course.values, LAST)):
        bad += judge_attacks(course, f"spoilers{number}", attacks, course.values)
    assert not bad, "\n".join(bad)


def test_attacks_from_code_cells(course: ToyCourse) -> None:
    bad = []
    for number, attacks in enumerate(spread(course, CODES, course.codes, LETTERS[:-1])):
        bad += judge_attacks(course, f"codes{number}", attacks, course.codes)
    assert not bad, "\n".join(bad)


def test_an_answer_that_dies_early_spares_the_parts_after_it(course: ToyCourse) -> None:
    attacks = {"80a": ("dies", "import os\nos._exit(1)", "ended its own process")}
    attacks["80c"] = ("loops", "while True:\n    pass", "did not finish")
    assert not judge_attacks(course, "early", attacks, ["80_values"])


def test_the_audit_hook_alone_stops_plain_attempts(tmp_path: Path) -> None:
    """Where the system has neither Landlock nor seccomp."""
    bare = ToyCourse(tmp_path)
    guard = bare.root / "minivllm" / "grading" / "guard.py"
    text = guard.read_text()
    for name in ("landlock_version() -> int:", "seccomp() -> bool:"):
        assert f"def {name}" in text
        text = text.replace(f"def {name}", f"def {name}\n    return 0\n\n\ndef _unused_{name}")
    guard.write_text(text)
    done = bare.run("-c", "from minivllm.grading import guard; print(guard.landlock([], []))")
    assert done.stdout.strip() == "False"
    plain = ("network", "subprocess", "fork bomb", "reads the solutions", "signals the parent")
    more = (
        "reads the checks",
        "overwrites the solutions",
        "deletes the course",
        "prints that it passed",
    )
    values = {name: QUIET_VALUES[name] for name in (*plain, *more) if name in QUIET_VALUES}
    codes = {name: CODES[name] for name in (*plain, "calls C", "searches memory")}
    (attacks,) = spread(bare, values, bare.values, LETTERS[:-1])
    bad = judge_attacks(bare, "values", attacks, bare.values)
    (attacks,) = spread(bare, codes, bare.codes, LETTERS[:-1])
    bad += judge_attacks(bare, "codes", attacks, bare.codes)
    assert not bad, "\n".join(bad)
    assert (bare.root / "exercises" / "80_values.ipynb").exists()


# ------------------------------------------------------------------ notebooks that are none


def cell(notebook: dict[str, Any], cell_id: str) -> dict[str, Any]:
    return next(c for c in notebook["cells"] if c["id"] == cell_id)


def test_tampered_notebooks(course: ToyCourse) -> None:
    """Each submission is tampered with in one way: which parts lose, and why."""
    name = "80_values"
    whole = course.notebook(name)
    expected: dict[str, tuple[str, str]] = {}  # submission -> parts that lose, pattern

    def hand_in(who: str, notebook: object, lost: str, why: str) -> Path:
        expected[who] = (lost, why)
        return course.hand_in(who, name, notebook)

    def changed() -> dict[str, Any]:
        return copy.deepcopy(whole)

    notebook = changed()
    cell(notebook, "check-80a")["source"] = "print('80a passed: 2 of 2 points.')"
    hand_in("edited", notebook, "a", "graded cell .* was changed")
    notebook = changed()
    cell(notebook, "check-80b")["source"] = [
        "from minivllm.grading import check  # the judge\n", "\n", "check('80b',  x_b)",
    ]  # fmt: skip
    hand_in("reformatted", notebook, "", "")
    notebook = changed()
    notebook["cells"].remove(cell(notebook, "check-80c"))
    hand_in("deleted", notebook, "c", "graded cell .* was deleted")
    notebook = changed()
    notebook["cells"].remove(cell(notebook, "answer-80c"))
    hand_in("no answer", notebook, "c", "answer cell .* is missing")
    notebook = changed()
    notebook["cells"].append(cell(notebook, "answer-80d"))
    notebook["cells"].append(cell(notebook, "check-80e"))
    hand_in("doubled", notebook, "de", "There are 2 cells with the id or the metadata of")
    notebook = changed()
    cell(notebook, "answer-80a")["cell_type"] = "markdown"
    hand_in("a text", notebook, "a", "not a code cell")
    notebook = changed()
    notebook["cells"].reverse()
    hand_in("reversed", notebook, "", "")
    notebook = changed()
    for c in notebook["cells"]:
        c.pop("id")  # a tool that knows only older notebooks
    hand_in("no ids", notebook, "", "")
    notebook = changed()
    for c in notebook["cells"]:
        if c["id"].startswith("answer-"):
            c["source"] = "pass"
        if c["id"].startswith("check-"):
            words = {"output_type": "stream", "name": "stdout", "text": ["passed: 2 of 2 points."]}
            c["outputs"], c["execution_count"] = [words], 7
    hand_in("forged outputs", notebook, LETTERS, "NameError")
    notebook = changed()
    notebook["cells"].insert(0, {"cell_type": "code", "id": "mine", "source": "1 / 0"})
    notebook["cells"].insert(0, {"cell_type": 3, "id": ["x"], "source": {"a": 1}, "metadata": 4})
    hand_in("more cells", notebook, "", "")
    notebook = changed()
    cell(notebook, "answer-80a")["source"] = "x_a = 91\n" + "#" * 200_000
    cell(notebook, "answer-80b")["source"] = "x_b = '\ud800'"
    hand_in("odd text", notebook, "ab", "more than 100,000 characters|whole number")

    hand_in("no JSON", "{'cells': []", LETTERS, "not valid JSON")
    hand_in("empty", "", LETTERS, "not valid JSON")
    hand_in("deep", "[" * 1_000_000, LETTERS, "not valid JSON")
    hand_in("a list", "[1, 2]", LETTERS, "not a notebook")
    hand_in("no cells", '{"cells": [1, null]}', LETTERS, "not a notebook")
    hand_in("huge", " " * 20_000_001, LETTERS, "larger than 20,000,000 bytes")
    path = hand_in("link", whole, LETTERS, "symbolic link")
    path.unlink()
    path.symlink_to(course.root / "solutions" / f"{name}.ipynb")
    path = hand_in("pipe", whole, LETTERS, "not a regular file")
    path.unlink()
    os.mkfifo(path)
    path = hand_in("folder", whole, LETTERS, "cannot be read")
    path.unlink()
    path.mkdir()
    path = hand_in("not UTF-8", whole, LETTERS, "not valid JSON")
    path.write_bytes(b"\xff\xfe\x00" * 100)

    folders = [course.submissions / who for who in expected]
    told = course.grade(*folders, options=("--only", "80"))
    bad = []
    for who, (lost, why) in expected.items():
        for part, verdict in told[who].items():
            if verdict["passed"] == (part[2] in lost):
                bad.append(f"{who}: {part} {'passed' if verdict['passed'] else verdict['says']}")
            elif part[2] in lost and not re.search(why, verdict["says"]):
                bad.append(f"{who}: {part} says {verdict['says']!r}, not {why!r}")
    assert not bad, "\n".join(bad)


def test_nothing_of_a_submission_is_imported(course: ToyCourse) -> None:
    """Modules and settings beside the notebooks are never seen by the grader."""
    notebook = course.notebook("80_values", {"80a": "x_a = 1"})
    folder = course.hand_in("neighbours", "80_values", notebook).parent
    trap = "import pathlib; pathlib.Path('COURSE/trapped').touch()".replace(
        "COURSE", str(course.root)
    )
    for name in ("minivllm.py", "json.py", "conftest.py", "sitecustomize.py", "nbval.py"):
        (folder / name).write_text(trap)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = --collect-only\n")
    told = course.grade(folder, options=("--only", "80"))["neighbours"]
    assert [part for part, verdict in told.items() if not verdict["passed"]] == ["80a"]
    assert not (course.root / "trapped").exists()
