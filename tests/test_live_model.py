"""A model in the page: `LLM` in a live cell, and what a reader is told when it cannot be had."""

from __future__ import annotations

import html
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import few
from serving import build, token_ids
from stepper_pages import serving

from minivllm import SamplingParams
from minivllm.models.loader import DEFAULT_MODEL
from tools.live_model import MODELS, why_no_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "book" / "live"))

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TINY = """\
from minivllm import LLM, SamplingParams
llm = LLM("tiny-random", num_gpu_blocks=9, max_model_len=128)
prompts = [{"prompt_token_ids": [(7 * i + j) % 900 + 3 for j in range(20 + i)]} for i in range(4)]
greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
outputs = llm.generate(prompts, greedy, use_tqdm=False)
engine = llm.llm_engine
num_threads = engine.runner.machine.call("num_threads")
tokens = [o.outputs[0].token_ids for o in outputs]
print([tokens, engine.scheduler.stats.num_preemptions, num_threads])
"""
CHAT = f"""\
import time
from minivllm import LLM, SamplingParams
start = time.monotonic()
llm = LLM({DEFAULT_MODEL!r}, max_model_len=256)
unpacked = time.monotonic() - start
llm.llm_engine.get_tokenizer()
def rate(size):
    prompts = [{{"prompt_token_ids": [500 + 7 * i + j for j in range(16)]}} for i in range(size)]
    greedy = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    start = time.monotonic()
    llm.generate(prompts, greedy, use_tqdm=False)
    return size * 16 / (time.monotonic() - start)
chat = [{{"role": "user", "content": "What is the capital of France?"}}]
(answer,) = llm.chat(chat, SamplingParams(temperature=0, max_tokens=12), use_tqdm=False)
print(answer.outputs[0].text)
print({{"unpacked": unpacked, "one": rate(1), "eight": rate(8)}})
"""


