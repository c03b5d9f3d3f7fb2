"""A stepper's session around something that runs already: a scheduler, or an engine and its model.

What has happened has happened: it steps on, takes requests and aborts, but it cannot go back, turn
a knob or fork. `StepperSession` can, because it owns its run and can run it again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from minivllm.core import RequestStatus, SamplingParams, Scheduler
from minivllm.core.output import TokenIds
from minivllm.runs import History, Snapshot
from minivllm.runs.explain import explain, names
from minivllm.runs.guesses import Guesses, propose, sampled_tokens
from minivllm.runs.scenario import (
    LIMITS,
    Checker,
    ScenarioError,
    ScenarioRequest,
    shown,
    token_at,
)
from minivllm.stepper.session import MAX_STEPS_A_MESSAGE, MESSAGES, fail

MAX_PROMPT_CHARACTERS = 100_000

LIVE_MESSAGES = ("open", "step", "add_request", "abort", "export")


class Engine(Protocol):
    """What a session asks of an engine; `minivllm.LLMEngine` has it."""

    scheduler: Scheduler

    def step(self) -> Any:
        """Schedule, run the model, sample, update."""

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        """Queue a prompt; ValueError if it is unusable."""

    def abort_request(self, request_ids: str) -> None:
        """End a request."""

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has anything to do."""

    def get_tokenizer(self) -> Any:
        """Has `decode(token_ids, skip_special_tokens)`."""


