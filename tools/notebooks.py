"""Every page with code as an .ipynb file, for Colab, which opens no other kind:

    python tools/notebooks.py OUT     writes OUT/book/*.ipynb and OUT/exercises/*.ipynb

The site's workflow puts them on the branch `notebooks`. The first cell installs what the page needs
where it is missing; a stepper, which on the site is part of the page, becomes a cell that shows it.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import jupytext
import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.get_model import MODEL  # noqa: E402
from tools.repository import Repository, repository  # noqa: E402

STEPPER = re.compile(r"```\{stepper\}[ ]*([\w-]*)\n((?::[\w-]+:.*\n)*)([^`]*)```\n?")
LINK = re.compile(r"\]\(((?:\.\./)?[\w/-]+)\.(?:md|ipynb)((?:#[\w-]+)?)\)")
STEP = re.compile(r"^:step:\s*(\d+)", re.MULTILINE)

FIRST_CELL = """\
# Once, where it is missing: what this page needs. No GPU.
import importlib.util

if importlib.util.find_spec("minivllm") is None:
    %pip install --quiet "minivllm[engine,sim,notebook] @ {source}"
    %pip install --quiet --no-deps {model}
try:
    from google.colab import output

    output.enable_custom_widget_manager()  # for the steppers
except ImportError:
    pass
"""


def pages(root: Path) -> list[Path]:
    """The files of the table of contents that have code."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    names = [toc["root"], *(page["file"] for part in toc["parts"] for page in part["chapters"])]
    files = [root / f"{name}{suffix}" for name in names for suffix in (".md", ".ipynb")]
    return [
        file
        for file in files
        if file.is_file()
        and (file.suffix == ".ipynb" or "kernelspec:" in file.read_text(encoding="utf-8")[:1000])
    ]


def notebook(file: Path, known: Repository) -> Any:
    """A page as a notebook, which first installs `minivllm` from its repository."""
    page = jupytext.read(file)
    source = f"git+{known.url}@{known.branch}"
    first = nbformat.v4.new_code_cell(FIRST_CELL.format(source=source, model=MODEL), id="install")
    cells = [first]
    folder = urljoin(known.site, file.parent.name + "/")
    for cell in page.cells:
        if cell.cell_type == "markdown":  # a link to a page leads to the site's
            cell.source = LINK.sub(lambda m: f"]({urljoin(folder, m[1])}.html{m[2]})", cell.source)
        cells += with_steppers(cell) if cell.cell_type == "markdown" else [cell]
    page.cells = cells
    page.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    page.nbformat_minor = max(page.nbformat_minor, 5)
    return page


def with_steppers(cell: Any) -> list[Any]:
    """A Markdown cell, cut where it has a stepper, and the code that shows it there."""
    found = []
    end = 0
    for match in STEPPER.finditer(cell.source):
        name, options, body = match.groups()
        found.append(cell.source[end : match.start()])
        end = match.end()
        source = repr(name) if name else f"Scenario.from_json('''{body.strip()}''')"
        step = STEP.search(options)
        lines = ["from minivllm.stepper import Scenario, SchedulerStepper", ""]
        lines += [f"stepper = SchedulerStepper({source})"]
        lines += [f"stepper.goto({step[1]})"] if step else []
        lines += ["stepper"]
        found.append("\n".join(lines))
    found.append(cell.source[end:])
    if len(found) == 1:
        return [cell]
    made = []
    for index, text in enumerate(found):
        if text.strip():
            new = nbformat.v4.new_code_cell if index % 2 else nbformat.v4.new_markdown_cell
            made.append(new(text.strip("\n")))
    return made


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write the book's pages as notebooks for Colab.")
    parser.add_argument("out", type=Path, help="folder to write to")
    options = parser.parse_args(arguments)
    known = repository()
    if known is None:
        print("error: _config.yml names no repository to install from", file=sys.stderr)
        return 2
    for file in pages(ROOT):
        target = options.out / file.relative_to(ROOT).with_suffix(".ipynb")
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook(file, known), target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
