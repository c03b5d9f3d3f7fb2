"""Attention as its definition reads: slow, and what the others are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from minivllm.models.attention.metadata import AttentionMetadata


def reference_paged_attention(
    query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, scale: float
) -> Tensor:
    """Attention as its definition reads, one token and one head at a time.

    Args:
        query: [T, Hq, D].
        kv_cache: [2, num_blocks, block_size, Hkv, D], this step's keys and values included.

    Returns:
        [T, Hq, D].
    """
    block_size = kv_cache.shape[2]
    heads_per_kv = query.shape[1] // kv_cache.shape[3]
    output = torch.zeros_like(query)
    row = 0
    for query_len, seq_len, block_table in zip(
        metadata.query_lens, metadata.seq_lens, metadata.block_tables, strict=True
    ):
        for position in range(seq_len - query_len, seq_len):
            seen = range(position + 1)
            slots = [block_table[p // block_size] * block_size + p % block_size for p in seen]
            keys, values = kv_cache.flatten(1, 2)[:, slots]
            for head in range(query.shape[1]):
                kv_head = head // heads_per_kv
                weights = (keys[:, kv_head] @ query[row, head] * scale).softmax(dim=0)
                output[row, head] = weights @ values[:, kv_head]
            row += 1
    return output
