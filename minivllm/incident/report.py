"""A verdict as one HTML page with figures, that needs no network."""

from __future__ import annotations

import html
from collections.abc import Sequence

import plotly.graph_objects as go

from minivllm.incident.ledger import RESOURCES, Ledger, Step
from minivllm.incident.verdict import Verdict, knob_of, told
from minivllm.incident.what_if import METRICS, Prediction
from minivllm.sim.report import page, plain, slot, table
from minivllm.sim.results import percentile
from minivllm.viz.theme import COLORS

MAX_POINTS = 2_000
"""Of a line or a cloud: more cannot be told apart."""

NUM_BUCKETS = 120

BOUND_COLORS = {
    "tokens": COLORS.budget,
    "seats": COLORS.prefill,
    "blocks": COLORS.preempted,
    "threshold": COLORS.waiting,
    "cadence": COLORS.accent,
}


def thinned(steps: Sequence[Step]) -> Sequence[Step]:
    """At most `MAX_POINTS` of them, evenly."""
    return steps[:: -(-len(steps) // MAX_POINTS)] if steps else steps


def load_figure(ledger: Ledger) -> go.Figure:
    """Requests running and waiting, and the share of blocks in use, over time."""
    steps = thinned(ledger.timed())
    times = [step.start for step in steps]
    figure = go.Figure()
    for name, values, color, axis in (
        ("running", [step.num_running for step in steps], COLORS.decode, "y"),
        ("waiting", [step.num_waiting for step in steps], COLORS.waiting, "y"),
        ("blocks used (%)", [100 * step.usage for step in steps], COLORS.cached, "y2"),
    ):
        figure.add_scatter(
            x=times, y=values, name=name, mode="lines", yaxis=axis,
            line={"color": color, "width": 2, "shape": "hv"},
        )  # fmt: skip
    figure.update_layout(
        title={"text": "Requests and blocks over time"},
        xaxis={"title": {"text": "seconds since the recording began"}},
        yaxis={"title": {"text": "requests"}, "rangemode": "tozero"},
        yaxis2={"title": {"text": "blocks used (%)"}, "overlaying": "y", "side": "right",
                "range": [0, 100], "showgrid": False},
        meta={"alt": "Requests running and waiting, and the share of KV blocks in use, over time."},
    )  # fmt: skip
    return figure


def bound_figure(ledger: Ledger) -> go.Figure:
    """Of each stretch of time, how much of it each resource was short."""
    steps = ledger.timed()
    first, last = steps[0].start, steps[-1].end
    width = max((last - first) / NUM_BUCKETS, 1e-6)
    seconds = {resource: [0.0] * (NUM_BUCKETS + 1) for resource in RESOURCES}
    for step in steps:
        for resource in step.bound:
            seconds[resource][int((step.start - first) / width)] += step.seconds
    figure = go.Figure()
    for resource, values in seconds.items():
        if any(values):
            figure.add_bar(
                x=[first + (i + 0.5) * width for i in range(len(values))],
                y=[100 * value / width for value in values],
                name=f"{resource} ({knob_of(resource, ledger.replay.config)})", width=width,
                marker={"color": BOUND_COLORS[resource]},
            )  # fmt: skip
    figure.update_layout(
        title={"text": "What was short, and when"},
        barmode="stack",
        xaxis={"title": {"text": "seconds since the recording began"}},
        yaxis={"title": {"text": "time in steps that it bound (%)"}, "rangemode": "tozero"},
        meta={"alt": "Share of the time in which tokens, seats, blocks or the threshold bound."},
    )
    return figure


def steps_figure(ledger: Ledger) -> go.Figure:
    """What steps took, against the tokens that they computed."""
    figure = go.Figure()
    timed = ledger.timed()
    for name, decodes, color in (
        ("decodes alone", True, COLORS.decode),
        ("with prompts", False, COLORS.prefill),
    ):
        steps = thinned([s for s in timed if (s.load.num_tokens == s.load.num_reqs) == decodes])
        figure.add_scatter(
            x=[step.load.num_tokens for step in steps],
            y=[1000 * step.seconds for step in steps],
            customdata=[step.step for step in steps],
            mode="markers", name=name, marker={"color": color, "size": 5, "opacity": 0.6},
            hovertemplate="step %{customdata}: %{x} tokens, %{y:.1f} ms<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        title={"text": "What a step took"},
        xaxis={"title": {"text": "tokens computed in the step"}, "type": "log"},
        yaxis={"title": {"text": "milliseconds"}, "rangemode": "tozero"},
        meta={"alt": "Milliseconds of each step against the tokens that it computed."},
    )
    return figure


def latency_figure(ledger: Ledger) -> go.Figure:
    """How many requests waited at most how long."""
    shares = [i / 2 for i in range(201)]
    figure = go.Figure()
    for name, values, color in (
        ("time to first token", [s.ttft for s in ledger.served], COLORS.prefill),
        ("longest gap between tokens", [s.max_itl for s in ledger.served], COLORS.decode),
        ("end to end", [s.e2e for s in ledger.served], COLORS.accent),
    ):
        ordered = sorted(values)
        figure.add_scatter(
            x=[percentile(ordered, share) for share in shares], y=shares, name=name, mode="lines",
            line={"color": color, "width": 2},
        )  # fmt: skip
    figure.update_layout(
        title={"text": "Latencies of the requests"},
        xaxis={"title": {"text": "seconds"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "requests that waited no longer (%)"}, "range": [0, 100]},
        meta={"alt": "Percentiles of time to first token, longest gap and end-to-end time."},
    )
    return figure


def what_if_figure(predictions: Sequence[Prediction]) -> go.Figure:
    """Mean latencies under each configuration, the first being as it was."""
    figure = go.Figure()
    for metric, color in zip(METRICS, (COLORS.prefill, COLORS.decode, COLORS.accent)):
        figure.add_bar(
            x=[prediction.name for prediction in predictions],
            y=[100 * p.means[metric] / predictions[0].means[metric] for p in predictions],
            name=f"mean {metric.upper()}", marker={"color": color},
        )  # fmt: skip
    figure.update_layout(
        title={"text": "What if: mean latencies, the configuration as it was being 100"},
        yaxis={"title": {"text": "% of the configuration as it was"}, "rangemode": "tozero"},
        meta={"alt": "Predicted mean latencies under other knobs, relative to the recorded ones."},
    )
    return figure


def report(verdict: Verdict, replayed: str, predictions: Sequence[Prediction] = ()) -> str:
    """The verdict as a page.

    Args:
        verdict: what was found.
        replayed: how many steps were identical, in words.
        predictions: what-ifs that were asked for, the configuration as it was first.
    """
    ledger = verdict.ledger
    parts = [f"<pre>{html.escape(replayed)}</pre>"]
    figures = []
    if ledger.timed() and ledger.served:
        drawn = [load_figure(ledger), bound_figure(ledger), steps_figure(ledger),
                 latency_figure(ledger)]  # fmt: skip
        asked = [p for p in (predictions, verdict.tried) if len(p) > 1 and p[0].means["itl"] > 0]
        drawn += map(what_if_figure, asked)
        figures = [plain(figure) for figure in drawn]
    parts += ["<h2>Verdict</h2>", f"<pre>{html.escape(told(verdict))}</pre>"]
    parts += [slot(index, figure) for index, figure in enumerate(figures)]
    knobs = ledger.replay.config.to_dict().items()
    parts += [
        "<h2>The server's knobs</h2>",
        table(["knob", "value"], ([k, str(v)] for k, v in knobs)),
    ]
    return page(f"What happened: {ledger.recording.name}", parts, figures)
