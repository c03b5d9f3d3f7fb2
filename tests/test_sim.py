"""The simulator's loop: what queueing theory says must come out, and what must be conserved."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from test_core_is_pure import run as run_on_bare_python

from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig
from minivllm.sim import (
    Arrival,
    ClosedLoop,
    Constant,
    FittedCost,
    FixedCost,
    Mix,
    OpenLoop,
    Simulation,
    SimulationConfig,
    StepLoad,
    Trace,
    UniformLength,
    roofline,
    simulate,
)
from minivllm.sim.results import mean_and_half_width

ROOT = Path(__file__).resolve().parents[1]

ROOMY = SchedulerConfig(
    num_gpu_blocks=4096, max_model_len=4096, max_num_batched_tokens=2048, max_num_seqs=64
)
TIGHT = SchedulerConfig(
    num_gpu_blocks=24, block_size=4, max_model_len=80, max_num_batched_tokens=24, max_num_seqs=6
)
SMALL = Mix.of("small", UniformLength(1, 40), UniformLength(1, 30))


# --- queueing theory ------------------------------------------------------------------------

ONE_AT_A_TIME = SchedulerConfig(
    num_gpu_blocks=64, max_model_len=256, max_num_seqs=1, enable_prefix_caching=False
)


def waits(utilisation, lengths, seed=0, num_requests=15_000):
    """Queue times, in seconds, where a server takes one request after another."""
    service = 0.01 * lengths.mean()
    workload = OpenLoop(
        Mix.of("one", Constant(8), lengths), utilisation / service, num_requests=num_requests
    )
    result = simulate(workload, FixedCost(0.01), ONE_AT_A_TIME, seed=seed)
    assert result.num_finished == num_requests
    return [record.queue_time for record in result.records]


def batch_means(values, num_batches=30):
    size = len(values) // num_batches
    return [sum(values[i * size : (i + 1) * size]) / size for i in range(num_batches)]


def agrees(values, expected):
    """Whether a mean lies within its confidence interval, made three halves as wide (99.6 %)."""
    mean, half_width = mean_and_half_width(batch_means(values))
    return abs(mean - expected) <= 1.5 * half_width


@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.8])
def test_one_at_a_time_waits_as_long_as_md1_says(utilisation):
    values = waits(utilisation, Constant(1))
    expected = utilisation * 0.01 / (2 * (1 - utilisation))
    assert agrees(values, expected)
    # The test could fail: M/M/1 waits twice as long, and a tenth more is noticed at low load.
    assert not agrees(values, 2 * expected)
    if utilisation == 0.3:
        assert not agrees(values, 1.1 * expected)
    # And as many wait at all as find the server busy: its utilisation (Poisson arrivals see time
    # averages).
    assert agrees([float(wait > 0) for wait in values], utilisation)


def test_longer_and_varied_services_wait_as_pollaczek_and_khinchine_say():
    lengths = UniformLength(1, 7)
    second_moment = sum((0.01 * n) ** 2 for n in range(1, 8)) / 7
    utilisation = 0.6
    rate = utilisation / (0.01 * lengths.mean())
    expected = rate * second_moment / (2 * (1 - utilisation))
    values = waits(utilisation, lengths)
    assert agrees(values, expected)
    # As if all services were of the mean length: M/D/1 would be wrong here.
    assert not agrees(values, utilisation * 0.01 * lengths.mean() / (2 * (1 - utilisation)))


@pytest.mark.parametrize("users", [1, 4, 30])
@pytest.mark.parametrize("think_time", [0.0, 2.0])
def test_a_closed_loop_obeys_littles_law(users, think_time):
    workload = ClosedLoop(SMALL, users, think_time, duration=400 if think_time else 100)
    config = SchedulerConfig(num_gpu_blocks=200, block_size=4, max_model_len=80, max_num_seqs=8)
    result = simulate(workload, FixedCost(0.02), config, seed=2)
    law = result.littles_law()
    assert law.holds
    assert law.half_width < 0.3 * users
    # The users' own law: all of them are in the system or thinking, U = λ (W + Z).
    cycles = law.lam * 0.6 * result.duration
    assert law.lam * (law.W + think_time) == pytest.approx(users, rel=0.02 + 3 / cycles**0.5)


@pytest.mark.parametrize("rate", [2.0, 12.0])
def test_an_open_loop_obeys_littles_law(rate):
    law = simulate(OpenLoop(SMALL, rate, 300), FixedCost(0.02), ROOMY).littles_law()
    assert law.holds
    assert law.lam == pytest.approx(rate, rel=0.15)
    assert not replace(law, difference=law.difference + 2 * law.half_width + 0.02 * law.L).holds


def test_the_identity_is_exact_even_if_the_clock_stops_in_mid_run():
    result = simulate(OpenLoop(SMALL, 20, 100), FixedCost(0.05), TIGHT, until=30)
    assert result.num_finished < result.num_arrived
    assert result.littles_law().exact_error < 1e-9
    assert 30 <= result.duration < 30.05 + 1e-9


# --- what is conserved ----------------------------------------------------------------------


@st.composite
def configs(draw):
    swap = draw(st.booleans())
    return SchedulerConfig(
        num_gpu_blocks=draw(st.integers(4, 24)),
        block_size=draw(st.integers(1, 8)),
        max_model_len=draw(st.integers(20, 90)),
        max_num_batched_tokens=draw(st.integers(4, 64)),
        max_num_seqs=draw(st.integers(1, 6)),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 5])),
        policy=draw(st.sampled_from(["fcfs", "priority"])),
        enable_prefix_caching=draw(st.booleans()),
        enable_chunked_prefill=draw(st.booleans()),
        preemption_mode="swap" if swap else "recompute",
        num_cpu_blocks=draw(st.integers(0, 12)) if swap else 0,
    )


@st.composite
def traces(draw):
    arrivals = draw(
        st.lists(
            st.builds(
                Arrival,
                time=st.floats(0, 3).map(lambda t: round(t, 3)),
                prompt_len=st.integers(1, 60),
                output_len=st.integers(1, 40),
                kind=st.sampled_from(["", "a"]),
                priority=st.integers(0, 2),
                prefix_group=st.sampled_from(["", "x", "y"]),
                prefix_len=st.sampled_from([0, 10, 70]),
            ),
            min_size=1,
            max_size=15,
        )
    )
    return Trace(tuple(arrivals))


def roofline_like():
    """Positive in every feature: a mistake in any would show in the times."""
    return FittedCost(
        1e-3,
        dict.fromkeys(
            ("num_reqs", "num_sampled", "kv_tokens", "attention_pairs", "swap_blocks"), 1e-5
        ),
        {0: 1e-4, 16: 1e-4},
    )


@settings(deadline=None, max_examples=80)
@given(configs(), traces())
def test_every_request_ends_once_with_the_tokens_it_asked_for(config, trace):
    seen = []
    peak = 0.0

    def watch(start, seconds, plan, load):
        nonlocal peak
        seen.append((start, seconds, sum(plan.num_scheduled_tokens.values()), load))
        peak = max(peak, plan.stats.kv_cache_usage)
        assert len(plan.num_scheduled_tokens) <= config.max_num_seqs
        assert load.num_tokens <= config.max_num_batched_tokens

    simulation = Simulation(trace, roofline_like(), config, on_refused="count", on_step=watch)
    result = simulation.run()

    assert result.num_arrived == len(trace.arrivals)
    assert result.num_finished + result.num_refused == result.num_arrived
    assert sorted(r.index for r in result.records) == sorted({r.index for r in result.records})
    for record in result.records:
        asked = trace.arrivals[record.index]
        longest = config.max_model_len - asked.prompt_len
        assert record.output_len == min(asked.output_len, longest)
        assert record.prompt_len == asked.prompt_len
        assert 0 <= record.queue_time <= record.ttft <= record.e2e
        assert record.max_itl <= record.e2e - record.ttft + 1e-12
        assert record.arrival == asked.time

    # Time: steps follow one another, and all but idle time is theirs.
    for (start, seconds, *_), (following, *_) in pairwise(seen):
        assert following >= start + seconds
    busy = sum(b.busy for b in result.timeline.buckets)
    assert busy == pytest.approx(sum(seconds for _, seconds, *_ in seen))
    assert result.timeline.buckets == [] or sum(
        b.sojourn for b in result.timeline.buckets
    ) == pytest.approx(sum(r.e2e for r in result.records))

    # Tokens: counted three ways.
    scheduled = result.stats["num_scheduled_tokens"]
    assert scheduled == sum(tokens for _, _, tokens, _ in seen)
    assert scheduled == sum(b.computed_tokens for b in result.timeline.buckets)
    out = sum(r.output_len for r in result.records)
    assert out == result.num_output_tokens == sum(b.output_tokens for b in result.timeline.buckets)
    assert result.itl.count == out - result.num_finished
    if not config.enable_prefix_caching:
        needed = sum(r.prompt_len + r.output_len - 1 for r in result.records)
        assert scheduled - result.stats["num_recomputed_tokens"] == needed

    # Memory: never more than there is, and all of it comes back.
    assert 0 <= peak <= 1
    assert result.summary()["max_kv_usage"] == pytest.approx(peak)
    assert simulation.scheduler.kv_cache_manager.usage == 0
    assert not simulation._arrivals
    assert not simulation._tokens


# --- the decisions are the scheduler's ------------------------------------------------------


def driven_by_hand(trace, cost, config):
    """The plainest loop there is around a `Scheduler`: plans, gaps between tokens, latencies."""
    scheduler = Scheduler(config)
    now = 0.0
    left = [(index, arrival) for index, arrival in enumerate(trace.arrivals)]
    plans, gaps, ttfts, last = [], [], {}, {}
    while left or scheduler.requests:
        if not scheduler.requests:
            now = max(now, left[0][1].time)
        while left and left[0][1].time <= now:
            index, arrival = left.pop(0)
            shared = min(arrival.prefix_len, arrival.prompt_len)
            first = {"": 1, "x": 2, "y": 3}[arrival.prefix_group]
            prompt = [first] * shared + [100 + index] * (arrival.prompt_len - shared)
            params = SamplingParams(max_tokens=arrival.output_len, ignore_eos=True)
            request = Request(
                str(index), prompt, params, priority=arrival.priority, arrival_time=arrival.time
            )
            scheduler.add_request(request)
        if not scheduler.requests:
            continue
        plan = scheduler.schedule()
        load = StepLoad(swap_blocks=len(plan.blocks_to_swap_in) + len(plan.blocks_to_swap_out))
        tokens = {}
        for request_id, count in plan.num_scheduled_tokens.items():
            request = scheduler.requests[request_id]
            load.num_reqs += 1
            load.num_tokens += count
            load.kv_tokens += request.num_computed_tokens
            for position in range(request.num_computed_tokens - count, request.num_computed_tokens):
                load.attention_pairs += position + 1
            if request.is_caught_up:
                load.num_sampled += 1
                tokens[request_id] = 100 + int(request_id)
        plans.append((now, plan.num_scheduled_tokens, plan.preempted_req_ids, plan.new_block_ids,
                      plan.blocks_to_swap_out, plan.blocks_to_swap_in))  # fmt: skip
        now += cost.step_time(load)
        for output in scheduler.update_from_output(plan, tokens):
            index = int(output.request_id)
            if index in last:
                gaps.append(now - last[index])
            else:
                ttfts[index] = now - trace.arrivals[index].time
            last[index] = now
    return plans, gaps, ttfts


@settings(deadline=None, max_examples=60)
@given(configs(), traces())
def test_the_decisions_are_those_of_a_scheduler_driven_by_hand(config, trace):
    plans = []

    def watch(start, seconds, plan, load):
        plans.append((start, plan.num_scheduled_tokens, plan.preempted_req_ids, plan.new_block_ids,
                      plan.blocks_to_swap_out, plan.blocks_to_swap_in))  # fmt: skip

    cost = roofline_like()
    result = simulate(trace, cost, config, on_refused="count", on_step=watch)
    expected, gaps, ttfts = driven_by_hand(trace, cost, config)
    assert len(plans) == len(expected)
    for ours, theirs in zip(plans, expected, strict=True):
        assert ours[0] == pytest.approx(theirs[0])
        assert ours[1:] == theirs[1:]
        assert list(ours[1]) == list(theirs[1])  # in this order
    assert {r.index: r.ttft for r in result.records} == pytest.approx(ttfts)
    # Decodes of a full batch are counted wholesale; one by one they come to the same.
    assert result.itl.count == len(gaps)
    assert result.itl.total == pytest.approx(sum(gaps))
    assert result.itl.high == pytest.approx(max(gaps, default=0.0))


def test_there_is_no_second_scheduler():
    simulation = Simulation(OpenLoop(SMALL, 5, 2), FixedCost(0.01), TIGHT)
    assert type(simulation.scheduler) is Scheduler
    assert simulation.scheduler.observer is None
    assert simulation.scheduler.stats.keep_steps is False


# --- same seed, same result -----------------------------------------------------------------

PROGRAM = """
import hashlib, json
from minivllm.sim import ClosedLoop, OpenLoop, SimulationConfig

