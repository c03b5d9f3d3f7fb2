"""The stepper as a widget: its traits and methods, and a real JupyterLab with a real kernel."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from processes import end

from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig
from minivllm.runs import InputLog
from minivllm.stepper import SCENARIOS, ScenarioError, record

pytest.importorskip("anywidget")

from minivllm.stepper.widget import SchedulerStepper

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]


# --- Python alone -----------------------------------------------------------------------------


def sent(widget: SchedulerStepper, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    monkeypatch.setattr(widget, "send", lambda content, buffers=None: messages.append(content))
    return messages


def test_steps_are_traits_that_others_can_follow() -> None:
    widget, seen = SchedulerStepper("cramped"), []
    widget.observe(lambda change: seen.append(change["new"].get("step")), "snapshot")
    assert (widget.step, widget.snapshot["step"], len(widget.history)) == (0, 0, 1)
    widget.step_forward()
    widget.step = 6
    assert seen == [1, 6]
    assert widget.snapshot == record(SCENARIOS["cramped"])["steps"][6]
    assert widget.sentences == record(SCENARIOS["cramped"])["sentences"][6]
    widget.goto(2)
    assert len(widget.history) == 7
    widget.run()
    assert widget.done
    assert widget.step == len(widget.history) - 1 == 27
    widget.step = 10**6
    assert widget.step == 27
    widget.step = -5
    assert (widget.step, widget.snapshot) == (-1, {})


def test_reset_knobs_forks_and_requests() -> None:
    widget = SchedulerStepper("cramped", step=9)
    fork = widget.fork(5, num_gpu_blocks=34)
    assert fork is widget.fork_history
    assert fork[9]["running"] != widget.history[9]["running"]
    assert fork.steps[:5] == widget.history.steps[:5]
    widget.set_knobs(num_gpu_blocks=40)
    assert (widget.step, len(widget.history)) == (9, 10)
    assert widget.fork_history is None
    assert widget.snapshot["running"] == ["r0", "r1", "r2", "r3", "r4"]
    widget.add_request({"request_id": "x", "num_prompt_tokens": 4})
    widget.abort("r0")
    events = widget.step_forward()["events"]
    assert [event["type"] for event in events[:2]] == ["arrived", "aborted"]
    widget.reset()
    assert (widget.step, widget.snapshot, len(widget.history)) == (-1, {}, 0)
    with pytest.raises(ScenarioError, match="max_num_seqs must lie in 1"):
        widget.set_knobs(max_num_seqs=0)
    with pytest.raises(ScenarioError, match="block_size"):
        widget.fork(0, block_size=2)


def test_a_scenario_of_ones_own() -> None:
    config = SchedulerConfig(num_gpu_blocks=8, block_size=4)
    requests = [
        Request("a", [1, 2, 3], SamplingParams(max_tokens=2)),
        {"request_id": "b", "num_prompt_tokens": 4, "arrival_step": 1},
    ]
    widget = SchedulerStepper(config=config, requests=requests, title="Mine")
    assert widget.snapshot["running"] == ["a"]
    assert widget.step_forward()["running"] == ["a", "b"]
    with pytest.raises(ScenarioError, match="num_gpu_blocks"):
        SchedulerStepper(config={"num_gpu_blocks": 0}, requests=[])
    with pytest.raises(ValueError, match="cramped"):
        SchedulerStepper("no-such")
    with pytest.raises(ValueError, match="not both"):
        SchedulerStepper()
    with pytest.raises(ValueError, match="cannot step a int"):
        SchedulerStepper(3)


def test_a_scheduler_that_runs_already() -> None:
    scheduler = Scheduler(SchedulerConfig(num_gpu_blocks=8, block_size=4), observer=InputLog())
    scheduler.add_request(Request("a", [1, 2, 3], SamplingParams(max_tokens=4)))
    widget = SchedulerStepper(scheduler)
    assert widget.step == -1
    widget.step_forward(2)
    assert scheduler.step == 2
    output = scheduler.schedule()  # from outside
    scheduler.update_from_output(output, {"a": 5})
    widget.refresh()
    assert widget.step == 2
    widget.add_request({"request_id": "b", "num_prompt_tokens": 2, "max_tokens": 1})
    assert widget.step_forward()["running"] == ["a", "b"]
    assert widget.run()["step"] == 3
    with pytest.raises(ScenarioError, match="live"):
        widget.fork(1, max_num_seqs=1)
    with pytest.raises(ScenarioError, match="live"):
        widget.reset()
    with pytest.raises(ValueError, match="record=True"):
        SchedulerStepper(Scheduler(SchedulerConfig(num_gpu_blocks=8)))


class Tokenizer:
    """Token 65 is "A"; 200 is half a character."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).decode("utf-8", "replace")


