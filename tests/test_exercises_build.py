"""Exercises 7 and 9 to 13: hidden workloads tell mistakes apart, and the truths are true."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

from minivllm.core import Scheduler
from minivllm.grading.exercises import e07_priority as e07
from minivllm.grading.exercises import e09_swap as e09
from minivllm.grading.exercises import e10_budget_and_threshold as e10
from minivllm.grading.exercises import e11_frequent_preemptions as e11
from minivllm.grading.exercises import e12_littles_law as e12
from minivllm.grading.exercises import e13_never_fits as e13
from minivllm.grading.part import Failed
from minivllm.sim import StepLoad, roofline

DATA = Path(__file__).parent / "data"
ROOT = Path(__file__).resolve().parents[1]


# --- 7 ----------------------------------------------------------------------------------------


def test_the_recorded_workloads_are_vllms_own():
    ours = {json.dumps(trace["requests"]): trace for trace in e07.recorded()}
    assert len(ours) == 12
    for path in DATA.glob("vllm-*.jsonl.gz"):
        with gzip.open(path, "rt") as lines:
            for line in lines:
                theirs = json.loads(line)
                trace = ours.pop(json.dumps(theirs["requests"]), None)
                if trace is None:
                    continue
                assert trace["config"] == theirs["config"]
                for mine, step in zip(trace["steps"], theirs["steps"], strict=True):
                    assert mine == {name: step[name] for name in mine}
    assert not ours


def test_the_reference_decides_as_recorded():
    for trace in e07.recorded():
        steps = e07.decisions(Scheduler, e07.as_workload(trace))
        assert e07.difference(steps, trace["steps"]) is None
        keys = [(row["priority"], row["arrival_time"]) for row in trace["requests"]]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("make", "says"), e07.MISTAKES, ids=[says[:40] for _, says in e07.MISTAKES]
)
def test_hidden_workloads_expose_each_mistake_of_priority(make, says):
    exposed = sum(
        e07.difference(e07.decisions(make, w), e07.decisions(Scheduler, w)) is not None
        for w in e07.hidden_workloads()
    )
    assert exposed >= 5


@pytest.mark.parametrize(("rule", "says"), e07.RULES, ids=[says[:40] for _, says in e07.RULES])
def test_lists_expose_each_wrong_victim(rule, says):
    cases = e07.running_lists("07a", 120)
    assert sum(rule(rows) != e07._victim(rows) for rows in cases) >= 5


# --- the core without -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "call"),
    [
        ("d07", "core.PriorityRequestQueue"),
        ("d07", "core.victim.priority"),
        ("d09", "core.KVCacheManager.swap_out"),
        ("d09", "core.KVCacheManager.swap_in"),
        ("d13", "core.Scheduler.refusal_reason"),
        ("d13", "core.check_enough_kv_cache_memory"),
    ],
)
def test_a_driver_takes_the_feature_out(driver, call):
    code = (
        f"import minivllm.core as core\n{call}\n"
        f"import minivllm.grading.exercises.drivers.{driver}\n"
        f"try:\n    {call}\nexcept AttributeError:\n    print('gone')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "gone"


def test_without_swap_a_swapping_config_recomputes():
    code = (
        "import minivllm.grading.exercises.drivers.d09 as d\n"
        "from minivllm.core import Scheduler\n"
        "row = lambda i: {'id': f'r{i}', 'prompt_token_ids': [1] * 8, 'max_tokens': 9}\n"
        "config = {'num_gpu_blocks': 6, 'block_size': 4, 'preemption_mode': 'swap',\n"
        "          'num_cpu_blocks': 20, 'enable_prefix_caching': False}\n"
        "run = d.serve(Scheduler, [{'config': config, 'requests': [row(0), row(1)]}])[0]\n"
        "copies = any(step['out'] for step in run['steps'])\n"
        "print(run['outcome'], run['num_recomputed_tokens'] > 0, copies)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["finished", "True", "False"]


# --- 9 ----------------------------------------------------------------------------------------


def test_hidden_swaps_cover_every_kind():
    kinds = {kind for kind, _, _ in e09.hidden_workloads()}
    assert kinds == {"ample", "tight", "aborts", "priority"}
    for kind, _, real in e09.hidden_workloads():
        assert e09.recomputed(real) == real["num_recomputed_tokens"]
        if kind in ("ample", "priority"):
            assert real["num_recomputed_tokens"] == 0
    tight = [real for kind, _, real in e09.hidden_workloads() if kind == "tight"]
    assert any(real["num_recomputed_tokens"] for real in tight)  # the fallback is needed


def test_what_the_model_answer_says_about_swapping():
    for context in e09.CONTEXTS:
        assert e09.recompute_seconds(context) < e09.swap_seconds(context)
    assert 1.0e-3 < e09.recompute_seconds(256) < 1.5e-3
    assert 11e-3 < e09.swap_seconds(256) < 12e-3
    assert e09.cheapest_size("a10") == 8


# --- 10 to 12 ---------------------------------------------------------------------------------


def test_what_the_model_answer_says_about_the_budget():
    alone = e10.document_alone(2048, 224)
    assert alone["document_steps"] == (72, 72)
    low, high = alone["chat_itl"]
    assert f"{low:.1g}" == f"{high:.1g}" == "0.009"
    assert f"{high:.2g}" == "0.0089"
    assert 0.0070 < e10.step_seconds(0, 0) < 0.0075
    assert 0.2 < e10.step_seconds(8192 - e10.BESIDE, 0) < 0.3
    defaults = e10.serve(8192, 0, e10.SEEDS[0])
    assert defaults["chat_itl_p99"] > 4 * e10.SLO["chat_itl_p99"]
    assert defaults["chat_ttft_p99"] > 4 * e10.SLO["chat_ttft_p99"]


def test_no_budget_alone_meets_the_slo():
    for budget in (256, 512, 1024, 2048):
        with pytest.raises(Failed):
            e10.check_slo(e10.SEEDS[0], budget, 0)


def test_documents_come_in_bursts_as_a_hint_of_10b_says():
    most = {}
    for seed in e10.SEEDS:
        at_once = [0]
        e10.traffic(2048, 224, seed).run(
            on_step=lambda start, seconds, plan, load, seen=at_once: seen.append(
                e10.documents_in(plan)
            )
        )
        most[seed] = max(at_once)
    assert most[1] == 5
    assert max(most.values()) == 8


@pytest.mark.parametrize(
    ("name", "judged"),
    [
        ("10_budget_and_threshold", {*e10.SEEDS}),
        ("11_frequent_preemptions", {*e11.SEEDS_OF_A, *e11.SEEDS}),
        ("12_littles_law", {*e12.SEEDS}),
    ],
)
def test_a_seed_that_a_notebook_names_is_judged(name, judged):
    """So no answer passes that misses its goal where the notebook sent its reader to look."""
    notebook = json.loads((ROOT / "solutions" / f"{name}.ipynb").read_text())
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
    named = re.findall(r"[Ss]eeds?[ =](\d+)(?:\s+and\s+(\d+))?", text)
    assert named
    assert {int(number) for pair in named for number in pair if number} <= judged


def test_chapters_formula_for_seats_needs_its_sixth():
    """11a: what fits at a random moment preempts in a busy minute, and a sixth less does not."""
    result = e11.run(0)
    prompts = [record.prompt_len for record in result.records]
    outputs = [record.output_len for record in result.records]
    held = mean(prompts) + mean(o * o for o in outputs) / (2 * mean(outputs))
    slots = 16 * e11.scenario().config().num_gpu_blocks
    seats = int(slots / held)
    assert 80 < seats < 96
    assert e11.preemptions(e11.run(4, max_num_seqs=seats)) > 10 * e11.RARE
    for seed in e11.SEEDS_OF_A:
        assert e11.preemptions(e11.run(seed, max_num_seqs=seats * 5 // 6)) <= e11.RARE
    halved = int(slots / (mean(prompts) + mean(outputs) / 2))
    assert halved > e11.BASE["max_num_seqs"], "half of the mean output is no answer"


def test_drill_and_chapter_give_lines_that_11c_takes():
    drill = (ROOT / "book" / "13-interview-drill.md").read_text(encoding="utf-8")
    card = drill[drill.index(":title: 11.") :]
    card = card[: card.index("\n```")]
    chapter = (ROOT / "book" / "06-preemption.md").read_text(encoding="utf-8")
    for text, sign in ((card, "- "), (chapter, "| ")):
        found = {
            knob: re.findall(r"\[(\w+\.py:\d+)\]", line)
            for knob in e11.FIXES
            for line in text.splitlines()
            if line.startswith(sign) and f"`{knob}`" in line and "](https" in line
        }
        assert found.keys() == set(e11.FIXES), sign
        for lines in zip(*found.values(), strict=True):
            e11.check_lines(dict(zip(found, lines)))


def test_the_server_preempts_as_it_is():
    for seed in e11.SEEDS_OF_A:
        assert e11.preemptions(e11.run(seed)) > 10 * e11.RARE


def test_trends_are_clear_of_the_border():
    """What another machine's last digit moves does not change a verdict."""
    two_words = 0
    for name, setting in e11.TURNS.items():
        for metric, (before, after) in e11.compare(**{name: setting}).items():
            words = e11.trends(metric, before, after)
            two_words += len(words) == 2
            for moved in (0.995, 1.005):
                assert set(e11.trends(metric, before, after * moved)) & set(words)
    assert two_words <= 1


