"""The built book, as a reader meets it: in a browser, with every network but localhost cut off."""

from __future__ import annotations

import html
import re
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page, Response, ViewportSize

yaml = pytest.importorskip("yaml")
pytest.importorskip("jupyter_book")
pytest.importorskip("plotly")

from tools.repository import repository  # noqa: E402

# All in one worker: one build, one browser.
pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("site")]

ROOT = Path(__file__).resolve().parents[1]
MAX_PAGE_BYTES = 1_500_000
PHONE = {"width": 360, "height": 740}
DESKTOP = {"width": 1440, "height": 900}


def pages_in(node: Any) -> list[str]:
    """Every page that a table of contents names, in its order."""
    if isinstance(node, list):
        return [page for item in node for page in pages_in(item)]
    if not isinstance(node, dict):
        return []
    own = [node[key] for key in ("root", "file") if key in node]
    return own + [page for value in node.values() for page in pages_in(value)]


PAGES = [
    str(Path(page).with_suffix("")) if page.endswith((".md", ".ipynb")) else page
    for page in pages_in(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))
]


class Links(HTMLParser):
    """A page's ids, what it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Sort one tag's attributes."""
        values = {name: value for name, value in attrs if value}
        if "id" in values:
            self.ids.add(values["id"])
        if "href" in values:
            loads = tag == "link" and values.get("rel") not in ("canonical", "author", "license")
            (self.loads if loads else self.links).append(values["href"])
        if "src" in values:
            self.loads.append(values["src"])


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def set_theme(page: Page, theme: str) -> None:
    """Choose the book's theme as its switch does, for pages loaded from now on."""
    page.add_init_script(f"localStorage.setItem('mode', '{theme}')")
    page.emulate_media(color_scheme=theme)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_as_a_reader_meets_it(name: str, page: Page, site_url: str) -> None:
    """Loaded once: described, light enough, and inside its window in both widths and themes."""
    responses: list[Response] = []
    page.on("response", lambda response: responses.append(response))
    set_theme(page, "light")
    page.set_viewport_size(DESKTOP)
    page.goto(f"{site_url}{name}.html", wait_until="load")
    assert page.get_attribute("html", "data-theme") == "light"
    check_description(page)
    # What a reader can unfold counts too: answers to "predict, then run" hold figures.
    page.evaluate("document.querySelectorAll('details').forEach(d => (d.open = true))")
    check_window(page, DESKTOP, "light")
    page.wait_for_load_state("networkidle")
    check_weight(responses, site_url)
    for size, theme in ((PHONE, "light"), (PHONE, "dark"), (DESKTOP, "dark")):
        check_window(page, size, theme)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_page_opens_in_its_readers_theme(theme: str, page: Page, site_url: str) -> None:
    set_theme(page, theme)
    page.goto(f"{site_url}book/05-chunked-prefill-and-the-budget.html", wait_until="load")
    assert page.get_attribute("html", "data-theme") == theme
    check_figure(page, page.locator(".mv-figure").first, theme)


def check_description(page: Page) -> None:
    """The page says what it is, to a search engine and to who hears it; its images are there."""
    assert len(page.title()) > 10
    assert page.locator("article h1").count() == 1
    assert page.get_attribute("html", "lang") == "en"
    description = page.get_attribute('meta[name="description"]', "content") or ""
    assert 40 <= len(description) <= 200, description
    for image in page.locator("img").all():
        assert image.get_attribute("alt"), image.get_attribute("src")
        if image.is_visible():
            image.scroll_into_view_if_needed()
            assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0


def check_weight(responses: list[Response], site_url: str) -> None:
    """Uncompressed, as the plainest server sends it, with every figure drawn."""
    sizes = {
        response.url: int(response.headers.get("content-length", 0))
        for response in responses
        if response.url.startswith(site_url)
    }
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:8]
    assert sum(sizes.values()) <= MAX_PAGE_BYTES, largest
    assert sum(sizes.values()) > 100_000  # the lengths are really told


