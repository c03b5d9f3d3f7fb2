"""Exercise 1: no prefill phase, no decode phase, two numbers on `Request`."""

from __future__ import annotations

import random
from collections.abc import Callable
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
)
from minivllm.grading.sandbox import Student
from minivllm.runs.scenario import Scenario

TITLE = "Two numbers, no phases"
CHAPTER = "01-two-numbers-racing"

RACE = workload(
    {
        "num_gpu_blocks": 64,
        "block_size": 4,
        "max_num_batched_tokens": 12,
        "enable_prefix_caching": False,
    },
    ("A", 0, 20, 4),
    ("B", 1, 15, 3),
    ("C", 2, 6, 3),
)
"""The run whose numbers part a predicts."""

NUM_STEPS = 6

DECODES_WAIT = variant(
    "decodes_wait",
    """
    gap = request.num_tokens_with_spec - request.num_computed_tokens
    num_new_tokens = gap
    """,
    """
    gap = request.num_tokens_with_spec - request.num_computed_tokens
    if request.num_computed_tokens >= request.num_prompt_tokens and any(
        other.num_computed_tokens < other.num_prompt_tokens for other in self.running
    ):
        req_index += 1
        continue
    num_new_tokens = gap
    """,
)
"""Scheduler A: while a running request has prompt tokens to compute, nobody decodes."""

PROMPTS_WAIT = variant(
    "prompts_wait",
    """
    if token_budget <= 0:
        stopped_by = "max_num_batched_tokens"
    """,
    """
    if token_budget <= 0 or any(
        other.num_computed_tokens >= other.num_prompt_tokens for other in self.running
    ):
        stopped_by = "max_num_batched_tokens"
    """,
)
"""Scheduler B: while a running request decodes, nobody is admitted."""


# --- a: the two numbers of three requests ---------------------------------------------------------

Cells = dict[tuple[str, int], list[int] | None]


def numbers_of(result: Run) -> Cells:
    """The two numbers of each request after each step, step by step."""
    return {
        (request.request_id, step): (
            result.steps[step].after.get(request.request_id) if step < len(result.steps) else None
        )
        for step in range(NUM_STEPS)
        for request in result.scenario.requests
    }


def _toy(own_budget: bool = False, late: int = 0, samples_in_chunks: bool = False) -> Cells:
    """What a reader would predict who has one of these ideas of a step."""
    cells: Cells = {}
    numbers: dict[str, list[int] | None] = {}
    for step in range(NUM_STEPS):
        left = RACE.config["max_num_batched_tokens"]
        for request in RACE.requests:
            id_ = request.request_id
            if step == request.arrival_step:
                numbers[id_] = [request.num_prompt_tokens, 0]
            pair = numbers.get(id_)
            if pair is not None and step >= request.arrival_step + late:
                budget = RACE.config["max_num_batched_tokens"] if own_budget else left
                tokens = min(pair[0] - pair[1], budget)
                left -= tokens
                pair = [pair[0], pair[1] + tokens]
                if tokens and (pair[0] == pair[1] or samples_in_chunks):
                    pair[0] += 1
                if pair[0] - request.num_prompt_tokens == request.max_tokens:
                    pair = None
                numbers[id_] = pair
            cells[id_, step] = pair
    return cells


def _each(truth: Cells, change: Callable[[str, int, list[int]], list[int]]) -> Cells:
    return {
        (id_, step): None if pair is None else change(id_, step, pair)
        for (id_, step), pair in truth.items()
    }


