"""What the exercises share: a workload that somebody wrote, run on the scheduler or on a variant.

A workload is what a stepper takes, as plain data: the knobs and who arrives when.

    {"config": {"num_gpu_blocks": 16, "block_size": 4},
     "requests": [
         {"request_id": "r0", "arrival_step": 0, "num_prompt_tokens": 10, "max_tokens": 4}]}

A variant is the scheduler with a few lines changed: a subclass, or `variant(...)`, which replaces
lines of the scheduler's source and refuses if they are not there.
"""

from __future__ import annotations

import sys
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import minivllm.core.scheduler as core
from minivllm.core import Request, Scheduler, SchedulerOutput
from minivllm.grading.part import Failed, shown, want_dict
from minivllm.runs import observe
from minivllm.runs.guesses import Guesses, propose, sampled_tokens
from minivllm.runs.scenario import (
    Scenario,
    ScenarioError,
    ScenarioRequest,
    token_at,
)

MAX_REQUESTS = 100
MAX_TOKENS = 40_000
"""Prompt and output tokens of all requests."""
MAX_ARRIVAL_STEP = 500
KEYS = ("config", "requests")
YOURS = "Your workload"
"""How a message calls a workload that the student built."""
MAX_STEPS = 800
"""A run that is longer than this counts as endless."""


# --- reading a workload -------------------------------------------------------------------------


def read_workload(value: object, what: str, *others: str) -> Scenario:
    """A checked workload out of `{"config": ..., "requests": ...}` and the keys in `others`.

    Raises:
        Failed: saying what is not well-formed, all of it.
    """
    given = want_dict(value, what, keys=("config", "requests", *others))
    try:
        scenario = Scenario.from_dict({"version": 1, **{k: given[k] for k in given if k in KEYS}})
        config = scenario.scheduler_config()
    except ScenarioError as error:
        raise Failed(f"{what} cannot be run: {error}.") from None
    except (TypeError, ValueError) as error:
        raise Failed(f"{what} has a knob that cannot be: {error}.") from None
    requests = scenario.requests
    if not requests:
        raise Failed(f"{what} is not answered yet: it has no request, so nothing would happen.")
    problems = (
        (len(requests), MAX_REQUESTS, "requests"),
        (sum(r.num_prompt_tokens + r.max_tokens for r in requests), MAX_TOKENS, "tokens in all"),
        (max(r.arrival_step for r in requests), MAX_ARRIVAL_STEP, "as the latest arrival_step"),
    )
    for number, limit, noun in problems:
        if number > limit:
            raise Failed(
                f"{what} has {number} {noun}; the grader takes {limit} at most. A small workload "
                f"shows the same."
            )
    if config.keep_upstream_bugs:
        raise Failed(f"{what}: leave keep_upstream_bugs alone here.")
    return scenario


def workload(config: Mapping[str, Any], *requests: tuple[str, int, int, int]) -> Scenario:
    """A scenario of the exercises' own, from (id, arrival step, prompt tokens, output tokens)."""
    return Scenario(
        name="workload",
        title="",
        question="",
        config=dict(config),
        requests=tuple(
            ScenarioRequest(
                request_id=id_, arrival_step=step, num_prompt_tokens=prompt, max_tokens=output
            )
            for id_, step, prompt, output in requests
        ),
    )


def plain(scenario: Scenario, until_step: int | None = None) -> dict[str, Any]:
    """A scenario as a workload: what a failing message shows, without who arrives later."""
    return {
        "config": dict(scenario.config),
        "requests": [
            request.to_dict()
            for request in scenario.requests
            if until_step is None or request.arrival_step <= until_step
        ],
    }


# --- running it ---------------------------------------------------------------------------------


@dataclass
class Step:
    """One step of a run: what was decided, and how everybody stood right after `schedule()`."""

    step: int
    tokens: dict[str, int]
    """Who was scheduled, with how many tokens."""
    new: list[str]
    resumed: list[str]
    preempted: list[str]
    running: list[str]
    waiting: list[str]
    free_blocks: int
    requests: dict[str, dict[str, Any]]
    """status, num_tokens, num_computed_tokens (the step's counted in), num_preemptions, blocks."""
    sampled: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    after: dict[str, list[int]] = field(default_factory=dict)
    """The two numbers of each unfinished request after the step's update."""

    def visible(self) -> dict[str, Any]:
        """All of it that two schedulers can differ in."""
        return {
            "the tokens": self.tokens,
            "who is preempted": self.preempted,
            "who is admitted again": self.resumed,
            "RUNNING": self.running,
            "WAITING": self.waiting,
            "the free blocks": self.free_blocks,
            "who has not finished": list(self.requests),
            **{f"{name} of {id_}": row[name] for id_, row in self.requests.items() for name in row},
        }


@dataclass
class Run:
    """A workload under one scheduler."""

    scenario: Scenario
    scheduler: Scheduler
    steps: list[Step]
    requests: dict[str, Request]
    """Every request that arrived, the finished ones too."""
    outcome: str
    """`finished`; `stuck`: nobody gets a token ever again; `endless`: more than the steps that the
    grader runs; `raised`: the scheduler raised `error`."""
    error: str = ""
    refused: list[str] = field(default_factory=list)

    @property
    def num_preemptions(self) -> int:
        return sum(len(step.preempted) for step in self.steps)

    def token_steps(self, request_id: str) -> list[int]:
        """The steps that gave this request a token."""
        return [step.step for step in self.steps if request_id in step.sampled]

    def longest_gap(self, request_id: str) -> int | None:
        """Most steps from one output token to the next; None with fewer than two tokens."""
        steps = self.token_steps(request_id)
        return max((b - a for a, b in pairwise(steps)), default=None)

    def admitted_at(self, request_id: str) -> int | None:
        """The step of its first admission."""
        return next((step.step for step in self.steps if request_id in step.new), None)


def run(
    scenario: Scenario,
    scheduler_class: type[Scheduler] = Scheduler,
    *,
    max_steps: int = MAX_STEPS,
    record: bool = False,
    at_step: Callable[[Scheduler, SchedulerOutput], None] | None = None,
) -> Run:
    """Run a workload to its end.

    Args:
        scheduler_class: the scheduler, or a variant.
        record: keep the scheduler's own history too (slower).
        at_step: called between `schedule()` and the update, with the scheduler as it stands.
    """
    scheduler = scheduler_class(scenario.scheduler_config())
    if record:
        observe(scheduler)
    arrivals = sorted(scenario.requests, key=lambda request: request.arrival_step)
    result = Run(scenario, scheduler, [], {}, "endless")
    num_arrived = 0
    says = token_at(scenario.seed)
    guesses = Guesses(says, scenario.acceptance_rate, scenario.seed)
    while scheduler.step < max_steps:
        now = scheduler.step
        try:
            while num_arrived < len(arrivals) and arrivals[num_arrived].arrival_step <= now:
                request = arrivals[num_arrived].make_request(scenario.seed)
                num_arrived += 1
                result.requests[request.request_id] = request
                if not scheduler.add_request(request):
                    result.refused.append(request.request_id)
            output = scheduler.schedule()
            if at_step is not None:
                at_step(scheduler, output)
            step = _step_of(scheduler, output)
            result.steps.append(step)
            sampled = sampled_tokens(scheduler, output, says)
            scheduler.update_from_output(output, sampled)
            propose(scheduler, output, sampled, guesses)
        except Failed:
            raise
        except Exception as error:  # a variant may break in any way; the scheduler itself must not
            if scheduler_class is Scheduler:
                raise
            result.outcome, result.error = "raised", f"{type(error).__name__}: {error}"
            return result
        step.sampled = list(sampled)
        step.finished = [id_ for id_ in step.requests if id_ not in scheduler.requests]
        step.after = {
            id_: [request.num_tokens, request.num_computed_tokens]
            for id_, request in scheduler.requests.items()
        }
        more = num_arrived < len(arrivals)
        if not more and not scheduler.has_unfinished_requests():
            result.outcome = "finished"
            return result
        if not more and not step.tokens and not step.preempted:
            result.outcome = "stuck"
            return result
    return result


