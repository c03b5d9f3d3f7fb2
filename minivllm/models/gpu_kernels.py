"""The small operators of a decoder layer as GPU kernels, in Triton.

A decode step reads each weight once. PyTorch's operators around the products would add as much
again in launches: some twenty for each layer, each over in less time than the next one takes to
start. Here they are three, and the products add to the residual stream themselves: nine launches a
layer, attention included. They run in Triton's interpreter too, for tests without a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from minivllm.models.ops import HeadNorms, Ops

COLUMNS = 1024
"""Elements of a row that one program of `silu_and_mul_kernel` does."""


@triton.jit
def rms_norm_kernel(  # type: ignore[no-untyped-def]  # Triton reads the types at launch
    output,  # [T, width]
    x,  # [T, width]
    weight,  # [width]
    width,
    eps,
    padded_width: tl.constexpr,  # the next power of two
):
    """One row."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, padded_width)
    exists = column < width
    values = tl.load(x + row * width + column, mask=exists, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 0) / width + eps)
    result = values * scale * tl.load(weight + column, mask=exists, other=0.0).to(tl.float32)
    tl.store(output + row * width + column, result, mask=exists)


@triton.jit
def silu_and_mul_kernel(  # type: ignore[no-untyped-def]
    output,  # [T, inner]
    gate_up,  # [T, 2 * inner]
    inner,
    num_columns: tl.constexpr,
):
    """A slice of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * num_columns + tl.arange(0, num_columns)
    exists = column < inner
    place = gate_up + row * 2 * inner + column
    gate = tl.load(place, mask=exists, other=0.0).to(tl.float32)
    up = tl.load(place + inner, mask=exists, other=0.0).to(tl.float32)
    tl.store(output + row * inner + column, gate * tl.sigmoid(gate) * up, mask=exists)


@triton.jit
def rotate_and_store_kernel(  # type: ignore[no-untyped-def]
    query,  # [T, Hq, D], written
    keys,  # [slots, Hkv, D], written
    values,  # the same
    qkv,  # [T, Hq + 2 * Hkv, D]
    q_norm,  # [D], not read without norms
    k_norm,
    cos,  # [max_model_len, D]
    sin,
    positions,  # [T]
    slot_mapping,  # [T]
    eps,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    half: tl.constexpr,  # D / 2
    padded_half: tl.constexpr,
    has_norms: tl.constexpr,
):
    """One head of one token: a query's, a key's or a value's."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dim = tl.arange(0, padded_half)
    exists = dim < half
    place = qkv + (token * (num_heads + 2 * num_kv_heads) + head) * 2 * half + dim
    left = tl.load(place, mask=exists, other=0.0).to(tl.float32)
    right = tl.load(place + half, mask=exists, other=0.0).to(tl.float32)
    slot = tl.load(slot_mapping + token)

    if head >= num_heads + num_kv_heads:
        there = values + (slot * num_kv_heads + head - num_heads - num_kv_heads) * 2 * half + dim
        tl.store(there, left, mask=exists)
        tl.store(there + half, right, mask=exists)
    else:
        is_query = head < num_heads
        if has_norms:
            norm = q_norm if is_query else k_norm
            scale = tl.rsqrt((tl.sum(left * left, 0) + tl.sum(right * right, 0)) / (2 * half) + eps)
            left *= scale * tl.load(norm + dim, mask=exists, other=0.0).to(tl.float32)
            right *= scale * tl.load(norm + half + dim, mask=exists, other=0.0).to(tl.float32)
        angle = tl.load(positions + token) * 2 * half + dim
        cosine = tl.load(cos + angle, mask=exists, other=0.0).to(tl.float32)
        sine = tl.load(sin + angle + half, mask=exists, other=0.0).to(tl.float32)
        if is_query:
            there = query + (token * num_heads + head) * 2 * half + dim
        else:
            there = keys + (slot * num_kv_heads + head - num_heads) * 2 * half + dim
        tl.store(there, left * cosine - right * sine, mask=exists)
        tl.store(there + half, right * cosine + left * sine, mask=exists)


@triton.jit
def slice_sums_kernel(  # type: ignore[no-untyped-def]
    highest,  # [rows, slices], written
    sums,  # [rows, slices], written
    logits,  # [rows, width]
    temperatures,  # [rows]
    width,
    num_columns: tl.constexpr,
):
    """One slice of one row."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = part * num_columns + tl.arange(0, num_columns)
    values = tl.load(logits + row * width + column, mask=column < width, other=float("-inf"))
    most = tl.max(values, 0)
    # Where all is -inf, so is the highest: any other number leaves exp(-inf) = 0.
    base = tl.maximum(most, -3.4e38)
    total = tl.sum(tl.exp((values - base) / tl.load(temperatures + row)), 0)
    place = row * tl.num_programs(1) + part
    tl.store(highest + place, most)
    tl.store(sums + place, total)


def slice_sums(logits: Tensor, temperatures: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """As `minivllm.sampler.slice_sums_by_torch`, reading the logits [rows, width] once."""
    rows, width = logits.shape
    logits = logits.contiguous()
    highest = logits.new_empty(rows, triton.cdiv(width, size))
    sums = torch.empty_like(highest)
    slice_sums_kernel[(rows, highest.shape[1])](
        highest, sums, logits, temperatures, width, num_columns=size
    )
    return highest, sums


class GPUKernels(Ops):
    """`Ops` on a GPU. Sums are float32, whatever the tensors are."""

    def add_linear(
        self, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> None:
        residual.addmm_(x, weight.t())  # the product adds to what is there as it stores
        if bias is not None:
            residual.add_(bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1]
        output = torch.empty_like(x)
        rms_norm_kernel[(x.numel() // width,)](
            output, x, weight, width, eps, padded_width=triton.next_power_of_2(width)
        )
        return output

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
        output = gate_up.new_empty(rows, inner)
        grid = (rows, triton.cdiv(inner, COLUMNS))
        silu_and_mul_kernel[grid](output, gate_up, inner, num_columns=COLUMNS)
        return output

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
        num_tokens, all_heads, head_dim = qkv.shape
        query = qkv.new_empty(num_tokens, num_heads, head_dim)
        q_norm, k_norm, eps = head_norms or (qkv, qkv, 0.0)
        rotate_and_store_kernel[(num_tokens, all_heads)](
            query,
            kv_cache[0],
            kv_cache[1],
            qkv,
            q_norm,
            k_norm,
            *rope,
            positions,
            slot_mapping,
            eps,
            num_heads=num_heads,
            num_kv_heads=kv_cache.shape[3],
            half=head_dim // 2,
            padded_half=triton.next_power_of_2(head_dim // 2),
            has_norms=head_norms is not None,
            num_warps=1,
        )
        return query
