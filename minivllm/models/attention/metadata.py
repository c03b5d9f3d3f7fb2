"""Where each token's keys and values lie, and where its queries look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from minivllm.models.memory import to_device


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
