"""Drawings: well-formed, in both themes, told in words, and true to the run that they are given."""

from __future__ import annotations

import html
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minivllm.core import Request, RequestStatus, SamplingParams, Scheduler, SchedulerConfig
from minivllm.runs.drive import drive, drive_scenario
from minivllm.viz import drawings
from minivllm.viz.svg import ROLES, Drawing

CHAINS = {"a": [1, 2, 3, 4, 5, 6, 7, 8], "b": [1, 2, 3, 4, 9, 9, 9, 9], "c": [0, 2, 3, 4, 5]}


def clamped():
    config = SchedulerConfig(
        num_gpu_blocks=64, max_num_batched_tokens=48, long_prefill_token_threshold=32
    )
    arrivals = [
        (0, Request("chat", [0] * 8, SamplingParams(max_tokens=8))),
        (2, Request("doc1", [1] * 100, SamplingParams(max_tokens=2))),
        (2, Request("doc2", [2] * 100, SamplingParams(max_tokens=2))),
    ]
    return drive(Scheduler(config), arrivals).history[2]["scheduled"]


def inversion(step: int):
    return drive_scenario("priority-inversion").history[step]


DRAWINGS = {
    "request_life": drawings.request_life,
    "kv_cache": drawings.kv_cache,
    "rectangle": lambda: drawings.rectangle([("r0", 12, 5), ("r1", 30, 24)]),
    "flat_list": lambda: drawings.flat_list(drive_scenario("continuous").history[5]),
    "free_queue": lambda: drawings.free_queue([("before", [11, 12, 6, 3]), ("after", [])]),
    "caps_on_a_line": lambda: drawings.caps_on_a_line(clamped()),
    "taken_back": lambda: drawings.taken_back(inversion(11), inversion(10)["running"]),
    "hash_chain": lambda: drawings.hash_chain(CHAINS),
    "doors": drawings.doors,
    "step_bars": lambda: drawings.step_bars({"one": {"decodes": 20, "chunks": 512}}, 2048),
    "server_boxes": lambda: drawings.server_boxes(
        {"server": (96, 4.5, 21.3), "WAITING": (36, 4.5, 8), "RUNNING": (60, 4.5, 13.3)}
    ),
    "decision_ladder": lambda: drawings.decision_ladder("x", [(["is it so?"], ["y"])], ["z"]),
}


def svg_of(drawing: Drawing) -> ET.Element:
    markup = drawing._repr_html_()
    return ET.fromstring(re.search(r"<svg.*</svg>", markup, re.S)[0])


def words_of(drawing: Drawing) -> list[str]:
    return [e.text or "" for e in svg_of(drawing).iter() if e.tag.endswith("text")]


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_follows_the_theme_and_is_told_in_words(name: str) -> None:
    drawing = DRAWINGS[name]()
    markup = drawing._repr_html_()
    svg = svg_of(drawing)
    used = set(re.findall(r"var\(--d-(\w+)\)", markup))
    given_colours = dict(re.findall(r"--d-(\w+):light-dark\((#\w+,#\w+)\)", markup))
    assert used
    assert used == set(given_colours)
    assert all(given_colours[role] == ",".join(ROLES[role]) for role in used)
    assert not re.search(r"#[0-9a-f]{6}", re.sub(r"--d-\w+:[^;]*;", "", markup))
    assert f'aria-label="{html.escape(repr(drawing))}"' in markup
    assert len(repr(drawing)) > 50
    assert svg.get("aria-hidden") == "true"
    ids = re.findall(r' id="([^"]+)"', markup)
    assert set(re.findall(r"url\(#([^)]+)\)", markup)) == set(ids)
    assert not set(ids) & set(re.findall(r' id="([^"]+)"', DRAWINGS[name]()._repr_html_()))


def test_the_states_of_a_life_are_the_schedulers() -> None:
    words = " ".join(words_of(drawings.request_life()))
    assert all(status.name in words for status in RequestStatus)


