"""Our CPU kernels, written in C: compiled on first use, called without copies.

PyTorch calls a BLAS library, which puts weights into an order of its own for each product: worth
its while for many rows, but a decode step has few, and its time is the time to read the weights.
Here they are put in order once, by `pack`, and read as fast as memory gives them. Where
`cpu_kernels.c` cannot be compiled (no C compiler, another system than Linux), PyTorch does the
work: slower, and as exact.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minivllm.models.blocks import BLOCK_COLUMNS, Blocks
from minivllm.models.config import ModelConfig
from minivllm.models.memory import lazy_zeros
from minivllm.models.ops import HeadNorms, Ops
from minivllm.models.weight_cache import cached

SOURCE = Path(__file__).with_suffix(".c")
_LIBRARY = "cpu_kernels.so"
_FLAGS = (
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "--param=avoid-fma-max-bits=0",  # some processors' tuning fuses no waiting sums
)
_WIDTHS = ("256", "512")
"""What `MINIVLLM_CPU_WIDTH` may say: bits of a vector register, at most."""

MAX_ATTENTION_WIDTH = 1 << 14
"""Floats that a token's query heads may have together: attention keeps those of up to 16 tokens,
65,536 floats at most, and their results on a thread's stack (512 KiB)."""


@functools.cache
def load_kernels() -> CPUKernels | None:
    """The compiled kernels, from the cache if it has them; None where they cannot be had.

    They use vector registers as wide as the processor has them: 512 bits (AVX-512), 256 (AVX2) or
    128 (NEON, on Arm). The environment variable `MINIVLLM_CPU_WIDTH=256` leaves AVX-512 unused, to
    compare; `MINIVLLM_CPU_KERNELS=0` turns the kernels off.

    Raises:
        ValueError: if `MINIVLLM_CPU_WIDTH` is neither 256 nor 512.
    """
    width = os.environ.get("MINIVLLM_CPU_WIDTH") or _WIDTHS[-1]
    if width not in _WIDTHS:
        raise ValueError(
            f"MINIVLLM_CPU_WIDTH={width!r}: the CPU kernels' registers may have at most "
            f"{' or '.join(_WIDTHS)} bits; unset it to use what the processor has"
        )
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if os.environ.get("MINIVLLM_CPU_KERNELS") == "0" or sys.platform != "linux" or not compiler:
        return None
    try:
        return _kernels_with(compiler, f"-DMAX_LANES={int(width) // 32}")
    except (OSError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).warning("slower: no CPU kernels, %s", error)
        return None


def attention_lanes() -> int:
    """What must divide the width of a head for `paged_attention`: floats in a vector register."""
    kernels = load_kernels()
    return kernels.lanes if kernels else 8


def can_attend(config: ModelConfig) -> bool:
    """Whether `paged_attention` is made for a model's heads."""
    width = config.num_attention_heads * config.head_dim
    return config.head_dim % attention_lanes() == 0 and width <= MAX_ATTENTION_WIDTH


def _kernels_with(compiler: str, *flags: str) -> CPUKernels:
    """The kernels as compiled with these flags too."""
    flags = (*_FLAGS, *flags)
    variant = _fingerprint_of_machine(compiler, flags)
    directory = cached(SOURCE, functools.partial(_compile, compiler, flags), variant)
    # Loaded after PyTorch's own OpenMP, which has the same name: both use one set of threads.
    return CPUKernels(ctypes.CDLL(str(directory / _LIBRARY)))


def _compile(compiler: str, flags: tuple[str, ...], source: Path, directory: Path) -> None:
    command = [*compiler.split(), *flags, "-shared", "-fPIC", str(source), "-o"]
    done = subprocess.run(
        [*command, str(directory / _LIBRARY)], capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        # No OSError, which the cache would take for one of its own: a full disk, say.
        raise subprocess.SubprocessError(
            f"{' '.join(command)} failed: {done.stderr.strip()[:500] or 'it says nothing'}"
        )


def _fingerprint_of_machine(compiler: str, flags: tuple[str, ...]) -> str:
    """Another compiler or processor needs another binary: home directories travel."""
    version = subprocess.run(
        [*compiler.split(), "--version"], capture_output=True, text=True, timeout=60
    ).stdout
    cpu = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0].splitlines()
    features = [line for line in cpu if line.lower().startswith(("flags", "features", "model"))]
    text = "\n".join([platform.machine(), version, *flags, *features])
    return hashlib.sha256(text.encode()).hexdigest()


