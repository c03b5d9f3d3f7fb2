"""A recording in a page: the session that answers, and a file dropped on a stepper."""

from __future__ import annotations

import base64
import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest

from minivllm.incident import example, read_recording
from minivllm.runs.recorded import RecordedRun
from minivllm.stepper.recording import MAX_BLOCKS, RecordingSession
from tests.stepper_pages import guarded

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DATA = example("thrash").read_bytes()


def ask(session: RecordingSession, **message: Any) -> dict[str, Any]:
    answer = json.loads(session.handle_json(json.dumps({"id": 7, **message})))
    assert answer["id"] == 7
    return answer


def load(data: bytes) -> tuple[RecordingSession, dict[str, Any]]:
    session = RecordingSession()
    text = base64.b64encode(data).decode()
    return session, ask(session, type="load", data=text, name="server.jsonl.gz")


def test_it_is_loaded_sought_opened_and_stepped() -> None:
    session, loaded = load(DATA)
    assert loaded["ok"]
    assert loaded["num_steps"] == read_recording(DATA).num_steps
    assert ask(session, type="seek", step=319) == {"id": 7, "ok": True, "at": 319, "reached": True}
    opened = ask(session, type="open")
    assert opened["scenario"]["question"] == "Step 0 is step 319 of the run."
    whole = [
        {**step, "step": step["step"] - 319}
        for step in RecordedRun(read_recording(DATA), 319, 2).history.steps
    ]
    assert opened["steps"] == json.loads(json.dumps(whole[:1]))
    assert "preempts" in " ".join(opened["sentences"][0])
    stepped = ask(session, type="step", branch="main", count=1)
    assert stepped["steps"][0] == json.loads(json.dumps(whole[1]))
    assert ask(session, type="seek", step=5)["at"] == 5  # back: from the beginning


def test_a_long_way_is_told_as_it_is_made(monkeypatch) -> None:
    monkeypatch.setattr("minivllm.stepper.recording.STEPS_A_SEEK", 100)
    session, _ = load(DATA)
    ways = [ask(session, type="seek", step=250) for _ in range(3)]
    assert [way["at"] for way in ways] == [100, 200, 250]
    assert [way["reached"] for way in ways] == [False, False, True]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"type": "seek", "step": 1}, "no recording is loaded"),
        ({"type": "open"}, "no recording is loaded"),
        ({"type": "step"}, "no recording is open"),
        ({"type": ["x"]}, "no recording is open"),
        ({"type": "load"}, "a file of at most"),
        ({"type": "load", "data": "%%%"}, "did not arrive whole"),
        ({"type": "load", "data": ""}, "no header"),
        ({"type": "load", "data": base64.b64encode(b"hello").decode()}, "no recording"),
    ],
)
def test_what_cannot_be_answered_is_refused(message: dict[str, Any], says: str) -> None:
    answer = ask(RecordingSession(), **message)
    assert not answer["ok"]
    assert says in answer["errors"][0]["message"]


@pytest.mark.parametrize("step", [-1, 10**9, "3", None, 1.5, True])
def test_a_step_that_is_none_is_refused(step: object) -> None:
    session, loaded = load(DATA)
    answer = ask(session, type="seek", step=step)
    assert f"from 0 to {loaded['num_steps'] - 1}" in answer["errors"][0]["message"]


def test_garbage_is_answered() -> None:
    session = RecordingSession()
    for text in ("", "[", "[" * 100_000, "3", "null", '"x"'):
        assert not json.loads(session.handle_json(text))["ok"]


def test_of_a_large_pool_the_first_blocks_are_drawn() -> None:
    lines = gzip.decompress(DATA).splitlines()
    header = json.loads(lines[0])
    header["knobs"]["num_gpu_blocks"] = 50_000
    added = [line for line in lines if line.startswith(b'["a"')][:1]
    number = json.loads(added[0])[2]
    tokens = json.loads(added[0])[4]
    plan = ["s", 10**8, 10, [number], [1, tokens], [], 1, 0, 0, 0]
    blocks = list(range(1, -(-tokens // header["knobs"]["block_size"]) + 1))
    from minivllm.runs.recording import blocks_crc

    plan[8], plan[9] = 50_000 - len(blocks), blocks_crc({number: blocks})
    data = b"\n".join([json.dumps(header).encode(), *added, json.dumps(plan).encode()])
    session, loaded = load(data)
    assert loaded["ok"], loaded
    ask(session, type="seek", step=0)
    opened = ask(session, type="open")
    assert opened["config"]["num_gpu_blocks"] == MAX_BLOCKS
    assert len(opened["steps"][0]["blocks"]["state"]) == MAX_BLOCKS + 1
    assert "drawn are the first" in opened["scenario"]["question"]
    assert opened["notice"] is None  # which would say that the run cannot go on


# --- in the page ------------------------------------------------------------------------------

DEEP = gzip.decompress(DATA).splitlines()[0] + b'\n["s",' + b'{"a":[' * 50_000
"""A good header, and then a line that no page's Python has the stack for."""

DROP = """([text, name]) => {
  const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
  const files = new DataTransfer();
  files.items.add(new File([bytes], name));
  document.querySelector("#stepper").dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: files }));
}"""  # noqa: E501


@pytest.fixture
def stepper(browser: Browser, live_url: str) -> Any:
    with guarded(browser) as page:
        page.goto(live_url + "cramped.html")
        page.wait_for_function("() => document.querySelector('#stepper').minivllm")
        yield page


def drop(page: Page, data: bytes, name: str = "server.jsonl.gz") -> None:
    page.evaluate(DROP, [base64.b64encode(data).decode(), name])


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.xdist_group("site")
def test_a_dropped_recording_is_stepped_in_the_page(stepper: Page) -> None:
    drop(stepper, DATA)
    form = stepper.locator(".mv-recording form")
    form.wait_for(timeout=120_000)
    assert "server.jsonl.gz: vLLM 0.32.0" in stepper.locator("#stepper").inner_text()
    form.locator("input").fill("319")
    form.locator("button").click()
    stepper.wait_for_function(
        "() => document.querySelector('#stepper .mv-sentences')?.textContent.includes('preempts')",
        timeout=60_000,
    )
    whole = RecordedRun(read_recording(DATA), 319, 2).history.steps
    waiting = stepper.locator('#stepper .mv-row[data-place="waiting"]')
    assert waiting.count() == len(whole[0]["waiting"])
    stepper.locator('#stepper [data-act="step"]').click()
    stepper.wait_for_function(
        "(n) => document.querySelector('#stepper .mv-branch').dataset.step === String(n)",
        arg=1,
    )


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.xdist_group("site")
def test_hostile_files_dropped_on_the_page_are_refused_in_words(stepper: Page) -> None:
    for data in (b"", b"hello", DATA[:11], gzip.compress(b"[" * 100_000), DEEP):
        drop(stepper, data, "<img src=x onerror=alert(1)>.gz")
        status = stepper.locator(".mv-recording p")
        stepper.locator(".mv-recording p", has_text="was not opened").wait_for(timeout=120_000)
        assert "<img" in status.inner_text()
        assert stepper.locator(".mv-recording img").count() == 0
        stepper.evaluate("() => { document.querySelector('.mv-recording p').textContent = ''; }")
