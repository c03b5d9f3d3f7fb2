"""What a caller gets back. Names follow `vllm/outputs.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from minivllm.core.stats import RequestMetrics
from minivllm.logprobs import LogprobsOnePosition


@dataclass
class CompletionOutput:
    """One output of a request."""

    index: int
    """Which of the request's `n` outputs."""
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    """Sum of the tokens' log probabilities; None unless `logprobs` were asked for."""
    logprobs: list[LogprobsOnePosition] | None = None
    """For each token, by token id: its own log probability and those of the likeliest."""
    finish_reason: str | None = None
    """`stop`, `length` or `abort`; None while it goes on."""
    stop_reason: int | str | None = None
    """The stop token or string that ended it; None for EOS."""

    def finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.finish_reason is not None

    def copy(self) -> CompletionOutput:
        """One that does not grow. Made for every token, so without `replace`: that is slower."""
        return CompletionOutput(
            self.index,
            self.text,
            self.token_ids.copy(),
            self.cumulative_logprob,
            None if self.logprobs is None else self.logprobs.copy(),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )


@dataclass
class RequestOutput:
    """A request's outputs so far: all tokens and all text, not the latest step's alone."""

    request_id: str
    prompt: str | None
    """None if the prompt was given as token ids."""
    prompt_token_ids: list[int]
    prompt_logprobs: list[LogprobsOnePosition | None] | None = None
    """As `CompletionOutput.logprobs`, of the prompt's tokens; None for the first."""
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    metrics: RequestMetrics | None = None
    """When things happened; of the first output, if there are several."""
    num_cached_tokens: int | None = None
    """Prompt tokens that the prefix cache gave."""
    error: str | None = None
    """Why the engine refused the request, if it did."""
