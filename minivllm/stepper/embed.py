"""A recorded stepper as HTML, for static pages: the runs, compressed, in the page itself."""

from __future__ import annotations

import base64
import gzip
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from minivllm.runs.scenario import Scenario
from minivllm.stepper.session import record


def entry_of(scenario: Scenario) -> dict[str, Any]:
    """A scenario with its run, as page.js takes it."""
    return entry_with(record(scenario))


def entry_with(recording: dict[str, Any]) -> dict[str, Any]:
    """The same of a run that is recorded already, its scenario in it."""
    for step in recording["steps"]:
        step["inputs"] = []  # no view reads them; prompt ids are a sixth of a recording
    scenario = recording.pop("scenario")
    about = {name: scenario[name] for name in ("name", "title")}
    return {**about, "scenario": scenario, "recording": recording}


def packed(entries: Sequence[Mapping[str, Any]]) -> str:
    """JSON as gzip and base64: snapshots repeat themselves, 20 times smaller is usual."""
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def stepper_html(
    entries: Sequence[Mapping[str, Any]], ident: str, step: int | None = None, still: str = ""
) -> str:
    """The element that page.js turns into a stepper.

    Args:
        entries: scenarios with their runs (`entry_of`); the first is shown.
        ident: id of the element, unique in its page; links to a scenario name it.
        step: to open at; None: the scenario's own.
        still: HTML to show where JavaScript is off.
    """
    title = html.escape(entries[0]["title"], quote=True)
    at = "" if step is None else f' data-step="{step}"'
    return (
        f'<div class="mv-stepper mv-stepper-embed" id="{html.escape(ident, quote=True)}" '
        f'role="region" aria-label="Stepper: {title}"{at}>'
        f'<script type="application/octet-stream" class="mv-stepper-data">'
        f"{packed(entries)}</script><noscript>{still}</noscript></div>"
    )
