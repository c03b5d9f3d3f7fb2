"""Planning ahead changes when things are decided, never what a request says."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from serving import build, token_ids

from minivllm import LLM, SamplingParams
from minivllm.core import AsyncScheduler, Request, RequestStatus, Scheduler, SchedulerConfig
from minivllm.core.output import SchedulerOutput
from minivllm.engine import LLMEngine
from minivllm.models.loader import tiny_random_model
from minivllm.noise import uniform_noise

TIGHT = {"num_gpu_blocks": 24, "block_size": 4, "max_model_len": 96, "max_num_seqs": 6}
KNOBS: dict[str, dict[str, Any]] = {
    "plenty": {},
    "chunks": {"max_num_batched_tokens": 16},
    "preemption": TIGHT,
    "preemption, no prefix cache": {**TIGHT, "enable_prefix_caching": False},
    "swap": {**TIGHT, "preemption_mode": "swap", "num_cpu_blocks": 60},
    "priority": {**TIGHT, "policy": "priority"},
    "small budget": {**TIGHT, "max_num_batched_tokens": 7},
    "threshold": {**TIGHT, "long_prefill_token_threshold": 5},
    "one by one": {"max_num_seqs": 1},
    "eager": {"enforce_eager": True},
    "tiles": {"batch_invariant": True, "block_size": 16},
}
PROMPTS = [[i, 300 + i, 7] * (1 + i % 7) for i in range(3, 19)]


def params(index: int) -> SamplingParams:
    """Greedy and not, ending by length, by a token, by a string, each at some other time."""
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "stop_token_ids": list(range(0, 512, 6))},
        {"temperature": 1.0, "stop": ["a", "e"], "min_tokens": 3},
        {"temperature": 1.0, "top_k": 20, "ignore_eos": True},
        {"temperature": 2.0, "min_tokens": 5, "stop_token_ids": list(range(0, 512, 3))},
    ]
    kind = kinds[index % 5]
    most = max(1 + 3 * (index % 9), kind.get("min_tokens", 1))
    return SamplingParams(seed=index, max_tokens=most, **kind)


def said(engine: LLM, priorities: bool = False) -> list[Any]:
    ranks = [i % 3 for i in range(len(PROMPTS))] if priorities else None
    outputs = engine.generate(
        PROMPTS, [params(i) for i in range(len(PROMPTS))], use_tqdm=False, priority=ranks
    )
    return [
        (o.token_ids, o.text, o.finish_reason, o.stop_reason)
        for output in outputs
        for o in output.outputs
    ]


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=list(KNOBS))
def test_the_same_is_said(knobs: dict[str, Any]) -> None:
    priorities = knobs.get("policy") == "priority"
    engine = build(async_scheduling=True, **knobs)
    assert said(engine, priorities) == said(build(async_scheduling=False, **knobs), priorities)
    scheduler = engine.llm_engine.scheduler
    assert isinstance(scheduler, AsyncScheduler)
    assert not scheduler.requests
    assert not scheduler._in_flight
    pool = scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == scheduler.config.num_gpu_blocks
    if "num_gpu_blocks" in knobs:
        assert scheduler.stats.num_preemptions > 0
    assert said(engine, priorities) == said(build(**knobs), priorities)  # once more, warm


def test_it_is_ahead() -> None:
    """The next step has been launched when a step's tokens come out, and it is the only one."""
    engine = LLMEngine("tiny-random", async_scheduling=True)
    engine.add_request("a", [5, 6, 7], SamplingParams(max_tokens=4, ignore_eos=True))
    launched = []
    launch = engine._launch
    engine._launch = lambda *late: launched.append(engine.scheduler.step) or launch(*late)  # type: ignore
    lengths = []
    while engine.has_unfinished_requests():
        (output,) = engine.step()
        lengths.append((len(output.outputs[0].token_ids), len(launched)))
    # The fourth token is the last: the fifth launch finds nothing to do and there is no sixth.
    assert lengths == [(1, 2), (2, 3), (3, 4), (4, 5)]
    assert engine.scheduler.stats.num_scheduled_tokens == 3 + 3
    assert engine.step() == []


