"""A fork: one line names its address, plain Sphinx builds it, and every link that needs it works.

The notebooks are not run: what is tested here does not depend on what they print.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest

from tests.stepper_pages import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

yaml = pytest.importorskip("yaml")
pytest.importorskip("sphinx_book_theme")

from tools import offline_zip  # noqa: E402
from tools.repository import Repository, repository  # noqa: E402

pytestmark = pytest.mark.xdist_group("fork")

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "https://github.com/teacher/course"
SITE = "https://teacher.github.io/course/"
CHAPTER = "book/04-one-step-of-the-scheduler"
NEEDED = ("book", "exercises", "minivllm", "tools", "benchmarks", "_config.yml", "_toc.yml",
          "requirements.txt", "pyproject.toml")  # fmt: skip

BUILD = """
import sys
sys.modules["jupyter_book"] = None  # as where it is no longer to be had
from sphinx.cmd.build import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with an address, built into its _build/html."""
    copy = tmp_path_factory.mktemp("fork")
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    config = copy / "_config.yml"
    text = config.read_text(encoding="utf-8")
    line = re.search(r"^repository: .*$", text, re.MULTILINE)
    assert line
    named = f'repository: {{ url: "{ADDRESS}", branch: main }}'
    config.write_text(text.replace(line[0], named), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, "-q", "-c", "tools/sphinx", "-D", "nb_execution_mode=off",
         "-D", "suppress_warnings=myst.domains,mystnb.unknown_mime_type,myst-nb.lexer",
         "-W", "--keep-going", ".", "_build/html"],
        cwd=copy, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(copy), "MINIVLLM_LIVE": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return copy


@pytest.fixture(scope="module")
def fork_url(fork: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its site where a host would put it: below the repository's name, 404 page and all."""
    root = tmp_path_factory.mktemp("pages")
    (root / "course").symlink_to(fork / "_build" / "html", target_is_directory=True)
    with serving(root) as url:
        yield f"{url}course/"


