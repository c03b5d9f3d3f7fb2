"""A run, or a sweep, as one HTML page that needs no network.

Everything is inside: the numbers, the figures as data, and plotly.js (from the Python package
`plotly`, 4.8 MB). Light and dark follow the reader's system.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minivllm.sim.handover import llm_arguments, vllm_bench, vllm_serve
from minivllm.sim.results import METRICS, PERCENTILES, SLO, SimResult, merge_rows, percentile
from minivllm.sim.scenario import Scenario
from minivllm.sim.sweep import pareto_front
from minivllm.sim.workload import Trace
from minivllm.viz.theme import (
    CATEGORICAL,
    COLORS,
    DARK,
    LIGHT,
    Palette,
    light_to_dark,
    template,
)

Figure = dict[str, Any]
"""A Plotly figure as plain data (`data` and `layout`), its `title`, and in `alt` what it shows."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


def _figure(title: str, alt: str, data: list[dict[str, Any]], **layout: Any) -> Figure:
    return {"title": title, "alt": alt, "data": data, "layout": {"height": 340, **layout}}


def _line(x: Sequence[float], y: Sequence[float], name: str, index: int, **more: Any) -> Figure:
    """A line that differs from its neighbours in colour and in dash."""
    line = {"color": CATEGORICAL[index % len(CATEGORICAL)], "dash": DASHES[index % len(DASHES)]}
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "name": name, "line": line, **more}


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": title}, **more}


def timeline_figures(result: SimResult) -> list[Figure]:
    """Requests, KV cache and throughput over simulated time."""
    rows = result.timeline.to_rows()
    time = [row["time"] for row in rows]

    def lines(*names: tuple[str, str]) -> list[dict[str, Any]]:
        return [
            _line(time, [row[column] for row in rows], name, index)
            for index, (column, name) in enumerate(names)
        ]

    seconds = _axis("simulated time (s)")
    return [
        _figure(
            "Requests in the system",
            "Requests running and waiting over simulated time",
            lines(("running", "running"), ("waiting", "waiting")),
            xaxis=seconds, yaxis=_axis("requests", rangemode="tozero"),
        ),
        _figure(
            "KV cache in use",
            "Share of the KV cache's blocks in use over simulated time, on average and at most",
            lines(("kv_usage", "on average"), ("max_kv_usage", "at most")),
            xaxis=seconds, yaxis=_axis("share of blocks", tickformat=".0%", range=[0, 1.02]),
        ),
        _figure(
            "Tokens a second",
            "Tokens computed and output tokens a second over simulated time",
            lines(
                ("computed_tokens_per_s", "computed, prompts included"),
                ("output_tokens_per_s", "output"),
            ),
            xaxis=seconds, yaxis=_axis("tokens/s", rangemode="tozero"),
        ),
    ]  # fmt: skip


def latency_figures(result: SimResult, slo: SLO | None = None) -> list[Figure]:
    """How many requests, or tokens, waited at most how long; by kind, if there are several."""
    data, shapes = [], []
    for index, (metric, title) in enumerate(METRICS.items()):
        points = getattr(result, metric).points()
        if points:
            x, y = zip(*points, strict=True)
            data.append(_line(x, y, title, index))
        limit = getattr(slo, metric, None)
        if limit is not None:
            color = CATEGORICAL[index % len(CATEGORICAL)]
            shapes.append(
                {"type": "line", "x0": limit, "x1": limit, "y0": 0, "y1": 1, "yref": "paper",
                 "line": {"color": color, "dash": "dot"},
                 "label": {"text": f"{title} SLO", "textposition": "middle"}}
            )  # fmt: skip
    share = _axis("share at most", tickformat=".0%", range=[0, 1.02])
    seconds = _axis("seconds (logarithmic)", type="log")
    figures = [
        _figure(
            "Latencies", "Cumulative distribution of each latency, on a logarithmic axis",
            data, xaxis=seconds, yaxis=share, shapes=shapes,
        )
    ]  # fmt: skip
    if len(result.kinds) > 1:
        by_kind = []
        for index, kind in enumerate(result.kinds):
            ordered = result.values("ttft", kind)
            percents = [i / 2 for i in range(201)]
            by_kind.append(
                _line(
                    [percentile(ordered, p) for p in percents],
                    [p / 100 for p in percents], kind, index,
                )
            )  # fmt: skip
        figures.append(
            _figure(
                "TTFT by kind of request",
                "Cumulative distribution of the time to first token for each kind of request",
                by_kind, xaxis=seconds, yaxis=share,
            )
        )  # fmt: skip
    return figures