class Engine:
    """As much of an engine as the widget asks for."""

    def __init__(self) -> None:
        config = SchedulerConfig(num_gpu_blocks=8, block_size=4)
        self.scheduler = Scheduler(config, observer=InputLog())
        self.script = iter([65, 0xC3, 0xA9, 66])

    def add_request(self, request_id: str, prompt: str, params: SamplingParams) -> None:
        if not prompt:
            raise ValueError("the prompt is empty")
        self.scheduler.add_request(Request(request_id, list(prompt.encode()), params))

    def abort_request(self, request_ids: str) -> None:
        from minivllm.core import RequestStatus

        self.scheduler.finish_requests(request_ids, RequestStatus.FINISHED_ABORTED)

    def has_unfinished_requests(self) -> bool:
        return self.scheduler.has_unfinished_requests()

    def get_tokenizer(self) -> Tokenizer:
        return Tokenizer()

    def step(self) -> None:
        output = self.scheduler.schedule()
        sampled = {id_: next(self.script) for id_ in output.num_scheduled_tokens}
        self.scheduler.update_from_output(output, sampled)


def test_an_engines_tokens_show_as_text_and_half_a_character_waits() -> None:
    widget = SchedulerStepper(Engine())
    widget.add_request({"request_id": "a", "prompt": "hé", "max_tokens": 4})
    widget.run()
    assert widget.done
    state = widget._state()["main"]
    assert state["prompts"] == {"a": "hé"}
    assert state["texts"] == [{"a": "A"}, {"a": ""}, {"a": "é"}, {"a": "B"}]
    with pytest.raises(ScenarioError, match="empty"):
        widget.add_request({"request_id": "b", "prompt": ""})
    with pytest.raises(ScenarioError, match="max_tokens"):
        widget.add_request({"request_id": "b", "prompt": "x", "max_tokens": -1})


def test_every_view_hears_of_a_step_and_who_asked_knows_its_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    widget = SchedulerStepper("cramped")
    messages = sent(widget, monkeypatch)
    widget._on_message(widget, {"type": "step", "branch": "main", "id": "view/1"}, [])
    widget.step_forward(3)
    assert [m.get("id") for m in messages] == ["view/1", None]
    assert [m["first_step"] for m in messages] == [1, 2]
    widget._on_message(widget, {"type": "state", "id": "view/2"}, [])
    assert len(messages[-1]["main"]["steps"]) == 4
    widget._on_message(widget, {"type": "nonsense", "id": "view/3"}, [])
    assert messages[-1]["ok"] is False
    widget._on_message(widget, "nonsense", [])
    assert messages[-1]["ok"] is False


def test_a_front_end_cannot_forge_a_snapshot() -> None:
    widget = SchedulerStepper("cramped")
    before = widget.snapshot
    widget.set_state({"snapshot": {"forged": 1}, "step": 0, "selection": "r1", "is_live": True})
    assert widget.snapshot == before
    assert widget.selection == "r1"
    assert widget.is_live is False


def test_without_a_kernel_the_cell_shows_the_recorded_run() -> None:
    widget = SchedulerStepper("cramped", step=5)
    bundle, _ = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    html = bundle["text/html"]
    assert 'data-step="5"' in html
    found = re.search(r'mv-stepper-data">([A-Za-z0-9+/=]+)</script>', html)
    assert found
    [entry] = json.loads(gzip.decompress(base64.b64decode(found[1])))
    assert entry["recording"]["steps"] == record(SCENARIOS["cramped"])["steps"]
    assert entry["scenario"] == SCENARIOS["cramped"].to_dict()
    assert "FCFS preempts the last running, r3" in html


