"""Attention over a paged KV cache: obvious, by PyTorch, by our CPU kernel, and batch-invariant.

A fifth, for GPUs, is in `triton_attention`. All compute the same thing. The keys and values of a
sequence lie scattered over blocks (PagedAttention, Kwon et al. 2023); its block table says where.
Every query token attends to the tokens of its own sequence, up to itself.

Shapes: T tokens in the step, Hq query heads, Hkv key/value heads, D their width. One layer's
cache of keys (or of values) is `[num_blocks, block_size, Hkv, D]`; block 0 is the null block,
which belongs to nobody: padding reads from it and writes to it.
"""
