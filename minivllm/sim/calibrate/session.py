"""The whole of it: make an engine, measure, fit, and judge."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from minivllm.core import SchedulerConfig
from minivllm.sim.calibrate.clock import Reference
from minivllm.sim.calibrate.fitting import fit
from minivllm.sim.calibrate.host import describe
from minivllm.sim.calibrate.judgement import JUDGED, Calibration, compare, mean_error
from minivllm.sim.calibrate.steps import MeasuredRun, replay
from minivllm.sim.calibrate.workloads import HELD_OUT, SEEDS, TRAINING, WIDE
from minivllm.sim.workload import ClosedLoop, Workload

if TYPE_CHECKING:
    from minivllm.engine import LLMEngine


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
        cost.error[f"held_out_mean_{metric}"] = mean_error(judged, metric)
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
