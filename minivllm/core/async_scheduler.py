"""Async scheduling: the next step is planned while the last one still runs.

A scheduler that waits for tokens leaves the GPU idle while Python plans. But of a decode it needs
to know that there will be a token, not which. So it counts one that is under way as if it were
known, in `num_output_placeholders`, and plans on; whoever runs the model puts the token in where it
was sampled. A request that stops by surprise (EOS, a stop token) is computed once for nothing.

With speculation it does not know either how many of the proposed tokens will be right, nor what
will be proposed next. It counts them all, keeps as many places (-1) in the next plan, and takes
back what was rejected when it hears of it, from the plan under way too.

vLLM: vllm/v1/core/sched/async_scheduler.py:12, and its default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minivllm.core.config import SchedulerConfig
from minivllm.core.output import EngineCoreOutput, SchedulerOutput, TokenIds
from minivllm.core.request import Request, RequestStatus
from minivllm.core.scheduler import Scheduler


class AsyncScheduler(Scheduler):
    """A scheduler whose `schedule()` may be called again before `update_from_output`.

    Plans are updated in the order in which they were made, and no more than two are under way: so
    a preempted request's tokens are all known when it may be admitted again.

    Raises:
        ValueError: if it is to be observed: a history shows one step after the other.
    """

    def __init__(self, config: SchedulerConfig, **options: Any) -> None:
        if options.get("observer"):
            raise ValueError(
                "record shows one step after the other, and async_scheduling plans a step while "
                "another runs: set one of the two to False"
            )
        super().__init__(config, **options)
        self._in_flight: dict[int, tuple[SchedulerOutput, dict[str, int]]] = {}
        """By step: plans that wait for tokens, and each one's requests' `num_computed_tokens`."""

    def schedule(self) -> SchedulerOutput:
        """As `Scheduler.schedule`, without those who end with what is on its way for them.

        Source: vllm/v1/core/sched/scheduler.py:370.
        """
        for request in self.running:
            if request.num_output_placeholders and self._has_its_last(request):
                request.num_output_placeholders -= 1  # a last token is never computed
                request.spec_token_ids = []
        return super().schedule()

    def _has_its_last(self, request: Request) -> bool:
        """Whether the step under way reaches `max_tokens`, were all proposed tokens rejected."""
        if request.max_tokens is None:
            return False
        num_verified = request.num_computed_tokens - request.num_output_placeholders + 1
        return num_verified + 1 >= request.num_prompt_tokens + request.max_tokens

    def _update_after_schedule(self, output: SchedulerOutput) -> None:
        step = self.step
        super()._update_after_schedule(output)
        computed: dict[str, int] = {}
        for request_id in output.num_scheduled_tokens:
            request = self.requests[request_id]
            computed[request_id] = request.num_computed_tokens
            if request.is_caught_up:
                num_drafts = len(output.scheduled_spec_decode_tokens.get(request_id, ()))
                request.num_output_placeholders += 1 + num_drafts
                request.spec_token_ids = [-1] * output.num_spec_tokens_to_schedule
        if computed:
            self._in_flight[step] = (output, computed)

    def update_draft_token_ids(self, draft_token_ids: Mapping[str, Sequence[int]]) -> None:
        """Not for a scheduler that plans ahead: see `update_draft_token_ids_in_output`.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "async_scheduling plans a step before its tokens are proposed: give them to "
            "update_draft_token_ids_in_output, with the plan, or set async_scheduling=False"
        )

    def update_draft_token_ids_in_output(
        self, draft_token_ids: Mapping[str, Sequence[int]], scheduler_output: SchedulerOutput
    ) -> None:
        """Put proposed tokens into the places that a plan has kept for them; a place too many
        keeps its -1, a token too many is dropped.

        Source: vllm/v1/core/sched/scheduler.py:1713.
        """
        places = scheduler_output.scheduled_spec_decode_tokens
        for request_id, token_ids in draft_token_ids.items():
            if num_places := len(places.get(request_id, ())):
                drafts = list(token_ids[:num_places])
                places[request_id] = drafts + [-1] * (num_places - len(drafts))

    def update_from_output(
        self, scheduler_output: SchedulerOutput, sampled_token_ids: Mapping[str, TokenIds]
    ) -> list[EngineCoreOutput]:
        """As `Scheduler.update_from_output`; tokens of requests that are gone are passed over."""
        _, computed = self._in_flight.pop(scheduler_output.step, (None, {}))
        requests = [self.requests[request_id] for request_id in computed]
        # For a moment the requests stand where this step, not a later one, has brought them (or
        # where it would have, had no token of the step before been rejected).
        now = [(r.num_computed_tokens, r.num_output_placeholders) for r in requests]
        preempted = {request for request in requests if request.status is RequestStatus.PREEMPTED}
        for request in requests:
            request.num_computed_tokens = computed[request.request_id]
            request.num_output_placeholders = 0
        outputs = super().update_from_output(scheduler_output, sampled_token_ids)
        for request, (num_computed_tokens, num_placeholders) in zip(requests, now, strict=True):
            request_id = request.request_id
            num_rejected = computed[request_id] - request.num_computed_tokens
            request.num_computed_tokens = max(num_computed_tokens - num_rejected, 0)
            if request.is_finished:
                request.metrics.finished_step = scheduler_output.step
                continue
            if request in preempted:
                continue
            if request_id in sampled_token_ids:
                num_drafts = len(scheduler_output.scheduled_spec_decode_tokens.get(request_id, ()))
                request.num_output_placeholders = max(num_placeholders - 1 - num_drafts, 0)
                self._cache_blocks(request)
            else:
                request.num_output_placeholders = num_placeholders
        # A request that was preempted meanwhile may turn out to have ended.
        if ended := {request for request in preempted if request.is_finished}:
            self.waiting.remove_requests(ended)  # which looks at all who wait
        return outputs

    def _free_request(self, request: Request) -> None:
        if request.request_id in self.kv_cache_manager.req_to_blocks:
            self._cache_blocks(request)
        super()._free_request(request)
        # Its id may be used again before the tokens under way arrive.
        for step, (output, computed) in list(self._in_flight.items()):
            output.num_scheduled_tokens.pop(request.request_id, None)
            computed.pop(request.request_id, None)
            if not computed:
                del self._in_flight[step]

    def _cache_blocks(self, request: Request) -> None:
        """Publish blocks that had to wait for a token; its own keys come with the next step."""
        num_computed_tokens = min(request.num_computed_tokens, len(request.all_token_ids) - 1)
        self.kv_cache_manager.cache_blocks(request, num_computed_tokens)
