"""Models as the cost model sees them: a handful of shapes, from which all sizes follow."""

from __future__ import annotations

from dataclasses import dataclass, fields

from minivllm.core.config import check_int
from minivllm.sim.checks import lookup


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a decoder-only transformer (numbers of its `config.json`).

    What counts: how many weights a step reads, how many multiply-adds a token costs, and how
    many bytes of keys and values a token leaves behind.

    Raises:
        ValueError: naming the size that is no positive integer.
    """

    name: str
    hf_name: str
    """Its name on the Hugging Face hub, for the hand-over to a real server."""
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    tie_word_embeddings: bool = False
    mlp_matrices: int = 3
    """3: gated (SwiGLU), as in Llama. 2: up and down, as in GPT and OPT."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type == "int":
                check_int(field.name, getattr(self, field.name), 1)

    @property
    def layer_params(self) -> int:
        """Weights of one layer's matrices: attention's four, and the MLP's."""
        query = self.hidden_size * self.num_heads * self.head_dim
        key = self.hidden_size * self.num_kv_heads * self.head_dim
        return 2 * query + 2 * key + self.mlp_matrices * self.hidden_size * self.intermediate_size

    @property
    def body_params(self) -> int:
        """Weights that every token passes through: all layers."""
        return self.num_layers * self.layer_params

    @property
    def head_params(self) -> int:
        """Weights of the output projection: only tokens that are sampled from pass it."""
        return self.vocab_size * self.hidden_size

    @property
    def num_params(self) -> int:
        """All weights, biases left out: layers, their norms, embedding, output projection."""
        norms = (2 * self.num_layers + 1) * self.hidden_size
        embeddings = self.head_params * (1 if self.tie_word_embeddings else 2)
        return self.body_params + norms + embeddings

    @property
    def attention_flops(self) -> int:
        """FLOPs for one query token to look at one context token: q·k and p·v, in all layers."""
        return 4 * self.num_layers * self.num_heads * self.head_dim

    def kv_bytes_per_token(self, bytes_per_value: int = 2, tensor_parallel: int = 1) -> int:
        """Bytes of keys and values that a token takes, on all GPUs together.

        With more GPUs than key-value heads, heads are copied: each GPU holds one at least.
        """
        heads = max(self.num_kv_heads, tensor_parallel)
        return 2 * self.num_layers * heads * self.head_dim * bytes_per_value


Shape = tuple[int, int, int, int, int, int, int, int]


def _spec(name: str, hf_name: str, shape: Shape, *, tied: bool = False, mlp: int = 3) -> ModelSpec:
    return ModelSpec(name, hf_name, *shape, tie_word_embeddings=tied, mlp_matrices=mlp)


MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        # name, hub name, layers, hidden, heads, kv heads, head dim, mlp, vocabulary, positions
        _spec(
            "smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct",
            (30, 576, 9, 3, 64, 1536, 49_152, 8_192), tied=True,
        ),
        _spec(
            "llama-3-8b", "meta-llama/Llama-3.1-8B-Instruct",
            (32, 4_096, 32, 8, 128, 14_336, 128_256, 131_072),
        ),
        _spec(
            "llama-3-1b", "meta-llama/Llama-3.2-1B-Instruct",
            (16, 2_048, 32, 8, 64, 8_192, 128_256, 131_072), tied=True,
        ),
        _spec(
            "llama-3-70b", "meta-llama/Llama-3.1-70B-Instruct",
            (80, 8_192, 64, 8, 128, 28_672, 128_256, 131_072),
        ),
        _spec(
            "qwen3-0.6b", "Qwen/Qwen3-0.6B",
            (28, 1_024, 16, 8, 128, 3_072, 151_936, 40_960), tied=True,
        ),
        _spec(
            "qwen2.5-7b", "Qwen/Qwen2.5-7B-Instruct",
            (28, 3_584, 28, 4, 128, 18_944, 152_064, 32_768),
        ),
        # Models of the papers that `minivllm.sim.papers` reproduces.
        _spec(
            "mistral-7b", "mistralai/Mistral-7B-v0.1",
            (32, 4_096, 32, 8, 128, 14_336, 32_000, 32_768),
        ),
        _spec("yi-34b", "01-ai/Yi-34B-200K", (60, 7_168, 56, 8, 128, 20_480, 64_000, 200_000)),
        _spec("opt-13b", "facebook/opt-13b", (40, 5_120, 40, 40, 128, 20_480, 50_272, 2_048),
              tied=True, mlp=2),
        _spec("gpt3-175b", "gpt3-175b (not published)",
              (96, 12_288, 96, 96, 128, 49_152, 50_257, 2_048), tied=True, mlp=2),
    )
}  # fmt: skip
"""Every model that can be named. Llama 3.1 has Llama 3's shape and a longer context; the one of 1B
is Llama 3.2's, which drafts for them."""


def get_model(name: str | ModelSpec) -> ModelSpec:
    """A model by its name, whatever the case; a `ModelSpec` passes through.

    Raises:
        ValueError: naming the models that are known.
    """
    return lookup("model", name, MODELS, ModelSpec)
