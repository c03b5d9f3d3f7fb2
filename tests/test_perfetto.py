"""The exported trace is what ui.perfetto.dev and chrome://tracing read."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig
from minivllm.runs import InputLog
from minivllm.stepper import SCENARIOS, record
from minivllm.viz.perfetto import REQUESTS, SCHEDULER, US_PER_STEP, to_perfetto, write_perfetto


def check_format(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Every rule of the Trace Event Format that the export relies on."""
    events = json.loads(json.dumps(trace))["traceEvents"]
    assert trace["displayTimeUnit"] == "ms"
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    for event in events:
        assert event["ph"] in "MXiC"
        assert event["name"]
        assert type(event["pid"]) is type(event["tid"]) is int
        assert event["pid"] in (SCHEDULER, REQUESTS)
        assert event["ts"] >= 0
        assert isinstance(event["args"], dict)
        if event["ph"] == "X":
            assert event["dur"] >= 0
        if event["ph"] == "i":
            assert event["s"] == "t"
        if event["ph"] == "C":
            assert event["args"]
            assert all(isinstance(value, int) for value in event["args"].values())
        if event["ph"] in "Xi":
            assert (event["pid"], event["tid"]) in named
    times = [e["ts"] for e in events if e["ph"] != "M"]
    assert times == sorted(times)
    assert [e["ph"] == "M" for e in events] == sorted(
        (e["ph"] == "M" for e in events), reverse=True
    )

    slices = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            slices[event["pid"], event["tid"]].append((event["ts"], event["dur"]))
    for track in slices.values():  # on a track, slices follow each other
        for (start, duration), (following, _) in itertools.pairwise(sorted(track)):
            assert start + duration <= following + 0.01
    return events


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_gives_a_trace_that_tells_what_happened(name: str) -> None:
    recording = record(SCENARIOS[name])
    events = check_format(to_perfetto(recording))
    steps = recording["steps"]
    tracks = [
        e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == REQUESTS
    ]
    assert tracks == [request.request_id for request in SCENARIOS[name].requests]
    tid = {id_: index + 1 for index, id_ in enumerate(tracks)}

    tokens = [e for e in events if e["ph"] == "X" and e.get("cat") == "tokens"]
    found = {(e["args"]["step"], e["tid"]): e["args"]["tokens"] for e in tokens}
    assert found == {
        (s["step"], tid[row["request_id"]]): row["num_scheduled_tokens"]
        for s in steps
        for row in s["scheduled"]
    }
    assert all(e["ts"] == e["args"]["step"] * US_PER_STEP for e in tokens)
    instants = Counter(e["name"] for e in events if e["ph"] == "i")
    told = Counter(e["type"] for s in steps for e in s["events"])
    for type_ in ("arrived", "preempted", "finished", "refused", "swapped_in"):
        assert instants[type_] == told[type_]
    waited = sum(e["dur"] for e in events if e["name"] == "waiting" and e["ph"] == "X")
    assert waited == US_PER_STEP * sum(len(s["waiting"]) for s in steps)
    used = [e["args"]["in use"] for e in events if e["name"] == "KV cache blocks"]
    assert used == [len(s["blocks"]["state"]) - 1 - len(s["blocks"]["free_queue"]) for s in steps]


def clocked(times: list[float]) -> Scheduler:
    """A run of as many steps as there are times."""
    now = {"time": times[0]}
    scheduler = Scheduler(
        SchedulerConfig(num_gpu_blocks=16, block_size=4),
        observer=InputLog(),
        clock=lambda: now["time"],
    )
    scheduler.add_request(Request("a", [1] * 6, SamplingParams(max_tokens=len(times))))
    for time in times:
        now["time"] = time
        output = scheduler.schedule()
        scheduler.update_from_output(output, {"a": 7})
    return scheduler


def test_by_the_clock_a_step_lasts_until_the_next() -> None:
    scheduler = clocked([100.0, 100.05, 100.06, 100.08])
    events = check_format(to_perfetto(scheduler))
    steps = [(e["ts"], e["dur"]) for e in events if e.get("cat") == "step"]
    assert steps == [(0, 50_000), (50_000, 10_000), (60_000, 20_000), (80_000, 20_000)]
    events = check_format(to_perfetto(scheduler, clock=False))
    assert [e["dur"] for e in events if e.get("cat") == "step"] == [US_PER_STEP] * 4


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(ValueError, match="no clock ran"):
        to_perfetto(record(SCENARIOS["cramped"]), clock=True)
    with pytest.raises(ValueError, match="ran backwards"):
        to_perfetto(clocked([2.0, 1.0]))
    with pytest.raises(ValueError, match="no step yet"):
        to_perfetto(Scheduler(SchedulerConfig(num_gpu_blocks=4), observer=InputLog()))
    with pytest.raises(ValueError, match="record=True"):
        to_perfetto(Scheduler(SchedulerConfig(num_gpu_blocks=4)))
    with pytest.raises(ValueError, match="cannot draw a int"):
        to_perfetto(3)


def test_a_request_that_waits_to_the_end_has_its_wait(tmp_path: Path) -> None:
    path = write_perfetto(tmp_path / "trace.json", record(SCENARIOS["never-fits-stuck"]))
    events = check_format(json.loads(path.read_text()))
    waits = [e for e in events if e["name"] == "waiting" and e["ph"] == "X"]
    assert len(waits) == 3
    assert {e["ts"] + e["dur"] for e in waits} == {6 * US_PER_STEP}
