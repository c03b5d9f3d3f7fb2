"""Runs a page's code cells as a notebook's kernel does: in the reader's browser, no server.

`Cells` has one namespace for all cells. What a cell prints and shows goes to `post` as it comes, in
the forms of a notebook's outputs: `{"output_type": "stream" | "display_data" | "execute_result" |
"error", ...}`. Standard library only, so that the tests run the same file in CPython.
"""

from __future__ import annotations

import ast
import builtins
import io
import json
import linecache
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from minivllm_judge import Ask

MAX_PRINTED = 1_000_000
"""Characters that a cell may print; the rest is counted, not shown: a page has to draw it."""
FLUSH_SECONDS = 0.05
FLUSH_CHARACTERS = 8_000

METHODS = {
    "text/html": "_repr_html_",
    "text/markdown": "_repr_markdown_",
    "image/svg+xml": "_repr_svg_",
    "image/png": "_repr_png_",
}
NOT_HERE = {
    "torch": "PyTorch does not run in the page",
    "transformers": "transformers does not run in the page",
    "numpy": "NumPy is not part of the page's Python",
}
HOW_TO = "Run this cell in JupyterLab: `make lab` after `make setup`, see the README."


class Stream(io.TextIOBase):
    """stdout or stderr of a cell."""

    def __init__(self, name: str, post: Callable[[dict[str, Any]], None]) -> None:
        self.name = name
        self._post = post
        self._parts: list[str] = []
        self._held = 0
        self._printed = 0
        self._last = 0.0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Keep text; it goes to the page a few times a second."""
        room = MAX_PRINTED - self._printed
        self._printed += len(text)
        if room > 0:
            self._parts.append(text[:room])
            self._held += min(len(text), room)
        now = time.monotonic()
        if self._held > FLUSH_CHARACTERS or now - self._last > FLUSH_SECONDS:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Send what is held."""
        if self._parts:
            text = "".join(self._parts)
            self._parts, self._held = [], 0
            self._post({"output_type": "stream", "name": self.name, "text": text})
        self._last = time.monotonic()

    def finish(self) -> None:
        """Send the rest, and say what was cut."""
        self.flush()
        if self._printed > MAX_PRINTED:
            cut = f"\n… {self._printed - MAX_PRINTED:,} more characters are not shown.\n"
            self._post({"output_type": "stream", "name": self.name, "text": cut})
        self._printed = 0


