"""Proposes what followed the same words before: no model, and often right where a text quotes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from minivllm.core.output import SchedulerOutput
from minivllm.core.request import Request


class NgramProposer:
    """Looks for a request's last tokens earlier in the request.

    Args:
        shortest, longest: how many last tokens are looked for; the longer match wins, and of
            equal ones the earliest, which has most behind it.

    Source: vllm/v1/spec_decode/ngram_proposer.py:12; Saxena 2023, "Prompt Lookup Decoding".
    """

    def __init__(self, shortest: int, longest: int) -> None:
        self.shortest = shortest
        self.longest = longest

    def follow(self, plan: SchedulerOutput) -> None:
        """Nothing is kept of a step."""

    def propose(self, most: Mapping[Request, int]) -> dict[str, list[int]]:
        """At most so many tokens for each request, by its id; none where nothing is found."""
        found = {r.request_id: self.look_up(r.all_token_ids, k) for r, k in most.items()}
        return {request_id: token_ids for request_id, token_ids in found.items() if token_ids}

    def look_up(self, token_ids: Sequence[int], most: int) -> list[int]:
        """What followed the last tokens where they stood before, at most `most` tokens."""
        ids = np.array(token_ids, dtype=np.int64)
        ends = np.flatnonzero(ids[:-1] == ids[-1])  # where a match may end
        lengths = np.ones_like(ends)
        for back in range(1, self.longest):
            reaches = (lengths == back) & (ends >= back)
            same = ids[np.maximum(ends - back, 0)] == ids[max(len(ids) - 1 - back, 0)]
            lengths += reaches & same
        if not len(ends) or lengths.max() < self.shortest:
            return []
        start = int(ends[lengths.argmax()]) + 1
        return ids[start : start + most].tolist()

    def forget_requests(self) -> None:
        """Nobody is remembered."""
