"""The `drill` directive: an interview card with a timer, and a rubric to grade oneself by.

    ```{drill} preemption-loop
    :title: The preemption loop
    :minutes: 5

    The question.

    +++

    - A point that a good answer makes.
    - Another.
    ```

and, once, `{drill-progress}` for the sum over the page's cards. Without JavaScript a card is its
question and a rubric to unfold; book/_static/drill.js adds the rest and keeps it in the browser.
"""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SEPARATOR = "+++"


class drill_node(nodes.General, nodes.Element):
    """A card: its children are the question; then a `rubric_node`."""


class rubric_node(nodes.General, nodes.Element):
    """What the card hides until the reader has thought."""


class progress_node(nodes.General, nodes.Element):
    """Where drill.js writes the sum."""


class DrillDirective(SphinxDirective):
    """One card (see the module's text)."""

    required_arguments = 1
    has_content = True
    option_spec = {"title": directives.unchanged_required, "minutes": directives.positive_int}

    def run(self) -> list[nodes.Node]:
        """The card's node; a card without a rubric of at least one point is an error."""
        name = self.arguments[0]
        if not re.fullmatch(r"[a-z0-9-]+", name):
            raise self.error(f"drill: {name!r} must be lower-case letters, digits and hyphens")
        if "title" not in self.options:
            raise self.error(f"drill {name}: it needs a :title:")
        lines = [line.strip() for line in self.content]
        if lines.count(SEPARATOR) != 1:
            raise self.error(f"drill {name}: question and rubric are parted by one {SEPARATOR}")
        cut = lines.index(SEPARATOR)
        card = drill_node(name=name, minutes=self.options.get("minutes", 5))
        card["title"] = self.options["title"]
        rubric = rubric_node()
        self.parse(self.content[:cut], 0, card)
        self.parse(self.content[cut + 1 :], cut + 1, rubric)
        lists = list(rubric.findall(nodes.bullet_list))
        if not lists or len(card) == 0:
            raise self.error(f"drill {name}: it needs a question, and a rubric that is a list")
        card += rubric
        return [card]

    def parse(self, lines: StringList, offset: int, into: nodes.Element) -> None:
        """Read Markdown into a node."""
        self.state.nested_parse(lines, self.content_offset + offset, into)


class ProgressDirective(SphinxDirective):
    """The place of the sum."""

    def run(self) -> list[nodes.Node]:
        """An empty place: without JavaScript nothing is kept, so nothing is summed."""
        return [progress_node()]


def visit_drill(self: Any, node: drill_node) -> None:
    name, title = self.attval(node["name"]), self.attval(node["title"])
    self.body.append(
        f'<section class="mv-drill" id="drill-{name}" data-card="{name}" '
        f'data-minutes="{node["minutes"]}" aria-label="Card: {title}">'
        f'<p class="mv-drill__title">{title}</p>'
    )


def depart_drill(self: Any, node: drill_node) -> None:
    self.body.append("</section>\n")


def visit_rubric(self: Any, node: rubric_node) -> None:
    self.body.append('<details class="mv-drill__rubric"><summary>The rubric</summary>')


def depart_rubric(self: Any, node: rubric_node) -> None:
    self.body.append("</details>")


def visit_progress(self: Any, node: progress_node) -> None:
    self.body.append('<div class="mv-drill-progress" hidden></div>\n')
    raise nodes.SkipNode


def visit_plain(self: Any, node: nodes.Element) -> None:
    """Formats without a browser print question and rubric one after the other."""


def add_assets(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Load the script on the pages that have a card, and there only."""
    if doctree is not None and next(doctree.findall(drill_node), None) is not None:
        app.add_css_file("drill.css")
        app.add_js_file("drill.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directives and their nodes to the build."""
    plain = (visit_plain, visit_plain)
    app.add_node(drill_node, html=(visit_drill, depart_drill), latex=plain, text=plain)
    app.add_node(rubric_node, html=(visit_rubric, depart_rubric), latex=plain, text=plain)
    app.add_node(progress_node, html=(visit_progress, None), latex=plain, text=plain)
    app.add_directive("drill", DrillDirective)
    app.add_directive("drill-progress", ProgressDirective)
    app.connect("html-page-context", add_assets)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
