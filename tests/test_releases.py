"""The table of releases: every row acts, in its releases alone, and a knob too early is refused."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from itertools import islice

import pytest

from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig
from minivllm.core.releases import (
    CHANGES,
    NEWEST,
    REFERENCE,
    RELEASES,
    SWITCH_NAMES,
    Switches,
    switches_of,
)
from minivllm.runs.conformance import decide, decisions, make_scheduler, workload_of
from minivllm.runs.drive import drive, drive_scenario
from minivllm.runs.scenarios import LIVELOCKS, PARTINGS
from minivllm.runs.shrink import can_run, candidates, size

KNOBS = {
    "watermark": 0.05,
    "max_num_queued_reqs": 2,
    "max_num_queued_tokens": 9,
    "long_prefill_token_threshold_adaptive": True,
    "max_num_active_seqs": 2,
    "prefill_schedule_interval": 3,
    "num_speculative_tokens_per_batch_size": ((1, 4, 2), (5, 9, 0)),
}
"""A value for each knob of the table."""


def scheduler(version: str = NEWEST, **knobs) -> Scheduler:
    knobs = {"num_gpu_blocks": 64, "block_size": 4, "max_num_batched_tokens": 64, **knobs}
    return Scheduler(SchedulerConfig(vllm_version=version, **knobs))


def add(scheduler: Scheduler, **prompts: int) -> None:
    for name, length in prompts.items():
        tokens = [ord(name[-1]) * 1000 + i for i in range(length)]
        scheduler.add_request(Request(name, tokens, SamplingParams(max_tokens=8)))


def step(scheduler: Scheduler) -> dict[str, int]:
    plan = scheduler.schedule()
    requests = (scheduler.requests[name] for name in plan.num_scheduled_tokens)
    scheduler.update_from_output(plan, {r.request_id: 7 for r in requests if r.is_caught_up})
    return plan.num_scheduled_tokens


def test_every_row_names_a_switch_or_a_knob_once():
    names = [change.name for change in CHANGES]
    assert len(names) == len(set(names))
    knobs = {field.name for field in fields(SchedulerConfig)}
    assert set(names) == SWITCH_NAMES | set(KNOBS)
    assert set(KNOBS) < knobs
    for change in CHANGES:
        assert change.source.startswith(f"v{NEWEST}:vllm/"), change
        assert not change.upstream or re.fullmatch(r"#\d{4,5}", change.upstream)
        assert change.what.endswith(".")
        assert change.why.endswith(".")


def test_the_reference_has_no_switch_and_each_release_those_of_its_rows():
    assert switches_of(REFERENCE) == Switches()
    assert switches_of("0.23.0") == Switches(lookahead_at_admission=True)
    assert switches_of("0.24.0").free_unhashed_first
    assert switches_of("0.27.1").append_uncached
    assert not switches_of("0.28.0").append_uncached
    assert switches_of(NEWEST) == Switches(
        **{name: name != "append_uncached" for name in SWITCH_NAMES}
    )
    assert SchedulerConfig(num_gpu_blocks=1).vllm_version == REFERENCE


@pytest.mark.parametrize("version", ["0.22.0", "0.34.0", "v0.33.0", "newest", None, 33])
def test_an_unknown_release_is_an_error(version):
    with pytest.raises(ValueError, match=r"vllm_version must be one of 0.22.1, .*0.33.0; got"):
        SchedulerConfig(num_gpu_blocks=1, vllm_version=version)


@pytest.mark.parametrize("name", KNOBS)
def test_a_knob_is_refused_by_the_releases_that_lack_it(name):
    (change,) = (change for change in CHANGES if change.name == name)
    for version in RELEASES:
        knobs = {"num_gpu_blocks": 1, "num_speculative_tokens": 2, "vllm_version": version}
        knobs[name] = KNOBS[name]
        if change.holds_in(version):
            assert getattr(SchedulerConfig(**knobs), name) == KNOBS[name]
        else:
            with pytest.raises(ValueError, match=rf"{name}=.*{version}.*{change.since}"):
                SchedulerConfig(**knobs)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"watermark": 1.0}, r"watermark must lie in \[0, 1\), got 1.0"),
        ({"watermark": float("nan")}, "watermark must lie"),
        ({"watermark": "5%"}, "watermark must be a number"),
        ({"max_num_active_seqs": 0}, "max_num_active_seqs must be at least 1, got 0"),
        ({"max_num_active_seqs": 9, "max_num_seqs": 8}, "at most max_num_seqs=8, got 9"),
        ({"max_num_queued_reqs": -1}, "max_num_queued_reqs must be at least 0"),
        ({"max_num_queued_tokens": 1.5}, "max_num_queued_tokens must be an integer"),
        ({"prefill_schedule_interval": 0}, "prefill_schedule_interval must be at least 1"),
        *(
            ({"num_speculative_tokens": 4, "num_speculative_tokens_per_batch_size": rows}, words)
            for rows, words in (
                ([], r"must be a list of rows \(from, to, tokens\), got \[\]"),
                ("1-4", "must be a list of rows"),
                ([(1, 2)], r"has \(1, 2\); a row is \(from, to, tokens\)"),
                ([(1, 2, 0.5)], "must be an integer, got 0.5"),
                ([(1, 2, True)], "must be an integer, got True"),
                ([(0, 2, 1)], "with 1 <= from <= to"),
                ([(3, 2, 1)], "with 1 <= from <= to"),
                ([(1, 2, -1)], "tokens of at least 0"),
                ([(2, 3, 1)], "a step of 1 request needs a row"),
                ([(4, 6, 1), (1, 4, 2)], r"has \(1, 4, 2\) and \(4, 6, 1\), which overlap"),
            )
        ),
        ({"num_speculative_tokens_per_batch_size": [(1, 4, 2)]}, "num_speculative_tokens is 0"),
    ],
)
def test_bad_values_are_named_with_their_limit(knobs, words):
    with pytest.raises(ValueError, match=words):
        scheduler(**knobs)


def test_free_order_by_release():
    """One request, 2 full blocks and a half: which is handed out next after it is gone?"""

    def next_block(version: str, **knobs: bool) -> int:
        runs = scheduler(version, num_gpu_blocks=5, **knobs)
        add(runs, r=10)
        step(runs)
        runs.kv_cache_manager.free(runs.requests["r"])
        return runs.kv_cache_manager.block_pool.free_block_queue.popleft_n(1)[0].block_id

    assert next_block("0.23.0") == 4  # never used
    assert next_block("0.24.0") == 3  # the half-full block: nobody can find it
    off = {version: next_block(version, enable_prefix_caching=False) for version in RELEASES}
    assert {version for version, block in off.items() if block == 4} == {
        "0.22.1", "0.23.0", "0.27.0", "0.27.1"
    }  # fmt: skip


def test_one_request_alone_may_use_the_whole_budget():
    for version, tokens in (("0.30.0", 16), ("0.31.0", 64)):
        runs = scheduler(version, long_prefill_token_threshold=16)
        add(runs, alone=100)
        assert step(runs) == {"alone": tokens}
    add(runs, second=4)
    assert step(runs) == {"alone": 16, "second": 4}


def test_adaptive_threshold_is_at_least_the_share_of_each():
    knobs = {"long_prefill_token_threshold": 8, "long_prefill_token_threshold_adaptive": True}
    runs = scheduler(**knobs)
    add(runs, a=100, b=100)
    assert step(runs) == {"a": 32, "b": 32}
    add(runs, **{f"r{i}": 1 for i in range(10)})
    assert step(runs)["a"] == 8  # 64 // 12 is less


def test_active_seqs_and_queue_caps():
    runs = scheduler(max_num_active_seqs=2, max_num_queued_reqs=4, max_num_queued_tokens=12)
    add(runs, a=4, b=4, c=4, d=4)
    assert list(runs.requests) == ["a", "b", "c"]  # 12 prompt tokens wait: d is refused
    assert list(step(runs)) == ["a", "b"]
    assert runs.schedule().admission_stopped.reason == "max_num_active_seqs"
    add(runs, e=1, f=1)
    assert list(runs.requests) == ["a", "b", "c", "e"]
    assert runs.stats.num_refused == 2
    refused = Request("g", [1])
    assert not runs.add_request(refused)
    assert "max_num_queued_reqs=4" in refused.error


def test_watermark_leaves_blocks_free_unless_nothing_runs():
    runs = scheduler(num_gpu_blocks=19, watermark=0.25)  # int(0.25 * 20) = 5 blocks
    add(runs, first=60, second=8, third=1)
    assert list(step(runs)) == ["first"]  # 15 blocks, 4 left
    stop = runs.schedule().admission_stopped
    assert (stop.reason, stop.num_blocks_needed) == ("watermark", 2)


def test_prompts_are_held_while_somebody_decodes():
    runs = scheduler(prefill_schedule_interval=4)
    add(runs, a=4)
    assert step(runs) == {"a": 4}
    add(runs, b=8)
    plans = [step(runs) for _ in range(4)]
    assert plans == [{"a": 1}, {"a": 1}, {"a": 1}, {"a": 1, "b": 8}]


def test_a_stop_token_before_min_tokens_ends_a_request_since_0_29():
    for version, ended in (("0.28.0", False), ("0.29.0", True)):
        runs = scheduler(version)
        params = SamplingParams(max_tokens=8, min_tokens=3, stop_token_ids=[7])
        runs.add_request(Request("r", [1, 2], params))
        step(runs)
        assert ("r" not in runs.requests) is ended


# --- the smallest workload on which a switch shows -------------------------------------------


def decided(workload: dict, version: str, toggled: str | None = None) -> list[dict]:
    """The steps of a workload as a release decides, or as it would with one switch the other way;
    the first 60 if there is no end."""
    runs = make_scheduler(workload, version)
    if toggled is not None:
        (change,) = (change for change in CHANGES if change.name == toggled)
        before = RELEASES[RELEASES.index(change.since) - 1]
        # The budget, which the scheduler works out beforehand, is of the release on the other side.
        runs = make_scheduler(workload, before if version == change.since else change.since)
        other = not getattr(switches_of(version), toggled)
        runs.switches = replace(switches_of(version), **{toggled: other})
        runs.kv_cache_manager.follow_release(runs.switches)
    rows = []
    for row in islice(decisions(runs, workload), 60):
        rows.append(row)
        if not runs.requests and len(rows) > max(r["arrival_step"] for r in workload["requests"]):
            break
    return rows


PARTING_SCENARIOS = [(name, s) for name, group in PARTINGS.items() for s in group]


@pytest.mark.parametrize(("switch", "scenario"), PARTING_SCENARIOS, ids=lambda it: str(it)[:24])
def test_two_releases_part_by_exactly_that_switch(switch, scenario):
    (change,) = (change for change in CHANGES if change.name == switch)
    workload, after = workload_of(scenario), change.since
    assert workload["vllm"] == after
    before = RELEASES[RELEASES.index(after) - 1]
    old, new = decided(workload, before), decided(workload, after)
    assert old != new
    assert decided(workload, before, switch) == new
    assert decided(workload, after, switch) == old


@pytest.mark.parametrize(("switch", "scenario"), PARTING_SCENARIOS, ids=lambda it: str(it)[:24])
def test_the_stepper_opens_at_the_first_step_that_differs(switch, scenario):
    """And its proposed tokens, if any, are the traces' too."""
    after = scenario.config["vllm_version"]
    before = RELEASES[RELEASES.index(after) - 1]

    def told(version: str) -> list[list]:
        chosen = scenario.with_knobs(vllm_version=version)
        arrivals = [(r.arrival_step, r.make_request(chosen.seed)) for r in chosen.requests]
        runs = drive(Scheduler(chosen.scheduler_config()), arrivals, max_steps=20)
        return [
            [
                *(step[name] for name in ("scheduled", "running", "waiting", "events")),
                {id_: request["block_table"] for id_, request in step["requests"].items()},
            ]
            for step in runs.history.steps
        ]

    parted = [one != other for one, other in zip(told(before), told(after))]
    assert parted.index(True) == scenario.step