def pareto_figure(rows: Sequence[dict[str, Any]], x: str, y: str, **better: bool) -> Figure:
    """All points of a sweep, and the front that none of them beats.

    Args:
        rows: what `sweep` returned.
        x: a column for the horizontal axis.
        y: a column for the vertical axis.
        better: `more_x` and `more_y`, as for `pareto_front`.
    """
    front = pareto_front(rows, x, y, **better)
    grid = [c for c in merge_rows(rows) if c != "key"]
    grid = grid[: grid.index("num_finished")] if "num_finished" in grid else grid

    def points(some: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "type": "scatter",
            "x": [row[x] for row in some],
            "y": [row[y] for row in some],
            "text": [", ".join(f"{name}={row.get(name)}" for name in grid) for row in some],
        }

    return _figure(
        f"{y} against {x}",
        f"Every point of the sweep, {y} against {x}, with the Pareto front as a line",
        [
            {**points(rows), "mode": "markers", "name": "point",
             "marker": {"color": COLORS.waiting, "symbol": "circle-open", "size": 9}},
            {**points(front), "mode": "lines+markers", "name": "Pareto front",
             "line": {"color": COLORS.prefill}, "marker": {"symbol": "diamond", "size": 10}},
        ],
        xaxis=_axis(x), yaxis=_axis(y), hovermode="closest",
    )  # fmt: skip


# --- the page -------------------------------------------------------------------------------


def _cell(value: Any) -> str:
    if isinstance(value, float):
        text = "–" if math.isnan(value) else f"{value:,.4g}"
    else:
        text = "–" if value is None else str(value)
    return html.escape(text)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table whose first column heads its rows."""
    lines = ["<div class='wide'><table><thead><tr>"]
    lines += [f"<th scope='col'>{html.escape(cell)}</th>" for cell in head]
    lines.append("</tr></thead><tbody>")
    for first, *others in rows:
        cells = "".join(f"<td>{_cell(value)}</td>" for value in others)
        lines.append(f"<tr><th scope='row'>{_cell(first)}</th>{cells}</tr>")
    return "".join(lines) + "</tbody></table></div>"


def _rows_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    return _table(columns, ([row.get(column) for column in columns] for row in rows))


def _code(title: str, text: str) -> str:
    return f"<h3>{html.escape(title)}</h3><pre>{html.escape(text)}</pre>"


def run_report(
    scenario: Scenario,
    result: SimResult,
    slo: SLO | None = None,
    comparison: Sequence[dict[str, Any]] | None = None,
) -> str:
    """A run as a page.

    Args:
        scenario: what was simulated.
        result: what came out.
        slo: marked in the latencies; adds goodput.
        comparison: rows of `side_by_side`, if there is a measured run.

    Raises:
        ValueError: if plotly is not installed.
    """
    row = result.summary(slo)
    latencies = [
        [title, row[f"mean_{metric}"], *(row[f"p{p}_{metric}"] for p in PERCENTILES),
         getattr(result, metric).high]
        for metric, title in METRICS.items()
    ]  # fmt: skip
    rest = [[name, value] for name, value in row.items() if not name.endswith(tuple(METRICS))]
    parts = ["<h2>Latencies in seconds</h2>"]
    parts.append(_table(["", "mean", *(f"p{p}" for p in PERCENTILES), "max"], latencies))
    figures = [*latency_figures(result, slo), *timeline_figures(result)]
    parts += [_slot(index, figure) for index, figure in enumerate(figures)]
    if comparison:
        parts.append("<h2>Beside the measured run</h2>")
        parts.append(_rows_table(comparison, ["metric", "measured", "simulated", "ratio"]))
    parts += ["<h2>All numbers</h2>", _table(["", "value"], rest)]
    knobs = scenario.config().to_dict().items()
    everything = json.dumps(scenario.to_dict(), indent=2)
    parts += [
        "<h2>What was simulated</h2>",
        _table(["knob", "value"], ([k, str(v)] for k, v in knobs)),
    ]
    parts.append(
        "<details><summary>All of it, as JSON</summary>"
        f"<pre>{html.escape(everything)}</pre></details>"
    )
    parts.append("<h2>On a real server</h2>")
    parts.append(_code("vllm serve", vllm_serve(scenario)))
    if not isinstance(scenario.workload, Trace):
        parts.append(_code("vllm bench serve", vllm_bench(scenario)))
    parts.append(_code("Python", llm_arguments(scenario)))
    cost = scenario.cost or scenario.roofline()
    return _page(f"Simulated: {cost.name}", parts, figures)


def sweep_report(rows: Sequence[dict[str, Any]], x: str, y: str, **better: bool) -> str:
    """A sweep as a page: the Pareto plot of two columns, and every row. Arguments: see
    `pareto_figure`."""
    columns = [column for column in merge_rows(rows) if column != "key"]
    figure = pareto_figure(rows, x, y, **better)
    parts = [_slot(0, figure), "<h2>All points</h2>", _rows_table(rows, columns)]
    return _page("Simulated: a sweep", parts, [figure])


def save_report(page: str, path: str | Path) -> None:
    """Write a page."""
    Path(path).write_text(page, encoding="utf-8")


def _slot(index: int, figure: Figure) -> str:
    alt = html.escape(figure["alt"], quote=True)
    return (
        f"<figure role='figure' aria-label='{alt}'>"
        f"<figcaption>{html.escape(figure['title'])}</figcaption>"
        f"<div class='plot' id='figure-{index}'></div></figure>"
    )


def _embed(data: Any) -> str:
    """JSON for a <script> element: no string in it can end the element."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _colors(palette: Palette) -> str:
    """A palette as CSS variables."""
    roles = ("ink", "paper", "grid", "muted")
    return ";".join(f"--{role}:{getattr(palette, role)}" for role in roles)


