"""Exercise 8: preemptions, batch size and KV usage, collected from the steps."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minivllm.core import Scheduler, SchedulerOutput
from minivllm.grading.exercises.workloads import Misread, judge_cells, plain, run, workload
from minivllm.grading.part import (
    Failed,
    Part,
    shown,
    want_dict,
    want_int,
    want_list,
    want_number,
)
from minivllm.grading.sandbox import Student
from minivllm.runs.scenario import Scenario, ScenarioRequest

TITLE = "Stats"
CHAPTER = "09-seeing-the-engine"

METRICS = ("num_preemptions", "avg_batch_size", "mean_kv_cache_usage")
WORDS = {
    "num_preemptions": "preemptions so far, each one counted",
    "avg_batch_size": "requests scheduled in a step, averaged over the steps that had any",
    "mean_kv_cache_usage": "share of the blocks in use after schedule(), averaged over all steps",
}


# --- what there is to see in a run ----------------------------------------------------------------


@dataclass
class Seen:
    """One step: all that a collector could look at, right after `schedule()`."""

    batch: int
    running: int
    tokens: int
    preempted: list[str]
    preemptions_of_living: int
    used: int
    blocks: int
    in_tables: int
    computed: int
    block_size: int


def watch(scenario: Scenario) -> tuple[list[Seen], list[dict[str, float]]]:
    """A run on the untouched core: what each step shows, and the core's statistics after it."""
    seen: list[Seen] = []
    stats: list[dict[str, float]] = [dict.fromkeys(METRICS, 0.0)]

    def look(scheduler: Scheduler, output: SchedulerOutput) -> None:
        manager = scheduler.kv_cache_manager
        blocks = scheduler.config.num_gpu_blocks
        living = scheduler.requests.values()
        seen.append(
            Seen(
                batch=len(output.num_scheduled_tokens),
                running=len(scheduler.running),
                tokens=output.total_num_scheduled_tokens,
                preempted=list(output.preempted_req_ids),
                preemptions_of_living=sum(request.num_preemptions for request in living),
                used=blocks - manager.block_pool.get_num_free_blocks(),
                blocks=blocks,
                in_tables=sum(map(len, manager.req_to_blocks.values())),
                computed=sum(request.num_computed_tokens for request in scheduler.running),
                block_size=scheduler.config.block_size,
            )
        )
        stats.append({name: getattr(scheduler.stats, name) for name in METRICS})

    run(scenario, at_step=look)
    return seen, stats


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _used(steps: list[Seen]) -> list[float]:
    return [step.used / step.blocks for step in steps]


MISTAKES: dict[str, list[tuple[Callable[[list[Seen]], float], str]]] = {
    "num_preemptions": [
        (
            lambda steps: len({id_ for step in steps for id_ in step.preempted}),
            "That counts each request once. A request can be preempted again and again, and each "
            "time costs.",
        ),
        (
            lambda steps: sum(bool(step.preempted) for step in steps),
            "That counts the steps that preempted. One step can preempt several requests.",
        ),
        (
            lambda steps: steps[-1].preemptions_of_living if steps else 0,
            "That adds up what the unfinished requests remember. Those that have finished took "
            "their count with them.",
        ),
        (
            lambda steps: len(steps[-1].preempted) if steps else 0,
            "That is the last step alone; the total is wanted.",
        ),
    ],
    "avg_batch_size": [
        (
            lambda steps: _mean([step.batch for step in steps]),
            "That divides by all steps. A step in which nobody is scheduled is no batch.",
        ),
        (
            lambda steps: _mean([step.running for step in steps if step.batch]),
            "That is the length of RUNNING. A running request that gets no token in a step is not "
            "in its batch.",
        ),
        (
            lambda steps: _mean([step.running for step in steps]),
            "That is the length of RUNNING, over all steps. A running request that gets no token "
            "in a step is not in its batch, and a step without a batch does not count.",
        ),
        (
            lambda steps: _mean([step.tokens for step in steps if step.batch]),
            "That counts tokens. The batch size is a number of requests.",
        ),
        (
            lambda steps: steps[-1].batch if steps else 0,
            "That is the last step's batch; the average is wanted.",
        ),
        (
            lambda steps: max((step.batch for step in steps), default=0),
            "That is the largest batch; the average is wanted.",
        ),
    ],
    "mean_kv_cache_usage": [
        (
            lambda steps: _mean([u for u, step in zip(_used(steps), steps) if step.batch]),
            "That leaves out the steps in which nobody is scheduled. The cache is there in those "
            "too: usage is averaged over all steps.",
        ),
        (
            lambda steps: _mean([step.used / (step.blocks + 1) for step in steps]),
            "That divides by one block too many: the null block, id 0, can hold nobody's tokens.",
        ),
        (
            lambda steps: _mean([(step.used + 1) / (step.blocks + 1) for step in steps]),
            "That counts the null block, id 0, as in use. It can hold nobody's tokens.",
        ),
        (
            lambda steps: _mean([step.in_tables / step.blocks for step in steps]),
            "That adds up block tables. A block that two requests share is one block.",
        ),
        (
            lambda steps: _mean([step.used for step in steps]),
            "That is a number of blocks. A share of all blocks is wanted, 0 to 1.",
        ),
        (
            lambda steps: 100 * _mean(_used(steps)),
            "That is in per cent. A share is wanted, 0 to 1.",
        ),
        (
            lambda steps: _mean([1 - u for u in _used(steps)]),
            "That is the share that is free.",
        ),
        (
            lambda steps: _mean([s.computed / (s.blocks * s.block_size) for s in steps]),
            "That is the share of token slots that are filled. A block in use counts whole, "
            "however few tokens it holds.",
        ),
        (lambda steps: _used(steps)[-1] if steps else 0, "That is the last step alone."),
        (lambda steps: max(_used(steps), default=0), "That is the peak; the mean is wanted."),
    ],
}


