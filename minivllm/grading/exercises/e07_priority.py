"""Exercise 7: the PRIORITY policy, written into a core that has none, and a test that can fail."""

from __future__ import annotations

import gzip
import json
import random
import re
from bisect import insort
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from minivllm.core import Request, Scheduler, SchedulerConfig
from minivllm.core.request_queue import FCFSRequestQueue, PriorityRequestQueue, RequestQueue
from minivllm.core.victim import VictimPolicy, last_admitted
from minivllm.core.victim import priority as priority_victim
from minivllm.grading.exercises.drivers import loop
from minivllm.grading.exercises.workloads import (
    plain,
    read_workload,
    run,
    run_to_the_end,
)
from minivllm.grading.part import Failed, Part
from minivllm.grading.sandbox import Student
from minivllm.runs.conformance import trace_config
from minivllm.runs.scenario import Scenario

TITLE = "PRIORITY: who waits first, who yields first"
CHAPTER = "07-priority-and-swap"
DRIVER = "minivllm.grading.exercises.drivers.d07"
DATA = Path(__file__).with_name("data") / "e07_vllm.jsonl.gz"
"""Workloads under PRIORITY with what vLLM 0.22.1's own scheduler decided, recorded with
tools/record_vllm_traces.py; no two requests of one have the same priority and arrival time."""


# --- a: the victim --------------------------------------------------------------------------------

Row = dict[str, Any]


def running_lists(seed: str, count: int) -> list[list[Row]]:
    """Lists of running requests, the small ones first; all keys differ."""
    rng = random.Random(seed)
    cases = []
    for number in range(count):
        size = 2 + number * 5 // count
        times = rng.sample(range(60), size)
        ids = rng.sample([f"r{i}" for i in range(size)], size)
        cases.append(
            [
                {
                    "id": id_,
                    "priority": rng.randint(-2, 2),
                    "arrival_time": time / 4,
                    "num_computed_tokens": rng.randint(1, 40),
                }
                for id_, time in zip(ids, times)
            ]
        )
    return cases


def _victim(rows: list[Row]) -> str:
    return max(rows, key=lambda row: (row["priority"], row["arrival_time"]))["id"]


RULES: tuple[tuple[Callable[[list[Row]], str], str], ...] = (
    (
        lambda rows: rows[-1]["id"],
        "It always takes the last of the list: that is FCFS's victim. Under PRIORITY the place in "
        "RUNNING says nothing.",
    ),
    (
        lambda rows: rows[0]["id"],
        "It always takes the first of the list. The place in RUNNING says nothing under PRIORITY.",
    ),
    (
        lambda rows: min(rows, key=lambda r: (r["priority"], r["arrival_time"]))["id"],
        "It takes whoever is served first. A lower number is a more urgent request, here as in "
        "nice(1); the victim stands at the other end.",
    ),
    (
        lambda rows: max(rows, key=lambda r: (-r["priority"], r["arrival_time"]))["id"],
        "It takes a low number for a request that is less urgent. A lower number runs first.",
    ),
    (
        lambda rows: max(rows, key=lambda r: r["priority"])["id"],
        "Among equal priorities it takes the one that stands first in the list. Something else "
        "than the place in RUNNING must decide between them.",
    ),
    (
        lambda rows: max(reversed(rows), key=lambda r: r["priority"])["id"],
        "Among equal priorities it takes the one that was admitted last. Admission is not arrival: "
        "whoever was preempted once comes back at the end of RUNNING.",
    ),
    (
        lambda rows: max(rows, key=lambda r: (r["priority"], -r["arrival_time"]))["id"],
        "Among equal priorities it takes the one that has been in the system longest. Which of two "
        "equals has waited less, and yields?",
    ),
    (
        lambda rows: max(rows, key=lambda r: (r["arrival_time"], r["priority"]))["id"],
        "It looks at the arrival time before the priority: the urgent newcomer is thrown out.",
    ),
    (
        lambda rows: max(rows, key=lambda r: r["priority"] + r["arrival_time"])["id"],
        "It adds priority and arrival time up. One second is not worth one step of priority: the "
        "time only decides between equals.",
    ),
    (
        lambda rows: min(rows, key=lambda r: r["num_computed_tokens"])["id"],
        "It takes whoever loses the fewest computed tokens: a policy that has been proposed, not "
        "PRIORITY.",
    ),
    (
        lambda rows: max(rows, key=lambda r: (r["priority"], r["id"]))["id"],
        "Among equal priorities it compares the ids. An id says nothing about who came first.",
    ),
)
"""What a wrong function may follow instead, and what to say to it."""


