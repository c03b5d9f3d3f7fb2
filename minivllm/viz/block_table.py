"""Block tables: which physical blocks hold which part of each request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minivllm.runs.snapshot import Snapshot
from minivllm.runs.steps import arrival_order, check_requests, plural, snapshot_of, steps_of, tick
from minivllm.viz.charts import go, make_subplots
from minivllm.viz.palette import REQUEST_COLORS, request_color
from minivllm.viz.theme import COLORS

MAX_LABELS = 400
"""Beyond so many blocks a figure names none in its cells; hovering still does."""


def block_table_map(
    source: Any,
    step: int | None = None,
    requests: Sequence[str] | None = None,
    *,
    per_row: int = 16,
) -> go.Figure:
    """Logical to physical: each request's block table above, the pool below, in the same colours.

    Args:
        source: a run (see `minivllm.runs.steps.steps_of`) or one snapshot.
        step: which step; None: the last, or of a `SchedulerStepper` the one on show.
        requests: ids whose tables are drawn; None: all that hold blocks.
        per_row: blocks in a row of the pool.

    Returns:
        A figure of two panels. Above, a row for each request: cell i holds the id of the physical
        block with its i-th block of tokens. Below, the pool by id: each block's owner, `+` where
        several share it, `cached` where it is free but can be revived.

    Raises:
        ValueError: if there is no such step or request, or `per_row` is not positive.
    """
    if isinstance(per_row, bool) or not isinstance(per_row, int) or per_row < 1:
        raise ValueError(f"per_row must be an integer of at least 1, got {per_row!r}")
    snapshot = snapshot_of(source, step)
    order = arrival_order(steps_of(source))
    holders = [id_ for id_, row in snapshot["requests"].items() if row["block_table"]]
    ids = holders if requests is None else check_requests(requests, order)
    num_blocks = len(snapshot["blocks"]["state"])
    pool_rows = -(-num_blocks // per_row)
    heights = [max(len(ids), 1) + 0.5, pool_rows + 0.5]
    height = min(max(170 + 34 * sum(heights), 340), 1600)
    figure = make_subplots(
        rows=2,
        cols=1,
        row_heights=[height / sum(heights) for height in heights],
        vertical_spacing=64 / (height - 90),  # room for the upper axis and its title
    )
    longest = max((len(snapshot["requests"][i]["block_table"]) for i in ids), default=1)
    label = num_blocks <= MAX_LABELS
    _add_tables(figure, snapshot, ids, order, longest, label)
    _add_pool(figure, snapshot, order, per_row, label)

    figure.update_xaxes(
        title={"text": "entry of the block table"}, row=1, col=1, dtick=tick(longest)
    )
    figure.update_yaxes(
        title={"text": "request"}, row=1, col=1, autorange="reversed", type="category"
    )
    figure.update_xaxes(row=2, col=1, visible=False)
    figure.update_yaxes(
        title={"text": "block"},
        row=2,
        col=1,
        autorange="reversed",
        tickvals=list(range(pool_rows)),
        ticktext=[str(row * per_row) for row in range(pool_rows)],
    )
    figure.update_xaxes(showgrid=False, zeroline=False)
    figure.update_yaxes(showgrid=False, zeroline=False)
    shared = sum(count > 1 for count in snapshot["blocks"]["ref_cnt"])
    used = num_blocks - 1 - len(snapshot["blocks"]["free_queue"])
    figure.update_layout(
        title={"text": f"Block tables after step {snapshot['step']}"},
        showlegend=False,
        height=int(height),
        meta={
            "alt": f"Block tables after step {snapshot['step']}: {plural(len(holders), 'request')} "
            f"hold {used} of {num_blocks - 1} blocks, {shared} of them shared."
        },
    )
    return figure


def _request_scale() -> list[list[Any]]:
    """A colour scale of eight flat steps: z is the request's number, modulo eight."""
    share = 1 / len(REQUEST_COLORS)
    return [
        [edge, request_color(i)]
        for i in range(len(REQUEST_COLORS))
        for edge in (i * share, (i + 1) * share)
    ]


