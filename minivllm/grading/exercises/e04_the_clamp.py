"""Exercise 4: the clamp of `num_new_tokens`, cap by cap."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

from minivllm.core import Scheduler
from minivllm.grading.exercises.workloads import (
    YOURS,
    Misread,
    Run,
    first_difference,
    judge_cells,
    plain,
    read_workload,
    run,
    run_to_the_end,
    variant,
    workload,
)
from minivllm.grading.part import (
    Failed,
    Part,
    not_answered,
    shown,
    want_dict,
    want_int,
    want_list,
    want_str,
)
from minivllm.grading.sandbox import Student
from minivllm.runs.snapshot import CAPS, ScheduledRow

TITLE = "The clamp"
CHAPTER = "05-chunked-prefill-and-the-budget"

GAP, _, BUDGET, MODEL_LEN = CAPS
MAX_STEP = 200


def rows_of(result: Run, number: int) -> dict[str, ScheduledRow]:
    """What each request got in a step of a recorded run, and what each cap would have allowed."""
    return {row["request_id"]: row for row in result.scheduler.history[number]["scheduled"]}


# --- a: each cap alone ----------------------------------------------------------------------------


def check_binding(value: object) -> None:
    """Part a: `binding`, for each cap a workload, a step and a request that it alone bounds."""
    given = want_dict(value, "binding", keys=CAPS)
    for cap in CAPS:
        _check_cap(cap, given[cap])


def _check_cap(cap: str, value: Any) -> None:
    name = f"binding[{cap!r}]"
    scenario = read_workload(value, name, "step", "request_id")
    number = want_int(value["step"], f"{name}['step']", low=0, high=MAX_STEP)
    ids = [request.request_id for request in scenario.requests]
    id_ = want_str(value["request_id"], f"{name}['request_id']", choices=ids)
    result = run(scenario, record=True, max_steps=number + 1)
    shows = plain(scenario, until_step=number)

    def fail(says: str) -> Failed:
        return Failed(f"{name}: {says}", workload=shows, label=YOURS)

    if result.refused and cap != MODEL_LEN:
        raise fail(f"the door refuses a request. {result.requests[result.refused[0]].error}")
    if id_ in result.refused:
        raise fail(
            f"the front door refuses {id_}: {result.requests[id_].error} This cap is behind that "
            f"door: it can only bind where nobody guards it, and one knob turns the guard off."
        )
    if number >= len(result.steps):
        raise fail(f"step {number} does not exist: the run has {len(result.steps)} steps.")
    row = rows_of(result, number).get(id_)
    if row is None:
        raise fail(f"{id_} gets no token in step {number}.")
    if row["kind"] != "running":
        raise fail(
            f"{id_} is admitted in step {number}. The clamp of this exercise is the one of the "
            f"RUNNING half (scheduler.py:385-398): take a step in which {id_} is running already."
        )
    limits = {key: limit for key, limit in row["limits"].items() if limit is not None}
    tokens = row["num_scheduled_tokens"]
    if tokens < 1:
        raise fail(
            f"{id_} has {-tokens} computed tokens more than a sequence may have in step {number}. "
            f"Let it be admitted with a chunk that stays below max_model_len."
        )
    if cap not in limits:
        raise fail(f"{cap} is switched off in this workload: it bounds nobody.")
    if limits[cap] > tokens:
        raise fail(
            f"{id_} gets {tokens} in step {number}, and {cap} would have allowed more: loosening "
            f"it changes nothing. What bounds here is {_tightest(limits, tokens)}."
        )
    others = {key: limit for key, limit in limits.items() if key != cap}
    if min(others.values()) <= tokens:
        raise fail(
            f"{id_} gets {tokens} in step {number}; {cap} allows no more, but neither does "
            f"{_tightest(others, tokens)}. Loosening {cap} alone changes nothing: it shall bind, "
            f"and nothing else."
        )
    if cap == GAP and tokens == 1:
        raise fail(
            f"{id_} decodes in step {number}: true, but every decode shows that. Show it where "
            f"the gap is larger than one token."
        )


def _tightest(limits: dict[str, int], tokens: int) -> str:
    return " and ".join(key for key, limit in limits.items() if limit <= tokens)


# --- b: predict tokens and caps -------------------------------------------------------------------

RACE = workload(
    {
        "num_gpu_blocks": 100,
        "block_size": 4,
        "max_num_batched_tokens": 24,
        "long_prefill_token_threshold": 10,
        "enable_prefix_caching": False,
    },
    ("r0", 0, 27, 4),
    ("r1", 0, 31, 3),
    ("r2", 1, 13, 3),
)
NUM_STEPS = 5

Cells = dict[tuple[str, int], list[Any] | None]


def grants_of(result: Run) -> Cells:
    """(tokens, cap) of each request in each step; None: it got none."""
    cells: Cells = {}
    for step in range(NUM_STEPS):
        rows = rows_of(result, step) if step < len(result.steps) else {}
        for request in RACE.requests:
            row = rows.get(request.request_id)
            cells[request.request_id, step] = row and [row["num_scheduled_tokens"], row["cap"]]
    return cells


ADMISSION_FORGETS = variant(
    "admission_forgets_the_threshold",
    """
    num_new_tokens = gap
    if 0 < threshold < num_new_tokens:
        num_new_tokens = threshold
    if token_budget < num_new_tokens:
        if not config.enable_chunked_prefill:
    """,
    """
    num_new_tokens = gap
    if token_budget < num_new_tokens:
        if not config.enable_chunked_prefill:
    """,
)
RUNNING_FORGETS = variant(
    "running_forgets_the_threshold",
    """
    gap = request.num_tokens_with_spec - request.num_computed_tokens
    num_new_tokens = gap
    if 0 < threshold < num_new_tokens:
        num_new_tokens = threshold
    """,
    """
    gap = request.num_tokens_with_spec - request.num_computed_tokens
    num_new_tokens = gap
    """,
)


def _misreads(truth: Cells, given: Cells) -> list[Misread]:
    def under(scheduler_class: type[Scheduler] = Scheduler, **knobs: int) -> Cells:
        """A misread run; the caps as given, where the tokens are: it is they that tell."""
        cells = grants_of(run(RACE.with_knobs(**knobs), scheduler_class, record=True))
        for cell, pair in cells.items():
            said = given[cell]
            if pair is not None and said is not None and pair[0] == said[0]:
                cells[cell] = said
        return cells

    other_cap = {
        cell: pair
        for cell, pair in given.items()
        if pair is not None and (real := truth[cell]) is not None and pair[0] == real[0]
    }
    return [
        Misread(
            "The threshold caps one request in one step, newcomers too.", under(ADMISSION_FORGETS)
        ),
        Misread(
            "The threshold holds in every step of a prompt, not in the first alone.",
            under(RUNNING_FORGETS),
        ),
        Misread(
            "There is a cap that each request has for itself, whatever the others do: look at "
            "long_prefill_token_threshold.",
            under(long_prefill_token_threshold=0),
        ),
        Misread(
            "The budget is what is left when the request's turn comes: those before it have "
            "taken theirs.",
            under(max_num_batched_tokens=2048),
        ),
        Misread(
            "The number is right. The cap that binds is the one without which it would be larger.",
            other_cap,
        ),
    ]


def check_grants(value: object) -> None:
    """Part b: `grants`, for each request a list of (tokens, cap) or None."""
    ids = [request.request_id for request in RACE.requests]
    lists = want_dict(value, "grants", keys=ids)
    given: Cells = {}
    for id_ in ids:
        for step, pair in enumerate(want_list(lists[id_], f"grants[{id_!r}]", length=NUM_STEPS)):
            if pair is None:
                given[id_, step] = None
                continue
            where = f"grants[{id_!r}][{step}]"
            tokens, cap = want_list(pair, f"{where} (tokens and cap, or None)", length=2)
            if tokens == 0 and not isinstance(tokens, bool):
                raise Failed(f"{where} is {shown(tuple(pair))}: `None` stands for no tokens.")
            given[id_, step] = [want_int(tokens, where), want_str(cap, where, choices=CAPS)]
    truth = grants_of(run(RACE, record=True))
    given = {cell: given[cell] for cell in truth}
    judge_cells(
        given,
        truth,
        _misreads(truth, given),
        lambda cell: f"tokens and cap of {cell[0]} in step {cell[1]}",
        otherwise=(
            "Walk the clamp for each request in order of service: its gap, the threshold, what is "
            "left of the budget, the room up to max_model_len."
        ),
    )


# --- c: the clamp as a function -------------------------------------------------------------------


def hidden_cases(count: int) -> list[dict[str, Any]]:
    """The clamp's inputs and result, from the RUNNING half of seeded runs."""
    cases: dict[tuple[Any, ...], dict[str, Any]] = {}
    for index in range(count):
        rng = random.Random(f"04c:{index}")
        scenario = workload(
            {
                "num_gpu_blocks": 120,
                "block_size": 4,
                "max_num_batched_tokens": rng.choice([5, 8, 13, 24, 60]),
                "long_prefill_token_threshold": rng.choice([0, 0, 3, 6, 9, 30]),
                "max_model_len": rng.choice([24, 40, 80]),
                "enable_prefix_caching": False,
                "admission_control": False,
            },
            *(
                (f"r{i}", rng.randint(0, 4), rng.randint(1, 60), rng.randint(2, 12))
                for i in range(rng.randint(1, 4))
            ),
        )
        result = run(scenario, record=True, max_steps=30)
        config = scenario.scheduler_config()
        for number in range(len(result.steps)):
            snapshot = result.scheduler.history[number]
            for row in snapshot["scheduled"]:
                if row["kind"] != "running" or row["num_scheduled_tokens"] < 1:
                    continue
                after = snapshot["requests"][row["request_id"]]
                case = {
                    "num_tokens": after["num_tokens"],
                    "num_computed_tokens": after["num_computed_tokens"]
                    - row["num_scheduled_tokens"],
                    "token_budget": row["limits"][BUDGET],
                    "long_prefill_token_threshold": config.long_prefill_token_threshold,
                    "max_model_len": config.max_model_len,
                }
                cases[tuple(case.values())] = {"case": case, "tokens": row["num_scheduled_tokens"]}
            for after in snapshot["requests"].values():
                # Running, with budget left, and nothing granted: the clamp left nothing. Admission
                # does not mind the last position, so a request may stand far beyond it.
                if (
                    after["status"] == "RUNNING"
                    and not after["num_scheduled_tokens"]
                    and snapshot["budget"]["left"] > 0
                ):
                    case = {
                        "num_tokens": after["num_tokens"],
                        "num_computed_tokens": after["num_computed_tokens"],
                        "token_budget": snapshot["budget"]["left"],
                        "long_prefill_token_threshold": config.long_prefill_token_threshold,
                        "max_model_len": config.max_model_len,
                    }
                    cases[tuple(case.values())] = {"case": case, "tokens": 0}
    return sorted(cases.values(), key=lambda item: sum(item["case"].values()))


