"""Is there a newer vLLM than minivllm knows, and what did it change that the scheduler follows?

    python tools/newer_vllm.py                    asks pip; downloads both releases if there is one
    python tools/newer_vllm.py --report FILE      and writes the difference there, as Markdown
    python tools/newer_vllm.py --between OLD NEW  of two folders that hold vllm/, without asking

Nothing newer: the report is empty. What to do then: CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from minivllm.core.releases import NEWEST  # noqa: E402
from tools.vllm_release import download_wheel, version_key  # noqa: E402

WATCHED = (
    "vllm/v1/core/", "vllm/v1/request.py", "vllm/v1/metrics/stats.py", "vllm/config/scheduler.py",
    "vllm/config/cache.py", "vllm/sampling_params.py",
)  # fmt: skip
"""What decides, or says how it is to decide."""

MOST = 50_000
"""Characters of a report: GitHub takes 65,536 in an issue."""


def newest_release() -> str:
    """The newest final release that pip can see.

    Raises:
        RuntimeError: if pip cannot say.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", "vllm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return newest_of(done.stdout + done.stderr)


def newest_of(text: str) -> str:
    """The newest of the versions that `pip index versions` prints.

    Raises:
        RuntimeError: if there is none.
    """
    found = re.search(r"Available versions: (.*)", text)
    names = found[1].split(", ") if found else []
    final = [name for name in names if re.fullmatch(r"\d+(\.\d+)+", name)]
    if not final:
        raise RuntimeError(f"pip names no release of vLLM: {text.strip()[-300:]}")
    return max(final, key=version_key)


def unpacked(version: str, folder: Path) -> Path:
    """The watched files of a release, from its wheel."""
    target = folder / version
    with (
        tempfile.TemporaryDirectory(dir=folder) as temporary,
        zipfile.ZipFile(download_wheel(version, Path(temporary))) as archive,
    ):
        archive.extractall(target, [n for n in archive.namelist() if n.startswith(WATCHED)])
    return target


def watched_files(folder: Path) -> dict[str, str]:
    """Path -> text of the watched files below a folder that holds vllm/."""
    paths = (path for path in folder.rglob("*.py"))
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: path.read_text(encoding="utf-8")
        for name, path in sorted(named.items())
        if name.startswith(WATCHED)
    }


def differences(old: dict[str, str], new: dict[str, str]) -> Iterator[tuple[str, int, str]]:
    """Path, number of changed lines and unified diff of each file that differs, most first."""
    found = []
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name, ""), new.get(name, "")
        if before != after:
            lines = list(
                difflib.unified_diff(
                    before.splitlines(),
                    after.splitlines(),
                    f"old/{name}",
                    f"new/{name}",
                    lineterm="",
                )
            )
            changed = sum(line[0] in "+-" for line in lines[2:])
            found.append((name, changed, "\n".join(lines)))
    yield from sorted(found, key=lambda entry: -entry[1])


def report(known: str, version: str, old: Path, new: Path) -> str:
    """The difference as Markdown; its first line is a title."""
    found = list(differences(watched_files(old), watched_files(new)))
    lines = [f"# vLLM {version} is out", "",
             f"minivllm knows releases up to {known}. Of the files that its scheduler follows, "
             f"{len(found)} changed:", ""]  # fmt: skip
    lines += [f"- `{name}`: {changed} lines" for name, changed, _ in found]
    lines += ["", 'CONTRIBUTING.md, "A newer vLLM", says what to do.', ""]
    text = "\n".join(lines)
    for name, _, diff in found:
        part = f"\n<details><summary>{name}</summary>\n\n```diff\n{diff}\n```\n\n</details>\n"
        if len(text) + len(part) > MOST:
            part = f"\n{name}: too long for here, run tools/newer_vllm.py.\n"
        text += part
    return text


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0 it could compare, 2 it could not."""
    parser = argparse.ArgumentParser(description="Look for a newer vLLM, and what it changed.")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the difference there")
    parser.add_argument("--between", type=Path, nargs=2, metavar=("OLD", "NEW"),
                        help="folders of two releases, named by their versions")  # fmt: skip
    options = parser.parse_args(arguments)
    text = ""
    try:
        if options.between:
            old, new = options.between
            text = report(old.name, new.name, old, new)
        elif version_key(version := newest_release()) > version_key(NEWEST):
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                releases = unpacked(NEWEST, folder), unpacked(version, folder)
                text = report(NEWEST, version, *releases)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text or f"vLLM {NEWEST} is the newest release, and known")
    if options.report:
        options.report.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
