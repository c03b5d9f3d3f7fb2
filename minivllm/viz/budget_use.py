"""Where each step's token budget went."""

from __future__ import annotations

from typing import Any

from minivllm.runs.steps import arrival_order, plural, steps_of, tick
from minivllm.viz.charts import go
from minivllm.viz.palette import request_color, request_pattern
from minivllm.viz.theme import COLORS

CAP_WORDS = {
    "gap": "all that it lacked",
    "long_prefill_token_threshold": "bounded by long_prefill_token_threshold",
    "max_num_batched_tokens": "bounded by the budget",
    "max_model_len": "bounded by max_model_len",
}


def budget_use(source: Any, first_step: int = 0) -> go.Figure:
    """Each step's tokens, stacked by request in the order of scheduling, up to the budget.

    Args:
        source: a run (see `minivllm.runs.steps.steps_of`).
        first_step: leave out what came before.

    Returns:
        A figure with a step on the x axis and tokens on the y axis; hovering names the cap that
        bound each request.

    Raises:
        ValueError: if no step is left to show.
    """
    every = steps_of(source)
    steps = every[first_step:]
    if not steps or first_step < 0:
        raise ValueError(f"the run has {plural(len(every), 'step')}, none from {first_step} on")
    budget = steps[0]["budget"]["max_num_batched_tokens"]
    order = arrival_order(every)

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
            y=[row["num_scheduled_tokens"] for _, row in grants],
            customdata=[CAP_WORDS.get(row["cap"], row["cap"]) for _, row in grants],
            name=request_id,
            marker={
                "color": request_color(index),
                "pattern": {"shape": request_pattern(index) or ("", "/", "x", ".")[index % 4]},
            },
            hovertemplate=f"step %{{x}}, {request_id}: %{{y}} tokens, %{{customdata}}"
            "<extra></extra>",
        )
    figure.add_hline(
        y=budget,
        line={"color": COLORS.budget, "dash": "dash"},
        annotation={"text": f"budget: {budget}", "font": {"color": COLORS.budget}},
    )
    figure.update_layout(
        barmode="stack",
        xaxis={"title": {"text": "step"}, "dtick": tick(len(steps))},
        yaxis={"title": {"text": "tokens computed"}, "range": [0, budget * 1.15]},
        legend={"orientation": "h", "y": -0.25, "yanchor": "top"},
        height=380,
        meta={
            "alt": f"The tokens of {plural(len(steps), 'step')}, stacked by request, under a "
            f"budget of {budget}; at most {max(s['budget']['spent'] for s in steps)} are spent."
        },
    )
    return figure
