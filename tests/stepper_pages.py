"""Pages with steppers and nothing else, made as the book's are; what a test reads of them."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from minivllm.stepper import SCENARIOS, Scenario
from minivllm.stepper.embed import entry_of, stepper_html
from minivllm.stepper.modules import STATIC, source
from tools.npm_package import NpmPackage, get_package
from tools.serve import SiteHandler

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request, Route


AXE = NpmPackage(
    "axe-core",
    "4.14.1",
    "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745",
    ("axe.min.js",),
)


def axe_code() -> str:
    """axe-core's code; skips the test, or fails it where a browser is required."""
    try:
        return (get_package(AXE) / AXE.files[0]).read_text("utf-8")
    except RuntimeError as error:
        if os.environ.get("MINIVLLM_REQUIRE_BROWSER") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


def check_axe(page: Page, *selectors: str) -> None:
    """No violation there that axe-core calls serious or critical."""
    found = page.evaluate(
        "(include) => axe.run({ include }, { resultTypes: ['violations'] })",
        [[selector] for selector in selectors],
    )
    bad = [
        (v["id"], v["help"], [node["html"][:200] for node in v["nodes"][:4]])
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]
    assert bad == []


def page_html(*steppers: Sequence[Scenario], step: int | None = None) -> str:
    """A page with one stepper for each list of scenarios."""
    from stepper_figure import figure

    bodies = []
    for number, scenarios in enumerate(steppers):
        entries = [entry_of(scenario) for scenario in scenarios]
        still = figure(entries[0]["scenario"], entries[0]["recording"], step)
        ident = "stepper" if number == 0 else f"stepper-{number + 1}"
        bodies.append(stepper_html(entries, ident, step, still))
    return (
        '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Steppers</title>'
        '<link rel="icon" href="data:,">'
        '<link rel="stylesheet" href="_static/stepper/view.css">'
        '<script defer src="_static/stepper/stepper.js"></script></head>'
        f"<body style='margin:8px'><main><h1>Steppers</h1>{''.join(bodies)}</main></body></html>"
    )


def write_site(folder: Path) -> None:
    """The stepper's files, Pyodide among them if it can be had, its modules, and some pages."""
    from minivllm_stepper import write_assets

    write_assets(folder / "_static")
    for name in ("view/limits.js", *(f"view/{path.name}" for path in STATIC.glob("view/*.js"))):
        (folder / "view").mkdir(exist_ok=True)
        (folder / name).write_text(source(name), encoding="utf-8")
    named = SCENARIOS.__getitem__
    pages = {
        "cramped": page_html([named("cramped")]),
        "swap": page_html([named("swap")]),
        "all": page_html([*SCENARIOS.values()]),
        "two": page_html([named("cramped")], [named("swap"), named("priority-inversion")]),
    }
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class IsolatingHandler(QuietHandler, SiteHandler):
    """As `make serve` and `make live` have it."""


