"""Traffic: the statistics that it is named after, traces, and what is wrong with bad ones."""

from __future__ import annotations

import json
import math
from itertools import islice, pairwise
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from minivllm.sim import (
    MIXES,
    Arrival,
    ClosedLoop,
    Constant,
    Empirical,
    LogNormal,
    Mix,
    OpenLoop,
    RequestClass,
    Trace,
    UniformLength,
    get_mix,
)
from minivllm.sim.lengths import exponential, gamma, normal

ONE = Mix.of("one", Constant(1), Constant(1))


def moments(values):
    """Mean, variance, and the standard errors of both (fourth moment from the sample)."""
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    fourth = math.fsum((v - mean) ** 4 for v in values) / n
    return mean, variance, math.sqrt(variance / n), math.sqrt((fourth - variance**2) / n)


def assert_moments(values, mean, variance):
    """Within four standard errors: once in 16,000 tries by chance, and the seeds are fixed."""
    m, v, m_error, v_error = moments(values)
    assert abs(m - mean) < 4 * m_error + 1e-12, (m, mean, m_error)
    assert abs(v - variance) < 4 * v_error + 1e-12, (v, variance, v_error)


@pytest.mark.parametrize(
    ("draw", "mean", "variance"),
    [
        (normal, 0, 1),
        (exponential, 1, 1),
        (lambda rng: gamma(rng, 0.3), 0.3, 0.3),
        (lambda rng: gamma(rng, 1.0), 1.0, 1.0),
        (lambda rng: gamma(rng, 5.0), 5.0, 5.0),
    ],
)
def test_the_draws_have_their_distributions_moments(draw, mean, variance):
    rng = Random(1)
    assert_moments([draw(rng) for _ in range(20_000)], mean, variance)


def gaps(workload, seed=0):
    times = [0.0] + [arrival.time for arrival in Trace.record(workload, seed).arrivals]
    return [b - a for a, b in pairwise(times)]


def test_poisson_arrivals():
    rate = 7.0
    workload = OpenLoop(ONE, rate, num_requests=20_000)
    assert_moments(gaps(workload, 3), 1 / rate, 1 / rate**2)
    # Counts in windows: mean and variance are both rate · window, and windows are independent.
    times = [arrival.time for arrival in Trace.record(workload, 3).arrivals]
    counts = [0] * int(times[-1])
    for time in times:
        if time < len(counts):
            counts[int(time)] += 1
    assert_moments(counts, rate, rate)
    mean = sum(counts) / len(counts)
    lagged = sum(
        (a - mean) * (b - mean) for a, b in pairwise(counts)
    ) / len(counts)  # fmt: skip
    assert abs(lagged) / rate < 4 / math.sqrt(len(counts))


@pytest.mark.parametrize("burstiness", [0.25, 0.5, 2.0, 10.0])
def test_burstiness_is_the_gammas_shape(burstiness):
    rate = 5.0
    values = gaps(OpenLoop(ONE, rate, num_requests=20_000, burstiness=burstiness), 2)
    # Squared coefficient of variation: 1 / burstiness.
    assert_moments(values, 1 / rate, 1 / rate**2 / burstiness)


def test_an_infinite_burstiness_is_a_steady_beat():
    values = gaps(OpenLoop(ONE, 4.0, num_requests=50, burstiness=math.inf))
    assert values == pytest.approx([0.25] * 50)


def test_duration_and_number_end_the_traffic_whichever_is_first():
    assert len(Trace.record(OpenLoop(ONE, 5, duration=1e9, num_requests=7), 0).arrivals) == 7
    ended = Trace.record(OpenLoop(ONE, 50, duration=3, num_requests=10**9), 0)
    times = [arrival.time for arrival in ended.arrivals]
    assert 0 < times[0] <= times[-1] <= 3
    assert len(times) > 75


@pytest.mark.parametrize(
    "length",
    [
        LogNormal.from_p90(1730, 5696),
        LogNormal.from_p90(415, 834, high=2048),
        LogNormal.from_mean(200, 0.7, high=1024),
        LogNormal(100, 0.0),
        UniformLength(3, 40),
        Constant(9),
        Empirical((1, 5, 5, 100)),
    ],
)
def test_lengths_have_the_mean_they_say(length):
    rng = Random(4)
    values = [length.sample(rng) for _ in range(20_000)]
    mean, _, error, _ = moments(values)
    # Rounding to whole tokens may move a mean by half a token at most.
    assert abs(mean - length.mean()) < 4 * error + 0.5
    assert min(values) >= 1
    assert all(isinstance(value, int) for value in values)


