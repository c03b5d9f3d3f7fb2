"""Paged attention by our C kernel, which reads the pages where they lie."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from minivllm.models.attention.metadata import AttentionMetadata, token_positions
from minivllm.models.cpu_kernels import CPUKernels, load_kernels


class CPUPagedAttention:
    """Our C kernel reads the pages where they lie, for decodes and chunks alike.

    A query's keys are added up in one order, from position 0 on: it has the same bits in any batch.

    Raises:
        ValueError: if the kernel cannot be compiled here, or does not take such tensors.
    """

    row_tile: int | None = None

    def __init__(self, block_size: int, num_kv_heads: int, dtype: torch.dtype, device: str) -> None:
        kernels = load_kernels()
        if kernels is None or device != "cpu" or dtype != torch.float32:
            raise ValueError(
                f"attention_backend='cpu' needs Linux, a C compiler (cc) and float32 on a CPU; "
                f"this is {dtype} on {device}. Leave attention_backend at 'auto'"
            )
        self.kernels: CPUKernels = kernels

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Whose each row is, and where it stands."""
        positions, owners = token_positions(metadata.query_lens, metadata.seq_lens)
        self._positions, self._owners = torch.from_numpy(positions), torch.from_numpy(owners)
        self._tables = torch.from_numpy(np.ascontiguousarray(metadata.block_tables))

    def __call__(self, query: Tensor, kv_cache: Tensor, scale: float) -> Tensor:
        """As `reference_paged_attention`, but the result takes the query's place."""
        self.kernels.paged_attention(
            query, kv_cache, self._tables, self._owners, self._positions, scale
        )
        return query
