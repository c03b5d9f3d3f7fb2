"""The Python of a page, in the reader's browser: one session for all cells, one for each stepper.

The page's worker (minivllm/stepper/static/worker.js) calls `handle`. Plotly and what else is heavy
is fetched when something imports it, from the site's own folder.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Sequence
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

import minivllm_judge
import minivllm_model

from minivllm.stepper.session import StepperSession

sessions: dict[str, Any] = {}


class Fetched:
    """Finds packages that lie beside the page as archives: fetches one, and lets it be found.

    Args:
        archives: URL of each archive, with the packages in it.
    """

    def __init__(self, archives: dict[str, Sequence[str]]) -> None:
        self.archives = {name: url for url, names in archives.items() for name in names}

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Called for each import that is not loaded yet; the finders after this one find it."""
        url = self.archives.get(name.partition(".")[0])
        if url is None:
            return
        self.archives = {name: of for name, of in self.archives.items() if of != url}
        import js  # type: ignore[import-not-found]

        js.postMessage(js.JSON.parse(json.dumps({"fetching": name.partition(".")[0]})))
        request = js.XMLHttpRequest.new()
        request.open("GET", url, False)  # a worker may wait
        request.responseType = "arraybuffer"
        request.send()
        if request.status != 200:
            raise ImportError(f"{url} could not be loaded: the server says {request.status}")
        package = name.partition(".")[0]
        archive = Path("/lib") / f"{package}.zip"
        archive.write_bytes(request.response.to_bytes())
        unpack(archive, Path("/lib") / package)
        sys.path.append(f"/lib/{package}")
        invalidate_caches()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive but for its folders with a file `in-archive`: these are many modules, of
    which a page imports some, and Python reads them from the archive."""
    with zipfile.ZipFile(archive) as files:
        names = files.namelist()
        kept = {name.removesuffix("in-archive") for name in names if name.endswith("/in-archive")}
        files.extractall(folder, [name for name in names if not name.startswith(tuple(kept))])
        for name in kept:
            start = f"{name}__init__.py"
            target = Path(files.extract(start, folder))
            with target.open("a", encoding="utf-8") as file:
                file.write(f"\n__path__.append({str(archive / name)!r})\n")


def post(output: dict[str, Any]) -> None:
    """Send an output of the running cell to the page."""
    import js

    js.postMessage(js.JSON.parse(json.dumps({"output": output})))


def cells() -> Any:
    """The session of the page's cells."""
    import IPython.display
    from IPython.lib.pretty import pretty  # the one file of IPython that is here, see live_files
    from minivllm_cells import Cells

    def prepare(code: str) -> None:
        if "LLM" in code:  # nobody gets an engine without its name
            minivllm_model.let_executor_open()
        if "plotly" in code and "minivllm.viz.offline" not in sys.modules:
            from minivllm.viz import offline  # Plotly's own renderer wants its JavaScript beside it

            offline.install()
        if "minivllm.grading" in code:
            minivllm_judge.let_check_ask(made.replies)

    made = Cells(post, pretty, prepare)
    IPython.display.display = made.display  # type: ignore[assignment]
    return made


def recording() -> Any:
    """The session of a recording that a reader dropped on a stepper."""
    from minivllm.stepper.recording import RecordingSession

    return RecordingSession()


def talk() -> Any:
    """The session of a reader who talks to the model."""
    from minivllm_talk_session import TalkSession

    return TalkSession()


MAKE: dict[str, Callable[[], Any]] = {
    "talk": talk,
    "cells": cells,
    "recording": recording,
    "judge": lambda: minivllm_judge.session(minivllm_judge.judge),
    "child": lambda: minivllm_judge.session(minivllm_judge.child),
}
"""A session by its name; every other is a stepper's."""


def handle(to: str, text: str) -> str:
    """Answer a message, JSON both ways; `to` is a name in `MAKE` or a stepper's key."""
    if to not in sessions:
        sessions[to] = MAKE.get(to, StepperSession)()
    return sessions[to].handle_json(text)


def start(archives: str, models: str) -> Any:
    """Make ready; returns `handle`.

    Args:
        archives: as `Fetched` takes them, JSON.
        models: as `minivllm_model.open_here` takes them, JSON.
    """
    sys.meta_path.insert(0, Fetched(json.loads(archives)))
    minivllm_model.models.update(json.loads(models))
    return handle
