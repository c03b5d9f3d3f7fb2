"""vLLM's policies and those debated there, each in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from minivllm.core import Request
from minivllm.core.victim import least_computed, priority, priority_as_upstream
from minivllm.sim.bench.policy import Policy


class FCFS(Policy):
    """vLLM's default: first come, first served; the last admitted yields."""


class Priority(Policy):
    """PRIORITY as minivllm has it: of equals, the last admitted yields."""

    def order(self, request: Request) -> tuple[int, float, str]:
        return request.sort_key()

    def victim(self, running: Sequence[Request]) -> Request:
        return priority(running)


class PriorityAsUpstream(Priority):
    """vLLM's PRIORITY: of equals, the first admitted yields (scheduler.py:457)."""

    def victim(self, running: Sequence[Request]) -> Request:
        return priority_as_upstream(running)


class LeastComputed(Policy):
    """Who loses the fewest computed tokens yields (vLLM #54644)."""

    def victim(self, running: Sequence[Request]) -> Request:
        return least_computed(running)


class UrgentSeats(Policy):
    """A quarter of the seats taken is kept for urgent requests (after vLLM #40004, #45561, #54530)."""  # noqa: E501

    SEATS = 12

    def order(self, request: Request) -> bool:
        return request.priority >= 0

    def admits(self, request: Request, running: Sequence[Request]) -> bool:
        return request.priority < 0 or len(running) < self.SEATS


class FairQueues(Policy):
    """Weighted fair queues: whose kind has been served the least is next (vLLM #31909)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: Counter[str] = Counter()

    def order(self, request: Request) -> int:
        return self.tokens[self.kind[request.request_id]]

    def served(self, request: Request, num_tokens: int) -> None:
        self.tokens[self.kind[request.request_id]] += num_tokens


class MLFQ(Policy):
    """Levels of feedback: every 256 tokens served put a request a level down (vLLM #25567)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: Counter[str] = Counter()

    def order(self, request: Request) -> int:
        return self.tokens[request.request_id] // 256

    def victim(self, running: Sequence[Request]) -> Request:
        return max(running, key=self.order)  # of equals, the first: it has come furthest

    def served(self, request: Request, num_tokens: int) -> None:
        self.tokens[request.request_id] += num_tokens


class ShortestFirst(Policy):
    """The shortest prompt first (vLLM #36980): who is long waits for all who are short."""

    def order(self, request: Request) -> int:
        return request.num_prompt_tokens


POLICIES: dict[str, type[Policy]] = {
    "fcfs": FCFS,
    "priority": Priority,
    "priority_as_upstream": PriorityAsUpstream,
    "least_computed": LeastComputed,
    "urgent_seats": UrgentSeats,
    "fair_queues": FairQueues,
    "mlfq": MLFQ,
    "shortest_first": ShortestFirst,
}
"""By name; the first is what the others are compared with."""