@contextmanager
def serving(folder: Path, *, isolated: bool = False) -> Iterator[str]:
    """A server on localhost; its address, with a slash at its end."""
    kind = IsolatingHandler if isolated else QuietHandler
    handler = functools.partial(kind, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


BUSY = """() => window.minivllmCells.cells.some(
  (cell) => ["queued", "running"].includes(cell.root.dataset.state),
)"""
IDLE = """() => {
  const page = window.minivllmCells;
  const states = page.cells.map((cell) => cell.root.dataset.state);
  return !states.includes("running") && !states.includes("queued") && !page.buttons.all.hidden;
}"""


def press_run_all(page: Page) -> None:
    """Run all cells of a page, from its button to the end of the last one."""
    page.locator(".mv-code-page [data-act=all]").click(timeout=90_000)
    page.wait_for_function(BUSY)  # the press is heard: until then nothing has begun
    page.wait_for_function(IDLE, timeout=300_000)


@contextmanager
def guarded(browser: Browser, allowed: str = "\0", **options: Any) -> Iterator[Page]:
    """A page that reaches localhost only; at its end, an error on it is a failure here, but for
    what the console says with the words `allowed`."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    problems: list[str] = []

    def guard(route: Route, request: Request) -> None:
        if request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            problems.append(f"asked the network for {request.url}")
            route.abort()

    context.route("**/*", guard)
    page = context.new_page()
    page.set_default_timeout(15_000)

    def note(kind: str, text: str) -> None:
        if kind == "error" and allowed not in text:
            problems.append(f"console: {text}")

    page.on("console", lambda message: note(message.type, message.text))
    page.on("pageerror", lambda error: problems.append(f"uncaught: {error}"))
    page.on("response", lambda r: r.status >= 400 and problems.append(f"{r.status}: {r.url}"))
    yield page
    context.close()
    assert not problems, "\n".join(problems)


READ = """(root) => {
  const all = (selector) => [...root.querySelectorAll(selector)];
  const branch = root.querySelector(".mv-branch");
  const ids = (place) => [...branch.querySelectorAll(`.mv-row[data-place="${place}"]`)].map((row) => row.dataset.row);
  const rows = [...branch.querySelectorAll(".mv-row")];
  const cells = [...branch.querySelectorAll(".mv-cell")];
  return {
    step: Number(root.dataset.step),
    running: ids("running"),
    waiting: ids("waiting"),
    numbers: Object.fromEntries(rows.map((row) => [row.dataset.row, [Number(row.dataset.computed), Number(row.dataset.known)]])),
    texts: Object.fromEntries(rows.map((row) => [row.dataset.row, row.querySelector(".mv-number").textContent])),
    samples: rows.filter((row) => row.querySelector(".mv-bar-next").checkVisibility()).map((row) => row.dataset.row),
    victims: rows.filter((row) => row.dataset.victim === "true").map((row) => row.dataset.row),
    sentences: [...branch.querySelectorAll(".mv-sentences li:not([data-kind='end'])")].map((li) => li.textContent),
    states: cells.map((cell) => cell.dataset.state).join(""),
    refs: cells.map((cell) => Number(cell.dataset.refs)),
    owners: cells.map((cell) => cell.dataset.owners.split(" ").filter(Boolean)),
    queue: [...branch.querySelectorAll(".mv-free-queue li[data-block]")].map((li) => Number(li.dataset.block)),
    grants: [...branch.querySelectorAll(".mv-grants li[data-grant]")].map((li) => [li.dataset.grant, li.dataset.cap, parseInt(li.querySelector(".mv-number").textContent)]),
    budget: branch.querySelector(".mv-budget .mv-aside").textContent,
    cpu: [...branch.querySelectorAll(".mv-cpu-cell")].map((cell) => cell.dataset.req ?? null),
    said: root.querySelector(".mv-live-region").textContent,
  };
}"""  # noqa: E501


def read(page: Page, selector: str = ".mv-stepper") -> dict[str, Any]:
    """What a stepper shows, as its page says it."""
    return page.locator(selector).first.evaluate(READ)


def two_numbers(row: dict[str, Any]) -> str:
    """What stands beside a request's bar; proposed tokens come behind the known ones."""
    drafts = max(0, row["num_computed_tokens"] - row["num_tokens"])
    more = f" + {drafts}" if drafts else ""
    return f"{row['num_computed_tokens'] - drafts} / {row['num_tokens']}{more}"


def agrees(dom: Mapping[str, Any], snapshot: Mapping[str, Any], sentences: Sequence[str]) -> None:
    """What is shown is what the snapshot holds (of a pool that is small enough for cells)."""
    assert dom["step"] == snapshot["step"]
    assert (dom["running"], dom["waiting"]) == (snapshot["running"], snapshot["waiting"])
    requests = snapshot["requests"]
    assert dom["numbers"] == {
        id_: [row["num_computed_tokens"], row["num_tokens"]] for id_, row in requests.items()
    }
    assert dom["texts"] == {id_: two_numbers(row) for id_, row in requests.items()}
    assert set(dom["samples"]) == set(snapshot["sampled"])  # hollow: the gap that opens next
    preempted = {e["request_id"] for e in snapshot["events"] if e["type"] == "preempted"}
    assert set(dom["victims"]) == preempted
    told = dom["sentences"]
    assert told[: len(sentences)] == list(sentences)
    assert len(told) == len(sentences) or told[len(sentences) :][0].startswith("Stuck: ")
    blocks = snapshot["blocks"]
    assert dom["states"] == blocks["state"]
    assert dom["refs"] == blocks["ref_cnt"]
    assert dom["owners"] == blocks["owners"]
    assert dom["queue"] == blocks["free_queue"][:14]
    assert dom["grants"] == [
        [row["request_id"], row["cap"], row["num_scheduled_tokens"]]
        for row in snapshot["scheduled"]
    ]
    budget = snapshot["budget"]
    assert dom["budget"] == f"{budget['spent']} of {budget['max_num_batched_tokens']} tokens"
    assert dom["cpu"] == snapshot["cpu_blocks"]["owners"]
