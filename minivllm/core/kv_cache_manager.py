"""Block tables: which blocks hold a request's keys and values, and who gets the next ones."""

from __future__ import annotations

from collections.abc import Sequence

from minivllm.core.block_pool import BlockPool, KVCacheBlock, hash_block_tokens
from minivllm.core.releases import Switches
from minivllm.core.request import Request


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def check_enough_kv_cache_memory(num_gpu_blocks: int, block_size: int, max_model_len: int) -> None:
    """Raise unless the cache holds one sequence of `max_model_len` tokens.

    Without this, a request that grows to the limit would preempt everyone, then itself, and
    never end.

    Raises:
        ValueError: naming both numbers and the largest `max_model_len` that would fit.

    Source: vllm/v1/core/kv_cache_utils.py:794.
    """
    needed = cdiv(max_model_len, block_size)
    if needed > num_gpu_blocks:
        raise ValueError(
            f"one sequence of max_model_len={max_model_len} tokens needs {needed} blocks of "
            f"{block_size} slots, and the KV cache has {num_gpu_blocks}. Raise the number of "
            f"blocks, or set max_model_len to at most {num_gpu_blocks * block_size}."
        )


class KVCacheManager:
    """Owns the block pool and every request's block table.

    Args:
        num_gpu_blocks: blocks that requests can own; the null block comes on top.
        block_size: token slots in a block.
        enable_caching: share full blocks between requests with equal prefixes.
        num_cpu_blocks: blocks of the CPU pool for preemption by swap.
        num_lookahead_tokens: slots beyond a request's tokens, where a proposer of tokens writes
            keys and values of its own.
        max_model_len: beyond which there is no slot.

    Source: vllm/v1/core/kv_cache_manager.py:110 and, for one group of full-attention layers,
    vllm/v1/core/single_type_kv_cache_manager.py:31. The CPU pool is vLLM V0's (BlockSpaceManager,
    `swap_out` and `swap_in`); V1 has none.
    """

    def __init__(
        self,
        num_gpu_blocks: int,
        block_size: int,
        enable_caching: bool,
        num_cpu_blocks: int = 0,
        num_lookahead_tokens: int = 0,
        max_model_len: int = 0,
    ) -> None:
        self.block_size = block_size
        self.enable_caching = enable_caching
        self.block_pool = BlockPool(num_gpu_blocks + 1, enable_caching)
        self.req_to_blocks: dict[str, list[KVCacheBlock]] = {}
        """Each request's block table: the i-th block holds tokens [i·size, (i+1)·size)."""
        self.num_cached_block: dict[str, int] = {}
        """How many blocks of each request can be found by hash."""
        self.num_cpu_blocks = num_cpu_blocks
        self.free_cpu_blocks = list(range(num_cpu_blocks))[::-1]
        self.req_to_cpu_blocks: dict[str, list[int]] = {}
        self.num_lookahead_tokens = num_lookahead_tokens
        self.max_model_len = max_model_len
        self.lookahead_at_admission = False

    def follow_release(self, switches: Switches) -> None:
        """Give and free blocks as a release does."""
        self.lookahead_at_admission = switches.lookahead_at_admission
        self.block_pool.follow_release(switches)

    @property
    def usage(self) -> float:
        """Share of the blocks in use, 0 to 1."""
        return self.block_pool.get_usage()

    def get_block_ids(self, request_id: str) -> list[int]:
        """The block table of a request, as ids; empty if it holds none."""
        return [block.block_id for block in self.req_to_blocks.get(request_id, ())]

    def get_computed_blocks(self, request: Request) -> tuple[list[KVCacheBlock], int]:
        """The longest run of cached blocks that a request begins with, and its tokens.

        At least one token is left to compute: logits come from computing, not from the cache.

        Source: vllm/v1/core/kv_cache_manager.py:194.
        """
        computed: list[KVCacheBlock] = []
        if self.enable_caching and not request.skip_reading_prefix_cache:
            for index in range((request.num_tokens - 1) // self.block_size):
                block = self.block_pool.get_cached_block(self._block_hash(request, index))
                if block is None:
                    break
                computed.append(block)
        return computed, len(computed) * self.block_size

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock] = (),
        full_sequence_must_fit: bool = False,
        num_reserved_blocks: int = 0,
    ) -> list[KVCacheBlock] | None:
        """Make room for a request's next `num_new_tokens` tokens, all or nothing.

        Args:
            request: its `num_computed_tokens` tokens have their slots already (or, after a
                swap, get them back here).
            num_new_tokens: tokens to compute in this step, at least 1.
            new_computed_blocks: what `get_computed_blocks` found, at admission.
            full_sequence_must_fit: refuse unless all the tokens known so far would fit.
            num_reserved_blocks: refuse unless so many blocks stay free (the watermark).

        Returns:
            The blocks appended to its table, or None, and nothing changed, if they are not
            to be had.

        Source: vllm/v1/core/kv_cache_manager.py:236.
        """
        block_size = self.block_size
        blocks = self.req_to_blocks.get(request.request_id) or []
        num_computed_tokens = request.num_computed_tokens + len(new_computed_blocks) * block_size
        num_tokens = num_computed_tokens + num_new_tokens
        num_held_blocks = len(blocks) + len(new_computed_blocks)
        num_slots = num_tokens
        if self.num_lookahead_tokens:
            num_slots = self._num_slots(request, num_tokens)
        num_new_blocks = 0
        if num_slots > num_held_blocks * block_size:  # most decodes have room in their last block
            num_new_blocks = cdiv(num_slots, block_size) - num_held_blocks

        if num_new_blocks > 0 or new_computed_blocks or full_sequence_must_fit:
            num_blocks = num_reserved_blocks + self.get_num_blocks_to_allocate(
                request, num_new_tokens, new_computed_blocks, full_sequence_must_fit
            )
            if num_blocks > self.block_pool.get_num_free_blocks():
                return None

        self.req_to_blocks[request.request_id] = blocks
        if new_computed_blocks:
            self.block_pool.touch(new_computed_blocks)
            blocks.extend(new_computed_blocks)
            self.num_cached_block[request.request_id] = len(blocks)
        new_blocks = self.block_pool.get_new_blocks(num_new_blocks) if num_new_blocks > 0 else []
        blocks.extend(new_blocks)
        self.cache_blocks(request, num_tokens)
        return new_blocks

    def get_num_blocks_to_allocate(
        self,
        request: Request,
        num_new_tokens: int,
        new_computed_blocks: Sequence[KVCacheBlock] = (),
        full_sequence_must_fit: bool = False,
    ) -> int:
        """Free blocks that `allocate_slots` wants, of the same arguments, the reserve apart.

        Source: vllm/v1/core/single_type_kv_cache_manager.py:89.
        """
        block_size = self.block_size
        num_held_blocks = len(self.req_to_blocks.get(request.request_id, ()))
        num_held_blocks += len(new_computed_blocks)
        num_computed_tokens = request.num_computed_tokens + len(new_computed_blocks) * block_size
        num_tokens = self._num_slots(request, num_computed_tokens + num_new_tokens)
        if full_sequence_must_fit:
            num_tokens = max(num_tokens, request.num_tokens)
        # Reviving a free block takes it from the free queue, as handing it out would.
        num_revived = sum(block.ref_cnt == 0 for block in new_computed_blocks)
        return max(cdiv(num_tokens, block_size) - num_held_blocks, 0) + num_revived

    def _num_slots(self, request: Request, num_tokens: int) -> int:
        """Slots for a request's first tokens, those of a proposer behind them included."""
        if not self.num_lookahead_tokens or not (
            self.lookahead_at_admission or request.request_id in self.req_to_blocks
        ):
            return num_tokens
        return min(num_tokens + self.num_lookahead_tokens, self.max_model_len)

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        """Publish the blocks that this step fills: a neighbour in the same batch may use them.

        A block with a token that is not known yet (proposed, or on its way) has to wait.

        Source: vllm/v1/core/kv_cache_manager.py:544.
        """
        num_full_blocks = num_computed_tokens // self.block_size
        num_cached_blocks = self.num_cached_block.get(request.request_id, 0)
        if not self.enable_caching or num_cached_blocks >= num_full_blocks:
            return
        num_full_blocks = min(num_full_blocks, len(request.all_token_ids) // self.block_size)
        blocks = self.req_to_blocks[request.request_id]
        for index in range(num_cached_blocks, num_full_blocks):
            self.block_pool.cache_full_block(blocks[index], self._block_hash(request, index))
        self.num_cached_block[request.request_id] = num_full_blocks

    def _block_hash(self, request: Request, index: int) -> bytes:
        """Hash of the request's `index`-th full block; hashes are made when first asked for."""
        hashes = request.block_hashes
        while len(hashes) <= index:
            start = len(hashes) * self.block_size
            token_ids = request.all_token_ids[start : start + self.block_size]
            if hashes:
                hashes.append(hash_block_tokens(hashes[-1], token_ids))
            else:
                hashes.append(hash_block_tokens(None, token_ids, request.prompt.cache_salt))
        return hashes[index]

    def uncache_uncomputed_blocks(self, request: Request) -> None:
        """Withdraw the hashes of blocks that this step would have filled, and now will not.

        A request preempted after it was scheduled in the same step (PRIORITY can choose such a
        victim) has published blocks that no forward pass will write. vLLM 0.22.1 leaves their
        hashes in place: vllm/v1/core/sched/scheduler.py:462 takes the victim out of the step, and
        vllm/v1/core/block_pool.py:419 frees its blocks hash and all.
        """
        blocks = self.req_to_blocks.get(request.request_id, [])
        for block in blocks[request.num_computed_tokens // self.block_size :]:
            if block.block_hash is not None:
                self.block_pool.uncache(block)

    def free(self, request: Request) -> None:
        """Give a request's blocks back, on the GPU and on the CPU.

        The last block goes first into the free queue: a long prefix is worth most at its
        beginning.

        Source: vllm/v1/core/kv_cache_manager.py:429.
        """
        blocks = self.req_to_blocks.pop(request.request_id, [])
        self.block_pool.free_blocks(reversed(blocks))
        self.num_cached_block.pop(request.request_id, None)
        self.free_cpu_blocks.extend(reversed(self.req_to_cpu_blocks.pop(request.request_id, [])))

    def swap_out(self, request: Request) -> list[tuple[int, int]] | None:
        """Free a request's blocks on the GPU, keeping their contents on the CPU.

        Returns:
            Pairs (GPU block, CPU block) to copy before anything is written; None, and nothing
            changed, if the CPU pool has no room.
        """
        num_blocks = cdiv(request.num_computed_tokens, self.block_size)
        if not 0 < num_blocks <= len(self.free_cpu_blocks):
            return None
        block_ids = self.get_block_ids(request.request_id)[:num_blocks]
        cpu_blocks = [self.free_cpu_blocks.pop() for _ in block_ids]
        self.free(request)
        self.req_to_cpu_blocks[request.request_id] = cpu_blocks
        return list(zip(block_ids, cpu_blocks, strict=True))

    def swap_in(self, request: Request) -> list[tuple[int, int]]:
        """Pairs (CPU block, GPU block) that restore a request; its new blocks are allocated."""
        cpu_blocks = self.req_to_cpu_blocks.pop(request.request_id)
        block_ids = self.get_block_ids(request.request_id)[: len(cpu_blocks)]
        self.free_cpu_blocks.extend(reversed(cpu_blocks))
        # Fewer, if the last ones held nothing but proposed tokens that were rejected meanwhile.
        return list(zip(cpu_blocks, block_ids, strict=False))
