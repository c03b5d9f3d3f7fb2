"""From steps of the real engine to a cost model, and how far it is off.

    python -m minivllm.sim.calibrate --out cpu.json

runs the default model here for some minutes: a set of workloads to fit to, and others to judge by,
in turns, so that a machine that slows down slows both. Each request is handed to the engine when it
is due, as a server would, and every step's load and seconds are written down; idle time is skipped.

The seconds are those that this process spends on the CPU, with one thread unless told otherwise:
on a machine that does other work too, waiting for a core is not the engine's. `--clock wall` counts
it in. And they are counted at the pace of a `Reference`, unless `--no-pace` is given.

Needs torch (the engine); the fit itself, and reading what was saved, do not.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise, zip_longest
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from minivllm.core import SamplingParams, SchedulerConfig
from minivllm.core.config import check_choice
from minivllm.core.output import SchedulerOutput
from minivllm.sim.checks import check_number
from minivllm.sim.cost import LINEAR_FEATURES, CostModel, FittedCost, StepLoad, mean_relative_error
from minivllm.sim.hardware import HardwareSpec
from minivllm.sim.lengths import Constant, LogNormal, UniformLength
from minivllm.sim.results import percentile
from minivllm.sim.simulate import simulate
from minivllm.sim.workload import ClosedLoop, Mix, OpenLoop, RequestClass, Workload

if TYPE_CHECKING:
    from minivllm.engine import LLMEngine

KNOTS = (0, 4, 16, 64, 256)
"""Where the line in `num_tokens` may bend."""

BUMPS = (2, 3)
"""Numbers of tokens that may take longer than the line says: libraries multiply one row as a
vector, four or more as a matrix, and two or three in neither way well."""

CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}
"""`cpu`: what this process spends on the CPU, all its threads together, so take one thread."""


class ReplayClock:
    """Seconds since the start of a replay: it can jump over idle time, stand still, and run at
    another pace than the clock it reads."""

    def __init__(self, clock: str = "cpu", pace: float = 1.0) -> None:
        check_choice("clock", clock, tuple(CLOCKS))
        self._clock = CLOCKS[clock]
        self._pace = pace
        self._before = 0.0
        self._mark = self._clock()

    def now(self) -> float:
        return self._before + (self._clock() - self._mark) * self._pace

    def jump_to(self, seconds: float) -> None:
        """Nothing is to be done before then."""
        self._before += max(seconds - self.now(), 0.0)

    def set_pace(self, pace: float) -> None:
        """From here on, a second of the clock counts as so many."""
        self._before, self._mark = self.now(), self._clock()
        self._pace = pace

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens inside takes no time."""
        self._before = self.now()
        yield
        self._mark = self._clock()


class Reference:
    """How fast the machine is now, beside when this was made: a fixed computation, timed again.

    On a shared machine even CPU seconds stretch, while neighbours use the memory or the other half
    of a core. A replay asks every `EVERY` steps, and counts its seconds at that pace.

    Half of it reads a large matrix for four rows, as a decode step does; half multiplies small
    matrices, as a prompt does.
    """

    EVERY = 5
    WINDOW = 7

    def __init__(self, clock: str = "cpu") -> None:
        import torch

        self._clock = CLOCKS[clock]
        self._large = torch.rand(49_152, 576), torch.rand(4, 576)
        self._small = torch.rand(1_536, 576), torch.rand(64, 576)
        self._latest: deque[float] = deque(maxlen=self.WINDOW)
        for _ in range(3):
            self._time()
        self.baseline = percentile(sorted(self._time() for _ in range(25)), 50)
        """Seconds that it takes at pace 1."""

    def _time(self) -> float:
        import torch.nn.functional as F

        start = self._clock()
        F.linear(self._large[1], self._large[0])
        for _ in range(8):
            F.linear(self._small[1], self._small[0])
        return self._clock() - start

    def pace(self) -> float:
        """Below 1: slower than at the start, so that a second now counts less."""
        self._latest.append(self._time())
        return self.baseline / percentile(sorted(self._latest), 50)


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


# --- the fit --------------------------------------------------------------------------------


NUM_FEATURES = 1 + len(LINEAR_FEATURES) + len(KNOTS) + len(BUMPS)


def features(load: StepLoad) -> list[float]:
    """A load as the fit sees it: 1, the linear features, the tokens in each stretch between two
    knots, and whether it has a bump."""
    n = load.num_tokens
    linear = [float(getattr(load, name)) for name in LINEAR_FEATURES]
    ends = (*KNOTS[1:], n)
    stretches = [float(max(min(n, max(end, knot)) - knot, 0)) for knot, end in zip(KNOTS, ends)]
    return [1.0, *linear, *stretches, *(float(n == bump) for bump in BUMPS)]