@pytest.mark.parametrize(
    ("metric", "after", "words"),
    [
        ("p50_ttft", 1.05, ["worse"]),
        ("p50_ttft", 0.95, ["better"]),
        ("p50_itl", 1.025, ["same", "worse"]),
        ("p50_itl", 1.01, ["same"]),
        ("output_throughput", 1.035, ["same", "better"]),
        ("output_throughput", 0.9, ["worse"]),
    ],
)
def test_near_the_border_both_words_are_right(metric, after, words):
    assert e11.trends(metric, 1.0, after) == words


def test_no_turn_of_part_b_answers_part_a():
    """Each of the three knobs is turned too far there, or not far enough."""
    for name in e11.FIXES:
        fixes = {"gpu_memory_utilization": 0.98, "max_num_seqs": 70, "max_num_batched_tokens": 100}
        e11.check_fixes(fixes)
        with pytest.raises(Failed):
            e11.check_fixes(fixes | {name: e11.TURNS[name]})


def test_the_best_cap_lies_between_the_two_limits():
    def goodput(cap):
        return sum(e12.goodput(cap, seed) for seed in e12.SEEDS)

    best = max(goodput(cap) for cap in e12.CANDIDATES)
    for cap in (32, 48, 57, 65, 72, 96):
        assert goodput(cap) < e12.WITHIN * best
    for cap in (58, 60, 61, 63):
        assert e12.WITHIN * best < goodput(cap) < 1.01 * best