def _cells(
    figure: go.Figure,
    row: int,
    z: list[list[int | None]],
    text: list[list[str]],
    hover: list[list[str]],
    y: list[Any],
    label: bool,
    **look: Any,
) -> None:
    figure.add_heatmap(
        z=z,
        y=y,
        text=text,
        customdata=hover,
        texttemplate="%{text}" if label else None,
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        showscale=False,
        xgap=2,
        ygap=2,
        row=row,
        col=1,
        **look,
    )


def _add_tables(
    figure: go.Figure,
    snapshot: Snapshot,
    ids: list[str],
    order: dict[str, int],
    longest: int,
    label: bool,
) -> None:
    blocks = snapshot["blocks"]
    z: list[list[int | None]] = []
    text, hover = [], []
    for id_ in ids:
        table = snapshot["requests"][id_]["block_table"] if id_ in snapshot["requests"] else []
        blank = longest - len(table)
        z.append([order[id_] % len(REQUEST_COLORS)] * len(table) + [None] * blank)
        text.append([f"{b}+" if blocks["ref_cnt"][b] > 1 else str(b) for b in table] + [""] * blank)
        hover.append(
            [f"{id_}: entry {i} of the table is block {b}" for i, b in enumerate(table)]
            + [""] * blank
        )
    _cells(
        figure, 1, z, text, hover, ids, label,
        colorscale=_request_scale(), zmin=-0.5, zmax=len(REQUEST_COLORS) - 0.5,
        textfont={"color": COLORS.paper},
    )  # fmt: skip


def _add_pool(
    figure: go.Figure, snapshot: Snapshot, order: dict[str, int], per_row: int, label: bool
) -> None:
    blocks = snapshot["blocks"]
    num_blocks = len(blocks["state"])
    size = -(-num_blocks // per_row) * per_row
    owned: list[int | None] = [None] * size
    kept: list[int | None] = [None] * size
    free: list[int | None] = [None] * size
    text, hover = [""] * size, [""] * size
    words = {
        "0": "the null block", ".": "free and empty", "e": "free, still cached",
        "p": "partly filled", "f": "full", "c": "full and cached",
    }  # fmt: skip
    for block, state in enumerate(blocks["state"]):
        owners = blocks["owners"][block]
        hover[block] = f"block {block}: {words[state]}"
        if owners:
            owned[block] = order[owners[0]] % len(REQUEST_COLORS)
            text[block] = owners[0][:4] + ("+" if len(owners) > 1 else "")
            hover[block] += f", {', '.join(owners)}"
        elif state == "e":
            kept[block], text[block] = 0, "•"
        else:
            free[block], text[block] = 0, "∅" if state == "0" else ""

    def rows(cells: list[Any]) -> list[list[Any]]:
        return [cells[start : start + per_row] for start in range(0, size, per_row)]

    y = list(range(size // per_row))
    looks: tuple[tuple[list[int | None], dict[str, Any]], ...] = (
        (free, _flat(COLORS.free, COLORS.ink)),
        (kept, _flat(COLORS.cached, COLORS.paper)),
        (
            owned,
            {
                "colorscale": _request_scale(),
                "zmin": -0.5,
                "zmax": len(REQUEST_COLORS) - 0.5,
                "textfont": {"color": COLORS.paper},
            },
        ),
    )
    for cells, look in looks:
        if any(cell is not None for cell in cells):
            own = ["" if cell is None else word for cell, word in zip(cells, text)]
            _cells(figure, 2, rows(cells), rows(own), rows(hover), y, label, **look)


def _flat(fill: str, ink: str) -> dict[str, Any]:
    return {"colorscale": [[0, fill], [1, fill]], "zmin": 0, "zmax": 1, "textfont": {"color": ink}}