def page_of(*cells: str) -> str:
    """A page of live cells, as Sphinx writes it."""
    bodies = "".join(
        f'<div class="cell mv-code mv-code-at-{index} docutils container">'
        f'<div class="cell_input docutils container"><div class="highlight"><pre>'
        f'{html.escape(code)}</pre></div></div><div class="mv-code-bar" data-needs="" '
        f'data-role=""></div></div>'
        for index, code in enumerate(cells)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Cells</title>'
        '<link rel="icon" href="data:,"><script defer src="_static/stepper/cells.js"></script>'
        '</head><body><div class="mv-code-page" data-page="book/cells" '
        f'data-notebook="cells.json"></div>{bodies}</body></html>'
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of one page."""
    from minivllm_stepper import write_assets

    if why := why_no_model():
        pytest.skip(why)
    folder: Path = tmp_path_factory.mktemp("site")
    write_assets(folder / "_static")
    (folder / "cells.html").write_text(page_of(TINY, CHAT), encoding="utf-8")
    cells = [
        {"type": "code", "source": code, "tags": [], "needs": "", "setup": ""}
        for code in (TINY, CHAT)
    ]
    (folder / "cells.json").write_text(json.dumps({"cells": cells, "metadata": {}}))
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """The page's."""
    with serving(folder) as url:
        yield f"{url}cells.html"


@pytest.fixture
def cells(browser: Browser, address: str) -> Iterator[Page]:
    """The page, in a browser that has kept nothing."""
    with opened(browser, address) as page:
        yield page


@pytest.fixture
def isolated(browser: Browser, folder: Path) -> Iterator[Page]:
    """The same, where a page may have threads."""
    with serving(folder, isolated=True) as url, opened(browser, f"{url}cells.html") as page:
        assert page.evaluate("() => window.crossOriginIsolated")
        yield page


@contextmanager
def opened(browser: Browser, address: str) -> Iterator[Page]:
    """A page of cells."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address)
    page.wait_for_function("() => window.minivllmCells")
    yield page
    context.close()


def run(page: Page, index: int) -> str:
    """Run a cell; what it shows."""
    page.evaluate(
        """async (index) => {
          const cells = window.minivllmCells;
          await cells.run(cells.cells[index]);
        }""",
        index,
    )
    page.wait_for_function(
        "(i) => ['done', 'failed'].includes(window.minivllmCells.cells[i].root.dataset.state)",
        arg=index,
        timeout=180_000,
    )
    return page.locator(".cell").nth(index).locator(".cell_output").inner_text()


def changed(route: Route) -> None:
    response = route.fetch()
    body = bytearray(response.body())
    body[1000] ^= 1
    route.fulfill(response=response, body=bytes(body))


def cut(route: Route) -> None:
    response = route.fetch()
    route.fulfill(response=response, body=response.body()[:100_000])


FAULTS = {
    changed: "tiny-random is not the file that this site was built with",
    cut: "Loading tiny-random stopped after 0.1 MB of 0.8 MB",
    (lambda route: route.abort()): "tiny-random could not be loaded: ",
    (lambda route: route.fulfill(status=404)): "tiny-random could not be loaded: 404",
}
"""How the model's file may come, and what the reader is told."""


def test_faults_get_a_sentence_and_then_an_engine_says_what_the_desktops_says(cells: Page) -> None:
    file = f"**/{MODELS['tiny-random']}.bin*"
    for fault, words in FAULTS.items():
        cells.route(file, fault)
        assert words in run(cells, 0)
        cells.unroute(file)
    assert threads_of(run(cells, 0)) == 1


def threads_of(shown: str) -> int:
    """From what `TINY` shows; its tokens are those that the desktop's engine says."""
    tokens, preemptions, num_threads = json.loads(shown)
    llm = build(max_model_len=128)
    prompts = [[(7 * i + j) % 900 + 3 for j in range(20 + i)] for i in range(4)]
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    assert tokens == token_ids(llm, [{"prompt_token_ids": ids} for ids in prompts], greedy)
    assert preemptions > 0
    return int(num_threads)


BROKEN = {
    "as it is": ("", True),
    "no Worker in a Worker": ("delete self.Worker;", False),
    "a Worker that fails": (
        "const Real = Worker; self.Worker = class extends Real {"
        " constructor() { super(URL.createObjectURL(new Blob(['throw Error()']))); } };",
        False,
    ),
    "a Worker that says nothing": (
        "const Real = Worker; self.Worker = class extends Real {"
        " constructor() { super(URL.createObjectURL(new Blob(['']))); } };",
        False,
    ),
    "no shared memory": (
        "WebAssembly.Memory = new Proxy(WebAssembly.Memory, { construct(Real, [about]) {"
        " if (about.initial === 512) throw RangeError(); return new Real(about); } });",
        False,
    ),
    "another program": (
        "const real = WebAssembly.instantiate; WebAssembly.instantiate = (bytes, imports) =>"
        " imports?.env?.memory ? Promise.reject(Error()) : real(bytes, imports);",
        False,
    ),
}
"""Code before the worker's that breaks its threads, and whether there are some."""


@pytest.mark.parametrize("state", few(BROKEN, ("as it is", "a Worker that fails")))
def test_an_isolated_page_has_threads_or_else_one_and_the_same_tokens(
    isolated: Page, state: str
) -> None:
    code, has_threads = BROKEN[state]

    def begin_with(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=code + response.text())

    said: list[str] = []
    isolated.on("console", lambda message: said.append(message.text))
    isolated.route(WORKER, begin_with)
    cores = isolated.evaluate("() => navigator.hardwareConcurrency")
    assert threads_of(run(isolated, 0)) == (min(cores, 4) if has_threads else 1)
    assert said == []
    assert isolated.locator(".mv-code-note").count() == 0


def test_restarting_ends_the_threads(isolated: Page) -> None:
    threads = threads_of(run(isolated, 0))
    assert len(isolated.workers) == threads  # the first one runs Python
    isolated.evaluate("() => window.minivllmPython.kill('restarted')")
    for _ in range(100):
        if not isolated.workers:
            break
        isolated.wait_for_timeout(100)
    assert not isolated.workers
    assert threads_of(run(isolated, 0)) == len(isolated.workers) == threads


def test_a_model_that_does_not_load_leaves_no_threads(isolated: Page) -> None:
    file = f"**/{MODELS['tiny-random']}.bin*"
    isolated.route(file, cut)
    for _ in range(3):
        assert "Loading tiny-random stopped" in run(isolated, 0)
    isolated.unroute(file)
    threads = threads_of(run(isolated, 0))
    isolated.wait_for_timeout(3000)  # for those that are ending
    assert len(isolated.workers) == threads


WORKER = "**/_static/stepper/worker.js*"
KEEPS_NOTHING = {
    "full": (
        "CacheStorage.prototype.open = () => Promise.reject("
        "new DOMException('', 'QuotaExceededError'));",
        "there is no room",
    ),
    "forbidden": (
        "Object.defineProperty(self, 'caches', {value: undefined});",
        "may not keep it",
    ),
}
"""Code that makes a browser such, and what the reader is told."""


@pytest.mark.parametrize("state", few(KEEPS_NOTHING, ("full",)))
def test_a_browser_that_keeps_nothing_says_so_and_runs(cells: Page, state: str) -> None:
    code, words = KEEPS_NOTHING[state]

    def begin_with(route: Route) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=code + response.text())

    cells.route(WORKER, begin_with)
    assert run(cells, 0).startswith("[[[")
    assert words in cells.locator(".mv-code-note").inner_text()


