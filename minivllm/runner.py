"""Carries a step out: copies blocks, lays the tokens out flat, runs the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from minivllm.core.config import SchedulerConfig
from minivllm.core.kv_cache_manager import cdiv
from minivllm.core.output import SchedulerOutput
from minivllm.core.request import Request
from minivllm.executor.abstract import Told
from minivllm.logprobs import prompt_rows_wanted
from minivllm.logprobs_tensors import PromptLogprobs
from minivllm.models.attention.metadata import AttentionMetadata, token_positions
from minivllm.models.attention.selector import GraphAttention
from minivllm.models.cpu_decoder import CPUDecoder, can_decode
from minivllm.models.cuda_graphs import DecodeGraphs
from minivllm.models.late_tokens import LateTokens
from minivllm.models.llama import LlamaModel
from minivllm.models.memory import lazy_zeros, to_device
from minivllm.sampler import SamplerOutput
from minivllm.spec_decode.ahead import TokenAhead

LOGITS_AT_ONCE = 256
"""Of so many prompt tokens the logits are in memory at once: a row has the whole vocabulary."""


class Decoder(Protocol):
    """Runs steps in which every request decodes, without Python between operators."""

    max_batch_size: int

    def run(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        slot_mapping: np.ndarray,
        block_tables: np.ndarray,
    ) -> Tensor:
        """Compute a step.

        Args:
            token_ids: [requests] of each request's one token, or a stand-in of `LateTokens`;
                `positions` and `slot_mapping` alike.
            block_tables: [requests, blocks of the longest].

        Returns:
            Hidden states [requests, hidden_size]; the next step may overwrite them.
        """


def one_by_one(
    requests: Sequence[Request],
    query_lens: np.ndarray,
    seq_lens: np.ndarray,
    drafts: Mapping[str, Sequence[int]],
) -> tuple[list[Request], np.ndarray, np.ndarray]:
    """The same step, with each token of the requests that have proposed ones as a row of its own.

    A proposed token is a decode that comes early: it sees the keys of those before it, which are
    written before any are read. So it is computed as a decode is, to the bit.
    """
    repeats = [
        length if request.request_id in drafts else 1
        for request, length in zip(requests, query_lens.tolist(), strict=True)
    ]
    rows = np.repeat(np.arange(len(requests)), repeats)
    behind = np.concatenate([np.arange(n)[::-1] for n in repeats])
    alone = np.repeat(np.array(repeats) > 1, repeats)
    lengths = np.where(alone, 1, query_lens[rows])
    return [requests[row] for row in rows.tolist()], lengths, seq_lens[rows] - behind


class ModelRunner:
    """Owns the KV cache and knows each running request's block table.

    Args:
        model: runs the tokens.
        config: gives the size of the cache; one more block, the null block, comes on top.
        enforce_eager: False: decode steps run in one call, by a CUDA graph or our C kernels.

    Attributes:
        block_tables: [max_num_seqs, blocks of max_model_len]: a row for each running request.
        kv_caches: [layers, 2, num_gpu_blocks + 1, block_size, Hkv, D]: keys and values.
        prompt_logprobs: what has been gathered of them, by request.
        cpu_kv_caches: [num_cpu_blocks, layers, 2, block_size, Hkv, D]: what `swap` puts aside.
    """

    def __init__(
        self, model: LlamaModel, config: SchedulerConfig, *, enforce_eager: bool = True
    ) -> None:
        self.model = model
        self.block_size = config.block_size
        max_blocks = cdiv(config.max_model_len, config.block_size)
        self.block_tables = np.zeros((config.max_num_seqs, max_blocks), dtype=np.int64)
        self._num_blocks = [0] * config.max_num_seqs
        self._rows: dict[str, int] = {}
        self._free_rows = list(range(config.max_num_seqs))[::-1]
        shape = model.config
        head_shape = (config.block_size, shape.num_key_value_heads, shape.head_dim)
        self.kv_caches = lazy_zeros(
            (shape.num_hidden_layers, 2, config.num_gpu_blocks + 1, *head_shape),
            model.dtype,
            model.device,
        )
        num_cpu_blocks = config.num_cpu_blocks if config.preemption_mode == "swap" else 0
        self.cpu_kv_caches = lazy_zeros(
            (num_cpu_blocks, shape.num_hidden_layers, 2, *head_shape), model.dtype, "cpu"
        )
        if num_cpu_blocks and model.device != "cpu":
            self.cpu_kv_caches = self.cpu_kv_caches.pin_memory()
        self.prompt_logprobs = PromptLogprobs()
        self.late_tokens = LateTokens(config.max_num_seqs, model.device)
        self.decoder = None if enforce_eager else self._make_decoder(config)

    @torch.inference_mode()
    def _make_decoder(self, config: SchedulerConfig) -> Decoder | None:
        """The device's own, if it has one for this model."""
        if can_decode(self.model):
            return CPUDecoder(self.model, self.kv_caches, self.late_tokens)
        if not isinstance(self.model.attention, GraphAttention):
            return None
        return DecodeGraphs(
            self.model,
            self.kv_caches,
            self.late_tokens,
            config.max_num_seqs,
            max_blocks=self.block_tables.shape[1],
            record=self.model.device.startswith("cuda"),
        )

    @torch.inference_mode()
    def execute(self, plan: SchedulerOutput) -> tuple[list[Request | TokenAhead], Tensor]:
        """Compute a step.

        Returns:
            The requests that get a token now, and their logits [len(requests), vocab_size]. One
            with proposed tokens is there once for each place: its next token, and those after.
        """
        self._update_block_tables(plan)
        self._swap(plan)
        scheduled = (
            plan.scheduled_running_reqs + plan.scheduled_resumed_reqs + plan.scheduled_new_reqs
        )
        if not scheduled:
            return [], torch.empty(0, self.model.config.vocab_size)
        query_lens = np.array([plan.num_scheduled_tokens[r.request_id] for r in scheduled])
        seq_lens = np.array([r.num_computed_tokens for r in scheduled])
        drafts = plan.scheduled_spec_decode_tokens
        if drafts:
            scheduled, query_lens, seq_lens = one_by_one(scheduled, query_lens, seq_lens, drafts)
        # Single tokens first, and the longest contexts in front: attention groups neighbours.
        order = np.lexsort((-seq_lens, query_lens > 1))
        scheduled = [scheduled[index] for index in order]
        query_lens, seq_lens = query_lens[order], seq_lens[order]

        known = np.array([len(request.all_token_ids) for request in scheduled])
        samples = seq_lens >= known  # beyond: a token is on its way (async scheduling)
        token_ids, positions, slots, block_tables = self._lay_out(
            scheduled, query_lens, seq_lens, drafts
        )
        telling = self._told_of_prompts(scheduled, query_lens, seq_lens)
        # The last layer can do without tokens that no one samples; fixed tiles need them all.
        has_others = len(token_ids) > np.count_nonzero(samples)
        wanted = samples if has_others and not self.model.row_tile and not telling else None
        batch = (token_ids, positions, slots, block_tables, query_lens, seq_lens)
        hidden = self._run(*batch, wanted)
        for request, position, rows in telling:
            logits = self.model.compute_logits(hidden[rows])
            self.prompt_logprobs.add(request, position, logits)
        if len(hidden) > np.count_nonzero(samples):
            hidden = hidden[self._tensor((np.cumsum(query_lens) - 1)[samples])]
        logits = self.model.compute_logits(hidden)
        places = [(scheduled[i], seq_lens[i] - known[i]) for i in np.flatnonzero(samples)]
        return [
            TokenAhead(request, drafts[request.request_id][:ahead])
            if request.request_id in drafts
            else request
            for request, ahead in places
        ], logits

    @torch.inference_mode()
    def decode(
        self, requests: Sequence[Request], token_ids: np.ndarray, positions: np.ndarray
    ) -> Tensor:
        """Compute one token of each request, wherever its keys and values lie.

        Args:
            token_ids: [requests]; `positions` alike.

        Returns:
            Logits [requests, vocab_size].
        """
        rows = [self._rows[request.request_id] for request in requests]
        tables = self.block_tables[rows, : int(positions.max()) // self.block_size + 1]
        slots = tables[np.arange(len(rows)), positions // self.block_size] * self.block_size
        slots += positions % self.block_size
        ones, seq_lens = np.ones(len(rows), dtype=np.int64), positions + 1
        token_ids, positions, slots = self._pad(np.stack((token_ids, positions, slots)))
        hidden = self._run(token_ids, positions, slots, tables, ones, seq_lens)
        return self.model.compute_logits(hidden[: len(rows)])

    def _run(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        slots: np.ndarray,
        block_tables: np.ndarray,
        query_lens: np.ndarray,
        seq_lens: np.ndarray,
        wanted: np.ndarray | None = None,
    ) -> Tensor:
        """Hidden states of a flat batch; `wanted` as `LlamaModel.forward` has it, but that a step
        of nothing but single tokens has those of all."""
        if self.decoder and len(token_ids) == len(query_lens) <= self.decoder.max_batch_size:
            return self.decoder.run(token_ids, positions, slots, block_tables)
        metadata = AttentionMetadata(self._tensor(slots), query_lens, seq_lens, block_tables)
        self.model.attention.prepare(metadata)
        return self.model.forward(
            self.late_tokens.to_device(token_ids),
            self._tensor(positions),
            self.kv_caches,
            metadata,
            wanted,
        )

    def _told_of_prompts(
        self, requests: Sequence[Request], query_lens: np.ndarray, seq_lens: np.ndarray
    ) -> list[tuple[Request, int, slice]]:
        """Rows of the batch that log probabilities of a prompt need, a piece at a time: whose they
        are, and the first one's position."""
        pieces = []
        if any(request.sampling_params.prompt_logprobs is not None for request in requests):
            firsts = (np.cumsum(query_lens) - query_lens).tolist()
            for request, first, length, end in zip(
                requests, firsts, query_lens.tolist(), seq_lens.tolist(), strict=True
            ):
                start = end - length
                num_rows = prompt_rows_wanted(request, start, end)
                for done in range(0, num_rows, LOGITS_AT_ONCE):
                    until = min(done + LOGITS_AT_ONCE, num_rows)
                    pieces.append((request, start + done, slice(first + done, first + until)))
        return pieces

    def _lay_out(
        self,
        requests: Sequence[Request],
        query_lens: np.ndarray,
        seq_lens: np.ndarray,
        drafts: Mapping[str, Sequence[int]],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The flat batch: token ids [T], positions [T], where their keys and values go [T], and
        the block tables [requests, blocks of the longest]."""
        block_size = self.block_size
        token_ids: list[int] = []
        rows = [self._rows[request.request_id] for request in requests]
        starts, ends = (seq_lens - query_lens).tolist(), seq_lens.tolist()
        for request, row, start, end in zip(requests, rows, starts, ends, strict=True):
            if known := request.all_token_ids[start:end]:
                token_ids += known
            elif proposed := drafts.get(request.request_id):
                # A -1, which only fills a batch up, stands for any token.
                token_ids.append(max(proposed[start - len(request.all_token_ids)], 0))
            else:
                token_ids.append(LateTokens.stand_in(row))
        # The keys they can see lie in so many blocks; a table may go on for later chunks.
        block_tables = self.block_tables[rows, : cdiv(int(seq_lens.max()), block_size)]
        positions, owners = token_positions(query_lens, seq_lens)
        slots = block_tables[owners, positions // block_size] * block_size + positions % block_size
        return *self._pad(np.stack((token_ids, positions, slots))), block_tables

    def _pad(self, flat: np.ndarray) -> np.ndarray:
        """Rows of T numbers, T made a multiple of the tile: with token 0 at position 0, kept in the
        null block, that nobody sees."""
        if self.model.row_tile:
            flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % self.model.row_tile)))
        return flat

    def _update_block_tables(self, plan: SchedulerOutput) -> None:
        for request_id in [*plan.finished_req_ids, *plan.preempted_req_ids]:
            if (row := self._rows.pop(request_id, None)) is not None:
                self._free_rows.append(row)
        for request in plan.scheduled_new_reqs + plan.scheduled_resumed_reqs:
            row = self._rows[request.request_id] = self._free_rows.pop()
            self._num_blocks[row] = 0
            self.block_tables[row] = 0  # the null block, not what an earlier request left
        for request_id, block_ids in plan.new_block_ids.items():
            row = self._rows[request_id]
            end = self._num_blocks[row] + len(block_ids)
            self.block_tables[row, self._num_blocks[row] : end] = block_ids
            self._num_blocks[row] = end

    def keep_tokens(self, requests: Sequence[Request | TokenAhead], sampled: SamplerOutput) -> None:
        """Let the next step begin with these requests' tokens, whatever they are."""
        rows = [self._rows[request.request_id] for request in requests]
        self.late_tokens.keep(rows, sampled.token_ids)

    def pop_prompt_logprobs(self, request: Request) -> list[Told]:
        """As `Runner.pop_prompt_logprobs`."""
        found = self.prompt_logprobs.pop(request)
        return list(found.rows()) if found else []

    def forget_requests(self) -> None:
        """Drop every block table: no request goes on."""
        self._rows.clear()
        self._free_rows = list(range(len(self.block_tables)))[::-1]

    def _swap(self, plan: SchedulerOutput) -> None:
        """Copy blocks out, then in. On one CUDA stream, so in this order and before the model."""
        for gpu_block, cpu_block in plan.blocks_to_swap_out:
            self.cpu_kv_caches[cpu_block].copy_(self.kv_caches[:, :, gpu_block], non_blocking=True)
        for cpu_block, gpu_block in plan.blocks_to_swap_in:
            self.kv_caches[:, :, gpu_block].copy_(self.cpu_kv_caches[cpu_block], non_blocking=True)

    def _tensor(self, values: np.ndarray) -> Tensor:
        return to_device(values, self.model.device)