class CPUKernels(Ops):
    """The operators by `cpu_kernels.c`, for float32 tensors on the CPU; matrices may be of bfloat16
    or, where they come from a GGUF, in blocks of bytes that make the same floats.

    Sums are float32. Where the processor multiplies pairs of bfloat16 (AVX512_BF16), the products'
    inputs are rounded to it as PyTorch rounds them; elsewhere a weight becomes float32 when it is
    read. What a kernel is not made for (odd sizes) goes to PyTorch, in float32.

    Attributes:
        lanes: floats that the kernels take at once: widths must be a multiple of it.
        panel: outputs whose weights lie side by side in a packed matrix.
    """

    pack_copies = True

    def __init__(self, library: ctypes.CDLL) -> None:
        self.lanes = ctypes.c_int64.in_dll(library, "lanes").value
        self.panel = ctypes.c_int64.in_dll(library, "panel_width").value
        pointer, size, count, number = (
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int,
            ctypes.c_float,
        )
        signatures = {
            "pack": [pointer, pointer, size, size, count],
            "pack_bfloat16": [pointer, pointer, size, size, count],
            "pack_bytes": [pointer, pointer, pointer, pointer, size, size, count],
            "linear": [pointer, pointer, size, pointer, size, size, size, count, count],
            "linear_bfloat16": [pointer, pointer, size, pointer, size, size, size, count, count],
            "linear_bytes": [pointer, pointer, size, pointer, size, size, size, count, count],
            "rms_norm": [pointer, pointer, pointer, size, size, number, count],
            "silu_and_mul": [pointer, size, size, count],
            "rotate_and_store": [pointer] * 7 + [size] * 4 + [count],
            "paged_attention": [pointer, size, pointer, pointer, pointer, size]
            + [pointer, pointer]
            + [size] * 5
            + [number, count],
        }
        signatures["decode"] = (
            [pointer, pointer, size, count, pointer, pointer, size]
            + [pointer] * 6
            + [size] * 8
            + [number, number, count]
        )
        self._kernels: dict[str, Callable[..., None]] = {}
        for name, argtypes in signatures.items():
            kernel = getattr(library, name)
            kernel.argtypes, kernel.restype = argtypes, None
            self._kernels[name] = kernel

    def pack(self, weight: Tensor) -> Tensor:
        """[out, in] to [out / panel, in, panel]; as it is if `out` is no multiple of `panel`.

        Of bfloat16, two columns share an int32: [out / panel, in / 2, panel], or float32 [out, in].
        """
        out_features, in_features = weight.shape
        halves = weight.dtype == torch.bfloat16
        is_odd = halves and in_features % 2
        if out_features % self.panel or is_odd or not weight.is_contiguous():
            return weight.float()
        columns, dtype = (in_features // 2, torch.int32) if halves else (in_features, torch.float)
        shape = (out_features // self.panel, columns, self.panel)
        packed = lazy_zeros(shape, dtype, "cpu")  # in large pages: they are read in order
        pack = self._kernels["pack_bfloat16" if halves else "pack"]
        pack(packed.data_ptr(), weight.data_ptr(), *weight.shape, torch.get_num_threads())
        return packed

    def pack_blocks(self, blocks: Blocks) -> Tensor | None:
        """To [out / panel, in / BLOCK_COLUMNS, bytes of a panel's block], uint8: the scales of its
        outputs, their least values, then their numbers, four columns together.
        """
        numbers, scale, least = (part.contiguous() for part in blocks)
        out_features, in_features = numbers.shape
        if out_features % self.panel:
            return None
        block_bytes = self.panel * (BLOCK_COLUMNS + 2 * scale.itemsize)
        shape = (out_features // self.panel, in_features // BLOCK_COLUMNS, block_bytes)
        packed = lazy_zeros(shape, torch.uint8, "cpu")
        parts = (packed, numbers, scale, least)
        addresses = (part.data_ptr() for part in parts)
        self._kernels["pack_bytes"](*addresses, *numbers.shape, torch.get_num_threads())
        return packed

    def embed(self, token_ids: Tensor, weight: Tensor) -> Tensor:
        if not is_packed(weight):
            return super().embed(token_ids, weight).float()
        if kind_of(weight) == BYTES:
            panels, lanes = token_ids // self.panel, token_ids % self.panel
            fours = weight.view(torch.float32).unflatten(2, (-1, self.panel))
            numbers = fours[panels, :, 2:, lanes].view(torch.int8)  # [T, blocks, columns]
            return Blocks(numbers.flatten(1), *fours[panels, :, :2, lanes].unbind(2)).floats()
        rows = weight[token_ids // self.panel, :, token_ids % self.panel]
        return rows.view(torch.bfloat16).float() if kind_of(weight) == PAIRS else rows

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        if not is_packed(weight):
            return super().linear(x, weight, bias, out=out)
        output = x.new_empty(x.shape[0], len(weight) * self.panel) if out is None else out
        self._multiply(output, x, weight, accumulate=False)
        return output if bias is None else output.add_(bias)

    def add_linear(
        self, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> None:
        if not is_packed(weight):
            super().add_linear(residual, x, weight, bias)
            return
        self._multiply(residual, x, weight, accumulate=True)
        if bias is not None:
            residual.add_(bias)

    def _multiply(self, output: Tensor, x: Tensor, weight: Tensor, accumulate: bool) -> None:
        kind = kind_of(weight)
        assert x.shape[1] == weight.shape[1] * (1, 2, BLOCK_COLUMNS)[kind]
        if x.stride(1) != 1:
            x = x.contiguous()
        self._kernels[("linear", "linear_bfloat16", "linear_bytes")[kind]](
            output.data_ptr(),
            x.data_ptr(),
            x.stride(0),
            weight.data_ptr(),
            *(*output.shape, x.shape[1]),
            accumulate,
            torch.get_num_threads(),
        )

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        if not x.is_contiguous() or x.shape[-1] % self.lanes:
            return super().rms_norm(x, weight, eps)
        output = torch.empty_like(x)
        width = x.shape[-1]
        self._kernels["rms_norm"](
            output.data_ptr(),
            x.data_ptr(),
            weight.data_ptr(),
            x.numel() // width,
            width,
            eps,
            torch.get_num_threads(),
        )
        return output

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        if width % self.lanes:
            return super().silu_and_mul(gate_up)
        self._kernels["silu_and_mul"](gate_up.data_ptr(), rows, width, torch.get_num_threads())
        return gate_up[:, :width]

    def rotate_and_store(
        self,
        qkv: Tensor,
        num_heads: int,
        rope: tuple[Tensor, Tensor],
        positions: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
        head_norms: HeadNorms | None = None,
    ) -> Tensor:
        if head_norms:
            qkv = self.norm_heads(qkv, num_heads, kv_cache.shape[3], head_norms)
        rows, _, head_dim = qkv.shape
        if not qkv.is_contiguous():
            return super().rotate_and_store(qkv, num_heads, rope, positions, kv_cache, slot_mapping)
        keys = kv_cache.data_ptr()
        self._kernels["rotate_and_store"](
            qkv.data_ptr(),
            rope[0].data_ptr(),
            rope[1].data_ptr(),
            positions.data_ptr(),
            slot_mapping.data_ptr(),
            keys,
            keys + kv_cache.stride(0) * kv_cache.itemsize,
            rows,
            num_heads,
            kv_cache.shape[3],
            head_dim,
            torch.get_num_threads(),
        )
        return qkv[:, :num_heads]

    def paged_attention(
        self,
        query: Tensor,
        kv_cache: Tensor,
        block_tables: Tensor,
        owners: Tensor,
        positions: Tensor,
        scale: float,
    ) -> None:
        """Attention of query tokens over the pages of their requests, where they lie.

        Args:
            query: [T, Hq, D], each token's heads side by side; the result takes its place.
            kv_cache: [2, num_blocks, block_size, Hkv, D], each half contiguous.
            block_tables: [requests, blocks of the longest], int64.
            owners: [T], int64: whose each token is, a row of `block_tables`. A request's tokens
                lie together.
            positions: [T], int64: it sees its request's keys up to this one. They rise within a
                request.
        """
        num_tokens, num_heads, head_dim = query.shape
        keys = kv_cache.data_ptr()
        self._kernels["paged_attention"](
            query.data_ptr(),
            query.stride(0),
            keys,
            keys + kv_cache.stride(0) * kv_cache.itemsize,
            block_tables.data_ptr(),
            block_tables.shape[1],
            owners.data_ptr(),
            positions.data_ptr(),
            num_tokens,
            num_heads,
            kv_cache.shape[3],
            head_dim,
            kv_cache.shape[2],
            scale,
            torch.get_num_threads(),
        )

    def decode(self, *args: Any) -> None:
        """All layers of a decode step: `CPUDecoder` knows the arguments."""
        self._kernels["decode"](*args, torch.get_num_threads())


def is_packed(weight: Tensor) -> bool:
    """Whether `CPUKernels.pack` has changed the order of a matrix."""
    return weight.dim() == 3


FLOATS, PAIRS, BYTES = range(3)
"""What a packed matrix is made of, as `cpu_kernels.c` has them: pairs are of bfloat16."""


def kind_of(packed: Tensor) -> int:
    """FLOATS, PAIRS or BYTES."""
    return {torch.float32: FLOATS, torch.int32: PAIRS, torch.uint8: BYTES}[packed.dtype]