def test_the_widget_needs_neither_torch_nor_a_network() -> None:
    code = (
        "import sys; from minivllm.stepper import SchedulerStepper as S; S('swap').run()\n"
        "assert 'torch' not in sys.modules\n"
        "assert 'http://' not in S._esm.replace('http://www.w3.org', '')\n"
        "assert 'https://' not in S._esm\n"
        "assert 'import ' not in [line[:7] for line in S._esm.splitlines()]\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# --- JupyterLab -------------------------------------------------------------------------------


CELLS = (
    "from minivllm.stepper import SchedulerStepper\n"
    "stepper = SchedulerStepper('cramped', scenarios=['swap'])\nstepper",
    "import ipywidgets\n"
    "slider = ipywidgets.IntSlider(max=27, description='step')\n"
    "link = ipywidgets.link((stepper, 'step'), (slider, 'value'))\nslider",
)


ENGINE_CELLS = (
    "from minivllm import LLMEngine\n"
    "from minivllm.stepper import SchedulerStepper\n"
    "engine = LLMEngine('tiny-random', device='cpu', max_model_len=64, block_size=4,\n"
    "                   num_gpu_blocks=16, max_num_batched_tokens=16, record=True)\n"
    "stepper = SchedulerStepper(engine)\nstepper",
)


def write_notebook(path: Path, sources: tuple[str, ...]) -> None:
    """A notebook of these code cells."""
    cells = [
        {"cell_type": "code", "source": source, "metadata": {}, "outputs": [], "id": f"c{i}",
         "execution_count": None}
        for i, source in enumerate(sources)
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": kernel},
        "cells": cells,
    }
    path.write_text(json.dumps(notebook))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A JupyterLab of its own on localhost: its address, and the folder of its runtime files."""
    pytest.importorskip("jupyterlab")
    folder = tmp_path_factory.mktemp("lab")
    write_notebook(folder / "stepper.ipynb", CELLS)
    write_notebook(folder / "engine.ipynb", ENGINE_CELLS)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "HOME": str(folder),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=",
        "--ServerApp.password=", f"--ServerApp.root_dir={folder}", "--expose-app-in-browser",
        "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    log = (folder / "lab.log").open("w")
    server = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 40
        while True:
            try:
                urllib.request.urlopen(f"{url}/api/status", timeout=2).close()
                break
            except OSError:
                running = server.poll() is None and time.monotonic() < deadline
                assert running, (folder / "lab.log").read_text()[-3000:]
                time.sleep(0.2)
        yield url, folder
    finally:
        end(server)
        log.close()


@pytest.fixture
def lab_page(browser: Browser) -> Iterator[Page]:
    """A page that can reach localhost only."""
    context = browser.new_context(viewport={"width": 1400, "height": 1100})
    context.route(
        "**/*",
        lambda route, request: (
            route.continue_()
            if request.url.startswith(("http://127.0.0.1:", "data:", "blob:"))
            else route.abort()
        ),
    )
    page = context.new_page()
    page.set_default_timeout(30_000)
    yield page
    context.close()


class Kernel:
    """The notebook's kernel, asked from outside the browser."""

    def __init__(self, url: str, folder: Path, notebook: str) -> None:
        from jupyter_client import BlockingKernelClient

        with urllib.request.urlopen(f"{url}/api/sessions", timeout=10) as answer:
            [session] = [row for row in json.load(answer) if row["path"] == notebook]
        path = folder / "runtime" / f"kernel-{session['kernel']['id']}.json"
        self.client = BlockingKernelClient(connection_file=str(path))
        self.client.load_connection_file()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=30)

    def value(self, expression: str) -> Any:
        ask = {"value": f"__import__('json').dumps({expression})"}
        reply = self.client.execute("", user_expressions=ask, reply=True, timeout=30)
        result = reply["content"]["user_expressions"]["value"]
        assert result["status"] == "ok", result
        return json.loads(eval(result["data"]["text/plain"]))

    def run(self, code: str) -> None:
        reply = self.client.execute(code, reply=True, timeout=30)
        assert reply["content"]["status"] == "ok", reply["content"]

    def close(self) -> None:
        self.client.stop_channels()


