"""The shape of a Llama-family model, read from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""135 million parameters: small enough for a laptop's CPU, large enough to make sentences."""

SMALL_MODEL = "little-stories"
"""Under a million parameters, in the package: it has read nothing but made-up stories, and is for
trying the scheduler, not for asking (tools/train_small_model.py)."""

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""One decoder serves all three: Qwen2 adds a bias to Q, K and V; Qwen3 normalises Q and K."""

_ORIGINAL = "original_max_position_embeddings"

ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", _ORIGINAL),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
}
"""RoPE type -> the numbers that it needs. `minivllm.models.rope` applies them."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything the forward pass needs to know about a model, weights aside.

    Attributes:
        hidden_size: width of a token's hidden state.
        num_attention_heads: query heads; each `num_attention_heads / num_key_value_heads` of
            them share one key/value head (grouped-query attention, Ainslie et al. 2023).
        rope: `rope_type` and its parameters, `rope_theta` excluded.
        max_position_embeddings: positions the model was trained for, before `rope` stretches them.
        eos_token_ids: every token that ends a sequence: generation_config.json's, or, if it names
            none, config.json's (of a GGUF: end of sequence, turn and message), and the
            tokenizer's own (`load_model`). As vLLM (`SamplingParams.update_from_generation_config`)
            and llama.cpp (`llama_vocab_is_eog`) do.
        dtype: the checkpoint's own, e.g. "bfloat16".
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_type": "default"})
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "float32"

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes of keys and values that one token leaves in the cache, over all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * itemsize

    @property
    def derived_max_model_len(self) -> int:
        """The limit of `max_model_len`: the positions that the model was trained for, times the
        factor by which RoPE is stretched.

        Of "llama3", `max_position_embeddings` is the stretched length already; of "yarn" it may be
        either, and the original length counts. Source: vllm/config/model.py:2187.
        """
        length, rope_type = self.max_position_embeddings, self.rope["rope_type"]
        if rope_type in ("default", "llama3"):
            return length
        if rope_type == "yarn":
            length = self.rope[_ORIGINAL]
        return int(length * self.rope["factor"])

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read a `config.json` (and a `generation_config.json`, which knows all EOS tokens).

        Raises:
            ValueError: on an architecture, activation, attention or RoPE variant, or a quantised
                checkpoint, which are not supported.
        """
        check_not_quantised(config)
        architecture = (config.get("architectures") or ["none given"])[0]
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture {architecture} is not supported; "
                f"the supported ones are {', '.join(ARCHITECTURES)}"
            )
        if (activation := config.get("hidden_act", "silu")) != "silu":
            raise ValueError(f"hidden_act={activation!r} is not supported, only 'silu'")
        layer_types = set(config.get("layer_types") or ()) - {"full_attention"}
        if layer_types or config.get("use_sliding_window"):
            raise ValueError("sliding-window attention is not supported, only full attention")

        rope_theta, rope = _read_rope(config)
        is_llama = architecture == "LlamaForCausalLM"
        attention_bias = bool(config.get("attention_bias", False))
        num_heads = config["num_attention_heads"]
        eos = (generation_config or {}).get("eos_token_id")
        eos = config.get("eos_token_id") if eos is None else eos
        return cls(
            architecture=architecture,
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=num_heads,
            num_key_value_heads=config.get("num_key_value_heads") or num_heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            rope_theta=rope_theta,
            rope=rope,
            max_position_embeddings=config.get("max_position_embeddings", 2048),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=attention_bias or architecture == "Qwen2ForCausalLM",
            o_bias=attention_bias and architecture != "Qwen2ForCausalLM",
            mlp_bias=is_llama and bool(config.get("mlp_bias", False)),
            qk_norm=architecture == "Qwen3ForCausalLM",
            eos_token_ids=_as_tuple(eos),
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        )


def _as_tuple(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def check_not_quantised(config: Mapping[str, Any]) -> None:
    """Refuse a `config.json` whose weights are packed.

    Raises:
        ValueError: naming the method.
    """
    about = config.get("quantization_config") or config.get("compression_config")
    if not about:
        return
    told = about if isinstance(about, Mapping) else {}
    inner = told.get("quantization") or {}  # ModelOpt's
    method = inner.get("quant_algo") or told.get("quant_method") or "a method that it does not name"
    bits = told.get("bits") or told.get("w_bit")
    raise quantised(str(method) + (f" ({bits} bits)" if bits else ""))


def quantised(method: str) -> ValueError:
    """The error for weights that are packed by a method such as GPTQ or AWQ."""
    return ValueError(
        f"the checkpoint is quantised by {method}: not supported. Take the model that it was made "
        f"of, in float32, float16 or bfloat16, or a GGUF of it, which is unpacked when it is loaded"
    )


def _read_rope(config: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """RoPE's base, and `rope_type` with its numbers.

    transformers 5 writes `rope_parameters`; before, it was `rope_theta` and `rope_scaling`.

    Raises:
        ValueError: on a type that is not supported, or a number that is missing or none.
    """
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if rope and all(isinstance(value, Mapping) for value in rope.values()):  # by type of layer
        if set(rope) != {"full_attention"}:
            raise ValueError(
                f"RoPE parameters of several types of layers ({', '.join(rope)}) are not supported"
            )
        rope = dict(rope["full_attention"])
    theta = rope.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    old, new = rope.pop("type", None), rope.get("rope_type")
    rope_type = rope["rope_type"] = new or old or "default"
    if "mrope_section" in rope:
        rope_type = "mrope"
    if rope_type not in ROPE_TYPES or (rope_type == "dynamic" and "alpha" in rope):
        by = " by 'alpha'" if rope_type == "dynamic" else ""
        raise ValueError(
            f"RoPE scaling {rope_type!r}{by} is not supported; "
            f"the supported ones are {', '.join(ROPE_TYPES)}"
        )
    if old and new and old != new:
        raise ValueError(f"RoPE has a 'type', {old!r}, and another 'rope_type', {new!r}; keep one")
    share = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if share != 1.0:
        raise ValueError(
            f"partial_rotary_factor={share}: RoPE of a part of a head is not supported"
        )
    for name in ROPE_TYPES[rope_type]:
        if name == _ORIGINAL and name in config:
            rope.setdefault(name, config[name])
        value = rope.get(name)
        if value is None:
            why = ", the length that the model was first trained for" if name == _ORIGINAL else ""
            raise ValueError(f"RoPE scaling {rope_type!r} needs {name}{why}; config.json has none")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"RoPE scaling {rope_type!r}: {name} must be positive, got {value!r}")
    return float(theta), rope
