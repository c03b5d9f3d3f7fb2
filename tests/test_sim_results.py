"""What a run gives: histograms, buckets of time, objectives, and their agreement."""

from __future__ import annotations

import json
import math

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from minivllm.core import SchedulerConfig
from minivllm.sim import (
    SLO,
    ClosedLoop,
    FixedCost,
    Mix,
    OpenLoop,
    RequestRecord,
    UniformLength,
    get_mix,
    simulate,
)
from minivllm.sim.results import Histogram, Timeline, mean_and_half_width, percentile

seconds = st.floats(1e-6, 1e5)


@given(st.lists(seconds, min_size=1, max_size=60), st.floats(0, 100))
def test_a_percentile_lies_between_its_neighbours(values, percent):
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    found = percentile(ordered, percent)
    low, high = ordered[math.floor(place)], ordered[min(math.ceil(place), len(ordered) - 1)]
    assert low * (1 - 1e-12) <= found <= high * (1 + 1e-12)
    assert percentile(ordered, 0) == ordered[0]
    assert percentile(ordered, 100) == ordered[-1]


def test_percentiles_of_known_values():
    assert percentile([1, 2, 3, 4], 50) == 2.5
    assert percentile(list(range(101)), 99) == 99
    assert math.isnan(percentile([], 50))


@settings(deadline=None)
@given(st.lists(seconds, min_size=1, max_size=60), st.floats(0, 100))
def test_a_histogram_knows_percentiles_to_a_bin(values, percent):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    assert histogram.mean == pytest.approx(sum(values) / len(values))
    assert (histogram.low, histogram.high) == (min(values), max(values))
    exact = sorted(values)[int((len(values) - 1) * percent / 100)]
    assert histogram.percentile(percent) == pytest.approx(exact, rel=0.011)
    points = histogram.points()
    assert points == sorted(points)
    assert points[-1] == (pytest.approx(max(values)), 1.0)


def test_a_histogram_takes_values_many_at_a_time_and_out_of_range():
    one, many = Histogram(), Histogram()
    for _ in range(5):
        one.add(0.25)
    many.add(0.25, 5)
    assert (one.counts, one.total, one.percentile(50)) == (many.counts, 1.25, many.percentile(50))
    many.add(0.0)
    many.add(1e9)
    assert many.percentile(0) == 0.0
    assert many.percentile(100) == 1e9
    assert math.isnan(Histogram().percentile(50))
    assert math.isnan(Histogram().mean)


spans = st.lists(
    st.tuples(st.floats(0, 500), st.floats(0.001, 60), st.integers(0, 50), st.booleans()),
    min_size=1,
    max_size=30,
)


@settings(deadline=None)
@given(spans, st.integers(2, 40))
def test_a_timeline_keeps_its_integrals_whatever_its_width(spans, size):
    timeline = Timeline(size)
    for start, length, count, busy in spans:
        timeline.add_span(start, start + length, count, count // 2, 0.5, busy)
        timeline.at(start).arrivals += 1
    assert len(timeline.buckets) <= 2 * size
    assert sum(b.arrivals for b in timeline.buckets) == len(spans)
    assert sum(b.in_system for b in timeline.buckets) == pytest.approx(
        sum(length * count for _, length, count, _ in spans)
    )
    assert sum(b.busy for b in timeline.buckets) == pytest.approx(
        sum(length for _, length, _, busy in spans if busy)
    )
    assert max(b.max_kv_usage for b in timeline.buckets) in (0.0, 0.5)
    rows = timeline.to_rows()
    assert sum(row["in_system"] for row in rows) * timeline.width == pytest.approx(
        sum(b.in_system for b in timeline.buckets)
    )


def test_a_confidence_interval_holds_the_mean_as_often_as_it_says():
    """Of 400 samples of eleven uniform numbers, about 95 % of the intervals hold 1/2."""
    from random import Random

    rng = Random(0)
    held = 0
    for _ in range(400):
        mean, half_width = mean_and_half_width([rng.random() for _ in range(11)])
        held += abs(mean - 0.5) <= half_width
    assert 0.92 <= held / 400 <= 0.98
    assert mean_and_half_width([3.0]) == (3.0, math.inf)


# --- objectives -----------------------------------------------------------------------------


def record(**values):
    base = {
        "index": 0, "kind": "", "arrival": 0.0, "prompt_len": 5, "output_len": 5, "priority": 0,
        "queue_time": 0.1, "ttft": 0.5, "tpot": 0.05, "max_itl": 0.1, "e2e": 2.0,
        "num_preemptions": 0, "num_cached_tokens": 0,
    }  # fmt: skip
    return RequestRecord(**{**base, **values})


@pytest.mark.parametrize(
    ("slo", "met"),
    [
        (SLO(ttft=0.5), True),
        (SLO(ttft=0.49), False),
        (SLO(tpot=0.05), True),
        (SLO(tpot=0.049), False),
        (SLO(max_itl=0.1), True),
        (SLO(max_itl=0.09), False),
        (SLO(e2e=2.0), True),
        (SLO(e2e=1.9), False),
        (SLO(ttft=1, tpot=1, max_itl=1, e2e=1), False),
    ],
)
def test_an_objective_is_met_up_to_its_limit(slo, met):
    assert slo.met(record()) is met


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, ("ttft, tpot, max_itl or e2e",)),
        ({"ttft": 0}, ("ttft", "greater than 0", "0")),
        ({"tpot": -1}, ("tpot", "-1")),
        ({"e2e": math.nan}, ("e2e", "nan")),
        ({"max_itl": math.inf}, ("max_itl", "inf")),
        ({"ttft": "1"}, ("ttft", "'1'")),
        ({"ttft": True}, ("ttft", "True")),
    ],
)
def test_an_objective_that_is_none_is_named(limits, words):
    with pytest.raises(ValueError) as caught:
        SLO(**limits)
    for word in words:
        assert word in str(caught.value)


