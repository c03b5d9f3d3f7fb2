"""Our scheduler decides as vLLM 0.22.1 did; and the comparison can fail."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minivllm.core import Scheduler
from minivllm.core.kv_cache_manager import KVCacheManager
from minivllm.runs import conformance

TRACES = Path(__file__).parent / "data" / "vllm-0.22.1-part.jsonl.gz"
EDGE_TRACES = Path(__file__).parent / "data" / "vllm-0.22.1-edge.jsonl.gz"
"""Recorded by tools/record_vllm_traces.py: tiny caches, equal arrival times, chunks of 3 tokens."""
ASYNC_TRACES = Path(__file__).parent / "data" / "vllm-0.22.1-async.jsonl.gz"
"""The same with `--async`: vLLM's `AsyncScheduler`, one plan ahead."""


@pytest.fixture(scope="module")
def workloads():
    return list(conformance.read_traces(TRACES))


def test_every_recorded_decision_is_ours(workloads):
    differences = {
        index: str(difference)
        for index, workload in enumerate(workloads)
        if (difference := conformance.replay(workload))
    }
    assert len(workloads) == 160
    assert differences == {}


def test_the_traces_exercise_what_they_should(workloads):
    configs = [workload["config"] for workload in workloads]
    for knob in ("policy", "enable_prefix_caching", "enable_chunked_prefill",
                 "reserve_full_prompt"):  # fmt: skip
        assert len({config[knob] for config in configs}) == 2, knob
    steps = [step for workload in workloads for step in workload["steps"]]
    assert sum(len(step["preempted"]) for step in steps) > 1000
    assert any(workload["aborts"] for workload in workloads)


def test_edge_cases_too(monkeypatch):
    workloads = list(conformance.read_traces(EDGE_TRACES))
    assert [conformance.replay(workload) for workload in workloads] == [None] * len(workloads)
    # Some of them are there because vLLM serves blocks that nobody wrote: without that, we part.
    to_the_letter = conformance.trace_config
    monkeypatch.setattr(
        conformance,
        "trace_config",
        lambda *config: dataclasses.replace(to_the_letter(*config), keep_upstream_bugs=False),
    )
    assert any(conformance.replay(workload) for workload in workloads)


def test_plans_made_ahead_are_vllms_too():
    workloads = list(conformance.read_traces(ASYNC_TRACES))
    assert [conformance.replay(workload) for workload in workloads] == [None] * len(workloads)
    assert len(workloads) == 60
    steps = [step for workload in workloads for step in workload["steps"]]
    assert sum(len(step["preempted"]) for step in steps) >= 500
    assert sum(bool(workload["aborts"]) for workload in workloads) > 20
    # It shows in the decisions whether a plan waits for its tokens.
    for workload in workloads:
        workload["config"]["async_scheduling"] = False
    assert all(conformance.replay(workload) for workload in workloads)


def test_recording_changes_no_decision(workloads):
    assert [conformance.replay(workload, record=True) for workload in workloads[:20]] == [None] * 20


@pytest.mark.parametrize(
    "field", ["scheduled", "computed_after", "preempted", "running", "waiting", "block_ids",
              "free_blocks", "sampled", "finished"]
)  # fmt: skip
def test_a_difference_in_any_field_is_found(workloads, field):
    workload = copy.deepcopy(workloads[0])
    step = next(i for i, step in enumerate(workload["steps"]) if step[field])
    value = workload["steps"][step][field]
    if isinstance(value, dict):
        value["r-nobody"] = 1
    elif isinstance(value, list):
        value.append("r-nobody")
    else:
        workload["steps"][step][field] += 1
    difference = conformance.replay(workload)
    assert difference is not None
    assert (difference.step, difference.field) == (step, field)
    assert "ours" in str(difference)
    assert "theirs" in str(difference)


def wrong_victim(scheduler):
    scheduler.select_victim = lambda running: running[0]


def no_revival(manager, request):
    return [], 0