def call(student: Student, driver: str, **payload: Any) -> Any:
    """Run a driver; whoever asks the core for PRIORITY is told that it has none."""
    try:
        return student.call(f"{DRIVER}:{driver}", **payload)
    except Failed as failed:
        taken = ("PriorityRequestQueue", "priority_as_upstream", "priority_key", "core.victim")
        if re.search("ImportError|AttributeError", failed.says) and any(
            name in failed.says for name in taken
        ):
            raise Failed(f"{failed.says} The judge's core has no PRIORITY: write it.") from None
        raise


def check_victim(student: Student) -> None:
    """Part a: the function `select_victim` on lists of running requests."""
    cases = running_lists("07a", 120)
    picked = call(student, "victims", cases=cases)
    for rows, told in zip(cases, picked):
        if told.get("changed"):
            raise Failed(
                "`select_victim` changed the list that it was given. It only chooses: the "
                "scheduler takes the victim out of RUNNING itself.",
                workload=rows,
            )
        if "not_a_request" in told:
            raise Failed(
                f"`select_victim` must return one of the requests it was given; it returned "
                f"{told['not_a_request']}.",
                workload=rows,
            )
    chosen = [told["id"] for told in picked]
    wrong = [index for index, rows in enumerate(cases) if chosen[index] != _victim(rows)]
    if wrong:
        rows = cases[wrong[0]]
        told = chosen[wrong[0]]
        hint = next(
            (says for rule, says in RULES if chosen == [rule(each) for each in cases]),
            "Put the two numbers of each request beside each other: of whom does the policy think "
            "least, and between equals, who came to the system later?",
        )
        raise Failed(
            f"{len(wrong)} of {len(cases)} lists of running requests get the wrong victim. The "
            f"smallest is shown, in order of admission; your function picks {told}. {hint}",
            workload=rows,
        )


# --- b: the scheduler -----------------------------------------------------------------------------


