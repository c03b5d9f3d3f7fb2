"""Live cells: the code of a page runs in the reader's browser (book/live/cells.js).

Each cell that needs nothing but what a page has gets a bar, the others a bar that says what they
need (live_needs.py). Beside the page lies its notebook as JSON, with the cells that the page does
not show: they run too, in their places, and "Download notebook" makes a notebook of all.
"""

from __future__ import annotations

import html
import json
import posixpath
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "book" / "_ext"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from live_needs import needs, runs_a_model  # noqa: E402
from minivllm_book import is_notebook  # noqa: E402
from minivllm_stepper import pyodide  # noqa: E402

from minivllm.grading.judge import exercises, is_extra, number_of  # noqa: E402
from tools.live_model import why_no_model  # noqa: E402

LIVE = "minivllm_live"
PROGRESS = "minivllm_progress"


def read(path: Path) -> Any:
    """A notebook, from .ipynb or from Markdown."""
    import nbformat
    from myst_nb.core.read import read_myst_markdown_notebook

    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return nbformat.reads(text, as_version=4)
    return read_myst_markdown_notebook(text, path=path)


def notebook_cells(path: Path) -> list[dict[str, Any]]:
    """A notebook's cells as a page takes them: `type`, `source`, `tags`, `metadata`, `id`,
    `needs` and `setup` (live_needs.Needs)."""
    cells: list[dict[str, Any]] = []
    for cell in read(path).cells:
        row = {"type": cell.cell_type, "source": cell.source, "tags": cell.metadata.get("tags", [])}
        if path.suffix == ".ipynb":
            row |= {"metadata": cell.metadata, "id": cell.id}
        cells.append({**row, "needs": "", "setup": "", "model": False})
    code = [cell for cell in cells if cell["type"] == "code"]
    for cell, found in zip(code, needs([cell["source"] for cell in code], why_no_model())):
        cell["needs"], cell["setup"] = found.reason, found.setup
        cell["model"] = not found.reason and runs_a_model(cell["source"])
    return cells


def notebook_metadata(path: Path) -> dict[str, Any]:
    """A notebook's metadata: an exercise's says to the grader which exercise it is."""
    if path.suffix == ".ipynb":
        return dict(read(path).metadata)
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"kernelspec": python, "language_info": {"name": "python"}}


def role_of(cell: dict[str, Any]) -> str:
    """What a cell of an exercise is: "answer", "graded", "free-text", or ""."""
    return cell.get("metadata", {}).get("minivllm", {}).get("role", "")


def is_live(page: str, path: Path) -> bool:
    """Whether a page's cells are live: the chapters' and the exercises'."""
    return page.startswith(("book/", "exercises/")) and is_notebook(path)


def data_file(page: str) -> str:
    """Where in the site a page's notebook lies."""
    return f"_static/live/{page.replace('/', '-')}.json"


def add_bars(app: Sphinx, doctree: nodes.document) -> None:
    """Mark the cells, and leave room for their bars."""
    page = app.env.docname
    path = Path(app.env.doc2path(page))
    app.env.metadata[page].pop(LIVE, None)
    if app.builder.format != "html" or not is_live(page, path):
        return
    cells = notebook_cells(path)
    shown = [
        node
        for node in doctree.findall(nodes.container)
        if node.get("nb_element") == "cell_code" and node.get("cell_index") is not None
    ]
    if not any(cells[node["cell_index"]]["needs"] == "" for node in shown):
        return
    for node in shown:
        index = node["cell_index"]
        node["classes"] += ["mv-code", f"mv-code-at-{index}"]
        reason = html.escape(cells[index]["needs"], quote=True)
        role = role_of(cells[index])
        bar = raw(f'<div class="mv-code-bar" data-needs="{reason}" data-role="{role}"></div>')
        code = [c for c in node.findall(nodes.container) if "cell_input" in c.get("classes", ())]
        (code[0] if code else node).append(bar)
    add_free_text(doctree, cells)
    target = posixpath.relpath(data_file(page), posixpath.dirname(page) or ".")
    loads = any(cells[node["cell_index"]]["model"] for node in shown)
    model = "data-model " if loads else ""
    top = raw(
        f'<div class="mv-code-page" data-page="{page}" data-notebook="{target}" {model}'
        'role="toolbar" aria-label="Run this page\'s code"></div>'
    )
    title = next(doctree.findall(nodes.title))
    assert title.parent is not None
    title.parent.insert(title.parent.index(title) + 1, top)
    app.env.metadata[page][LIVE] = True


