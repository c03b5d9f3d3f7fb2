"""GGUF, llama.cpp's file format: read one, and turn it into a Hugging Face directory.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from minivllm.models.safetensors_file import write_safetensors
from minivllm.tokenizer import tokenizer_from_gguf

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's names and ours, in the order of writing: Q, K, V side by side, gate beside up."""

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "rope_freqs.weight": "rope_freqs.weight",
}


def open_gguf(path: Path) -> GGUFReader:
    """Open a file and read its metadata.

    Raises:
        ValueError: if it is not GGUF, is truncated, or holds an architecture not supported.
    """
    from gguf import GGUFReader

    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ValueError(f"{path} is not a GGUF file: it begins with {magic!r}, not b'GGUF'")
    try:
        reader = GGUFReader(path)
    except Exception as error:  # whatever numpy makes of bytes that are not there
        raise ValueError(f"{path} is truncated or corrupted: {error}") from error
    architecture = read_metadata(reader).get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{path}: GGUF architecture {architecture!r} is not supported; "
            f"the supported ones are {', '.join(ARCHITECTURES)}"
        )
    return reader


def read_metadata(reader: GGUFReader) -> dict[str, Any]:
    """A file's key/value pairs; arrays of tokens and merges are left out (they are slow)."""
    large = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.ggml.scores",
             "tokenizer.ggml.token_type")  # fmt: skip
    return {key: field.contents() for key, field in reader.fields.items() if key not in large}


def convert_gguf(path: Path, directory: Path) -> None:
    """Write `path` as a Hugging Face directory: config, float32 weights, tokenizer.

    Raises:
        ValueError: as `open_gguf`, or on a tokenizer or RoPE variant not supported.
    """
    reader = open_gguf(path)
    metadata = read_metadata(reader)
    config = _hf_config(metadata, {tensor.name for tensor in reader.tensors})
    tokenizer = tokenizer_from_gguf(reader, metadata)

    (directory / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer.save(directory)
    tensors = _in_writing_order(reader, config["num_hidden_layers"])
    shapes = [(name, [int(n) for n in tensor.shape[::-1]]) for name, tensor in tensors]
    with (directory / "model.safetensors").open("wb") as file:
        write_safetensors(file, shapes, _dequantised(tensors, config, path.name))


def _hf_config(metadata: dict[str, Any], tensor_names: set[str]) -> dict[str, Any]:
    arch = metadata["general.architecture"]

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{arch}.{key}", default)
        if value is None:
            raise ValueError(f"the GGUF metadata has no {arch}.{key}")
        return value

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": get("rope.freq_base", 10000.0)}
    scaling = metadata.get(f"{arch}.rope.scaling.type", "none")
    if scaling == "linear":
        rope |= {"rope_type": "linear", "factor": get("rope.scaling.factor")}
    elif scaling != "none":
        raise ValueError(f"RoPE scaling {scaling!r} of a GGUF is not supported, only 'linear'")
    num_heads, hidden_size = get("attention.head_count"), get("embedding_length")
    return {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "vocab_size": metadata.get(f"{arch}.vocab_size") or metadata["tokenizer.ggml.vocab_size"],
        "hidden_size": hidden_size,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": get("attention.head_count_kv", num_heads),
        "head_dim": get("attention.key_length", hidden_size // num_heads),
        "hidden_act": "silu",
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": rope["rope_theta"],
        "rope_parameters": rope,
        "max_position_embeddings": get("context_length"),
        "tie_word_embeddings": "output.weight" not in tensor_names,
        "attention_bias": arch == "llama" and "blk.0.attn_q.bias" in tensor_names,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _end_token_ids(metadata),
        "dtype": "float32",
    }


def _end_token_ids(metadata: dict[str, Any]) -> list[int]:
    """Tokens that end an answer: of the sequence, of a turn, of a message (to a tool).

    Source: llama.cpp, src/llama-vocab.cpp, `special_eog_ids`.
    """
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    return list(dict.fromkeys(metadata[key] for key in keys if metadata.get(key) is not None))


def _in_writing_order(reader: GGUFReader, num_layers: int) -> list[tuple[str, ReaderTensor]]:
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    ordered = [(ours, tensors[name]) for name, ours in _TOP_NAMES.items() if name in tensors]
    for index in range(num_layers):
        for group in (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up")):
            missing = [n for n in group if f"blk.{index}.{n}.weight" not in tensors]
            if missing:
                raise ValueError(f"the GGUF has no tensor 'blk.{index}.{missing[0]}.weight'")
        for kind in ("weight", "bias"):
            for name, ours in _LAYER_NAMES.items():
                if (full := f"blk.{index}.{name}.{kind}") in tensors:
                    ordered.append((f"model.layers.{index}.{ours}.{kind}", tensors[full]))
    return ordered


def _dequantised(
    tensors: list[tuple[str, ReaderTensor]], config: dict[str, Any], title: str
) -> Iterator[memoryview]:
    from gguf.quants import dequantize

    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    total = sum(int(tensor.n_elements) * 4 for _, tensor in tensors)
    quiet = "TQDM_DISABLE" in os.environ  # tqdm's notebook class does not look
    desc = f"Converting {title}, once"
    with tqdm(total=total, unit="B", unit_scale=True, desc=desc, disable=quiet) as bar:
        for name, tensor in tensors:
            array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
            part = name.split(".")[-2]
            if config["model_type"] == "llama" and part in heads:
                array = undo_rope_permutation(array, heads[part])
            array = np.ascontiguousarray(array)
            yield array.reshape(-1).view(np.uint8).data
            bar.update(array.nbytes)


def undo_rope_permutation(array: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of Q and K back in Hugging Face's order.

    RoPE turns pairs of dimensions. llama.cpp pairs neighbours (0, 1), Hugging Face pairs the
    halves (0, D/2), so llama.cpp's converter interleaves the rows of each head
    (`permute` in its convert_hf_to_gguf.py, for the llama architecture only).
    """
    pairs = array.reshape(num_heads, len(array) // num_heads // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)
