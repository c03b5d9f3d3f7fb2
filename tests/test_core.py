"""The decisions of the core, one at a time, on runs small enough to check by hand."""

from __future__ import annotations

import itertools
import json

import pytest
from shadow import ShadowModel

from minivllm.core import (
    Request,
    RequestStatus,
    SamplingParams,
    Scheduler,
    SchedulerConfig,
    check_enough_kv_cache_memory,
)
from minivllm.core.block_pool import BlockPool, hash_block_tokens
from minivllm.runs import History, make_observer


def make(record=True, **knobs):
    defaults = {
        "num_gpu_blocks": 64,
        "block_size": 4,
        "max_model_len": 256,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 8,
        "enable_prefix_caching": False,
    }
    return Scheduler(SchedulerConfig(**{**defaults, **knobs}), observer=make_observer(record))


_token = itertools.count(1)


def request(request_id, num_tokens, max_tokens=8, **kwargs):
    prompt = [next(_token) for _ in range(num_tokens)]
    return Request(request_id, prompt, SamplingParams(max_tokens=max_tokens), **kwargs)


def step(scheduler, token=7):
    output = scheduler.schedule()
    sampled = {
        id_: token
        for id_ in output.num_scheduled_tokens
        if scheduler.requests[id_].num_computed_tokens == scheduler.requests[id_].num_tokens
    }
    scheduler.update_from_output(output, sampled)
    return output


def run(scheduler, limit=500):
    for _ in range(limit):
        if not scheduler.has_unfinished_requests():
            return
        step(scheduler)
    raise AssertionError("the run does not end")


def events(snapshot, type_):
    return [event for event in snapshot["events"] if event["type"] == type_]


# --- the clamp ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "num_prompt_tokens", "cap", "num_new_tokens"),
    [
        ({}, 20, "gap", 20),
        ({"long_prefill_token_threshold": 8}, 20, "long_prefill_token_threshold", 8),
        ({"max_num_batched_tokens": 16}, 20, "max_num_batched_tokens", 16),
        ({"max_num_batched_tokens": 8, "long_prefill_token_threshold": 8}, 20,
         "long_prefill_token_threshold", 8),
        ({"max_num_batched_tokens": 20}, 20, "gap", 20),
    ],
)  # fmt: skip
def test_the_cap_that_binds_is_named(knobs, num_prompt_tokens, cap, num_new_tokens):
    scheduler = make(**knobs)
    scheduler.add_request(request("r0", num_prompt_tokens))
    assert step(scheduler).num_scheduled_tokens == {"r0": num_new_tokens}
    (row,) = scheduler.history[0]["scheduled"]
    assert (row["cap"], row["num_scheduled_tokens"], row["kind"]) == (cap, num_new_tokens, "new")
    chunked = events(scheduler.history[0], "chunked")
    assert bool(chunked) == (num_new_tokens < num_prompt_tokens)


def test_the_model_length_binds_a_running_request():
    """Only a request ahead of its length can be bound: one that is driven past it by hand."""
    scheduler = make("eager", max_model_len=16)
    victim = request("r0", 8, max_tokens=None)
    scheduler.add_request(victim)
    step(scheduler)
    for _ in range(10):  # tokens that no step has computed, as speculation would propose them
        victim.append_output_token_id(7)
    output = scheduler.schedule()
    assert output.num_scheduled_tokens == {"r0": 7}
    row = scheduler.history[1]["scheduled"][0]
    assert (row["cap"], row["limits"]["max_model_len"]) == ("max_model_len", 7)


def test_running_first_then_waiting_until_the_budget_is_spent():
    scheduler = make(max_num_batched_tokens=10)
    scheduler.add_request(request("r0", 4))
    step(scheduler)
    scheduler.add_request(request("r1", 6))
    scheduler.add_request(request("r2", 6))
    output = step(scheduler)
    assert list(output.num_scheduled_tokens.items()) == [("r0", 1), ("r1", 6), ("r2", 3)]
    output = step(scheduler)
    assert list(output.num_scheduled_tokens.items()) == [("r0", 1), ("r1", 1), ("r2", 3)]


