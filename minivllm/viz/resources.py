"""The three scarce resources of a step, one above the other."""

from __future__ import annotations

from typing import Any

from minivllm.runs.snapshot import Snapshot
from minivllm.runs.steps import plural, steps_of, tick
from minivllm.viz.charts import go, make_subplots
from minivllm.viz.theme import COLORS, filled

ROWS = (
    ("tokens", ("max_num_batched_tokens", "enable_chunked_prefill")),
    ("seats", ("max_num_seqs",)),
    ("blocks", ("num_gpu_blocks",)),
)
"""Each resource, and the reasons for which it ends a step's admission."""


def resource_use(source: Any, max_num_seqs: int | None = None) -> go.Figure:
    """What each step took of the tokens, the seats and the blocks.

    Args:
        source: a run (see `minivllm.runs.steps.steps_of`).
        max_num_seqs: the seats that there are; None: taken from the run.

    Returns:
        Three panels with the step on a common x axis, each up to its limit (dashed). A hatched bar
        is a step in which this resource, and no other, kept the head of the queue waiting.

    Raises:
        ValueError: if the run has no step, or does not say how many seats there are.
    """
    steps = steps_of(source)
    if max_num_seqs is None:
        history = getattr(source, "history", source)
        max_num_seqs = getattr(getattr(history, "config", None), "max_num_seqs", None)
    if max_num_seqs is None:
        raise ValueError("the run does not tell its max_num_seqs: give it")
    num_blocks = len(steps[0]["blocks"]["state"]) - 1
    limits = {
        "tokens": steps[0]["budget"]["max_num_batched_tokens"],
        "seats": max_num_seqs,
        "blocks": num_blocks,
    }
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    for row, (name, reasons) in enumerate(ROWS, start=1):
        _add_panel(figure, row, name, limits[name], reasons, steps)
    figure.update_xaxes(dtick=tick(len(steps)))
    figure.update_xaxes(title={"text": "step"}, row=3, col=1)
    stops = [reason for snapshot in steps if (reason := _stopped_by(snapshot))]
    figure.update_layout(
        title={"text": "Tokens, seats and blocks in each step"},
        barmode="stack",
        bargap=0.15,
        height=460,
        legend={"orientation": "h", "y": -0.16, "yanchor": "top"},
        meta={
            "alt": f"Tokens, seats and blocks taken in {plural(len(steps), 'step')}, each under "
            f"its limit; in {len(stops)} of them one was too short to admit the next request."
        },
    )
    return figure


def taken(snapshot: Snapshot, name: str) -> int:
    """How much of a resource, `tokens`, `seats` or `blocks`, is in use after a step's plan."""
    if name == "tokens":
        return snapshot["budget"]["spent"]
    if name == "seats":
        return len(snapshot["running"])
    return len(snapshot["blocks"]["state"]) - 1 - len(snapshot["blocks"]["free_queue"])


def _stopped_by(snapshot: Snapshot) -> str:
    """Why admission stopped in a step; '' if it did not."""
    for event in snapshot["events"]:
        if event["type"] == "admission_stopped":
            return str(event["reason"])
    return ""


def _add_panel(
    figure: go.Figure,
    row: int,
    name: str,
    limit: int,
    reasons: tuple[str, ...],
    steps: list[Snapshot],
) -> None:
    stopped = [_stopped_by(snapshot) in reasons for snapshot in steps]
    looks = (
        ("enough for all who wait", False, filled(COLORS.prefill)),
        ("too short for the next in line", True, filled(COLORS.preempted, "/")),
    )
    for label, wanted, marker in looks:
        figure.add_bar(
            x=[s["step"] for s, stop in zip(steps, stopped, strict=True) if stop == wanted],
            y=[taken(s, name) for s, stop in zip(steps, stopped, strict=True) if stop == wanted],
            name=label,
            legendgroup=label,
            showlegend=row == 1,
            marker=marker,
            hovertemplate=f"step %{{x}}: %{{y}} of {limit} {name}<extra></extra>",
            row=row,
            col=1,
        )
    figure.add_hline(y=limit, line={"color": COLORS.budget, "dash": "dash"}, row=row, col=1)
    figure.update_yaxes(
        title={"text": name}, range=[0, limit * 1.12], tickvals=[0, limit], row=row, col=1
    )