def check_clamp(student: Student, below_zero: bool = False) -> None:
    """Part c: `clamp`, on the clamps of hidden runs.

    Args:
        below_zero: Leave out those in which the engine's own line comes to less than 0.
    """
    cases = [
        item
        for item in hidden_cases(40)
        if not below_zero or item["case"]["num_computed_tokens"] < item["case"]["max_model_len"]
    ]
    answers = student.call(
        "minivllm.grading.exercises.drivers.d04:clamps", cases=[item["case"] for item in cases]
    )
    for item, answer in zip(cases, answers):
        case, tokens = item["case"], item["tokens"]
        if not_answered(answer):
            raise Failed("clamp returned nothing.", workload=case)
        got = want_int(answer, "what clamp returns")
        if got != tokens:
            raise Failed(_why_not(case, got, tokens), workload={**case, "your clamp": got})


def _why_not(case: dict[str, int], got: int, tokens: int) -> str:
    gap = case["num_tokens"] - case["num_computed_tokens"]
    threshold, budget = case["long_prefill_token_threshold"], case["token_budget"]
    room = case["max_model_len"] - 1 - case["num_computed_tokens"]
    if threshold == 0 and got == 0 and tokens:
        return "clamp gives no tokens at all here. What does a threshold of 0 mean?"
    if got < 0:
        return (
            f"clamp returns {got}: a request cannot get less than no token. Admission does not "
            f"mind the last position: here {case['num_computed_tokens']} tokens are computed, and "
            f"max_model_len is {case['max_model_len']}."
        )
    if got > budget:
        return f"clamp returns {got}, more than what is left of the step's budget, {budget}."
    if 0 < threshold < got:
        return f"clamp returns {got}, more than the threshold of {threshold} allows one request."
    if got > gap:
        return f"clamp returns {got}, and only {gap} tokens are known and not computed."
    if got == room + 1:
        return (
            f"clamp returns {got}: that would compute position max_model_len - 1. A sequence of "
            f"max_model_len tokens is at its end: its last token is never computed."
        )
    if got > room:
        return f"clamp returns {got}: the sequence would outgrow max_model_len."
    if got < tokens:
        return f"clamp returns {got}, and none of the four caps is as low as that here."
    return f"clamp returns {got}, which is not what the scheduler grants."


