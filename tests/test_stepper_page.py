"""Steppers on a static page: recorded, forked, shared and live; of networks, localhost alone.

The accessibility checks need axe-core, an npm package that tools/npm_package.py keeps in its cache;
where it cannot be had they are skipped (MINIVLLM_REQUIRE_BROWSER=1 makes that a failure).
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from minivllm.core import SchedulerConfig
from minivllm.runs.scenario import CHOICES, KNOBS, LIMITS, MAX_CHARACTERS, ScenarioError
from minivllm.stepper import SCENARIOS, Scenario, StepperSession, record
from tests.stepper_pages import agrees, axe_code, check_axe, guarded, read

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[1]
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1440, "height": 900}
browser_test = [pytest.mark.browser, pytest.mark.xdist_group("site")]


def in_browser(function: Any) -> Any:
    """Mark a test that needs a browser."""
    for mark in browser_test:
        function = mark(function)
    return function


# --- the directive --------------------------------------------------------------------------------


def build(folder: Path, text: str) -> tuple[int, str, str]:
    """A page with this Markdown: exit status, what the build said, and the HTML."""
    source = folder / "source"
    source.mkdir()
    (source / "index.md").write_text("# A page\n\n" + text, encoding="utf-8")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-C", "-b", "html"]
    command += ["-D", "extensions=myst_parser,minivllm_stepper", str(source), str(folder / "out")]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "book" / "_ext")])
    env = {**os.environ, "PYTHONPATH": paths, "MINIVLLM_LIVE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    page = folder / "out" / "index.html"
    return done.returncode, done.stderr, page.read_text("utf-8") if page.exists() else ""


OWN = Scenario.from_dict(
    {
        "version": 1,
        "name": "own",
        "title": "One's own & <b>bold</b>",
        "config": {"num_gpu_blocks": 4, "block_size": 4},
        "requests": [{"request_id": "a", "num_prompt_tokens": 5, "max_tokens": 3}],
    }
)


def test_the_directive_takes_names_and_json(tmp_path: Path) -> None:
    pytest.importorskip("myst_parser")
    status, said, html = build(
        tmp_path,
        "```{stepper} cramped\n:step: 12\n```\n\n"
        "```{stepper} two-numbers\n:scenarios: swap, cramped\n```\n\n"
        f"```{{stepper}}\n{OWN.to_json()}\n```\n",
    )
    assert (status, said) == (0, "")
    assert [html.count(f'id="{name}"') for name in ("stepper", "stepper-2", "stepper-3")] == [1] * 3
    assert 'data-step="12"' in html
    assert html.count("stepper/stepper.js") == html.count("stepper/view.css") == 1
    assert "<b>bold</b>" not in html
    assert "step 12 of 27" in html  # the still picture's caption, for those without JavaScript
    script = (tmp_path / "out" / "_static" / "stepper" / "stepper.js").read_text("utf-8")
    assert "built without Pyodide" in script
    assert not (tmp_path / "out" / "_static" / "pyodide").exists()


WRONG = {
    "no-such": "no scenario no-such; there is",
    "": "no scenario is named",
    "cramped\n:scenarios: swap, nonsense": "no scenario nonsense; there is",
    '\n{"version": 1}': "config: is missing",
    "\nno json": "not usable JSON",
    "cramped\n:step: minus one": "step",
}
"""What follows the directive's name, and what the build says of it."""


def test_what_the_directive_does_not_understand_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("myst_parser")
    blocks = [f"```{{stepper}} {text}\n```\n" for text in WRONG]
    status, errors, html = build(tmp_path, "\n".join(blocks))
    assert status != 0
    line, found = 3, errors.splitlines()
    for block, said in zip(blocks, WRONG.values(), strict=True):
        [error] = [row for row in found if f"index.md:{line}:" in row]
        assert said in error, error
        line += len(block.splitlines()) + 1
    assert html.count("mv-stepper-data") <= 1  # but for a bad option, nothing is shown


# --- recorded -------------------------------------------------------------------------------------


@pytest.fixture
def stepper_page(browser: Browser) -> Iterator[Page]:
    """A page that reaches localhost only and fails its test if it logs an error."""
    with guarded(browser) as page:
        yield page


def open_page(page: Page, url: str) -> None:
    """Go there, and wait until every stepper stands; `stepper()` is the first one's handle."""
    page.add_init_script(
        "window.stepper = () => document.querySelector('.mv-stepper-embed').minivllm;"
    )
    page.goto(url)
    page.wait_for_function(
        "() => [...document.querySelectorAll('.mv-stepper-embed')].every((e) => e.minivllm)"
    )


def press(page: Page, act: str, root: str = ".mv-stepper") -> None:
    """One of the toolbar's buttons."""
    page.locator(root).first.locator(f".mv-button[data-act='{act}']").click()


def wait_for_step(page: Page, step: int, root: str = ".mv-stepper") -> None:
    """Until this step is on show."""
    page.wait_for_function(
        "([root, step]) => document.querySelector(root).dataset.step === String(step)",
        arg=[root, step],
    )


