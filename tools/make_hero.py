"""Draws the picture on the landing page and in README.md, from a real run of the scheduler.

    python tools/make_hero.py               (writes book/_static/hero-light.svg and hero-dark.svg)
    python tools/make_hero.py --preview     (preview.png too, for links to the site; needs Chromium)

Four requests with a budget of 64 tokens a step; the picture is the state right after one
`schedule()`: what each request had computed, what this step adds, what is left.
"""

from __future__ import annotations

import html
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig  # noqa: E402
from minivllm.viz.theme import DARK, FONT, LIGHT, Palette  # noqa: E402

BUDGET = 64  # tokens in a step
STEP = 3  # the one that is drawn
ARRIVALS = {0: [("A", 34), ("B", 52)], 2: [("C", 120)], 3: [("D", 70)]}  # step: (id, prompt tokens)

WIDTH, HEIGHT = 640, 384
LEFT, LANE_TOP, LANE_HEIGHT, LANE_GAP = 44, 92, 26, 18
TOKEN = 3.4  # px


@dataclass(frozen=True)
class Lane:
    """One request after the step: token counts."""

    name: str
    computed: int  # num_computed_tokens, this step counted in
    scheduled: int  # of them, in this step
    known: int  # num_tokens: prompt and output so far


def run() -> list[Lane]:
    """Run the scheduler up to the step that is drawn; a lane for each request, in its order."""
    scheduler = Scheduler(
        SchedulerConfig(num_gpu_blocks=64, max_model_len=512, max_num_batched_tokens=BUDGET)
    )
    params = SamplingParams(max_tokens=32, ignore_eos=True)
    for step in range(STEP + 1):
        for name, length in ARRIVALS.get(step, []):
            prompt = [ord(name) * 1000 + position for position in range(length)]
            scheduler.add_request(Request(name, prompt, params))
        output = scheduler.schedule()
        if step == STEP:
            break
        ready = [r for r in scheduler.running if r.is_caught_up]
        scheduler.update_from_output(output, {request.request_id: 1 for request in ready})
    return [
        Lane(name, request.num_computed_tokens, count, request.num_tokens)
        for name, count in output.num_scheduled_tokens.items()
        for request in [scheduler.requests[name]]
    ]


def draw(lanes: list[Lane], palette: Palette, card: str) -> str:
    """The picture as SVG text."""
    parts: list[str] = []

    def rect(x: float, y: float, width: float, height: float, fill: str, more: str = "") -> None:
        box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        parts.append(f'<rect {box} fill="{fill}" {more}/>')

    def text(x: float, y: float, words: str, fill: str, more: str = "") -> None:
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" {more}>{words}</text>')

    def kind(lane: Lane) -> str:
        return palette.decode if lane.scheduled == 1 else palette.prefill

    rect(0.5, 0.5, WIDTH - 1, HEIGHT - 1, card, f'rx="14" stroke="{palette.free}"')
    text(
        20, 34, "Two numbers race in every request", palette.ink, 'font-size="21" font-weight="700"'
    )
    text(20, 62, "computed tokens chase known tokens; a tie samples one more", palette.muted)

    for row, lane in enumerate(lanes):
        y = LANE_TOP + row * (LANE_HEIGHT + LANE_GAP)
        before = lane.computed - lane.scheduled
        middle = y + LANE_HEIGHT / 2 + 6
        text(20, middle, lane.name, palette.ink, 'font-weight="700"')
        rect(LEFT, y, lane.known * TOKEN, LANE_HEIGHT, palette.free, 'rx="4"')
        rect(LEFT, y, before * TOKEN, LANE_HEIGHT, palette.waiting, 'rx="4" opacity="0.55"')
        width = max(lane.scheduled * TOKEN, 6)  # a single token must be seen
        rect(LEFT + lane.computed * TOKEN - width, y, width, LANE_HEIGHT, kind(lane), 'rx="2"')
        tie = lane.computed == lane.known
        words = f"{lane.computed} / {lane.known}" + (" ✓" if tie else "")
        anchor = LEFT + lane.known * TOKEN + 12
        text(anchor, middle, words, palette.decode if tie else palette.muted)

    y = LANE_TOP + len(lanes) * (LANE_HEIGHT + LANE_GAP) + 34
    text(20, y - 12, f"one step spends at most {BUDGET} tokens, whoever needs them", palette.ink)
    scale = (WIDTH - 40) / BUDGET
    x = 20.0
    for lane in lanes:
        width = lane.scheduled * scale
        rect(x, y, width - 2, 34, kind(lane), 'rx="4"')
        label = f"{lane.name} {lane.scheduled}" if width > 30 else ""
        text(x + width / 2 - 1, y + 23, label, card, 'text-anchor="middle" font-weight="700"')
        x += width
    y += 62
    for x, color, words in (
        (20, palette.waiting, "computed before"),
        (198, palette.prefill, "prompt tokens now"),
        (392, palette.decode, "one output token now"),
    ):
        rect(x, y - 12, 14, 14, color, 'rx="3"')
        text(x + 22, y, words, palette.muted, 'font-size="16"')

    spoken = "; ".join(
        f"{lane.name} has computed {lane.computed} of {lane.known} tokens, {lane.scheduled} now"
        for lane in lanes
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f"font-family='{FONT}' font-size=\"18\">\n"
        f"<title>One step of the scheduler: {spoken}</title>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def pictures() -> dict[Path, str]:
    """Every picture that this tool makes: path and content."""
    static = ROOT / "book" / "_static"
    lanes = run()
    return {
        static / "hero-light.svg": draw(lanes, LIGHT, "#fbfcfd"),
        static / "hero-dark.svg": draw(lanes, DARK, "#1a1f27"),
    }


def write_preview(path: Path) -> None:
    """The picture as 1200 by 630 pixels of PNG, which is what other sites show of a link."""
    import os
    import shutil

    from playwright.sync_api import sync_playwright

    picture = draw(run(), LIGHT, "#fbfcfd")
    page = f"""<body style="margin:0; background:#eef1f4; height:630px; display:flex; gap:40px;
        align-items:center; justify-content:center; font-family:{html.escape(FONT)}">
        <h1 style="width:380px; font-size:54px; line-height:1.15; color:#1f2937; margin:0">
        Continuous Batching and the Scheduler</h1><div style="width:680px">{picture}</div></body>"""
    with sync_playwright() as playwright:
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1200, "height": 630})
        view.set_content(page)
        view.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    for path, content in pictures().items():
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(ROOT))
    if "--preview" in sys.argv[1:]:
        write_preview(ROOT / "book" / "_static" / "preview.png")
