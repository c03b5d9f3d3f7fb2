"""Paged attention by PyTorch's own kernel (SDPA), on pages copied side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm.core.kv_cache_manager import cdiv
from minivllm.models.attention.metadata import AttentionMetadata
from minivllm.models.memory import lazy_zeros

GROUP_TOKENS = 4096
"""Keys gathered at once for decoding requests: few enough to stay in the CPU's caches."""

CHUNK_ROWS = 256
"""Queries of a request that attend in one call: the mask of more would be large."""


@dataclass
class DecodeGroup:
    """Requests with one query token each, of similar length, padded to the longest."""

    rows: slice
    """Their rows in the flat batch."""
    block_ids: Tensor
    """[group × blocks of the longest]: padded with the null block."""
    mask: Tensor
    """[group, 1, 1, keys]: 0 where a key exists, -inf where there is padding."""


@dataclass
class PrefillChunk:
    """Query tokens of one request that come one after another."""

    rows: slice
    block_ids: Tensor
    num_keys: int
    """Keys in the cache, those of the chunk itself included."""
    mask: Tensor | None
    """[queries, keys]: 0 where a query sees a key, else -inf; None if the chunk starts at
    position 0."""


class PagedAttention:
    """By PyTorch: copies the pages a query needs side by side, then lets SDPA do the rest.

    Decoding requests are handled in groups of similar length, so that one call serves many and
    little is padded; a prefill chunk is long enough to be worth a call of its own. The heads
    that share a key/value head are laid out as its queries (or as a broadcast dimension):
    no key is ever copied per query head.
    """

    row_tile: int | None = None

    def __init__(self, block_size: int, num_kv_heads: int, dtype: torch.dtype, device: str) -> None:
        self.block_size = block_size
        self.num_kv_heads = num_kv_heads
        self.dtype = dtype
        self.device = device
        self._decode_groups: list[DecodeGroup] = []
        self._prefill_chunks: list[PrefillChunk] = []
        self._workspace = torch.empty(0, dtype=dtype, device=device)
        self._mask = torch.empty(0, 0, dtype=dtype, device=device)

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Work out groups, indices and masks, for all layers. Single-token requests come first."""
        self._decode_groups, self._prefill_chunks = [], []
        self._prepare_decodes(metadata)
        first = metadata.num_decodes
        row = int(metadata.query_lens[:first].sum())
        for query_len, seq_len, table in zip(
            metadata.query_lens[first:].tolist(),
            metadata.seq_lens[first:].tolist(),
            metadata.block_tables[first:],
            strict=True,
        ):
            for start in range(0, query_len, CHUNK_ROWS):
                end = min(start + CHUNK_ROWS, query_len)
                self._prefill_chunks.append(
                    self._prefill_chunk(
                        slice(row + start, row + end), seq_len - query_len + end, table
                    )
                )
            row += query_len

    def _prefill_chunk(self, rows: slice, num_keys: int, table: np.ndarray) -> PrefillChunk:
        query_len = rows.stop - rows.start
        block_ids = self._indices(table[: cdiv(num_keys, self.block_size)])
        mask = self._causal_mask(query_len, num_keys) if query_len < num_keys else None
        return PrefillChunk(rows, block_ids, num_keys, mask)

    def _causal_mask(self, query_len: int, num_keys: int) -> Tensor:
        """The last query sees all keys, the one before it all but one, and so on.

        So all masks are lower right corners of one, which is kept.
        """
        width = self._mask.shape[1]
        if width < num_keys:
            width = max(2 * width, num_keys, 1024)
            infinities = torch.full(
                (CHUNK_ROWS, width), float("-inf"), dtype=self.dtype, device=self.device
            )
            self._mask = infinities.triu_(width - CHUNK_ROWS + 1)
        mask = self._mask[CHUNK_ROWS - query_len :, width - num_keys :]
        return mask if self.device == "cpu" else mask.contiguous()  # a GPU wants rows aligned

    def _prepare_decodes(self, metadata: AttentionMetadata) -> None:
        """What `_decode` needs."""
        lens = metadata.seq_lens[: metadata.num_decodes]
        num_blocks = -(-lens // self.block_size)
        start = 0
        for end in _group_ends(num_blocks.tolist(), self.block_size):
            width = num_blocks[start:end].max()
            keys = torch.arange(width * self.block_size, device=self.device)
            seen = keys < self._indices(lens[start:end])[:, None]
            self._decode_groups.append(
                DecodeGroup(
                    slice(start, end),
                    self._indices(metadata.block_tables[start:end, :width]).flatten(),
                    self._additive(seen)[:, None, None, :],
                )
            )
            start = end

    def __call__(self, query: Tensor, kv_cache: Tensor, scale: float) -> Tensor:
        """As `reference_paged_attention`, but the result takes the query's place."""
        self._decode(query, kv_cache, scale)
        # [Hkv, query heads that share it, T, D]
        by_heads = query.unflatten(1, (self.num_kv_heads, -1)).permute(1, 2, 0, 3)
        for chunk in self._prefill_chunks:
            keys, values = (
                pages[0, : chunk.num_keys]
                .transpose(0, 1)[:, None]
                .expand(-1, by_heads.shape[1], -1, -1)
                for pages in self._gather(kv_cache, chunk.block_ids, 1)
            )
            by_heads[:, :, chunk.rows] = F.scaled_dot_product_attention(
                by_heads[:, :, chunk.rows],
                keys,
                values,
                attn_mask=chunk.mask,
                is_causal=chunk.mask is None,
                scale=scale,
            )
        return query

    def _decode(self, query: Tensor, kv_cache: Tensor, scale: float) -> None:
        """Do the rows of the requests with one query token."""
        for group in self._decode_groups:
            rows = group.rows
            keys, values = self._gather(kv_cache, group.block_ids, rows.stop - rows.start)
            # [group, Hkv, queries that share the head, D]: the group's heads are its queries.
            query[rows] = F.scaled_dot_product_attention(
                query[rows].unflatten(1, (self.num_kv_heads, -1)),
                keys.transpose(1, 2),
                values.transpose(1, 2),
                attn_mask=group.mask,
                scale=scale,
            ).flatten(1, 2)

    def _gather(self, kv_cache: Tensor, block_ids: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Copy blocks side by side: keys and values, each [batch, tokens, Hkv, D]."""
        pages = kv_cache.flatten(2)
        size = block_ids.numel() * pages.shape[2]
        if self._workspace.numel() < 2 * size:
            # Kept between calls: fresh memory would cost a page fault for each 4 KiB of it. Twice
            # what is asked for, as contexts grow; what is not written takes no memory.
            self._workspace = lazy_zeros((4 * size,), self.dtype, self.device)
        shape = (batch, -1, *kv_cache.shape[3:])
        both = []
        for index, part in enumerate(self._workspace[: 2 * size].view(2, -1, pages.shape[2])):
            torch.index_select(pages[index], 0, block_ids, out=part)
            both.append(part.view(shape))
        return both[0], both[1]

    def _indices(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _additive(self, seen: Tensor) -> Tensor:
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~seen, float("-inf"))


def _group_ends(num_blocks: Sequence[int], block_size: int) -> list[int]:
    """Cut requests, sorted by falling length, into groups: small enough, and little padding."""
    ends: list[int] = []
    start = total = 0
    for index, blocks in enumerate(num_blocks):
        padded = num_blocks[start] * (index + 1 - start)
        too_big = padded * block_size > GROUP_TOKENS
        if index > start and (too_big or padded > 1.25 * (total + blocks) + 8):
            ends.append(index)
            start, total = index, 0
        total += blocks
    return [*ends, len(num_blocks)] if num_blocks else []
