"""Paged attention as one GPU kernel: keys and values are read where they lie.

`sdpa` copies the pages that a query needs side by side and calls SDPA. On a GPU that
copy would cost more than the attention: decoding is bound by memory traffic. This kernel follows
the block table itself. It is written in Triton, so the same lines run on a GPU and, with
TRITON_INTERPRET=1 in the environment, one program after the other on a CPU, where they are tested.

Each program has one tile of query tokens of one request, all query heads that share one key/value
head (GQA), and walks over the keys in slices with the running softmax of FlashAttention (Dao et
al. 2022, §3.1). PagedAttention: Kwon et al. 2023, §4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from minivllm.models.attention.metadata import AttentionMetadata
from minivllm.models.attention.splits import num_splits
from minivllm.models.memory import to_device

PREFILL_TILE = 32
"""Query tokens in one program's tile, for requests with more than one; a decode has one."""
PREFILL_KEYS = 32
DECODE_KEYS = 128
"""Keys that a program looks at in one turn of its loop: a decode's is short of work, and long of
waiting for the cache. Chosen on an H100, as are the others here."""
MIN_ROWS = 16
"""Fewest rows that a GPU's matrix unit takes."""


@triton.jit
def paged_attention_kernel(  # type: ignore[no-untyped-def]  # Triton reads the types at launch
    output,  # [T, Hq, D]; if split: [tiles, Hq, num_splits, D], float32
    sums,  # if split: [tiles, Hq, num_splits, 2]
    query,  # [T, Hq, D]
    keys,  # [num_blocks, block_size, Hkv, D]
    values,  # the same
    block_tables,  # [requests, table_width]
    tile_request,  # [tiles]: row of the block table
    tile_row,  # [tiles]: the first token's row in the batch
    tile_position,  # [tiles]: its position in its sequence
    tile_len,  # [tiles]: tokens in the tile
    table_width,
    scale,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,  # the next power of two
    block_size: tl.constexpr,
    num_rows: tl.constexpr,  # tokens × heads that share a key/value head, padded
    num_keys: tl.constexpr,
    num_splits: tl.constexpr,
):
    """One tile of query tokens, one key/value head; if split, of one token and some of its keys."""
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads_per_kv: tl.constexpr = num_heads // num_kv_heads
    first_position, length = tl.load(tile_position + tile), tl.load(tile_len + tile)
    table = block_tables + tl.load(tile_request + tile) * table_width

    # Rows are (token, head) pairs: the heads that share a key/value head share its loads too.
    row = tl.arange(0, num_rows)
    token, head = row // heads_per_kv, kv_head * heads_per_kv + row % heads_per_kv
    dim = tl.arange(0, padded_dim)
    address = (tl.load(tile_row + tile) + token) * num_heads + head
    address = address[:, None] * head_dim + dim[None, :]
    is_real = (token < length)[:, None] & (dim < head_dim)[None, :]
    queries = tl.load(query + address, mask=is_real, other=0.0)
    position = first_position + token

    highest = tl.full([num_rows], float("-inf"), tl.float32)
    total = tl.zeros([num_rows], tl.float32)
    result = tl.zeros([num_rows, padded_dim], tl.float32)
    context_len = first_position + length  # keys that the last token of the tile sees
    turns = tl.cdiv(tl.cdiv(context_len, num_keys), num_splits)
    first = split * turns * num_keys
    end = tl.minimum(first + turns * num_keys, context_len)
    for start in range(first, end, num_keys):
        # From a position in the sequence to a place in the cache: the block table.
        key_position = start + tl.arange(0, num_keys)
        exists = key_position < end
        block = tl.load(table + key_position // block_size, mask=exists, other=0)
        slot = block.to(tl.int64) * block_size + key_position % block_size
        place = (slot * num_kv_heads + kv_head)[:, None] * head_dim + dim[None, :]
        there = exists[:, None] & (dim < head_dim)[None, :]
        key = tl.load(keys + place, mask=there, other=0.0)
        value = tl.load(values + place, mask=there, other=0.0)

        scores = tl.dot(queries, tl.trans(key), input_precision="ieee") * scale
        seen = key_position[None, :] <= position[:, None]
        scores = tl.where(seen, scores, float("-inf"))
        # The running softmax: when a higher score turns up, what was summed so far shrinks.
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        shrink = tl.exp(highest - new_highest)
        weights = tl.exp(scores - new_highest[:, None])
        total = total * shrink + tl.sum(weights, 1)
        weighted = tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        result = result * shrink[:, None] + weighted
        highest = new_highest
    if num_splits == 1:
        tl.store(output + address, result / total[:, None], mask=is_real)
    else:
        part = (tile * num_heads + head) * num_splits + split
        place = part.to(tl.int64)[:, None] * head_dim + dim[None, :]
        tl.store(output + place, result, mask=is_real)
        tl.store(sums + part * 2, highest, mask=token < length)
        tl.store(sums + part * 2 + 1, total, mask=token < length)


@triton.jit
def join_splits_kernel(  # type: ignore[no-untyped-def]
    output,  # [T, Hq, D]
    parts,  # [tiles, Hq, num_splits, D], as `paged_attention_kernel` left it
    sums,  # [tiles, Hq, num_splits, 2]
    tile_row,  # [tiles]
    num_heads: tl.constexpr,
    head_dim: tl.constexpr,
    padded_dim: tl.constexpr,
    num_splits: tl.constexpr,
):
    """One head of one token: its splits, each with a softmax of its own, become one."""
    tile, head = tl.program_id(0), tl.program_id(1)
    dim, split = tl.arange(0, padded_dim), tl.arange(0, num_splits)
    exists = dim < head_dim
    part = (tile * num_heads + head).to(tl.int64) * num_splits + split
    highest, total = tl.load(sums + part * 2), tl.load(sums + part * 2 + 1)
    share = tl.exp(highest - tl.max(highest, 0))  # 0 for a split without keys
    place = part[:, None] * head_dim + dim[None, :]
    result = tl.load(parts + place, mask=exists[None, :], other=0.0)
    result = tl.sum(result * share[:, None], 0) / tl.sum(total * share, 0)
    row = (tl.load(tile_row + tile) * num_heads + head).to(tl.int64)
    tl.store(output + row * head_dim + dim, result, mask=exists)


@dataclass
class Launch:
    """One launch of the kernel: tiles of one size. All tensors are int32, [tiles]."""

    tile_tokens: int
    num_keys: int
    num_splits: int
    request: Tensor
    row: Tensor
    position: Tensor
    length: Tensor


class TritonPagedAttention:
    """As `PagedAttention`, by `paged_attention_kernel`: decodes in one launch, the rest in another.

    Raises:
        ValueError: on a CPU, unless Triton was told to interpret.
    """

    row_tile: int | None = None

    def __init__(self, block_size: int, num_kv_heads: int, dtype: torch.dtype, device: str) -> None:
        if not device.startswith("cuda") and not triton.knobs.runtime.interpret:
            raise ValueError(
                f"Triton compiles for GPUs, and the device is {device}: set TRITON_INTERPRET=1 "
                "before Python starts to run its kernels there, slowly, or leave attention_backend "
                "at 'auto'"
            )
        self.block_size = block_size
        self.num_kv_heads = num_kv_heads
        self.device = device
        self.multiprocessors = 2
        if device.startswith("cuda"):
            self.multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        self._launches: list[Launch] = []
        self._tables = torch.empty(0, 0, dtype=torch.int32, device=device)

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Cut the queries into tiles, once for all layers."""
        self._tables = self._indices(metadata.block_tables)
        lens, first = metadata.query_lens, metadata.seq_lens - metadata.query_lens
        rows = np.cumsum(lens) - lens
        self._launches = []
        for size, num_keys, splits, chosen in (
            (1, DECODE_KEYS, self._num_splits(metadata.num_decodes), lens == 1),
            (PREFILL_TILE, PREFILL_KEYS, 1, lens > 1),
        ):
            # Tiles are numbered through; each lies some tiles into its request.
            tiles = -(-lens[chosen] // size)
            request = np.flatnonzero(chosen).repeat(tiles)
            into = (np.arange(tiles.sum()) - (np.cumsum(tiles) - tiles).repeat(tiles)) * size
            if len(request):
                length = np.minimum(lens[request] - into, size)
                columns = (request, rows[request] + into, first[request] + into, length)
                indices = (self._indices(column) for column in columns)
                self._launches.append(Launch(size, num_keys, splits, *indices))

    def prepare_decodes(self, block_tables: Tensor, positions: Tensor) -> None:
        """As `GraphAttention` says."""
        rows = torch.arange(len(positions), dtype=torch.int32, device=self.device)
        self._tables = block_tables
        splits = self._num_splits(len(positions))
        ones = torch.ones_like(rows)
        self._launches = [Launch(1, DECODE_KEYS, splits, rows, rows, positions, ones)]

    def _num_splits(self, num_decodes: int) -> int:
        return num_splits(num_decodes, self.num_kv_heads, self.multiprocessors)

    def __call__(self, query: Tensor, kv_cache: Tensor, scale: float) -> Tensor:
        """As `reference_paged_attention`. Each layer's cache must be contiguous."""
        query = query.contiguous()
        output = torch.empty_like(query)
        _, num_heads, head_dim = query.shape
        for launch in self._launches:
            num_rows = launch.tile_tokens * (num_heads // self.num_kv_heads)
            num_rows = max(MIN_ROWS, triton.next_power_of_2(num_rows))
            num_tiles, splits = len(launch.row), launch.num_splits
            target = sums = output
            if splits > 1:
                target = query.new_empty(num_tiles, num_heads, splits, head_dim, dtype=torch.float)
                sums = query.new_empty(num_tiles, num_heads, splits, 2, dtype=torch.float)
            dims = {"head_dim": head_dim, "padded_dim": triton.next_power_of_2(head_dim)}
            paged_attention_kernel[(num_tiles, self.num_kv_heads, splits)](
                target,
                sums,
                query,
                kv_cache[0],
                kv_cache[1],
                self._tables,
                launch.request,
                launch.row,
                launch.position,
                launch.length,
                self._tables.shape[1],
                scale,
                num_heads=num_heads,
                num_kv_heads=self.num_kv_heads,
                **dims,
                block_size=self.block_size,
                num_rows=num_rows,
                num_keys=launch.num_keys,
                num_splits=splits,
                num_warps=4 if num_rows <= 64 else 8,
            )
            if splits > 1:
                join_splits_kernel[(num_tiles, num_heads)](
                    output, target, sums, launch.row,
                    num_heads=num_heads, **dims, num_splits=splits,
                )  # fmt: skip
        return output

    def _indices(self, values: np.ndarray) -> Tensor:
        return to_device(values.astype(np.int32), self.device)
