"""The stepper in a notebook: JupyterLab, Notebook 7, or whatever else shows an anywidget.

    from minivllm.stepper import SchedulerStepper

    SchedulerStepper("cramped")                      # a named scenario
    SchedulerStepper(config=config, requests=[...])  # one of your own
    SchedulerStepper(llm)                            # a real model, tokens as text

On a static page, where no kernel answers, the same cell shows the recorded run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import anywidget
import traitlets

from minivllm.core import Request, Scheduler, SchedulerConfig
from minivllm.runs import History, Snapshot
from minivllm.runs.scenario import Scenario, ScenarioError, ScenarioRequest
from minivllm.runs.scenarios import SCENARIOS
from minivllm.stepper.embed import stepper_html
from minivllm.stepper.live import LiveSession
from minivllm.stepper.modules import STATIC, joined
from minivllm.stepper.session import MAX_STEPS, MAX_STEPS_A_MESSAGE, Branch, StepperSession


class SchedulerStepper(anywidget.AnyWidget):
    """Steps a scheduler, and shows all that it decides with.

    Args:
        source: the name of a scenario in `SCENARIOS`, a `Scenario` or its dict; or something that
            runs already: a `Scheduler` that keeps a history (`minivllm.runs.observe`), an
            `LLMEngine` or an `LLM` built with `record=True`. None: give `config` and `requests`.
        config: the knobs of a scenario of your own.
        requests: its arrivals: `Request`, `ScenarioRequest` or dicts.
        seed: of the simulated model's tokens.
        title: what stands above it.
        scenarios: names to choose from, beside `source`.
        step: open at this step, the first being 0; default: the first, or where a run that goes
            on stands now.

    Traits, for `observe`, `link` and figures that follow:
        step: the step on show, from 0; -1 before the first. Setting it runs up to there.
        selection: id of the request that is pinned, or None.
        snapshot: the step on show, as `minivllm.runs.snapshot.Snapshot`; {} before the first.

    Raises:
        ScenarioError: (a ValueError) if the scenario is not good; lists every problem.
        ValueError: if a scheduler keeps no history, or it is unclear what to step.
    """

    _esm = joined("widget.js")
    _css = (STATIC / "view.css").read_text(encoding="utf-8")

    step = traitlets.Int(-1, help="The step on show, from 0; -1 before the first.").tag(sync=True)
    selection = traitlets.Unicode(None, allow_none=True, help="The pinned request.").tag(sync=True)
    snapshot = traitlets.Dict(help="The step on show.").tag(sync=True)
    is_live = traitlets.Bool(False, help="It wraps a run that goes on outside.").tag(sync=True)

    def __init__(
        self,
        source: Any = None,
        *,
        config: SchedulerConfig | Mapping[str, Any] | None = None,
        requests: Sequence[Request | ScenarioRequest | Mapping[str, Any]] | None = None,
        seed: int = 0,
        title: str = "",
        scenarios: Sequence[str] = (),
        step: int | None = None,
    ) -> None:
        self._choices = [_named(name) for name in scenarios]
        self._session: StepperSession | LiveSession
        live = _live_session(source, title)
        if live is not None:
            self._session = live
        else:
            if (source is None) == (config is None):
                raise ValueError("give a scenario to step, or config and requests, not both")
            scenario = (
                _scenario_of(config, requests or (), seed, title) if source is None else source
            )
            self._session = StepperSession()
            self._ask("open", scenario=_as_scenario(scenario).to_dict())
        super().__init__(is_live=live is not None)
        self.on_msg(self._on_message)
        if step is None:
            step = 0 if live is None else len(self.history) - 1
        self.step = step
        self._show()

    # --- stepping -----------------------------------------------------------------------------

    @property
    def history(self) -> History:
        """All steps so far, of the main branch."""
        return (
            self._session.history if isinstance(self._session, LiveSession) else self._main.history
        )

    @property
    def fork_history(self) -> History | None:
        """All steps so far of the fork; None without one."""
        if isinstance(self._session, LiveSession) or "fork" not in self._session.branches:
            return None
        return self._session.branches["fork"].history

    @property
    def sentences(self) -> list[str]:
        """The step on show, told in sentences."""
        source = self._session if isinstance(self._session, LiveSession) else self._main
        return source.sentences[self.step] if 0 <= self.step < len(source.sentences) else []

    @property
    def done(self) -> bool:
        """Nothing unfinished, and nobody left to arrive."""
        return self._session.done if isinstance(self._session, LiveSession) else self._main.done

    def step_forward(self, n: int = 1) -> Snapshot | dict[str, Any]:
        """Go `n` steps on, running the scheduler where it has not been; returns the snapshot."""
        return self.goto(self.step + n)

    def goto(self, step: int) -> Snapshot | dict[str, Any]:
        """Show a step, running up to it if need be; the last one, if the run ends before."""
        self.step = step
        return self.snapshot

    def run(self) -> Snapshot | dict[str, Any]:
        """Run to the end, or until it is stuck, and show the last step."""
        return self.goto(max(MAX_STEPS, len(self.history) + MAX_STEPS))

    def reset(self) -> None:
        """Go back to before the first step; what was done by hand is forgotten, knobs stay."""
        self._publish(self._ask("reset"))
        self.step = -1

    def set_knobs(self, **knobs: Any) -> None:
        """Run again from step 0 under other knobs, as far as it was.

        Raises:
            ScenarioError: on a bad knob; nothing has changed then.
        """
        self._publish(self._ask("set_knobs", knobs=knobs))
        self._show()

    def fork(self, step: int | None = None, **knobs: Any) -> History:
        """What if these knobs were different from `step` on (default: after the one on show)?

        Returns:
            The fork's history, run as far as main was.

        Raises:
            ScenarioError: if a knob cannot change in mid-run, or the run is a live one.
        """
        at = self.step + 1 if step is None else step
        self._publish(self._ask("fork", step=at, knobs=knobs))
        behind = len(self.history) - at
        while behind > 0:
            count = min(behind, MAX_STEPS_A_MESSAGE)
            self._publish(self._ask("step", branch="fork", count=count))
            behind -= count
        history = self.fork_history
        assert history is not None
        return history

    def add_request(self, request: Mapping[str, Any] | ScenarioRequest) -> None:
        """Let one more request arrive before the next step.

        Raises:
            ScenarioError: if it is not good.
        """
        row = request.to_dict() if isinstance(request, ScenarioRequest) else dict(request)
        self._publish(self._ask("add_request", request=row))

    def abort(self, request_id: str) -> None:
        """End a request before the next step.

        Raises:
            ScenarioError: if it is not an unfinished one.
        """
        self._publish(self._ask("abort", request_id=request_id))

    def refresh(self) -> None:
        """Show steps that were made from outside, by a scheduler or an engine that was stepped."""
        if isinstance(self._session, LiveSession):
            self._publish({"ok": True, **self._session.answer(self._session.sync())})
            self.step = len(self.history) - 1

    # --- between the session and the views ----------------------------------------------------

    @property
    def _main(self) -> Branch:
        assert isinstance(self._session, StepperSession)
        return self._session.main

    def _ask(self, type_: str, **fields: Any) -> dict[str, Any]:
        answer = self._session.handle({"type": type_, **fields})
        if not answer["ok"]:
            raise ScenarioError(answer["errors"])
        return answer

    def _publish(self, answer: dict[str, Any]) -> None:
        """Tell every view; the one that asked knows its `id`."""
        self.send({"kind": "answer", **answer})

    def _on_message(self, _: Any, message: Any, buffers: Any) -> None:
        """A view's message, answered by the session."""
        if isinstance(message, Mapping) and message.get("type") == "state":
            self._publish({"id": message.get("id"), "ok": True, **self._state()})
            return
        self._publish(self._session.handle(message))
        self._show()

    def _state(self) -> dict[str, Any]:
        """All that a view that opens now has to know."""
        if isinstance(self._session, LiveSession):
            return {"main": self._session.answer(0, everything=True), "fork": None, "scenarios": []}
        main, fork = self._main, self._session.branches.get("fork")
        first = main.scenario
        others = [scenario for scenario in self._choices if scenario.name != first.name]
        return {
            "main": main.answer(0, scenario=True),
            "fork": None if fork is None else fork.answer(0),
            "scenarios": [
                {"name": row.name, "title": row.title, "scenario": row.to_dict()}
                for row in (first, *others)
            ],
        }

    @traitlets.validate("step")
    def _reach(self, proposal: Mapping[str, Any]) -> int:
        """Run up to a step that was not made yet; the last one there is, if it ends before."""
        wanted: int = proposal["value"]
        while wanted >= len(self.history):
            before = len(self.history)
            count = min(wanted + 1 - before, MAX_STEPS_A_MESSAGE)
            self._publish(self._ask("step", count=count))
            if len(self.history) == before:
                break
        return max(min(wanted, len(self.history) - 1), -1)

    @traitlets.observe("step")
    def _on_step(self, _: Any) -> None:
        self._show()

    def _show(self) -> None:
        steps = self.history.steps
        self.snapshot = dict(steps[self.step]) if 0 <= self.step < len(steps) else {}

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """What a front end may set: `snapshot` and `is_live` are not its own."""
        allowed = {k: v for k, v in sync_data.items() if k not in ("snapshot", "is_live")}
        super().set_state(allowed)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and for a page without a kernel the recorded run as HTML."""
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "text/html": self._static_html()}, metadata

    def _static_html(self) -> str:
        ident = f"stepper-{self.model_id[:8]}"
        if isinstance(self._session, LiveSession):
            recording = self._session.answer(0, everything=True)
            scenario, step = recording.pop("scenario"), self.step
        else:
            branch = Branch("main", self._main.scenario, tuple(self._main.interventions))
            branch.run(branch.max_steps)
            recording, step = branch.answer(0), max(self.step, 0)
            scenario = branch.scenario.to_dict()
        entry = {
            "name": scenario["name"],
            "title": scenario["title"],
            "scenario": scenario,
            "recording": recording,
            "fixed": isinstance(self._session, LiveSession),
        }
        told = recording["sentences"][step] if 0 <= step < len(recording["sentences"]) else []
        still = f"<p>{escape(scenario['title'])}, step {step}. {escape(' '.join(told))}</p>"
        return stepper_html([entry], ident, max(step, 0), still)


def _named(name: str) -> Scenario:
    if name not in SCENARIOS:
        raise ValueError(f"no scenario {name!r}; there is {', '.join(SCENARIOS)}")
    return SCENARIOS[name]


def _as_scenario(source: Any) -> Scenario:
    if isinstance(source, Scenario):
        return source
    if isinstance(source, str):
        return _named(source)
    if isinstance(source, Mapping):
        return Scenario.from_dict(source)
    raise ValueError(
        f"cannot step a {type(source).__name__}: give a scenario, or a Scheduler, an LLMEngine or "
        f"an LLM built with record=True"
    )


def _live_session(source: Any, title: str) -> LiveSession | None:
    """A session around something that runs; None if `source` is nothing of the kind."""
    if isinstance(source, Scheduler):
        return LiveSession(source, None, title)
    engine = getattr(source, "llm_engine", source)  # an LLM has one
    if isinstance(getattr(engine, "scheduler", None), Scheduler):
        return LiveSession(engine.scheduler, engine, title)
    return None


def _scenario_of(
    config: SchedulerConfig | Mapping[str, Any] | None,
    requests: Sequence[Request | ScenarioRequest | Mapping[str, Any]],
    seed: int,
    title: str,
) -> Scenario:
    """A scenario from its parts, checked like one from a link."""
    knobs = config.to_dict() if isinstance(config, SchedulerConfig) else dict(config or {})
    rows = []
    for request in requests:
        if isinstance(request, Request):
            rows.append(
                {
                    "request_id": request.request_id,
                    "prompt_token_ids": request.prompt_token_ids,
                    "max_tokens": 16 if request.max_tokens is None else request.max_tokens,
                    "priority": request.priority,
                }
            )
        else:
            rows.append(
                request.to_dict() if isinstance(request, ScenarioRequest) else dict(request)
            )
    return Scenario.from_dict(
        {
            "version": 1,
            "name": "own",
            "title": title or "A run of your own",
            "question": "",
            "config": knobs,
            "requests": rows,
            "seed": seed,
        }
    )
