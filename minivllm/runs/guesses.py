"""Proposed tokens for a run without a model: a proposer that is right so and so often.

What the simulated model says next is a formula, so a proposer can know it. This one tells it, and
is wrong on purpose in the share of places that its acceptance rate leaves. Where it is wrong is
decided by the request and the place alone, so a run with other knobs meets the same guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from zlib import crc32

from minivllm.core import Request, Scheduler, SchedulerOutput
from minivllm.core.output import TokenIds

ACCEPTANCE_RATE = 0.7
"""Of a proposer that nobody has described."""

TokenAt = Callable[[Request, int], int]
"""The model: a request, and which of its output tokens."""


class Guesses:
    """A proposer for one run.

    Args:
        token_at: what the model will say.
        acceptance_rate: how often a proposed token is what the model says, 0 to 1, wherever those
            before it were right.
        seed: another one is wrong in other places.
    """

    def __init__(
        self, token_at: TokenAt, acceptance_rate: float = ACCEPTANCE_RATE, seed: int = 0
    ) -> None:
        self.token_at = token_at
        self.acceptance_rate = acceptance_rate
        self.seed = seed

    def draft_token_ids(self, request: Request, most: int, first: int | None = None) -> list[int]:
        """`most` tokens proposed to follow those that the request has; or `first` output tokens,
        where it was not told all of them yet."""
        first = request.num_output_tokens if first is None else first
        return [self._guess(request, index) for index in range(first, first + most)]

    def _guess(self, request: Request, index: int) -> int:
        token_id = self.token_at(request, index)
        place = crc32(f"{self.seed}/{request.request_id}/{index}".encode())
        # A checksum keeps the distance between like texts; the product does not.
        place = place * 2_654_435_761 % 2**32
        return token_id if place < self.acceptance_rate * 2**32 else token_id + 1


def verified(drafts: Iterable[int], first: int, token_at: Callable[[int], int]) -> list[int]:
    """All that a request with proposed tokens gets: those that are what the model says, and one
    more.

    Args:
        drafts: the proposed tokens.
        first: which output token the first of them would be.
        token_at: the model: which output token.
    """
    token_ids = [token_at(first)]
    for draft in drafts:
        if draft != token_ids[-1]:
            break
        token_ids.append(token_at(first + len(token_ids)))
    return token_ids


def sampled_tokens(
    scheduler: Scheduler, plan: SchedulerOutput, token_at: TokenAt
) -> dict[str, TokenIds]:
    """What the model gives each request of a plan that is caught up: one token, and before it the
    proposed ones, as far as they are what it says itself."""
    sampled: dict[str, TokenIds] = {}
    for request_id in plan.num_scheduled_tokens:
        request = scheduler.requests[request_id]
        if not request.is_caught_up:
            continue
        index = request.num_output_tokens
        drafts = plan.scheduled_spec_decode_tokens.get(request_id)
        if drafts is None:
            sampled[request_id] = token_at(request, index)
        else:
            sampled[request_id] = verified(drafts, index, partial(token_at, request))
    return sampled


def propose(
    scheduler: Scheduler, plan: SchedulerOutput, request_ids: Iterable[str], guesses: Guesses
) -> None:
    """Give each of the requests that got a token in a step, unless it has ended, its proposed
    tokens for the next one."""
    if most := plan.num_spec_tokens_to_schedule:
        requests = [scheduler.requests.get(request_id) for request_id in request_ids]
        scheduler.update_draft_token_ids(
            {r.request_id: guesses.draft_token_ids(r, most) for r in requests if r is not None}
        )