@pytest.mark.parametrize("fault", ["victim", "admission", "free_order", "cache"])
def test_one_changed_line_is_found(workloads, monkeypatch, fault):
    """Each fault is one plausible mistake; the traces must expose it."""
    if fault == "victim":
        original = Scheduler.__init__

        def init(self, *args, **kwargs):
            original(self, *args, **kwargs)
            wrong_victim(self)

        monkeypatch.setattr(Scheduler, "__init__", init)
    elif fault == "admission":  # admits even in a step that preempted
        original_running = Scheduler._schedule_running

        def schedule_running(self, output, budget):
            left = original_running(self, output, budget)
            if output.preempted_req_ids:
                left = self._schedule_waiting(output, left)
            return left

        monkeypatch.setattr(Scheduler, "_schedule_running", schedule_running)
    elif fault == "free_order":  # a request's first block is evicted first

        def free(self, request):
            self.block_pool.free_blocks(self.req_to_blocks.pop(request.request_id, []))
            self.num_cached_block.pop(request.request_id, None)

        monkeypatch.setattr(KVCacheManager, "free", free)
    else:
        monkeypatch.setattr(KVCacheManager, "get_computed_blocks", no_revival)
    assert any(conformance.replay(workload) for workload in workloads)


def run(*args):
    command = [sys.executable, "-m", "minivllm.conformance", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True)


def test_command_line(tmp_path, workloads):
    good = tmp_path / "good.jsonl"
    good.write_text("".join(json.dumps(workload) + "\n" for workload in workloads[:2]))
    done = run(good)
    assert (done.returncode, done.stdout) == (0, "vLLM 0.22.1: 2/2 workloads identical\n")

    bad = copy.deepcopy(workloads[1])
    bad["steps"][3]["free_blocks"] += 1
    path = tmp_path / "bad.jsonl.gz"
    with gzip.open(path, "wt") as lines:
        lines.write(json.dumps(workloads[0]) + "\n" + json.dumps(bad) + "\n")
    done = run(path)
    assert done.returncode == 1
    assert done.stdout.startswith("vLLM 0.22.1: 1/2 workloads identical\n")
    assert "workload 2, step 3, free_blocks" in done.stdout


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "no workload"),
        ("{", "line 1: not JSON"),
        ("{}\n", "no 'config'"),
        (None, "cannot read"),
    ],
)
def test_bad_files_get_a_clear_error(tmp_path, content, complaint):
    path = tmp_path / "traces.jsonl"
    if content is not None:
        path.write_text(content)
    done = run(path)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_is_compared_with_its_own_release(tmp_path, workloads):
    newer = [{**workload, "vllm": "0.33.0+cpu"} for workload in workloads]
    path = tmp_path / "newer.jsonl"
    path.write_text("".join(json.dumps(workload) + "\n" for workload in newer))
    done = run(path)
    assert done.returncode == 1, "0.22.1's decisions are not those of 0.33.0"
    assert re.match(r"vLLM 0\.33\.0: \d+/160 workloads identical\n", done.stdout)
    done = run(path, "--as", "0.22.1")
    assert done.returncode == 0
    assert "0.33.0+cpu, compared with 0.22.1 as told: 160/160" in done.stdout


@pytest.mark.parametrize(
    ("versions", "args", "words"),
    [
        (["0.99.0"], (), ["workload 1", "0.99.0", "0.33.0", "--as"]),
        ([None], (), ["does not say", "--as"]),
        (["0.22.1", "0.23.0"], (), ["workload 2", "0.22.1", "0.23.0"]),
        (["0.22.1"], ("--as", "0.21"), ["vllm_version", "'0.21'", "0.33.0"]),
    ],
)
def test_an_unclear_release_is_an_error(tmp_path, workloads, versions, args, words):
    rows = [{**workloads[0], "vllm": version} for version in versions]
    for row in rows:
        if row["vllm"] is None:
            del row["vllm"]
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run(path, *args)
    assert done.returncode == 2
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr
