"""A model's stand-in that remembers what every KV slot holds, and checks what is read.

A slot's content is the tuple of all token ids up to and including its own: what its keys and
values depend on. A forward pass reads the slots of all earlier tokens; if one of them holds
anything else, the real model's output would be wrong.
"""

from __future__ import annotations

from minivllm.core import Scheduler, SchedulerOutput


class ShadowModel:
    """Executes a plan on remembered contents instead of tensors."""

    def __init__(self, scheduler: Scheduler, vocabulary: int = 3) -> None:
        self.scheduler = scheduler
        self.vocabulary = vocabulary
        self.gpu: dict[int, list] = {}
        self.cpu: dict[int, list] = {}

    def execute(self, output: SchedulerOutput) -> dict[str, int]:
        """Copy, write, read; returns a token for each request at its last known token."""
        block_size = self.scheduler.config.block_size
        # Two victims may share a block: each gets its own copy of it.
        copies = [(cpu, list(self.gpu[gpu])) for gpu, cpu in output.blocks_to_swap_out]
        for cpu, content in copies:
            self.cpu[cpu] = content
        for cpu, gpu in output.blocks_to_swap_in:
            self.gpu[gpu] = list(self.cpu.pop(cpu))

        manager = self.scheduler.kv_cache_manager
        tables = {id_: manager.get_block_ids(id_) for id_ in output.num_scheduled_tokens}
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            request = self.scheduler.requests[request_id]
            table = tables[request_id]
            end = request.num_computed_tokens
            assert len(table) * block_size >= end, "tokens without slots"
            for position in range(end - num_tokens, end):
                block = self.gpu.setdefault(table[position // block_size], [None] * block_size)
                block[position % block_size] = tuple(request.all_token_ids[: position + 1])
        sampled = {}
        for request_id in output.num_scheduled_tokens:
            request = self.scheduler.requests[request_id]
            table = tables[request_id]
            tokens = tuple(request.all_token_ids)
            for position in range(request.num_computed_tokens):
                held = self.gpu[table[position // block_size]][position % block_size]
                assert held == tokens[: position + 1], (
                    f"step {output.step}: {request_id} reads slot {position} of block "
                    f"{table[position // block_size]}, which holds {held}"
                )
            if request.is_caught_up:
                sampled[request_id] = hash(tokens) % self.vocabulary
        return sampled
