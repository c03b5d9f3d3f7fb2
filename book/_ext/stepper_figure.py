"""One step of a stepper as a still picture, for pages read without JavaScript."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

NUM_COLOURS = 8  # as in static/view/colours.js
WIDTH = 720
ROW = 34
CELL = 38
GAP = 4
PER_ROW = 8
LEFT = 360  # where the pool begins


def figure(scenario: Mapping[str, Any], recording: Mapping[str, Any], step: int | None) -> str:
    """The queues, the pool and the sentences of one step, as `<figure>`.

    Args:
        scenario: for its title.
        recording: `record(scenario)`.
        step: which; None: the most telling one.
    """
    steps = recording["steps"]
    if not steps:
        return f"<p>{escape(scenario['title'])}: nothing runs.</p>"
    index = telling_step(steps) if step is None else min(step, len(steps) - 1)
    sentences = " ".join(recording["sentences"][index])
    caption = f"{scenario['title']}, step {index} of {len(steps) - 1}. {sentences}"
    note = "With JavaScript on, this figure steps, plays and runs live."
    return (
        f"<figure>{picture(steps, index, scenario['title'])}"
        f"<figcaption>{escape(caption)} <em>{note}</em></figcaption></figure>"
    )


def telling_step(steps: list[dict[str, Any]]) -> int:
    """The first step with a preemption; without one, that with the most events."""
    for index, snapshot in enumerate(steps):
        if any(event["type"] == "preempted" for event in snapshot["events"]):
            return index
    return max(range(len(steps)), key=lambda index: len(steps[index]["events"]))


def colours(steps: list[dict[str, Any]]) -> dict[str, str]:
    """A CSS colour for each request, as the stepper gives it."""
    arrived = [e["request_id"] for s in steps for e in s["events"] if e["type"] == "arrived"]
    return {id_: f"var(--mv-c{i % NUM_COLOURS})" for i, id_ in enumerate(dict.fromkeys(arrived))}


def picture(steps: list[dict[str, Any]], index: int, title: str) -> str:
    """The step as `<svg>`."""
    snapshot, paint = steps[index], colours(steps)
    parts, y = [], 20
    for name in ("running", "waiting"):
        parts.append(text(0, y, f"{name.upper()} ({len(snapshot[name])})", weight=700))
        y += 10
        for id_ in snapshot[name][:8]:
            parts.append(row(id_, snapshot["requests"][id_], paint[id_], y))
            y += ROW
        y += 24
    blocks, height = pool(snapshot, paint)
    bottom = max(y, height)
    parts.append(rect(1, bottom - 9, 14, 9, "var(--mv-page)", 'stroke="currentColor"'))
    parts.append(text(22, bottom, "sampled when the step ends: the next gap of one"))
    label = f"{title}: the queues and the block pool at step {index}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + 8:g}" role="img" aria-label="{escape(label)}" '
        f'style="width:100%;font:13px system-ui,sans-serif;fill:currentColor">'
        f"{''.join(parts)}{blocks}</svg>"
    )


def text(x: float, y: float, content: str, *, weight: int = 400, anchor: str = "start") -> str:
    """A line of text."""
    return f'<text x="{x}" y="{y}" font-weight="{weight}" text-anchor="{anchor}">{escape(content)}</text>'  # noqa: E501


def rect(x: float, y: float, width: float, height: float, fill: str, more: str = "") -> str:
    """A rectangle with round corners."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" fill="{fill}" {more}/>'  # noqa: E501


def samples_token(request: Mapping[str, Any]) -> bool:
    """Whether its gap closes in this step: then, and only then, a token is sampled for it."""
    computed, known = request["num_computed_tokens"], request["num_tokens"]
    return request["num_scheduled_tokens"] > 0 and computed >= known


def row(id_: str, request: Mapping[str, Any], colour: str, y: float) -> str:
    """A request: computed and known tokens as a bar and as numbers; hollow: sampled next."""
    computed, known = request["num_computed_tokens"], request["num_tokens"]
    next_ = int(samples_token(request))
    width, token = 300, 300 / (known + next_)
    return (
        text(0, y + 14, id_, weight=650)
        + text(width, y + 14, f"{computed} / {known}", anchor="end")
        + rect(0, y + 18, width, 9, "var(--mv-free)")
        + rect(0, y + 18, computed * token, 9, colour)
        + next_ * rect(known * token, y + 18, token, 9, "var(--mv-page)", f'stroke="{colour}"')
    )


def pool(snapshot: Mapping[str, Any], paint: Mapping[str, str]) -> tuple[str, float]:
    """The first blocks of the pool, and where they end."""
    owners = snapshot["blocks"]["owners"]
    shown = min(len(owners) - 1, 64)
    in_use = sum(count > 0 for count in snapshot["blocks"]["ref_cnt"][1:])
    parts = [text(LEFT, 20, f"BLOCKS ({in_use} of {len(owners) - 1} in use)", weight=700)]
    for block in range(1, shown + 1):
        x = LEFT + (block - 1) % PER_ROW * (CELL + GAP)
        y = 30 + (block - 1) // PER_ROW * (CELL + GAP)
        fill = paint[owners[block][0]] if owners[block] else "var(--mv-free)"
        parts.append(rect(x, y, CELL, CELL, fill, 'stroke="var(--mv-edge)"'))
        name = (
            f"{owners[block][0][:4]}{'+' if len(owners[block]) > 1 else ''}"
            if owners[block]
            else ""
        )
        parts.append(text(x + CELL / 2, y + CELL / 2 + 5, name, weight=650, anchor="middle"))
    return "".join(parts), 30 + -(-shown // PER_ROW) * (CELL + GAP) + 10
