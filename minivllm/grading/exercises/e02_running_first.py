"""Exercise 2: why RUNNING is scheduled before WAITING is admitted."""

from __future__ import annotations

from typing import Any

from minivllm.core import Scheduler, SchedulerOutput
from minivllm.grading.exercises.e01_two_numbers import DECODES_WAIT, PROMPTS_WAIT
from minivllm.grading.exercises.workloads import (
    YOURS,
    Misread,
    Run,
    judge_cells,
    plain,
    read_workload,
    run,
    run_to_the_end,
    workload,
)
from minivllm.grading.part import Failed, Part, want_dict, want_int, want_list, want_str
from minivllm.runs.scenario import Scenario

TITLE = "RUNNING first"
CHAPTER = "04-one-step-of-the-scheduler"


class WaitingFirst(Scheduler):
    """The scheduler with its two loops in the other order: it admits, then serves RUNNING."""

    def _schedule_running(self, output: SchedulerOutput, token_budget: int) -> int:
        num_old = len(self.running)
        token_budget = super()._schedule_waiting(output, token_budget)
        # The newcomers have their tokens: those who ran before share what is left.
        self.running, newcomers = self.running[:num_old], self.running[num_old:]
        token_budget = super()._schedule_running(output, token_budget)
        self.running += newcomers
        return token_budget

    def _schedule_waiting(self, output: SchedulerOutput, token_budget: int) -> int:
        return token_budget  # done before


ORDERS: dict[str, type[Scheduler]] = {"running_first": Scheduler, "waiting_first": WaitingFirst}


# --- a: one workload, both orders -----------------------------------------------------------------

BOTH = workload(
    {
        "num_gpu_blocks": 64,
        "block_size": 4,
        "max_num_batched_tokens": 10,
        "enable_prefix_caching": False,
    },
    ("r0", 0, 8, 5),
    ("r1", 1, 20, 2),
    ("r2", 2, 12, 2),
)
NUM_STEPS = 6

Cells = dict[tuple[str, str, int], int]


def tokens_of(order: str, result: Run) -> Cells:
    """Tokens of each request in each step, step by step."""
    return {
        (order, request.request_id, step): (
            result.steps[step].tokens.get(request.request_id, 0) if step < len(result.steps) else 0
        )
        for step in range(NUM_STEPS)
        for request in result.scenario.requests
    }


def _misreads(truth: Cells) -> list[Misread]:
    def both(running_first: Run, waiting_first: Run) -> Cells:
        return {
            **tokens_of("running_first", running_first),
            **tokens_of("waiting_first", waiting_first),
        }

    one, other = run(BOTH), run(BOTH, WaitingFirst)
    swapped = {
        (order, id_, step): truth[
            "waiting_first" if order == "running_first" else "running_first", id_, step
        ]
        for order, id_, step in truth
    }
    plenty = BOTH.with_knobs(max_num_batched_tokens=2048)
    decodes_wait, prompts_wait = run(BOTH, DECODES_WAIT), run(BOTH, PROMPTS_WAIT)
    # Who takes waiting-first to go on in mid-prompt ahead of those who decode.
    prompts_first = run(BOTH, _PromptsFirst)
    # Who gives a request a token more than it has, or lets it go one too early.
    longer = {
        (order, id_, step): int(not truth[order, id_, step])
        for order, id_, step in truth
        if step
        and truth[order, id_, step] in (0, 1)
        and truth[order, id_, step - 1]
        and not any(truth[order, id_, later] for later in range(step + 1, NUM_STEPS))
    }
    late = {
        (order, id_, step): truth[order, id_, step - 1] if step else 0 for order, id_, step in truth
    }
    return [
        Misread(
            "This is what the other order does: look again which loop of the step comes first.",
            swapped,
        ),
        Misread(
            "A request that was admitted is in RUNNING from then on, also in the middle of its "
            "prompt. Admitting first does not put it in front of those who ran before it.",
            both(one, prompts_first),
        ),
        Misread(
            "Under running first a decode does not pause for a prompt: whoever is in RUNNING gets "
            "its gap before anybody is admitted.",
            both(decodes_wait, other),
        ),
        Misread(
            "A prompt does not wait until nobody decodes: it gets what the budget has left.",
            both(prompts_wait, prompts_wait),
        ),
        Misread(
            "The budget bounds the whole step: what one request takes is gone for the others.",
            both(run(plenty), run(plenty, WaitingFirst)),
        ),
        Misread("A request can be served in the very step in which it arrives.", late),
        Misread(
            "Count its output tokens: the step that completes the prompt samples the first one, "
            "and after the last one it is gone.",
            longer,
            anywhere=True,
        ),
    ]


