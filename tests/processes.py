"""What the tests of servers share."""

from __future__ import annotations

import subprocess


def end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Ask a server to end; one that does not is killed."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
