"""Answers to exercise 7, right and wrong, as the text of the answer cell."""

SELECT = "def select_victim(running):\n    {}\n"


def select(*lines: str) -> str:
    return "def select_victim(running):\n" + "".join(f"    {line}\n" for line in lines)


HEAP = """
import heapq

from minivllm.core import Scheduler


class WaitingHeap:
    def __init__(self):
        self.heap = []

    def add_request(self, request):
        heapq.heappush(self.heap, ({key}, request))

    def prepend_request(self, request):
        {prepend}

    def peek_request(self):
        return self.heap[0][-1]

    def pop_request(self):
        return heapq.heappop(self.heap)[-1]

    def remove_requests(self, requests):
        gone = set(requests)
        self.heap = [entry for entry in self.heap if entry[-1] not in gone]
        heapq.heapify(self.heap)

    def __len__(self):
        return len(self.heap)

    def __iter__(self):
        return (entry[-1] for entry in sorted(self.heap))


class PriorityScheduler(Scheduler):
    def __init__(self, config, **options):
        super().__init__(config, **options)
        self.waiting = WaitingHeap()
        self.select_victim = {victim}
"""


def heap(
    key: str = "(request.priority, request.arrival_time)",
    prepend: str = "self.add_request(request)",
    victim: str = "lambda running: max(running, key=lambda r: (r.priority, r.arrival_time))",
) -> str:
    return HEAP.format(key=key, prepend=prepend, victim=victim)


SORTED = """
from bisect import insort

from minivllm.core import Scheduler
from minivllm.core.request_queue import FCFSRequestQueue


def urgency(request):
    return request.priority, request.arrival_time


class SortedQueue(FCFSRequestQueue):
    '''The deque of FCFS, kept in order.'''

    def add_request(self, request):
        for index, other in enumerate(self._queue):
            if urgency(request) < urgency(other):
                self._queue.insert(index, request)
                return
        self._queue.append(request)

    prepend_request = add_request


def PriorityScheduler(config):
    scheduler = Scheduler(config)
    scheduler.waiting = SortedQueue()
    scheduler.select_victim = least_urgent
    return scheduler


def least_urgent(running):
    victim = running[0]
    for request in running[1:]:
        if urgency(request) > urgency(victim):
            victim = request
    return victim
"""

SEARCH = """
from minivllm.core import Scheduler


class Bag:
    '''No order at all: the most urgent is looked for when it is asked for.'''

    def __init__(self):
        self.requests = []

    def add_request(self, request):
        self.requests.append(request)

    def prepend_request(self, request):
        self.requests.append(request)

    def peek_request(self):
        return min(self.requests)

    def pop_request(self):
        request = min(self.requests)
        self.requests.remove(request)
        return request

    def remove_requests(self, requests):
        self.requests = [r for r in self.requests if r not in set(requests)]

    def __len__(self):
        return len(self.requests)

    def __iter__(self):
        return iter(sorted(self.requests))


class PriorityScheduler(Scheduler):
    def __init__(self, *args, **kwargs):
        Scheduler.__init__(self, *args, **kwargs)
        self.waiting = Bag()
        self.select_victim = max
"""

REQUEST = (
    '{{"request_id": "{}", "arrival_step": {}, "num_prompt_tokens": {}, "max_tokens": {}, '
    '"priority": {}}}'
)


def scenario(*requests: tuple[str, int, int, int, int], **config: object) -> str:
    knobs: dict[str, object] = {
        "policy": "priority",
        "num_gpu_blocks": 9,
        "block_size": 4,
        "max_num_batched_tokens": 64,
        "enable_prefix_caching": False,
        **config,
    }
    rows = ",\n        ".join(REQUEST.format(*row) for row in requests)
    return (
        f'scenario = {{\n    "config": {knobs!r},\n    "requests": [\n        {rows}\n    ],\n}}\n'
    )


# old and mid are equally unimportant, urgent comes late, last and later wait.
GOOD = (
    ("old", 0, 7, 10, 2),
    ("urgent", 2, 7, 12, 0),
    ("mid", 1, 7, 10, 2),
    ("later", 3, 8, 4, 2),
    ("last", 4, 8, 4, 1),
)

RIGHT = {
    "07a": {
        "max of a pair": select("return max(running, key=lambda r: (r.priority, r.arrival_time))"),
        "the largest in the requests' own order": select("return max(running)"),
        "a loop": select(
            "victim = running[0]",
            "for request in running:",
            "    if request.priority > victim.priority:",
            "        victim = request",
            "    elif request.priority == victim.priority:",
            "        if request.arrival_time > victim.arrival_time:",
            "            victim = request",
            "return victim",
        ),
        "sort a copy": select(
            "return sorted(running, key=lambda r: (r.priority, r.arrival_time))[-1]"
        ),
    },
    "07b": {
        "a heap": heap(),
        "a sorted deque and a function": SORTED,
        "a bag that is searched": SEARCH,
    },
    "07c": {
        "five requests": scenario(*GOOD),
        "other sizes": scenario(
            ("a", 0, 5, 12, 1),
            ("b", 1, 8, 13, 2),
            ("c", 2, 6, 7, 1),
            ("d", 3, 2, 8, 1),
            ("e", 4, 8, 7, 0),
            num_gpu_blocks=9,
        ),
        "blocks of two tokens": scenario(
            ("x1", 0, 4, 12, 9),
            ("x2", 1, 4, 12, 9),
            ("vip", 2, 4, 12, -1),
            ("y", 3, 5, 6, 9),
            ("z", 4, 5, 6, 4),
            num_gpu_blocks=10,
            block_size=2,
        ),
    },
}

