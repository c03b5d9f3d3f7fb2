"""How fast a model in a page is, in headless Chromium, from a site on localhost.

    make book && .venv/bin/python benchmarks/live_model.py [--model little-stories] [--peer FOLDER]

- cold, warm: from the press to the first token; with an empty browser, and with what it has kept,
  the median of the rounds; of it Python: until Python could run;
- tokens a second of one request and of eight together: decodes alone, the median of the rounds;
- click: the longest that the page's own thread was held up while eight requests ran;
- memory: of the page's process after that; of it Python: of one that has imported the engine and
  loaded no model.

`--peer`: `npm install @wllama/wllama` (llama.cpp in the browser) in that folder, measured in turns
with the same GGUF on one thread. Times are wall-clock: another program on the machine counts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from minivllm.models.config import DEFAULT_MODEL  # noqa: E402
from minivllm.models.loader import default_gguf  # noqa: E402
from tests.conftest import CHROMIUM_NAMES  # noqa: E402
from tests.stepper_pages import serving  # noqa: E402

PAGE = "book/01-two-numbers-racing.html"
ROUNDS = 3
SETUP = """
import time
from minivllm import LLMEngine, SamplingParams
if "engine" not in globals():
    engine = LLMEngine({model!r}, max_model_len=256, enable_prefix_caching=False)
def rate(size, num_tokens=24):
    greedy = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
    for i in range(size):
        prompt = [500 + 7 * i + j for j in range(16)]
        engine.add_request(str(i), {{"prompt_token_ids": prompt}}, greedy)
    engine.step()  # the prompts
    start = time.monotonic()
    while engine.has_unfinished_requests():
        engine.step()
    return size * (num_tokens - 1) / (time.monotonic() - start)
print({what})
"""
RUN = """async (code) => {
  const python = window.minivllmPython;
  const said = [];
  const take = ({ detail }) => said.push(detail.text ?? JSON.stringify(detail));
  python.addEventListener("output", take);
  for (;;) {
    const result = await python.send("cells", { call: "run", arguments: { code, replies: {} } });
    if (!result.ask) break;
    await python.loadModel(JSON.parse(result.ask).model);
  }
  python.removeEventListener("output", take);
  return said.join("");
}"""
WATCH = """() => {
  window.longest = 0;
  let last = performance.now();
  setInterval(() => {
    const now = performance.now();
    window.longest = Math.max(window.longest, now - last - 5);
    last = now;
  }, 5);
}"""
PEER = """async (size) => {
  let tokens = 0, first = null, last = 0;
  const one = (i) => window.peer.createCompletion({
    prompt: `The quick brown fox number ${i} jumps over the lazy dog and then it`,
    max_tokens: 24, temperature: 0, ignore_eos: true, cache_prompt: false, stream: true,
    onData: () => { last = performance.now(); if (first === null) first = last; else tokens += 1; },
  });
  await Promise.all(Array.from({ length: size }, (_, i) => one(i)));
  return tokens / ((last - first) / 1000);
}"""
LOAD_PEER = """async () => {
  const { Wllama } = await import("./esm/index.js");
  const wasm = "/peer/esm/wasm/wllama.wasm";
  window.peer = new Wllama({ default: wasm, "single-thread/wllama.wasm": wasm });
  const model = `${location.origin}/peer/model.gguf`;
  await window.peer.loadModelFromUrl(model, { n_threads: 1, n_ctx: 4096, n_parallel: 8, n_gpu_layers: 0 });
}"""  # noqa: E501


def run(page: Page, model: str, what: str) -> str:
    """Run a line in the page's Python; what it prints."""
    return str(page.evaluate(RUN, SETUP.format(model=model, what=what))).strip()


def first_token(page: Page, url: str, model: str) -> tuple[float, float]:
    """Seconds from the press to the first token, and to a Python that runs."""
    page.goto(f"{url}{PAGE}")
    page.wait_for_function("() => window.minivllmCells")
    start = time.monotonic()
    page.evaluate("() => window.minivllmCells.start()")
    python = time.monotonic() - start
    run(page, model, "rate(1, 2)")
    return time.monotonic() - start, python


def python_megabytes(page: Page, url: str) -> float:
    """Of a page whose Python has imported the engine and loaded no model."""
    page.goto(f"{url}{PAGE}")
    page.wait_for_function("() => window.minivllmCells")
    page.evaluate("() => window.minivllmCells.start()")
    page.evaluate(RUN, "from minivllm import LLMEngine, SamplingParams")
    return resident_megabytes()


def resident_megabytes() -> float:
    """Of the largest renderer on this machine."""
    done = subprocess.run(["ps", "-eo", "rss,args"], capture_output=True, text=True, check=True)
    sizes = [int(line.split()[0]) for line in done.stdout.splitlines() if "type=renderer" in line]
    return max(sizes, default=0) / 1000


def measure(site: Path, model: str, peer: Path | None) -> dict[str, Any]:
    """All of it, in one browser."""
    path = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    with sync_playwright() as playwright, serving(site) as url, tempfile.TemporaryDirectory() as d:
        context = playwright.chromium.launch_persistent_context(
            d, executable_path=path, args=["--no-sandbox"]
        )
        page = context.new_page()
        found: dict[str, Any] = {"cold, s": first_token(page, url, model)[0]}
        warm = [first_token(page, url, model) for _ in range(ROUNDS)]
        found["warm, s"], found["of it Python, s"] = map(statistics.median, zip(*warm))
        context.close()
        context = playwright.chromium.launch_persistent_context(
            d, executable_path=path, args=["--no-sandbox"]
        )
        page = context.new_page()
        found["of it Python, MB"] = python_megabytes(page, url)
        run(page, model, "rate(1, 2)")
        page.evaluate(WATCH)
        run(page, model, "rate(8)")
        found["click, ms"] = page.evaluate("() => window.longest")  # a page behind another waits
        theirs = None
        if peer is not None:
            theirs = context.new_page()
            theirs.goto(f"{url}peer/index.html")
            theirs.evaluate(LOAD_PEER)
        for size in (1, 8):
            rates: dict[str, list[float]] = {"ours": [], "peer": []}
            for _ in range(ROUNDS):
                rates["ours"].append(float(run(page, model, f"rate({size})")))
                if theirs is not None:
                    rates["peer"].append(float(theirs.evaluate(PEER, size)))
            for name, values in rates.items():
                if values:
                    found[f"tokens/s, {size} together, {name}"] = statistics.median(values)
        found["memory, MB"] = resident_megabytes()
        context.close()
    return {name: round(value, 1) for name, value in found.items()}


def main() -> None:
    """Print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--site", type=Path, default=ROOT / "_build" / "html")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--peer", type=Path, help="a folder with node_modules/@wllama/wllama")
    args = parser.parse_args()
    if args.peer is not None:
        folder, gguf = args.site / "peer", default_gguf()
        assert gguf is not None
        source = args.peer / "node_modules" / "@wllama" / "wllama" / "esm"
        shutil.copytree(source, folder / "esm", dirs_exist_ok=True)
        shutil.copyfile(gguf, folder / "model.gguf")
        (folder / "index.html").write_text("<!doctype html><meta charset=utf-8><title>peer</title>")
    try:
        print(json.dumps(measure(args.site, args.model, args.peer), indent=2))
    finally:
        if args.peer is not None:
            shutil.rmtree(args.site / "peer")


if __name__ == "__main__":
    main()