def test_without_chunks_a_prompt_waits_for_a_step_that_takes_it_whole():
    scheduler = make(max_num_batched_tokens=20, enable_chunked_prefill=False)
    for id_, length in (("r0", 12), ("r1", 11), ("r2", 1)):
        scheduler.add_request(request(id_, length, max_tokens=5))
    assert step(scheduler).num_scheduled_tokens == {"r0": 12}
    (stop,) = events(scheduler.history[0], "admission_stopped")
    assert (stop["request_id"], stop["reason"]) == ("r1", "enable_chunked_prefill")
    assert step(scheduler).num_scheduled_tokens == {"r0": 1, "r1": 11, "r2": 1}


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"max_num_seqs": 1}, "max_num_seqs"),
        ({"max_num_batched_tokens": 8}, "max_num_batched_tokens"),
        ({"num_gpu_blocks": 4, "max_model_len": 16}, "num_gpu_blocks"),
    ],
)
def test_each_of_three_resources_stops_admission(knobs, reason):
    scheduler = make(**knobs)
    scheduler.add_request(request("r0", 8, max_tokens=4))
    scheduler.add_request(request("r1", 12, max_tokens=4))
    scheduler.add_request(request("r2", 1, max_tokens=4))
    assert list(step(scheduler).num_scheduled_tokens) == ["r0"]
    (stop,) = events(scheduler.history[0], "admission_stopped")
    assert (stop["request_id"], stop["reason"]) == ("r1", reason)
    assert scheduler.history[0]["waiting"] == ["r1", "r2"]  # no one passes the head of the queue
    if reason == "num_gpu_blocks":
        assert (stop["num_blocks_needed"], stop["num_free_blocks"]) == (3, 2)


def test_reserve_full_prompt_looks_past_the_first_chunk():
    for reserve, admitted in ((True, ["r0"]), (False, ["r0", "r1"])):
        scheduler = make(
            num_gpu_blocks=8,
            max_model_len=32,
            max_num_batched_tokens=24,
            reserve_full_prompt=reserve,
        )
        scheduler.add_request(request("r0", 20))
        scheduler.add_request(request("r1", 16))
        assert list(step(scheduler).num_scheduled_tokens) == admitted


# --- preemption ---------------------------------------------------------------------------


def test_fcfs_preempts_the_last_admitted_and_admits_no_one():
    scheduler = make(num_gpu_blocks=6, max_model_len=24)
    for id_ in ("r0", "r1", "r2"):
        scheduler.add_request(request(id_, 8))
    scheduler.add_request(request("r3", 1))
    step(scheduler)
    output = step(scheduler)
    # r0 needs a third block, none is free: r2 yields its two; r1 takes the other.
    assert output.preempted_req_ids == ["r2"]
    assert output.num_scheduled_tokens == {"r0": 1, "r1": 1}
    snapshot = scheduler.history[1]
    (event,) = events(snapshot, "preempted")
    assert event["for_request_id"] == "r0"
    assert (event["num_blocks_needed"], event["num_free_blocks"]) == (1, 0)
    assert (event["num_freed_blocks"], event["num_computed_tokens"]) == (2, 8)
    assert event["victim_policy"] == "last_admitted"
    assert event["victim_keys"] == [["r0", 0], ["r1", 1], ["r2", 2]]
    assert snapshot["waiting"] == ["r2", "r3"]
    assert snapshot["requests"]["r2"]["status"] == "PREEMPTED"
    assert snapshot["requests"]["r2"]["num_computed_tokens"] == 0
    assert snapshot["requests"]["r2"]["num_tokens"] == 9  # what it has generated stays
    assert events(snapshot, "admission_stopped")[0]["reason"] == "preempted_in_this_step"


def test_a_request_may_be_its_own_victim():
    scheduler = make(num_gpu_blocks=4, max_model_len=16)
    scheduler.add_request(request("r0", 7))
    scheduler.add_request(request("r1", 8))
    step(scheduler)
    output = step(scheduler)
    assert output.num_scheduled_tokens == {"r0": 1}
    assert output.preempted_req_ids == ["r1"]
    assert events(scheduler.history[1], "preempted")[0]["for_request_id"] == "r1"


