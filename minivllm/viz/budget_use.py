"""Where each step's token budget went."""

from __future__ import annotations

import plotly.graph_objects as go

from minivllm.core.snapshot import History
from minivllm.viz.palette import request_color, request_pattern
from minivllm.viz.theme import COLORS


def budget_use(history: History, first_step: int = 0) -> go.Figure:
    """Each step's tokens, stacked by request in the order of scheduling, up to the budget.

    Args:
        history: the recorded run.
        first_step: leave out what came before.

    Returns:
        A figure with a step on the x axis and tokens on the y axis; hovering names the cap that
        bound each request.

    Raises:
        ValueError: if no step is left to show.
    """
    steps = history.steps[first_step:]
    if not steps:
        raise ValueError(f"the history has {len(history)} steps, none from {first_step} on")
    budget = steps[0]["budget"]["max_num_batched_tokens"]
    order: dict[str, int] = {}
    for snapshot in history.steps:
        for item in snapshot["inputs"]:
            if item["type"] == "add":
                order.setdefault(item["request"]["request_id"], len(order))

    figure = go.Figure()
    for request_id, index in order.items():
        grants = [
            (snapshot["step"], row)
            for snapshot in steps
            for row in snapshot["scheduled"]
            if row["request_id"] == request_id
        ]
        if not grants:
            continue
        figure.add_bar(
            x=[step for step, _ in grants],
            y=[row["num_new_tokens"] for _, row in grants],
            customdata=[row["cap"] for _, row in grants],
            name=request_id,
            marker={
                "color": request_color(index),
                "pattern": {"shape": request_pattern(index) or ("", "/", "x", ".")[index % 4]},
            },
            hovertemplate=f"step %{{x}}, {request_id}: %{{y}} tokens, bound by %{{customdata}}"
            "<extra></extra>",
        )
    figure.add_hline(
        y=budget,
        line={"color": COLORS.budget, "dash": "dash"},
        annotation={"text": f"budget: {budget}", "font": {"color": COLORS.budget}},
    )
    figure.update_layout(
        barmode="stack",
        xaxis={"title": {"text": "step"}, "dtick": max(1, round(len(steps) / 10))},
        yaxis={"title": {"text": "tokens computed"}, "range": [0, budget * 1.15]},
        legend={"orientation": "h", "y": -0.25, "yanchor": "top"},
        height=380,
    )
    return figure