def same(a: float, b: float) -> bool:
    """Equal but for the order of additions."""
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)


def hint_for(name: str, values: list[float], step: int, seen: list[Seen]) -> str:
    """What to say to a value that is wrong after `step` steps.

    Of the mistakes that give this value, the one that gives most of the others too.
    """
    fitting = []
    for index, (mistake, says) in enumerate(MISTAKES[name]):
        if same(mistake(seen[:step]), values[step]):
            agreement = sum(same(mistake(seen[:n]), values[n]) for n in range(1, len(seen) + 1))
            fitting.append((agreement, -index, says))
    return max(fitting)[-1] if fitting else f"Wanted: {WORDS[name]}."


# --- a: by hand -----------------------------------------------------------------------------------

SHORT = workload(
    {
        "num_gpu_blocks": 8,
        "block_size": 4,
        "max_num_batched_tokens": 16,
        "enable_prefix_caching": False,
    },
    ("r0", 0, 10, 4),
    ("r1", 0, 8, 5),
    ("r2", 1, 6, 3),
    ("r3", 8, 5, 2),
)


def check_by_hand(value: object) -> None:
    """Part a: `by_hand`, each step of a printed run in numbers, and the three totals."""
    seen, stats = watch(SHORT)
    lists = ("batch_size", "blocks_in_use", "preemptions")
    rows = want_dict(value, "by_hand", keys=(*lists, *METRICS[1:]))
    given: dict[Any, Any] = {}
    truth: dict[Any, Any] = {}
    for key in lists:
        items = want_list(rows[key], f"by_hand[{key!r}]", length=len(seen))
        for step, (item, was) in enumerate(zip(items, seen)):
            given[key, step] = want_int(item, f"by_hand[{key!r}][{step}]")
            truth[key, step] = {
                "batch_size": was.batch,
                "blocks_in_use": was.used,
                "preemptions": len(was.preempted),
            }[key]
    cells = {(key, step): None for step in range(len(seen)) for key in lists}
    judge_cells(
        given,
        {cell: truth[cell] for cell in cells},
        [
            Misread(
                "The batch is who gets tokens in the step, not who stands in RUNNING.",
                {("batch_size", step): was.running for step, was in enumerate(seen)},
                anywhere=True,
            ),
            Misread(
                "The batch size counts requests, not their tokens.",
                {("batch_size", step): was.tokens for step, was in enumerate(seen)},
                anywhere=True,
            ),
            Misread(
                "The table shows how many are free.",
                {("blocks_in_use", step): w.blocks - w.used for step, w in enumerate(seen)},
                anywhere=True,
            ),
        ],
        lambda cell: f"{cell[0]} of step {cell[1]}",
        otherwise="The printed line of that step holds all that is needed.",
        shows=plain(SHORT),
    )
    for name in METRICS[1:]:
        number = want_number(rows[name], f"by_hand[{name!r}]")
        if not math.isclose(number, stats[-1][name], rel_tol=0.005, abs_tol=1e-4):
            near = [
                says
                for mistake, says in MISTAKES[name]
                if math.isclose(mistake(seen), number, rel_tol=0.005)
            ]
            raise Failed(
                f"{name} is not {shown(number)}, though your three lists are right. "
                + (near[0] if near else f"Wanted: {WORDS[name]}."),
                workload=plain(SHORT),
            )


# --- b: a collector -------------------------------------------------------------------------------