def test_lognormals_go_through_their_quantiles():
    rng = Random(5)
    length = LogNormal.from_p90(1730, 5696)
    values = sorted(length.sample(rng) for _ in range(40_000))
    # Standard error of a quantile: sqrt(p (1 - p) / n) / density; here in logarithms.
    for share, value, density in ((0.5, 1730, 0.3989), (0.9, 5696, 0.1755)):
        error = length.sigma * math.sqrt(share * (1 - share) / len(values)) / density
        found = values[int(share * len(values))]
        assert abs(math.log(found / value)) < 4 * error
    cut = LogNormal.from_p90(1730, 5696, high=2000)
    assert max(cut.sample(rng) for _ in range(1000)) == 2000
    assert LogNormal.from_mean(200, 0.7).mean() == pytest.approx(200)


def test_uniform_lengths_reach_every_value_alike():
    rng = Random(6)
    counts = dict.fromkeys(range(2, 12), 0)
    for _ in range(20_000):
        counts[UniformLength(2, 11).sample(rng)] += 1
    chi_square = sum((count - 2000) ** 2 / 2000 for count in counts.values())
    assert chi_square < 27.9  # 99.9 % of chi-square with 9 degrees of freedom


def test_a_mix_has_its_shares():
    arrivals = Trace.record(OpenLoop("chat90-doc10", 5, num_requests=20_000), 1).arrivals
    documents = [a for a in arrivals if a.kind == "doc"]
    share = len(documents) / len(arrivals)
    assert abs(share - 0.1) < 4 * math.sqrt(0.1 * 0.9 / len(arrivals))
    assert {a.prompt_len for a in documents} == {16_000}
    assert {a.prompt_len for a in arrivals if a.kind == "chat"} == {200}
    prompt, output = get_mix("chat90-doc10").mean_lengths()
    assert prompt == pytest.approx(0.9 * 200 + 0.1 * 16_000)
    assert output == pytest.approx(200, rel=0.03)


@pytest.mark.parametrize(
    ("mix", "prompt", "output"), [("sharegpt", 161.31, 337.99), ("alpaca", 19.31, 58.45)]
)
def test_the_cited_means_survive_the_cut(mix, prompt, output):
    found = get_mix(mix).mean_lengths()
    assert found[0] == pytest.approx(prompt, rel=0.05)
    assert found[1] == pytest.approx(output, rel=0.1)


@pytest.mark.parametrize("name", MIXES)
def test_every_mix_says_where_it_comes_from(name):
    mix = MIXES[name]
    assert mix.source
    assert mix.name == name
    rng = Random(0)
    drawn = [mix.draw(1.0, rng) for _ in range(3000)]
    values = [a.prompt_len for a in drawn]
    mean, _, error, _ = moments(values)
    assert abs(mean - mix.mean_lengths()[0]) < 4 * error + 0.5


def test_prefix_groups_share_their_prefix_and_nothing_else():
    kind = RequestClass("a", Constant(10), Constant(5), num_prefix_groups=3, prefix_len=64)
    rng = Random(0)
    drawn = [kind.draw(0.0, rng) for _ in range(300)]
    assert {a.prefix_group for a in drawn} == {"a-0", "a-1", "a-2"}
    assert {(a.prompt_len, a.prefix_len) for a in drawn} == {(74, 64)}


def test_a_closed_loop_asks_again_when_it_is_answered():
    source = ClosedLoop(ONE, users=2, num_requests=4).start(0)
    assert [source.pop().time, source.pop().time] == [0.0, 0.0]
    assert source.next_time() == math.inf
    source.finished(1.5)
    assert source.next_time() == 1.5
    source.pop()
    source.finished(2.5)
    source.pop()
    source.finished(3.5)
    assert source.next_time() == math.inf  # four were asked


def test_thinking_is_exponential():
    source = ClosedLoop(ONE, users=20_000, think_time=3.0, duration=1e9).start(0)
    first = [source.pop().time for _ in range(20_000)]
    assert first == sorted(first)
    assert_moments(first, 3.0, 9.0)


