"""Calibration: a known machine is found again, a poor measurement refused, a file not trusted.

The machine is made up: our scheduler, and a clock that a cost model moves. So what the fit should
find is known, and no test depends on how busy this computer is. One test runs the real engine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig
from minivllm.sim import calibrate as cal
from minivllm.sim.calibrate import session, workloads
from minivllm.sim.cost import CostModel, FittedCost, StepLoad, roofline
from minivllm.sim.lengths import Constant, UniformLength
from minivllm.sim.simulate import simulate
from minivllm.sim.trace import Trace
from minivllm.sim.workload import ClosedLoop, OpenLoop, Workload

TRUTH = FittedCost(
    0.04,
    {"num_reqs": 0.002, "num_sampled": 0.001, "kv_tokens": 2e-6, "attention_pairs": 3e-7},
    {0: 0.001, 16: 0.0015},
)

CONFIG = SchedulerConfig(
    num_gpu_blocks=2048, max_model_len=1024, max_num_batched_tokens=512, max_num_seqs=32
)


class MadeUpClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class MadeUpEngine:
    """What `replay` needs of an engine; a step takes what `cost` says, give or take `noise`."""

    def __init__(self, clock: MadeUpClock, cost: CostModel, noise: float = 0.0) -> None:
        self.clock, self.cost, self.noise = clock, cost, noise
        self.rng = Random(5)
        self.scheduler = Scheduler(CONFIG)
        self.model_config = SimpleNamespace(vocab_size=1000)

    def has_unfinished_requests(self) -> bool:
        return self.scheduler.has_unfinished_requests()

    def add_request(
        self, request_id: str, prompt: list[int], params: SamplingParams, *, priority: int = 0
    ) -> None:
        self.scheduler.add_request(Request(request_id, prompt, params, priority=priority))

    def step(self) -> list[Any]:
        plan = self.scheduler.schedule()
        seconds = self.cost.step_time(StepLoad.of_plan(plan))
        self.clock.now += seconds * math.exp(self.noise * self.rng.gauss(0, 1))
        requests = [self.scheduler.requests[i] for i in plan.num_scheduled_tokens]
        tokens = {r.request_id: 1 for r in requests if r.is_caught_up}
        return [
            SimpleNamespace(
                request_id=o.request_id, finished=o.finish_reason is not None, error=None
            )
            for o in self.scheduler.update_from_output(plan, tokens)
        ]


MakeEngine = Callable[..., Any]


def made_up(patch: pytest.MonkeyPatch, cost: CostModel = TRUTH, noise: float = 0.0) -> MadeUpEngine:
    clock = MadeUpClock()
    patch.setitem(cal.CLOCKS, "cpu", clock)
    patch.setattr(session, "describe", lambda engine: {"machine": "made up"})
    return MadeUpEngine(clock, cost, noise)


@pytest.fixture
def make_engine(monkeypatch: pytest.MonkeyPatch) -> MakeEngine:
    return partial(made_up, monkeypatch)


def random_loads(count: int, seed: int = 0) -> list[StepLoad]:
    """Batches of decodes, some with a chunk of a prompt."""
    rng = Random(seed)
    loads = []
    for index in range(count):
        load = StepLoad()
        for _ in range(rng.randint(1, 24)):
            load.add(1, rng.randint(2, 600), True)
        if index % 3 == 0:
            chunk = rng.randint(2, 400)
            load.add(chunk, chunk + rng.randint(0, 200), rng.random() < 0.5)
        loads.append(load)
    return loads


# --- the fit ----------------------------------------------------------------------------------


def test_a_known_machine_is_found_again() -> None:
    cost = cal.fit([(load, TRUTH.step_time(load)) for load in random_loads(300)])
    fresh = [(load, TRUTH.step_time(load)) for load in random_loads(200, seed=1)]
    for load, seconds in fresh:
        assert cost.step_time(load) == pytest.approx(seconds, rel=0.02)
    assert cost.constant == pytest.approx(TRUTH.constant, rel=0.05)
    assert cost.error["mean_relative_error"] < 0.01
    assert cost.error["num_steps"] == 300


def test_a_machine_that_dislikes_some_sizes_is_found_too() -> None:
    """As measured here: three rows take longer than four, and beyond four the line gets flatter."""
    crooked = replace(TRUTH, slopes={0: 0.010, 4: -0.007, 64: 0.001}, bumps={2: 0.02, 3: 0.04})
    rng = Random(8)
    loads = []
    for index in range(400):
        load = StepLoad()
        for _ in range(1 + index % 6):
            load.add(1, rng.randint(2, 600), True)
        if index % 5 == 0:
            load.add(rng.randint(2, 300), 300, True)
        loads.append(load)
    cost = cal.fit([(load, crooked.step_time(load)) for load in loads])
    for load in loads:
        assert cost.step_time(load) == pytest.approx(crooked.step_time(load), rel=0.01)
    assert cost.bumps == pytest.approx(crooked.bumps, rel=0.05)
    assert FittedCost.from_dict(json.loads(json.dumps(cost.to_dict()))) == cost


def test_noise_averages_out_and_disturbed_steps_are_left_out() -> None:
    rng = Random(2)
    steps = []
    for index, load in enumerate(random_loads(600)):
        seconds = TRUTH.step_time(load) * math.exp(0.05 * rng.gauss(0, 1))
        steps.append((load, seconds * (6.0 if index % 25 == 0 else 1.0)))  # someone took the core
    cost = cal.fit(steps)
    errors = [cost.step_time(load) / TRUTH.step_time(load) - 1 for load in random_loads(200, 1)]
    assert abs(sum(errors) / len(errors)) < 0.02
    assert max(map(abs, errors)) < 0.1
    assert cost.error["num_steps_left_out"] >= 24
    assert cost.error["mean_relative_error_kept"] < cost.error["mean_relative_error"]


def test_no_coefficient_is_negative_so_that_more_never_costs_less() -> None:
    rng = Random(3)
    steps = [(load, rng.uniform(0.01, 0.02)) for load in random_loads(200)]  # nothing to be found
    cost = cal.fit(steps)
    assert min([cost.constant, *cost.linear.values(), *cost.bumps.values()]) >= 0
    smooth = replace(cost, bumps={})
    times = [smooth.step_time(StepLoad(num_tokens=n)) for n in range(1, 600)]
    assert all(less <= more + 1e-12 for less, more in pairwise(times))
    with pytest.raises(ValueError, match="coefficient of 16"):
        FittedCost(0.1, {}, {0: 0.001, 16: -0.0011})


def few(steps: list[tuple[StepLoad, float]]) -> list[tuple[StepLoad, float]]:
    return steps[:21]


def one_batch_size(steps: list[tuple[StepLoad, float]]) -> list[tuple[StepLoad, float]]:
    return [s for s in steps if s[0].num_tokens > s[0].num_reqs or s[0].num_reqs in (4, 5)]


def no_prompts(steps: list[tuple[StepLoad, float]]) -> list[tuple[StepLoad, float]]:
    return [s for s in steps if s[0].num_tokens == s[0].num_reqs]


def alike(steps: list[tuple[StepLoad, float]]) -> list[tuple[StepLoad, float]]:
    return [steps[1]] * 500


def zero(steps: list[tuple[StepLoad, float]]) -> list[tuple[StepLoad, float]]:
    return [*steps, (steps[0][0], 0.0)]


def not_a_number(steps: list[tuple[StepLoad, float]]) -> list[tuple[StepLoad, float]]:
    return [*steps, (steps[0][0], math.nan)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (few, "21 are too few"),
        (one_batch_size, "2 batch sizes, at least 3"),
        (no_prompts, "0 different numbers of tokens"),
        (alike, "1 batch sizes"),
        (zero, "seconds of a step must be greater than 0"),
        (not_a_number, "seconds of a step must be a finite number"),
    ],
)
def test_a_poor_measurement_is_refused(spoil: Callable[..., Any], message: str) -> None:
    steps = [(load, TRUTH.step_time(load)) for load in random_loads(300)]
    with pytest.raises(ValueError, match=message):
        cal.fit(spoil(steps))


# --- the replay -------------------------------------------------------------------------------


def test_a_replay_is_what_the_simulator_says(make_engine: MakeEngine) -> None:
    """On a machine that is the cost model, measured and simulated must be one."""
    mix = cal.WIDE
    for workload in (
        ClosedLoop(mix, 5, num_requests=20),
        ClosedLoop(mix, 3, 0.7, num_requests=12),
        OpenLoop(mix, 0.9, num_requests=20),
    ):
        run = cal.replay(make_engine(), workload, seed=4)
        assert len(run.ttft) == workload.num_requests
        rows = cal.compare(run, workload, TRUTH, CONFIG, seed=4)
        assert [row.metric for row in rows] == list(cal.METRICS)
        for row in rows:
            assert abs(row.error) < 1e-6, row
        assert sum(seconds for _, seconds in run.steps) <= run.duration + 1e-9


def test_idle_time_is_skipped_and_nobody_is_served_early(make_engine: MakeEngine) -> None:
    engine = make_engine()
    workload = OpenLoop(cal.SHORT, 0.001, num_requests=3, burstiness=math.inf)
    run = cal.replay(engine, workload)
    assert engine.clock.now < 60 < 3000 < run.duration  # the machine worked for seconds only
    assert min(run.ttft) > 0
    assert max(seconds for _, seconds in run.steps) < 1  # no step is charged with the idling


def test_a_busy_engine_and_an_unknown_clock_are_refused(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add_request("early", [1, 2, 3], SamplingParams(max_tokens=2))
    with pytest.raises(ValueError, match="unfinished"):
        cal.replay(engine, ClosedLoop(cal.SHORT, 1, num_requests=1))
    with pytest.raises(ValueError, match=r"clock must be one of cpu, wall"):
        cal.replay(make_engine(), ClosedLoop(cal.SHORT, 1, num_requests=1), clock="sundial")


class SlowSpell:
    """A reference of a machine that is `factor` times slower, and says so."""

    EVERY = 5

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def pace(self) -> float:
        return 1 / self.factor


def test_at_the_references_pace_a_slow_machine_measures_as_the_usual_one(
    make_engine: MakeEngine,
) -> None:
    @dataclass
    class Slowed:
        factor: float = 1.4

        def step_time(self, load: StepLoad) -> float:
            return self.factor * TRUTH.step_time(load)

    workload = OpenLoop(cal.WIDE, 0.9, num_requests=20)
    for reference, error in ((SlowSpell(1.4), 0.0), (None, 1 / 1.4 - 1)):
        run = cal.replay(make_engine(Slowed()), workload, seed=4, reference=reference)
        rows = {row.metric: row.error for row in cal.compare(run, workload, TRUTH, CONFIG, seed=4)}
        assert rows["ttft"] < error + 1e-6
        if reference is not None:
            assert max(map(abs, rows.values())) < 1e-6
        else:
            assert max(rows.values()) < -0.2


def test_a_replays_clock_can_stand_jump_and_change_its_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = MadeUpClock()
    monkeypatch.setitem(cal.CLOCKS, "cpu", clock)
    watch = cal.ReplayClock()
    clock.now += 2
    with watch.stopped():
        clock.now += 100
    clock.now += 1
    assert watch.now() == 3
    watch.set_pace(0.5)
    clock.now += 4
    assert watch.now() == 5
    watch.jump_to(9)
    watch.jump_to(6)  # gone by
    clock.now += 2
    assert watch.now() == 10


def test_a_replay_leaves_the_engine_as_it_was(make_engine: MakeEngine) -> None:
    engine = make_engine()
    schedule = engine.scheduler.schedule
    cal.replay(engine, ClosedLoop(cal.SHORT, 2, num_requests=4))
    assert engine.scheduler.schedule == schedule
    assert not engine.has_unfinished_requests()


# --- the judgement ----------------------------------------------------------------------------

FEW_USERS: dict[str, Workload] = {
    **{f"wide {n}": ClosedLoop(cal.WIDE, n, num_requests=2 * n + 4) for n in (1, 4, 12)},
    "short": ClosedLoop(cal.SHORT, 8, num_requests=20),
}
UNSEEN: dict[str, Workload] = {
    "open": OpenLoop(cal.SHORT, 1.0, num_requests=15),
    "long": ClosedLoop(
        workloads.mix("long", UniformLength(300, 700), Constant(9)), 2, num_requests=6
    ),
}


@dataclass
class Case:
    machine: CostModel
    noise: float
    tolerance: float


@pytest.mark.parametrize(
    "case",
    [
        Case(TRUTH, 0.0, 0.02),
        Case(TRUTH, 0.08, 0.10),
        Case(roofline("smollm2-135m", "cpu"), 0.0, cal.TARGET),  # bent where the fit has no knot
    ],
    ids=["its own form", "noisy", "a roofline"],
)
def test_the_error_is_that_of_unseen_workloads(make_engine: MakeEngine, case: Case) -> None:
    engine = make_engine(case.machine, case.noise)
    result = cal.calibrate(engine, training=FEW_USERS, held_out=UNSEEN, title="made up")
    assert {row.name for row in result.held_out} == set(UNSEEN)
    assert {row.name for row in result.training} == set(FEW_USERS)
    error = result.cost.error
    for metric in cal.JUDGED:
        own = [abs(row.error) for row in result.held_out if row.metric == metric]
        assert error[f"held_out_mean_{metric}"] == pytest.approx(sum(own) / len(own))
        assert error[f"held_out_worst_{metric}"] == max(own) == abs(result.worst(metric).error)
        assert max(own) < case.tolerance
    assert result.cost.about == {"clock": "cpu", "paced": False, "machine": "made up"}
    text = result.table()
    assert all(name in text for name in [*FEW_USERS, *UNSEEN])
    with pytest.raises(ValueError, match="'ttfb' is not among"):
        result.worst("ttfb")


def test_a_machine_that_changes_after_the_fit_shows_in_the_error(make_engine: MakeEngine) -> None:
    """The report is no formality: another machine than the fitted one is caught."""
    slower = replace(TRUTH, constant=2 * TRUTH.constant)
    run = cal.replay(make_engine(slower), UNSEEN["open"], seed=2)
    rows = cal.compare(run, UNSEEN["open"], TRUTH, CONFIG, seed=2)
    assert {row.metric: row.error for row in rows}["itl"] < -0.3


# --- the file ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def calibration() -> cal.Calibration:
    with pytest.MonkeyPatch.context() as patch:
        engine = made_up(patch)
        return cal.calibrate(engine, training=FEW_USERS, held_out=UNSEEN, title="made up")


def test_a_calibration_is_read_as_it_was_written(
    calibration: cal.Calibration, tmp_path: Path
) -> None:
    path = tmp_path / "made-up.json"
    calibration.save(path)
    again = cal.Calibration.load(path)
    assert again == calibration
    # The cost model can be had alone, by whoever does not ask how good it is.
    assert FittedCost.load(path) == calibration.cost
    load = random_loads(1)[0]
    assert again.cost.step_time(load) == calibration.cost.step_time(load)


SPOIL: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another format": (lambda d: d.update(format="json"), "format: not a minivllm-calibration"),
    "no format": (lambda d: d.pop("format"), "format"),
    "a later version": (lambda d: d.update(version=99), "version: 99, this code reads 1"),
    "no constant": (lambda d: d.pop("constant"), "constant"),
    "a negative slope": (lambda d: d["slopes"].update({"4": -1.0}), "coefficient of 4"),
    "NaN": (lambda d: d.update(constant=math.nan), "constant must be a finite number"),
    "an unknown feature": (lambda d: d["linear"].update(phase=1.0), "phase"),
    "no rows": (lambda d: d.pop("held_out"), "held_out"),
    "empty rows": (lambda d: d.update(held_out=[]), "held_out: no row"),
    "a row's mean": (lambda d: d["held_out"][0].update(measured=0), "measured must be greater"),
    "a row's metric": (lambda d: d["held_out"][0].update(metric="qps"), "metric must be one of"),
    "no error": (lambda d: d["error"].pop("held_out_mean_ttft"), "held_out_mean_ttft"),
    "a better error": (lambda d: d["error"].update(held_out_mean_itl=0.5), "held_out_mean_itl"),
}


@pytest.mark.parametrize("spoil", SPOIL)
def test_a_file_that_is_not_right_is_refused(
    spoil: str, calibration: cal.Calibration, tmp_path: Path
) -> None:
    change, message = SPOIL[spoil]
    data = json.loads(json.dumps(calibration.to_dict()))
    change(data)
    path = tmp_path / "spoilt.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message) as caught:
        cal.Calibration.load(path)
    assert "spoilt.json" in str(caught.value)


def test_what_is_no_calibration_at_all_is_refused(tmp_path: Path) -> None:
    for text in ("", "[]", "{", '"minivllm-calibration"'):
        path = tmp_path / "other.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=r"other\.json"):
            cal.Calibration.load(path)


def test_the_recorded_calibration_keeps_what_the_project_promises() -> None:
    recorded = cal.recorded()
    assert {row.name for row in recorded.held_out} == set(cal.HELD_OUT)
    assert not set(cal.HELD_OUT) & {row.name for row in recorded.training}
    for metric in cal.JUDGED:
        assert recorded.cost.error[f"held_out_worst_{metric}"] < cal.TARGET
        assert abs(recorded.worst(metric).error) < cal.TARGET
    for key in ("cpu", "date", "threads", "clock", "dtype", "torch"):
        assert recorded.cost.about[key]
    # It is no other than a prediction: the simulator, asked again, says the same.
    name, workload = next(iter(cal.HELD_OUT.items()))
    config = SchedulerConfig.from_dict(recorded.cost.about["scheduler"])
    again = simulate(workload, recorded.cost, config, seed=2)
    [row] = [r for r in recorded.held_out if r.name == name and r.metric == "ttft"]
    assert again.ttft.mean == pytest.approx(row.predicted)


def test_the_workloads_overlap_in_nothing_but_the_machine() -> None:
    for name, workload in {**cal.TRAINING, **cal.HELD_OUT}.items():
        assert workload.num_requests, name
    assert not {w.mix for w in cal.TRAINING.values()} & {w.mix for w in cal.HELD_OUT.values()}


# --- the real engine --------------------------------------------------------------------------


def test_the_real_engine_can_be_replayed() -> None:
    pytest.importorskip("torch")
    engine = cal.make_engine(max_model_len=64, num_gpu_blocks=64, warm_up=False)
    workload = Trace.record(
        OpenLoop(workloads.mix("tiny", UniformLength(2, 8), Constant(3)), 50.0, num_requests=3), 0
    )
    run = cal.replay(engine, workload)
    assert len(run.ttft) == 3
    assert len(run.itl) == 6
    assert sum(load.num_sampled for load, _ in run.steps) == 9
    assert all(seconds > 0 for _, seconds in run.steps)
    reference = cal.Reference()
    assert reference.baseline > 0
    assert reference.pace() > 0
    assert cal.replay(engine, workload, name="paced", reference=reference).itl
    about = cal.describe(engine)
    assert about["threads"] == 1
    assert json.loads(json.dumps(about)) == about
