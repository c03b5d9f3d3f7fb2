"""Scenarios: each shows what its question promises, and a link may hold anything at all."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.runs.drive import drive_scenario
from minivllm.runs.scenario import (
    KNOBS,
    LIMITS,
    ScenarioRequest,
    arrival_steps,
    parse_json,
    token_id,
)
from minivllm.runs.scenarios import LIVELOCKS
from minivllm.stepper import SCENARIOS, Scenario, ScenarioError, record, with_arrival_pattern

RECORDINGS = {name: record(scenario) for name, scenario in SCENARIOS.items()}


def events(name: str, type_: str) -> list[tuple[int, dict[str, Any]]]:
    return [
        (snapshot["step"], event)
        for snapshot in RECORDINGS[name]["steps"]
        for event in snapshot["events"]
        if event["type"] == type_
    ]


def spent(name: str) -> list[int]:
    return [snapshot["budget"]["spent"] for snapshot in RECORDINGS[name]["steps"]]


def prompt_tokens_computed(name: str) -> int:
    total = 0
    for snapshot in RECORDINGS[name]["steps"]:
        for row in snapshot["scheduled"]:
            request = snapshot["requests"][row["request_id"]]
            start = request["num_computed_tokens"] - row["num_scheduled_tokens"]
            total += max(min(request["num_prompt_tokens"] - start, row["num_scheduled_tokens"]), 0)
    return total


# --- what each one shows ----------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_is_small_ends_and_opens_at_a_step_that_exists(name: str) -> None:
    scenario, recording = SCENARIOS[name], RECORDINGS[name]
    assert scenario.name == name
    assert scenario.title
    assert scenario.question.endswith("?")
    assert scenario.scheduler_config().num_gpu_blocks <= 64
    assert len(scenario.requests) <= 8
    assert recording["done"] != recording["stuck"]
    endless = {"never-fits-stuck", *(scenario.name for scenario in LIVELOCKS)}
    assert recording["stuck"] == (name in endless)
    assert scenario.step is not None
    assert scenario.step < len(recording["steps"]) <= 40
    assert len(json.dumps(recording)) < 110_000
    assert all(recording["sentences"])


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_survives_its_json_and_its_link(name: str) -> None:
    scenario = SCENARIOS[name]
    assert Scenario.from_json(scenario.to_json()) == scenario
    assert Scenario.from_fragment(scenario.to_fragment()) == scenario
    assert len(scenario.to_fragment()) < 2000
    assert set(scenario.to_fragment()) <= set(
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    )


def test_two_numbers_r1_starts_in_the_step_in_which_r0_ends_its_prompt() -> None:
    step = RECORDINGS["two-numbers"]["steps"][2]
    grants = {row["request_id"]: row["num_scheduled_tokens"] for row in step["scheduled"]}
    assert grants == {"r0": 8, "r1": 8}
    assert list(step["sampled"]) == ["r0"]
    assert step["budget"]["left"] == 0


def test_a_seat_is_given_on_in_the_step_after_it_is_free() -> None:
    steps = RECORDINGS["continuous"]["steps"]
    seats = SCENARIOS["continuous"].scheduler_config().max_num_seqs
    assert all(len(step["running"]) == seats for step in steps if step["waiting"])
    first = SCENARIOS["continuous"].step
    assert first is not None
    assert "r0" in steps[first - 1]["finished"]
    assert [row["request_id"] for row in steps[first]["scheduled"] if row["kind"] == "new"] == [
        "r4"
    ]
    useful = sum(r.num_prompt_tokens + r.max_tokens - 1 for r in SCENARIOS["continuous"].requests)
    assert sum(spent("continuous")) == useful


def test_pages_are_shared_and_come_back_last_block_first() -> None:
    steps = RECORDINGS["pages"]["steps"]
    assert steps[1]["requests"]["r0"]["block_table"][:2] == [1, 2]
    assert steps[1]["requests"]["r1"]["block_table"][:2] == [1, 2]
    assert steps[1]["blocks"]["ref_cnt"][1:4] == [2, 2, 1]
    [(step, _)] = [e for e in events("pages", "finished") if e[1]["request_id"] == "r0"]
    own = [b for b in steps[step]["requests"]["r0"]["block_table"] if b not in (1, 2)]
    assert steps[step + 1]["blocks"]["free_queue"][-2:] == own[::-1]
    assert events("pages", "evicted")
    assert not events("pages", "preempted")


def test_three_limits_stop_admission_one_after_the_other() -> None:
    stopped = {step: e["reason"] for step, e in events("three-limits", "admission_stopped")}
    assert [stopped[step] for step in (0, 1, 6)] == [
        "max_num_batched_tokens",
        "max_num_seqs",
        "num_gpu_blocks",
    ]
    assert not events("three-limits", "preempted")


def test_cramped_preempts_a_visible_victim_at_least_twice() -> None:
    preempted = events("cramped", "preempted")
    assert len(preempted) >= 2
    assert preempted[0][0] == SCENARIOS["cramped"].step
    for step, event in preempted:
        snapshot = RECORDINGS["cramped"]["steps"][step]
        assert event["request_id"] in snapshot["waiting"]
        assert event["num_freed_blocks"] > 0
        assert event["num_computed_tokens"] > 0
        before = RECORDINGS["cramped"]["steps"][step - 1]
        assert event["request_id"] == before["running"][-1]
    assert sum(s["stats"]["num_recomputed_tokens"] for s in RECORDINGS["cramped"]["steps"]) == 31


def test_swap_moves_the_victims_and_computes_nothing_twice() -> None:
    assert [e["mode"] for _, e in events("swap", "preempted")] == ["swap", "swap"]
    assert len(events("swap", "swapped_out")) == len(events("swap", "swapped_in")) == 2
    assert all(s["stats"]["num_recomputed_tokens"] == 0 for s in RECORDINGS["swap"]["steps"])


def test_a_long_prompt_makes_a_step_of_257_tokens_and_a_threshold_makes_it_33() -> None:
    assert max(spent("decode-spike")) == spent("decode-spike")[6] == 257
    assert spent("decode-spike")[5] == 1
    assert max(spent("decode-spike-threshold")) == 33
    assert spent("decode-spike-threshold")[6:14] == [33] * 8
    first = [
        step for step, s in enumerate(RECORDINGS["decode-spike"]["steps"]) if "r1" in s["sampled"]
    ]
    late = [
        step
        for step, s in enumerate(RECORDINGS["decode-spike-threshold"]["steps"])
        if "r1" in s["sampled"]
    ]
    assert (first[0], late[0]) == (6, 13)


def test_a_shared_prefix_saves_448_of_544_prompt_tokens_in_the_step_that_writes_it() -> None:
    assert prompt_tokens_computed("shared-prefix") == 96
    assert prompt_tokens_computed("shared-prefix-off") == 544
    first = RECORDINGS["shared-prefix"]["steps"][0]
    assert first["budget"]["spent"] == 96
    assert first["blocks"]["ref_cnt"].count(8) == 16
    assert len(RECORDINGS["shared-prefix-off"]["steps"][0]["running"]) == 3


def test_priority_does_not_take_blocks_from_those_who_run() -> None:
    steps = RECORDINGS["priority-inversion"]["steps"]
    waits = [s["step"] for s in steps if "urgent" in s["waiting"]]
    assert len(waits) >= 4
    assert all({"r0", "r1"} & set(steps[step]["running"]) for step in waits)
    stopped = dict(events("priority-inversion", "admission_stopped"))
    assert stopped[waits[0]]["request_id"] == "urgent"
    assert stopped[waits[0]]["reason"] == "num_gpu_blocks"
    victims = [e["request_id"] for _, e in events("priority-inversion", "preempted")]
    assert "urgent" not in victims
    assert {"r0", "r1"} <= set(victims)


def test_what_never_fits_is_refused_at_once_and_the_others_go_on() -> None:
    [(step, refused)] = events("never-fits", "refused")
    assert (step, refused["request_id"]) == (1, "r1")
    assert "num_gpu_blocks" in refused["reason"]
    assert {e["request_id"] for _, e in events("never-fits", "finished")} == {"r0", "r2", "r3"}


def test_without_admission_control_it_blocks_everyone_for_ever() -> None:
    recording = RECORDINGS["never-fits-stuck"]
    assert recording["stuck"]
    assert not recording["done"]
    assert "admission_control" in recording["notice"]
    assert recording["steps"][-1]["waiting"] == ["r1", "r2", "r3"]
    assert not recording["steps"][-1]["running"]


def test_the_head_of_the_line_blocks_those_that_would_fit() -> None:
    snapshot = RECORDINGS["head-of-line"]["steps"][SCENARIOS["head-of-line"].step]
    assert snapshot["waiting"] == ["r1", "r2", "r3"]
    assert len(snapshot["blocks"]["free_queue"]) >= 2 + 2
    assert not events("head-of-line", "preempted")


# --- the wording ------------------------------------------------------------------------------


def test_a_preemption_is_told_with_its_numbers() -> None:
    sentences = RECORDINGS["cramped"]["sentences"][5]
    assert sentences[0] == (
        "r2 needs 1 block, 0 free: FCFS preempts the last running, r3 "
        "(4 blocks freed, 13 computed tokens dropped)."
    )
    swapped = RECORDINGS["swap"]["sentences"][5]
    assert "13 computed tokens kept on the CPU" in swapped[0]
    assert "GPU→CPU" in swapped[1]


def test_the_comparison_under_priority_is_told() -> None:
    told = [s for step in RECORDINGS["priority-inversion"]["sentences"] for s in step]
    assert "Largest (priority, arrival) first: r1 (5, 1) and r0 (5, 0)." in told
    assert any("PRIORITY preempts the least urgent, r0" in s for s in told)


def test_no_sentence_shows_a_python_value_or_lacks_its_full_stop() -> None:
    for recording in RECORDINGS.values():
        for step in recording["sentences"]:
            for sentence in step:
                assert sentence.endswith(".")
                assert not any(word in sentence for word in ("None", "True", "False", "[", "{"))


# --- untrusted input --------------------------------------------------------------------------


def good() -> dict[str, Any]:
    return SCENARIOS["cramped"].to_dict()


def errors_of(data: object) -> dict[str, str]:
    with pytest.raises(ScenarioError) as caught:
        Scenario.from_dict(data)
    assert caught.value.errors
    return {error["field"]: error["message"] for error in caught.value.errors}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("config", "num_gpu_blocks"), 0, ("1 to 4096", "num_gpu_blocks", "got 0")),
        (("config", "num_gpu_blocks"), 4097, ("4096", "4097")),
        (("config", "num_gpu_blocks"), 10**400, ("4096", "bits")),
        (("config", "num_gpu_blocks"), True, ("integer", "true")),
        (("config", "num_gpu_blocks"), 8.0, ("integer", "8.0")),
        (("config", "num_gpu_blocks"), float("nan"), ("integer", "NaN")),
        (("config", "num_gpu_blocks"), "16", ("integer", '"16"')),
        (("config", "enable_prefix_caching"), 1, ("true or false", "1")),
        (("config", "policy"), "lifo", ("fcfs, priority", "lifo")),
        (("config", "policy"), ["fcfs"], ("fcfs, priority",)),
        (("config", "victim"), "me", ("last_admitted", "me")),
        (("config", "gpus"), 8, ("unknown key", "gpus", "num_gpu_blocks")),
        (("config",), [], ("object",)),
        (("requests",), {}, ("list",)),
        (("requests",), [{}] * 501, ("500", "501")),
        (("requests", 0, "request_id"), "<script>", ("match",)),
        (("requests", 0, "request_id"), "r1", ()),
        (("requests", 0, "num_prompt_tokens"), 16385, ("16384", "16385")),
        (("requests", 0, "max_tokens"), 0, ("1 to 4096", "got 0")),
        (("requests", 0, "arrival_step"), -1, ("0 to 10000", "-1")),
        (("requests", 0, "num_prefix_tokens"), 11, ("num_prompt_tokens=10", "11")),
        (("requests", 0, "num_prefix_tokens"), 3, ("prefix_group",)),
        (("requests", 0, "prompt_token_ids"), [1, -1], ("token id", "-1")),
        (("requests", 0, "prompt_token_ids"), [], ("1 to 16384", "got 0")),
        (("requests", 0, "prompt_token_ids"), "abc", ("list",)),
        (("requests", 0), 7, ("object", "7")),
        (("version",), 2, ("version 1", "2")),
        (("version",), True, ("version 1",)),
        (("title",), "x" * 121, ("120", "121")),
        (("title",), "a\nb", ("line breaks",)),
        (("question",), 5, ("string", "5")),
        (("name",), "No Such Name!", ("match",)),
        (("seed",), -1, ("0 to",)),
        (("step",), "3", ("integer",)),
        (("surprise",), 1, ("unknown key",)),
    ],
)
def test_each_bad_value_is_named_with_its_limit(
    path: tuple[str | int, ...], value: object, words: tuple[str, ...]
) -> None:
    data: Any = good()
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    errors = errors_of(data)
    field = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in path).lstrip(".")
    matching = [message for name, message in errors.items() if name.startswith(field)]
    if path == ("requests", 0, "request_id") and value == "r1":  # the second one is the culprit
        assert "taken already" in errors["requests[1].request_id"]
        return
    assert matching, errors
    for word in words:
        assert word in matching[0]
    assert len(matching[0]) < 600


def test_all_problems_are_listed_at_once() -> None:
    data = good()
    data["config"]["num_gpu_blocks"] = -1
    data["config"]["policy"] = None
    data["requests"][2]["max_tokens"] = "many"
    assert set(errors_of(data)) == {
        "config.num_gpu_blocks",
        "config.policy",
        "requests[2].max_tokens",
    }


def test_what_is_missing_is_said() -> None:
    assert set(errors_of({"version": 1})) == {"config", "requests"}
    assert "num_gpu_blocks" in errors_of({"version": 1, "config": {}, "requests": []}).popitem()[0]
    row = {"version": 1, "config": {"num_gpu_blocks": 4}, "requests": [{}]}
    assert set(errors_of(row)) == {"requests[0].request_id", "requests[0].num_prompt_tokens"}


def test_all_prompts_together_have_a_limit() -> None:
    row = {"version": 1, "config": {"num_gpu_blocks": 4}, "requests": []}
    row["requests"] = [{"request_id": f"r{i}", "num_prompt_tokens": 16384} for i in range(9)]
    assert "131072" in errors_of(row)["requests"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        '{"version": NaN}',
        '{"version": Infinity}',
        '{"version": 1, "version": 1}',
        "[" * 60_000,
        '{"a":' * 10_000,
        "[" + "1" * 10_000 + "]",
        '"' + "x" * 70_000 + '"',
        '"' + "é" * 40_000 + '"',
        "null",
        "[]",
    ],
)
def test_text_that_is_no_scenario_gives_errors_and_nothing_else(text: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        Scenario.from_json(text)
    assert all(set(error) == {"field", "message"} for error in caught.value.errors)
    fragment = base64.urlsafe_b64encode(text.encode()).decode()
    with pytest.raises(ScenarioError):
        Scenario.from_fragment(fragment)


@pytest.mark.parametrize("fragment", ["", "%%%", "é", "AAAA", "A" * 100_000, "_-_-"])
def test_a_broken_link_gives_errors(fragment: str) -> None:
    with pytest.raises(ScenarioError):
        Scenario.from_fragment(fragment)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(("version", "config", "requests", "request_id", *KNOBS)),
            children,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values)
def test_no_object_gets_past_the_checks_but_a_scenario(data: object) -> None:
    try:
        scenario = Scenario.from_dict(data)
    except ScenarioError:
        return
    assert Scenario.from_dict(scenario.to_dict()) == scenario
    scenario.scheduler_config()


@given(st.sampled_from(KNOBS), json_values)
def test_no_knob_takes_a_value_that_the_scheduler_refuses(knob: str, value: object) -> None:
    try:
        scenario = SCENARIOS["cramped"].with_knobs(**{knob: value})
    except ScenarioError:
        return
    assert scenario.scheduler_config().to_dict()[knob] == value


def test_every_knob_has_a_check() -> None:
    for name in KNOBS:
        with pytest.raises(ScenarioError, match=name):
            SCENARIOS["cramped"].with_knobs(**{name: object()})


def test_parse_json_reads_plain_json() -> None:
    assert parse_json('{"a": [1, 2.5, "x", null, true]}') == {"a": [1, 2.5, "x", None, True]}


# --- tokens and arrivals ----------------------------------------------------------------------


def test_tokens_come_from_a_formula_that_no_version_may_change() -> None:
    assert [token_id(0, "o:r0", position) for position in range(4)] == [23439, 25, 29603, 21045]
    assert token_id(1, "o:r0", 0) != token_id(0, "o:r0", 0)
    rows = [request.token_ids(0) for request in SCENARIOS["shared-prefix"].requests]
    assert len({tuple(row[:64]) for row in rows}) == 1
    assert len({tuple(row[64:]) for row in rows}) == 8


def test_arrival_patterns_fill_the_arrival_steps() -> None:
    assert arrival_steps("all_at_once", 3) == [0, 0, 0]
    assert arrival_steps("every", 4, every=3) == [0, 3, 6, 9]
    assert arrival_steps("burst", 5, size=2, every=4) == [0, 0, 4, 4, 8]
    poisson = arrival_steps("poisson", 200, per_step=0.5, seed=7)
    assert poisson == sorted(poisson) == arrival_steps("poisson", 200, per_step=0.5, seed=7)
    assert 300 < poisson[-1] < 500
    assert poisson != arrival_steps("poisson", 200, per_step=0.5, seed=8)
    scenario = with_arrival_pattern(SCENARIOS["cramped"], "every", every=2)
    assert [r.arrival_step for r in scenario.requests] == [0, 2, 4, 6, 8]
    assert with_arrival_pattern(scenario, "as_written") is scenario


@pytest.mark.parametrize(
    ("kind", "parameters", "field"),
    [
        ("sometimes", {}, "kind"),
        ("every", {"every": 0}, "every"),
        ("every", {"every": True}, "every"),
        ("every", {"size": 3}, "size"),
        ("poisson", {"per_step": float("nan")}, "per_step"),
        ("poisson", {"per_step": 0}, "per_step"),
        ("burst", {"size": 501}, "size"),
    ],
)
def test_bad_arrival_patterns_are_refused(kind: str, parameters: Any, field: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        with_arrival_pattern(SCENARIOS["cramped"], kind, **parameters)
    assert [error["field"] for error in caught.value.errors] == [field]


def test_limits_admit_the_largest_scenario_that_the_view_must_bear() -> None:
    requests = tuple(
        replace(SCENARIOS["cramped"].requests[0], request_id=f"r{i}") for i in range(500)
    )
    scenario = replace(SCENARIOS["cramped"], requests=requests).with_knobs(num_gpu_blocks=4096)
    assert len(scenario.to_json()) < LIMITS["json_bytes"][1]
    assert Scenario.from_fragment(scenario.to_fragment()) == scenario


def test_a_problem_of_many_requests_is_said_once():
    rows = [{"id": f"r{i}", "num_prompt_tokens": 3, "max_tokens": 3} for i in range(9)]
    with pytest.raises(ScenarioError) as caught:
        Scenario.from_dict({"version": 1, "config": {"num_gpu_blocks": 8}, "requests": rows})
    says = str(caught.value)
    assert says.count("unknown key") == 1
    assert "requests[0].id, requests[1].id, requests[2].id and 6 more: unknown key" in says
    assert sum("unknown key" in error["message"] for error in caught.value.errors) == 9


def test_a_run_that_goes_round_for_ever_stops_where_it_came_from() -> None:
    recording = RECORDINGS["livelock"]
    assert "after step 9 all stands as after step 4" in recording["notice"]
    assert len(recording["steps"]) == 10
    ends = record(SCENARIOS["livelock"].with_knobs(keep_upstream_bugs=False))
    assert (ends["done"], ends["notice"]) == (True, None)
    assert record(SCENARIOS["livelock-until-0-32"].with_knobs(vllm_version="0.33.0"))["done"]
    # Many preemptions are no such run: each time something is further on.
    assert RECORDINGS["cramped"]["done"]


def test_a_request_that_outgrew_the_model_before_its_min_tokens_is_told() -> None:
    stuck = record(SCENARIOS["min-tokens"].with_knobs(vllm_version="0.28.0"))
    assert stuck["stuck"]
    assert "r0 runs and is given no tokens" in stuck["notice"]
    assert "min_tokens" in stuck["notice"]
    assert RECORDINGS["min-tokens"]["done"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"min_tokens": 17}, ("min_tokens", "max_tokens=16", "17")),
        ({"min_tokens": -1}, ("min_tokens", "-1")),
        ({"arrival_time": 0.5}, ("arrival_time", "0.5")),
    ],
)
def test_bad_min_tokens_and_arrival_times_are_named(row: dict[str, Any], words: tuple) -> None:
    request = {"request_id": "r", "num_prompt_tokens": 1, **row}
    with pytest.raises(ScenarioError) as raised:
        ScenarioRequest.from_dict(request)
    assert all(word in str(raised.value) for word in words)


def test_proposed_tokens_are_kept_as_far_as_they_are_right() -> None:
    kept = {e["num_accepted_tokens"] for _, e in events("speculation", "verified")}
    assert {0, 4} < kept
    steps = RECORDINGS["speculation"]["steps"]
    assert sum(len(step["scheduled"]) > 0 for step in steps) < 20  # tokens of r0


def test_proposed_tokens_keep_newcomers_out() -> None:
    admitted = {e["request_id"]: step["step"] for step in RECORDINGS["speculation-at-load"]["steps"]
                for e in step["events"] if e["type"] == "admitted"}  # fmt: skip
    plain = drive_scenario("speculation-at-load", num_speculative_tokens=0).history.steps
    without = {e["request_id"]: step["step"] for step in plain for e in step["events"]
               if e["type"] == "admitted"}  # fmt: skip
    assert without["r4"] == without["r5"] == 1 < min(admitted["r4"], admitted["r5"])


def test_the_fourth_cap_binds_with_the_front_door_shut() -> None:
    scenario = SCENARIOS["fourth-cap"]
    assert scenario.scheduler_config().admission_control
    caps = [row["cap"] for step in RECORDINGS["fourth-cap"]["steps"] for row in step["scheduled"]]
    assert caps[scenario.step] == "max_model_len"
    assert caps[: scenario.step] == ["gap"] * scenario.step