def test_priority_preempts_the_least_urgent_wherever_it_stands():
    scheduler = make(num_gpu_blocks=7, max_model_len=24, policy="priority")
    for id_, num_tokens, priority in (("mid", 7, 3), ("low", 4, 5), ("high", 7, 1)):
        scheduler.add_request(request(id_, num_tokens, priority=priority, arrival_time=0.0))
        step(scheduler)
    step(scheduler)
    output = step(scheduler)  # high comes to its ninth token: a third block
    assert [r.request_id for r in scheduler.running] == ["mid", "high"]
    assert output.preempted_req_ids == ["low"]
    (event,) = events(scheduler.history[4], "preempted")
    assert event["for_request_id"] == "high"
    assert event["victim_keys"] == [["mid", [3, 0.0]], ["low", [5, 0.0]], ["high", [1, 0.0]]]


def test_tokens_of_a_victim_already_served_come_back():
    scheduler = make(num_gpu_blocks=5, max_model_len=20, policy="priority", max_num_seqs=2)
    scheduler.add_request(request("low", 10, priority=5))
    step(scheduler)
    scheduler.add_request(request("high", 8, priority=1))
    step(scheduler)
    output = step(scheduler)  # low takes its token first; then high needs a block
    assert output.num_scheduled_tokens == {"high": 1}
    assert output.total_num_scheduled_tokens == 1
    types = [event["type"] for event in scheduler.history[2]["events"]]
    assert types.index("unscheduled") < types.index("preempted")
    assert [row["request_id"] for row in scheduler.history[2]["scheduled"]] == ["high"]


def test_the_victim_can_be_chosen_otherwise():
    def first_admitted(running):
        return running[0]

    for knobs, replaced, victim, name in (
        ({"victim": "least_computed"}, None, "small", "least_computed"),
        ({}, first_admitted, "big", "custom"),
    ):
        scheduler = make(num_gpu_blocks=7, max_model_len=24, **knobs)
        if replaced:
            scheduler.select_victim = replaced
        for id_, num_tokens in (("big", 12), ("small", 4), ("last", 8)):
            scheduler.add_request(request(id_, num_tokens, max_tokens=6))
        step(scheduler)
        output = step(scheduler)  # one block is left: big takes it, small finds none
        assert output.preempted_req_ids == [victim]
        (event,) = events(scheduler.history[1], "preempted")
        assert event["victim_policy"] == name
        run(scheduler)


def test_swap_keeps_what_was_computed():
    scheduler = make(num_gpu_blocks=6, max_model_len=24, preemption_mode="swap", num_cpu_blocks=8)
    for id_ in ("r0", "r1", "r2"):
        scheduler.add_request(request(id_, 8))
    step(scheduler)
    output = step(scheduler)
    assert [pair[0] for pair in output.blocks_to_swap_out] == [5, 6]
    row = scheduler.history[1]["requests"]["r2"]
    assert row["num_computed_tokens"] == 8
    assert len(row["cpu_block_table"]) == 2
    assert scheduler.history[1]["cpu_blocks"]["owners"].count("r2") == 2
    assert events(scheduler.history[1], "preempted")[0]["mode"] == "swap"
    run(scheduler)
    swapped_in = [s for s in scheduler.history.steps if events(s, "swapped_in")]
    assert [events(s, "swapped_in")[0]["request_id"] for s in swapped_in] == ["r1", "r2"]
    assert swapped_in[1]["requests"]["r2"]["num_scheduled_tokens"] == 1
    assert scheduler.stats.num_recomputed_tokens == 0
    assert scheduler.stats.num_swapped_in_blocks == 3 + 2


def test_who_shares_a_restored_block_was_not_swapped_in():
    """A block comes back from the CPU; in the same step a newcomer finds it in the prefix cache."""
    scheduler = make(
        num_gpu_blocks=3,
        max_model_len=12,
        enable_prefix_caching=True,
        preemption_mode="swap",
        num_cpu_blocks=4,
    )
    prompt = [next(_token) for _ in range(5)]
    scheduler.add_request(request("first", 4, max_tokens=6))
    scheduler.add_request(Request("swapped", prompt, SamplingParams(max_tokens=4)))
    step(scheduler)
    step(scheduler)
    assert scheduler.requests["swapped"].status is RequestStatus.PREEMPTED
    scheduler.add_request(Request("sharer", prompt, SamplingParams(max_tokens=1)))
    scheduler.finish_requests("first", RequestStatus.FINISHED_ABORTED)
    output = step(scheduler)
    snapshot = scheduler.history[output.step]
    assert list(output.num_scheduled_tokens) == ["swapped", "sharer"]
    assert [event["request_id"] for event in events(snapshot, "cache_hit")] == ["sharer"]
    assert [event["request_id"] for event in events(snapshot, "swapped_in")] == ["swapped"]


