"""The interview cards: what a reader does is kept, and what is kept is not trusted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytest.importorskip("jupyter_book")

# In the worker that has the site and the browser.
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("site")]

PAGE = "book/13-interview-drill.html"
SOURCE = Path(__file__).resolve().parents[1] / "book" / "13-interview-drill.md"


def card(page: Page, number: int) -> Locator:
    return page.locator(".mv-drill").nth(number - 1)


def test_there_is_a_card_for_each_exercise_and_each_rubric_names_a_line():
    cards = re.findall(r"```\{drill\} ([\w-]+)\n(.*?)\n```\n", SOURCE.read_text(), re.DOTALL)
    assert len(cards) == 13
    assert [int(re.search(r":title: (\d+)\.", body)[1]) for _, body in cards] == list(range(1, 14))
    for name, body in cards:
        question, rubric = body.split("\n+++\n")
        assert len(question.split()) > 15, name
        assert rubric.count("\n- ") >= 4, name
        cited = "#L" in rubric or "vllm:" in rubric
        assert cited, f"{name} names no line and no metric"


def test_a_rubric_is_hidden_until_asked_for_and_the_points_are_kept(page: Page, site_url: str):
    page.goto(site_url + PAGE)
    five = card(page, 5)
    rubric = five.locator(".mv-drill__rubric")
    assert not rubric.is_visible()
    five.get_by_role("button", name="Start").click()
    page.keyboard.type("the last one admitted")
    page.wait_for_function(
        "() => document.querySelectorAll('.mv-drill__time')[4].textContent !== '5:00'"
    )
    five.get_by_role("button", name="Show the rubric").click()
    assert rubric.is_visible()
    five.get_by_role("checkbox").nth(1).check()
    num_points = five.get_by_role("checkbox").count()
    said = f"1 of 13 cards answered, 1 of their {num_points} points made"
    assert said in page.locator(".mv-drill-progress").inner_text()

    page.reload()
    assert said in page.locator(".mv-drill-progress").inner_text()
    assert card(page, 5).get_by_role("textbox").input_value() == "the last one admitted"
    assert card(page, 5).locator("input:checked").count() == 1
    assert not card(page, 4).locator(".mv-drill__rubric").is_visible()

    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Clear all").click()
    page.reload()
    assert "0 of 13 cards answered" in page.locator(".mv-drill-progress").inner_text()
    assert card(page, 5).get_by_role("textbox").input_value() == ""


def test_when_the_time_is_up_the_rubric_opens(page: Page, site_url: str):
    page.clock.install()
    page.goto(site_url + PAGE)
    first = card(page, 1)
    first.get_by_role("button", name="Start").click()
    page.clock.run_for(4 * 60_000)
    first.get_by_role("button", name="Pause").click()
    page.clock.run_for(10 * 60_000)
    assert not first.locator(".mv-drill__rubric").is_visible(), "a paused clock does not run"
    first.get_by_role("button", name="Go on").click()
    page.clock.run_for(61_000)
    assert first.locator(".mv-drill__rubric").is_visible()
    assert "Time." in first.get_by_role("status").inner_text()


@pytest.mark.parametrize(
    "kept",
    [
        "not JSON",
        "null",
        "[1, 2]",
        json.dumps({"two-numbers": "x", "the-clamp": {"notes": 5, "points": "<b>", "open": "yes"}}),
        json.dumps({"two-numbers": {"notes": "<img src=x onerror=alert(1)>", "open": True}}),
    ],
)
def test_whatever_the_browser_kept_the_page_works(page: Page, site_url: str, kept: str):
    page.goto(site_url + PAGE)
    page.evaluate("kept => localStorage.setItem('minivllm-drill-1', kept)", kept)
    page.reload()
    assert "of 13 cards answered" in page.locator(".mv-drill-progress").inner_text()
    assert page.locator(".mv-drill img").count() == 0
