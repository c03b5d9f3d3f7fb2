"""Who computed what, step by step: the run as a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minivllm.runs.snapshot import Snapshot
from minivllm.runs.steps import arrival_order, check_requests, plural, steps_of, tick
from minivllm.viz.charts import go
from minivllm.viz.theme import COLORS, request_axis


@dataclass(frozen=True)
class Kind:
    """How one kind of step looks: colour, thickness and pattern all differ."""

    name: str
    color: str
    width: float  # of a row's height
    pattern: str = ""


KINDS = {
    "prompt": Kind("prompt tokens", COLORS.prefill, 0.82),
    "again": Kind("computed again, after a preemption", COLORS.preempted, 0.82, "/"),
    "decode": Kind("one output token", COLORS.decode, 0.42),
    "waiting": Kind("waiting", COLORS.waiting, 0.08),
}

MARKS = {
    "preempted": ("preempted", "x-thin", COLORS.preempted),
    "swapped_out": ("swapped out", "arrow-down", COLORS.budget),
    "refused": ("refused", "circle-x", COLORS.preempted),
    "aborted": ("aborted", "square-x", COLORS.ink),
    "finished": ("finished", "circle", COLORS.ink),
}


@dataclass
class Lane:
    """One request's bars, equal neighbours joined: (kind, first step, steps, tokens, words)."""

    bars: list[tuple[str, int, int, int, str]] = field(default_factory=list)
    lost: int = 0
    """Tokens below this number had been computed when a preemption threw them away."""

    def add(self, kind: str, step: int, tokens: int, text: str) -> None:
        if self.bars and kind in ("decode", "waiting"):
            last_kind, first, length, sum_, _ = self.bars[-1]
            if last_kind == kind and first + length == step:
                self.bars[-1] = (kind, first, length + 1, sum_ + tokens, text)
                return
        self.bars.append((kind, step, 1, tokens, text))


def timeline(source: Any, requests: Sequence[str] | None = None) -> go.Figure:
    """Steps from left to right, one row for each request.

    Args:
        source: a run (see `minivllm.runs.steps.steps_of`).
        requests: ids to show, in this order; None: all, in order of arrival.

    Returns:
        A figure with the step on the x axis. Thick bars are prompt tokens, hatched ones tokens that
        a preemption made necessary again, thin ones an output token, lines waiting; marks show
        preemptions and ends.

    Raises:
        ValueError: if the run has no step, or a request is not in it.
    """
    steps = steps_of(source)
    ids = check_requests(requests, arrival_order(steps))
    lanes = {request_id: Lane() for request_id in ids}
    marks: dict[str, list[tuple[int, str, str]]] = {}
    for snapshot in steps:
        _note_preemptions(snapshot, lanes, marks)
        _note_step(snapshot, lanes)

    figure = go.Figure()
    for kind, look in KINDS.items():
        bars = [(id_, bar) for id_, lane in lanes.items() for bar in lane.bars if bar[0] == kind]
        if not bars:
            continue
        figure.add_bar(
            orientation="h",
            y=[id_ for id_, _ in bars],
            x=[length for _, (_, _, length, _, _) in bars],
            base=[first - 0.5 for _, (_, first, *_) in bars],
            width=look.width,
            name=look.name,
            marker={
                "color": look.color,
                "pattern": {"shape": look.pattern, "fillmode": "overlay", "fgcolor": COLORS.paper},
                "line": {"width": 0.5, "color": COLORS.paper},
            },
            customdata=[
                (_span(first, length), _tokens(kind, tokens, text))
                for _, (_, first, length, tokens, text) in bars
            ],
            hovertemplate="%{y}, %{customdata[0]}: %{customdata[1]}<extra></extra>",
        )
    for type_, (name, symbol, color) in MARKS.items():
        points = marks.get(type_, [])
        if points:
            figure.add_scatter(
                x=[step + (0.5 if type_ == "finished" else 0) for step, _, _ in points],
                y=[id_ for _, id_, _ in points],
                mode="markers",
                name=name,
                marker={
                    "symbol": symbol,
                    "size": 7 if type_ == "finished" else 12,
                    "color": color,
                    "line": {"width": 2.5 if symbol.endswith("-thin") else 1, "color": color},
                },
                customdata=[(step, text) for step, _, text in points],
                hovertemplate="%{y}, step %{customdata[0]}: %{customdata[1]}<extra></extra>",
            )
    preemptions = len(marks.get("preempted", []))
    first, last = steps[0]["step"], steps[-1]["step"]
    figure.update_layout(
        title={"text": "Who computes what in each step"},
        barmode="overlay",
        bargap=0,
        xaxis={
            "title": {"text": "step"},
            "dtick": tick(len(steps)),
            "range": [first - 0.6, last + 0.9],
        },
        yaxis=request_axis(ids),
        height=max(260, min(150 + 30 * len(ids), 1600)),
        meta={
            "alt": f"Timeline of {plural(len(ids), 'request')} over {plural(len(steps), 'step')}, "
            f"with {plural(preemptions, 'preemption')}: one row for each request, thick bars for "
            f"prompt tokens, thin bars for output tokens."
        },
    )
    return figure


def _note_preemptions(
    snapshot: Snapshot, lanes: dict[str, Lane], marks: dict[str, list[tuple[int, str, str]]]
) -> None:
    for event in snapshot["events"]:
        type_, id_ = event["type"], event.get("request_id")
        if id_ not in lanes or type_ not in MARKS:
            continue
        text = MARKS[type_][0]
        if type_ == "preempted":
            if event["mode"] == "recompute":
                lane = lanes[id_]
                lane.lost = max(lane.lost, event["num_computed_tokens"])
            text = (
                f"preempted for {event['for_request_id']}, {event['num_freed_blocks']} blocks freed"
            )
        elif type_ == "refused":
            text = f"refused: {event['reason']}"
        elif type_ == "finished":
            text = f"finished ({event['reason']})"
        marks.setdefault(type_, []).append((snapshot["step"], id_, text))


def _note_step(snapshot: Snapshot, lanes: dict[str, Lane]) -> None:
    step = snapshot["step"]
    for id_ in snapshot["waiting"]:
        if id_ in lanes:
            lanes[id_].add("waiting", step, 0, "")
    for row in snapshot["scheduled"]:
        id_, tokens = row["request_id"], row["num_scheduled_tokens"]
        if id_ not in lanes:
            continue
        request, lane = snapshot["requests"][id_], lanes[id_]
        start = request["num_computed_tokens"] - tokens
        again = max(min(lane.lost, request["num_computed_tokens"]) - start, 0)
        if again:
            lane.add("again", step, tokens, f", {again} of them computed before")
        elif tokens == 1 and start >= request["num_prompt_tokens"]:
            lane.add("decode", step, 1, "")
        else:
            lane.add("prompt", step, tokens, f" of {request['num_prompt_tokens']} in the prompt")


def _span(first: int, length: int) -> str:
    return f"step {first}" if length == 1 else f"steps {first} to {first + length - 1}"


def _tokens(kind: str, tokens: int, text: str) -> str:
    if kind == "waiting":
        return "waits"
    if kind == "decode":
        return plural(tokens, "output token")
    return f"{plural(tokens, 'token')}{text}"
