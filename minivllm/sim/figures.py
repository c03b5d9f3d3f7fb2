"""Figures of simulated runs: load, percentiles, memory over time, sweeps, Little's law, and error.

Rows are what `SimResult.summary` and `sweep` give; every figure names its axes' units, and says in
its description what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from minivllm.runs.steps import plural
from minivllm.sim.calibrate import JUDGED, TARGET, Calibration, Validation
from minivllm.sim.results import METRICS, SLO, LittlesLaw, SimResult, percentile
from minivllm.sim.sweep import pareto_front
from minivllm.viz.palette import REQUEST_DASHES, REQUEST_SYMBOLS
from minivllm.viz.theme import CATEGORICAL, COLORS

WORDS = {
    "output_throughput": "output tokens a second",
    "request_throughput": "requests a second",
    "goodput": "goodput (requests a second)",
    "slo_attainment": "share of requests that met the SLO",
    "rate": "arrivals a second",
    "users": "users",
}
"""Columns of a summary, in words."""


def words(column: str) -> str:
    """A column as an axis names it: `p99_ttft` is "P99 of TTFT (s)"."""
    if column in WORDS:
        return WORDS[column]
    statistic, _, metric = column.partition("_")
    if metric in METRICS and (statistic == "mean" or statistic[1:].isdigit()):
        return f"{statistic.upper() if statistic != 'mean' else 'mean'} of {METRICS[metric]} (s)"
    return column


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """A column as numbers.

    Raises:
        ValueError: if there is no row, or a row lacks it.
    """
    if not rows:
        raise ValueError("rows: there is none to draw; simulate or sweep first")
    for row in rows:
        if isinstance(row.get(name), bool) or not isinstance(row.get(name), (int, float)):
            raise ValueError(f"column {name!r} is not a number in every row; there is {list(row)}")
    return [row[name] for row in rows]


def knee(
    rows: Sequence[Mapping[str, Any]],
    throughput: str = "output_throughput",
    latency: str = "p99_itl",
) -> int:
    """Index of the row with the most throughput for its latency: the largest quotient of the two,
    which queueing theory calls the power (Kleinrock 1979).

    Raises:
        ValueError: if a column is no number, or a latency not positive.
    """
    gains, costs = _column(rows, throughput), _column(rows, latency)
    for cost in costs:
        if not cost > 0:
            raise ValueError(f"{latency} must be positive in every row, got {cost}")
    return max(range(len(rows)), key=lambda index: gains[index] / costs[index])


def load_curve(
    rows: Sequence[Mapping[str, Any]],
    *,
    x: str = "output_throughput",
    y: str = "p99_itl",
    label: str = "users",
    limit: float | None = None,
) -> go.Figure:
    """What more load buys and what it costs: a point for each load, in the order of `rows`, and the
    knee (`knee`) marked.

    Args:
        rows: one for each load.
        x: column of the throughput.
        y: column of the latency, in seconds.
        label: column that says how large the load was.
        limit: of the latency, in seconds, as a line.

    Raises:
        ValueError: if there is no row, or a column is no number in every row.
    """
    xs, ys, loads = _column(rows, x), _column(rows, y), _column(rows, label)
    best = knee(rows, x, y)
    figure = go.Figure()
    figure.add_scatter(
        x=xs, y=ys, mode="lines+markers", name="one load each",
        line={"color": COLORS.prefill, "width": 2},
        marker={"color": COLORS.prefill, "size": 8},
        customdata=loads,
        hovertemplate=f"%{{customdata}} {words(label)}: %{{x:,.4g}} {words(x)}, "
        f"{words(y)}: %{{y:.4g}}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=[xs[best]], y=[ys[best]], mode="markers", name=f"knee: {loads[best]:g} {words(label)}",
        marker={"color": COLORS.accent, "size": 15, "symbol": "diamond-open", "line": {"width": 3}},
        hovertemplate=f"the knee: {loads[best]:g} {words(label)}<extra></extra>",
    )  # fmt: skip
    if limit is not None:
        figure.add_scatter(
            x=[0, max(xs)], y=[limit, limit], mode="lines", name=f"limit: {limit:g} s",
            line={"color": COLORS.budget, "dash": "dash", "width": 2}, hoverinfo="skip",
        )  # fmt: skip
    figure.update_layout(
        title={"text": f"What each load gives, and what it costs: {words(y)}"},
        xaxis={"title": {"text": words(x)}, "rangemode": "tozero"},
        yaxis={"title": {"text": words(y)}, "rangemode": "tozero"},
        meta={
            "alt": f"{words(y)} against {words(x)} for {plural(len(xs), 'load')}: from "
            f"{ys[0]:.3g} at {xs[0]:,.0f} to {ys[-1]:.3g} at {xs[-1]:,.0f}. The knee is at "
            f"{loads[best]:g} {words(label)}: {xs[best]:,.0f} and {ys[best]:.3g}."
        },
    )
    return figure


def percentiles(
    results: SimResult | Mapping[str, SimResult],
    metric: str = "ttft",
    *,
    kind: str | None = None,
    slo: SLO | None = None,
) -> go.Figure:
    """How many requests (of `itl`: gaps) waited at most how long, one line for each run.

    Args:
        results: a run, or several by name.
        metric: `ttft`, `itl`, `tpot`, `e2e`, `queue_time`, or `max_itl` of a request.
        kind: of request; None: all. `itl` is not kept for each kind.
        slo: its limit of this metric is marked.

    Raises:
        ValueError: on an unknown metric, or a run in which nobody has waited for it.
    """
    runs = {"this run": results} if isinstance(results, SimResult) else dict(results)
    percents = [*range(90), *(90 + i / 4 for i in range(41))]
    title = METRICS.get(metric, "longest ITL")
    figure = go.Figure()
    tails = []
    for index, (name, result) in enumerate(runs.items()):
        median = result.percentile(metric, 50, kind)  # it also checks the names
        if metric == "itl":
            values = [result.itl.percentile(p) for p in percents]
        else:
            ordered = result.values(metric, kind)
            values = [percentile(ordered, p) for p in percents]
        if math.isnan(median):
            raise ValueError(f"run {name!r}: no {metric} was measured; did a request finish?")
        tails.append(f"{name}: {median:.3g} s and {values[percents.index(99)]:.3g} s")
        figure.add_scatter(
            x=values, y=[p / 100 for p in percents], mode="lines", name=name,
            line={
                "color": CATEGORICAL[index % len(CATEGORICAL)], "width": 2.5,
                "dash": REQUEST_DASHES[index % len(REQUEST_DASHES)],
            },
            hovertemplate=f"{name}: %{{y:.1%}} waited at most %{{x:.4g}} s<extra></extra>",
        )  # fmt: skip
    limit = getattr(slo, metric, None)
    if limit is not None:
        figure.add_scatter(
            x=[limit, limit], y=[0, 1], mode="lines", name=f"SLO: {limit:g} s", hoverinfo="skip",
            line={"color": COLORS.budget, "dash": "dot", "width": 2},
        )  # fmt: skip
    whose = f" of {kind}" if kind else ""
    figure.update_layout(
        title={"text": f"{title}{whose}: the share that waited at most so long"},
        xaxis={"title": {"text": f"{title} (s), logarithmic"}, "type": "log"},
        yaxis={"title": {"text": "share"}, "tickformat": ".0%", "range": [0, 1.02]},
        meta={
            "alt": f"Cumulative distribution of {title}{whose}; median and 99th percentile. "
            + "; ".join(tails)
            + "."
        },
    )
    return figure


def kv_over_time(result: SimResult) -> go.Figure:
    """The KV cache and the queue over simulated time: share of blocks in use, and requests running
    and waiting.

    Raises:
        ValueError: if no time has passed.
    """
    rows = result.timeline.to_rows()
    if not rows:
        raise ValueError("result: no time has passed; simulate a workload with requests")
    time = [row["time"] for row in rows]
    figure = go.Figure()
    for column, name, color, dash, axis, unit in (
        ("max_kv_usage", "KV cache in use", COLORS.cached, "solid", "y", ".0%"),
        ("running", "running", COLORS.decode, "dash", "y2", ".1f"),
        ("waiting", "waiting", COLORS.waiting, "dot", "y2", ".1f"),
    ):
        figure.add_scatter(
            x=time, y=[row[column] for row in rows], name=name, yaxis=axis, mode="lines",
            line={"color": color, "dash": dash, "width": 2.5},
            hovertemplate=f"%{{x:,.4g}} s: %{{y:{unit}}} {name}<extra></extra>",
        )  # fmt: skip
    preempted = [row for row in rows if row["preemptions"]]
    if preempted:
        figure.add_scatter(
            x=[row["time"] for row in preempted], y=[row["max_kv_usage"] for row in preempted],
            mode="markers", name="preemptions",
            marker={"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": COLORS.preempted}},
            customdata=[row["preemptions"] for row in preempted],
            hovertemplate="%{x:,.4g} s: %{customdata} preemptions<extra></extra>",
            cliponaxis=False,
        )  # fmt: skip
    most = max(row["max_kv_usage"] for row in rows)
    queue = max(row["waiting"] for row in rows)
    figure.update_layout(
        title={"text": "Memory and queue over simulated time"},
        xaxis={"title": {"text": "simulated time (s)"}},
        yaxis={"title": {"text": "share of blocks"}, "tickformat": ".0%", "range": [0, 1.04]},
        yaxis2={
            "title": {"text": "requests"}, "overlaying": "y", "side": "right",
            "rangemode": "tozero", "showgrid": False, "tickmode": "auto",
        },
        meta={
            "alt": "KV cache, running and waiting requests over simulated time, "
            f"{time[-1]:,.0f} seconds. "
            f"At most {most:.0%} of the blocks are in use and {queue:,.0f} requests wait; "
            f"{plural(sum(row['preemptions'] for row in rows), 'preemption')}."
        },
    )  # fmt: skip
    return figure


def pareto(
    rows: Sequence[dict[str, Any]],
    x: str = "goodput",
    y: str = "p99_ttft",
    *,
    label: Sequence[str] = (),
    **better: bool,
) -> go.Figure:
    """Every point of a sweep, and the front that no other point beats in both columns.

    Args:
        rows: what `sweep` returned.
        x: a column; more of it is better unless `more_x=False`.
        y: a column; less of it is better unless `more_y=True`.
        label: columns that tell the points apart when hovered.

    Raises:
        ValueError: if there is no row, or a column is no number in every row.
    """
    _column(rows, x), _column(rows, y)
    front = pareto_front(rows, x, y, **better)

    def say(some: Sequence[dict[str, Any]]) -> list[str]:
        return [", ".join(f"{name} {row.get(name)}" for name in label) for row in some]

    figure = go.Figure()
    for some, name, style in (
        (
            rows, "a point of the sweep",
            {"mode": "markers", "marker": {
                "color": COLORS.waiting, "size": 9, "symbol": "circle-open", "line": {"width": 2},
            }},
        ),
        (
            front, "not beaten in both",
            {"mode": "lines+markers", "line": {"color": COLORS.prefill, "width": 2},
             "marker": {"color": COLORS.prefill, "size": 10, "symbol": "diamond"}},
        ),
    ):  # fmt: skip
        figure.add_scatter(
            x=[row[x] for row in some], y=[row[y] for row in some], name=name,
            customdata=say(some),
            hovertemplate=f"%{{customdata}}: %{{x:.4g}} {words(x)}, {words(y)} %{{y:.4g}}"
            "<extra></extra>",
            **style,
        )  # fmt: skip
    ends = f"from {say(front[:1])[0]} to {say(front[-1:])[0]}" if label else ""
    figure.update_layout(
        title={"text": f"{words(y)} against {words(x)}"},
        xaxis={"title": {"text": words(x)}},
        yaxis={"title": {"text": words(y)}, "rangemode": "tozero"},
        meta={
            "alt": f"{plural(len(rows), 'point')} of a sweep, {words(y)} against {words(x)}; "
            f"{plural(len(front), 'point')} no other beats in both {ends}".rstrip()
            + "."
        },
    )
    return figure


def littles_law(laws: Mapping[str, LittlesLaw]) -> go.Figure:
    """L, counted, against λ W, from the requests' own times: each run on the line where they agree,
    with the 95 % interval of the difference.

    Args:
        laws: `SimResult.littles_law()` by the run's name.

    Raises:
        ValueError: if there is none.
    """
    if not laws:
        raise ValueError("laws: there is none to draw; give {name: result.littles_law()}")
    most = 1.08 * max(max(law.L, law.lam * law.W) for law in laws.values())
    figure = go.Figure()
    figure.add_scatter(
        x=[0, most], y=[0, most], mode="lines", name="L = λ W", hoverinfo="skip",
        line={"color": COLORS.muted, "dash": "dash", "width": 1.5},
    )  # fmt: skip
    for index, (name, law) in enumerate(laws.items()):
        color = CATEGORICAL[index % len(CATEGORICAL)]
        figure.add_scatter(
            x=[law.lam * law.W], y=[law.L], mode="markers", name=name,
            marker={
                "color": color, "size": 11, "symbol": REQUEST_SYMBOLS[index % len(REQUEST_SYMBOLS)],
            },
            error_y={"type": "data", "array": [law.half_width], "color": color, "thickness": 1.5},
            hovertemplate=f"{name}: λ = {law.lam:.3g}/s, W = {law.W:.3g} s, λ W = %{{x:.4g}}, "
            "L = %{y:.4g}<extra></extra>",
        )  # fmt: skip
    furthest = max(laws.values(), key=lambda law: abs(law.difference) / law.L)
    figure.update_layout(
        title={"text": "Little's law, each side measured by itself"},
        xaxis={"title": {"text": "λ W (requests)"}, "range": [0, most]},
        yaxis={"title": {"text": "L (requests)"}, "range": [0, most]},
        meta={
            "alt": f"L against λ W for {plural(len(laws), 'run')}, all close to the diagonal; the "
            f"furthest is {abs(furthest.difference) / furthest.L:.1%} off it."
        },
    )
    return figure


def predicted_measured(calibration: Calibration) -> go.Figure:
    """A calibration's means of TTFT and ITL: above, predicted against measured; below, by how much
    the prediction is off, with the band that this project allows itself. Filled: held out of the
    fit.
    """
    every = [row for row in (*calibration.training, *calibration.held_out) if row.metric in JUDGED]
    low = 0.7 * min(min(row.measured, row.predicted) for row in every)
    high = 1.4 * max(max(row.measured, row.predicted) for row in every)
    figure = go.Figure()

    def line(y: list[float], name: str, axis: str, color: str, *, legend: bool) -> None:
        figure.add_scatter(
            x=[low, high], y=y, mode="lines", name=name, yaxis=axis, hoverinfo="skip",
            line={"color": color, "dash": "dash", "width": 1.5}, showlegend=legend,
        )  # fmt: skip

    line([low, high], "predicted = measured", "y2", COLORS.muted, legend=False)
    line([TARGET, TARGET], f"{TARGET:.0%} off", "y", COLORS.budget, legend=True)
    line([-TARGET, -TARGET], f"{TARGET:.0%} off", "y", COLORS.budget, legend=False)

    def add(rows: Sequence[Validation], metric: str, name: str, color: str, symbol: str) -> None:
        some = [row for row in rows if row.metric == metric]
        for axis, ys in (("y2", [row.predicted for row in some]), ("y", [r.error for r in some])):
            figure.add_scatter(
                x=[row.measured for row in some], y=ys, mode="markers", name=name, yaxis=axis,
                customdata=[(row.name, row.predicted, f"{row.error:+.1%}") for row in some],
                marker={"color": color, "symbol": symbol, "size": 10, "line": {"width": 2}},
                hovertemplate=f"%{{customdata[0]}}, {name}: measured %{{x:.3g}} s, predicted "
                "%{customdata[1]:.3g} s, %{customdata[2]}<extra></extra>",
                showlegend=axis == "y", legendgroup=name,
            )  # fmt: skip

    for metric, color, symbol in (
        ("ttft", COLORS.prefill, "circle"), ("itl", COLORS.decode, "diamond"),
    ):  # fmt: skip
        add(calibration.held_out, metric, f"{METRICS[metric]}, held out", color, symbol)
        add(calibration.training, metric, f"{METRICS[metric]}, fitted", color, f"{symbol}-open")
    worst = {metric: calibration.worst(metric) for metric in JUDGED}
    ticks = {"type": "log", "dtick": "D2", "range": [math.log10(low), math.log10(high)]}
    figure.update_layout(
        title={"text": "Predicted means, and how far they are off"},
        xaxis={"title": {"text": "measured mean (s), logarithmic"}, **ticks},
        yaxis={
            "title": {"text": "error"}, "tickformat": "+.0%", "domain": [0, 0.36], "zeroline": True,
        },
        yaxis2={"title": {"text": "predicted mean (s)"}, "domain": [0.44, 1], **ticks},
        height=560,
        meta={
            "alt": "Predicted against measured mean TTFT and ITL, all close to the diagonal, and "
            "below it the errors. Held out, the worst are "
            + " and ".join(
                f"{row.error:+.0%} of {METRICS[metric]} ({row.name})"
                for metric, row in worst.items()
            )
            + "."
        },
    )  # fmt: skip
    return figure
