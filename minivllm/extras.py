"""What needs more than Python: which of our extras brings it, said where it is missing.

`pip install minivllm` brings what runs on the standard library alone. The rest is in extras, which
`pyproject.toml` defines.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS: dict[str, frozenset[str]] = {
    "engine": frozenset({"torch", "numpy", "tokenizers", "gguf", "jinja2", "tqdm"}),
    "sim": frozenset({"plotly", "pyarrow", "tqdm"}),
    "cluster": frozenset({"distributed", "pyarrow", "tqdm"}),
    "notebook": frozenset({"anywidget", "traitlets", "plotly", "ipykernel", "nbformat"}),
}
"""Extra -> the modules that the package imports only where it is installed."""


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Around an import: if a module is missing that the extra brings, say so.

    Args:
        name: in `EXTRAS`.
        what: cannot be had without it, e.g. "LLM".

    Raises:
        ModuleNotFoundError: in the place of the one for the module, with the line to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS[name]:
            raise
        raise ModuleNotFoundError(
            f"{what} needs {missing}, which is not installed: pip install 'minivllm[{name}]'",
            name=missing,
        ) from None