def _misreads(truth: Cells, result: Run) -> list[Misread]:
    prompts = {request.request_id: request.num_prompt_tokens for request in RACE.requests}
    steps = result.steps

    def tokens(id_: str, step: int) -> int:
        return steps[step].tokens.get(id_, 0)

    def sampled(id_: str, step: int) -> int:
        return int(id_ in steps[step].sampled)

    absent: Cells = {}
    for request in RACE.requests:
        ended = [request.num_prompt_tokens + request.max_tokens - missing for missing in (0, 1)]
        for step in range(NUM_STEPS):
            if truth[request.request_id, step] is None:
                early = step < request.arrival_step
                absent[request.request_id, step] = (
                    [ended[0] - request.max_tokens, 0] if early else ended
                )

    return [
        Misread(
            "A sampled token is known, not computed: its keys and values come in the step after. "
            "The first number moves when it is sampled, the second one does not.",
            _each(truth, lambda i, s, p: [p[0], p[1] + sampled(i, s)]),
            anywhere=True,
        ),
        Misread(
            "The numbers are asked for after the whole step, so after the sampled token has been "
            "taken too: whoever caught up knows one token more.",
            _each(truth, lambda i, s, p: [p[0] - sampled(i, s), p[1]]),
            anywhere=True,
        ),
        Misread(
            "num_tokens counts every token that is known, the prompt's too, not the output alone.",
            _each(truth, lambda i, s, p: [p[0] - prompts[i], p[1]]),
            anywhere=True,
        ),
        Misread(
            "The second number is what has been computed so far, not the gap that is left.",
            _each(truth, lambda i, s, p: [p[0], p[0] - p[1]]),
            anywhere=True,
        ),
        Misread(
            "The second number is what has been computed so far, in all steps together, not what "
            "this step computes.",
            _each(truth, lambda i, s, p: [p[0], tokens(i, s)]),
            anywhere=True,
        ),
        Misread(
            "Here the order is turned: num_tokens comes first, num_computed_tokens second.",
            _each(truth, lambda i, s, p: [p[1], p[0]]),
            anywhere=True,
        ),
        Misread(
            "The budget is shared: it is what all requests of a step may get together, not each.",
            _toy(own_budget=True),
        ),
        Misread(
            "A step that computes a chunk of a prompt samples nothing: the token after it is known "
            "already. Only a request that catches up gets a token.",
            _toy(samples_in_chunks=True),
        ),
        Misread(
            "A request can be served in the very step in which it arrives, if the budget has "
            "tokens left.",
            _toy(late=1),
            anywhere=True,
        ),
        Misread(
            "A prompt that is longer than what is left of the budget is cut, and goes on in the "
            "next step.",
            numbers_of(run(RACE.with_knobs(max_num_batched_tokens=2048))),
        ),
        Misread(
            "You let decodes pause while a prompt is being computed. No such phase exists: a "
            "request in RUNNING gets its gap, whether that is a chunk of a prompt or one token.",
            numbers_of(run(RACE, DECODES_WAIT)),
        ),
        Misread(
            "You let a prompt wait until nobody decodes any more. No such phase exists: whatever "
            "the budget has left goes to the next gap, a prompt's too.",
            numbers_of(run(RACE, PROMPTS_WAIT)),
        ),
        Misread(
            "A request that has arrived and waits has both numbers: its prompt is known, and "
            "nothing of it is computed. None stands for one that has not arrived, or has finished.",
            {
                cell: None if pair is not None and pair[1] == 0 else pair
                for cell, pair in truth.items()
            },
            anywhere=True,
        ),
        Misread(
            "A request that has its last token is gone by the end of that step: None. One that has "
            "not yet arrived has None too.",
            truth | absent,
            anywhere=True,
        ),
    ]


def check_numbers(value: object) -> None:
    """Part a: `numbers`, a list of `NUM_STEPS` pairs (or None) for each request."""
    ids = [request.request_id for request in RACE.requests]
    rows = want_dict(value, "numbers", keys=ids)
    lists = {id_: want_list(rows[id_], f"numbers[{id_!r}]", length=NUM_STEPS) for id_ in ids}
    given: Cells = {}
    for step in range(NUM_STEPS):
        for id_ in ids:
            pair, where = lists[id_][step], f"numbers[{id_!r}][{step}]"
            if pair is not None:
                pair = want_list(
                    pair, f"{where}, (num_tokens, num_computed_tokens) or None", length=2
                )
                pair = [want_int(number, where) for number in pair]
            given[id_, step] = pair
    result = run(RACE)
    truth = numbers_of(result)
    judge_cells(
        given,
        truth,
        _misreads(truth, result),
        lambda cell: f"(num_tokens, num_computed_tokens) of {cell[0]} after step {cell[1]}",
        otherwise=(
            "Go through the step in order: RUNNING first, each gets min(its gap, what is left of "
            "the budget), then WAITING gets the rest; whoever caught up gets one token."
        ),
    )


# --- b: a step, as a function of nothing but the two numbers --------------------------------------


def hidden_runs(seed: str, count: int) -> list[Scenario]:
    """Seeded workloads; in every second one blocks are short, so that requests are resumed."""
    scenarios = []
    for index in range(count):
        rng = random.Random(f"{seed}:{index}")
        cramped = index % 2 == 1
        config = {
            "num_gpu_blocks": 14 if cramped else 400,
            "block_size": 4,
            "max_num_batched_tokens": rng.randint(24, 48) if cramped else rng.randint(3, 20),
            "enable_prefix_caching": False,
        }
        rows = [
            (f"r{i}", rng.randint(0, 6), rng.randint(1, 12 if cramped else 40), rng.randint(2, 16))
            for i in range(rng.randint(1, 5))
        ]
        scenarios.append(workload(config, *rows))
    return scenarios