def fit(
    steps: Sequence[tuple[StepLoad, float]],
    *,
    title: str = "fitted",
    about: dict[str, Any] | None = None,
) -> FittedCost:
    """The cost model closest to measured steps: least squares of the relative error, no
    coefficient and no slope negative, fitted again without the steps that lie far off (another
    process had the core, or the garbage collector ran).

    Raises:
        ValueError: on fewer than two steps for each coefficient, on a time that is not positive,
            and on steps too much alike to tell the coefficients apart.
    """
    if len(steps) < 2 * NUM_FEATURES:
        raise ValueError(
            f"steps: {len(steps)} are too few to fit {NUM_FEATURES} coefficients; measure at "
            f"least {2 * NUM_FEATURES}"
        )
    _check_variety(steps)
    kept = list(steps)
    for _ in range(3):
        cost = _to_cost(_least_squares(kept), title, about)
        errors = [abs(cost.step_time(load) / seconds - 1) for load, seconds in kept]
        limit = max(4 * percentile(sorted(errors), 50), MIN_OUTLIER)
        close = [step for step, error in zip(kept, errors, strict=True) if error <= limit]
        if len(close) == len(kept) or len(close) < 2 * NUM_FEATURES:
            break
        kept = close
    cost = _to_cost(_least_squares(kept), title, about)
    seconds = sum(s for _, s in steps)
    error = {
        "num_steps": float(len(steps)),
        "num_steps_left_out": float(len(steps) - len(kept)),
        "mean_relative_error": mean_relative_error(cost, steps),
        "mean_relative_error_kept": mean_relative_error(cost, kept),
        "total_time_error": sum(cost.step_time(load) for load, _ in steps) / seconds - 1,
    }
    return replace(cost, error=error)


MIN_OUTLIER = 0.3
"""A step off by less is never left out: that would hide what the model cannot say."""
MIN_BATCH_SIZES = 3
MIN_PROMPT_LENGTHS = 3


def _check_variety(steps: Sequence[tuple[StepLoad, float]]) -> None:
    """Decodes alone in several batch sizes, and prompts of several lengths, or nothing is known."""
    for _, seconds in steps:
        check_number("seconds of a step", seconds, above=0)
    decodes = {load.num_reqs for load, _ in steps if load.num_tokens == load.num_reqs}
    prompts = {load.num_tokens for load, _ in steps if load.num_tokens > load.num_reqs}
    if len(decodes) < MIN_BATCH_SIZES:
        raise ValueError(
            f"steps: decodes alone come in {len(decodes)} batch sizes, at least {MIN_BATCH_SIZES} "
            f"are needed; measure more users at once"
        )
    if len(prompts) < MIN_PROMPT_LENGTHS:
        raise ValueError(
            f"steps: those with prompts compute {len(prompts)} different numbers of tokens, at "
            f"least {MIN_PROMPT_LENGTHS} are needed; measure prompts of more lengths"
        )


def _to_cost(x: list[float], title: str, about: dict[str, Any] | None) -> FittedCost:
    constant, *rest = x
    parts = iter(rest)
    linear = {name: next(parts) for name in LINEAR_FEATURES}
    stretches = [next(parts) for _ in KNOTS]
    changes = [slope - before for before, slope in zip([0.0, *stretches], stretches)]
    slopes = dict(zip(KNOTS, changes, strict=True))
    bumps = dict(zip(BUMPS, parts, strict=True))
    return FittedCost(constant, linear, slopes, title, about=about or {}, bumps=bumps)


