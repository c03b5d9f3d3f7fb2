"""Drawings as SVG in the book's two themes: boxes, text, arrows and hatching, by role of colour.

A drawing is HTML that a notebook and a page show as it is: no script, no file, no network. Its
colours are CSS variables that follow the page's theme, and readers who do not see it get its text.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count

from minivllm.viz.palette import REQUEST_COLORS, REQUEST_COLORS_DARK
from minivllm.viz.theme import DARK, FONT, LIGHT

MONO = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace"

ROLES = {name: (color, asdict(DARK)[name]) for name, color in asdict(LIGHT).items()} | {
    f"r{i}": pair for i, pair in enumerate(zip(REQUEST_COLORS, REQUEST_COLORS_DARK))
}
"""Each role's colour on a light page and on a dark one; `r0` to `r7` are requests."""

WIDTH_OF_A_CHARACTER = 0.58
"""Of the size of the font, on average; 0.62 for the monospaced one."""

SCHEME = (
    ".mv-drawing{color-scheme:light}"
    ':root[data-theme="dark"] .mv-drawing,body[data-jp-theme-light="false"] .mv-drawing,'
    "body.vscode-dark .mv-drawing{color-scheme:dark}"
    "@media(prefers-color-scheme:dark){:root:not([data-theme]) "
    "body:not([data-jp-theme-light],.vscode-light) .mv-drawing{color-scheme:dark}}"
)

_numbers = count()


class Drawing:
    """An SVG that grows by calls, in CSS pixels from the top left corner.

    Args:
        width: of the drawing; on a narrower page it is scaled down to three quarters, then scrolls.
        height: of the drawing.
        alt: what the drawing shows, in sentences, for readers who do not see it.
    """

    def __init__(self, width: float, height: float, alt: str) -> None:
        self.width = width
        self.height = height
        self.alt = alt
        self._parts: list[str] = []
        self._roles: set[str] = set()
        self._hatches: set[str] = set()
        self._id = f"mv-d{next(_numbers)}"

    def color(self, role: str) -> str:
        """The CSS value of a role's colour.

        Raises:
            KeyError: if there is no such role.
        """
        ROLES[role]
        self._roles.add(role)
        return f"var(--d-{role})"

    def rect(
        self, x: float, y: float, width: float, height: float, role: str = "muted", *,
        tint: float = 0.2, hatch: bool = False, dashed: bool = False,
    ) -> None:  # fmt: skip
        """A box: its outline in the role's colour, its area in a tint of it, or hatched."""
        color = self.color(role)
        fill = f"fill:{color};fill-opacity:{tint}"
        if hatch:
            self._hatches.add(role)
            fill = f"fill:url(#{self._id}-{role})"
        dash = ";stroke-dasharray:4 3" if dashed else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3" '
            f'style="{fill};stroke:{color}{dash}"/>'
        )

    def text(
        self, x: float, y: float, words: str, *, size: float = 14, anchor: str = "start",
        role: str = "ink", bold: bool = False, mono: bool = False,
    ) -> None:  # fmt: skip
        """A line of text whose baseline begins (or has its middle, or ends) at the point.

        Raises:
            ValueError: if it would leave the drawing.
        """
        length = width_of(words, size, mono)
        left = x - length * {"start": 0, "middle": 0.5, "end": 1}[anchor]
        if left < 0 or left + length > self.width or not 0 <= y <= self.height:
            raise ValueError(f"{words!r} at ({x:g}, {y:g}) leaves {self.width:g} x {self.height:g}")
        weight = ";font-weight:650" if bold else ""
        family = f";font-family:{MONO}" if mono else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" '
            f'style="font-size:{size:g}px;fill:{self.color(role)}{weight}{family}">'
            f"{html.escape(words)}</text>"
        )

    def box(
        self, x: float, y: float, width: float, height: float, lines: str | Sequence[str],
        role: str = "muted", *, size: float = 14, mono: bool = False, tint: float = 0.2,
        hatch: bool = False, dashed: bool = False, bold: bool = False,
    ) -> None:  # fmt: skip
        """A box with lines of text in its middle.

        Raises:
            ValueError: if a line is wider than the box, or there are too many.
        """
        rows = [lines] if isinstance(lines, str) else list(lines)
        step = size * 1.3
        for row in rows:
            if width_of(row, size, mono) > width:
                raise ValueError(f"{row!r} is wider than its box of {width:g}")
        if len(rows) * step > height:
            raise ValueError(f"{len(rows)} lines are higher than their box of {height:g}: {rows}")
        self.rect(x, y, width, height, role, tint=tint, hatch=hatch, dashed=dashed)
        top = y + (height - len(rows) * step) / 2 + size
        for number, row in enumerate(rows):
            self.text(
                x + width / 2, top + number * step, row, size=size, anchor="middle", mono=mono,
                bold=bold,
            )  # fmt: skip

    def line(
        self, points: Sequence[tuple[float, float]], role: str = "muted", *, arrow: bool = False,
        dashed: bool = False, thick: float = 1.5,
    ) -> None:  # fmt: skip
        """A line through points, with an arrow's head at its end if asked for."""
        color = self.color(role)
        dash = ";stroke-dasharray:4 3" if dashed else ""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" '
            f'style="fill:none;stroke:{color};stroke-width:{thick:g}{dash}"/>'
        )
        if arrow:
            (x0, y0), (x, y) = points[-2], points[-1]
            length = ((x - x0) ** 2 + (y - y0) ** 2) ** 0.5 or 1.0
            ux, uy = (x - x0) / length, (y - y0) / length
            left = f"{x - 8 * ux - 4 * uy:.1f},{y - 8 * uy + 4 * ux:.1f}"
            right = f"{x - 8 * ux + 4 * uy:.1f},{y - 8 * uy - 4 * ux:.1f}"
            self._parts.append(
                f'<polygon points="{x:g},{y:g} {left} {right}" style="fill:{color}"/>'
            )

    def _repr_html_(self) -> str:
        patterns = "".join(
            f'<pattern id="{self._id}-{role}" width="6" height="6" patternUnits="userSpaceOnUse" '
            f'patternTransform="rotate(45)"><path d="M0 0V6" style="stroke:{self.color(role)};'
            'stroke-width:2;stroke-opacity:.6"/></pattern>'
            for role in sorted(self._hatches)
        )
        colors = "".join(
            f"--d-{role}:light-dark({ROLES[role][0]},{ROLES[role][1]});"
            for role in sorted(self._roles)
        )
        alt = html.escape(self.alt, quote=True)
        return (
            f'<div class="mv-drawing" role="img" tabindex="0" aria-label="{alt}" '
            f'style="overflow-x:auto;margin:1rem 0;{colors}"><style>{SCHEME}</style>'
            f'<svg aria-hidden="true" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'style="display:block;width:100%;max-width:{self.width:g}px;'
            f'min-width:{0.75 * self.width:g}px;height:auto;font-family:{html.escape(FONT)}">'
            f"<defs>{patterns}</defs>{''.join(self._parts)}</svg></div>"
        )

    def __repr__(self) -> str:
        return self.alt


def width_of(words: str, size: float, mono: bool = False) -> float:
    """About how many pixels wide a line of text is."""
    return len(words) * size * (0.62 if mono else WIDTH_OF_A_CHARACTER)
