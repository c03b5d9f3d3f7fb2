"""What exercises 1 to 6 and 8 rest on: variants that follow the core, hidden cases that bite."""

from __future__ import annotations

import random
import re
from pathlib import Path
from statistics import mean

import nbformat
import pytest

from minivllm.grading.exercises import (
    e01_two_numbers,
    e02_running_first,
    e03_three_conditions,
    e04_the_clamp,
    e05_preemption_loop,
    e06_stop_or_retry,
    e08_stats,
    e12_littles_law,
    workloads,
)
from minivllm.grading.exercises.workloads import (
    Misread,
    first_difference,
    judge_cells,
    read_workload,
    run,
    variant,
    workload,
)
from minivllm.grading.judge import exercises, find_part, judge_here
from minivllm.grading.part import Failed
from minivllm.sim.workload import get_mix

SOLUTIONS = Path(__file__).parents[1] / "solutions"
EXERCISES = SOLUTIONS.parent / "exercises"


@pytest.mark.parametrize("line", ["this line does not exist", "token_budget -= num_new_tokens"])
def test_a_variant_refuses_a_line_that_is_not_there_once(line):
    with pytest.raises(LookupError, match="times in"):
        variant("nothing", line, "")


def test_a_variant_leaves_the_core_alone():
    scenario = e01_two_numbers.RACE
    before = run(scenario)
    run(scenario, variant("other", "request.num_preemptions += 1", ""))
    assert first_difference(before, run(scenario)) is None


def test_a_run_tells_stuck_endless_and_raised_apart():
    plenty = workload({"num_gpu_blocks": 8, "block_size": 4}, ("r0", 0, 5, 3))
    assert run(plenty).outcome == "finished"
    never = {"num_gpu_blocks": 2, "block_size": 4, "admission_control": False}
    assert run(workload(never, ("r0", 0, 30, 3))).outcome == "stuck"
    assert run(workload(never, ("r0", 0, 5, 30))).outcome != "finished"
    raising = variant("raising", "request.num_preemptions += 1", "raise KeyError('gone')")
    result = run(e05_preemption_loop.ITSELF, raising)
    assert (result.outcome, result.error) == ("raised", "KeyError: 'gone'")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "not answered yet"),
        (3, "should be a dict"),
        ({"config": {"block_size": 4}, "requests": [{}]}, "num_gpu_blocks"),
        ({"config": {"num_gpu_blocks": 4}, "requests": []}, "no request"),
        ({"config": {"num_gpu_blocks": 4}, "requests": [], "more": 1}, "not known"),
        ({"config": {"num_gpu_blocks": 4, "blocks": 1}, "requests": [{}]}, "unknown key"),
        (
            {
                "config": {"num_gpu_blocks": 4},
                "requests": [{"request_id": f"r{i}", "num_prompt_tokens": 1} for i in range(200)],
            },
            "at most",
        ),
    ],
)
def test_a_workload_that_cannot_be_run_gets_words(value, says):
    with pytest.raises(Failed, match=says):
        read_workload(value, "it")


def test_the_message_speaks_to_the_misreading_that_goes_wrong_at_the_same_place():
    truth = {"a": 1, "b": 2, "c": 3}
    misreads = [
        Misread("early", {"a": 0, "b": 5, "c": 3}),
        Misread("late", {"a": 1, "b": 5, "c": 9}),
        Misread("a slip", {"b": 7}, anywhere=True),
    ]

    def words(given):
        with pytest.raises(Failed) as failed:
            judge_cells(given, truth, misreads, str, otherwise="other")
        return str(failed.value)

    assert "late" in words({"a": 1, "b": 5, "c": 9})
    assert "late" in words({"a": 1, "b": 5, "c": 3})
    assert "early" in words({"a": 0, "b": 5, "c": 3})
    assert "a slip" in words({"a": 1, "b": 7, "c": 3})
    assert "other" in words({"a": 1, "b": 2, "c": 4})
    judge_cells(truth, truth, misreads, str, otherwise="other")


def test_no_message_of_a_prediction_holds_the_right_value():
    truth = {"x": 4711}
    with pytest.raises(Failed) as failed:
        judge_cells({"x": 3}, truth, [], str, otherwise="Look again.")
    assert "4711" not in str(failed.value)


