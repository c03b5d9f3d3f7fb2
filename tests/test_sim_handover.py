"""From a scenario to a real server's flags, and back with its measurements."""

from __future__ import annotations

import ast
import json
import math
import re
import shlex
import warnings
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest

from minivllm.core import SchedulerConfig
from minivllm.sim import (
    Arrival,
    ClosedLoop,
    FixedCost,
    OpenLoop,
    Simulation,
    SimulationConfig,
    Trace,
    comparison_table,
    llm_arguments,
    read_bench,
    read_benches,
    side_by_side,
    simulate,
    unlike,
    vllm_bench,
    vllm_serve,
    without_flag,
)
from minivllm.sim.handover import BENCH_FLAGS, NEWER_KNOBS, NO_FLAG, SPECULATION, VLLM_FLAGS

ROOT = Path(__file__).resolve().parents[1]
LINES = {
    name: json.loads((ROOT / "tools" / f"upstream_lines{name}.json").read_text())
    for name in ("", "_newest")
}

SCENARIO = SimulationConfig(
    OpenLoop("chat90-doc10", 20, duration=60, burstiness=0.5),
    tensor_parallel=2,
    knobs={
        "max_num_batched_tokens": 4096,
        "long_prefill_token_threshold": 512,
        "policy": "priority",
        "enable_prefix_caching": False,
    },
    gpu_memory_utilization=0.85,
)


@pytest.mark.parametrize(
    ("flag", "citation"),
    [*VLLM_FLAGS.values(), *BENCH_FLAGS.items()],
    ids=lambda value: value if value.startswith("--") else "",
)
def test_every_flag_stands_in_the_line_that_is_cited_for_it(flag, citation):
    """`make upstream-check` compares these lines with vLLM's own files."""
    *newest, path, line = citation.split(":")
    assert f'"{flag}"' in LINES["_newest" if newest else ""][path][line]


def test_every_knob_has_a_flag_or_a_reason():
    ours = {f.name for f in fields(SchedulerConfig)} | {"tensor_parallel", "gpu_memory_utilization"}
    assert set(VLLM_FLAGS) | set(NO_FLAG) == ours
    assert not set(VLLM_FLAGS) & set(NO_FLAG)
    assert all(NO_FLAG.values())


def test_every_flag_is_an_option_of_the_vllm_that_is_installed():
    """All options that its parsers add, read from its source: nothing of it is run."""
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed: `make upstream-check` compares the cited lines")
    known = set()
    for path in {citation.split(":")[-2] for _, citation in VLLM_FLAGS.values()} | {
        citation.split(":")[-2] for citation in BENCH_FLAGS.values()
    }:
        tree = ast.parse((Path(spec.origin).parents[1] / path).read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                known |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    assert {flag for knob, (flag, _) in VLLM_FLAGS.items() if knob not in NEWER_KNOBS} <= known
    assert set(BENCH_FLAGS) <= known


def options(command):
    """The options of a printed command, as the shell would hand them over."""
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    found = {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            found[word] = None if following.startswith("--") else following
    return words, found


def test_serve_prints_the_whole_configuration():
    words, found = options(vllm_serve(SCENARIO))
    assert words[:3] == ["vllm", "serve", "meta-llama/Llama-3.1-8B-Instruct"]
    assert found == {
        "--max-model-len": "32768",
        "--tensor-parallel-size": "2",
        "--block-size": "16",
        "--gpu-memory-utilization": "0.85",
        "--no-enable-prefix-caching": None,
        "--max-num-batched-tokens": "4096",
        "--max-num-seqs": "256",
        "--long-prefill-token-threshold": "512",
        "--scheduling-policy": "priority",
        "--enable-chunked-prefill": None,
        "--scheduler-reserve-full-isl": None,
    }


def test_a_newer_knob_is_printed_where_it_is_set():
    knobs = {"watermark": 0.05, "max_num_active_seqs": 64, "prefill_schedule_interval": 4}
    _, found = options(vllm_serve(SCENARIO.with_(**knobs)))
    assert found["--watermark"] == "0.05"
    assert found["--max-num-active-seqs"] == "64"
    assert found["--prefill-schedule-interval"] == "4"
    assert "--max-num-queued-reqs" not in found
    assert call_arguments(llm_arguments(SCENARIO.with_(**knobs)))["watermark"] == 0.05


def test_a_release_is_installed_not_set():
    assert "vllm_version" not in vllm_serve(SCENARIO)
    older = SCENARIO.with_(vllm_version="0.22.1")
    assert "# vLLM has no flag for vllm_version='0.22.1': the release is" in vllm_serve(older)


def test_a_number_of_blocks_counts_the_null_block_there():
    scenario = SCENARIO.with_(num_gpu_blocks=3000)
    _, found = options(vllm_serve(scenario))
    assert found["--num-gpu-blocks-override"] == "3001"
    assert "--gpu-memory-utilization" not in found
    assert "num_gpu_blocks_override=3001" in llm_arguments(scenario)
    assert "num_gpu_blocks=3000" in llm_arguments(scenario.with_(tp=1), "minivllm")


def test_what_has_no_flag_is_said():
    scenario = SCENARIO.with_(preemption_mode="swap", num_cpu_blocks=64, victim="least_computed")
    assert set(without_flag(scenario)) == {"preemption_mode", "num_cpu_blocks", "victim"}
    for text in (vllm_serve(scenario), llm_arguments(scenario)):
        assert "# vLLM has no flag for preemption_mode='swap': vLLM's V1 always recomputes" in text
    assert without_flag(SCENARIO) == {}
    assert "#" not in vllm_serve(SCENARIO)


def call_arguments(text):
    """The keyword arguments of the `LLM(...)` in some Python."""
    (call,) = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "LLM"
    ]
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}


