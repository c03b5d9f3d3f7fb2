"""Any scheduler can be examined through a pipe; and one that lies, hangs or dies is told so."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from minivllm.runs import conformance, corpus, shrink
from minivllm.runs.agreement import CLASSES, FEATURES, first_differences, needs, told

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
ADAPTER = ROOT / "tools" / "adapters" / "minivllm_adapter.py"


def read(name: str, most: int) -> list[dict]:
    traces = conformance.read_traces(DATA / name)
    return [workload for workload, _ in zip(traces, range(most))]


@pytest.fixture(scope="module")
def workloads() -> list[dict]:
    return read("vllm-0.22.1-edge.jsonl.gz", 12) + read("vllm-0.22.1-async.jsonl.gz", 4)


@pytest.fixture
def traces(tmp_path, workloads) -> Path:
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(workload) + "\n" for workload in workloads))
    return path


def run(traces: Path, *command: object, options: tuple[str, ...] = ()):
    given = [sys.executable, "-m", "minivllm.conformance", "run", traces, *options, "--", *command]
    return subprocess.run(list(map(str, given)), capture_output=True, text=True, cwd=ROOT)


def write(tmp_path: Path, text: str) -> tuple[str, Path]:
    path = tmp_path / "under_test.py"
    path.write_text(text)
    return sys.executable, path


CHANGED = """
import runpy, sys
sys.path.insert(0, {root!r})
from minivllm.core import kv_cache_manager, scheduler
{change}
sys.argv = [{adapter!r}]
runpy.run_path({adapter!r}, run_name="__main__")
"""


def changed(tmp_path: Path, change: str) -> tuple[str, Path]:
    """Our adapter, of a scheduler that was changed."""
    text = CHANGED.format(root=str(ROOT), adapter=str(ADAPTER), change=change)
    return write(tmp_path, text)


def test_our_own_scheduler_agrees_in_every_class(traces, workloads):
    done = run(traces, sys.executable, ADAPTER)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "minivllm: 16 of 16 workloads compared"
    rows = [line.split() for line in lines[2:]]
    assert rows == [[name, "16", "0", "0", "0"] for name in CLASSES]


def test_a_changed_victim_is_found_and_shrunk(traces, tmp_path):
    command = changed(
        tmp_path,
        "scheduler.VICTIM_POLICIES.update(priority_as_upstream=lambda running: running[0])",
    )
    done = run(traces, *command, options=("--json", str(tmp_path / "report.json")))
    assert done.returncode == 1, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    rows = {row["class"]: row for row in report["classes"]}
    assert rows["preemption"]["differ"] > 0
    assert rows["who"]["agree"] + rows["who"]["differ"] == 16
    assert sum(row["first"] for row in rows.values()) == max(r["differ"] for r in rows.values())
    smallest = report["smallest"]["workload"]
    # No fewer show who yields: a victim, and somebody for whom it does.
    assert len(smallest["requests"]) == 2
    assert smallest["config"]["policy"] == "priority"
    assert "the smallest workload that differs so: step" in done.stdout


def test_other_block_ids_are_no_other_plan(traces, tmp_path):
    command = changed(
        tmp_path,
        "original = kv_cache_manager.KVCacheManager.get_block_ids\n"
        "kv_cache_manager.KVCacheManager.get_block_ids = "
        "lambda self, id_: [b + 1 for b in original(self, id_)]",
    )
    done = run(traces, *command, options=("--json", str(tmp_path / "report.json")))
    rows = {r["class"]: r for r in json.loads((tmp_path / "report.json").read_text())["classes"]}
    assert done.returncode == 1
    assert {name for name, row in rows.items() if row["differ"]} == {"block_ids"}
    assert rows["block_ids"]["first"] == rows["block_ids"]["differ"] == 16


def test_what_a_scheduler_lacks_is_not_wrong(traces, tmp_path, workloads):
    text = ADAPTER.read_text()
    text = text.replace(', "block_ids", "cache_hits")', ")")
    text = text.replace('"lacks": []', '"lacks": ["priority", "async_scheduling"]')
    path = tmp_path / "adapter.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n" + text.split("annotations", 1)[1]
    )
    done = run(traces, sys.executable, path, options=("--json", str(tmp_path / "report.json")))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    left = [w for w in workloads if not {"priority", "async_scheduling"} & set(needs(w))]
    assert 0 < len(left) < len(workloads)
    rows = {row["class"]: row for row in report["classes"]}
    assert rows["who"]["agree"] == report["compared"] == len(left)
    assert rows["who"]["not_supported"] == len(workloads) - len(left)
    assert rows["block_ids"] == {
        "class": "block_ids", "agree": 0, "differ": 0, "first": 0, "not_supported": len(workloads)
    }  # fmt: skip
    assert sum(report["lacking"].values()) == len(workloads) - len(left)


# --- proposed tokens and queue caps: version 1.1 ---------------------------------------------


@pytest.fixture(scope="module")
def with_drafts() -> list[dict]:
    """Of each kind some: planned ahead, padded, fewer drafts in a larger batch, and refusals."""
    drafts = [w for w in read("vllm-speculative.jsonl.xz", 1000) if len(w["steps"]) < 40]
    rows = [w for w in read("vllm-drafts-by-batch.jsonl.xz", 1000) if len(w["steps"]) < 40]
    caps = [w for w in read("vllm-queue-caps.jsonl.xz", 1000) if len(w["steps"]) < 40]
    return [w for some in (drafts, rows, caps) for w in some[:: max(len(some) // 12, 1)]]


@pytest.fixture
def drafting(tmp_path, with_drafts) -> Path:
    path = tmp_path / "drafting.jsonl"
    path.write_text("".join(json.dumps(workload) + "\n" for workload in with_drafts))
    return path


def test_proposed_tokens_and_refusals_go_through_the_pipe(drafting, with_drafts):
    needed = [set(needs(workload)) for workload in with_drafts]
    for name in ("speculative_tokens", "async_scheduling", "queue_caps",
                 "num_lookahead_tokens", "num_speculative_tokens_per_batch_size"):  # fmt: skip
        assert sum(name in some for some in needed) >= 4, name
    assert any(step.get("refused") for w in with_drafts for step in w["steps"])
    assert any(
        ids == [-1] * len(ids)
        for w in with_drafts
        if not w["config"].get("async_scheduling")
        for step in w["steps"]
        for ids in step.get("drafts", {}).values()
    )
    done = run(drafting, sys.executable, ADAPTER)
    assert done.returncode == 0, done.stdout + done.stderr
    number = str(len(with_drafts))
    assert done.stdout.startswith(f"minivllm: {number} of {number} workloads compared\n")
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert rows == [[name, number, "0", "0", "0"] for name in CLASSES]


def test_an_adapter_of_version_1_0_is_not_asked(drafting, tmp_path):
    """As one that lacks them by name: not supported, and not wrong."""
    for old, new in (
        ('"minor": 1,', ""),
        ('"lacks": []', '"lacks": ["speculative_tokens", "queue_caps"]'),
    ):
        text = ADAPTER.read_text().replace(old, new)
        assert text != ADAPTER.read_text()
        path = tmp_path / "adapter.py"
        path.write_text(text)
        done = run(drafting, sys.executable, path)
        assert done.returncode == 2
        assert "workloads could be compared" in done.stderr


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("config.SchedulerConfig.num_spec_tokens_to_schedule = lambda self, n: "
         "self.num_speculative_tokens", {"drafts", "tokens"}),
        ("scheduler.Scheduler._num_padding = lambda *args: 0", {"drafts", "tokens"}),
        ("scheduler.Scheduler._queue_is_full = lambda *args: None", {"refusals"}),
    ],
)  # fmt: skip
def test_who_decides_otherwise_about_them_is_found(drafting, tmp_path, change, parts):
    command = changed(tmp_path, f"from minivllm.core import config\n{change}")
    done = run(drafting, *command, options=("--json", str(tmp_path / "report.json")))
    assert done.returncode == 1, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert parts <= {row["class"] for row in report["classes"] if row["differ"]}
    assert {row["class"] for row in report["classes"] if row["first"]} & parts


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({}, ["'drafts' must be an object"]),
        ({"drafts": {"r0": 1}}, ["'drafts' must be", "below that of the request's"]),
        ({"drafts": {}, "padded": ["r0"]}, ["'padded' must be ids among the drafts"]),
        ({"drafts": {}, "padded": []}, ["'propose' must be a number up to", "None"]),
        ({"drafts": {}, "padded": [], "propose": 99}, ["'propose' must be", "got 99"]),
    ],
)
def test_what_says_nothing_about_drafts_is_told_so(tmp_path, with_drafts, answer, words):
    workload = next(w for w in with_drafts if w["steps"][0]["scheduled"])
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(workload) + "\n")
    hello = {"protocol": 1, "minor": 1, "name": "x", "decides": ["who"]}
    (id_, _), *_ = workload["steps"][0]["scheduled"]
    answer = json.loads(json.dumps(answer).replace("r0", id_))
    step = {"scheduled": [[id_, 1]], "sampling": {}, **answer}
    program = answering(json.dumps(hello), "{}", json.dumps(step))
    done = run(path, *write(tmp_path, program))
    assert done.returncode == 2
    assert all(word in done.stderr for word in words), done.stderr


def test_nobody_verifies_more_than_was_proposed(tmp_path, with_drafts):
    workload = next(w for w in with_drafts if "async_scheduling" not in needs(w))
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(workload) + "\n")
    hello = {"protocol": 1, "minor": 1, "name": "x", "decides": ["who"]}
    (id_, _), *_ = workload["steps"][0]["scheduled"]
    step = {"scheduled": [[id_, 9]], "sampling": {id_: None}, "drafts": {id_: 1}, "padded": [],
            "propose": 0}  # fmt: skip
    done = run(path, *write(tmp_path, answering(json.dumps(hello), "{}", json.dumps(step))))
    assert done.returncode == 2
    assert f"'drafts.{id_}' must be at most the 0 proposed" in done.stderr


HELLO = '{"protocol": 1, "name": "x", "decides": ["who", "preemption"], "lacks": []}'


def answering(*lines: str) -> str:
    """A program that answers with these lines, whatever it is asked, and then is silent."""
    prints = "".join(f"input(); print({line!r}, flush=True)\n" for line in lines)
    return f"import sys, time\n{prints}input()\n"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import time; time.sleep(60)", ["hangs", "'hello'", "0.5 s", "--timeout"]),
        (answering(HELLO, "{}") + "time.sleep(60)", ["hangs", "'step'", "workload 1, step 0"]),
        ("import sys; sys.exit('no model')", ["has died", "exit status 1", "no model"]),
        (answering(HELLO) + "raise SystemExit(7)", ["has died", "exit status 7", "workload 1"]),
        (answering("Loading..."), ["one JSON object on one line", "Loading..."]),
        (answering("[1]"), ["one JSON object"]),
        (answering("[" * 100_000), ["one JSON object"]),
        (answering('{"protocol": 2}'), ["protocol 2", "speaks 1"]),
        (answering('{"protocol": 1, "minor": "1"}'), ["'minor' must be a number", "'1'"]),
        (answering('{"protocol": 1, "decides": ["all"]}'), ["'decides'", "who", "all"]),
        (answering('{"protocol": 1, "decides": ["order"]}'), ["must decide 'who'"]),
        (answering('{"protocol": 1, "decides": ["who"], "lacks": 3}'), ["'lacks'", "priority"]),
        (answering(HELLO, "{}", "{}"), ["'scheduled' must be", "step 0", "None"]),
        (
            answering(HELLO, "{}", '{"scheduled": [["nobody", 1]], "sampling": {}}'),
            ["unfinished requests", "nobody"],
        ),
        (
            answering(HELLO, "{}", '{"scheduled": [], "sampling": {"r0": 0}}'),
            ["'sampling' must be among the scheduled"],
        ),
        (
            answering(HELLO, "{}", '{"scheduled": [], "sampling": {}}'),
            ["'preempted' must be a list of ids", "None"],
        ),
        (
            answering(HELLO, "{}", '{"scheduled": [], "sampling": {}, "preempted": []}', "{}"),
            ["'finished' must be a list of ids"],
        ),
    ],
)  # fmt: skip
def test_what_is_no_scheduler_is_told_so(traces, tmp_path, program, words):
    done = run(traces, *write(tmp_path, program), options=("--timeout", "0.5"))
    if "hangs" not in words:
        done = run(traces, *write(tmp_path, program))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr.replace("\n    Traceback", "")
    assert all(word in done.stderr for word in words), done.stderr


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"format": 2}, (), ["line 1: format 2", "reads format 1"]),
        ({"vllm": "0.99.0"}, (), ["workload 1", "0.99.0", "0.33.0"]),
        ({}, ("--release", "0.24.0"), ["none of 0 workloads"]),
    ],
)
def test_a_corpus_that_cannot_be_run(tmp_path, workloads, change, options, words):
    path = tmp_path / "later.jsonl"
    path.write_text(json.dumps({**workloads[0], **change}) + "\n")
    done = run(path, sys.executable, ADAPTER, options=options)
    assert done.returncode == 2
    assert all(word in done.stderr for word in words), done.stderr


def test_a_scheduler_that_dies_now_and_then_is_started_again(traces, tmp_path, workloads):
    command = changed(
        tmp_path,
        "original = scheduler.Scheduler._preempt_request\n"
        "def dies(self, request, output):\n"
        "    if request.request_id == 'r4': raise SystemExit(3)\n"
        "    original(self, request, output)\n"
        "scheduler.Scheduler._preempt_request = dies",
    )
    options = ("--keep-going", "--json", str(tmp_path / "report.json"))
    assert "exit status 3" in run(traces, *command).stderr
    done = run(traces, *command, options=options)
    assert done.returncode == 1, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    dead = [w for w in workloads if any("r4" in step["preempted"] for step in w["steps"])]
    assert len(report["failed"]) == len(dead)
    assert 0 < len(dead) < len(workloads)
    assert "exit status 3" in report["failed"][0]
    (who,) = (row for row in report["classes"] if row["class"] == "who")
    assert who["agree"] == report["compared"] == len(workloads) - len(dead)
    assert f"{len(dead)} not brought to their end" in done.stdout


def test_a_command_that_is_none(traces):
    done = run(traces, "/nowhere/scheduler")
    assert done.returncode == 2
    assert "cannot start /nowhere/scheduler" in done.stderr


def test_every_class_sees_its_own_difference(workloads):
    theirs = told(workloads[0]["steps"])
    step = next(i for i, row in enumerate(theirs) if len(row["scheduled"]) > 1)
    for name, change in {
        "who": lambda row: row["scheduled"].pop(),
        "refusals": lambda row: row["refused"].append("r99"),
        "tokens": lambda row: row["scheduled"][0].__setitem__(1, 99),
        "drafts": lambda row: row["drafts"].__setitem__(row["scheduled"][0][0], 99),
        "order": lambda row: row["scheduled"].reverse(),
        "preemption": lambda row: row["preempted"].append("r99"),
        "admission": lambda row: row["admitted"].append("r99"),
        "block_ids": lambda row: row["block_ids"][row["scheduled"][0][0]].append(99),
        "cache_hits": lambda row: row["cached"].__setitem__(row["scheduled"][0][0], 99),
    }.items():
        ours = copy.deepcopy(theirs)
        change(ours[step])
        assert list(first_differences(ours, theirs, list(CLASSES))) == [name]
        assert first_differences(ours, theirs, [n for n in CLASSES if n != name]) == {}


def test_shrinking_keeps_what_it_shows_and_leaves_nothing_to_take(workloads):
    def preempts(workload: dict) -> bool:
        return any(step["preempted"] for step in conformance.decide(workload, max_steps=200))

    workload = next(w for w in workloads if preempts(w))
    smallest = shrink.shrink(workload, preempts)
    assert preempts(smallest)
    assert "steps" not in smallest
    assert shrink.size(smallest) < shrink.size(workload)
    assert shrink.can_run(smallest)
    smaller = [
        candidate
        for candidate in shrink.candidates(smallest)
        if shrink.can_run(candidate) and shrink.size(candidate) < shrink.size(smallest)
    ]
    assert smaller
    assert not any(preempts(candidate) for candidate in smaller)


def test_recordings_are_of_the_schema():
    validator = jsonschema.Draft202012Validator(json.loads(corpus.SCHEMA.read_text()))
    for path in sorted(DATA.glob("vllm-*.jsonl.*")):
        for workload in read(path.name, 25):
            assert list(validator.iter_errors(workload)) == [], path
    workload = read("vllm-0.22.1-edge.jsonl.gz", 1)[0]
    assert list(validator.iter_errors({**workload, "format": 2}))
    assert list(validator.iter_errors({**workload, "more": 1}))


def test_the_corpus_is_written_whole_and_the_same_each_time(tmp_path, traces, workloads):
    for folder in ("one", "two"):
        assert corpus.main([str(traces), "--out", str(tmp_path / folder)], "corpus") == 0
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    assert set(files) == {
        "README.md", "manifest.json", "trace.schema.json", "vllm-0.22.1.jsonl.gz"
    }  # fmt: skip
    row = json.loads(files["manifest.json"])["files"]["vllm-0.22.1.jsonl.gz"]
    assert row["workloads"] == len(workloads)
    assert row["asynchronous"] == 4
    written = list(conformance.read_traces(tmp_path / "one" / "vllm-0.22.1.jsonl.gz"))
    assert [w["steps"] for w in written] == [w["steps"] for w in workloads]
    assert {w["format"] for w in written} == {1}
    assert all(name in files["README.md"].decode() for name in (*CLASSES, *FEATURES, '"hello"'))


def test_a_corpus_that_we_decide_otherwise_is_not_written(tmp_path, workloads, capsys):
    bad = copy.deepcopy(workloads[0])
    bad["steps"][1]["free_blocks"] += 1
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(bad) + "\n")
    assert corpus.main([str(path), "--out", str(tmp_path / "out")], "corpus") == 2
    assert "workload 1: minivllm decides otherwise: step 1, free_blocks" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