def _step_of(scheduler: Scheduler, output: SchedulerOutput) -> Step:
    manager = scheduler.kv_cache_manager
    return Step(
        step=output.step,
        tokens=dict(output.num_scheduled_tokens),
        new=[request.request_id for request in output.scheduled_new_reqs],
        resumed=[request.request_id for request in output.scheduled_resumed_reqs],
        preempted=list(output.preempted_req_ids),
        running=[request.request_id for request in scheduler.running],
        waiting=[request.request_id for request in scheduler.waiting],
        free_blocks=manager.block_pool.get_num_free_blocks(),
        requests={
            id_: {
                "status": request.status.name,
                "num_tokens": request.num_tokens,
                "num_computed_tokens": request.num_computed_tokens,
                "num_preemptions": request.num_preemptions,
                "blocks": len(manager.req_to_blocks.get(id_, ())),
            }
            for id_, request in scheduler.requests.items()
        },
    )


def run_to_the_end(scenario: Scenario, what: str) -> Run:
    """Run a workload on the real scheduler.

    Raises:
        Failed: if a request is refused, or the run does not come to its end.
    """
    result = run(scenario)
    if result.refused:
        reason = result.requests[result.refused[0]].error
        raise Failed(
            f"{what}: the scheduler refuses a request at the door, so that it takes part in "
            f"nothing. {reason}",
            workload=plain(scenario),
        )
    if result.outcome != "finished":
        what_happens = (
            f"is stuck after step {result.steps[-1].step}: nobody gets a token any more"
            if result.outcome == "stuck"
            else f"has not ended after {MAX_STEPS} steps"
        )
        raise Failed(
            f"{what} must come to its end under the real scheduler; it {what_happens}.",
            workload=plain(scenario),
        )
    return result


def first_difference(a: Run, b: Run) -> tuple[int, str] | None:
    """The first step in which two runs of one workload differ, and in what; None if they do not."""
    for one, other in zip(a.steps, b.steps):
        theirs = other.visible()
        for name, value in one.visible().items():
            if name not in theirs or value != theirs[name]:
                return one.step, name
    if (a.outcome, len(a.steps)) != (b.outcome, len(b.steps)):
        return min(len(a.steps), len(b.steps)), "how the run goes on"
    return None


# --- variants -----------------------------------------------------------------------------------


def variant(name: str, old: str, new: str) -> type[Scheduler]:
    """The core's `Scheduler` with a few lines of its source replaced.

    Args:
        name: of the module that holds it.
        old: one or more whole lines, as they stand in minivllm/core/scheduler.py but for their
            indentation, which must occur there exactly once.
        new: what stands there instead; may be empty.

    Raises:
        LookupError: if the scheduler has changed and `old` is not in it once.
    """
    source = Path(core.__file__).read_text(encoding="utf-8").splitlines()
    wanted = [line.strip() for line in textwrap.dedent(old).strip().splitlines()]
    stripped = [line.strip() for line in source]
    found = [
        index
        for index in range(len(source) - len(wanted) + 1)
        if stripped[index : index + len(wanted)] == wanted
    ]
    if len(found) != 1:
        raise LookupError(
            f"variant {name}: {wanted[0]!r} is {len(found)} times in {core.__file__}, not once: "
            f"the scheduler has changed, and this variant must follow"
        )
    first = found[0]
    indent = source[first][: len(source[first]) - len(stripped[first])]
    lines = textwrap.indent(textwrap.dedent(new).strip("\n"), indent).splitlines()
    source[first : first + len(wanted)] = lines
    module = types.ModuleType(f"{core.__name__}_{name}")
    sys.modules[module.__name__] = module  # dataclasses and typing look a class's module up
    exec(compile("\n".join(source), module.__name__, "exec"), module.__dict__)
    changed: type[Scheduler] = module.__dict__["Scheduler"]
    return changed


