"""Exercise 6: why admission stops at the first None, and why RUNNING retries."""

from __future__ import annotations

from typing import Any

from minivllm.core import Scheduler, SchedulerOutput
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
from minivllm.grading.part import Failed, Part, want_dict, want_int, want_str

TITLE = "Stop, or try again"
CHAPTER = "06-preemption"


class PassesOver(Scheduler):
    """Admission that goes on past a head that does not fit, and admits whoever does."""

    def _schedule_waiting(self, output: SchedulerOutput, token_budget: int) -> int:
        passed = []
        token_budget = super()._schedule_waiting(output, token_budget)
        while (
            len(self.waiting) and token_budget > 0 and len(self.running) < self.config.max_num_seqs
        ):
            passed.append(self.waiting.pop_request())  # does not fit: on to the next
            token_budget = super()._schedule_waiting(output, token_budget)
        for request in reversed(passed):
            self.waiting.prepend_request(request)
        return token_budget


class AdmissionPreempts(Scheduler):
    """Admission that does what RUNNING does: it preempts until the head of the queue fits."""

    def _schedule_waiting(self, output: SchedulerOutput, token_budget: int) -> int:
        token_budget = super()._schedule_waiting(output, token_budget)
        while (
            len(self.waiting) and token_budget > 0 and len(self.running) < self.config.max_num_seqs
        ):
            newcomers = output.scheduled_new_reqs + output.scheduled_resumed_reqs
            older = [request for request in self.running if request not in newcomers]
            if not older:
                break
            victim = older[-1]
            head = self.waiting.pop_request()
            self.running.remove(victim)
            if victim.request_id in output.num_scheduled_tokens:
                token_budget += self._unschedule(victim, output)
            self._preempt_request(victim, output)
            self.waiting.prepend_request(head)  # the victim waits behind the one it made room for
            token_budget = super()._schedule_waiting(output, token_budget)
        return token_budget


GIVES_UP = variant("gives_up", "victim = self.select_victim(self.running)", "break")
"""RUNNING without the retry: where blocks are short it does what admission does, it stops."""

ALWAYS_ADMITS = variant("always_admits", "if not output.preempted_req_ids:", "if True:")
"""Admission in a step that preempted."""


# --- a: who is admitted when ----------------------------------------------------------------------

QUEUE = workload(
    {
        "num_gpu_blocks": 12,
        "block_size": 4,
        "max_num_batched_tokens": 64,
        "enable_prefix_caching": False,
    },
    ("r0", 0, 14, 4),
    ("r1", 1, 35, 2),
    ("r2", 1, 10, 9),
    ("r3", 3, 10, 7),
    ("r4", 7, 7, 3),
)
VARIANTS: dict[str, type[Scheduler]] = {"real": Scheduler, "passes_over": PassesOver}

Cells = dict[tuple[str, str], int | None]


def admissions_of(name: str, result: Run) -> Cells:
    """The step in which each request is admitted for the first time."""
    return {(name, id_): result.admitted_at(id_) for id_ in result.requests}


def check_admissions(value: object) -> None:
    """Part a: `admitted`, for both schedulers the step of each admission."""
    both = want_dict(value, "admitted", keys=VARIANTS)
    ids = [request.request_id for request in QUEUE.requests]
    given: Cells = {}
    truth: Cells = {}
    for name, scheduler_class in VARIANTS.items():
        row = want_dict(both[name], f"admitted[{name!r}]", keys=ids)
        for id_ in ids:
            given[name, id_] = want_int(row[id_], f"admitted[{name!r}][{id_!r}]")
        truth |= admissions_of(name, run(QUEUE, scheduler_class))
    arrivals = {r.request_id: r.arrival_step for r in QUEUE.requests}
    other = {"real": "passes_over", "passes_over": "real"}
    small = QUEUE.with_knobs(reserve_full_prompt=False)

    def same(cells: Cells) -> Cells:
        return {(name, id_): cells["x", id_] for name in VARIANTS for id_ in ids}

    judge_cells(
        given,
        truth,
        [
            Misread(
                "Is that the other scheduler? The real one stops at the first that does not fit; "
                "the variant goes on behind it.",
                {(name, id_): truth[other[name], id_] for name, id_ in truth},
                anywhere=True,
            ),
            Misread(
                "Admission does not preempt anybody to make room: it waits.",
                same(admissions_of("x", run(QUEUE, AdmissionPreempts))),
            ),
            Misread(
                "A request that finishes in a step gives its blocks back when the step is over: "
                "they are there in the next one.",
                {cell: (step or 0) - 1 for cell, step in truth.items()},
                anywhere=True,
            ),
            Misread(
                "Everybody arrives and is admitted in one step only where there is room: count the "
                "blocks of all known tokens, rounded up.",
                {(name, id_): arrivals[id_] for name, id_ in truth},
                anywhere=True,
            ),
            Misread(
                "The head asks for room for all its known tokens, not for a chunk of them.",
                {
                    **admissions_of("real", run(small)),
                    **admissions_of("passes_over", run(small, PassesOver)),
                },
            ),
            Misread(
                "A request can be admitted in the step in which it arrives.",
                {cell: (step or 0) + 1 for cell, step in truth.items()},
                anywhere=True,
            ),
        ],
        lambda cell: f"the step in which {cell[1]} is admitted, {cell[0].replace('_', ' ')}",
        otherwise=(
            "Keep a column of free blocks: 12, minus what those in RUNNING hold. A decode takes a "
            "new block when the tokens so far fill those it has."
        ),
    )


