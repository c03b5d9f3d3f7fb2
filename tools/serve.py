"""Serves the built site, its pages cross-origin isolated.

    python tools/serve.py [PORT [HOST]]

In an isolated page a model computes on several threads, and a cell can be interrupted: memory that
threads share is for pages alone that keep other sites out.
"""

from __future__ import annotations

import functools
import http.server
import sys
from pathlib import Path

SITE = Path(__file__).resolve().parents[1] / "_build" / "html"
HOST = "127.0.0.1"
ISOLATED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
"""Headers of every answer."""


class SiteHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files with the headers that isolate a page."""

    def end_headers(self) -> None:
        """Send them last."""
        for name, value in ISOLATED.items():
            self.send_header(name, value)
        super().end_headers()


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    port = int(arguments[0]) if arguments else 8000
    host = arguments[1] if len(arguments) > 1 else HOST
    handler = functools.partial(SiteHandler, directory=str(SITE))
    try:
        server = http.server.ThreadingHTTPServer((host, port), handler)
    except OSError as error:
        print(f"error: port {port}: {error}. Choose another: PORT=8001", file=sys.stderr)
        return 1
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
