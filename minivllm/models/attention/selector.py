"""What a model asks of an attention, and which one it gets. No other module imports one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from minivllm.core.config import check_choice
from minivllm.models.attention.batch_invariant import BatchInvariantAttention
from minivllm.models.attention.cpu import CPUPagedAttention
from minivllm.models.attention.metadata import AttentionMetadata
from minivllm.models.attention.sdpa import PagedAttention
from minivllm.models.cpu_kernels import MAX_ATTENTION_WIDTH, attention_lanes, load_kernels


class Attention(Protocol):
    """What the model asks of an attention; `prepare` comes once before the layers of each step,
    and what it works out stays with the attention."""

    row_tile: int | None
    """Number that divides T in all calls, if there is one: the others compute in such tiles too."""

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Work out what all layers share."""

    def __call__(self, query: Tensor, kv_cache: Tensor, scale: float) -> Tensor:
        """As `reference_paged_attention` of what was prepared; the query may be overwritten."""


@runtime_checkable
class GraphAttention(Attention, Protocol):
    """An attention whose decode steps a CUDA graph can replay."""

    def prepare_decodes(self, block_tables: Tensor, positions: Tensor) -> None:
        """Let all calls read one token's request in each row from these tensors, [requests,
        blocks] and [requests], as they are when the kernel runs: a graph replays the call, with
        other contents."""


def _triton(block_size: int, num_kv_heads: int, dtype: torch.dtype, device: str) -> Attention:
    from minivllm.models.attention.triton import TritonPagedAttention  # not installed everywhere

    return TritonPagedAttention(block_size, num_kv_heads, dtype, device)


BACKENDS: dict[str, Callable[[int, int, torch.dtype, str], Attention]] = {
    "sdpa": PagedAttention,
    "cpu": CPUPagedAttention,
    "triton": _triton,
    "batch_invariant": BatchInvariantAttention,
}
"""What makes an attention of a block size, a number of key/value heads, a dtype and a device."""

ATTENTION_BACKENDS = ("auto", "sdpa", "cpu", "triton")
"""What can be asked for by name; `batch_invariant` is a knob of its own."""


def choose_backend(
    wanted: str, device: str, batch_invariant: bool, *, kernel_fits: bool = True
) -> str:
    """The name in `BACKENDS` to use: "auto" is the device's own kernel if it can be had, else SDPA.

    Args:
        wanted: a name in `ATTENTION_BACKENDS`.
        kernel_fits: the CPU kernel takes this dtype and these heads.

    Raises:
        ValueError: if `wanted` is no such name, if "cpu" is asked for and its kernel is not made
            for the model's heads, if "triton" is asked for and not installed, or any but "auto"
            along with `batch_invariant`.
    """
    check_choice("attention_backend", wanted, ATTENTION_BACKENDS)
    if batch_invariant:
        if wanted != "auto":
            raise ValueError(
                f"batch_invariant=True has an attention of its own: leave attention_backend at "
                f"'auto', got {wanted!r}"
            )
        return "batch_invariant"
    if wanted == "cpu" and not kernel_fits:
        raise ValueError(
            f"attention_backend='cpu' takes float32 or bfloat16 and heads of a width that "
            f"{attention_lanes()} divides, together at most {MAX_ATTENTION_WIDTH:,} wide; for this "
            f"model leave it at 'auto'"
        )
    has_triton = importlib.util.find_spec("triton") is not None
    if wanted == "triton" and not has_triton:
        raise ValueError("attention_backend='triton' needs Triton: pip install triton")
    if wanted != "auto":
        return wanted
    if has_triton and device.startswith("cuda"):
        return "triton"
    return "cpu" if device == "cpu" and kernel_fits and load_kernels() is not None else "sdpa"
