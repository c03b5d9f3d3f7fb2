"""Tokens known and tokens computed, step by step: the race that the scheduler runs."""

from __future__ import annotations

import plotly.graph_objects as go

from minivllm.core.snapshot import History
from minivllm.viz.theme import COLORS


def two_numbers(history: History, request_id: str) -> go.Figure:
    """How a request's `num_computed_tokens` catches up with its `num_tokens`.

    Args:
        history: the recorded run.
        request_id: one of its requests.

    Returns:
        A figure with a step on the x axis and tokens on the y axis. Bars show the tokens of
        each step, prompt and output told apart by colour and by pattern.

    Raises:
        ValueError: if the request is in no step.
    """
    steps, known, computed, prompt, output = [], [], [], [], []
    for snapshot in history.steps:
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
    if not steps:
        raise ValueError(f"request {request_id!r} is in no step of the history")

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
        xaxis={"title": {"text": "step"}, "dtick": _tick(len(steps))},
        yaxis={"title": {"text": "tokens"}, "rangemode": "tozero"},
        legend={"orientation": "h", "y": -0.25, "yanchor": "top"},
        height=440,
    )
    return figure


def _sums(first: list[int], second: list[int]) -> list[int]:
    return [a + b for a, b in zip(first, second, strict=True)]


def _tick(num_steps: int) -> int:
    """Steps between two labels: about ten labels in all."""
    return max(1, round(num_steps / 10))