@in_browser
@pytest.mark.parametrize("name", ["cramped", "swap"])
def test_every_step_shows_what_its_snapshot_holds(
    name: str, stepper_page: Page, steppers_url: str
) -> None:
    page, run = stepper_page, record(SCENARIOS[name])
    open_page(page, f"{steppers_url}{name}.html")
    last = len(run["steps"]) - 1
    first = read(page)["step"]
    assert first == SCENARIOS[name].step
    press(page, "first")
    for step in range(last + 1):
        wait_for_step(page, step)
        dom = read(page)
        agrees(dom, run["steps"][step], run["sentences"][step])
        if step:
            assert dom["said"] == " ".join([f"Step {step}.", *run["sentences"][step]])
        if step < last:
            press(page, "step")
    assert page.locator(".mv-button[data-act='step']").get_attribute("aria-disabled") == "true"
    for step in (last - 1, last - 2):
        press(page, "back")
        wait_for_step(page, step)
        agrees(read(page), run["steps"][step], run["sentences"][step])


@in_browser
def test_play_jump_home_and_end(stepper_page: Page, steppers_url: str) -> None:
    page, run = stepper_page, record(SCENARIOS["cramped"])
    last = len(run["steps"]) - 1
    open_page(page, f"{steppers_url}cramped.html")

    def shows(step: int) -> None:
        wait_for_step(page, step)
        agrees(read(page), run["steps"][step], run["sentences"][step])

    page.locator(".mv-frame").focus()
    page.keyboard.press("End")
    shows(last)
    page.keyboard.press("Home")
    shows(0)
    page.locator(".mv-slider").fill("13")
    shows(13)
    page.locator(".mv-moment").last.click()
    found = [s["step"] for s in run["steps"] if any(e["type"] == "preempted" for e in s["events"])]
    assert read(page)["step"] in found
    canvas = page.locator(".mv-timeline-wrap").bounding_box()
    column = (canvas["width"] - 58) / (last + 1)
    canvas_y = 10
    page.locator(".mv-timeline-wrap").click(position={"x": 58 + 9.5 * column, "y": canvas_y})
    shows(9)
    page.locator(".mv-speed").select_option(label="fast")
    page.locator(".mv-frame").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    shows(last - 2)
    press(page, "play")
    page.wait_for_selector(".mv-button[data-act='pause']")
    shows(last)
    page.wait_for_selector(".mv-button[data-act='play']")  # at the end it stops by itself
    press(page, "play")  # and begins anew
    page.wait_for_function("() => Number(document.querySelector('.mv-stepper').dataset.step) <= 2")
    press(page, "pause")


@in_browser
def test_pointing_at_a_request_and_at_a_block(stepper_page: Page, steppers_url: str) -> None:
    page, step = stepper_page, 4
    snapshot = record(SCENARIOS["cramped"])["steps"][step]
    open_page(page, f"{steppers_url}cramped.html")
    page.locator(".mv-slider").fill(str(step))
    id_ = snapshot["running"][1]
    table = snapshot["requests"][id_]["block_table"]

    def traced() -> list[int]:
        return [int(b) for b in page.locator(".mv-entries li").evaluate_all(
            "(all) => all.map((li) => li.dataset.block)")]  # fmt: skip

    def lit() -> set[int]:
        found = page.locator(".mv-cell.is-lit")
        return set(found.evaluate_all("(all) => all.map((cell) => Number(cell.dataset.block))"))

    row = page.locator(f".mv-row[data-row='{id_}'] .mv-row-main")
    row.hover()
    assert traced() == table
    assert lit() == set(table)
    assert page.locator(".mv-lines path").count() == len(table)
    page.locator(f".mv-cell[data-block='{table[0]}']").hover()
    readout = page.locator(".mv-readout").inner_text()
    assert f"Block {table[0]}:" in readout
    assert f"owned by {id_}" in readout
    assert lit() == {table[0]}
    page.mouse.move(2, 2)
    assert traced() == []
    row.click()  # pinned: stays when the pointer leaves
    page.mouse.move(2, 2)
    assert traced() == table
    assert row.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    assert traced() == []


@in_browser
def test_a_scenario_is_chosen_from_the_list(stepper_page: Page, steppers_url: str) -> None:
    page = stepper_page
    open_page(page, f"{steppers_url}all.html")
    for scenario in SCENARIOS.values():
        page.locator(".mv-chooser").select_option(label=scenario.title)
        run, step = record(scenario), scenario.step or 0
        wait_for_step(page, step)
        agrees(read(page), run["steps"][step], run["sentences"][step])
        assert page.locator(".mv-question").inner_text() == scenario.question


@in_browser
def test_two_steppers_are_independent(stepper_page: Page, steppers_url: str) -> None:
    page = stepper_page
    open_page(page, f"{steppers_url}two.html")
    before = read(page, "#stepper-2")
    press(page, "step", "#stepper")
    wait_for_step(page, 6, "#stepper")
    page.locator("#stepper .mv-tab", has_text="Knobs").click()
    assert read(page, "#stepper-2") == before
    press(page, "last", "#stepper-2")
    end = len(record(SCENARIOS["swap"])["steps"]) - 1
    wait_for_step(page, end, "#stepper-2")
    assert read(page, "#stepper")["step"] == 6
    assert page.locator("#stepper-2 .mv-drawer:visible").count() == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


