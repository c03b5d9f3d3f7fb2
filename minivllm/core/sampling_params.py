"""What a caller asks of one request's output. Names follow `vllm/sampling_params.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from minivllm.core.config import check_bool, check_int


def _check_number(name: str, value: object, low: float, high: float, low_open: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if value < low or (low_open and value == low) or value > high:
        bracket = "(" if low_open else "["
        end = "inf)" if math.isinf(high) else f"{high:g}]"
        raise ValueError(f"{name} must lie in {bracket}{low:g}, {end}, got {value}")


@dataclass(kw_only=True)
class SamplingParams:
    """How to pick tokens, and when to stop.

    Raises:
        ValueError: naming the parameter, its value and the limit.
    """

    n: int = 1
    """Outputs for each prompt."""

    temperature: float = 1.0
    """0 is greedy: always the likeliest token."""

    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probabilities reach this sum."""

    top_k: int = 0
    """Sample from the k likeliest tokens; 0 or -1: from all."""

    seed: int | None = None
    """Makes this request's output repeatable, whoever shares its batch."""

    stop: str | list[str] | None = None
    """Strings that end the output."""

    stop_token_ids: list[int] | None = None
    """Token ids that end the output."""

    ignore_eos: bool = False
    """Go on past the model's end-of-sequence token."""

    max_tokens: int | None = 16
    """Most output tokens; None: as many as `max_model_len` leaves."""

    min_tokens: int = 0
    """No EOS and no stop token ends the output before this many tokens."""

    detokenize: bool = True
    """Turn token ids into text."""

    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""

    include_stop_str_in_output: bool = False
    """Keep the stop string that ended the output."""

    def __post_init__(self) -> None:
        check_int("n", self.n, 1)
        _check_number("temperature", self.temperature, 0.0, math.inf, low_open=False)
        _check_number("top_p", self.top_p, 0.0, 1.0, low_open=True)
        check_int("top_k", self.top_k, -1)
        if self.seed is not None and (
            isinstance(self.seed, bool) or not isinstance(self.seed, int)
        ):
            raise ValueError(f"seed must be an integer or None, got {self.seed!r}")
        if self.max_tokens is not None:
            check_int("max_tokens", self.max_tokens, 1)
        check_int("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens must not exceed max_tokens={self.max_tokens}, got {self.min_tokens}"
            )
        for name in (
            "ignore_eos",
            "detokenize",
            "skip_special_tokens",
            "include_stop_str_in_output",
        ):
            check_bool(name, getattr(self, name))
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        self.stop = list(self.stop or ())
        for stop in self.stop:
            if not isinstance(stop, str) or not stop:
                raise ValueError(f"stop must hold non-empty strings, got {stop!r}")
        if self.stop and not self.detokenize:
            raise ValueError("stop strings are searched in text: they need detokenize=True")
        self.stop_token_ids = list(self.stop_token_ids or ())
        for token_id in self.stop_token_ids:
            check_int("stop_token_ids", token_id, 0)
