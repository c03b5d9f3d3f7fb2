"""The reader chooses which model runs in a page, before any of it is loaded."""

from __future__ import annotations

import ast
import html
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from serving import token_ids
from stepper_pages import axe_code, check_axe, guarded, serving

from minivllm import LLM, SamplingParams
from minivllm.models.config import DEFAULT_MODEL, SMALL_MODEL
from tools.live_model import MODELS, why_no_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "book" / "live"))

from minivllm_talk_session import MAX_TOKENS, PROMPTS, SMALL_PROMPTS  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NAMELESS = """\
from minivllm import LLM, SamplingParams
llm = LLM(num_gpu_blocks=9, max_model_len=128)
greedy = SamplingParams(temperature=0, max_tokens=30)
prompts = ["Once upon a time there was a cat", "One day a dragon", "It was a rainy day."]
print([o.outputs[0].text for o in llm.generate(prompts, greedy, use_tqdm=False)])
"""
ABOUT_THE_TEXT = 'assert llm.llm_engine.model_config.hidden_size == 576, "SmolLM2\'s"'
PHONE = {
    "viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True,
    "device_scale_factor": 2,
}  # fmt: skip
STYLE = """<style>
:root { --pst-color-border: #ccc; --pst-color-primary: #0a5; --pst-color-surface: #f5f5f5;
  --pst-color-background: #fff; --pst-color-text-base: #222; --pst-color-text-muted: #555;
  --pst-color-link: #075; --pst-color-accent: #850; }
[data-theme=dark] { --pst-color-border: #555; --pst-color-primary: #6d9; --pst-color-surface: #222;
  --pst-color-background: #111; --pst-color-text-base: #eee; --pst-color-text-muted: #bbb;
  --pst-color-link: #8ec; --pst-color-accent: #fc8; }
body { margin: 8px; background: var(--pst-color-background); color: var(--pst-color-text-base); }
pre { overflow-x: auto; }
</style>"""


def document(script: str, body: str) -> str:
    """A page with the site's own styles."""
    return (
        '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Models</title>'
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="_static/stepper/view.css">'
        '<link rel="stylesheet" href="_static/stepper/cells.css">'
        f'<link rel="stylesheet" href="_static/minivllm.css">{STYLE}'
        f'<script defer src="_static/stepper/{script}"></script></head>'
        f"<body><main><h1>Models</h1>{body}</main></body></html>"
    )


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A site of two pages: live cells, and "Talk to it" above another run than the book's."""
    from minivllm_stepper import pyodide, write_assets

    from minivllm.stepper import SCENARIOS
    from minivllm.stepper.embed import entry_of, stepper_html

    if why := why_no_model():
        pytest.skip(why)
    if pyodide() is None:
        pytest.skip("no Pyodide: python tools/get_pyodide.py gets it, with a network")
    folder: Path = tmp_path_factory.mktemp("site")
    write_assets(folder / "_static")
    (folder / "_static" / "minivllm.css").write_bytes(
        (ROOT / "book" / "_static" / "minivllm.css").read_bytes()
    )
    cell = (
        '<div class="cell mv-code mv-code-at-0 docutils container"><div class="cell_input">'
        f'<div class="highlight"><pre>{html.escape(NAMELESS)}</pre></div></div>'
        '<div class="mv-code-bar" data-needs="" data-role=""></div></div>'
    )
    bar = (
        '<div class="mv-code-page" data-page="book/cells" data-notebook="cells.json" data-model '
        'role="toolbar" aria-label="Run this page\'s code"></div>'
    )
    (folder / "cells.html").write_text(document("cells.js", bar + cell), encoding="utf-8")
    plain = {"tags": [], "needs": "", "setup": "", "type": "code"}
    cells = [{**plain, "source": NAMELESS}, {**plain, "source": ABOUT_THE_TEXT}]
    (folder / "cells.json").write_text(json.dumps({"cells": cells, "metadata": {}}))
    prompts = {DEFAULT_MODEL: PROMPTS, SMALL_MODEL: SMALL_PROMPTS}
    about = html.escape(json.dumps({"prompts": prompts, "reason": ""}), quote=True)
    entry: dict[str, Any] = {**entry_of(SCENARIOS["cramped"]), "fixed": True}
    body = f'<div class="mv-talk" data-about="{about}"></div>'
    body += stepper_html([entry], "talk", 3, "<p>A run.</p>")
    (folder / "talk.html").write_text(document("stepper.js", body), encoding="utf-8")
    with serving(folder) as url:
        yield url


