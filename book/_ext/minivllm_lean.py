"""What a page does not need, it does not load: a chapter weighs 1.5 MB at most.

After the build, in the finished site:

- figures get the part of plotly.js that they use (tools/get_plotly.py), compressed, which
  book/_static/minivllm.js unpacks; a figure that this part cannot draw is an error;
- the theme's icons come from its font alone, cut down to those in use (the theme also brings all of
  them as 1.5 MB of JavaScript, which would watch every change of the page);
- of the theme's stylesheet the rules stay whose classes occur in a page or a script;
- the search index is left to the search page, the tabs' and cards' styles to pages that have some.

Whatever a theme's other version keeps elsewhere is left as it is.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.get_plotly import TRACES, get_plotly  # noqa: E402

logger = logging.getLogger(__name__)

FIGURE = re.compile(r'class="mv-plot".*?<script type="application/json">(.*?)</script>', re.DOTALL)
ICON_RULE = re.compile(r"((?:\.fa-[\w-]+:{1,2}before,?)+)\{content:[^}]*\}")
ICON_CLASS = re.compile(r"\bfa-[\w-]+")
PRIVATE_USE = range(0xE000, 0xF900)  # where an icon font has its icons


def make_lean(app: Sphinx, error: Exception | None) -> None:
    """Do all of the above to a site that was built without an error."""
    if error is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    pages = sorted(site.rglob("*.html"))
    pages = [page for page in pages if "_static" not in page.parts]
    write_plotly(site / "_static", pages)
    # Scripts put classes in too; not these: one has every icon and is loaded by no page.
    no_classes = ("fontawesome.js", "services.js")
    scripts = (p for p in (site / "_static").rglob("*.js") if p.name not in no_classes)
    texts = [path.read_text(encoding="utf-8") for path in (*pages, *scripts)]
    lean_icons(site / "_static", texts)
    lean_theme(site / "_static", texts)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        lean = lean_page(text, is_search=page.name == "search.html")
        if lean != text:
            page.write_text(lean, encoding="utf-8")


# --- pages ---------------------------------------------------------------------------------------


def lean_page(text: str, *, is_search: bool) -> str:
    """A page without the files that it has no use for."""
    unused = [r"scripts/fontawesome\.js"]
    if not is_search:
        unused += [r"searchtools\.js", r"language_data\.js", r"searchindex\.js"]
    if not re.search(r'class="(?:[^"]* )?sd-', text):
        unused += [r"sphinx-design\.min\.css", r"design-tabs\.js"]
    names = "|".join(unused)
    text = re.sub(rf'[ \t]*<script\b[^>]*\bsrc="[^"]*(?:{names})[^"]*"[^>]*></script>\n?', "", text)
    return re.sub(rf'[ \t]*<link\b[^>]*\bhref="[^"]*(?:{names})[^"]*"[^>]*>\n?', "", text)


# --- figures -------------------------------------------------------------------------------------


def write_plotly(static: Path, pages: list[Path]) -> None:
    """`plotly.bin` for pages from a server, `plotly.min.js` for pages from disk.

    Raises:
        ExtensionError: if a page has a kind of trace that the bundle cannot draw.
    """
    import plotly

    source = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    try:
        source = get_plotly()
        check_traces(pages)
    except RuntimeError as error:
        logger.info("figures load all of plotly.js, which makes pages heavy: %s", error)
    target, packed = static / "plotly.min.js", static / "plotly.bin"
    if packed.exists() and target.exists() and target.stat().st_size == source.stat().st_size:
        return
    shutil.copyfile(source, target)
    # No name that a server knows: it would unpack or compress it once more.
    packed.write_bytes(gzip.compress(source.read_bytes(), 9, mtime=0))


def check_traces(pages: list[Path]) -> None:
    """Every figure must be one that the bundle draws."""
    for page in pages:
        for kind in traces_in(page.read_text(encoding="utf-8")):
            if kind not in TRACES:
                raise ExtensionError(
                    f"{page.name} has a figure with a trace of type {kind!r}, which the bundle in "
                    f"tools/get_plotly.py does not hold. It has {', '.join(TRACES)}."
                )


def traces_in(text: str) -> Iterator[str]:
    """The kind of each trace of each figure of a page, frames included."""
    for payload in FIGURE.findall(text):
        figure = json.loads(payload)
        parts = [figure, *figure.get("frames", [])]
        for part in parts:
            yield from (trace.get("type", "scatter") for trace in part.get("data", []))


# --- icons ---------------------------------------------------------------------------------------


def lean_icons(static: Path, texts: list[str]) -> None:
    """Cut the theme's icon font, and its stylesheet, down to what the site's `texts` name."""
    import pydata_sphinx_theme

    theme = Path(pydata_sphinx_theme.__file__).parent / "theme" / "pydata_sphinx_theme" / "static"
    style, font = "styles/pydata-sphinx-theme.css", "vendor/fontawesome/webfonts/fa-solid-900.ttf"
    if not all((folder / name).exists() for folder in (theme, static) for name in (style, font)):
        return
    used = {name for text in texts for name in ICON_CLASS.findall(text)}
    css = lean_style((theme / style).read_text(encoding="utf-8"), used)
    sheets = [css, *(path.read_text(encoding="utf-8") for path in static.rglob("*.css"))]
    sheets = [sheet for sheet in sheets if len(ICON_RULE.findall(sheet)) < 1_000]
    wanted = {char for sheet in sheets for char in code_points(sheet) if char in PRIVATE_USE}
    try:
        (static / font).write_bytes(subset_font((theme / font).read_bytes(), wanted))
    except (ValueError, KeyError, struct.error) as error:
        logger.info("the icon font stays whole: %s", error)
        return
    woff2 = Path(font).with_suffix(".woff2").name
    css = re.sub(rf'url\([^)]*{re.escape(woff2)}\) ?format\("?woff2"?\),', "", css)
    (static / style).write_text(css, encoding="utf-8")


def lean_style(css: str, used: set[str]) -> str:
    """The stylesheet without the rules of icons that are not `used`."""

    def keep(rule: re.Match[str]) -> str:
        return rule[0] if used & set(ICON_CLASS.findall(rule[1])) else ""

    return ICON_RULE.sub(keep, css)


# --- the theme's rules ---------------------------------------------------------------------------

THEME_STYLE = "styles/pydata-sphinx-theme.css"
WORD = re.compile(r"[A-Za-z][\w-]*")


def lean_theme(static: Path, texts: list[str]) -> None:
    """Drop the rules of the theme's stylesheet that can match nothing in the site's `texts`."""
    sheet = static / THEME_STYLE
    if not sheet.exists():
        return
    words = {word for text in texts for word in WORD.findall(text)}
    sheet.write_text(lean_rules(sheet.read_text(encoding="utf-8"), words), encoding="utf-8")


def lean_rules(css: str, words: set[str]) -> str:
    """The stylesheet without the selectors that ask for a class which is none of the `words`.

    A script may put a class together (`"bs-tooltip-" + place`): a class stays if a word that ends
    with a hyphen begins it.
    """
    import tinycss2

    beginnings = tuple(word for word in words if word.endswith("-") and len(word) > 3)

    def can_match(selector: list[Any]) -> bool:
        classes = [
            after.value
            for dot, after in itertools.pairwise(selector)
            if dot.type == "literal" and dot.value == "." and after.type == "ident"
        ]
        return all(name in words or name.startswith(beginnings) for name in classes)

    def lean(rules: list[Any]) -> str:
        kept = []
        for rule in rules:
            if rule.type == "qualified-rule":
                selectors = [part for part in at_commas(rule.prelude) if can_match(part)]
                if selectors:
                    prelude = ",".join(tinycss2.serialize(part).strip() for part in selectors)
                    kept.append(f"{prelude}{{{tinycss2.serialize(rule.content)}}}")
            elif rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports"):
                inner = lean(tinycss2.parse_rule_list(rule.content, True, True))
                if inner:
                    prelude = tinycss2.serialize(rule.prelude)
                    kept.append(f"@{rule.at_keyword}{prelude}{{{inner}}}")
            else:
                kept.append(rule.serialize())
        return "".join(kept)

    return lean(tinycss2.parse_stylesheet(css, skip_comments=True, skip_whitespace=True))


def at_commas(tokens: list[Any]) -> list[list[Any]]:
    """The selectors of a rule."""
    parts: list[list[Any]] = [[]]
    for token in tokens:
        if token.type == "literal" and token.value == ",":
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def code_points(css: str) -> set[int]:
    """The characters of a stylesheet, escaped (`\\f0c9`) or not."""
    escaped = {int(digits, 16) for digits in re.findall(r"\\([0-9a-fA-F]{2,6})", css)}
    return escaped | {ord(char) for char in set(css)}


def subset_font(font: bytes, wanted: set[int]) -> bytes:
    """A TrueType font with the glyphs of the `wanted` code points only (all below 0x10000).

    Raises:
        ValueError: if a glyph is put together from others, or the font has no usable map.
    """
    tables = read_tables(font)
    mapped = character_map(tables["cmap"])
    points = sorted(point for point in wanted if point in mapped)
    glyphs = [0, *dict.fromkeys(mapped[point] for point in points)]
    is_long = struct.unpack_from(">h", tables["head"], 50)[0]
    count = struct.unpack_from(">H", tables["maxp"], 4)[0]
    if is_long:
        offsets = struct.unpack_from(f">{count + 1}L", tables["loca"])
    else:
        offsets = tuple(2 * x for x in struct.unpack_from(f">{count + 1}H", tables["loca"]))
    shapes = [tables["glyf"][offsets[glyph] : offsets[glyph + 1]] for glyph in glyphs]
    if any(shape and struct.unpack_from(">h", shape)[0] < 0 for shape in shapes):
        raise ValueError("it has glyphs that are made of others")
    shapes = [shape + bytes(-len(shape) % 4) for shape in shapes]
    ends = [sum(map(len, shapes[:index])) for index in range(len(shapes) + 1)]
    num_metrics = struct.unpack_from(">H", tables["hhea"], 34)[0]
    metrics = [glyph_metrics(tables["hmtx"], num_metrics, glyph) for glyph in glyphs]

    new: dict[str, bytes] = {name: tables[name] for name in ("OS/2", "name")}
    new["head"] = tables["head"][:8] + bytes(4) + tables["head"][12:50] + struct.pack(">hh", 1, 0)
    new["hhea"] = tables["hhea"][:34] + struct.pack(">H", len(glyphs))
    new["maxp"] = tables["maxp"][:4] + struct.pack(">H", len(glyphs)) + tables["maxp"][6:]
    new["hmtx"] = b"".join(metrics)
    new["loca"] = struct.pack(f">{len(ends)}L", *ends)
    new["glyf"] = b"".join(shapes)
    new["cmap"] = write_map({point: glyphs.index(mapped[point]) for point in points})
    new["post"] = struct.pack(">L", 0x00030000) + tables["post"][4:32]  # version 3: no names
    return write_tables(font[:4], new)


def read_tables(font: bytes) -> dict[str, bytes]:
    """A font file's tables by name."""
    tables = {}
    for index in range(struct.unpack_from(">H", font, 4)[0]):
        name, _, offset, length = struct.unpack_from(">4sLLL", font, 12 + 16 * index)
        tables[name.decode("latin-1")] = font[offset : offset + length]
    return tables


