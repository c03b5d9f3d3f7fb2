"""From logits to tokens.

A request's choice depends on its own logits, its own parameters and its own random numbers,
never on its neighbours: row by row the arithmetic is the same whatever the batch. Randomness is
counter-based: the noise for the i-th token is a function of the request's seed and i. There is
no generator state to lose, so a preempted request picks up where it was.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from minivllm.core.request import Request

_MASK = (1 << 64) - 1
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

    @torch.inference_mode()
    def sample(self, requests: Sequence[Request], logits: Tensor) -> dict[str, int]:
        """Pick each request's next token.

        Args:
            requests: with `sampling_params.seed` set where the temperature is not 0.
            logits: [len(requests), vocab_size], float32; changed in place.

        Returns:
            Token id by request id.
        """
        if not requests:
            return {}
        for row, request in enumerate(requests):
            if request.num_output_tokens < request.sampling_params.min_tokens:
                logits[row, list(request.stop_token_ids)] = float("-inf")
        token_ids = logits.argmax(dim=-1)
        random_rows = [row for row, r in enumerate(requests) if r.sampling_params.temperature > 0.0]
        if random_rows:
            drawn = self._draw([requests[row] for row in random_rows], logits[random_rows])
            token_ids[random_rows] = drawn
        return dict(zip((r.request_id for r in requests), token_ids.tolist(), strict=True))

    def _draw(self, requests: Sequence[Request], logits: Tensor) -> Tensor:
        params = [request.sampling_params for request in requests]
        temperatures = torch.tensor([p.temperature for p in params], device=logits.device)
        # The largest logit becomes 0 before the division: a tiny temperature cannot overflow.
        shifted = logits - logits.amax(dim=-1, keepdim=True)
        probs = (shifted / temperatures[:, None]).softmax(dim=-1)
        for row, p in enumerate(params):
            if p.top_k > 0 or p.top_p < 1.0:
                probs[row] = keep_likeliest(probs[row], p.top_k, p.top_p)
        noise = [
            uniform_noise(request.sampling_params.seed or 0, request.num_output_tokens)
            for request in requests
        ]
        # Inverse transform sampling: the first token whose cumulative probability passes the noise.
        cumulative = probs.double().cumsum(dim=-1)
        targets = torch.tensor(noise, dtype=torch.double, device=logits.device)[:, None]
        drawn = torch.searchsorted(cumulative, targets * cumulative[:, -1:], right=True)
        # Rounding may carry the target up to the very end; the last possible token is meant.
        last = (cumulative < cumulative[:, -1:]).sum(dim=-1, keepdim=True)
        return torch.minimum(drawn, last)[:, 0]


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