@in_browser
def test_without_javascript_there_is_a_figure_with_a_caption(
    browser: Browser, steppers_url: str
) -> None:
    with guarded(browser, java_script_enabled=False) as page:
        page.goto(f"{steppers_url}cramped.html")
        figure = page.locator(".mv-stepper figure")
        assert figure.is_visible()
        run = record(SCENARIOS["cramped"])
        telling = next(
            s["step"] for s in run["steps"] if any(e["type"] == "preempted" for e in s["events"])
        )
        caption = page.locator("figcaption").inner_text()
        for sentence in run["sentences"][telling]:
            assert sentence in caption
        picture = page.locator("figure svg")
        assert picture.bounding_box()["width"] > 300
        assert "step 5" in picture.get_attribute("aria-label")
        snapshot = run["steps"][telling]
        told = picture.text_content()
        for id_, row in snapshot["requests"].items():
            assert id_ in told
            assert f"{row['num_computed_tokens']} / {row['num_tokens']}" in told


def test_the_still_picture_shows_whose_next_token_is_sampled() -> None:
    from stepper_figure import picture, samples_token

    for scenario in SCENARIOS.values():
        steps = record(scenario)["steps"]
        for index, step in enumerate(steps):
            hollow = {id_ for id_, row in step["requests"].items() if samples_token(row)}
            assert hollow == set(step["sampled"]), (scenario.name, index)
        drawn = picture(steps, 0, scenario.title).count('fill="var(--mv-page)"')
        assert drawn == 1 + len(set(steps[0]["sampled"]) & set(steps[0]["running"][:8]))


# --- links ----------------------------------------------------------------------------------------


def fragment(data: Any) -> str:
    """Anything as the value of a link's fragment."""
    text = data if isinstance(data, str) else json.dumps(data)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@in_browser
def test_a_shared_link_opens_at_its_step(stepper_page: Page, steppers_url: str) -> None:
    page = stepper_page
    open_page(page, f"{steppers_url}two.html")
    page.locator("#stepper-2 .mv-slider").fill("9")
    page.locator("#stepper-2 .mv-tab", has_text="Share").click()
    link = page.locator("#stepper-2 .mv-share input").input_value()
    assert link.startswith(f"{steppers_url}two.html#stepper-2=")
    shared = Scenario.from_fragment(link.split("=", 1)[1])
    assert shared.step == 9
    assert shared.requests == SCENARIOS["swap"].requests

    page.goto("about:blank")
    open_page(page, link)
    wait_for_step(page, 9, "#stepper-2")
    run = record(SCENARIOS["swap"])
    agrees(read(page, "#stepper-2"), run["steps"][9], run["sentences"][9])
    assert read(page, "#stepper")["step"] == SCENARIOS["cramped"].step
    assert page.locator("#stepper-2 .mv-notice").is_hidden()


GOOD = SCENARIOS["cramped"].to_dict()


@in_browser
def test_the_page_checks_what_python_checks(stepper_page: Page, steppers_url: str) -> None:
    """The same verdict on every scenario, on every number at its limits and on every choice."""
    page = stepper_page
    page.goto(f"{steppers_url}cramped.html")
    address = f"{steppers_url}view/index.js"  # the modules themselves, not joined
    page.evaluate("async (address) => { window.view = await import(address); }", address)
    for scenario in SCENARIOS.values():
        value = scenario.to_fragment()
        errors = page.evaluate("(value) => window.view.fromFragment(value).errors", value)
        assert errors == []
        back = page.evaluate(
            "(value) => window.view.toFragment(window.view.fromFragment(value).scenario)", value
        )
        assert Scenario.from_fragment(back) == scenario
    candidates = list(at_their_limits())
    found = page.evaluate("(all) => all.map((one) => window.view.checkScenario(one))", candidates)
    for data, errors in zip(candidates, found, strict=True):
        assert {error["field"] for error in errors} == wrong_fields(data), data


def wrong_fields(data: Any) -> set[str]:
    """What Python finds wrong in a scenario."""
    try:
        Scenario.from_dict(data)
    except ScenarioError as error:
        return {row["field"] for row in error.errors}
    return set()


def at_their_limits() -> Iterator[dict[str, Any]]:
    """`GOOD` with one value changed: each number beside its limits, each knob, some texts."""
    [request, *_] = GOOD["requests"]
    for name, (low, high) in LIMITS.items():
        for value in (low - 1, low, high, high + 1, str(low), low + 0.5, True):
            if name in KNOBS:
                yield {**GOOD, "config": {**GOOD["config"], name: value}}
            elif name in request:
                yield {**GOOD, "requests": [{**request, name: value}]}
            elif name in ("seed", "step"):
                yield {**GOOD, name: value}
    for name in KNOBS:
        if name not in LIMITS:
            for value in (*CHOICES.get(name, (True, False)), 1, "toString"):
                yield {**GOOD, "config": {**GOOD["config"], name: value}}
    for name, most in MAX_CHARACTERS.items():
        yield {**GOOD, name: "x" * most}
        yield {**GOOD, name: "x" * (most + 1)}
    for text in ("a", "A", "a-b", "-a", "a" * 32, "a" * 33, "a" * 41, "a\n", ""):
        yield {**GOOD, "name": text}
        yield {**GOOD, "requests": [{**request, "request_id": text}]}


