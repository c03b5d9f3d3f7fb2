"""A workload played to the real engine: each step's load and seconds, each request's times."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

from minivllm.core import SamplingParams
from minivllm.core.output import SchedulerOutput
from minivllm.sim.calibrate.clock import Reference, ReplayClock
from minivllm.sim.cost import StepLoad
from minivllm.sim.workload import Workload

if TYPE_CHECKING:
    from minivllm.engine import LLMEngine


@dataclass
class MeasuredRun:
    """A workload played to the real engine."""

    name: str
    steps: list[tuple[StepLoad, float]] = field(default_factory=list)
    """Load and seconds of each step, from the end of the step before it (or of idling)."""
    ttft: list[float] = field(default_factory=list)
    """Seconds to the first token, of each request."""
    tpot: list[float] = field(default_factory=list)
    """Mean seconds between tokens, of each request with more than one."""
    itl: list[float] = field(default_factory=list)
    """Seconds between tokens, all of them."""
    e2e: list[float] = field(default_factory=list)
    duration: float = 0.0


def replay(
    engine: LLMEngine,
    workload: Workload,
    *,
    seed: int = 0,
    name: str = "run",
    clock: str = "cpu",
    reference: Reference | None = None,
) -> MeasuredRun:
    """Play a workload to the engine, and write down what happened.

    Prompts are random tokens, so that no two share a prefix by chance; the engine samples greedily
    and goes on past the end of a text, so that outputs are as long as the workload says.

    Args:
        engine: with nothing to do.
        workload: who asks for what, and when.
        seed: of the workload, and of the tokens.
        name: of the run.
        clock: in `CLOCKS`. Arrivals are due by it too; while nobody asks it jumps.
        reference: sets the clock's pace, if given.

    Raises:
        ValueError: if the engine holds unfinished requests, or a request does not fit.
    """
    if engine.has_unfinished_requests():
        raise ValueError("engine: it has unfinished requests; let it finish them first")
    run = MeasuredRun(name)
    source = workload.start(seed)
    rng = Random(f"{name} {seed}")  # another run's prompts may be in the prefix cache still
    vocab_size = engine.model_config.vocab_size
    prefixes: dict[str, list[int]] = {}
    arrived: dict[str, float] = {}
    token_times: dict[str, list[float]] = {}
    schedule = engine.scheduler.schedule
    plans: list[StepLoad] = []

    def schedule_and_note() -> SchedulerOutput:
        plan = schedule()
        plans.append(StepLoad.of_plan(plan))
        return plan

    def tokens(count: int) -> list[int]:
        return [int(rng.random() * vocab_size) for _ in range(count)]

    engine.scheduler.schedule = schedule_and_note  # type: ignore[method-assign]
    watch = ReplayClock(clock, 1.0 if reference is None else reference.pace())
    mark = watch.now()
    try:
        while True:
            while source.next_time() <= watch.now():
                with watch.stopped():  # a user writes the prompt, not the engine
                    arrival = source.pop()
                    prefix_len = min(arrival.prefix_len, arrival.prompt_len)
                    prefix = prefixes.setdefault(arrival.prefix_group, tokens(prefix_len))
                    prompt = prefix[:prefix_len] + tokens(arrival.prompt_len - prefix_len)
                request_id = f"{name}-{len(arrived)}"
                params = SamplingParams(
                    max_tokens=arrival.output_len, ignore_eos=True, temperature=0.0
                )
                engine.add_request(request_id, prompt, params, priority=arrival.priority)
                arrived[request_id] = arrival.time
                token_times[request_id] = []
            if not engine.has_unfinished_requests():
                if source.next_time() == math.inf:
                    break
                watch.jump_to(source.next_time())
                mark = watch.now()
                continue
            if reference is not None and len(run.steps) % reference.EVERY == 0:
                with watch.stopped():
                    pace = reference.pace()
                watch.set_pace(pace)
            outputs = engine.step()
            end = watch.now()
            if plans:
                run.steps.append((plans.pop(), end - mark))
            mark = end
            for output in outputs:
                if output.error:
                    raise ValueError(output.error)
                times = token_times[output.request_id]
                times.append(end)
                if output.finished:
                    _note(run, arrived[output.request_id], times)
                    source.finished(end)
    finally:
        engine.scheduler.schedule = schedule  # type: ignore[method-assign]
    run.duration = watch.now()
    return run


def _note(run: MeasuredRun, arrival: float, times: list[float]) -> None:
    """Count a finished request in."""
    run.ttft.append(times[0] - arrival)
    run.e2e.append(times[-1] - arrival)
    gaps = [b - a for a, b in pairwise(times)]
    run.itl += gaps
    if gaps:
        run.tpot.append(sum(gaps) / len(gaps))