def random_workload(rng: random.Random, num_requests: int) -> dict[str, Any]:
    """A cramped workload in which everybody fits alone, and no two keys are equal."""
    block_size = rng.choice([2, 3, 4])
    times = rng.sample(range(4 * num_requests), num_requests)
    rows: list[Row] = [
        {
            "id": f"r{index}",
            "arrival_step": rng.randint(0, 2 * num_requests - 2),
            "arrival_time": times[index] / 2,
            "prompt_token_ids": [rng.randint(0, 3) for _ in range(rng.randint(2, 14))],
            "max_tokens": rng.randint(2, 12),
            "priority": rng.randint(0, 2),
        }
        for index in range(num_requests)
    ]
    rows.sort(key=lambda row: row["arrival_step"])
    most = max(len(row["prompt_token_ids"]) + row["max_tokens"] for row in rows)
    alone = -(-most // block_size)
    return {
        "config": {
            "policy": "priority",
            "block_size": block_size,
            "num_gpu_blocks": alone + rng.randint(0, alone),
            "max_model_len": 64,
            "max_num_batched_tokens": rng.choice([6, 10, 16, 32]),
            "max_num_seqs": rng.choice([2, 3, 4, 8]),
            "long_prefill_token_threshold": rng.choice([0, 0, 4]),
            "enable_prefix_caching": rng.random() < 0.4,
        },
        "requests": rows,
    }


class _Fronted(PriorityRequestQueue):
    """PRIORITY's order, but a preempted request goes in front of everybody, as under FCFS."""

    def __init__(self) -> None:
        super().__init__()
        self._front: list[Request] = []

    def prepend_request(self, request: Request) -> None:
        self._front.insert(0, request)

    def peek_request(self) -> Request:
        return self._front[0] if self._front else super().peek_request()

    def pop_request(self) -> Request:
        return self._front.pop(0) if self._front else super().pop_request()

    def __len__(self) -> int:
        return len(self._front) + super().__len__()


class _FrontUntilTheNext(FCFSRequestQueue):
    """Newcomers in PRIORITY's order; a preempted request in front, perhaps until the next comes."""

    def __init__(self, sort_again: bool) -> None:
        super().__init__()
        self._sort_again = sort_again

    def add_request(self, request: Request) -> None:
        queue = list(self._queue)
        if self._sort_again:
            queue = sorted([*queue, request], key=_key)
        else:
            insort(queue, request, key=_key)
        self._queue.clear()
        self._queue.extend(queue)


class _Keyed(FCFSRequestQueue):
    """In the order of a key; who is first among equals came first into the queue."""

    def __init__(self, key: Callable[[Request], Any]) -> None:
        super().__init__()
        self._key = key

    def add_request(self, request: Request) -> None:
        self._queue.append(request)
        in_order = sorted(self._queue, key=self._key)
        self._queue.clear()
        self._queue.extend(in_order)

    def prepend_request(self, request: Request) -> None:
        self.add_request(request)


def _arrival(request: Request) -> float:
    return request.arrival_time or 0.0


def _key(request: Request) -> tuple[int, float]:
    return (request.priority, _arrival(request))


class _Evicting(Scheduler):
    """PRIORITY that preempts a running request for one that only waits."""

    def _schedule_running(self, output: Any, token_budget: int) -> int:
        while (
            len(self.waiting)
            and self.running
            and _key(self.waiting.peek_request()) < _key(victim := priority_victim(self.running))
        ):
            self.running.remove(victim)
            self._preempt_request(victim, output)
        return super()._schedule_running(output, token_budget)


def variant(
    queue: Callable[[], RequestQueue] = PriorityRequestQueue,
    victim: VictimPolicy = priority_victim,
    base: type[Scheduler] = Scheduler,
) -> Callable[[SchedulerConfig], Scheduler]:
    """A scheduler with this queue and this choice of a victim."""

    def make(config: SchedulerConfig) -> Scheduler:
        scheduler = base(config)
        scheduler.waiting = queue()
        scheduler.select_victim = victim
        return scheduler

    return make


def _least_urgent_oldest(running: Sequence[Request]) -> Request:
    return max(running, key=lambda r: (r.priority, -_arrival(r)))


def _most_urgent(running: Sequence[Request]) -> Request:
    return min(running, key=_key)


def _latest_arrival(running: Sequence[Request]) -> Request:
    return max(running, key=_arrival)


def _least_urgent_last_admitted(running: Sequence[Request]) -> Request:
    return max(reversed(running), key=lambda r: r.priority)


MISTAKES: tuple[tuple[Callable[[SchedulerConfig], Scheduler], str], ...] = (
    (
        variant(FCFSRequestQueue, last_admitted),
        "It decides everything as FCFS does, so neither of your two pieces is in use. A method "
        "`select_victim` in a subclass is hidden by the attribute of the same name that "
        "`Scheduler.__init__` sets; a queue must stand in `self.waiting` before the first request "
        "comes.",
    ),
    (
        variant(PriorityRequestQueue, last_admitted),
        "The order of waiting is right, but the victim is still the last admitted.",
    ),
    (
        variant(FCFSRequestQueue, priority_victim),
        "The victim is right, but WAITING is still in the order of arrival.",
    ),
    (
        variant(_Fronted),
        "A preempted request goes in front of everybody in WAITING. FCFS does that; under PRIORITY "
        "its key decides where it stands, like anybody's.",
    ),
    *(
        (
            variant(partial(_FrontUntilTheNext, sort_again)),
            "WAITING is right for those who are new, and wrong after a preemption: "
            "`prepend_request` puts the victim in front, as under FCFS. Under PRIORITY its key "
            "decides where it stands, like anybody's.",
        )
        for sort_again in (True, False)
    ),
    (
        variant(
            lambda: _Keyed(lambda r: (-r.priority, _arrival(r))),
            lambda running: min(running, key=lambda r: (r.priority, -_arrival(r))),
        ),
        "It takes a high number for an urgent request. A lower number runs first.",
    ),
    (
        variant(lambda: _Keyed(lambda r: r.priority)),
        "Among equal priorities your queue serves whoever was added first. `arrival_time` decides "
        "between them: a preempted request is added late, and need not have come late.",
    ),
    (
        variant(lambda: _Keyed(lambda r: (r.priority, -_arrival(r)))),
        "Among equal priorities your queue serves the latest first.",
    ),
    (
        variant(lambda: _Keyed(lambda r: (_arrival(r), r.priority))),
        "Your queue looks at the arrival time before the priority.",
    ),
    (
        variant(victim=_least_urgent_oldest),
        "Among equal priorities the victim is the one that has been in the system longest.",
    ),
    (
        variant(victim=_least_urgent_last_admitted),
        "Among equal priorities the victim is the last admitted. Admission is not arrival.",
    ),
    (variant(victim=_most_urgent), "The victim is the most urgent request that runs."),
    (
        variant(victim=_latest_arrival),
        "The victim is whoever arrived last, whatever its priority.",
    ),
    (
        variant(base=_Evicting),
        "A running request is preempted for one that only waits. In vLLM nobody loses its blocks "
        "for that: a victim is chosen when a request that runs is short of a block.",
    ),
)
"""Schedulers with one mistake, and what to say to whoever decides like one of them."""

REPLAY = "(To replay it, put it into the cell below your answer: `workload = {...}`.)"
Fields = ("scheduled", "preempted", "running", "waiting", "finished")
WORDS = {
    "scheduled": "who is scheduled with how many tokens",
    "preempted": "who is preempted",
    "running": "who is in RUNNING",
    "waiting": "who is in WAITING",
    "finished": "who finishes",
}


def decisions(make: Callable[[SchedulerConfig], Scheduler], workload: dict[str, Any]) -> list[Any]:
    """What a scheduler of this process decides, step by step."""
    return loop.run(make, workload)["steps"]


@cache
def hidden_workloads() -> list[dict[str, Any]]:
    """Seeded workloads, small ones first, in each of which PRIORITY and FCFS part ways."""
    rng = random.Random("07b")
    found: list[dict[str, Any]] = []
    fcfs = variant(FCFSRequestQueue, last_admitted)
    while len(found) < 60:
        workload = random_workload(rng, 2 + len(found) // 10)
        result = loop.run(Scheduler, workload)
        if result["outcome"] != "finished" or len(result["steps"]) > 120:
            continue
        if not any(step["preempted"] for step in result["steps"]) and len(found) % 3:
            continue
        if result["steps"] != decisions(fcfs, workload):
            found.append(workload)
    return found


@cache
def recorded() -> list[dict[str, Any]]:
    """The recorded workloads of vLLM."""
    with gzip.open(DATA, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def as_workload(trace: dict[str, Any]) -> dict[str, Any]:
    """A recorded workload in the form that the drivers take."""
    config = trace_config(trace["config"]).to_dict()
    return {"config": config, "requests": trace["requests"], "aborts": trace["aborts"]}


def difference(ours: Sequence[Any], theirs: Sequence[Any]) -> tuple[int, str] | None:
    """The first step, and the field, in which two lists of steps differ."""
    for index, (a, b) in enumerate(zip(ours, theirs)):
        for name in Fields:
            one, other = a[name], b[name]
            if name == "waiting":
                one, other = sorted(one), sorted(other)
            if one != other:
                return index, name
    if len(ours) != len(theirs):
        return min(len(ours), len(theirs)), "finished"
    return None


def check_scheduler(student: Student) -> None:
    """Part b: `PriorityScheduler` on hidden workloads and on recorded ones."""
    workloads = hidden_workloads()
    traces = recorded()
    both = workloads + [as_workload(trace) for trace in traces]
    results = call(student, "decide", workloads=both)
    for result in results:
        if result["problem"]:
            raise Failed(f"`PriorityScheduler` must build a scheduler: {result['problem']}.")
    for workload, result in zip(workloads, results):
        expected = decisions(Scheduler, workload)
        found = difference(result["steps"], expected)
        if found is None:
            continue
        step, name = found
        where = (
            f"first in step {step}, in {WORDS[name]}"
            if step < len(result["steps"])
            else f"it comes to no end: the run is {result['outcome']}"
        )
        yours, theirs = (
            json.dumps(steps[step][name]) if step < len(steps) else "no such step"
            for steps in (result["steps"], expected)
        )
        raise Failed(
            f"Your scheduler decides otherwise than PRIORITY on a workload of "
            f"{len(workload['requests'])} requests: {where}.\nYours: {yours}\nPRIORITY: {theirs}\n"
            f"{_which_mistake(workloads, results)} {REPLAY}",
            workload=short(workload),
        )
    for trace, result in zip(traces, results[len(workloads) :]):
        found = difference(result["steps"], trace["steps"])
        if found is not None:
            step, name = found
            raise Failed(
                f"Your scheduler agrees with ours, but not with what vLLM 0.22.1 was recorded to "
                f"do: first in step {step}, in {WORDS[name]}. Do all requests get their place by "
                f"the same key, those that were aborted or preempted too?",
                workload=short(as_workload(trace)),
            )


def _which_mistake(workloads: Sequence[dict[str, Any]], results: Sequence[Any]) -> str:
    """What to say: the mistake with which most of the workloads agree, if nearly all do."""
    best, says = 0, ""
    for make, words in MISTAKES:
        agree = sum(
            difference(result["steps"], decisions(make, workload)) is None
            for workload, result in zip(workloads, results)
        )
        if agree > best:
            best, says = agree, words
    if best >= 0.9 * len(workloads):
        return says
    return (
        "Two things make the policy: the order in which WAITING is served, and whom "
        "`select_victim` gives up. Step through the workload and see which of them parts first."
    )


def short(workload: dict[str, Any]) -> dict[str, Any]:
    """A workload as a message shows it."""
    keep = (
        "policy", "num_gpu_blocks", "block_size", "max_model_len", "max_num_batched_tokens",
        "max_num_seqs", "long_prefill_token_threshold", "enable_prefix_caching",
    )  # fmt: skip
    return loop.brief(workload, keep)


# --- c: a test that can fail ----------------------------------------------------------------------

MUTANTS: tuple[tuple[Callable[[SchedulerConfig], Scheduler], str], ...] = (
    (variant(victim=last_admitted), "gives up the last admitted, as FCFS does"),
    (variant(FCFSRequestQueue), "serves WAITING in the order of arrival, as FCFS does"),
    (variant(victim=_most_urgent), "gives up the most urgent request"),
    (variant(victim=_latest_arrival), "gives up the latest arrival, whatever its priority"),
    (
        variant(victim=_least_urgent_oldest),
        "gives up, of two that are equally little urgent, the one that arrived first",
    ),
    (
        variant(_Fronted),
        "puts a preempted request in front of everybody who waits",
    ),
    (
        variant(lambda: _Keyed(lambda r: (-r.priority, _arrival(r)))),
        "serves the highest number in WAITING first",
    ),
)
"""What a test of PRIORITY must be able to tell from the real thing."""


def _scheduler_class(make: Callable[[SchedulerConfig], Scheduler]) -> type[Scheduler]:
    """A variant in the form that `workloads.run` takes."""

    class Made(Scheduler):
        def __new__(cls, config: SchedulerConfig, **_: Any) -> Any:
            return make(config)

    return Made


def check_test(value: object) -> None:
    """Part c: `scenario`, with the preemption that was asked for, telling PRIORITY from mutants."""
    scenario = read_workload(value, "scenario")
    shows = plain(scenario)
    if scenario.config.get("policy") != "priority":
        raise Failed(
            "The scenario's config must set policy to 'priority': under FCFS no priority is read.",
            workload=shows,
        )
    if scenario.config.get("victim") is not None:
        raise Failed("Leave `victim` out of the config: the policy chooses.", workload=shows)
    if scenario.config.get("preemption_mode", "recompute") != "recompute":
        raise Failed("Leave preemption_mode at 'recompute' here.", workload=shows)
    result = run_to_the_end(scenario, "scenario")
    if not result.num_preemptions:
        raise Failed(
            "Nobody is ever preempted on this workload: the blocks suffice for everybody. Count "
            "the blocks of all who run at once, and give fewer.",
            workload=shows,
        )
    _wanted_preemption(scenario, shows)
    for make, words in MUTANTS:
        other = run(scenario, _scheduler_class(make))
        if [step.visible() | {"WAITING": sorted(step.waiting)} for step in result.steps] == [
            step.visible() | {"WAITING": sorted(step.waiting)} for step in other.steps
        ]:
            raise Failed(
                f"Your test cannot fail where it should: a scheduler that {words} decides the same "
                f"in every step of it. Who would have to run, or to wait, at the moment of a "
                f"preemption, so that the two part ways?",
                workload=shows,
            )


def _wanted_preemption(scenario: Scenario, shows: Any) -> None:
    """Raise unless an urgent latecomer takes blocks from a less urgent request that ran before."""
    urgent: dict[str, tuple[int, int]] = {
        r.request_id: (r.priority, r.arrival_step) for r in scenario.requests
    }
    reasons: list[str] = []
    for step in run(scenario, record=True).scheduler.history.steps:
        for event in step["events"]:
            if event["type"] != "preempted":
                continue
            victim, taker = event["request_id"], event["for_request_id"]
            if victim == taker:
                reasons.append(f"in step {step['step']} {victim} gives itself up")
            elif urgent[taker][0] >= urgent[victim][0]:
                reasons.append(
                    f"in step {step['step']} {taker} takes from {victim}, which is no less urgent"
                )
            elif urgent[taker][1] <= urgent[victim][1]:
                reasons.append(
                    f"in step {step['step']} {taker} takes from {victim}, and did not arrive later"
                )
            else:
                return
    raise Failed(
        "There are preemptions, but none in which an urgent request that arrived later takes the "
        "blocks of a less urgent one that was running: " + "; ".join(reasons[:3]) + ". A victim is "
        "chosen when a running request needs one more block: the latecomer must be admitted first, "
        "and then grow.",
        workload=shows,
    )


PARTS = (
    Part("07a", "Choose the victim", 2, "select_victim", "code", check_victim, CHAPTER),
    Part("07b", "Build the policy", 5, "PriorityScheduler", "code", check_scheduler, CHAPTER),
    Part("07c", "A test that can fail", 3, "scenario", "value", check_test, CHAPTER),
)
