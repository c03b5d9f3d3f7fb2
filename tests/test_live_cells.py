"""The live cells of the built pages say in the reader's browser what the build printed."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import few

from tests.stepper_pages import axe_code, check_axe, guarded, press_run_all

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted(path.stem for path in (ROOT / "book").glob("[01][0-9]-*.md"))
WITHOUT = ("13-interview-drill",)
"""The chapter without a cell to show."""
FEW = {"04-one-step-of-the-scheduler", "14-open-problems"}

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("site")]

# Of each live cell: its outputs as text, a figure as its data.
OUTPUTS = """() => window.minivllmCells.cells.filter((cell) => cell.isLive).map((cell) => {
  const copy = cell.box.cloneNode(true);
  for (const extra of copy.querySelectorAll("button, noscript, .mv-plot")) extra.remove();
  const words = (node) => node.textContent.replace(/[ \\t]+\\n/g, "\\n").replace(/\\n\\s*\\n/g, "\\n").trim();
  const timed = cell.root.classList.contains("tag_timed");
  return { index: cell.index, timed, text: [...copy.children].map(words).join("\\n"), state: cell.root.dataset.state };
})"""  # noqa: E501


def open_chapter(page: Page, site_url: str, name: str) -> None:
    """Go to a chapter and wait for its bar."""
    page.goto(f"{site_url}book/{name}.html")
    page.wait_for_function("() => window.minivllmCells")


def run_all(page: Page) -> None:
    """Start Python, then run every cell."""
    page.locator(".mv-code-page [data-act=start]").click()
    press_run_all(page)


def comparable(text: str, timed: bool = False) -> str:
    """A cell's text; what a clock measured differs from run to run. A cell with the tag `timed`
    has such numbers in a table, where nothing says that they are seconds."""
    if timed:
        return re.sub(r"[\d., ]+", " … ", text)
    return re.sub(r"\d[\d.,]*( ?(?:µs|ms|s|(?:micro|milli)?seconds?)\b)", r"…\1", text)


@pytest.mark.parametrize(
    "name", few([name for name in CHAPTERS if name not in WITHOUT], ("01", "04", "08", "13"))
)
def test_a_chapter_run_in_the_page_says_what_the_build_printed(
    page: Page, site_url: str, name: str
) -> None:
    open_chapter(page, site_url, name)
    built: list[dict[str, Any]] = page.evaluate(OUTPUTS)
    run_all(page)
    ran: list[dict[str, Any]] = page.evaluate(OUTPUTS)
    failed = {row["index"]: row["text"] for row in ran if row["state"] == "failed"}
    assert not failed, json.dumps(failed, indent=1)
    for before, after in zip(built, ran, strict=True):
        assert after["state"] == "done", f"cell {after['index']} did not run"
        said, printed = (comparable(row["text"], row["timed"]) for row in (after, before))
        assert said == printed, f"cell {after['index']}"


# --- what a reader does ---------------------------------------------------------------------------

CHAPTER = "04-one-step-of-the-scheduler"


def cell(page: Page, number: int) -> Any:
    """The live cell with this number, from 0."""
    return page.locator(".cell.mv-code").nth(number)


def act(page: Page, number: int, name: str) -> None:
    """Press one of a cell's buttons."""
    cell(page, number).locator(f"[data-act={name}]").click()


def wait_for(page: Page, number: int, state: str) -> str:
    """Wait for a cell's state; its outputs as text."""
    cell(page, number).and_(page.locator(f"[data-state={state}]")).wait_for(timeout=90_000)
    return cell(page, number).locator(".cell_output").inner_text()


def write(page: Page, number: int, code: str) -> None:
    """Replace a cell's code, by keyboard."""
    cell(page, number).locator(".cm-content").click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(code)


def start(page: Page, site_url: str) -> Page:
    """A chapter, Python up."""
    open_chapter(page, site_url, CHAPTER)
    page.locator(".mv-code-page [data-act=start]").click()
    page.locator(".mv-code-page [data-act=all]").wait_for(timeout=90_000)
    page.locator(".cm-content").first.wait_for()
    return page


@pytest.fixture(scope="module")
def started(browser: Browser, site_url: str) -> Iterator[Page]:
    """A chapter for the tests that can share a session."""
    with guarded(browser, allowed="Content Security Policy") as page:
        page.on("dialog", lambda dialog: dialog.accept())
        yield start(page, site_url)