WRONG = {
    "07a": {
        "FCFS's victim": (select("return running[-1]"), "FCFS"),
        "the most urgent": (
            select("return min(running, key=lambda r: (r.priority, r.arrival_time))"),
            "lower number is a more urgent",
        ),
        "the priority alone": (
            select("return max(running, key=lambda r: r.priority)"),
            "among equal priorities.*first in the list",
        ),
        "the oldest of equals": (
            select("return max(running, key=lambda r: (r.priority, -r.arrival_time))"),
            "in the system longest",
        ),
        "the arrival first": (
            select("return max(running, key=lambda r: (r.arrival_time, r.priority))"),
            "before the priority",
        ),
        "a sum": (
            select("return max(running, key=lambda r: r.priority + r.arrival_time)"),
            "adds",
        ),
        "the last admitted of equals": (
            select("return max(reversed(running), key=lambda r: r.priority)"),
            "admission is not arrival",
        ),
        "takes it out itself": (
            select("running.sort()", "return running.pop()"),
            "changed the list",
        ),
        "an id": (select("return max(running).request_id"), "one of the requests"),
        "the fewest computed tokens": (
            select("return min(running, key=lambda r: r.num_computed_tokens)"),
            "fewest computed",
        ),
    },
    "07b": {
        "nothing but the class": (
            "from minivllm.core import Scheduler\n\nclass PriorityScheduler(Scheduler): pass\n",
            "as FCFS does",
        ),
        "a method that the attribute hides": (
            "from minivllm.core import Scheduler\n\n\nclass PriorityScheduler(Scheduler):\n"
            "    def select_victim(self, running):\n        return max(running)\n",
            "hidden by the attribute",
        ),
        "the queue alone": (
            heap(victim="lambda running: running[-1]"),
            "victim is still the last admitted",
        ),
        "the preempted in front": (
            heap(
                key="(0, request.priority, request.arrival_time)",
                prepend="heapq.heappush(self.heap, ((-1, 0, -request.num_preemptions), request))",
            ),
            "in front of everybody",
        ),
        "sorted, and the preempted in front": (
            SORTED.replace("    prepend_request = add_request\n", ""),
            "PRIORITY: .*right for those who are new, and wrong after a preemption",
        ),
        "sorted again for each newcomer": (
            SORTED.replace("    prepend_request = add_request\n", "").replace(
                """        for index, other in enumerate(self._queue):
            if urgency(request) < urgency(other):
                self._queue.insert(index, request)
                return
        self._queue.append(request)
""",
                "        self._queue = type(self._queue)(\n"
                "            sorted([*self._queue, request], key=urgency)\n        )\n",
            ),
            "wrong after a preemption",
        ),
        "high numbers first": (
            heap(
                key="(-request.priority, request.arrival_time)",
                victim="lambda running: min(running, key=lambda r: (r.priority, -r.arrival_time))",
            ),
            "high number for an urgent",
        ),
        "no arrival time in the queue": (
            heap(key="(request.priority, len(self.heap))"),
            "arrival_time|two things make the policy",
        ),
        "the oldest of equals yields": (
            heap(
                victim="lambda running: max(running, key=lambda r: (r.priority, -r.arrival_time))"
            ),
            "in the system longest",
        ),
        "imports the core's own queue": (
            "from minivllm.core import PriorityRequestQueue, Scheduler\n\n\n"
            "class PriorityScheduler(Scheduler):\n    pass\n",
            "ImportError.*has no PRIORITY: write it",
        ),
        "preempts for one that waits": (
            heap()
            + """
    def _schedule_running(self, output, budget):
        while len(self.waiting) and self.running:
            victim = self.select_victim(self.running)
            if not self.waiting.peek_request() < victim:
                break
            self.running.remove(victim)
            self._preempt_request(victim, output)
        return super()._schedule_running(output, budget)
""",
            "one that only waits",
        ),
    },
    "07c": {
        "enough blocks": (scenario(*GOOD, num_gpu_blocks=40), "nobody is ever preempted"),
        "the urgent one first": (
            scenario(("urgent", 0, 7, 12, 0), ("old", 1, 7, 10, 2), ("mid", 2, 7, 10, 2)),
            "did not arrive later|gives itself up",
        ),
        "the policy forgotten": (scenario(*GOOD, policy="fcfs"), "policy to 'priority'"),
        "nobody waits": (
            scenario(("old", 0, 8, 7, 2), ("urgent", 1, 4, 13, 0), num_gpu_blocks=6),
            "cannot fail where it should",
        ),
        "one unimportant request": (
            scenario(("old", 0, 7, 14, 2), ("urgent", 2, 7, 14, 0), ("last", 3, 8, 4, 1)),
            "cannot fail where it should",
        ),
        "high numbers meant as urgent": (
            scenario(*((a, b, c, d, 9 - e) for a, b, c, d, e in GOOD)),
            "no less urgent|gives itself up|cannot fail",
        ),
    },
}