@pytest.mark.parametrize(("switch", "scenario"), PARTING_SCENARIOS, ids=lambda it: str(it)[:24])
def test_no_smaller_workload_shows_it(switch, scenario):
    """One request or one token less, and the two releases decide the same; or, for the run that is
    there to show a cache hit, hit alike."""
    after = scenario.config["vllm_version"]
    before = RELEASES[RELEASES.index(after) - 1]
    fields_ = ("scheduled", "computed_after") if scenario.name == "free-order-hit" else None

    def parts(workload: dict) -> bool:
        old, new = decided(workload, before), decided(workload, after)
        if fields_:
            old, new = ([[row[f] for f in fields_] for row in rows] for rows in (old, new))
        return old != new and decided(workload, before, switch) == decided(workload, after)

    workload = workload_of(scenario)
    assert parts(workload)
    smaller = [w for w in candidates(workload) if size(w)[:2] < size(workload)[:2]]
    assert smaller or size(workload)[:2] <= (2, 4)
    assert not any(can_run(w) and parts(w) for w in smaller)


def test_every_switch_has_a_scenario():
    assert list(PARTINGS) == [change.name for change in CHANGES if change.is_switch]


@pytest.mark.parametrize(
    ("name", "endless"),
    [("livelock", {"0.22.1", "0.32.0", "0.33.0"}), ("livelock-until-0-32", {"0.22.1", "0.32.0"})],
)
def test_two_equals_preempt_each_other_for_ever(name, endless):
    (scenario,) = (s for s in LIVELOCKS if s.name == name)
    workload = workload_of(scenario)
    for version in ("0.22.1", "0.32.0", "0.33.0"):
        rows = decide(workload, version, max_steps=2000)
        assert (len(rows) == 2000) is (version in endless), version
        # Without upstream's choice among equals, every release ends it.
        fixed = scenario.with_knobs(vllm_version=version, keep_upstream_bugs=False)
        assert not drive_scenario(fixed).has_unfinished_requests()
