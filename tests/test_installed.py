"""The package as somebody gets it who has nothing else: built, installed, and used."""

from __future__ import annotations

import ast
import datetime
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import minivllm
from minivllm.__main__ import COMMANDS, find_checkout, main
from minivllm.extras import EXTRAS, extra
from minivllm.grading import sandbox
from tools import release

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("minivllm", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "MANIFEST.in")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is released, to build in."""
    copy = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist."""
    for module in ("build", "twine"):
        pytest.importorskip(module, reason=f"pip install -r .ci/requirements.txt brings {module}")
    return release.build(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def bare(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and nothing else, no pip and no compiler: its `bin`."""
    place = tmp_path_factory.mktemp("bare")
    venv.create(place, with_pip=False, symlinks=os.name != "nt")
    scripts = place / ("Scripts" if os.name == "nt" else "bin")
    python = str(scripts / "python")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index",
         "--disable-pip-version-check", str(built[0])],
        check=True,
        # A clone on it, in which `pip install .` was run once, counts as installed already.
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    return scripts


def run(bare: Path, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program of the bare environment, which finds nothing else on its PATH."""
    env = {"PATH": str(bare), "HOME": str(cwd)}
    return subprocess.run(
        [str(bare / command[0]), *command[1:]], cwd=cwd, env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_the_wheel_holds_the_package_and_the_sdist_what_builds_it(built):
    wheel, sdist = map(release.contents, built)
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "minivllm").rglob("*")
        if path.is_file() and not {"__pycache__", ".ipynb_checkpoints"} & set(path.parts)
    }
    assert {name for name in wheel if ".dist-info/" not in name} == package
    assert "minivllm/py.typed" in wheel
    assert {name for name in sdist if not name.startswith("minivllm.egg-info")} == {
        *package, *SHIPPED[1:], "PKG-INFO", "setup.cfg",
    }  # fmt: skip


def test_a_bare_python_simulates_and_replays_vllm(bare, tmp_path):
    done = run(bare, "minivllm", "sim", "--num-requests", "40", "--rate", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Little's Law" in done.stdout
    traces = ROOT / "tests" / "data" / "vllm-0.22.1-part.jsonl.gz"
    done = run(bare, "minivllm", "conformance", str(traces), cwd=tmp_path)
    assert done.stdout == "vLLM 0.22.1: 160/160 workloads identical\n"
    code = "from minivllm.runs.drive import drive_scenario as d; print(len(d('cramped').history))"
    done = run(bare, "python", "-c", code, cwd=tmp_path)
    assert int(done.stdout) > 3
    done = run(bare, "minivllm", "--version", cwd=tmp_path)
    assert done.stdout == f"minivllm {minivllm.__version__}\n"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("from minivllm import LLM", "LLM needs .*: pip install 'minivllm[engine]'"),
        ("import minivllm; minivllm.LLM()", "LLM needs .*: pip install 'minivllm[engine]'"),
        ("from minivllm.stepper import SchedulerStepper",
         "SchedulerStepper needs .*: pip install 'minivllm[notebook]'"),
        ("from minivllm.viz import offline", "a figure needs plotly.*'minivllm[notebook]'"),
        ("from minivllm.sim.sweep import read_results; read_results('x.parquet')",
         "needs pyarrow.*'minivllm[sim]'; or take .csv"),
    ],
)  # fmt: skip
def test_what_lacks_an_extra_says_which(code, words, bare, tmp_path):
    done = run(bare, "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(words.replace("[", r"\[").replace("]", r"\]"), done.stderr.splitlines()[-1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sim", "--report", "x.html"], "pip install 'minivllm[sim]'"),
        (["grade", "."], "--course DIR"),
        (["book"], "not in a clone of the book"),
        (["bench"], "not in a clone of the book"),
        (["simulate"], "'simulate' is no command; use sim, conformance"),
    ],
)
def test_a_command_that_cannot_begin_says_what_it_needs(arguments, words, bare, tmp_path):
    done = run(bare, "minivllm", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_small_model_comes_with_the_wheel(built, tmp_path):
    """Unpacked elsewhere, with this environment's PyTorch, and nothing else to be had."""
    pytest.importorskip("torch")
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(tmp_path / "wheel")
    code = (
        "import minivllm; from minivllm import LLM, SamplingParams; print(minivllm.__file__); "
        "(o,) = LLM('little-stories', device='cpu').generate('Once upon a time', "
        "SamplingParams(temperature=0, max_tokens=20), use_tqdm=False); print(o.outputs[0].text)"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "wheel"), "HF_HUB_OFFLINE": "1",
           "MINIVLLM_CACHE": str(tmp_path / "cache")}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    place, text = done.stdout.splitlines()
    assert place.startswith(str(tmp_path / "wheel"))
    assert "there" in text


