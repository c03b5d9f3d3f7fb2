"""RoPE and its scalings: the tables of transformers and of vLLM, and how long a context may be."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import build, hf_generate, hf_model, token_ids
from test_model import SHAPE, save_hf_model

from minivllm.models.config import ModelConfig
from minivllm.models.rope import rope_table

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
ROPES: dict[str, tuple[dict[str, Any], int]] = {
    "default": ({"rope_type": "default"}, 512),
    "linear": ({"rope_type": "linear", "factor": 4.0}, 2048),
    "linear, a broken factor": ({"rope_type": "linear", "factor": 1.3}, 665),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, 1024),
    "yarn": (YARN, 256),
    "yarn, other ends": ({**YARN, "beta_fast": 8, "beta_slow": 2, "truncate": False}, 256),
    "yarn, its own magnitude": ({**YARN, "attention_factor": 0.7}, 256),
    "yarn, as DeepSeek's": ({**YARN, "mscale": 0.8, "mscale_all_dim": 0.5}, 256),
    "llama3": (LLAMA3, 512),
}
"""Rope parameters, and the longest context of a model with `max_position_embeddings=512`."""


def config_of(rope: dict[str, Any], **changes: Any) -> ModelConfig:
    parameters = {"rope_theta": 10000.0, **rope}
    hf = {"architectures": ["LlamaForCausalLM"], **SHAPE, "rope_parameters": parameters, **changes}
    return ModelConfig.from_hf(hf)


@pytest.mark.parametrize("name", ROPES)
def test_the_longest_context_is_upstreams(name: str) -> None:
    """vllm/config/model.py:2187: what scales, and from which length."""
    rope, expected = ROPES[name]
    assert config_of(rope).derived_max_model_len == expected


@pytest.mark.parametrize("name", ROPES)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {"rope_theta": 10000.0, **ROPES[name][0]}
    ours = config_of(rope)
    length = ours.derived_max_model_len
    cos, sin = rope_table(ours, length)
    if rope["rope_type"] == "default":
        frequencies, scale = 10000.0 ** (-torch.arange(0, 16, 2).float() / 16), 1.0
    else:
        theirs = LlamaConfig(**SHAPE, rope_parameters=rope)
        arguments = {"seq_len": length} if rope["rope_type"] == "dynamic" else {}
        frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, None, **arguments)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    torch.testing.assert_close(cos, angles.cos() * scale, atol=2e-4, rtol=0)
    torch.testing.assert_close(sin[:, 8:], angles.sin()[:, 8:] * scale, atol=2e-4, rtol=0)
    torch.testing.assert_close(sin[:, :8], -sin[:, 8:], atol=0, rtol=0)


def test_dynamic_is_the_plain_one_within_the_trained_length() -> None:
    plain, dynamic = (config_of(ROPES[name][0]) for name in ("default", "dynamic"))
    for length in (16, 512):
        for ours, theirs in zip(rope_table(dynamic, length), rope_table(plain, length)):
            assert torch.equal(ours, theirs)
    assert not torch.equal(rope_table(dynamic, 600)[0][:512], rope_table(plain, 512)[0])


def test_dynamic_from_a_trained_length_that_is_given() -> None:
    """vllm/model_executor/layers/rotary_embedding/dynamic_ntk_scaling_rope.py:58."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "max_trained_positions": 128}
    base = 10000.0 * (2.0 * 512 / 128 - 1) ** (16 / 14)
    frequencies = base ** (-torch.arange(0, 16, 2).float() / 16)
    expected = torch.outer(torch.arange(100).float(), frequencies).cos()
    torch.testing.assert_close(rope_table(config_of(rope), 100)[0][:, :8], expected)


