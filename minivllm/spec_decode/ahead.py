"""Verification: what the model says at each proposed place, and how far the proposal was right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minivllm.core.request import Request
from minivllm.core.sampling_params import SamplingParams


@dataclass(eq=False)
class TokenAhead:
    """A request as it will be if the first of its proposed tokens are right.

    The sampler asks it what it asks a request, so the token at this place is drawn from the same
    probabilities, with the same random number, as it would be without speculation.
    """

    request: Request
    draft_token_ids: list[int]
    """Those before this place."""

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def sampling_params(self) -> SamplingParams:
        return self.request.sampling_params

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.request.prompt_token_ids

    @property
    def output_token_ids(self) -> list[int]:
        return [*self.request.output_token_ids, *self.draft_token_ids]

    @property
    def next_output_index(self) -> int:
        """Which output token this place gives."""
        return self.request.num_output_tokens + len(self.draft_token_ids)

    @property
    def all_stop_token_ids(self) -> frozenset[int]:
        return self.request.all_stop_token_ids

    @property
    def bad_words_token_ids(self) -> Sequence[Sequence[int]]:
        return self.request.bad_words_token_ids


def accepted(draft_token_ids: Sequence[int], sampled_token_ids: Sequence[int]) -> list[int]:
    """The tokens that a request gets: the proposed ones, as far as the model drew the same, and
    then the model's own.

    A proposal names one token, so it is a distribution with all weight on one place. Rejection
    sampling (Leviathan et al. 2023, Algorithm 1) accepts that token with the probability that the
    model gives it, and draws from the rest otherwise. To draw from the model and compare is the
    same thing: the token is equal with that probability, and is distributed as the rest if not.

    Args:
        draft_token_ids: proposed.
        sampled_token_ids: what the model drew at the place of each, and at the one after them.
    """
    tokens = []
    for token_id, draft in zip(sampled_token_ids, [*draft_token_ids, None], strict=True):
        tokens.append(token_id)
        if token_id != draft:
            break
    return tokens
