"""What a page loads: nothing that is not used (how much it may weigh: test_site.py)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("sphinx")

import minivllm_lean as lean

from tools.get_plotly import PLOTLY, TRACES

if TYPE_CHECKING:
    from playwright.sync_api import Page


def theme_font() -> bytes:
    theme = pytest.importorskip("pydata_sphinx_theme")
    static = Path(theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"
    return (static / "vendor/fontawesome/webfonts/fa-solid-900.ttf").read_bytes()


def glyph_shapes(font: bytes) -> dict[int, tuple[bytes, bytes]]:
    """Of each code point: outline (without padding) and metrics."""
    tables = lean.read_tables(font)
    is_long = struct.unpack_from(">h", tables["head"], 50)[0]
    count = struct.unpack_from(">H", tables["maxp"], 4)[0]
    letter, factor = ("L", 1) if is_long else ("H", 2)
    offsets = [factor * x for x in struct.unpack_from(f">{count + 1}{letter}", tables["loca"])]
    num_metrics = struct.unpack_from(">H", tables["hhea"], 34)[0]
    return {
        point: (
            tables["glyf"][offsets[glyph] : offsets[glyph + 1]].rstrip(b"\0"),
            lean.glyph_metrics(tables["hmtx"], num_metrics, glyph),
        )
        for point, glyph in lean.character_map(tables["cmap"]).items()
    }


@pytest.mark.parametrize("wanted", [{0xF0C9}, {0xF0C9, 0xF00D, 0xF104, 0xF185, 0xF186}, set()])
def test_the_icons_that_are_left_look_as_they_did(wanted: set[int]) -> None:
    whole = theme_font()
    before = glyph_shapes(whole)
    small = lean.subset_font(whole, wanted | {0xE000 + 8})  # one that the font does not have
    assert glyph_shapes(small) == {point: before[point] for point in wanted}
    assert len(small) < len(whole) / 50


def test_every_icon_survives_if_all_are_wanted() -> None:
    before = glyph_shapes(theme_font())
    assert len(before) > 1_000
    assert glyph_shapes(lean.subset_font(theme_font(), set(before))) == before


def test_a_font_that_is_none_is_refused() -> None:
    with pytest.raises((ValueError, KeyError, struct.error)):
        lean.subset_font(b"no font", {0xF0C9})


def test_only_unused_icons_lose_their_rule() -> None:
    bars, x = '.fa-bars:before,.fa-navicon:before{content:"\\f0c9"}', '.fa-x::before{content:"X"}'
    css = f"a{{b:c}}{bars}{x}p{{q:r}}"
    assert lean.lean_style(css, {"fa-navicon"}) == f"a{{b:c}}{bars}p{{q:r}}"
    assert lean.lean_style(css, set()) == "a{b:c}p{q:r}"
    assert lean.code_points('a{content:"\\f0c9"}b{content:"é"}') >= {0xF0C9, ord("é")}


PAGE = """<link href="../_static/sphinx-design.min.css?v=1" rel="stylesheet" />
<script defer src="../_static/scripts/fontawesome.js?digest=1"></script>
<script src="../searchindex.js"></script><script src="keep.js"></script>
<div class="{}">searchindex.js</div>
"""


def test_a_page_keeps_what_it_uses() -> None:
    plain = lean.lean_page(PAGE.format("note"), is_search=False)
    assert plain == '<script src="keep.js"></script>\n<div class="note">searchindex.js</div>\n'
    assert lean.lean_page(plain, is_search=False) == plain
    card = lean.lean_page(PAGE.format("grid sd-card"), is_search=False)
    assert "sphinx-design" in card
    assert '<script src="../searchindex.js">' in lean.lean_page(PAGE, is_search=True)


def test_a_figure_that_the_bundle_cannot_draw_is_an_error(tmp_path: Path) -> None:
    go = pytest.importorskip("plotly.graph_objects")
    from sphinx.errors import ExtensionError

    from minivllm.viz.offline import figure_html

    def page(*traces: object) -> list[Path]:
        figure = go.Figure(list(traces), layout={"title": {"text": "t"}})
        path = tmp_path / "page.html"
        path.write_text(figure_html(figure.to_dict()), encoding="utf-8")
        return [path]

    lean.check_traces(page(go.Scatter(y=[1]), go.Heatmap(z=[[1]])))
    with pytest.raises(ExtensionError, match=r"page\.html .* 'surface'"):
        lean.check_traces(page(go.Bar(y=[1]), go.Surface(z=[[1]])))


def test_the_bundle_is_of_the_version_that_plotly_brings() -> None:
    plotly = pytest.importorskip("plotly")
    whole = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    with whole.open(encoding="utf-8") as file:
        assert f"plotly.js v{PLOTLY.version}\n" in file.read(200)


def test_a_rule_stays_if_its_classes_may_occur() -> None:
    css = """
        /* a comment */
        .here, .nowhere > p, a:not(.nowhere) { color: red }
        .nowhere { color: blue }
        .bs-tooltip-top .arrow { top: 0 }
        h1, [data-x=".nowhere,"] { margin: .5rem }
        @media (min-width: 10px) { .nowhere { a: b } .here.too { c: d } }
        @media print { .nowhere { a: b } }
        @font-face { src: url("x,.nowhere") }
        @keyframes turn { from { top: 0 } to { top: 1px } }
    """
    words = {"here", "too", "bs-tooltip-", "arrow"}
    lean_css = lean.lean_rules(css, words)
    assert "".join(lean_css.split()) == (
        ".here,a:not(.nowhere){color:red}.bs-tooltip-top.arrow{top:0}"
        'h1,[data-x=".nowhere,"]{margin:.5rem}'
        "@media(min-width:10px){.here.too{c:d}}"
        '@font-face{src:url("x,.nowhere")}'
        "@keyframesturn{from{top:0}to{top:1px}}"
    )
    assert lean.lean_rules(lean_css, words) == lean_css


@pytest.mark.browser
@pytest.mark.xdist_group("site")
def test_the_bundle_has_the_traces_that_we_say(page: Page, site_url: str) -> None:
    page.goto(site_url + "search.html")
    page.add_script_tag(url=site_url + "_static/plotly.min.js")
    traces = page.evaluate("Object.keys(Plotly.PlotSchema.get().traces)")
    assert set(TRACES) <= set(traces)


def test_no_template_of_the_steppers_spans_lines() -> None:
    """The pages' script loses its indentation: no text of it may be made of several lines."""
    from minivllm.stepper.modules import joined

    assert not [part for part in joined("page.js").split("`")[1::2] if "\n" in part]
