"""Recording that costs next to nothing: note what comes in, and tell the steps when asked.

A scheduler decides by its inputs alone, so its inputs are its history. While it runs, an `InputLog`
notes each of them and no more. When somebody looks at the history, a second scheduler, the
shadow, is driven through what was noted since the last look; a `Recorder` observes it.

What may be replaced in mid-run (the knobs, the victim policy, the queue) or reset (the prefix
cache) is noticed too: from there on the scheduler itself is recorded, each step as it happens. Any
other change that is no input (a priority set by hand, a method of another kind) shows when the
shadow decides otherwise: the look raises, and says to use a `Recorder`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from operator import attrgetter
from typing import Any, NamedTuple

from minivllm.core.config import SchedulerConfig
from minivllm.core.output import SchedulerOutput, TokenIds
from minivllm.core.prompt import TokenizedPrompt
from minivllm.core.request import Request, RequestStatus
from minivllm.core.sampling_params import SamplingParams
from minivllm.core.scheduler import Scheduler
from minivllm.runs.recorder import Recorder
from minivllm.runs.snapshot import History, Snapshot

REPLACEABLE = attrgetter(
    "config",
    "select_victim",
    "waiting",
    "kv_cache_manager",
    "kv_cache_manager.block_pool.num_resets",
)
"""What a scheduler decides with, and a user may set or, the prefix cache, reset."""


class Added(NamedTuple):
    """A request came in."""

    request_id: str
    prompt: TokenizedPrompt
    sampling_params: SamplingParams
    priority: int
    arrival_time: float | None
    eos_token_ids: Sequence[int]


class Ended(NamedTuple):
    """Requests were ended from outside."""

    request_ids: list[str]
    status: RequestStatus


class Proposed(NamedTuple):
    """Tokens were proposed for the next step."""

    draft_token_ids: dict[str, list[int]]


class Planned(NamedTuple):
    """A step was planned."""

    time: float | None
    """What the clock said."""
    decisions: dict[str, Any]
    """What the shadow must decide too."""


class Updated(NamedTuple):
    """A plan's tokens came."""

    step: int
    sampled: dict[str, TokenIds]


Input = Added | Ended | Proposed | Planned | Updated