# --- b: the head that starves ---------------------------------------------------------------------

MIN_DELAY = 10


def check_starving(value: Any) -> None:
    """Part b: `starving`, a workload on which passing over starves the head of the queue."""
    keys = ("request_id", "admitted_real", "admitted_passes_over")
    scenario = read_workload(value, "starving", *keys)
    ids = [request.request_id for request in scenario.requests]
    id_ = want_str(value["request_id"], "starving['request_id']", choices=ids)
    real = run_to_the_end(scenario, "starving")
    other = run(scenario, PassesOver)
    steps = {"real": real.admitted_at(id_), "passes_over": other.admitted_at(id_)}
    start, late = steps["real"], steps["passes_over"]
    assert start is not None
    arrival = next(r.arrival_step for r in scenario.requests if r.request_id == id_)
    if start == arrival:
        raise Failed(
            f"Under the real scheduler {id_} is admitted in the step in which it arrives: it fits, "
            f"and nobody could pass over it. It must wait for blocks, at the head of the queue.",
            workload=plain(scenario),
            label=YOURS,
        )
    if late is not None and late < start + MIN_DELAY:
        overtook = [
            r.request_id
            for r in scenario.requests
            if r.arrival_step >= arrival
            and r.request_id != id_
            and (other.admitted_at(r.request_id) or 0) < late
        ]
        hint = (
            f"Only {', '.join(overtook)} came past it: each holds the blocks for a while only. To "
            f"starve it, somebody small must always be there before the blocks come together."
            if overtook
            else "Nobody comes past it: who arrives behind it, and fits?"
        )
        raise Failed(
            f"Passing over costs {id_} less than {MIN_DELAY} steps here (admission of the real "
            f"scheduler against the variant's). {hint}",
            workload=plain(scenario),
            label=YOURS,
        )
    for name, true_step in steps.items():
        if true_step is None:
            continue  # not within the steps that the grader runs
        said = want_int(value[f"admitted_{name}"], f"starving['admitted_{name}']", low=0)
        if said != true_step:
            raise Failed(
                f"{id_} starves, but it is not admitted in step {said} "
                f"({'real scheduler' if name == 'real' else 'passing over'}). Steps count from 0; "
                f"blocks that a step's finishers held are there in the next step.",
                workload=plain(scenario),
                label=YOURS,
            )


# --- c: RUNNING without the retry -----------------------------------------------------------------


def check_stuck(value: Any) -> None:
    """Part c: `stuck`, a workload on which RUNNING without the retry stands still, since when."""
    scenario = read_workload(value, "stuck", "stuck_from")
    real = run_to_the_end(scenario, "stuck")
    if not real.num_preemptions:
        raise Failed(
            "Under the real scheduler nobody is preempted: RUNNING is never short of blocks, and "
            "the retry is never needed.",
            workload=plain(scenario),
            label=YOURS,
        )
    other = run(scenario, GIVES_UP)
    if other.outcome != "stuck":
        short = next(step.step for step in real.steps if step.preempted)
        raise Failed(
            f"Without the retry your run comes to its end too, in step {other.steps[-1].step}. "
            f"Where the real one preempts first (step {short}), somebody before it in RUNNING "
            f"still gets on, finishes, and makes room. Who must be the first to be short?",
            workload=plain(scenario),
            label=YOURS,
        )
    last = max(step.step for step in other.steps if step.tokens)
    said = want_int(value["stuck_from"], "stuck['stuck_from']", low=0)
    if said != last + 1:
        raise Failed(
            f"Without the retry your run stands still, but not from step {said} on: "
            + (
                "somebody still gets tokens in it or later."
                if said <= last
                else "it has stood still before."
            )
            + " A request needs a new block when the tokens computed so far fill its blocks.",
            workload=plain(scenario),
            label=YOURS,
        )


