"""The book for plain Sphinx, from the same `_config.yml` and `_toc.yml`, without Jupyter Book:

    sphinx-build -c tools/sphinx . _build/html

`jupyter-book build .` turns the same file into the same settings (`jupyter_book.config`); of its
keys these are the ones that this book uses. `tests/test_plain_sphinx.py` compares the two.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]

SAME: dict[str, dict[str, str]] = {
    "": {"title": "html_title", "author": "author", "copyright": "copyright"},
    "execute": {
        "execute_notebooks": "nb_execution_mode",
        "exclude_patterns": "nb_execution_excludepatterns",
        "timeout": "nb_execution_timeout",
        "stderr_output": "nb_output_stderr",
        "allow_errors": "nb_execution_allow_errors",
    },
    "parse": {"myst_enable_extensions": "myst_enable_extensions"},
    "html": {"baseurl": "html_baseurl"},
}
"""Section of `_config.yml` -> its key -> Sphinx's name."""

WITHOUT = {"jupyter_book"}
"""Extensions of Jupyter Book's own, which nothing in this book needs."""


ALSO = ("sphinx_multitoc_numbering",)
"""And one that Jupyter Book adds by itself."""


def settings() -> dict[str, Any]:
    """What `_config.yml` says, in Sphinx's words. Files are named from the book's root."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    found: dict[str, Any] = {
        "project": config["title"],
        "html_theme": "sphinx_book_theme",
        "html_logo": str(ROOT / config["logo"]),
        "html_favicon": str(ROOT / config["html"]["favicon"]),
        "exclude_patterns": ["**.ipynb_checkpoints", *config["exclude_patterns"]],
        "external_toc_path": "_toc.yml",
        "external_toc_exclude_missing": config["only_build_toc_files"],
        "nb_execution_cache_path": str(ROOT / "_build" / ".jupyter_cache"),
        "source_suffix": {".md": "myst-nb", ".ipynb": "myst-nb"},
        "myst_url_schemes": ["mailto", "http", "https"],
        "html_sourcelink_suffix": "",
    }
    for section, names in SAME.items():
        part = config[section] if section else config
        found |= {theirs: part[ours] for ours, theirs in names.items() if ours in part}
    found |= config["sphinx"]["config"]
    local = config["sphinx"]["local_extensions"]
    named = [name for name in found["extensions"] if name not in WITHOUT]
    found["extensions"] = [*named, *(name for name in local if name not in named), *ALSO]
    found["html_static_path"] = [str(ROOT / folder) for folder in found["html_static_path"]]
    sys.path[:0] = sorted({str(ROOT / folder) for folder in local.values()})
    return found


globals().update(settings())