def character_map(cmap: bytes) -> dict[int, int]:
    """Code points → glyphs, from the map's Unicode subtable of format 4."""
    for index in range(struct.unpack_from(">H", cmap, 2)[0]):
        platform, encoding, offset = struct.unpack_from(">HHL", cmap, 4 + 8 * index)
        is_unicode = platform == 0 or (platform, encoding) == (3, 1)
        if is_unicode and struct.unpack_from(">H", cmap, offset)[0] == 4:
            return segments(cmap, offset)
    raise ValueError("it has no map of format 4")


def segments(cmap: bytes, start: int) -> dict[int, int]:
    """A subtable of format 4: runs of code points, each with a delta or a list of glyphs."""
    twice = struct.unpack_from(">H", cmap, start + 6)[0]
    at = [start + 14, start + 16 + twice, start + 16 + 2 * twice, start + 16 + 3 * twice]
    found = {}
    for row in range(0, twice, 2):
        end, first, delta, ranged = (struct.unpack_from(">H", cmap, a + row)[0] for a in at)
        for point in range(first, end + 1):
            glyph = point
            if ranged:
                place = at[3] + row + ranged + 2 * (point - first)
                glyph = struct.unpack_from(">H", cmap, place)[0]
            if point < 0xFFFF and (glyph or not ranged):
                found[point] = (glyph + delta) % 0x10000
    return found