def test_swap_without_room_recomputes():
    scheduler = make(num_gpu_blocks=6, max_model_len=24, preemption_mode="swap", num_cpu_blocks=1)
    for id_ in ("r0", "r1", "r2"):
        scheduler.add_request(request(id_, 8))
    step(scheduler)
    assert step(scheduler).blocks_to_swap_out == []
    assert events(scheduler.history[1], "preempted")[0]["mode"] == "recompute"
    run(scheduler)
    assert scheduler.stats.num_recomputed_tokens == 8 + 12  # r2, and r1 a block later


def run_with_unwritten_blocks(keep_upstream_bugs):
    """A long prompt is cut by the threshold; the step that fills its next blocks preempts it."""
    scheduler = make(
        num_gpu_blocks=9,
        block_size=2,
        max_model_len=24,
        max_num_batched_tokens=4,
        long_prefill_token_threshold=3,
        policy="priority",
        enable_prefix_caching=True,
        reserve_full_prompt=False,
        keep_upstream_bugs=keep_upstream_bugs,
    )
    model = ShadowModel(scheduler, vocabulary=50)
    arrivals = {0: request("low", 16, 1, priority=1), 2: request("high", 1, 4, priority=0)}
    while arrivals or scheduler.has_unfinished_requests():
        if scheduler.step in arrivals:
            scheduler.add_request(arrivals.pop(scheduler.step))
        output = scheduler.schedule()
        scheduler.update_from_output(output, model.execute(output))
    return scheduler


def test_unwritten_blocks_are_not_served():
    """vLLM 0.22.1 serves them: by its rule the same run reads a slot that nobody wrote."""
    scheduler = run_with_unwritten_blocks(keep_upstream_bugs=False)
    assert any(events(snapshot, "unscheduled") for snapshot in scheduler.history.steps)
    with pytest.raises((AssertionError, KeyError)):
        run_with_unwritten_blocks(keep_upstream_bugs=True)


def two_equals_that_take_turns(victim):
    """Two long prompts of equal priority and arrival time; the cache holds either, not both."""
    scheduler = make(
        num_gpu_blocks=8,
        block_size=16,
        max_model_len=128,
        long_prefill_token_threshold=32,
        policy="priority",
        reserve_full_prompt=False,
        victim=victim,
    )
    for id_ in ("r0", "r1"):
        scheduler.add_request(request(id_, 100, 4, arrival_time=0.0))
    return scheduler


def test_equals_do_not_preempt_each_other_for_ever():
    scheduler = two_equals_that_take_turns("priority")
    run(scheduler, limit=20)
    with pytest.raises(AssertionError, match="does not end"):
        run(two_equals_that_take_turns("priority_as_upstream"), limit=500)


def test_a_prompt_beyond_max_model_len_is_never_given_a_negative_chunk():
    """Only without admission control can it get in: it stands still at the limit."""
    scheduler = make(max_model_len=24, max_num_batched_tokens=30, admission_control=False)
    scheduler.add_request(request("long", 60))
    given = [step(scheduler).num_scheduled_tokens for _ in range(3)]
    assert given == [{"long": 30}, {}, {}]


# --- prefix caching -----------------------------------------------------------------------


def test_prefix_caching_saves_exactly_the_shared_full_blocks():
    """8 requests share 64 tokens, then 4 of their own; block size 4."""
    system = [next(_token) for _ in range(64)]
    totals = {}
    for caching in (False, True):
        scheduler = make(
            num_gpu_blocks=512,
            max_num_batched_tokens=1024,
            enable_prefix_caching=caching,
        )
        for i in range(8):
            own = [next(_token) for _ in range(4)]
            scheduler.add_request(Request(f"r{i}", system + own, SamplingParams(max_tokens=1)))
        run(scheduler)
        totals[caching] = scheduler.stats.num_scheduled_tokens
        hits = scheduler.stats.prefix_cache_hits
    assert totals == {False: 544, True: 96}
    assert hits == 448 == 7 * 16 * 4
    assert scheduler.stats.prefix_cache_hit_rate == 448 / 544


