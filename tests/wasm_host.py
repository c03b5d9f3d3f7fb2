"""Holds the page's kernels as JavaScript does in a page, but with wasmtime: for the tests."""

from __future__ import annotations

import functools
import json
import tempfile
from array import array
from pathlib import Path
from typing import Any

import pytest

from tools.live_model import MODELS, compile_kernels, model_folder


class WasmtimeMachine:
    """As `minivllm.executor.wasm_executor.Machine`."""

    def __init__(self) -> None:
        wasmtime = pytest.importorskip("wasmtime")
        pytest.importorskip("ziglang")
        engine = wasmtime.Engine()
        self.store = wasmtime.Store(engine)
        module = wasmtime.Module(engine, compile_kernels())
        self.exports = wasmtime.Instance(self.store, module, []).exports(self.store)
        self.exports["_initialize"](self.store)
        self.memory = self.exports["memory"]
        self.functions: dict[str, Any] = {}

    def call(self, name: str, *args: float) -> Any:
        if name not in self.functions:
            self.functions[name] = self.exports[name]
        return self.functions[name](self.store, *args)

    def write(self, address: int, data: bytes | array[Any]) -> None:
        self.memory.write(self.store, bytearray(memoryview(data).cast("B")), address)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.memory.read(self.store, address, address + size))


class FileOnDisk:
    """As `ModelFile`."""

    def __init__(self, name: str) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            folder = model_folder(name, Path(temporary))
            self.contents = json.loads((folder / f"{MODELS[name]}.json").read_text())
            self.data = (folder / self.contents["file"]).read_bytes()

    def part(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]

    def stage(self, machine: Any, address: int, offset: int, size: int) -> None:
        machine.write(address, self.part(offset, size))


@functools.cache
def open_here(name: str) -> tuple[WasmtimeMachine, FileOnDisk]:
    """What a page's Python has as `open_model`."""
    return WasmtimeMachine(), FileOnDisk(name)