def _least_squares(steps: Sequence[tuple[StepLoad, float]]) -> list[float]:
    """min Σ (x·f / t - 1)² with x >= 0, on the normal equations (Lawson and Hanson 1974, §23.3)."""
    rows = [[value / seconds for value in features(load)] for load, seconds in steps]
    n = len(rows[0])
    scale = [max(max(row[i] for row in rows), 1e-30) for i in range(n)]
    rows = [[value / s for value, s in zip(row, scale, strict=True)] for row in rows]
    gram = [[sum(row[i] * row[j] for row in rows) for j in range(n)] for i in range(n)]
    target = [sum(row[i] for row in rows) for i in range(n)]
    x = [0.0] * n
    free: list[int] = []  # coefficients that may differ from 0
    for _ in range(10 * n):
        slopes = [target[i] - sum(gram[i][j] * x[j] for j in range(n)) for i in range(n)]
        held = [i for i in range(n) if i not in free and slopes[i] > 1e-9 * len(rows)]
        if not held:
            break
        free.append(max(held, key=lambda i: slopes[i]))
        while True:
            best = _solve(gram, target, free)
            if min(best) > 0:
                break
            # Go towards the solution until the first coefficient would turn negative; hold it at 0.
            share, stop = min(
                (x[i] / (x[i] - value), i)
                for i, value in zip(free, best, strict=True)
                if value <= 0
            )
            for i, value in zip(free, best, strict=True):
                x[i] += share * (value - x[i])
            x[stop] = 0.0
            free.remove(stop)
        for i, value in zip(free, best, strict=True):
            x[i] = value
    return [value / s for value, s in zip(x, scale, strict=True)]


def _solve(gram: list[list[float]], target: list[float], free: list[int]) -> list[float]:
    """The least squares of some of the features alone: Gaussian elimination with pivots."""
    n = len(free)
    a = [[gram[i][j] for j in free] + [target[i]] for i in free]
    for k in range(n):
        a[k][k] *= 1 + 1e-12  # features that are alike share what they explain
        pivot = max(range(k, n), key=lambda i: abs(a[i][k]))
        a[k], a[pivot] = a[pivot], a[k]
        for i in range(k + 1, n):
            factor = a[i][k] / a[k][k] if a[k][k] else 0.0
            for j in range(k, n + 1):
                a[i][j] -= factor * a[k][j]
    x = [0.0] * n
    for k in reversed(range(n)):
        rest = a[k][n] - sum(a[k][j] * x[j] for j in range(k + 1, n))
        x[k] = rest / a[k][k] if a[k][k] else 0.0
    return x


# --- the judgement --------------------------------------------------------------------------


