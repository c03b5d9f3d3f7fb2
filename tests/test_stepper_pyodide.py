"""The scheduler in the reader's browser decides as CPython's does, byte for byte.

The page's own worker runs Pyodide (another CPython, built for WebAssembly) on the site's own copy
of minivllm. Both sides get the same messages; the answers, with all snapshots, are compared as
JSON text.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from minivllm.stepper import SCENARIOS, Scenario, StepperSession
from tests.stepper_pages import guarded
from tests.test_stepper_session import random_scenario

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("site")]

NUM_WORKLOADS = 200

START = """async (base) => {
  const worker = new Worker(base + "_static/stepper/worker.js", { type: "module" });
  const waiting = new Map();
  await new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => {
      if (data.ready) resolve();
      else if (data.failed) reject(new Error(data.failed));
      else if (data.id !== undefined) waiting.get(data.id)(data.text);
    };
    const load = { pyodide: base + "_static/pyodide/", packages: base + "_static/stepper/minivllm.zip", modules: 0 };
    worker.postMessage({ load });
  });
  window.ask = (id, text) => new Promise((resolve) => {
    waiting.set(id, resolve);
    worker.postMessage({ id, text });
  });
}"""  # noqa: E501
ANSWERS = """async (texts) => {
  const digests = [];
  for (const [index, text] of texts.entries()) {
    const bytes = new TextEncoder().encode(await window.ask(index, text));
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const hex = Array.from(digest, (x) => x.toString(16).padStart(2, "0")).join("");
    digests.push([bytes.length, hex]);
  }
  return digests;
}"""


@pytest.fixture(scope="module")
def worker(browser: Browser, live_url: str) -> Iterator[Page]:
    """A page whose `ask` sends a message to the site's own worker."""
    with guarded(browser) as page:
        page.set_default_timeout(60_000)
        page.goto(live_url + "cramped.html")
        page.evaluate(START, live_url)
        yield page


def whole_run(scenario: Scenario, id_: int) -> list[str]:
    """Messages that open a scenario and run it to its end."""
    data = [{"type": "open", "scenario": scenario.to_dict()}, {"type": "step", "count": 1_000}]
    return [json.dumps({"id": id_, **message}) for message in data]


def meddling(scenario: Scenario, seed: int) -> list[str]:
    """Messages that do all that a reader can do, some of them refused."""
    rng = random.Random(seed)
    some = rng.choice(scenario.requests).request_id
    more = {"request_id": "more", "num_prompt_tokens": rng.randint(1, 30), "max_tokens": 5}
    knobs = rng.choice(
        [
            {"num_gpu_blocks": rng.randint(1, 40)},
            {"max_num_batched_tokens": rng.randint(0, 40)},
            {"enable_prefix_caching": rng.random() < 0.5, "policy": "priority"},
            {"preemption_mode": "swap", "num_cpu_blocks": 20},
        ]
    )
    messages: list[dict[str, Any]] = [
        {"type": "open", "scenario": scenario.to_dict()},
        {"type": "step", "count": rng.randint(1, 12)},
        {"type": "add_request", "request": more},
        {"type": "step", "count": rng.randint(1, 6)},
        {"type": "abort", "request_id": some},
        {"type": "fork", "step": rng.randint(0, 4), "knobs": knobs},
        {"type": "step", "branch": "fork", "count": 40},
        {"type": "rewind", "step": rng.randint(0, 3)},
        {"type": "set_knobs", "knobs": knobs},
        {"type": "set_arrivals", "pattern": {"kind": "poisson", "per_step": 0.7, "seed": seed}},
        {"type": "step", "count": 1_000},
        {"type": "export"},
    ]
    return [json.dumps({"id": seed, **message}) for message in messages]


def compare(page: Page, texts: list[str]) -> None:
    """The same messages to both, and the same bytes back."""
    session = StepperSession()
    here = [session.handle_json(text).encode() for text in texts]
    there = page.evaluate(ANSWERS, texts)
    for text, mine, (length, digest) in zip(texts, here, there, strict=True):
        assert hashlib.sha256(mine).hexdigest() == digest, (
            f"{len(mine)} bytes here and {length} in the browser answer {text[:2_000]}"
        )


def test_it_is_another_python(worker: Page) -> None:
    """Else the comparison would prove little."""
    assert worker.evaluate("() => typeof WebAssembly.Module") == "function"
    answer = json.loads(worker.evaluate("() => window.ask('x', '{\"type\": \"step\"}')"))
    assert answer["ok"] is False
    assert "open" in answer["errors"][0]["message"]


def test_the_shared_scenarios_give_the_same_bytes(worker: Page) -> None:
    texts = [t for i, row in enumerate(SCENARIOS.values()) for t in whole_run(row, i)]
    compare(worker, texts)


def test_random_workloads_give_the_same_bytes(worker: Page) -> None:
    scenarios = [random_scenario(1_000 + seed) for seed in range(NUM_WORKLOADS)]
    session = StepperSession()
    preempted = 0
    for scenario in scenarios:  # they must be worth comparing
        session.handle({"type": "open", "scenario": scenario.to_dict()})
        session.main.run(1_000)
        preempted += any(step["stats"]["num_preemptions"] for step in session.main.steps)
    assert preempted > NUM_WORKLOADS / 5
    compare(worker, [t for i, row in enumerate(scenarios) for t in whole_run(row, i)])


def test_whatever_a_reader_does_gives_the_same_bytes(worker: Page) -> None:
    compare(worker, [t for seed in range(25) for t in meddling(random_scenario(seed), seed)])


def test_a_difference_would_be_found(worker: Page) -> None:
    """One token more in one prompt, on one side only."""
    scenario = SCENARIOS["cramped"].to_dict()
    texts = whole_run(SCENARIOS["cramped"], 1)
    scenario["requests"][0]["num_prompt_tokens"] += 1
    changed = [json.dumps({"id": 1, "type": "open", "scenario": scenario}), texts[1]]
    session = StepperSession()
    here = [hashlib.sha256(session.handle_json(text).encode()).hexdigest() for text in changed]
    there = [digest for _, digest in worker.evaluate(ANSWERS, texts)]
    assert here[1] != there[1]
