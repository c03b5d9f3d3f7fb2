"""Weights in blocks, as a GGUF has them: small numbers, and what makes floats of them.

`BLOCK_COLUMNS` neighbours in a row share a scale and a least value: a weight is scale · number +
least. The product is exact in float32, so the sum is rounded once: whoever does it gets the same
float. The CPU kernels keep the numbers as bytes, which is less than a third of what they read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minivllm.models.safetensors_file import MappedTensors

BLOCK_COLUMNS = 32
"""Of ggml's formats of 4, 5 and 8 bits (ggml-common.h: QK4_0, QK4_1, QK5_0, QK5_1, QK8_0)."""


class Blocks(NamedTuple):
    """A matrix [out, in] in blocks."""

    numbers: Tensor
    """[out, in], int8."""
    scale: Tensor
    """[out, in / BLOCK_COLUMNS], float32."""
    least: Tensor
    """As `scale`."""

    def floats(self) -> Tensor:
        """The matrix, float32."""
        numbers = self.numbers.unflatten(1, (-1, BLOCK_COLUMNS)).float()
        return (numbers * self.scale[:, :, None] + self.least[:, :, None]).flatten(1)


def blocks_of(weights: Mapping[str, Tensor], names: Sequence[str]) -> Blocks | None:
    """The blocks of matrices that lie one below the other; None if one of them has none.

    A directory's float32 weights count: where somebody has changed them, the blocks are not used.
    """
    if not isinstance(weights, MappedTensors) or weights.blocks is None:
        return None
    parts = []
    for name in names:
        if f"{name}.numbers" not in weights.blocks:
            return None
        part = Blocks(*(weights.blocks[f"{name}.{field}"] for field in Blocks._fields))
        some = torch.linspace(0, len(part.numbers) - 1, 8).long()
        if not torch.equal(Blocks(*(field[some] for field in part)).floats(), weights[name][some]):
            return None
        parts.append(part)
    return Blocks(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