# --- judging predictions ------------------------------------------------------------------------


@dataclass(frozen=True)
class Misread:
    """A way to get a prediction wrong: what it would predict, and what to say to it."""

    says: str
    cells: Mapping[Any, Any]
    anywhere: bool = False
    """It explains a single value too, not only a run that goes wrong from there on."""


def judge_cells(
    given: Mapping[Any, Any],
    truth: Mapping[Any, Any],
    misreads: Sequence[Misread],
    describe: Callable[[Any], str],
    *,
    otherwise: str,
    shows: object = None,
) -> None:
    """Compare a prediction with a run, value by value, in the order of `truth`.

    Args:
        misreads: whichever of them goes wrong first at the same place, in the same way, and agrees
            with most of the other values, is what the message speaks to.
        describe: names a value in words.
        otherwise: what to say to an error that no misread explains.
        shows: a workload for the message, if the question does not print it.

    Raises:
        Failed: naming the first wrong value; the right one is not told.
    """
    wrong = [cell for cell in truth if given[cell] != truth[cell]]
    if not wrong:
        return
    first = wrong[0]
    fitting = []
    for index, misread in enumerate(misreads):
        deviates = (cell for cell in truth if misread.cells.get(cell, truth[cell]) != truth[cell])
        from_here = next(deviates, None) == first
        if misread.cells.get(first) == given[first] and (from_here or misread.anywhere):
            agreement = sum(misread.cells.get(cell) == given[cell] for cell in truth)
            fitting.append((from_here, agreement, -index, misread.says))
    hint = max(fitting)[-1] if fitting else otherwise
    raise Failed(
        f"{len(truth) - len(wrong)} of {len(truth)} values agree with the run. The first that does "
        f"not: {describe(first)}. You say {shown(given[first])}. {hint}",
        workload=shows,
    )


# --- for the notebooks --------------------------------------------------------------------------


LEGEND = "The table is taken when a step is planned, before it runs: who finishes is still in it."


def scenario_of(wanted: Mapping[str, Any] | Scenario) -> Scenario:
    """A workload to look at; what an answer holds besides (a step, a name) is passed over.

    Raises:
        Failed: if it cannot be run.
    """
    if isinstance(wanted, Scenario):
        return wanted
    if isinstance(wanted, Mapping):
        wanted = {key: wanted[key] for key in KEYS if key in wanted}
    return read_workload(wanted, "the workload")


def show_run(
    wanted: Mapping[str, Any] | Scenario,
    scheduler_class: type[Scheduler] | None = None,
    *,
    max_steps: int = 40,
) -> None:
    """Print a workload's run, a line for each step.

    Args:
        wanted: an answer that holds a workload will do.
        scheduler_class: a variant; None: the scheduler itself.
    """
    result = run(scenario_of(wanted), scheduler_class or Scheduler, max_steps=max_steps)
    print(LEGEND)
    print("step  tokens scheduled                  running         waiting         free blocks")
    for step in result.steps:
        tokens = " ".join(f"{id_}:{n}" for id_, n in step.tokens.items()) or "-"
        running, waiting = (" ".join(ids) or "-" for ids in (step.running, step.waiting))
        notes = [f"preempted {' '.join(step.preempted)}"] if step.preempted else []
        notes += [f"finished {' '.join(step.finished)}"] if step.finished else []
        line = f"{step.step:4}  {tokens:32}  {running:14}  {waiting:14}  {step.free_blocks:4}  "
        print((line + ", ".join(notes)).rstrip())
    for id_ in result.refused:
        print(f"refused: {result.requests[id_].error}")
    if result.outcome != "finished":
        print(f"the run is {result.outcome} {result.error}".rstrip())
