"""Log probabilities of sampled tokens and of the prompt's, told as vLLM tells them.

They are the model's own: of the logits as they are, before parameters change them. A token's rank
counts the tokens that are at least as likely, so 1 is the likeliest.

Source: vllm/logprobs.py, vllm/v1/engine/logprobs.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minivllm.core.request import Request
from minivllm.tokenizer import Tokenizer

MAX_CONTEXT = 4
"""Tokens before one that can begin its character: as many as UTF-8 has bytes."""


@dataclass
class Logprob:
    """What is told of one token at one place."""

    logprob: float
    rank: int | None = None
    """1 is the likeliest."""
    decoded_token: str | None = None
    """Its text; None without `detokenize`."""


LogprobsOnePosition = dict[int, Logprob]
"""By token id: the token that is there, then the likeliest."""


def prompt_rows_wanted(request: Request, start: int, end: int) -> int:
    """Of how many tokens of a prompt's chunk [start, end) the logits are wanted for its log
    probabilities: each tells of the token after it, in the prompt. None again after a preemption
    that has computed them all."""
    if request.sampling_params.prompt_logprobs is None or request.output_token_ids:
        return 0
    return max(min(end, request.num_prompt_tokens - 1) - start, 0)


@dataclass
class LogprobsProcessor:
    """Log probabilities as they are told, place by place.

    Args:
        tokenizer: None: tokens are not decoded.
        positions: `LogprobsOnePosition`s; a prompt's begin with None, for its first token.
    """

    tokenizer: Tokenizer | None
    positions: list[Any] = field(default_factory=list)
    cumulative_logprob: float = 0.0

    def append(self, token_ids: Sequence[int], logprobs: Sequence[float], rank: int) -> None:
        """Tell of the next place: the token that is there comes first."""
        decoded: Sequence[str | None] = [None] * len(token_ids)
        if self.tokenizer:
            told = [position for position in self.positions[-MAX_CONTEXT:] if position]
            context = [next(iter(position)) for position in told]
            decoded = [decoded_token(self.tokenizer, id_, context) for id_ in token_ids]
        ranks = (rank, *range(1, len(token_ids)))
        self.cumulative_logprob += logprobs[0]
        self.positions.append({
            token_id: Logprob(*about)
            for token_id, *about in zip(token_ids, logprobs, ranks, decoded, strict=True)
        })  # fmt: skip


def decoded_token(tokenizer: Tokenizer, token_id: int, context: Sequence[int]) -> str:
    """The text of one token after others. One that ends in the middle of a character has none;
    the one that completes the character has all of it.

    Source: vllm/v1/engine/logprobs.py, `_correct_decoded_token`.
    """
    text = tokenizer.decode_alone(token_id)
    if not text.endswith("\ufffd"):
        return text
    for start in range(len(context) - 1, -1, -1):
        before = context[start:]
        whole = tokenizer.decode([*before, token_id])
        if whole.endswith("\ufffd"):
            continue
        while before and tokenizer.decode(before[-1]).endswith("\ufffd"):
            before = before[:-1]
        told = tokenizer.decode(before) if before else ""
        same = 0
        while same < min(len(told), len(whole)) and told[same] == whole[same]:
            same += 1
        return whole[same:]
    return ""
