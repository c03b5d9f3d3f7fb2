"""A Llama-family decoder over a flat batch of tokens.

There is no batch dimension and no padding: the T tokens of a step, from however many requests,
lie one after another. Everything but attention treats a token on its own and does not care
whose it is; attention asks the metadata. So prefill chunks and decodes share one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from minivllm.models.attention.metadata import AttentionMetadata
from minivllm.models.attention.selector import BACKENDS, GraphAttention, choose_backend
from minivllm.models.blocks import blocks_of
from minivllm.models.config import ModelConfig
from minivllm.models.cpu_kernels import CPUKernels, can_attend, load_kernels
from minivllm.models.memory import lazy_zeros
from minivllm.models.ops import HeadNorms, Ops
from minivllm.models.rope import rope_table
from minivllm.models.safetensors_file import release

KERNEL_DTYPES = (torch.float32, torch.bfloat16)
"""What the CPU kernels have matrices in."""

CPU_ROWS = 256
"""Tokens that go through a layer at a time on a CPU: enough for a matrix product at full speed, and
few enough that what lies between two products stays small."""


@dataclass
class Layer:
    """Weights of one decoder layer; matrices as `Ops.pack` gives them. `qkv` and `gate_up` are
    fused: one product instead of three (or two), which reads the hidden states once."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    head_norms: HeadNorms | None
    o: Tensor
    o_bias: Tensor | None
    post_attention_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