@pytest.mark.parametrize("make", [
    lambda: OpenLoop("sharegpt", 5, num_requests=30, burstiness=0.4),
    lambda: OpenLoop("shared-prefix", 5, duration=5),
])  # fmt: skip
def test_a_run_of_traffic_can_be_had_again(make):
    assert Trace.record(make(), 5).arrivals == Trace.record(make(), 5).arrivals
    assert Trace.record(make(), 5).arrivals != Trace.record(make(), 6).arrivals


def test_an_hour_takes_no_more_memory_than_a_minute():
    source = OpenLoop("chat", 1e6, duration=1e9).start(0)  # 10^15 arrivals, one at a time
    times = [source.pop().time for _ in range(3)]
    assert 0 < times[0] < times[1] < times[2] < source.next_time() < 1


# --- traces ---------------------------------------------------------------------------------

arrivals = st.builds(
    Arrival,
    time=st.floats(0, 1e6).map(lambda t: round(t, 9)),
    prompt_len=st.integers(1, 10**6),
    output_len=st.integers(1, 10**6),
    kind=st.sampled_from(["", "chat", 'a "quoted", kind', "naïve"]),
    priority=st.integers(-5, 5),
    prefix_group=st.sampled_from(["", "g"]),
    prefix_len=st.integers(0, 100),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(arrivals, min_size=1, max_size=20), st.sampled_from([".csv", ".jsonl"]))
def test_a_trace_is_what_was_saved(tmp_path_factory, values, suffix):
    path = tmp_path_factory.mktemp("trace") / f"t{suffix}"
    trace = Trace(tuple(values))
    trace.save(path)
    assert Trace.load(path).arrivals == trace.arrivals


def test_a_trace_is_sorted_and_can_be_sped_up():
    trace = Trace((Arrival(4, 1, 1), Arrival(1, 2, 2)))
    assert [a.time for a in trace.arrivals] == [1, 4]
    assert [a.time for a in trace.scaled(2).arrivals] == [0.5, 2]
    assert list(islice((a.prompt_len for a in trace.arrivals), 1)) == [2]