def test_a_browser_without_simd_gets_a_sentence(cells: Page) -> None:
    def begin_with(route: Route) -> None:
        response = route.fetch()
        code = (
            "const real = WebAssembly.instantiate; WebAssembly.instantiate = (bytes, imports) =>"
            " bytes.byteLength < 1e5 && !Object.keys(imports ?? {}).length ? Promise.reject("
            "new WebAssembly.CompileError('invalid opcode')) : real(bytes, imports);"
        )
        route.fulfill(response=response, body=code + response.text())

    cells.route(WORKER, begin_with)
    assert "has no SIMD, which the model needs" in run(cells, 0)


def test_a_site_without_the_model_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minivllm_live import notebook_cells
    from minivllm_stepper import write_models

    monkeypatch.setenv("MINIVLLM_LIVE_MODEL", "0")
    why = "this site was built without one (MINIVLLM_LIVE_MODEL=0)."
    assert write_models(tmp_path / "models") == {"reason": why}
    assert not (tmp_path / "models").exists()
    cells = notebook_cells(ROOT / "book" / "01-two-numbers-racing.md")
    assert f"It runs a model: {why}" in {cell["needs"] for cell in cells}
    assert not any(cell["model"] for cell in cells)


def test_a_talk_refuses_what_it_cannot_run_and_asks_for_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import minivllm_talk_session as talk
    from minivllm_judge import Ask

    from minivllm.executor import wasm_executor

    for name in ("open_model", "default_model"):  # a page's Python sets them for good
        monkeypatch.setattr(wasm_executor, name, getattr(wasm_executor, name))
    session = talk.TalkSession()
    empty = json.loads(session.handle_json(json.dumps({"type": "talk", "prompts": ["a", " "]})))
    assert not empty["ok"]
    assert empty["errors"][0]["message"] == "Prompt B is empty: write something into it."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minivllm.engine.make_executor", lambda args: (_ for _ in ()).throw(Ask("?")))
        answer = session.handle_json(json.dumps({"type": "talk", "prompts": ["a", "b", "c"]}))
    assert json.loads(answer) == {"ask": "?"}


@pytest.mark.skipif(
    os.environ.get("MINIVLLM_ALL_LIVE") != "1", reason="MINIVLLM_ALL_LIVE=1: it takes a minute"
)
def test_the_default_model_answers_and_is_kept(cells: Page, address: str) -> None:
    assert run(cells, 1).startswith("The capital of France is Paris.")
    cells.reload()
    cells.wait_for_function("() => window.minivllmCells")
    cells.route("**/*.bin*", lambda route: route.abort())  # it is in the browser
    assert run(cells, 1).startswith("The capital of France is Paris.")


@pytest.mark.skipif(
    os.environ.get("MINIVLLM_ALL_LIVE") != "1", reason="MINIVLLM_ALL_LIVE=1: it takes a minute"
)
def test_talking_gives_the_text_that_was_recorded(browser: Browser, site_url: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{site_url}book/index.html")
    page.wait_for_function("() => document.querySelector('#talk').minivllm")
    stepper = page.locator("#talk")
    recorded = re.findall(r"assistant↵(.{12,24})", stepper.inner_text())
    assert len(recorded) == 3  # one answer for each prompt, at a preemption
    page.locator(".mv-talk-form button").click()
    page.get_by_text("The engine waits for its first step").wait_for(timeout=120_000)
    assert not [text for text in recorded if text in stepper.inner_text()]
    stepper.locator("[data-act=play]").click()
    page.wait_for_function(
        """(texts) => {
          const said = document.querySelector("#talk").innerText;
          return texts.every((text) => said.includes(text));
        }""",
        arg=recorded,
        timeout=60_000,
    )
    context.close()
