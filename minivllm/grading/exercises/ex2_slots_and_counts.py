"""Extra exercise X2, for chapter 3: slots, the free queue, and reference counts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from minivllm.core import Scheduler, SchedulerOutput
from minivllm.core.block_pool import BlockPool
from minivllm.grading.exercises.workloads import Misread, judge_cells, run
from minivllm.grading.part import Failed, Part, want_dict, want_int, want_list
from minivllm.grading.sandbox import Student
from minivllm.runs.scenario import Scenario, ScenarioRequest

TITLE = "Slots, the free queue, and who still needs a block"
CHAPTER = "03-kv-cache-as-pages"


# --- a: from positions to slots and back ----------------------------------------------------------

TABLE = (9, 4, 13, 2)
BLOCK_SIZE = 8
POSITIONS = (0, 7, 8, 21, 30)
SLOT = 37
COMPUTED = (24, 27)
"""Two moments of a request: with so many tokens computed it holds just the blocks it needs."""

QUESTIONS = {
    **{f"slot of {p}": f"the slot of position {p}" for p in POSITIONS},
    "position in 37": f"the position whose token lies in slot {SLOT}",
    "more after 24": "how many tokens fit without a new block, with 24 computed",
    "more after 27": "how many tokens fit without a new block, with 27 computed",
}


def slot_of(position: int) -> int:
    """Where the token at `position` lies."""
    return TABLE[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE


def slots_asked_for() -> dict[str, int]:
    """What part a asks for."""
    return {
        **{f"slot of {p}": slot_of(p) for p in POSITIONS},
        "position in 37": TABLE.index(SLOT // BLOCK_SIZE) * BLOCK_SIZE + SLOT % BLOCK_SIZE,
        "more after 24": -COMPUTED[0] % BLOCK_SIZE,
        "more after 27": -COMPUTED[1] % BLOCK_SIZE,
    }


def check_slots(value: object) -> None:
    """Part a: `slots`, eight numbers."""
    rows = want_dict(value, "slots", keys=QUESTIONS)
    given = {name: want_int(rows[name], f"slots[{name!r}]") for name in QUESTIONS}
    misreads = [
        Misread(
            "That is the block, or the slot at which the block begins. The token lies further in, "
            "by what is left of its position after whole blocks.",
            {f"slot of {p}": TABLE[p // BLOCK_SIZE] * BLOCK_SIZE for p in POSITIONS},
        ),
        Misread(
            "A table gives the number of a block. A block has eight slots: multiply first.",
            {f"slot of {p}": TABLE[p // BLOCK_SIZE] + p % BLOCK_SIZE for p in POSITIONS},
        ),
        Misread(
            "The position counts the request's own tokens, the slot is a place in the whole cache. "
            "The block table leads from one to the other.",
            {f"slot of {p}": p for p in POSITIONS} | {"position in 37": SLOT},
        ),
        Misread(
            "Positions begin at 0, so position p is the token p + 1.",
            {f"slot of {p}": slot_of(max(0, p - 1)) for p in POSITIONS},
        ),
        Misread(
            "Blocks are cut by position: entry p // 8 of the table, not entry p mod 4.",
            {
                f"slot of {p}": TABLE[p % len(TABLE)] * BLOCK_SIZE + p % BLOCK_SIZE
                for p in POSITIONS
            },
        ),
        Misread(
            "That is the place in the block. Which entry of the table is that block?",
            {"position in 37": SLOT % BLOCK_SIZE},
            anywhere=True,
        ),
        Misread(
            "After 24 tokens the third block is full to its last slot, so the next token needs a "
            "new one.",
            {"more after 24": BLOCK_SIZE},
            anywhere=True,
        ),
        Misread(
            "Those are the slots of the last block that hold a token. How many are left?",
            {"more after 27": COMPUTED[1] % BLOCK_SIZE},
            anywhere=True,
        ),
    ]
    judge_cells(
        given,
        slots_asked_for(),
        misreads,
        lambda name: QUESTIONS[name],
        otherwise="Divide the position by the block size: the quotient chooses the entry of the "
        "table, the remainder the slot within that block.",
    )


# --- b: a run's free queue ------------------------------------------------------------------------

NUM_BLOCKS = 9
STEPS = (1, 3, 5, 6)
WATCHED = 2
RUN = Scenario(
    name="slots",
    title="",
    question="",
    config={"num_gpu_blocks": NUM_BLOCKS, "block_size": 4, "max_num_batched_tokens": 32},
    requests=tuple(
        ScenarioRequest(
            request_id=id_,
            arrival_step=step,
            num_prompt_tokens=prompt,
            max_tokens=output,
            prefix_group="same",
            num_prefix_tokens=8,
        )
        for id_, step, prompt, output in (("r0", 0, 10, 3), ("r1", 1, 9, 5), ("r2", 6, 14, 4))
    ),
)

Cells = dict[tuple[str, int], Any]


def pool_of(steps: Sequence[int] = STEPS) -> Cells:
    """The free queue and the watched block's count in some steps of the run, as planned."""
    cells: Cells = {}

    def look(scheduler: Scheduler, output: SchedulerOutput) -> None:
        if output.step in steps:
            pool = scheduler.kv_cache_manager.block_pool
            queue = pool.free_block_queue.get_all_free_blocks()
            cells["queue", output.step] = [block.block_id for block in queue]
            cells["count", output.step] = pool.blocks[WATCHED].ref_cnt

    run(RUN, at_step=look)
    return cells


