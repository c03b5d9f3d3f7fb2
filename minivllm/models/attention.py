"""Attention over a paged KV cache: obvious, by PyTorch, by our CPU kernel, and batch-invariant.

A fifth, for GPUs, is in `triton_attention`. All compute the same thing. The keys and values of a
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
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm.core.config import check_choice
from minivllm.core.kv_cache_manager import cdiv
from minivllm.models.cpu_kernels import MAX_ATTENTION_WIDTH, CPUKernels, load_kernels
from minivllm.models.memory import lazy_zeros, to_device

GROUP_TOKENS = 4096
"""Keys gathered at once for decoding requests: few enough to stay in the CPU's caches."""

CHUNK_ROWS = 256
"""Queries of a request that attend in one call: the mask of more would be large."""

PROGRAMS = 2
"""For each multiprocessor of the GPU, if a decode's keys can be split for it."""
MAX_SPLITS = 32

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
    """Query tokens of one request that come one after another."""

    rows: slice
    block_ids: Tensor
    context_len: int
    """Keys in the cache, those of the chunk itself included."""
    mask: Tensor | None
    """[queries, keys]: 0 where a query sees a key, else -inf; None if the chunk starts at
    position 0."""


@dataclass
class AttentionMetadata:
    """Where each token's keys and values go, and where its queries look. Built once per step.

    Attributes:
        slot_mapping: [T] slot of each token: block id × block size + offset in the block.
        query_lens: [requests] query tokens of each request, in the order of the rows.
        context_lens: [requests] keys that the last of them sees.
        block_tables: [requests, blocks of the longest] block ids, padded with the null block.
    """

    slot_mapping: Tensor
    query_lens: np.ndarray
    context_lens: np.ndarray
    block_tables: np.ndarray
    decode_groups: list[DecodeGroup] = field(default_factory=list)
    prefill_chunks: list[PrefillChunk] = field(default_factory=list)
    tiles: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)
    """Batch-invariant only: (block tables, positions, blocks of keys) of each tile of queries."""

    @classmethod
    def of(
        cls,
        slot_mapping: Tensor,
        query_lens: Sequence[int],
        context_lens: Sequence[int],
        block_tables: Sequence[Sequence[int]],
    ) -> AttentionMetadata:
        """From plain lists; the block tables may differ in length."""
        width = max(len(table) for table in block_tables)
        padded = [[*table, *[0] * (width - len(table))] for table in block_tables]
        return cls(slot_mapping, np.array(query_lens), np.array(context_lens), np.array(padded))

    def last_tokens(self, sampling: np.ndarray) -> tuple[AttentionMetadata, Tensor]:
        """Of the requests that `sampling` [requests] is true for: their last tokens alone, and
        the rows that these have in the batch."""
        rows = to_device((np.cumsum(self.query_lens) - 1)[sampling], str(self.slot_mapping.device))
        ones = np.ones(len(rows), dtype=np.int64)
        lens, tables = self.context_lens[sampling], self.block_tables[sampling]
        return AttentionMetadata(self.slot_mapping[rows], ones, lens, tables), rows

    @property
    def num_decodes(self) -> int:
        """Requests with a single query token; in a step they come first."""
        return int(np.count_nonzero(self.query_lens == 1))