def test_a_hint_of_12b_knows_the_step():
    records = e12.run(60, 1).records
    outputs = [record.output_len for record in records]
    assert round(mean(record.prompt_len for record in records), -1) == 160
    assert 245 < mean(o * o for o in outputs) / (2 * mean(outputs)) < 260
    load = StepLoad()
    for _ in range(60):
        load.add(1, 410, True)
    assert f"{roofline(e12.MODEL, e12.GPU).step_time(load):.2g}" == "0.039"
    assert f"{e12.full_house(60, 1)['tpot']:.2g}" == "0.043"


def test_littles_law_agrees_with_the_heads():
    for cap in e12.CAPS:
        heads, row = e12.counted(cap), e12.measured(cap)
        computed = row["requests_per_second"] * row["mean_e2e"]
        assert heads["in_system"] == pytest.approx(computed, rel=1e-6)


# --- 13 ---------------------------------------------------------------------------------------


def test_a_request_is_refused_exactly_if_it_does_not_end_alone():
    both = set()
    for workload in e13.hidden_workloads():
        refused = e13.refused_by_reference(workload)
        for row in workload["requests"]:
            if len(row["prompt_token_ids"]) < workload["config"]["max_model_len"]:
                both.add(refused[row["id"]])
                assert e13.ends_alone(row, workload["config"]) != refused[row["id"]]
    assert both == {True, False}


@pytest.mark.parametrize(("rule", "says"), e13.RULES, ids=[says[:40] for _, says in e13.RULES])
def test_hidden_workloads_expose_each_wrong_rule(rule, says):
    exposed = sum(
        rule(row, workload["config"]) != e13.refused_by_reference(workload)[row["id"]]
        for workload in e13.hidden_workloads()
        for row in workload["requests"]
    )
    assert exposed >= 4