def write_map(mapped: dict[int, int]) -> bytes:
    """A character map with one run for each code point."""
    points = [*sorted(mapped), 0xFFFF]
    deltas = [(mapped.get(point, 0) - point) % 0x10000 for point in points[:-1]] + [1]
    count = len(points)
    power = 2 ** (count.bit_length() - 1)
    numbers = [*points, 0, *points, *deltas, *([0] * count)]
    length = 14 + 2 * len(numbers)
    search = (2 * power, power.bit_length() - 1, 2 * (count - power))
    table = struct.pack(">HHHHHHH", 4, length, 0, 2 * count, *search)
    table += struct.pack(f">{len(numbers)}H", *numbers)
    return struct.pack(">HHHHL", 0, 1, 3, 1, 12) + table


def glyph_metrics(hmtx: bytes, num_metrics: int, glyph: int) -> bytes:
    """Advance width and left side bearing of a glyph."""
    if glyph < num_metrics:
        return hmtx[4 * glyph : 4 * glyph + 4]
    bearing = 4 * num_metrics + 2 * (glyph - num_metrics)
    return hmtx[4 * num_metrics - 4 : 4 * num_metrics - 2] + hmtx[bearing : bearing + 2]


def write_tables(version: bytes, tables: dict[str, bytes]) -> bytes:
    """A font file of these tables."""
    count = len(tables)
    power = 2 ** (count.bit_length() - 1)
    head = version + struct.pack(
        ">HHHH", count, 16 * power, power.bit_length() - 1, 16 * (count - power)
    )
    offset, rows, body = 12 + 16 * count, b"", b""
    for name in sorted(tables):
        data = tables[name]
        padded = data + bytes(-len(data) % 4)
        checksum = sum(struct.unpack(f">{len(padded) // 4}L", padded)) % 2**32
        rows += struct.pack(
            ">4sLLL", name.encode("latin-1"), checksum, offset + len(body), len(data)
        )
        body += padded
    return head + rows + body


def setup(app: Sphinx) -> dict[str, Any]:
    """After everything else has written its files."""
    app.connect("build-finished", make_lean, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