def test_the_arguments_of_llm_are_the_flags():
    arguments = call_arguments(llm_arguments(SCENARIO))
    _, found = options(vllm_serve(SCENARIO))
    assert arguments.pop("model") == "meta-llama/Llama-3.1-8B-Instruct"
    flags = {}
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags[f"--{flag}" if value else f"--no-{flag}"] = None
        else:
            flags[f"--{flag}"] = str(value)
    assert flags == found


def test_minivllm_takes_the_arguments_and_understands_the_same():
    pytest.importorskip("torch")
    from minivllm.llm import _engine_arguments

    scenario = SCENARIO.with_(tp=1, preemption_mode="swap", num_cpu_blocks=64)
    ours = call_arguments(llm_arguments(scenario, "minivllm"))
    assert ours.pop("model")
    taken = _engine_arguments(ours)
    for knob, value in scenario.config().to_dict().items():
        if knob not in ("num_gpu_blocks", "keep_upstream_bugs", *SPECULATION):
            assert taken.get(knob) == value, knob
    # vLLM's names are understood too, and mean the same knobs.
    theirs = call_arguments(llm_arguments(SCENARIO.with_(tp=1)))
    del theirs["model"]
    taken = _engine_arguments(theirs)
    config = SCENARIO.config().to_dict()
    assert {knob: value for knob, value in taken.items() if knob in config} == {
        knob: config[knob] for knob in taken if knob in config
    }
    assert len(taken) >= 9


def test_minivllm_runs_on_one_device():
    with pytest.raises(ValueError, match=r"tensor_parallel=2.*one device"):
        llm_arguments(SCENARIO, "minivllm")
    with pytest.raises(ValueError, match=r"engine must be .*'triton'"):
        llm_arguments(SCENARIO, "triton")


def test_bench_asks_for_the_same_traffic():
    _, found = options(vllm_bench(SCENARIO))
    assert set(found) <= set(BENCH_FLAGS)
    assert found["--request-rate"] == "20"
    assert found["--burstiness"] == "0.5"
    assert found["--num-prompts"] == "1200"
    prompt, output = SCENARIO.workload.mix.mean_lengths()
    assert found["--random-input-len"] == str(round(prompt))
    assert found["--random-output-len"] == str(round(output))
    closed = SimulationConfig(ClosedLoop("chat", 32, 1.5, num_requests=100))
    _, found = options(vllm_bench(closed))
    assert set(found) <= set(BENCH_FLAGS)
    assert (found["--max-concurrency"], found["--num-prompts"]) == ("32", "100")
    assert "--request-rate" not in found
    assert "users do not think" in vllm_bench(closed)
    assert "share prefixes" not in vllm_bench(closed)
    assert "share prefixes" in vllm_bench(closed.with_(mix="shared-prefix"))
    with pytest.raises(ValueError, match="workload"):
        vllm_bench(SimulationConfig(Trace((Arrival(0, 1, 1),))))


# --- back from a server ---------------------------------------------------------------------