def test_at_least_one_token_is_computed():
    scheduler = make(enable_prefix_caching=True)
    prompt = list(range(8))
    for id_ in ("r0", "r1"):
        scheduler.add_request(Request(id_, prompt, SamplingParams(max_tokens=1)))
        run(scheduler)
    # All 8 tokens are cached; the last block is computed again for the sake of one token.
    (hit,) = events(scheduler.history[1], "cache_hit")
    assert hit["num_cached_tokens"] == 4
    assert scheduler.history[1]["requests"]["r1"]["num_scheduled_tokens"] == 4


def test_a_freed_block_is_revived_and_the_tail_is_evicted_first():
    scheduler = make(num_gpu_blocks=4, max_model_len=16, enable_prefix_caching=True)
    scheduler.add_request(Request("r0", list(range(12)), SamplingParams(max_tokens=1)))
    run(scheduler)
    queue = scheduler.kv_cache_manager.block_pool.free_block_queue
    assert [block.block_id for block in queue.get_all_free_blocks()] == [4, 3, 2, 1]
    scheduler.add_request(Request("r1", [90, 91, 92, 93, 94, 95], SamplingParams(max_tokens=1)))
    run(scheduler)
    (evicted,) = events(scheduler.history[1], "evicted")
    assert evicted["block_id"] == 3
    scheduler.add_request(Request("r2", list(range(12)), SamplingParams(max_tokens=1)))
    run(scheduler)
    (hit,) = events(scheduler.history[2], "cache_hit")
    assert hit["block_ids"] == [1, 2]


def test_hashes_are_chained():
    first = hash_block_tokens(None, [1, 2])
    assert hash_block_tokens(first, [3, 4]) != hash_block_tokens(None, [3, 4])
    assert hash_block_tokens(None, [1, 2]) == first
    assert hash_block_tokens(None, [12]) != hash_block_tokens(None, [1, 2])


def test_pool_refuses_what_it_does_not_have():
    pool = BlockPool(3, enable_caching=True)
    with pytest.raises(ValueError, match="3 blocks asked for, 2 free"):
        pool.get_new_blocks(3)
    block = pool.get_new_blocks(1)[0]
    with pytest.raises(ValueError, match="not in the free queue"):
        pool.free_block_queue.remove(block)
    assert not pool.reset_prefix_cache()
    pool.free_blocks([block])
    assert pool.reset_prefix_cache()


# --- admission control --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("knobs", "lengths", "numbers"),
    [
        ({"max_model_len": 16}, (16, 1), ["16 tokens", "max_model_len=16"]),
        ({"num_gpu_blocks": 4}, (12, 6), ["need 5 blocks", "has 4"]),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 10}, (11, 1),
         ["11 at most", "max_num_batched_tokens=10"]),
    ],
)  # fmt: skip
def test_a_request_that_can_never_fit_is_refused_and_blocks_no_one(knobs, lengths, numbers):
    scheduler = make(**knobs)
    refused = request("never", *lengths)
    assert scheduler.add_request(refused) is False
    assert refused.status is RequestStatus.FINISHED_IGNORED
    assert RequestStatus.get_finished_reason(refused.status) == "length"
    for number in numbers:
        assert number in refused.error
    assert scheduler.add_request(request("fits", 4, 2))
    run(scheduler)
    assert events(scheduler.history[0], "refused")[0]["request_id"] == "never"
    assert (scheduler.stats.num_refused, scheduler.stats.num_finished) == (1, 1)


def test_the_largest_request_that_fits_runs_to_its_end():
    for knobs, lengths in (
        ({"max_model_len": 16}, (15, 1)),
        ({"num_gpu_blocks": 4}, (12, 5)),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 10}, (10, 1)),
    ):
        scheduler = make(**knobs)
        assert scheduler.add_request(request("fits", *lengths))
        run(scheduler)


