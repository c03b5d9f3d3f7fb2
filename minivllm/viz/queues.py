"""How many wait and how many run, step by step."""

from __future__ import annotations

from typing import Any

from minivllm.runs.steps import plural, steps_of, tick
from minivllm.viz.charts import go
from minivllm.viz.theme import COLORS


def queues(source: Any, max_num_seqs: int | None = None) -> go.Figure:
    """The lengths of WAITING and RUNNING, and the batch.

    Args:
        source: a run (see `minivllm.runs.steps.steps_of`).
        max_num_seqs: drawn as a limit; None: taken from the run if it says so.

    Returns:
        A figure with the step on the x axis and requests on the y axis.

    Raises:
        ValueError: if the run has no step.
    """
    steps = steps_of(source)
    if max_num_seqs is None:
        config = getattr(source, "config", None) or (
            source.get("config") if isinstance(source, dict) else None
        )
        max_num_seqs = getattr(config, "max_num_seqs", None) or (
            config.get("max_num_seqs") if isinstance(config, dict) else None
        )
    x = [snapshot["step"] for snapshot in steps]
    series: tuple[tuple[str, list[int], str, str, str], ...] = (
        ("running", [len(s["running"]) for s in steps], COLORS.decode, "solid", "circle"),
        ("waiting", [len(s["waiting"]) for s in steps], COLORS.waiting, "dash", "square"),
        ("scheduled", [len(s["scheduled"]) for s in steps], COLORS.prefill, "dot", "diamond"),
    )
    if series[2][1] == series[0][1]:
        series = series[:2]  # everyone who runs got tokens: the line would lie on the other
    figure = go.Figure()
    for name, y, color, dash, symbol in series:
        figure.add_scatter(
            x=x,
            y=y,
            name=name,
            mode="lines+markers" if len(steps) <= 60 else "lines",
            line={"color": color, "dash": dash, "shape": "hvh", "width": 2.5},
            marker={"symbol": symbol, "size": 6},
            hovertemplate=f"step %{{x}}: %{{y}} {name}<extra></extra>",
        )
    most = max(max(y) for _, y, *_ in series)
    if max_num_seqs is not None and max_num_seqs <= 2 * max(most, 1):
        figure.add_hline(
            y=max_num_seqs,
            line={"color": COLORS.budget, "dash": "dash"},
            annotation={
                "text": f"max_num_seqs: {max_num_seqs}",
                "font": {"color": COLORS.budget},
            },
        )
        most = max(most, max_num_seqs)
    longest = max(len(s["waiting"]) for s in steps)
    figure.update_layout(
        title={"text": "How many requests run, and how many wait"},
        xaxis={"title": {"text": "step"}, "dtick": tick(len(steps))},
        yaxis={"title": {"text": "requests"}, "range": [0, most * 1.15 + 0.2], "tickformat": "d"},
        height=360,
        meta={
            "alt": f"Queue lengths over {plural(len(steps), 'step')}: at most "
            f"{max(series[0][1])} requests run and {longest} wait."
        },
    )
    return figure
