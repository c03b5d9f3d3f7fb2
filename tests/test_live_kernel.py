"""`make live`: cells that no page can run, run by a real Jupyter server on this computer."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from conftest import few
from processes import end
from stepper_pages import guarded, press_run_all, serving

from tests.test_live_cells import OUTPUTS, act, cell, comparable, open_chapter, wait_for, write
from tools import live

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = "03-kv-cache-as-pages"
NEEDY = (CHAPTER, "05-chunked-prefill-and-the-budget", "12-gpu-and-vllm", "16-the-third-number")
IN_PAGE = "04-one-step-of-the-scheduler"
"""A chapter without a cell that needs PyTorch."""
KNOWN = "Canceled future"
"""What the library says in the console of a cell that ran when its kernel ended."""

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("site")]


class Live(NamedTuple):
    """A running `make live`."""

    address: str
    origin: str
    port: int
    token: str
    process: subprocess.Popen[str]

    def ask(self, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
        """What the Jupyter server answers, read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request(method, path, body="{}" if method == "POST" else None, headers=headers)
        response = connection.getresponse()
        response.body = response.read()
        connection.close()
        return response

    def kernels(self) -> set[str]:
        """The kernels that run, by id."""
        answer = self.ask("GET", "/api/kernels", Authorization=f"token {self.token}")
        return {row["id"] for row in json.loads(answer.body)}


