"""Carries a step out: copies blocks, lays the tokens out flat, runs the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minivllm.core.config import SchedulerConfig
from minivllm.core.output import SchedulerOutput
from minivllm.core.request import Request
from minivllm.models.attention import AttentionMetadata
from minivllm.models.llama import LlamaModel


class ModelRunner:
    """Owns the KV cache and knows each running request's block table.

    Args:
        model: runs the tokens.
        config: gives the size of the cache; one more block, the null block, comes on top.

    Attributes:
        kv_caches: [layers, 2, num_gpu_blocks + 1, block_size, Hkv, D]: keys and values.
        cpu_kv_caches: [num_cpu_blocks, layers, 2, block_size, Hkv, D]: what `swap` puts aside.
    """

    def __init__(self, model: LlamaModel, config: SchedulerConfig) -> None:
        self.model = model
        self.block_size = config.block_size
        self.block_tables: dict[str, list[int]] = {}
        shape = model.config
        head_shape = (config.block_size, shape.num_key_value_heads, shape.head_dim)
        self.kv_caches = _zeros(
            (shape.num_hidden_layers, 2, config.num_gpu_blocks + 1, *head_shape),
            model.dtype,
            model.device,
        )
        num_cpu_blocks = config.num_cpu_blocks if config.preemption_mode == "swap" else 0
        self.cpu_kv_caches = _zeros(
            (num_cpu_blocks, shape.num_hidden_layers, 2, *head_shape), model.dtype, "cpu"
        )
        if num_cpu_blocks and model.device != "cpu":
            self.cpu_kv_caches = self.cpu_kv_caches.pin_memory()

    @torch.inference_mode()
    def execute(self, plan: SchedulerOutput) -> tuple[list[Request], Tensor]:
        """Compute a step.

        Returns:
            The requests that get a token now, and their logits [len(requests), vocab_size].
        """
        self._update_block_tables(plan)
        self._swap(plan)
        scheduled = (
            plan.scheduled_running_reqs + plan.scheduled_resumed_reqs + plan.scheduled_new_reqs
        )
        if not scheduled:
            return [], torch.empty(0, self.model.config.vocab_size)
        # Single tokens first, the longest contexts in front: attention groups neighbours.
        num_tokens = plan.num_scheduled_tokens
        scheduled.sort(key=lambda r: (num_tokens[r.request_id] > 1, -r.num_computed_tokens))
        query_lens = [num_tokens[request.request_id] for request in scheduled]

        sampled, rows, row = [], [], -1
        for request, query_len in zip(scheduled, query_lens, strict=True):
            row += query_len
            if request.num_computed_tokens == request.num_tokens:
                sampled.append(request)
                rows.append(row)
        token_ids, positions, metadata = self._lay_out(scheduled, query_lens)
        self.model.attention.prepare(metadata)
        logits = self.model.forward(
            token_ids, positions, self.kv_caches, metadata, self._tensor(rows)
        )
        return sampled, logits

    def _lay_out(
        self, requests: Sequence[Request], query_lens: list[int]
    ) -> tuple[Tensor, Tensor, AttentionMetadata]:
        """The flat batch: token ids [T], positions [T], where their keys and values go."""
        block_size = self.block_size
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        tables: list[list[int]] = []
        for request, query_len in zip(requests, query_lens, strict=True):
            end = request.num_computed_tokens
            start = end - query_len
            # The keys it can see lie in these blocks; the table may go on for later chunks.
            table = self.block_tables[request.request_id][: -(-end // block_size)]
            tables.append(table)
            token_ids += request.all_token_ids[start:end]
            positions += range(start, end)
            slots += [table[p // block_size] * block_size + p % block_size
                      for p in range(start, end)]  # fmt: skip
        if self.model.row_tile:
            # Token 0 at position 0, kept in the null block: nobody sees it.
            padding = [0] * (-len(token_ids) % self.model.row_tile)
            token_ids, positions, slots = token_ids + padding, positions + padding, slots + padding
        metadata = AttentionMetadata(
            slot_mapping=self._tensor(slots),
            query_lens=query_lens,
            context_lens=[request.num_computed_tokens for request in requests],
            block_tables=tables,
        )
        return self._tensor(token_ids), self._tensor(positions), metadata

    def _update_block_tables(self, plan: SchedulerOutput) -> None:
        for request_id in [*plan.finished_req_ids, *plan.preempted_req_ids]:
            self.block_tables.pop(request_id, None)
        for request in plan.scheduled_new_reqs + plan.scheduled_resumed_reqs:
            self.block_tables[request.request_id] = []
        for request_id, block_ids in plan.new_block_ids.items():
            self.block_tables[request_id] += block_ids

    def _swap(self, plan: SchedulerOutput) -> None:
        """Copy blocks out, then in. On one CUDA stream, so in this order and before the model."""
        for gpu_block, cpu_block in plan.blocks_to_swap_out:
            self.cpu_kv_caches[cpu_block].copy_(self.kv_caches[:, :, gpu_block], non_blocking=True)
        for cpu_block, gpu_block in plan.blocks_to_swap_in:
            self.kv_caches[:, :, gpu_block].copy_(self.cpu_kv_caches[cpu_block], non_blocking=True)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.model.device)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Zeros that, on a CPU, take up memory only where they are written (`calloc`).

    They have to be numbers: attention multiplies what lies in unwritten slots by 0.
    """
    if device != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    nbytes = math.prod(shape) * dtype.itemsize
    data = np.zeros(nbytes + 64, dtype=np.uint8)
    start = -data.ctypes.data % 64  # where vector instructions want it to begin
    return torch.from_numpy(data[start : start + nbytes]).view(dtype).view(shape)
