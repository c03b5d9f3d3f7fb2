"""The `talk` directive: a real model in the page, recorded first, live on a press.

The recording is a run of the engine with PyTorch while the book is built; the page's own engine
(minivllm/executor/wasm_executor.py) gives the same tokens.
"""

from __future__ import annotations

import html
import json
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "book" / "_ext", ROOT / "book" / "live"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from minivllm_live import raw  # noqa: E402
from minivllm_stepper import code_files  # noqa: E402
from minivllm_talk_session import PROMPTS, SMALL_PROMPTS, talk  # noqa: E402

from minivllm.models.config import DEFAULT_MODEL, SMALL_MODEL  # noqa: E402
from minivllm.stepper.embed import entry_with, stepper_html  # noqa: E402
from tools.live_model import why_no_model  # noqa: E402


def recorded(prompts: tuple[str, ...] = PROMPTS) -> dict[str, Any]:
    """The run of these prompts, to its end, as `stepper_html` takes it."""
    session = talk(prompts)
    session.handle({"type": "open"})
    while not session.done:
        session.handle({"type": "step"})
    return {**entry_with(session.answer(0, everything=True)), "fixed": True}


class TalkDirective(SphinxDirective):
    """Embeds the recorded run, and the fields for prompts of one's own."""

    def run(self) -> list[nodes.Node]:
        for path in code_files():
            self.env.note_dependency(str(path))
        entry = recorded()
        steps = entry["recording"]["steps"]
        first = next(n for n, step in enumerate(steps) if step["stats"]["num_preemptions"])
        still = f"<p>{html.escape(' '.join(entry['recording']['sentences'][first]))}</p>"
        prompts = {DEFAULT_MODEL: PROMPTS, SMALL_MODEL: SMALL_PROMPTS}
        about = json.dumps({"prompts": prompts, "reason": why_no_model()})
        form = f'<div class="mv-talk" data-about="{html.escape(about, quote=True)}"></div>'
        return [raw(form + stepper_html([entry], "talk", first, still))]


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("talk", TalkDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
