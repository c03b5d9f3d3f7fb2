"""The workflows that publish the site and look for a newer vLLM, as far as no host is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

from tools import newer_vllm  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
GITHUB = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
GITLAB = ROOT / ".gitlab-ci.yml"


def steps(path: Path) -> dict[str, list[str]]:
    """Job -> its shell commands."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path == GITLAB:
        return {name: job["script"] for name, job in data.items() if "script" in job}
    return {
        name: [step["run"] for step in job["steps"] if "run" in step]
        for name, job in data["jobs"].items()
    }


COMMANDS = [
    pytest.param(command, id=f"{path.name}-{job}-{index}")
    for path in (*GITHUB, GITLAB)
    for job, commands in steps(path).items()
    for index, command in enumerate(commands)
]


@pytest.mark.parametrize("path", [*GITHUB, GITLAB], ids=lambda path: path.name)
def test_a_workflow_is_what_its_host_understands(path):
    pytest.importorskip("check_jsonschema", reason=".ci/requirements.txt has it")
    schema = "vendor.gitlab-ci" if path == GITLAB else "vendor.github-workflows"
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_step_calls_is_there(command, tmp_path):
    assert subprocess.run(["bash", "-nc", command], check=False).returncode == 0
    for words in re.findall(r"(?m)^make .*$", command):
        done = subprocess.run(
            ["bash", "-c", f"exec {words.replace('make', 'make --dry-run', 1)}"], cwd=ROOT,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    for script in re.findall(r"\.ci/\w+(?![\w.])", command):
        assert subprocess.run(["bash", "-n", script], cwd=ROOT, check=False).returncode == 0
    for word in re.findall(r"\.ci/site (\w+)", command):
        assert re.search(rf"(?m)^    {word}\)$", (ROOT / ".ci" / "site").read_text())
    for tool in re.findall(r"python (tools/\w+\.py)", command):
        done = subprocess.run(
            [sys.executable, tool, "--help"], cwd=ROOT, capture_output=True, check=False
        )
        assert done.returncode == 0
    if command.startswith("minivllm "):
        done = subprocess.run(
            [sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
    for test in re.findall(r"tests/\w+\.py", command):
        assert (ROOT / test).is_file()


def test_where_all_tests_run_none_is_skipped_for_want_of_a_package():
    """The sweep of 10,000 runs among them: without Dask it would be skipped, without a word."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8"))["jobs"]
    required = {"MINIVLLM_REQUIRE_BROWSER": "1", "MINIVLLM_REQUIRE_OPTIONAL": "1"}
    lines = [step["run"] for step in jobs["all"]["steps"] if "run" in step]
    assert required.items() <= jobs["all"]["env"].items()
    assert lines[-1] == "make test-all"
    assert "pip install --quiet -r .ci/requirements.txt" in "".join(lines[:-1])
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "env MINIVLLM_REQUIRE_BROWSER=1 MINIVLLM_REQUIRE_OPTIONAL=1 make test" in script
    assert script.index("-r .ci/requirements.txt") < script.index("make test")
    assert [step["run"] for step in jobs["test"]["steps"] if "run" in step] == ["bash .ci/run"]


def test_both_hosts_build_and_test_alike():
    github = steps(ROOT / ".github" / "workflows" / "site.yml")["build"]
    gitlab = steps(GITLAB)["pages"]
    assert github == gitlab[: len(github)]
    assert gitlab[len(github) :] == ["cp -r _build/html public"]
    looks = steps(ROOT / ".github" / "workflows" / "upstream.yml")["newer"]
    assert looks[0] == steps(GITLAB)["upstream"][0]


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_pages_are_pushed_as_notebooks(tmp_path):
    """`.ci/site notebooks`, run for real against a repository on this disk."""
    pytest.importorskip("jupytext")
    copy, remote = tmp_path / "copy", tmp_path / "remote.git"
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("book", "exercises", "tools", "minivllm", ".ci"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, copy)
    (copy / ".venv" / "bin").mkdir(parents=True)
    python = copy / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    subprocess.run(["git", "init", "-q", "--bare", str(remote)], check=True)
    env = {"PATH": "/usr/bin:/bin", "NOTEBOOKS_REMOTE": str(remote), "HOME": str(tmp_path)}

    def push() -> str:
        done = subprocess.run(
            ["bash", ".ci/site", "notebooks"], cwd=copy, env=env, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        return done.stdout

    text = (copy / "_config.yml").read_text(encoding="utf-8")
    line = re.search(r"(?m)^repository: .*$", text)[0]
    (copy / "_config.yml").write_text(text.replace(line, "repository: {url: ''}"))
    assert "no address in _config.yml" in push()
    named = "repository: {url: 'https://github.com/teacher/course'}"
    (copy / "_config.yml").write_text(text.replace(line, named))
    for _ in range(2):  # and once more, over what is there
        push()
    listing = subprocess.run(
        ["git", "--git-dir", str(remote), "ls-tree", "-r", "--name-only", "notebooks"],
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert "book/04-one-step-of-the-scheduler.ipynb" in listing
    assert "exercises/13_never_fits.ipynb" in listing


# What the host's `gh` and the look at PyPI would do, in files: `gh` notes how it was called.
STAND_INS = {
    "gh": """#!/bin/sh
echo "$@" >> calls
[ "$2" = list ] && cat known
exit 0
""",
    "python": """#!/bin/sh
cp found newer.md
""",
}


@pytest.mark.skipif(os.name != "posix", reason="the hosts' steps are for a POSIX shell")
@pytest.mark.parametrize(
    ("found", "known", "status", "calls"),
    [
        ("", 0, 0, []),
        ("# vLLM 9.9.9 is out\n\n2 changed\n", 0, 1, ["list", "create"]),
        ("# vLLM 9.9.9 is out\n\n2 changed\n", 1, 1, ["list"]),  # said once, failed until mended
    ],
)
def test_a_newer_release_makes_one_issue_and_a_failed_job(found, known, status, calls, tmp_path):
    """The scheduled jobs' own lines, run by the shell as the hosts run it."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in STAND_INS.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (tmp_path / "found").write_text(found)
    (tmp_path / "known").write_text(f"{known}\n")
    env = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path)}

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-eo", "pipefail", "-c", command], cwd=tmp_path, env=env,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    github = steps(ROOT / ".github" / "workflows" / "upstream.yml")["newer"]
    done = [run(command).returncode for command in github]
    assert done == [0, 0, status]
    asked = tmp_path / "calls"
    lines = asked.read_text().splitlines() if asked.exists() else []
    assert [line.split()[1] for line in lines] == calls
    if "list" in calls:
        assert '"vLLM 9.9.9 is out" in:title' in lines[0]
    if "create" in calls:
        assert lines[1] == "issue create --title vLLM 9.9.9 is out --body-file newer.md"
    gitlab = [run(command).returncode for command in steps(GITLAB)["upstream"]]
    assert gitlab == [0, status]


# --- a newer vLLM ------------------------------------------------------------------------------


def release(folder: Path, version: str, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / version / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / version


def test_the_difference_names_what_the_scheduler_follows_and_nothing_else(tmp_path, capsys):
    scheduler = "vllm/v1/core/sched/scheduler.py"
    old = release(tmp_path, "0.33.0", {scheduler: "a\nb\n", "vllm/v1/request.py": "same\n",
                                       "vllm/entrypoints/llm.py": "x\n"})  # fmt: skip
    new = release(tmp_path, "0.34.0", {scheduler: "a\nc\n", "vllm/v1/request.py": "same\n",
                                       "vllm/entrypoints/llm.py": "y\n",
                                       "vllm/v1/core/new.py": "n\n" * 30_000})  # fmt: skip
    out = tmp_path / "newer.md"
    assert newer_vllm.main(["--between", str(old), str(new), "--report", str(out)]) == 0
    text = out.read_text()
    assert text.splitlines()[0] == "# vLLM 0.34.0 is out"
    assert "2 changed" in text
    assert f"- `{scheduler}`: 2 lines" in text
    assert "\n-b\n+c\n" in text
    assert "vllm/v1/core/new.py: too long for here" in text
    assert "request.py" not in text
    assert "entrypoints" not in text
    assert len(text) < 65_536
    capsys.readouterr()


def test_nothing_newer_is_an_empty_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(newer_vllm, "newest_release", lambda: newer_vllm.NEWEST)
    out = tmp_path / "newer.md"
    assert newer_vllm.main(["--report", str(out)]) == 0
    assert out.read_text() == ""
    assert "is the newest release, and known" in capsys.readouterr().out


def test_versions_are_numbers_and_candidates_do_not_count():
    text = "vllm (0.9.2)\nAvailable versions: 0.9.2, 0.34.0rc1, 0.10.0, 0.11.0.post1\n"
    assert newer_vllm.newest_of(text) == "0.10.0"
    with pytest.raises(RuntimeError, match="no matching"):
        newer_vllm.newest_of("ERROR: no matching distribution")