CALL = re.compile(r"`((?:show_run|show_faulty|door_at)\([^`]*\))`")


def looks_of(name):
    """What a notebook says one can call, with the model answers at hand."""
    cells = nbformat.read(SOLUTIONS / f"{name}.ipynb", as_version=4).cells
    namespace = {}
    for module in (workloads, exercises()[name]):
        namespace.update(vars(module))
    for cell in cells:
        if cell.metadata.get("minivllm", {}).get("role") == "answer":
            exec(cell.source, namespace)
    calls = [
        call for cell in cells if cell.cell_type == "markdown" for call in CALL.findall(cell.source)
    ]
    return calls, namespace


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("01_two_numbers", 2),
        ("03_three_conditions", 2),
        ("04_the_clamp", 1),
        ("05_preemption_loop", 1),
        ("06_stop_or_retry", 2),
    ],
)
def test_what_a_notebook_says_one_can_call_runs_on_its_answers(name, count, capsys):
    calls, namespace = looks_of(name)
    assert len(calls) == count
    for call in calls:
        eval(call, namespace)
        if call.startswith("show"):
            told = capsys.readouterr().out
            assert workloads.LEGEND in told
            assert "step" in told.splitlines()[1]


def test_a_run_is_shown_of_an_answer_with_other_keys_and_without_a_variant(capsys):
    answer = {
        "config": {"num_gpu_blocks": 8, "block_size": 4},
        "requests": [{"request_id": "r0", "num_prompt_tokens": 5, "max_tokens": 3}],
        "step": 1,
        "forgets": {},
    }
    workloads.show_run(answer, None)
    assert capsys.readouterr().out.count("r0:") == 3
    e05_preemption_loop.show_faulty("real", answer)
    assert "WAITING" in capsys.readouterr().out
    _, door = e03_three_conditions.door_at(answer, 0)
    assert door.head is None
    with pytest.raises(Failed, match="'requests' missing"):
        workloads.show_run({"config": answer["config"]})
    with pytest.raises(Failed, match="should be a dict"):
        workloads.show_run([answer])


def test_hidden_steps_hold_what_a_phase_would_get_wrong():
    cases = e01_two_numbers.hidden_steps("01b", 16)
    gaps = [[known - done for known, done in case["requests"]] for case in cases]
    assert sum(1 in row and max(row) > 1 for row in gaps) >= 30  # a decode beside a long gap
    assert sum(sum(row) > case["token_budget"] for row, case in zip(gaps, cases)) >= 30
    assert sum(len(row) >= 3 for row in gaps) >= 30


def test_hidden_clamps_are_bound_by_each_cap_alone():
    binding = dict.fromkeys(("gap", "threshold", "budget", "room", "nothing left"), 0)
    for item in e04_the_clamp.hidden_cases(40):
        case = item["case"]
        limits = {
            "gap": case["num_tokens"] - case["num_computed_tokens"],
            "threshold": case["long_prefill_token_threshold"] or 10**9,
            "budget": case["token_budget"],
            "room": case["max_model_len"] - 1 - case["num_computed_tokens"],
        }
        assert item["tokens"] == max(min(limits.values()), 0)
        tight = [name for name, limit in limits.items() if limit <= item["tokens"]]
        binding[tight[0]] += len(tight) == 1
        binding["nothing left"] += item["tokens"] == 0
    assert min(binding.values()) >= 30


def test_hidden_loops_hold_every_kind_of_victim():
    cases = e05_preemption_loop.hidden_loops(90)
    several = itself = several_askers = small_victims = behind_do_not_suffice = 0
    for case in cases:
        ids = [row["id"] for row in case["running"]]
        after = case["after"]
        assert after["scheduled"] + after["preempted"][::-1] == ids
        assert after["num_free_blocks"] >= 0
        several += len(after["preempted"]) > 1
        victims = [row for row in case["running"] if row["id"] in after["preempted"]]
        itself += bool(victims) and victims[0]["blocks_needed"] > 0
        # Whose blocks all are free at the end, they went to nobody: it yielded to itself.
        behind_do_not_suffice += (
            len(victims) > 1
            and victims[0]["blocks_needed"] > 0
            and after["num_free_blocks"] >= victims[0]["blocks_held"]
        )
        small_victims += len(victims) > 2 and victims[-1]["blocks_held"] == 1
        several_askers += sum(row["blocks_needed"] > 0 for row in case["running"]) > 1
    assert several >= 10
    assert itself >= 5
    assert several_askers >= 10
    assert small_victims >= 10
    assert behind_do_not_suffice >= 10


