"""The Python that runs in a page, as archives: minivllm's rooms, and Plotly.

All of it is what this environment has, so a page runs the versions that the book was built with.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIVE = ROOT / "book" / "live"

ROOMS = ("core", "grading", "incident", "runs", "sim", "stepper", "viz")
"""minivllm's rooms that need no PyTorch, in a page as here."""
FILES = ("__init__.py", "extras.py", "text_file.py")
ENGINE = (
    "bad_words.py", "byte_level_bpe.py", "chat.py", "detokenizer.py", "engine.py", "inputs.py",
    "llm.py", "logprobs.py", "noise.py", "outputs.py", "sizes.py", "tokenizer.py",
    "executor/__init__.py", "executor/abstract.py", "executor/selector.py",
    "executor/wasm_executor.py", "models/__init__.py", "models/config.py",
)  # fmt: skip
"""The engine, for a page that has a model (tools/live_model.py)."""
ENGINE_PACKAGES = ("tqdm", "jinja2", "markupsafe")
QUOTED = ("models/attention/triton.py", "models/cpu_kernels.c")
"""Quoted by chapters as text (`excerpt_of_file`); nothing there imports them."""
PLOTLY_PACKAGES = ("plotly", "_plotly_utils", "narwhals", "packaging")
WIDGET_PACKAGES = ("traitlets",)
_UNUSED = ("figure_factory", "labextension", "matplotlylib", "data", "__pycache__")
"""Parts of Plotly that no page can use: they need NumPy, a server, or files of data."""


def page_files() -> dict[str, bytes]:
    """Path → content: minivllm's rooms, the page's own modules, IPython's pretty printer."""
    package = ROOT / "minivllm"
    paths = [path for room in ROOMS for path in (package / room).rglob("*")]
    paths += [package / name for name in (*FILES, *ENGINE, *QUOTED)]
    kinds = {".py", ".json", ".c", ".gz", ".js", ".css"}
    files = {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for path in paths
        if path.suffix in kinds
    }
    for path in LIVE.glob("*.py"):
        files[path.name] = path.read_bytes()
    stubs = LIVE / "stubs"
    for path in stubs.rglob("*.py"):
        files[path.relative_to(stubs).as_posix()] = path.read_bytes()
    files["IPython/lib/__init__.py"] = b""
    files["IPython/lib/pretty.py"] = (folder_of("IPython") / "lib" / "pretty.py").read_bytes()
    return files


def plotly_files() -> dict[str, bytes]:
    """Path → content: Plotly's Python and what that imports; its JavaScript is the page's."""
    files = {}
    for package in PLOTLY_PACKAGES:
        folder = folder_of(package)
        for path in python_files(folder):
            files[path.relative_to(folder.parent).as_posix()] = path.read_bytes()
    for path in (folder_of("plotly") / "package_data").rglob("*.json"):
        files[path.relative_to(folder_of("plotly").parent).as_posix()] = path.read_bytes()
    for path in folder_of("plotly").parent.glob("plotly-*.dist-info/METADATA"):
        files[path.relative_to(path.parents[1]).as_posix()] = path.read_bytes()
    files["plotly/graph_objs/in-archive"] = b""  # see book/live/minivllm_page.py
    return files


def engine_files() -> dict[str, bytes]:
    """Path → content: what the engine imports beside Python."""
    return {
        path.relative_to(folder.parent).as_posix(): path.read_bytes()
        for folder in map(folder_of, ENGINE_PACKAGES)
        for path in python_files(folder)
    }


def widget_files() -> dict[str, bytes]:
    """Path → content: what `SchedulerStepper` needs beside its base class (book/live/stubs)."""
    return {
        path.relative_to(folder.parent).as_posix(): path.read_bytes()
        for folder in map(folder_of, WIDGET_PACKAGES)
        for path in python_files(folder)
    }


def python_files(folder: Path) -> Iterator[Path]:
    """A package's modules and its JSON, without what no page can use."""
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.suffix in (".py", ".json") and not set(_UNUSED) & set(parts[:-1]):
            yield path


def folder_of(package: str) -> Path:
    """Where an installed package lies.

    Raises:
        RuntimeError: it is not installed.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{package} is not installed: pip install -r requirements.txt")
    return Path(spec.origin).parent


def archive_of(files: Mapping[str, bytes]) -> bytes:
    """A zip; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, files[name])
    return buffer.getvalue()