@in_browser
def test_the_modules_run_as_they_are_written(stepper_page: Page, steppers_url: str) -> None:
    """Not joined, as a server serves them: another page's own script mounts a recorded run."""
    page, run = stepper_page, record(SCENARIOS["swap"])
    page.goto(f"{steppers_url}cramped.html")
    page.evaluate(
        """async ([address, scenario, recording]) => {
          const { mount } = await import(address);
          const element = document.createElement("div");
          element.id = "own";
          document.body.append(element);
          const transport = { capabilities: { live: false } };
          window.own = mount(element, { transport, scenario, recording });
        }""",
        [f"{steppers_url}view/index.js", SCENARIOS["swap"].to_dict(), run],
    )
    for step, (snapshot, sentences) in enumerate(zip(run["steps"], run["sentences"], strict=True)):
        page.evaluate("(step) => window.own.gotoStep(step)", step)
        agrees(read(page, "#own"), snapshot, sentences)


HOSTILE: dict[str, str] = {
    "too large": "A" * 90_000,
    "no base64": "%3Cscript%3E",
    "no json": fragment("{"),
    "no object": fragment([1, 2]),
    "null": fragment("null"),
    "no utf-8": base64.urlsafe_b64encode(b'{"a":"\xff\xfe"}').decode().rstrip("="),
    "unknown key": fragment({**GOOD, "onload": "hacked()"}),
    "proto": fragment(json.dumps(GOOD)[:-1] + ', "__proto__": {"polluted": 1}}'),
    "proto in the knobs": fragment(
        json.dumps({**GOOD, "config": "C"}).replace(
            '"C"', '{"num_gpu_blocks": 4, "__proto__": {"polluted": 1}}'
        )
    ),
    "constructor": fragment({**GOOD, "constructor": {"prototype": {"polluted": 1}}}),
    "a string for a number": fragment({**GOOD, "config": {"num_gpu_blocks": "16"}}),
    "true for a number": fragment({**GOOD, "config": {"num_gpu_blocks": True}}),
    "too many blocks": fragment({**GOOD, "config": {"num_gpu_blocks": 10**9}}),
    "infinite": fragment(json.dumps({**GOOD, "seed": 0}).replace('"seed": 0', '"seed": 1e999')),
    "half a step": fragment({**GOOD, "step": 0.5}),
    "too many requests": fragment({**GOOD, "requests": GOOD["requests"] * 101}),
    "one id twice": fragment({**GOOD, "requests": GOOD["requests"][:1] * 2}),
    "an id of markup": fragment(
        {
            **GOOD,
            "requests": [
                {
                    "request_id": "<img src=x onerror=hacked()>",
                    "num_prompt_tokens": 3,
                }
            ],
        }
    ),
    "too many tokens": fragment(
        {
            **GOOD,
            "requests": [{"request_id": f"r{i}", "num_prompt_tokens": 16_384} for i in range(9)],
        }
    ),
    "no such policy": fragment({**GOOD, "config": {"num_gpu_blocks": 4, "policy": "toString"}}),
    "no such version": fragment({**GOOD, "version": 2}),
    "nested deep": fragment("[" * 3_000),
}


@in_browser
def test_a_hostile_link_is_refused_and_changes_nothing(
    stepper_page: Page, steppers_url: str
) -> None:
    page = stepper_page
    page.add_init_script("window.hacked = () => { window.wasHacked = true; };")
    open_page(page, f"{steppers_url}cramped.html")
    before = read(page)
    for name, value in HOSTILE.items():
        with pytest.raises(ValueError):  # Python refuses it too
            Scenario.from_fragment(value)
        page.evaluate("() => document.querySelector('.mv-stepper').minivllm.say('')")
        page.evaluate("(value) => { location.hash = 'stepper=' + value; }", value)
        page.wait_for_selector(".mv-notice:visible")
        said = page.locator(".mv-notice").inner_text()
        assert said.startswith("The link was not opened."), name
        assert len(said) < 1_000, name
        assert read(page) == before, name
    assert page.evaluate("[window.wasHacked, {}.polluted, [].polluted]") == [None, None, None]
    assert page.locator(".mv-stepper img, .mv-stepper script").count() == 0
    press(page, "step")
    wait_for_step(page, before["step"] + 1)


@in_browser
def test_markup_in_a_good_link_is_text(stepper_page: Page, steppers_url: str) -> None:
    page = stepper_page
    markup = "<img src=x onerror=hacked()><script>hacked()</script>"
    page.add_init_script("window.hacked = () => { window.wasHacked = true; };")
    data = {**GOOD, "title": markup, "question": markup}
    open_page(page, f"{steppers_url}cramped.html#stepper={fragment(data)}")
    page.wait_for_function("() => document.querySelector('.mv-question').textContent.includes('<')")
    assert page.locator(".mv-scenario-title").inner_text() == markup
    assert page.locator(".mv-question").inner_text() == markup
    assert page.locator(".mv-stepper img, .mv-stepper script").count() == 0
    assert page.evaluate("window.wasHacked") is None


