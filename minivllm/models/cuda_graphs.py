"""Decode steps recorded as CUDA graphs: one launch by the CPU instead of hundreds.

A graph replays the same kernels on the same addresses. So a decode step's inputs are copied into
buffers that stay, padded to the next batch size for which a graph was recorded. Steps with a prompt
in them have any number of tokens and run without; they are long enough to hide the launches.

vLLM: vllm/v1/cudagraph_dispatcher.py:15 (which sizes) and vllm/compilation/cuda_graph.py.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
import torch
from torch import Tensor

from minivllm.models.attention.metadata import AttentionMetadata
from minivllm.models.attention.selector import GraphAttention
from minivllm.models.late_tokens import LateTokens
from minivllm.models.llama import LlamaModel

MAX_BATCH_SIZE = 512
"""Larger decode batches run without a graph: by then the launches do not matter."""


def graph_batch_sizes(max_num_seqs: int) -> list[int]:
    """Sizes to record graphs for, rising: a batch is padded by less than its own size, and a
    large one by 15 rows at most."""
    largest = min(max_num_seqs, MAX_BATCH_SIZE)
    return sorted(
        {size for size in (1, 2, 4, 8, *range(16, largest, 16)) if size < largest} | {largest}
    )


class DecodeGraphs:
    """Runs decode steps of up to `max_batch_size` requests, with one token each.

    Args:
        model: on a GPU, with Triton's attention.
        kv_caches: the cache that the graphs will read and write.
        late_tokens: tokens that `run` may be given stand-ins for.
        max_num_seqs: most requests in a step.
        max_blocks: most entries of a block table.
        record: False runs the same padded steps without graphs (for tests where there is no GPU).
    """

    def __init__(
        self,
        model: LlamaModel,
        kv_caches: Tensor,
        late_tokens: LateTokens,
        max_num_seqs: int,
        max_blocks: int,
        record: bool = True,
    ) -> None:
        self.model = model
        self.kv_caches = kv_caches
        self.late_tokens = late_tokens
        self.sizes = graph_batch_sizes(max_num_seqs)
        most = self.max_batch_size = self.sizes[-1]
        # Page-locked memory on this side, to copy without waiting. Two sets: with async scheduling
        # one is filled while the other may not have been copied yet.
        pinned = model.device.startswith("cuda")
        self._sources = [
            (
                torch.zeros(3, most, dtype=torch.long, pin_memory=pinned),
                torch.zeros(most, max_blocks, dtype=torch.int32, pin_memory=pinned),
            )
            for _ in range(2)
        ]
        self.inputs = self._sources[0][0].to(model.device)
        """Token ids, positions and slots. Padding is token 0 at position 0 of the null block."""
        self.block_tables = self._sources[0][1].to(model.device)
        self.hidden = torch.zeros(
            most, model.config.hidden_size, dtype=model.dtype, device=model.device
        )
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        if record:
            self._record()

    def _record(self) -> None:
        pool = None
        for size in reversed(self.sizes):  # the largest first: the others fit into its memory
            self._forward(size)  # kernels are compiled and libraries set up outside the graph
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._forward(size)
            pool = pool or graph.pool()
            self.graphs[size] = graph

    def _forward(self, size: int) -> None:
        token_ids, positions, slots = self.inputs[:, :size]
        token_ids = self.late_tokens.fill_in(token_ids)
        assert isinstance(self.model.attention, GraphAttention)
        self.model.attention.prepare_decodes(self.block_tables[:size], positions)
        ones = np.ones(size, dtype=np.int64)
        metadata = AttentionMetadata(slots, ones, ones, ones[:, None])
        self.hidden[:size] = self.model.forward(token_ids, positions, self.kv_caches, metadata)

    def run(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        slot_mapping: np.ndarray,
        block_tables: np.ndarray,
    ) -> Tensor:
        """As `minivllm.runner.Decoder.run`."""
        num_requests, width = block_tables.shape
        size = self.sizes[bisect_left(self.sizes, num_requests)]
        self._sources.reverse()
        inputs_here, tables_here = self._sources[0]
        inputs, tables = inputs_here.numpy(), tables_here.numpy()
        inputs[:, :num_requests] = token_ids, positions, slot_mapping
        inputs[:, num_requests:size] = 0
        tables[:num_requests, :width] = block_tables
        tables[num_requests:size] = 0
        self.inputs[:, :size].copy_(inputs_here[:, :size], non_blocking=True)
        self.block_tables[:size].copy_(tables_here[:size], non_blocking=True)
        if size in self.graphs:
            self.graphs[size].replay()
        else:
            self._forward(size)
        return self.hidden[:num_requests]
