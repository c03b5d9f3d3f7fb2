"""Decode steps on a CPU in one call: what a CUDA graph is on a GPU.

A step of one request takes twenty milliseconds, and a tenth of them is Python between operators, in
which memory idles. `decode` in `cpu_kernels.c` runs the same kernels in the same order for all
layers. Steps with a chunk of a prompt are long enough to do without.
"""

from __future__ import annotations

import ctypes

import numpy as np
from torch import Tensor

from minivllm.models.cpu_kernels import CPUKernels, is_packed, kind_of
from minivllm.models.late_tokens import LateTokens
from minivllm.models.llama import LlamaModel

_WEIGHTS = ("input_norm", "qkv", "o", "post_attention_norm", "gate_up", "down")
"""Of each layer, as `layer_weights` in `cpu_kernels.c` has them."""
_MATRICES = ("qkv", "o", "gate_up", "down")


class CPUDecoder:
    """Runs decode steps of up to `max_batch_size` requests, with one token each.

    Args:
        model: one for which `can_decode` is true.
        kv_caches: the cache to read and write.
        late_tokens: tokens that `run` may be given stand-ins for.
    """

    max_batch_size = 256  # more take so long that Python between the operators does not matter

    def __init__(self, model: LlamaModel, kv_caches: Tensor, late_tokens: LateTokens) -> None:
        assert isinstance(model.ops, CPUKernels)
        self.model = model
        self.kernels = model.ops
        self.kv_caches = kv_caches
        self.late_tokens = late_tokens
        pointers = [getattr(layer, name).data_ptr() for layer in model.layers for name in _WEIGHTS]
        self._layers = (ctypes.c_void_p * len(pointers))(*pointers)
        self._width = model.config.hidden_size + model.qkv_size + model.gate_up_size

    def run(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        slot_mapping: np.ndarray,
        block_tables: np.ndarray,
    ) -> Tensor:
        """As `minivllm.runner.Decoder.run`."""
        model, config = self.model, self.model.config
        hidden = model.ops.embed(self.late_tokens.to_device(token_ids), model.embed)
        scratch = model.scratch(len(token_ids), self._width)
        assert scratch is not None
        # Names keep the arrays alive while C reads them.
        positions, slots = np.ascontiguousarray(positions), np.ascontiguousarray(slot_mapping)
        tables, owners = np.ascontiguousarray(block_tables), np.arange(len(token_ids))
        self.kernels.decode(
            hidden.data_ptr(),
            self._layers,
            len(model.layers),
            kind_of(model.layers[0].qkv),
            scratch.data_ptr(),
            self.kv_caches.data_ptr(),
            self.kv_caches.stride(1),
            model.rope[0].data_ptr(),
            model.rope[1].data_ptr(),
            *(array.ctypes.data for array in (positions, slots, owners, tables)),
            tables.shape[1],
            len(token_ids),
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            self.kv_caches.shape[3],
            config.rms_norm_eps,
            model.scale,
        )
        return hidden


def can_decode(model: LlamaModel) -> bool:
    """Whether `decode` in C is made for a model.

    It wants packed matrices of one kind, no biases, no norms of heads.
    """
    config, ops = model.config, model.ops
    extras = ("qkv_bias", "head_norms", "o_bias", "gate_up_bias", "down_bias")
    matrices = [getattr(layer, name) for layer in model.layers for name in _MATRICES]
    return (
        isinstance(ops, CPUKernels)
        and model.attention_backend == "cpu"
        and not any(getattr(layer, name) is not None for layer in model.layers for name in extras)
        and all(is_packed(matrix) for matrix in matrices)
        and len({kind_of(matrix) for matrix in matrices}) == 1
        and config.hidden_size % ops.lanes == config.intermediate_size % ops.lanes == 0
    )
