"""How long each request waited for its first token, and for each of the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minivllm.core.stats import RequestMetrics
from minivllm.runs.steps import arrival_order, check_requests, plural, steps_of
from minivllm.viz.charts import go
from minivllm.viz.theme import COLORS, filled, request_axis


@dataclass
class Profile:
    """One request's moments, counted from its arrival: when it was admitted, when tokens came."""

    request_id: str
    queue: float
    tokens: list[float]

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies."""
        return [b - a for a, b in zip(self.tokens, self.tokens[1:])]


def latency(
    source: Any, requests: Sequence[str] | None = None, *, clock: bool = False
) -> go.Figure:
    """A row for each request: its time in the queue, to the first token (TTFT), then every token.

    Args:
        source: a run (see `minivllm.runs.steps.steps_of`), measured in steps; or, for times by the
            clock too, what has metrics: the `RequestOutput`s of `LLM.generate`, the `Request`s of a
            scheduler with a clock, or a mapping from ids to `RequestMetrics`.
        requests: ids to show; None: all that got a token, in order of arrival.
        clock: by the clock, in milliseconds; needs metrics.

    Returns:
        A figure with the time since arrival on the x axis.

    Raises:
        ValueError: if no request got a token, or the clock is asked for and none ran.
    """
    profiles = _profiles_of(source, clock)
    if requests is not None:
        order = {profile.request_id: i for i, profile in enumerate(profiles)}
        wanted = check_requests(requests, order)
        profiles = [profiles[order[request_id]] for request_id in wanted]
    if not profiles:
        raise ValueError("no request has got a token yet: there is no latency to show")
    unit, scale = ("ms", 1000.0) if clock else ("steps", 1.0)
    digits = ".1f" if clock else "d"

    def say(value: float) -> str:
        return f"{value:.1f} ms" if clock else plural(round(value), "step")

    ids = [profile.request_id for profile in profiles]
    figure = go.Figure()
    parts = (
        ("in the queue", [p.queue for p in profiles], COLORS.waiting, ".", 0.3),
        ("to the first token", [p.tokens[0] - p.queue for p in profiles], COLORS.prefill, "", 0.55),
    )
    base = [0.0] * len(profiles)
    for name, values, color, pattern, width in parts:
        scaled = [value * scale for value in values]
        figure.add_bar(
            orientation="h",
            y=ids,
            x=scaled,
            base=base,
            width=width,
            name=name,
            marker=filled(color, pattern),
            customdata=[
                (say(value), say(profile.tokens[0] * scale))
                for value, profile in zip(scaled, profiles)
            ],
            hovertemplate=f"%{{y}}: %{{customdata[0]}} {name}, TTFT %{{customdata[1]}}"
            "<extra></extra>",
        )
        base = [start + value for start, value in zip(base, scaled)]
    xs: list[float | None] = []
    ys: list[str] = []
    texts: list[str] = []
    for profile in profiles:
        for index, time in enumerate(profile.tokens):
            gap = f", {say(profile.gaps[index - 1] * scale)} after the one before" if index else ""
            xs.append(time * scale)
            ys.append(profile.request_id)
            texts.append(f"output token {index + 1}, {say(time * scale)} after arrival{gap}")
        xs.append(None)
        ys.append(profile.request_id)
        texts.append("")
    figure.add_scatter(
        x=xs,
        y=ys,
        mode="lines+markers",
        name="output tokens",
        line={"color": COLORS.decode, "width": 1},
        marker={"symbol": "line-ns", "size": 13, "line": {"width": 2.5, "color": COLORS.decode}},
        customdata=texts,
        hovertemplate="%{y}: %{customdata}<extra></extra>",
    )
    worst = max(profiles, key=lambda profile: max(profile.gaps, default=0))
    longest = max(worst.gaps, default=0)
    first = [profile.tokens[0] for profile in profiles]
    figure.update_layout(
        title={"text": "Latency of each request: the first token, then one after the other"},
        barmode="overlay",
        xaxis={
            "title": {"text": f"{unit} since arrival"},
            "rangemode": "tozero",
            "tickformat": "~g",
            "hoverformat": digits,
        },
        yaxis=request_axis(ids),
        height=max(260, min(150 + 34 * len(ids), 1600)),
        meta={
            "alt": f"Latency of {plural(len(ids), 'request')}: the time to the first token lies "
            f"between {say(min(first) * scale)} and {say(max(first) * scale)}; the longest wait "
            f"between two tokens is {say(longest * scale)}, of {worst.request_id}."
        },
    )
    return figure


def _profiles_of(source: Any, clock: bool) -> list[Profile]:
    metrics = _metrics_of(source)
    if metrics is not None:
        found = [_from_metrics(id_, row, clock) for id_, row in metrics.items()]
        return [profile for profile in found if profile is not None]
    if clock:
        raise ValueError(
            "times by the clock are in metrics: give RequestOutputs or Requests, or clock=False"
        )
    return _from_steps(source)


def _metrics_of(source: Any) -> dict[str, RequestMetrics] | None:
    """Id to metrics, if `source` is something that has them."""
    if isinstance(source, Mapping):
        rows = list(source.items())
        return dict(rows) if rows and isinstance(rows[0][1], RequestMetrics) else None
    if isinstance(source, Iterable) and not isinstance(source, (str, bytes)):
        objects = list(source)
        if objects and all(hasattr(item, "metrics") for item in objects):
            return {item.request_id: item.metrics for item in objects if item.metrics is not None}
    return None


def _from_metrics(request_id: str, row: RequestMetrics, clock: bool) -> Profile | None:
    if clock:
        start, admitted, tokens = row.arrival_time, row.first_scheduled_time, row.token_times
        if row.token_steps and (start is None or not tokens):
            raise ValueError(f"request {request_id}: no clock ran; build the scheduler with one")
        if start is None or admitted is None or not tokens:
            return None
        return Profile(request_id, admitted - start, [time - start for time in tokens])
    if row.arrival_step is None or row.first_scheduled_step is None or not row.token_steps:
        return None
    # A step's token is there when the step is over: one later than it began.
    times = [float(step - row.arrival_step + 1) for step in row.token_steps]
    return Profile(request_id, float(row.first_scheduled_step - row.arrival_step), times)


def _from_steps(source: Any) -> list[Profile]:
    steps = steps_of(source)
    metrics = {request_id: RequestMetrics() for request_id in arrival_order(steps)}
    for snapshot in steps:
        for event in snapshot["events"]:
            if event["type"] == "arrived":
                metrics[event["request_id"]].arrival_step = snapshot["step"]
        for row in snapshot["scheduled"]:
            found = metrics[row["request_id"]]
            if found.first_scheduled_step is None:
                found.first_scheduled_step = snapshot["step"]
        for request_id in snapshot["sampled"]:
            metrics[request_id].token_steps.append(snapshot["step"])
    found_all = [_from_metrics(id_, row, False) for id_, row in metrics.items()]
    return [profile for profile in found_all if profile is not None]