def bench_file(result, **changes):
    """A result in vLLM's format (vllm/benchmarks/serve.py), made of a simulated run's requests."""
    records = sorted(result.records, key=lambda r: r.index)
    data = {
        "date": "20261124-101010",
        "backend": "vllm",
        "model_id": "meta-llama/Llama-3.1-8B-Instruct",
        "num_prompts": len(records),
        "request_rate": 5.0,
        "burstiness": 1.0,
        "max_concurrency": None,
        "duration": result.duration,
        "completed": len(records),
        "failed": 0,
        "total_input_tokens": result.num_prompt_tokens,
        "total_output_tokens": result.num_output_tokens,
        "request_throughput": len(records) / result.duration,
        "request_goodput": None,
        "output_throughput": sum(r.output_len for r in records) / result.duration,
        "input_lens": [r.prompt_len for r in records],
        "output_lens": [r.output_len for r in records],
        "ttfts": [r.ttft for r in records],
        "itls": [[r.tpot] * (r.output_len - 1) for r in records],
        "start_times": [1000.25 + r.arrival for r in records],
        "generated_texts": [""] * len(records),
        "errors": [""] * len(records),
    }
    for ours, theirs in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2e", "e2el")):
        data[f"mean_{theirs}_ms"] = 1000 * getattr(result, ours).mean
        data[f"std_{theirs}_ms"] = 1.0
        data[f"median_{theirs}_ms"] = 1000 * result.percentile(ours, 50)
        data[f"p99_{theirs}_ms"] = 1000 * result.percentile(ours, 99)
    return {**data, **changes}


DETAILS = ("input_lens", "output_lens", "ttfts", "itls", "start_times", "generated_texts", "errors")
CONFIG = SchedulerConfig(num_gpu_blocks=2000, max_num_seqs=32)


@pytest.fixture(scope="module")
def result():
    return simulate(OpenLoop("chat", 5, num_requests=80), FixedCost(0.02), CONFIG, seed=3)


def test_a_run_laid_beside_itself_agrees(result, tmp_path):
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(bench_file(result)))
    measured = read_bench(path)
    assert measured.num_finished == 80
    assert measured.num_failed == 0
    rows = {row["metric"]: row for row in side_by_side(result, measured)}
    assert set(rows) == {"request_throughput", "output_throughput"} | {
        f"{statistic}_{metric}"
        for statistic in ("mean", "p50", "p90", "p99")
        for metric in ("ttft", "itl", "tpot", "e2e")
    }
    for name, row in rows.items():
        # The file's gaps are each request's mean ones, and a histogram's bins are 2 % wide.
        tolerance = 0.03 if "itl" in name else 1e-9
        assert row["ratio"] == pytest.approx(1, rel=tolerance), name
        assert row["ratio"] == pytest.approx(row["simulated"] / row["measured"])
    text = comparison_table(list(rows.values()))
    assert text.splitlines()[0].split() == ["metric", "measured", "simulated", "ratio"]
    assert len(text.splitlines()) == 1 + len(rows)


def test_a_server_twice_as_slow_shows(result):
    slow = bench_file(result)
    slow["ttfts"] = [2 * ttft for ttft in slow["ttfts"]]
    rows = {row["metric"]: row for row in side_by_side(result, read_bench(slow))}
    assert rows["mean_ttft"]["ratio"] == pytest.approx(0.5)
    assert rows["mean_tpot"]["ratio"] == pytest.approx(1)


def test_the_requests_can_be_replayed(result):
    trace = read_bench(bench_file(result)).to_trace()
    again = simulate(trace, FixedCost(0.02), CONFIG)
    first = min(r.arrival for r in result.records)
    assert [a.time for a in trace.arrivals] == pytest.approx(
        [r.arrival - first for r in sorted(result.records, key=lambda r: r.index)]
    )
    assert again.num_output_tokens == result.num_output_tokens


def test_without_details_the_files_statistics_are_compared(result):
    data = {key: value for key, value in bench_file(result).items() if key not in DETAILS}
    measured = read_bench(data)
    assert not measured.has_requests
    assert measured.num_finished == 80
    rows = {row["metric"]: row for row in side_by_side(result, measured)}
    assert set(rows) == {"request_throughput", "output_throughput"} | {
        f"{statistic}_{metric}"
        for statistic in ("mean", "p50", "p99")
        for metric in ("ttft", "itl", "tpot", "e2e")
    }
    assert all(row["ratio"] == pytest.approx(1) for row in rows.values())
    with pytest.raises(ValueError, match=r"start_times.*--save-detailed"):
        measured.to_trace()


