"""The shape of a Llama-family model, read from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""One decoder serves all three: Qwen2 adds a bias to Q, K and V; Qwen3 normalises Q and K."""

ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything the forward pass needs to know about a model, weights aside.

    Attributes:
        hidden_size: width of a token's hidden state.
        num_attention_heads: query heads; each `num_attention_heads / num_key_value_heads` of
            them share one key/value head (grouped-query attention, Ainslie et al. 2023).
        rope: `rope_type` and its parameters, `rope_theta` excluded.
        max_position_embeddings: positions the model was trained for: the limit of `max_model_len`.
        eos_token_ids: every token that ends a sequence, of both files; the engine adds the
            tokenizer's own.
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

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read a `config.json` (and a `generation_config.json`, often with more EOS tokens).

        Raises:
            ValueError: on an architecture, activation, attention or RoPE variant not supported.
        """
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

        # transformers 5 writes `rope_parameters`; before, it was `rope_theta` and `rope_scaling`.
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        rope_theta = rope.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
        rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type") or "default"
        if rope["rope_type"] not in ROPE_TYPES:
            raise ValueError(
                f"RoPE scaling {rope['rope_type']!r} is not supported; "
                f"the supported ones are {', '.join(ROPE_TYPES)}"
            )

        is_llama = architecture == "LlamaForCausalLM"
        attention_bias = bool(config.get("attention_bias", False))
        num_heads = config["num_attention_heads"]
        eos = [
            *_as_tuple((generation_config or {}).get("eos_token_id")),
            *_as_tuple(config.get("eos_token_id")),
        ]
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
            rope_theta=float(rope_theta),
            rope=rope,
            max_position_embeddings=config.get("max_position_embeddings", 2048),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=attention_bias or architecture == "Qwen2ForCausalLM",
            o_bias=attention_bias and architecture != "Qwen2ForCausalLM",
            mlp_bias=is_llama and bool(config.get("mlp_bias", False)),
            qk_norm=architecture == "Qwen3ForCausalLM",
            eos_token_ids=tuple(dict.fromkeys(eos)),
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        )


def _as_tuple(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