QUEUE_MISREADS: tuple[tuple[str, dict[int, list[int]], bool], ...] = (
    (
        "A request's blocks come back in reverse: its last block first.",
        {6: [8, 9, 3, 4, 5]},
        True,
    ),
    (
        "Blocks that come back go to the end of the queue; new ones are taken from its front.",
        {3: [3, 5, 6, 7, 8, 9], 5: [5, 6, 7, 8, 9]},
        False,
    ),
    (
        "A block comes back when no table holds it any more. r1 still holds blocks 1 and 2.",
        {3: [5, 6, 7, 8, 9, 3, 2, 1], 5: [6, 7, 8, 9, 3, 2, 1]},
        False,
    ),
    (
        "r0 has its third token after step 2, and its blocks come back then.",
        {3: [5, 6, 7, 8, 9], 5: [6, 7, 8, 9]},
        False,
    ),
    (
        "r1 begins with the same 8 tokens as r0: two full blocks are shared, and it takes only one "
        "of its own.",
        {1: [7, 8, 9]},
        True,
    ),
    (
        "r1 has 13 tokens computed in step 5, and 13 tokens need a fourth block.",
        {5: [5, 6, 7, 8, 9, 3]},
        True,
    ),
    (
        "A free block is not an empty one. r2 begins with the tokens that lie in blocks 1 and 2, "
        "and takes these two back, out of the middle of the queue.",
        {6: [3, 5, 4, 2, 1]},
        True,
    ),
    (
        "Blocks that are taken back leave the queue: they are not free any more.",
        {6: [8, 9, 3, 5, 4, 2, 1]},
        True,
    ),
    (
        "r2 has 14 tokens; 8 of them lie in the two blocks that it takes back. How many blocks do "
        "the other 6 need?",
        {6: [7, 8, 9, 3, 5, 4]},
        True,
    ),
)


def check_pool(value: object) -> None:
    """Part b: `pool`, for each of `STEPS` the free queue and the count of block 2."""
    rows = want_dict(value, "pool", keys=[str(step) for step in STEPS])
    given: Cells = {}
    for step in STEPS:
        where = f"pool[{step}]"
        queue, count = want_list(rows[str(step)], f"{where} (free queue, ref_cnt of 2)", length=2)
        blocks = want_list(queue, f"{where}[0], the free queue", high=NUM_BLOCKS)
        given["queue", step] = [
            want_int(block, f"{where}[0]", low=1, high=NUM_BLOCKS) for block in blocks
        ]
        given["count", step] = want_int(count, f"{where}[1], the ref_cnt of block {WATCHED}")
    truth = pool_of()
    misreads = [
        Misread(says, {("queue", step): queue for step, queue in queues.items()}, anywhere)
        for says, queues, anywhere in QUEUE_MISREADS
    ]
    misreads += [
        Misread(
            "The count says in how many tables the block stands: r0's and r1's.",
            {("count", 1): 1},
            anywhere=True,
        ),
        Misread(
            "When r0 ends, the block leaves r0's table, and r1's still holds it.",
            {("count", 3): 2, ("count", 5): 2},
        ),
        Misread(
            "r1 still holds the block: it is not free.", {("count", 3): 0, ("count", 5): 0}, True
        ),
        Misread(
            "r1 has ended, and r2 has taken the block back: one table holds it.",
            {("count", 6): 2},
            True,
        ),
        Misread(
            "A block that is taken back is in use again: its count is not 0.",
            {("count", 6): 0},
            True,
        ),
    ]
    judge_cells(
        given,
        truth,
        misreads,
        lambda cell: (
            f"the free queue in step {cell[1]}"
            if cell[0] == "queue"
            else f"the ref_cnt of block {WATCHED} in step {cell[1]}"
        ),
        otherwise="Write down the tables of those who run, step by step: who takes a block from "
        "the front of the queue, who ends and gives back, and which blocks are shared.",
    )


