"""The blocks of the KV cache: who is free, who may be shared, who is evicted next.

Memory is cut into blocks of `block_size` token slots (PagedAttention, Kwon et al. 2023, §4.1).
A free block may still hold keys and values worth having: it waits in the free queue with its
hash, is revived if a request asks for the same tokens, and loses its hash only when it is
handed out again. So the free queue is the LRU list too.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence

from minivllm.core.releases import Switches

NONE_HASH = hashlib.sha256(b"minivllm").digest()
"""Parent of a sequence's first block."""


def hash_block_tokens(
    parent_hash: bytes | None, token_ids: Sequence[int], cache_salt: str | None = None
) -> bytes:
    """Hash of one full block: its tokens and, through the parent's hash, all tokens before it.

    Equal hashes mean equal prefixes, because a block's keys and values depend on every
    token before it. A salt in the first block keeps all that follow it apart.

    Source: vllm/v1/core/kv_cache_utils.py:541.
    """
    data = struct.pack(f"<{len(token_ids)}q", *token_ids)
    data += (cache_salt or "").encode("utf-8", "surrogatepass")
    return hashlib.sha256((parent_hash or NONE_HASH) + data).digest()


class KVCacheBlock:
    """Bookkeeping of one physical block (vllm/v1/core/kv_cache_utils.py:116)."""

    __slots__ = ("block_hash", "block_id", "is_null", "next_free_block", "prev_free_block",
                 "ref_cnt")  # fmt: skip

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_cnt = 0
        """Requests that have the block in their block table; 0: it is in the free queue."""
        self.block_hash: bytes | None = None
        """Set while the block is full and can be found by its tokens."""
        self.is_null = False
        self.prev_free_block: KVCacheBlock | None = None
        self.next_free_block: KVCacheBlock | None = None

    def __repr__(self) -> str:
        hashed = self.block_hash.hex()[:8] if self.block_hash else None
        return f"KVCacheBlock({self.block_id}, ref_cnt={self.ref_cnt}, block_hash={hashed})"


