"""From logits to tokens.

A request's choice depends on its own logits, its own parameters and its own random numbers,
never on its neighbours: row by row the arithmetic is the same whatever the batch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from minivllm.executor.abstract import SampledTokens, Told
from minivllm.logits_processors import LogitsProcessors, Place
from minivllm.logprobs_tensors import LogprobsTensors, to_host
from minivllm.models.memory import to_device
from minivllm.noise import FreshSeeds, uniform_noise
from minivllm.spec_decode.ahead import TokenAhead, accepted

SLICE = 1024
"""Tokens whose probabilities are summed before one is looked for."""
_NUM_CANDIDATES = 1024
"""Top-p looks at this many likeliest tokens before it sorts the whole vocabulary."""


@dataclass
class SamplerOutput:
    """What a step samples, on the device or on its way to the CPU."""

    requests: Sequence[Place]
    token_ids: Tensor
    """[requests]"""
    logprobs: list[tuple[list[int], LogprobsTensors]] = field(default_factory=list)
    """Rows that ask for equally many, and theirs."""
    arrived: torch.cuda.Event | None = None
    """After which all is here, if it was sent for."""

    def to_host(self) -> SamplerOutput:
        """The same, on its way to the CPU as soon as the device has got there."""
        if self.token_ids.device.type == "cpu":
            return self
        logprobs = [(rows, tensors.to_host()) for rows, tensors in self.logprobs]
        here = SamplerOutput(self.requests, to_host(self.token_ids), logprobs, torch.cuda.Event())
        assert here.arrived is not None
        here.arrived.record()
        return here

    def read(self) -> SampledTokens:
        """By request id; waits for a GPU if it is not on the CPU yet."""
        if self.arrived is not None:
            self.arrived.synchronize()
        told = {
            row: told
            for rows, tensors in self.logprobs
            for row, told in zip(rows, tensors.rows(), strict=True)
        }
        sampled = SampledTokens()
        sampled.logprobs = {}
        ahead: dict[str, list[tuple[int, int]]] = {}
        for row, (request, token_id) in enumerate(
            zip(self.requests, self.token_ids.tolist(), strict=True)
        ):
            if isinstance(request, TokenAhead):
                place = (len(request.draft_token_ids), row)
                ahead.setdefault(request.request_id, []).append(place)
            else:
                sampled[request.request_id] = token_id
                if row in told:
                    sampled.logprobs[request.request_id] = [told[row]]
        for request_id, places in ahead.items():
            self._verify(request_id, [row for _, row in sorted(places)], told, sampled)
        return sampled

    def _verify(
        self, request_id: str, rows: list[int], told: Mapping[int, Told], sampled: SampledTokens
    ) -> None:
        """Keep of a request's places, in order, those whose tokens before them were accepted."""
        last = self.requests[rows[-1]]
        assert isinstance(last, TokenAhead)
        tokens = accepted(last.draft_token_ids, self.token_ids[rows].tolist())
        sampled[request_id] = tokens
        if rows[0] in told:
            sampled.logprobs[request_id] = [told[row] for row in rows[: len(tokens)]]


class Sampler(FreshSeeds):
    """Picks one token per request.

    Args:
        seed: of the seeds given to requests that bring none; None: from the system.
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(seed)
        self._logits_processors = LogitsProcessors()

    def sample(self, requests: Sequence[Place], logits: Tensor) -> SampledTokens:
        """Pick each request's next token.

        Args:
            requests: with `sampling_params.seed` set where the temperature is not 0.
            logits: [len(requests), vocab_size], float32; changed in place.

        Returns:
            Token id by request id, and the log probabilities that were asked for.
        """
        return self.sample_on_device(requests, logits).read()

    @torch.inference_mode()
    def sample_on_device(
        self,
        requests: Sequence[Place],
        logits: Tensor,
        late_token_ids: Callable[[], Mapping[str, int | list[int]]] = dict,
    ) -> SamplerOutput:
        """As `sample`, but without waiting for a GPU.

        Args:
            late_token_ids: see `LogitsProcessors.apply`.
        """
        wanted: dict[int, list[int]] = {}
        for row, request in enumerate(requests):
            num_logprobs = request.sampling_params.logprobs
            if num_logprobs is not None:
                wanted.setdefault(num_logprobs, []).append(row)
        raw = {k: logits[rows].log_softmax(dim=-1) for k, rows in wanted.items()}
        if any(request.sampling_params.changes_logits for request in requests):
            self._logits_processors.apply(logits, requests, late_token_ids)
        token_ids = self._pick_tokens(requests, logits)
        logprobs = [
            (rows, LogprobsTensors.gather(raw[k], k, token_ids[rows])) for k, rows in wanted.items()
        ]
        return SamplerOutput(requests, token_ids, logprobs)

    def _pick_tokens(self, requests: Sequence[Place], logits: Tensor) -> Tensor:
        """Token ids [len(requests)], on the device."""
        if not requests:
            return torch.empty(0, dtype=torch.long, device=logits.device)
        random_rows = [row for row, r in enumerate(requests) if r.sampling_params.temperature > 0.0]
        if len(random_rows) == len(requests):  # the usual case needs no copy of the logits
            return self._draw(requests, logits)
        token_ids = logits.argmax(dim=-1)
        if random_rows:
            rows = to_device(np.array(random_rows), str(logits.device))
            token_ids[rows] = self._draw([requests[row] for row in random_rows], logits[rows])
        return token_ids

    def _draw(self, requests: Sequence[Place], logits: Tensor) -> Tensor:
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
            if p.top_k > 0 or p.top_p < 1.0 or p.min_p > 0.0:
                # The largest logit becomes 0 before the division: no temperature is too small.
                probs = ((logits[row] - logits[row].max()) / temperatures[row]).softmax(dim=-1)
                if p.min_p > 0.0:
                    probs = probs.masked_fill(probs < p.min_p * probs.max(), 0.0)
                    probs /= probs.sum()
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
