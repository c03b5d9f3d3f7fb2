"""Speculative decoding: tokens proposed cheaply, verified in one step of the model.

A proposer guesses what comes next; the scheduler counts the guesses as tokens to compute
(`num_tokens_with_spec`); the runner computes them all in one step; and what the model would not
have said itself is taken back. So a step gives a request between one token and all that were
proposed and one more, and never another token than without.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding";
vllm/v1/spec_decode.
"""

from minivllm.spec_decode.ahead import TokenAhead, accepted
from minivllm.spec_decode.config import SpeculativeConfig
from minivllm.spec_decode.ngram_proposer import NgramProposer

__all__ = ["NgramProposer", "SpeculativeConfig", "TokenAhead", "accepted"]
