"""Exercise 3: the three conditions that must hold to admit a waiting request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minivllm.core import Scheduler, SchedulerOutput
from minivllm.grading.exercises.workloads import (
    YOURS,
    Misread,
    Run,
    judge_cells,
    plain,
    read_workload,
    run,
    run_to_the_end,
    scenario_of,
    variant,
    workload,
)
from minivllm.grading.part import Failed, Part, shown, want_int, want_list, want_str
from minivllm.runs.scenario import Scenario

TITLE = "Three conditions"
CHAPTER = "04-one-step-of-the-scheduler"

CONDITIONS = {
    "tokens": "a token left in the budget",
    "seats": "a seat in the batch (max_num_seqs)",
    "blocks": "the blocks that the head of the queue asks for",
}


# --- how the three conditions stand ---------------------------------------------------------------


@dataclass
class Door:
    """Admission in one step: who stands first in the queue when it ends, and what holds for it."""

    head: str | None
    preempted: list[str]
    holds: dict[str, bool]
    tokens_left: int
    num_running: int
    blocks_needed: int
    blocks_free: int

    def told(self) -> str:
        """The three numbers, for a message."""
        return (
            f"tokens left of the budget: {self.tokens_left}; running: {self.num_running}; "
            f"blocks that {self.head} asks for: {self.blocks_needed}, free: {self.blocks_free}"
        )


def door_at(wanted: Mapping[str, Any] | Scenario, number: int) -> tuple[Run, Door | None]:
    """Run a workload, and look at admission in step `number`; None if the run has no such step."""
    scenario = scenario_of(wanted)
    doors: list[Door] = []

    def look(scheduler: Scheduler, output: SchedulerOutput) -> None:
        if output.step == number:
            doors.append(_door(scheduler, output))

    result = run(scenario, at_step=look)
    return result, doors[0] if doors else None


def _door(scheduler: Scheduler, output: SchedulerOutput) -> Door:
    config, manager = scheduler.config, scheduler.kv_cache_manager
    tokens_left = config.max_num_batched_tokens - output.total_num_scheduled_tokens
    free = manager.block_pool.get_num_free_blocks()
    door = Door(None, output.preempted_req_ids, {}, tokens_left, len(scheduler.running), 0, free)
    if not len(scheduler.waiting):
        return door
    head = scheduler.waiting.peek_request()
    cached, num_cached_tokens = manager.get_computed_blocks(head)
    wants = gap = head.num_tokens - num_cached_tokens
    if config.long_prefill_token_threshold:
        wants = min(wants, config.long_prefill_token_threshold)
    chunk = min(wants, tokens_left or config.max_num_batched_tokens)
    # What allocate_slots would ask for, were it reached.
    door.blocks_needed = manager.get_num_blocks_to_allocate(
        head, max(1, min(chunk, gap)), cached, config.reserve_full_prompt
    )
    door.head = head.request_id
    whole = config.enable_chunked_prefill or wants <= tokens_left
    door.holds = {
        "tokens": tokens_left > 0 and whole,
        "seats": len(scheduler.running) < config.max_num_seqs,
        "blocks": door.blocks_needed <= free,
    }
    return door


def check_fails(name: str, value: Any, condition: str) -> None:
    """A workload and a step in which `condition` fails for the head of the queue, and only it."""
    scenario = read_workload(value, name, "step")
    number = want_int(value["step"], f"{name}['step']")
    run_to_the_end(scenario, name)
    result, door = door_at(scenario, number)
    shows = plain(scenario, until_step=number)
    if door is None:
        raise Failed(
            f"{name}['step'] is {shown(number)}; the run has steps 0 to {len(result.steps) - 1}.",
            workload=shows,
            label=YOURS,
        )
    if door.head is None:
        step = result.steps[number]
        admitted = ", ".join(step.new + step.resumed)
        raise Failed(
            f"In step {number} nobody is left waiting"
            + (f": {admitted} is admitted, with {step.tokens} scheduled." if admitted else ".")
            + " A prompt that is longer than what is left of the budget is admitted all the same, "
            "with a first chunk." * (condition == "tokens"),
            workload=shows,
            label=YOURS,
        )
    if door.preempted:
        raise Failed(
            f"In step {number} {', '.join(door.preempted)} is preempted. A step that preempts does "
            f"not get as far as the three conditions: it admits nobody, whatever they say.",
            workload=shows,
            label=YOURS,
        )
    failing = [key for key, holds in door.holds.items() if not holds]
    words = [CONDITIONS[key] for key in failing]
    if failing == [condition]:
        return
    if condition not in failing:
        raise Failed(
            f"In step {number} {door.head} is not kept out for want of {CONDITIONS[condition]}, "
            f"but of {' and of '.join(words)}: {door.told()}.",
            workload=shows,
            label=YOURS,
        )
    raise Failed(
        f"In step {number} more than one condition fails: {' and '.join(words)} "
        f"({door.told()}). One shall fail, and the other two hold.",
        workload=shows,
        label=YOURS,
    )


def check_tokens(value: object) -> None:
    """Part a: no token is left in the budget; a seat and the blocks would be there."""
    check_fails("no_tokens", value, "tokens")


def check_seats(value: object) -> None:
    """Part b: no seat in the batch; tokens and blocks would be there."""
    check_fails("no_seats", value, "seats")


def check_blocks(value: object) -> None:
    """Part c: the blocks are short; tokens and a seat would be there."""
    check_fails("no_blocks", value, "blocks")


# --- d: a day at the door -------------------------------------------------------------------------

DAY = workload(
    {
        "num_gpu_blocks": 11,
        "block_size": 4,
        "max_num_batched_tokens": 16,
        "max_num_seqs": 3,
        "enable_prefix_caching": False,
    },
    ("r0", 0, 18, 2),
    ("r1", 0, 9, 2),
    ("r2", 1, 13, 6),
    ("r3", 1, 5, 2),
    ("r4", 2, 6, 5),
    ("r5", 5, 9, 6),
)
NUM_STEPS = 8
REASONS = (*CONDITIONS, "queue empty")

Cells = dict[tuple[str, int], Any]


def day_of(result: Run) -> Cells:
    """For each step who is admitted, and which condition ends admission."""
    cells: Cells = {}
    for number in range(NUM_STEPS):
        step = result.steps[number]
        cells["admitted", number] = [*step.new, *step.resumed]
        cells["ended by", number] = _ended_by(result.scenario, number)
    return cells


def _ended_by(scenario: Scenario, number: int) -> str:
    _, door = door_at(scenario, number)
    assert door is not None
    if door.head is None:
        return "queue empty"
    return next(name for name, holds in door.holds.items() if not holds)


NO_RESERVATION = DAY.with_knobs(reserve_full_prompt=False)
PASSES_OVER = variant(
    "passes_over_the_head",
    """
            if manager.allocate_slots(*wanted, num_reserved_blocks=reserve) is None:
                num_blocks_needed = manager.get_num_blocks_to_allocate(*wanted)
                fits = num_blocks_needed <= manager.block_pool.get_num_free_blocks()
                stopped_by = "watermark" if fits else "num_gpu_blocks"
                break

            self.waiting.pop_request()
    """,
    """
            for request in list(self.waiting):
                num_new_tokens = min(request.num_tokens, token_budget)
                wanted = (request, num_new_tokens, [], config.reserve_full_prompt)
                if manager.allocate_slots(*wanted) is not None:
                    break
            else:
                break
            self.waiting.remove_requests([request])
    """,
)
"""Admission that takes the first in the queue that fits, not the head."""


def _misreads(truth: Cells, run_of_day: Run) -> list[Misread]:
    def admitted(result: Run) -> Cells:
        steps = result.steps[:NUM_STEPS]
        return {("admitted", step.step): [*step.new, *step.resumed] for step in steps}

    whole = {**DAY.config, "enable_chunked_prefill": False}
    return [
        Misread(
            "The head asks for room for all its known tokens (reserve_full_prompt), not for the "
            "chunk that it would get in this step.",
            admitted(run(NO_RESERVATION)),
        ),
        Misread(
            "Nobody overtakes the head of the queue: where it does not fit, admission ends.",
            admitted(run(DAY, PASSES_OVER)),
        ),
        Misread(
            "A prompt need not fit into the budget: it is admitted with a first chunk.",
            admitted(run(workload(whole, *_rows()))),
        ),
        Misread(
            "max_num_seqs bounds how many run at once.",
            admitted(run(DAY.with_knobs(max_num_seqs=64))),
        ),
        Misread(
            "What the requests of a step compute adds up to max_num_batched_tokens at most, "
            "RUNNING's tokens counted in.",
            admitted(run(DAY.with_knobs(max_num_batched_tokens=2048))),
        ),
        Misread(
            "A finished request gives its seat and its blocks back, and the next step can use "
            "them.",
            {("admitted", step): [] for step in range(NUM_STEPS)},
        ),
        Misread(
            "A request finishes in the update, when the step has run: what it gives back can be "
            "used in the next step, not in its own.",
            {
                ("admitted", step): truth["admitted", step + 1]
                for step in range(NUM_STEPS - 1)
                if run_of_day.steps[step].finished
            },
            anywhere=True,
        ),
        Misread(
            "The queue is empty only when nobody waits at the end of the step.",
            {
                ("ended by", step): "queue empty"
                for step in range(NUM_STEPS)
                if truth["ended by", step] != "queue empty"
            },
            anywhere=True,
        ),
    ]


def _rows() -> list[tuple[str, int, int, int]]:
    return [(r.request_id, r.arrival_step, r.num_prompt_tokens, r.max_tokens) for r in DAY.requests]


def check_day(value: object) -> None:
    """Part d: `day`, for each step the admitted ids and what ended admission."""
    rows = want_list(value, "day", length=NUM_STEPS)
    ids = [request.request_id for request in DAY.requests]
    given: Cells = {}
    for step, row in enumerate(rows):
        admitted, reason = want_list(row, f"day[{step}] (who is admitted, what ends it)", length=2)
        names = [] if admitted is None else want_list(admitted, f"day[{step}][0]", high=len(ids))
        given["admitted", step] = [want_str(id_, f"day[{step}][0]", choices=ids) for id_ in names]
        given["ended by", step] = want_str(reason, f"day[{step}][1]", choices=REASONS)
    result = run(DAY)
    truth = day_of(result)
    judge_cells(
        given,
        truth,
        _misreads(truth, result),
        lambda cell: (
            f"who is admitted in step {cell[1]}"
            if cell[0] == "admitted"
            else f"what ends admission in step {cell[1]}"
        ),
        otherwise=(
            "Serve RUNNING first, then ask for the head of the queue: is a token left, a seat, "
            "and are there blocks for all its known tokens?"
        ),
    )


PARTS = (
    Part("03a", "Only tokens are short", 2, "no_tokens", "value", check_tokens, CHAPTER),
    Part("03b", "Only seats are short", 2, "no_seats", "value", check_seats, CHAPTER),
    Part("03c", "Only blocks are short", 2, "no_blocks", "value", check_blocks, CHAPTER),
    Part("03d", "A day at the door", 4, "day", "value", check_day, CHAPTER),
)
