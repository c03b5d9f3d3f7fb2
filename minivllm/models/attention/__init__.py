"""Attention over a paged KV cache.

The keys and values of a sequence lie scattered over blocks (PagedAttention, Kwon et al. 2023); its
block table says where. Every query token attends to the tokens of its own sequence, up to itself.
`reference` is that as the definition reads. `sdpa` (PyTorch), `cpu` (C), `triton` (GPUs) and
`batch_invariant` compute the same; `selector` chooses one of them, from `metadata` they learn what
is in the batch.

Shapes: T tokens in the step, Hq query heads, Hkv key/value heads, D their width. One layer's
cache of keys (or of values) is `[num_blocks, block_size, Hkv, D]`; block 0 is the null block,
which belongs to nobody: padding reads from it and writes to it.
"""
