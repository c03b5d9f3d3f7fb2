"""What notebooks import from `IPython.display`; `display` is the page's (book/live/start.py)."""

from __future__ import annotations

from typing import Any


class _Data:
    mimetype = "text/plain"

    def __init__(self, data: str) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"<IPython.core.display.{type(self).__name__} object>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {self.mimetype: self.data}


class HTML(_Data):
    """HTML."""

    mimetype = "text/html"


class Markdown(_Data):
    """Markdown."""

    mimetype = "text/markdown"


class SVG(_Data):
    """An SVG picture."""

    mimetype = "image/svg+xml"


def clear_output(wait: bool = False) -> None:
    """A page keeps what a cell has shown."""