def token_positions(
    query_lens: np.ndarray, context_lens: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of each query token, in the order of the rows: its position, and whose it is (an index)."""
    requests = np.repeat(np.arange(len(query_lens)), query_lens)
    first_rows = np.cumsum(query_lens) - query_lens
    first_positions = context_lens - query_lens
    return np.arange(len(requests)) + (first_positions - first_rows)[requests], requests


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
    """By PyTorch: copies the pages a query needs side by side, then lets SDPA do the rest.

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
        self._mask = torch.empty(0, 0, dtype=dtype, device=device)

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Work out groups, indices and masks, for all layers. Single-token requests come first."""
        metadata.decode_groups, metadata.prefill_chunks = [], []
        self._prepare_decodes(metadata)
        first = metadata.num_decodes
        row = int(metadata.query_lens[:first].sum())
        for query_len, context_len, table in zip(
            metadata.query_lens[first:].tolist(),
            metadata.context_lens[first:].tolist(),
            metadata.block_tables[first:],
            strict=True,
        ):
            for start in range(0, query_len, CHUNK_ROWS):
                end = min(start + CHUNK_ROWS, query_len)
                metadata.prefill_chunks.append(
                    self._prefill_chunk(
                        slice(row + start, row + end), context_len - query_len + end, table
                    )
                )
            row += query_len

    def _prefill_chunk(self, rows: slice, context_len: int, table: np.ndarray) -> PrefillChunk:
        query_len = rows.stop - rows.start
        block_ids = self._indices(table[: cdiv(context_len, self.block_size)])
        mask = self._causal_mask(query_len, context_len) if query_len < context_len else None
        return PrefillChunk(rows, block_ids, context_len, mask)

    def _causal_mask(self, query_len: int, context_len: int) -> Tensor:
        """The last query sees all keys, the one before it all but one, and so on.

        So all masks are lower right corners of one, which is kept.
        """
        width = self._mask.shape[1]
        if width < context_len:
            width = max(2 * width, context_len, 1024)
            infinities = torch.full(
                (CHUNK_ROWS, width), float("-inf"), dtype=self.dtype, device=self.device
            )
            self._mask = infinities.triu_(width - CHUNK_ROWS + 1)
        mask = self._mask[CHUNK_ROWS - query_len :, width - context_len :]
        return mask if self.device == "cpu" else mask.contiguous()  # a GPU wants rows aligned

    def _prepare_decodes(self, metadata: AttentionMetadata) -> None:
        """What `_decode` needs."""
        lens = metadata.context_lens[: metadata.num_decodes]
        num_blocks = -(-lens // self.block_size)
        start = 0
        for end in _group_ends(num_blocks.tolist(), self.block_size):
            width = num_blocks[start:end].max()
            keys = torch.arange(width * self.block_size, device=self.device)
            seen = keys < self._indices(lens[start:end])[:, None]
            metadata.decode_groups.append(
                DecodeGroup(
                    slice(start, end),
                    self._indices(metadata.block_tables[start:end, :width]).flatten(),
                    self._additive(seen)[:, None, None, :],
                )
            )
            start = end

    def __call__(
        self, query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, scale: float
    ) -> Tensor:
        """As `reference_paged_attention`, but the result takes the query's place."""
        self._decode(query, kv_cache, metadata, scale)
        # [Hkv, query heads that share it, T, D]
        by_heads = query.unflatten(1, (self.num_kv_heads, -1)).permute(1, 2, 0, 3)
        for chunk in metadata.prefill_chunks:
            keys, values = (
                pages[0, : chunk.context_len]
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

    def _decode(
        self, query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, scale: float
    ) -> None:
        """Do the rows of the requests with one query token."""
        for group in metadata.decode_groups:
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


class CPUPagedAttention:
    """Our C kernel reads the pages where they lie, for decodes and chunks alike.

    A query's keys are added up in one order, from position 0 on: it has the same bits in any batch.

    Raises:
        ValueError: if the kernel cannot be compiled here, or does not take such tensors.
    """

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
        positions, owners = token_positions(metadata.query_lens, metadata.context_lens)
        self._positions, self._owners = torch.from_numpy(positions), torch.from_numpy(owners)
        self._tables = torch.from_numpy(np.ascontiguousarray(metadata.block_tables))

    def __call__(
        self, query: Tensor, kv_cache: Tensor, metadata: AttentionMetadata, scale: float
    ) -> Tensor:
        """As `reference_paged_attention`, but the result takes the query's place."""
        self.kernels.paged_attention(
            query, kv_cache, self._tables, self._owners, self._positions, scale
        )
        return query


def num_splits(num_decodes: int, num_kv_heads: int, multiprocessors: int) -> int:
    """Programs that share the keys of a decode: enough for the GPU to be busy with few requests
    (Dao et al., "Flash-Decoding", 2023). A power of two; it does not depend on the contexts."""
    wanted = PROGRAMS * multiprocessors // max(num_decodes * num_kv_heads, 1)
    return min(1 << max(wanted.bit_length() - 1, 0), MAX_SPLITS)


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
        from minivllm.models.triton_attention import TritonPagedAttention

        return TritonPagedAttention
    if backend == "cpu" or (
        backend == "auto" and device == "cpu" and kernel_fits and load_kernels() is not None
    ):
        return CPUPagedAttention
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
        lens = metadata.query_lens
        positions, requests = token_positions(lens, metadata.context_lens)
        tables = metadata.block_tables[requests]
        padding = len(metadata.slot_mapping) - len(positions)
        positions = np.pad(positions, (0, padding))
        most = cdiv(int(positions.max()) + 1, KEY_TILE) * (KEY_TILE // self.block_size)
        missing = max(most - tables.shape[1], 0)
        tables = np.pad(tables, ((0, padding), (0, missing)))
        for start in range(0, len(tables), QUERY_TILE):
            tile = slice(start, start + QUERY_TILE)
            num_tiles = int(positions[tile].max()) // KEY_TILE + 1
            width = num_tiles * (KEY_TILE // self.block_size)
            metadata.tiles.append(
                (
                    torch.from_numpy(tables[tile, :width]).to(self.device),
                    torch.from_numpy(positions[tile]).to(self.device),
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
