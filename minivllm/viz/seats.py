"""Who sits in which seat of the batch, and for how long in vain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from minivllm.runs.steps import plural, steps_of, tick
from minivllm.viz.charts import go, make_subplots
from minivllm.viz.theme import COLORS, filled


@dataclass(frozen=True)
class Stay:
    """A request in a seat, from `first_step` on: its prompt, its output, then only padding."""

    request_id: str
    seat: int
    first_step: int
    num_prompt_steps: int
    num_decode_steps: int
    num_padding_steps: int = 0

    @property
    def end(self) -> int:
        """The first step in which the seat is free again."""
        return (
            self.first_step + self.num_prompt_steps + self.num_decode_steps + self.num_padding_steps
        )


def padded_batches(requests: Sequence[tuple[str, int]], num_seats: int) -> list[Stay]:
    """Static batching: `num_seats` requests at a time, all seats taken until the last has ended.

    Args:
        requests: (id, output tokens) in order of arrival.
        num_seats: requests in a batch.
    """
    stays, first_step = [], 0
    for start in range(0, len(requests), num_seats):
        batch = requests[start : start + num_seats]
        longest = max(output for _, output in batch)
        for seat, (request_id, output) in enumerate(batch):
            stays.append(Stay(request_id, seat, first_step, 1, output - 1, longest - output))
        first_step += longest
    return stays


def stays_of(source: Any) -> list[Stay]:
    """The stays of a run: whoever is admitted takes the lowest free seat.

    Args:
        source: a run (see `minivllm.runs.steps.steps_of`). A preempted request leaves its seat.
    """
    stays: list[Stay] = []
    seats: dict[str, tuple[int, int, int]] = {}  # id -> seat, first step, prompt steps so far
    step = 0

    def leave(ids: Iterable[str]) -> None:
        for id_ in ids:
            seat, first, prompt = seats.pop(id_)
            stays.append(Stay(id_, seat, first, prompt, step - first - prompt))

    for snapshot in steps_of(source):
        step = snapshot["step"]
        leave([id_ for id_ in seats if id_ not in snapshot["running"]])
        for id_ in snapshot["running"]:
            if id_ not in seats:
                taken = {seat for seat, _, _ in seats.values()}
                seats[id_] = (next(n for n in count() if n not in taken), step, 0)
            row = snapshot["requests"][id_]
            start = row["num_computed_tokens"] - row["num_scheduled_tokens"]
            seat, first, _ = seats[id_]
            if start < row["num_prompt_tokens"]:
                seats[id_] = (seat, first, step - first + 1)
    step += 1
    leave(list(seats))
    return sorted(stays, key=lambda stay: (stay.first_step, stay.seat))


def seat_chart(panels: Mapping[str, Sequence[Stay]]) -> go.Figure:
    """Steps from left to right, a row for each seat, one panel above the other.

    Args:
        panels: a title and its stays.

    Returns:
        A figure; in each stay the prompt's steps, the output's, and, hatched, those in which the
        request had ended and its seat was computed all the same. A gap is an empty seat.

    Raises:
        ValueError: if a panel has no stay.
    """
    for title, stays in panels.items():
        if not stays:
            raise ValueError(f"nobody sits in {title!r}: give at least one stay")
    figure = make_subplots(
        rows=len(panels),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.16,
        subplot_titles=list(panels),
    )
    for row, stays in enumerate(panels.values(), start=1):
        _add_panel(figure, row, stays)
    num_steps = max(stay.end for stays in panels.values() for stay in stays)
    figure.update_xaxes(range=[-0.6, num_steps - 0.4], dtick=tick(num_steps))
    figure.update_xaxes(title={"text": "step"}, row=len(panels), col=1)
    ends = "; ".join(
        f"{title}: {plural(max(stay.end for stay in stays), 'step')}"
        for title, stays in panels.items()
    )
    figure.update_layout(
        title={"text": "Who sits in which seat"},
        barmode="overlay",
        bargap=0.15,
        height=110 + 170 * len(panels),
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"},
        meta={"alt": f"Seats of a batch, step by step. {ends}."},
    )
    return figure


def _add_panel(figure: go.Figure, row: int, stays: Sequence[Stay]) -> None:
    kinds = (
        ("prompt", "num_prompt_steps", filled(COLORS.prefill)),
        ("output", "num_decode_steps", filled(COLORS.decode)),
        ("ended, the seat computes padding", "num_padding_steps", filled(COLORS.preempted, "/")),
    )
    bases = [stay.first_step for stay in stays]
    for name, attribute, marker in kinds:
        lengths = [getattr(stay, attribute) for stay in stays]
        shown = [index for index, length in enumerate(lengths) if length]
        words = "output" if attribute == "num_decode_steps" else ""
        figure.add_bar(
            orientation="h",
            y=[f"seat {stays[i].seat}" for i in shown],
            x=[lengths[i] for i in shown],
            base=[bases[i] - 0.5 for i in shown],
            text=[stays[i].request_id if words else "" for i in shown],
            textposition="inside",
            insidetextanchor="middle",
            textfont={"color": COLORS.paper},
            constraintext="none",
            name=name,
            legendgroup=name,
            showlegend=row == 1,
            marker={**marker, "line": {"width": 0.5, "color": COLORS.paper}},
            customdata=[(stays[i].request_id, bases[i], bases[i] + lengths[i] - 1) for i in shown],
            hovertemplate="%{customdata[0]}: " + name + ", steps %{customdata[1]} to "
            "%{customdata[2]}<extra></extra>",
            row=row,
            col=1,
        )
        bases = [base + length for base, length in zip(bases, lengths, strict=True)]
    seats = sorted({stay.seat for stay in stays}, reverse=True)
    figure.update_yaxes(
        type="category",
        categoryorder="array",
        categoryarray=[f"seat {seat}" for seat in seats],
        row=row,
        col=1,
    )