READ_DOM = """() => {
  const rows = (place) => [...document.querySelectorAll(`.mv-row[data-place="${place}"]`)];
  const stepper = document.querySelector(".mv-stepper");
  const ids = (list) => list.map((row) => row.dataset.row);
  const all = [...rows("running"), ...rows("waiting")];
  return {
    step: Number(stepper.dataset.step),
    running: ids(rows("running")),
    waiting: ids(rows("waiting")),
    numbers: Object.fromEntries(all.map((row) =>
      [row.dataset.row, [Number(row.dataset.computed), Number(row.dataset.known)]])),
    victims: ids(all.filter((row) => row.dataset.victim === "true")),
    sentences: [...document.querySelectorAll(".mv-sentences li")].map((li) => li.textContent),
    slider: Number(document.querySelector(".widget-readout")?.textContent ?? -1),
  };
}"""


def agrees(dom: dict[str, Any], snapshot: dict[str, Any], sentences: list[str]) -> None:
    assert dom["step"] == snapshot["step"]
    assert dom["running"] == snapshot["running"]
    assert dom["waiting"] == snapshot["waiting"]
    assert dom["numbers"] == {
        id_: [row["num_computed_tokens"], row["num_tokens"]]
        for id_, row in snapshot["requests"].items()
    }
    preempted = {e["request_id"] for e in snapshot["events"] if e["type"] == "preempted"}
    assert set(dom["victims"]) == preempted
    assert dom["sentences"] == sentences
    assert dom["slider"] == snapshot["step"]


def run_notebook(page: Page, url: str, name: str) -> None:
    """Open a notebook, run all cells, and wait for its stepper."""
    page.goto(f"{url}/lab/workspaces/{Path(name).stem}/tree/{name}")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_function(
        "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
        "?.connectionStatus === 'connected'"
    )
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(".mv-stepper[data-live='on']")


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.xdist_group("lab")
def test_jupyterlab_steps_what_the_kernel_computes(lab: tuple[str, Path], lab_page: Page) -> None:
    url, folder = lab
    page = lab_page
    run_notebook(page, url, "stepper.ipynb")
    page.wait_for_selector(".widget-readout")
    kernel = Kernel(url, folder, "stepper.ipynb")

    def wait_for(step: int) -> None:
        page.wait_for_function(
            "(step) => document.querySelector('.mv-stepper').dataset.step === String(step)"
            " && document.querySelector('.widget-readout').textContent === String(step)",
            arg=step,
        )

    def compare() -> None:
        agrees(
            page.evaluate(READ_DOM),
            kernel.value("stepper.snapshot"),
            kernel.value("stepper.sentences"),
        )

    try:
        wait_for(0)
        compare()
        for step in range(1, 12):  # through two preemptions
            page.click(".mv-button[data-act='step']")
            wait_for(step)
            compare()
        assert kernel.value("stepper.history[11]['stats']['num_preemptions']") == 1
        page.click(".mv-button[data-act='back']")
        wait_for(10)
        compare()

        kernel.run("stepper.step = 20")  # Python steps, the view follows
        wait_for(20)
        compare()
        page.click(".mv-row[data-row='r2'] .mv-row-main")
        page.wait_for_function(
            "() => document.querySelector('.mv-row-main[aria-pressed=\"true\"]')"
        )
        deadline = time.monotonic() + 10
        while kernel.value("stepper.selection") != "r2":
            assert time.monotonic() < deadline
            time.sleep(0.05)

        kernel.run("stepper.set_knobs(num_gpu_blocks=40)")
        kernel.run("stepper.step = 6")
        wait_for(6)
        compare()
        assert kernel.value("len(stepper.snapshot['running'])") == 5

        kernel.run("f = stepper.fork(3, max_num_seqs=2)")
        page.wait_for_selector(".mv-branch[data-branch='fork']")
    finally:
        kernel.close()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.xdist_group("lab")
