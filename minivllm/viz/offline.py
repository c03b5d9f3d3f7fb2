"""Shows Plotly figures without a network: in JupyterLab, and on the book's static pages.

A chapter's first code cell says

    from minivllm.viz import offline
    offline.install()

and from then on a figure that ends a cell, or `offline.show(figure, alt="...")`, is shown in two
forms at once. JupyterLab picks Plotly's own mimetype, which its bundled extension draws. The book's
pages pick the HTML: a `<div>` holding the figure as JSON, some kilobytes, which
`book/_static/minivllm.js` draws with the one copy of plotly.min.js that all pages share. Plotly's
usual HTML would put those 4.8 MB into every page, or load them from a CDN.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

from minivllm.viz.charts import MimetypeRenderer, PlotlyJSONEncoder, go, pio
from minivllm.viz.theme import LIGHT, template

NAME = "minivllm"
DEFAULT_HEIGHT = 420  # px; the page keeps this much room, so that nothing jumps when a figure draws
CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "modeBarButtonsToRemove": ["lasso2d", "select2d"],
}


class OfflineRenderer(MimetypeRenderer):
    """A Plotly renderer that gives both forms (see the module's text)."""

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, Any]:
        """The figure as `{mimetype: data}`; `fig_dict` is what `Figure.to_dict()` returns."""
        figure = json.loads(json.dumps(fig_dict, cls=PlotlyJSONEncoder))
        return {
            "application/vnd.plotly.v1+json": {**figure, "config": CONFIG},
            "text/html": figure_html(figure),
        }


def figure_html(figure: dict[str, Any]) -> str:
    """The HTML that a static page carries: the figure's JSON, its description, its height.

    Raises ValueError if the figure has neither a title nor a description: a reader who cannot see
    it would be told nothing.
    """
    layout = {key: value for key, value in figure.get("layout", {}).items() if key != "template"}
    title = layout.pop("title", None) or {}  # HTML draws it: it wraps on a phone, Plotly's does not
    heading, below = title.get("text", ""), (title.get("subtitle") or {}).get("text", "")
    alt = (layout.get("meta") or {}).get("alt") or plain_text(heading)
    if not alt:
        raise ValueError(
            "the figure has no description: give it a title, or show it with "
            "offline.show(figure, alt='what the reader should see')"
        )
    height = int(layout.pop("height", None) or DEFAULT_HEIGHT)
    layout.pop("width", None)  # a page's column decides the width
    payload = {"data": figure.get("data", []), "layout": layout, "config": CONFIG}
    if figure.get("frames"):
        payload["frames"] = figure["frames"]
    text = html.escape(alt, quote=True)
    if heading:
        small = f"<small>{html.escape(plain_text(below))}</small>" if below else ""
        head = f'<p class="mv-figure-title">{html.escape(plain_text(heading))}{small}</p>'
    else:
        head = ""
    # "<" is escaped inside the JSON so that no string in it can end the <script> element.
    data = json.dumps(shortened(payload), separators=(",", ":"), ensure_ascii=False)
    data = data.replace("<", "\\u003c")
    return (
        f'<div class="mv-figure" role="figure" aria-label="{text}" data-height="{height}">'
        f'{head}<div class="mv-plot" style="height:{height}px"></div>'
        f'<script type="application/json">{data}</script>'
        f"<noscript>Interactive figure (needs JavaScript): {text}</noscript></div>"
    )


def shortened(value: Any) -> Any:
    """JSON data, numbers cut to eight digits: no screen shows more, and a page is lighter."""
    if isinstance(value, float) and value == value and abs(value) != float("inf"):
        return float(f"{value:.8g}")
    if isinstance(value, dict):
        return {key: shortened(item) for key, item in value.items()}
    return [shortened(item) for item in value] if isinstance(value, list) else value


def plain_text(text: str) -> str:
    """Plotly's pseudo-HTML without its tags, a line break as a space."""
    return re.sub(r"<[^>]*>", "", re.sub(r"<br ?/?>", " ", text))


def install() -> None:
    """Make this the renderer, and the book's template the default, for figures made from now on."""
    pio.templates[NAME] = go.layout.Template(template(LIGHT, transparent=False))
    pio.templates.default = NAME
    pio.renderers[NAME] = OfflineRenderer()
    pio.renderers.default = NAME


def show(figure: go.Figure, *, alt: str, height: int | None = None) -> None:
    """Show a figure with a description for readers who do not see it.

    `alt` says what the figure shows in a sentence, `height` is in CSS pixels.
    """
    figure.update_layout(meta={"alt": alt})
    if height is not None:
        figure.update_layout(height=height)
    pio.show(figure, renderer=NAME)