@dataclass(frozen=True)
class Validation:
    """A workload measured and simulated: means in seconds."""

    name: str
    metric: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted / measured - 1."""
        return self.predicted / self.measured - 1

    def to_dict(self) -> dict[str, Any]:
        """As a row of a table."""
        return {
            "name": self.name,
            "metric": self.metric,
            "measured": self.measured,
            "predicted": self.predicted,
            "error": self.error,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Validation:
        """The inverse of `to_dict`.

        Raises:
            KeyError: if a column is missing.
            ValueError: if a mean is not a positive number.
        """
        check_choice("metric", data["metric"], METRICS)
        means = [check_number(key, data[key], above=0) for key in ("measured", "predicted")]
        return cls(str(data["name"]), data["metric"], *means)


METRICS = ("ttft", "itl", "tpot", "e2e")
JUDGED = ("ttft", "itl")
"""What the error is reported of."""


def compare(
    run: MeasuredRun, workload: Workload, cost: CostModel, config: SchedulerConfig, *, seed: int = 0
) -> list[Validation]:
    """Lay a measured run beside the simulation of the same arrivals: one row for each mean."""
    result = simulate(workload, cost, config, seed=seed)
    return [
        Validation(
            run.name,
            metric,
            sum(getattr(run, metric)) / len(getattr(run, metric)),
            getattr(result, metric).mean,
        )
        for metric in METRICS
    ]


def _mix(name: str, prompt: Any, output: Any) -> Mix:
    return Mix(name, ((1.0, RequestClass(name, prompt, output)),))


WIDE = _mix("wide", UniformLength(4, 500), UniformLength(2, 32))
SHORT = _mix("short", UniformLength(4, 60), UniformLength(16, 64))

TRAINING: dict[str, Workload] = {
    **{f"wide, {n} users": ClosedLoop(WIDE, n, num_requests=6 + 2 * n) for n in (1, 3, 8, 20)},
    **{f"short, {n} users": ClosedLoop(SHORT, n, num_requests=4 + n) for n in (1, 2, 5, 12, 28)},
}
"""What the fit sees: every batch size, prompts alone, decodes alone, and both together."""

HELD_OUT: dict[str, Workload] = {
    "chat, Poisson, light": OpenLoop(
        _mix("chat", LogNormal(60, 0.6, 400), LogNormal(40, 0.5, 150)), 0.5, num_requests=15
    ),
    "chat, Poisson, busy": OpenLoop(
        _mix("chat", LogNormal(60, 0.6, 400), LogNormal(40, 0.5, 150)), 1.4, num_requests=40
    ),
    "chat, in bursts": OpenLoop(
        _mix("chat", LogNormal(60, 0.6, 400), LogNormal(40, 0.5, 150)),
        0.9, num_requests=25, burstiness=0.25,
    ),
    "documents": OpenLoop(
        _mix("document", LogNormal(500, 0.4, 900), Constant(24)), 0.3, num_requests=10
    ),
    "16 users who think": ClosedLoop(
        _mix("user", UniformLength(20, 250), LogNormal(30, 0.6, 120)), 16, 2.0, num_requests=48
    ),
}  # fmt: skip
"""What it is judged by: other lengths, other arrivals, queues."""


def make_engine(
    *, num_threads: int | None = 1, warm_up: bool = True, **arguments: Any
) -> LLMEngine:
    """The default model with room for 32 requests, warmed up. `num_threads`: of torch; None: as
    many as it likes, and then `clock="wall"` is the clock to take."""
    import torch

    from minivllm.engine import LLMEngine

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    arguments = {
        "max_model_len": 1024, "num_gpu_blocks": 2048, "max_num_batched_tokens": 512,
        "max_num_seqs": 32, **arguments,
    }  # fmt: skip
    engine = LLMEngine(**arguments)
    if warm_up:
        replay(engine, ClosedLoop(WIDE, 4, num_requests=8), seed=99, name="warm-up")
    return engine


FORMAT = "minivllm-calibration"
VERSION = 1
TARGET = 0.15
"""Largest error of a mean, predicted over measured, that this project allows itself."""


@dataclass
class Calibration:
    """A fitted cost model, and how well it predicts what it has not seen."""

    cost: FittedCost
    training: list[Validation]
    held_out: list[Validation]

    def worst(self, metric: str) -> Validation:
        """The held-out workload whose mean of `metric` is predicted worst."""
        rows = [row for row in self.held_out if row.metric == metric]
        if not rows:
            raise ValueError(f"metric {metric!r} is not among {', '.join(METRICS)}")
        return max(rows, key=lambda row: abs(row.error))

    def table(self) -> str:
        """Measured beside predicted."""
        lines = [f"{'workload':<24}{'mean of':<8}{'measured':>10}{'predicted':>11}{'error':>9}"]
        for title, rows in (("fitted to", self.training), ("held out", self.held_out)):
            lines.append(f"-- {title}")
            lines += [
                f"{r.name:<24}{r.metric:<8}{r.measured:>10.4f}{r.predicted:>11.4f}{r.error:>+9.1%}"
                for r in rows
            ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-serialisable data: the cost model's, which can be read alone (`FittedCost.load`),
        and what it was judged by."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **self.cost.to_dict(),
            "training": [row.to_dict() for row in self.training],
            "held_out": [row.to_dict() for row in self.held_out],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Calibration:
        """The inverse of `to_dict`.

        Raises:
            ValueError: on another format or version, a part that is missing or no number, or
                errors that are not those of the rows.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"format: not a {FORMAT}; make one with python -m {__name__}")
        if data.get("version") != VERSION:
            raise ValueError(
                f"version: {data.get('version')!r}, this code reads {VERSION}; calibrate again"
            )
        try:
            cost = FittedCost.from_dict(data)
            rows = [
                [Validation.from_dict(row) for row in data[part]]
                for part in ("training", "held_out")
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"a part of the calibration is missing: {error!r}") from error
        result = cls(cost, *rows)
        for metric in JUDGED:
            key = f"held_out_mean_{metric}"
            stated = check_number(key, cost.error.get(key), least=0)
            if not math.isclose(stated, _mean_error(result.held_out, metric), abs_tol=1e-6):
                raise ValueError(f"{key}: {stated} is not the mean error of the held-out rows")
        return result

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            ValueError: as for `from_dict`, naming the file.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{Path(path).name}: {error}") from error


RECORDED = Path(__file__).with_name("cpu-calibration.json")
"""A calibration made with this file's `main`, kept with the code: see its `about`."""


def recorded() -> Calibration:
    """The calibration that is kept with the code."""
    return Calibration.load(RECORDED)


Runs = dict[str, MeasuredRun]


def measure(
    engine: LLMEngine,
    training: dict[str, Workload],
    held_out: dict[str, Workload],
    *,
    clock: str = "cpu",
    reference: Reference | None = None,
) -> tuple[Runs, Runs]:
    """Replay both sets, one workload of each in turn, so that a machine that slows down slows both.
    Seeds are the set's: `SEEDS`."""
    seen: Runs = {}
    unseen: Runs = {}
    for pairs in zip_longest(training.items(), held_out.items()):
        for pair, runs, seed in zip(pairs, (seen, unseen), SEEDS, strict=True):
            if pair is not None:
                name, workload = pair
                runs[name] = replay(
                    engine, workload, seed=seed, name=name, clock=clock, reference=reference
                )
    return seen, unseen