STYLE = (
    f"""
:root{{color-scheme:light dark;{_colors(LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_colors(DARK)}}}}}
"""
    + """
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;
margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .8rem;border-bottom:1px solid var(--grid);text-align:right}
th:first-child{text-align:left}
.wide,pre{overflow-x:auto}
pre{padding:.8rem;border:1px solid var(--grid);border-radius:.3rem;font-size:.85rem}
figure{margin:1.5rem 0}
figcaption{font-weight:600}
.plot{min-height:340px}
@media (max-width:40rem){th,td{padding:.2rem .35rem}body{font-size:15px}}
"""
)

SCRIPT = """
const data = JSON.parse(document.getElementById('data').textContent);
const dark = matchMedia('(prefers-color-scheme: dark)');
function draw() {
  let figures = JSON.stringify(data.figures);
  if (dark.matches)
    for (const [from, to] of Object.entries(data.swap)) figures = figures.replaceAll(from, to);
  const template = dark.matches ? data.dark : data.light;
  JSON.parse(figures).forEach((figure, index) => {
    const slot = document.getElementById(`figure-${index}`);
    figure.layout.template = template;
    Plotly.react(slot, figure.data, figure.layout, {responsive: true, displaylogo: false});
  });
}
dark.addEventListener('change', draw);
draw();
"""


def _page(title: str, parts: Sequence[str], figures: Sequence[Figure]) -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ValueError("a report page needs plotly: pip install plotly") from error
    data = {
        "figures": figures,
        "swap": light_to_dark(),
        "light": template(LIGHT, transparent=True),
        "dark": template(DARK, transparent=True),
    }
    title = html.escape(title)
    return "\n".join(
        [
            "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
            "<meta name='viewport' content='width=device-width, initial-scale=1'>",
            "<link rel='icon' href='data:,'>",
            f"<title>{title}</title><style>{STYLE}</style></head><body><main>",
            f"<h1>{title}</h1>",
            *parts,
            "</main>",
            f"<script type='application/json' id='data'>{_embed(data)}</script>",
            f"<script>{get_plotlyjs()}</script>",
            f"<script>{SCRIPT}</script></body></html>",
        ]
    )
