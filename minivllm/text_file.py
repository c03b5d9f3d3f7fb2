"""Text files as people save them: UTF-8, with or without a byte-order mark, compressed or not."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any, TextIO

_OPEN: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}

_OTHER_MARKS = {  # UTF-32's first: it begins as UTF-16's does
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip


def open_text(path: str | Path) -> TextIO:
    """Open a file to read its lines, ends of lines as they are; `.gz` and `.xz` are unpacked.

    Raises:
        ValueError: if it is UTF-16 or UTF-32, naming the file and what to do. Other bytes that are
            no text raise a UnicodeDecodeError, itself a ValueError, when they are read.
        OSError: if it cannot be opened.
    """
    path = Path(path)
    raw = _OPEN.get(path.suffix, open)(path, "rb")
    try:
        _refuse_other_encodings(raw.peek(4)[:4], path.name)
    except BaseException:
        raw.close()
        raise
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")


def read_text(path: str | Path) -> str:
    """All of a file.

    Raises:
        ValueError: if it is not UTF-8, naming the file and what to do.
        OSError: if it cannot be read.
    """
    try:
        with open_text(path) as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{Path(path).name}: not UTF-8 text: {error}; save it as UTF-8") from None


def read_json(path: str | Path) -> Any:
    """A JSON file's value.

    Raises:
        ValueError: if it is not UTF-8 or not JSON, naming the file.
        OSError: if it cannot be read.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{Path(path).name}: not JSON: {error}") from None


def _refuse_other_encodings(start: bytes, name: str) -> None:
    found = next((it for mark, it in _OTHER_MARKS.items() if start.startswith(mark)), "")
    if not found and len(start) >= 2 and 0 in start[:2]:  # no text begins with U+0000
        found = "UTF-16 or UTF-32"
    if found:
        raise ValueError(
            f"{name}: this is {found} text; save it as UTF-8, e.g. with "
            f"`iconv -f {found.split()[0]} -t UTF-8`"
        )