def check_window(page: Page, size: ViewportSize, theme: str) -> None:
    """At this size and in this theme nothing is wider than the window, and each figure is drawn."""
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=theme)
    page.evaluate("theme => (document.documentElement.dataset.theme = theme)", theme)
    narrow = "true" if size == PHONE else "false"
    for figure in page.locator(".mv-figure").all():
        figure.scroll_into_view_if_needed()
        drawn = "([f, narrow, theme]) => f.dataset.narrow === narrow && f.dataset.drawn === theme"
        page.wait_for_function(drawn, arg=[figure.element_handle(), narrow, theme])
        check_figure(page, figure, theme)
    assert overflow(page) <= 0


def check_figure(page: Page, figure: Any, theme: str) -> None:
    """One figure is drawn in the page's theme, stays inside the page and is described."""
    figure.scroll_into_view_if_needed()
    figure.locator(".main-svg").first.wait_for(state="visible")
    page.wait_for_function("f => f.dataset.drawn", arg=figure.element_handle())
    assert figure.get_attribute("data-drawn") == theme
    assert figure.get_attribute("aria-label")
    box = figure.locator(".main-svg").first.bounding_box()
    assert box["width"] > 200
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= page.viewport_size["width"]


def test_every_internal_link_leads_somewhere(site: Path) -> None:
    parsed = {
        name: Links((site / f"{name}.html").read_text(encoding="utf-8"))
        for name in [*PAGES, "search", "genindex"]
    }
    dead = []
    for name, links in parsed.items():
        for link in links.links + links.loads:
            url = urlsplit(urljoin(f"https://site/{name}.html", link))
            if url.netloc != "site" or url.scheme != "https":
                continue
            target = unquote(url.path).lstrip("/")
            known = parsed.get(target.removesuffix(".html"))
            if not (site / target).is_file() or (
                url.fragment and known and unquote(url.fragment) not in known.ids
            ):
                dead.append(f"{name}: {link}")
    assert not dead, "\n".join(dead)


EXTERNAL_HOSTS = {"arxiv.org", "doi.org", "github.com", "ui.perfetto.dev", "www.usenix.org"}
"""All that the book links to; no test asks them anything."""
if known := repository():
    EXTERNAL_HOSTS |= {known.host, "mybinder.org", "colab.research.google.com", "codespaces.new"}


def test_external_links_are_well_formed_and_few_hosts_are_linked_to(site: Path) -> None:
    wrong = []
    for name in PAGES:
        for link in Links((site / f"{name}.html").read_text(encoding="utf-8")).links:
            url = urlsplit(link)
            if (not url.scheme and not url.netloc) or url.scheme == "data":
                continue
            good = url.scheme == "https" and url.netloc in EXTERNAL_HOSTS
            if not good or re.search(r"[\s<>\"]", link):
                wrong.append(f"{name}: {link}")
    assert not wrong, "\n".join(wrong)


def test_the_index_leads_to_the_chapters(page: Page, site_url: str) -> None:
    page.goto(f"{site_url}book/glossary.html")
    page.locator("article a[href$='genindex.html']").click()
    entry = page.get_by_role("link", name="recompute tax").first
    entry.click()
    page.wait_for_url(lambda url: "genindex" not in url)
    page.locator("article h1").wait_for()


def test_pages_load_no_foreign_file_and_stay_small(site: Path) -> None:
    for name in PAGES:
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        foreign = [load for load in Links(text).loads if re.match(r"(https?:)?//", load)]
        assert not foreign, f"{name} loads {foreign}"
        assert len(text.encode()) <= MAX_PAGE_BYTES, f"{name} is too big"


def figure_page() -> str:
    """A page two folders deep with one figure, and nothing else of the book's."""
    import plotly.graph_objects as go

    from minivllm.viz.offline import figure_html
    from minivllm.viz.theme import COLORS

    bars = go.Bar(x=[0, 1, 2], y=[3, 1, 2], name="</script>", marker_color=COLORS.decode)
    frames = [go.Frame(name=str(k), data=[go.Bar(y=[k, 1, 2])]) for k in range(3)]
    figure = go.Figure(bars, frames=frames)
    figure.update_layout(title="Tokens computed in each of three steps, and a title that is long")
    return (
        '<!doctype html><html data-theme="light"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<link rel="icon" href="data:,">'
        '<link rel="stylesheet" href="../../_static/minivllm.css">'
        '<script defer src="../../_static/minivllm.js"></script></head>'
        f"<body style='margin:0'>{figure_html(figure.to_dict())}</body></html>"
    )


