"""A policy: who is admitted next, who yields, who has to wait; the scheduler does the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from minivllm.core import Request, Scheduler, SchedulerOutput
from minivllm.core.victim import last_admitted


class BrokenPolicy(Exception):
    """A policy that did what no policy may: the run did not end, or an invariant broke."""


class Policy:
    """Override what should differ from vLLM's FCFS. A run makes one object of the class.

    Attributes:
        now: seconds of simulated time, at the step that is planned.
        kind: request id → who asks (`Arrival.kind`), such as "chat".
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.kind: dict[str, str] = {}

    def order(self, request: Request) -> Any:
        """A key: of those who wait, the smallest is admitted next; of equals, the first in line."""
        raise NotImplementedError

    def victim(self, running: Sequence[Request]) -> Request:
        """Who yields when blocks run out; `running` is in order of admission."""
        return last_admitted(running)

    def admits(self, request: Request, running: Sequence[Request]) -> bool:
        """Whether a request may take a place now. Who may not is passed over, not sent away."""
        return True

    def served(self, request: Request, num_tokens: int) -> None:
        """Called for everyone in each step, with the tokens that it got."""


class PolicyQueue:
    """WAITING in a policy's order: as FCFS where it has none, past those whom it does not admit."""

    def __init__(self, policy: Policy, running: Callable[[], Sequence[Request]]) -> None:
        self._requests: list[Request] = []
        self._policy = policy
        self._running = running
        self._has_order = type(policy).order is not Policy.order
        self._has_door = type(policy).admits is not Policy.admits
        self.is_admitting = False
        """While the scheduler admits, who is not admitted does not count."""
        self._peeked: Request | None = None

    def add_request(self, request: Request) -> None:
        self._requests.append(request)

    def prepend_request(self, request: Request) -> None:
        self._requests.insert(0, request)

    def _candidates(self) -> list[Request]:
        if not (self.is_admitting and self._has_door):
            return self._requests
        running = self._running()
        return [r for r in self._requests if self._policy.admits(r, running)]

    def peek_request(self) -> Request:
        candidates = self._candidates()
        key = self._policy.order
        self._peeked = min(candidates, key=key) if self._has_order else candidates[0]
        return self._peeked

    def pop_request(self) -> Request:
        """The one that was looked at last, even if the order has changed since."""
        request = self._peeked or self.peek_request()
        self._peeked = None
        self._requests.remove(request)
        return request

    def remove_requests(self, requests: Iterable[Request]) -> None:
        removed = set(requests)
        self._requests = [request for request in self._requests if request not in removed]

    def __len__(self) -> int:
        return len(self._candidates())

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)


class PolicyScheduler(Scheduler):
    """vLLM's scheduler with a policy in the three places that decide who comes first."""

    policy: Policy
    queue: PolicyQueue

    def set_policy(self, policy: Policy) -> None:
        """Take a policy, before the first request."""
        self.policy = policy
        if type(policy).order is not Policy.order or type(policy).admits is not Policy.admits:
            self.queue = PolicyQueue(policy, lambda: self.running)
            self.waiting = self.queue
        if type(policy).victim is not Policy.victim:
            self.select_victim = self._victim

    def _victim(self, running: Sequence[Request]) -> Request:
        victim = self.policy.victim(tuple(running))
        if victim not in running:
            raise BrokenPolicy(f"victim returned {victim!r}, who does not run")
        return victim

    def schedule(self) -> SchedulerOutput:
        self.policy.now = self.clock() if self.clock else 0.0
        output = super().schedule()
        for request_id, num_tokens in output.num_scheduled_tokens.items():
            self.policy.served(self.requests[request_id], num_tokens)
        return output

    def _schedule_waiting(self, output: SchedulerOutput, token_budget: int) -> int:
        if not isinstance(self.waiting, PolicyQueue):
            return super()._schedule_waiting(output, token_budget)
        self.waiting.is_admitting = True
        try:
            return super()._schedule_waiting(output, token_budget)
        finally:
            self.waiting.is_admitting = False


def broken_invariant(scheduler: Scheduler, plan: SchedulerOutput) -> str:
    """What does not hold after a step, in words; "" if all does."""
    config, manager = scheduler.config, scheduler.kv_cache_manager
    spent = sum(plan.num_scheduled_tokens.values())
    if spent > config.max_num_batched_tokens:
        return f"{spent} tokens in a step, max_num_batched_tokens={config.max_num_batched_tokens}"
    if len(scheduler.running) > config.max_num_seqs:
        return f"{len(scheduler.running)} requests run, max_num_seqs={config.max_num_seqs}"
    running, waiting = set(scheduler.running), set(scheduler.waiting)
    if running & waiting or running | waiting != set(scheduler.requests.values()):
        return "a request is in two queues, or in none"
    held = 0
    for request in scheduler.requests.values():
        blocks = len(manager.req_to_blocks.get(request.request_id, ()))
        held += blocks
        if request in running and blocks * config.block_size < request.num_computed_tokens:
            return f"{request.request_id} has computed {request.num_computed_tokens} tokens in {blocks} blocks"  # noqa: E501
    free = manager.block_pool.get_num_free_blocks()
    if held + free != config.num_gpu_blocks:
        return f"{held} blocks held and {free} free, num_gpu_blocks={config.num_gpu_blocks}"
    return ""
