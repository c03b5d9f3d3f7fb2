"""GGUF, llama.cpp's file format: read one, and turn it into a Hugging Face directory.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from minivllm.models.blocks import BLOCK_COLUMNS
from minivllm.models.safetensors_file import write_safetensors
from minivllm.tokenizer_files import tokenizer_from_gguf

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

SHARD_NAME = re.compile(r".*-(?P<number>\d{5})-of-(?P<count>\d{5})\.(gguf|safetensors)")
"""A file's name if it is one of several that make a model together."""

BLOCKS_FILE = "model.blocks"
"""Beside `model.safetensors`. Others read every `*.safetensors` of a directory, so it is none."""

_IN_BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Formats that `numbers_of` reads; of others a cache has the floats alone."""

_PREFIX = "tokenizer.ggml."
_TOKENS = f"{_PREFIX}tokens"

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "rope_freqs.weight": "rope_freqs.weight",
}


def check_not_a_split(path: Path) -> None:
    """Refuse a part of a model, by the name that `llama-gguf-split` gives it.

    Raises:
        ValueError: naming the split.
    """
    if (match := SHARD_NAME.fullmatch(path.name)) and int(match["count"]) > 1:
        raise _part_of_a_split(path, int(match["number"]), int(match["count"]))


def _part_of_a_split(path: Path, number: int, count: int) -> ValueError:
    return ValueError(
        f"{path} is part {number} of a model split in {count}; join the parts: `llama-gguf-split "
        f"--merge FIRST_PART WHOLE.gguf`"
    )


def open_gguf(path: Path) -> GGUFReader:
    """Open a file and read its metadata.

    Raises:
        ValueError: if it is not GGUF, is truncated, is a part of a split model, or holds an
            architecture not supported.
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
    metadata = read_metadata(reader)
    if (count := int(metadata.get("split.count", 1))) > 1:
        raise _part_of_a_split(path, int(metadata.get("split.no", 0)) + 1, count)
    architecture = metadata.get("general.architecture")
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
    """Write `path` as a Hugging Face directory: config, float32 weights, tokenizer. For the CPU
    kernels it has the weights in blocks, too.

    Raises:
        ValueError: as `open_gguf`, or on a tokenizer or RoPE variant not supported.
    """
    reader = open_gguf(path)
    metadata = read_metadata(reader)
    config = _hf_config(metadata, {tensor.name: tensor for tensor in reader.tensors})
    _check_tokenizer(reader, metadata)
    tokenizer = tokenizer_from_gguf(reader, metadata)

    (directory / "config.json").write_text(json.dumps(config, indent=2))
    tokenizer.save(directory)
    tensors = _in_writing_order(reader, config["num_hidden_layers"])
    shapes = [(name, [int(n) for n in tensor.shape[::-1]]) for name, tensor in tensors]
    with (directory / "model.safetensors").open("wb") as file:
        write_safetensors(file, shapes, _dequantised(tensors, config, path.name))
    shapes, dtypes = [], {}
    for name, tensor in tensors:
        if tensor.tensor_type.name in _IN_BLOCKS:
            rows, columns = (int(n) for n in tensor.shape[::-1])
            shapes.append((f"{name}.numbers", [rows, columns]))
            dtypes[f"{name}.numbers"] = "I8"
            for field in ("scale", "least"):
                shapes.append((f"{name}.{field}", [rows, columns // BLOCK_COLUMNS]))
    if shapes:
        with (directory / BLOCKS_FILE).open("wb") as file:
            write_safetensors(file, shapes, _in_blocks(tensors, config), dtypes)


def _check_tokenizer(reader: GGUFReader, metadata: dict[str, Any]) -> None:
    """A byte-level BPE tokenizer needs merges, and a type for each token: without types an
    end-of-turn token cannot be told from text.

    Raises:
        ValueError: naming what is missing.
    """
    if metadata.get("tokenizer.ggml.model") != "gpt2" or _TOKENS not in reader.fields:
        return  # said elsewhere
    for key, what in ((f"{_PREFIX}merges", "merges"), (f"{_PREFIX}token_type", "token types")):
        if key not in reader.fields:
            raise ValueError(
                f"the GGUF's tokenizer has no {what} ({key}); convert the model again, with a "
                f"recent convert_hf_to_gguf.py of llama.cpp"
            )
    num_tokens, num_types = (len(reader.fields[k].data) for k in (_TOKENS, f"{_PREFIX}token_type"))
    if num_tokens != num_types:
        raise ValueError(f"the GGUF's tokenizer has {num_tokens} tokens, but {num_types} types")


def _rope(metadata: dict[str, Any], arch: str, base: float) -> dict[str, Any]:
    """Hugging Face's `rope_parameters`.

    Raises:
        ValueError: on a scaling that is not supported, or has no factor.
    """
    scaling = f"{arch}.rope.scaling."
    factor = metadata.get(f"{scaling}factor")
    kind = metadata.get(f"{scaling}type")
    if kind is None and (factor := metadata.get(f"{arch}.rope.scale_linear")) not in (None, 1.0):
        kind = "linear"  # as it was written before types
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if kind in (None, "none"):
        return rope
    if kind not in ("linear", "yarn"):
        raise ValueError(
            f"RoPE scaling {kind!r} of a GGUF is not supported, only 'linear' and 'yarn'"
        )
    rope |= {"rope_type": kind, "factor": factor}
    needed = {f"{scaling}factor": factor}
    if kind == "yarn":
        original = metadata.get(f"{scaling}original_context_length")
        needed[f"{scaling}original_context_length"] = original
        rope["original_max_position_embeddings"] = original
        for theirs, ours in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow"),
                             ("yarn_ext_factor", "extrapolation_factor"),
                             ("attn_factor", "attn_factor"),
                             ("yarn_attn_factor", "attn_factor")):  # fmt: skip
            if f"{scaling}{theirs}" in metadata:
                rope[ours] = metadata[f"{scaling}{theirs}"]
    missing = [name for name, value in needed.items() if value is None]
    if missing:
        raise ValueError(f"RoPE scaling {kind!r} of the GGUF needs {missing[0]}, which is missing")
    return rope


def _hf_config(metadata: dict[str, Any], tensors: dict[str, ReaderTensor]) -> dict[str, Any]:
    arch = metadata["general.architecture"]

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{arch}.{key}", default)
        if value is None:
            raise ValueError(f"the GGUF metadata has no {arch}.{key}")
        return value

    rope = _rope(metadata, arch, get("rope.freq_base", 10000.0))
    if "token_embd.weight" not in tensors:
        raise ValueError("the GGUF has no tensor 'token_embd.weight'")
    num_heads, hidden_size = get("attention.head_count"), get("embedding_length")
    return {
        "architectures": [ARCHITECTURES[arch]],
        "model_type": arch,
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
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
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": arch == "llama" and "blk.0.attn_q.bias" in tensors,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _eos_token_ids(metadata),
        "dtype": "float32",
    }


def _eos_token_ids(metadata: Mapping[str, Any]) -> list[int]:
    """End of sequence, of turn and of message: each ends a generation (llama.cpp's `eog`)."""
    keys = (f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
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


def tensors_of(reader: GGUFReader) -> Iterator[tuple[str, ReaderTensor, int | None]]:
    """A file's tensors under our names, as the file has them, and by how many heads
    `undo_rope_permutation` takes the rows of Q and K back; None: they are as we have them."""
    metadata = read_metadata(reader)
    config = _hf_config(metadata, {tensor.name: tensor for tensor in reader.tensors})
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in _in_writing_order(reader, config["num_hidden_layers"]):
        permuted = config["model_type"] == "llama"
        yield name, tensor, heads.get(name.split(".")[-2]) if permuted else None


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
            try:
                array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
            except NotImplementedError:
                raise ValueError(
                    f"tensor {tensor.name!r} of the GGUF is quantised as {tensor.tensor_type.name},"
                    f" which is not supported"
                ) from None
            part = name.split(".")[-2]
            if config["model_type"] == "llama" and part in heads:
                array = undo_rope_permutation(array, heads[part])
            array = np.ascontiguousarray(array)
            yield array.reshape(-1).view(np.uint8).data
            bar.update(array.nbytes)


def numbers_of(data: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a GGUF's blocks, [rows, bytes], as `minivllm.models.blocks.Blocks` has them.

    Formats: ggml-common.h, block_q4_0 to block_q8_0. A byte has a number of a block's first half
    and one of its second; of 5 bits the highest lie apart.
    """
    has_least, bits = kind.endswith("_1"), int(kind[1])
    start = 4 if has_least else 2
    size = start + bits * BLOCK_COLUMNS // 8
    raw = np.ascontiguousarray(data).view(np.uint8).reshape(len(data), -1, size)
    scale = np.ascontiguousarray(raw[..., :2]).view(np.float16)[..., 0].astype(np.float32)
    least = np.zeros_like(scale)
    if has_least:
        least = np.ascontiguousarray(raw[..., 2:4]).view(np.float16)[..., 0].astype(np.float32)
    if bits == 8:
        numbers = np.ascontiguousarray(raw[..., start:]).view(np.int8)
    else:
        nibbles = raw[..., size - BLOCK_COLUMNS // 2 :]
        numbers = np.concatenate((nibbles & 15, nibbles >> 4), axis=-1)
        if bits == 5:
            high = np.ascontiguousarray(raw[..., start : start + 4])
            numbers |= np.unpackbits(high, axis=-1, bitorder="little") << 4
        numbers = numbers.astype(np.int8) - np.int8(0 if has_least else 1 << (bits - 1))
    return numbers.reshape(len(data), -1), scale, least


def _in_blocks(
    tensors: list[tuple[str, ReaderTensor]], config: dict[str, Any]
) -> Iterator[memoryview]:
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, tensor in tensors:
        if (kind := tensor.tensor_type.name) in _IN_BLOCKS:
            part = name.split(".")[-2]
            for array in numbers_of(tensor.data, kind):
                if config["model_type"] == "llama" and part in heads:
                    array = undo_rope_permutation(array, heads[part])
                yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def undo_rope_permutation(array: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of Q and K back in Hugging Face's order.

    RoPE turns pairs of dimensions. llama.cpp pairs neighbours (0, 1), Hugging Face pairs the
    halves (0, D/2), so llama.cpp's converter interleaves the rows of each head
    (`permute` in its convert_hf_to_gguf.py, for the llama architecture only).
    """
    pairs = array.reshape(num_heads, len(array) // num_heads // 2, 2, *array.shape[1:])
    return pairs.swapaxes(1, 2).reshape(array.shape)
