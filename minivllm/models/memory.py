"""Memory of a CPU: not taken before it is used, and copied to a GPU without waiting for it."""

from __future__ import annotations

import contextlib
import math
import mmap

import numpy as np
import torch
from torch import Tensor


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Zeros that, on a CPU, take up memory only where they are written.

    A KV cache needs the zeros: attention multiplies what lies in unwritten slots by 0.
    """
    if device != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # A cache's blocks are read in any order: with pages of 2 MiB they are found sooner.
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    else:
        memory = mmap.mmap(-1, size)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def to_device(values: np.ndarray, device: str) -> Tensor:
    """An array as a tensor on a device.

    A GPU copies it when it gets there, after what it still has to do; the CPU goes on. So it is
    read from memory that the operating system cannot move meanwhile ("pinned").
    """
    tensor = torch.from_numpy(values)
    if device == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
