"""Gets @jupyterlab/services, with which a page talks to a Jupyter server (`make live`).

    python tools/get_services.py

It is what Thebe connects with. Thebe itself is left out: the live cells have editors and outputs of
their own, and thebe-core 0.5.0 is 1.3 MB instead of 0.16, loads its other parts from the site's
root instead of its own folder, has the addresses of CDNs in it, and writes the server's token to
the console. BSD-3-Clause, Copyright (c) Jupyter Development Team.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.npm_package import NpmPackage, get_package  # noqa: E402

SERVICES = NpmPackage(
    "@jupyterlab/services",
    "7.6.6",
    "7138fca315716f633ded0ee313dc0625efb1e14ec21cc27042d0d8e22581df35",
    ("dist/dist/index.js",),
)


def get_services() -> Path:
    """The script, downloaded if need be; in a page it makes `window["@jupyterlab/services"]`.

    Raises:
        RuntimeError: saying why it cannot be had.
    """
    if os.environ.get("MINIVLLM_LIVE") == "0":
        raise RuntimeError("MINIVLLM_LIVE=0 is set")
    return get_package(SERVICES) / SERVICES.files[0]


if __name__ == "__main__":
    try:
        print(get_services())
    except RuntimeError as error:
        sys.exit(str(error))
