"""Log probabilities of sampled tokens and of the prompt's, gathered from logits by PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from minivllm.core.request import Request
from minivllm.models.memory import to_device


class LogprobsTensors(NamedTuple):
    """Of some rows, each the token that is there and then the k likeliest."""

    token_ids: Tensor
    """[rows, k + 1]"""
    logprobs: Tensor
    """[rows, k + 1], float32."""
    ranks: Tensor
    """[rows]: of the token that is there."""

    @classmethod
    def gather(cls, logprobs: Tensor, num_logprobs: int, token_ids: Tensor) -> LogprobsTensors:
        """From log probabilities [rows, vocab_size] of all tokens.

        Args:
            num_logprobs: -1: all of the vocabulary.
            token_ids: [rows]: the token that is there.

        Source: vllm/v1/sample/sampler.py, `gather_logprobs`.
        """
        k = logprobs.shape[1] if num_logprobs == -1 else num_logprobs
        likeliest, likeliest_ids = logprobs.topk(k, dim=-1)
        token_ids = token_ids[:, None]
        own = logprobs.gather(-1, token_ids)
        return cls(
            torch.cat((token_ids, likeliest_ids), dim=1),
            torch.cat((own, likeliest), dim=1),
            (logprobs >= own).sum(dim=-1),
        )

    def to_host(self) -> LogprobsTensors:
        """On the CPU, once the device has got there."""
        return LogprobsTensors(*(to_host(tensor) for tensor in self))

    def rows(self) -> Iterable[tuple[list[int], list[float], int]]:
        """Token ids, log probabilities and rank of each row."""
        token_ids, logprobs = self.token_ids.tolist(), self.logprobs.tolist()
        return zip(token_ids, logprobs, self.ranks.tolist(), strict=True)


def to_host(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, once the device has got there."""
    if tensor.device.type == "cpu":
        return tensor
    here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return here.copy_(tensor, non_blocking=True)


class PromptLogprobs:
    """Those of prompts that are being computed, chunk by chunk."""

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[Request, LogprobsTensors] = WeakKeyDictionary()

    def add(self, request: Request, start: int, logits: Tensor) -> None:
        """Take the logits [rows, vocab_size] of the prompt's tokens from `start` on."""
        num_logprobs = request.sampling_params.prompt_logprobs
        assert num_logprobs is not None
        end = start + len(logits)
        following = np.array(request.prompt_token_ids[start + 1 : end + 1])
        logprobs = logits.log_softmax(dim=-1, dtype=torch.float32)
        found = LogprobsTensors.gather(
            logprobs, num_logprobs, to_device(following, str(logits.device))
        )
        if request not in self._found:
            num_rows, pin = request.num_prompt_tokens - 1, logits.is_cuda
            self._found[request] = LogprobsTensors(
                *(
                    torch.empty(num_rows, *part.shape[1:], dtype=part.dtype, pin_memory=pin)
                    for part in found
                )
            )
        for kept, part in zip(self._found[request], found, strict=True):
            kept[start:end].copy_(part, non_blocking=True)

    def pop(self, request: Request) -> LogprobsTensors | None:
        """All of a prompt's, computed; None: it is a single token."""
        return self._found.pop(request, None)