def test_no_cell_leaves_warnings_or_progress_bars_on_its_page(site: Path) -> None:
    """stderr fails a build with -W; a progress bar is a widget, which no static page can show."""
    pages = {path.name: path.read_text("utf-8") for path in site.rglob("*.html")}
    assert [name for name, text in pages.items() if 'class="output stderr' in text] == []
    assert [name for name, text in pages.items() if "jupyter.widget-state+json" in text] == []


def test_an_excerpt_leads_to_its_own_lines(site: Path) -> None:
    """What stands below a caption is what the page that it links to has in those lines."""
    shown = 0
    for name in PAGES:
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        quotes = list(EXCERPT.finditer(text))
        assert len(quotes) == text.count('class="mv-source"')
        shown += len(quotes)
        for quote in quotes:
            url = urlsplit(urljoin(f"https://site/{name}.html", quote["href"]))
            source = (site / url.path.lstrip("/")).read_text(encoding="utf-8")
            first, last = int(quote["first"]), int(quote["last"] or quote["first"])
            assert url.fragment == f"L-{first}"
            lines = dict(re.findall(r'<span id="L-(\d+)">(.*)', source))
            wanted = [plain(lines[str(number)], number) for number in range(first, last + 1)]
            code = plain(quote["code"]).strip()
            whole = textwrap.dedent("\n".join(wanted)).strip().split("\n")
            for at, line in enumerate(code.split("\n")):
                if left_out := re.fullmatch(r"\s*# \((\d+) lines? left out\)", line):
                    whole[at : at + int(left_out[1])] = [line]
            assert whole == code.split("\n")
    assert shown >= 15


EXCERPT = re.compile(
    r'<p class="mv-source"><a [^>]*href="(?P<href>[^"]*)">.*?'
    r"lines? (?P<first>\d+)(?:–(?P<last>\d+))?</a></p>.*?<pre>(?P<code>.*?)</pre>",
    re.DOTALL,
)


def plain(marked_up: str, number: int | None = None) -> str:
    """Highlighted code as text, without the line's number."""
    text = html.unescape(re.sub(r"<[^>]*>", "", marked_up))
    return text if number is None else text.lstrip().removeprefix(str(number))


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_a_figure_follows_the_theme_and_the_window(page: Page, site_url: str, size: Any) -> None:
    page.route(
        "**/deep/down/page.html", lambda r: r.fulfill(body=figure_page(), content_type="text/html")
    )
    page.set_viewport_size(size)
    page.goto(site_url + "deep/down/page.html")
    figure = page.locator(".mv-figure")
    bar = page.locator(".bars path").first
    check_figure(page, figure, "light")
    assert overflow(page) <= 0
    light = bar.evaluate("bar => getComputedStyle(bar).fill")

    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_function("document.querySelector('.mv-figure').dataset.drawn === 'dark'")
    check_figure(page, figure, "dark")
    assert bar.evaluate("bar => getComputedStyle(bar).fill") != light

    page.set_viewport_size(PHONE if size == DESKTOP else DESKTOP)
    narrow = str(size == DESKTOP).lower()
    page.wait_for_function(f"document.querySelector('.mv-figure').dataset.narrow === '{narrow}'")
    check_figure(page, figure, "dark")
    assert overflow(page) <= 0


def test_a_figure_is_drawn_from_disk_too(page: Page, site: Path, tmp_path: Path) -> None:
    (tmp_path / "_static").symlink_to(site / "_static", target_is_directory=True)
    path = tmp_path / "deep" / "down" / "page.html"
    path.parent.mkdir(parents=True)
    path.write_text(figure_page(), encoding="utf-8")
    page.goto(path.as_uri())
    check_figure(page, page.locator(".mv-figure"), "light")


def test_search_finds_a_word(page: Page, site_url: str) -> None:
    page.goto(f"{site_url}search.html?q=scheduler", wait_until="networkidle")
    page.locator("#search-results li a").first.wait_for(state="visible")
