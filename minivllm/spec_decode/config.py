"""What `speculative_config` may say, in vLLM's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from minivllm.core.config import as_batch_size_rows, check_choice, check_int
from minivllm.models.loader import LoadedModel, load_model

METHODS = ("ngram", "draft_model")


@dataclass(frozen=True)
class SpeculativeConfig:
    """How tokens are proposed.

    Raises:
        ValueError: naming the value and what is allowed.

    Source: vllm/config/speculative.py:74.
    """

    num_speculative_tokens: int
    """Most tokens proposed for a request in one step."""

    method: str = ""
    """`ngram`: what followed the same words before. `draft_model`: what a smaller model says.
    Default: `draft_model` if a `model` is given."""

    model: Any = None
    """The draft model, as `LLM` takes one; its vocabulary is the large one's."""

    prompt_lookup_max: int | None = None
    """Longest run of last tokens that `ngram` looks for; default: `prompt_lookup_min`, or 5."""

    prompt_lookup_min: int | None = None
    """Shortest one; default: `prompt_lookup_max`."""

    num_speculative_tokens_per_batch_size: Sequence[tuple[int, int, int]] | None = None
    """(from, to, tokens): so many, after a step of `from` to `to` requests; a size that is not
    listed gets as many as the one before it. Default: always `num_speculative_tokens`."""

    def __post_init__(self) -> None:
        check_int("speculative_config: num_speculative_tokens", self.num_speculative_tokens, 1)
        method = self.method or ("draft_model" if self.model is not None else "ngram")
        object.__setattr__(self, "method", method)
        check_choice("speculative_config: method", method, METHODS)
        if method == "draft_model" and self.model is None:
            raise ValueError("speculative_config: method='draft_model' needs a model")
        longest = self.prompt_lookup_max or self.prompt_lookup_min or 5
        shortest = self.prompt_lookup_min or longest
        for name in ("prompt_lookup_max", "prompt_lookup_min"):
            if getattr(self, name) is not None:
                check_int(f"speculative_config: {name}", getattr(self, name), 1)
        if shortest > longest:
            raise ValueError(
                f"speculative_config: prompt_lookup_min={shortest} must be at most "
                f"prompt_lookup_max={longest}"
            )
        object.__setattr__(self, "prompt_lookup_max", longest)
        object.__setattr__(self, "prompt_lookup_min", shortest)
        if self.num_speculative_tokens_per_batch_size is not None:
            as_batch_size_rows(
                "speculative_config: num_speculative_tokens_per_batch_size",
                self.num_speculative_tokens_per_batch_size,
            )

    @property
    def prompt_lookup(self) -> tuple[int, int]:
        """Shortest and longest run of tokens that `ngram` looks for."""
        assert self.prompt_lookup_min
        assert self.prompt_lookup_max
        return self.prompt_lookup_min, self.prompt_lookup_max

    def load_model(self) -> LoadedModel:
        """The draft model's weights."""
        return self.model if isinstance(self.model, LoadedModel) else load_model(self.model)

    @classmethod
    def of(cls, settings: Mapping[str, Any] | SpeculativeConfig) -> SpeculativeConfig:
        """From a mapping, as vLLM takes it.

        Raises:
            ValueError: also on a key that does not exist, with a hint.
        """
        if isinstance(settings, SpeculativeConfig):
            return settings
        if not isinstance(settings, Mapping):
            raise ValueError(f"speculative_config must be a mapping, got {settings!r:.80}")
        known = [field.name for field in fields(cls)]
        for key in settings:
            if key not in known:
                near = get_close_matches(str(key), known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"speculative_config has no {key!r}{hint} (known are {', '.join(known)})"
                )
        if "num_speculative_tokens" not in settings:
            raise ValueError("speculative_config needs num_speculative_tokens")
        return cls(**settings)
