"""A request: two numbers racing, and what is needed to let them race.

The scheduler knows no prefill phase and no decode phase. A request has `num_tokens` (tokens
known so far, prompt and output) and `num_computed_tokens` (tokens whose keys and values are in
the cache); each step lets the second catch up with the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from minivllm.core.prompt import TokenizedPrompt
from minivllm.core.sampling_params import SamplingParams
from minivllm.core.stats import RequestMetrics


class RequestStatus(IntEnum):
    """Where a request stands. Everything after PREEMPTED is finished.

    Source: vllm/v1/request.py:315, less the states that wait for grammars, remote KV
    caches and streamed input.
    """

    WAITING = 1
    RUNNING = 2
    PREEMPTED = 3
    FINISHED_STOPPED = 4
    FINISHED_LENGTH_CAPPED = 5
    FINISHED_ABORTED = 6
    FINISHED_IGNORED = 7

    @staticmethod
    def is_finished(status: RequestStatus) -> bool:
        """True for every status from which no request comes back."""
        return status > RequestStatus.PREEMPTED

    @staticmethod
    def get_finished_reason(status: RequestStatus) -> str | None:
        """The API's word for a finished status; None while the request lives."""
        return _FINISHED_REASON.get(status)


_FINISHED_REASON = {
    RequestStatus.FINISHED_STOPPED: "stop",
    RequestStatus.FINISHED_LENGTH_CAPPED: "length",
    RequestStatus.FINISHED_ABORTED: "abort",
    # A prompt too long to serve is a matter of length too, as in the OpenAI API.
    RequestStatus.FINISHED_IGNORED: "length",
}