@pytest.fixture
def visitor(browser: Browser) -> Iterator[tuple[Page, list[str]]]:
    """A page, and the addresses beyond localhost that it asked for; a stand-in answers them."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    asked: list[str] = []

    def answer(route: Route) -> None:
        if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            route.continue_()
        else:
            asked.append(route.request.url)
            route.fulfill(body="<title>stand-in</title>", content_type="text/html")

    context.route("**/*", answer)
    page = context.new_page()
    page.set_default_timeout(15_000)
    yield page, asked
    context.close()


@pytest.mark.browser
def test_a_page_asks_no_network_until_a_button_is_pressed(visitor, fork_url, fork):
    page, asked = visitor
    page.goto(f"{fork_url}{CHAPTER}.html", wait_until="networkidle")
    assert asked == []
    for menu, button, begins in (
        (
            "launch",
            "binder",
            "https://mybinder.org/v2/gh/teacher/course/main?urlpath=lab%2Ftree%2F",
        ),
        ("launch", "colab", "https://colab.research.google.com/github/teacher/course/blob/"),
        ("launch", "codespaces", "https://codespaces.new/teacher/course"),
        ("source", "repository", ADDRESS),
        ("source", "edit", f"{ADDRESS}/edit/main/"),
    ):
        page.locator(f".dropdown-{menu}-buttons > button").click()
        with page.context.expect_page() as opened:
            page.locator(f"a.btn-{button}").click()
        opened.value.wait_for_load_state()
        assert opened.value.url.startswith(begins), opened.value.url
        assert opened.value.title() == "stand-in"
        opened.value.close()
        page.keyboard.press("Escape")
    named = [url for url in asked if "/edit/" in url or "mybinder" in url]
    for url in named:
        file = parse_qs(urlsplit(url).query).get("urlpath", [url])[0]
        file = re.sub(r".*(/edit/main/|lab/tree/)", "", file)
        assert (fork / file).is_file(), file


@pytest.mark.browser
def test_a_report_names_the_page_the_section_and_the_step(visitor, fork_url):
    page, _ = visitor
    page.goto(f"{fork_url}{CHAPTER}.html#the-order", wait_until="networkidle")
    stepper = page.locator("[data-step][data-live]").first
    stepper.scroll_into_view_if_needed()
    step = int(stepper.get_attribute("data-step"))
    stepper.locator("[data-act='step'], [data-act='next'], [data-act='forward']").first.click()
    page.wait_for_function(
        "([s, before]) => Number(s.dataset.step) === before + 1",
        arg=[stepper.element_handle(), step],
    )
    page.evaluate("window.scrollTo(0, 0)")
    page.locator(".dropdown-source-buttons > button").click()
    with page.context.expect_page() as opened:
        page.locator("a.btn-report").click()
    asked = parse_qs(urlsplit(opened.value.url).query)
    assert opened.value.url.startswith(f"{ADDRESS}/issues/new?")
    assert asked["title"] == ["4. One step of the scheduler: "]
    assert f"Page: {SITE}{CHAPTER}.html (minivllm " in asked["body"][0]
    assert "Section: #the-order" in asked["body"][0]
    assert re.search(rf'Stepper ".+": step {step + 1}\n', asked["body"][0])


@pytest.mark.browser
@pytest.mark.parametrize(
    "query", ["allocate_slots", "KVCacheManager.allocate_slots()", "max_num_batched_tokens"]
)
def test_the_search_finds_a_name_and_lands_on_its_section(query, visitor, fork_url):
    page, asked = visitor
    page.goto(f"{fork_url}search.html?q={query}", wait_until="networkidle")
    link = page.locator(".mv-symbols a").first
    link.click()
    page.wait_for_url(lambda url: "#" in url)
    anchor = urlsplit(page.url).fragment
    section = page.locator(f"section#{anchor}")
    assert query.rpartition(".")[2].removesuffix("()") in section.inner_text()
    assert asked == []


@pytest.mark.browser
def test_the_404_page_works_at_any_depth(visitor, fork_url, fork):
    page, asked = visitor
    body = (fork / "_build" / "html" / "404.html").read_text(encoding="utf-8")
    missing = f"{fork_url}book/no/such/page.html"
    page.route(missing, lambda route: route.fulfill(body=body, content_type="text/html"))
    failed: list[str] = []
    page.on("response", lambda r: r.status >= 400 and failed.append(r.url))
    page.goto(missing, wait_until="networkidle")
    assert failed == []
    page.locator("article a", has_text="first page").click()
    page.wait_for_url(f"{fork_url}book/index.html")
    assert asked == []


@pytest.mark.browser
def test_on_paper_there_is_nothing_to_press(visitor, fork_url):
    page, _ = visitor
    page.goto(f"{fork_url}{CHAPTER}.html", wait_until="networkidle")
    page.emulate_media(media="print")
    for selector in (".mv-toolbar", ".bd-header-article", ".bd-sidebar-primary"):
        assert not page.locator(selector).first.is_visible(), selector
    assert page.locator("h1:visible").first.inner_text().strip()
    assert page.locator("article p:visible").count() > 20
    assert page.locator(".mv-stepper, [data-step]").first.is_visible()


@pytest.mark.browser
def test_the_zip_works_from_disk(visitor, fork, tmp_path):
    target = tmp_path / "book.zip"
    offline_zip.write_zip(fork / "_build" / "html", target)
    shutil.unpack_archive(target, tmp_path)
    folder = tmp_path / "book"
    assert "Run live" in (folder / "README.txt").read_text(encoding="utf-8")
    names = {path.name for path in folder.rglob("*")}
    assert not names & {"plotly.bin", "sitemap.xml", "404.html", ".doctrees"}
    page, asked = visitor
    page.context.unroute("**/*")
    failed: list[str] = []

    def note(request):
        # A page left before its icon came asks for nothing that is missing.
        if request.failure != "net::ERR_ABORTED":
            failed.append(f"{request.url}: {request.failure}")

    page.on("requestfailed", note)
    page.on("request", lambda r: r.url.startswith("file:") or asked.append(r.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto((folder / "index.html").as_uri())
    page.wait_for_url("**/book/book/index.html")  # where the first page leads
    page.goto((folder / f"{CHAPTER}.html").as_uri(), wait_until="load")
    stepper = page.locator("[data-step][data-live]").first
    stepper.scroll_into_view_if_needed()
    assert "recorded run" in stepper.inner_text()
    assert failed == []
    # The search lists its results; the lines of text below them it would have to fetch.
    search = (folder / "search.html").as_uri() + "?q=allocate_slots"
    page.goto(search, wait_until="load")
    page.locator(".mv-symbols a").first.wait_for()
    page.locator("#search-results li a").first.wait_for()
    assert [url for url in asked if not url.startswith("data:")] == []
    with pytest.raises(FileNotFoundError, match="build it first"):
        offline_zip.write_zip(tmp_path / "nothing", target)


def test_every_page_is_in_the_sitemap_and_in_llms_txt(fork):
    site = fork / "_build" / "html"
    tree = ElementTree.parse(site / "sitemap.xml")
    urls = [node.text for node in tree.iter() if node.tag.endswith("}loc")]
    paths = [urlsplit(url).path.removeprefix("/course/") for url in urls]
    pages = {p.relative_to(site).as_posix() for d in ("book", "exercises") for p in
             (site / d).glob("*.html")}  # fmt: skip
    assert set(paths) == pages
    assert len(paths) == len(pages)
    lines = (site / "llms.txt").read_text(encoding="utf-8").splitlines()
    entries = [re.fullmatch(r"- \[.+\]\((.+)\): (.+)", line) for line in lines if line[:1] == "-"]
    assert all(entries)
    for entry in entries:
        assert (site / entry[1].removeprefix(SITE)).is_file()
        assert len(entry[2]) > 30
    assert len(entries) == len(pages) - 1  # the first page is what all of it is about
    assert lines[2].startswith("> An interactive book")


def test_a_link_to_a_page_has_a_preview_and_a_page_names_its_versions(fork):
    text = (fork / "_build" / "html" / f"{CHAPTER}.html").read_text(encoding="utf-8")
    tags = dict(re.findall(r'<meta property="([^"]+)" content="([^"]*)"', text))
    assert tags["og:url"] == f"{SITE}{CHAPTER}.html"
    assert tags["og:title"] == "4. One step of the scheduler"
    assert len(tags["og:description"]) > 40
    image = fork / "_build" / "html" / tags["og:image"].removeprefix(SITE)
    assert image.read_bytes().startswith(b"\x89PNG")
    assert re.search(r"minivllm \d+\.\d+\.\d+ decides as vLLM 0\.22\.1", text)
    assert 'rel="icon"' in text


# --- the address, without building ------------------------------------------------------------


def test_without_an_address_there_is_none(tmp_path):
    config = tmp_path / "_config.yml"
    for line in ("", "repository: {url: ''}", "repository: {branch: main}"):
        config.write_text(f"title: x\n{line}\n")
        assert repository(config) is None
    config.write_text("repository: {url: github.com/a/b}")
    with pytest.raises(ValueError, match=r"must be https://HOST/OWNER/NAME, got 'github\.com/a/b'"):
        repository(config)
    config.write_text("repository: {url: https://github.com/a/b/}\nhtml: {baseurl: https://b.org}")
    assert repository(config) == Repository("https://github.com/a/b", "main", "https://b.org")


@pytest.mark.parametrize(
    ("url", "site", "edit", "binder"),
    [
        ("https://github.com/Ann/os", "https://ann.github.io/os/", "/edit/", "/v2/gh/Ann/os/"),
        ("https://github.com/ann/ann.github.io", "https://ann.github.io/", "/edit/", "/v2/gh/"),
        ("https://gitlab.com/uni/os/book", "https://uni.gitlab.io/os/book/", "/-/edit/",
         "/v2/gl/uni%2Fos%2Fbook/"),
        ("https://git.uni.edu/os/book", "https://os.git.uni.edu.io/book/", "/-/edit/",
         "/v2/git/https%3A%2F%2Fgit.uni.edu%2Fos%2Fbook/"),
    ],
)  # fmt: skip
def test_links_of_each_host(url, site, edit, binder):
    known = Repository(url)
    assert known.site == site
    assert edit in known.edit("book/a.md")
    assert binder in known.binder("book/a.md")
    assert bool(known.colab("book/a")) == bool(known.codespace()) == (known.host == "github.com")
    assert "issue" in known.issue("a b", "c&d")


def test_plain_sphinx_has_jupyter_books_settings():
    config = pytest.importorskip("jupyter_book.config")
    book, _ = config.get_final_config(
        user_yaml=ROOT / "_config.yml", sourcedir=ROOT, cli_config={"latex_individualpages": False}
    )
    code = "import conf, json; print(json.dumps(conf.settings()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "tools" / "sphinx", capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    plain = yaml.safe_load(done.stdout)
    own = {"comments_config", "latex_engine", "nb_execution_in_temp", "pygments_style",
           "use_jupyterbook_latex", "use_multitoc_numbering", "html_baseurl",
           "nb_execution_cache_path"}  # fmt: skip
    assert [name for name in book if name not in plain and name not in own] == []
    for name in sorted(set(book) & set(plain) - own):
        ours, theirs = plain[name], book[name]
        if name in ("html_logo", "html_favicon"):
            ours = Path(ours).relative_to(ROOT).as_posix()
        elif name == "html_static_path":
            ours = [Path(path).relative_to(ROOT).as_posix() for path in ours]
        elif name == "extensions":
            theirs = [extension for extension in theirs if extension != "jupyter_book"]
        elif name == "exclude_patterns":
            assert set(ours) <= set(theirs)
            continue
        assert ours == yaml.safe_load(yaml.safe_dump(theirs)), name
