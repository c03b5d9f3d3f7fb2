"""A model's stand-in whose output depends on every slot of the KV cache that it reads.

What it writes into a slot depends on the slot before it and on the token, as a layer's keys and
values do; the token that it says depends on all slots of the request. A block that was lost, or
given to somebody else, changes the output.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

from minivllm.core import Scheduler, SchedulerOutput

EMPTY = 0
"""What a slot holds that nobody has written."""


def mix(*numbers: int) -> int:
    """One number out of several."""
    return crc32(",".join(map(str, numbers)).encode())


class ToyModel:
    """Executes plans on a cache of numbers: `model.execute(scheduler, scheduler.schedule())`.

    Args:
        block_size: slots in a block.
        vocabulary: token ids that it says lie below.
    """

    def __init__(self, block_size: int, vocabulary: int = 1000) -> None:
        self.block_size = block_size
        self.vocabulary = vocabulary
        self.gpu: dict[int, list[int]] = {}
        self.cpu: dict[Any, list[int]] = {}

    def execute(self, scheduler: Scheduler, output: SchedulerOutput) -> dict[str, int]:
        """Copy out, copy in, then compute; a token for each request at its last known token."""
        self.copy(output.blocks_to_swap_out, output.blocks_to_swap_in)
        sampled = {}
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            request = scheduler.requests[request_id]
            table = scheduler.kv_cache_manager.get_block_ids(request_id)
            end = request.num_computed_tokens
            self.write(table, request.all_token_ids, end - num_tokens, end)
        for request_id in output.num_scheduled_tokens:
            request = scheduler.requests[request_id]
            if request.is_caught_up:
                table = scheduler.kv_cache_manager.get_block_ids(request_id)
                read = [self.read(table, p) for p in range(request.num_tokens)]
                sampled[request_id] = mix(*read) % self.vocabulary
        return sampled

    def copy(self, out: Any, back: Any) -> None:
        """Make the copies of a step: all blocks out first, then all blocks in."""
        nothing = [EMPTY] * self.block_size
        kept = [(cpu, list(self.gpu.get(gpu, nothing))) for gpu, cpu in out]
        self.cpu.update(kept)
        for cpu, gpu in back:
            self.gpu[gpu] = list(self.cpu.get(cpu, nothing))

    def write(self, table: list[int], token_ids: list[int], start: int, end: int) -> None:
        """Write the slots of the positions `[start, end)`."""
        for position in range(start, end):
            before = self.read(table, position - 1) if position else EMPTY
            block = self.gpu.setdefault(
                table[position // self.block_size], [EMPTY] * self.block_size
            )
            block[position % self.block_size] = mix(before, token_ids[position]) or 1

    def read(self, table: list[int], position: int) -> int:
        """What the slot of a position holds."""
        block = self.gpu.get(table[position // self.block_size])
        return block[position % self.block_size] if block else EMPTY