def test_without_admission_control_the_queue_is_stuck():
    scheduler = make(num_gpu_blocks=4, max_model_len=64, admission_control=False)
    scheduler.add_request(request("never", 20))
    scheduler.add_request(request("fits", 4))
    for _ in range(5):
        assert step(scheduler).num_scheduled_tokens == {}


def test_a_cache_too_small_for_one_sequence_names_the_length_that_fits():
    check_enough_kv_cache_memory(16, 4, 64)
    with pytest.raises(ValueError, match=r"max_model_len=65 .* 17 blocks .* at most 64"):
        check_enough_kv_cache_memory(16, 4, 65)


# --- stops, aborts, bad input -------------------------------------------------------------


def test_stops():
    cases = [
        ({"max_tokens": 2}, None, [7, 7], RequestStatus.FINISHED_LENGTH_CAPPED, None),
        ({"max_tokens": 9}, 7, [7], RequestStatus.FINISHED_STOPPED, None),
        ({"max_tokens": 2, "ignore_eos": True}, 7, [7, 7],
         RequestStatus.FINISHED_LENGTH_CAPPED, None),
        ({"max_tokens": 9, "stop_token_ids": [7]}, None, [7], RequestStatus.FINISHED_STOPPED, 7),
        ({"max_tokens": 9, "min_tokens": 3}, 7, [7] * 3, RequestStatus.FINISHED_STOPPED, None),
        ({"max_tokens": None}, None, [7] * 12, RequestStatus.FINISHED_LENGTH_CAPPED, None),
    ]  # fmt: skip
    for params, eos, tokens, status, reason in cases:
        scheduler = make(max_model_len=16)
        req = Request("r0", [1, 2, 3, 4], SamplingParams(**params), eos_token_id=eos)
        scheduler.add_request(req)
        run(scheduler)
        assert (req.output_token_ids, req.status) == (tokens, status)
        assert req.stop_reason == reason


def test_abort_in_every_state():
    scheduler = make(num_gpu_blocks=6, max_model_len=24, preemption_mode="swap", num_cpu_blocks=4)
    requests = {id_: request(id_, 8) for id_ in ("r0", "r1", "r2", "r3")}
    for req in requests.values():
        scheduler.add_request(req)
    step(scheduler)
    step(scheduler)
    statuses = {id_: req.status.name for id_, req in requests.items()}
    assert statuses == {"r0": "RUNNING", "r1": "RUNNING", "r2": "PREEMPTED", "r3": "WAITING"}
    ended = scheduler.finish_requests(["r0", "r2", "r3", "ghost"], RequestStatus.FINISHED_ABORTED)
    assert ended == ["r0", "r2", "r3"]
    assert scheduler.finish_requests("r0", RequestStatus.FINISHED_ABORTED) == []
    assert step(scheduler).finished_req_ids == {"r0", "r2", "r3"}
    scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
    assert not scheduler.has_unfinished_requests()
    assert scheduler.kv_cache_manager.usage == 0
    assert len(scheduler.kv_cache_manager.free_cpu_blocks) == 4


