"""Makes a release: the version, the changelog's heading, then in dist/ the wheel, the sdist and the
corpus of vLLM's recorded decisions.

    python tools/release.py 0.2.0         changes the two files, builds, checks, says what is next
    python tools/release.py --build       builds and checks what is there, changes nothing

Needs `build`, `setuptools` and `twine` (.ci/requirements.txt). It commits, tags and uploads
nothing.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)
UNRELEASED = re.compile(r"^## \[Unreleased\].*\n(?P<body>(?:.*\n)*?)(?=^## \[|\Z)", re.MULTILINE)


class ReleaseError(RuntimeError):
    """Something must be mended first; nothing was changed."""


def as_numbers(version: str) -> tuple[int, ...]:
    """`0.10.0` -> (0, 10, 0).

    Raises:
        ReleaseError: if it is not three numbers.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ReleaseError(f"version {version!r} must be three numbers, such as 0.2.0")
    return tuple(map(int, version.split(".")))


def prepare(root: Path, version: str, today: datetime.date) -> None:
    """Write the version and the changelog's heading.

    Raises:
        ReleaseError: if the version is not newer than the last one in the changelog, or nothing
            is listed as unreleased.
    """
    package, log = root / "minivllm" / "__init__.py", root / "CHANGELOG.md"
    code, text = package.read_text(encoding="utf-8"), log.read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", text, re.MULTILINE)
    if any(as_numbers(version) <= as_numbers(old) for old in released):
        raise ReleaseError(f"version {version} must be newer than {released[0]}, the last one")
    found = UNRELEASED.search(text)
    if found is None or not re.search(r"^- ", found["body"], re.MULTILINE):
        raise ReleaseError(f"{log.name} lists nothing under [Unreleased]")
    heading = f"## [Unreleased]\n\n## [{version}] - {today.isoformat()}\n"
    log.write_text(
        text[: found.start()] + heading + found["body"] + text[found.end() :], encoding="utf-8"
    )
    package.write_text(VERSION.sub(f'__version__ = "{version}"', code), encoding="utf-8")


def build(root: Path, out: Path) -> tuple[Path, Path]:
    """The wheel and the sdist, checked; the sdist is what the wheel is built from.

    Raises:
        ReleaseError: if either cannot be built, or twine or `contents` finds fault.
    """
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(root))
    version = VERSION.search((root / "minivllm" / "__init__.py").read_text(encoding="utf-8"))
    assert version is not None
    wheel = out / f"minivllm-{version[1]}-py3-none-any.whl"
    sdist = out / f"minivllm-{version[1]}.tar.gz"
    _run(sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist))
    for path in (wheel, sdist):
        if wrong := strangers(path):
            raise ReleaseError(f"{path.name} holds what it should not: {', '.join(wrong[:5])}")
    return wheel, sdist


def build_corpus(root: Path, out: Path, version: str) -> Path:
    """vLLM's recorded decisions as one file to attach to the release: the same recordings give the
    same bytes.

    Raises:
        ReleaseError: if minivllm decides one of them otherwise, or there are none.
    """
    path = out / f"vllm-decisions-{version}.zip"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / path.stem
        data = root / "tests" / "data"
        paths = sorted(map(str, data.glob("vllm-*.jsonl.*")))
        if not paths:
            raise ReleaseError(f"no recordings in {data}: there is no corpus without")
        _run(sys.executable, "-m", "minivllm.conformance", "corpus", "--out", str(folder), *paths)
        out.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.iterdir()):
                # Another time of day is no other corpus.
                member = zipfile.ZipInfo(f"{path.stem}/{file.name}")
                member.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(member, file.read_bytes())
    return path


def contents(path: Path) -> list[str]:
    """The files in a wheel, or in an sdist below its own folder."""
    if path.suffix == ".whl":
        return sorted(zipfile.ZipFile(path).namelist())
    with tarfile.open(path) as archive:
        names = [member.name for member in archive if member.isfile()]
    return sorted(name.partition("/")[2] for name in names)


BELONGS = re.compile(
    r"minivllm/.*\.(py|c|js|css|json|gz|gguf)|minivllm/py\.typed"
    r"|minivllm-[\d.]+\.dist-info/.*|minivllm\.egg-info/.*"
    r"|LICENSE|README\.md|CHANGELOG\.md|MANIFEST\.in|PKG-INFO|pyproject\.toml|setup\.cfg"
)


def strangers(path: Path) -> list[str]:
    """Files in a wheel or sdist that have no business there."""
    return [name for name in contents(path) if not BELONGS.fullmatch(name) or "__pycache__" in name]


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ReleaseError(f"{' '.join(command[1:4])} failed:\n{done.stdout}{done.stderr}")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python tools/release.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("version", nargs="?", help="of the release, such as 0.2.0")
    parser.add_argument("--build", action="store_true", help="build and check; change nothing")
    options = parser.parse_args(arguments)
    if (options.version is None) != options.build:
        parser.error("either a version, or --build")
    try:
        if options.version:
            prepare(ROOT, options.version, datetime.date.today())
        wheel, sdist = build(ROOT, ROOT / "dist")
        corpus = build_corpus(ROOT, ROOT / "dist", wheel.name.split("-")[1])
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{wheel}\n{sdist}\n{corpus}")
    if options.version:
        print(
            f"\nNext, after a look at `git diff`:\n"
            f"    git commit -am 'Release {options.version}' && git tag v{options.version}\n"
            f"    python -m twine upload {wheel} {sdist}\n"
            f"and attach {corpus.name} to the tag's page: others check their schedulers against it"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
