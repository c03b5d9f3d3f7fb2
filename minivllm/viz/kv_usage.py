"""What the blocks hold, step by step."""

from __future__ import annotations

from typing import Any

from minivllm.runs.steps import plural, steps_of, tick
from minivllm.viz.charts import go
from minivllm.viz.theme import COLORS, filled

STATES = (
    # name, letters of the snapshot's block states, colour, pattern
    ("in use, full", "fc", COLORS.prefill, ""),
    ("in use, partly filled", "p", COLORS.decode, "."),
    ("free, still cached", "e", COLORS.cached, "/"),
    ("free, empty", ".", COLORS.free, ""),
)


def kv_usage(source: Any) -> go.Figure:
    """The block pool over the steps, stacked by what the blocks are good for.

    Args:
        source: a run (see `minivllm.runs.steps.steps_of`).

    Returns:
        A figure with the step on the x axis and blocks on the y axis; marks show preemptions, a
        line the blocks in the CPU pool if there are any.

    Raises:
        ValueError: if the run has no step.
    """
    steps = steps_of(source)
    x = [snapshot["step"] for snapshot in steps]
    totals = [len(snapshot["blocks"]["state"]) - 1 for snapshot in steps]
    figure = go.Figure()
    for name, letters, color, pattern in STATES:
        counts = [sum(map(snapshot["blocks"]["state"].count, letters)) for snapshot in steps]
        if not any(counts):
            continue
        figure.add_bar(
            x=x,
            y=counts,
            name=name,
            marker=filled(color, pattern),
            customdata=totals,
            hovertemplate=f"step %{{x}}: %{{y}} of %{{customdata}} blocks {name}<extra></extra>",
        )
    if any(snapshot["cpu_blocks"]["num_blocks"] for snapshot in steps):
        held = [sum(o is not None for o in s["cpu_blocks"]["owners"]) for s in steps]
        # Twice: a rim in the page's colour keeps the line apart from the bars below it.
        for color, width, top in ((COLORS.paper, 6, False), (COLORS.budget, 2.5, True)):
            figure.add_scatter(
                x=x,
                y=held,
                name="in the CPU pool",
                mode="lines",
                line={"color": color, "width": width, "shape": "hvh"},
                showlegend=top,
                hoverinfo=None if top else "skip",
                hovertemplate="step %{x}: %{y} blocks in the CPU pool<extra></extra>"
                if top
                else None,
            )
    victims = [
        (snapshot["step"], event, total)
        for snapshot, total in zip(steps, totals)
        for event in snapshot["events"]
        if event["type"] == "preempted"
    ]
    if victims:
        figure.add_scatter(
            x=[step for step, _, _ in victims],
            y=[total for _, _, total in victims],
            mode="markers",
            name="preemption",
            marker={
                "symbol": "x-thin", "size": 11, "color": COLORS.preempted,
                "line": {"width": 3, "color": COLORS.preempted},
            },
            customdata=[(e["request_id"], e["num_freed_blocks"]) for _, e, _ in victims],
            hovertemplate="step %{x}: %{customdata[0]} is preempted, %{customdata[1]} blocks freed"
            "<extra></extra>",
            cliponaxis=False,
        )  # fmt: skip
    most = max(s["stats"]["kv_cache_usage"] for s in steps)
    figure.update_layout(
        title={"text": "What the KV cache's blocks hold"},
        barmode="stack",
        bargap=0,
        xaxis={"title": {"text": "step"}, "dtick": tick(len(steps))},
        yaxis={"title": {"text": "blocks"}, "range": [0, max(totals) * 1.06]},
        height=400,
        meta={
            "alt": f"Blocks of the KV cache over {plural(len(steps), 'step')}, stacked: full, "
            f"partly filled, cached and free. At most {most:.0%} of {max(totals)} blocks are in "
            f"use, with {plural(len(victims), 'preemption')}."
        },
    )
    return figure
