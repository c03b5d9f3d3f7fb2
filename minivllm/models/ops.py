"""The operators of a decoder layer, by PyTorch: on any device, in any dtype.

`cpu_kernels` has the same ones in C, for float32 on a CPU, `gpu_kernels` in Triton. Attention is in
the package `attention`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm.models.blocks import Blocks


class HeadNorms(NamedTuple):
    """Qwen3's norms of each query's and each key's head: their weights, [D]."""

    query: Tensor
    key: Tensor
    eps: float


class Ops:
    """What a layer does to rows of tokens, [T, ...]. Results have the inputs' dtype."""

    pack_copies = False

    def pack(self, weight: Tensor) -> Tensor:
        """A matrix [out, in] in the order in which `linear` and `embed` want it: here, as it is."""
        return weight

    def pack_blocks(self, blocks: Blocks) -> Tensor | None:
        """As `pack`, of a matrix in blocks; None: it is wanted as floats."""
        return None

    def embed(self, token_ids: Tensor, weight: Tensor) -> Tensor:
        """The tokens' rows of `weight` [vocab_size, hidden_size], from `pack`: [T, hidden_size]."""
        return F.embedding(token_ids, weight)

    def linear(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        """`x` [T, in] times `weight` [out, in], from `pack`, transposed: [T, out].

        The result is in `out`, if that is given.
        """
        if out is None:
            return F.linear(x, weight, bias)
        torch.mm(x, weight.t(), out=out)
        return out if bias is None else out.add_(bias)

    def add_linear(
        self, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> None:
        """Add `linear(x, weight, bias)` to `residual` [T, out], in place."""
        residual.add_(self.linear(x, weight, bias))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm over the last dimension (Zhang & Sennrich 2019)."""
        return F.rms_norm(x, weight.shape, weight, eps)

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) · up [T, inner] of [T, 2 · inner], which is overwritten."""
        gate, up = gate_up.chunk(2, dim=-1)
        # In place: a fresh tensor of this size would cost a page fault for each 4 KiB of it.
        return F.silu(gate, inplace=True).mul_(up)

    def rotate_and_store(
        self,
        qkv: Tensor,
        num_heads: int,
        rope: tuple[Tensor, Tensor],
        positions: Tensor,
        kv_cache: Tensor,
        slot_mapping: Tensor,
        head_norms: HeadNorms | None = None,
    ) -> Tensor:
        """Turn queries and keys by their positions, and put keys and values into the cache.

        Rotary position embedding: Su et al. 2021, with the two halves of D paired.

        Args:
            qkv: [T, Hq + 2 · Hkv, D]; it may be overwritten.
            num_heads: Hq.
            rope: cos and sin, [max_model_len, D]; sin is negative in the first half of D, so that
                one product more turns both halves.
            positions: [T] of each token in its sequence.
            kv_cache: [2, num_blocks, block_size, Hkv, D].
            slot_mapping: [T] where each token's keys and values go.
            head_norms: what to do to queries and keys first.

        Returns:
            The queries, [T, Hq, D].
        """
        num_kv_heads = kv_cache.shape[3]
        if head_norms:
            qkv = self.norm_heads(qkv, num_heads, num_kv_heads, head_norms)
        query_key, value = qkv.split((num_heads + num_kv_heads, num_kv_heads), dim=1)
        cos, sin = (table[positions].unsqueeze(1) for table in rope)
        half = qkv.shape[-1] // 2
        turned = torch.addcmul(query_key * cos, query_key.roll(half, dims=-1), sin)
        query, key = turned.split((num_heads, num_kv_heads), dim=1)
        write_kv_cache(key, value, kv_cache, slot_mapping)
        return query

    def norm_heads(
        self, qkv: Tensor, num_heads: int, num_kv_heads: int, norms: HeadNorms
    ) -> Tensor:
        """`qkv` [T, Hq + 2 · Hkv, D] with the heads of queries and keys normed."""
        query, key, value = qkv.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
        query = self.rms_norm(query, norms.query, norms.eps)
        return torch.cat((query, self.rms_norm(key, norms.key, norms.eps), value), dim=1)


def write_kv_cache(key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store keys and values [T, Hkv, D] in their slots of one layer's cache [2, blocks, ...]."""
    slots = kv_cache.flatten(1, 2)
    slots[0].index_copy_(0, slot_mapping, key)
    slots[1].index_copy_(0, slot_mapping, value)
