"""What the engine asks of whoever carries a plan out. Nothing here needs more than Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from minivllm.core.config import SchedulerConfig
from minivllm.core.output import SchedulerOutput
from minivllm.core.request import Request
from minivllm.models.config import ModelConfig
from minivllm.sizes import Sizes
from minivllm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from minivllm.spec_decode.config import SpeculativeConfig
    from minivllm.spec_decode.proposer import Proposer

Told = tuple[list[int], list[float], int]
"""Log probabilities at one place: token ids, the one that is there first; theirs; its rank."""


class SampledTokens(dict[str, int | list[int]]):
    """Token id by request id; of a request with proposed tokens, all that it gets."""

    logprobs: dict[str, list[Told]]
    """Of the requests that ask for them, one for each token."""


class PendingTokens(Protocol):
    """What a step samples, perhaps still on its way."""

    def to_host(self) -> PendingTokens:
        """The same, sent for: it comes by itself."""

    def read(self) -> SampledTokens:
        """By request id; waits if it is not here yet."""


class Runner(Protocol):
    """Owns the KV cache, and computes steps. Logits and the requests that they belong to are the
    sampler's business alone: the engine hands them on."""

    def execute(self, plan: SchedulerOutput) -> tuple[Sequence[Any], Any]:
        """Compute a step: the places that get a token now, and their logits."""

    def keep_tokens(self, requests: Sequence[Any], sampled: Any) -> None:
        """Let the next step begin with these tokens, whatever they are."""

    def pop_prompt_logprobs(self, request: Request) -> list[Told]:
        """The log probabilities of a prompt's tokens after the first, computed; none is kept."""

    def forget_requests(self) -> None:
        """Drop every block table: no request goes on."""


class Sampler(Protocol):
    """Picks a token for each place."""

    def fresh_seed(self) -> int:
        """A seed for a request without one."""

    def sample(self, requests: Sequence[Any], logits: Any) -> SampledTokens:
        """Pick the next tokens; the logits may be overwritten."""

    def sample_on_device(
        self,
        requests: Sequence[Any],
        logits: Any,
        late_token_ids: Callable[[], Mapping[str, int | list[int]]] = dict,
    ) -> PendingTokens:
        """As `sample`, but without waiting for the device.

        Args:
            late_token_ids: gives, by request id, tokens that the requests do not know yet.
        """


class Executor(Protocol):
    """A model that is ready, its KV cache, and who samples.

    Attributes:
        model: whatever it is here.
        model_config: the model's shape.
        config: the scheduler's, with all sizes known.
        device: where the model computes: "cpu", "cuda", "wasm".
    """

    model: Any
    model_config: ModelConfig
    config: SchedulerConfig
    device: str

    @property
    def speculative_config(self) -> SpeculativeConfig | None:
        """How tokens are proposed, if they are."""

    @property
    def proposer(self) -> Proposer | None:
        """Proposes them."""

    @property
    def runner(self) -> Runner:
        """Computes steps."""

    @property
    def sampler(self) -> Sampler:
        """Turns their logits into tokens."""

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer that prompts go through; read when it is first needed.

        Raises:
            ValueError: if its file is broken.
        """


@dataclass(frozen=True, kw_only=True)
class ExecutorArgs:
    """What `LLMEngine` was given, for the executor: the arguments of the same names."""

    model: str | os.PathLike[str] | Any | None
    tokenizer: str | None
    dtype: Any
    device: str
    seed: int | None
    max_model_len: int | None
    block_size: int
    num_gpu_blocks: int | None
    kv_cache_memory_bytes: int | None
    gpu_memory_utilization: float
    num_cpu_blocks: int | None
    swap_space: float
    batch_invariant: bool
    attention_backend: str
    enforce_eager: bool
    speculative_config: Any
    scheduling: dict[str, Any] = field(default_factory=dict)
    """The other knobs of `SchedulerConfig`."""

    def sizes(
        self,
        model: ModelConfig,
        itemsize: int,
        device: str,
        *,
        draft: ModelConfig | None = None,
        **scheduling: Any,
    ) -> Sizes:
        """The engine's sizes for a model; `scheduling` comes before what `self` has of it.

        Raises:
            ValueError: as `Sizes`.
        """
        return Sizes(
            model,
            itemsize,
            device,
            draft=draft,
            max_model_len=self.max_model_len,
            block_size=self.block_size,
            num_gpu_blocks=self.num_gpu_blocks,
            kv_cache_memory_bytes=self.kv_cache_memory_bytes,
            num_cpu_blocks=self.num_cpu_blocks,
            swap_space=self.swap_space,
            **{**self.scheduling, **scheduling},
        )
