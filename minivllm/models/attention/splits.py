"""How many programs share the keys of a decode on a GPU."""

from __future__ import annotations

PROGRAMS = 2
"""For each multiprocessor of the GPU, if a decode's keys can be split for it."""
MAX_SPLITS = 32


def num_splits(num_decodes: int, num_kv_heads: int, multiprocessors: int) -> int:
    """Programs that share the keys of a decode: enough for the GPU to be busy with few requests
    (Dao et al., "Flash-Decoding", 2023). A power of two; it does not depend on the contexts."""
    wanted = PROGRAMS * multiprocessors // max(num_decodes * num_kv_heads, 1)
    return min(1 << max(wanted.bit_length() - 1, 0), MAX_SPLITS)