SEEDS = (1, 2)
"""Of the training workloads, and of those held out."""


def judge(
    seen: Runs,
    unseen: Runs,
    training: dict[str, Workload],
    held_out: dict[str, Workload],
    config: SchedulerConfig,
    *,
    title: str = "fitted",
    about: dict[str, Any] | None = None,
) -> Calibration:
    """Fit to what was `seen`, and lay both sets beside their simulation."""
    cost = fit([s for run in seen.values() for s in run.steps], title=title, about=about)
    fitted, judged = (
        [v for n, run in runs.items() for v in compare(run, sources[n], cost, config, seed=seed)]
        for runs, sources, seed in zip((seen, unseen), (training, held_out), SEEDS, strict=True)
    )
    for metric in JUDGED:
        cost.error[f"held_out_mean_{metric}"] = _mean_error(judged, metric)
        cost.error[f"held_out_worst_{metric}"] = max(
            abs(row.error) for row in judged if row.metric == metric
        )
    return Calibration(cost, fitted, judged)


def calibrate(
    engine: LLMEngine,
    *,
    training: dict[str, Workload] | None = None,
    held_out: dict[str, Workload] | None = None,
    title: str = "fitted",
    clock: str = "cpu",
    reference: Reference | None = None,
) -> Calibration:
    """Measure, fit, and judge: see the module's text."""
    training = TRAINING if training is None else training
    held_out = HELD_OUT if held_out is None else held_out
    seen, unseen = measure(engine, training, held_out, clock=clock, reference=reference)
    return judge(
        seen, unseen, training, held_out, engine.scheduler.config,
        title=title, about={"clock": clock, "paced": reference is not None, **describe(engine)},
    )  # fmt: skip


def _mean_error(rows: Iterable[Validation], metric: str) -> float:
    errors = [abs(row.error) for row in rows if row.metric == metric]
    if not errors:
        raise ValueError(f"held_out: no row of {metric}; it must be judged by something")
    return sum(errors) / len(errors)


def describe(engine: LLMEngine) -> dict[str, Any]:
    """What was measured on what: for the record in the JSON file."""
    import torch

    return {
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "device": engine.device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "scheduler": engine.scheduler.config.to_dict(),
    }


def _cpu_name() -> str:
    """What Linux calls the processor; elsewhere, what Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def measure_host(num_threads: int | None = None) -> HardwareSpec:
    """This machine's CPU as a `HardwareSpec`: a float32 matrix product, and a large copy."""
    import torch

    if num_threads is not None:
        torch.set_num_threads(num_threads)

    def best(action: Any, repeats: int = 5) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            action()
            times.append(time.perf_counter() - start)
        return min(times)

    size = 1536
    a, b = torch.rand(size, size), torch.rand(size, size)
    flops = 2 * size**3 / best(lambda: a @ b)
    source = torch.rand(64 << 20)  # 256 MiB: no cache holds it
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / best(lambda: target.copy_(source))
    return HardwareSpec(
        "cpu", f"this CPU, {torch.get_num_threads()} threads", flops, bandwidth, 4 * 2.0**30,
        bandwidth, bandwidth, "measured: float32 matrix product and copy",
        flops_efficiency=0.7, bandwidth_efficiency=0.8, step_overhead=4e-3, bytes_per_value=4,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: see the module's text."""
    parser = argparse.ArgumentParser(prog="python -m minivllm.sim.calibrate", description=__doc__)
    parser.add_argument("--out", type=Path, help="write the calibration here, as JSON")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads that torch may use")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="cpu", help="what a second is")
    parser.add_argument(
        "--no-pace", action="store_false", dest="pace",
        help="take seconds as they are, on a machine that does nothing else",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    engine = make_engine(num_threads=options.threads)
    result = calibrate(
        engine,
        title="smollm2-135m on a CPU, fitted",
        clock=options.clock,
        reference=Reference(options.clock) if options.pace else None,
    )
    print(result.table())
    print("\n" + "\n".join(f"{key:<28}{value:>12.4f}" for key, value in result.cost.error.items()))
    if options.out:
        result.save(options.out)


if __name__ == "__main__":
    main()