CRAMPED = {"num_gpu_blocks": 600, "max_num_batched_tokens": 512, "max_model_len": 8192}
SCENARIOS = {
    "chat": SimulationConfig(OpenLoop("chat", 20, num_requests=60), seed=7),
    "bursts": SimulationConfig(OpenLoop("sharegpt", 15, num_requests=60, burstiness=0.3), gpu="a10",
                       knobs=CRAMPED, seed=1),
    "users": SimulationConfig(ClosedLoop("shared-prefix", 10, 0.5, num_requests=50), gpu="l4",
                      knobs={**CRAMPED, "preemption_mode": "swap", "num_cpu_blocks": 500}),
    "tp": SimulationConfig(OpenLoop("conversation", 4, num_requests=20), "llama-3-70b", "h200", 4),
}
print(json.dumps({
    name: hashlib.sha256(json.dumps(scenario.run().to_dict()).encode()).hexdigest()
    for name, scenario in SCENARIOS.items()
}))
"""
"""Prints a hash of every run's whole result, records and all."""


def digests(hash_seed):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return json.loads(done.stdout)


def test_the_same_seed_gives_the_same_bytes():
    first, second = digests("1"), digests("2")
    assert first == second
    assert len(set(first.values())) == len(first)


def test_another_seed_gives_other_bytes():
    def digest(seed):
        result = simulate(OpenLoop(SMALL, 20, 5), FixedCost(0.02), TIGHT, seed=seed)
        return hashlib.sha256(json.dumps(result.to_dict()).encode()).hexdigest()

    assert digest(0) == digest(0) != digest(1)