class FreeKVCacheBlockQueue:
    """Free blocks in the order of eviction: a doubly linked list through the blocks themselves.

    A deque could pop and append as fast, but reviving a cached block takes it out of the
    middle: O(1) here. Two fake blocks, head and tail, spare every method its special cases.

    Source: vllm/v1/core/kv_cache_utils.py:164.
    """

    def __init__(self, blocks: Iterable[KVCacheBlock]) -> None:
        self.num_free_blocks = 0
        self.head = KVCacheBlock(-1)
        self.tail = KVCacheBlock(-1)
        self.head.next_free_block = self.tail
        self.tail.prev_free_block = self.head
        self.append_n(blocks)

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        """Take the `n` blocks that were free for the longest time.

        Raises:
            ValueError: if fewer than `n` are free.
        """
        if n > self.num_free_blocks:
            raise ValueError(f"{n} blocks asked for, {self.num_free_blocks} free")
        popped = []
        block = self.head.next_free_block
        for _ in range(n):
            assert block is not None
            popped.append(block)
            following = block.next_free_block
            block.prev_free_block = block.next_free_block = None
            block = following
        assert block is not None
        self.head.next_free_block = block
        block.prev_free_block = self.head
        self.num_free_blocks -= n
        return popped

    def remove(self, block: KVCacheBlock) -> None:
        """Take `block` out of wherever it stands.

        Raises:
            ValueError: if it is not in the queue.
        """
        before, after = block.prev_free_block, block.next_free_block
        if before is None or after is None:
            raise ValueError(f"{block} is not in the free queue")
        before.next_free_block = after
        after.prev_free_block = before
        block.prev_free_block = block.next_free_block = None
        self.num_free_blocks -= 1

    def append_n(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Add `blocks` at the end, in their order: they will be evicted last."""
        last = self.tail.prev_free_block
        assert last is not None
        for block in blocks:
            last.next_free_block = block
            block.prev_free_block = last
            last = block
            self.num_free_blocks += 1
        last.next_free_block = self.tail
        self.tail.prev_free_block = last

    def prepend_n(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Add `blocks` at the front, in their order: the first will be handed out next."""
        first, last = self.head.next_free_block, self.head
        assert first is not None
        for block in blocks:
            last.next_free_block = block
            block.prev_free_block = last
            last = block
            self.num_free_blocks += 1
        last.next_free_block = first
        first.prev_free_block = last

    def get_all_free_blocks(self) -> list[KVCacheBlock]:
        """The queue from first to be evicted to last. O(free blocks): for views and tests."""
        blocks = []
        block = self.head.next_free_block
        while block is not None and block is not self.tail:
            blocks.append(block)
            block = block.next_free_block
        return blocks


class BlockPool:
    """All blocks, the free queue, and the map from hash to block.

    Args:
        num_gpu_blocks: all blocks, the null block (id 0, never handed out) included.
        enable_caching: keep the hashes of freed blocks, so that they can be revived.

    Source: vllm/v1/core/block_pool.py:130.
    """

    def __init__(self, num_gpu_blocks: int, enable_caching: bool) -> None:
        self.num_gpu_blocks = num_gpu_blocks
        self.enable_caching = enable_caching
        self.unhashed_first = False
        """Whether a freed block without a hash goes to the front of the free queue."""
        self.blocks = [KVCacheBlock(block_id) for block_id in range(num_gpu_blocks)]
        self.null_block = self.blocks[0]
        self.null_block.is_null = True
        self.free_block_queue = FreeKVCacheBlockQueue(self.blocks[1:])
        # Two requests may fill blocks with the same tokens: block tables only ever grow, so
        # neither gives its copy up. Both are listed, the older one first.
        self.cached_block_hash_to_block: dict[bytes, dict[int, KVCacheBlock]] = {}
        self._evictions: list[tuple[int, bytes]] = []
        self.num_resets = 0
        """How often the whole prefix cache was forgotten."""

    def follow_release(self, switches: Switches) -> None:
        """Free blocks in the order of a release."""
        appended = switches.append_uncached and not self.enable_caching
        self.unhashed_first = switches.free_unhashed_first and not appended

    def get_cached_block(self, block_hash: bytes) -> KVCacheBlock | None:
        """A block that holds these tokens after this prefix, in use or free; None: a miss."""
        blocks = self.cached_block_hash_to_block.get(block_hash)
        return next(iter(blocks.values())) if blocks else None

    def cache_full_block(self, block: KVCacheBlock, block_hash: bytes) -> None:
        """Let `block` be found by its hash from now on."""
        assert block.block_hash is None, f"{block} has a hash already"
        block.block_hash = block_hash
        self.cached_block_hash_to_block.setdefault(block_hash, {})[block.block_id] = block

    def get_new_blocks(self, num_blocks: int) -> list[KVCacheBlock]:
        """Take blocks from the front of the free queue; what they cached is evicted.

        Raises:
            ValueError: if fewer than `num_blocks` are free.
        """
        blocks = self.free_block_queue.popleft_n(num_blocks)
        for block in blocks:
            if block.block_hash is not None:
                self._evictions.append((block.block_id, block.block_hash))
                self.uncache(block)
            block.ref_cnt = 1
        return blocks

    def take_evictions(self) -> list[tuple[int, bytes]]:
        """(id, hash) of each cached block handed out since this was last asked, in order."""
        evictions, self._evictions = self._evictions, []
        return evictions

    def uncache(self, block: KVCacheBlock) -> None:
        """Forget what `block` holds: no request will find it by its hash again."""
        assert block.block_hash is not None
        copies = self.cached_block_hash_to_block[block.block_hash]
        del copies[block.block_id]
        if not copies:
            del self.cached_block_hash_to_block[block.block_hash]
        block.block_hash = None

    def touch(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Give each block one more owner; a free one is revived."""
        for block in blocks:
            if block.ref_cnt == 0:
                self.free_block_queue.remove(block)
            block.ref_cnt += 1

    def free_blocks(self, ordered_blocks: Iterable[KVCacheBlock]) -> None:
        """Take one owner from each block; those left without any join the free queue, in order."""
        freed = []
        for block in ordered_blocks:
            block.ref_cnt -= 1
            if block.ref_cnt == 0:
                freed.append(block)
        if self.unhashed_first:
            self.free_block_queue.prepend_n(b for b in freed if b.block_hash is None)
            freed = [block for block in freed if block.block_hash is not None]
        self.free_block_queue.append_n(freed)

    def reset_prefix_cache(self) -> bool:
        """Forget every hash. False, and nothing done, while a request still holds blocks."""
        if self.get_num_free_blocks() != self.num_gpu_blocks - 1:
            return False
        self.num_resets += 1
        self.cached_block_hash_to_block.clear()
        for block in self.blocks:
            block.block_hash = None
        return True

    def get_num_free_blocks(self) -> int:
        """Blocks that can be handed out, cached ones included."""
        return self.free_block_queue.num_free_blocks

    def get_usage(self) -> float:
        """Share of the blocks in use, 0 to 1."""
        usable = self.num_gpu_blocks - 1
        return 1.0 - self.get_num_free_blocks() / usable if usable else 0.0
