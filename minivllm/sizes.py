"""How large an engine is: the longest sequence, the blocks of its caches, and whether they fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from minivllm.core.config import SchedulerConfig, check_int
from minivllm.core.kv_cache_manager import cdiv, check_enough_kv_cache_memory
from minivllm.models.config import ModelConfig

DEFAULT_MAX_MODEL_LEN = 2048
"""Upper limit of `max_model_len` if none is given: a longer one costs memory few need."""

DEFAULT_KV_CACHE_BYTES = 512 << 20
DEFAULT_KV_CACHE_SEQUENCES = 8
"""On a CPU the cache holds so many sequences of `max_model_len`, if these bytes suffice."""


class Sizes:
    """The sizes of one engine, from what its caller gives (see `LLMEngine`).

    What can be known before weights are moved and memory is taken is checked at once.

    Args:
        model: its shape.
        itemsize: bytes of a number in its keys and values.
        draft: of the draft model, if there is one: each block holds its keys and values too.
        scheduling: the other knobs of `SchedulerConfig`.

    Attributes:
        config: the scheduler's; before `measure`, its cache may hold one sequence and no more.

    Raises:
        ValueError: on a knob that cannot be used, or a cache that does not hold one sequence of
            `max_model_len`.
    """

    def __init__(
        self,
        model: ModelConfig,
        itemsize: int,
        device: str,
        *,
        max_model_len: int | None,
        block_size: int,
        num_gpu_blocks: int | None,
        kv_cache_memory_bytes: int | None,
        num_cpu_blocks: int | None,
        swap_space: float,
        draft: ModelConfig | None = None,
        **scheduling: Any,
    ) -> None:
        max_model_len = _resolve_max_model_len(max_model_len, model.derived_max_model_len)
        check_int("block_size", block_size, 1)
        caches = [model, draft] if draft else [model]
        self._block_bytes = block_size * sum(c.kv_bytes_per_token(itemsize) for c in caches)
        if scheduling.get("preemption_mode") != "swap":
            num_cpu_blocks = 0
        elif num_cpu_blocks is None:
            num_cpu_blocks = int(swap_space * (1 << 30)) // self._block_bytes
        one_sequence = cdiv(max_model_len, block_size)
        if num_gpu_blocks is None and kv_cache_memory_bytes is not None:
            num_gpu_blocks = kv_cache_memory_bytes // self._block_bytes
        if num_gpu_blocks is None and device == "cpu":
            affordable = DEFAULT_KV_CACHE_BYTES // self._block_bytes
            several = min(DEFAULT_KV_CACHE_SEQUENCES * one_sequence, affordable)
            num_gpu_blocks = max(several, one_sequence)
        self._is_measured = num_gpu_blocks is None
        if num_gpu_blocks is None:
            num_gpu_blocks = one_sequence
        check_enough_kv_cache_memory(num_gpu_blocks, block_size, max_model_len)
        self.config = SchedulerConfig(
            num_gpu_blocks=num_gpu_blocks,
            block_size=block_size,
            max_model_len=max_model_len,
            num_cpu_blocks=num_cpu_blocks,
            **scheduling,
        )

    def measure(self, free_bytes: Callable[[SchedulerConfig], int]) -> None:
        """Give the cache what a GPU has left, if nothing else was said.

        Args:
            free_bytes: finds out how much that is.

        Raises:
            ValueError: if that does not hold one sequence of `max_model_len`.
        """
        if not self._is_measured:
            return
        config = self.config
        num_gpu_blocks = max(free_bytes(config) // self._block_bytes - 1, 0)  # less the null block
        check_enough_kv_cache_memory(num_gpu_blocks, config.block_size, config.max_model_len)
        self.config = replace(config, num_gpu_blocks=num_gpu_blocks)


def _resolve_max_model_len(max_model_len: int | None, limit: int) -> int:
    if max_model_len is None:
        return min(limit, DEFAULT_MAX_MODEL_LEN)
    check_int("max_model_len", max_model_len, 2)
    if max_model_len > limit:
        raise ValueError(
            f"max_model_len={max_model_len} exceeds the {limit} positions that the model "
            f"was trained for; set it to at most {limit}"
        )
    return max_model_len
