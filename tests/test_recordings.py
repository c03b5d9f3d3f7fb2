"""Every release from the book's to the newest, recorded: each decision of each is ours.

`tests/data/vllm-RELEASE.jsonl.xz` was recorded from the unmodified scheduler of that release by
tools/record_vllm_traces.py: `--small` (200, and 200 with `--async`), `--plain` (60), and
`--scenarios`, those in which two releases part.
"""

from __future__ import annotations

from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from minivllm.core import SchedulerConfig
from minivllm.core.releases import CHANGES, NEWEST, REFERENCE, RELEASES
from minivllm.runs.agreement import QUEUE_CAPS
from minivllm.runs.conformance import read_traces, release_of, replay, workload_of
from minivllm.runs.scenarios import LIVELOCKS, PARTINGS

DATA = Path(__file__).parent / "data"
SCENARIOS = [*chain(*PARTINGS.values()), *LIVELOCKS]


@cache
def recorded(version: str) -> list[dict]:
    return list(read_traces(DATA / f"vllm-{version}.jsonl.xz"))


@pytest.mark.parametrize("version", RELEASES)
def test_every_recorded_decision_is_ours(version):
    workloads = recorded(version)
    assert {release_of(workload) for workload in workloads} == {version}
    different = {
        index: str(difference)
        for index, workload in enumerate(workloads)
        if (difference := replay(workload))
    }
    assert different == {}
    ahead = [w["config"].get("async_scheduling", False) for w in workloads]
    assert ahead.count(True) >= 200
    assert ahead.count(False) >= 200 + 60 + len(SCENARIOS)


@pytest.mark.parametrize("version", RELEASES)
def test_the_recordings_turn_every_knob(version):
    workloads = recorded(version)
    for change in CHANGES:
        others = change.name.startswith("max_num_queued") or change.needs_drafts
        if not change.is_switch and not others:  # which have recordings of their own
            values = {w["config"].get(change.name) for w in workloads}
            assert (len(values) > 2) is change.holds_in(version), change.name  # None is one
    requests = [request for workload in workloads for request in workload["requests"]]
    for name in ("stop_token_ids", "min_tokens"):
        assert sum(bool(request.get(name)) for request in requests) > 200
    assert len({request["priority"] for request in requests}) > 2
    assert sum(bool(workload["aborts"]) for workload in workloads) > 100
    steps = [step for workload in workloads for step in workload["steps"]]
    assert sum(len(step["preempted"]) for step in steps) > 800


@pytest.mark.parametrize("switch", PARTINGS)
def test_the_recordings_show_every_switch(switch):
    """Decided as the release before, they differ: in the scenario made for it too."""
    (change,) = (change for change in CHANGES if change.name == switch)
    before = RELEASES[RELEASES.index(change.since) - 1]
    plain = SchedulerConfig(num_gpu_blocks=1).to_dict()
    new = [c.name for c in CHANGES if not c.is_switch and not c.holds_in(before)]
    workloads = [
        w
        for w in recorded(change.since)
        if all(w["config"].get(knob, plain[knob]) == plain[knob] for knob in new)
    ]
    scenarios = [workload_of(scenario) for scenario in PARTINGS[switch]]
    found = [w for w in workloads if replay(w, version=before)]
    # The other workloads with proposed tokens are a file of their own, vllm-speculative.jsonl.xz.
    assert len(found) >= len(scenarios) + (not change.needs_drafts)
    for scenario in scenarios:
        assert any(w["requests"] == scenario["requests"] for w in found)


def test_whom_a_full_queue_refuses_is_as_recorded():
    """From the API server's own check, 20 workloads of the first release that has it and of the
    newest (`--queue-caps --small`)."""
    workloads = list(read_traces(DATA / "vllm-queue-caps.jsonl.xz"))
    releases = [release_of(workload) for workload in workloads]
    assert [releases.count(version) for version in ("0.29.0", NEWEST)] == [20, 20]
    assert [replay(workload) for workload in workloads] == [None] * 40
    refused = [len(step["refused"]) for workload in workloads for step in workload["steps"]]
    assert sum(refused) > 100
    for name in QUEUE_CAPS:  # each refuses somebody whom the other lets in
        changed = [{**w, "config": {**w["config"], name: None}} for w in workloads]
        assert sum(getattr(replay(w), "field", "") == "refused" for w in changed) > 5


@pytest.mark.parametrize("scenario", LIVELOCKS, ids=lambda scenario: scenario.name)
def test_vllm_itself_does_not_end_them(scenario):
    """The recorder gave up after 4000 steps."""
    requests = workload_of(scenario)["requests"]
    endless = set()
    for version in (REFERENCE, "0.32.0", NEWEST):
        (workload,) = (w for w in recorded(version) if w["requests"] == requests)
        if not workload.get("ends", True):
            endless.add(version)
    ends = {NEWEST} if scenario.name == "livelock-until-0-32" else set()
    assert endless == {REFERENCE, "0.32.0", NEWEST} - ends
