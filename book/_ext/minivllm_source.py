"""Excerpts link to the file they are from: a page of the site for each module that is quoted.

`minivllm.viz.source` writes above an excerpt where its lines are. Here that becomes a link, while a
page is read, to `source/<path>.html`, where every line has its number and an id (`#L-230`). The
pages are made when the site is written, of the files that were quoted.
"""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]

CAPTION = re.compile(r"(minivllm/[\w/]+\.(?:py|c)), (?:[\w.]+, )?lines? (\d+)(?:–\d+)?")
"""`Excerpt.caption`, as it reads on a page."""

QUOTED = "minivllm_quoted"


def link_excerpts(app: Sphinx, doctree: nodes.document) -> None:
    """Make each caption a link, and remember the file for `source_pages`."""
    page = app.env.docname
    quoted = set()
    for output in doctree.findall(nodes.container):
        if "cell_output" not in output.get("classes", ()):
            continue
        for paragraph in output.findall(nodes.paragraph):
            found = CAPTION.fullmatch(paragraph.astext())
            if not found:
                continue
            paragraph["classes"].append("mv-source")
            if app.builder.format != "html":
                continue
            quoted.add(found[1])
            target = posixpath.relpath(f"source/{found[1]}.html", posixpath.dirname(page) or ".")
            link = nodes.reference(refuri=f"{target}#L-{found[2]}", internal=True)
            link.extend(paragraph.children)
            paragraph.children = []
            paragraph.append(link)
    app.env.metadata[page][QUOTED] = sorted(quoted)


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file that some page quotes: highlighted, with numbered lines."""
    if app.builder.format != "html":
        return
    quoted = {path for about in app.env.metadata.values() for path in about.get(QUOTED, ())}
    for path in sorted(quoted):
        code = app.builder.highlighter.highlight_block(  # type: ignore[attr-defined]
            (ROOT / path).read_text(encoding="utf-8"),
            "c" if path.endswith(".c") else "python",
            linenos="inline",
            linespans="L",
        )
        title = f'<h1 class="mv-source-path">{html.escape(path)}</h1>'
        body = f'{title}\n<div class="mv-source-page">{code}</div>'
        yield f"source/{path}", {"title": path, "body": body, "parents": []}, "page.html"


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect to reading and writing."""
    app.connect("doctree-read", link_excerpts)
    app.connect("html-collect-pages", source_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
