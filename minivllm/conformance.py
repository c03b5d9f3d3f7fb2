"""`python -m minivllm.conformance TRACES`, and two commands beside it.

    … run TRACES -- COMMAND    examine any scheduler, behind a pipe (`minivllm.runs.examine`)
    … corpus --out FOLDER      write the corpus that others can run (`minivllm.runs.corpus`)

Without a command: does our scheduler decide as vLLM's? (`minivllm.runs.conformance`)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from minivllm.runs import conformance, corpus, examine

COMMANDS = {"run": examine.main, "corpus": corpus.main}


def main(
    arguments: Sequence[str] | None = None, prog: str = "python -m minivllm.conformance"
) -> int:
    """The command line, under the name `prog`; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        return COMMANDS[given[0]](given[1:], f"{prog} {given[0]}")
    return conformance.main(given, prog)


if __name__ == "__main__":
    sys.exit(main())
