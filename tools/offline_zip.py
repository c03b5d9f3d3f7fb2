"""The built site as one file to carry about: unpack it, open index.html, no server and no network.

    python tools/offline_zip.py            writes _build/minivllm-book-VERSION.zip

Left out is what a page from disk cannot load: Pyodide for "Run live" (browsers fetch nothing from
`file:`), the compressed form of plotly.js, and what only servers and crawlers read.
"""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import minivllm  # noqa: E402

NOT_FROM_DISK = (
    "_static/pyodide/", "_static/models/", "_static/live/", "_static/jupyter/",
    "_static/plotly.bin", ".doctrees/", "404.html", "sitemap.xml", "llms.txt", ".built",
    ".buildinfo",
)  # fmt: skip

FONT_AHEAD = re.compile(r'<link rel="preload" as="font"[^>]*>')
"""Refused from disk, and logged; the style sheets bring the same fonts."""

READ_ME = """\
Continuous Batching and the Scheduler, minivllm {version}

Open index.html. Everything is in this folder, and no page asks a network for anything.

What works from disk: every page, its figures with their sliders, the steppers' recorded runs with
their knobs read, the search, the drill's timers, the downloads.

What does not, because a browser lets a page from disk fetch no file and start no worker:
"Run live", which loads Python, and the lines of text below what the search finds. For these, serve
the full site: `make serve` in a clone, or any web server on its _build/html.
"""


def files(site: Path) -> Iterator[tuple[Path, str]]:
    """What goes in, and its name there."""
    for path in sorted(site.rglob("*")):
        name = path.relative_to(site).as_posix()
        if path.is_file() and not name.startswith(NOT_FROM_DISK):
            yield path, name


def write_zip(site: Path, target: Path) -> None:
    """Write the archive; all of it lies in one folder.

    Raises:
        FileNotFoundError: if the site was not built.
    """
    if not (site / "index.html").is_file():
        raise FileNotFoundError(f"{site} holds no site: build it first (make book)")
    folder = target.stem
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{folder}/README.txt", READ_ME.format(version=minivllm.__version__))
        for path, name in files(site):
            if path.suffix == ".html":  # the theme's older release asks for fonts ahead
                text = FONT_AHEAD.sub("", path.read_text(encoding="utf-8"))
                archive.writestr(f"{folder}/{name}", text)
            else:
                archive.write(path, f"{folder}/{name}")


def main() -> int:
    """The command line; returns the exit status."""
    target = ROOT / "_build" / f"minivllm-book-{minivllm.__version__}.zip"
    try:
        write_zip(ROOT / "_build" / "html", target)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{target} ({target.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