def test_a_yarn_that_is_told_as_vllm_tells_it() -> None:
    """`attn_factor` and `apply_yarn_scaling` are vLLM's own keys (yarn_scaling_rope.py:41)."""
    plain = rope_table(config_of({**YARN, "attention_factor": 1.0}), 64)[0]
    for changes, scale in (
        ({"attn_factor": 0.5}, 0.5 * (0.1 * math.log(4) + 1)),
        ({"attn_factor": 0.5, "apply_yarn_scaling": False}, 0.5),
    ):
        cos, _ = rope_table(config_of({**YARN, **changes}), 64)
        torch.testing.assert_close(cos, plain * scale)
    stretched = rope_table(config_of({**YARN, "attention_factor": 1.0,
                                      "extrapolation_factor": 0.0}), 64)[0]  # fmt: skip
    linear = rope_table(config_of({"rope_type": "linear", "factor": 4.0}), 64)[0]
    torch.testing.assert_close(stretched, linear)


@pytest.mark.parametrize("name", ["linear", "yarn", "dynamic"])
def test_a_model_says_what_transformers_says(name: str, tmp_path: Path) -> None:
    """Beyond the 64 positions that it was trained for, too; but dynamic, whose base transformers
    takes anew for each length, within them."""
    rope = {"rope_theta": 10000.0, **ROPES[name][0], "factor": 4.0}
    changes = {"rope_parameters": rope, "max_position_embeddings": 64}
    directory = save_hf_model(tmp_path, "Llama", changes)
    rng = random.Random(name)
    lengths, longest = ((5, 50), 64) if name == "dynamic" else ((5, 70, 180), 200)
    prompts = [[rng.randrange(960) for _ in range(n)] for n in lengths]
    expected = [hf_generate(hf_model(directory), prompt) for prompt in prompts]
    assert token_ids(build(str(directory), max_model_len=longest), prompts) == expected


@pytest.mark.parametrize("name", ["linear", "dynamic", "yarn"])
def test_max_model_len_may_be_as_long_as_rope_is_stretched(name: str, tmp_path: Path) -> None:
    rope = {"rope_theta": 10000.0, **ROPES[name][0], "factor": 4.0}
    changes = {"rope_parameters": rope, "max_position_embeddings": 64}
    directory = save_hf_model(tmp_path, "Llama", changes)
    for length in (200, 256, None):
        engine = build(str(directory), max_model_len=length).llm_engine
        assert engine.scheduler.config.max_model_len == (length or 256)
        assert engine.model.rope[0].shape[0] == (length or 256)
    with pytest.raises(ValueError, match="max_model_len=257 exceeds the 256 positions"):
        build(str(directory), max_model_len=257)


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize("rope", [YARN, LLAMA3], ids=["yarn", "llama3"])
def test_a_scaling_without_its_original_length_is_named(rope: dict[str, Any]) -> None:
    short = {key: value for key, value in rope.items() if not key.startswith("original")}
    with pytest.raises(ValueError, match=r"needs original_max_position_embeddings, the length"):
        config_of(short)
    beside = config_of(short, original_max_position_embeddings=64)
    assert beside == config_of(rope)


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_type": "longrope"}, "'longrope' is not supported; the supported ones are default"),
        ({"type": "su"}, "'su' is not supported"),
        ({"rope_type": "default", "type": "mrope", "mrope_section": [2, 3, 3]}, "'mrope' is not"),
        ({"rope_type": "dynamic", "alpha": 1000.0}, "'dynamic' by 'alpha' is not supported"),
        ({"rope_type": "linear"}, "'linear' needs factor"),
        ({"rope_type": "linear", "factor": None}, "'linear' needs factor"),
        ({"rope_type": "linear", "factor": 0}, "factor must be positive, got 0"),
        ({"rope_type": "linear", "factor": "4"}, "factor must be positive, got '4'"),
        ({"rope_type": "yarn", "type": "linear", **YARN}, "has a 'type', 'linear', and another"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({key: value for key, value in LLAMA3.items() if key != "low_freq_factor"},
         "'llama3' needs low_freq_factor"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(rope: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config_of(rope)


def test_parameters_by_type_of_layer() -> None:
    nested = {"full_attention": {"rope_theta": 5000.0, **YARN}}
    config = config_of({}, rope_parameters=nested)
    assert (config.rope_theta, config.derived_max_model_len) == (5000.0, 256)
    nested["sliding_attention"] = {"rope_type": "default"}
    with pytest.raises(ValueError, match="several types of layers"):
        config_of({}, rope_parameters=nested)
