"""How fast a stepper's page is, in headless Chromium with every network but localhost cut off.

    make book && .venv/bin/python benchmarks/stepper_page.py

- bytes: what a chapter loads, uncompressed, before its figures are in sight and after;
- first interaction: from navigation to the painted frame of the first click on Step, empty cache;
- run live: from the click on "Run live" to the first live step on show, cold, and from the cache;
- a live step at 200 requests: from the click to the painted frame, as the reader's browser sees it.

Each page load is served by http.server, which neither compresses nor sets a cache's lifetime.
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.server
import json
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.conftest import CHROMIUM_NAMES, QuietHandler  # noqa: E402

LIMITS = {
    "bytes with figures": 1_500_000,
    "first interaction, ms": 1_000,
    "run live cold, ms": 6_000,
    "run live from cache, ms": 2_000,
    "live step at 200 requests, ms": 16,
}
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
ARGS = ["--no-sandbox", NO_NETWORK]

# After the frame that a change leads to: a task queued from within its animation frame.
CLICK_TO_FRAME = """async (selector) => {
  const button = document.querySelector(selector);
  const start = performance.now();
  button.click();
  await new Promise((resolve) => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = resolve;
    channel.port2.postMessage(0);
  }));
  return performance.now() - start;
}"""
FIRST_CLICK = """async () => {
  const root = document.querySelector(".mv-stepper");
  const before = root.dataset.step;
  root.querySelector("[data-act='step']").click();
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
  if (root.dataset.step === before) throw new Error("it did not step");
  return performance.now();
}"""


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A static server; its address."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def load_bytes(page: Page, url: str) -> dict[str, int]:
    """Body bytes of a page and all it loads, before and after its figures are drawn."""
    sizes: dict[str, int] = {}
    page.on(
        "response",
        lambda r: (
            sizes.update({r.url: int(r.headers.get("content-length", 0))})
            if r.url.startswith("http")
            else None
        ),
    )
    page.goto(url, wait_until="networkidle")
    before = sum(sizes.values())
    for figure in page.locator(".mv-figure").all():
        figure.scroll_into_view_if_needed()
        page.wait_for_function("f => f.dataset.drawn", arg=figure.element_handle())
    page.wait_for_load_state("networkidle")
    return {"bytes before figures": before, "bytes with figures": sum(sizes.values())}


def first_interaction(page: Page, url: str) -> float:
    """Milliseconds since navigation began."""
    page.goto(url, wait_until="commit")
    page.wait_for_function("() => document.querySelector('.mv-stepper .mv-toolbar')", polling=5)
    return page.evaluate(FIRST_CLICK)


def run_live(page: Page, url: str) -> float:
    """Milliseconds from the click on "Run live" to a live step on show."""
    page.goto(url, wait_until="load")
    page.wait_for_selector(".mv-live-button:visible")
    return page.evaluate(
        """async () => {
          const root = document.querySelector(".mv-stepper");
          const start = performance.now();
          root.querySelector(".mv-live-button").click();
          while (root.dataset.live !== "on") {
            if (root.dataset.live === "dead") throw new Error("it did not start");
            await new Promise((resolve) => setTimeout(resolve, 5));
          }
          const before = Number(root.dataset.step);
          root.querySelector("[data-act='step']").click();
          while (Number(root.dataset.step) === before) {
            await new Promise((resolve) => setTimeout(resolve, 1));
          }
          await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
          return performance.now() - start;
        }"""
    )


def many_requests(num_requests: int, num_blocks: int) -> str:
    """A link's fragment: so many requests, most of them running at once."""
    scenario = {
        "version": 1,
        "name": "many",
        "title": f"{num_requests} requests",
        "config": {
            "num_gpu_blocks": num_blocks,
            "block_size": 8,
            "max_num_batched_tokens": 512,
            "max_num_seqs": 256,
        },
        "requests": [
            {
                "request_id": f"r{i}",
                "arrival_step": i // 8,
                "num_prompt_tokens": 8 + 5 * (i % 7),
                "max_tokens": 150,
            }
            for i in range(num_requests)
        ],
    }
    text = json.dumps(scenario, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def live_steps(page: Page, url: str, num_steps: int = 80) -> list[float]:
    """Milliseconds of each step once all requests have come."""
    page.goto(url, wait_until="load")
    page.wait_for_selector(".mv-live-button:visible")
    page.click(".mv-live-button")
    page.wait_for_selector(".mv-stepper[data-live='on']", timeout=60_000)
    page.evaluate("() => document.querySelector('.mv-stepper').minivllm.gotoStep(40)")
    page.wait_for_function("() => document.querySelector('.mv-stepper').dataset.step === '40'")
    times = []
    for _ in range(num_steps):
        times.append(page.evaluate(CLICK_TO_FRAME, "[data-act='step']"))
        page.wait_for_timeout(60)  # as a fast reader clicks
    assert page.evaluate("document.querySelector('.mv-stepper').dataset.step") == str(
        40 + num_steps
    )
    return times


def measure(context: BrowserContext, fresh: Any, url: str, chapter: str) -> dict[str, float]:
    """All of it; `fresh` makes a context with an empty cache."""
    results: dict[str, float] = {}
    with fresh() as cold:
        results |= load_bytes(cold.new_page(), url + chapter)
    with fresh() as cold:
        results["first interaction, ms"] = first_interaction(cold.new_page(), url + chapter)
    results["run live cold, ms"] = run_live(context.new_page(), url + chapter)
    warm = [run_live(context.new_page(), url + chapter) for _ in range(5)]
    results["run live from cache, ms"] = statistics.median(warm[1:])
    for num_blocks, name in (
        (4_000, "live step at 200 requests, ms"),
        (1_000, "with preemptions, ms"),
    ):
        link = f"{url}book/playground.html#stepper={many_requests(200, num_blocks)}"
        results[name] = statistics.median(live_steps(context.new_page(), link))
    return results


def chromium() -> str:
    """A Chromium on this machine."""
    import shutil

    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), "")
    if not found:
        sys.exit("no Chromium on the PATH; set CHROMIUM")
    return found


def main() -> None:
    """Print each measurement beside its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=Path, default=ROOT / "_build" / "html")
    parser.add_argument("--chapter", default="book/01-two-numbers-racing.html")
    options = parser.parse_args()
    with sync_playwright() as playwright, serving(options.site) as url:

        @contextmanager
        def fresh() -> Iterator[BrowserContext]:
            with tempfile.TemporaryDirectory() as folder:
                context = playwright.chromium.launch_persistent_context(
                    folder,
                    executable_path=chromium(),
                    args=ARGS,
                    viewport={"width": 1280, "height": 900},
                )
                yield context
                context.close()

        with fresh() as context:
            results = measure(context, fresh, url, options.chapter)
    for name, value in results.items():
        limit = LIMITS.get(name)
        words = "" if limit is None else f"   at most {limit:,}"
        print(f"{name:32} {value:12,.1f}{words}")


if __name__ == "__main__":
    main()
