"""The figures' colours and their HTML, without a browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, astuple
from pathlib import Path

import pytest

from minivllm.viz.theme import CATEGORICAL, DARK, LIGHT, Palette, light_to_dark, template

ROOT = Path(__file__).resolve().parents[1]


def luminance(color: str) -> float:
    """Relative luminance of a hex colour, as WCAG 2 defines it."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two hex colours, 1 to 21."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_every_mark_stands_out_from_its_page(palette: Palette) -> None:
    for role, color in asdict(palette).items():
        if role in ("free", "grid", "paper"):
            continue
        least = 4.5 if role in ("ink", "muted") else 3
        assert contrast(color, palette.paper) >= least, role


def test_each_light_colour_has_one_dark_twin() -> None:
    assert len(light_to_dark()) == len(astuple(LIGHT))
    assert template(DARK)["layout"]["colorway"] == [light_to_dark()[c] for c in CATEGORICAL]


def test_a_figure_carries_its_data_and_its_description() -> None:
    go = pytest.importorskip("plotly.graph_objects")
    from minivllm.viz.offline import figure_html

    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 4], name="</script><b>"))
    figure.update_layout(title="A <b>title</b>", width=900, height=300, meta={"alt": 'Says "so"'})
    text = figure_html(figure.to_dict())
    assert 'aria-label="Says &quot;so&quot;"' in text
    assert ">A title</p>" in text
    assert text.count("</script>") == 1
    payload = json.loads(re.search(r"<script[^>]*>(.*)</script>", text).group(1))
    assert payload["data"][0]["name"] == "</script><b>"
    assert "width" not in payload["layout"]
    assert "template" not in payload["layout"]
    assert len(text) < 2000


def test_a_figure_that_says_nothing_is_refused() -> None:
    go = pytest.importorskip("plotly.graph_objects")
    from minivllm.viz.offline import figure_html

    with pytest.raises(ValueError, match=r"alt="):
        figure_html(go.Figure(go.Scatter(y=[1])).to_dict())


def test_a_notebook_gets_both_forms() -> None:
    go = pytest.importorskip("plotly.graph_objects")
    from minivllm.viz.offline import OfflineRenderer

    figure = go.Figure(go.Scatter(y=[1, 2]), layout={"title": {"text": "t"}})
    bundle = OfflineRenderer().to_mimebundle(figure.to_dict())
    assert set(bundle) == {"application/vnd.plotly.v1+json", "text/html"}


def test_the_landing_page_shows_what_the_scheduler_does() -> None:
    from tools.make_hero import pictures

    for path, content in pictures().items():
        stale = f"{path.name} is stale: run python tools/make_hero.py"
        assert path.read_text(encoding="utf-8") == content, stale


def test_the_palette_needs_no_plotly() -> None:
    code = "import sys, minivllm.viz.theme; assert 'plotly' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_page_carries_no_more_digits_than_a_screen_shows() -> None:
    go = pytest.importorskip("plotly.graph_objects")
    from minivllm.viz import offline

    long = go.Figure(go.Scatter(x=[1, 2, 3], y=[1 / 3, 1e-9 / 3, 12345678.9]))
    long.update_layout(title="t")
    found = re.search(r'"y":\[(.*?)\]', offline.figure_html(long.to_dict()))
    assert found
    assert found[1] == "0.33333333,3.3333333e-10,12345679.0"