# --- c: the pool itself ---------------------------------------------------------------------------

Call = tuple[str, Any]


def reference(num_blocks: int, calls: Sequence[Call]) -> list[dict[str, Any]]:
    """What the core's pool has after each call."""
    pool = BlockPool(num_blocks + 1, enable_caching=True)
    states = []
    for name, argument in calls:
        returned: Any = None
        if name == "get_new_blocks":
            try:
                returned = [block.block_id for block in pool.get_new_blocks(argument)]
            except ValueError:
                returned = "ValueError"
        else:
            getattr(pool, name)([pool.blocks[block_id] for block_id in argument])
        queue = pool.free_block_queue.get_all_free_blocks()
        states.append(
            {
                "returned": returned,
                "free_queue": [block.block_id for block in queue],
                "ref_cnt": [block.ref_cnt for block in pool.blocks[1:]],
            }
        )
    return states


def hidden_calls() -> list[tuple[int, list[Call]]]:
    """Pools and calls that a scheduler could make, short ones first."""
    rng = random.Random("x2c")
    found: list[tuple[int, list[Call]]] = []
    for length in range(1, 13):
        for _ in range(8):
            num_blocks = rng.randint(3, 6)
            calls: list[Call] = []
            tables: list[list[int]] = []
            for _ in range(length):
                state = reference(num_blocks, calls)[-1] if calls else {"ref_cnt": [0] * num_blocks}
                num_free = state["ref_cnt"].count(0)
                kind = rng.choice(("get_new_blocks", "touch", "free_blocks"))
                if kind == "free_blocks" and tables:
                    table = tables.pop(rng.randrange(len(tables)))
                    calls.append((kind, table[::-1]))
                elif kind == "touch" and calls:
                    shared = rng.sample(range(1, num_blocks + 1), rng.randint(1, 2))
                    tables.append(shared)
                    calls.append((kind, shared))
                else:
                    wanted = rng.randint(0, num_free + (rng.random() < 0.3))
                    calls.append(("get_new_blocks", wanted))
                    got = reference(num_blocks, calls)[-1]["returned"]
                    if got != "ValueError" and got:
                        tables.append(got)
            found.append((num_blocks, calls))
    return found


def check_code(student: Student) -> None:
    """Part c: the class `Pool`, on calls that the notebook does not show."""
    cases = hidden_calls()
    told = student.call(
        "minivllm.grading.exercises.drivers.dx2:play",
        cases=[{"num_blocks": num_blocks, "calls": calls} for num_blocks, calls in cases],
    )
    worst: tuple[int, str, dict[str, Any]] | None = None
    for (num_blocks, calls), states in zip(cases, told, strict=True):
        for number, (theirs, ours) in enumerate(zip(states, reference(num_blocks, calls))):
            differing = [name for name in ours if theirs.get(name) != ours[name]]
            if not differing:
                continue
            if worst is None or number < worst[0]:
                shows = {"num_blocks": num_blocks, "calls": [list(c) for c in calls[: number + 1]]}
                worst = number, _words(calls[number], differing[0], theirs, ours), shows
            break
    if worst:
        raise Failed(worst[1], workload=worst[2])


def _words(call: Call, what: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    name, argument = call
    called = f"{name}({argument})"
    noun = {
        "returned": f"{called} should return",
        "free_queue": f"After {called} the free queue should be",
        "ref_cnt": f"After {called} the ref_cnt of blocks 1, 2, ... should be",
    }[what]
    if ours["returned"] == "ValueError":
        hint = "More blocks are asked for than are free: raise ValueError, and change nothing."
    elif name == "get_new_blocks":
        hint = "New blocks come from the front of the free queue, and each has one owner."
    elif name == "touch":
        hint = "One owner more; a block that was free leaves the queue, wherever it stands in it."
    else:
        hint = (
            "One owner less; those without an owner go to the end of the queue, in the order given."
        )
    if theirs.get("problem"):
        return f"At the last call below, {called}, {theirs['problem']}. {hint}"
    expected = "a ValueError" if ours[what] == "ValueError" else repr(ours[what])
    return f"{noun} {expected}; yours: {theirs.get(what)!r}. {hint}"


PARTS = (
    Part("x2a", "Positions and slots", 4, "slots", "value", check_slots, CHAPTER),
    Part("x2b", "The free queue of a run", 4, "pool", "value", check_pool, CHAPTER),
    Part("x2c", "The pool as a class", 4, "Pool", "code", check_code, CHAPTER),
)
