"""Figures say what the snapshots say, to those who see them and those who do not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

go = pytest.importorskip("plotly.graph_objects")

from test_figures import contrast  # noqa: E402

from minivllm.core import (  # noqa: E402
    Request,
    RequestMetrics,
    SamplingParams,
    Scheduler,
    SchedulerConfig,
)
from minivllm.runs import History  # noqa: E402
from minivllm.stepper import SCENARIOS, record  # noqa: E402
from minivllm.stepper.session import Branch  # noqa: E402
from minivllm.viz import theme  # noqa: E402
from minivllm.viz.block_table import block_table_map  # noqa: E402
from minivllm.viz.budget_use import budget_use  # noqa: E402
from minivllm.viz.kv_usage import kv_usage  # noqa: E402
from minivllm.viz.latency import latency  # noqa: E402
from minivllm.viz.offline import figure_html  # noqa: E402
from minivllm.viz.palette import (  # noqa: E402
    REQUEST_COLORS,
    REQUEST_COLORS_DARK,
    request_dash,
    request_light_to_dark,
    request_pattern,
    request_symbol,
)
from minivllm.viz.queues import queues  # noqa: E402
from minivllm.viz.timeline import timeline  # noqa: E402
from minivllm.viz.two_numbers import two_numbers  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[1]
FIGURES: dict[str, Callable[..., go.Figure]] = {
    "timeline": timeline,
    "kv_usage": kv_usage,
    "latency": latency,
    "budget_use": budget_use,
    "block_table_map": block_table_map,
    "two_numbers": two_numbers,
    "queues": queues,
}
RUNS = {name: record(scenario) for name, scenario in SCENARIOS.items()}


def trace(figure: go.Figure, name: str) -> Any:
    [found] = [t for t in figure.data if t.name == name and t.showlegend is not False]
    return found


# --- all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_shows_every_scenario_with_words(name: str, scenario: str) -> None:
    if name == "latency" and not any(step["sampled"] for step in RUNS[scenario]["steps"]):
        with pytest.raises(ValueError, match="no request has got a token yet"):
            FIGURES[name](RUNS[scenario])
        return
    figure = FIGURES[name](RUNS[scenario])
    text = figure.to_json()
    html = figure_html(json.loads(text))
    assert "aria-label=" in html
    assert len(figure.layout.meta["alt"]) > 40
    assert len(html) < 60_000
    for axis in ("xaxis", "yaxis"):
        assert getattr(figure.layout, axis).title.text
    for item in figure.data:
        assert item.hovertemplate or item.hoverinfo == "skip"
        assert item.type == "heatmap" or item.name
    known = {*theme.light_to_dark(), *request_light_to_dark()}
    used = set(re.findall(r"#[0-9a-f]{6}\b", json.dumps(json.loads(text)["data"])))
    assert used <= known  # else a colour would not change with the page
    if name not in ("two_numbers", "budget_use"):
        assert figure.layout.title.text


@pytest.mark.parametrize("name", FIGURES)
def test_a_run_may_come_in_any_form(name: str) -> None:
    branch = Branch("main", SCENARIOS["cramped"])
    branch.run(100)
    sources = (
        branch.history,
        branch.scheduler,
        branch.steps,
        RUNS["cramped"],
        History.from_json(branch.history.to_json()),
    )
    drawn = {FIGURES[name](source).to_json() for source in sources}
    assert len(drawn) <= (2 if name == "queues" else 1)  # a bare list has no max_num_seqs


@pytest.mark.parametrize("name", FIGURES)
def test_what_cannot_be_drawn_is_said(name: str) -> None:
    draw = FIGURES[name]
    with pytest.raises(ValueError, match="no step yet"):
        draw(History(SchedulerConfig(num_gpu_blocks=4)))
    with pytest.raises(ValueError, match="record=True"):
        draw(Scheduler(SchedulerConfig(num_gpu_blocks=4)))
    with pytest.raises(ValueError, match="cannot draw a float"):
        draw(1.5)
    with pytest.raises(ValueError, match="snapshot"):
        draw([{"not": "a snapshot"}])


@pytest.mark.parametrize("draw", [timeline, latency])
def test_an_unknown_request_is_named(draw: Callable[..., go.Figure]) -> None:
    with pytest.raises(ValueError, match=r"'nobody' is in no step.*r0"):
        draw(RUNS["cramped"], ["nobody"])
    with pytest.raises(ValueError, match="'nobody'"):
        two_numbers(RUNS["cramped"], "nobody")
    with pytest.raises(ValueError, match="'r1' was in no queue"):
        two_numbers(RUNS["never-fits"], "r1")


def test_looks_are_apart_and_stand_out_on_both_pages() -> None:
    assert len(set(REQUEST_COLORS)) == len(set(REQUEST_COLORS_DARK)) == 8
    for light, dark in request_light_to_dark().items():
        assert contrast(light, theme.LIGHT.paper) >= 4.5  # light text on it, too
        assert contrast(dark, theme.DARK.paper) >= 4.5
    assert not set(REQUEST_COLORS) & set(theme.light_to_dark())
    looks = {(i % 8, request_symbol(i), request_dash(i), request_pattern(i)) for i in range(32)}
    assert len(looks) == 32


def test_request_hues_are_those_of_the_stepper() -> None:
    css = (ROOT / "minivllm" / "stepper" / "static" / "view.css").read_text()
    fills = re.findall(r"--mv-c(\d): light-dark\((#\w{6}), (#\w{6})\)", css)
    assert [int(number) for number, _, _ in fills] == list(range(8))
    assert tuple(light for _, light, _ in fills) == REQUEST_COLORS_DARK
    assert tuple(dark for _, _, dark in fills) == REQUEST_COLORS


# --- each one ---------------------------------------------------------------------------------


def test_timeline_covers_each_grant_and_each_wait() -> None:
    for name, run in RUNS.items():
        figure = timeline(run)
        covered: dict[str, set[tuple[str, int]]] = {"busy": set(), "waiting": set()}
        for bar in (t for t in figure.data if t.type == "bar"):
            kind = "waiting" if bar.name == "waiting" else "busy"
            for id_, base, length in zip(bar.y, bar.base, bar.x):
                first = round(base + 0.5)
                steps = {(id_, step) for step in range(first, first + round(length))}
                assert not steps & covered[kind]
                covered[kind] |= steps
        busy = {(r["request_id"], s["step"]) for s in run["steps"] for r in s["scheduled"]}
        waiting = {(id_, s["step"]) for s in run["steps"] for id_ in s["waiting"]}
        assert covered == {"busy": busy, "waiting": waiting}, name


def test_timeline_marks_preemptions_and_what_they_cost() -> None:
    figure = timeline(RUNS["cramped"])
    assert list(zip(trace(figure, "preempted").x, trace(figure, "preempted").y)) == [
        (5, "r3"),
        (11, "r2"),
    ]
    again = trace(figure, "computed again, after a preemption")
    assert sorted(zip(again.y, again.base)) == [("r2", 15.5), ("r3", 15.5)]
    assert "18 of them computed before" in str(again.customdata)
    assert not [t for t in timeline(RUNS["swap"]).data if t.name and "again" in t.name]
    assert list(trace(timeline(RUNS["never-fits"]), "refused").y) == ["r1"]


def test_kv_usage_adds_up_to_the_pool() -> None:
    for run in RUNS.values():
        figure = kv_usage(run)
        total = [0] * len(run["steps"])
        for bar in (t for t in figure.data if t.type == "bar"):
            total = [a + b for a, b in zip(total, bar.y)]
        assert total == [len(s["blocks"]["state"]) - 1 for s in run["steps"]]
    assert max(trace(kv_usage(RUNS["swap"]), "in the CPU pool").y) == 9


def test_latency_shows_ttft_and_gaps_in_steps() -> None:
    figure = latency(RUNS["decode-spike-threshold"])
    first = trace(figure, "to the first token")
    assert dict(zip(first.y, first.x)) == {"r0": 1, "r1": 8}
    figure = latency(RUNS["cramped"])
    assert dict(zip(trace(figure, "in the queue").y, trace(figure, "in the queue").x))["r4"] == 12
    assert "longest wait between two tokens is 12 steps, of r3" in figure.layout.meta["alt"]


def test_latency_by_the_clock_needs_one() -> None:
    metrics = RequestMetrics(
        arrival_step=0,
        first_scheduled_step=1,
        token_steps=[1, 2],
        arrival_time=1.0,
        first_scheduled_time=1.2,
        token_times=[1.5, 1.6],
    )
    figure = latency({"a": metrics}, clock=True)
    assert trace(figure, "to the first token").x[0] == pytest.approx(300)
    assert trace(figure, "in the queue").x[0] == pytest.approx(200)
    assert figure.layout.xaxis.title.text == "ms since arrival"
    request = Request("b", [1], SamplingParams())
    request.metrics = metrics
    assert trace(latency([request]), "to the first token").x[0] == 1
    with pytest.raises(ValueError, match="clock"):
        latency(RUNS["cramped"], clock=True)
    with pytest.raises(ValueError, match="no clock ran"):
        latency({"a": RequestMetrics(arrival_step=0, token_steps=[1])}, clock=True)
    with pytest.raises(ValueError, match="no request has got a token"):
        latency({"a": RequestMetrics()})


def test_budget_use_stacks_the_grants() -> None:
    run = RUNS["two-numbers"]
    figure = budget_use(run)
    spent = {step["step"]: 0 for step in run["steps"]}
    for bar in figure.data:
        for step, tokens in zip(bar.x, bar.y):
            spent[step] += tokens
    assert spent == {s["step"]: s["budget"]["spent"] for s in run["steps"]}
    assert next(iter(trace(figure, "r1").customdata)) == "bounded by the budget"
    with pytest.raises(ValueError, match="9 steps, none from 9 on"):
        budget_use(run, 9)


def test_block_table_map_shows_every_entry_and_every_block() -> None:
    for name, run in RUNS.items():
        for snapshot in run["steps"]:
            figure = block_table_map(run, snapshot["step"], per_row=8)
            tables, *pool = figure.data
            shown = {
                id_: [int(cell.rstrip("+")) for cell in row if cell]
                for id_, row in zip(tables.y, tables.text)
            }
            rows = snapshot["requests"].items()
            assert shown == {id_: r["block_table"] for id_, r in rows if r["block_table"]}, name
            cells = sum(cell is not None for layer in pool for row in layer.z for cell in row)
            assert cells == len(snapshot["blocks"]["state"])
    assert "16 of them shared" in block_table_map(RUNS["shared-prefix"], 0).layout.meta["alt"]
    with pytest.raises(ValueError, match="steps 0 to 27, not 28"):
        block_table_map(RUNS["cramped"], 28)
    for bad in (0, True, 2.5):
        with pytest.raises(ValueError, match="per_row"):
            block_table_map(RUNS["cramped"], per_row=bad)


def test_two_numbers_draws_one_request_or_all() -> None:
    run = RUNS["cramped"]
    one = trace(two_numbers(run, "r3"), "num_computed_tokens")
    lines = {t.name: t for t in two_numbers(run).data}
    assert list(lines["r3"].x) == list(one.x)
    assert list(lines["r3"].y) == list(one.y)
    assert 0 in list(one.y)
    assert len(lines) == 10


def test_queues_count_those_who_run_and_wait() -> None:
    figure = queues(RUNS["cramped"])
    assert list(trace(figure, "waiting").y) == [len(s["waiting"]) for s in RUNS["cramped"]["steps"]]
    assert list(trace(figure, "running").y) == [len(s["running"]) for s in RUNS["cramped"]["steps"]]
    assert "max_num_seqs: 8" in figure.to_json()


def test_a_figure_follows_a_stepper() -> None:
    pytest.importorskip("anywidget")
    from minivllm.stepper import SchedulerStepper
    from minivllm.viz.follow import follow

    stepper = SchedulerStepper("cramped")
    figure = follow(stepper, block_table_map)
    assert figure.layout.title.text == "Block tables after step 0"
    stepper.step = 7
    assert figure.layout.title.text == "Block tables after step 7"
    assert list(figure.data[0].y) == ["r0", "r1", "r2"]
    stepper.step = -1
    assert figure.data


# --- as a page draws them -----------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1000])
def test_every_figure_draws_offline_within_its_column(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    import shutil

    import plotly

    for name in ("minivllm.js", "minivllm.css"):
        shutil.copyfile(ROOT / "book" / "_static" / name, tmp_path / name)
    plotly_js = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    shutil.copyfile(plotly_js, tmp_path / "plotly.min.js")
    data = {
        "light": theme.template(theme.LIGHT),
        "dark": theme.template(theme.DARK),
        "lightToDark": {**theme.light_to_dark(), **request_light_to_dark()},
    }
    (tmp_path / "minivllm-theme.js").write_text(f"window.minivllmTheme = {json.dumps(data)};")
    parts = [figure_html(json.loads(draw(RUNS["cramped"]).to_json())) for draw in FIGURES.values()]
    head = (
        '<!doctype html><html data-theme="dark"><meta charset="utf-8">'
        '<link rel="stylesheet" href="minivllm.css"><script defer src="minivllm.js"></script>'
    )
    (tmp_path / "page.html").write_text(head + "\n".join(parts))
    page = browser.new_page(viewport={"width": width, "height": 6000})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.route("http**", lambda route: (problems.append(route.request.url), route.abort()))
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_function(
        "count => document.querySelectorAll('.mv-figure[data-drawn] .main-svg').length >= count",
        arg=len(FIGURES),
        timeout=20_000,
    )
    assert not problems
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for light in (*REQUEST_COLORS, theme.LIGHT.prefill):
        red, green, blue = (int(light[i : i + 2], 16) for i in (1, 3, 5))
        assert f"rgb({red}, {green}, {blue})" not in page.content()  # all of them were swapped
    page.close()
