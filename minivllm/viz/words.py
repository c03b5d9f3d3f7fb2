"""A step in sentences and numbers in a table, as HTML that wraps on a phone."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

from minivllm.runs.explain import explain
from minivllm.runs.snapshot import Snapshot


class Words:
    """HTML for a notebook and the book's pages, plain text elsewhere."""

    def __init__(self, markup: str, text: str) -> None:
        self.markup = markup
        self.text = text

    def _repr_html_(self) -> str:
        return self.markup

    def __repr__(self) -> str:
        return self.text


def tell(snapshot: Snapshot) -> Words:
    """What a step did and why, as a list of sentences."""
    sentences = explain(snapshot)
    items = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
    return Words(f"<ul>{items}</ul>", "\n".join(f"- {sentence}" for sentence in sentences))


def say(text: str) -> Words:
    """A message, such as an error's, that may be longer than a line."""
    return Words(f"<blockquote><p>{html.escape(text)}</p></blockquote>", text)


def link(text: str, url: str) -> Words:
    """A link, for a cell of a table."""
    return Words(f'<a href="{html.escape(url, quote=True)}">{html.escape(text)}</a>', text)


def download(name: str, text: str, label: str, mimetype: str = "application/json") -> Words:
    """A link that saves `text` as a file; the page itself holds it, so it works offline.

    Args:
        name: of the file.
        text: its content.
        label: what the link says.
        mimetype: of the content.
    """
    data = base64.b64encode(text.encode()).decode()
    return Words(
        f'<p><a download="{html.escape(name, quote=True)}" href="data:{mimetype};base64,{data}">'
        f"{html.escape(label)}</a></p>",
        label,
    )


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Words:
    """Numbers under headings.

    Args:
        header: one heading for each column.
        rows: cells are `Words`, or shown as `str` gives them; format them first.

    Raises:
        ValueError: if a row has more or fewer cells than the header.
    """
    listed = [list(row) for row in rows]
    for row in listed:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header {len(header)}: {row}")
    cells = [[str(cell) for cell in row] for row in listed]
    # Numbers stand to the right: a column in which every cell begins like one.
    numeric = [
        bool(cells) and all(row[i][:1].isdigit() or row[i][:1] in "-+" for row in cells)
        for i in range(len(header))
    ]
    markup = [_row("th", header, numeric)] + [_row("td", row, numeric) for row in listed]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric)
        ).rstrip()
        for row in [list(header), *cells]
    ]
    return Words(
        f'<div class="pst-scrollable-table-container"><table class="table">'
        f"<thead>{markup[0]}</thead><tbody>{''.join(markup[1:])}</tbody></table></div>",
        "\n".join(lines),
    )


def _row(tag: str, cells: Sequence[object], numeric: Sequence[bool]) -> str:
    """A table row."""
    parts = [
        f"<{tag}{' style=text-align:right' if right else ' style=text-align:left'}>"
        f"{_cell(cell)}</{tag}>"
        for cell, right in zip(cells, numeric)
    ]
    return f"<tr>{''.join(parts)}</tr>"


def _cell(cell: object) -> str:
    """A cell's content; a name may break after an underscore, since the page may be a phone's."""
    if isinstance(cell, Words):
        return cell.markup
    return html.escape(str(cell)).replace("_", "_<wbr>")
