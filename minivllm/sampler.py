"""From logits to tokens.

A request's choice depends on its own logits, its own parameters and its own random numbers,
never on its neighbours: row by row the arithmetic is the same whatever the batch. Randomness is
counter-based: the noise for the i-th token is a function of the request's seed and i. There is
no generator state to lose, so a preempted request picks up where it was.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from minivllm.core.request import Request
from minivllm.models.memory import to_device

_MASK = (1 << 64) - 1
SLICE = 1024
"""Tokens whose probabilities are summed before one is looked for."""
_NUM_CANDIDATES = 1024
"""Top-p looks at this many likeliest tokens before it sorts the whole vocabulary."""


def uniform_noise(seed: int, counter: int) -> float:
    """A number in [0, 1) for each (seed, counter): SplitMix64 (Steele et al. 2014), 53 bits."""
    state = _mix(_mix(seed & _MASK) + (counter + 1) * 0x9E3779B97F4A7C15 & _MASK)
    return (state >> 11) / (1 << 53)


def _mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


class Sampler:
    """Picks one token per request.

    Args:
        seed: of the seeds given to requests that bring none; None: from the system.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._fresh_seeds = random.Random(seed)

    def fresh_seed(self) -> int:
        """A seed for a request without one."""
        return self._fresh_seeds.getrandbits(63)

    def sample(self, requests: Sequence[Request], logits: Tensor) -> dict[str, int]:
        """Pick each request's next token.

        Args:
            requests: with `sampling_params.seed` set where the temperature is not 0.
            logits: [len(requests), vocab_size], float32; changed in place.

        Returns:
            Token id by request id.
        """
        token_ids = self.sample_on_device(requests, logits).tolist()
        return dict(zip((request.request_id for request in requests), token_ids, strict=True))

    @torch.inference_mode()
    def sample_on_device(self, requests: Sequence[Request], logits: Tensor) -> Tensor:
        """As `sample`, but without waiting for a GPU: token ids [len(requests)] where it is."""
        if not requests:
            return torch.empty(0, dtype=torch.long, device=logits.device)
        for row, request in enumerate(requests):
            if request.next_output_index < request.sampling_params.min_tokens:
                logits[row, list(request.stop_token_ids)] = float("-inf")
        random_rows = [row for row, r in enumerate(requests) if r.sampling_params.temperature > 0.0]
        if len(random_rows) == len(requests):  # the usual case needs no copy of the logits
            return self._draw(requests, logits)
        token_ids = logits.argmax(dim=-1)
        if random_rows:
            rows = to_device(np.array(random_rows), str(logits.device))
            token_ids[rows] = self._draw([requests[row] for row in random_rows], logits[rows])
        return token_ids

    def _draw(self, requests: Sequence[Request], logits: Tensor) -> Tensor:
        """A token for each row of `logits`, which are overwritten."""
        params = [request.sampling_params for request in requests]
        noise = [
            uniform_noise(request.sampling_params.seed or 0, request.next_output_index)
            for request in requests
        ]
        numbers = np.array([[p.temperature for p in params], noise])
        temperatures, noises = to_device(numbers, str(logits.device))
        # The largest logit becomes 0 before the division: a tiny temperature cannot overflow.
        logits.sub_(logits.amax(dim=-1, keepdim=True)).div_(temperatures.float()[:, None])
        probs = logits.softmax(dim=-1)
        for row, p in enumerate(params):
            if p.top_k > 0 or p.top_p < 1.0:
                probs[row] = keep_likeliest(probs[row], p.top_k, p.top_p)
        return inverse_transform(probs, noises)


def inverse_transform(probs: Tensor, noise: Tensor) -> Tensor:
    """Of each row the first token whose cumulative probability passes the noise.

    Sums of slices come first, so that the cumulative sum of one slice is enough.

    Args:
        probs: [rows, vocab_size], not negative; they need not sum to 1.
        noise: [rows], float64, in [0, 1).

    Returns:
        [rows] token ids; none of probability 0.
    """
    whole = probs.shape[1] // SLICE * SLICE
    parts = (probs[:, :whole].unflatten(1, (-1, SLICE)), probs[:, None, whole:])
    sums = torch.cat([part.sum(dim=-1, dtype=torch.double) for part in parts], dim=1)
    index, passed = _pick(sums, noise * sums.sum(dim=-1))
    columns = index[:, None] * SLICE + torch.arange(SLICE, device=probs.device)
    inside = columns < probs.shape[1]
    slices = probs.gather(1, columns.clamp_max(probs.shape[1] - 1)) * inside
    return index * SLICE + _pick(slices.double(), passed)[0]


def _pick(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first column whose cumulative weight passes the target, [rows], and what of the target
    is left in it."""
    cumulative = weights.cumsum(dim=-1)
    index = torch.searchsorted(cumulative, target[:, None], right=True)
    # Rounding may carry the target up to the very end; the last possible column is meant.
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    index = torch.minimum(index, last)
    left = target - (cumulative.gather(1, index) - weights.gather(1, index))[:, 0]
    return index[:, 0], left.clamp_min(0.0)


def keep_likeliest(probs: Tensor, top_k: int, top_p: float) -> Tensor:
    """Zero all but the `top_k` likeliest tokens and, of those, all but the fewest whose share
    reaches `top_p` (nucleus sampling, Holtzman et al. 2020). At least one is left.

    Args:
        probs: [vocab_size], summing to 1.
        top_k: 0 or less: no limit.

    Returns:
        [vocab_size], not normalised again.
    """
    vocab_size = len(probs)
    if top_k > 0:
        values, indices = probs.topk(min(top_k, vocab_size))
    else:
        values, indices = probs.topk(min(_NUM_CANDIDATES, vocab_size))
        if values.sum() < top_p:
            values, indices = probs.topk(vocab_size)
    if top_p < 1.0:
        total = values.sum() if top_k > 0 else 1.0
        before = values.cumsum(dim=0) - values
        values = values.masked_fill(before >= top_p * total, 0.0)
    return torch.zeros_like(probs).scatter_(0, indices, values)
