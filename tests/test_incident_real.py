"""Recordings of a real vLLM server that come along: replayed, and held against other servers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minivllm.incident import example, read_recording
from minivllm.incident.ledger import Ledger
from minivllm.incident.protocol import METRICS, RECORDINGS, TARGET, cases, median_errors, table
from minivllm.incident.verdict import judge, told
from tools.measure_what_if import CONFIGS, LOADS, MORE, requests_of_runs


@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*.gz")), ids=lambda path: path.name)
def test_every_step_is_decided_as_the_server_did(path: Path) -> None:
    ledger = Ledger.of(read_recording(path))
    assert ledger.replay.difference is None
    assert ledger.replay.num_steps == ledger.recording.num_steps > 400
    assert not ledger.recording.header["unfollowed"]


def test_predictions_of_other_configurations_keep_to_the_target() -> None:
    found = cases()
    assert len(found) == len(LOADS) * len(CONFIGS) == 12
    errors = median_errors(found)
    assert all(errors[metric] <= TARGET for metric in METRICS), table(found)
    worst = max(abs(error) for case in found for error in case.errors.values())
    assert worst < 0.15, table(found)


def test_the_knobs_matter_to_what_is_predicted() -> None:
    """Nobody who predicts the same for every configuration keeps to the target."""
    found = {(case.config, case.load): case for case in cases()}
    seats, budget = found["few-seats", "flood"], found["small-budget", "flood"]
    assert seats.predicted["ttft"] > 2 * budget.predicted["ttft"]
    assert seats.measured["ttft"] > 2 * budget.measured["ttft"]


def test_what_was_measured_is_what_the_tool_would_write() -> None:
    data = json.loads((RECORDINGS / "what-if.json").read_text(encoding="utf-8"))
    assert {name: config["knobs"] for name, config in data["configs"].items()} == {
        name: knobs for name, (_, knobs) in CONFIGS.items()
    }
    assert {name: load["flags"] for name, load in data["loads"].items()} == LOADS
    runs = requests_of_runs(RECORDINGS / "fit.jsonl.gz")[len(MORE) :]
    assert [load["requests"] for load in data["loads"].values()] == [list(run) for run in runs]


@pytest.mark.parametrize(
    ("name", "resource", "said"),
    [
        ("queue", "seats", "Largest expected gain: max_num_seqs=8"),
        ("thrash", "blocks", "Preemptions: 41 of 20 requests."),
        ("stutter", None, "with long_prefill_token_threshold="),
    ],
)
def test_each_incident_has_its_cause(name: str, resource: str | None, said: str) -> None:
    verdict = judge(Ledger.of(read_recording(example(name))))
    bound = verdict.steps_bound
    if resource is None:
        assert not any(bound.values())
    else:
        assert max(bound, key=lambda key: bound[key]) == resource
    assert said in told(verdict)
    assert max(map(abs, verdict.trust.values())) < 0.1


def test_an_example_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="there is fit, queue, stutter, thrash"):
        example("nonsense")
