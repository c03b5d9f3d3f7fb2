"""Fixtures for the built book: the site on localhost, and a browser that may reach nothing else.

The browser is any Chromium there is: $CHROMIUM, one on the PATH, in a usual place, or Playwright's
own. Without one these tests are skipped, unless MINIVLLM_REQUIRE_BROWSER=1 makes that a failure.
"""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Playwright, Request, Route

# Each worker of pytest-xdist has a core to itself: more threads only fight over the same cores.
# Set before torch is imported, and inherited by the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

OPTIONAL = ("distributed", "pyarrow", "pandas", "triton", "build", "twine", "check_jsonschema")
"""What users do without, and .ci/requirements.txt brings."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--all-of-it`, as `make test-all` has it."""
    words = "repeat on all pages, exercises, models and sizes what is shown on a few"
    parser.addoption("--all-of-it", action="store_true", help=words)


def pytest_configure(config: pytest.Config) -> None:
    """Tests ask the environment: they are told before they are imported."""
    if config.getoption("all_of_it"):
        os.environ["MINIVLLM_ALL_LIVE"] = "1"


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """A file of tests that is skipped for want of an optional package fails where they must be."""
    outcome = yield
    fail_if_optional_was_missing(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """The same for one test."""
    outcome = yield
    fail_if_optional_was_missing(outcome.get_result())


def fail_if_optional_was_missing(report: Any) -> None:
    """Make a skip a failure if MINIVLLM_REQUIRE_OPTIONAL=1 and an optional package was missing."""
    if os.environ.get("MINIVLLM_REQUIRE_OPTIONAL") != "1" or report.outcome != "skipped":
        return
    missing = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    if missing and sys.platform == "linux":
        report.outcome = "failed"
        report.longrepr = (
            f"skipped ({report.longrepr}) where nothing may be for want of a package; missing: "
            f"{', '.join(missing)} (pip install -r .ci/requirements.txt)"
        )


def few(names: Iterable[str], first: Sequence[str]) -> list[Any]:
    """Parameters of a test that is slow in a page: those that begin so, and all of them where
    MINIVLLM_ALL_LIVE=1 asks for half an hour more."""
    skip = pytest.mark.skipif(
        os.environ.get("MINIVLLM_ALL_LIVE") != "1", reason="MINIVLLM_ALL_LIVE=1 runs all pages"
    )
    return [
        pytest.param(name, marks=() if name.startswith(tuple(first)) else skip) for name in names
    ]


ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "_build" / "html"

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
HOW_TO_GET_ONE = (
    "no Chromium: install one (Debian, Ubuntu: apt-get install chromium; anywhere: "
    "python -m playwright install chromium), or set CHROMIUM to its path"
)


@pytest.fixture(scope="session")
def playwright() -> Iterator[Playwright]:
    """Playwright itself, running."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as running:
        yield running


@pytest.fixture(scope="session")
def chromium_path(playwright: Playwright) -> str:
    """A Chromium to drive; skips the test, or fails it where a browser is required."""
    candidates = [os.environ.get("CHROMIUM"), *map(shutil.which, CHROMIUM_NAMES), *CHROMIUM_PLACES]
    for candidate in [*candidates, playwright.chromium.executable_path]:
        if candidate and Path(candidate).exists():
            return candidate
    if os.environ.get("MINIVLLM_REQUIRE_BROWSER") == "1":
        pytest.fail(HOW_TO_GET_ONE)
    pytest.skip(HOW_TO_GET_ONE)


@pytest.fixture(scope="session")
def browser(playwright: Playwright, chromium_path: str) -> Iterator[Browser]:
    """One headless browser for all tests."""
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    browser = playwright.chromium.launch(
        executable_path=chromium_path, args=["--no-sandbox"] if is_root else []
    )
    yield browser
    browser.close()


def newest_source() -> float:
    """When something that the site is built from last changed."""
    paths = [path for folder in ("book", "minivllm") for path in (ROOT / folder).rglob("*")]
    paths += [ROOT / name for name in ("_config.yml", "_toc.yml", "requirements.txt")]
    hidden = {"__pycache__", ".ipynb_checkpoints"}
    return max(p.stat().st_mtime for p in paths if p.is_file() and not hidden & set(p.parts))


@pytest.fixture(scope="session")
def site() -> Path:
    """The built site's folder; builds it if it is missing or older than its sources.

    One of pytest's workers builds, the others wait for it.
    """
    from minivllm.models.weight_cache import lock

    stamp = SITE / ".built"
    with lock(ROOT / "_build" / "site"):
        if not stamp.exists() or stamp.stat().st_mtime < newest_source():
            build = "from jupyter_book.cli.main import main; main()"
            command = [sys.executable, "-c", build, "build", str(ROOT)]
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
            env = {**os.environ, "PATH": path}
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
            assert done.returncode == 0, f"the book does not build:\n{done.stdout}\n{done.stderr}"
            assert stamp.exists(), f"the build wrote no site:\n{done.stdout}\n{done.stderr}"
    return SITE


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def site_url(site: Path) -> Iterator[str]:
    """The site's address on localhost, with a slash at its end."""
    handler = functools.partial(QuietHandler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that can reach localhost and files only.

    The test fails at its end if the page asked for anything else, or logged an error.
    """
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(15_000)
    problems: list[str] = []

    def guard(route: Route, request: Request) -> None:
        if request.url.startswith(("http://127.0.0.1:", "file:", "data:", "blob:")):
            route.continue_()
        else:
            problems.append(f"asked the network for {request.url}")
            route.abort()

    context.route("**/*", guard)
    page.on("console", lambda m: m.type == "error" and problems.append(f"console: {m.text}"))
    page.on("pageerror", lambda error: problems.append(f"uncaught: {error}"))
    page.on("response", lambda r: r.status >= 400 and problems.append(f"{r.status}: {r.url}"))
    yield page
    context.close()
    assert not problems, "\n".join(problems)


@pytest.fixture(scope="session")
def steppers_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Pages with steppers alone (tests/stepper_pages.py): quicker than the whole book."""
    pytest.importorskip("sphinx")
    from tests.stepper_pages import serving, write_site

    folder = tmp_path_factory.mktemp("steppers")
    write_site(folder)
    with serving(folder) as url:
        yield url


@pytest.fixture(scope="session")
def live_url(steppers_url: str) -> str:
    """The same; skips the test where Pyodide could not be had."""
    from minivllm_stepper import pyodide

    if pyodide() is None:
        pytest.skip("no Pyodide: python tools/get_pyodide.py gets it, with a network")
    return steppers_url
