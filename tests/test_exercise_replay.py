"""What a message shows as the smallest failing workload can be run as it stands."""

from __future__ import annotations

import pytest

from minivllm.core import Scheduler
from minivllm.grading.exercises import e07_priority as e07
from minivllm.grading.exercises import e09_swap as e09
from minivllm.grading.exercises import e13_never_fits as e13
from minivllm.grading.exercises.drivers import loop
from minivllm.grading.exercises.drivers.reference import PriorityReference
from minivllm.grading.judge import workload_text

PARTED = ("scheduled", "computed_after", "preempted", "running", "waiting", "free_blocks")


def decided(workload):
    run = loop.run(Scheduler, workload)
    steps = [{name: step[name] for name in PARTED} for step in run["steps"]]
    return run["outcome"], steps


@pytest.mark.parametrize(
    ("module", "workloads"),
    [
        (e07, e07.hidden_workloads()),
        (e09, [workload for _, workload, _ in e09.hidden_workloads()]),
        (e13, e13.hidden_workloads()),
    ],
    ids=["07", "09", "13"],
)
def test_a_shown_workload_is_decided_as_the_one_that_failed(module, workloads):
    for workload in workloads:
        text = workload_text(module.short(workload))
        assert decided(eval(text)) == decided(workload)  # pasted into a cell


def test_a_prompt_given_by_its_length_is_shared_with_nobody():
    rows = [loop.full_row({"request_id": f"r{i}", "num_prompt_tokens": 40}, i) for i in range(5)]
    assert [row["id"] for row in rows] == ["r0", "r1", "r2", "r3", "r4"]
    assert len({token for row in rows for token in row["prompt_token_ids"]}) == 200


def test_the_kept_reference_decides_as_the_core():
    for workload in e07.hidden_workloads():
        assert e07.decisions(PriorityReference, workload) == e07.decisions(Scheduler, workload)
