"""Attention over a paged KV cache, three times: obvious, fast, and batch-invariant.

A fourth, for GPUs, is in `triton_attention`. All compute the same thing. The keys and values of a
sequence lie scattered over blocks (PagedAttention, Kwon et al. 2023); its block table says where.
Every query token attends to the tokens of its own sequence, up to itself.

Shapes: T tokens in the step, Hq query heads, Hkv key/value heads, D their width. One layer's
cache of keys (or of values) is `[num_blocks, block_size, Hkv, D]`; block 0 is the null block,
which belongs to nobody: padding reads from it and writes to it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm.core.config import check_choice

GROUP_TOKENS = 4096
"""Keys gathered at once for decoding requests: few enough to stay in the CPU's caches."""

QUERY_TILE = 16
KEY_TILE = 64
"""Shape of the batch-invariant attention's tiles, in tokens. A multiple of the block size."""


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
    """One request with several query tokens."""

    rows: slice
    block_ids: Tensor
    context_len: int
    """Keys in the cache, those of the chunk itself included."""
    mask: Tensor | None
    """[queries, keys] for a chunk that continues; None for one that starts at position 0."""


@dataclass
class AttentionMetadata:
    """Where each token's keys and values go, and where its queries look. Built once per step.

    Attributes:
        slot_mapping: [T] slot of each token: block id × block size + offset in the block.
        query_lens: query tokens of each request, in the order of the rows.
        context_lens: keys that the last of them sees.
        block_tables: blocks of each request.
    """

    slot_mapping: Tensor
    query_lens: list[int]
    context_lens: list[int]
    block_tables: list[list[int]]
    decode_groups: list[DecodeGroup] = field(default_factory=list)
    prefill_chunks: list[PrefillChunk] = field(default_factory=list)
    tiles: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)
    """Batch-invariant only: (block tables, positions, blocks of keys) of each tile of queries."""