def add_free_text(doctree: nodes.document, cells: list[dict[str, Any]]) -> None:
    """Make a place to write of each free-text cell."""
    for index, cell in enumerate(cells):
        if role_of(cell) != "free-text":
            continue
        words = cell["source"].strip().strip("*")
        for paragraph in list(doctree.findall(nodes.paragraph)):
            if paragraph.astext() == words and paragraph.parent is not None:
                source = html.escape(cell["source"], quote=True)
                box = f'<div class="mv-free-text" data-cell="{index}" data-source="{source}">'
                paragraph.replace_self([raw(box), paragraph.deepcopy(), raw("</div>")])
                break


class ProgressDirective(SphinxDirective):
    """`{exercise-progress}`: the points that the reader's browser keeps."""

    def run(self) -> list[nodes.Node]:
        """A table without points, which book/live/progress.js draws anew."""
        rows = []
        for name, module in exercises().items():
            page = posixpath.relpath(f"exercises/{name}", posixpath.dirname(self.env.docname))
            parts = [{"id": part.id, "points": part.points} for part in module.PARTS]
            title = f"{number_of(name)}. {module.TITLE}"
            row = {"title": title, "url": f"{page}.html", "parts": parts}
            rows.append(row | ({"extra": True} if is_extra(name) else {}))
        data = json.dumps(rows, ensure_ascii=False).replace("<", "\\u003c")
        self.env.metadata[self.env.docname][PROGRESS] = True
        return [
            raw(
                f'<div class="mv-progress"><script type="application/json">{data}</script>'
                '<div class="mv-progress-table"><p>Points are kept by the browser, with '
                "JavaScript.</p></div></div>"
            )
        ]


def raw(text: str) -> nodes.raw:
    """HTML as it is."""
    return nodes.raw("", text, format="html")


def add_assets(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Load the script on the pages that have live cells, and there only."""
    if doctree is not None and app.env.metadata.get(page, {}).get(LIVE):
        app.add_css_file("stepper/cells.css")
        app.add_js_file("stepper/cells.js", loading_method="defer")
    if doctree is not None and app.env.metadata.get(page, {}).get(PROGRESS):
        app.add_css_file("stepper/cells.css")
        app.add_js_file("stepper/progress.js", loading_method="defer")


def name_folds(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Let a fold be named by the words that it shows, not by MyST-NB's label for all of them."""
    if "body" in context:
        label = '<summary aria-label="Toggle hidden content">'
        context["body"] = context["body"].replace(label, "<summary>")


def write_notebooks(app: Sphinx, error: Exception | None) -> None:
    """Put each live page's notebook into the site."""
    if error is not None or app.builder.format != "html" or pyodide() is None:
        return
    for page, about in app.env.metadata.items():
        if about.get(LIVE):
            target = Path(app.outdir) / data_file(page)
            target.parent.mkdir(parents=True, exist_ok=True)
            path = Path(app.env.doc2path(page))
            data = {"cells": notebook_cells(path), "metadata": notebook_metadata(path)}
            text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
            target.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to reading and writing."""
    app.add_directive("exercise-progress", ProgressDirective)
    app.connect("doctree-read", add_bars)
    app.connect("html-page-context", add_assets)
    app.connect("html-page-context", name_folds)
    app.connect("build-finished", write_notebooks)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
