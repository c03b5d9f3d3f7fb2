"""Serves the built site, and a Jupyter server on which its pages run what no browser can.

    python tools/live.py [PORT [OPTION ...]]     options are Jupyter's, for example --allow-root

Both listen on 127.0.0.1 only. The address that is printed holds the server's port and its token,
in its fragment, which no browser sends anywhere; book/_static/minivllm.js keeps it for one tab.
The server is a plain one: no extension, no settings of the user's, no cookie. A request needs the
token, and one from a page must come from this site.
"""

from __future__ import annotations

import functools
import http.server
import secrets
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from jupyter_server.auth import IdentityProvider
from jupyter_server.serverapp import ServerApp
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.serve import HOST, SITE, SiteHandler  # noqa: E402

FIRST_PAGE = "book/index.html"
CLIENT = "_static/jupyter/services.js"
"""What a page needs to talk to the server (book/_ext/minivllm_stepper.py writes it)."""
MINUTES_IDLE = 5
"""After which a kernel ends that no page is connected to: one that could not say good-bye."""


class TokenOnly(IdentityProvider):
    """Whoever has the token, on every request; the origin of a page counts all the same."""

    def should_check_origin(self, handler: Any) -> bool:
        """Also with a token, which Jupyter alone does not ask."""
        return True

    def get_user_cookie(self, handler: Any) -> None:
        """None: pages at all ports of a host share its cookies."""

    def set_login_cookie(self, handler: Any, user: Any) -> None:
        """No cookie."""


class KernelServer(ServerApp):
    """A Jupyter server as it is here, not as its user has set it up elsewhere."""

    def load_config_file(self, *args: Any, **kwargs: Any) -> None:
        """Read none."""


class QuietHandler(SiteHandler):
    """Serves files without a line for each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def settings(origin: str, port: int, token: str) -> Config:
    """How the server is set up, for pages of `origin` alone."""
    config = Config()
    config.Application.log_level = "WARN"
    config.JupyterApp.answer_yes = True  # Ctrl-C ends it, without a question
    config.ServerApp.update(
        {
            "ip": HOST,
            "port": port,
            "port_retries": 0,
            "allow_origin": origin,
            "allow_remote_access": False,
            "identity_provider_class": TokenOnly,
            "open_browser": False,
            "no_browser_open_file": True,  # it would hold the token
            "root_dir": str(ROOT),  # a page's folder is then its kernel's, as with `make lab`
        }
    )
    config.IdentityProvider.token = token
    config.MappingKernelManager.update(
        {
            "cull_idle_timeout": 60 * MINUTES_IDLE,
            "cull_interval": 60,
            "cull_connected": False,
            "cull_busy": True,  # an endless loop that no page shows
        }
    )
    return config


def serve_site(port: int) -> str:
    """Serve the site from a thread; its origin.

    Raises:
        OSError: the port is taken.
    """
    handler = functools.partial(QuietHandler, directory=str(SITE))
    server = http.server.ThreadingHTTPServer((HOST, port), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://{HOST}:{server.server_port}"


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    site_port = int(arguments[0]) if arguments else 8000
    if not (SITE / FIRST_PAGE).is_file():
        print("error: there is no site to serve: make book", file=sys.stderr)
        return 1
    if not (SITE / CLIENT).is_file():
        why = "this site was built without it: python tools/get_services.py says why"
        print(f"error: pages need @jupyterlab/services, and {why}", file=sys.stderr)
        return 1
    try:
        origin = serve_site(site_port)
    except OSError as error:
        print(f"error: port {site_port}: {error}. Choose another: PORT=8001", file=sys.stderr)
        return 1
    port, token = free_port(), secrets.token_hex(24)
    server = KernelServer(config=settings(origin, port, token))
    server.initialize(arguments[1:], find_extensions=False)
    print(
        "The book, where cells that no browser can run are run by Python on this computer:\n\n"
        f"    {origin}/{FIRST_PAGE}#live={port}.{token}\n\n"
        "Code in such a page may do what you may do. Keep the address to yourself; it holds for\n"
        "the tab in which it is opened, until Ctrl-C stops both servers.",
        flush=True,
    )
    server.start()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