class LlamaModel:
    """Llama, Qwen2 or Qwen3, ready to run.

    Args:
        config: the model's shape.
        weights: name -> tensor, by Hugging Face's names.
        max_model_len: longest sequence: positions that RoPE is tabulated for.
        block_size: of the KV cache.
        batch_invariant: a token's logits do not depend, by a single bit, on the batch it is in.
        attention_backend: "auto" or one to insist on (see `choose_backend`).

    Raises:
        ValueError: on a missing tensor or one of the wrong shape.
        RuntimeError: if the matrix products of this machine break batch invariance.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        *,
        dtype: torch.dtype,
        device: str,
        max_model_len: int,
        block_size: int,
        batch_invariant: bool = False,
        attention_backend: str = "auto",
    ) -> None:
        self.config = config
        self.weight_dtype = dtype
        self.device = device
        self.attention_backend, self.dtype = backend_and_dtype(
            config, dtype, device, batch_invariant, attention_backend
        )
        self.attention = BACKENDS[self.attention_backend](
            block_size, config.num_key_value_heads, self.dtype, device
        )
        self.row_tile = self.attention.row_tile
        self._rows_at_once = self.row_tile or (CPU_ROWS if device == "cpu" else None)
        self.ops = Ops()
        if isinstance(self.attention, GraphAttention):  # Triton's: it can be had, then
            from minivllm.models.gpu_kernels import GPUKernels

            self.ops = GPUKernels()
        elif device == "cpu" and self.dtype == torch.float32 and not batch_invariant:
            self.ops = load_kernels() or self.ops
        self._kept = torch.empty(0) if isinstance(self.ops, CPUKernels) else None
        self.scale = config.head_dim**-0.5
        heads = config.num_attention_heads + 2 * config.num_key_value_heads
        self.qkv_size, self.gate_up_size = heads * config.head_dim, 2 * config.intermediate_size
        self._widest_piece = CPU_ROWS * max(self.qkv_size, self.gate_up_size)
        self._load(weights)
        cos, sin = rope_table(config, max_model_len, weights.get("rope_freqs.weight"))
        self.rope = cos.to(device, self.dtype), sin.to(device, self.dtype)
        if batch_invariant:
            self._check_rows_are_independent()

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv_caches: Tensor,
        metadata: AttentionMetadata,
        sampling: np.ndarray | None = None,
    ) -> Tensor:
        """Compute one step, but for the logits.

        Args:
            token_ids: [T], T a multiple of `row_tile` if that is set.
            positions: [T] of each token in its sequence.
            kv_caches: [layers, 2, num_blocks, block_size, Hkv, D]; this step's are written.
            metadata: `attention.prepare` has seen it.
            sampling: [requests] whether each one's last token is wanted; None: all tokens are.

        Returns:
            Hidden states [T, hidden_size], or [S, hidden_size] of the S tokens wanted.
        """
        hidden = self.ops.embed(token_ids, self.embed)
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            wanted = sampling if layer is self.layers[-1] else None
            hidden = self._layer(layer, hidden, positions, kv_cache, metadata, wanted)
        return hidden

    def _layer(
        self,
        layer: Layer,
        hidden: Tensor,
        positions: Tensor,
        kv_cache: Tensor,
        metadata: AttentionMetadata,
        sampling: np.ndarray | None,
    ) -> Tensor:
        """One decoder layer, arguments and result as of `forward`; `hidden` is overwritten."""

        def query_of(hidden: Tensor, positions: Tensor, slots: Tensor) -> Tensor:
            return self.ops.rotate_and_store(
                self._qkv(layer, hidden),
                self.config.num_attention_heads,
                self.rope,
                positions,
                kv_cache,
                slots,
                layer.head_norms,
            )

        # All keys are written before any is read: a request may share a block with one that
        # fills it in this very step.
        query = self._by_rows(query_of, hidden, positions, metadata.slot_mapping)
        if sampling is not None:
            # The keys and values are stored; nobody will read more of the other rows.
            metadata, last = metadata.last_tokens(sampling)
            hidden, query = hidden[last], query[last]
            if not len(last):
                return hidden
            self.attention.prepare(metadata)
        attended = self.attention(query, kv_cache, self.scale)
        for rows in self._pieces(len(hidden)):
            self._mlp(layer, hidden[rows], attended[rows])
        return hidden

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """Logits [S, vocab_size], float32, of the rows [S, hidden_size] that sample.

        The LM head is a fifth of this model's weights, and a prompt has one row that needs it.
        """
        if not self.row_tile:
            return self._lm_head(hidden)
        num_sampled = len(hidden)
        hidden = F.pad(hidden, (0, 0, 0, -num_sampled % self.row_tile))
        return self._by_rows(self._lm_head, hidden)[:num_sampled]

    def scratch(self, *shape: int, start: int = 0) -> Tensor | None:
        """Room for a result, kept between steps, so many elements from its start: whoever gets the
        same place overwrites it.

        None where PyTorch's allocator is as good, as on a GPU: it keeps what is given back. On a
        CPU fresh memory costs a page fault for each 4 KiB, and pieces of many sizes leave holes.
        """
        if self._kept is None:
            return None
        end = start + math.prod(shape)
        if len(self._kept) < end:
            self._kept = lazy_zeros((end,), self.dtype, self.device)
        return self._kept[start:end].view(shape)

    def _qkv(self, layer: Layer, hidden: Tensor) -> Tensor:
        """Hidden states [T, hidden] to the heads of queries, keys and values, [T, heads, D]."""
        normed = self._rms_norm(hidden, layer.input_norm)
        room = self.scratch(len(normed), self.qkv_size)
        qkv = self.ops.linear(normed, layer.qkv, layer.qkv_bias, out=room)
        return qkv.view(len(qkv), -1, self.config.head_dim)

    def _mlp(self, layer: Layer, hidden: Tensor, attended: Tensor) -> None:
        """The rest of a layer: output projection and MLP, each added to the residual stream."""
        self.ops.add_linear(hidden, attended.flatten(1), layer.o, layer.o_bias)
        normed = self._rms_norm(hidden, layer.post_attention_norm)
        room = self.scratch(len(normed), self.gate_up_size)
        gate_up = self.ops.linear(normed, layer.gate_up, layer.gate_up_bias, out=room)
        activated = self.ops.silu_and_mul(gate_up)
        self.ops.add_linear(hidden, activated, layer.down, layer.down_bias)

    def _lm_head(self, hidden: Tensor) -> Tensor:
        return self.ops.linear(self._rms_norm(hidden, self.norm), self.lm_head).float()

    def _rms_norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.ops.rms_norm(x, weight, self.config.rms_norm_eps)

    def _pieces(self, num_rows: int) -> list[slice]:
        """The rows that are computed at once: all, a CPU's piece or, batch-invariant, a tile.

        One shape means one kernel, one tiling and one order of additions, whatever the batch.
        """
        size = self._rows_at_once or max(num_rows, 1)
        return [slice(start, start + size) for start in range(0, max(num_rows, 1), size)]

    def _by_rows(self, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        """`function` of the args' rows, [T, ...], computed in pieces."""
        first, *others = self._pieces(len(args[0]))
        piece = function(*(arg[first] for arg in args))
        if not others:
            return piece
        shape = (len(args[0]), *piece.shape[1:])
        room = self.scratch(*shape, start=self._widest_piece)
        output = piece.new_empty(shape) if room is None else room
        output[first] = piece
        for rows in others:
            output[rows] = function(*(arg[rows] for arg in args))
        return output

    def _load(self, weights: Mapping[str, Tensor]) -> None:
        config = self.config

        def get(name: str, *shape: int, dtype: torch.dtype = self.weight_dtype) -> Tensor:
            if name not in weights:
                raise ValueError(f"the checkpoint has no tensor {name!r}")
            if tuple(weights[name].shape) != shape:
                raise ValueError(
                    f"tensor {name!r} has shape {tuple(weights[name].shape)}; "
                    f"the configuration asks for {shape}"
                )
            return weights[name].to(dtype=dtype, device=self.device)

        def matrix(names: list[tuple[str, int]], in_features: int) -> Tensor:
            weight = fuse([get(f"{name}.weight", n, in_features) for name, n in names])
            packed = None
            if self.weight_dtype == torch.float32:  # rounded to another, they are others
                blocks = blocks_of(weights, [f"{name}.weight" for name, _ in names])
                packed = self.ops.pack_blocks(blocks) if blocks else None
                del blocks
            if packed is None:
                packed = self.ops.pack(weight)
            if self.ops.pack_copies:
                del weight
                release(weights)  # of the file no more than a matrix lies in memory with its copy
            return packed

        def vector(names: list[tuple[str, int]], suffix: str = ".weight") -> Tensor:
            # A copy: a view would keep all of a file in memory.
            return torch.cat([get(name + suffix, n, dtype=self.dtype) for name, n in names])

        hidden, inner = config.hidden_size, config.intermediate_size
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        vocab = config.vocab_size
        self.norm = vector([("model.norm", hidden)])
        tied = config.tie_word_embeddings
        self.lm_head = matrix([("model.embed_tokens" if tied else "lm_head", vocab)], hidden)
        self.layers = []
        for index in range(config.num_hidden_layers):
            prefix = f"model.layers.{index}."
            attn, mlp = prefix + "self_attn.", prefix + "mlp."
            sizes = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
            qkv = [(attn + name, size) for name, size in sizes.items()]
            o, down = [(attn + "o_proj", hidden)], [(mlp + "down_proj", hidden)]
            gate_up = [(mlp + "gate_proj", inner), (mlp + "up_proj", inner)]
            self.layers.append(
                Layer(
                    input_norm=vector([(prefix + "input_layernorm", hidden)]),
                    qkv=matrix(qkv, hidden),
                    qkv_bias=vector(qkv, ".bias") if config.qkv_bias else None,
                    head_norms=HeadNorms(
                        vector([(attn + "q_norm", config.head_dim)]),
                        vector([(attn + "k_norm", config.head_dim)]),
                        config.rms_norm_eps,
                    )
                    if config.qk_norm
                    else None,
                    o=matrix(o, q_size),
                    o_bias=vector(o, ".bias") if config.o_bias else None,
                    post_attention_norm=vector([(prefix + "post_attention_layernorm", hidden)]),
                    gate_up=matrix(gate_up, hidden),
                    gate_up_bias=vector(gate_up, ".bias") if config.mlp_bias else None,
                    down=matrix(down, inner),
                    down_bias=vector(down, ".bias") if config.mlp_bias else None,
                )
            )
        # Last: a view keeps alive what has been read of the file since it was mapped.
        self.embed = self.lm_head if tied else get("model.embed_tokens.weight", vocab, hidden)

    def _check_rows_are_independent(self) -> None:
        """Fixed shapes give invariance only if a row's result ignores its neighbours and its
        place in the tile. No BLAS promises that, so ask this one, once per weight shape."""
        assert self.row_tile is not None
        generator = torch.Generator().manual_seed(0)
        matrices = [self.lm_head]
        if self.layers:
            layer = self.layers[0]
            matrices += [layer.qkv, layer.o, layer.gate_up, layer.down]
        for matrix in matrices:
            rows = torch.randn(self.row_tile, matrix.shape[1], generator=generator)
            rows = rows.to(dtype=self.dtype, device=self.device)
            expected = F.linear(rows, matrix)
            flipped = F.linear(rows.flip(0), matrix).flip(0)
            alone = F.linear(torch.cat((rows[:1], torch.zeros_like(rows[1:]))), matrix)
            if not (torch.equal(expected, flipped) and torch.equal(expected[:1], alone[:1])):
                raise RuntimeError(
                    f"batch_invariant=True cannot be had here: this machine's product with a "
                    f"{tuple(matrix.shape)} matrix of {self.dtype} gives a row other bits in "
                    f"another place of its tile"
                )


def backend_and_dtype(
    config: ModelConfig, dtype: torch.dtype, device: str, batch_invariant: bool, wanted: str
) -> tuple[str, torch.dtype]:
    """The attention to use, and what activations and the KV cache are kept in.

    That is `dtype`, but for the CPU kernels: of bfloat16 they have the matrices, which are what is
    read, and compute in float32.

    Raises:
        ValueError: as `choose_backend`.
    """
    kernel_fits = dtype in KERNEL_DTYPES and can_attend(config)
    backend = choose_backend(wanted, device, batch_invariant, kernel_fits=kernel_fits)
    return backend, torch.float32 if backend == "cpu" and kernel_fits else dtype


def fuse(tensors: list[Tensor]) -> Tensor:
    """Stack weights along their first dimension; without a copy if they lie so already.

    Memory-mapped checkpoints written by `minivllm` have them side by side.
    """
    first = tensors[0]
    end = first.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != end or not tensor.is_contiguous():
            return torch.cat(tensors)
        end += tensor.numel() * tensor.element_size()
    same_storage = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    if len(same_storage) != 1:
        return torch.cat(tensors)
    rows = sum(len(tensor) for tensor in tensors)
    return first.as_strided((rows, *first.shape[1:]), first.stride())