@in_browser
def test_the_largest_link_is_opened(stepper_page: Page, steppers_url: str) -> None:
    page = stepper_page
    requests = [{"request_id": f"r{i}", "num_prompt_tokens": 200} for i in range(500)]
    data = {**GOOD, "config": {"num_gpu_blocks": 4_096}, "requests": requests}
    assert len(requests) == LIMITS["requests"][1]
    open_page(page, f"{steppers_url}cramped.html#stepper={fragment(data)}")
    page.wait_for_selector(".mv-notice:visible")
    assert "500 requests, 4096 blocks" in page.locator(".mv-notice").inner_text()
    assert page.locator(".mv-pool-canvas").count() == 1
    open_drawer(page, "Knobs")  # knobs that the link leaves out have Python's defaults
    for knob in fields(SchedulerConfig):
        field = page.locator(f".mv-drawer:visible .mv-field[data-field='{knob.name}'] input")
        if knob.default is not MISSING and field.count():
            shown = field.is_checked() if isinstance(knob.default, bool) else field.input_value()
            unset = {None: "", 0.0: "0"} if not isinstance(knob.default, (bool, int)) else {}
            expected = unset.get(knob.default, str(knob.default))
            assert str(shown) == expected, knob.name
    assert read(page)["budget"] == "0 of 2048 tokens"


# --- live -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live_page(browser: Browser, live_url: str) -> Iterator[Page]:
    """A page whose stepper runs live: Python is started once for all tests of it."""
    with guarded(browser) as page:
        open_page(page, f"{live_url}cramped.html")
        start_live(page)
        yield page


def start_live(page: Page) -> None:
    """Press "Run live" and wait for Python."""
    page.locator(".mv-live-button").first.click()
    page.wait_for_selector(".mv-stepper[data-live='on']", timeout=60_000)
    page.wait_for_function("() => !document.querySelector('.mv-live progress:not([hidden])')")


def load(page: Page, name: str, step: int = 0) -> StepperSession:
    """Open a scenario live, at a step; the session of the same in this Python."""
    scenario = SCENARIOS[name]
    page.evaluate(
        "([scenario, step]) => stepper().load(scenario, null, step)", [scenario.to_dict(), step]
    )
    page.wait_for_function("(step) => stepper().state.branches.main.length > step", arg=step)
    wait_for_step(page, step)
    session = StepperSession()
    ask(session, "open", scenario=scenario.to_dict())
    ask(session, "step", count=step + 1)
    return session


def ask(session: StepperSession, type_: str, **fields: Any) -> dict[str, Any]:
    """A message that must be answered with yes."""
    answer = session.handle({"type": type_, **fields})
    assert answer["ok"], answer
    return answer


def branch_steps(page: Page, name: str = "main") -> list[dict[str, Any]]:
    """The snapshots that the page has of a branch."""
    return page.evaluate("(name) => stepper().state.branches[name]", name)


def same_as_here(page: Page, session: StepperSession, name: str = "main") -> None:
    """The page's snapshots of a branch, those ahead of the reader too, are this Python's."""
    there = branch_steps(page, name)
    branch = session.branches[name]
    branch.run(len(there))
    assert there == json.loads(json.dumps(branch.steps[: len(there)]))


def open_drawer(page: Page, name: str) -> None:
    """One of the drawers, if it is not open."""
    tab = page.locator(".mv-tab", has_text=name)
    if tab.get_attribute("aria-expanded") == "false":
        tab.click()


def submit(page: Page) -> None:
    """The open drawer's form."""
    page.locator(".mv-drawer:visible .mv-primary").click()


def settled(page: Page, config: dict[str, Any]) -> None:
    """Until the page's run has these knobs, which its own link tells."""
    for _ in range(200):
        open_drawer(page, "Share")
        link = page.locator(".mv-share input").input_value()
        known = Scenario.from_fragment(link.split("=", 1)[1]).scheduler_config().to_dict()
        if all(known[name] == value for name, value in config.items()):
            return
        page.wait_for_timeout(25)
        page.locator(".mv-tab", has_text="Share").click()
    raise AssertionError(f"the knobs did not become {config}")


NEW_KNOBS: dict[str, Any] = {
    "num_gpu_blocks": 20,
    "block_size": 2,
    "max_num_batched_tokens": 24,
    "max_num_seqs": 3,
    "long_prefill_token_threshold": 6,
    "max_model_len": 40,
    "policy": "priority",
    "victim": "least_computed",
    "preemption_mode": "swap",
    "num_cpu_blocks": 12,
    "enable_chunked_prefill": False,
    "enable_prefix_caching": True,
    "admission_control": False,
}


def turn(page: Page, name: str, value: Any) -> None:
    """Set a knob in the open drawer."""
    field = page.locator(f".mv-drawer:visible .mv-field[data-field='{name}'] :is(input, select)")
    if isinstance(value, bool):
        field.set_checked(value)
    elif isinstance(value, str):
        field.select_option(value)
    else:
        field.fill(str(value))


