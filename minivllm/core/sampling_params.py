"""What a caller asks of one request's output. Names follow `vllm/sampling_params.py`."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from minivllm.core.config import as_int, as_token_ids, check_bool, check_int, unknown_name

WITHOUT_EFFECT = frozenset(
    {"output_text_buffer_length", "skip_clone", "spaces_between_special_tokens"}
)
"""Parameters of vLLM's that change no token and no text here: taken and passed over."""

REFUSED: dict[str, tuple[object, str]] = {
    "extra_args": (None, "no plugin is there to read it"),
    "flat_logprobs": (False, "logprobs are a dict for each token"),
    "logprob_token_ids": (None, "ask for logprobs=-1, with LLM(max_logprobs=-1), and look them up"),
    "output_kind": (None, "LLM.generate returns whole outputs, LLM.stream growing ones"),
    "prompt_logprob_start": (None, "prompt_logprobs begin with the prompt"),
    "prompt_logprob_token_ids": (None, "ask for prompt_logprobs=-1, with LLM(max_logprobs=-1)"),
    "repetition_detection": (None, "use repetition_penalty, or stop strings"),
    "routed_experts_prompt_start": (0, "no supported model has experts"),
    "stream_interval": (None, "LLM.stream returns every token"),
    "structured_outputs": (None, "there are no grammars; allowed_token_ids limits the tokens"),
    "thinking_token_budget": (None, "max_tokens is the only limit"),
    "trace_decode_token_ids": (None, "tokens are always sampled"),
    "watermarking": (None, "there are no watermarks"),
    # of older releases
    "best_of": (None, "ask for n outputs and choose"),
    "guided_decoding": (None, "there are no grammars; allowed_token_ids limits the tokens"),
    "logits_processors": (None, "use logit_bias, bad_words or allowed_token_ids"),
    "truncate_prompt_tokens": (None, "cut the prompt's token ids before you pass them"),
}
"""vLLM's other parameters, each with the value that asks for nothing, and what to do instead."""