class _PromptsFirst(Scheduler):
    """A misreading of waiting first: whoever computes its prompt goes before those who decode."""

    def _schedule_running(self, output: SchedulerOutput, token_budget: int) -> int:
        order = list(self.running)
        decodes = [r for r in order if r.num_computed_tokens >= r.num_prompt_tokens]
        self.running = [r for r in order if r.num_computed_tokens < r.num_prompt_tokens]
        token_budget = super()._schedule_running(output, token_budget)
        token_budget = super()._schedule_waiting(output, token_budget)
        prompts, self.running = self.running, decodes
        token_budget = super()._schedule_running(output, token_budget)
        self.running = [*order, *(r for r in prompts if r not in order)]
        return token_budget

    def _schedule_waiting(self, output: SchedulerOutput, token_budget: int) -> int:
        return token_budget


def check_tokens(value: object) -> None:
    """Part a: `tokens`, for each order a list of `NUM_STEPS` numbers for each request."""
    ids = [request.request_id for request in BOTH.requests]
    orders = want_dict(value, "tokens", keys=ORDERS)
    given: Cells = {}
    for order in ORDERS:
        rows = want_dict(orders[order], f"tokens[{order!r}]", keys=ids)
        for id_ in ids:
            where = f"tokens[{order!r}][{id_!r}]"
            row = want_list(rows[id_], where, length=NUM_STEPS)
            for step in range(NUM_STEPS):
                given[order, id_, step] = want_int(row[step], f"{where}[{step}]")
    truth: Cells = {}
    for order, scheduler_class in ORDERS.items():
        truth |= tokens_of(order, run(BOTH, scheduler_class))
    for order, _, step in truth:
        spent = sum(given[order, id_, step] for id_ in ids)
        budget = BOTH.config["max_num_batched_tokens"]
        if spent > budget:
            raise Failed(
                f"Under {order.replace('_', ' ')} you hand out {spent} tokens in step {step}. The "
                f"budget bounds the whole step: {budget} for all together."
            )
    judge_cells(
        given,
        truth,
        _misreads(truth),
        lambda cell: f"tokens of {cell[1]} in step {cell[2]} under {cell[0].replace('_', ' ')}",
        otherwise=(
            "Go through the step in the order of its loops. RUNNING is in order of admission; "
            "whoever was admitted in an earlier step is in it, prompt finished or not."
        ),
    )


# --- b: a decode that starves ---------------------------------------------------------------------

MIN_GAP = 5


