"""Tokens known and tokens computed, step by step: the race that the scheduler runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minivllm.runs.snapshot import Snapshot
from minivllm.runs.steps import arrival_order, check_requests, plural, steps_of, tick
from minivllm.viz.charts import go
from minivllm.viz.palette import request_color, request_dash, request_symbol
from minivllm.viz.theme import COLORS


def two_numbers(source: Any, request_id: str | None = None) -> go.Figure:
    """How `num_computed_tokens` catches up with `num_tokens`.

    Args:
        source: a run (see `minivllm.runs.steps.steps_of`).
        request_id: one of its requests; None: all of them, two lines each.

    Returns:
        A figure with a step on the x axis and tokens on the y axis. Of one request, bars show the
        tokens of each step, prompt and output told apart by colour and by pattern.

    Raises:
        ValueError: if the run has no step, or the request is in none.
    """
    snapshots = steps_of(source)
    if request_id is None:
        return _all_requests(snapshots)
    check_requests([request_id], arrival_order(snapshots))
    steps, known, computed, prompt, output = [], [], [], [], []
    for snapshot in snapshots:
        row = snapshot["requests"].get(request_id)
        if row is None:
            continue
        steps.append(snapshot["step"])
        known.append(row["num_tokens"])
        computed.append(row["num_computed_tokens"])
        scheduled = row["num_scheduled_tokens"]
        start = row["num_computed_tokens"] - scheduled
        in_prompt = max(min(row["num_prompt_tokens"] - start, scheduled), 0)
        prompt.append(in_prompt)
        output.append(scheduled - in_prompt)
    if not steps:  # refused, or aborted before a step
        raise ValueError(f"request {request_id!r} was in no queue after any step")

    base = [done - new for done, new in zip(computed, _sums(prompt, output), strict=True)]
    figure = go.Figure()
    figure.add_bar(
        x=steps, y=prompt, base=base, name="computed in this step: prompt",
        marker={"color": COLORS.prefill},
        hovertemplate="step %{x}: %{y} prompt tokens<extra></extra>",
    )  # fmt: skip
    figure.add_bar(
        x=steps, y=output, base=[b + p for b, p in zip(base, prompt, strict=True)],
        name="computed in this step: output",
        marker={"color": COLORS.decode, "pattern": {"shape": "/"}},
        hovertemplate="step %{x}: %{y} output token<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=steps, y=known, name="num_tokens (known)", mode="lines+markers",
        line={"color": COLORS.ink, "shape": "hv", "dash": "dot"}, marker={"size": 6},
        hovertemplate="step %{x}: %{y} tokens known<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=steps, y=computed, name="num_computed_tokens", mode="lines+markers",
        line={"color": COLORS.budget, "shape": "hv"},
        marker={"size": 7, "symbol": "diamond"},
        hovertemplate="step %{x}: %{y} tokens computed<extra></extra>",
    )  # fmt: skip
    figure.update_layout(
        barmode="overlay",
        xaxis={"title": {"text": "step"}, "dtick": tick(len(steps))},
        yaxis={"title": {"text": "tokens"}, "rangemode": "tozero"},
        legend={"orientation": "h", "y": -0.25, "yanchor": "top"},
        height=440,
        meta={
            "alt": f"Known and computed tokens of {request_id} over {plural(len(steps), 'step')}: "
            f"{computed[-1]} of {known[-1]} are computed at the end."
        },
    )
    return figure


def _sums(first: list[int], second: list[int]) -> list[int]:
    return [a + b for a, b in zip(first, second, strict=True)]


def _all_requests(snapshots: Sequence[Snapshot]) -> go.Figure:
    order = arrival_order(snapshots)
    figure = go.Figure()
    for request_id, index in order.items():
        rows = [
            (snapshot["step"], snapshot["requests"][request_id])
            for snapshot in snapshots
            if request_id in snapshot["requests"]
        ]
        if not rows:
            continue
        x, color = [step for step, _ in rows], request_color(index)
        figure.add_scatter(
            x=x,
            y=[row["num_tokens"] for _, row in rows],
            name=f"{request_id}, known",
            legendgroup=request_id,
            showlegend=False,
            mode="lines",
            line={"color": color, "shape": "hv", "dash": "dot", "width": 1.5},
            hovertemplate=f"step %{{x}}: {request_id} has %{{y}} known tokens<extra></extra>",
        )
        figure.add_scatter(
            x=x,
            y=[row["num_computed_tokens"] for _, row in rows],
            name=request_id,
            legendgroup=request_id,
            mode="lines+markers" if len(snapshots) <= 60 else "lines",
            line={"color": color, "shape": "hv", "dash": request_dash(index), "width": 2.5},
            marker={"symbol": request_symbol(index), "size": 7},
            hovertemplate=f"step %{{x}}: {request_id} has %{{y}} computed tokens<extra></extra>",
        )
    figure.update_layout(
        title={
            "text": "Two numbers racing",
            "subtitle": {"text": "solid: computed tokens, dotted: known tokens"},
        },
        xaxis={"title": {"text": "step"}, "dtick": tick(len(snapshots))},
        yaxis={"title": {"text": "tokens"}, "rangemode": "tozero"},
        height=440,
        meta={
            "alt": f"Known and computed tokens of {plural(len(order), 'request')} over "
            f"{plural(len(snapshots), 'step')}: the computed ones climb to the known ones, rise "
            f"with them one a step, and fall to nothing at a preemption."
        },
    )
    return figure