HEAD = "arrival,prompt_len,output_len\n"
GOOD = {"arrival": 0, "prompt_len": 5, "output_len": 5}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "", ("t.csv", "empty")),
        ("t.csv", HEAD, ("t.csv", "empty")),
        ("t.csv", HEAD + "0,5,5\n1,,5\n", ("t.csv", "line 3", "prompt_len", "missing")),
        ("t.csv", HEAD + "0,5,5\n1,5\n", ("line 3", "output_len", "missing")),
        ("t.csv", HEAD + "0,5,x\n", ("line 2", "output_len", "integer", "'x'")),
        ("t.csv", HEAD + "0,5.5,5\n", ("line 2", "prompt_len", "integer", "5.5")),
        ("t.csv", HEAD + "soon,5,5\n", ("line 2", "arrival", "number", "soon")),
        ("t.csv", HEAD + "-1,5,5\n", ("line 2", "arrival", "at least 0", "-1")),
        ("t.csv", HEAD + "nan,5,5\n", ("line 2", "arrival", "finite", "nan")),
        ("t.csv", HEAD + "inf,5,5\n", ("line 2", "arrival", "finite", "inf")),
        ("t.csv", HEAD + "0,-5,5\n", ("line 2", "prompt_len", "at least 1", "-5")),
        ("t.csv", HEAD + "0,0,5\n", ("line 2", "prompt_len", "at least 1", "0")),
        ("t.csv", HEAD + "0,inf,5\n", ("line 2", "prompt_len", "inf")),
        ("t.csv", HEAD + "0,5,5,9\n", ("line 2", "4 cells", "3 columns")),
        ("t.csv", "time,prompt\n0,5\n", ("line 2", "arrival", "missing")),
        ("t.csv", HEAD + '0,"5\n5",5\n', ("line 3", "prompt_len")),
        ("t.jsonl", json.dumps(GOOD) + "\n\n{oops\n", ("line 3", "not JSON")),
        ("t.jsonl", json.dumps(GOOD) + "\n[1, 2]\n", ("line 2", "object")),
        ("t.jsonl", json.dumps({**GOOD, "output_len": -2}) + "\n", ("line 1", "output_len", "-2")),
        ("t.jsonl", json.dumps({**GOOD, "prompt_len": True}), ("line 1", "prompt_len", "True")),
        ("t.jsonl", json.dumps({**GOOD, "arrival": None}), ("line 1", "arrival", "missing")),
        ("t.jsonl", json.dumps({**GOOD, "arrival": math.nan}), ("line 1", "arrival", "nan")),
        ("t.jsonl", json.dumps({**GOOD, "prefix_len": -1}), ("line 1", "prefix_len", "-1")),
        ("t.jsonl", "", ("empty",)),
        ("t.txt", "x", (".csv", ".jsonl")),
    ],
)  # fmt: skip
def test_a_bad_trace_is_named_with_its_line(tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
        Trace.load(path)
    for word in words:
        assert word in str(caught.value)


def test_bytes_that_are_no_text_are_named_too(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"t\.csv.*UTF-8"):
        Trace.load(path)


# --- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OpenLoop("chat", -1, 5), ("rate", "greater than 0", "-1")),
        (lambda: OpenLoop("chat", 0, 5), ("rate", "greater than 0", "0")),
        (lambda: OpenLoop("chat", math.nan, 5), ("rate", "finite", "nan")),
        (lambda: OpenLoop("chat", math.inf, 5), ("rate", "finite", "inf")),
        (lambda: OpenLoop("chat", "fast", 5), ("rate", "'fast'")),
        (lambda: OpenLoop("chat", True, 5), ("rate", "True")),
        (lambda: OpenLoop("chat", 5), ("duration or num_requests",)),
        (lambda: OpenLoop("chat", 5, -3), ("duration", "-3")),
        (lambda: OpenLoop("chat", 5, num_requests=0), ("num_requests", "at least 1", "0")),
        (lambda: OpenLoop("chat", 5, num_requests=2.5), ("num_requests", "integer", "2.5")),
        (lambda: OpenLoop("chat", 5, 5, burstiness=0), ("burstiness", "greater than 0")),
        (lambda: OpenLoop("chat", 5, 5, burstiness=math.nan), ("burstiness", "nan")),
        (lambda: OpenLoop("chitchat", 5, 5), ("mix", "chitchat", "chat90-doc10")),
        (lambda: ClosedLoop("chat", 0, num_requests=1), ("users", "at least 1", "0")),
        (lambda: ClosedLoop("chat", 2, -1.0, 5), ("think_time", "at least 0", "-1")),
        (lambda: ClosedLoop("chat", 2), ("duration or num_requests",)),
        (lambda: Trace(()), ("arrivals", "empty")),
        (lambda: Trace((Arrival(0, 1, 1),)).scaled(0), ("factor", "greater than 0")),
        (lambda: Arrival(0, 1, 1, priority=0.5), ("priority", "0.5")),
        (lambda: Arrival(0, -1, 1), ("prompt_len", "-1")),
        (lambda: Constant(0), ("tokens", "at least 1", "0")),
        (lambda: UniformLength(5, 4), ("high", "at least 5", "4")),
        (lambda: UniformLength(0, 4), ("low", "at least 1", "0")),
        (lambda: LogNormal(0, 1), ("median", "0")),
        (lambda: LogNormal(10, -1), ("sigma", "-1")),
        (lambda: LogNormal(10, math.nan), ("sigma", "nan")),
        (lambda: LogNormal.from_p90(100, 90), ("p90", "100", "90")),
        (lambda: LogNormal.from_mean(-1, 1), ("mean", "-1")),
        (lambda: Empirical(()), ("values",)),
        (lambda: Empirical((3, 0)), ("values", "0")),
        (lambda: Mix("empty", ()), ("parts",)),
        (lambda: Mix("m", ((-1.0, MIXES["chat"].parts[0][1]),)), ("weight", "-1")),
        (lambda: RequestClass("a", Constant(1), Constant(1), prefix_len=-4), ("prefix_len", "-4")),
        (lambda: RequestClass("a", Constant(1), Constant(1), num_prefix_groups=-1),
         ("num_prefix_groups", "-1")),
        (lambda: RequestClass("a", Constant(1), Constant(1), prefix_len=4),
         ("prefix_len", "num_prefix_groups")),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)
