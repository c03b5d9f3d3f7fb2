"""What the container runs: the built book on one port, JupyterLab beside it on another.

    python tools/container.py             until it is stopped
    python tools/container.py --healthy   exit status 0 if both answer

BOOK_PORT (8000), LAB_PORT (8888), JUPYTER_TOKEN (drawn, and printed, if it is not set), LAB_ARGS
(more options for JupyterLab).
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BOOK_PORT = os.environ.get("BOOK_PORT", "8000")
LAB_PORT = os.environ.get("LAB_PORT", "8888")
HOST = os.environ.get("BIND", "0.0.0.0")


def answers(url: str) -> bool:
    """Whether a server is there, if only to refuse."""
    try:
        with urllib.request.urlopen(url, timeout=3):
            return True
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return False


def healthy() -> bool:
    """Whether the book and JupyterLab answer."""
    book = f"http://127.0.0.1:{BOOK_PORT}/book/index.html"
    return answers(book) and answers(f"http://127.0.0.1:{LAB_PORT}/api/status")


def serve() -> int:
    """Run both; if one ends or a signal comes, end both. Returns the exit status."""
    token = os.environ.get("JUPYTER_TOKEN") or secrets.token_urlsafe(24)
    commands = [
        [str(ROOT / "tools" / "serve.py"), BOOK_PORT, HOST],
        ["-m", "jupyterlab", "--no-browser", f"--ip={HOST}", f"--port={LAB_PORT}",
         "--ServerApp.port_retries=0", f"--ServerApp.root_dir={ROOT}",
         f"--IdentityProvider.token={token}",
         *os.environ.get("LAB_ARGS", "").split()],
    ]  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    running = [subprocess.Popen([sys.executable, *command], cwd=ROOT) for command in commands]
    print(f"The book: http://127.0.0.1:{BOOK_PORT}/", flush=True)
    print(f"JupyterLab: http://127.0.0.1:{LAB_PORT}/lab?token={token}", flush=True)
    try:
        while all(process.poll() is None for process in running):
            time.sleep(0.5)
        return 1
    except (KeyboardInterrupt, SystemExit):
        return 0
    finally:
        for process in running:
            process.terminate()
        end = time.monotonic() + 8
        while time.monotonic() < end and any(process.poll() is None for process in running):
            time.sleep(0.1)
        for process in running:
            process.kill()


if __name__ == "__main__":
    sys.exit((not healthy()) if "--healthy" in sys.argv[1:] else serve())