def test_failed_requests_are_counted_and_left_out(result):
    data = bench_file(result)
    data["errors"][0] = "ConnectionError"
    data["output_lens"][1] = 0
    data["itls"][1] = []
    measured = read_bench(data)
    assert (measured.num_finished, measured.num_failed) == (78, 2)
    assert len(measured.to_trace().arrivals) == 78
    assert len(measured.e2e) == 78


# --- traffic that is alike, or said not to be -------------------------------------------------


def without(data, *names):
    return {key: value for key, value in data.items() if key not in names}


def test_traffic_is_what_was_sent_if_the_file_tells(result):
    measured = read_bench(bench_file(result))
    assert measured.traffic().arrivals == measured.to_trace().arrivals
    assert measured.traffic().notes == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        side_by_side(result, measured)


def test_lengths_without_start_times_are_sent_at_the_files_rate(result):
    data = without(bench_file(result), "start_times")
    trace = read_bench(data).traffic(seed=4)
    lengths = list(zip(data["input_lens"], data["output_lens"], strict=True))
    assert [(a.prompt_len, a.output_len) for a in trace.arrivals] == lengths
    plain = Trace(tuple(Arrival(0, *pair) for pair in lengths))
    assert trace.arrivals == plain.at_rate(5.0, 1.0, 4).arrivals
    (note,) = trace.notes
    for words in ("start_times is missing", "request_rate, 5/s", "--save-detailed"):
        assert words in note
    at_once = read_bench({**data, "request_rate": "inf"}).traffic()
    assert {a.time for a in at_once.arrivals} == {0}
    assert "all at once" in at_once.notes[0]
    untold = read_bench(without(data, "request_rate")).traffic()
    assert untold.arrivals == plain.at_rate(80 / result.duration).arrivals
    assert "throughput" in untold.notes[0]


def test_a_limited_client_sends_no_more_at_once(result):
    data = {**without(bench_file(result), "start_times"), "request_rate": "inf"}
    trace = read_bench({**data, "max_concurrency": 3}).traffic()
    under_way = []
    simulation = Simulation(
        trace, FixedCost(0.02), CONFIG,
        on_step=lambda *_: under_way.append(len(simulation.scheduler.requests)),
    )  # fmt: skip
    again = simulation.run()
    assert max(under_way) == 3
    assert again.num_finished == 80
    # It waits at the client, where nobody measures: every request is scheduled when it is sent.
    assert again.queue_time.high < 0.04
    assert "3 at a time" in trace.notes[0]
    with pytest.raises(ValueError, match="max_concurrency"):
        Trace(trace.arrivals, max_concurrency=0)


def test_without_details_as_many_requests_of_the_mean_lengths_are_sent(result):
    data = without(bench_file(result), *DETAILS)
    trace = read_bench(data).traffic()
    assert len(trace.arrivals) == 80
    assert sum(a.prompt_len for a in trace.arrivals) == result.num_prompt_tokens
    assert sum(a.output_len for a in trace.arrivals) == result.num_output_tokens
    for count in ({a.prompt_len for a in trace.arrivals}, {a.output_len for a in trace.arrivals}):
        assert max(count) - min(count) <= 1
    assert "input_lens and output_lens are missing" in trace.notes[0]
    assert all("--save-detailed" in note for note in trace.notes)
    with pytest.raises(ValueError, match=r"does not say what its requests were like.*missing"):
        read_bench(without(data, "total_input_tokens")).traffic()


def test_unlike_traffic_is_never_laid_beside_without_a_word(result):
    measured = read_bench(without(bench_file(result), *DETAILS))
    other = simulate(OpenLoop("sharegpt", 7, num_requests=50), FixedCost(0.02),
                     SchedulerConfig(num_gpu_blocks=9000), seed=3)  # fmt: skip
    said = " ".join(unlike(other, measured))
    for words in ("requests: 50 simulated, 80 measured", "tokens in a prompt",
                  "requests a second: 7 simulated, 5 measured"):  # fmt: skip
        assert words in said
    with pytest.warns(UserWarning, match="unlike traffic, requests: 50 simulated"):
        side_by_side(other, measured)
    silent = without(bench_file(result), *DETAILS, "total_input_tokens", "total_output_tokens")
    with pytest.warns(UserWarning, match="tokens in a prompt and tokens in an output: the file"):
        side_by_side(result, read_bench(silent))
    closed = simulate(ClosedLoop("chat", 4, num_requests=80), FixedCost(0.02), CONFIG)
    limited = read_bench(bench_file(closed, request_rate="inf", max_concurrency=16))
    assert any("requests at a time: 4 simulated, 16 measured" in s for s in unlike(closed, limited))


