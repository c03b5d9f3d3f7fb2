"""The models of a page: gives `minivllm.executor.wasm_executor` the instance and file that the
page's worker has loaded (minivllm/stepper/static/model.js), or asks the page to load them.

Loading waits for a network, and Python in a page cannot wait: a model that is not there yet is
raised as a question (`Ask`). The page loads it, and the cell runs again.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Mapping
from typing import Any

from minivllm_judge import Ask

PART = 1 << 22
"""Bytes that are hashed at once."""


class PageMachine:
    """As `wasm_executor.Machine`: an instance that the worker has made."""

    def __init__(self, exports: Any) -> None:
        self._exports = exports
        self._functions: dict[str, Callable[..., Any]] = {}

    def call(self, name: str, *args: float) -> Any:
        """Call an exported function."""
        if name not in self._functions:
            self._functions[name] = getattr(self._exports, name)
        return self._functions[name](*args)

    def _view(self, address: int, size: int) -> Any:
        import js  # type: ignore[import-not-found]

        # A new one each time: when the memory grows, old ones are empty.
        return js.Uint8Array.new(self._exports.memory.buffer, address, size)

    def write(self, address: int, data: bytes | array[Any]) -> None:
        """Copy into its memory."""
        flat = memoryview(data).cast("B")
        if len(flat):
            self._view(address, len(flat)).assign(flat)

    def read(self, address: int, size: int) -> bytes:
        """Copy out of its memory."""
        data: bytes = self._view(address, size).to_bytes()
        return data


class PageFile:
    """As `wasm_executor.ModelFile`: bytes that the worker has fetched."""

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded
        self.contents: Mapping[str, Any] = json.loads(loaded.contents)
        if not loaded.verified:  # the browser digests for pages of https and localhost alone
            self._verify()

    def _verify(self) -> None:
        digest, size = hashlib.sha256(), self.contents["size"]
        for start in range(0, size, PART):
            digest.update(self.part(start, min(PART, size - start)))
        if digest.hexdigest() != self.contents["sha256"]:
            raise ValueError(
                f"the file of {self.contents['name']} is not the one that this site was built "
                f"with: its SHA-256 is {digest.hexdigest()[:12]}…. Reload the page"
            )

    def part(self, offset: int, size: int) -> bytes:
        """Some bytes of the file."""
        data: bytes = self._loaded.bytes.subarray(offset, offset + size).to_bytes()
        return data

    def stage(self, machine: PageMachine, address: int, offset: int, size: int) -> None:
        """Copy some bytes of the file into a machine's memory."""
        machine._view(address, size).set(self._loaded.bytes.subarray(offset, offset + size))


models: dict[str, str] = {}
"""The names that the page can load; where there is none, why, under ""."""


def let_executor_open() -> None:
    """Give the executor the page's models."""
    from tqdm import tqdm

    from minivllm.executor import wasm_executor

    tqdm.monitor_interval = 0  # it would start a thread
    wasm_executor.open_model = open_model
    wasm_executor.default_model = default_model


def default_model() -> str:
    """The model that the page's reader has chosen (model_choice.js)."""
    import js

    from minivllm.models.config import DEFAULT_MODEL

    return js.minivllmChosen or DEFAULT_MODEL


def open_model(name: str) -> tuple[PageMachine, PageFile]:
    """A machine for a model, and the model's file.

    Raises:
        Ask: the page has to load it first.
        ValueError: if the page has no such model, or the file is not the site's.
    """
    import js

    if name not in models:
        there = " and ".join(filter(None, models)) or f"none: {models.get('')}"
        raise ValueError(f"this page cannot load the model {name!r}; it has {there}")
    if (loaded := js.minivllmModels.get(name)) is None:
        raise Ask(json.dumps({"model": name}))
    made = PageMachine(loaded.exports), PageFile(loaded)
    js.minivllmModels.delete(name)  # the weights are in the machine's memory from here on
    return made
