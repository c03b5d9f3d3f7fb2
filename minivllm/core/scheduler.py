"""Continuous batching: who computes how many tokens in the next step.

Each step lets every request's `num_computed_tokens` catch up with its `num_tokens`. That one
rule covers a prompt taken whole, a prompt in chunks, a prefix found in the cache, a decode of
one token, and the recomputation after a preemption. Iteration-level scheduling is Orca's (Yu et
al. 2022, §3); the decisions here are those of vLLM 0.22.1, vllm/v1/core/sched/scheduler.py,
in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from minivllm.core.block_pool import KVCacheBlock
from minivllm.core.config import SchedulerConfig
from minivllm.core.kv_cache_manager import KVCacheManager, cdiv
from minivllm.core.observer import SchedulerObserver
from minivllm.core.output import AdmissionStop, EngineCoreOutput, Preemption, SchedulerOutput
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
        )
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
        num_blocks = cdiv(most_computed, config.block_size)
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
            self.step, StepStats(self.step), finished_req_ids=self.finished_req_ids
        )
        self.finished_req_ids = set()

        token_budget = self._schedule_running(output, self.config.max_num_batched_tokens)
        if not output.preempted_req_ids:
            # A step that was short of blocks admits no one: a newcomer would take what the
            # victim has just given back.
            token_budget = self._schedule_waiting(output, token_budget)
        elif len(self.waiting):
            head = self.waiting.peek_request()
            output.admission_stopped = AdmissionStop(head, "preempted_in_this_step")

        output.total_num_scheduled_tokens = self.config.max_num_batched_tokens - token_budget
        self._update_after_schedule(output)
        return output

    def _schedule_running(self, output: SchedulerOutput, token_budget: int) -> int:
        """Give each running request its tokens; preempt where blocks are short.

        Returns:
            What is left of the budget.

        Source: vllm/v1/core/sched/scheduler.py:366.
        """
        threshold = self.config.long_prefill_token_threshold
        last_position = self.config.max_model_len - 1
        allocate_slots = self.kv_cache_manager.allocate_slots
        req_index = 0
        while req_index < len(self.running) and token_budget > 0:
            request = self.running[req_index]
            gap = request.num_tokens - request.num_computed_tokens
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
                self.running.remove(victim)
                if victim.request_id in output.num_scheduled_tokens:
                    token_budget += self._unschedule(victim, output)
                    req_index -= 1
                self._preempt_request(victim, output)
                if victim is request:
                    break
            if new_blocks is None:
                break  # the request preempted itself: no one was left to yield

            request_id = request.request_id
            output.scheduled_running_reqs.append(request)
            output.num_scheduled_tokens[request_id] = num_new_tokens
            if new_blocks:
                output.new_block_ids[request_id] = [block.block_id for block in new_blocks]
            if num_new_tokens < gap:
                output.num_left_tokens[request_id] = gap - num_new_tokens
            token_budget -= num_new_tokens
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
        threshold = config.long_prefill_token_threshold
        stopped_by, num_blocks_needed = "", None
        while len(self.waiting):
            if token_budget == 0:
                stopped_by = "max_num_batched_tokens"
                break
            if len(self.running) >= config.max_num_seqs:
                stopped_by = "max_num_seqs"
                break
            request = self.waiting.peek_request()
            swapped_out = request.num_computed_tokens > 0
            new_computed_blocks: list[KVCacheBlock] = []
            num_cached_tokens = 0
            if not swapped_out:
                new_computed_blocks, num_cached_tokens = manager.get_computed_blocks(request)

            # All known tokens, not the prompt alone: a resumed request has output to recompute.
            gap = request.num_tokens - request.num_computed_tokens - num_cached_tokens
            num_new_tokens = gap
            if 0 < threshold < num_new_tokens:
                num_new_tokens = threshold
            if token_budget < num_new_tokens:
                if not config.enable_chunked_prefill:
                    stopped_by = "enable_chunked_prefill"
                    break
                num_new_tokens = token_budget

            wanted = (request, num_new_tokens, new_computed_blocks, config.reserve_full_prompt)
            if manager.allocate_slots(*wanted) is None:
                stopped_by = "num_gpu_blocks"
                num_blocks_needed = manager.get_num_blocks_to_allocate(*wanted)
                break

            self.waiting.pop_request()
            self.running.append(request)
            resumed = request.status is RequestStatus.PREEMPTED
            admitted = output.scheduled_resumed_reqs if resumed else output.scheduled_new_reqs
            admitted.append(request)
            if swapped_out:
                output.blocks_to_swap_in += self._swap_in(request)
            else:
                output.stats.prefix_cache_queries += request.num_tokens
                output.stats.prefix_cache_hits += num_cached_tokens
            request.num_computed_tokens += num_cached_tokens
            request.num_cached_tokens = num_cached_tokens
            request_id = request.request_id
            output.num_scheduled_tokens[request_id] = num_new_tokens
            output.new_block_ids[request_id] = manager.get_block_ids(request_id)
            if num_new_tokens < gap:
                output.num_left_tokens[request_id] = gap - num_new_tokens
            request.status = RequestStatus.RUNNING
            token_budget -= num_new_tokens
        if stopped_by:
            output.admission_stopped = AdmissionStop(
                self.waiting.peek_request(),
                stopped_by,
                num_blocks_needed,
                manager.block_pool.get_num_free_blocks(),
            )
        return token_budget

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
        return output.num_scheduled_tokens.pop(victim.request_id)

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
        self, scheduler_output: SchedulerOutput, sampled_token_ids: Mapping[str, int]
    ) -> list[EngineCoreOutput]:
        """Take the sampled tokens: `num_tokens` moves ahead, and some requests end.

        Args:
            scheduler_output: the plan that was executed.
            sampled_token_ids: one token for each request of the plan whose last known token
                was computed; a request in the middle of its prompt has none.

        Returns:
            One output for each request that got a token, in the order of scheduling.

        Raises:
            ValueError: if a request that needs a token has none, or the other way round.

        Source: vllm/v1/core/sched/scheduler.py:1283.
        """
        outputs: list[EngineCoreOutput] = []
        finished: list[Request] = []
        now = self.clock() if self.clock else None
        for request_id in scheduler_output.num_scheduled_tokens:
            request = self.requests.get(request_id)
            if request is None:
                continue  # aborted while the step ran
            token_id = sampled_token_ids.get(request_id)
            if (token_id is None) == request.is_caught_up:
                problem = "misses" if token_id is None else "must not have"
                raise ValueError(f"{request} {problem} a sampled token in step {self.step - 1}")
            if token_id is None:
                continue

            request.append_output_token_id(token_id)
            request.metrics.token_steps.append(scheduler_output.step)
            if now is not None:
                request.metrics.token_times.append(now)
            engine_output = EngineCoreOutput(request_id, [token_id])
            if check_stop(request, self.config.max_model_len):
                engine_output.finish_reason = RequestStatus.get_finished_reason(request.status)
                engine_output.stop_reason = request.stop_reason
                finished.append(request)
                self._free_request(request)
            outputs.append(engine_output)

        if finished:
            gone = set(finished)
            self.running = [request for request in self.running if request not in gone]
        if self.observer:
            self.observer.step_updated(scheduler_output, sampled_token_ids, finished)
        return outputs

    def _free_request(self, request: Request) -> None:
        """Give back all that a finished request holds."""
        request.metrics.finished_step = max(self.step - 1, 0)
        request.metrics.finished_time = self.clock() if self.clock else None
        self.kv_cache_manager.free(request)
        del self.requests[request.request_id]
        self.finished_req_ids.add(request.request_id)
        self.stats.num_finished += 1