def test_a_stop_by_surprise_costs_one_token_and_no_more() -> None:
    request = {"prompt_token_ids": [5, 6, 7]}
    greedy = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    tokens = token_ids(build(), [request], greedy)[0]
    stop = tokens[9]
    length = tokens.index(stop) + 1
    one = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, stop_token_ids=[stop])
    computed = {}
    for ahead in (True, False):
        engine = build(async_scheduling=ahead)
        assert token_ids(engine, [request], one) == [tokens[:length]]
        computed[ahead] = engine.llm_engine.scheduler.stats.num_scheduled_tokens
    assert computed[True] == computed[False] + 1


def test_requests_come_and_go_and_ids_return() -> None:
    """Aborted while a step of theirs runs, and their ids in use again at once."""
    rng = random.Random(0)
    model = tiny_random_model()
    engine = LLMEngine(model, async_scheduling=True, **TIGHT)  # type: ignore[arg-type]
    plain = LLMEngine(model, async_scheduling=False)
    expected: dict[int, list[int]] = {}

    def alone(number: int) -> list[int]:
        if number not in expected:
            plain.add_request("x", PROMPTS[number % 16], params(number))
            while plain.has_unfinished_requests():
                outputs = plain.step()
            expected[number] = outputs[0].outputs[0].token_ids
        return expected[number]

    owner: dict[str, int] = {}
    finished = 0
    for _ in range(400):
        if len(owner) < 8 and rng.random() < 0.6:
            request_id, number = f"id{rng.randrange(9)}", rng.randrange(60)
            if request_id not in owner:
                engine.add_request(request_id, PROMPTS[number % 16], params(number))
                owner[request_id] = number
        if owner and rng.random() < 0.15:
            gone = rng.choice(sorted(owner))
            engine.abort_request(gone)
            del owner[gone]
        for output in engine.step():
            tokens = output.outputs[0].token_ids
            assert tokens == alone(owner[output.request_id])[: len(tokens)]
            if output.finished:
                assert tokens == alone(owner.pop(output.request_id))
                finished += 1
    assert finished > 50
    engine.abort_request(list(owner))
    assert not engine.has_unfinished_requests()
    assert engine.step() == []
    scheduler = engine.scheduler
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 24
    assert not scheduler._in_flight  # type: ignore[attr-defined]


def test_after_an_exception_nothing_is_left_in_flight() -> None:
    engine = build(async_scheduling=True)
    for _ in engine.stream([PROMPTS[0]], params(3)):
        break
    inner = engine.llm_engine
    forward = inner.model.forward
    inner.model.forward = None  # type: ignore[assignment]
    with pytest.raises(TypeError):
        engine.generate(PROMPTS, params(3), use_tqdm=False)
    inner.model.forward = forward  # type: ignore[method-assign]
    assert not inner.has_unfinished_requests()
    assert said(engine) == said(build())


def test_a_history_and_planning_ahead_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="set one of the two to False"):
        build(async_scheduling=True, record=True)
    assert not build().llm_engine.async_scheduling  # on a CPU nothing runs meanwhile
    assert build(record=True).llm_engine.scheduler.history is not None


# --- the scheduler by itself --------------------------------------------------------------


