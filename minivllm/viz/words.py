"""A step in sentences and numbers in a table, as HTML that wraps on a phone."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from minivllm.core.snapshot import Snapshot
from minivllm.stepper.explain import explain


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


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> Words:
    """Numbers under headings.

    Args:
        header: one heading for each column.
        rows: cells are shown as `str` gives them; format them first.

    Raises:
        ValueError: if a row has more or fewer cells than the header.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    for row in cells:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header {len(header)}: {row}")
    # Numbers stand to the right: a column in which every cell begins like one.
    numeric = [
        bool(cells) and all(row[i][:1].isdigit() or row[i][:1] in "-+" for row in cells)
        for i in range(len(header))
    ]
    markup = [_row("th", header, numeric)] + [_row("td", row, numeric) for row in cells]
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


def _row(tag: str, cells: Sequence[str], numeric: Sequence[bool]) -> str:
    """A table row; a name may break after an underscore, since the page may be a phone's."""
    parts = [
        f"<{tag}{' style=text-align:right' if right else ' style=text-align:left'}>"
        f"{html.escape(cell).replace('_', '_<wbr>')}</{tag}>"
        for cell, right in zip(cells, numeric)
    ]
    return f"<tr>{''.join(parts)}</tr>"