def hidden_steps(seed: str, count: int) -> list[dict[str, Any]]:
    """Steps of seeded runs in which tokens alone were scarce: before, budget, after.

    The numbers are listed in the order of service. A step that preempted, or that left somebody
    waiting for want of blocks, is passed over: there the two numbers do not tell all.
    """
    cases = []
    for scenario in hidden_runs(seed, count):
        config = scenario.scheduler_config()
        before: dict[str, list[int]] = {}
        order: list[str] = []
        for step in run(scenario).steps:
            for request in scenario.requests:
                if request.arrival_step == step.step:
                    before[request.request_id] = [request.num_prompt_tokens, 0]
                    order.append(request.request_id)
            spent = sum(step.tokens.values()) == config.max_num_batched_tokens
            if not step.preempted and (not step.waiting or spent) and order:
                after = [
                    [
                        before[id_][0] + (id_ in step.sampled),
                        before[id_][1] + step.tokens.get(id_, 0),
                    ]
                    for id_ in order
                ]
                cases.append(
                    {
                        "requests": [before[id_] for id_ in order],
                        "token_budget": config.max_num_batched_tokens,
                        "after": after,
                    }
                )
            gone = set(step.finished)
            order = [id_ for id_ in [*step.running, *step.waiting] if id_ not in gone]
            before = {id_: list(pair) for id_, pair in step.after.items()}
    return cases


def check_step(student: Student) -> None:
    """Part b: `after_step`, on steps of hidden runs."""
    cases = hidden_steps("01b", 16)
    # The smallest first, so that what fails is easy to read.
    cases.sort(key=lambda case: (len(case["requests"]), sum(map(sum, case["requests"]))))
    answers = student.call(
        "minivllm.grading.exercises.drivers.d01:after_steps",
        cases=[{k: case[k] for k in ("requests", "token_budget")} for case in cases],
    )
    for case, answer in zip(cases, answers):
        _judge_step(case, answer)


def _judge_step(case: dict[str, Any], answer: object) -> None:
    requests, budget, after = case["requests"], case["token_budget"], case["after"]
    shows = {"requests": requests, "token_budget": budget, "your after_step": answer}

    def fail(says: str) -> Failed:
        return Failed(says, workload=shows)

    if not_answered(answer):
        raise fail("after_step returned nothing.")
    if not isinstance(answer, (list, tuple)) or len(answer) != len(requests):
        raise fail(
            f"after_step must return a list with a pair for each of the {len(requests)} requests, "
            f"in their order."
        )
    pairs = []
    for pair in answer:
        numbers = want_list(pair, "each pair that after_step returns", length=2)
        pairs.append([want_int(number, "a number that after_step returns") for number in numbers])
    if pairs == after:
        return
    given = [new[1] - old[1] for old, new in zip(requests, pairs)]
    for (known, computed), (new_known, new_computed), tokens in zip(requests, pairs, given):
        who = f"a request with {known} known and {computed} computed tokens"
        if tokens < 0:
            raise fail(f"{who} has {new_computed} computed ones afterwards: none can be lost here.")
        if new_computed > known:
            raise fail(
                f"{who} has {new_computed} computed ones afterwards. Only what was known before "
                f"the step can be computed in it: a token that the step samples is computed in "
                f"the next one."
            )
        if new_known > known and new_computed < known:
            raise fail(
                f"{who} has {new_computed} computed and {new_known} known ones afterwards: it has "
                f"not caught up, and yet it got a token. In the middle of a prompt nothing is "
                f"sampled."
            )
        if new_known == known and new_computed == known:
            raise fail(
                f"{who} has caught up with {new_computed} computed ones, and got no token: "
                f"whoever catches up knows one token more after the step."
            )
        if new_known not in (known, known + 1):
            raise fail(f"{who} knows {new_known} afterwards: a step samples one token at most.")
    if sum(given) > budget:
        raise fail(
            f"the step computes {sum(given)} tokens with a budget of {budget}: the requests share "
            f"one budget, and what one gets is gone for the next."
        )
    gaps = [known - computed for known, computed in requests]
    for index, (gap, tokens) in enumerate(zip(gaps, given)):
        if tokens < gap and sum(given) < budget:
            raise fail(
                f"request number {index} (gap {gap}) gets {tokens} tokens though "
                f"{budget - sum(given)} of the budget of {budget} are left at the end. A gap is a "
                f"gap: there is no step in which prompts, or decodes, have to wait."
            )
        if tokens < gap and any(given[index + 1 :]):
            raise fail(
                f"request number {index} (gap {gap}) gets {tokens} tokens, and one behind it gets "
                f"some: the requests are served in their order, each takes what it can."
            )
    raise fail("The pairs are not what the engine's step leaves.")


