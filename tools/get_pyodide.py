"""Gets Pyodide, the Python that runs in a browser, for the book's "Run live".

    python tools/get_pyodide.py

The five files that a page loads come from the npm package `pyodide`, and are kept (see
tools/npm_package.py), the standard library with its modules compiled (tools/compile_stdlib.mjs).
MINIVLLM_LIVE=0 does without them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.npm_package import NpmPackage, cache_folder, get_package  # noqa: E402

FILES = (
    "pyodide.mjs",
    "pyodide.asm.mjs",
    "pyodide.asm.wasm",
    "python_stdlib.zip",
    "pyodide-lock.json",
)
MODULES = FILES[:2]
"""What the browser loads by `import`; it fetches the rest."""
PYODIDE = NpmPackage(
    "pyodide",
    "314.0.7",
    "66b7949e5a0cba2250b586d7e368bf12fb482800748d182c4618254b685ffaa0",
    FILES,
)


def get_pyodide() -> Path:
    """The folder with Pyodide's files, downloaded if need be.

    Raises:
        RuntimeError: saying why they cannot be had.
    """
    if os.environ.get("MINIVLLM_LIVE") == "0":
        raise RuntimeError("MINIVLLM_LIVE=0 is set")
    folder = get_package(PYODIDE)
    # The lock file lists what could be loaded from a CDN; pages must not, and it is most of 120 kB.
    lock = folder / "pyodide-lock.json"
    data = json.loads(lock.read_text())
    if data["packages"]:
        lock.write_text(json.dumps({**data, "packages": {}}, separators=(",", ":")))
    compile_stdlib(folder)
    return folder


def compile_stdlib(folder: Path) -> None:
    """Compile the standard library, once: pages start in half the time.

    Needs node, which comes with npm; without it the sources stay, and do.
    """
    script = ROOT / "tools" / "compile_stdlib.mjs"
    mark = hashlib.sha256(script.read_bytes()).hexdigest()[:16]
    with zipfile.ZipFile(folder / "python_stdlib.zip") as archive:
        is_compiled = archive.comment == mark.encode()
    node = shutil.which("node")
    if is_compiled or node is None:
        return
    command = [node, str(script), str(folder), mark]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Pyodide cannot compile its library: {done.stderr.strip()[-300:]}")


NOT_AT_START = ("minivllm/grading/", "minivllm/incident/", "minivllm/sim/", "minivllm/viz/")
"""Modules of a page that starting does not import: compiled, they would only be more to load."""


def compiled(folder: Path, archive: bytes) -> bytes:
    """An archive of modules with those compiled that a page starts with; kept, by its digest.

    Needs node, as `compile_stdlib`; without it the archive is as it was.

    Raises:
        RuntimeError: a module cannot be compiled.
    """
    script, node = ROOT / "tools" / "compile_archive.mjs", shutil.which("node")
    if node is None:
        return archive
    digest = hashlib.sha256(script.read_bytes() + repr((PYODIDE, NOT_AT_START)).encode() + archive)
    kept = cache_folder() / f"compiled-{digest.hexdigest()[:16]}.zip"
    if not kept.exists():
        with tempfile.TemporaryDirectory(dir=kept.parent) as temporary:
            source, made = Path(temporary, "source.zip"), Path(temporary, "made.zip")
            source.write_bytes(archive)
            command = [node, str(script), str(folder), str(source), str(made), *NOT_AT_START]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                why = done.stderr.strip()[-300:]
                raise RuntimeError(f"Pyodide cannot compile a page's modules: {why}")
            made.replace(kept)
    return kept.read_bytes()


if __name__ == "__main__":
    try:
        print(get_pyodide())
    except RuntimeError as error:
        sys.exit(str(error))