@dataclass(kw_only=True)
class SamplingParams:
    """How to pick tokens, when to stop, and what to tell about the tokens.

    Logits are changed in vLLM's order: allowed tokens, bad words, `min_tokens`, bias, penalties;
    then come temperature, `min_p`, `top_k` and `top_p`.

    Raises:
        ValueError: naming the parameter, its value and the limit.
    """

    n: int = 1
    """Outputs for each prompt."""

    presence_penalty: float = 0.0
    """Taken off the logit of each token that the output has, -2 to 2."""

    frequency_penalty: float = 0.0
    """Taken off a token's logit as often as the output has the token, -2 to 2."""

    repetition_penalty: float = 1.0
    """Divides a positive logit, multiplies a negative one, of each token that prompt or output
    have (Keskar et al. 2019, §4.1)."""

    temperature: float = 1.0
    """0 is greedy: always the likeliest token. At most 2; none is too small (vLLM makes 0.01 of a
    smaller one)."""

    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probabilities reach this sum."""

    top_k: int = 0
    """Sample from the k likeliest tokens; 0 or -1: from all."""

    min_p: float = 0.0
    """Sample from tokens at least this share as likely as the likeliest, 0 to 1."""

    seed: int | None = None
    """Makes this request's output repeatable, whoever shares its batch; -1 is None."""

    stop: str | list[str] | None = None
    """Strings that end the output."""

    stop_token_ids: list[int] | None = None
    """Token ids that end the output."""

    bad_words: list[str] | None = None
    """Words that the output must not have: the token that would complete one is not sampled."""

    ignore_eos: bool = False
    """Go on past the model's end-of-sequence token."""

    max_tokens: int | None = 16
    """Most output tokens; None: as many as `max_model_len` leaves."""

    min_tokens: int = 0
    """No EOS and no stop token is sampled, and no stop string ends the output, before this many
    tokens."""

    logprobs: int | None = None
    """For each output token tell the log probabilities of so many of the likeliest tokens, and its
    own; -1: of all tokens. They are the model's, before anything here changes them."""

    prompt_logprobs: int | None = None
    """The same for each prompt token but the first. The prompt is computed without the prefix
    cache."""

    detokenize: bool = True
    """Turn token ids into text."""

    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""

    include_stop_str_in_output: bool = False
    """Keep the stop string that ended the output."""

    logit_bias: dict[int, float] | None = None
    """Added to the logits of these token ids; `-inf` forbids one."""

    allowed_token_ids: list[int] | None = None
    """Sample from these token ids only."""

    skip_reading_prefix_cache: bool | None = None
    """Compute the whole prompt, whatever the prefix cache has; None: if `prompt_logprobs` are
    asked for."""

    def __post_init__(self) -> None:
        check_int("n", self.n, 1)
        for name, default, low, high, brackets in _RANGES:
            if (value := getattr(self, name)) != default:
                _check_number(name, value, low, high, brackets)
        check_int("top_k", self.top_k, -1)
        if self.temperature == 0.0 and self.n > 1:
            raise ValueError(f"n must be 1 at temperature 0 (all outputs are alike), got {self.n}")
        if self.seed is not None:
            self.seed = as_int("seed", self.seed)
            self.seed = None if self.seed == -1 else self.seed
        if self.max_tokens is not None:
            check_int("max_tokens", self.max_tokens, 1)
        check_int("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(
                f"min_tokens must not exceed max_tokens={self.max_tokens}, got {self.min_tokens}"
            )
        for name in _FLAGS:
            check_bool(name, getattr(self, name))
        if self.logprobs is not None:
            self.logprobs = _count("logprobs", self.logprobs)
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = _count("prompt_logprobs", self.prompt_logprobs)
        if isinstance(self.stop, str):
            self.stop = [self.stop]
        self.stop = [] if self.stop is None else _words("stop", self.stop)
        if self.stop and not self.detokenize:
            raise ValueError("stop strings are searched in text: they need detokenize=True")
        if self.stop_token_ids is None:
            self.stop_token_ids = []
        else:
            self.stop_token_ids = _token_ids("stop_token_ids", self.stop_token_ids)
        self.bad_words = [] if self.bad_words is None else _words("bad_words", self.bad_words)
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = _token_ids("allowed_token_ids", self.allowed_token_ids)
            if not self.allowed_token_ids:
                raise ValueError("allowed_token_ids is empty: no token could be sampled")
        if self.logit_bias is not None:
            self.logit_bias = _biases(self.logit_bias)
        if self.skip_reading_prefix_cache is not None:
            check_bool("skip_reading_prefix_cache", self.skip_reading_prefix_cache)
            if self.prompt_logprobs is not None and not self.skip_reading_prefix_cache:
                raise ValueError(
                    "prompt_logprobs need skip_reading_prefix_cache=True, or leave it out: what "
                    "the cache holds has no logits"
                )
        self.has_penalties = (
            self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
            or self.repetition_penalty != 1.0
        )
        self.changes_logits = bool(
            self.has_penalties
            or self.min_tokens
            or self.bad_words
            or self.logit_bias
            or self.allowed_token_ids
        )
        """Whether the sampler has to look at the logits before it picks a token."""

    def to_dict(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON-serialisable data."""
        default = type(self)()
        values = {name: getattr(self, name) for name in _FIELDS}
        return {n: v for n, v in values.items() if v != getattr(default, n)}

    def verify(self, vocab_size: int, max_logprobs: int) -> None:
        """Check what depends on the model and the engine.

        Args:
            max_logprobs: most log probabilities for a token; -1: no limit.

        Raises:
            ValueError: on a token id beyond the vocabulary, or too many log probabilities.

        Source: vllm/sampling_params.py:665.
        """
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            most = max(getattr(self, name) or (), default=-1)
            if most >= vocab_size:
                raise ValueError(f"{name}: {most} is not in the vocabulary [0, {vocab_size})")
        limit = vocab_size if max_logprobs == -1 else max_logprobs
        for name in ("logprobs", "prompt_logprobs"):
            wanted = getattr(self, name)
            if wanted is not None and (vocab_size if wanted == -1 else wanted) > limit:
                raise ValueError(
                    f"{name}={wanted} exceeds max_logprobs={max_logprobs}: ask for fewer, or give "
                    f"the LLM a higher max_logprobs (-1: no limit)"
                )


_RANGES = (
    ("presence_penalty", 0.0, -2.0, 2.0, "[]"),
    ("frequency_penalty", 0.0, -2.0, 2.0, "[]"),
    ("repetition_penalty", 1.0, 0.0, math.inf, "()"),
    ("temperature", 1.0, 0.0, 2.0, "[]"),
    ("top_p", 1.0, 0.0, 1.0, "(]"),
    ("min_p", 0.0, 0.0, 1.0, "[]"),
)
"""Of each number: its default, its limits, and whether they are values that it can have."""

_FLAGS = ("ignore_eos", "detokenize", "skip_special_tokens", "include_stop_str_in_output")
_FIELDS = tuple(field.name for field in fields(SamplingParams))
_NAMES = frozenset(_FIELDS)


def _check_number(name: str, value: object, low: float, high: float, brackets: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if not low <= value <= high or (brackets[0] == "(" and value == low):
        limits = f"{brackets[0]}{low:g}, {high:g}{brackets[1]}"
        raise ValueError(f"{name} must lie in {limits}, got {value}")


def _count(name: str, value: int) -> int:
    """How many log probabilities; True is 1, as in vLLM."""
    if value is True:
        return 1
    check_int(name, value, -1)
    return value


def _words(name: str, words: Iterable[str]) -> list[str]:
    """Strings, each once, none empty."""
    if isinstance(words, str) or not isinstance(words, Iterable):
        raise ValueError(f"{name} must be a list of strings, got {words!r}")
    words = list(words)
    for word in words:
        if not isinstance(word, str) or not word:
            raise ValueError(f"{name} must hold non-empty strings, got {word!r}")
    return list(dict.fromkeys(words))


def _token_ids(name: str, token_ids: Iterable[int]) -> list[int]:
    """Token ids, each once; their vocabulary is the model's, and checked there."""
    return list(dict.fromkeys(as_token_ids(name, token_ids)))


def _biases(biases: Mapping[int, float]) -> dict[int, float]:
    """Biases by token id; as JSON has them, token ids may be text."""
    if not isinstance(biases, Mapping):
        raise ValueError(f"logit_bias must be a dict of token id to bias, got {biases!r}")
    result = {}
    for token_id, bias in biases.items():
        if isinstance(token_id, str) and token_id.isdecimal():
            token_id = int(token_id)
        token_id = as_int("a token id of logit_bias", token_id)
        check_int("a token id of logit_bias", token_id, 0)
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not bias < math.inf:
            raise ValueError(
                f"logit_bias[{token_id}] must be a finite number or -inf, got {bias!r}"
            )
        result[token_id] = bias
    return result


def _known_only(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that are ours.

    Raises:
        ValueError: on one of vLLM's that asks for what is not to be had, or that nobody knows.
    """
    ours = {}
    for name, value in keywords.items():
        if name in _NAMES:
            ours[name] = value
        elif name in REFUSED:
            nothing, instead = REFUSED[name]
            if value != nothing:
                raise ValueError(f"SamplingParams: {name} is not supported: {instead}")
        elif name not in WITHOUT_EFFECT:
            raise ValueError(unknown_name("SamplingParams has no parameter", name, _NAMES))
    return ours


_make = SamplingParams.__init__


@functools.wraps(_make)
def _checked(self: SamplingParams, **keywords: Any) -> None:
    _make(self, **(keywords if keywords.keys() <= _NAMES else _known_only(keywords)))


SamplingParams.__init__ = _checked  # type: ignore[method-assign]
