"""Where each token's keys and values lie, and where its queries look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from minivllm.models.memory import to_device


@dataclass
class AttentionMetadata:
    """Where each token's keys and values go, and where its queries look. Built once per step.

    The names are those of vLLM's `CommonAttentionMetadata`.

    Attributes:
        slot_mapping: [T] slot of each token: block id × block size + offset in the block.
        query_lens: [requests] query tokens of each request, in the order of the rows: the plan's
            `num_scheduled_tokens`.
        seq_lens: [requests] keys that the last of them sees: all that is computed after the step.
        block_tables: [requests, blocks of the longest] block ids, padded with the null block.
    """

    slot_mapping: Tensor
    query_lens: np.ndarray
    seq_lens: np.ndarray
    block_tables: np.ndarray

    @classmethod
    def of(
        cls,
        slot_mapping: Tensor,
        query_lens: Sequence[int],
        seq_lens: Sequence[int],
        block_tables: Sequence[Sequence[int]],
    ) -> AttentionMetadata:
        """From plain lists; the block tables may differ in length."""
        width = max(len(table) for table in block_tables)
        padded = [[*table, *[0] * (width - len(table))] for table in block_tables]
        return cls(slot_mapping, np.array(query_lens), np.array(seq_lens), np.array(padded))

    def last_tokens(self, sampling: np.ndarray) -> tuple[AttentionMetadata, Tensor]:
        """Of the requests that `sampling` [requests] is true for: their last tokens alone, and
        the rows that these have in the batch."""
        rows = to_device((np.cumsum(self.query_lens) - 1)[sampling], str(self.slot_mapping.device))
        ones = np.ones(len(rows), dtype=np.int64)
        lens, tables = self.seq_lens[sampling], self.block_tables[sampling]
        return AttentionMetadata(self.slot_mapping[rows], ones, lens, tables), rows

    @property
    def num_decodes(self) -> int:
        """Requests with a single query token; in a step they come first."""
        return int(np.count_nonzero(self.query_lens == 1))


def token_positions(query_lens: np.ndarray, seq_lens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each query token, in the order of the rows: its position, and whose it is (an index)."""
    requests = np.repeat(np.arange(len(query_lens)), query_lens)
    first_rows = np.cumsum(query_lens) - query_lens
    first_positions = seq_lens - query_lens
    return np.arange(len(requests)) + (first_positions - first_rows)[requests], requests