def drive(config: SchedulerConfig, seed: int, depth: int) -> dict[str, list[int]]:
    """Random requests through a scheduler with `depth` plans under way; tokens are a function of
    the request and the position, as a model's are. Checks what holds in every step."""
    scheduler = (AsyncScheduler if depth > 1 else Scheduler)(config)
    rng = random.Random(seed)
    plans: list[tuple[SchedulerOutput, dict[str, int]]] = []
    said: dict[str, list[int]] = {}
    arrivals = [
        Request(
            f"r{i}",
            [rng.randrange(3) for _ in range(rng.randrange(1, 30))],
            SamplingParams(max_tokens=rng.randrange(1, 20), stop_token_ids=[3]),
            priority=rng.randrange(3),
            arrival_time=float(i),
        )
        for i in range(25)
    ]
    requests = {request.request_id: request for request in arrivals}
    while arrivals or scheduler.requests or plans:
        while arrivals and rng.random() < 0.5:
            scheduler.add_request(arrivals.pop(0))
        plan = scheduler.schedule()
        sampled = {}
        for request_id, num_tokens in plan.num_scheduled_tokens.items():
            request = requests[request_id]
            assert num_tokens > 0
            assert request.num_computed_tokens <= len(request.all_token_ids) + depth - 1
            if request.num_computed_tokens >= len(request.all_token_ids):
                index = request.next_output_index
                noise = uniform_noise(int(request_id[1:]), index)
                sampled[request_id] = 3 if noise < 0.1 else int(noise * 1000) + 4
        assert sum(plan.num_scheduled_tokens.values()) <= config.max_num_batched_tokens
        assert len(scheduler.running) <= config.max_num_seqs
        plans.append((plan, sampled))
        while len(plans) >= depth or (plans and not plan.num_scheduled_tokens):
            for output in scheduler.update_from_output(*plans.pop(0)):
                said.setdefault(output.request_id, []).extend(output.new_token_ids)
    pool = scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == config.num_gpu_blocks
    assert all(request.is_finished for request in requests.values())
    return said


@pytest.mark.parametrize("seed", range(40))
def test_any_requests_get_the_same_tokens(seed: int) -> None:
    rng = random.Random(1000 + seed)
    config = SchedulerConfig(
        num_gpu_blocks=rng.choice([13, 16, 40]),
        block_size=4,
        max_model_len=50,
        max_num_seqs=rng.choice([2, 5, 10]),
        max_num_batched_tokens=rng.choice([5, 16, 100]),
        long_prefill_token_threshold=rng.choice([0, 4]),
        policy=rng.choice(["fcfs", "priority"]),
        enable_prefix_caching=rng.random() < 0.7,
        preemption_mode=rng.choice(["recompute", "swap"]),
        num_cpu_blocks=rng.choice([0, 20]),
    )
    assert drive(config, seed, 2) == drive(config, seed, 1)


def test_a_request_that_ends_while_it_is_preempted_leaves_the_queue() -> None:
    scheduler = AsyncScheduler(
        SchedulerConfig(num_gpu_blocks=4, block_size=2, max_model_len=8, max_num_seqs=2)
    )
    first, second = (Request(name, [1, 2, 3], SamplingParams(max_tokens=5, stop_token_ids=[9]))
                     for name in "ab")  # fmt: skip
    scheduler.add_request(first)
    scheduler.add_request(second)
    one = scheduler.schedule()
    two = scheduler.schedule()
    assert not two.preempted_req_ids
    scheduler.update_from_output(one, {"a": 5, "b": 5})
    three = scheduler.schedule()  # five tokens each: a third block, and there is none
    assert three.preempted_req_ids == ["b"]
    outputs = scheduler.update_from_output(two, {"a": 5, "b": 9})
    assert [output.finish_reason for output in outputs] == [None, "stop"]
    assert second.status is RequestStatus.FINISHED_STOPPED
    assert not len(scheduler.waiting)
    assert list(scheduler.requests) == ["a"]


def test_tokens_are_put_in_on_the_device() -> None:
    from minivllm.models.late_tokens import LateTokens

    late = LateTokens(4, "cpu")
    late.keep([2, 0], torch.tensor([70, 80]))
    given = torch.tensor([5, LateTokens.stand_in(0), 0, LateTokens.stand_in(2)])
    assert late.fill_in(given).tolist() == [5, 80, 0, 70]
