"""The view's modules as one text: anywidget takes no more, and a page on a disk loads no module.

The modules run as they are where a server serves them. Joined, they share one scope. One of them is
no file: `limits.js` is written from what Python checks a scenario with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from posixpath import dirname, join, normpath

from minivllm.core.config import SchedulerConfig
from minivllm.core.releases import CHANGES, RELEASES
from minivllm.runs import scenario
from minivllm.stepper.live import MAX_PROMPT_CHARACTERS

STATIC = Path(__file__).parent / "static"

# A module says all that it shares in these forms, each at the start of a line.
_FROM = re.compile(r'^(import|export) \{([\w$, ]+)\} from "(\.[^"]+)";\n', re.MULTILINE)
_OWN = re.compile(r"^(export )?(?:const|let|class|(?:async )?function) ([\w$]+)", re.MULTILINE)
_OTHER = re.compile(r"^(?:import|export(?! default)|var|(?:const|let)(?! [\w$])).*", re.MULTILINE)


def source(name: str) -> str:
    """A module as it is written; `name` is its path below `static`."""
    if name == "view/limits.js":
        return limits()
    return (STATIC / name).read_text(encoding="utf-8")


def limits() -> str:
    """`view/limits.js`: the knobs, their defaults, choices and bounds, and a scenario's keys."""
    knobs = {knob.name: knob.default for knob in fields(SchedulerConfig)}
    constants = {
        "LIMITS": scenario.LIMITS,
        "CHOICES": scenario.CHOICES,
        "OPTIONAL_KNOBS": scenario.OPTIONAL_KNOBS,
        "SHARE_KNOBS": scenario.SHARE_KNOBS,
        "ROWS_KNOBS": scenario.ROWS_KNOBS,
        "ROWS": scenario.ROWS,
        "RELEASES": RELEASES,
        "SINCE": {change.name: change.since for change in CHANGES if not change.is_switch},
        "KNOBS": scenario.KNOBS,
        "DEFAULTS": {name: value for name, value in knobs.items() if value is not MISSING},
        "SCENARIO_VERSION": scenario.SCENARIO_VERSION,
        "SCENARIO_KEYS": [row.name for row in fields(scenario.Scenario)],
        "REQUEST_KEYS": [row.name for row in fields(scenario.ScenarioRequest)],
        "MAX_CHARACTERS": scenario.MAX_CHARACTERS,
        "MAX_PROMPT_CHARACTERS": MAX_PROMPT_CHARACTERS,
    }
    rows = [f"export const {name} = {json.dumps(value)};\n" for name, value in constants.items()]
    patterns = {"SCENARIO_NAME": scenario.SCENARIO_NAME, "REQUEST_ID": scenario.REQUEST_ID}
    rows += [f"export const {name} = /^{form.pattern}$/;\n" for name, form in patterns.items()]
    return "".join(rows)


def joined(entry: str, read: Callable[[str], str] = source) -> str:
    """`entry` after all that it imports, each module once; only `export default` stays exported.

    Raises:
        ValueError: a name is not exported where it is imported from, two modules declare it, a
            module imports itself by way of others, or says what it shares in another form.
        OSError: there is no such module.
    """
    texts: dict[str, str] = {}
    exports: dict[str, set[str]] = {}
    homes: dict[str, str] = {}

    def add(name: str) -> None:
        if name in texts:
            return
        if name in exports:
            raise ValueError(f"{name} imports itself, by way of others")
        text, exports[name] = read(name), set()
        for verb, names, path in _FROM.findall(text):
            other = normpath(join(dirname(name), path))
            wanted = set(names.replace(",", " ").split())
            add(other)
            if missing := sorted(wanted - exports[other]):
                raise ValueError(f"{name} wants {missing[0]} from {other}, which has none")
            exports[name] |= wanted if verb == "export" else set()
        text = _FROM.sub("", text)
        for shared, own in _OWN.findall(text):
            if homes.setdefault(own, name) != name:
                raise ValueError(f"{own} is declared in {homes[own]} and in {name}")
            exports[name] |= {own} if shared else set()
        texts[name] = re.sub(r"^export (?!default|\{)", "", text, flags=re.MULTILINE)
        if form := _OTHER.search(texts[name]):
            raise ValueError(f"{name}: cannot join {form[0]!r}")

    add(normpath(entry))
    return "\n".join(texts.values())