class LiveSession:
    """Answers a view's messages as `StepperSession` does, those of `LIVE_MESSAGES`.

    Args:
        scheduler: built with an observer that keeps a history (`minivllm.runs.observe`).
        engine: drives `scheduler` with a model; None: tokens come from the simulated model.
        title: what the view says above it.

    Raises:
        ValueError: if the scheduler keeps no history.
    """

    def __init__(self, scheduler: Scheduler, engine: Engine | None = None, title: str = "") -> None:
        self.history: History = scheduler.history
        self.scheduler = scheduler
        self.engine = engine
        self.title = title or ("A real model" if engine else "A scheduler")
        self.sentences: list[list[str]] = []
        self.texts: list[dict[str, str]] = []
        """Of each step: what it added to each request's text."""
        self._guesses = Guesses(token_at(0))
        self._decode: Callable[..., str] | None = engine.get_tokenizer().decode if engine else None
        self._token_ids: dict[str, list[int]] = {}
        self._text_so_far: dict[str, str] = {}
        self._num_prompts_sent = 0
        self._prompts: list[tuple[str, str]] = []
        self.sync()

    @property
    def done(self) -> bool:
        """Nothing is left to do until another request comes."""
        source = self.engine or self.scheduler
        return not source.has_unfinished_requests()

    @property
    def stuck(self) -> bool:
        """The last step neither scheduled nor preempted, and nothing has come since."""
        if self.done or not self.history.steps or self.history.pending_inputs:
            return False
        last = self.history.steps[-1]
        return not last["scheduled"] and not last["stats"]["num_preemptions"]

    def sync(self) -> int:
        """Take in the steps that were made from outside; how many were known before."""
        before = len(self.sentences)
        for snapshot in self.history.steps[before:]:
            self.sentences.append(explain(snapshot, self.scheduler.config))
            for item in snapshot["inputs"]:
                if item["type"] == "add":
                    self._note_prompt(item["request"])
            self.texts.append(self._new_text(snapshot["sampled"]))
        return before

    def _note_prompt(self, request: Mapping[str, Any]) -> None:
        id_ = request["request_id"]
        self._token_ids[id_], self._text_so_far[id_] = [], ""
        if self._decode is not None:
            text = self._decode(request["prompt_token_ids"], skip_special_tokens=True)
            self._prompts.append((id_, text))

    def _new_text(self, sampled: Mapping[str, TokenIds]) -> dict[str, str]:
        if self._decode is None:
            return {}
        added = {}
        for id_, token_ids in sampled.items():
            self._token_ids[id_] += (token_ids,) if isinstance(token_ids, int) else token_ids
            text = self._decode(self._token_ids[id_], skip_special_tokens=True)
            text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # half a character waits for the rest
            known = self._text_so_far[id_]
            if text.startswith(known):
                added[id_] = text[len(known) :]
                self._text_so_far[id_] = text
        return added

    def answer(self, first_step: int, *, everything: bool = False) -> dict[str, Any]:
        """The steps from `first_step` on, as `Branch.answer`; for an engine with `texts`."""
        answer: dict[str, Any] = {
            "branch": "main",
            "config": self.scheduler.config.to_dict(),
            "first_step": first_step,
            "steps": [self._counted(step) for step in self.history.steps[first_step:]],
            "sentences": self.sentences[first_step:],
            "done": self.done,
            "stuck": self.stuck,
            "notice": None,
        }
        if self.stuck:
            head = next(iter(self.scheduler.waiting)).request_id
            answer["notice"] = f"Stuck: {head} heads the queue and cannot be admitted."
        if self._decode is not None:
            start = 0 if everything else self._num_prompts_sent
            self._num_prompts_sent = len(self._prompts)
            answer["texts"] = self.texts[first_step:]
            answer["prompts"] = dict(self._prompts[start:])
        if everything:
            answer["scenario"] = {
                "version": 1,
                "name": "live",
                "title": self.title,
                "question": f"Step 0 is step {self._first:,} of the run." if self._first else "",
                "config": self.scheduler.config.to_dict(),
                "requests": [],
            }
        return answer

    @property
    def _first(self) -> int:
        """The number of the first step that is told: a window into a long run begins late."""
        return self.history.steps[0]["step"] if self.history.steps else 0

    def _counted(self, snapshot: Snapshot) -> Snapshot:
        """A step as a view counts it: from 0, as it does its own."""
        if not self._first:
            return snapshot
        return {**snapshot, "step": snapshot["step"] - self._first}

    def handle(self, message: object) -> dict[str, Any]:
        """Answer one message; never raises for what the message says."""
        if not isinstance(message, Mapping):
            error = {"field": "", "message": f"a message is an object, got {shown(message)}"}
            return {"id": None, "ok": False, "errors": [error]}
        id_ = message.get("id")
        try:
            type_ = message.get("type")
            if type_ not in LIVE_MESSAGES:
                if isinstance(type_, str) and type_ in MESSAGES:
                    fail(
                        "type",
                        f"{type_} needs a run that can be run again, and this one is live: open "
                        f"a scenario, as in SchedulerStepper('cramped')",
                    )
                fail("type", f"unknown message {shown(type_)}")
            answer = getattr(self, f"_on_{type_}")(message)
        except ScenarioError as error:
            return {"id": id_, "ok": False, "errors": error.errors}
        return {"id": id_, "ok": True, **answer}

    def _on_open(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self.sync()
        return self.answer(0, everything=True)

    def _on_step(self, message: Mapping[str, Any]) -> dict[str, Any]:
        count = message.get("count", 1)
        if type(count) is not int or not 1 <= count <= MAX_STEPS_A_MESSAGE:
            fail("count", f"must be an integer from 1 to {MAX_STEPS_A_MESSAGE}, got {shown(count)}")
        before = len(self.sentences)  # what was stepped from outside is news too
        for _ in range(count):
            if self.done or self.stuck:
                break
            self._step()
        self.sync()
        return self.answer(before)

    def _step(self) -> None:
        if self.engine is not None:
            self.engine.step()
            return
        output = self.scheduler.schedule()
        sampled = sampled_tokens(self.scheduler, output, self._guesses.token_at)
        self.scheduler.update_from_output(output, sampled)
        propose(self.scheduler, output, sampled, self._guesses)

    def _on_add_request(self, message: Mapping[str, Any]) -> dict[str, Any]:
        data = message.get("request")
        try:
            if self.engine is not None:
                self._add_prompt(self.engine, data)
            else:
                request = ScenarioRequest.from_dict(data)
                self.scheduler.add_request(request.make_request(0))
        except ScenarioError:
            raise
        except ValueError as error:
            fail("request", str(error))
        return self.answer(self.sync())

    def _add_prompt(self, engine: Engine, data: object) -> None:
        checker = Checker()
        row = checker.mapping(data, "request", ("request_id", "prompt", "max_tokens"))
        id_ = checker.text(row.get("request_id"), "request.request_id", 32)
        prompt = checker.text_block(row.get("prompt"), "request.prompt", MAX_PROMPT_CHARACTERS)
        max_tokens = checker.integer(
            row.get("max_tokens", 16), "request.max_tokens", "max_tokens", LIMITS["max_tokens"][0]
        )
        checker.done()
        engine.add_request(id_, prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0))

    def _on_abort(self, message: Mapping[str, Any]) -> dict[str, Any]:
        id_, living = message.get("request_id"), list(self.scheduler.requests)
        if not isinstance(id_, str) or id_ not in living:
            known = names(living) or "there is none"
            fail("request_id", f"{shown(id_)} is no unfinished request: {known}")
        if self.engine is not None:
            self.engine.abort_request(id_)
        else:
            self.scheduler.finish_requests(id_, RequestStatus.FINISHED_ABORTED)
        return self.answer(self.sync())

    def _on_export(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return {"branch": "main", "history": self.history.to_dict()}