class Request:
    """One prompt on its way to its output.

    Args:
        request_id: unique among the unfinished requests of a scheduler.
        prompt_token_ids: at least one token id, or a prompt that has been checked.
        sampling_params: when to stop, and how to sample. Default: `SamplingParams()`.
        priority: lower runs first under the `priority` policy.
        arrival_time: breaks ties among equal priorities; None: set when the request is added.
        eos_token_id: the model's end-of-sequence token or tokens; None: nothing ends it but length.
        bad_words_token_ids: the tokens of `sampling_params.bad_words`.
        cache_salt: see `TokenizedPrompt`, which brings its own.

    Raises:
        ValueError: on an empty prompt, a negative token id or an unusable priority.

    Source: vllm/v1/request.py:59.
    """

    def __init__(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int] | TokenizedPrompt,
        sampling_params: SamplingParams | None = None,
        *,
        priority: int = 0,
        arrival_time: float | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        bad_words_token_ids: Sequence[Sequence[int]] = (),
        cache_salt: str | None = None,
    ) -> None:
        if isinstance(prompt_token_ids, TokenizedPrompt):
            prompt = prompt_token_ids
        else:
            try:
                prompt = TokenizedPrompt(prompt_token_ids, cache_salt=cache_salt)
            except ValueError as error:
                raise ValueError(f"request {request_id}: {error}") from None
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise ValueError(f"request {request_id}: priority must be an integer, got {priority!r}")
        params = sampling_params if sampling_params is not None else SamplingParams()

        self.request_id = request_id
        self.prompt = prompt
        self.prompt_token_ids = prompt.token_ids
        self.sampling_params = params
        self.priority = priority
        self.arrival_time = arrival_time

        self.status = RequestStatus.WAITING
        self.num_computed_tokens = 0
        self.is_prefill_chunk = False
        """Its last step left known tokens for a later one. Kept while somebody asks for it."""
        self.spec_token_ids: list[int] = []
        """Proposed for the positions after the known ones; the next step verifies them."""
        self.num_output_placeholders = 0
        """Tokens that steps in flight will give, counted already: async scheduling only."""
        self.num_prompt_tokens = len(self.prompt_token_ids)
        self.all_token_ids = list(self.prompt_token_ids)
        self.output_token_ids: list[int] = []
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        """Tokens that the prefix cache gave at the latest admission."""
        self.max_num_computed_tokens = 0
        """How far it had got at its preemptions: tokens below this are computed again."""

        self.max_tokens = params.max_tokens
        if eos_token_id is None:
            eos_token_id = ()
        elif isinstance(eos_token_id, int):
            eos_token_id = (eos_token_id,)
        stop_token_ids = params.stop_token_ids or ()
        self.eos_token_ids = frozenset(() if params.ignore_eos else eos_token_id)
        self.stop_token_ids = self.eos_token_ids.union(stop_token_ids)
        self.all_stop_token_ids = self.stop_token_ids.union(eos_token_id)
        """Not sampled before `min_tokens`: EOS too, where it is ignored (as in vLLM)."""
        self.bad_words_token_ids = bad_words_token_ids
        skip = params.skip_reading_prefix_cache
        self.skip_reading_prefix_cache = (
            params.prompt_logprobs is not None if skip is None else skip
        )
        """Its whole prompt is computed: what the cache holds has no logits."""

        self.block_hashes: list[bytes] = []
        """Hash of each full block's tokens, chained; filled by the KV cache manager."""
        self.stop_reason: int | str | None = None
        self.error: str | None = None
        """Why it was refused (FINISHED_IGNORED)."""
        self.metrics = RequestMetrics()

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: prompt and output. Those on their way count (async scheduling)."""
        return len(self.all_token_ids) + self.num_output_placeholders

    @property
    def num_tokens_with_spec(self) -> int:
        """Tokens known or proposed: what `num_computed_tokens` is to catch up with."""
        return len(self.all_token_ids) + self.num_output_placeholders + len(self.spec_token_ids)

    @property
    def is_caught_up(self) -> bool:
        """Whether all known tokens are computed or planned: such a step samples the next one."""
        return self.num_computed_tokens >= len(self.all_token_ids) + self.num_output_placeholders

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.output_token_ids)

    @property
    def next_output_index(self) -> int:
        """Which output token a step that has been scheduled gives. Tokens on their way count."""
        num_on_their_way = max(self.num_computed_tokens - len(self.all_token_ids), 0)
        return self.num_output_tokens + num_on_their_way

    @property
    def is_finished(self) -> bool:
        """True once the request has left the scheduler."""
        return self.status > RequestStatus.PREEMPTED

    def append_output_token_id(self, token_id: int) -> None:
        """Take one sampled token: `num_tokens` moves ahead by one."""
        self.output_token_ids.append(token_id)
        self.all_token_ids.append(token_id)

    def __lt__(self, other: Request) -> bool:
        """Who runs first under `priority` (vllm/v1/request.py:301)."""
        return self.sort_key() < other.sort_key()

    def sort_key(self) -> tuple[int, float, str]:
        """(priority, arrival time, id): the smaller runs first."""
        return (self.priority, self.arrival_time or 0.0, self.request_id)

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id}, {self.status.name}, "
            f"computed {self.num_computed_tokens} of {self.num_tokens})"
        )


def check_stop(
    request: Request,
    max_model_len: int,
    min_tokens_last: bool = False,
    keep_upstream_bugs: bool = False,
) -> bool:
    """Whether the token just appended ends the request; sets its status if so.

    Args:
        request: with its newest token.
        max_model_len: of the scheduler.
        min_tokens_last: whether a stop token ends it before its `min_tokens` too, as in newer
            releases, which leave it to the sampler that there is none.
        keep_upstream_bugs: whether its length does not end it before its `min_tokens`.

    Source: vllm/v1/core/sched/utils.py:94.
    """
    num_output_tokens = len(request.output_token_ids)
    last_token_id = request.output_token_ids[-1]
    too_early = not min_tokens_last and num_output_tokens < request.sampling_params.min_tokens
    if too_early and keep_upstream_bugs:
        return False
    if last_token_id in request.stop_token_ids and not too_early:
        request.status = RequestStatus.FINISHED_STOPPED
        if last_token_id not in request.eos_token_ids:
            request.stop_reason = last_token_id
        return True
    if len(request.all_token_ids) >= max_model_len or (
        request.max_tokens is not None and num_output_tokens >= request.max_tokens
    ):
        request.status = RequestStatus.FINISHED_LENGTH_CAPPED
        return True
    return False
