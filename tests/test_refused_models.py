"""Models that are not whole, are packed, or are stretched in ways that we cannot: each is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from serving import build, token_ids
from test_loader import write_gguf
from test_model import save_hf_model

from minivllm.models.loader import find_model, load_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one."""
    monkeypatch.setenv("MINIVLLM_CACHE", str(tmp_path / "cache"))


# --- GGUF -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_part_of_a_split_gguf_is_refused(number: int, tmp_path: Path) -> None:
    by_name = write_gguf(tmp_path / f"tiny-{number:05}-of-00003.gguf")
    with pytest.raises(ValueError, match=rf"is part {number} of a model split in 3; join.*--merge"):
        find_model(by_name)
    split = {"split.no": number - 1, "split.count": 3, "split.tensors.count": 20}
    renamed = write_gguf(tmp_path / "whole.gguf", metadata=split)
    with pytest.raises(ValueError, match=rf"is part {number} of a model split in 3"):
        load_model(renamed)


def test_a_split_in_one_is_whole(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny-00001-of-00001.gguf", metadata={"split.count": 1})
    assert load_model(path).config.vocab_size == 960


def test_a_gguf_without_token_types_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no token types \(tokenizer\.ggml\.token_type\)"):
        load_model(write_gguf(tmp_path / "none.gguf", num_types=0))
    with pytest.raises(ValueError, match="has 960 tokens, but 900 types"):
        load_model(write_gguf(tmp_path / "few.gguf", num_types=900))


@pytest.mark.parametrize(
    ("metadata", "expected", "limit"),
    [
        ({"llama.rope.scaling.type": "none"}, {"rope_type": "default"}, 2048),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
         {"rope_type": "linear", "factor": 4.0}, 8192),
        ({"llama.rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}, 4096),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0,
          "llama.rope.scaling.original_context_length": 512,
          "llama.rope.scaling.yarn_beta_fast": 16.0},
         {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512,
          "beta_fast": 16.0}, 1024),
    ],
)  # fmt: skip
def test_the_rope_scaling_of_a_gguf(
    metadata: dict[str, Any], expected: dict[str, Any], limit: int, tmp_path: Path
) -> None:
    config = load_model(write_gguf(tmp_path / "tiny.gguf", metadata=metadata)).config
    assert (config.rope, config.derived_max_model_len) == (expected, limit)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"llama.rope.scaling.type": "longrope"}, "'longrope' of a GGUF is not supported"),
        ({"llama.rope.scaling.type": "linear"}, r"needs llama\.rope\.scaling\.factor"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.0},
         r"'yarn' of the GGUF needs llama\.rope\.scaling\.original_context_length"),
    ],
)  # fmt: skip
def test_what_the_rope_scaling_of_a_gguf_lacks_is_named(
    metadata: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        load_model(write_gguf(tmp_path / "tiny.gguf", metadata=metadata))


# --- safetensors ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_hf_model(tmp_path_factory.mktemp("hf"), "Llama", {}, max_shard_size="200KB")


@pytest.fixture
def model(sharded: Path, tmp_path: Path) -> Path:
    """A sharded model, to be spoilt."""
    return Path(shutil.copytree(sharded, tmp_path / "model"))


def shards(model: Path) -> list[Path]:
    return sorted(model.glob("model-*.safetensors"))


def test_a_lone_shard_is_refused(model: Path) -> None:
    count = len(shards(model))
    with pytest.raises(ValueError, match=rf"is shard 2 of {count} of a model.*model's directory"):
        load_model(shards(model)[1])
    (model / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=rf"00001-of-{count:05}.* is shard 1 of {count} of a mode"):
        load_model(model)
    for number, shard in enumerate(shards(model)):  # named as if it were all
        if number:
            shard.unlink()
        else:
            shard.rename(model / "model.safetensors")
    with pytest.raises(ValueError, match="the checkpoint has no tensor"):
        build(str(model))


def test_an_index_that_names_missing_files(model: Path) -> None:
    gone = shards(model)[1:3]
    for shard in gone:
        shard.unlink()
    with pytest.raises(ValueError, match=rf"misses 2 of .* shards.*{gone[0].name}, {gone[1].name}"):
        load_model(model)
    for text in ("{}", '{"weight_map": {}}', '{"weight_map": ["a"]}'):
        (model / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match=r"index\.json has no weight_map"):
            load_model(model)
    (model / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match=r"index\.json must hold a JSON object"):
        load_model(model)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", r"it has pytorch_model\.bin: its form is not supported"),
        ("tiny.gguf", r"it has tiny\.gguf: pass that file"),
    ],
)
def test_a_directory_with_other_weights_says_which(name: str, words: str, model: Path) -> None:
    for path in [*shards(model), model / "model.safetensors.index.json"]:
        path.unlink()
    (model / name).write_bytes(b"")
    with pytest.raises(ValueError, match=words):
        load_model(model)


# --- quantised ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"by gptq \(4 bits\)"),
        ({"quantization_config": {"quant_method": "awq", "w_bit": 4}}, r"by awq \(4 bits\)"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
         "by bitsandbytes"),
        ({"quantization_config": {"quant_method": "fp8"}}, "by fp8"),
        ({"compression_config": {"format": "pack-quantized"}}, "by a method that it does not name"),
    ],
)  # fmt: skip
def test_a_quantised_checkpoint_is_named(config: dict[str, Any], words: str, model: Path) -> None:
    path = model / "config.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, **config}))
    with pytest.raises(ValueError, match=rf"is quantised {words}: not supported.*a GGUF of it"):
        load_model(model)
    path.write_text(json.dumps({**whole, **dict.fromkeys(config)}))  # null: it is not
    assert load_model(model).weights


@pytest.mark.parametrize(
    ("name", "about", "words"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128}, r"gptq \(4 bits\)"),
        ("quant_config.json", {"w_bit": 4, "version": "GEMM"}, r"awq \(4 bits\)"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, "NVFP4"),
    ],
)
def test_other_files_that_say_it(name: str, about: dict[str, Any], words: str, model: Path) -> None:
    (model / name).write_text(json.dumps(about))
    with pytest.raises(ValueError, match=f"is quantised by {words}"):
        load_model(model)


@pytest.mark.parametrize("ending", ["qweight", "weight_packed", "weight_scale"])
def test_packed_tensors_say_it_themselves(ending: str, tmp_path: Path) -> None:
    model = save_hf_model(tmp_path, "Llama", {})
    weights = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    weights[f"{name}.{ending}"] = torch.zeros(8, 8, dtype=torch.int32)
    del weights[f"{name}.weight"]
    save_file(weights, model / "model.safetensors")
    with pytest.raises(ValueError, match=rf"quantised.*{name}\.{ending}"):
        load_model(model)


def test_a_whole_model_is_not_refused(model: Path) -> None:
    assert token_ids(build(str(model)), [[1, 2, 3]])
