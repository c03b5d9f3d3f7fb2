"""The `stepper` directive: a scheduler to step through, in the page.

    ```{stepper} cramped
    :step: 12
    ```

embeds a named scenario (see minivllm/runs/scenarios.py), recorded by the real scheduler while
the book is built. `:scenarios: all`, or a list of names, lets the reader choose among several. A
body, instead of a name, is a scenario of one's own as JSON.

With JavaScript off the page shows the most telling step as a figure. "Run live" needs Pyodide,
which tools/get_pyodide.py fetches once; without it the book builds all the same, and says so.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "book" / "_ext"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from stepper_figure import figure  # noqa: E402

from minivllm.stepper import SCENARIOS, Scenario, ScenarioError  # noqa: E402
from minivllm.stepper.embed import entry_of, stepper_html  # noqa: E402
from minivllm.stepper.modules import STATIC, joined, source  # noqa: E402
from tools.archives import (  # noqa: E402
    ENGINE_PACKAGES,
    LIVE,
    PLOTLY_PACKAGES,
    WIDGET_PACKAGES,
    archive_of,
    engine_files,
    page_files,
    plotly_files,
    widget_files,
)
from tools.get_codemirror import get_codemirror  # noqa: E402
from tools.get_pyodide import FILES, MODULES, compiled, get_pyodide  # noqa: E402
from tools.get_services import get_services  # noqa: E402
from tools.live_model import why_no_model, write_live_model  # noqa: E402

logger = logging.getLogger(__name__)

PACKAGES = ("core", "runs", "stepper")
"""What recorded the runs that a page holds."""
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
NOT_IN_BROWSER = ("embed.py", "live.py", "modules.py", "widget.py")


# --- the directive -----------------------------------------------------------------------------


class stepper_node(nodes.General, nodes.Element):
    """A stepper: `entries` (scenarios with their recordings), `ident`, `step`."""


class StepperDirective(SphinxDirective):
    """Embeds a stepper (see the module's text)."""

    optional_arguments = 1
    has_content = True
    option_spec = {"step": directives.nonnegative_int, "scenarios": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """The directive's node; a scenario that is not good is an error of the page."""
        for path in code_files():
            self.env.note_dependency(str(path))
        try:
            scenarios = self.scenarios()
        except ScenarioError as error:
            raise self.error(f"stepper: {error}") from error
        number = self.env.new_serialno("stepper")
        node = stepper_node()
        node["entries"] = [entry_of(scenario) for scenario in scenarios]
        node["ident"] = "stepper" if number == 0 else f"stepper-{number + 1}"
        node["step"] = self.options.get("step")
        self.set_source_info(node)
        return [node]

    def scenarios(self) -> list[Scenario]:
        """The scenario to open first, then the others to choose from."""
        if self.content:
            return [Scenario.from_json("\n".join(self.content))]
        wanted = self.options.get("scenarios", "")
        names = list(SCENARIOS) if wanted == "all" else re.findall(r"[\w-]+", wanted)
        first = [self.arguments[0]] if self.arguments else []
        names = list(dict.fromkeys([*first, *names]))
        unknown = [name for name in names if name not in SCENARIOS]
        if unknown or not names:
            raise self.error(
                f"stepper: no scenario {', '.join(unknown) or 'is named'}; "
                f"there is {', '.join(SCENARIOS)}"
            )
        return [SCENARIOS[name] for name in names]


def visit_html(self: Any, node: stepper_node) -> None:
    first = node["entries"][0]
    scenario, recording = first["scenario"], first["recording"]
    still = figure(scenario, recording, node["step"])
    self.body.append(stepper_html(node["entries"], node["ident"], node["step"], still) + "\n")
    raise nodes.SkipNode


def visit_other(self: Any, node: stepper_node) -> None:
    """Formats without a browser leave the stepper out."""
    raise nodes.SkipNode


# --- the files that it needs -------------------------------------------------------------------


def code_files() -> list[Path]:
    """The Python that recorded what the page holds."""
    files = [path for name in PACKAGES for path in (ROOT / "minivllm" / name).glob("*.py")]
    return sorted(path for path in files if path.name not in NOT_IN_BROWSER)


@lru_cache(maxsize=1)
def pyodide() -> Path | None:
    """Pyodide's folder; None, and a line in the build's output, if it cannot be had."""
    try:
        return get_pyodide()
    except RuntimeError as error:
        logger.info("steppers: recorded runs only, no 'Run live': %s", error)
        return None


def classic_script(entry: str, live: dict[str, Any]) -> str:
    """A page's script and what it imports as one: a module would not load from disk (file://)."""
    script = joined(entry, read_script)
    # Lighter by a fifth: notes and indentation are for those who read the sources. No template of
    # theirs spans lines, which a test holds, so no text loses anything.
    script = re.sub(r"^\s*/\*.*?\*/\n", "", script, flags=re.MULTILINE | re.DOTALL)
    script = re.sub(r"^\s+|^\s*//.*\n", "", script, flags=re.MULTILINE)
    return (
        f'(() => {{\n"use strict";\nconst LIVE = {json.dumps(live)};\n'
        f"const SCRIPT = document.currentScript.src;\n{script}}})();\n"
    )


def read_script(name: str) -> str:
    """A module of the page: the live cells' are in book/live, the others the stepper's."""
    own = LIVE / name
    return own.read_text(encoding="utf-8") if own.exists() else source(name)


def write_assets(static: Path) -> None:
    """Fill `_static/stepper`, `_static/pyodide`, `_static/codemirror` and `_static/jupyter`."""
    target = static / "stepper"
    target.mkdir(parents=True, exist_ok=True)
    for path in (STATIC / "view.css", STATIC / "worker.js", LIVE / "cells.css"):
        shutil.copyfile(path, target / path.name)
    live: dict[str, Any] = {"reason": "this site was built without Pyodide"}
    folder = pyodide()
    if folder is not None:
        copy_changed(folder, static / "pyodide")
        archive = compiled(folder, archive_of(page_files()))
        plotly, widget = archive_of(plotly_files()), archive_of(widget_files())
        engine = compiled(folder, archive_of(engine_files()))
        (target / "engine.zip").write_bytes(engine)
        (target / "minivllm.zip").write_bytes(archive)
        (target / "plotly.zip").write_bytes(plotly)
        (target / "traitlets.zip").write_bytes(widget)
        sizes = {name: (folder / name).stat().st_size for name in FILES}
        live = {
            "worker": f"worker.js?v={digest((STATIC / 'worker.js').read_bytes())}",
            "packages": f"minivllm.zip?v={digest(archive)}",
            "archives": {
                f"plotly.zip?v={digest(plotly)}": PLOTLY_PACKAGES,
                f"traitlets.zip?v={digest(widget)}": WIDGET_PACKAGES,
                f"engine.zip?v={digest(engine)}": ENGINE_PACKAGES,
            },
            "models": write_models(static / "models"),
            "pyodide": "../pyodide/",
            "modules": sum(sizes[name] for name in MODULES),
            "size": sum(sizes.values()) + len(archive),
            "editor": write_editor(static / "codemirror"),
        }
    live["services"] = write_services(static / "jupyter")
    for entry in ("page.js", "cells.js", "progress.js"):
        name = "stepper.js" if entry == "page.js" else entry
        (target / name).write_text(classic_script(entry, live), encoding="utf-8")


def write_models(folder: Path) -> dict[str, Any]:
    """Write the models that a page can load; where they lie, or the `reason` why there are none."""
    if why := why_no_model():
        logger.info("live cells: no model in the page: %s", why)
    else:
        try:
            return {"folder": "../models/", **write_live_model(folder)}
        except RuntimeError as error:  # all that it takes is there: that should not be
            why = str(error)
            logger.warning("live cells: no model in the page: %s", why)
    shutil.rmtree(folder, ignore_errors=True)
    return {"reason": why}


def write_editor(folder: Path) -> str | None:
    """Write CodeMirror's modules; where the editor begins, or None if it cannot be had."""
    try:
        modules = get_codemirror()
    except RuntimeError as error:
        logger.info("live cells: plain text fields, no editor: %s", error)
        return None
    folder.mkdir(parents=True, exist_ok=True)
    modules["editor.mjs"] = (LIVE / "editor.mjs").read_text(encoding="utf-8")
    for name, text in modules.items():
        (folder / name).write_text(text, encoding="utf-8")
    return f"../codemirror/editor.mjs?v={digest(''.join(modules.values()).encode())}"


def write_services(folder: Path) -> str | None:
    """Write what pages need to talk to `make live`; where it lies, or None if it cannot be had."""
    try:
        script = get_services().read_bytes()
    except RuntimeError as error:
        logger.info("live cells: none on a server (make live): %s", error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "services.js").write_bytes(script)
    return f"../jupyter/services.js?v={digest(script)}"


def copy_changed(source: Path, target: Path) -> None:
    """Copy Pyodide's files, those that are not there yet."""
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        copy = target / name
        if not copy.exists() or copy.stat().st_size != (source / name).stat().st_size:
            shutil.copyfile(source / name, copy)


def digest(data: bytes) -> str:
    """Eight digits that change with the data, for a URL."""
    return hashlib.sha256(data).hexdigest()[:8]


def prepare_assets(app: Sphinx) -> None:
    """Write the files before the pages, which name them with a checksum."""
    if app.builder.format == "html":
        write_assets(Path(app.outdir) / "_static")


def has_stepper(doctree: nodes.document) -> bool:
    """Whether a page has a stepper: by the directive, or as a cell's output (SchedulerStepper)."""
    if next(doctree.findall(stepper_node), None) is not None:
        return True
    return any("mv-stepper-embed" in node.astext() for node in doctree.findall(nodes.raw))


def add_assets(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Load the stepper's files on the pages that have one, and there only."""
    # Of no use where no kernel answers, and 130 kB for each widget (it holds the view).
    files = context.get("script_files", [])
    files[:] = [
        file for file in files if getattr(file, "attributes", {}).get("type") != WIDGET_STATE
    ]
    if doctree is not None and has_stepper(doctree):
        app.add_css_file("stepper/view.css")
        app.add_js_file("stepper/stepper.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive, its node and its files to the build."""
    app.add_node(
        stepper_node,
        html=(visit_html, None),
        latex=(visit_other, None),
        text=(visit_other, None),
    )
    app.add_directive("stepper", StepperDirective)
    app.connect("builder-inited", prepare_assets)
    app.connect("html-page-context", add_assets)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
