"""Magics in an answer cell: the message names which, where, and what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_grading_attacks import judge_attacks
from toy_course import ToyCourse

from minivllm.grading.magics import magic_in, without_magics, words_for_magic

ROOT = Path(__file__).resolve().parents[1]
DEFINED = "def f():\n    return 2"


@pytest.mark.parametrize(
    ("source", "line", "name"),
    [
        (f"%%time\n{DEFINED}", 1, "%%time"),
        (f"\n%%capture out\n{DEFINED}", 2, "%%capture"),
        (f"{DEFINED}\n%timeit f()", 3, "%timeit"),
        ("def f():\n    %time x = 1\n    return x", 2, "%time"),
        ("x = %sql select 1", 1, "%sql"),
        ("files = !ls -l", 1, "!ls"),
        ("x = 1\n!pip install numpy", 2, "!pip"),
        (f"{DEFINED}\nf?", 3, "f?"),
        (f"?f\n{DEFINED}", 1, "?f"),
    ],
)
def test_a_magic_is_named_with_its_line(source: str, line: int, name: str) -> None:
    assert magic_in(source) == (line, name)
    assert f"Line {line} of the answer cell, `{name}`," in words_for_magic(source)
    assert words_for_magic(without_magics(source)) == ""


@pytest.mark.parametrize(
    "source",
    [
        DEFINED,
        "text = '''\n%%time\n!ls\n'''",
        "x = (7\n%3)",
        "x = '%d' \\\n  % 3",
        "x = = 3\n%time x",
        "x = a ? b : c",
        "x = = 3  # why?",
        "if x != 3:\nprint(x)",
        "\0",
        "(" * 100_000,
    ],
)
def test_what_is_no_magic_is_not_called_one(source: str) -> None:
    assert words_for_magic(source) == ""


IN_A_NOTEBOOK = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from minivllm.grading.check import NotYet, payload_for

shell, told = InteractiveShell.instance(), []
for cell in json.loads(sys.argv[1]):
    shell.run_cell(cell, store_history=True)
    try:
        told.append(payload_for(shell.user_ns["f"]))
    except NotYet as error:
        told.append("NOT YET " + str(error))
print(json.dumps(told))
"""


def test_in_a_notebook_the_cell_is_not_judged_by_an_older_text() -> None:
    """`%%time` hides the cell's text from Python: what ran before it must not stand in for it."""
    older = "def f():\n    return 1"
    cells = [older, f"%%time\n{DEFINED}", f"%%capture\n{DEFINED}", f"%time 1\n{DEFINED}", DEFINED]
    cells += [f"class f:\n    {number} + 1" for number in range(2)]
    cells += ["%%time\nclass f:\n    pass", "%time 3 + 4"]
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NOTEBOOK, json.dumps(cells)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    magic = "NOT YET Line 1 of the answer cell, `%%{}`, is a magic"
    assert told[0].strip() == older
    assert told[1].startswith(magic.format("time"))
    assert told[2].startswith(magic.format("capture"))
    assert told[3].startswith("NOT YET Line 1 of the answer cell, `%time`, is a magic")
    assert [text.strip() for text in told[4:7]] == cells[4:7]
    assert told[7].startswith(magic.format("time"))
    assert told[8] == told[7], "another cell's magic is its own affair"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the grader needs a POSIX system")
def test_the_report_names_it(tmp_path: Path) -> None:
    course = ToyCourse(tmp_path)
    say = "Line {} of the answer cell, `{}`, is a magic of IPython's.*cell of your own"
    codes = {
        "90a": ("%%time", "%%time\nRIGHT", say.format(1, "%%time")),
        "90b": ("%%capture", "%%capture\nRIGHT", say.format(1, "%%capture")),
        "90c": ("%time inside", "RIGHT\n%time 1 + 1", say.format(3, "%time")),
        "90d": ("?", "RIGHT\nf_d?", say.format(3, "f_d[?]")),
    }
    values = {
        "80a": ("%%timeit", "%%timeit -n1 -r1\nRIGHT", say.format(1, "%%timeit")),
        "80b": ("harmless", "%%time\nRIGHT", ""),
        "80c": ("no magic", "y = 3", "NameError(?!.*magic)"),
    }

    def filled(attacks: dict[str, tuple[str, str, str]]) -> dict[str, tuple[str, str, str]]:
        return {
            part: (name, source.replace("RIGHT", course.right(part)), why)
            for part, (name, source, why) in attacks.items()
        }

    bad = judge_attacks(course, "codes", filled(codes), course.codes)
    bad += judge_attacks(course, "values", filled(values), course.values)
    assert not bad, "\n".join(bad)