def hidden_workloads(seed: str, count: int) -> list[Scenario]:
    """Seeded workloads: cramped ones, shared prefixes, pauses, budgets too small for everybody."""
    scenarios = [SHORT]
    for index in range(count):
        rng = random.Random(f"{seed}:{index}")
        shared, cut, urgent = (index % 4 == kind for kind in range(3))
        config = {
            "num_gpu_blocks": rng.randint(11, 14) if cut else rng.randint(8, 12),
            "block_size": 4,
            "max_num_batched_tokens": 64 if cut or urgent else rng.choice([3, 6, 64]),
            "max_num_seqs": rng.choice([3, 8, 8]),
            "long_prefill_token_threshold": 12 if cut else 0,
            "enable_prefix_caching": shared,
            "policy": "priority" if urgent else "fcfs",
        }
        # A long prompt that is cut takes several victims in one step.
        requests = [ScenarioRequest(request_id="long", num_prompt_tokens=40, max_tokens=3)] * cut
        for i in range(rng.randint(2, 6)):
            requests.append(
                ScenarioRequest(
                    request_id=f"r{i}",
                    arrival_step=rng.choice([0, 0, 1, 2, 30]),
                    num_prompt_tokens=rng.randint(9, 14) if shared else rng.randint(1, 9),
                    max_tokens=rng.randint(4, 16),
                    priority=rng.randint(0, 2) if urgent else 0,
                    prefix_group="system" if shared else None,
                    num_prefix_tokens=8 if shared else 0,
                )
            )
        scenarios.append(
            Scenario(name="hidden", title="", question="", config=config, requests=tuple(requests))
        )
    return sorted(scenarios, key=lambda s: (len(s.requests), sum(r.max_tokens for r in s.requests)))


def check_collector(student: Student) -> None:
    """Part b: `Stats`, on hidden workloads, after every step."""
    scenarios = hidden_workloads("08b", 36)
    told = student.call(
        "minivllm.grading.exercises.drivers.d08:collect",
        workloads=[scenario.to_dict() for scenario in scenarios],
    )
    for scenario, rows in zip(scenarios, told):
        _judge_collector(scenario, rows)


def _judge_collector(scenario: Scenario, rows: list[dict[str, Any]]) -> None:
    seen, stats = watch(scenario)
    tokens = [sum(row["tokens"].values()) for row in rows[1:]]
    if tokens != [step.tokens for step in seen]:
        raise Failed(
            "With your collector the run schedules something else than without. A collector looks "
            "on and changes nothing.",
            workload=plain(scenario),
        )
    values = {name: [want_number(row[name], name) for row in rows] for name in METRICS}
    for step in range(len(rows)):
        when = f"after step {step - 1}" if step else "before the first step"
        for name in METRICS:
            number = values[name][step]
            if same(number, stats[step][name]):
                continue
            hint = (
                hint_for(name, values[name], step, seen)
                if step
                else "As long as nothing has happened, all three are 0."
            )
            raise Failed(
                f"{name} is {shown(rows[step][name])} {when}. {hint}",
                workload=plain(scenario, until_step=step),
            )


# --- c: a test of a collector ---------------------------------------------------------------------

RIGHT = {
    "Sums": "keeps three sums",
    "Lists": "keeps every step and adds up in another order, so that the last digits differ",
}
FAULTS = {
    "DistinctRequests": (
        "counts each preempted request once. Is anybody preempted twice in your runs?"
    ),
    "StepsThatPreempt": (
        "counts the steps that preempted. Does a step of your runs preempt two at once?"
    ),
    "LivingOnly": (
        "adds up num_preemptions of the unfinished requests. What does yours expect at the end, "
        "when all have finished?"
    ),
    "AllSteps": (
        "averages the batch size over all steps. Is there a step in your runs in which nobody is "
        "scheduled?"
    ),
    "TokensNotRequests": "counts tokens instead of requests",
    "BusySteps": (
        "averages KV usage over the steps that had a batch. Is there a step in your runs in which "
        "nobody is scheduled?"
    ),
    "NullBlock": "divides by one block too many. Do you check the usage to the digit?",
    "BlockTables": (
        "adds up block tables, and so counts a shared block twice. Do two requests in your runs "
        "share a prefix, with prefix caching on, at the same time?"
    ),
    "Peak": "reports the peak of the KV usage. Do you check the mean?",
    "SharedState": (
        "keeps its sum in the class: a second collector goes on where the first stopped. Do you "
        "use more than one?"
    ),
}
"""Wrong collectors, and what they do."""


def check_test(student: Student) -> None:
    """Part c: `test_stats`, on right collectors and on wrong ones."""
    names = [*RIGHT, *FAULTS]
    ends = dict(
        zip(
            names,
            student.call("minivllm.grading.exercises.drivers.d08:try_test", names=names),
        )
    )
    for name, says in RIGHT.items():
        if ends[name] != "passed":
            raise Failed(
                f"Your test refuses a right collector, one that {says}: {ends[name]}"
                + (". Compare floats with a tolerance." if name == "Lists" else "")
            )
    missed = []
    for name, says in FAULTS.items():
        if ends[name] == "passed":
            missed.append(says)
        elif not ends[name].startswith("AssertionError"):
            raise Failed(
                f"On a wrong collector your test ends with {ends[name]}. A test says what is wrong "
                f"with an assert."
            )
    if missed:
        raise Failed(
            f"{len(missed)} of {len(FAULTS)} wrong collectors pass your test. One of them "
            f"{missed[0]}"
        )


PARTS = (
    Part("08a", "By hand", 3, "by_hand", "value", check_by_hand, CHAPTER),
    Part("08b", "A collector", 5, "Stats", "code", check_collector, CHAPTER),
    Part("08c", "A test that can fail", 4, "test_stats", "code", check_test, CHAPTER),
)