def open_page(page: Page, address: str, name: str) -> None:
    page.goto(f"{address}{name}.html")
    page.locator(".mv-model-choice").wait_for()


def chosen(page: Page) -> str:
    """The model whose button is pressed."""
    return page.locator(".mv-model-choice input:checked").input_value()


@pytest.mark.parametrize("name", ["cells", "talk"])
def test_by_keyboard_before_anything_is_loaded_and_the_browser_keeps_it(
    browser: Browser, address: str, name: str
) -> None:
    with guarded(browser) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        open_page(page, address, name)
        assert chosen(page) == DEFAULT_MODEL
        group = page.get_by_role("group", name="Which model shall run?")
        large, small = group.get_by_role("radio").all()
        sizes = [label.inner_text() for label in group.locator("label").all()]
        assert "98 MB to load" in sizes[0]
        assert "What the book prints is from this model" in sizes[0]
        assert "0.9 MB to load" in sizes[1]
        assert "made-up stories" in sizes[1]
        large.focus()
        page.keyboard.press("ArrowDown")
        assert small.is_checked()
        page.reload()
        page.locator(".mv-model-choice").wait_for()
        assert chosen(page) == SMALL_MODEL
        other = "talk" if name == "cells" else "cells"
        open_page(page, address, other)
        assert chosen(page) == SMALL_MODEL, "the browser keeps one choice for all pages"
        page.keyboard.press("Tab")
        page.locator(".mv-model-choice input").first.check()
        page.reload()
        page.locator(".mv-model-choice").wait_for()
        assert chosen(page) == DEFAULT_MODEL
        assert not [url for url in asked if "/models/" in url or "/pyodide/" in url]


@pytest.mark.parametrize(
    ("memory", "options", "expected"),
    [
        ("8", {}, DEFAULT_MODEL),
        ("undefined", {}, DEFAULT_MODEL),
        ("2", {}, SMALL_MODEL),
        ("8", PHONE, SMALL_MODEL),
        ("8", {**PHONE, "viewport": {"width": 1200, "height": 800}}, DEFAULT_MODEL),
        ("8", {"viewport": {"width": 360, "height": 740}}, DEFAULT_MODEL),
    ],
    ids=["desk", "unknown", "little-memory", "phone", "touch-screen", "narrow-window"],
)
def test_what_suits_the_device_is_chosen_first(
    browser: Browser, address: str, memory: str, options: dict[str, Any], expected: str
) -> None:
    with guarded(browser, **options) as page:
        page.add_init_script(
            f"Object.defineProperty(navigator, 'deviceMemory', {{value: {memory}}})"
        )
        for name in ("cells", "talk"):
            open_page(page, address, name)
            assert chosen(page) == expected


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["cells", "talk"])
def test_it_can_be_read_on_a_phone(browser: Browser, address: str, name: str, theme: str) -> None:
    with guarded(browser, **PHONE) as page:
        open_page(page, address, name)
        page.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
        width = "() => document.documentElement.scrollWidth"
        assert page.evaluate(width) <= 360
        box = page.locator(".mv-model-choice").bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
        for label in page.locator(".mv-model-choice label").all():
            assert (label.bounding_box() or {})["height"] >= 24, "a finger hits it"
        page.evaluate(axe_code())
        check_axe(page, ".mv-model-choice")


