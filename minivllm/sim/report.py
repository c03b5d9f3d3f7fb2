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

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from minivllm.sim.config import SimulationConfig
from minivllm.sim.figures import kv_over_time, pareto, percentiles
from minivllm.sim.handover import llm_arguments, vllm_bench, vllm_serve
from minivllm.sim.results import METRICS, PERCENTILES, SLO, SimResult, merge_rows
from minivllm.sim.trace import Trace
from minivllm.viz.theme import COLORS, DARK, LIGHT, Palette, light_to_dark, template


def run_figures(result: SimResult, slo: SLO | None = None) -> list[go.Figure]:
    """Latencies (TTFT of each kind of request, if there are several), then time's course."""
    metrics = [metric for metric in ("ttft", "itl", "e2e") if getattr(result, metric).count]
    figures = [percentiles(result, metric, slo=slo) for metric in metrics]
    if len(result.kinds) > 1:
        kinds = result.kinds
        figures[1:1] = [percentiles(result, "ttft", kind=kind, slo=slo) for kind in kinds if kind]
    return [*figures, kv_over_time(result), throughput_over_time(result)]


def throughput_over_time(result: SimResult) -> go.Figure:
    """Tokens a second over simulated time: computed, prompts included, and output."""
    rows = result.timeline.to_rows()
    figure = go.Figure()
    for column, name, color, dash in (
        ("computed_tokens_per_s", "computed, prompts included", COLORS.prefill, "solid"),
        ("output_tokens_per_s", "output", COLORS.decode, "dash"),
    ):
        figure.add_scatter(
            x=[row["time"] for row in rows], y=[row[column] for row in rows], name=name,
            mode="lines", line={"color": color, "dash": dash, "width": 2},
        )  # fmt: skip
    figure.update_layout(
        title={"text": "Tokens a second over simulated time"},
        xaxis={"title": {"text": "simulated time (s)"}},
        yaxis={"title": {"text": "tokens a second"}, "rangemode": "tozero"},
        meta={"alt": "Tokens computed and output tokens a second over simulated time."},
    )
    return figure


# --- the page -------------------------------------------------------------------------------


def _cell(value: Any) -> str:
    if isinstance(value, float):
        text = "–" if math.isnan(value) else f"{value:,.4g}"
    else:
        text = "–" if value is None else str(value)
    return html.escape(text)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table whose first column heads its rows."""
    lines = ["<div class='wide'><table><thead><tr>"]
    lines += [f"<th scope='col'>{html.escape(cell)}</th>" for cell in head]
    lines.append("</tr></thead><tbody>")
    for first, *others in rows:
        cells = "".join(f"<td>{_cell(value)}</td>" for value in others)
        lines.append(f"<tr><th scope='row'>{_cell(first)}</th>{cells}</tr>")
    return "".join(lines) + "</tbody></table></div>"


def rows_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    return table(columns, ([row.get(column) for column in columns] for row in rows))


def _code(title: str, text: str) -> str:
    return f"<h3>{html.escape(title)}</h3><pre>{html.escape(text)}</pre>"


def run_report(
    setup: SimulationConfig,
    result: SimResult,
    slo: SLO | None = None,
    comparison: Sequence[dict[str, Any]] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """A run as a page.

    Args:
        setup: what was simulated.
        result: what came out.
        slo: marked in the latencies; adds goodput.
        comparison: rows of `side_by_side`, if there is a measured run.
        notes: what a reader should know about the traffic.
    """
    row = result.summary(slo)
    latencies = [
        [title, row[f"mean_{metric}"], *(row[f"p{p}_{metric}"] for p in PERCENTILES),
         getattr(result, metric).high]
        for metric, title in METRICS.items()
    ]  # fmt: skip
    rest = [[name, value] for name, value in row.items() if not name.endswith(tuple(METRICS))]
    parts = [f"<p>{html.escape(note)}</p>" for note in notes]
    parts.append("<h2>Latencies in seconds</h2>")
    parts.append(table(["", "mean", *(f"p{p}" for p in PERCENTILES), "max"], latencies))
    figures = [plain(figure) for figure in run_figures(result, slo)]
    parts += [slot(index, figure) for index, figure in enumerate(figures)]
    if comparison:
        parts.append("<h2>Beside the measured run</h2>")
        parts.append(rows_table(comparison, ["metric", "measured", "simulated", "ratio"]))
    parts += ["<h2>All numbers</h2>", table(["", "value"], rest)]
    knobs = setup.config().to_dict().items()
    everything = json.dumps(setup.to_dict(), indent=2)
    parts += [
        "<h2>What was simulated</h2>",
        table(["knob", "value"], ([k, str(v)] for k, v in knobs)),
    ]
    parts.append(
        "<details><summary>All of it, as JSON</summary>"
        f"<pre>{html.escape(everything)}</pre></details>"
    )
    parts.append("<h2>On a real server</h2>")
    parts.append(_code("vllm serve", vllm_serve(setup)))
    if not isinstance(setup.workload, Trace):
        parts.append(_code("vllm bench serve", vllm_bench(setup)))
    parts.append(_code("Python", llm_arguments(setup)))
    cost = setup.cost or setup.roofline()
    return page(f"Simulated: {cost.name}", parts, figures)


def sweep_report(
    rows: Sequence[dict[str, Any]], x: str, y: str, label: Sequence[str] = (), **better: bool
) -> str:
    """A sweep as a page: the Pareto plot of two columns, and every row. Arguments: see
    `minivllm.sim.figures.pareto`."""
    columns = [column for column in merge_rows(rows) if column != "key"]
    figure = plain(pareto(rows, x, y, label=label, **better))
    parts = [slot(0, figure), "<h2>All points</h2>", rows_table(rows, columns)]
    return page("Simulated: a sweep", parts, [figure])


def save_report(page: str, path: str | Path) -> None:
    """Write a page."""
    Path(path).write_text(page, encoding="utf-8")


def plain(figure: go.Figure) -> dict[str, Any]:
    """A figure as plain data, its title and its description out of the layout: HTML shows them."""
    data = json.loads(figure.to_json())
    layout = data["layout"]
    layout.pop("template", None)
    title, alt = layout.pop("title")["text"], layout.pop("meta")["alt"]
    return {"title": title, "alt": alt, "data": data["data"], "layout": {"height": 340, **layout}}


def slot(index: int, figure: Mapping[str, Any]) -> str:
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


def page(title: str, parts: Sequence[str], figures: Sequence[Mapping[str, Any]]) -> str:
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
