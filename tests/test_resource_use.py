"""The figure of the three resources counts what the scheduler counts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("plotly")

from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig
from minivllm.runs.drive import drive, drive_scenario
from minivllm.viz.resources import ROWS, resource_use, taken


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=8),
    st.integers(1, 6),
    st.integers(4, 40),
)
def test_it_shows_what_the_statistics_say(
    lengths: list[tuple[int, int]], seats: int, budget: int
) -> None:
    config = SchedulerConfig(
        num_gpu_blocks=14, block_size=4, max_num_batched_tokens=budget, max_num_seqs=seats
    )
    requests = [
        (i, Request(f"r{i}", [i] * prompt, SamplingParams(max_tokens=output)))
        for i, (prompt, output) in enumerate(lengths)
    ]
    run = drive(Scheduler(config), requests)
    shown = {name: {} for name, _ in ROWS}
    for trace in resource_use(run).data:
        name = trace.hovertemplate.split()[-1].removesuffix("<extra></extra>")
        shown[name].update(zip(trace.x, trace.y, strict=True))
    for stats in run.stats.steps:
        assert shown["tokens"][stats.step] == stats.num_scheduled_tokens <= budget
        assert shown["seats"][stats.step] == stats.num_running_reqs <= seats
        assert shown["blocks"][stats.step] == round(14 * stats.kv_cache_usage)


def test_a_hatched_bar_is_a_step_in_which_this_resource_was_short() -> None:
    figure = resource_use(drive_scenario("three-limits"))
    short = {
        trace.hovertemplate.split()[-1].removesuffix("<extra></extra>"): list(trace.x)
        for trace in figure.data
        if trace.marker.pattern.shape
    }
    assert short == {"tokens": [0], "seats": [1, 2, 3, 4, 5], "blocks": [6, 7, 8, 9, 10]}


def test_the_number_of_seats_must_be_known() -> None:
    run = drive_scenario("three-limits")
    steps = run.history.steps
    with pytest.raises(ValueError, match="max_num_seqs"):
        resource_use(steps)
    assert resource_use(steps, max_num_seqs=3).to_dict() == resource_use(run).to_dict()
    assert taken(steps[0], "tokens") == 16
