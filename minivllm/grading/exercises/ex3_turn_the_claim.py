"""Extra exercise X3, for chapter 14: claims about a policy, and the traffic that turns them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minivllm.grading.exercises.workloads import (
    YOURS,
    Run,
    plain,
    read_workload,
    run,
    run_to_the_end,
    scenario_of,
)
from minivllm.grading.part import Failed, Part, want_str
from minivllm.runs.scenario import Scenario

TITLE = "Turn the claim"
CHAPTER = "14-open-problems"

VICTIMS = ("last_admitted", "least_computed")
LATER = 1.5
"""How many times as long the one who pays must take."""


def recomputed(result: Run) -> int:
    """Tokens that a run computed again."""
    return result.scheduler.stats.num_recomputed_tokens


def lifetime(result: Run, request_id: str) -> int:
    """Steps from a request's arrival to its last token, both counted."""
    arrived = next(r.arrival_step for r in result.scenario.requests if r.request_id == request_id)
    return next(s.step for s in result.steps if request_id in s.finished) - arrived + 1


def both(wanted: Mapping[str, Any] | Scenario, **knobs: Any) -> dict[str, Run]:
    """A workload's runs under the two victim policies."""
    scenario = scenario_of(wanted)
    return {victim: run(scenario.with_knobs(victim=victim, **knobs)) for victim in VICTIMS}


def compare_victims(wanted: Mapping[str, Any] | Scenario) -> None:
    """Print what both victim policies make of a workload.

    Args:
        wanted: an answer that holds a workload will do.
    """
    runs = both(wanted)
    names = list(next(iter(runs.values())).requests)
    print("                 steps  preemptions  computed again  steps of each request")
    for victim, result in runs.items():
        if result.outcome != "finished" or result.refused:
            print(f"{victim:15}  the run is {result.outcome}, refused: {result.refused}")
            continue
        own = "  ".join(f"{name} {lifetime(result, name)}" for name in names)
        print(
            f"{victim:15}  {len(result.steps):5}  {result.num_preemptions:11}  "
            f"{recomputed(result):14}  {own}"
        )


def compare_check(wanted: Mapping[str, Any] | Scenario) -> None:
    """Print a workload's run with the whole-prompt check and without."""
    scenario = scenario_of(wanted)
    print("whole-prompt check  steps  preemptions  computed again")
    for checked in (True, False):
        result = run(scenario.with_knobs(reserve_full_prompt=checked))
        print(
            f"{'on' if checked else 'off':18}  {len(result.steps):5}  "
            f"{result.num_preemptions:11}  {recomputed(result):14}"
        )


def _read(value: object, what: str, *others: str, fixed: tuple[str, ...]) -> Scenario:
    """A workload that leaves to the check what it turns."""
    scenario = read_workload(value, what, *others)
    for knob in fixed:
        if knob in scenario.config:
            raise Failed(f"{what}: leave the knob {knob} out. The check turns it both ways.")
    return scenario


def _runs_of(scenario: Scenario, what: str) -> tuple[Run, Run]:
    first, second = (
        run_to_the_end(scenario.with_knobs(victim=victim), f"{what}, with {victim}")
        for victim in VICTIMS
    )
    if not first.num_preemptions or not second.num_preemptions:
        raise Failed(
            f"{what}: nobody is preempted, so there is no victim to choose. Let those who run grow "
            f"out of the cache.",
            workload=plain(scenario),
            label=YOURS,
        )
    return first, second


# --- a: who pays ----------------------------------------------------------------------------------


def check_payer(value: object) -> None:
    """Part a: `who_pays`, a workload where least computed first saves tokens, and who pays."""
    scenario = _read(value, "who_pays", "request", fixed=("victim",))
    names = [request.request_id for request in scenario.requests]
    assert isinstance(value, dict)
    name = want_str(value["request"], "who_pays['request']", choices=names)
    fcfs, least = _runs_of(scenario, "who_pays")
    if recomputed(least) >= recomputed(fcfs):
        raise Failed(
            f"Least computed first should save tokens here: it computes {recomputed(least)} again, "
            f"and last admitted {recomputed(fcfs)}. Let the last admitted one be the one with the "
            f"most to lose.",
            workload=plain(scenario),
            label=YOURS,
        )
    before, after = lifetime(fcfs, name), lifetime(least, name)
    if after < LATER * before:
        raise Failed(
            f"{name} takes {before} steps under last admitted and {after} under least computed "
            f"first, {after / before:.2f} times as many; {LATER} times are asked for. Who has "
            f"computed least, and would not have been the last admitted?",
            workload=plain(scenario),
            label=YOURS,
        )


# --- b: where the claim is false ------------------------------------------------------------------


def check_turned(value: object) -> None:
    """Part b: `turned`, a workload where least computed first computes more again."""
    scenario = _read(value, "turned", fixed=("victim",))
    fcfs, least = _runs_of(scenario, "turned")
    if recomputed(least) > recomputed(fcfs):
        return
    same = recomputed(least) == recomputed(fcfs)
    raise Failed(
        f"Least computed first computes {recomputed(least)} tokens again here, last admitted "
        f"{recomputed(fcfs)}: {'the same' if same else 'the RFC is right about this one'}. One "
        f"preemption is cheaper, so there must be more of them: {least.num_preemptions} and "
        f"{fcfs.num_preemptions} here.",
        workload=plain(scenario),
        label=YOURS,
    )


# --- c: the price of the check --------------------------------------------------------------------


def check_idle(value: object) -> None:
    """Part c: `idle`, a workload that ends sooner without the whole-prompt check, at no cost."""
    scenario = _read(value, "idle", fixed=("reserve_full_prompt",))
    checked = run_to_the_end(scenario, "idle")
    free = run_to_the_end(
        scenario.with_knobs(reserve_full_prompt=False), "idle, without the whole-prompt check"
    )
    for result, words in ((checked, "With"), (free, "Without")):
        if result.num_preemptions:
            raise Failed(
                f"{words} the check somebody is preempted. The check's own price shows where "
                f"nobody is, with it or without it.",
                workload=plain(scenario),
                label=YOURS,
            )
    if len(free.steps) < len(checked.steps):
        return
    waited = any(step.waiting and step.free_blocks for step in checked.steps)
    raise Failed(
        f"With the check the run takes {len(checked.steps)} steps, without it {len(free.steps)}. "
        + (
            "Somebody waits while blocks are free, but beginning sooner does not end the run "
            "sooner: let the one who waits be the last to finish, with a prompt of several chunks."
            if waited
            else "In no step does somebody wait while blocks are free. Let the head of the queue "
            "want more blocks than are free, and its first chunk fewer."
        ),
        workload=plain(scenario),
        label=YOURS,
    )


PARTS = (
    Part("x3a", "Who pays", 4, "who_pays", "value", check_payer, CHAPTER),
    Part("x3b", "Where the claim is false", 4, "turned", "value", check_turned, CHAPTER),
    Part("x3c", "The price of the check", 3, "idle", "value", check_idle, CHAPTER),
)
