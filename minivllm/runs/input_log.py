"""Recording that costs next to nothing: note what comes in, and tell the steps when asked.

A scheduler decides by its inputs alone, so its inputs are its history. While it runs, an `InputLog`
notes each of them and no more. When somebody looks at the history, a second scheduler, the
shadow, is driven through what was noted since the last look; it records each step as it happens.

What is not an input ends this: another method, queue or policy, other knobs, a step that was
interrupted. From there on the scheduler itself is recorded, each step as it happens. A change that
no check sees (a priority set by hand) shows when the shadow decides otherwise: the look raises.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from minivllm.core.config import SchedulerConfig
from minivllm.core.output import SchedulerOutput
from minivllm.core.request import Request, RequestStatus
from minivllm.core.sampling_params import SamplingParams
from minivllm.runs.snapshot import History, Snapshot

if TYPE_CHECKING:
    from minivllm.core.scheduler import Scheduler


MAKINGS = attrgetter(
    "__class__",
    "config",
    "waiting",
    "select_victim",
    "add_request",
    "finish_requests",
    "schedule",
    "_schedule_running",
    "_schedule_waiting",
    "_unschedule",
    "_preempt_request",
    "_swap_in",
    "_update_after_schedule",
    "update_from_output",
    "_free_request",
    "kv_cache_manager",
    "kv_cache_manager.__class__",
    "kv_cache_manager.enable_caching",
    "kv_cache_manager.num_cpu_blocks",
    "kv_cache_manager.allocate_slots",
    "kv_cache_manager.get_computed_blocks",
    "kv_cache_manager.free",
    "kv_cache_manager.block_pool",
    "kv_cache_manager.block_pool.num_gpu_blocks",
    "kv_cache_manager.block_pool.enable_caching",
    "kv_cache_manager.block_pool.get_new_blocks",
    "kv_cache_manager.block_pool.free_blocks",
)
"""What a scheduler decides with, besides its inputs and its requests."""


class Added(NamedTuple):
    """A call of `add_request`."""

    request_id: str
    prompt_token_ids: list[int]
    sampling_params: SamplingParams
    priority: int
    arrival_time: float | None
    eos_token_ids: Sequence[int]


class Ended(NamedTuple):
    """A call of `finish_requests`."""

    request_ids: list[str]
    status: RequestStatus


class Scheduled(NamedTuple):
    """A call of `schedule`."""

    time: float | None
    """What the clock said."""
    decisions: dict[str, Any]
    """What the shadow must decide too."""


class Updated(NamedTuple):
    """A call of `update_from_output` with the latest plan."""

    sampled: dict[str, int]


class InputLog:
    """Notes the inputs of one scheduler, and tells its history from them.

    Args:
        scheduler: a new one, of the class `Scheduler`.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.history = LiveHistory(scheduler.config, self)
        self._inputs: deque[Added | Ended | Scheduled | Updated] = deque()
        """Those since the last look."""
        self._makings = MAKINGS(scheduler)
        self._num_hashes = 0
        """After the latest step: nothing changes it in between but who empties the cache."""
        self._output: SchedulerOutput | None = None
        """The latest plan, and below the shadow's."""
        self._interrupted = False
        """A step or an update has begun, and has not ended."""
        self._shadow: Scheduler | None = None
        self._shadow_output: SchedulerOutput | None = None
        self._recorded: History | None = None
        self._error: RuntimeError | None = None

    # --- told by the scheduler ------------------------------------------------------------

    def arrived(self, request: Request) -> None:
        params = request.sampling_params
        as_made = (
            type(request) is Request
            and request.max_tokens == params.max_tokens
            and request.num_tokens == request.num_prompt_tokens
            and request.num_computed_tokens == 0
        )
        if self._inputs_decide(as_made):
            added = (request.request_id, request.prompt_token_ids, copy(params), request.priority)
            eos_token_ids = sorted(request.eos_token_ids)
            self._inputs.append(Added(*added, request.arrival_time, eos_token_ids))

    def finished_from_outside(self, request_ids: Sequence[str], status: RequestStatus) -> None:
        if self._inputs_decide():
            self._inputs.append(Ended(list(request_ids), status))

    def begin_schedule(self) -> None:
        self._interrupted = self._inputs_decide()

    def end_of_schedule(self, output: SchedulerOutput) -> None:
        clock = self.scheduler.clock
        decided = decisions(self.scheduler, output)
        self._inputs.append(Scheduled(clock() if clock else None, decided))
        self._output = output
        self._num_hashes = num_hashes(self.scheduler)
        self._interrupted = False

    def begin_update(self, output: SchedulerOutput) -> None:
        self._interrupted = self._inputs_decide(output is self._output)

    def end_of_update(self, sampled: Mapping[str, int]) -> None:
        self._inputs.append(Updated(dict(sampled)))
        self._interrupted = False

    def _inputs_decide(self, this_call_too: bool = True) -> bool:
        """Whether inputs tell all up to the coming call; if not, the scheduler is recorded itself.

        It tells its log first and its recorder next: whichever is left hears of the call.
        """
        if (
            this_call_too
            and not self._interrupted
            and self._makings == MAKINGS(self.scheduler)
            and self._num_hashes == num_hashes(self.scheduler)
        ):
            return True
        self.scheduler.log = None
        try:
            shadow = self._catch_up()
        except RuntimeError:  # kept, for whoever looks; the run itself goes on
            return False
        recorder = shadow.recorder
        assert recorder is not None
        recorder.listen_to(self.scheduler)
        self.scheduler.recorder = recorder
        self._shadow = self._shadow_output = self._output = None
        return False

    # --- asked by the history -------------------------------------------------------------

    def recorded(self) -> History:
        """The steps so far.

        Raises:
            RuntimeError: if something that no input tells has changed the run.
        """
        if self._error is not None:
            raise self._error
        if self._recorded is None or self._inputs:
            shadow = self._catch_up()
            if not self._interrupted:
                self._compare(standing(shadow), standing(self.scheduler))
        assert self._recorded is not None
        return self._recorded

    def _catch_up(self) -> Scheduler:
        """The shadow, driven through all that was noted."""
        if self._shadow is None:
            scheduler_class = type(self.scheduler)  # an exercise has a `Scheduler` of its own
            config = self.history.config
            self._shadow = scheduler_class(config, record="eager", keep_step_stats=False)
            self._recorded = self._shadow.history
        while self._inputs:
            self._replay(self._shadow, self._inputs.popleft())
        return self._shadow

    def _replay(self, shadow: Scheduler, item: Added | Ended | Scheduled | Updated) -> None:
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
                case Scheduled(time, decided):
                    shadow.clock = None if time is None else lambda: time
                    self._shadow_output = shadow.schedule()
                    self._compare(decisions(shadow, self._shadow_output), decided)
                case Updated(sampled):
                    assert self._shadow_output is not None
                    shadow.update_from_output(self._shadow_output, sampled)
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
            f"input has changed the run (a priority set by hand, RUNNING reordered, other code). "
            f"Build the scheduler with record='eager': each step is recorded as it happens."
        )
        self._inputs.clear()
        self.scheduler.log = None
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


def num_hashes(scheduler: Scheduler) -> int:
    """In the prefix cache."""
    return len(scheduler.kv_cache_manager.block_pool.cached_block_hash_to_block)


def decisions(scheduler: Scheduler, output: SchedulerOutput) -> dict[str, Any]:
    """What a step decided, to tell two runs apart."""
    return {
        "step": output.step,
        "scheduled": tuple(output.num_scheduled_tokens),
        "num_scheduled_tokens": tuple(output.num_scheduled_tokens.values()),
        "preempted": tuple(output.preempted_req_ids),
        "num_free_blocks": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
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