@contextmanager
def running() -> Iterator[Live]:
    """`make live`, as the Makefile starts it, on ports of its own."""
    root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    process = subprocess.Popen(
        [sys.executable, "tools/live.py", str(live.free_port()), *root],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = ""
    try:
        for line in process.stdout:
            said += line
            if found := re.search(r"((http://127\.0\.0\.1:\d+)/\S+)#live=(\d+)\.(\w+)", line):
                break
        else:
            pytest.fail(f"it does not start:\n{said}")
        threading.Thread(target=process.stdout.read, daemon=True).start()  # so that it never waits
        address, origin, port, token = found.groups()
        server = Live(f"{address}#live={port}.{token}", origin, int(port), token, process)
        wait_until(lambda: is_listening(server.port))
        yield server
    finally:
        end(process)


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody answers there."""
    with socket.socket() as one:
        one.settimeout(5)
        return one.connect_ex((host, port)) == 0


def wait_until(what: Any, seconds: float = 30) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def server(site: Path) -> Iterator[Live]:
    """One for the tests that leave it alive."""
    if not (site / live.CLIENT).exists():
        pytest.skip("no @jupyterlab/services: python tools/get_services.py, with a network")
    with running() as one:
        yield one


def announce(page: Page, server: Live, name: str = CHAPTER) -> None:
    """Open the address that was printed, then a chapter."""
    page.goto(server.address)
    page.wait_for_function("() => !location.hash")
    open_chapter(page, f"{server.origin}/", name)


@pytest.fixture(scope="module")
def started(browser: Browser, server: Live) -> Iterator[Page]:
    """A chapter for the tests that can share a kernel."""
    with guarded(browser, allowed=KNOWN) as page:
        page.on("dialog", lambda dialog: dialog.accept())
        announce(page, server)
        page.locator(".mv-code-page [data-act=start]").click()
        page.locator(".mv-code-page [data-act=all]").wait_for(timeout=90_000)
        page.locator(".cm-content").first.wait_for()
        yield page


@pytest.fixture
def kernel(started: Page) -> Page:
    """That chapter as it was printed, Python up."""
    started.evaluate("() => window.minivllmCells.resetAll()")
    return started


def run(page: Page, code: str, state: str = "done", number: int = 0) -> str:
    """Write code into a cell, run it, and read what it shows."""
    write(page, number, code)
    act(page, number, "run")
    return wait_for(page, number, state)


# --- what a reader gets ---------------------------------------------------------------------------


def test_the_chapters_with_such_cells_are_these(site: Path) -> None:
    pages = (site / "book").glob("[01]*.html")
    assert {page.stem for page in pages if re.search('data-needs="[^"]', page.read_text())} == {
        *NEEDY
    }
    words = "164 kB"
    assert f"{(site / live.CLIENT).stat().st_size / 1000:.0f} kB" == words
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        assert words in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", few(NEEDY, ("03",)))
def test_a_torch_cell_says_what_the_build_printed_after_the_cells_above(
    browser: Browser, server: Live, name: str
) -> None:
    with guarded(browser) as page:
        announce(page, server, name)
        built: list[dict[str, Any]] = page.evaluate(OUTPUTS)
        torch = page.locator('.cell.mv-code:has(.mv-code-bar:not([data-needs=""]))')
        last = torch.last
        last.locator("[data-act=run]").click()
        last.and_(page.locator("[data-state=done]")).wait_for(timeout=180_000)
        states = page.evaluate("() => window.minivllmCells.all.map((c) => [c.index, c.everRan])")
        index = max(at for at, ran in states if ran)
        assert f"mv-code-at-{index}" in (last.get_attribute("class") or "")
        assert all(ran == (at <= index) for at, ran in states)
        press_run_all(page)
        ran: list[dict[str, Any]] = page.evaluate(OUTPUTS)
        assert len(ran) == len(built)
        for before, after in zip(built, ran, strict=True):
            assert after["state"] == "done", after
            said, printed = (comparable(row["text"], row["timed"]) for row in (after, before))
            assert said == printed, f"cell {after['index']}"
        assert not page.workers  # nothing ran in the page


def test_it_works_where_make_lab_does(kernel: Page) -> None:
    code = (
        "import os, sys, minivllm\nprint(os.getcwd(), sys.executable, minivllm.__file__, sep='\\n')"
    )
    cwd, python, package = run(kernel, code).strip().split("\n")
    assert Path(cwd) == ROOT / "book"
    assert Path(python).parent == Path(sys.executable).parent
    assert Path(package) == ROOT / "minivllm" / "__init__.py"


def test_interrupt_keeps_the_variables_restart_does_not(kernel: Page) -> None:
    write(
        kernel, 0, "import time\nkept = 1\nprint('begun', flush=True)\nwhile True: time.sleep(0.01)"
    )
    act(kernel, 0, "run")
    cell(kernel, 0).get_by_text("begun", exact=True).wait_for()  # the code says 'begun'
    act(kernel, 0, "stop")
    assert "KeyboardInterrupt" in wait_for(kernel, 0, "failed")
    assert "True" in run(kernel, "'kept' in globals()")
    kernel.locator(".mv-code-page [data-act=restart]").click()
    kernel.get_by_text("was started anew").wait_for(timeout=60_000)
    assert "False" in run(kernel, "'kept' in globals()")


def test_errors_streams_and_progress_look_as_elsewhere(kernel: Page) -> None:
    told = run(kernel, "def f():\n    return 1 / 0\nf()", "failed")
    assert "ZeroDivisionError" in told
    assert "\x1b" not in told
    assert "return 1 / 0" in told
    assert "StdinNotImplemented" in run(kernel, "input('name?')", "failed")
    shown = run(
        kernel, "import sys\nfor i in range(3): print(f'\\r{i} of 2', end='', file=sys.stderr)"
    )
    assert shown.strip() == "2 of 2"
    text = run(kernel, "print('x' * 1_000_010)")
    assert "11 more characters are not shown" in text
    assert (
        run(
            kernel, "from IPython.display import clear_output\nprint(1); clear_output(); print(2)"
        ).strip()
        == "2"
    )


def test_a_process_that_ends_is_told(kernel: Page) -> None:
    write(kernel, 0, "import os\nos._exit(3)")
    act(kernel, 0, "run")
    kernel.get_by_text("its process has ended").wait_for(timeout=60_000)
    assert "42" in run(kernel, "6 * 7")


def test_a_figure_is_drawn_in_the_pages_theme(kernel: Page) -> None:
    kernel.evaluate("() => { document.documentElement.dataset.theme = 'dark'; }")
    code = (
        "import plotly.graph_objects as go\nfrom minivllm.viz import offline\noffline.install()\n"
        "offline.show(go.Figure(go.Bar(y=[1, 2])), alt='Two bars.')"
    )
    run(kernel, code)
    cell(kernel, 0).locator(".mv-figure[data-drawn=dark] .main-svg").first.wait_for()
    kernel.evaluate("() => { document.documentElement.dataset.theme = 'light'; }")


def test_completion_knows_the_session(kernel: Page) -> None:
    run(kernel, "import collections\nété = '𝄞'; there = collections.OrderedDict()")
    write(kernel, 0, "'𝄞'; there.")
    kernel.keyboard.type("move")
    option = kernel.locator(".cm-tooltip-autocomplete li").first
    option.wait_for()
    assert option.inner_text() == "move_to_end"


def test_a_kernel_ends_with_its_page(browser: Browser, server: Live) -> None:
    """A page that leaves says so; Playwright would hold the message back if it routed requests."""
    context = browser.new_context()
    page = context.new_page()
    for leave in (lambda: page.goto(f"{server.origin}/book/index.html"), page.close):
        before = server.kernels()
        announce(page, server)
        act(page, 0, "run")
        wait_for(page, 0, "done")
        (own,) = server.kernels() - before
        leave()
        wait_until(lambda own=own: own not in server.kernels())
    context.close()


def test_a_stopped_server_is_told_in_a_sentence(browser: Browser, site: Path, server: Live) -> None:
    words = "The server of “make live” does not answer. Start it again, and open the address"
    with running() as own, guarded(browser, allowed="ERR_CONNECTION_REFUSED") as page:
        announce(page, own)
        act(page, 0, "run")
        wait_for(page, 0, "done")
        own.process.terminate()
        own.process.wait(20)
        status = page.locator(".mv-code-status")
        status.get_by_text(words).wait_for(timeout=30_000)
        page.evaluate("() => window.minivllmCells.say('')")
        act(page, 0, "run")
        status.get_by_text(words).wait_for(timeout=30_000)
        assert cell(page, 0).get_attribute("data-state") == ""


# --- who does not get in --------------------------------------------------------------------------


def test_the_token_is_handed_over_once_and_stands_nowhere(page: Page, server: Live) -> None:
    announce(page, server)
    assert server.token not in page.url
    assert server.token not in page.content()
    assert server.token in page.evaluate("() => sessionStorage.getItem('minivllm-live')")
    assert page.evaluate("() => document.cookie") == ""
    assert server.token not in page.evaluate("() => JSON.stringify({ ...localStorage })")
    page.go_back()
    assert server.token not in page.url
    for path in live.SITE.rglob("*"):
        assert not path.is_file() or server.token.encode() not in path.read_bytes(), path
    # Another address in the same tab, where only the fragment differs.
    page.goto(f"{server.origin}/book/index.html#live=1.ab")
    page.wait_for_function(
        "() => !location.hash && sessionStorage.getItem('minivllm-live').includes('ab')"
    )


REACH = """async ([url, token]) => {
  const tries = {
    plain: () => fetch(url + "api/kernels"),
    cookie: () => fetch(url + "api/kernels", { credentials: "include" }),
    header: () => fetch(url + "api/kernels", { headers: { Authorization: `token ${token}` } }),
    query: () => fetch(`${url}api/kernels?token=${token}`),
    start: () => fetch(`${url}api/kernels?token=${token}`, { method: "POST", body: "{}" }),
    blind: () => fetch(`${url}api/kernels?token=${token}`, { method: "POST", body: "{}", mode: "no-cors" }),
    socket: () => new Promise((resolve, reject) => {
      const socket = new WebSocket(`${url.replace("http", "ws")}api/events/subscribe?token=${token}`);
      socket.onopen = resolve;
      socket.onerror = () => reject(new Error("no socket"));
    }),
  };
  const got = [];
  for (const [name, reach] of Object.entries(tries)) {
    await reach().then(() => got.push(name), () => {});
  }
  return got;
}"""  # noqa: E501


@pytest.mark.parametrize("guess", ["", "0" * 48, "right"])
def test_a_page_of_another_origin_is_refused(
    browser: Browser, server: Live, tmp_path: Path, guess: str
) -> None:
    """Whatever token it has, it reads nothing and starts nothing."""
    token = server.token if guess == "right" else guess
    (tmp_path / "index.html").write_text("<!doctype html><title>Elsewhere</title>")
    before = server.kernels()
    context = browser.new_context()
    with serving(tmp_path) as url:
        page = context.new_page()
        page.goto(server.address)  # the browser has been at the book, as its reader's has
        page.goto(url)
        got = page.evaluate(REACH, [f"http://127.0.0.1:{server.port}/", token])
    context.close()
    assert got == ["blind"]  # which is sent, and answered to nobody
    assert server.kernels() == before


def test_the_server_asks_for_token_origin_and_host(server: Live) -> None:
    right, site = f"token {server.token}", server.origin
    elsewhere = "http://127.0.0.1:1"
    assert server.ask("GET", "/api/kernels").status == 403
    assert server.ask("GET", "/api/kernels", Authorization="token 0").status == 403
    assert server.ask("GET", "/api/kernels", Authorization="token 0", Origin=site).status == 403
    allowed = server.ask("GET", "/api/kernels", Authorization=right, Origin=site)
    assert allowed.status == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == site
    assert allowed.headers["Access-Control-Allow-Credentials"] is None
    assert allowed.headers["Set-Cookie"] is None
    assert "frame-ancestors 'self'" in allowed.headers["Content-Security-Policy"]
    for other in (elsewhere, "null", site.replace("127.0.0.1", "localhost"), f"{site}.example.com"):
        for method in ("GET", "POST", "DELETE"):
            refused = server.ask(method, "/api/kernels", Authorization=right, Origin=other)
            assert refused.status == 404, (method, other)
            assert refused.headers["Access-Control-Allow-Origin"] is None
    assert server.ask("GET", "/api/kernels", Authorization=right, Host="example.com").status == 403
    assert server.ask("GET", "/api/terminals", Authorization=right).status == 404


@pytest.mark.skipif(sys.platform != "linux", reason="all of 127.0.0.0/8 is Linux's own")
def test_both_servers_listen_on_one_address(server: Live) -> None:
    for port in (server.port, int(server.origin.rpartition(":")[2])):
        assert is_listening(port)
        assert not is_listening(port, "127.0.0.2")


# --- without it -----------------------------------------------------------------------------------


def asked_by(page: Page) -> list[str]:
    """What a page asks for, from now on."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    return asked


def test_without_a_server_nothing_is_asked_and_torch_cells_say_what_to_do(
    page: Page, site_url: str
) -> None:
    asked = asked_by(page)
    open_chapter(page, site_url, CHAPTER)
    page.wait_for_load_state("networkidle")
    assert [url for url in asked if not url.startswith(site_url) or "/jupyter/" in url] == []
    bar = page.locator('.mv-code-bar:not([data-needs=""])').first
    assert "make live" in bar.inner_text()
    assert "make lab" in bar.inner_text()
    assert bar.locator("[data-act=run]").count() == 0
    assert page.evaluate("() => window.minivllmCells.server") is None


def test_with_a_server_nothing_is_asked_before_the_press(page: Page, server: Live) -> None:
    announce(page, server)
    asked = asked_by(page)
    page.reload()
    page.wait_for_load_state("networkidle")
    assert [u for u in asked if not u.startswith(server.origin) or "/jupyter/" in u] == []
    assert "on this computer" in page.locator(".mv-code-status").inner_text()


def test_a_page_that_needs_none_stays_in_the_browser(page: Page, server: Live) -> None:
    announce(page, server, IN_PAGE)
    asked = asked_by(page)
    act(page, 0, "run")
    wait_for(page, 0, "done")
    assert page.evaluate("() => window.minivllmCells.server") is None
    assert [url for url in asked if f":{server.port}" in url or "/jupyter/" in url] == []
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert policy is not None
    assert "connect-src" not in policy


def test_a_page_that_is_not_at_home_takes_no_server(page: Page, site_url: str) -> None:
    """`localhost` is another origin than 127.0.0.1, and stands for any other here."""
    elsewhere = site_url.replace("127.0.0.1", "localhost")
    page.context.unroute_all()
    page.goto(f"{elsewhere}book/{CHAPTER}.html#live=1.ab")
    page.wait_for_function("() => window.minivllmCells")
    assert page.evaluate("() => sessionStorage.length") == 0
    assert page.evaluate("() => window.minivllmCells.server") is None


# --- the command ----------------------------------------------------------------------------------


def test_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "SITE", tmp_path)
    assert live.main([]) == 1
    assert "make book" in capsys.readouterr().err
    (tmp_path / live.FIRST_PAGE).parent.mkdir()
    (tmp_path / live.FIRST_PAGE).touch()
    assert live.main([]) == 1
    assert "get_services.py" in capsys.readouterr().err
    (tmp_path / live.CLIENT).parent.mkdir(parents=True)
    (tmp_path / live.CLIENT).touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert live.main([str(taken.getsockname()[1])]) == 1
    assert "PORT=8001" in capsys.readouterr().err
