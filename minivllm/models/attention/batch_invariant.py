"""Attention that gives a query token the same bits in every batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from minivllm.core.kv_cache_manager import cdiv
from minivllm.models.attention.metadata import AttentionMetadata, token_positions

QUERY_TILE = 16
KEY_TILE = 64
"""Shape of the batch-invariant attention's tiles, in tokens. A multiple of the block size."""


class BatchInvariantAttention:
    """The same bits for a query token, whoever shares its batch and however its prompt was cut.

    Floating-point addition is not associative: a kernel that picks its tiling by the shape of
    the batch adds in another order when the batch changes, and the last bits change with it
    (He et al., "Defeating Nondeterminism in LLM Inference", 2025). Here the order is fixed:
    each query token walks over its own keys in tiles of `KEY_TILE`, from position 0 on, with the
    running softmax of FlashAttention. All calls have one shape. Tiles that lie beyond a
    token's context leave its sums as they were, bit for bit: they multiply by 1 and add 0.
    """

    row_tile: int | None = QUERY_TILE

    def __init__(self, block_size: int, num_kv_heads: int, dtype: torch.dtype, device: str) -> None:
        if KEY_TILE % block_size:
            raise ValueError(
                f"batch_invariant=True needs a block_size that divides {KEY_TILE}, got {block_size}"
            )
        self.block_size = block_size
        self.num_kv_heads = num_kv_heads
        self.device = device
        self._tiles: list[tuple[Tensor, Tensor, int]] = []
        """Of each tile of queries: block tables, positions, tiles of keys."""

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Give each tile of query tokens its block tables. Rows that only pad see one key."""
        lens = metadata.query_lens
        positions, requests = token_positions(lens, metadata.seq_lens)
        tables = metadata.block_tables[requests]
        padding = len(metadata.slot_mapping) - len(positions)
        positions = np.pad(positions, (0, padding))
        most = cdiv(int(positions.max()) + 1, KEY_TILE) * (KEY_TILE // self.block_size)
        missing = max(most - tables.shape[1], 0)
        tables = np.pad(tables, ((0, padding), (0, missing)))
        self._tiles = []
        for start in range(0, len(tables), QUERY_TILE):
            tile = slice(start, start + QUERY_TILE)
            num_tiles = int(positions[tile].max()) // KEY_TILE + 1
            width = num_tiles * (KEY_TILE // self.block_size)
            self._tiles.append(
                (
                    torch.from_numpy(tables[tile, :width]).to(self.device),
                    torch.from_numpy(positions[tile]).to(self.device),
                    num_tiles,
                )
            )

    def __call__(self, query: Tensor, kv_cache: Tensor, scale: float) -> Tensor:
        """As `reference_paged_attention`; T is a multiple of `QUERY_TILE`."""
        tiles = query.split(QUERY_TILE)
        return torch.cat(
            [
                self._attend(tile, kv_cache, block_tables, positions, num_tiles, scale)
                for tile, (block_tables, positions, num_tiles) in zip(
                    tiles, self._tiles, strict=True
                )
            ]
        )

    def _attend(
        self,
        query: Tensor,
        kv_cache: Tensor,
        block_tables: Tensor,
        positions: Tensor,
        num_tiles: int,
        scale: float,
    ) -> Tensor:
        _, num_heads, head_dim = query.shape
        batch = QUERY_TILE * self.num_kv_heads
        query = query.reshape(batch, -1, head_dim).float() * scale
        highest = query.new_full((batch, query.shape[1], 1), float("-inf"))
        total = torch.zeros_like(highest)
        output = torch.zeros_like(query)
        blocks_per_tile = KEY_TILE // self.block_size
        offsets = torch.arange(KEY_TILE, device=query.device)
        for tile in range(num_tiles):
            ids = block_tables[:, tile * blocks_per_tile : (tile + 1) * blocks_per_tile]
            keys, values = (
                pages[ids].view(QUERY_TILE, KEY_TILE, self.num_kv_heads, head_dim)
                .transpose(1, 2).reshape(batch, KEY_TILE, head_dim).float()
                for pages in kv_cache
            )  # fmt: skip
            scores = torch.bmm(query, keys.transpose(1, 2))
            unseen = (tile * KEY_TILE + offsets) > positions[:, None]
            scores.view(QUERY_TILE, -1, KEY_TILE).masked_fill_(unseen[:, None], float("-inf"))
            new_highest = torch.maximum(highest, scores.amax(dim=-1, keepdim=True))
            correction = torch.exp(highest - new_highest)
            weights = torch.exp(scores - new_highest)
            total = total * correction + weights.sum(dim=-1, keepdim=True)
            output = output * correction + torch.bmm(weights, values)
            highest = new_highest
        return (output / total).to(kv_cache.dtype).view(QUERY_TILE, num_heads, head_dim)
