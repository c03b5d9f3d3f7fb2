"""What a step costs: sizes that are known, and orders that every cost model must keep."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace

import hypothesis.strategies as st
import pytest
from hypothesis import assume, given, settings

from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig
from minivllm.sim import HARDWARE, MODELS, FittedCost, FixedCost, StepLoad, get_hardware, get_model
from minivllm.sim import roofline as make_roofline
from minivllm.sim.cost import LINEAR_FEATURES, mean_relative_error

# --- sizes ----------------------------------------------------------------------------------

PUBLISHED = {
    # Parameters of the published checkpoints, biases and per-head norms left out (see below).
    "smollm2-135m": 134_515_008,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "yi-34b": 34_388_917_248,
    "qwen2.5-7b": 7_615_616_512 - 28 * (3584 + 2 * 512),  # its q, k and v have biases
    "qwen3-0.6b": 596_049_920 - 28 * 2 * 128,  # its q and k are normed, head by head
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_have_the_published_number_of_parameters(name):
    assert get_model(name).num_params == PUBLISHED[name]


@pytest.mark.parametrize(("name", "billions"), [("opt-13b", 13), ("gpt3-175b", 175)])
def test_models_of_papers_are_as_large_as_their_names(name, billions):
    assert get_model(name).num_params == pytest.approx(billions * 1e9, rel=0.02)


def test_a_token_of_llama_3_8b_takes_128_kib_of_cache():
    model = get_model("llama-3-8b")
    assert model.kv_bytes_per_token() == 128 * 1024
    assert model.kv_bytes_per_token(tensor_parallel=8) == 128 * 1024
    assert model.kv_bytes_per_token(tensor_parallel=16) == 256 * 1024  # heads are copied


def test_names_are_found_whatever_their_case_and_specs_pass_through():
    assert get_model("Llama-3-8B") is MODELS["llama-3-8b"]
    assert get_hardware("H100") is HARDWARE["h100"]
    spec = replace(MODELS["llama-3-8b"], num_layers=1, name="thin")
    assert get_model(spec) is spec
    assert make_roofline(spec, "h100").name == "thin on h100"


@pytest.mark.parametrize("name", HARDWARE)
def test_every_machine_cites_its_source(name):
    spec = HARDWARE[name]
    assert "data sheet" in spec.source or "measured" in spec.source
    assert 0 < spec.flops_efficiency <= 1
    assert 0 < spec.bandwidth_efficiency <= 1


def test_the_cache_takes_what_the_weights_leave():
    cost = make_roofline("llama-3-8b", "h100")
    blocks = cost.num_kv_blocks()
    used = blocks * 16 * 128 * 1024 + 2 * MODELS["llama-3-8b"].num_params
    assert 0.85 * 80e9 < used < 0.92 * 80e9
    assert cost.num_kv_blocks(gpu_memory_utilization=0.5) < blocks
    assert cost.num_kv_blocks(max_num_batched_tokens=65_536) < blocks
    assert make_roofline("llama-3-8b", "h100", tensor_parallel=2).num_kv_blocks() > 2 * blocks


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make_roofline("llama-3-70b", "h100").num_kv_blocks(), ("141", "73.6 GB")),
        (lambda: make_roofline("llama-3-8b", "h100").num_kv_blocks(gpu_memory_utilization=2),
         ("gpu_memory_utilization", "at most 1", "2")),
        (lambda: make_roofline("llama-3-8b", "h100", tensor_parallel=5), ("32", "5")),
        (lambda: make_roofline("llama-3-8b", "h100", tensor_parallel=True), ("True",)),
        (lambda: make_roofline("llama-3-8b", "h100", block_size=0), ("block_size", "0")),
        (lambda: make_roofline("llama", "h100"), ("model", "'llama'", "llama-3-8b")),
        (lambda: make_roofline("llama-3-8b", "tpu"), ("gpu", "'tpu'", "a100-80")),
        (lambda: make_roofline("llama-3-8b", replace(HARDWARE["h100"], peak_flops=0)),
         ("peak_flops", "greater than 0")),
        (lambda: make_roofline("llama-3-8b", replace(HARDWARE["h100"], step_overhead=math.nan)),
         ("step_overhead", "nan")),
        (lambda: make_roofline("llama-3-8b", replace(HARDWARE["h100"], flops_efficiency=1.2)),
         ("flops_efficiency", "at most 1")),
        (lambda: make_roofline(replace(MODELS["llama-3-8b"], num_layers=0), "h100"),
         ("num_layers", "at least 1", "0")),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


# --- loads ----------------------------------------------------------------------------------

requests_of_a_step = st.lists(
    st.tuples(st.integers(1, 600), st.integers(0, 4000), st.booleans()), max_size=12
)
"""(new tokens, tokens before them, sampled?)"""


def load_of(requests, swap_blocks=0):
    load = StepLoad(swap_blocks=swap_blocks)
    for new, before, sampled in requests:
        load.add(new, before + new, sampled)
    return load


@given(requests_of_a_step)
def test_a_load_is_what_counting_one_by_one_gives(requests):
    load = load_of(requests)
    assert load.num_reqs == len(requests)
    assert load.num_tokens == sum(new for new, _, _ in requests)
    assert load.kv_tokens == sum(new + before for new, before, _ in requests)
    pairs = sum(before + i + 1 for new, before, _ in requests for i in range(new))
    assert load.attention_pairs == pairs


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 700))
def test_chunks_multiply_the_same_pairs_and_read_more_cache(prompt, chunk):
    whole, parts = StepLoad(), StepLoad()
    whole.add(prompt, prompt, True)
    for end in [*range(chunk, prompt, chunk), prompt]:
        new = end - (end - 1) // chunk * chunk
        parts.add(new, end, end == prompt)
    assert parts.attention_pairs == whole.attention_pairs
    assert parts.num_tokens == whole.num_tokens
    assert parts.kv_tokens >= whole.kv_tokens


def test_the_load_of_a_plan_is_the_load_of_its_requests():
    scheduler = Scheduler(SchedulerConfig(num_gpu_blocks=50, max_num_batched_tokens=64))
    scheduler.add_request(Request("a", [1] * 40, SamplingParams(max_tokens=9)))
    scheduler.add_request(Request("b", [2] * 90, SamplingParams(max_tokens=9)))
    plan = scheduler.schedule()
    assert StepLoad.of_plan(plan) == load_of([(40, 0, True), (24, 0, False)])
    scheduler.update_from_output(plan, {"a": 5})
    plan = scheduler.schedule()
    assert StepLoad.of_plan(plan) == load_of([(1, 40, True), (63, 24, False)])
    scheduler.update_from_output(plan, {"a": 5})
    plan = scheduler.schedule()
    scheduler.update_from_output(plan, {"a": 5, "b": 6})
    plan = scheduler.schedule()
    assert StepLoad.of_decode(plan.scheduled_running_reqs) == StepLoad.of_plan(plan)
    assert StepLoad.of_plan(plan) == load_of([(1, 42, True), (1, 90, True)])


# --- the roofline ---------------------------------------------------------------------------

costs = st.builds(
    make_roofline,
    st.sampled_from(sorted(MODELS)),
    st.sampled_from(sorted(HARDWARE)),
    block_size=st.sampled_from([1, 16, 128]),
)
loads = st.builds(load_of, requests_of_a_step, st.integers(0, 100))


@settings(deadline=None)
@given(costs, loads)
def test_a_step_costs_the_sum_of_its_parts_and_never_nothing(cost, load):
    parts = cost.parts(load)
    assert all(seconds >= 0 for seconds in parts.values())
    if load.num_tokens:
        assert cost.step_time(load) == pytest.approx(sum(parts.values()))
    assert cost.step_time(load) >= cost.hardware.step_overhead


@settings(deadline=None)
@given(costs, loads, st.sampled_from([f.name for f in fields(StepLoad)]), st.integers(1, 5000))
def test_more_of_anything_is_never_cheaper(cost, load, feature, more):
    assume(load.num_tokens)
    loaded = replace(load, **{feature: getattr(load, feature) + more})
    assert cost.step_time(loaded) >= cost.step_time(load)


@settings(deadline=None)
@given(costs, st.integers(1, 500), st.integers(0, 5000), st.integers(1, 5000))
def test_a_longer_context_is_never_cheaper(cost, new, before, longer):
    short, long = load_of([(new, before, True)]), load_of([(new, before + longer, True)])
    assert cost.step_time(long) >= cost.step_time(short)


@settings(deadline=None)
@given(costs, requests_of_a_step, requests_of_a_step)
def test_two_batches_in_one_step_never_cost_more_than_in_two(cost, one, other):
    """Weights are read once, the overhead is paid once: why batching pays."""
    assume(one and other)
    apart = cost.step_time(load_of(one)) + cost.step_time(load_of(other))
    assert cost.step_time(load_of(one + other)) <= apart * (1 + 1e-12)


@settings(deadline=None)
@given(
    st.sampled_from(["llama-3-8b", "llama-3-70b", "qwen3-0.6b"]),
    st.sampled_from(sorted(HARDWARE)),
    loads,
    st.sampled_from([2, 4, 8]),
)
def test_more_gpus_never_compute_slower(model, gpu, load, tp):
    one = make_roofline(model, gpu).parts(load)
    many = make_roofline(model, gpu, tensor_parallel=tp).parts(load)
    for part in ("linear", "attention", "swap"):
        assert many[part] <= one[part] * (1 + 1e-12)
    assert one["allreduce"] == 0
    assert many["fixed"] > one["fixed"]  # the price: two all-reduces in each layer
    assert many["linear"] == pytest.approx(one["linear"] / tp)


@settings(deadline=None)
@given(
    loads,
    st.sampled_from(["peak_flops", "memory_bandwidth", "pcie_bandwidth", "link_bandwidth"]),
    st.floats(1, 10),
    st.sampled_from([1, 4]),
)
def test_a_faster_machine_is_never_slower(load, field, factor, tp):
    slow = HARDWARE["a10"]
    fast = replace(slow, **{field: getattr(slow, field) * factor})
    times = [make_roofline("llama-3-8b", gpu, tensor_parallel=tp).step_time(load)
             for gpu in (slow, fast)]  # fmt: skip
    assert times[1] <= times[0] * (1 + 1e-12)


def test_decoding_alone_reads_the_weights_and_prefill_multiplies():
    cost = make_roofline("llama-3-8b", "h100")
    read = 2 * (MODELS["llama-3-8b"].body_params + MODELS["llama-3-8b"].head_params)
    one = cost.parts(load_of([(1, 100, True)]))
    assert one["linear"] == pytest.approx(read / (3.35e12 * 0.8))
    assert cost.parts(load_of([(1, 100, True)] * 64))["linear"] == one["linear"]
    prefill = cost.parts(load_of([(4096, 0, False)]))
    flops = 2 * MODELS["llama-3-8b"].body_params * 4096
    assert prefill["linear"] == pytest.approx(flops / (989.5e12 * 0.6))


# --- costs that are fitted, or fixed --------------------------------------------------------

FITTED = FittedCost(
    1e-3, dict(zip(LINEAR_FEATURES, (1e-5, 2e-5, 3e-8, 4e-9, 5e-6), strict=True)),
    {0: 1e-5, 64: 2e-5}, "mine", {"mean_relative_error": 0.1}, {"threads": 2},
)  # fmt: skip


@given(loads)
def test_a_fitted_cost_is_its_formula(load):
    expected = 1e-3 + load.num_reqs * 1e-5 + load.num_sampled * 2e-5 + load.kv_tokens * 3e-8
    expected += load.attention_pairs * 4e-9 + load.swap_blocks * 5e-6
    expected += load.num_tokens * 1e-5 + max(0, load.num_tokens - 64) * 2e-5
    assert FITTED.step_time(load) == pytest.approx(expected)


def test_a_fitted_cost_is_what_was_saved(tmp_path):
    FITTED.save(tmp_path / "cost.json")
    assert FittedCost.load(tmp_path / "cost.json") == FITTED
    json.dumps(FITTED.to_dict())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"constant": -1}, ("constant", "at least 0", "-1")),
        ({"constant": None}, ("constant", "None")),
        ({"linear": {"num_reqs": math.nan}}, ("num_reqs", "nan")),
        ({"linear": {"moons": 1.0}}, ("moons", "num_reqs")),
        ({"linear": 5}, ("not a fitted cost model",)),
        ({"slopes": {"0": -2.0}}, ("coefficient of 0", "-2")),
        ({"slopes": {"x": 1.0}}, ("x",)),
        ({"slopes": None}, ("not a fitted cost model",)),
    ],
)
def test_a_bad_cost_file_is_named(tmp_path, change, words):
    path = tmp_path / "cost.json"
    path.write_text(json.dumps({**FITTED.to_dict(), **change}))
    with pytest.raises(ValueError) as caught:
        FittedCost.load(path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "5"])
def test_a_file_that_is_no_cost_model_is_named(tmp_path, text):
    path = tmp_path / "cost.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"not JSON|not a fitted cost model"):
        FittedCost.load(path)


def test_the_error_of_a_cost_is_the_mean_over_steps():
    steps = [(StepLoad(), 1.0), (StepLoad(), 4.0)]
    assert mean_relative_error(FixedCost(2.0), steps) == pytest.approx((1.0 + 0.5) / 2)
