"""Proposes what a smaller model says, which keeps keys and values in the same blocks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from minivllm.core.config import SchedulerConfig
from minivllm.core.output import SchedulerOutput
from minivllm.core.request import Request
from minivllm.models.config import ModelConfig
from minivllm.models.llama import LlamaModel
from minivllm.runner import ModelRunner


def check_draft(draft: ModelConfig, model: ModelConfig, max_model_len: int) -> None:
    """Make sure that a draft model can propose to a model.

    Raises:
        ValueError: if it speaks other tokens, or reaches less far.
    """
    if draft.vocab_size != model.vocab_size:
        raise ValueError(
            f"speculative_config: the draft model has a vocabulary of {draft.vocab_size} tokens, "
            f"the model one of {model.vocab_size}; a draft model must share the model's tokenizer"
        )
    if draft.derived_max_model_len < max_model_len:
        raise ValueError(
            f"speculative_config: the draft model has {draft.derived_max_model_len} positions, "
            f"fewer than max_model_len={max_model_len}; lower max_model_len"
        )


class DraftModelProposer:
    """Runs a draft model beside the large one, over the same block tables in a cache of its own.

    In each step the draft model computes what the large one does, so its keys and values are there
    wherever the large one's are: after a prefix hit and after a preemption too. Then it goes on by
    itself, token by token, into the slots that the scheduler keeps behind each request.

    Args:
        model: the draft model.
        config: of the scheduler.

    Source: vllm/v1/spec_decode/draft_model.py.
    """

    def __init__(self, model: LlamaModel, config: SchedulerConfig) -> None:
        self.runner = ModelRunner(model, config, enforce_eager=False)

    def follow(self, plan: SchedulerOutput) -> None:
        """Compute the plan's tokens, before the scheduler is told what came of them."""
        self.runner.execute(plan)

    @torch.inference_mode()
    def propose(self, most: Mapping[Request, int]) -> dict[str, list[int]]:
        """So many tokens for each request, by its id: at each place the likeliest.

        Args:
            most: requests that stand one token behind, as after each step.
        """
        requests = [request for request, k in most.items() if k > 0]
        proposed: dict[str, list[int]] = {request.request_id: [] for request in requests}
        token_ids = np.array([request.all_token_ids[-1] for request in requests])
        positions = np.array([request.num_tokens - 1 for request in requests])
        for done in range(max(most.values(), default=0)):
            going = [i for i, request in enumerate(requests) if most[request] > done]
            logits = self.runner.decode(
                [requests[i] for i in going], token_ids[going], positions[going]
            )
            token_ids[going] = logits.argmax(dim=-1).cpu().numpy()
            positions[going] += 1
            for i in going:
                proposed[requests[i].request_id].append(int(token_ids[i]))
        return proposed

    def forget_requests(self) -> None:
        """Drop every block table: no request goes on."""
        self.runner.forget_requests()
