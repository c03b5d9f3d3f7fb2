"""Gets the part of plotly.js that the book's figures use: a third of what `plotly` brings along.

    python tools/get_plotly.py

plotly.js comes in bundles; that of the flat charts with two axes is the npm package
`plotly.js-cartesian-dist-min`. It is kept (see tools/npm_package.py). Where it cannot be had, the
whole plotly.js of the Python package does as well, and pages are heavier.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.npm_package import NpmPackage, get_package  # noqa: E402

PLOTLY = NpmPackage(
    "plotly.js-cartesian-dist-min",
    "4.1.1",
    "c5f9a84666b97e571a04de689e09319869e60900e265c89eac2f71d0b5a0de88",
    ("plotly-cartesian.min.js",),
)
"""The same version as in the pinned `plotly`; a test compares them."""
TRACES = (
    "bar",
    "box",
    "contour",
    "heatmap",
    "histogram",
    "histogram2d",
    "histogram2dcontour",
    "image",
    "pie",
    "scatter",
    "scatterternary",
    "violin",
)
"""The kinds of trace that this bundle draws; a test asks it."""


def get_plotly() -> Path:
    """The bundle's file, downloaded if need be.

    Raises:
        RuntimeError: saying why it cannot be had.
    """
    return get_package(PLOTLY) / PLOTLY.files[0]


if __name__ == "__main__":
    try:
        print(get_plotly())
    except RuntimeError as error:
        sys.exit(str(error))