# --- the command --------------------------------------------------------------------------------


def help_of(arguments, capsys):
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse's own
        status = stop.code
    assert status == 0
    return capsys.readouterr().out


def test_every_command_is_told_of_in_the_same_words(capsys):
    overview = help_of(["--help"], capsys)
    for name in COMMANDS:
        text = help_of([name, "--help"], capsys)
        assert text.startswith(f"usage: minivllm {name} "), text[:80]
        assert "-h" in text
        words = " ".join(text.split())
        assert re.search(r"exit status: 0 [\w ]+; 1 [\w ,]+; 2 [\w ]+\.", words), name
        first = " ".join(text.split("\n\n")[1].split())
        begins = COMMANDS[name].split()[0]
        assert first.lower().startswith(begins), (name, first)
        assert f"  {name:<12} {COMMANDS[name]}" in overview


def test_the_older_forms_are_the_same_commands():
    for module in ("minivllm.sim", "minivllm.conformance", "minivllm.grading", "minivllm.incident",
                   "benchmarks"):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
        )  # fmt: skip
        assert done.stdout.startswith(f"usage: python -m {module} ")


def test_the_clone_is_found_from_inside_it():
    assert find_checkout() == ROOT


# --- where there is no POSIX ----------------------------------------------------------------------

NO_POSIX = """
import importlib, os, pkgutil, signal, sys
import asyncio, concurrent.futures.process, multiprocessing, platform, subprocess, tempfile, uuid
for name in ("torch", "plotly.graph_objects", "anywidget", "tqdm.auto", "gguf", "tokenizers",
             "distributed", "pyarrow.parquet", "ipykernel.kernelbase", "nbval"):
    try:
        importlib.import_module(name)  # theirs are not what is tried
    except ImportError:
        pass
for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty"):
    sys.modules[name] = None
for name in ("fork", "killpg", "getuid", "geteuid", "setsid", "mkfifo", "sched_getaffinity",
             "uname", "sysconf", "getloadavg", "set_blocking", "posix_spawn", "getpgid",
             "O_NONBLOCK"):
    delattr(os, name) if hasattr(os, name) else None
for name in ("SIGKILL", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGSTOP", "setitimer", "alarm"):
    delattr(signal, name) if hasattr(signal, name) else None
from minivllm.extras import EXTRAS
import minivllm
foreign, tried = {"vllm", "triton"}.union(*EXTRAS.values()), 0
for module in pkgutil.walk_packages(minivllm.__path__, "minivllm."):
    name = module.name
    if name.startswith("minivllm.grading.") and not name.endswith((".report", ".sandbox")):
        continue  # some of them take the core apart when they are imported
    try:
        importlib.import_module(module.name)
        tried += 1
    except ModuleNotFoundError as error:
        if error.name not in foreign and "pip install" not in str(error):
            raise
print(tried)
"""


def test_every_module_is_imported_where_posix_is_missing():
    """As near to Windows as Linux comes: what only POSIX has is taken away first."""
    done = subprocess.run(
        [sys.executable, "-c", NO_POSIX], cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) > 60


def test_the_grader_says_where_it_cannot_run(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sandbox, "POSIX", False)
    with pytest.raises(SystemExit, match="2"):
        main(["grade", str(tmp_path)])
    assert "needs Linux or macOS; on Windows, use WSL" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="use WSL"):
        sandbox.run("x = 1", "x", "d01", {}, sandbox.Limits())
    assert main(["grade", "--list"]) == 0  # what needs no process still works


# --- the extras --------------------------------------------------------------------------------


