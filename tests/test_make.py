"""`python tools/make.py` does what `make` does, command by command."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import make

ROOT = Path(__file__).resolve().parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
VARIABLES = {"BOOK_ARGS": "-W --keep-going", "PYTEST_ARGS": "-x -k 'a or b'", "LAB_ARGS": "--x=1",
             "GRADE_ARGS": "-v", "EXERCISES_ARGS": "--check", "BENCH_ARGS": "engines", "PORT": "81",
             "LAB_DIR": "exercises", "LIVE_ARGS": "--allow-root", "FAST_ARGS": "-q"}  # fmt: skip


def test_the_targets_are_the_makefiles():
    named = set(re.findall(r"(?m)^([a-z-]+):.*## ", MAKEFILE))
    assert set(make.TARGETS) == named - {"help", "bench-peers"}


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("target", [name for name, t in make.TARGETS.items() if t.commands])
def test_a_target_runs_the_makefiles_commands(target):
    line = ["make", "--dry-run", target, *(f"{name}={text}" for name, text in VARIABLES.items())]
    env = {name: text for name, text in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    theirs = []
    for text in done.stdout.splitlines():
        given = [word for word in shlex.split(text) if not re.match(r"(PYTHONPATH|PATH)=", word)]
        if given and "/bin/" in given[0]:
            theirs.append([given[0].rpartition("/")[2], *given[1:]])
    ours = [make.words(command, VARIABLES) for command in make.TARGETS[target].commands]
    assert ours == theirs[-len(ours) :]


def test_defaults_are_the_makefiles():
    text = MAKEFILE.replace("\\\n\t", "")
    for name, value in make.DEFAULTS.items():
        assert re.search(rf"(?m)^{name} (\?|:)= (.*)$", text)[2].split() == value.split()


def test_it_sets_up_once_and_again_when_the_requirements_change(tmp_path, monkeypatch):
    """Without pip: the commands are counted."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(make, "ROOT", tmp_path)
    ran = []

    def run(self, *command):
        ran.append(command)
        self.venv.mkdir(exist_ok=True)

    monkeypatch.setattr(make.Make, "run", run)
    make.Make({"PIP_ARGS": "--proxy x"}).make("setup")
    assert [" ".join(command[1:3]) for command in ran] == [
        "tools/check_python.py", "-m venv", "-m pip", "tools/get_model.py --proxy",
    ]  # fmt: skip
    ran.clear()
    make.Make({}).make("setup")
    assert ran == []
    stamp = tmp_path / ".venv" / ".stamp-requirements"
    later = stamp.stat().st_mtime + 10
    os.utime(tmp_path / "requirements.txt", (later, later))
    make.Make({}).make("setup")
    assert ran[0][1:3] == ("-m", "pip")


def test_a_failed_command_is_the_exit_status():
    code = "from tools import make; make.Make({}).run('python', '-c', 'raise SystemExit(7)')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 7


def test_what_is_no_target_is_told(capsys):
    assert make.main(["boko"]) == 2
    assert "targets: setup, book, test" in capsys.readouterr().out