def test_an_abort_while_the_step_runs_is_survived():
    scheduler = make()
    scheduler.add_request(request("r0", 4))
    output = scheduler.schedule()
    scheduler.finish_requests("r0", RequestStatus.FINISHED_ABORTED)
    assert scheduler.update_from_output(output, {"r0": 7}) == []


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: Request("r0", []), "prompt is empty"),
        (lambda: Request("r0", [1, -1]), r"prompt_token_ids\[1\] .* got -1"),
        (lambda: Request("r0", [1, 2.5]), r"got 2\.5"),
        (lambda: Request("r0", [1], priority="high"), "priority must be an integer"),
        (lambda: SamplingParams(max_tokens=0), "max_tokens must be at least 1, got 0"),
        (lambda: SamplingParams(temperature=float("nan")), "temperature must be a finite number"),
        (lambda: SamplingParams(temperature=-1), "temperature must lie in"),
        (lambda: SamplingParams(top_p=0), r"top_p must lie in \(0, 1\], got 0"),
        (lambda: SamplingParams(top_k=-2), "top_k must be at least -1"),
        (lambda: SamplingParams(min_tokens=9, max_tokens=3), "must not exceed max_tokens=3"),
        (lambda: SamplingParams(stop=""), "stop must hold non-empty strings"),
        (lambda: SchedulerConfig(num_gpu_blocks=0), "num_gpu_blocks must be at least 1, got 0"),
        (lambda: SchedulerConfig(num_gpu_blocks=8, block_size=0), "block_size must be at least 1"),
        (lambda: SchedulerConfig(num_gpu_blocks=8, max_num_seqs=-3), "max_num_seqs .* got -3"),
        (lambda: SchedulerConfig(num_gpu_blocks=8.0), "num_gpu_blocks must be an integer"),
        (lambda: SchedulerConfig(num_gpu_blocks=True), "num_gpu_blocks must be an integer"),
        (lambda: SchedulerConfig(num_gpu_blocks=8, policy="lifo"), "policy must be one of fcfs"),
        (lambda: make(victim="oldest"), "victim must be one of last_admitted"),
        (lambda: SchedulerConfig.from_dict({"num_blocks": 3}), "unknown knob 'num_blocks'"),
        (lambda: History.from_dict({"version": 99}), "version 99"),
        (lambda: History.from_json("[]"), "JSON object"),
        (lambda: make(record=False).history, "record=True"),
    ],
)
def test_bad_input_names_the_value_the_limit_and_the_knob(build, complaint):
    with pytest.raises(ValueError, match=complaint):
        build()


def test_misuse_of_a_scheduler_is_told():
    scheduler = make()
    scheduler.add_request(request("r0", 4))
    with pytest.raises(ValueError, match="'r0' is taken"):
        scheduler.add_request(request("r0", 4))
    output = scheduler.schedule()
    with pytest.raises(ValueError, match="misses a sampled token"):
        scheduler.update_from_output(output, {})
    with pytest.raises(ValueError, match="needs a finished status"):
        scheduler.finish_requests("r0", RequestStatus.WAITING)
    scheduler.update_from_output(output, {"r0": 1})
    req = scheduler.requests["r0"]
    scheduler.finish_requests("r0", RequestStatus.FINISHED_ABORTED)
    with pytest.raises(ValueError, match="add a new Request"):
        scheduler.add_request(req)


# --- stats --------------------------------------------------------------------------------


def test_stats_by_step_and_by_clock():
    now = [0.0]
    config = SchedulerConfig(num_gpu_blocks=16, block_size=4, max_num_batched_tokens=8)
    scheduler = Scheduler(config, clock=lambda: now[0])
    first, second = request("r0", 12, max_tokens=3), request("r1", 4, max_tokens=2)
    scheduler.add_request(first)
    now[0] = 0.25
    scheduler.add_request(second)
    while scheduler.has_unfinished_requests():
        now[0] += 1.0
        output = scheduler.schedule()
        now[0] += 1.0
        scheduler.update_from_output(
            output,
            {
                id_: 7
                for id_ in output.num_scheduled_tokens
                if scheduler.requests[id_].num_computed_tokens == scheduler.requests[id_].num_tokens
            },
        )
    # Steps: r0 8 | r0 4, r1 4 | r0 1, r1 1 | r0 1
    assert [s.num_scheduled_tokens for s in scheduler.stats.steps] == [8, 8, 2, 1]
    assert scheduler.stats.avg_batch_size == 6 / 4
    assert (first.metrics.ttft_steps, second.metrics.ttft_steps) == (2, 2)
    assert (first.metrics.queue_steps, second.metrics.queue_steps) == (0, 1)
    assert first.metrics.inter_token_steps == [1, 1]
    assert first.metrics.ttft == 4.25
    assert first.metrics.inter_token_latencies == [2.0, 2.0]
    assert second.metrics.queue_time == 3.0
    assert (second.metrics.e2e_latency, second.metrics.finished_step) == (6.0, 2)
    usage = [s.kv_cache_usage for s in scheduler.stats.steps]
    assert usage == [2 / 16, 4 / 16, 6 / 16, 4 / 16]
    assert scheduler.stats.mean_kv_cache_usage == pytest.approx(sum(usage) / 4)
    json.dumps(scheduler.stats.to_dict())