@in_browser
@pytest.mark.slow
def test_live_steps_are_those_of_this_python(live_page: Page) -> None:
    page = live_page
    session = load(page, "cramped")
    for step in range(1, 28):
        press(page, "step")
        wait_for_step(page, step)
    session.main.run(28)
    agrees(read(page), session.main.steps[27], session.main.sentences[27])
    same_as_here(page, session)


@in_browser
@pytest.mark.slow
@pytest.mark.parametrize("name", NEW_KNOBS)
def test_every_knob_works(name: str, live_page: Page) -> None:
    page, value = live_page, NEW_KNOBS[name]
    session = load(page, "cramped", 9)
    open_drawer(page, "Knobs")
    turn(page, name, value)
    submit(page)
    settled(page, {name: value})
    ask(session, "set_knobs", knobs={name: value})
    same_as_here(page, session)
    assert min(9, len(session.main.steps) - 1) == read(page)["step"]


@in_browser
@pytest.mark.slow
def test_arrivals_change_and_change_back(live_page: Page) -> None:
    page = live_page
    session = load(page, "cramped", 5)
    as_written = session.main.scenario
    patterns = {
        "every": {"kind": "every", "every": 2},
        "poisson": {"kind": "poisson", "per_step": 0.5, "seed": 1},
        "all_at_once": {"kind": "all_at_once"},
        "as_written": {"kind": "as_written"},
    }
    for key, pattern in patterns.items():
        open_drawer(page, "Knobs")
        page.locator(".mv-field[data-field='arrivals'] select").select_option(key)
        submit(page)
        ask(session, "set_arrivals", pattern=pattern)
        wanted = [request.to_dict() for request in session.main.scenario.requests]
        page.wait_for_function(
            "(wanted) => JSON.stringify(stepper().state.scenario.requests) === wanted",
            arg=json.dumps(wanted, separators=(",", ":")),
        )
        page.wait_for_timeout(50)
        same_as_here(page, session)
    assert session.main.scenario.requests == as_written.requests


@in_browser
@pytest.mark.slow
def test_a_bad_value_is_told_beside_its_knob(live_page: Page) -> None:
    page = live_page
    load(page, "cramped", 3)
    before = branch_steps(page)
    open_drawer(page, "Knobs")
    bad = {"num_gpu_blocks": "0", "block_size": "4.5", "max_num_seqs": "many", "max_model_len": ""}
    for name, text in bad.items():
        page.locator(f".mv-drawer:visible .mv-field[data-field='{name}'] input").fill(text)
    submit(page)
    for name in bad:
        field = page.locator(f".mv-drawer:visible .mv-field[data-field='{name}']")
        said = field.locator(".mv-error").inner_text()
        assert name in said
        box, knob = field.locator(".mv-error").bounding_box(), field.bounding_box()
        assert knob["y"] <= box["y"] < knob["y"] + knob["height"] + 1
        control = field.locator("input")
        assert control.get_attribute("aria-invalid") == "true"
        described = control.get_attribute("aria-describedby")
        assert page.locator(f"#{described}").inner_text() == said
    assert page.locator(".mv-field[data-field='policy'] .mv-error").inner_text() == ""
    assert branch_steps(page) == before

    load(page, "cramped", 9)  # what only the session can know
    open_drawer(page, "What if")
    page.locator(".mv-field[data-field='knob'] select").select_option("block_size")
    turn(page, "block_size", 8)
    submit(page)
    error = page.locator(".mv-drawer:visible .mv-field[data-field='block_size'] .mv-error")
    error.wait_for(state="visible")
    assert "cannot change in mid-run" in error.inner_text()
    assert page.locator(".mv-branch").count() == 1


@in_browser
@pytest.mark.slow
def test_a_request_is_added_and_one_aborted(live_page: Page) -> None:
    page = live_page
    session = load(page, "cramped", 3)
    open_drawer(page, "Add a request")
    form = page.locator(".mv-drawer:visible")
    form.locator(".mv-field[data-field='request_id'] input").fill("mine<b>")
    submit(page)
    assert "letters" in form.locator(".mv-field[data-field='request_id'] .mv-error").inner_text()
    form.locator(".mv-field[data-field='request_id'] input").fill("mine")
    form.locator(".mv-field[data-field='num_prompt_tokens'] input").fill("7")
    submit(page)
    row = {"request_id": "mine", "num_prompt_tokens": 7, "max_tokens": 12, "priority": 0}
    ask(session, "add_request", request=row)
    press(page, "step")
    wait_for_step(page, 4)
    assert page.locator(".mv-row[data-row='mine']").count() == 1
    same_as_here(page, session)

    form.locator(".mv-field[data-field='request_id'] input").fill("r0")  # taken
    submit(page)
    page.wait_for_function(
        "() => document.querySelector(\".mv-field[data-field='request_id'] .mv-error\").textContent"
    )
    assert "taken" in form.locator(".mv-field[data-field='request_id'] .mv-error").inner_text()

    page.locator(".mv-row[data-row='r1']").hover()
    page.locator("button[aria-label='Abort r1']").click()
    page.wait_for_function("() => document.querySelector('.mv-notice').textContent.includes('r1')")
    session.main.run(5)
    ask(session, "rewind", step=5)
    ask(session, "abort", request_id="r1")
    press(page, "step")
    wait_for_step(page, 5)
    assert page.locator(".mv-row[data-row='r1']").count() == 0
    same_as_here(page, session)


