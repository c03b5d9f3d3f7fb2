"""The verdict on a recording, and what-ifs: on servers whose step times are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from minivllm import vllm
from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig
from minivllm.incident import read_recording
from minivllm.incident.__main__ import main
from minivllm.incident.ledger import Ledger
from minivllm.incident.units import duration, unit_of
from minivllm.incident.verdict import _cause, candidates, judge, to_dict, told
from minivllm.incident.what_if import (
    Oracle,
    Pause,
    PausingCost,
    fit_cost,
    measured_means,
    median_error,
    parse_knob,
    relative_errors,
)
from minivllm.sim import StepLoad
from tests.stand_in import CONFIG, TimedServer

DATA = Path(__file__).parent / "data" / "recordings"


def seconds(load: StepLoad) -> float:
    """What a step of the servers here takes."""
    return 0.004 + 0.0005 * load.num_reqs + 0.0002 * load.num_tokens


def recorded(path: Path, monkeypatch, *, ahead: bool = False, rate: float = 30.0, **knobs):
    """A recording of a server whose steps take `seconds`, and the server."""
    config = SchedulerConfig(**{**CONFIG.to_dict(), "num_gpu_blocks": 400, **knobs})
    server = TimedServer(path, monkeypatch, config, seconds, ahead=ahead)
    server.run(num_requests=150, rate=rate)
    return Ledger.of(read_recording(path)), server


@pytest.mark.parametrize("ahead", [False, True])
def test_step_times_and_latencies_are_the_servers(tmp_path, monkeypatch, ahead) -> None:
    ledger, server = recorded(tmp_path / "a.jsonl.gz", monkeypatch, ahead=ahead)
    assert ledger.replay.difference is None
    timed = ledger.timed()
    assert len(timed) == len(server.loads)
    for step, load in zip(timed, server.loads):
        assert step.load == load
        assert step.seconds == pytest.approx(seconds(load), abs=2e-5)
    for name, value in server.means().items():
        assert measured_means(ledger)[name] == pytest.approx(value, rel=1e-3)


def test_a_cost_is_found_again(tmp_path, monkeypatch) -> None:
    ledger, _ = recorded(tmp_path / "a.jsonl.gz", monkeypatch)
    cost = fit_cost(ledger)
    for step in ledger.timed()[::7]:
        assert cost.step_time(step.load) == pytest.approx(seconds(step.load), rel=0.02)
    assert cost.error["median_step_error"] < 0.01


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"max_num_batched_tokens": 8},
        {"max_num_seqs": 2},
        {"num_gpu_blocks": 30},
        {"vllm_version": "0.33.0", "watermark": 0.2, "num_gpu_blocks": 40},
    ],
    ids=lambda knobs: " ".join(knobs) or "as it was",
)
def test_a_what_if_is_what_the_server_would_have_done(tmp_path, monkeypatch, ahead, knobs) -> None:
    """Fit to one configuration, predict another, and run the server under that one."""
    ledger, _ = recorded(tmp_path / "a.jsonl.gz", monkeypatch, ahead=ahead)
    predicted = Oracle(ledger).ask(knobs)
    _, server = recorded(tmp_path / "b.jsonl.gz", monkeypatch, ahead=ahead, **knobs)
    errors = relative_errors(predicted.means, server.means())
    assert median_error(errors) < 0.03, errors
    assert max(map(abs, errors.values())) < 0.06, errors
    preemptions = server.inner.stats.num_preemptions
    assert abs(predicted.result.stats["num_preemptions"] - preemptions) <= max(3, 0.2 * preemptions)


def test_other_knobs_give_other_numbers(tmp_path, monkeypatch) -> None:
    """The test above would pass if knobs did nothing: they do."""
    ledger, _ = recorded(tmp_path / "a.jsonl.gz", monkeypatch)
    oracle = Oracle(ledger)
    as_it_was, few = oracle.ask({}), oracle.ask({"max_num_seqs": 2})
    assert few.means["e2e"] > 1.3 * as_it_was.means["e2e"]


@pytest.mark.parametrize(
    ("knobs", "resource"),
    [
        ({"max_num_seqs": 2}, "seats"),
        ({"max_num_batched_tokens": 8}, "tokens"),
        ({"num_gpu_blocks": 24, "max_num_seqs": 32}, "blocks"),
        ({"long_prefill_token_threshold": 4}, "threshold"),
    ],
)
def test_what_was_short_is_named_and_its_knob_gains(tmp_path, monkeypatch, knobs, resource) -> None:
    ledger, _ = recorded(tmp_path / "a.jsonl.gz", monkeypatch, **knobs)
    verdict = judge(ledger)
    bound = verdict.steps_bound
    assert max(bound, key=lambda name: bound[name]) == resource
    assert 0 < verdict.seconds_bound[resource] <= verdict.busy
    assert candidates(verdict)
    assert verdict.best is not None
    assert verdict.best.means["e2e"] < verdict.tried[0].means["e2e"]
    said = told(verdict)
    assert f"  {resource}" in said
    assert "Largest expected gain: " in said
    assert json.dumps(to_dict(verdict), allow_nan=False)


def test_where_nothing_is_short_no_knob_is_sold(tmp_path, monkeypatch) -> None:
    ledger, _ = recorded(
        tmp_path / "a.jsonl.gz", monkeypatch, rate=2.0, max_num_batched_tokens=2048, max_num_seqs=64
    )
    verdict = judge(ledger)
    assert not any(verdict.steps_bound.values())
    assert verdict.best is None
    assert "Preemptions: none." in told(verdict)


def test_the_recompute_tax_and_who_paid(tmp_path, monkeypatch) -> None:
    ledger, server = recorded(
        tmp_path / "a.jsonl.gz", monkeypatch, num_gpu_blocks=24, max_num_seqs=32, rate=60.0
    )
    stats = server.inner.stats
    assert stats.num_preemptions > 10
    data = to_dict(judge(ledger, try_knobs=False))
    assert data["num_preemptions"] == stats.num_preemptions
    assert data["num_recomputed_tokens"] == stats.num_recomputed_tokens > 0
    assert data["num_computed_tokens"] == stats.num_scheduled_tokens
    paid = data["victims"][0]
    assert paid["seconds"] > 0
    assert paid["tokens"] > 0
    assert sum(victim["times"] for victim in data["victims"]) == stats.num_preemptions


def test_hits_lost_to_eviction_are_those_of_a_cache_that_forgets(tmp_path, monkeypatch) -> None:
    small, _ = recorded(tmp_path / "a.jsonl.gz", monkeypatch, num_gpu_blocks=24)
    large, _ = recorded(tmp_path / "b.jsonl.gz", monkeypatch, num_gpu_blocks=20_000)
    assert large.lost_tokens == 0
    assert small.lost_tokens > 0
    assert small.admitted_tokens == large.admitted_tokens
    assert small.hit_tokens + small.lost_tokens == pytest.approx(large.hit_tokens, rel=0.1)


@pytest.fixture(name="paused", params=[False, True], ids=["sync", "async"])
def make_paused(request, tmp_path, monkeypatch) -> Ledger:
    """One step of the server takes a whole second."""
    slow: list[float] = []

    def with_a_pause(load: StepLoad) -> float:
        slow.append(seconds(load))
        return 1.0 if len(slow) == 100 else slow[-1]

    config = SchedulerConfig(**{**CONFIG.to_dict(), "num_gpu_blocks": 400})
    path = tmp_path / "a.jsonl.gz"
    server = TimedServer(path, monkeypatch, config, with_a_pause, ahead=request.param)
    server.run(num_requests=150, rate=30.0)
    return Ledger.of(read_recording(path))


def test_the_step_behind_a_spike_is_named(paused) -> None:
    """The longest gap is its."""
    slowest = max(paused.timed(), key=lambda step: step.seconds)
    verdict = judge(paused, try_knobs=False)
    spike = verdict.spikes[0]
    assert spike.step is slowest
    assert spike.seconds == pytest.approx(1.0, abs=0.05)
    assert f"step {slowest.step}" in told(verdict)


def test_no_knob_cures_a_pause_of_the_machine(paused) -> None:
    oracle = Oracle(paused)
    (pause,) = oracle.pauses
    assert pause.seconds == pytest.approx(1.0, abs=0.05)
    slowest = max(paused.timed(), key=lambda step: step.seconds)
    assert slowest.start <= pause.start < pause.start + pause.seconds < slowest.end
    assert "stood still 1 time" in oracle.told_pauses
    for blocks in (400, 396, 392, 300):
        knobs = {"num_gpu_blocks": blocks}
        assert oracle.ask(knobs).result.itl.high < 0.2
        assert oracle.ask(knobs, pauses=True).result.itl.high == pytest.approx(1.0, abs=0.05)
    errors = relative_errors(oracle.ask({}, pauses=True).means, measured_means(paused))
    assert max(map(abs, errors.values())) < 0.05


@pytest.mark.parametrize(
    ("begun", "end"),
    [(0, 1), (1, 2), (1.5, 4.5), (3, 9), (4, 9), (5.5, 9.5), (8.5, 9.5)],
)
def test_a_step_goes_on_after_a_pause(begun, end) -> None:
    """It needs a second; the machine stands still from 2 to 4 and from 4.5 to 8.5."""
    cost, pauses = SimpleNamespace(step_time=lambda load: 1.0), [Pause(12, 2), Pause(14.5, 4)]
    clock = SimpleNamespace(now=begun)
    assert PausingCost(cost, pauses, clock, 10.0).step_time(None) == pytest.approx(end - begun)


def test_the_head_of_the_queue_blocks_others(tmp_path, monkeypatch) -> None:
    ledger, _ = recorded(
        tmp_path / "a.jsonl.gz", monkeypatch, num_gpu_blocks=24, max_num_seqs=32, rate=60.0
    )
    verdict = judge(ledger, try_knobs=False)
    steps, time, most = verdict.blocked
    assert steps > 0
    assert time > 0
    assert most > 0
    assert "Head-of-line blocking: in " in told(verdict)


@pytest.mark.parametrize("watermark", [0.0, 0.2, 0.4])
@pytest.mark.parametrize("most", [2, 3, 16])
def test_behind_the_head_are_those_who_run_if_it_goes(watermark, most) -> None:
    """Seats, and the blocks that a watermark keeps free, bound them too."""

    def planned(lengths: list[int]) -> tuple[int, int]:
        scheduler = Scheduler(
            SchedulerConfig(
                num_gpu_blocks=19, block_size=4, max_num_seqs=16, max_num_active_seqs=most,
                watermark=watermark, enable_prefix_caching=False, vllm_version="0.33.0",
            )
        )  # fmt: skip
        for number, length in enumerate(lengths):
            scheduler.add_request(Request(f"r{number}", [0] * length, SamplingParams(max_tokens=2)))
        plan = scheduler.schedule()
        ledger = SimpleNamespace(replay=SimpleNamespace(scheduler=scheduler))
        return len(plan.num_scheduled_tokens), Ledger._behind_head(ledger, plan)

    behind = [12, 12, 12, 12]
    (with_head, blocked), (without, _) = planned([16, 64, *behind]), planned([16, *behind])
    assert with_head == 1
    assert blocked == without - 1


def test_a_knob_that_cannot_be_costs_the_others_nothing(monkeypatch) -> None:
    """max_num_seqs=1 is below max_num_active_seqs=2, and 5 % of 10 blocks are no block."""
    verdict = judge(Ledger.of(read_recording(DATA / "vllm-0.33.0-sync.jsonl.gz")))
    assert "max_num_active_seqs=2" in told(verdict)
    tried = candidates(verdict)
    assert {"max_num_active_seqs": 1} in tried
    assert len(verdict.tried) > 3
    turns = [{"max_num_seqs": 1}, {"watermark": 0.05}, {"num_gpu_blocks": 10}, {"watermark": 0.1}]
    monkeypatch.setattr("minivllm.incident.verdict._turns", lambda *_: turns)
    assert {tuple(knobs.items()) for knobs in candidates(verdict)} == {(("watermark", 0.1),)}


def test_a_victim_is_told_of_its_own_preemption(tmp_path, monkeypatch) -> None:
    ledger, _ = recorded(
        tmp_path / "a.jsonl.gz", monkeypatch, num_gpu_blocks=24, max_num_seqs=32, rate=60.0
    )
    told_of = 0
    for served in ledger.worst(40):
        step = ledger.slowest_of(served.max_itl_from, served.max_itl_from + served.max_itl)
        cause = _cause(ledger, step, served)
        if "preempted" in cause:
            number = int(cause.split()[1].replace(",", ""))
            assert cause.startswith(f"step {number:,} preempted {served.request_id}, ")
            assert number in ledger.victims[served.number].steps
            told_of += 1
    assert told_of > 5


def test_an_error_of_the_size_of_the_gain_is_said(tmp_path, monkeypatch) -> None:
    ledger, _ = recorded(tmp_path / "a.jsonl.gz", monkeypatch, max_num_seqs=2)
    verdict = judge(ledger)
    assert "Beware" not in told(verdict)
    wrong = replace(verdict, trust=dict.fromkeys(verdict.trust, 0.43))
    assert "is predicted 43% off. An error of the size of the gain" in told(wrong)
    unknown = told(replace(verdict, trust={}))
    assert "nothing was measured to hold the configuration as it was against" in unknown
    assert "is predicted" not in unknown


def test_seconds_are_told_in_a_unit_that_fits() -> None:
    assert [duration(s) for s in (1234.0, 2.4, 0.0481, 5e-6, 0.0)] == [
        "1,234 s", "2.40 s", "48.1 ms", "5.00 µs", "0 s"]  # fmt: skip
    assert [unit_of(values)[0] for values in ((0.03, 2.0), (0.0, 0.008), (5e-7,), ())] == [
        "s", "ms", "µs", "s"]  # fmt: skip


def test_larger_blocks_can_be_tried_and_smaller_cannot(tmp_path, monkeypatch) -> None:
    ledger, _ = recorded(tmp_path / "a.jsonl.gz", monkeypatch)
    oracle = Oracle(ledger)
    as_it_was = oracle.ask({}).result.stats["prefix_cache_hits"]
    doubled = oracle.ask({"block_size": 8, "num_gpu_blocks": 200}).result.stats["prefix_cache_hits"]
    assert 0 < doubled <= as_it_was
    with pytest.raises(ValueError, match="hashes of 4 tokens"):
        oracle.ask({"block_size": 2})
    assert oracle.ask({"block_size": 2, "enable_prefix_caching": False}).result.num_finished == 150


@pytest.mark.parametrize(
    ("text", "knobs"),
    [
        ("budget=64", {"max_num_batched_tokens": 64}),
        ("max-num-seqs=8", {"max_num_seqs": 8}),
        ("watermark=0.05", {"watermark": 0.05}),
        ("release=0.33.0,victim=least_computed",
         {"vllm_version": "0.33.0", "victim": "least_computed"}),
        ("blocks=*1.5", {"num_gpu_blocks": "*1.5"}),
        ("enable_prefix_caching=off", {"enable_prefix_caching": False}),
        ("max_num_active_seqs=none", {"max_num_active_seqs": None}),
    ],
)  # fmt: skip
def test_knobs_are_read(text, knobs) -> None:
    assert parse_knob(text) == knobs


@pytest.mark.parametrize("text", ["", "nonsense=1", "budget", "budget=many", "watermark=x",
                                  "enable_prefix_caching=maybe"])  # fmt: skip
def test_what_is_no_knob_is_an_error(text, capsys) -> None:
    with pytest.raises(ValueError, match="--what-if"):
        parse_knob(text)
    assert main([str(DATA / "vllm-0.22.1-sync.jsonl.gz"), "--what-if", text]) == 2


def test_a_knob_that_the_release_lacks_is_an_error(capsys) -> None:
    path = str(DATA / "vllm-0.22.1-sync.jsonl.gz")
    assert main([path, "--what-if", "watermark=0.05"]) == 2
    assert "came with 0.24.0" in capsys.readouterr().err
    assert main([path, "--what-if", "blocks=*x"]) == 2


@pytest.mark.parametrize("path", sorted(DATA.glob("*.gz")), ids=lambda path: path.name)
def test_the_whole_command(path, tmp_path, capsys) -> None:
    pytest.importorskip("plotly")
    page, data = tmp_path / "a.html", tmp_path / "a.json"
    arguments = ["--html", str(page), "--json", str(data), "--what-if", "blocks=*2"]
    assert main([str(path), *arguments]) == 0
    said = capsys.readouterr().out
    assert "as it was" in said
    assert "lies off what was measured by" in said
    verdict = json.loads(data.read_text())
    assert verdict["recording"]["num_identical_steps"] == verdict["recording"]["num_steps"]
    assert len(verdict["asked"]) == 2
    text = page.read_text()
    assert "What happened: " in text
    assert "http" not in text.split("<script>")[0].replace("http-equiv", "")


def test_an_empty_recording_is_judged_too(tmp_path, monkeypatch, capsys) -> None:
    config = SchedulerConfig(**CONFIG.to_dict())
    server = TimedServer(tmp_path / "a.jsonl.gz", monkeypatch, config, seconds)
    server.run(num_requests=0, rate=1.0)
    assert main([str(tmp_path / "a.jsonl.gz")]) == 0
    assert "nothing to judge" in capsys.readouterr().out
    assert vllm.DEFAULT_MB == 256


def test_of_long_recordings_knobs_are_tried_on_the_worst_part(tmp_path, monkeypatch) -> None:
    from minivllm.incident import verdict as module

    ledger, _ = recorded(tmp_path / "a.jsonl.gz", monkeypatch, max_num_seqs=2)
    monkeypatch.setattr(module, "MAX_TRIED", 40)
    verdict = judge(ledger)
    assert any("the 40 requests in a row that took the longest, of 150" in n for n in verdict.notes)
    assert verdict.tried[0].result.num_finished == 40
    assert verdict.tried[0].means["e2e"] > 0.5 * verdict.means["e2e"]