# --- c: three kinds of work in one step -----------------------------------------------------------


def check_mixed(value: Any) -> None:
    """Part c: `mixed`, a workload and a step that decodes, ends a prompt and begins another."""
    scenario = read_workload(value, "mixed", "step")
    number = want_int(value["step"], "mixed['step']")
    result = run_to_the_end(scenario, "mixed")
    if not 0 <= number < len(result.steps):
        raise Failed(
            f"mixed['step'] is {shown(number)}; the run has steps 0 to {len(result.steps) - 1}.",
            workload=plain(scenario),
            label=YOURS,
        )
    step = result.steps[number]
    decodes, ends, begins, whole = [], [], [], []
    for id_, tokens in step.tokens.items():
        prompt = result.requests[id_].num_prompt_tokens
        computed = step.requests[id_]["num_computed_tokens"]
        before = computed - tokens
        earlier = any(id_ in other.tokens for other in result.steps[:number])
        if before >= prompt:
            decodes.append(id_)
        elif computed < prompt:
            begins += [id_] * (not earlier)
        elif earlier:
            ends.append(id_)
        else:
            whole.append(id_)
    missing = []
    if not decodes:
        missing.append("nobody computes an output token (a request that has its prompt behind it)")
    if not ends:
        missing.append("nobody computes the last chunk of a prompt that began in an earlier step")
        if whole:
            missing.append(f"({', '.join(whole)} computes its prompt whole: that is no last chunk)")
    if not begins:
        missing.append("nobody computes the first chunk of a prompt that this step does not finish")
    if missing:
        raise Failed(
            f"Step {number} of your run schedules {step.tokens or 'nobody'}: "
            f"{'; '.join(missing)}. All three share a step when the budget is smaller than the "
            f"gaps, and larger than those in front.",
            workload=plain(scenario, until_step=number),
            label=YOURS,
        )


# --- d: two schedulers with phases ----------------------------------------------------------------

PHASED: dict[str, tuple[type[Scheduler], str]] = {
    "A": (
        DECODES_WAIT,
        "It differs only where somebody could decode in a step in which a request that is in "
        "RUNNING already goes on with its prompt.",
    ),
    "B": (
        PROMPTS_WAIT,
        "It differs only where somebody could be admitted in a step in which a running request "
        "decodes.",
    ),
}


def check_exposed(value: Any) -> None:
    """Part d: `exposed`, a workload on which both schedulers with phases are seen, and when."""
    keys = {name: f"{name}_differs_at" for name in PHASED}
    scenario = read_workload(value, "exposed", *keys.values())
    real = run_to_the_end(scenario, "exposed")
    for name, (scheduler_class, hint) in PHASED.items():
        difference = first_difference(real, run(scenario, scheduler_class))
        if difference is None:
            raise Failed(
                f"Scheduler {name} does on this workload what the real one does, in each of its "
                f"{len(real.steps)} steps. {hint}",
                workload=plain(scenario),
                label=YOURS,
            )
        step = want_int(value[keys[name]], f"exposed[{keys[name]!r}]")
        if step != difference[0]:
            early = step < difference[0]
            raise Failed(
                f"Scheduler {name} is exposed, but not first in step {step}: "
                + (
                    "in that step it still does what the real one does."
                    if early
                    else "it has done something else before."
                )
                + f" Steps are numbered from 0. {hint}",
                workload=plain(scenario),
                label=YOURS,
            )


PARTS = (
    Part("01a", "Predict the two numbers", 3, "numbers", "value", check_numbers, CHAPTER),
    Part("01b", "A step out of two numbers", 3, "after_step", "code", check_step, CHAPTER),
    Part("01c", "Three kinds of work in one step", 2, "mixed", "value", check_mixed, CHAPTER),
    Part("01d", "Expose two schedulers with phases", 2, "exposed", "value", check_exposed, CHAPTER),
)