def refuse_input(prompt: object = "") -> str:
    """`input` of the page.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("input() cannot ask in this page: write the value into the cell instead")


class Cells:
    """One Python session for the cells of a page.

    Args:
        post: takes an output, as a dict that JSON can hold.
        pretty: text of a value; IPython's pretty printer, so that the page says what a notebook
            says.
        prepare: called with each cell's code before it runs.
    """

    def __init__(
        self,
        post: Callable[[dict[str, Any]], None],
        pretty: Callable[[Any], str] = repr,
        prepare: Callable[[str], None] = lambda code: None,
    ) -> None:
        self.post = post
        self.prepare = prepare
        self.pretty = pretty
        self.namespace: dict[str, Any] = {}
        self.count = 0
        self.replies: dict[str, Any] = {}
        """Of the page, to what a cell has asked (minivllm_judge)."""
        self.reset()

    def reset(self) -> None:
        """Forget every name; imported modules stay loaded."""
        self.count = 0
        self.namespace.clear()
        self.namespace.update({"__name__": "__main__", "__builtins__": builtins, "In": [""]})
        self.namespace["display"] = self.display

    def run(self, code: str, replies: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run a cell to its end.

        Args:
            replies: to what the cell asked when it ran before.

        Returns:
            `ok`, `count` (as in `In [3]`), `seconds`; after an error `error`, its class's name;
            `ask` alone, where the cell must run again with a reply.
        """
        self.replies.clear()
        self.replies.update(replies or {})
        self.count += 1
        # The name is one that `check` of minivllm.grading takes for a cell.
        filename = f"<ipython-input-{self.count}>"
        linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
        out, err = Stream("stdout", self.post), Stream("stderr", self.post)
        before = sys.stdout, sys.stderr, builtins.input
        sys.stdout, sys.stderr = out, err
        builtins.input = refuse_input
        self._streams = (out, err)
        failed = None
        start = time.perf_counter()
        try:
            self.prepare(code)
            self._execute(code, filename)
        except BaseException as error:  # SystemExit too: a cell ends, the session goes on
            failed = error
        finally:
            seconds = time.perf_counter() - start
            sys.stdout, sys.stderr, builtins.input = before
            out.finish()
            err.finish()
        if isinstance(failed, Ask):
            return {"ask": failed.question}
        if failed is not None:
            self.post(self._told(failed, filename))
        result = {"ok": failed is None, "count": self.count, "seconds": seconds}
        return result if failed is None else {**result, "error": type(failed).__name__}

    def _execute(self, code: str, filename: str) -> None:
        namespace = self.namespace
        namespace["In"].append(code)
        tree = ast.parse(code, filename)
        last = tree.body[-1] if tree.body else None
        # A trailing ";" silences the last value, as in a notebook.
        shown = isinstance(last, ast.Expr) and not code.rstrip().endswith(";")
        body = tree.body[:-1] if shown else tree.body
        exec(compile(ast.Module(body, []), filename, "exec"), namespace)
        if shown:
            assert isinstance(last, ast.Expr)
            value = eval(compile(ast.Expression(last.value), filename, "eval"), namespace)
            if value is not None:
                namespace["_"] = value
                self._show(value, "execute_result")

    # --- showing ----------------------------------------------------------------------------------

    def display(self, *values: Any, raw: bool = False, **_: Any) -> None:
        """IPython's `display`; `raw`: the values are bundles `{mimetype: data}`."""
        for value in values:
            if raw:
                self._send(dict(value), "display_data")
            else:
                self._show(value, "display_data")

    def _show(self, value: Any, output_type: str) -> None:
        # A class has the methods of its instances, and cannot show itself.
        is_class = isinstance(value, type)
        own = getattr(value, "_ipython_display_", None)
        if callable(own) and not is_class:
            own()
            return
        bundle: dict[str, Any] = {"text/plain": self.pretty(value)}
        for mimetype, name in METHODS.items():
            method = getattr(value, name, None)
            if callable(method) and not is_class and (data := method()) is not None:
                bundle[mimetype] = data
        whole = getattr(value, "_repr_mimebundle_", None)
        if callable(whole) and not is_class:
            data = whole(include=None, exclude=None)
            bundle.update(data[0] if isinstance(data, tuple) else data or {})
        self._send(bundle, output_type)

    def _send(self, bundle: dict[str, Any], output_type: str) -> None:
        for stream in self._streams:  # in the order in which they came
            stream.flush()
        if "text/html" in bundle:  # the page draws figures from this form
            bundle.pop("application/vnd.plotly.v1+json", None)
        self.post({"output_type": output_type, "data": bundle})

    def _told(self, error: BaseException, filename: str) -> dict[str, Any]:
        """An error as a notebook's output: the traceback begins in the cell."""
        render = getattr(error, "_render_traceback_", None)
        if callable(render):
            lines = render()
        else:
            told = traceback.TracebackException.from_exception(error, limit=None)
            trim(told)
            lines = "".join(told.format()).rstrip("\n").split("\n")
            lines = [re.sub(r'File "<ipython-input-(\d+)>"', r"Cell [\1]", line) for line in lines]
            if isinstance(error, ModuleNotFoundError) and error.name:
                package = error.name.partition(".")[0]
                missing = error.name if package == "minivllm" else package
                what = NOT_HERE.get(package, f"{missing} is not part of the page's Python")
                lines.append(f"{what}. {HOW_TO}")
            elif isinstance(error, SyntaxError) and re.match(r"\s*[%!]", error.text or ""):
                lines.append("Commands with % and ! are IPython's: they work in JupyterLab.")
        name = type(error).__name__
        return {
            "output_type": "error", "ename": name, "evalue": str(error), "traceback": lines
        }  # fmt: skip

    # --- completing -------------------------------------------------------------------------------

    def complete(self, text: str) -> dict[str, Any]:
        """What may follow `text`, the code up to the cursor.

        Returns:
            `start`, where in `text` the word begins, and `options`: `{label, type}`.
        """
        found = re.search(r"[A-Za-z_][\w.]*$|\.$", text)
        word = found[0] if found else ""
        *path, prefix = word.split(".")
        names: Iterable[str]
        line = text.rsplit("\n", 1)[-1]
        imported = re.match(r"\s*from\s+([\w.]+)\s+import\s+(?:[\w\s,(]*)$", line)
        if imported:
            module = sys.modules.get(imported[1])
            values = {name: getattr(module, name, None) for name in dir(module)} if module else {}
        elif path:
            owner = self._look_up(path)
            values = {}
            for name in dir(owner) if owner is not None else ():
                values[name] = getattr_static(owner, name)
        else:
            values = {**vars(builtins), **self.namespace}
        names = [name for name in values if name.startswith(prefix) and name not in ("In", "_")]
        if not prefix.startswith("_"):
            names = [name for name in names if not name.startswith("_")]
        options = [{"label": name, "type": kind(values[name])} for name in sorted(names)[:200]]
        return {"start": len(text) - len(prefix), "options": options}

    def _look_up(self, path: list[str]) -> Any:
        """The object that `a.b.c` names, without running code of a property."""
        first = path[0]
        owner = self.namespace.get(first, getattr(builtins, first, None))
        for name in path[1:]:
            if owner is None:
                return None
            owner = getattr_static(owner, name)
        return owner

    # --- for a page -------------------------------------------------------------------------------

    def handle_json(self, text: str) -> str:
        """Answer a message of the page: `{"call": "run" | "complete" | "reset", ...}`."""
        message = json.loads(text)
        call, arguments = message["call"], message.get("arguments", {})
        if call not in ("run", "complete", "reset"):
            raise ValueError(f"unknown call {call!r}")
        return json.dumps(getattr(self, call)(**arguments))


def getattr_static(owner: Any, name: str) -> Any:
    """An attribute without running a property's code; modules and instances as they are."""
    import inspect

    try:
        found = inspect.getattr_static(owner, name)
    except AttributeError:
        return getattr(owner, name, None) if isinstance(owner, type(sys)) else None
    if isinstance(found, (property, classmethod, staticmethod)) or hasattr(found, "__set__"):
        return None if isinstance(found, property) else found
    return found


def kind(value: Any) -> str:
    """What stands beside a completion: CodeMirror's names."""
    if isinstance(value, type):
        return "class"
    if isinstance(value, type(sys)):
        return "namespace"
    return "function" if callable(value) else "variable"


def trim(told: traceback.TracebackException) -> None:
    """Drop this module's frames from a traceback, and from those that caused it."""
    seen: set[int] = set()
    todo: list[traceback.TracebackException | None] = [told]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        own = [frame for frame in one.stack if frame.filename != __file__]
        one.stack = traceback.StackSummary.from_list(own)
        todo += [one.__cause__, one.__context__]