def test_hidden_runs_of_the_collector_tell_its_mistakes_apart():
    watched = [e08_stats.watch(s) for s in e08_stats.hidden_workloads("08b", 36)]
    for name, mistakes in e08_stats.MISTAKES.items():
        for mistake, says in mistakes:
            assert any(
                not e08_stats.same(mistake(seen[:step]), stats[step][name])
                for seen, stats in watched
                for step in range(1, len(stats))
            ), says


def test_a_variant_of_the_order_loses_nobody_and_serves_nobody_twice():
    for seed in range(60):
        rng = random.Random(seed)
        scenario = workload(
            {
                "num_gpu_blocks": rng.randint(8, 40),
                "block_size": 4,
                "max_num_batched_tokens": rng.randint(4, 40),
                "enable_prefix_caching": False,
            },
            *((f"r{i}", i, rng.randint(1, 16), rng.randint(1, 9)) for i in range(4)),
        )
        for scheduler_class in (e02_running_first.WaitingFirst, e06_stop_or_retry.PassesOver):
            result = run(scenario, scheduler_class)
            assert result.outcome == "finished", (seed, scheduler_class)
            for request in scenario.requests:
                output = result.requests[request.request_id].num_output_tokens
                assert output == request.max_tokens


def test_the_lengths_that_exercise_12_tells_are_those_of_its_mix():
    rng = random.Random(0)
    draws = [get_mix(e12_littles_law.MIX).draw(0.0, rng) for _ in range(20_000)]
    outputs = sorted(draw.output_len for draw in draws)
    assert mean(draw.prompt_len for draw in draws) == pytest.approx(160, rel=0.05)
    assert mean(outputs) == pytest.approx(320, rel=0.03)
    assert 230 < outputs[len(outputs) // 2] < 250
    chats = [get_mix("chat").draw(0.0, rng).output_len for _ in range(20_000)]
    assert mean(chats) < 210


def test_admission_in_a_step_that_preempted_is_hidden_by_the_default_knobs():
    """What exercise 6e says: FCFS with the whole prompt reserved never shows the line."""
    shown = {True: 0, False: 0}
    preempting = 0
    for seed in range(400):
        rng = random.Random(seed)
        rows = [
            (f"r{i}", rng.randint(0, 4), rng.randint(1, 20), rng.randint(2, 12))
            for i in range(rng.randint(2, 5))
        ]
        for reserved in (True, False):
            config = {
                "num_gpu_blocks": rng.randint(6, 12),
                "block_size": 4,
                "max_num_batched_tokens": rng.choice([8, 16, 64]),
                "enable_prefix_caching": rng.random() < 0.3,
                "reserve_full_prompt": reserved,
            }
            real = run(workload(config, *rows), max_steps=100)
            if real.outcome != "finished" or not real.num_preemptions:
                continue
            preempting += 1
            other = run(workload(config, *rows), e06_stop_or_retry.ALWAYS_ADMITS, max_steps=100)
            shown[reserved] += first_difference(real, other) is not None
    assert preempting > 100
    assert shown[True] == 0
    assert shown[False] > 20


@pytest.mark.parametrize("path", sorted(EXERCISES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_stub_shows_no_comment_sign_twice(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not re.search(r"^\s*# #", cell.source if cell.cell_type == "code" else "", re.M)


def test_a_workload_that_the_student_built_is_called_theirs():
    config = {"num_gpu_blocks": 64, "block_size": 4}
    request = {"request_id": "r0", "num_prompt_tokens": 5, "max_tokens": 3}
    built = {"config": config, "requests": [request]}
    forgets = dict(zip("ABCDEF", e05_preemption_loop.FORGETS))
    for part, answer in (
        ("01c", {**built, "step": 0}),
        ("02c", {**built, "victim": "r0", "step": 0}),
        ("03a", {**built, "step": 0}),
        ("05d", {**built, "forgets": forgets}),
        ("06e", built),
    ):
        told = judge_here(find_part(part), answer).text()
        assert f"Your workload: {{'config': {config}" in told
        assert "Smallest" not in told
