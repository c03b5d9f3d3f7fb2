"""What a site has beside its pages: where they can be launched, edited and complained about, a
preview for who links to them, a footer that names the versions, 404, sitemap, llms.txt, and a
search that knows the names in the code.

Whatever needs an address is made of the one in `_config.yml` (tools/repository.py) and left out
where that is empty. Nothing here asks a network for anything: a button is a link.
"""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from xml.sax.saxutils import escape

import yaml
from docutils import nodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import minivllm  # noqa: E402
from minivllm.core.releases import NEWEST, REFERENCE  # noqa: E402
from tools.repository import Repository, repository  # noqa: E402

PREVIEW = "_static/preview.png"
SYMBOLS = "minivllm_symbols"
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?:\(\))?")
CAPTION = re.compile(r"minivllm/[\w/]+\.(?:py|c), ([\w.]+), lines? \d")
NOT_FOUND = """\
<h1>There is no such page</h1>
<p>Perhaps it was renamed. The <a class="reference internal" href="{index}">first page</a> lists all
chapters, and the <a class="reference internal" href="{search}">search</a> finds a word or the name
of a method.</p>
"""


# --- on every page ------------------------------------------------------------


def address(app: Sphinx) -> Repository | None:
    """The repository that the built pages link to."""
    return repository(Path(app.srcdir) / "_config.yml")


def add_to_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Buttons, the preview's tags, and the versions in the footer."""
    known = address(app)
    versions = (
        f"minivllm {minivllm.__version__} decides as vLLM {REFERENCE}, and on request as any "
        f"release up to {NEWEST}."
    )
    context["theme_extra_footer"] = f"{context.get('theme_extra_footer', '')} {versions}".strip()
    context["metatags"] = (context.get("metatags") or "") + preview_tags(page, context, known)
    if page == "search":
        app.add_js_file("minivllm-symbols.js", loading_method="defer")
        app.add_js_file("symbols.js", loading_method="defer")
    if known is None or doctree is None:
        return
    app.add_js_file("report.js", loading_method="defer")
    file = Path(app.env.doc2path(page)).relative_to(app.srcdir).as_posix()
    buttons = context.setdefault("header_buttons", [])
    if file.endswith(".ipynb") or "kernelspec" in app.env.metadata.get(page, {}):
        links = {
            "Binder": (known.binder(file), "Run this page on mybinder.org"),
            "Colab": (known.colab(page), "Run this page on Google Colab"),
            "Codespaces": (known.codespace(), "Open the repository in GitHub Codespaces"),
        }
        buttons.append(group("launch", "fas fa-rocket", "Run this page elsewhere", links))
    title = context.get("title") or page
    body = f"Page: {urljoin(known.site, page)}.html (minivllm {minivllm.__version__})"
    links = {
        "Repository": (known.url, "The source of this book"),
        "Edit this page": (known.edit(source_of(file)), "Suggest a change"),
        "Report a problem": (
            known.issue(f"{plain(title)}: ", body),
            "An issue that names this page, and the steps its steppers show",
        ),
    }
    buttons.append(group("source", "fas fa-pen", "Repository and problems", links))


def source_of(file: str) -> str:
    """The file that an editor changes: exercises are made of their solutions."""
    return re.sub(r"^exercises/", "solutions/", file)


