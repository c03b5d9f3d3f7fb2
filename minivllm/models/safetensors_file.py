"""Reading and writing `.safetensors`: 8 bytes of header length, a JSON header, raw tensors.

Ours, for three reasons: reading maps the file into memory, so that nothing is loaded before it
is used; writing goes tensor by tensor, so that a model never has to fit into memory twice; and
tensors start at multiples of 64 bytes, where vector instructions want them.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I8": torch.int8,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_ALIGNMENT = 64


class MappedTensors(Mapping[str, Tensor]):
    """The tensors of files, by name. A file is mapped into memory when a tensor of it is asked for.

    Writes to a tensor do not reach the file, and are lost when the file is unmapped: who wants to
    change weights takes a `dict` of them.

    Args:
        paths: the files; if two have a tensor of one name, the later one counts.

    Attributes:
        blocks: some of the matrices once more, in blocks (`minivllm.models.blocks`), if there are.

    Raises:
        ValueError: if a file is truncated, is not safetensors, or holds an unknown dtype.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._entries: dict[str, _Entry] = {}
        self._mapped: dict[Path, Tensor] = {}
        self.blocks: MappedTensors | None = None
        for path in paths:
            self._entries |= _read_header(path)

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        if entry.path not in self._mapped:
            self._mapped[entry.path] = torch.from_file(
                str(entry.path), shared=False, size=entry.path.stat().st_size, dtype=torch.uint8
            )
        raw = self._mapped[entry.path][entry.begin : entry.end]
        if entry.begin % entry.dtype.itemsize:
            raw = raw.clone()  # only files by other writers start a tensor between two elements
        return raw.view(entry.dtype).view(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def unmap(self) -> None:
        """Give the files' memory back, once no tensor of them is in use any more."""
        self._mapped.clear()
        if self.blocks is not None:
            self.blocks.unmap()


def release(weights: Mapping[str, Tensor]) -> None:
    """Unmap the weights' files, if they come from some."""
    if isinstance(weights, MappedTensors):
        weights.unmap()


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: bytes `begin` to `end` of a file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def _read_header(path: Path) -> dict[str, _Entry]:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (header_size,) = struct.unpack("<Q", file.read(8))
            if header_size > size - 8:
                raise ValueError(f"header of {header_size} bytes in a file of {size}")
            header = json.loads(file.read(header_size))
        header.pop("__metadata__", None)
        start = 8 + header_size
        end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end > size:
            raise ValueError(f"tensors end at byte {end}, the file at byte {size}")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file: {error}") from error

    entries = {}
    for name, told in header.items():
        if told["dtype"] not in DTYPES:
            raise ValueError(
                f"{path}: tensor {name!r} has dtype {told['dtype']}, which is not supported; "
                f"the supported ones are {', '.join(DTYPES)}"
            )
        dtype, shape = DTYPES[told["dtype"]], tuple(told["shape"])
        begin, stop = (start + offset for offset in told["data_offsets"])
        if stop - begin != prod(shape) * dtype.itemsize:
            raise ValueError(f"{path}: the size of tensor {name!r} does not match its shape")
        entries[name] = _Entry(path, dtype, shape, begin, stop)
    return entries


def write_safetensors(
    file: BinaryIO,
    shapes: Sequence[tuple[str, Sequence[int]]],
    arrays: Iterable[bytes | memoryview],
    dtypes: Mapping[str, str] | None = None,
) -> None:
    """Write tensors in the order given: neighbours in `shapes` are neighbours on disk.

    Args:
        shapes: name and shape of each tensor.
        arrays: their bytes, consumed one at a time.
        dtypes: of tensors that are not float32, by name: one of `DTYPES`.
    """
    dtypes = dtypes or {}
    header, offset = {}, 0
    for name, shape in shapes:
        dtype = dtypes.get(name, "F32")
        nbytes = prod(shape) * DTYPES[dtype].itemsize
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    file.write(struct.pack("<Q", len(text)) + text)
    for (name, shape), array in zip(shapes, arrays, strict=True):
        dtype = dtypes.get(name, "F32")
        if memoryview(array).nbytes != prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(f"tensor {name!r} does not have the announced shape {tuple(shape)}")
        file.write(array)
