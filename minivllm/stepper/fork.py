"""What if one knob were different from here on: which knobs can turn while a scheduler runs.

Three kinds:

- What limits a step (tokens, seqs, threshold, chunking, reservation, admission control), who goes
  first and what a preemption does change in place: the next step obeys the new number. Under
  another `policy`, WAITING is ordered anew; who is running keeps running. Under another
  `vllm_version`, the next decision is that release's.
- Memory can grow: new blocks join the front of the free queue, so that no cached block is
  evicted while an empty one is left. Prefix caching can be switched off (every hash is
  forgotten) and on (blocks are hashed from the next step on).
- `block_size`, fewer blocks and fewer CPU blocks are refused. Keys and values lie in blocks of one
  size, in blocks that exist; to change that is to start over, and that is what running the whole
  scenario under the other knob shows (`set_knobs`).

`max_model_len` changes unless a living request has reached the new length already.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minivllm.core import KVCacheBlock, Scheduler, SchedulerConfig
from minivllm.core.request_queue import create_request_queue
from minivllm.core.victim import VICTIM_POLICIES, victim_policy_name
from minivllm.runs.scenario import Checker


def change_config(scheduler: Scheduler, **knobs: Any) -> SchedulerConfig:
    """Let a scheduler go on under other knobs.

    Returns:
        The new configuration.

    Raises:
        ScenarioError: if a knob does not exist, has a bad value, or cannot change in mid-run; the
            scheduler is unchanged then.
    """
    checker = Checker()
    old, new = scheduler.config, replace(scheduler.config, **checker.knobs(knobs, ""))
    manager = scheduler.kv_cache_manager
    if new.block_size != old.block_size:
        checker.error(
            "block_size",
            f"cannot change in mid-run: the keys and values so far lie in blocks of "
            f"{old.block_size} slots. Set block_size={new.block_size} for the whole run instead.",
        )
    if new.num_gpu_blocks < old.num_gpu_blocks:
        checker.error(
            "num_gpu_blocks",
            f"can only grow in mid-run, from {old.num_gpu_blocks}; got {new.num_gpu_blocks}. "
            f"Set it for the whole run instead.",
        )
    if new.num_cpu_blocks < manager.num_cpu_blocks:
        checker.error(
            "num_cpu_blocks",
            f"can only grow in mid-run, from {manager.num_cpu_blocks}; got {new.num_cpu_blocks}. "
            f"Set it for the whole run instead.",
        )
    longest = max(scheduler.requests.values(), key=lambda r: r.num_tokens, default=None)
    if longest is not None and longest.num_tokens >= new.max_model_len < old.max_model_len:
        checker.error(
            "max_model_len",
            f"{longest.request_id} has {longest.num_tokens} tokens already: in mid-run "
            f"max_model_len must be at least {longest.num_tokens + 1}, got {new.max_model_len}.",
        )
    checker.done()

    scheduler.config = new
    if victim_policy_name(new) != victim_policy_name(old):
        scheduler.select_victim = VICTIM_POLICIES[victim_policy_name(new)]
    if new.policy != old.policy:
        waiting = list(scheduler.waiting)
        scheduler.waiting = create_request_queue(new.policy)
        for request in waiting:
            scheduler.waiting.add_request(request)
    _grow_gpu_pool(scheduler, new.num_gpu_blocks)
    if new.preemption_mode == "swap":
        _grow_cpu_pool(scheduler, new.num_cpu_blocks)
    if new.enable_prefix_caching != old.enable_prefix_caching:
        _switch_caching(scheduler, new.enable_prefix_caching)
    scheduler.follow_release()
    return new


def _grow_gpu_pool(scheduler: Scheduler, num_gpu_blocks: int) -> None:
    pool = scheduler.kv_cache_manager.block_pool
    added = [KVCacheBlock(block_id) for block_id in range(pool.num_gpu_blocks, num_gpu_blocks + 1)]
    pool.blocks += added
    pool.num_gpu_blocks += len(added)
    free = pool.free_block_queue.popleft_n(pool.get_num_free_blocks())
    pool.free_block_queue.append_n([*added, *free])


def _grow_cpu_pool(scheduler: Scheduler, num_cpu_blocks: int) -> None:
    manager = scheduler.kv_cache_manager
    added = range(manager.num_cpu_blocks, num_cpu_blocks)
    manager.free_cpu_blocks[:0] = reversed(added)  # a stack: the old ones are taken first
    manager.num_cpu_blocks += len(added)


def _switch_caching(scheduler: Scheduler, enable: bool) -> None:
    manager = scheduler.kv_cache_manager
    manager.enable_caching = manager.block_pool.enable_caching = enable
    if not enable:
        for block in manager.block_pool.blocks:
            if block.block_hash is not None:
                manager.block_pool.uncache(block)
        manager.num_cached_block.clear()
