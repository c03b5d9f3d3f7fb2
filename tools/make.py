"""What `make` does, where there is none (Windows): the same targets, files and variables.

    python tools/make.py book
    python tools/make.py test "PYTEST_ARGS=-x -k scheduler"
    python tools/make.py              lists the targets

The standard library is enough. `tests/test_make.py` holds it to the Makefile, command by command.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = {
    "VENV": ".venv",
    "PORT": "8000",
    "LAB_DIR": "book",
    "PYTEST_ARGS": "-n auto --maxprocesses 4 --dist loadgroup",
    "FAST_ARGS": "-q -n 2 --dist loadgroup",
    "FAST": "tests/test_core.py tests/test_core_properties.py tests/test_conformance.py "
    "tests/test_arrows.py tests/test_core_is_pure.py tests/test_llm.py "
    "tests/test_stepper_page.py::test_play_jump_home_and_end "
    "tests/test_stepper_page.py::test_a_shared_link_opens_at_its_step",
}
"""Variables of the Makefile that have a value of their own; others are empty."""

NBVAL = "python -m pytest --nbval -p no:cacheprovider -q --nbval-cell-timeout=180"


@dataclass(frozen=True)
class Target:
    """Commands, whose first word is a program of the environment; `$NAME` is a variable."""

    needs: tuple[str, ...]
    commands: tuple[str, ...] = ()


TARGETS: dict[str, Target] = {
    "setup": Target(("model",)),
    "book": Target(("model",), ("jupyter-book build . $BOOK_ARGS",)),
    "test": Target(("model",), ("python -m pytest $PYTEST_ARGS",)),
    "test-all": Target(("model",), ("python -m pytest --all-of-it $PYTEST_ARGS",)),
    "test-fast": Target(("model",), ("python -m pytest $FAST_ARGS $FAST",)),
    "lab": Target(("model", "lab-settings"), ("jupyter lab --notebook-dir=$LAB_DIR $LAB_ARGS",)),
    "grade": Target(("requirements",), (f"{NBVAL} exercises/ $GRADE_ARGS",)),
    "exercises": Target(
        ("requirements",), ("python -m minivllm.grading.generate $EXERCISES_ARGS",)
    ),
    "solutions": Target(("requirements",), (f"{NBVAL} solutions/ $GRADE_ARGS",)),
    "serve": Target(
        ("book",),
        ("python tools/serve.py $PORT",),
    ),
    "live": Target(("book",), ("python tools/live.py $PORT $LIVE_ARGS",)),
    "zip": Target(("book",), ("python tools/offline_zip.py",)),
    "lint": Target(("model",), ("ruff check .", "mypy")),
    "upstream-check": Target(("model",), ("python tools/check_upstream.py",)),
    "bench": Target(("model",), ("python -m benchmarks $BENCH_ARGS",)),
    "clean": Target(("no-build",)),
    "distclean": Target(("no-build", "no-environment")),
}
"""What the Makefile has, less `bench-peers`: the peers run on Linux."""


def words(command: str, variables: dict[str, str]) -> list[str]:
    """A command with its variables put in, as words."""
    found = []
    for word in command.split():
        name = word.rpartition("$")[2]
        if "$" in word:
            value = variables.get(name, DEFAULTS.get(name, ""))
            if word.startswith("$"):
                found += shlex.split(value)
            else:
                found.append(word.replace(f"${name}", value))
        else:
            found.append(word)
    return found


class Make:
    """One call: its variables, and what was done already."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.variables = {**os.environ, **variables}
        self.venv = ROOT / self.variables.get("VENV", DEFAULTS["VENV"])
        self.bin = self.venv / ("Scripts" if os.name == "nt" else "bin")

    def make(self, name: str) -> None:
        """A target after all that it needs."""
        if name in TARGETS:
            for need in TARGETS[name].needs:
                self.make(need)
            for command in TARGETS[name].commands:
                program, *arguments = words(command, self.variables)
                self.run(self.program(program), *arguments)
        else:
            getattr(self, name.replace("-", "_"))()
        if name == "book":
            print(f"\nThe book: {ROOT / '_build' / 'html' / 'index.html'}")

    def program(self, name: str) -> str:
        """A program of the environment."""
        return str(self.bin / (f"{name}.exe" if os.name == "nt" else name))

    def run(self, *command: str) -> None:
        """Run it at the root; end with its status if it fails."""
        path = os.pathsep.join([str(self.bin), os.environ.get("PATH", "")])
        env = {**self.variables, "PYTHONPATH": str(ROOT), "PATH": path}
        status = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
        if status != 0:
            sys.exit(status)

    # Each step leaves a stamp, the Makefile's, so a second run does nothing.

    def environment(self) -> None:
        """The virtual environment."""
        if not (self.venv / ".stamp-venv").exists():
            self.run(sys.executable, "tools/check_python.py")
            self.run(sys.executable, "-m", "venv", str(self.venv))
            (self.venv / ".stamp-venv").touch()

    def requirements(self) -> None:
        """What requirements.txt names."""
        self.environment()
        stamp = self.venv / ".stamp-requirements"
        sources = (ROOT / "requirements.txt", ROOT / "pyproject.toml")
        newest = max(path.stat().st_mtime for path in sources)
        if not stamp.exists() or stamp.stat().st_mtime < newest:
            arguments = shlex.split(self.variables.get("PIP_ARGS", ""))
            self.run(
                self.program("python"), "-m", "pip", "install", "--disable-pip-version-check",
                *arguments, "-r", "requirements.txt",
            )  # fmt: skip
            stamp.touch()

    def model(self) -> None:
        """And the default model."""
        self.requirements()
        stamp, tool = self.venv / ".stamp-model", ROOT / "tools" / "get_model.py"
        newest = max(tool.stat().st_mtime, (self.venv / ".stamp-requirements").stat().st_mtime)
        if not stamp.exists() or stamp.stat().st_mtime < newest:
            arguments = shlex.split(self.variables.get("PIP_ARGS", ""))
            self.run(self.program("python"), "tools/get_model.py", *arguments)
            stamp.touch()

    def lab_settings(self) -> None:
        """Markdown files open as notebooks."""
        folder = self.venv / "share" / "jupyter" / "lab" / "settings"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tools" / "lab-overrides.json", folder / "overrides.json")

    def no_build(self) -> None:
        """Remove the built site and the caches."""
        for name in ("_build", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"):
            shutil.rmtree(ROOT / name, ignore_errors=True)
        for folder in [*ROOT.rglob("__pycache__")]:
            if self.venv not in folder.parents:
                shutil.rmtree(folder, ignore_errors=True)

    def no_environment(self) -> None:
        """Remove the virtual environment."""
        shutil.rmtree(self.venv, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    variables = dict(word.split("=", 1) for word in arguments if "=" in word)
    names = [word for word in arguments if "=" not in word]
    asks = not names or bool({"-h", "--help"} & set(names))
    if asks or any(name not in TARGETS for name in names):
        print(f"usage: python tools/make.py TARGET [NAME=VALUE ...]\ntargets: {', '.join(TARGETS)}")
        return 0 if asks else 2
    for name in names:
        Make(variables).make(name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
