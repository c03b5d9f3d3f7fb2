"""Figures of simulated runs say what the runs' own numbers say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

go = pytest.importorskip("plotly.graph_objects")

from minivllm.core import SchedulerConfig  # noqa: E402
from minivllm.sim import figures  # noqa: E402
from minivllm.sim.calibrate import Calibration, Validation  # noqa: E402
from minivllm.sim.config import SimulationConfig  # noqa: E402
from minivllm.sim.cost import FittedCost, roofline  # noqa: E402
from minivllm.sim.results import SLO, SimResult  # noqa: E402
from minivllm.sim.simulate import simulate  # noqa: E402
from minivllm.sim.workload import ClosedLoop, OpenLoop  # noqa: E402
from minivllm.viz import theme  # noqa: E402
from minivllm.viz.offline import figure_html  # noqa: E402

BASE = SimulationConfig(workload=ClosedLoop("chat", 1, num_requests=40))
USERS = (1, 4, 16, 64)
ROWS = [
    {"users": users, **BASE.with_(users=users, num_requests=3 * users + 20).summary(SLO(tpot=0.02))}
    for users in USERS
]
COST = roofline("llama-3-8b", "h100")
TIGHT = SchedulerConfig(num_gpu_blocks=120, max_num_seqs=32, max_model_len=1600)
CROWDED = simulate(OpenLoop("chat90-doc10", 30.0, num_requests=60), COST, TIGHT, on_refused="count")
CALM = simulate(OpenLoop("chat", 5.0, num_requests=60), COST, replace(TIGHT, num_gpu_blocks=4096))
CALIBRATION = Calibration(
    FittedCost(0.01, {}, {}),
    [Validation("seen", "ttft", 0.5, 0.52), Validation("seen", "itl", 0.05, 0.049)],
    [
        Validation("calm", "ttft", 1.0, 1.10),
        Validation("busy", "ttft", 2.0, 1.5),
        Validation("calm", "itl", 0.06, 0.061),
        Validation("busy", "itl", 0.1, 0.1),
        Validation("busy", "e2e", 9.0, 8.0),
    ],
)
FIGURES: dict[str, Callable[[], Any]] = {
    "load_curve": lambda: figures.load_curve(ROWS, limit=0.01),
    "percentiles": lambda: figures.percentiles(
        {"crowded": CROWDED, "calm": CALM}, "ttft", slo=SLO(ttft=0.5)
    ),
    "percentiles of itl": lambda: figures.percentiles(CALM, "itl"),
    "kv_over_time": lambda: figures.kv_over_time(CROWDED),
    "pareto": lambda: figures.pareto(ROWS, "output_throughput", "p99_itl", label=["users"]),
    "littles_law": lambda: figures.littles_law(
        {"crowded": CROWDED.littles_law(), "calm": CALM.littles_law()}
    ),
    "predicted_measured": lambda: figures.predicted_measured(CALIBRATION),
}


def trace(figure: Any, name: str) -> Any:
    [found] = [t for t in figure.data if t.name and t.name.startswith(name)]
    return found


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_words_axes_and_the_themes_colours(name: str) -> None:
    figure = FIGURES[name]()
    text = figure.to_json()
    html = figure_html(json.loads(text))
    assert len(figure.layout.meta["alt"]) > 40
    assert len(html) < 60_000
    assert "NaN" not in text
    assert figure.layout.title.text
    for axis in ("xaxis", "yaxis"):
        assert getattr(figure.layout, axis).title.text
    for item in figure.data:
        assert item.name
        assert item.hovertemplate or item.hoverinfo == "skip"
    used = set(re.findall(r"#[0-9a-f]{6}\b", json.dumps(json.loads(text)["data"])))
    assert used <= set(theme.light_to_dark())  # else a colour would not change with the page
    # Colour never stands alone: no two traces have symbol and dash in common.
    looks = [
        (item.mode, item.marker.symbol, item.line.dash, item.line.width)
        for item in figure.data
        if item.showlegend is not False
    ]
    assert len(set(looks)) == len(looks)


def test_the_knee_is_where_throughput_over_latency_is_largest() -> None:
    rows = [{"users": n, "x": x, "y": y} for n, x, y in ((1, 10, 1), (2, 19, 1.1), (4, 21, 3))]
    assert figures.knee(rows, "x", "y") == 1
    figure = figures.load_curve(rows, x="x", y="y")
    marked = trace(figure, "knee")
    assert (marked.x, marked.y) == ((19,), (1.1,))
    assert "knee is at 2 users" in figure.layout.meta["alt"]
    for index, row in enumerate(ROWS):
        power = row["output_throughput"] / row["p99_itl"]
        best = ROWS[figures.knee(ROWS)]
        assert power <= best["output_throughput"] / best["p99_itl"], index


def test_a_load_curve_shows_each_load_in_order() -> None:
    figure = figures.load_curve(ROWS, limit=0.01)
    line = figure.data[0]
    assert list(line.x) == [row["output_throughput"] for row in ROWS]
    assert list(line.customdata) == list(USERS)
    assert list(trace(figure, "limit").y) == [0.01, 0.01]
    assert figure.layout.yaxis.title.text == "P99 of ITL (s)"


@pytest.mark.parametrize("metric", ["ttft", "itl", "tpot", "e2e", "queue_time", "max_itl"])
def test_percentiles_are_those_of_the_run(metric: str) -> None:
    figure = figures.percentiles(CALM, metric)
    line = figure.data[0]
    assert list(line.x) == sorted(line.x)
    for x, y in zip(line.x[::7], line.y[::7]):
        assert x == pytest.approx(CALM.percentile(metric, y * 100))


def test_percentiles_of_one_kind_and_of_nothing() -> None:
    some = simulate(
        OpenLoop("chat90-doc10", 20.0, num_requests=60), COST,
        SchedulerConfig(num_gpu_blocks=8192, max_model_len=20_000),
    )  # fmt: skip
    figure = figures.percentiles(some, "ttft", kind="doc")
    assert figure.data[0].x[0] == pytest.approx(some.percentile("ttft", 0, "doc"))
    assert "of doc" in figure.layout.title.text
    with pytest.raises(ValueError, match="metric 'speed' is not known"):
        figures.percentiles(CALM, "speed")
    with pytest.raises(ValueError, match="itl is not kept for each kind"):
        figures.percentiles(CALM, "itl", kind="chat")
    with pytest.raises(ValueError, match="run 'none'"):
        figures.percentiles({"none": SimResult({}, {}, {}, 0)}, "ttft")


def test_memory_over_time_is_the_timelines() -> None:
    figure = figures.kv_over_time(CROWDED)
    rows = CROWDED.timeline.to_rows()
    assert list(trace(figure, "KV cache in use").y) == [row["max_kv_usage"] for row in rows]
    assert list(trace(figure, "waiting").y) == [row["waiting"] for row in rows]
    marks = trace(figure, "preemptions")
    assert sum(marks.customdata) == CROWDED.stats["num_preemptions"] > 0
    assert not [t for t in figures.kv_over_time(CALM).data if t.name == "preemptions"]
    with pytest.raises(ValueError, match="no time has passed"):
        figures.kv_over_time(SimResult({}, {}, {}, 0))


def test_the_front_holds_what_no_other_point_beats() -> None:
    rows = [
        {"budget": b, "x": x, "y": y} for b, x, y in ((1, 1, 1), (2, 2, 1), (3, 3, 3), (4, 2.5, 4))
    ]
    figure = figures.pareto(rows, "x", "y", label=["budget"])
    front = trace(figure, "not beaten")
    assert list(front.x) == [2, 3]
    assert list(front.customdata) == ["budget 2", "budget 3"]
    assert len(trace(figure, "a point").x) == 4
    more = figures.pareto(rows, "x", "y", more_y=True)
    assert list(trace(more, "not beaten").x) == [2.5, 3]


def test_littles_law_draws_both_sides() -> None:
    law = CALM.littles_law()
    figure = figures.littles_law({"calm": law})
    point = trace(figure, "calm")
    assert point.x == (law.lam * law.W,)
    assert point.y == (law.L,)
    assert point.error_y.array == (law.half_width,)
    with pytest.raises(ValueError, match="laws"):
        figures.littles_law({})


def test_the_error_shown_is_that_of_the_rows() -> None:
    figure = figures.predicted_measured(CALIBRATION)
    above, below = (t for t in figure.data if t.name == "TTFT, held out")
    assert list(above.x) == list(below.x) == [1.0, 2.0]
    assert list(above.y) == [1.10, 1.5]
    assert list(below.y) == pytest.approx([0.10, -0.25])
    assert [name for name, *_ in below.customdata] == ["calm", "busy"]
    assert "-25% of TTFT (busy)" in figure.layout.meta["alt"]


@pytest.mark.parametrize("draw", [figures.load_curve, figures.pareto])
def test_rows_that_cannot_be_drawn_are_named(draw: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="there is none to draw"):
        draw([])
    with pytest.raises(ValueError, match="'speed' is not a number"):
        draw(ROWS, x="speed")
    with pytest.raises(ValueError, match="p99_itl must be positive"):
        figures.load_curve([{**ROWS[0], "p99_itl": 0.0}])