@in_browser
@pytest.mark.slow
def test_a_fork_runs_beside_what_was(live_page: Page) -> None:
    page = live_page
    session = load(page, "cramped", 5)
    open_drawer(page, "What if")
    page.locator(".mv-field[data-field='knob'] select").select_option("num_gpu_blocks")
    turn(page, "num_gpu_blocks", 30)
    submit(page)
    page.wait_for_selector(".mv-branch[data-branch='fork']")
    ask(session, "fork", step=5, knobs={"num_gpu_blocks": 30})
    press(page, "step")
    wait_for_step(page, 6)
    same_as_here(page, session)
    same_as_here(page, session, "fork")
    assert branch_steps(page)[:5] == branch_steps(page, "fork")[:5]
    assert branch_steps(page)[5] != branch_steps(page, "fork")[5]
    left, right = (page.locator(".mv-branch").nth(i).bounding_box() for i in (0, 1))
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"] + 1
    titles = page.locator(".mv-branch-title").all_inner_texts()
    assert titles == [
        "as it was: num_gpu_blocks = 16",
        "what if num_gpu_blocks = 30, from step 5",
    ]
    page.locator("button", has_text="Close the what-if").click()
    assert page.locator(".mv-branch").count() == 1


@in_browser
@pytest.mark.slow
def test_a_worker_that_dies_is_restarted_and_the_record_stays(
    browser: Browser, live_url: str
) -> None:
    with guarded(browser) as page:
        page.add_init_script(
            "const Own = window.Worker; window.Worker = class extends Own {"
            " constructor(...args) { super(...args); window.lastWorker = this; } };"
        )
        open_page(page, f"{live_url}cramped.html")
        start_live(page)
        press(page, "step")
        wait_for_step(page, 6)
        before = read(page)
        page.evaluate("() => window.lastWorker.onmessage({ data: { failed: 'out of memory' } })")
        page.wait_for_selector(".mv-stepper[data-live='dead']")
        assert "out of memory" in page.locator(".mv-notice").inner_text()
        assert {**read(page), "said": ""} == {**before, "said": ""}
        press(page, "back")  # what was recorded can be stepped through
        wait_for_step(page, 5)
        assert page.locator(".mv-live-button").inner_text() == "Restart"
        start_live(page)
        press(page, "last")
        page.wait_for_function("() => document.querySelector('.mv-stepper').dataset.step === '27'")
        run = record(SCENARIOS["cramped"])
        agrees(read(page), run["steps"][27], run["sentences"][27])