# --- d: admission with the retry ------------------------------------------------------------------

MIN_RECOMPUTED = 100


def check_thrash(value: Any) -> None:
    """Part d: `thrash`, a workload on which a preempting admission computes much again."""
    scenario = read_workload(value, "thrash", "first_victim", "first_step")
    real = run_to_the_end(scenario, "thrash")
    lost = real.scheduler.stats.num_recomputed_tokens
    if lost:
        raise Failed(
            f"The real scheduler computes {lost} tokens again itself: make room for those who run, "
            f"so that the waste is the variant's alone.",
            workload=plain(scenario),
            label=YOURS,
        )
    other = run(scenario, AdmissionPreempts)
    first = next((step for step in other.steps if step.preempted), None)
    if first is None:
        raise Failed(
            "Nobody is preempted for a newcomer: everybody fits when it arrives.",
            workload=plain(scenario),
            label=YOURS,
        )
    redone = other.scheduler.stats.num_recomputed_tokens
    if redone < MIN_RECOMPUTED:
        raise Failed(
            f"A preempting admission computes {redone} tokens again on your workload; show at "
            f"least {MIN_RECOMPUTED}. The longer the victim's text, the more it loses; and two "
            f"that do not fit together throw each other out again and again.",
            workload=plain(scenario),
            label=YOURS,
        )
    victim = want_str(value["first_victim"], "thrash['first_victim']")
    number = want_int(value["first_step"], "thrash['first_step']", low=0)
    if number != first.step:
        raise Failed(
            f"The first preemption is not in step {number}. In which step does somebody stand at "
            f"the head of the queue for whom there are too few blocks?",
            workload=plain(scenario),
            label=YOURS,
        )
    if victim != first.preempted[0]:
        raise Failed(
            f"{victim} is not the first victim in step {number}: of those who ran before, the one "
            f"admitted last yields, and the newcomer itself does not.",
            workload=plain(scenario),
            label=YOURS,
        )


# --- e: a line nobody sees ------------------------------------------------------------------------


def check_guard(value: Any) -> None:
    """Part e: `guard`, a workload on which admission in a step that preempted is seen."""
    scenario = read_workload(value, "guard")
    real = run_to_the_end(scenario, "guard")
    shows = plain(scenario)
    if not real.num_preemptions:
        raise Failed("Nobody is preempted in your workload: the line is never asked.",
                     workload=shows, label=YOURS)  # fmt: skip
    if first_difference(real, run(scenario, ALWAYS_ADMITS)) is None:
        step = next(step for step in real.steps if step.preempted)
        config = scenario.scheduler_config()
        hint = (
            "Under FCFS the victim stands at the head of the queue, and asks for room for all its "
            "known tokens: more than it has just given up and lost to somebody else. What would "
            "let the head ask for less, or another one be the head?"
            if config.policy == "fcfs" and config.reserve_full_prompt
            else "The head of the queue does not fit into what is left in any step that preempts."
        )
        raise Failed(
            f"The changed scheduler does here what the real one does. In step {step.step} "
            f"{step.preempted[0]} is preempted, {step.free_blocks} blocks are free afterwards, and "
            f"{step.waiting[0]} is first in the queue. {hint}",
            workload=shows,
            label=YOURS,
        )


PARTS = (
    Part("06a", "Who is admitted when", 4, "admitted", "value", check_admissions, CHAPTER),
    Part("06b", "The head that starves", 4, "starving", "value", check_starving, CHAPTER),
    Part("06c", "RUNNING without the retry", 3, "stuck", "value", check_stuck, CHAPTER),
    Part("06d", "Admission with the retry", 3, "thrash", "value", check_thrash, CHAPTER),
    Part("06e", "A line that nobody sees", 2, "guard", "value", check_guard, CHAPTER),
)