# --- d: a line changed ----------------------------------------------------------------------------

CHANGED: dict[str, tuple[type[Scheduler], str]] = {
    "A": (
        variant(
            "threshold_zero_is_a_cap",
            """
            gap = request.num_tokens_with_spec - request.num_computed_tokens
            num_new_tokens = gap
            if 0 < threshold < num_new_tokens:
            """,
            """
            gap = request.num_tokens_with_spec - request.num_computed_tokens
            num_new_tokens = gap
            if threshold < num_new_tokens:
            """,
        ),
        "It differs only for a request in RUNNING, under one value of one knob: the default.",
    ),
    "B": (
        variant(
            "budget_of_the_step",
            """
            if token_budget < num_new_tokens:
                num_new_tokens = token_budget
            """,
            """
            if self.config.max_num_batched_tokens < num_new_tokens:
                num_new_tokens = self.config.max_num_batched_tokens
            """,
        ),
        "It differs only where a request in RUNNING wants more than those before it have left.",
    ),
    "C": (
        variant(
            "admission_counts_the_prompt",
            "gap = request.num_tokens - request.num_computed_tokens - num_cached_tokens",
            "gap = request.num_prompt_tokens - request.num_computed_tokens - num_cached_tokens",
        ),
        "It differs only where somebody is admitted who knows more tokens than its prompt has.",
    ),
}
"""Schedulers with one line of the clamp changed, and what to say when nobody sees it."""


def check_changed(value: object) -> None:
    """Part d: `exposing`, for each changed scheduler a workload on which it is seen."""
    given = want_dict(value, "exposing", keys=CHANGED)
    for name, (scheduler_class, hint) in CHANGED.items():
        where = f"exposing[{name!r}]"
        scenario = read_workload(given[name], where)
        real = run_to_the_end(scenario, where)
        if first_difference(real, run(scenario, scheduler_class)) is None:
            raise Failed(
                f"{where}: scheduler {name} does here what the real one does, in each of the "
                f"{len(real.steps)} steps. {hint}",
                workload=plain(scenario),
                label=YOURS,
            )


PARTS = (
    Part("04a", "Each cap alone", 4, "binding", "value", check_binding, CHAPTER),
    Part("04b", "Predict tokens and caps", 3, "grants", "value", check_grants, CHAPTER),
    Part(
        "04c",
        "The clamp as a function",
        3,
        "clamp",
        "code",
        check_clamp,
        CHAPTER,
        # Before the question said "0 where a cap leaves nothing".
        earlier={"b93bfb53f7faad10": partial(check_clamp, below_zero=True)},
    ),
    Part("04d", "One line changed", 4, "exposing", "value", check_changed, CHAPTER),
)