NODE = """
import { readFileSync } from "node:fs";
const [folder, files, program] = process.argv.slice(2);
const { loadPyodide } = await import(`${folder}/pyodide.mjs`);
const python = await loadPyodide({ indexURL: `${folder}/`, stdout: (line) => console.log(line) });
for (const [path, text] of Object.entries(JSON.parse(readFileSync(files, "utf8")))) {
  python.FS.mkdirTree("/home/pyodide/" + path.split("/").slice(0, -1).join("/"));
  python.FS.writeFile("/home/pyodide/" + path, text);
}
python.runPython(readFileSync(program, "utf8"));
"""


def test_pyodide_gives_the_same_bytes(tmp_path):
    """The Python of a browser, another machine's arithmetic: under node, to do without one."""
    import shutil

    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    from tools.get_pyodide import get_pyodide

    try:
        folder = get_pyodide()
    except RuntimeError as error:
        pytest.skip(str(error))
    sources = [ROOT / "minivllm" / name for name in ("__init__.py", "text_file.py", "extras.py")]
    for part in ("core", "runs", "sim"):
        sources += (ROOT / "minivllm" / part).rglob("*.py")
    files = {str(f.relative_to(ROOT)): f.read_text(encoding="utf-8") for f in sources}
    (tmp_path / "files.json").write_text(json.dumps(files))
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "run.mjs").write_text(NODE)
    done = subprocess.run(
        [node, "run.mjs", str(folder), "files.json", "program.py"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == digests("0")


def test_standard_library_is_enough():
    done = run_on_bare_python(
        """
        from minivllm.sim import OpenLoop, SimulationConfig
        print(SimulationConfig(OpenLoop("chat", 5, num_requests=3)).run().num_finished)
        from minivllm.sim.__main__ import main
        assert main(["--num-requests", "3", "--json"]) == 0
        assert not [m for m in sys.modules if m.startswith(("minivllm.viz", "minivllm.engine"))]
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3\n")


# --- memory ---------------------------------------------------------------------------------


def peak_bytes(duration, max_records):
    """The most memory a run takes on top of what was there."""
    config = SchedulerConfig(num_gpu_blocks=100, block_size=4, max_model_len=80, max_num_seqs=16)
    workload = OpenLoop(Mix.of("tiny", UniformLength(1, 20), UniformLength(1, 8)), 30, duration)
    gc.collect()
    tracemalloc.start()
    result = simulate(workload, FixedCost(0.02), config, max_records=max_records)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.num_finished > 25 * duration
    return peak


def test_memory_is_flat_in_simulated_time():
    peak_bytes(5, 100)  # imports and caches
    short, long = peak_bytes(25, 200), peak_bytes(100, 200)
    assert long < 1.1 * short
    # The test could fail: without a bound, the records of the longer run are there to be seen.
    assert peak_bytes(100, 1_000_000) > 1.5 * long


def test_summaries_survive_a_bound_on_the_records():
    workload = OpenLoop(SMALL, 20, 100)
    everything = simulate(workload, FixedCost(0.01), ROOMY)
    sample = simulate(workload, FixedCost(0.01), ROOMY, max_records=200)
    nothing = simulate(workload, FixedCost(0.01), ROOMY, max_records=0)
    assert (len(sample.records), len(nothing.records)) == (200, 0)
    exact = everything.summary()
    for result in (sample, nothing):
        row = result.summary()
        assert row["mean_ttft"] == exact["mean_ttft"]
        for metric in ("ttft", "tpot", "e2e", "itl"):
            for percent in (50, 90, 99):
                name = f"p{percent}_{metric}"
                assert row[name] == pytest.approx(exact[name], rel=0.021), name
    assert {r.index for r in sample.records} <= {r.index for r in everything.records}
    # A uniform sample: late requests are in it as well as early ones.
    assert sum(r.index > everything.num_finished / 2 for r in sample.records) in range(70, 131)


# --- bad input ------------------------------------------------------------------------------

CHAT = OpenLoop("chat", 5, num_requests=3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Simulation(CHAT, FixedCost(1), ROOMY, seed=-1), ("seed", "at least 0", "-1")),
        (lambda: Simulation(CHAT, FixedCost(1), ROOMY, seed=1.5), ("seed", "integer", "1.5")),
        (lambda: simulate(CHAT, FixedCost(1), ROOMY, until=0), ("until", "greater than 0")),
        (lambda: simulate(CHAT, FixedCost(1), ROOMY, until=math.nan), ("until", "nan")),
        (lambda: simulate(CHAT, FixedCost(1), ROOMY, max_records=-1), ("max_records", "-1")),
        (lambda: simulate(CHAT, FixedCost(1), ROOMY, on_refused="shrug"), ("on_refused", "shrug")),
        (lambda: FixedCost(0), ("seconds", "greater than 0")),
        (lambda: FixedCost(math.nan), ("seconds", "nan")),
        (lambda: SimulationConfig(model="gpt-5"), ("model", "gpt-5", "llama-3-8b")),
        (lambda: SimulationConfig(model="llama-3-8"), ("Did you mean 'llama-3-8b'?",)),
        (lambda: SimulationConfig(gpu="h10"), ("gpu", "h10", "Did you mean 'h100'?")),
        (
            lambda: SimulationConfig(knobs={"budget": 5}),
            ("knobs", "budget", "max_num_batched_tokens"),
        ),
        (lambda: SimulationConfig(tensor_parallel=0), ("tensor_parallel", "at least 1", "0")),
        (lambda: SimulationConfig(tensor_parallel=3).config(), ("tensor_parallel", "32", "3")),
        (
            lambda: SimulationConfig(gpu_memory_utilization=1.5),
            ("gpu_memory_utilization", "at most 1"),
        ),
        (lambda: SimulationConfig(seed=-3), ("seed", "-3")),
        (lambda: SimulationConfig(until=-1), ("until", "-1")),
        (
            lambda: SimulationConfig(model="llama-3-70b", gpu="a10").run(),
            ("141", "GB", "tensor_parallel"),
        ),
        (lambda: SimulationConfig().with_(speed=1), ("speed", "rate")),
        (lambda: SimulationConfig().with_(rate=-1), ("rate", "-1")),
        (lambda: SimulationConfig().with_(budget=0).config(), ("max_num_batched_tokens", "0")),
    ],
)  # fmt: skip
def test_bad_input_is_named(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


def test_a_request_that_never_fits_is_refused_with_both_numbers():
    trace = Trace((Arrival(0, 10, 5), Arrival(1, 60, 90), Arrival(2, 10, 5)))
    config = replace(TIGHT, max_model_len=200, num_gpu_blocks=20)
    with pytest.raises(ValueError, match=r"request 1: .*need 38 blocks.*cache has 20.*count"):
        simulate(trace, FixedCost(0.1), config)
    result = simulate(trace, FixedCost(0.1), config, on_refused="count")
    assert (result.num_finished, result.num_refused) == (2, 1)
    assert "cache has 20" in result.refusals[0]
    assert "1 refused" in result.table()


def test_without_admission_control_it_waits_for_ever_and_the_run_says_so():
    trace = Trace((Arrival(0, 60, 90), Arrival(1, 10, 5)))
    config = replace(TIGHT, max_model_len=200, num_gpu_blocks=10, admission_control=False)
    with pytest.raises(RuntimeError, match=r"2 requests wait.*num_gpu_blocks"):
        simulate(trace, FixedCost(0.1), config)


def test_users_whose_every_request_is_refused_do_not_hang_the_run():
    workload = ClosedLoop(Mix.of("huge", Constant(500), Constant(5)), 3, duration=10)
    with pytest.raises(ValueError, match=r"refused in a row.*max_model_len=80"):
        simulate(workload, FixedCost(0.1), TIGHT, on_refused="count")


def test_a_cost_that_is_no_time_is_refused():
    class Free(FixedCost):
        def step_time(self, load):
            return self.answer

    for answer in (0.0, -1.0, math.nan, math.inf):
        cost = Free(1.0)
        object.__setattr__(cost, "answer", answer)
        with pytest.raises(ValueError, match="cost: a step must take"):
            simulate(CHAT, cost, ROOMY)


def test_stepping_is_running():
    one = Simulation(OpenLoop(SMALL, 9, 3), FixedCost(0.02), TIGHT)
    while one.step():
        pass
    assert one.run().to_dict() == simulate(OpenLoop(SMALL, 9, 3), FixedCost(0.02), TIGHT).to_dict()


def test_chunking_changes_what_a_step_costs_and_not_what_comes_out():
    """The lever of exercise 10, at the scale of the H100: a document's chunks delay decodes."""
    base = SimulationConfig(OpenLoop("chat90-doc10", 4, num_requests=150), seed=3)
    whole = base.with_(budget=16_384).run()
    chunked = base.with_(budget=16_384, threshold=512).run()
    assert whole.num_output_tokens == chunked.num_output_tokens
    assert chunked.percentile("max_itl", 99, "chat") < 0.5 * whole.percentile("max_itl", 99, "chat")
    assert roofline("llama-3-8b", "h100").name == "llama-3-8b on h100"


def test_proposed_tokens_pay_while_weights_are_what_is_read() -> None:
    """At one user a step costs the same with five tokens; at 256 it does not."""

    def throughput(users: int, k: int, rate: float) -> float:
        scenario = SimulationConfig(
            ClosedLoop("chat", users, num_requests=4 * users),
            knobs={"num_speculative_tokens": k},
            acceptance_rate=rate,
        )
        return scenario.summary()["output_throughput"]

    assert throughput(1, 4, 0.7) > 2 * throughput(1, 0, 0.7)
    assert throughput(1, 4, 0.0) > 0.98 * throughput(1, 0, 0.0)
    assert throughput(256, 4, 0.4) < throughput(256, 0, 0.4)


def test_a_draft_model_takes_time_and_memory() -> None:
    """One pass over the step's tokens and the new ones, then a pass for each further proposal."""
    traffic = ClosedLoop("chat", 1, num_requests=2)
    free = SimulationConfig(traffic, knobs={"num_speculative_tokens": 4}, acceptance_rate=0.7)
    paid = replace(free, draft_model="llama-3-1b")
    alone = paid.draft_cost()
    assert alone is not None
    steps: list[tuple[float, StepLoad]] = []
    paid.run(on_step=lambda start, seconds, plan, load: steps.append((seconds, load)))
    decodes = [(s, load) for s, load in steps if load.num_tokens == load.num_sampled == 5]
    assert decodes
    for seconds, load in decodes:
        draft = seconds - paid.roofline().step_time(load)
        one = alone.step_time(StepLoad(1, 1, 1, load.kv_tokens, load.kv_tokens))
        assert draft == pytest.approx(4 * one, rel=0.02)
    assert paid.config().num_gpu_blocks < 0.9 * free.config().num_gpu_blocks
    assert paid.config().num_lookahead_tokens == 4
    without = SimulationConfig(traffic).summary()["output_throughput"]
    assert without < paid.summary()["output_throughput"] < free.summary()["output_throughput"]
    with pytest.raises(ValueError, match="llama-3-8b one of 128256"):
        replace(paid, draft_model="qwen3-0.6b")
    with pytest.raises(ValueError, match="set num_speculative_tokens"):
        SimulationConfig(draft_model="llama-3-1b")


def test_an_acceptance_rate_is_a_share() -> None:
    with pytest.raises(ValueError, match="acceptance_rate"):
        SimulationConfig(acceptance_rate=1.2)
    everything = SimulationConfig(
        ClosedLoop("chat", 1, num_requests=3), knobs={"num_speculative_tokens": 3},
        acceptance_rate=1.0,
    ).run()  # fmt: skip
    stats = everything.stats
    assert stats["num_accepted_tokens"] == stats["num_draft_tokens"] > 0