def run_cell(page: Page) -> str:
    page.evaluate("async () => window.minivllmCells.run(window.minivllmCells.cells[0])")
    page.wait_for_function(
        "() => ['done', 'failed'].includes(window.minivllmCells.cells[0].root.dataset.state)",
        timeout=120_000,
    )
    return page.locator(".cell_output").inner_text()


def on_desktop() -> list[str]:
    """What the engine with PyTorch prints for the cell, with the small model."""
    llm = LLM(SMALL_MODEL, device="cpu", dtype="float32", max_model_len=128)
    prompts = ["Once upon a time there was a cat", "One day a dragon", "It was a rainy day."]
    greedy = SamplingParams(temperature=0, max_tokens=30)
    return [o.outputs[0].text for o in llm.generate(prompts, greedy, use_tqdm=False)]


def test_an_engine_without_a_name_has_the_chosen_model(browser: Browser, address: str) -> None:
    with guarded(browser) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        open_page(page, address, "cells")
        page.locator(".mv-model-choice input").nth(1).check()
        assert ast.literal_eval(run_cell(page)) == on_desktop()
        assert [url for url in asked if f"/{MODELS[SMALL_MODEL]}.bin" in url]
        assert not [url for url in asked if f"/{MODELS[DEFAULT_MODEL]}." in url]
        # What the text says of the printed outputs does not hold now: no error of the reader's.
        page.evaluate("async () => window.minivllmCells.runAll()")
        page.wait_for_function("() => window.minivllmCells.status.textContent.startsWith('Ran')")
        page.evaluate("async () => window.minivllmCells.runAll()")
        page.locator(".mv-model-choice input").first.check()
        status = page.locator(".mv-code-status")
        status.get_by_text("from now on has SmolLM2-135M-Instruct; one that is there").wait_for()


def test_where_nothing_may_be_kept_the_choice_holds_for_the_visit(
    browser: Browser, address: str
) -> None:
    forbidden = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no'); }})"
    with guarded(browser) as page:
        page.add_init_script(forbidden)
        open_page(page, address, "talk")
        page.locator(".mv-model-choice input").nth(1).check()
        assert page.evaluate("() => window.minivllmModelChosen") == SMALL_MODEL
        assert (
            page.locator(".mv-talk-form input[type=text]").first.input_value() == (SMALL_PROMPTS[0])
        )


def test_talking_to_the_small_model(browser: Browser, address: str) -> None:
    with guarded(browser) as page:
        open_page(page, address, "talk")
        fields = page.locator(".mv-talk-form input[type=text]")
        assert [field.input_value() for field in fields.all()] == list(PROMPTS)
        fields.nth(2).fill("Where does a frog live?")
        page.locator(".mv-model-choice input").nth(1).check()
        texts = [*SMALL_PROMPTS[:2], "Where does a frog live?"]  # one's own words stay
        assert [field.input_value() for field in fields.all()] == texts
        page.locator(".mv-talk-form button").click()
        page.get_by_text("The engine waits for its first step").wait_for(timeout=120_000)
        stepper = page.locator("#talk")
        stepper.locator("[data-act=play]").click()
        page.wait_for_function(
            "() => document.querySelector('#talk').innerText.includes('A frog lives')",
            timeout=60_000,
        )


def test_its_own_prompts_show_a_preemption() -> None:
    """Nine blocks are too few for three of its answers, too."""
    from minivllm_talk_session import KNOBS

    llm = LLM(SMALL_MODEL, device="cpu", dtype="float32", **{**KNOBS, "record": False})
    tokenizer = llm.get_tokenizer()
    chats = [[{"role": "user", "content": prompt}] for prompt in SMALL_PROMPTS]
    ids = [tokenizer.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    greedy = SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    token_ids(llm, [{"prompt_token_ids": one} for one in ids], greedy)
    assert llm.llm_engine.scheduler.stats.num_preemptions > 0
