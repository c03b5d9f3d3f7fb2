"""Continuous batching: who computes how many tokens in the next step.

Each step lets every request's `num_computed_tokens` catch up with its `num_tokens_with_spec`, the
tokens known and those proposed. That one rule covers a prompt taken whole, a prompt in chunks, a
prefix found in the cache, a decode of one token, the check of a few proposed ones, and the
recomputation after a preemption. Iteration-level scheduling is Orca's (Yu et al. 2022, §3); the
decisions here are those of vLLM 0.22.1, vllm/v1/core/sched/scheduler.py, in the same order. Where
a later release decides otherwise, a switch says so (`releases.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from minivllm.core.block_pool import KVCacheBlock
from minivllm.core.config import SchedulerConfig
from minivllm.core.kv_cache_manager import KVCacheManager, cdiv
from minivllm.core.observer import SchedulerObserver
from minivllm.core.output import (
    AdmissionStop,
    EngineCoreOutput,
    Preemption,
    SchedulerOutput,
    TokenIds,
)
from minivllm.core.prefill_cadence import PrefillCadence
from minivllm.core.releases import switches_of
from minivllm.core.request import Request, RequestStatus, check_stop
from minivllm.core.request_queue import create_request_queue
from minivllm.core.stats import SchedulerStats, StepStats
from minivllm.core.victim import VICTIM_POLICIES, VictimPolicy, victim_policy_name


class Scheduler:
    """Decides each step from three scarce resources: tokens, places in the batch, blocks.

    Args:
        config: the limits.
        observer: is told what comes in, what is planned and what it brought; `minivllm.runs` has
            two that keep a history.
        clock: returns the time now, for latencies in seconds; None: steps alone are counted.
        keep_step_stats: keep every step's `StepStats` in `stats.steps`, not the totals alone.

    Source: vllm/v1/core/sched/scheduler.py:64.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        observer: SchedulerObserver | None = None,
        clock: Callable[[], float] | None = None,
        keep_step_stats: bool = True,
    ) -> None:
        self.config = config
        self.clock = clock
        self.requests: dict[str, Request] = {}
        """Every unfinished request."""
        self.waiting = create_request_queue(config.policy)
        """Replace it, while it is empty, to try another order."""
        self.running: list[Request] = []
        """In order of admission."""
        self.kv_cache_manager = KVCacheManager(
            config.num_gpu_blocks,
            config.block_size,
            config.enable_prefix_caching,
            config.num_cpu_blocks if config.preemption_mode == "swap" else 0,
            config.num_lookahead_tokens,
            config.max_model_len,
        )
        self.prefill_cadence = PrefillCadence(
            config.prefill_schedule_interval, notes_chunks=config.num_speculative_tokens > 0
        )
        self.follow_release()
        self.select_victim: VictimPolicy = VICTIM_POLICIES[victim_policy_name(config)]
        """Replace it to try another policy."""

        self.step = 0
        """Number of the next call of `schedule()`."""
        self.stats = SchedulerStats(keep_steps=keep_step_stats)
        self.finished_req_ids: set[str] = set()
        self._num_added = 0
        self.observer = observer
        if observer:
            observer.begin(self)

    def follow_release(self) -> None:
        """Look up once how the release in `config` decides; again, if `config` was replaced."""
        self.switches = switches_of(self.config.vllm_version)
        self.kv_cache_manager.follow_release(self.switches)
        self.prefill_cadence.interval = self.config.prefill_schedule_interval
        self.max_num_scheduled_tokens = self.config.max_num_scheduled_tokens
        has_draft_model = self.config.num_lookahead_tokens > 0
        self.num_draft_slots = int(has_draft_model and self.switches.draft_slots_as_used)

    @property
    def history(self) -> Any:
        """What the observer has kept of the run: a `minivllm.runs.History`.

        Raises:
            ValueError: if there is no observer that keeps one.
        """
        history = getattr(self.observer, "history", None)
        if history is None:
            raise ValueError(
                "no history is kept: build an engine with record=True, a Scheduler with "
                "observer=InputLog() (minivllm.runs)"
            )
        return history

    # --- requests come in -----------------------------------------------------------------

    def add_request(self, request: Request) -> bool:
        """Queue a request, unless it can never fit.

        Returns:
            False if the request was refused: its status is FINISHED_IGNORED then, and its
            `error` says why, with both numbers and the knob.

        Raises:
            ValueError: if an unfinished request has the same id, or this one was added before.
        """
        if request.request_id in self.requests:
            raise ValueError(f"request id {request.request_id!r} is taken by an unfinished request")
        if request.status is not RequestStatus.WAITING:
            raise ValueError(f"{request} has been scheduled before; add a new Request")
        if request.arrival_time is None:
            request.arrival_time = self.clock() if self.clock else float(self._num_added)
        self._num_added += 1
        request.metrics.arrival_step = self.step
        request.metrics.arrival_time = self.clock() if self.clock else None
        if self.config.admission_control:
            request.error = self.refusal_reason(request)
        request.error = request.error or self._queue_is_full(request)
        if request.error:
            request.status = RequestStatus.FINISHED_IGNORED
            self.stats.num_refused += 1
        else:
            self.requests[request.request_id] = request
            self.waiting.add_request(request)
        if self.observer:
            self.observer.request_added(request)
        return request.error is None

    def refusal_reason(self, request: Request) -> str | None:
        """Why a request could never run to its end, however long it waits; None: it could.

        vLLM settles this in three places: at start-up (vllm/v1/core/kv_cache_utils.py:794, the
        cache holds one sequence of `max_model_len`), at the front door
        (vllm/v1/engine/input_processor.py:396, the prompt is shorter than that) and in its
        configuration (a prompt that may not be cut fits the budget).
        """
        config = self.config
        num_prompt_tokens = request.num_prompt_tokens
        if num_prompt_tokens >= config.max_model_len:
            return (
                f"request {request.request_id}: a prompt of {num_prompt_tokens} tokens and at "
                f"least one output token exceed max_model_len={config.max_model_len}. Shorten "
                f"the prompt or raise max_model_len."
            )
        max_tokens = config.max_model_len if request.max_tokens is None else request.max_tokens
        # The last output token is never computed: nothing follows it.
        most_computed = min(num_prompt_tokens + max_tokens, config.max_model_len) - 1
        num_slots = min(most_computed + config.num_lookahead_tokens, config.max_model_len)
        num_blocks = cdiv(num_slots, config.block_size)
        if num_blocks > config.num_gpu_blocks:
            return (
                f"request {request.request_id}: {num_prompt_tokens} prompt tokens and up to "
                f"{most_computed + 1 - num_prompt_tokens} output tokens need {num_blocks} blocks "
                f"of {config.block_size} slots; the whole cache has {config.num_gpu_blocks}. "
                f"Lower max_tokens or raise num_gpu_blocks."
            )
        threshold = config.long_prefill_token_threshold or most_computed
        if (
            not config.enable_chunked_prefill
            and min(most_computed, threshold) > config.max_num_batched_tokens
        ):
            return (
                f"request {request.request_id}: without chunked prefill its tokens are computed "
                f"in one step, {most_computed} at most (again after a preemption), and "
                f"max_num_batched_tokens={config.max_num_batched_tokens}. Raise it, or set "
                f"enable_chunked_prefill."
            )
        return None

    def _queue_is_full(self, request: Request) -> str | None:
        """Why the request should go elsewhere; None: it may queue.

        vLLM says so at the front door, with HTTP 503.
        """
        most_reqs, most_tokens = self.config.max_num_queued_reqs, self.config.max_num_queued_tokens
        if most_reqs is not None and len(self.requests) >= most_reqs:
            return (
                f"request {request.request_id}: {len(self.requests)} requests are unfinished, and "
                f"max_num_queued_reqs={most_reqs}. Try again later, or raise it."
            )
        if most_tokens is not None:
            prefilling = (r for r in self.requests.values() if not r.output_token_ids)
            num_tokens = sum(r.num_prompt_tokens for r in prefilling)
            if num_tokens >= most_tokens:
                return (
                    f"request {request.request_id}: {num_tokens} prompt tokens wait for their "
                    f"first token, and max_num_queued_tokens={most_tokens}. Try again later, or "
                    f"raise it."
                )
        return None

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, status: RequestStatus
    ) -> list[str]:
        """End requests from outside, wherever they stand: an abort, or a stop string.

        Args:
            request_ids: one id or several, None for all; the unknown and the finished are
                passed over.
            status: FINISHED_ABORTED or FINISHED_STOPPED.

        Returns:
            The ids that ended.

        Raises:
            ValueError: if `status` is not a finished one.

        Source: vllm/v1/core/sched/scheduler.py:1779.
        """
        if not RequestStatus.is_finished(status):
            raise ValueError(f"finish_requests needs a finished status, got {status.name}")
        if request_ids is None:
            request_ids = list(self.requests)
        elif isinstance(request_ids, str):
            request_ids = [request_ids]
        found = dict.fromkeys(id_ for id_ in request_ids if id_ in self.requests)
        requests = [self.requests[request_id] for request_id in found]

        running = {request for request in requests if request.status is RequestStatus.RUNNING}
        if running:
            self.running = [request for request in self.running if request not in running]
        if len(running) < len(requests):
            self.waiting.remove_requests(set(requests) - running)
        for request in requests:
            request.status = status
            self._free_request(request)
        if self.observer:
            self.observer.requests_finished(requests, status)
        return list(found)

    def has_unfinished_requests(self) -> bool:
        """Whether there is anything left to schedule."""
        return bool(self.requests)

    def get_num_unfinished_requests(self) -> int:
        """Requests in WAITING and RUNNING."""
        return len(self.requests)

    # --- one step -------------------------------------------------------------------------

    def schedule(self) -> SchedulerOutput:
        """Plan one step: RUNNING first, then, if nobody had to be preempted, WAITING.

        Source: vllm/v1/core/sched/scheduler.py:329.
        """
        output = SchedulerOutput(
            self.step,
            StepStats(self.step),
            long_prefill_token_threshold=self._most_tokens_for_one(),
            holds_prefills=self.prefill_cadence.holds(self.running),
            num_draft_slots=self.num_draft_slots,
            finished_req_ids=self.finished_req_ids,
        )
        self.finished_req_ids = set()

        token_budget = self._schedule_running(output, self.max_num_scheduled_tokens)
        if not output.preempted_req_ids:
            # A step that was short of blocks admits no one: a newcomer would take what the
            # victim has just given back.
            token_budget = self._schedule_waiting(output, token_budget)
        elif len(self.waiting):
            head = self.waiting.peek_request()
            output.admission_stopped = AdmissionStop(head, "preempted_in_this_step")

        num_reqs = len(output.num_scheduled_tokens)
        output.total_num_scheduled_tokens = (
            self.max_num_scheduled_tokens - token_budget - self.num_draft_slots * num_reqs
        )
        output.num_spec_tokens_to_schedule = self.config.num_spec_tokens_to_schedule(num_reqs)
        self.prefill_cadence.planned(output, len(self.waiting))
        self._update_after_schedule(output)
        return output

    def _most_tokens_for_one(self) -> int:
        """`long_prefill_token_threshold` of the step to come; 0: no cap."""
        threshold = self.config.long_prefill_token_threshold
        num_reqs = len(self.running) + len(self.waiting)
        if self.switches.lone_request_uncapped and num_reqs <= 1:
            return 0  # there is nobody to keep tokens for
        if threshold and self.config.long_prefill_token_threshold_adaptive:
            return max(threshold, self.config.max_num_batched_tokens // num_reqs)
        return threshold

    def _schedule_running(self, output: SchedulerOutput, token_budget: int) -> int:
        """Give each running request its tokens; preempt where blocks are short.

        Returns:
            What is left of the budget.

        Source: vllm/v1/core/sched/scheduler.py:366.
        """
        threshold = output.long_prefill_token_threshold
        holds_prefills, num_draft_slots = output.holds_prefills, output.num_draft_slots
        last_position = self.config.max_model_len - 1
        allocate_slots = self.kv_cache_manager.allocate_slots
        req_index = 0
        while req_index < len(self.running) and token_budget > 0:
            request = self.running[req_index]
            if holds_prefills and request.is_prefill_chunk:
                req_index += 1
                continue
            gap = request.num_tokens_with_spec - request.num_computed_tokens
            num_new_tokens = gap
            if 0 < threshold < num_new_tokens:
                num_new_tokens = threshold
            if token_budget < num_new_tokens:
                num_new_tokens = token_budget
            if last_position - request.num_computed_tokens < num_new_tokens:
                num_new_tokens = last_position - request.num_computed_tokens
            if num_new_tokens <= 0:
                req_index += 1
                continue

            while (new_blocks := allocate_slots(request, num_new_tokens)) is None:
                victim = self.select_victim(self.running)
                output.preemptions.append(self._reason(victim, request, num_new_tokens, output))
                place = self.running.index(victim)
                del self.running[place]
                if victim.request_id in output.num_scheduled_tokens:
                    token_budget += self._unschedule(victim, output)
                    req_index -= 1
                elif place < req_index and self.switches.skipped_victim_counts:
                    req_index -= 1
                self._preempt_request(victim, output)
                if victim is request:
                    break
            if new_blocks is None:
                if self.switches.self_preemption_goes_on and self.config.policy == "priority":
                    continue  # with whoever stood behind it
                break  # the request preempted itself and gets no tokens

            request_id = request.request_id
            output.scheduled_running_reqs.append(request)
            output.num_scheduled_tokens[request_id] = num_new_tokens
            if new_blocks:
                output.new_block_ids[request_id] = [block.block_id for block in new_blocks]
            if num_new_tokens < gap:
                output.num_left_tokens[request_id] = gap - num_new_tokens
            if request.spec_token_ids:
                self._schedule_drafts(request, num_new_tokens, output)
            token_budget -= num_new_tokens + num_draft_slots
            req_index += 1
        return token_budget

    def _schedule_waiting(self, output: SchedulerOutput, token_budget: int) -> int:
        """Admit from the front of the queue until one does not fit.

        Three conditions: tokens left in the budget, a place in the batch, and blocks. The
        first refusal ends admission: to pass over the head of the queue would starve it.

        Returns:
            What is left of the budget.

        Source: vllm/v1/core/sched/scheduler.py:545.
        """
        config = self.config
        manager = self.kv_cache_manager
        threshold = output.long_prefill_token_threshold
        max_num_seqs = config.max_num_active_seqs or config.max_num_seqs
        watermark_blocks = config.watermark_blocks
        stopped_by, num_blocks_needed = "", None
        while len(self.waiting):
            if token_budget <= 0:
                stopped_by = "max_num_batched_tokens"
                break
            if len(self.running) >= max_num_seqs:
                stopped_by = "max_num_active_seqs" if config.max_num_active_seqs else "max_num_seqs"
                break
            request = self.waiting.peek_request()
            swapped_out = request.num_computed_tokens > 0
            new_computed_blocks: list[KVCacheBlock] = []
            num_cached_tokens = 0
            if not swapped_out:
                new_computed_blocks, num_cached_tokens = manager.get_computed_blocks(request)

            # All known tokens, not the prompt alone: a resumed request has output to recompute.
            gap = request.num_tokens - request.num_computed_tokens - num_cached_tokens
            if output.holds_prefills and gap > 1:
                stopped_by = "prefill_schedule_interval"
                break
            num_padding = 0
            if gap == 1 and self.switches.pads_decodes and config.num_speculative_tokens:
                num_padding = self._num_padding(request.num_tokens, token_budget, output)
                if token_budget <= num_padding:
                    stopped_by = "max_num_batched_tokens"
                    break
                gap += num_padding
            num_new_tokens = gap
            if 0 < threshold < num_new_tokens:
                num_new_tokens = threshold
            if token_budget < num_new_tokens:
                if not config.enable_chunked_prefill:
                    stopped_by = "enable_chunked_prefill"
                    break
                num_new_tokens = token_budget

            wanted = (request, num_new_tokens, new_computed_blocks, config.reserve_full_prompt)
            reserve = watermark_blocks if self.running else 0
            if manager.allocate_slots(*wanted, num_reserved_blocks=reserve) is None:
                num_blocks_needed = manager.get_num_blocks_to_allocate(*wanted)
                fits = num_blocks_needed <= manager.block_pool.get_num_free_blocks()
                stopped_by = "watermark" if fits else "num_gpu_blocks"
                break

            self.waiting.pop_request()
            self.running.append(request)
            resumed = request.status is RequestStatus.PREEMPTED
            admitted = output.scheduled_resumed_reqs if resumed else output.scheduled_new_reqs
            admitted.append(request)
            if swapped_out:
                output.blocks_to_swap_in += self._swap_in(request)
            elif not request.skip_reading_prefix_cache:
                output.stats.prefix_cache_queries += request.num_tokens
                output.stats.prefix_cache_hits += num_cached_tokens
            request.num_computed_tokens += num_cached_tokens
            request.num_cached_tokens = num_cached_tokens
            request_id = request.request_id
            output.num_scheduled_tokens[request_id] = num_new_tokens
            output.new_block_ids[request_id] = manager.get_block_ids(request_id)
            if num_new_tokens < gap:
                output.num_left_tokens[request_id] = gap - num_new_tokens
            if num_padding and num_new_tokens > 1:
                output.scheduled_spec_decode_tokens[request_id] = [-1] * (num_new_tokens - 1)
            request.status = RequestStatus.RUNNING
            token_budget -= num_new_tokens + self.num_draft_slots
        if stopped_by:
            output.admission_stopped = AdmissionStop(
                self.waiting.peek_request(),
                stopped_by,
                num_blocks_needed,
                manager.block_pool.get_num_free_blocks(),
            )
        return token_budget

    def _schedule_drafts(
        self, request: Request, num_new_tokens: int, output: SchedulerOutput
    ) -> None:
        """Note which of its proposed tokens the step verifies; the others are forgotten.

        Source: vllm/v1/core/sched/scheduler.py:502.
        """
        num_drafts = request.num_computed_tokens + num_new_tokens - request.num_tokens
        if num_drafts > 0:
            drafts = request.spec_token_ids[:num_drafts]
            output.scheduled_spec_decode_tokens[request.request_id] = drafts
        request.spec_token_ids = []

    def _num_padding(self, num_tokens: int, token_budget: int, output: SchedulerOutput) -> int:
        """Tokens that bring a newcomer with one token to compute to the size of the decodes, for
        the sake of a CUDA graph; as much as the budget, and so more than fits, where the newcomer
        has to wait instead.

        Source: v0.33.0:vllm/v1/core/sched/scheduler.py:1308.
        """
        if self.config.num_speculative_tokens_per_batch_size:
            return 0  # the decodes' size changes from step to step
        beside = output.scheduled_running_reqs or (self.switches.pads_alone and num_tokens > 1)
        if not beside or any(r.is_prefill_chunk for r in output.scheduled_running_reqs):
            return 0
        num_padding = self.config.num_speculative_tokens
        if self.switches.pads_before_the_end:
            return num_padding if num_tokens + num_padding < self.config.max_model_len else 0
        return (
            num_padding if num_tokens + num_padding <= self.config.max_model_len else token_budget
        )

    def _reason(
        self, victim: Request, request: Request, num_new_tokens: int, output: SchedulerOutput
    ) -> Preemption:
        """Why `victim` yields its blocks to `request`, as things stand before it does."""
        manager = self.kv_cache_manager
        held = manager.req_to_blocks.get(victim.request_id, ())
        return Preemption(
            victim,
            request,
            num_blocks_needed=manager.get_num_blocks_to_allocate(request, num_new_tokens),
            num_free_blocks=manager.block_pool.get_num_free_blocks(),
            num_freed_blocks=sum(block.ref_cnt == 1 for block in held),
            num_computed_tokens=victim.num_computed_tokens,
            running=list(self.running),
            num_scheduled_tokens=dict(output.num_scheduled_tokens),
        )

    def _unschedule(self, victim: Request, output: SchedulerOutput) -> int:
        """Take a victim out of the step that it was scheduled in; its tokens come back.

        Source: vllm/v1/core/sched/scheduler.py:462.
        """
        output.scheduled_running_reqs.remove(victim)
        output.new_block_ids.pop(victim.request_id, None)
        if not self.config.keep_upstream_bugs:
            self.kv_cache_manager.uncache_uncomputed_blocks(victim)
        output.num_left_tokens.pop(victim.request_id, None)
        output.scheduled_spec_decode_tokens.pop(victim.request_id, None)
        return output.num_scheduled_tokens.pop(victim.request_id) + self.num_draft_slots

    def _preempt_request(self, request: Request, output: SchedulerOutput) -> None:
        """Take a running request's blocks and put it back at the front of WAITING.

        By recompute, its keys and values are gone and `num_computed_tokens` starts again from
        0; the tokens it has generated stay. By swap, they are copied to the CPU and the number
        stands. vLLM's V1 only recomputes (scheduler.py:929); V0 had swap
        (vllm/core/scheduler.py, `_preempt_by_swap`).
        """
        assert request.status is RequestStatus.RUNNING
        copies = None
        if self.config.preemption_mode == "swap":
            copies = self.kv_cache_manager.swap_out(request)
        if copies is not None:
            output.blocks_to_swap_out += copies
        else:
            self.kv_cache_manager.free(request)
            request.max_num_computed_tokens = max(
                request.max_num_computed_tokens, request.num_computed_tokens
            )
            request.num_computed_tokens = 0
        request.spec_token_ids = []
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        output.preempted_req_ids.append(request.request_id)
        self.waiting.prepend_request(request)

    def _swap_in(self, request: Request) -> list[tuple[int, int]]:
        """Pairs (CPU block, GPU block) that restore a request whose `num_computed_tokens` stood.

        Its new blocks are allocated. What `_preempt_request` kept, this gives back: a subclass
        that overrides the one overrides the other.
        """
        return self.kv_cache_manager.swap_in(request)

    def _update_after_schedule(self, output: SchedulerOutput) -> None:
        """Count the step's tokens as computed, so that the next step can be planned at once.

        Source: vllm/v1/core/sched/scheduler.py:951.
        """
        output.evictions = self.kv_cache_manager.block_pool.take_evictions()
        stats = output.stats
        stats.num_evictions = len(output.evictions)
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            request = self.requests[request_id]
            if request.num_computed_tokens < request.max_num_computed_tokens:
                lost = request.max_num_computed_tokens - request.num_computed_tokens
                stats.num_recomputed_tokens += min(lost, num_tokens)
            request.num_computed_tokens += num_tokens
        for request in output.scheduled_new_reqs:
            request.metrics.first_scheduled_step = self.step
            request.metrics.first_scheduled_time = self.clock() if self.clock else None

        stats.num_running_reqs = len(self.running)
        stats.num_waiting_reqs = len(self.waiting)
        stats.num_scheduled_reqs = len(output.num_scheduled_tokens)
        stats.num_scheduled_tokens = output.total_num_scheduled_tokens
        stats.num_preemptions = len(output.preempted_req_ids)
        stats.num_admitted = len(output.scheduled_new_reqs) + len(output.scheduled_resumed_reqs)
        stats.num_swapped_out_blocks = len(output.blocks_to_swap_out)
        stats.num_swapped_in_blocks = len(output.blocks_to_swap_in)
        stats.kv_cache_usage = self.kv_cache_manager.usage
        self.stats.add_step(stats)
        if self.observer:
            self.observer.step_planned(output)
        self.step += 1

    # --- the step has run -----------------------------------------------------------------

    def update_from_output(
        self,
        scheduler_output: SchedulerOutput,
        sampled_token_ids: Mapping[str, TokenIds],
    ) -> list[EngineCoreOutput]:
        """Take the sampled tokens: `num_tokens` moves ahead, and some requests end.

        Args:
            scheduler_output: the plan that was executed.
            sampled_token_ids: one token for each request of the plan whose last known token
                was computed; a request in the middle of its prompt has none. Of a request with
                proposed tokens, all that it gets: those accepted, and one more.

        Returns:
            One output for each request that got a token, in the order of scheduling.

        Raises:
            ValueError: if a request that needs a token has none, or the other way round.

        Source: vllm/v1/core/sched/scheduler.py:1283.
        """
        outputs: list[EngineCoreOutput] = []
        finished: list[Request] = []
        now = self.clock() if self.clock else None
        max_model_len, min_tokens_last = self.config.max_model_len, self.switches.min_tokens_last
        keep_upstream_bugs = self.config.keep_upstream_bugs
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(request_id)
            if request is None:
                continue  # aborted while the step ran
            token_ids = sampled_token_ids.get(request_id)
            if (token_ids is None) == request.is_caught_up:
                problem = "misses" if token_ids is None else "must not have"
                raise ValueError(f"{request} {problem} a sampled token in step {self.step - 1}")
            if token_ids is None:
                continue
            if isinstance(token_ids, int):
                token_ids = (token_ids,)
            if drafts := scheduler_output.scheduled_spec_decode_tokens.get(request_id, ()):
                self._take_back_rejected(request, len(drafts), len(token_ids) - 1)

            engine_output = EngineCoreOutput(request_id, [])
            for token_id in token_ids:
                request.append_output_token_id(token_id)
                engine_output.new_token_ids.append(token_id)
                request.metrics.token_steps.append(scheduler_output.step)
                if now is not None:
                    request.metrics.token_times.append(now)
                if check_stop(request, max_model_len, min_tokens_last, keep_upstream_bugs):
                    engine_output.finish_reason = RequestStatus.get_finished_reason(request.status)
                    engine_output.stop_reason = request.stop_reason
                    finished.append(request)
                    break  # what was accepted behind it is dropped
            if drafts and self.switches.accepted_cached_at_once:
                self._cache_accepted(request)
            if request.is_finished:
                self._free_request(request)
            outputs.append(engine_output)

        if finished:
            gone = set(finished)
            self.running = [request for request in self.running if request not in gone]
        if self.observer:
            self.observer.step_updated(scheduler_output, sampled_token_ids, finished)
        return outputs

    def _take_back_rejected(self, request: Request, num_drafts: int, num_accepted: int) -> None:
        """Count the tokens that were computed on a wrong guess as not computed.

        Raises:
            ValueError: if the request gets no token, or more than were proposed and one.

        Source: vllm/v1/core/sched/scheduler.py:1371.
        """
        if not 0 <= num_accepted <= num_drafts:
            raise ValueError(
                f"{request}: with {num_drafts} proposed tokens it gets 1 to {num_drafts + 1} "
                f"sampled ones, not {num_accepted + 1}"
            )
        request.num_computed_tokens -= num_drafts - num_accepted
        self.stats.num_drafts += 1
        self.stats.num_draft_tokens += num_drafts
        self.stats.num_accepted_tokens += num_accepted

    def _cache_accepted(self, request: Request) -> None:
        """Publish the blocks that accepted tokens filled; one that yielded meanwhile has none."""
        if request.request_id in self.kv_cache_manager.req_to_blocks:
            self.kv_cache_manager.cache_blocks(request, request.num_tokens - 1)

    def update_draft_token_ids(self, draft_token_ids: Mapping[str, Sequence[int]]) -> None:
        """Take the tokens proposed for the next step: at most `num_speculative_tokens` a request.

        A request that has ended, or is in the middle of its prompt, gets none.

        Raises:
            ValueError: if there are too many.

        Source: vllm/v1/core/sched/scheduler.py:1691.
        """
        taken: dict[str, list[int]] = {}
        most = self.config.num_speculative_tokens
        for request_id, token_ids in draft_token_ids.items():
            request = self.requests.get(request_id)
            if len(token_ids) > most:
                raise ValueError(
                    f"request {request_id}: {len(token_ids)} tokens are proposed, "
                    f"num_speculative_tokens={most} allows fewer. Propose less, or raise it."
                )
            if request and request.num_computed_tokens >= request.num_tokens - 1:
                request.spec_token_ids = list(token_ids)
                taken[request_id] = request.spec_token_ids
        if self.observer:
            self.observer.tokens_proposed(taken)

    def _free_request(self, request: Request) -> None:
        """Give back all that a finished request holds."""
        request.metrics.finished_step = max(self.step - 1, 0)
        request.metrics.finished_time = self.clock() if self.clock else None
        self.kv_cache_manager.free(request)
        del self.requests[request.request_id]
        self.finished_req_ids.add(request.request_id)
        self.stats.num_finished += 1
