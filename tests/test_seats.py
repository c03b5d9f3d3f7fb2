"""Seats: nobody sits on another's, and every step of a request is drawn once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("plotly")

from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig
from minivllm.runs.drive import drive, drive_scenario
from minivllm.viz.seats import Stay, padded_batches, seat_chart, stays_of

LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 15)), min_size=1, max_size=8)


def sitting(stays: list[Stay], step: int) -> list[Stay]:
    return [stay for stay in stays if stay.first_step <= step < stay.end]


@settings(max_examples=40, deadline=None)
@given(LENGTHS, st.integers(1, 4), st.integers(4, 40), st.integers(12, 30))
def test_the_seats_of_a_run_hold_who_runs(
    lengths: list[tuple[int, int]], num_seats: int, budget: int, num_blocks: int
) -> None:
    config = SchedulerConfig(
        num_gpu_blocks=num_blocks,
        block_size=4,
        max_num_batched_tokens=budget,
        max_num_seqs=num_seats,
    )
    requests = [
        (i // 2, Request(f"r{i}", [i] * prompt, SamplingParams(max_tokens=output)))
        for i, (prompt, output) in enumerate(lengths)
    ]
    run = drive(Scheduler(config), requests)
    stays = stays_of(run)
    for snapshot in run.history.steps:
        now = sitting(stays, snapshot["step"])
        assert sorted(stay.request_id for stay in now) == sorted(snapshot["running"])
        assert len({stay.seat for stay in now}) == len(now)
        assert all(stay.seat < num_seats for stay in now)
    if run.stats.num_preemptions == 0:
        outputs = {request.request_id: request.num_output_tokens for _, request in requests}
        for stay in stays:
            assert stay.num_prompt_steps >= 1
            assert stay.num_decode_steps == outputs[stay.request_id] - 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 5))
def test_a_padded_batch_keeps_every_seat_until_its_longest_has_ended(
    outputs: list[int], num_seats: int
) -> None:
    stays = padded_batches([(f"r{i}", n) for i, n in enumerate(outputs)], num_seats)
    batches = [outputs[i : i + num_seats] for i in range(0, len(outputs), num_seats)]
    assert max(stay.end for stay in stays) == sum(max(batch) for batch in batches)
    padding = sum(stay.num_padding_steps for stay in stays)
    assert padding == sum(max(batch) * len(batch) - sum(batch) for batch in batches)
    for step in range(max(stay.end for stay in stays)):
        seats = [stay.seat for stay in sitting(stays, step)]
        assert len(set(seats)) == len(seats) <= num_seats


def test_the_chart_draws_every_step_once() -> None:
    run = stays_of(drive_scenario("continuous"))
    figure = seat_chart({"one": run, "other": padded_batches([("a", 3), ("b", 1)], 2)})
    drawn = sum(sum(trace.x) for trace in figure.data)
    assert drawn == sum(stay.end - stay.first_step for stay in run) + 3 + 3
    with pytest.raises(ValueError, match="empty"):
        seat_chart({"empty": []})
