"""Reading and writing `.safetensors`: 8 bytes of header length, a JSON header, raw tensors.

Ours, for three reasons: reading maps the file into memory, so that nothing is loaded before it
is used; writing goes tensor by tensor, so that a model never has to fit into memory twice; and
tensors start at multiples of 64 bytes, where vector instructions want them.

Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
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
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_ALIGNMENT = 64


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Map a file's tensors into memory, read-only in effect: writes do not reach the file.

    Raises:
        ValueError: if the file is truncated, is not safetensors, or holds an unknown dtype.
    """
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

    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"{path}: tensor {name!r} has dtype {entry['dtype']}, which is not supported; "
                f"the supported ones are {', '.join(DTYPES)}"
            )
        dtype = DTYPES[entry["dtype"]]
        begin, stop = (start + offset for offset in entry["data_offsets"])
        if stop - begin != prod(entry["shape"]) * dtype.itemsize:
            raise ValueError(f"{path}: the size of tensor {name!r} does not match its shape")
        raw = data[begin:stop]
        if begin % dtype.itemsize:
            raw = raw.clone()  # only files by other writers start a tensor between two elements
        tensors[name] = raw.view(dtype).view(entry["shape"])
    return tensors


def write_safetensors(
    file: BinaryIO,
    shapes: Sequence[tuple[str, Sequence[int]]],
    arrays: Iterable[bytes | memoryview],
) -> None:
    """Write float32 tensors, in the order given: neighbours in `shapes` are neighbours on disk.

    Args:
        shapes: name and shape of each tensor.
        arrays: their bytes, consumed one at a time.
    """
    header, offset = {}, 0
    for name, shape in shapes:
        nbytes = prod(shape) * 4
        header[name] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [offset, offset + nbytes],
        }
        offset += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    file.write(struct.pack("<Q", len(text)) + text)
    for (name, shape), array in zip(shapes, arrays, strict=True):
        if memoryview(array).nbytes != prod(shape) * 4:
            raise ValueError(f"tensor {name!r} does not have the announced shape {tuple(shape)}")
        file.write(array)
