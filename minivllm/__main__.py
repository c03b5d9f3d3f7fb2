"""`minivllm COMMAND`: every command of the package under one name.

`python -m minivllm` is the same. Each command has its older form too, `python -m minivllm.sim` for
`minivllm sim`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from minivllm import __version__
from minivllm.extras import extra

COMMANDS = {
    "sim": "simulate an LLM server: the real scheduler, with a cost model in place of the GPU",
    "conformance": "compare the scheduler with recorded decisions of vLLM, step by step",
    "incident": "replay what a vLLM server recorded, and explain what happened",
    "grade": "grade submissions of the exercises",
    "bench": "measure the engine beside its peers (in a clone of the book)",
    "book": "build the book's site (in a clone of the book)",
}

EXIT_STATUS = "exit status: 0 done; 1 it ran and failed; 2 what was asked for makes no sense."


def usage() -> str:
    """What `minivllm --help` prints."""
    lines = "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
    return (
        "usage: minivllm [-h] [--version] COMMAND ...\n\n"
        "A small LLM serving engine whose scheduler makes vLLM's decisions.\n\n"
        f"commands:\n{lines}\n\n"
        "`minivllm COMMAND --help` says what a command takes.\n\n" + EXIT_STATUS
    )


def find_checkout(start: Path | None = None) -> Path:
    """The clone of the book: where this package lies, or the working directory or one above it.

    Args:
        start: looked at, with the folders above it, in place of the working directory.

    Raises:
        ValueError: if there is none.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (Path(__file__).resolve().parents[1], here, *here.parents):
        if (folder / "_toc.yml").is_file() and (folder / "minivllm").is_dir():
            return folder
    raise ValueError(f"{here} is not in a clone of the book, whose files this command needs")


def run_book(arguments: Sequence[str], prog: str) -> int:
    """Build the site with Jupyter Book; `arguments` are those of `jupyter-book build`."""
    if {"-h", "--help"} & set(arguments):
        print(
            f"usage: {prog} [-h] [OPTION ...]\n\n"
            "Build the book's site from a clone into its _build/html.\n\n"
            "options are those of `jupyter-book build`, for example -W --keep-going: warnings are\n"
            f"errors, all of them shown.\n\n{EXIT_STATUS}"
        )
        return 0
    root = find_checkout()
    if find_spec("jupyter_book") is None:
        raise ValueError(
            f"the build needs jupyter_book: pip install -r {root / 'requirements.txt'}"
        )
    command = import_module("jupyter_book.cli.main").main
    status = command(["build", str(root), *arguments], prog_name=prog, standalone_mode=False)
    print(f"The book: {root / '_build' / 'html' / 'index.html'}")
    return int(status or 0)


def run_bench(arguments: Sequence[str], prog: str) -> int:
    """The clone's `benchmarks`."""
    sys.path.insert(0, str(find_checkout()))
    with extra("engine", prog):
        import_module("benchmarks.__main__").main(arguments, prog)
    return 0


RUN: dict[str, Callable[[Sequence[str], str], int]] = {
    "sim": lambda *given: import_module("minivllm.sim.__main__").main(*given),
    "conformance": lambda *given: import_module("minivllm.conformance").main(*given),
    "incident": lambda *given: import_module("minivllm.incident.__main__").main(*given),
    "grade": lambda *given: import_module("minivllm.grading.__main__").main(*given),
    "bench": run_bench,
    "book": run_book,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        The exit status: the command's own; 2 if there is no such command, or it cannot begin.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else ""
    if name in ("-h", "--help", ""):
        print(usage(), file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    if name == "--version":
        print(f"minivllm {__version__}")
        return 0
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"minivllm: error: {name!r} is no command; use {known}", file=sys.stderr)
        return 2
    prog = f"minivllm {name}"
    try:
        return RUN[name](given[1:], prog)
    except (ValueError, ModuleNotFoundError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
