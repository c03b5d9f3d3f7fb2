"""Rotary position embedding (Su et al. 2021): the angle by which each position turns each pair of
dimensions, and the ways to stretch it to contexts longer than the model was first trained for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from minivllm.models.config import ModelConfig


def rope_table(
    config: ModelConfig, max_model_len: int, frequency_factors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin, [max_model_len, D], float32, as `Ops.rotate_and_store` wants them.

    Args:
        config: its `rope_theta` and `rope`.
        max_model_len: positions.
        frequency_factors: [D / 2]; a GGUF's way to write down a llama3 scaling.
    """
    rope = config.rope
    frequencies = rope_frequencies(config, max_model_len, frequency_factors)
    angles = torch.outer(torch.arange(max_model_len, dtype=torch.float32), frequencies)
    scale = _yarn_magnitude(rope) if rope["rope_type"] == "yarn" else 1.0
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rope_frequencies(
    config: ModelConfig, max_model_len: int, frequency_factors: Tensor | None = None
) -> Tensor:
    """By how much a position turns each pair, [D / 2], float32; arguments as of `rope_table`."""
    rope, base = config.rope, config.rope_theta
    if rope["rope_type"] == "dynamic":
        base = _ntk_base(config, max_model_len)
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / base**exponents
    if frequency_factors is not None:
        frequencies = frequencies / frequency_factors.float()
    stretch = _STRETCH.get(rope["rope_type"])
    return frequencies if stretch is None else stretch(frequencies, rope, base)


def _ntk_base(config: ModelConfig, max_model_len: int) -> float:
    """A base so large that the slowest pair turns no further at `max_model_len` than it was
    trained for. Within that length nothing changes.

    Others work it out anew as a sequence grows, so that keys computed early would have to be turned
    again; in a cache they cannot, and the base is the same for all, as upstream's
    (vllm/model_executor/layers/rotary_embedding/dynamic_ntk_scaling_rope.py:58).
    """
    factor, trained = float(config.rope["factor"]), config.max_position_embeddings
    longest = max(max_model_len, trained)
    trained = config.rope.get("max_trained_positions") or trained
    stretch = factor * longest / trained - (factor - 1)
    return config.rope_theta * stretch ** (config.head_dim / (config.head_dim - 2))


def _linear(frequencies: Tensor, rope: Mapping[str, Any], base: float) -> Tensor:
    return frequencies / float(rope["factor"])


def _llama3(frequencies: Tensor, rope: Mapping[str, Any], base: float) -> Tensor:
    """Leave the fast-turning dimensions, stretch the slow ones, blend in between."""
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    turns = float(rope["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    keep = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return keep * frequencies + (1.0 - keep) * frequencies / float(rope["factor"])


def _yarn(frequencies: Tensor, rope: Mapping[str, Any], base: float) -> Tensor:
    """As llama3, but blended over the dimensions, not over their turns (Peng et al. 2023).

    Source: vllm/model_executor/layers/rotary_embedding/yarn_scaling_rope.py:49.
    """
    num_pairs = len(frequencies)

    def dimension(turns: float) -> float:
        """The pair that turns so often in the original length, as a real number."""
        length = float(rope["original_max_position_embeddings"])
        return num_pairs * math.log(length / (turns * 2 * math.pi)) / math.log(base)

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * num_pairs - 1)
    span = high - low or 0.001
    stretched = ((torch.arange(num_pairs, dtype=torch.float32) - low) / span).clamp(0.0, 1.0)
    keep = (1.0 - stretched) * float(rope.get("extrapolation_factor", 1.0))
    return keep * frequencies + (1.0 - keep) * frequencies / float(rope["factor"])


def _yarn_magnitude(rope: Mapping[str, Any]) -> float:
    """What YaRN multiplies queries and keys by, so that attention over more tokens stays sharp."""

    def magnitude(share: float = 1.0) -> float:
        return 0.1 * share * math.log(max(float(rope["factor"]), 1.0)) + 1.0

    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return magnitude(rope["mscale"]) / magnitude(rope["mscale_all_dim"])
    scaled = magnitude() if rope.get("apply_yarn_scaling", True) else 1.0
    return scaled * float(rope.get("attn_factor", 1.0))


_STRETCH: dict[str, Callable[[Tensor, Mapping[str, Any], float], Tensor]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
"""RoPE type -> frequencies [D / 2] of the longer context."""
