"""WAITING: who is admitted next (vllm/v1/core/sched/request_queue.py)."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from minivllm.core.request import Request


class RequestQueue(Protocol):
    """What the scheduler asks of its waiting queue."""

    def add_request(self, request: Request) -> None:
        """Queue a new request."""

    def prepend_request(self, request: Request) -> None:
        """Queue a preempted request, ahead of everyone that the policy does not put before it."""

    def peek_request(self) -> Request:
        """The next request to admit; it stays queued."""

    def pop_request(self) -> Request:
        """The next request to admit; it leaves the queue."""

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Take these out wherever they stand (abort)."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Request]: ...


class FCFSRequestQueue:
    """First come, first served; a preempted request goes back to the front."""

    def __init__(self) -> None:
        self._queue: deque[Request] = deque()

    def add_request(self, request: Request) -> None:
        self._queue.append(request)

    def prepend_request(self, request: Request) -> None:
        self._queue.appendleft(request)

    def peek_request(self) -> Request:
        return self._queue[0]

    def pop_request(self) -> Request:
        return self._queue.popleft()

    def remove_requests(self, requests: Iterable[Request]) -> None:
        removed = set(requests)
        self._queue = deque(request for request in self._queue if request not in removed)

    def __len__(self) -> int:
        return len(self._queue)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._queue)


class PriorityRequestQueue:
    """A heap by (priority, arrival time, id): a preempted request has no privilege."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, float, str], Request]] = []

    def add_request(self, request: Request) -> None:
        heapq.heappush(self._heap, (request.sort_key(), request))

    def prepend_request(self, request: Request) -> None:
        self.add_request(request)

    def peek_request(self) -> Request:
        return self._heap[0][1]

    def pop_request(self) -> Request:
        return heapq.heappop(self._heap)[1]

    def remove_requests(self, requests: Iterable[Request]) -> None:
        removed = set(requests)
        self._heap = [entry for entry in self._heap if entry[1] not in removed]
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, request in sorted(self._heap))


def create_request_queue(policy: str) -> RequestQueue:
    """The queue of a policy, `fcfs` or `priority`."""
    return PriorityRequestQueue() if policy == "priority" else FCFSRequestQueue()