class InputLog:
    """Observes one scheduler by its inputs, and tells its history from them.

    The shadow is a scheduler of the same class, so a subclass must be built by its configuration
    alone and decide by its inputs alone; a `Recorder` asks for neither.
    """

    scheduler: Scheduler
    history: History

    def begin(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.history = LiveHistory(scheduler.config, self)
        self._inputs: deque[Input] = deque()
        """Those since the last look."""
        self._makings = REPLACEABLE(scheduler)
        self._shadow: Scheduler | None = None
        self._plans: dict[int, SchedulerOutput] = {}
        """The shadow's that wait for tokens, by step."""
        self._recorder = Recorder()
        self._eager = False
        """The recorder observes the scheduler itself, not the shadow."""
        self._error: RuntimeError | None = None

    # --- told by the scheduler ------------------------------------------------------------

    def request_added(self, request: Request) -> None:
        params = request.sampling_params
        as_made = type(request) is Request and request.max_tokens == params.max_tokens
        if self._inputs_decide(as_made):
            added = (request.request_id, request.prompt, copy(params), request.priority)
            eos_token_ids = sorted(request.eos_token_ids)
            self._inputs.append(Added(*added, request.arrival_time, eos_token_ids))
        elif self._eager:
            self._recorder.request_added(request)

    def requests_finished(self, requests: Sequence[Request], status: RequestStatus) -> None:
        if self._inputs_decide():
            self._inputs.append(Ended([request.request_id for request in requests], status))
        elif self._eager:
            self._recorder.requests_finished(requests, status)

    def tokens_proposed(self, draft_token_ids: Mapping[str, Sequence[int]]) -> None:
        if self._inputs_decide():
            self._inputs.append(Proposed({id_: [*ids] for id_, ids in draft_token_ids.items()}))
        elif self._eager:
            self._recorder.tokens_proposed(draft_token_ids)

    def step_planned(self, output: SchedulerOutput) -> None:
        if self._inputs_decide():
            clock = self.scheduler.clock
            self._inputs.append(
                Planned(clock() if clock else None, decisions(self.scheduler, output))
            )
        elif self._eager:
            self._recorder.step_planned(output)

    def step_updated(
        self,
        output: SchedulerOutput,
        sampled_token_ids: Mapping[str, TokenIds],
        finished: Sequence[Request],
    ) -> None:
        if self._inputs_decide():
            self._inputs.append(Updated(output.step, dict(sampled_token_ids)))
        elif self._eager:
            self._recorder.step_updated(output, sampled_token_ids, finished)

    def _inputs_decide(self, this_call_too: bool = True) -> bool:
        """Whether inputs still tell all; if not, the scheduler itself is recorded from here on."""
        if self._eager or self._error is not None:
            return False
        if this_call_too and self._makings == REPLACEABLE(self.scheduler):
            return True
        self.record_eagerly()
        return False

    def record_eagerly(self) -> None:
        """Tell what was noted, and record each step as it happens from here on."""
        try:
            self._catch_up()
        except RuntimeError:  # kept, for whoever looks; the run itself goes on
            return
        self._recorder.follow(self.scheduler)
        self._shadow, self._eager = None, True

    # --- asked by the history -------------------------------------------------------------

    def recorded(self) -> History:
        """The steps so far.

        Raises:
            RuntimeError: if something that no input tells has changed the run.
        """
        if self._error is not None:
            raise self._error
        if not self._eager and (self._shadow is None or self._inputs):
            shadow = self._catch_up()
            self._compare(standing(shadow), standing(self.scheduler))
        return self._recorder.history

    def _catch_up(self) -> Scheduler:
        """The shadow, driven through all that was noted."""
        if self._shadow is None:
            self._shadow = type(self.scheduler)(
                self.history.config, observer=self._recorder, keep_step_stats=False
            )
        while self._inputs:
            self._replay(self._shadow, self._inputs.popleft())
        return self._shadow

    def _replay(self, shadow: Scheduler, item: Input) -> None:
        try:
            match item:
                case Added(request_id, prompt, params, priority, arrival_time, eos_token_ids):
                    shadow.add_request(
                        Request(
                            request_id,
                            prompt,
                            params,
                            priority=priority,
                            arrival_time=arrival_time,
                            eos_token_id=eos_token_ids,
                        )
                    )
                case Ended(request_ids, status):
                    shadow.finish_requests(request_ids, status)
                case Proposed(draft_token_ids):
                    shadow.update_draft_token_ids(draft_token_ids)
                case Planned(time, decided):
                    shadow.clock = None if time is None else lambda: time
                    plan = shadow.schedule()
                    self._plans[plan.step] = plan
                    self._compare(decisions(shadow, plan), decided)
                case Updated(step, sampled):
                    shadow.update_from_output(self._plans.pop(step), sampled)
        except RuntimeError:
            raise
        except Exception as error:  # whatever it is, the scheduler did not meet with it
            raise self._lost(f"{type(error).__name__}: {error}") from error

    def _compare(self, told: Mapping[str, Any], true: Mapping[str, Any]) -> None:
        for name in (*true, *told):
            if told.get(name) != true.get(name):
                raise self._lost(
                    f"run again on its inputs, the scheduler has {name} = "
                    f"{told.get(name)!r:.200}; it had {true.get(name)!r:.200}"
                )

    def _lost(self, reason: str) -> RuntimeError:
        step = self._shadow.step if self._shadow else 0
        self._error = RuntimeError(
            f"the history is lost near step {max(step - 1, 0)}: {reason}. Something that is no "
            f"input has changed the run (a priority set by hand, RUNNING reordered, a method "
            f"replaced, a step cut short). Record each step as it happens: record='eager', or "
            f"Scheduler(config, observer=Recorder())."
        )
        self._inputs.clear()
        return self._error


class LiveHistory(History):
    """The history of a run that goes on: a look at it brings it up to date."""

    def __init__(self, config: SchedulerConfig, log: InputLog) -> None:
        self.config = config
        self._log = log

    @property
    def steps(self) -> list[Snapshot]:  # type: ignore[override]
        return self._log.recorded().steps

    @property
    def pending_inputs(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self._log.recorded().pending_inputs

    def __eq__(self, other: object) -> bool:
        if isinstance(other, LiveHistory):
            other = other._log.recorded()
        return self._log.recorded() == other

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> LiveHistory:
        return LiveHistory(self.config, deepcopy(self._log, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or a pickle, is of what has happened so far."""
        return History, (self.config, self.steps, self.pending_inputs)


def decisions(scheduler: Scheduler, output: SchedulerOutput) -> dict[str, Any]:
    """What a step decided, to tell two runs apart."""
    pool = scheduler.kv_cache_manager.block_pool
    return {
        "step": output.step,
        "scheduled": tuple(output.num_scheduled_tokens),
        "num_scheduled_tokens": tuple(output.num_scheduled_tokens.values()),
        "preempted": tuple(output.preempted_req_ids),
        "num_free_blocks": pool.get_num_free_blocks(),
        "num_hashes": len(pool.cached_block_hash_to_block),
    }


def standing(scheduler: Scheduler) -> dict[str, dict[str, Any]]:
    """Of each unfinished request, what a hand may have changed and no decision shows yet."""
    return {
        request_id: {
            "priority": request.priority,
            "arrival_time": request.arrival_time,
            "max_tokens": request.max_tokens,
            "num_tokens": request.num_tokens,
            "num_computed_tokens": request.num_computed_tokens,
            "status": request.status.name,
        }
        for request_id, request in scheduler.requests.items()
    }
