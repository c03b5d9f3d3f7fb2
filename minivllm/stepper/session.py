"""A scenario being stepped: messages in, snapshots out. The same class in a kernel and in Pyodide.

A session has a `main` branch and at most one `fork`. Each message is a JSON object with a `type`;
each answer says `ok`, and either what is new or a list of errors. An answer with `ok: false`
changed nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from minivllm.core import RequestStatus, Scheduler
from minivllm.runs import History, Snapshot, observe
from minivllm.runs.explain import explain, names
from minivllm.runs.guesses import Guesses, propose, sampled_tokens
from minivllm.runs.scenario import (
    LIMITS,
    Checker,
    Scenario,
    ScenarioError,
    ScenarioRequest,
    check_all_prompt_tokens,
    check_pattern,
    parse_json,
    shown,
    token_at,
    with_arrival_pattern,
)
from minivllm.stepper.fork import change_config

MAX_STEPS_A_MESSAGE = 1_000
MAX_STEPS = 5_000
MAX_CELLS = 2_000_000
"""Blocks and requests, times steps, that a branch records: some hundred megabytes."""


@dataclass(frozen=True)
class Intervention:
    """What a reader did by hand before a step: an added request, or an abort."""

    step: int
    add: ScenarioRequest | None = None
    abort: str | None = None


class Branch:
    """One run: a scheduler, the requests still to arrive, and what was done by hand.

    Args:
        scenario: the knobs and the arrivals.
        interventions: done by hand in an earlier run of it, to be repeated.
    """

    def __init__(
        self, name: str, scenario: Scenario, interventions: tuple[Intervention, ...] = ()
    ) -> None:
        self.name = name
        self.scenario = scenario
        self.interventions = list(interventions)
        self.fork_point: dict[str, Any] | None = None
        """Of a fork: `{"step": ..., "knobs": {...}}`, where it left main and what changed."""
        self.scheduler = observe(Scheduler(scenario.scheduler_config()))
        self._guesses = Guesses(token_at(scenario.seed), scenario.acceptance_rate, scenario.seed)
        self.sentences: list[list[str]] = []
        self.stuck = False
        """Whether nothing will ever change again, or all of it for ever."""
        self._states: dict[tuple[Any, ...], int] = {}
        """How things stood after each step that preempted."""
        self._repeats: int | None = None
        """The step after which things stood as they stand now: the run goes round for ever."""
        # Stable: requests of the same step arrive in the order in which they are listed.
        self._arrivals = sorted(scenario.requests, key=lambda request: request.arrival_step)
        self._num_arrived = 0

    @property
    def history(self) -> History:
        """The snapshots so far."""
        return self.scheduler.history

    @property
    def steps(self) -> list[Snapshot]:
        """The snapshots so far."""
        return self.scheduler.history.steps

    @property
    def done(self) -> bool:
        """Nothing unfinished, and nobody left to arrive."""
        return not (self._pending() or self.scheduler.has_unfinished_requests())

    def _pending(self) -> bool:
        """Whether anything will come from outside in a later step."""
        return self._num_arrived < len(self._arrivals) or any(
            item.step >= self.scheduler.step for item in self.interventions
        )

    @property
    def max_steps(self) -> int:
        """How many steps this branch may record."""
        config = self.scheduler.config
        num_requests = len(self.scenario.requests) + len(self.interventions)
        cells = config.num_gpu_blocks + config.num_cpu_blocks + num_requests
        return min(MAX_STEPS, MAX_CELLS // cells)

    def notice(self) -> str | None:
        """Why the run does not go on though it is not done; None if it does."""
        if self._repeats is not None:
            return (
                f"This run does not end: after step {len(self.steps) - 1} all stands as after "
                f"step {self._repeats}, and the steps between come again and again. Turn a knob, "
                f"or abort somebody."
            )
        if self.stuck and not self.steps[-1]["waiting"]:
            first = self.steps[-1]["running"][0]
            return (
                f"Stuck: {first} runs and is given no tokens: max_model_len lets it grow no more, "
                f"and it lacks some of its min_tokens. Raise max_model_len, or abort it."
            )
        if self.stuck:
            head = self.steps[-1]["waiting"][0]
            return (
                f"Stuck: {head} heads the queue and can never be admitted, nobody is running and "
                f"nobody else will come. Turn admission_control on, or give it what it needs."
            )
        if len(self.steps) >= self.max_steps and not self.done:
            return (
                f"{len(self.steps)} steps are recorded, as many as a run with "
                f"{self.scheduler.config.num_gpu_blocks} blocks may have. Lower num_gpu_blocks or "
                f"the number of requests, or reset."
            )
        return None

    def step(self) -> bool:
        """Run one step; False, and nothing done, if the run is over, stuck or at its limit."""
        if self.done or self.stuck or len(self.steps) >= self.max_steps:
            return False
        scheduler, now = self.scheduler, self.scheduler.step
        while self._num_arrived < len(self._arrivals):
            request = self._arrivals[self._num_arrived]
            if request.arrival_step > now:
                break
            scheduler.add_request(request.make_request(self.scenario.seed))
            self._num_arrived += 1
        for item in self.interventions:
            if item.step == now:
                self._intervene(item)
        output = scheduler.schedule()
        sampled = sampled_tokens(scheduler, output, self._guesses.token_at)
        scheduler.update_from_output(output, sampled)
        propose(scheduler, output, sampled, self._guesses)
        snapshot = self.steps[-1]
        told = explain(snapshot, scheduler.config)
        if self.fork_point is not None and self.fork_point["step"] == now:
            told.insert(0, self._told_fork())
        self.sentences.append(told)
        # A step that neither schedules nor preempts changes nothing: the next would be the same.
        self.stuck = (
            not snapshot["scheduled"]
            and not output.preempted_req_ids
            and scheduler.has_unfinished_requests()
            and not self._pending()
        )
        if output.preempted_req_ids and not self._pending():
            self._repeats = self._states.setdefault(self._state(), now)
            if self._repeats == now:
                self._repeats = None
            else:
                self.stuck = True
        return True

    def _state(self) -> tuple[Any, ...]:
        """All that the steps to come are decided from, less which block is which."""
        scheduler = self.scheduler
        pool, cadence = scheduler.kv_cache_manager.block_pool, scheduler.prefill_cadence
        requests = (*scheduler.running, *scheduler.waiting)
        return (
            len(scheduler.running),
            tuple((r.request_id, r.num_computed_tokens, r.num_tokens) for r in requests),
            tuple((b.block_id, b.block_hash, b.ref_cnt) for b in pool.blocks)
            if pool.enable_caching
            else (),
            (cadence.is_behind, cadence.num_steps - cadence.last_prefill_step)
            if cadence.interval > 1
            else (),
        )

    def run(self, num_steps: int) -> None:
        """Run until `num_steps` steps are recorded, or until the run ends."""
        while len(self.steps) < num_steps and self.step():
            pass

    def turn_knobs(self, knobs: dict[str, Any]) -> None:
        """Make this branch a fork: from the next step on it runs under other knobs.

        Raises:
            ScenarioError: if one of them cannot change in mid-run.
        """
        change_config(self.scheduler, **knobs)
        self.fork_point = {"step": len(self.steps), "knobs": knobs}
        if knobs:
            self._go_on()

    def _told_fork(self) -> str:
        assert self.fork_point is not None
        old, knobs = self.scenario.scheduler_config().to_dict(), self.fork_point["knobs"]
        turned = [f"{name} is {shown(knobs[name])} (was {shown(old[name])})" for name in knobs]
        return f"The fork begins: {', '.join(turned) or 'no knob is turned'}."

    def _intervene(self, item: Intervention) -> None:
        if item.add is not None:
            self.scheduler.add_request(item.add.make_request(self.scenario.seed))
        elif item.abort is not None:
            self.scheduler.finish_requests(item.abort, RequestStatus.FINISHED_ABORTED)

    def intervene(self, item: Intervention) -> None:
        """Do something by hand before the next step."""
        self.interventions.append(item)
        self._go_on()

    def _go_on(self) -> None:
        """Something changes from outside: a run that stood still, or went round, may move again."""
        self.stuck = False
        self._states.clear()
        self._repeats = None

    def living(self) -> list[str]:
        """Ids that can be aborted now: the unfinished, and those about to arrive by hand."""
        ids = list(self.scheduler.requests)
        for item in self.interventions:
            if item.step == self.scheduler.step:
                if item.add is not None:
                    ids.append(item.add.request_id)
                elif item.abort in ids:
                    ids.remove(item.abort)
        return ids

    def all_requests(self) -> list[ScenarioRequest]:
        """Everyone that arrives in this run, by the scenario and by hand."""
        return [*self.scenario.requests, *(item.add for item in self.interventions if item.add)]

    def answer(self, first_step: int, scenario: bool = False) -> dict[str, Any]:
        """The steps from `first_step` on, as JSON for a view.

        Returns:
            `branch`, `config` (all knobs), `first_step`, `steps` and their `sentences`, `done`,
            `stuck`, `notice`; the `scenario` as it is now if asked for; `fork` if this is one.
        """
        answer: dict[str, Any] = {
            "branch": self.name,
            "config": self.scheduler.config.to_dict(),
            "first_step": first_step,
            "steps": self.steps[first_step:],
            "sentences": self.sentences[first_step:],
            "done": self.done,
            "stuck": self.stuck,
            "notice": self.notice(),
        }
        if scenario:
            answer["scenario"] = self.scenario.to_dict()
        if self.fork_point is not None:
            answer["fork"] = self.fork_point
        return answer


class StepperSession:
    """Answers a view's messages (`handle`, or `handle_json` where only text gets through).

    Messages, each with an `id` that its answer repeats:

    - `open` (scenario): start anew.
    - `step` (branch, count).
    - `reset` (branch): main goes back to step 0 and forgets what was done by hand; its knobs
      stay. The fork goes back to where it left.
    - `set_knobs` (knobs): main runs again from step 0 under these knobs, as far as it was, with
      what was done by hand repeated at its steps.
    - `set_arrivals` (pattern): the same with another arrival pattern (`ARRIVAL_PATTERNS`).
    - `add_request` (branch, request) and `abort` (branch, request_id): before the next step.
    - `rewind` (branch, step): the branch's first `step` steps stay; what was done by hand later
      than before that step is forgotten. For a view that has looked ahead of its reader.
    - `fork` (step, knobs): a second branch. The first `step` steps are main's; from there it
      runs under the changed knobs (what can change in mid-run: `fork.change_config`), with the
      same later arrivals.
    - `export` (branch): the history.

    The fork ends when main is opened, reset, or run again: it would not share its past.
    """

    def __init__(self) -> None:
        self.branches: dict[str, Branch] = {}
        self._arrivals_as_written: tuple[ScenarioRequest, ...] = ()

    @property
    def main(self) -> Branch:
        """The main branch.

        Raises:
            ScenarioError: before `open`.
        """
        return self._branch({})

    # --- messages -----------------------------------------------------------------------------

    def handle_json(self, text: str) -> str:
        """`handle` on JSON text; whatever comes in, a JSON answer comes out."""
        try:
            message = parse_json(text)
        except ScenarioError as error:
            answer: dict[str, Any] = {"id": None, "ok": False, "errors": error.errors}
        else:
            answer = self.handle(message)
        return json.dumps(answer, separators=(",", ":"))

    def handle(self, message: object) -> dict[str, Any]:
        """Answer one message; never raises for what the message says."""
        if not isinstance(message, Mapping):
            error = {"field": "", "message": f"a message is an object, got {shown(message)}"}
            return {"id": None, "ok": False, "errors": [error]}
        id_ = message.get("id")
        if not isinstance(id_, (int, str)):
            id_ = None
        try:
            type_ = message.get("type")
            if not isinstance(type_, str) or type_ not in MESSAGES:
                fail("type", f"unknown message {shown(type_)}; known are {', '.join(MESSAGES)}")
            checker = Checker()
            checker.mapping(message, "", ("id", "type", *MESSAGES[type_]))
            checker.done()
            answer = getattr(self, f"_on_{type_}")(message)
        except ScenarioError as error:
            return {"id": id_, "ok": False, "errors": error.errors}
        return {"id": id_, "ok": True, **answer}

    def _on_open(self, message: Mapping[str, Any]) -> dict[str, Any]:
        scenario = message.get("scenario")
        if not isinstance(scenario, Scenario):
            scenario = Scenario.from_dict(scenario)
        self._arrivals_as_written = scenario.requests
        self.branches = {"main": Branch("main", scenario)}
        return self.main.answer(0, scenario=True)

    def _on_step(self, message: Mapping[str, Any]) -> dict[str, Any]:
        branch = self._branch(message)
        count = message.get("count", 1)
        if type(count) is not int or not 1 <= count <= MAX_STEPS_A_MESSAGE:
            fail("count", f"must be an integer from 1 to {MAX_STEPS_A_MESSAGE}, got {shown(count)}")
        before = len(branch.steps)
        branch.run(before + count)
        return branch.answer(before)

    def _on_reset(self, message: Mapping[str, Any]) -> dict[str, Any]:
        branch = self._branch(message)
        if branch.fork_point is not None:
            return self._on_fork(branch.fork_point)
        self.branches = {"main": Branch("main", branch.scenario)}
        return self.main.answer(0, scenario=True)

    def _on_rewind(self, message: Mapping[str, Any]) -> dict[str, Any]:
        branch, step = self._branch(message), message.get("step")
        fork_point = branch.fork_point
        first, last = fork_point["step"] if fork_point else 0, len(branch.steps)
        if type(step) is not int or not first <= step <= last:
            fail("step", f"must be an integer from {first} to {last}, got {shown(step)}")
        kept = tuple(item for item in branch.interventions if item.step <= step)
        again = Branch(branch.name, branch.scenario, kept)
        again.run(first)
        if fork_point is not None:
            again.turn_knobs(fork_point["knobs"])
        again.run(step)
        self.branches[branch.name] = again
        return again.answer(step)

    def _on_set_knobs(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return self._run_again(self.main.scenario.with_knobs(**_knobs(message)))

    def _on_set_arrivals(self, message: Mapping[str, Any]) -> dict[str, Any]:
        as_written = replace(self.main.scenario, requests=self._arrivals_as_written)
        pattern = check_pattern(message.get("pattern"))
        return self._run_again(with_arrival_pattern(as_written, **pattern))

    def _on_add_request(self, message: Mapping[str, Any]) -> dict[str, Any]:
        branch = self._branch(message)
        now = branch.scheduler.step
        request = ScenarioRequest.from_dict(message.get("request"), default_arrival_step=now)
        others = branch.all_requests()
        checker = Checker()
        if request.request_id in {other.request_id for other in others}:
            checker.error(
                "request.request_id", f"{shown(request.request_id)} is taken already in this run"
            )
        if request.arrival_step < now:
            checker.error(
                "request.arrival_step",
                f"must be at least {now}, the next step, got {request.arrival_step}",
            )
        if len(others) >= LIMITS["requests"][1]:
            checker.error("request", f"at most {LIMITS['requests'][1]} requests in a run")
        check_all_prompt_tokens(checker, [*others, request], "request.num_prompt_tokens")
        checker.done()
        branch.intervene(Intervention(request.arrival_step, add=request))
        return branch.answer(len(branch.steps))

    def _on_abort(self, message: Mapping[str, Any]) -> dict[str, Any]:
        branch = self._branch(message)
        request_id = message.get("request_id")
        living = branch.living()
        if request_id not in living:
            known = names(living) or "there is none"
            fail("request_id", f"{shown(request_id)} is no unfinished request: {known}")
        branch.intervene(Intervention(branch.scheduler.step, abort=request_id))
        return branch.answer(len(branch.steps))

    def _on_fork(self, message: Mapping[str, Any]) -> dict[str, Any]:
        main, step = self.main, message.get("step")
        if type(step) is not int or not 0 <= step <= len(main.steps):
            fail("step", f"must be an integer from 0 to {len(main.steps)}, got {shown(step)}")
        # The scheduler is deterministic: run again, it stands where main stood.
        fork = Branch("fork", main.scenario, tuple(main.interventions))
        fork.run(step)
        fork.turn_knobs(_knobs(message))
        self.branches["fork"] = fork
        return fork.answer(0)

    def _on_export(self, message: Mapping[str, Any]) -> dict[str, Any]:
        branch = self._branch(message)
        answer: dict[str, Any] = {"branch": branch.name, "history": branch.history.to_dict()}
        if branch.fork_point is not None:
            answer["fork"] = branch.fork_point
        return answer

    # --- parts --------------------------------------------------------------------------------

    def _branch(self, message: Mapping[str, Any]) -> Branch:
        name = message.get("branch", "main")
        if not self.branches:
            fail("type", "no scenario is open: send open first")
        if not isinstance(name, str) or name not in self.branches:
            fail("branch", f"no branch {shown(name)}; there is {', '.join(self.branches)}")
        return self.branches[name]

    def _run_again(self, scenario: Scenario) -> dict[str, Any]:
        main = self.main
        branch = Branch("main", scenario, tuple(main.interventions))
        branch.run(len(main.steps))
        self.branches = {"main": branch}
        return branch.answer(0, scenario=True)


MESSAGES: dict[str, tuple[str, ...]] = {
    "open": ("scenario",),
    "step": ("branch", "count"),
    "reset": ("branch",),
    "rewind": ("branch", "step"),
    "set_knobs": ("knobs",),
    "set_arrivals": ("pattern",),
    "add_request": ("branch", "request"),
    "abort": ("branch", "request_id"),
    "fork": ("step", "knobs"),
    "export": ("branch",),
}
"""Each message, and what it may hold beside `id` and `type`."""


def fail(field: str, message: str) -> NoReturn:
    """Raise a `ScenarioError` with one problem."""
    raise ScenarioError([{"field": field, "message": message}])


def _knobs(message: Mapping[str, Any]) -> dict[str, Any]:
    checker = Checker()
    knobs = checker.knobs(message.get("knobs", {}), "")
    checker.done()
    return knobs


def record(scenario: Scenario, max_steps: int | None = None) -> dict[str, Any]:
    """Run a scenario to its end, or for `max_steps` steps, as JSON for a page to embed.

    Returns:
        What a session's answer to `step` holds, with all steps, and the `scenario`.
    """
    branch = Branch("main", scenario)
    branch.run(branch.max_steps if max_steps is None else max_steps)
    return branch.answer(0, scenario=True)
