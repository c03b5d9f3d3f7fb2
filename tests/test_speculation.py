"""Speculative tokens in the core: the third number, the caps that cut it, what is taken back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.core import Request, RequestStatus, SamplingParams, Scheduler, SchedulerConfig
from minivllm.core.async_scheduler import AsyncScheduler
from minivllm.core.releases import CHANGES, NEWEST, REFERENCE, RELEASES
from minivllm.runs import Recorder, observe
from minivllm.runs.conformance import read_traces, release_of, replay
from minivllm.runs.drive import drive
from minivllm.runs.explain import explain
from minivllm.runs.guesses import Guesses, propose, sampled_tokens, verified
from minivllm.runs.replay import replay as run_again


def make(**knobs) -> Scheduler:
    knobs = {
        "num_gpu_blocks": 64, "block_size": 4, "max_num_batched_tokens": 64, "max_model_len": 64,
        "num_speculative_tokens": 4, **knobs,
    }  # fmt: skip
    return observe(Scheduler(SchedulerConfig(**knobs)))


def request(id_: str = "r0", num_prompt_tokens: int = 8, **params) -> Request:
    return Request(id_, list(range(num_prompt_tokens)), SamplingParams(**params))


def started(scheduler: Scheduler, *requests: Request) -> Scheduler:
    """Their prompts are computed, and each has its first token, 100."""
    for one in requests:
        scheduler.add_request(one)
    plan = scheduler.schedule()
    scheduler.update_from_output(plan, {one.request_id: 100 for one in requests})
    return scheduler


def test_a_step_verifies_proposed_tokens_and_takes_the_rejected_back():
    r0 = request(max_tokens=20)
    scheduler = started(make(), r0)
    scheduler.update_draft_token_ids({"r0": [101, 102, 103, 104]})
    assert r0.num_tokens_with_spec - r0.num_computed_tokens == 5
    plan = scheduler.schedule()
    assert plan.num_scheduled_tokens == {"r0": 5}
    assert plan.scheduled_spec_decode_tokens == {"r0": [101, 102, 103, 104]}
    assert r0.num_computed_tokens == 13 > r0.num_tokens == 9
    (output,) = scheduler.update_from_output(plan, {"r0": [101, 102, 7]})
    assert output.new_token_ids == [101, 102, 7]
    assert (r0.num_computed_tokens, r0.num_tokens) == (11, 12)
    stats = scheduler.stats
    assert (stats.num_drafts, stats.num_draft_tokens, stats.num_accepted_tokens) == (1, 4, 2)
    told = explain(scheduler.history[1])
    assert "r0 decodes: 1 token and 4 proposed." in told
    assert "r0: 4 proposed, 2 accepted, 2 taken back." in told


@pytest.mark.parametrize(
    ("knobs", "params", "cap", "num_drafts"),
    [
        ({}, {}, "gap", 4),
        ({"long_prefill_token_threshold": 3}, {}, "long_prefill_token_threshold", 2),
        ({"max_num_batched_tokens": 10, "num_gpu_blocks": 9}, {}, "max_num_batched_tokens", 1),
        ({"max_model_len": 12}, {}, "max_model_len", 2),
    ],
)
def test_each_cap_of_the_clamp_cuts_proposed_tokens(knobs, params, cap, num_drafts):
    scheduler = make(**knobs)
    ids = ["a", "b"] if cap == "max_num_batched_tokens" else ["a"]
    for id_ in ids:
        scheduler.add_request(request(id_, max_tokens=20, **params))
    while any(not scheduler.requests[id_].output_token_ids for id_ in ids):
        plan = scheduler.schedule()
        scheduler.update_from_output(plan, sampled_tokens(scheduler, plan, lambda r, i: 100 + i))
        for id_ in ids:
            if id_ in plan.num_scheduled_tokens:
                scheduler.update_draft_token_ids({id_: [101, 102, 103, 104]})
    for id_ in ids:
        n = scheduler.requests[id_].num_output_tokens
        scheduler.update_draft_token_ids({id_: [100 + n + i for i in range(4)]})
    plan = scheduler.schedule()
    row = scheduler.history[plan.step]["scheduled"][-1]
    if cap == "max_num_batched_tokens":
        assert row["num_scheduled_tokens"] == 5
        assert plan.total_num_scheduled_tokens == 10
    else:
        assert (row["cap"], row["num_draft_tokens"]) == (cap, num_drafts)
        assert scheduler.requests["a"].spec_token_ids == []


def test_a_stop_token_among_the_accepted_ends_the_request_there():
    r0 = request(max_tokens=20, stop_token_ids=[102])
    scheduler = started(make(), r0)
    scheduler.update_draft_token_ids({"r0": [101, 102, 103, 104]})
    (output,) = scheduler.update_from_output(scheduler.schedule(), {"r0": [101, 102, 103, 104, 5]})
    assert output.new_token_ids == [101, 102]
    assert r0.status is RequestStatus.FINISHED_STOPPED
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 64


def test_length_ends_it_among_the_accepted_too():
    r0 = request(max_tokens=3)
    scheduler = started(make(), r0)
    scheduler.update_draft_token_ids({"r0": [101, 102, 103, 104]})
    (output,) = scheduler.update_from_output(scheduler.schedule(), {"r0": [101, 102, 103, 104, 5]})
    assert output.new_token_ids == [101, 102]
    assert output.finish_reason == "length"


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda s: s.update_draft_token_ids({"r0": [1] * 5}), r"5 tokens .* allows fewer"),
        (lambda s: make(num_speculative_tokens=-1), "num_speculative_tokens must be at least 0"),
        (lambda s: make(num_lookahead_tokens=5), "at most num_speculative_tokens=4"),
        (lambda s: make(max_num_batched_tokens=4), "no room for a token and num_spec.*=4"),
        (lambda s: AsyncScheduler(SchedulerConfig(num_gpu_blocks=9, num_speculative_tokens=1))
         .update_draft_token_ids({}), "update_draft_token_ids_in_output.*async_scheduling=False"),
    ],
)  # fmt: skip
def test_bad_input_is_named_with_its_limit(act, words):
    scheduler = started(make(), request())
    with pytest.raises(ValueError, match=words):
        act(scheduler)


@pytest.mark.parametrize("token_ids", [[], [1, 2, 3]])
def test_a_step_gives_one_token_more_than_were_accepted(token_ids):
    scheduler = started(make(), request(max_tokens=20))
    scheduler.update_draft_token_ids({"r0": [101]})
    plan = scheduler.schedule()
    with pytest.raises(ValueError, match="1 proposed tokens it gets 1 to 2"):
        scheduler.update_from_output(plan, {"r0": token_ids})


def test_a_request_in_the_middle_of_its_prompt_gets_no_proposed_tokens():
    scheduler = make(max_num_batched_tokens=6)
    scheduler.add_request(request(num_prompt_tokens=20))
    scheduler.update_from_output(scheduler.schedule(), {})
    scheduler.update_draft_token_ids({"r0": [1, 2], "gone": [3]})
    assert scheduler.requests["r0"].spec_token_ids == []


def test_a_victim_loses_its_proposed_tokens():
    scheduler = started(
        make(num_gpu_blocks=6, max_model_len=24),
        request("a", 11, max_tokens=12),
        request("b", 8, max_tokens=12),
    )
    scheduler.update_draft_token_ids({"a": [1, 2, 3, 4], "b": [5, 6, 7, 8]})
    plan = scheduler.schedule()
    assert plan.preempted_req_ids == ["b"]
    assert scheduler.requests["b"].spec_token_ids == []
    assert list(plan.scheduled_spec_decode_tokens) == ["a"]


def test_only_accepted_tokens_enter_the_prefix_cache():
    """A block with a proposed token in it has no hash before the token is accepted."""
    for accepted in (0, 3):
        scheduler = started(make(), request(num_prompt_tokens=8, max_tokens=20))
        scheduler.update_draft_token_ids({"r0": [101, 102, 103]})
        plan = scheduler.schedule()
        table = scheduler.kv_cache_manager.req_to_blocks["r0"]
        assert [block.block_hash is not None for block in table] == [True, True, False]
        tokens = [*[101, 102, 103][:accepted], 7]
        scheduler.update_from_output(plan, {"r0": tokens})
        scheduler.schedule()
        assert (table[2].block_hash is not None) == (accepted == 3)


def test_a_draft_model_has_slots_beyond_the_tokens():
    """They are taken at admission since 0.23.0; before, from the first running step on."""
    for version, at_admission in (("0.22.1", 2), ("0.23.0", 3)):
        scheduler = make(num_lookahead_tokens=4, vllm_version=version, max_num_seqs=4)
        scheduler.add_request(request(num_prompt_tokens=8, max_tokens=20))
        plan = scheduler.schedule()
        manager = scheduler.kv_cache_manager
        assert len(manager.get_block_ids("r0")) == at_admission
        scheduler.update_from_output(plan, {"r0": 1})
        scheduler.schedule()
        assert len(manager.get_block_ids("r0")) == 4  # 9 tokens and 4 slots


def test_a_draft_models_token_costs_budget_for_each_request_since_0_28_0():
    ids = "abcde"
    for version, tokens in (("0.27.1", 32 - 16), ("0.28.0", 32 - 2)):
        scheduler = make(
            num_lookahead_tokens=4,
            vllm_version=version,
            max_num_seqs=16,
            max_num_batched_tokens=32,
            enable_prefix_caching=False,
        )
        for id_ in ids:
            scheduler.add_request(request(id_, 20))
        plan = scheduler.schedule()
        assert plan.total_num_scheduled_tokens == sum(plan.num_scheduled_tokens.values()) == tokens
        rows = scheduler.history[0]["scheduled"]
        assert rows[-1]["num_scheduled_tokens"] == rows[-1]["limits"]["max_num_batched_tokens"]


def padded(version: str, running: bool, num_tokens: int = 9, **knobs) -> int:
    """Tokens that a newcomer gets whose prompt lies in the cache but for one token."""
    scheduler = make(vllm_version=version, max_num_seqs=4, max_model_len=16, **knobs)
    prompt = list(range(num_tokens))
    scheduler.add_request(Request("cached", prompt, SamplingParams(max_tokens=1)))
    scheduler.update_from_output(scheduler.schedule(), {"cached": 1})
    if running:
        started(scheduler, Request("r", [50, 51], SamplingParams(max_tokens=9)))
    scheduler.add_request(Request("new", prompt, SamplingParams(max_tokens=2)))
    plan = scheduler.schedule()
    assert plan.scheduled_spec_decode_tokens.get("new", []) == [-1] * (
        plan.num_scheduled_tokens.get("new", 1) - 1
    )
    return plan.num_scheduled_tokens.get("new", 0)


def test_a_newcomer_with_one_token_is_padded_by_release():
    table = {v: (padded(v, True), padded(v, False), padded(v, True, 13)) for v in RELEASES}
    assert table["0.24.0"] == (1, 1, 1)
    assert table["0.25.0"] == table["0.28.0"] == (5, 1, 0)  # 13 + 4 > 16: it waits
    assert table["0.29.0"] == (5, 1, 1)
    assert table["0.30.0"] == table[NEWEST] == (5, 5, 1)


def test_the_last_accepted_blocks_are_published_at_once_since_0_33_0():
    for version, num_hits in (("0.32.0", 8), ("0.33.0", 12)):
        scheduler = started(make(vllm_version=version), request(max_tokens=5))
        scheduler.update_draft_token_ids({"r0": [101, 102, 103, 104]})
        scheduler.update_from_output(scheduler.schedule(), {"r0": [101, 102, 103, 104]})
        again = Request("again", [*range(8), 100, 101, 102, 103, 104], SamplingParams())
        assert scheduler.kv_cache_manager.get_computed_blocks(again)[1] == num_hits


ROWS = ((1, 1, 4), (2, 3, 2), (6, 7, 0), (8, 9, 9))


def test_the_number_of_proposed_tokens_by_batch_size():
    """A size that is not listed belongs to the row before it; no row gives more than there may be
    at most."""
    config = SchedulerConfig(
        vllm_version=NEWEST, num_gpu_blocks=1, num_speculative_tokens=4,
        num_speculative_tokens_per_batch_size=list(ROWS[::-1]),
    )  # fmt: skip
    assert config.num_speculative_tokens_per_batch_size == ROWS
    found = [config.num_spec_tokens_to_schedule(size) for size in range(12)]
    assert found == [4, 4, 2, 2, 2, 2, 0, 0, 4, 4, 4, 4]
    again = SchedulerConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


def test_a_batch_between_ranges_and_behind_them_gets_what_vllm_gives():
    """Recorded from `build_dynamic_sd_schedule_lookup` of vLLM 0.32.0, for batches of 1 to 12."""
    for rows, found in (
        ([(1, 2, 4), (5, 8, 2)], [4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 2, 2]),
        ([(6, 7, 1), (1, 3, 3)], [3, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1, 1]),
        ([(1, 4, 4), (5, 8, 2), (9, 9, 0)], [4, 4, 4, 4, 2, 2, 2, 2, 0, 0, 0, 0]),
    ):
        config = SchedulerConfig(
            vllm_version="0.32.0", num_gpu_blocks=1, num_speculative_tokens=4,
            num_speculative_tokens_per_batch_size=rows,
        )  # fmt: skip
        assert [config.num_spec_tokens_to_schedule(size) for size in range(1, 13)] == found


def test_each_plan_says_how_many_and_a_plan_ahead_keeps_as_many_places():
    config = SchedulerConfig(
        vllm_version=NEWEST, num_gpu_blocks=64, block_size=4, max_num_batched_tokens=64,
        max_model_len=64, num_speculative_tokens=4, num_speculative_tokens_per_batch_size=ROWS,
    )  # fmt: skip
    for make_scheduler in (Scheduler, AsyncScheduler):
        scheduler = make_scheduler(config)
        sizes, places = [], []
        for number in (1, 1, 1, 4):  # arrivals; each has 8 tokens, all end together
            for _ in range(number):
                id_ = f"r{len(scheduler.requests)}"
                scheduler.add_request(request(id_, 8, max_tokens=20))
            plan = scheduler.schedule()
            sizes.append(len(plan.num_scheduled_tokens))
            assert plan.num_spec_tokens_to_schedule == [4, 2, 2, 0][len(sizes) - 1]
            places.append(len(scheduler.requests["r0"].spec_token_ids))
            sampled = dict.fromkeys(plan.num_scheduled_tokens, 7)
            drafts = plan.scheduled_spec_decode_tokens
            scheduler.update_from_output(
                plan, {id_: [7] if id_ in drafts else 7 for id_ in sampled}
            )
        assert sizes == [1, 2, 3, 7]
        assert places == ([4, 2, 2, 0] if make_scheduler is AsyncScheduler else [0] * 4)


def test_with_numbers_by_batch_size_no_newcomer_is_padded():
    for rows, tokens in ((None, 5), (((1, 9, 4),), 1)):
        assert padded(NEWEST, True, num_speculative_tokens_per_batch_size=rows) == tokens


# --- recorded from vLLM -------------------------------------------------------------------------

DATA = Path(__file__).parent / "data"
RECORDED = list(read_traces(DATA / "vllm-speculative.jsonl.xz"))


def test_enough_is_recorded():
    """45 workloads of each release that changed something about proposed tokens, 15 of them planned
    ahead."""
    releases = Counter(release_of(workload) for workload in RECORDED)
    changed = {change.since for change in CHANGES if change.needs_drafts and change.is_switch}
    assert set(releases) == {REFERENCE, *changed}
    assert set(releases.values()) == {45}
    ahead = [w for w in RECORDED if w["config"].get("async_scheduling")]
    assert set(Counter(map(release_of, ahead)).values()) == {15}
    for workload in ahead:  # whether a plan waits for its tokens shows in what is decided
        config = {**workload["config"], "async_scheduling": False}
        assert replay({**workload, "config": config}) is not None
    steps = [step for workload in RECORDED for step in workload["steps"]]
    assert sum(len(step["preempted"]) for step in steps) > 500
    assert sum(bool(step["drafts"]) for step in steps) > 2000
    assert sum(-1 in ids for step in steps for ids in step["drafts"].values()) > 40
    assert any(workload["config"]["num_lookahead_tokens"] for workload in RECORDED)


@pytest.mark.parametrize("version", sorted({release_of(workload) for workload in RECORDED}))
def test_every_decision_about_proposed_tokens_is_vllms(version):
    for workload in RECORDED:
        if release_of(workload) == version:
            assert replay(workload) is None


BY_BATCH_SIZE = list(read_traces(DATA / "vllm-drafts-by-batch.jsonl.xz"))
KNOB = "num_speculative_tokens_per_batch_size"


def test_enough_is_recorded_with_a_number_by_batch_size():
    """Of every release that has the knob as many, sync and planned ahead."""
    (change,) = (change for change in CHANGES if change.name == KNOB)
    kinds = Counter(
        (release_of(w), bool(w["config"].get("async_scheduling"))) for w in BY_BATCH_SIZE
    )
    releases = {version for version in RELEASES if change.holds_in(version)}
    assert kinds == {(version, ahead): 4 for version in releases for ahead in (False, True)}
    assert sum(w["config"]["num_lookahead_tokens"] > 0 for w in BY_BATCH_SIZE) >= 8
    for workload in BY_BATCH_SIZE:  # each one shows the knob
        always_most = {**workload["config"], KNOB: [[1, 1, 99]]}
        assert replay({**workload, "config": always_most}) is not None


def test_every_decision_with_a_number_by_batch_size_is_vllms():
    assert [difference for w in BY_BATCH_SIZE if (difference := replay(w))] == []


def test_the_wrong_release_is_told():
    recorded = [workload for workload in RECORDED if release_of(workload) == "0.28.0"]
    assert sum(replay(workload, version="0.27.1") is not None for workload in recorded) >= 5


# --- properties ---------------------------------------------------------------------------------


def requests_of(
    prompts: Iterable[tuple[int, int, int]], stop_at: int | None = None
) -> list[tuple[int, Request]]:
    return [
        (
            arrival,
            Request(
                f"r{i}",
                [7 * (i % 2) + t for t in range(length)],
                SamplingParams(
                    max_tokens=most,
                    stop_token_ids=None if stop_at is None else [1000 * i + stop_at],
                ),
                priority=i % 3,
                arrival_time=float(i),
            ),
        )
        for i, (arrival, length, most) in enumerate(prompts)
    ]


workloads = st.lists(
    st.tuples(st.integers(0, 6), st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=6
)


runs: dict[str, st.SearchStrategy[Any]] = {
    "prompts": workloads,
    "drafts": st.integers(0, 5),
    "lookahead": st.booleans(),
    "rate": st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    "blocks": st.integers(8, 14),
    "policy": st.sampled_from(["fcfs", "priority"]),
    "version": st.sampled_from(RELEASES),
}


@settings(max_examples=60, deadline=None)
@given(
    **runs,
    threshold=st.sampled_from([0, 0, 3]),
    mode=st.sampled_from(["recompute", "swap"]),
)
def test_speculation_changes_no_token_and_loses_no_block(
    prompts, drafts, lookahead, rate, blocks, threshold, policy, version, mode
):
    """Whatever is proposed, everybody gets what the model says, and all blocks come back."""
    config = SchedulerConfig(
        num_gpu_blocks=blocks, block_size=4, max_num_batched_tokens=16, max_num_seqs=4,
        max_model_len=32, num_speculative_tokens=drafts, long_prefill_token_threshold=threshold,
        num_lookahead_tokens=drafts if lookahead else 0, policy=policy, vllm_version=version,
        preemption_mode=mode, num_cpu_blocks=16,
    )  # fmt: skip
    scheduler = Scheduler(config, observer=Recorder())
    guesses = Guesses(lambda r, i: 1000 * int(r.request_id[1:]) + i, rate)
    pending = sorted(requests_of(prompts), key=lambda pair: pair[0])
    everyone = [request for _, request in pending]
    for _ in range(2000):
        while pending and pending[0][0] <= scheduler.step:
            scheduler.add_request(pending.pop(0)[1])
        if not pending and not scheduler.requests:
            break
        plan = scheduler.schedule()
        assert plan.total_num_scheduled_tokens == sum(plan.num_scheduled_tokens.values())
        assert (
            plan.total_num_scheduled_tokens + plan.num_draft_slots * len(plan.num_scheduled_tokens)
            <= config.max_num_batched_tokens
        )
        for request_id, proposed in plan.scheduled_spec_decode_tokens.items():
            assert len(proposed) <= drafts
            num_tokens = plan.num_scheduled_tokens[request_id]
            assert 0 < len(proposed) < num_tokens
        for one in scheduler.running:
            held = len(scheduler.kv_cache_manager.req_to_blocks[one.request_id]) * 4
            assert one.num_computed_tokens <= min(held, config.max_model_len - 1)
        sampled = sampled_tokens(scheduler, plan, guesses.token_at)
        scheduler.update_from_output(plan, sampled)
        for one in scheduler.running:
            assert one.num_computed_tokens < one.num_tokens
        propose(scheduler, plan, sampled, guesses)
    assert not scheduler.requests
    for one in everyone:
        if one.status is not RequestStatus.FINISHED_IGNORED:
            index = int(one.request_id[1:])
            most = min(one.max_tokens, 32 - one.num_prompt_tokens)
            assert one.output_token_ids == [1000 * index + i for i in range(most)]
    pool = scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == blocks
    again = run_again(scheduler.history)
    assert again.history == scheduler.history


@settings(max_examples=60, deadline=None)
@given(
    **runs,
    mode=st.sampled_from(["recompute", "swap"]),
    stops=st.booleans(),
)
def test_planned_ahead_it_changes_no_token_and_loses_no_block(
    prompts, drafts, lookahead, rate, blocks, policy, version, mode, stops
):
    """A plan is made before the tokens of the last one are known, and told of what they were."""
    config = SchedulerConfig(
        num_gpu_blocks=blocks, block_size=4, max_num_batched_tokens=16, max_num_seqs=4,
        max_model_len=32, num_speculative_tokens=drafts, policy=policy, vllm_version=version,
        num_lookahead_tokens=drafts if lookahead else 0, preemption_mode=mode, num_cpu_blocks=16,
    )  # fmt: skip
    scheduler = AsyncScheduler(config)
    guesses = Guesses(lambda r, i: 1000 * int(r.request_id[1:]) + i, rate)
    pending = sorted(requests_of(prompts, stop_at=3 if stops else None), key=lambda pair: pair[0])
    everyone = [request for _, request in pending]
    before = None
    for _ in range(2000):
        while pending and pending[0][0] <= scheduler.step:
            scheduler.add_request(pending.pop(0)[1])
        if not pending and not scheduler.requests:
            break
        plan = scheduler.schedule()
        assert sum(plan.num_scheduled_tokens.values()) <= config.max_num_batched_tokens
        if before:
            scheduler.update_from_output(*before)
        going = [scheduler.requests[request_id] for request_id in plan.num_scheduled_tokens]
        decoding = set(plan.scheduled_running_reqs) & set(going)
        scheduler.update_draft_token_ids_in_output(
            {r.request_id: guesses.draft_token_ids(r, drafts) for r in decoding}, plan
        )
        sampled = {}
        for one in going:
            if one.num_computed_tokens >= len(one.all_token_ids):
                places = plan.scheduled_spec_decode_tokens.get(one.request_id, ())
                # Each place is right behind the tokens that are known by now.
                known = one.num_computed_tokens - len(places)
                assert known == len(one.all_token_ids)
                says = partial(guesses.token_at, one)
                sampled[one.request_id] = verified(places, one.num_output_tokens, says)
        before = (plan, sampled)
    assert not scheduler.requests
    for one in everyone:
        if one.status is not RequestStatus.FINISHED_IGNORED:
            index = int(one.request_id[1:])
            most = min(one.max_tokens, 32 - one.num_prompt_tokens, 4 if stops else 32)
            assert one.output_token_ids == [1000 * index + i for i in range(most)]
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == blocks


@settings(max_examples=20, deadline=None)
@given(prompts=workloads, rate=st.sampled_from([0.3, 1.0]))
def test_both_ways_of_recording_tell_the_same(prompts, rate):
    config = SchedulerConfig(
        num_gpu_blocks=10, block_size=4, max_num_batched_tokens=16, max_num_seqs=4,
        max_model_len=32, num_speculative_tokens=3,
    )  # fmt: skip
    eager, lazy = (Scheduler(config, observer=o) for o in (Recorder(), None))
    for scheduler in (eager, lazy):
        drive(scheduler, requests_of(prompts), acceptance_rate=rate)
    assert eager.history.to_json() == lazy.history.to_json()


def test_more_accepted_tokens_are_fewer_steps():
    def steps(rate: float) -> int:
        return drive(make(), [(0, request(max_tokens=40))], acceptance_rate=rate).step

    assert steps(0.0) == 40
    assert steps(1.0) == 1 + 8  # 1 from the prompt, then 5 in a step: 39 tokens
    assert steps(0.0) > steps(0.5) > steps(0.9) > steps(1.0)