def test_jupyterlab_gives_a_real_engine_prompts(lab: tuple[str, Path], lab_page: Page) -> None:
    pytest.importorskip("torch")
    url, folder = lab
    page = lab_page
    run_notebook(page, url, "engine.ipynb")
    kernel = Kernel(url, folder, "engine.ipynb")
    drawer = page.locator(".mv-drawer:visible")

    def message(field: str) -> str:
        return drawer.locator(f".mv-field[data-field='{field}'] .mv-error").inner_text()

    try:
        assert page.locator(".mv-tab").all_inner_texts() == ["Knobs", "Add a prompt", "Keys"]
        page.locator(".mv-tab", has_text="Knobs").click()
        for name in ("num_gpu_blocks", "max_num_batched_tokens", "enable_prefix_caching"):
            value = drawer.locator(f"[data-knob='{name}']").inner_text()
            assert value.lower() == str(kernel.value(f"engine.scheduler.config.{name}")).lower()

        page.locator(".mv-tab", has_text="Add a prompt").click()
        drawer.locator("textarea").fill("")
        drawer.locator(".mv-primary").click()
        assert "write something" in message("prompt")
        for name in ("first", "second"):
            drawer.locator("textarea").fill(f"A {name} prompt with <b>markup</b> & five more words")
            drawer.locator(".mv-field[data-field='request_id'] input").fill(name)
            drawer.locator(".mv-field[data-field='max_tokens'] input").fill("8")
            drawer.locator(".mv-primary").click()
            page.wait_for_function(
                "(name) => document.querySelector('.mv-notice').textContent.startsWith(name)",
                arg=name,
            )
        names = drawer.locator(".mv-field[data-field='request_id'] input")
        assert names.input_value() not in ("first", "second")
        drawer.locator("textarea").fill("one more")  # what only the engine can know
        drawer.locator(".mv-field[data-field='request_id'] input").fill("first")
        drawer.locator(".mv-primary").click()
        drawer.locator(".mv-error", has_text="first").wait_for(state="visible")
        for step in range(6):
            page.click(".mv-button[data-act='step']")
            page.wait_for_function(
                "(step) => document.querySelector('.mv-stepper').dataset.step === String(step)",
                arg=step,
            )
            deadline = time.monotonic() + 10
            while kernel.value("stepper.step") != step:  # the view tells the kernel, in its time
                assert time.monotonic() < deadline
                time.sleep(0.05)
            dom = {**page.evaluate(READ_DOM), "slider": step}
            agrees(dom, kernel.value("stepper.snapshot"), kernel.value("stepper.sentences"))
        said = page.locator("li[data-text='first']").inner_text()
        assert "A first prompt with <b>markup</b> & five more words" in said
        assert kernel.value("stepper.snapshot")["sampled"]
        page.locator(".mv-row[data-row='second']").hover()
        page.locator("button[aria-label='Abort second']").click()
        page.wait_for_function("() => /second is aborted/.test(document.body.textContent)")
        page.click(".mv-button[data-act='last']")
        page.wait_for_function("() => /nobody is left/.test(document.body.textContent)")
        assert kernel.value("engine.has_unfinished_requests()") is False
        ends = kernel.value("[e for s in stepper.history.steps for e in s['events']]")
        assert {e["request_id"] for e in ends if e["type"] in ("finished", "aborted")} == {
            "first",
            "second",
        }
    finally:
        kernel.close()


def test_an_engines_run_on_a_static_page_cannot_be_run_again() -> None:
    widget = SchedulerStepper(Engine())
    widget.add_request({"request_id": "a", "prompt": "hi", "max_tokens": 2})
    widget.run()
    found = re.search(r'mv-stepper-data">([A-Za-z0-9+/=]+)</script>', widget._static_html())
    assert found
    [entry] = json.loads(gzip.decompress(base64.b64decode(found[1])))
    assert entry["fixed"] is True
    assert entry["recording"]["texts"][0]