@pytest.fixture
def live(started: Page) -> Page:
    """That chapter as it was printed, Python up."""
    started.evaluate("() => window.minivllmCells.resetAll()")
    return started


def test_before_the_press_nothing_is_loaded(page: Page, site_url: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    open_chapter(page, site_url, CHAPTER)
    page.wait_for_load_state("networkidle")
    heavy = [url for url in asked if re.search("pyodide|codemirror|zip|/live/", url)]
    assert not heavy
    assert page.locator(".cell.mv-code [data-act=run]").first.is_visible()


def test_the_cells_above_run_first_hidden_ones_too(page: Page, site_url: str) -> None:
    """The first press is on a cell in the middle: it needs what stands above it."""
    open_chapter(page, site_url, CHAPTER)
    act(page, 3, "run")
    wait_for(page, 3, "done")
    states = page.evaluate("() => window.minivllmCells.all.map((c) => [c.index, c.everRan])")
    index = page.evaluate("() => window.minivllmCells.cells[3].index")
    assert [at for at, ran in states if ran] == [at for at, _ in states if at <= index]
    assert len(states) > page.evaluate("() => window.minivllmCells.cells.length")


def test_edits_run_survive_a_reload_and_are_reset(live: Page, site_url: str) -> None:
    printed = cell(live, 0).locator(".cell_output").inner_text()
    write(live, 0, "for i in range(3):\n    print(10 / 2, i)")
    live.keyboard.press("Control+Enter")
    assert "5.0 2" in wait_for(live, 0, "done")
    open_chapter(live, site_url, CHAPTER)
    assert "print(10 / 2, i)" in cell(live, 0).locator(".cell_input").inner_text()
    act(live, 0, "run")
    assert "5.0 2" in wait_for(live, 0, "done")
    act(live, 0, "reset")
    assert cell(live, 0).locator(".cell_output").inner_text() == printed
    assert "drive_scenario" in cell(live, 0).locator(".cm-content").inner_text()
    assert live.evaluate("() => localStorage.length") == 0 or "minivllm-cells" not in live.evaluate(
        "() => Object.keys(localStorage).join()"
    )


def test_out_of_order_is_said_once(page: Page, site_url: str) -> None:
    live = start(page, site_url)
    act(live, 2, "run")
    wait_for(live, 2, "done")
    assert live.locator(".mv-code-note").count() == 0
    act(live, 0, "run")
    wait_for(live, 0, "done")
    assert "share one session" in live.locator(".mv-code-note").inner_text()
    live.evaluate("() => document.querySelector('.mv-code-note').remove()")
    act(live, 0, "run")
    wait_for(live, 0, "done")
    assert live.locator(".mv-code-note").count() == 0


def test_completion_knows_the_session(live: Page) -> None:
    act(live, 0, "run")
    wait_for(live, 0, "done")
    write(live, 2, "run.")
    live.keyboard.type("his")
    option = live.locator(".cm-tooltip-autocomplete li").first
    option.wait_for()
    assert option.inner_text().startswith("history")


def test_cells_and_steppers_share_one_worker(live: Page) -> None:
    assert len(live.workers) == 1
    live.locator(".mv-live-button").first.click()
    live.wait_for_function("() => document.querySelector('.mv-live-text').textContent === 'live'")
    assert len(live.workers) == 1
    write(live, 0, "from minivllm.stepper.session import record; type(record).__name__")
    act(live, 0, "run")
    assert "function" in wait_for(live, 0, "done")


def test_the_downloaded_notebook_holds_the_edits_and_runs(live: Page, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    text = live.evaluate("() => window.minivllmCells.cells[0].editor.text")
    write(live, 0, "edited = 1\n" + text)
    with live.expect_download() as download:
        live.locator(".mv-code-page [data-act=download]").click()
    assert download.value.suggested_filename == f"{CHAPTER}.ipynb"
    notebook = nbformat.read(download.value.path(), as_version=4)
    nbformat.validate(notebook)
    code = [row for row in notebook.cells if row.cell_type == "code"]
    assert code[0].source.startswith("edited = 1\n")
    assert len(code) > 15
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": ROOT}}).execute()


def test_errors_input_and_too_much_memory_end_the_cell_alone(live: Page) -> None:
    for code, words in (
        ("input('name?')", "input() cannot ask in this page"),
        ("import torch", "PyTorch does not run in the page"),
        ("%timeit 1", "they work in JupyterLab"),
        ("exit()", "SystemExit"),
        ("rows = []\nwhile True: rows.append(bytearray(200_000_000))", "MemoryError"),
    ):
        write(live, 0, code)
        act(live, 0, "run")
        assert words in wait_for(live, 0, "failed"), code
        write(live, 0, "rows = 0; 6 * 7")
        act(live, 0, "run")
        assert "42" in wait_for(live, 0, "done")


@pytest.mark.skipif(shutil.which("node") is None, reason="without node the sources stay")
def test_starting_compiles_nothing_of_the_standard_library(page: Page, site_url: str) -> None:
    """It was compiled when Pyodide was fetched, which halves the start."""
    live = start(page, site_url)
    code = """import sys
origins = [str(getattr(getattr(m, "__spec__", None), "origin", "")) for m in sys.modules.values()]
[path for path in origins if path.startswith("/lib/python3") and path.endswith(".py")]"""
    write(live, 0, code)
    act(live, 0, "run")
    assert wait_for(live, 0, "done").strip() == "[]"


def test_axe_finds_nothing_serious_in_cells_that_run(live: Page) -> None:
    write(live, 0, "import sys\nprint('a', file=sys.stderr)\n1 / 0  # one, over nothing")
    act(live, 0, "run")
    wait_for(live, 0, "failed")
    live.evaluate(axe_code())
    first, folded = live.evaluate(
        "() => [...document.querySelectorAll('.cell.mv-code')]"
        ".filter((cell, at) => at === 0 || cell.querySelector('details'))"
        ".map((cell) => '.' + [...cell.classList].find((name) => name.startsWith('mv-code-at')))"
    )[:2]
    for theme in ("dark", "light"):
        live.evaluate("(theme) => { document.documentElement.dataset.theme = theme; }", theme)
        check_axe(live, ".mv-code-page", first, f"{folded} summary")


def test_a_cell_is_used_by_keyboard_alone_on_a_phone(live: Page) -> None:
    size = live.viewport_size
    assert size is not None
    live.set_viewport_size({"width": 360, "height": 740})
    focused = "() => document.activeElement.dataset.act ?? document.activeElement.className"
    cell(live, 0).locator(".cm-content").focus()
    live.keyboard.press("Control+A")
    live.keyboard.type("if 6:\nprint(6 * 7)\nran")
    live.locator(".cm-tooltip-autocomplete").wait_for()
    live.keyboard.press("Escape")
    live.keyboard.type("ge(3)")
    assert live.evaluate(focused) == "cm-content"
    live.keyboard.press("Escape")
    live.keyboard.press("Tab")
    assert live.evaluate(focused) == "run"
    live.keyboard.press("Enter")
    assert "42" in wait_for(live, 0, "done")
    assert live.evaluate(focused) == "run"
    live.keyboard.press("Tab")
    assert live.evaluate(focused) == "reset"
    live.keyboard.press("Shift+Tab")
    live.keyboard.press("Shift+Tab")
    assert live.evaluate(focused) == "cm-content"
    assert live.evaluate("() => document.documentElement.scrollWidth") == 360
    live.set_viewport_size(size)


def test_a_cell_reaches_neither_the_page_nor_other_sites(live: Page) -> None:
    heard: list[str] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    page_url = live.url
    markup = (
        f'<img src="{url}img"><style>@import url("{url}css");</style>'
        f'<meta http-equiv="refresh" content="0;url={url}meta">'
        f'<link rel="prefetch" href="{url}link">'
        '<svg onload="window.wasHit = 1"></svg><img src="data:," onerror="window.wasHit = 2">'
        '<iframe srcdoc="<script>parent.wasHit = 3</script>"></iframe>'
        '<a class="evil" href="javascript:window.wasHit = 4">x</a>'
    )
    code = f"""
import js
print([name for name in ("document", "window", "localStorage") if hasattr(js, name)])
for start in (
    lambda: js.fetch("{url}fetch"),
    lambda: js.WebSocket.new("{url}socket".replace("http", "ws")),
    lambda: js.eval("import('{url}import')"),
    lambda: js.Worker.new("{url}worker"),
):
    try:
        start()
    except Exception:
        pass
request = js.XMLHttpRequest.new()
request.open("GET", "{url}xhr", False)
try:
    request.send()
except Exception as error:
    print(type(error).__name__)
display({{"text/html": {markup!r}}}, raw=True)
"""
    try:
        write(live, 0, code)
        act(live, 0, "run")
        assert "[]\nJsException" in wait_for(live, 0, "done")
        live.locator("a.evil").click()
        live.wait_for_timeout(300)
    finally:
        server.shutdown()
        server.server_close()
    assert heard == []
    assert live.evaluate("() => window.wasHit ?? null") is None
    assert live.url == page_url
    printed = "() => { window.print = () => { window.wasPrinted = true; }; "
    printed += "document.querySelector('button[onclick]').click(); return window.wasPrinted; }"
    assert live.evaluate(printed)  # the theme's own button goes on


def link_to(shared: object) -> str:
    """A link's fragment that holds this."""
    text = base64.urlsafe_b64encode(json.dumps(shared).encode()).decode().rstrip("=")
    return f"#policy={text}"


def test_a_link_with_code_runs_nothing_and_keeps_the_readers_own(page: Page, site_url: str) -> None:
    url = f"{site_url}book/change-the-scheduler.html"
    hostile = '<img src=x onerror="window.wasHit = 1"></textarea><script>window.wasHit = 2</script>'

    def follow(fragment: str) -> str:
        """The note beside the cell after a link to this page."""
        page.evaluate("() => document.querySelector('.mv-code-note')?.remove()")
        page.evaluate("(hash) => { location.hash = hash; }", fragment)
        page.locator(".mv-code-note").wait_for()
        return page.locator(".mv-code-note").inner_text()

    page.goto(url + link_to({"code": hostile, "printed": hostile}))
    page.locator(".mv-code-note", has_text="read it before you run it").wait_for()
    shown = page.evaluate("() => window.minivllmCells.cells[0].editor.text")
    assert shown == hostile
    assert hostile in page.locator(".mv-code-note").inner_text()
    for broken in ("#policy=AAAA", link_to({"code": 1, "printed": ""}), link_to([]), link_to(None)):
        assert "could not be read" in follow(broken)
    # Another link does not take the place of what stands in the cell, unless asked to.
    assert len(follow(link_to({"code": "1", "printed": "x" * 300_000}))) < 5_000
    assert page.evaluate("() => window.minivllmCells.cells[0].editor.text") == hostile
    page.locator("[data-act=take]").click()
    assert page.evaluate("() => window.minivllmCells.cells[0].editor.text") == "1"
    assert not page.workers
    assert page.evaluate("() => window.wasHit ?? null") is None


def test_an_endless_loop_is_stopped_and_the_page_says_what_is_lost(live: Page) -> None:
    write(live, 0, "kept = 1\nwhile True: pass")
    act(live, 0, "run")
    cell(live, 0).and_(live.locator("[data-state=running]")).wait_for()
    act(live, 0, "stop")
    status = live.locator(".mv-code-status")
    live.wait_for_function(
        "() => document.querySelector('.mv-code-status').textContent.includes('are lost')",
        timeout=90_000,
    )
    assert "you stopped a cell" in status.inner_text()
    write(live, 0, "'kept' in globals()")
    act(live, 0, "run")
    assert "False" in wait_for(live, 0, "done")


def test_a_page_from_disk_says_what_does_not_work(page: Page, site: Path) -> None:
    page.goto((site / "book" / f"{CHAPTER}.html").as_uri())
    page.wait_for_function("() => window.minivllmCells")
    assert "needs a web server" in page.locator(".mv-code-status").inner_text()
    assert not page.locator(".cell.mv-code [data-act=run]").first.is_visible()


def test_it_works_below_a_path(page: Page, site: Path) -> None:
    class Below(http.server.SimpleHTTPRequestHandler):
        def translate_path(self, path: str) -> str:
            below = path.removeprefix("/some/where")
            return super().translate_path(below if below != path else "/nothing")

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Below, directory=str(site))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        open_chapter(page, f"http://127.0.0.1:{server.server_port}/some/where/", CHAPTER)
        act(page, 0, "run")
        assert "max_num_seqs" in wait_for(page, 0, "done")
    finally:
        server.shutdown()
        server.server_close()