@in_browser
@pytest.mark.slow
def test_a_worker_that_cannot_be_loaded_leaves_the_record(browser: Browser, live_url: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.route("**/pyodide.asm.wasm", lambda route: route.abort())
    open_page(page, f"{live_url}cramped.html")
    page.locator(".mv-live-button").click()
    page.wait_for_selector(".mv-stepper[data-live='dead']", timeout=30_000)
    assert "did not start" in page.locator(".mv-notice").inner_text()
    press(page, "step")
    wait_for_step(page, 6)
    context.close()


@in_browser
@pytest.mark.slow
def test_a_link_that_is_not_recorded_runs_live_at_its_step(browser: Browser, live_url: str) -> None:
    scenario = {**GOOD, "config": {**GOOD["config"], "num_gpu_blocks": 18}, "step": 7}
    with guarded(browser) as page:
        open_page(page, f"{live_url}cramped.html#stepper={fragment(scenario)}")
        assert "not recorded in this page" in page.locator(".mv-notice").inner_text()
        start_live(page)
        wait_for_step(page, 7)
        run = record(Scenario.from_dict(scenario))
        agrees(read(page), run["steps"][7], run["sentences"][7])


# --- for people -----------------------------------------------------------------------------------


FOCUSED = """() => {
  const node = document.activeElement;
  const style = getComputedStyle(node);
  return { name: node.getAttribute("aria-label") || node.textContent.trim(), tag: node.tagName,
    act: node.dataset.act ?? null, req: node.dataset.req ?? null, block: node.dataset.block ?? null,
    inside: Boolean(node.closest(".mv-stepper")), outline: style.outlineStyle, width: parseFloat(style.outlineWidth) };
}"""  # noqa: E501


@in_browser
def test_the_keyboard_alone_does_everything(stepper_page: Page, steppers_url: str) -> None:
    page = stepper_page
    open_page(page, f"{steppers_url}cramped.html")
    seen = []
    for _ in range(80):
        page.keyboard.press("Tab")
        focus = page.evaluate(FOCUSED)
        if not focus["inside"]:
            break
        assert focus["outline"] != "none", focus
        assert focus["width"] >= 1, focus
        assert focus["name"] or focus["tag"] in ("SELECT", "INPUT"), focus
        seen.append(focus)
    acts = {focus["act"] for focus in seen}
    assert {"first", "back", "step", "play", "last"} <= acts
    names = [focus["name"] for focus in seen]
    assert {"Knobs", "Share", "Keys", "Sentences", "Step", "Speed"} <= set(names)
    assert {"r0", "r1", "r2", "r3"} & {focus["req"] for focus in seen}
    assert sum(focus["block"] is not None for focus in seen) == 1  # one stop for the whole pool

    page.locator(".mv-frame").focus()
    for key, step in [("ArrowRight", 6), ("ArrowRight", 7), ("ArrowLeft", 6), ("Home", 0)]:
        page.keyboard.press(key)
        wait_for_step(page, step)
    page.keyboard.press("Space")
    page.wait_for_selector(".mv-button[data-act='pause']")
    page.keyboard.press("Space")
    page.wait_for_selector(".mv-button[data-act='play']")
    page.locator(".mv-button[data-act='step']").focus()
    before = read(page)["step"]
    page.keyboard.press("Enter")
    wait_for_step(page, before + 1)

    page.locator(".mv-cell[data-block='1']").focus()
    page.keyboard.press("ArrowRight")
    focus = page.evaluate(FOCUSED)
    assert focus["block"] == "2"
    assert "Block 2:" in page.locator(".mv-readout").inner_text()
    page.locator(".mv-row-main").first.focus()
    assert page.locator(".mv-entries li").count() > 0
    page.keyboard.press("Enter")
    assert page.locator(".mv-row-main[aria-pressed='true']").count() == 1

    page.locator(".mv-tab", has_text="Knobs").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    while page.evaluate(FOCUSED)["tag"] != "INPUT":
        page.keyboard.press("Tab")
    page.keyboard.press("Control+a")
    page.keyboard.type("0")
    page.keyboard.press("Enter")
    message = page.locator(".mv-field[data-field='num_gpu_blocks'] .mv-error").first
    assert "1 to 4096" in message.inner_text()


SMALL_TEXT = """(root) => {
  const small = [];
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const { parentElement: node, textContent: text } = walker.currentNode;
    if (!text.trim() || node.closest("script, noscript, .mv-live-region, .mv-probe")) continue;
    if (!node.checkVisibility() || !node.getClientRects().length) continue;
    const size = parseFloat(getComputedStyle(node).fontSize);
    if (size < 10) small.push([size, node.className, text]);
  }
  return small;
}"""


def check_fit(page: Page) -> None:
    """Nothing is wider than the page, and no text is smaller than 10 px."""
    for tab in ("Knobs", "Add a request", "What if", "Share", "Keys"):
        open_drawer(page, tab)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, tab
    assert page.locator(".mv-stepper").evaluate(SMALL_TEXT) == []
    frame = page.locator(".mv-frame").bounding_box()
    for panel in page.locator(".mv-panel:visible").all():
        box = panel.bounding_box()
        assert box["x"] >= frame["x"]
        assert box["x"] + box["width"] <= frame["x"] + frame["width"] + 0.5


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_it_fits_and_can_be_read(
    size: Any, scheme: str, browser: Browser, steppers_url: str
) -> None:
    with guarded(browser, viewport=size, color_scheme=scheme) as page:
        open_page(page, f"{steppers_url}all.html")
        page.evaluate("(scheme) => { document.documentElement.dataset.theme = scheme; }", scheme)
        for name in ("cramped", "swap", "shared-prefix", "decode-spike"):
            page.locator(".mv-chooser").select_option(label=SCENARIOS[name].title)
            check_fit(page)
        background = page.locator(".mv-frame").evaluate(
            "(n) => getComputedStyle(n).backgroundColor"
        )
        light = [int(x) for x in background[4:-1].split(",")]
        assert (min(light) > 200) == (scheme == "light")


@in_browser
def test_who_wants_no_motion_gets_none(browser: Browser, steppers_url: str) -> None:
    moving = {}
    for wish in ("reduce", "no-preference"):
        with guarded(browser, reduced_motion=wish) as page:
            open_page(page, f"{steppers_url}cramped.html")
            count = 0
            for _ in range(4):
                press(page, "step")
                count += page.evaluate("document.getAnimations().length")
            moving[wish] = count
    assert moving["reduce"] == 0
    assert moving["no-preference"] > 0  # so the other figure means something


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core's code."""
    return axe_code()


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(
    scheme: str, browser: Browser, steppers_url: str, axe: str
) -> None:
    with guarded(browser, color_scheme=scheme, reduced_motion="reduce") as page:
        open_page(page, f"{steppers_url}all.html")
        page.evaluate("(scheme) => { document.documentElement.dataset.theme = scheme; }", scheme)
        page.add_script_tag(content=axe)
        for name in ("cramped", "swap", "shared-prefix", "never-fits-stuck"):
            page.locator(".mv-chooser").select_option(label=SCENARIOS[name].title)
            for tab in ("Knobs", "What if", "Share"):
                open_drawer(page, tab)
                check_axe(page, ".mv-stepper")


# --- in the book ----------------------------------------------------------------------------------


@in_browser
@pytest.mark.parametrize("name", ["book/01-two-numbers-racing", "book/playground"])
def test_the_books_pages_have_one_that_works(name: str, page: Page, site_url: str) -> None:
    open_page(page, f"{site_url}{name}.html")
    before = read(page)["step"]
    press(page, "step")
    wait_for_step(page, before + 1)
    assert read(page)["sentences"]