def check_starved(value: Any) -> None:
    """Part b: `starved`, a workload on which admitting first starves a decode, and the latency."""
    scenario = read_workload(value, "starved", "request_id", *(f"gap_{o}" for o in ORDERS))
    ids = [request.request_id for request in scenario.requests]
    id_ = want_str(value["request_id"], "starved['request_id']", choices=ids)
    real = run_to_the_end(scenario, "starved")
    runs = {"running_first": real, "waiting_first": run(scenario, WaitingFirst)}
    for order, result in runs.items():
        if result.num_preemptions:
            raise Failed(
                f"There is a preemption under {order.replace('_', ' ')}. The order alone shall "
                f"make the difference: give the run enough blocks that nobody is preempted.",
                workload=plain(scenario),
                label=YOURS,
            )
    gaps = {order: result.longest_gap(id_) for order, result in runs.items()}
    if gaps["running_first"] is None:
        raise Failed(
            f"{id_} gets a single token: there is no time between two tokens to look at. It must "
            f"decode while the others arrive.",
            workload=plain(scenario),
            label=YOURS,
        )
    if gaps["running_first"] != 1:
        raise Failed(
            f"Under running first {id_} has to wait between two tokens too, so the order is not "
            f"what starves it. With a token for each running request in the budget it would not.",
            workload=plain(scenario),
            label=YOURS,
        )
    gap = gaps["waiting_first"]
    if gap is None or gap < MIN_GAP:
        other = runs["waiting_first"]
        first, last = (other.token_steps(id_)[i] for i in (0, -1))
        admitting = [step for step in other.steps[first + 1 : last + 1] if step.new]
        if not admitting:
            hint = f"Nobody is admitted while {id_} decodes (steps {first + 1} to {last})."
        elif all(id_ in step.sampled for step in admitting):
            hint = (
                "Whoever is admitted leaves tokens of the budget, and one token is all that a "
                "decode needs."
            )
        else:
            hint = (
                "An admitted request is in RUNNING from then on and stands behind those who ran "
                "before: it is the admissions that come first, so each step needs a new one, and "
                "it must leave nothing."
            )
        raise Failed(
            f"Under waiting first the longest time between two tokens of {id_} is below {MIN_GAP} "
            f"steps: that is no starving yet. {hint}",
            workload=plain(scenario),
            label=YOURS,
        )
    for order, true_gap in gaps.items():
        said = want_int(value[f"gap_{order}"], f"starved['gap_{order}']")
        if said != true_gap:
            near = isinstance(true_gap, int) and said == true_gap - 1
            raise Failed(
                f"{id_} is starved, but its longest time between two tokens under "
                f"{order.replace('_', ' ')} is not {said} steps. "
                + (
                    "Count from token to token: tokens in steps 3 and 4 are 1 step apart, not 0."
                    if near
                    else "Take the steps in which it gets a token, and the largest difference of "
                    "two that follow each other."
                ),
                workload=plain(scenario),
                label=YOURS,
            )


# --- c: newcomers that take the blocks ------------------------------------------------------------


def check_evicted(value: Any) -> None:
    """Part c: `displaced`, a workload on which only admitting first preempts, who and when."""
    scenario = read_workload(value, "displaced", "victim", "step")
    real = run_to_the_end(scenario, "displaced")
    if real.num_preemptions:
        step = next(step for step in real.steps if step.preempted)
        raise Failed(
            f"Under running first {step.preempted[0]} is preempted in step {step.step}: then "
            f"blocks are short whatever the order. Under running first nobody may be preempted.",
            workload=plain(scenario),
            label=YOURS,
        )
    other = run(scenario, WaitingFirst)
    first = next((step for step in other.steps if step.preempted), None)
    if first is None:
        raise Failed(_why_nobody_yields(scenario, real), workload=plain(scenario), label=YOURS)
    victim = want_str(value["victim"], "displaced['victim']")
    number = want_int(value["step"], "displaced['step']")
    if number != first.step:
        raise Failed(
            f"Waiting first does preempt somebody, but not first in step {number}. Look for the "
            f"step in which a running request needs a block that a newcomer has just taken.",
            workload=plain(scenario),
            label=YOURS,
        )
    if victim != first.preempted[0]:
        newcomer = victim in first.new
        raise Failed(
            f"{victim} is not the first to be preempted in step {number}. "
            + (
                "It is admitted in this very step: its tokens are planned, and WaitingFirst "
                "takes its victims from those who ran before."
                if newcomer
                else "FCFS: of those who ran before, whoever was admitted last yields."
            ),
            workload=plain(scenario),
            label=YOURS,
        )


def _why_nobody_yields(scenario: Scenario, real: Run) -> str:
    says = "Under waiting first nobody is preempted either. "
    if min(step.free_blocks for step in real.steps) > 0:
        return says + (
            f"In every step at least {min(step.free_blocks for step in real.steps)} blocks stay "
            f"free: make them scarce."
        )
    return says + (
        "A running request must need a new block in the very step in which a newcomer that takes "
        "the last free ones is admitted: a block is needed when the tokens computed so far fill "
        "the blocks held."
    )


PARTS = (
    Part("02a", "One workload, both orders", 4, "tokens", "value", check_tokens, CHAPTER),
    Part("02b", "Starve a decode", 4, "starved", "value", check_starved, CHAPTER),
    Part("02c", "Displace a running request", 2, "displaced", "value", check_evicted, CHAPTER),
)
