"""Runs a scheduler alone, without a model: decisions do not depend on what the tokens say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import count
from typing import Any

from minivllm.core import Request, Scheduler
from minivllm.runs import observe
from minivllm.runs.guesses import ACCEPTANCE_RATE, Guesses, propose, sampled_tokens
from minivllm.runs.scenario import Scenario
from minivllm.runs.scenarios import SCENARIOS

FIRST_OUTPUT_TOKEN = 1_000_000
"""Every output token has an id of its own from here on: no two outputs share a block."""


def drive(
    scheduler: Scheduler,
    arrivals: Iterable[tuple[int, Request]] = (),
    max_steps: int = 10_000,
    acceptance_rate: float = ACCEPTANCE_RATE,
) -> Scheduler:
    """Run until everyone has finished, for at most `max_steps` steps.

    Args:
        scheduler: to run, with what it holds already; a new one is observed from now on.
        arrivals: (step, request) pairs: the request is added before that step, counted from 0.
        max_steps: where to stop a run that would not end.
        acceptance_rate: of proposed tokens, if the scheduler speculates.

    Returns:
        The scheduler, for its `stats`, its `history` and the requests that are left.
    """
    if scheduler.observer is None and not (scheduler.step or scheduler.requests):
        observe(scheduler)
    pending = sorted(arrivals, key=lambda arrival: arrival[0])
    tokens: defaultdict[tuple[str, int], int] = defaultdict(count(FIRST_OUTPUT_TOKEN).__next__)

    def token_at(request: Request, index: int) -> int:
        return tokens[request.request_id, index]

    guesses = Guesses(token_at, acceptance_rate)
    for _ in range(max_steps):
        while pending and pending[0][0] <= scheduler.step:
            scheduler.add_request(pending.pop(0)[1])
        if not pending and not scheduler.has_unfinished_requests():
            break
        plan = scheduler.schedule()
        sampled = sampled_tokens(scheduler, plan, token_at)
        scheduler.update_from_output(plan, sampled)
        propose(scheduler, plan, sampled, guesses)
    return scheduler


def drive_scenario(scenario: str | Scenario, **knobs: Any) -> Scheduler:
    """Run a stepper's scenario, by its name or as it is, to its end; it keeps its history.

    Args:
        scenario: a name in `SCENARIOS`, or a scenario.
        knobs: fields of `SchedulerConfig` to change first.
    """
    chosen = SCENARIOS[scenario] if isinstance(scenario, str) else scenario
    chosen = chosen.with_knobs(**knobs)
    arrivals = [(r.arrival_step, r.make_request(chosen.seed)) for r in chosen.requests]
    return drive(Scheduler(chosen.scheduler_config()), arrivals)