def test_of_several_results_the_last_is_taken_and_that_is_said(result, tmp_path):
    path = tmp_path / "all.json"
    results = [bench_file(result, duration=float(n)) for n in (11, 12, 13)]
    appended = "\n".join(map(json.dumps, results))  # as vllm/benchmarks/serve.py:1994 does
    for text in (appended, json.dumps(results), "\ufeff" + appended.replace("\n", "\r\n\ufeff")):
        path.write_text(text, encoding="utf-8")
        assert [r.duration for r in read_benches(path)] == [11, 12, 13]
        last = read_bench(path)
        assert last.duration == 13
        assert last.notes == ["all.json: it holds 3 results (--append-result); this is the 3."]
        assert read_bench(path, 2).duration == 12
        for number in (0, 4):
            with pytest.raises(ValueError, match=f"no result {number}, it holds 3"):
                read_bench(path, number)
    path.write_text(json.dumps(results[0]) + "\n{}")
    assert read_bench(path, 1).duration == 11
    with pytest.raises(ValueError, match=r"all\.json, result 2: duration is missing"):
        read_benches(path)


@pytest.mark.parametrize("details", [True, False])
def test_failures_are_said_and_no_success_is_refused(result, details):
    data = bench_file(result, completed=0, failed=80, errors=["refused"] * 80)
    data["output_lens"] = [0] * 80
    for key in [key for key in data if key.endswith("_ms")]:
        data[key] = math.nan  # a mean of nothing
    if not details:
        data = without(data, *DETAILS)
    with pytest.raises(ValueError, match="all 80 requests failed"):
        read_bench(data)
    some = bench_file(result, completed=77)
    some["errors"] = ["timeout"] * 3 + [""] * 77
    some = some if details else without(some, *DETAILS, "failed")
    measured = read_bench(some)
    assert (measured.num_finished, measured.num_failed) == (77, 3)
    assert any("3 of 80 requests failed" in note for note in measured.notes)


def change(name, value, index=3):
    def apply(data):
        data[name][index] = value

    return apply


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: d.pop("duration"), ("duration", "missing", "vllm bench serve")),
        (lambda d: d.update(duration=0), ("duration", "greater than 0")),
        (lambda d: d.update(duration=math.nan), ("duration", "nan")),
        (lambda d: d.update(duration="10"), ("duration", "'10'")),
        (lambda d: d.pop("ttfts"), ("ttfts", "missing")),
        (lambda d: d.update(itls=5), ("itls", "list")),
        (lambda d: d.update(ttfts=[]), ("ttfts", "list")),
        (lambda d: d["itls"].pop(), ("itls", "79", "80")),
        (lambda d: d["errors"].pop(), ("errors", "79", "80")),
        (change("ttfts", -1.0), ("ttfts[3]", "at least 0", "-1")),
        (change("ttfts", math.nan), ("ttfts[3]", "nan")),
        (change("ttfts", None), ("ttfts[3]", "None")),
        (change("itls", [0.1, -0.5]), ("itls[3][1]", "at least 0", "-0.5")),
        (change("itls", 0.1), ("itls[3]", "list", "0.1")),
        (change("input_lens", 2.5), ("input_lens[3]", "whole number", "2.5")),
        (change("output_lens", -4), ("output_lens[3]", "at least 0", "-4")),
        (change("start_times", "now"), ("start_times[3]", "'now'")),
        (lambda d: d.update(mean_ttft_ms=-5), ("mean_ttft_ms", "-5")),
        (lambda d: d.update(output_throughput=math.nan), ("output_throughput", "nan")),
        (lambda d: d.update(errors=["x"] * 80), ("all 80 requests failed",)),
    ],
)
def test_a_bad_result_is_named(result, tmp_path, spoil, words):
    data = bench_file(result)
    spoil(data)
    path = tmp_path / "measured.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError) as caught:
        read_bench(path)
    for word in ("measured.json", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("", "not JSON"),
        ("{}\n{}", "duration is missing"),
        ('{"duration": 5} and', "not JSON"),
        ("[]", "duration is missing"),
        ("{}", "duration is missing"),
        ('{"duration": 5}', "neither statistics"),
    ],
)
def test_a_file_that_is_no_result_is_named(tmp_path, text, pattern):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"x\.json: .*{re.escape(pattern)}"):
        read_bench(path)


def test_bytes_that_are_no_text_are_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"x\.json"):
        read_bench(path)
