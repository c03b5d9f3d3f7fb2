"""What a model asks of an attention, and which one it gets."""

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
from minivllm.models.cpu_kernels import MAX_ATTENTION_WIDTH, load_kernels


class Attention(Protocol):
    """What the model asks of an attention; `prepare` comes once before the layers of each step."""

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Work out what all layers share."""

    def __call__(
        self, query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, scale: float
    ) -> Tensor:
        """As `reference_paged_attention`; the query may be overwritten."""


@runtime_checkable
class GraphAttention(Attention, Protocol):
    """An attention whose decode steps a CUDA graph can replay."""

    def prepare_decodes(self, block_tables: Tensor, positions: Tensor) -> None:
        """Let all calls read one token's request in each row from these tensors, [requests,
        blocks] and [requests], as they are when the kernel runs: a graph replays the call, with
        other contents."""


ATTENTION_BACKENDS = ("auto", "sdpa", "cpu", "triton")


def attention_class(
    backend: str, device: str, batch_invariant: bool, *, kernel_fits: bool = True
) -> Callable[[int, int, torch.dtype, str], Attention]:
    """The attention to use: "auto" is the device's own kernel if it can be had, else SDPA's.

    Args:
        kernel_fits: the CPU kernel takes this dtype and these heads.

    Raises:
        ValueError: if `backend` is no name in `ATTENTION_BACKENDS`, if "cpu" is asked for and its
            kernel is not made for the model's heads, if "triton" is asked for and
            not installed, or along with `batch_invariant`.
    """
    check_choice("attention_backend", backend, ATTENTION_BACKENDS)
    if batch_invariant:
        if backend != "auto":
            raise ValueError(
                f"batch_invariant=True has an attention of its own: leave attention_backend at "
                f"'auto', got {backend!r}"
            )
        return BatchInvariantAttention
    if backend == "cpu" and not kernel_fits:
        raise ValueError(
            "attention_backend='cpu' takes float32 and heads of a width that 8 divides, together "
            f"at most {MAX_ATTENTION_WIDTH:,} wide; for this model leave it at 'auto'"
        )
    has_triton = importlib.util.find_spec("triton") is not None
    if backend == "triton" and not has_triton:
        raise ValueError("attention_backend='triton' needs Triton: pip install triton")
    if backend == "triton" or (backend == "auto" and has_triton and device.startswith("cuda")):
        from minivllm.models.attention.triton import TritonPagedAttention

        return TritonPagedAttention
    if backend == "cpu" or (
        backend == "auto" and device == "cpu" and kernel_fits and load_kernels() is not None
    ):
        return CPUPagedAttention
    return PagedAttention