def test_a_text_that_does_not_fit_is_an_error() -> None:
    drawing = Drawing(100, 50, "x")
    with pytest.raises(ValueError, match="wider than its box of 40"):
        drawing.box(0, 0, 40, 20, "much too long")
    with pytest.raises(ValueError, match="higher than their box of 20"):
        drawing.box(0, 0, 40, 20, ["a", "b"])
    with pytest.raises(ValueError, match="leaves 100 x 50"):
        drawing.text(90, 20, "outside")
    with pytest.raises(KeyError, match="mauve"):
        drawing.rect(0, 0, 1, 1, "mauve")


def test_markup_in_a_name_stays_text() -> None:
    drawing = drawings.free_queue([('<script>"', [1])])
    assert "<script>" not in drawing._repr_html_()
    assert '<script>"' in " ".join(words_of(drawing))


def test_what_the_caps_allow_is_what_the_request_got() -> None:
    drawing = drawings.caps_on_a_line(clamped())
    assert "doc2 gets 15, the smallest of gap 100, threshold 32, budget left 15" in repr(drawing)
    bold = [e.text for e in svg_of(drawing).iter() if "font-weight" in e.get("style", "")]
    assert bold == ["gap 1", "threshold 32", "budget left 15"]


def test_a_plan_taken_back_leaves_the_loop_at_the_same_request() -> None:
    drawing = drawings.taken_back(inversion(11), inversion(10)["running"])
    assert "req_index = 2" in words_of(drawing)
    assert "req_index = 1" in words_of(drawing)
    assert "The loop is still at r3" in repr(drawing)
    with pytest.raises(ValueError, match="step 9 takes no plan back"):
        drawings.taken_back(inversion(9), inversion(8)["running"])


def test_equal_names_are_marked_and_a_partial_block_has_none() -> None:
    drawing = drawings.hash_chain(CHAINS)
    bold = [e.text for e in svg_of(drawing).iter() if "font-weight" in e.get("style", "")]
    names = [word for word in bold if word not in CHAINS]
    assert len(names) == 2
    assert len(set(names)) == 1
    assert words_of(drawing).count("not full: no name") == 1


@given(st.lists(st.tuples(st.integers(30, 60), st.integers(30, 60)), min_size=1, max_size=6))
def test_a_rectangle_counts_what_a_static_batch_computes(lengths: list[tuple[int, int]]) -> None:
    longest_prompt, longest_output = (max(column) for column in zip(*lengths))
    padding = sum(longest_prompt - p for p, _ in lengths)
    dead = sum(longest_output - o for _, o in lengths)
    told = repr(drawings.rectangle([(f"r{i}", p, o) for i, (p, o) in enumerate(lengths)]))
    assert f"{padding} places are padding before a prompt, {dead} belong" in told


def test_more_tokens_than_the_budget_are_an_error() -> None:
    with pytest.raises(ValueError, match="six: 2100 tokens of 2048"):
        drawings.step_bars({"six": {"decodes": 100, "chunks": 2000}}, 2048)


def test_the_boxes_of_a_server_say_their_numbers_in_their_unit() -> None:
    boxes = {"server": (2.25, 0.5, 4.5), "WAITING": (0.5, 0.5, 1.0), "RUNNING": (1.75, 0.5, 3.5)}
    drawing = drawings.server_boxes(boxes, unit="step")
    assert "RUNNING: L = 1.75 requests, λ = 0.50 a step, W = 3.50 steps." in repr(drawing)
    assert "second" not in repr(drawing)


def test_a_flat_list_has_a_cell_for_each_token() -> None:
    step = drive_scenario("continuous").history[5]
    drawing = drawings.flat_list(step)
    cells = [e for e in svg_of(drawing).iter() if e.tag.endswith("rect")]
    assert len(cells) == step["budget"]["spent"] == 29
    assert "r4 at positions 0 to 25" in repr(drawing)
