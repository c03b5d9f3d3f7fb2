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
import io
import json
import re
import shutil
import sys
import zipfile
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
from minivllm.stepper.modules import STATIC, joined  # noqa: E402
from tools.get_pyodide import FILES, MODULES, get_pyodide  # noqa: E402

logger = logging.getLogger(__name__)

PACKAGES = ("core", "runs", "stepper")
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
    """The Python that runs in the page, and that recorded what the page holds."""
    files = [path for name in PACKAGES for path in (ROOT / "minivllm" / name).glob("*.py")]
    return sorted(path for path in files if path.name not in NOT_IN_BROWSER)


def package_archive() -> bytes:
    """minivllm's scheduler and its stepper as a zip; the same code gives the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in [ROOT / "minivllm" / "__init__.py", *code_files()]:
            name = zipfile.ZipInfo(path.relative_to(ROOT).as_posix())
            name.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(name, path.read_bytes())
    return buffer.getvalue()


@lru_cache(maxsize=1)
def pyodide() -> Path | None:
    """Pyodide's folder; None, and a line in the build's output, if it cannot be had."""
    try:
        return get_pyodide()
    except RuntimeError as error:
        logger.info("steppers: recorded runs only, no 'Run live': %s", error)
        return None


def classic_script(live: dict[str, Any]) -> str:
    """page.js and the view as one script: a module would not load from disk (file://)."""
    script = joined("page.js")
    # Lighter by a fifth: notes and indentation are for those who read the sources. No template of
    # theirs spans lines, which a test holds, so no text loses anything.
    script = re.sub(r"^\s*/\*.*?\*/\n", "", script, flags=re.MULTILINE | re.DOTALL)
    script = re.sub(r"^\s+|^\s*//.*\n", "", script, flags=re.MULTILINE)
    return f'(() => {{\n"use strict";\nconst LIVE = {json.dumps(live)};\n{script}}})();\n'


def write_assets(static: Path) -> None:
    """Fill `_static/stepper` and `_static/pyodide`."""
    target = static / "stepper"
    target.mkdir(parents=True, exist_ok=True)
    archive = package_archive()
    for name in ("view.css", "worker.js"):
        shutil.copyfile(STATIC / name, target / name)
    live: dict[str, Any] = {"reason": "recorded run (this site was built without Pyodide)"}
    source = pyodide()
    if source is not None:
        copy_changed(source, static / "pyodide")
        (target / "minivllm.zip").write_bytes(archive)
        sizes = {name: (source / name).stat().st_size for name in FILES}
        live = {
            "worker": f"worker.js?v={digest((STATIC / 'worker.js').read_bytes())}",
            "packages": f"minivllm.zip?v={digest(archive)}",
            "pyodide": "../pyodide/",
            "modules": sum(sizes[name] for name in MODULES),
            "size": sum(sizes.values()) + len(archive),
        }
    (target / "stepper.js").write_text(classic_script(live), encoding="utf-8")


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
