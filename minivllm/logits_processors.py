"""What a request's `SamplingParams` change about its logits before a token is picked.

A request touches its own row alone, and of it few places: all rows' places are gathered into flat
lists, and each change is one operation on these. Requests that change nothing are not looked at.

The order is that of vllm/v1/sample/sampler.py, `apply_logits_processors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from minivllm.bad_words import completing
from minivllm.core.request import Request
from minivllm.models.memory import to_device
from minivllm.spec_decode.ahead import TokenAhead

NEVER = float("-inf")

Place = Request | TokenAhead
"""Whose next token is drawn."""


class Places:
    """Places (row, token id) in the logits, and one list of numbers for each of `names`."""

    def __init__(self, *names: str) -> None:
        self._rows: list[int] = []
        self._lengths: list[int] = []
        self._token_ids: list[np.ndarray] = []
        self._numbers: dict[str, list[np.ndarray]] = {name: [] for name in names}

    def add(self, row: int, token_ids: Sequence[int] | np.ndarray, *numbers: np.ndarray) -> None:
        """Some places of one row, each with its numbers."""
        if len(token_ids):
            self._rows.append(row)
            self._lengths.append(len(token_ids))
            self._token_ids.append(np.asarray(token_ids, dtype=np.int64))
            for kept, values in zip(self._numbers.values(), numbers, strict=True):
                kept.append(values)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def rows(self, device: str) -> Tensor:
        """Each row once."""
        return to_device(np.array(self._rows), device)

    def indices(self, device: str) -> tuple[Tensor, Tensor]:
        """Rows and token ids of all places, [places] both."""
        rows = np.repeat(self._rows, self._lengths)
        return to_device(rows, device), to_device(np.concatenate(self._token_ids), device)

    def numbers(self, device: str) -> list[Tensor]:
        """Of each name, [places], float32."""
        lists = (np.concatenate(values) for values in self._numbers.values())
        return [to_device(values.astype(np.float32), device) for values in lists]


class _Asked:
    """What one request asks for, laid out once, and how often it has had each token."""

    def __init__(self, request: Place) -> None:
        params = request.sampling_params
        self.allowed = np.array(params.allowed_token_ids or (), dtype=np.int64)
        biases = params.logit_bias or {}
        self.biased, self.biases = np.array(list(biases)), np.array(list(biases.values()))
        self.penalties = np.array(
            [[params.repetition_penalty], [params.frequency_penalty], [params.presence_penalty]]
        )
        seen_in_prompt = request.prompt_token_ids if params.repetition_penalty != 1.0 else ()
        self._counts = dict.fromkeys(seen_in_prompt, 0)
        """Of each token seen, how often the output has it."""
        self._num_counted = 0

    def count(self, output_token_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens seen and how often the output, which only grows, has each."""
        for token_id in output_token_ids[self._num_counted :]:
            self._counts[token_id] = self._counts.get(token_id, 0) + 1
        self._num_counted = len(output_token_ids)
        size = len(self._counts)
        token_ids = np.fromiter(self._counts, np.int64, size)
        return token_ids, np.fromiter(self._counts.values(), np.int64, size)


class LogitsProcessors:
    """Applies them to a batch, and keeps what they need of each request while it lives."""

    def __init__(self) -> None:
        self._asked: WeakKeyDictionary[Place, _Asked] = WeakKeyDictionary()

    def apply(
        self,
        logits: Tensor,
        requests: Sequence[Place],
        late_token_ids: Callable[[], Mapping[str, int | list[int]]],
    ) -> None:
        """Change the rows of requests whose parameters say so.

        Args:
            logits: [len(requests), vocab_size], float32; changed in place.
            late_token_ids: gives, by request id, tokens that the requests do not know yet
                (async scheduling): waited for only if one counts.
        """
        allowed, forbidden = Places(), Places()
        biased, penalised = Places("bias"), Places("count", "repetition", "frequency", "presence")
        for row, request in enumerate(requests):
            params = request.sampling_params
            if not params.changes_logits:
                continue
            asked = self._asked.get(request)
            if asked is None:
                asked = self._asked[request] = _Asked(request)
            allowed.add(row, asked.allowed)
            if request.next_output_index < params.min_tokens:
                forbidden.add(row, list(request.all_stop_token_ids))
            biased.add(row, asked.biased, asked.biases)
            if params.has_penalties or request.bad_words_token_ids:
                outputs = request.output_token_ids
                if request.next_output_index > len(outputs):
                    late = late_token_ids()[request.request_id]
                    assert isinstance(late, int)  # nothing is proposed while a token is late
                    outputs = [*outputs, late]
                forbidden.add(row, completing(request.bad_words_token_ids, outputs))
                if params.has_penalties:
                    token_ids, counts = asked.count(outputs)
                    penalties = asked.penalties.repeat(len(token_ids), axis=1)
                    penalised.add(row, token_ids, counts, *penalties)

        device = str(logits.device)
        if allowed:
            places = allowed.indices(device)
            kept = logits[places]
            logits.index_fill_(0, allowed.rows(device), NEVER)
            logits[places] = kept
        if forbidden:
            logits.index_put_(forbidden.indices(device), logits.new_full((), NEVER))
        if biased:
            logits[biased.indices(device)] += biased.numbers(device)[0]
        if penalised:
            _penalise(logits, penalised.indices(device), *penalised.numbers(device))


def _penalise(
    logits: Tensor,
    places: tuple[Tensor, Tensor],
    counts: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
) -> None:
    """Repetition, frequency, presence, in this order.

    Source: vllm/model_executor/layers/utils.py, `apply_penalties`.
    """
    values = logits[places]
    values = torch.where(values > 0, values / repetition, values * repetition)
    values -= frequency * counts
    values -= presence * (counts > 0)
    logits[places] = values