CONFIG = SchedulerConfig(num_gpu_blocks=300, block_size=4, max_model_len=200, max_num_seqs=16)
TWO_KINDS = Mix(
    "two",
    (
        (1.0, Mix.of("short", UniformLength(1, 9), UniformLength(1, 9)).parts[0][1]),
        (1.0, Mix.of("long", UniformLength(60, 90), UniformLength(20, 40)).parts[0][1]),
    ),
)


@pytest.fixture(scope="module")
def result():
    return simulate(OpenLoop(TWO_KINDS, 10, num_requests=400), FixedCost(0.02), CONFIG)


def test_goodput_is_the_share_that_met_the_objective(result):
    slo = SLO(e2e=0.3)
    met = sum(r.e2e <= 0.3 for r in result.records)
    assert 0 < met < 400
    assert result.attainment(slo) == met / 400
    assert result.goodput(slo) == pytest.approx(met / result.duration)
    assert result.summary(slo)["goodput"] == result.goodput(slo)
    assert result.attainment(SLO(e2e=1e6)) == 1
    assert result.goodput(SLO(e2e=1e6)) == pytest.approx(result.request_throughput)


def test_the_summary_agrees_with_the_records(result):
    row = result.summary()
    for metric in ("ttft", "e2e", "queue_time"):
        values = sorted(getattr(r, metric) for r in result.records)
        assert row[f"mean_{metric}"] == pytest.approx(sum(values) / 400)
        assert row[f"p99_{metric}"] == pytest.approx(percentile(values, 99))
    # A request with one output token has no time between tokens.
    values = sorted(r.tpot for r in result.records if r.output_len > 1)
    assert len(values) < 400
    assert row["mean_tpot"] == pytest.approx(sum(values) / len(values))
    assert row["p50_tpot"] == pytest.approx(percentile(values, 50))
    assert row["num_finished"] == 400
    assert row["output_throughput"] == pytest.approx(
        sum(r.output_len for r in result.records) / result.duration
    )
    assert row["max_itl"] == pytest.approx(max(r.max_itl for r in result.records))
    assert 0 < row["busy"] <= 1
    assert 0 < row["mean_kv_usage"] <= row["max_kv_usage"] <= 1


def test_kinds_are_told_apart(result):
    assert result.kinds == ["long", "short"]
    both = len(result.values("e2e", "long")) + len(result.values("e2e", "short"))
    assert both == len(result.values("e2e")) == 400
    assert result.percentile("e2e", 50, "long") > result.percentile("e2e", 50, "short")
    assert "long ttft" in result.table()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("latency", 50), ("latency", "ttft", "itl")),
        (("itl", 50, "long"), ("itl", "kind", "tpot")),
        (("ttft", -1), ("percent", "at least 0", "-1")),
        (("ttft", 101), ("percent", "at most 100", "101")),
        (("ttft", math.nan), ("percent", "nan")),
    ],
)
def test_a_bad_question_is_named(result, arguments, words):
    with pytest.raises(ValueError) as caught:
        result.percentile(*arguments)
    for word in words:
        assert word in str(caught.value)


def test_a_window_too_short_for_its_batches_is_named(result):
    with pytest.raises(ValueError, match=r"num_batches=1000 .* buckets"):
        result.littles_law(num_batches=1000)


def test_rows_make_a_data_frame(result):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(result.to_rows())
    assert frame["e2e"].mean() == pytest.approx(result.e2e.mean)


def test_rows_are_flat_and_the_whole_is_json(result):
    rows = result.to_rows()
    assert len(rows) == 400
    assert {type(v) for row in rows for v in row.values()} <= {int, float, str}
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["summary"]["num_finished"] == 400
    assert "records" not in result.to_dict(records=False)
    assert "wall_time" not in json.dumps(data)


def test_a_run_in_which_nothing_finished_still_has_a_table():
    result = simulate(OpenLoop("chat", 5, num_requests=3), FixedCost(0.5),
                      SchedulerConfig(num_gpu_blocks=300), until=1.0)  # fmt: skip
    assert result.num_finished == 0
    assert "0 requests" in result.table()
    assert math.isnan(result.attainment(SLO(ttft=1)))
    assert result.goodput(SLO(ttft=1)) == 0.0


def test_prefix_hits_and_preemptions_reach_the_records():
    workload = ClosedLoop(get_mix("shared-prefix"), 6, num_requests=40)
    config = SchedulerConfig(num_gpu_blocks=260, max_model_len=2048, max_num_seqs=8)
    result = simulate(workload, FixedCost(0.02), config, seed=1)
    hits = sum(r.num_cached_tokens for r in result.records)
    assert 0 < hits <= result.stats["prefix_cache_hits"]
    preemptions = sum(r.num_preemptions for r in result.records)
    assert preemptions == result.stats["num_preemptions"] > 0
    assert preemptions == sum(b.preemptions for b in result.timeline.buckets)