def group(name: str, icon: str, tooltip: str, links: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """A menu among the theme's buttons at a page's head; links without a target are left out."""
    return {
        "type": "group",
        "tooltip": tooltip,
        "icon": icon,
        "label": f"{name}-buttons",
        "buttons": [
            {
                "type": "link",
                "url": html.escape(url),
                "text": text,
                "tooltip": hint,
                "label": text.split()[0].lower(),
            }
            for text, (url, hint) in links.items()
            if url
        ],
    }


def plain(title: str) -> str:
    """A title without its markup."""
    return html.unescape(re.sub(r"<[^>]*>", "", title))


def description(text: str) -> str:
    """What a page's `<meta name="description">` says; empty if it has none."""
    for tag in re.findall(r"<meta [^>]*>", text):
        if 'name="description"' in tag:
            found = re.search(r'content="([^"]*)"', tag)
            return html.unescape(found[1]) if found else ""
    return ""


def preview_tags(page: str, context: dict[str, Any], known: Repository | None) -> str:
    """What a chat or a network shows of a link to the page (Open Graph). A picture must have a
    whole address, so there is none without."""
    about = description(context.get("metatags") or "")
    title = plain(context.get("title") or context.get("docstitle") or page)
    tags = {"og:type": "article", "og:title": title, "og:site_name": context.get("docstitle", "")}
    if about:
        tags["og:description"] = about
    if known is not None:
        tags |= {
            "og:url": urljoin(known.site, f"{page}.html"),
            "og:image": urljoin(known.site, PREVIEW),
            "twitter:card": "summary_large_image",
        }
    return "".join(
        f'\n<meta property="{name}" content="{html.escape(text, quote=True)}" />'
        for name, text in tags.items()
    )


# --- names in the code ------------------------------------------------------------


def collect_symbols(app: Sphinx, doctree: nodes.document) -> None:
    """Which names stand in which section of a page, in the text or above an excerpt."""
    found: dict[tuple[str, str], str] = {}
    for section in doctree.findall(nodes.section):
        title = section.next_node(nodes.title)
        for name in names_in(section):
            found.setdefault((name, section["ids"][0]), title.astext() if title else "")
    app.env.metadata[app.env.docname][SYMBOLS] = [[*key, text] for key, text in found.items()]


def names_in(section: nodes.section) -> Iterator[str]:
    """The names in a section, those of the sections inside it left out."""
    for child in section.children:
        if isinstance(child, nodes.section):
            continue
        for literal in child.findall(nodes.literal):
            text = literal.astext()
            for name in NAME.findall(text):
                if len(name) > 2 and ("_" in name or "." in name or name == text):
                    yield name.removesuffix("()")
        for paragraph in child.findall(nodes.paragraph):
            if caption := CAPTION.match(paragraph.astext()):
                yield caption[1]


def write_symbols(app: Sphinx) -> None:
    """`_static/minivllm-symbols.js`, which the search page loads."""
    table: dict[str, list[list[str]]] = {}
    for page, about in app.env.metadata.items():
        chapter = app.env.titles[page].astext() if page in app.env.titles else page
        for name, anchor, section in about.get(SYMBOLS, ()):
            table.setdefault(name, []).append([page, anchor, section, chapter])
    text = json.dumps(dict(sorted(table.items())), separators=(",", ":"), ensure_ascii=False)
    path = Path(app.outdir) / "_static" / "minivllm-symbols.js"
    path.write_text(f"window.minivllmSymbols = {text};\n", encoding="utf-8")


# --- files beside the pages ------------------------------------------------------------


def pages_of_its_own(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """404: what a server shows in the place of a page that it does not have."""
    if app.builder.format != "html":
        return
    root = str(app.config.root_doc)
    body = NOT_FOUND.format(index=f"{root}.html", search="search.html")
    yield "404", {"title": "There is no such page", "body": body, "parents": []}, "page.html"


def table_of_contents(root: Path) -> list[tuple[str, list[str]]]:
    """Caption and pages of each part, in the book's order; the first page has a part of its own."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    parts = [("", [toc["root"]])]
    parts += [
        (part["caption"], [page["file"] for page in part["chapters"]]) for part in toc["parts"]
    ]
    return parts


def write_files(app: Sphinx, error: Exception | None) -> None:
    """Symbols, llms.txt, sitemap.xml, and a 404 page that works at any depth."""
    if error is not None or app.builder.format != "html":
        return
    site, known = Path(app.outdir), address(app)
    write_symbols(app)
    (site / "llms.txt").write_text(llms_text(app, known), encoding="utf-8")
    parts = table_of_contents(Path(app.srcdir))
    if known is not None:
        urls = [urljoin(known.site, f"{page}.html") for _, pages in parts for page in pages]
        lines = "\n".join(f"<url><loc>{escape(url)}</loc></url>" for url in urls)
        (site / "sitemap.xml").write_text(
            '<?xml version="1.0" encoding="utf-8"?>\n'
            f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n{lines}\n</urlset>\n',
            encoding="utf-8",
        )
    missing = site / "404.html"
    base = urlsplit(known.site).path if known is not None else "/"
    text = missing.read_text(encoding="utf-8")
    if "<base " not in text:
        text = text.replace("<head>", f'<head>\n    <base href="{html.escape(base)}" />', 1)
        missing.write_text(text, encoding="utf-8")


def llms_text(app: Sphinx, known: Repository | None) -> str:
    """The book for a language model that looks at the site: what each page is about, as its
    Markdown source (https://llmstxt.org)."""
    site = Path(app.outdir)
    lines = [f"# {app.config.html_title}", ""]
    for caption, pages in table_of_contents(Path(app.srcdir)):
        if caption:
            lines += ["", f"## {caption}", ""]
        for page in pages:
            about = description((site / f"{page}.html").read_text(encoding="utf-8"))
            suffix = Path(app.env.doc2path(page)).suffix
            url = f"_sources/{page}{suffix}"
            if known is not None:
                url = urljoin(known.site, url)
            if caption:
                lines.append(f"- [{app.env.titles[page].astext()}]({url}): {about}")
            else:
                lines.append(f"> {about}")
    return "\n".join(lines) + "\n"


def setup(app: Sphinx) -> dict[str, Any]:
    """After the theme has made its buttons, and when all files are written."""
    app.connect("doctree-read", collect_symbols)
    app.connect("html-page-context", add_to_page, priority=900)
    app.connect("html-collect-pages", pages_of_its_own)
    app.connect("build-finished", write_files, priority=850)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