def test_every_foreign_import_is_in_an_extra():
    """Triton comes with PyTorch where it runs; vLLM is there where `minivllm.vllm` is asked for."""
    known = {"minivllm", "triton", "vllm", *sys.stdlib_module_names}.union(*EXTRAS.values())
    for path in (ROOT / "minivllm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [getattr(node, "module", None) or node.names[0].name]
                assert {name.partition(".")[0] for name in names} <= known, path


def test_the_extras_are_those_of_pyproject():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {
        name: {re.match(r"[\w-]+", line)[0] for line in lines}
        for name, lines in project["optional-dependencies"].items()
    }
    brought_along = {"traitlets"}  # by anywidget
    for name, modules in EXTRAS.items():
        assert declared[name] == modules - brought_along
    assert project["dependencies"] == []


def test_an_error_that_no_extra_mends_stays_what_it_is():
    with pytest.raises(ModuleNotFoundError, match="No module named 'nonesuch'"), extra("sim", "X"):
        import nonesuch  # noqa: F401


# --- a release ------------------------------------------------------------------------------------


def test_a_release_writes_the_version_and_the_changelog(source, tmp_path):
    copy = tmp_path / "copy"
    (copy / "minivllm").mkdir(parents=True)
    for name in ("CHANGELOG.md", "minivllm/__init__.py"):
        shutil.copy(source / name, copy / name)
    before = (copy / "CHANGELOG.md").read_text(encoding="utf-8")
    release.prepare(copy, "7.1.0", datetime.date(2031, 2, 3))
    after = (copy / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]\n\n## [7.1.0] - 2031-02-03\n\n### Added" in after
    assert after.count("\n- ") == before.count("\n- ")
    assert '__version__ = "7.1.0"' in (copy / "minivllm" / "__init__.py").read_text("utf-8")
    with pytest.raises(release.ReleaseError, match="lists nothing under"):
        release.prepare(copy, "7.2.0", datetime.date(2031, 2, 4))
    with pytest.raises(release.ReleaseError, match=r"7\.1\.0 must be newer than 7\.1\.0"):
        release.prepare(copy, "7.1.0", datetime.date(2031, 2, 4))
    with pytest.raises(release.ReleaseError, match="three numbers"):
        release.prepare(copy, "7.2", datetime.date(2031, 2, 4))
    assert (copy / "CHANGELOG.md").read_text(encoding="utf-8") == after


def test_a_release_has_the_corpus_beside_it(tmp_path):
    """Whole, the same bytes each time, and none of what we decide otherwise."""
    data = tmp_path / "tests" / "data"
    data.mkdir(parents=True)
    with pytest.raises(release.ReleaseError, match="no recordings"):
        release.build_corpus(tmp_path, tmp_path / "dist", "7.1.0")
    given = min(
        (ROOT / "tests" / "data").glob("vllm-*.jsonl.gz"), key=lambda path: path.stat().st_size
    )
    shutil.copy(given, data)
    made = [release.build_corpus(tmp_path, tmp_path / out, "7.1.0") for out in ("a", "b")]
    assert made[0].name == "vllm-decisions-7.1.0.zip"
    assert made[0].read_bytes() == made[1].read_bytes()
    with zipfile.ZipFile(made[0]) as archive:
        manifest = json.loads(archive.read("vllm-decisions-7.1.0/manifest.json"))
        names = {Path(name).name for name in archive.namelist()}
        for name, row in manifest["files"].items():
            stored = archive.read(f"vllm-decisions-7.1.0/{name}")
            assert hashlib.sha256(stored).hexdigest() == row["sha256"]
            assert row["workloads"] == len(gzip.decompress(stored).splitlines()) > 0
    assert names == {*manifest["files"], "manifest.json", "README.md", "trace.schema.json"}
    workloads = [json.loads(line) for line in gzip.decompress(given.read_bytes()).splitlines()]
    workloads[0]["steps"][0]["preempted"] = ["nobody"]
    text = "".join(json.dumps(workload) + "\n" for workload in workloads)
    (data / given.name).write_bytes(gzip.compress(text.encode()))
    with pytest.raises(release.ReleaseError, match="workload 1: "):
        release.build_corpus(tmp_path, tmp_path / "c", "7.1.0")
    assert not (tmp_path / "c").exists()


def test_a_stranger_in_a_wheel_is_named(tmp_path):
    wheel = tmp_path / "minivllm-0.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("minivllm/core/x.py", "minivllm/__pycache__/x.py", "tests/x.py", "notes.txt"):
            archive.writestr(name, "")
    assert release.strangers(wheel) == ["minivllm/__pycache__/x.py", "notes.txt", "tests/x.py"]
