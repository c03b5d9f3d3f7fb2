"""A per-user cache of converted models that no crash can leave half-written.

Converting takes seconds, starting again and again should not. An entry is a directory, built
under a temporary name and renamed when complete: rename is atomic, so an entry is there whole or
not at all. Its manifest, written last, says what must be in it; reading checks that before use.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FORMAT_VERSION = 3
"""Raise it when the converter changes: older entries are then rebuilt."""

_CHUNK = 1 << 24
_PIECE = 1 << 18
_MANIFEST = "manifest.json"


def cache_root() -> Path:
    """`$MINIVLLM_CACHE`, else `$XDG_CACHE_HOME/minivllm`, else `~/.cache/minivllm`."""
    if root := os.environ.get("MINIVLLM_CACHE"):
        return Path(root).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "minivllm"


def cached(source: Path, convert: Callable[[Path, Path], None], variant: str = "") -> Path:
    """The directory that `convert(source, directory)` fills, from the cache if it is sound.

    `variant` tells conversions of one file apart. A truncated, corrupted or outdated entry is
    rebuilt. Of two processes that convert at the same time, the second waits for the first.

    Raises:
        OSError: if the cache cannot be written; the message names `MINIVLLM_CACHE`.
    """
    identity = fingerprint(source, variant)
    entry = cache_root() / f"{source.stem}-{identity[:16]}"
    if find_fault(entry, identity) is None:
        return entry
    try:
        with lock(entry) as alone:
            if find_fault(entry, identity) is None:
                return entry  # another process was faster
            if alone:
                for leftover in entry.parent.glob(f".{entry.name}.*.tmp"):
                    shutil.rmtree(leftover, ignore_errors=True)  # of a process that was killed
            temporary = entry.parent / f".{entry.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
            temporary.mkdir()
            try:
                convert(source, temporary)
                _write_manifest(temporary, identity)
                _replace(temporary, entry, identity)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise OSError(
            f"cannot write the converted model to {entry.parent} ({error}); "
            f"set MINIVLLM_CACHE to a writable directory with enough space"
        ) from error
    return entry


def fingerprint(source: Path, variant: str = "") -> str:
    """Identity of a file: its size and a hash over samples of 64 KiB, wherever it lies."""
    size = source.stat().st_size
    digest = hashlib.sha256(f"{FORMAT_VERSION} {size}{variant}".encode())
    with source.open("rb") as file:
        for index in range(65):
            file.seek(max(0, (size - (1 << 16)) * index // 64))
            digest.update(file.read(1 << 16))
    return digest.hexdigest()


def find_fault(entry: Path, identity: str) -> str | None:
    """What is wrong with a cache entry, in words; None if it can be used.

    Every byte is checked, by CRC-32: well under a second for 540 MB.
    """
    try:
        manifest = json.loads((entry / _MANIFEST).read_bytes())
        if manifest["format"] != FORMAT_VERSION:
            return f"format {manifest['format']}, not {FORMAT_VERSION}"
        if manifest["source"] != identity:
            return "converted from another file"
        for name, expected in manifest["files"].items():
            if (entry / name).stat().st_size != expected["size"]:
                return f"{name} has the wrong size"
        for name, expected in manifest["files"].items():
            if _checksums(entry / name) != expected["crc32"]:
                return f"{name} is corrupted"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"unreadable manifest: {error}"
    return None


def _write_manifest(directory: Path, identity: str) -> None:
    files: dict[str, Any] = {}
    for path in sorted(directory.iterdir()):
        files[path.name] = {"size": path.stat().st_size, "crc32": _checksums(path)}
    text = json.dumps({"format": FORMAT_VERSION, "source": identity, "files": files})
    (directory / _MANIFEST).write_text(text)
    for path in directory.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())  # a rename must not reach the disk before the data


def _checksums(path: Path) -> list[int]:
    """CRC-32 of each 16 MiB of a file, two at a time (zlib works without the GIL)."""

    def checksum(offset: int) -> int:
        crc = 0
        with path.open("rb") as file:
            file.seek(offset)
            for _ in range(_CHUNK // _PIECE):  # small ones: what was large stays with the process
                crc = zlib.crc32(file.read(_PIECE), crc)
        return crc

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(checksum, range(0, path.stat().st_size, _CHUNK)))


def _replace(temporary: Path, entry: Path, identity: str) -> None:
    """Rename `temporary` to `entry`, moving a faulty predecessor out of the way."""
    if entry.exists():
        if find_fault(entry, identity) is None:
            return
        faulty = entry.parent / f".{entry.name}.{os.urandom(4).hex()}.tmp"
        entry.rename(faulty)
        shutil.rmtree(faulty, ignore_errors=True)
    temporary.rename(entry)


@contextlib.contextmanager
def lock(entry: Path) -> Iterator[bool]:
    """Hold the entry's lock; the system releases it if the process dies.

    Yields False where there are no such locks: then two processes may convert at once, and the
    last one's result, as good as the first one's, stays.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    with (entry.parent / f".{entry.name}.lock").open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except (ImportError, OSError):  # Windows; some network file systems
            alone = False
        yield alone
