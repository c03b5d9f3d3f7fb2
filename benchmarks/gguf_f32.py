"""A float32 GGUF of a Hugging Face directory, so that llama.cpp computes with the same weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from minivllm.models.gguf_file import _LAYER_NAMES, _TOP_NAMES
from minivllm.models.loader import LoadedModel, load_model
from minivllm.models.weight_cache import cache_root, fingerprint


def float32_gguf(directory: Path) -> Path:
    """The file, from the cache; written there the first time.

    Raises:
        ValueError: if the model is not a Llama: another architecture needs other metadata.
    """
    identity = fingerprint(directory / "model.safetensors")
    path = cache_root() / "bench" / f"{directory.name}-{identity[:16]}-f32.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            write_gguf(load_model(directory), temporary)
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def write_gguf(model: LoadedModel, path: Path) -> None:
    """Write it, without a tokenizer: llama.cpp gets token ids.

    Raises:
        ValueError: as `float32_gguf`.
    """
    from gguf import GGUFWriter

    shape = model.config
    if shape.architecture != "LlamaForCausalLM" or shape.rope["rope_type"] != "default":
        raise ValueError(
            f"llama.cpp is benchmarked with plain Llama models only; this one is "
            f"{shape.architecture} with {shape.rope['rope_type']} RoPE"
        )
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type(0)  # all float32
    writer.add_tokenizer_model("none")
    for name, array in _tensors(model):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: LoadedModel) -> list[tuple[str, Any]]:
    heads = {
        "self_attn.q_proj": model.config.num_attention_heads,
        "self_attn.k_proj": model.config.num_key_value_heads,
    }
    theirs = {ours: name for name, ours in _TOP_NAMES.items()}
    layer = {ours: name for name, ours in _LAYER_NAMES.items()}
    tensors = []
    for name, tensor in model.weights.items():
        array = tensor.float().numpy()
        if name in theirs:
            tensors.append((theirs[name], array))
            continue
        _, _, index, middle = name.split(".", 3)
        part, kind = middle.rsplit(".", 1)
        if part in heads:
            array = rope_permutation(array, heads[part])
        tensors.append((f"blk.{index}.{layer[part]}.{kind}", np.ascontiguousarray(array)))
    return tensors


def rope_permutation(array: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of Q and K in llama.cpp's order: `minivllm.models.gguf_file` undoes it."""
    halves = array.reshape(num_heads, 2, len(array) // num_heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)
