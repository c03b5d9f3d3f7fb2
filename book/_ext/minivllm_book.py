"""What the book's build needs beyond Jupyter Book: nothing from a network, nothing stale.

- before notebooks run: the default model is installed if it is missing, and notebooks import this
  checkout's `minivllm`;
- when the engine's code changes, the cached notebook outputs are dropped (jupyter-cache only looks
  at the notebooks), so a figure never shows what an older scheduler did;
- math becomes MathML at build time (no MathJax), which every current browser draws by itself;
- the figures' templates are written once into `_static` (minivllm_lean.py adds plotly.js);
- a page without a description of its own gets its first paragraph as `<meta name="description">`.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # `jupyter-book build .` alone does not put it there
    sys.path.insert(0, str(ROOT))

from minivllm.viz import palette, theme  # noqa: E402
from tools.get_model import install_model  # noqa: E402

logger = logging.getLogger(__name__)


# --- what the notebooks run with -------------------------------------------------------------


def prepare_kernels(app: Sphinx, config: Config) -> None:
    """Make sure that the notebooks find the model and this checkout, and no stale output."""
    try:
        install_model()
    except RuntimeError as error:
        raise ExtensionError(str(error)) from error
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a kernel forks; spare its warning
    # Threads that fight over busy cores make a chapter slower, and its milliseconds worthless.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # a page cannot show progress, only its debris
    drop_stale_outputs(Path(config.nb_execution_cache_path or app.outdir.parent / ".jupyter_cache"))


def code_fingerprint() -> str:
    """A hash of the package, the pinned versions and the published measurements: what a notebook's
    output depends on."""
    digest = hashlib.sha256()
    files = [path for path in sorted((ROOT / "minivllm").rglob("*")) if path.is_file()]
    files += sorted((ROOT / "book" / "benchmark-results").glob("*.json"))
    files += [ROOT / "benchmarks" / "report.py"]
    for path in [*files, ROOT / "requirements.txt"]:
        if "__pycache__" in path.parts:
            continue
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def drop_stale_outputs(cache: Path) -> None:
    """Empty the notebook cache if it was filled by another state of the code."""
    stamp = cache.with_name(cache.name + ".code")
    fingerprint = code_fingerprint()
    if stamp.exists() and stamp.read_text() == fingerprint:
        return
    if cache.exists():
        logger.info("the engine's code has changed: all notebooks run again")
        shutil.rmtree(cache)
    cache.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(fingerprint)


def outdated_notebooks(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Read every notebook page again when the code has changed, though its own file has not."""
    fingerprint = code_fingerprint()
    last = getattr(env, "minivllm_code", None)
    env.minivllm_code = fingerprint  # type: ignore[attr-defined]
    if last == fingerprint:
        return []
    return [name for name in env.found_docs if is_notebook(Path(env.doc2path(name)))]


def is_notebook(path: Path) -> bool:
    """Whether this page has code cells: an .ipynb, or Markdown with a kernel in its header."""
    return path.suffix == ".ipynb" or (
        path.suffix == ".md" and "kernelspec:" in path.read_text(encoding="utf-8")[:1000]
    )


# --- math --------------------------------------------------------------------------------------


ROWS = re.compile(r"\\(begin|end)\{(?:align|aligned|alignat|gather|gathered|split)\*?\}")
EQUATION = re.compile(r"\\(?:begin|end)\{equation\*?\}")
ENVIRONMENTS = {"align*", "array", "cases", *(f"{kind}matrix" for kind in ("", *"pbBvV"))}


def mathml(latex: str, display: str, where: nodes.Node) -> str:
    """LaTeX as a `<math>` element; what cannot be converted gives a warning, which CI refuses."""
    from latex2mathml.converter import convert

    # Sphinx numbers a block as a whole, so the row-by-row numbers of `align` are left out.
    latex = EQUATION.sub("", ROWS.sub(r"\\\1{align*}", latex)).strip()
    try:
        unknown = set(re.findall(r"\\begin\{(.*?)\}", latex)) - ENVIRONMENTS
        if unknown:
            raise ValueError(f"unknown environment {', '.join(sorted(unknown))}")
        result = convert(latex, display=display)
        if "\\" in result:  # a command that the converter does not know stays as it was
            raise ValueError("unknown command " + re.findall(r"\\\w*", result)[0])
        return result
    except Exception as error:  # the converter's errors have no common base class
        logger.warning("cannot convert math %r: %r", latex, error, location=where)
        return f"<code>{html.escape(latex)}</code>"


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(f'<span class="math">{mathml(node.astext(), "inline", node)}</span>')
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="mv-math-block"))
    self.body.append(mathml(node.astext(), "block", node))
    if node.get("number"):
        self.body.append(f'<span class="eqno">({node["number"]})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


# --- pages -------------------------------------------------------------------------------------


def describe_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Give a page the description that search engines show, from its first paragraph."""
    metatags = context.get("metatags") or ""
    if doctree is None or 'name="description"' in metatags:
        return
    for paragraph in doctree.findall(nodes.paragraph):
        text = re.sub(r"\s+", " ", paragraph.astext()).strip()
        if len(text) > 40:
            if len(text) > 160:
                text = text[:160].rsplit(" ", 1)[0].rstrip(",;:") + " …"
            tag = f'<meta name="description" content="{html.escape(text, quote=True)}" />'
            context["metatags"] = metatags + "\n" + tag
            return


# --- files that the pages share ------------------------------------------------------------------


def write_shared_files(app: Sphinx, error: Exception | None) -> None:
    """Put the figures' templates beside minivllm.js."""
    if error is not None or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    data = {
        "plotly": version("plotly"),
        "light": theme.template(theme.LIGHT),
        "dark": theme.template(theme.DARK),
        "lightToDark": {**theme.light_to_dark(), **palette.request_light_to_dark()},
    }
    text = "window.minivllmTheme = " + json.dumps(data, separators=(",", ":")) + ";\n"
    (static / "minivllm-theme.js").write_text(text, encoding="utf-8")
    (Path(app.outdir) / ".built").touch()  # the tests compare its time with the sources'


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect all of the above to the build."""
    app.add_config_value("comments_config", {}, "html")  # Jupyter Book sets it for sphinx_comments
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit_math, None), block_renderers=(visit_math_block, None)
    )
    app.connect("config-inited", prepare_kernels, priority=100)
    app.connect("env-get-outdated", outdated_notebooks)
    app.connect("html-page-context", describe_page)
    app.connect("build-finished", write_shared_files)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
