"""From logits to tokens.

A request's choice depends on its own logits, its own parameters and its own random numbers,
never on its neighbours: row by row the arithmetic is the same whatever the batch. Randomness is
counter-based: the noise for the i-th token is a function of the request's seed and i. There is
no generator state to lose, so a preempted request picks up where it was.
"""

from __future__ import annotations

import importlib.util
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
        """A token for each row of `logits`, which may be overwritten."""
        params = [request.sampling_params for request in requests]
        noise = [
            uniform_noise(request.sampling_params.seed or 0, request.next_output_index)
            for request in requests
        ]
        numbers = np.array([[p.temperature for p in params], noise])
        temperatures, noises = to_device(numbers, str(logits.device))
        temperatures = temperatures.float()
        for row, p in enumerate(params):
            if p.top_k > 0 or p.top_p < 1.0:
                # The largest logit becomes 0 before the division: no temperature is too small.
                probs = ((logits[row] - logits[row].max()) / temperatures[row]).softmax(dim=-1)
                dropped = keep_likeliest(probs, p.top_k, p.top_p) == 0
                logits[row].masked_fill_(dropped, float("-inf"))
        return inverse_transform(logits, temperatures, noises)


def inverse_transform(logits: Tensor, temperatures: Tensor, noise: Tensor) -> Tensor:
    """Of each row the first token whose cumulative probability passes the noise.

    The sums of slices are enough to find the slice, and the slice to find the token: the rows are
    read once, and no row of probabilities is ever written.

    Args:
        logits: [rows, vocab_size].
        temperatures: [rows], float32.
        noise: [rows], float64, in [0, 1).

    Returns:
        [rows] token ids; none whose logit is -inf.
    """
    if logits.is_cuda and importlib.util.find_spec("triton"):
        from minivllm.models.gpu_kernels import slice_sums
    else:
        slice_sums = slice_sums_by_torch
    highest, sums = slice_sums(logits, temperatures, SLICE)
    top = highest.amax(dim=-1, keepdim=True)
    weights = sums.double() * ((highest - top) / temperatures[:, None]).exp()
    index, left = _pick(weights, noise * weights.sum(dim=-1))
    columns = index[:, None] * SLICE + torch.arange(SLICE, device=logits.device)
    inside = columns < logits.shape[1]
    logits = logits.gather(1, columns.clamp_max(logits.shape[1] - 1))
    weights = ((logits - top) / temperatures[:, None]).exp().double() * inside
    return index * SLICE + _pick(weights, left)[0]


def slice_sums_by_torch(logits: Tensor, temperatures: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Of each slice of `size` logits the highest, and the sum of exp((logit - highest) / t).

    Returns:
        [rows, slices] both; the sum of a slice of nothing but -inf is 0.
    """
    whole = logits.shape[1] // size * size
    parts = [logits[:, :whole].unflatten(1, (-1, size)), logits[:, None, whole:]]
    highest, sums = [], []
    for part in parts:
        if part.numel():
            most = part.amax(dim=-1, keepdim=True)
            # Where all is -inf, so is the highest: any other number leaves exp(-inf) = 0.
            base = most.clamp_min(torch.finfo(logits.dtype).min)
            weights = ((part - base) / temperatures[:, None, None]).exp()
            highest.append(most[:, :, 0])
            sums.append(weights.sum(dim=-1, dtype=torch.double))
    return torch.cat(highest, dim=1), torch.cat(sums, dim=1)


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
