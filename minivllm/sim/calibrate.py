"""From steps of the real engine to a cost model, and how far it is off.

    python -m minivllm.sim.calibrate --out cpu.json

runs the default model here for two or three minutes: a set of workloads to fit to, and others to
judge by. Both are replays in real time: each request is handed to the engine when it is due, as a
server would, and every step's load and seconds are written down.

Needs torch (the engine); the fit itself does not.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from minivllm.core import SamplingParams, SchedulerConfig
from minivllm.core.output import SchedulerOutput
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
    engine: LLMEngine, workload: Workload, *, seed: int = 0, name: str = "run"
) -> MeasuredRun:
    """Play a workload to the engine in real time, and write down what happened.

    Prompts are random tokens, so that no two share a prefix by chance; the engine samples greedily
    and goes on past the end of a text, so that outputs are as long as the workload says.

    Raises:
        ValueError: if the engine holds unfinished requests, or a request does not fit.
    """
    if engine.has_unfinished_requests():
        raise ValueError("engine: it has unfinished requests; let it finish them first")
    run = MeasuredRun(name)
    source = workload.start(seed)
    rng = Random(seed)
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
    started = mark = time.perf_counter()
    try:
        while True:
            now = time.perf_counter() - started
            while source.next_time() <= now:
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
                if source.next_time() == float("inf"):
                    break
                wait = started + source.next_time() - time.perf_counter()
                time.sleep(max(wait, 0.0))
                mark = time.perf_counter()
                continue
            outputs = engine.step()
            end = time.perf_counter()
            if plans:
                run.steps.append((plans.pop(), end - mark))
            mark = end
            for output in outputs:
                if output.error:
                    raise ValueError(output.error)
                times = token_times[output.request_id]
                times.append(end - started)
                if output.finished:
                    _note(run, arrived[output.request_id], times)
                    source.finished(end - started)
    finally:
        engine.scheduler.schedule = schedule  # type: ignore[method-assign]
    run.duration = time.perf_counter() - started
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


def features(load: StepLoad) -> list[float]:
    """A load as the fit sees it: 1, the linear features, the tokens beyond each knot."""
    linear = [float(getattr(load, name)) for name in LINEAR_FEATURES]
    return [1.0, *linear, *(float(max(load.num_tokens - knot, 0)) for knot in KNOTS)]


def fit(
    steps: Sequence[tuple[StepLoad, float]],
    *,
    title: str = "fitted",
    about: dict[str, Any] | None = None,
) -> FittedCost:
    """The cost model closest to measured steps: least squares of the relative error, no
    coefficient negative, fitted again without the steps that lie far off (another process had
    the core, or the garbage collector ran).

    Raises:
        ValueError: on fewer steps than there are coefficients.
    """
    num_features = 1 + len(LINEAR_FEATURES) + len(KNOTS)
    if len(steps) < 2 * num_features:
        raise ValueError(
            f"steps: {len(steps)} are too few to fit {num_features} coefficients; measure at "
            f"least {2 * num_features}"
        )
    kept = list(steps)
    for _ in range(3):
        cost = _to_cost(_least_squares(kept), title, about)
        errors = [abs(cost.step_time(load) / seconds - 1) for load, seconds in kept]
        limit = max(4 * percentile(sorted(errors), 50), 0.05)
        close = [step for step, error in zip(kept, errors, strict=True) if error <= limit]
        if len(close) == len(kept) or len(close) < 2 * num_features:
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
    return FittedCost(cost.constant, cost.linear, cost.slopes, title, error, about or {})


def _to_cost(x: list[float], title: str, about: dict[str, Any] | None) -> FittedCost:
    n = 1 + len(LINEAR_FEATURES)
    return FittedCost(
        x[0],
        dict(zip(LINEAR_FEATURES, x[1:n], strict=True)),
        dict(zip(KNOTS, x[n:], strict=True)),
        title,
        about=about or {},
    )


def _least_squares(steps: Sequence[tuple[StepLoad, float]]) -> list[float]:
    """min Σ (x·f / t - 1)² with x >= 0, by coordinate descent on the normal equations."""
    rows = [[value / seconds for value in features(load)] for load, seconds in steps]
    n = len(rows[0])
    scale = [max(max(row[i] for row in rows), 1e-30) for i in range(n)]
    rows = [[value / s for value, s in zip(row, scale, strict=True)] for row in rows]
    gram = [[sum(row[i] * row[j] for row in rows) for j in range(n)] for i in range(n)]
    target = [sum(row[i] for row in rows) for i in range(n)]
    x = [0.0] * n
    for _ in range(20_000):
        change = 0.0
        for i in range(n):
            if gram[i][i] <= 1e-12:
                continue
            gradient = sum(gram[i][j] * x[j] for j in range(n)) - target[i]
            new = max(0.0, x[i] - gradient / gram[i][i])
            change = max(change, abs(new - x[i]))
            x[i] = new
        if change < 1e-10:
            break
    return [value / s for value, s in zip(x, scale, strict=True)]


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


METRICS = ("ttft", "itl", "tpot", "e2e")


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
    **{f"wide, {n} users": ClosedLoop(WIDE, n, num_requests=8 + 3 * n) for n in (1, 3, 8, 20)},
    **{
        f"short, {n} users": ClosedLoop(SHORT, n, num_requests=4 + 2 * n) for n in (1, 2, 5, 12, 28)
    },
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


def make_engine(*, num_threads: int | None = None, **arguments: Any) -> LLMEngine:
    """The default model with room for 32 requests, warmed up."""
    import torch

    from minivllm.engine import LLMEngine

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    arguments = {
        "max_model_len": 1024, "num_gpu_blocks": 2048, "max_num_batched_tokens": 512,
        "max_num_seqs": 32, **arguments,
    }  # fmt: skip
    engine = LLMEngine(**arguments)
    replay(engine, ClosedLoop(WIDE, 4, num_requests=8), seed=99, name="warm-up")
    return engine


@dataclass
class Calibration:
    """A fitted cost model, and how well it predicts what it has not seen."""

    cost: FittedCost
    training: list[Validation]
    held_out: list[Validation]

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


def calibrate(
    engine: LLMEngine,
    *,
    training: dict[str, Workload] | None = None,
    held_out: dict[str, Workload] | None = None,
    title: str = "fitted",
) -> Calibration:
    """Measure, fit, and judge: see the module's text."""
    training = TRAINING if training is None else training
    held_out = HELD_OUT if held_out is None else held_out
    runs = {name: replay(engine, w, seed=1, name=name) for name, w in training.items()}
    cost = fit([s for run in runs.values() for s in run.steps], title=title, about=describe(engine))
    judged = {name: replay(engine, w, seed=2, name=name) for name, w in held_out.items()}
    config = engine.scheduler.config
    seen = [v for n, r in runs.items() for v in compare(r, training[n], cost, config, seed=1)]
    unseen = [v for n, r in judged.items() for v in compare(r, held_out[n], cost, config, seed=2)]
    cost.error["held_out_mean_ttft"] = _mean_error(unseen, "ttft")
    cost.error["held_out_mean_itl"] = _mean_error(unseen, "itl")
    return Calibration(cost, seen, unseen)


def _mean_error(rows: Iterable[Validation], metric: str) -> float:
    errors = [abs(row.error) for row in rows if row.metric == metric]
    return sum(errors) / len(errors)


def describe(engine: LLMEngine) -> dict[str, Any]:
    """What was measured on what: for the record in the JSON file."""
    import torch

    return {
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "device": engine.device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "scheduler": engine.scheduler.config.to_dict(),
    }


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
    parser.add_argument("--out", type=Path, help="write the cost model here, as JSON")
    parser.add_argument("--rows", type=Path, help="write the comparison here, as JSON")
    parser.add_argument("--threads", type=int, help="CPU threads that torch may use")
    options = parser.parse_args(arguments)
    engine = make_engine(num_threads=options.threads)
    result = calibrate(engine, title="smollm2-135m on this CPU, fitted")
    print(result.table())
    print("\n" + "\n".join(f"{key:<28}{value:>12.4f}" for key, value in result.cost.error.items()))
    if options.out:
        result.cost.save(options.out)
    if options.rows:
        rows = {
            "training": [row.to_dict() for row in result.training],
            "held_out": [row.to_dict() for row in result.held_out],
        }
        options.rows.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
