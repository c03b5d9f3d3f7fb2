"""The core without the very feature that an exercise asks for, so that it cannot simply be called.

Each function changes the classes and tables of `minivllm.core` in this process. A driver's module
calls one when it is imported, which is before the student's code runs; a notebook calls the same
one, so that the reader's kernel and the judge's child have the same core.
"""

from __future__ import annotations

from typing import Any

from minivllm.core import (
    KVCacheManager,
    Request,
    RequestStatus,
    Scheduler,
    SchedulerOutput,
    kv_cache_manager,
    request_queue,
    scheduler,
    victim,
)


def _remove(owner: Any, *names: str) -> None:
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)


def without_priority() -> None:
    """Take PRIORITY out: its queue, and its two choices of a victim.

    `policy="priority"` is still allowed, and means FCFS: a queue in the order of arrival with the
    preempted in front, and the last admitted as the victim. What is left is what a request says
    about itself: `priority`, `arrival_time`, `sort_key`.
    """
    import minivllm.core as core

    _remove(request_queue, "PriorityRequestQueue")
    _remove(core, "PriorityRequestQueue")
    _remove(victim, "priority", "priority_as_upstream", "priority_key")
    for name in ("priority", "priority_as_upstream"):
        victim.VICTIM_POLICIES[name] = victim.last_admitted

    def fcfs(policy: str) -> request_queue.RequestQueue:
        return request_queue.FCFSRequestQueue()

    request_queue.create_request_queue = fcfs
    scheduler.create_request_queue = fcfs


def without_swap() -> None:
    """Take swapping out: every preemption recomputes, and there is no CPU pool.

    `preemption_mode` and `num_cpu_blocks` can still be set, and nothing reads them: the core's own
    CPU pool has no blocks. What is left is the question at re-admission: `_swap_in` is called for a
    request that waits with `num_computed_tokens` above 0.
    """
    real_init = KVCacheManager.__init__
    if getattr(real_init, "without_swap", False):
        return

    def init(
        self: KVCacheManager,
        num_gpu_blocks: int,
        block_size: int,
        enable_caching: bool,
        num_cpu_blocks: int = 0,
        *lookahead: int,
    ) -> None:
        real_init(self, num_gpu_blocks, block_size, enable_caching, 0, *lookahead)

    def preempt_request(self: Scheduler, request: Request, output: SchedulerOutput) -> None:
        assert request.status is RequestStatus.RUNNING
        self.kv_cache_manager.free(request)
        request.max_num_computed_tokens = max(
            request.max_num_computed_tokens, request.num_computed_tokens
        )
        request.num_computed_tokens = 0
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        output.preempted_req_ids.append(request.request_id)
        self.waiting.prepend_request(request)

    def swap_in(self: Scheduler, request: Request) -> list[tuple[int, int]]:
        raise NotImplementedError(
            f"{request} waits with computed tokens, and nobody has said where they are kept: "
            f"override _swap_in"
        )

    init.without_swap = True  # type: ignore[attr-defined]
    KVCacheManager.__init__ = init  # type: ignore[method-assign, assignment]
    _remove(KVCacheManager, "swap_out", "swap_in")
    Scheduler._preempt_request = preempt_request  # type: ignore[method-assign]
    Scheduler._swap_in = swap_in  # type: ignore[method-assign]


def without_admission_control() -> None:
    """Take admission control out: whoever comes is queued, and nobody says who can never fit.

    `admission_control` can still be set, and nothing reads it.
    """

    def add_request(self: Scheduler, request: Request) -> bool:
        if request.request_id in self.requests:
            raise ValueError(f"request id {request.request_id!r} is taken by an unfinished request")
        if request.status is not RequestStatus.WAITING:
            raise ValueError(f"{request} has been scheduled before; add a new Request")
        if request.arrival_time is None:
            request.arrival_time = self.clock() if self.clock else float(self._num_added)
        self._num_added += 1
        request.metrics.arrival_step = self.step
        request.metrics.arrival_time = self.clock() if self.clock else None
        self.requests[request.request_id] = request
        self.waiting.add_request(request)
        if self.observer:
            self.observer.request_added(request)
        return True

    import minivllm.core as core

    Scheduler.add_request = add_request  # type: ignore[method-assign]
    _remove(Scheduler, "refusal_reason")
    _remove(kv_cache_manager, "check_enough_kv_cache_memory")
    _remove(core, "check_enough_kv_cache_memory")