def write_kv_cache(key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store keys and values [T, Hkv, D] in their slots of one layer's cache [2, blocks, ...]."""
    slots = kv_cache.flatten(1, 2)
    slots[0].index_copy_(0, slot_mapping, key)
    slots[1].index_copy_(0, slot_mapping, value)


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
    for query_len, context_len, block_table in zip(
        metadata.query_lens, metadata.context_lens, metadata.block_tables, strict=True
    ):
        for position in range(context_len - query_len, context_len):
            seen = range(position + 1)
            slots = [block_table[p // block_size] * block_size + p % block_size for p in seen]
            keys, values = kv_cache.flatten(1, 2)[:, slots]
            for head in range(query.shape[1]):
                kv_head = head // heads_per_kv
                weights = (keys[:, kv_head] @ query[row, head] * scale).softmax(dim=0)
                output[row, head] = weights @ values[:, kv_head]
            row += 1
    return output


class PagedAttention:
    """The fast one. Copies the pages a query needs side by side, then lets SDPA do the rest.

    Decoding requests are handled in groups of similar length, so that one call serves many and
    little is padded; a prefill chunk is long enough to be worth a call of its own. The heads
    that share a key/value head are laid out as its queries (or as a broadcast dimension):
    no key is ever copied per query head.
    """

    def __init__(self, block_size: int, num_kv_heads: int, dtype: torch.dtype, device: str) -> None:
        self.block_size = block_size
        self.num_kv_heads = num_kv_heads
        self.dtype = dtype
        self.device = device
        self._workspace = torch.empty(0, dtype=dtype, device=device)

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Work out groups, indices and masks, for all layers. Single-token requests come first."""
        lens, tables = metadata.context_lens, metadata.block_tables
        num_decodes = sum(n == 1 for n in metadata.query_lens)
        start = 0
        for end in _group_ends([len(table) for table in tables[:num_decodes]], self.block_size):
            width = max(len(table) for table in tables[start:end])
            ids = [table + [0] * (width - len(table)) for table in tables[start:end]]
            keys = torch.arange(width * self.block_size, device=self.device)
            seen = keys < self._indices(lens[start:end])[:, None]
            metadata.decode_groups.append(
                DecodeGroup(
                    slice(start, end),
                    self._indices(ids).flatten(),
                    self._additive(seen)[:, None, None, :],
                )
            )
            start = end
        row = num_decodes
        for query_len, context_len, table in zip(
            metadata.query_lens[num_decodes:], lens[num_decodes:], tables[num_decodes:], strict=True
        ):
            mask = None
            if query_len < context_len:
                ones = torch.ones(query_len, context_len, dtype=torch.bool, device=self.device)
                mask = self._additive(ones.tril(context_len - query_len))
            metadata.prefill_chunks.append(
                PrefillChunk(slice(row, row + query_len), self._indices(table), context_len, mask)
            )
            row += query_len

    def __call__(
        self, query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, scale: float
    ) -> Tensor:
        """As `reference_paged_attention`."""
        output = torch.empty_like(query)
        _, num_heads, head_dim = query.shape
        num_kv_heads = self.num_kv_heads
        heads_per_kv = num_heads // num_kv_heads

        for group in metadata.decode_groups:
            rows = group.rows
            keys, values = self._gather(kv_cache, group.block_ids, rows.stop - rows.start)
            # [group, Hkv, queries that share the head, D]: the group's heads are its queries.
            output[rows] = F.scaled_dot_product_attention(
                query[rows].view(-1, num_kv_heads, heads_per_kv, head_dim),
                keys.transpose(1, 2),
                values.transpose(1, 2),
                attn_mask=group.mask,
                scale=scale,
            ).reshape(-1, num_heads, head_dim)

        for chunk in metadata.prefill_chunks:
            rows = chunk.rows
            gathered = self._gather(kv_cache, chunk.block_ids, 1)
            keys, values = (
                pages[0, : chunk.context_len]
                .transpose(0, 1)[:, None]
                .expand(-1, heads_per_kv, -1, -1)
                for pages in gathered
            )
            # [Hkv, queries' heads that share it, query tokens, D]
            output[rows] = (
                F.scaled_dot_product_attention(
                    query[rows].view(-1, num_kv_heads, heads_per_kv, head_dim).permute(1, 2, 0, 3),
                    keys,
                    values,
                    attn_mask=chunk.mask,
                    is_causal=chunk.mask is None,
                    scale=scale,
                )
                .permute(2, 0, 1, 3)
                .reshape(-1, num_heads, head_dim)
            )
        return output

    def _gather(self, kv_cache: Tensor, block_ids: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Copy blocks side by side: keys and values, each [batch, tokens, Hkv, D]."""
        pages = kv_cache.flatten(2)
        size = block_ids.numel() * pages.shape[2]
        if self._workspace.numel() < 2 * size:
            # Kept between calls: fresh memory would cost a page fault for each 4 KiB of it.
            self._workspace = torch.empty(2 * size, dtype=self.dtype, device=self.device)
        shape = (batch, -1, *kv_cache.shape[3:])
        both = []
        for index, part in enumerate(self._workspace[: 2 * size].view(2, -1, pages.shape[2])):
            torch.index_select(pages[index], 0, block_ids, out=part)
            both.append(part.view(shape))
        return both[0], both[1]

    def _indices(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

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


class Attention(Protocol):
    """What the model asks of an attention; `prepare` comes once before the layers of each step."""

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Work out what all layers share."""

    def __call__(
        self, query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, scale: float
    ) -> Tensor:
        """As `reference_paged_attention`."""


ATTENTION_BACKENDS = ("auto", "sdpa", "triton")


def attention_class(
    backend: str, device: str, batch_invariant: bool
) -> Callable[[int, int, torch.dtype, str], Attention]:
    """The attention to use: "auto" is Triton's on a GPU where Triton is installed, else SDPA's.

    Raises:
        ValueError: if `backend` is no name in `ATTENTION_BACKENDS`, if "triton" is asked for and
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
    has_triton = importlib.util.find_spec("triton") is not None
    if backend == "triton" and not has_triton:
        raise ValueError("attention_backend='triton' needs Triton: pip install triton")
    if backend == "triton" or (backend == "auto" and has_triton and device.startswith("cuda")):
        from minivllm.models.triton_attention import TritonPagedAttention

        return TritonPagedAttention
    return PagedAttention


class BatchInvariantAttention:
    """The same bits for a query token, whoever shares its batch and however its prompt was cut.

    Floating-point addition is not associative: a kernel that picks its tiling by the shape of
    the batch adds in another order when the batch changes, and the last bits change with it
    (He et al., "Defeating Nondeterminism in LLM Inference", 2025). Here the order is fixed:
    each query token walks over its own keys in tiles of `KEY_TILE`, from position 0 on, with the
    running softmax of FlashAttention. All calls have one shape. Tiles that lie beyond a
    token's context leave its sums as they were, bit for bit: they multiply by 1 and add 0.
    """

    def __init__(self, block_size: int, num_kv_heads: int, dtype: torch.dtype, device: str) -> None:
        if KEY_TILE % block_size:
            raise ValueError(
                f"batch_invariant=True needs a block_size that divides {KEY_TILE}, got {block_size}"
            )
        self.block_size = block_size
        self.num_kv_heads = num_kv_heads
        self.device = device

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Give each tile of query tokens its block tables. Rows that only pad see one key."""
        tables: list[list[int]] = []
        positions: list[int] = []
        for query_len, context_len, table in zip(
            metadata.query_lens, metadata.context_lens, metadata.block_tables, strict=True
        ):
            tables += [table] * query_len
            positions += range(context_len - query_len, context_len)
        padding = len(metadata.slot_mapping) - len(tables)
        tables += [[0]] * padding
        positions += [0] * padding
        for start in range(0, len(tables), QUERY_TILE):
            tile = slice(start, start + QUERY_TILE)
            num_tiles = max(positions[tile]) // KEY_TILE + 1
            width = num_tiles * (KEY_TILE // self.block_size)
            padded = [(table + [0] * (width - len(table)))[:width] for table in tables[tile]]
            metadata.tiles.append(
                (
                    torch.tensor(padded, dtype=torch.long, device=self.device),
                    torch.tensor(positions[tile], dtype=torch.long, device=self.device),
                    num_tiles,
                )
            )

    def __call__(
        self, query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, scale: float
    ) -> Tensor:
        """As `reference_paged_attention`; T is a multiple of `QUERY_TILE`."""
        tiles = query.split(QUERY_TILE)
        return torch.cat(
            [
                self._attend(tile, kv_cache, block_tables, positions, num_tiles, scale)
                for tile, (block_tables, positions, num_tiles) in zip(
                    tiles, metadata.tiles, strict=True
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
