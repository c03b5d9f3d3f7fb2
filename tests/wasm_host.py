"""Holds the page's kernels as JavaScript does in a page, for the tests: with wasmtime, and with
Node.js where there are threads."""

from __future__ import annotations

import functools
import json
import shutil
import struct
import subprocess
import tempfile
from array import array
from pathlib import Path
from typing import Any

import pytest

from tools.live_model import (
    INITIAL_PAGES,
    MAX_PAGES,
    MODELS,
    compile_kernels,
    model_folder,
)

HOST = Path(__file__).with_name("wasm_threads_host.mjs")


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


class NodeMachine:
    """As `Machine`, of the module with threads."""

    def __init__(self, num_threads: int) -> None:
        if (node := shutil.which("node")) is None:
            pytest.skip("no Node.js")
        pytest.importorskip("ziglang")
        with tempfile.NamedTemporaryFile(suffix=".wasm") as file:
            file.write(compile_kernels(with_threads=True))
            file.flush()
            self.is_open = True
            numbers = map(str, (num_threads, INITIAL_PAGES, MAX_PAGES))
            self.process = subprocess.Popen(
                [node, str(HOST), file.name, *numbers],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert self.call("num_threads") == num_threads

    def _ask(self, message: list[Any], data: bytes, size: int) -> bytes:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        text = json.dumps(message).encode()
        self.process.stdin.write(struct.pack("<I", len(text)) + text + data)
        self.process.stdin.flush()
        answer: bytes = self.process.stdout.read(size)
        assert len(answer) == size, "Node.js ended"
        return answer

    def call(self, name: str, *args: float) -> Any:
        if name == "free" and not self.is_open:  # an engine that is forgotten later
            return None
        (number,) = struct.unpack("<d", self._ask([name, *args], b"", 8))
        return int(number)  # no function gives anything else

    def write(self, address: int, data: bytes | array[Any]) -> None:
        flat = bytes(memoryview(data).cast("B"))
        self._ask(["write", address, len(flat)], flat, 0)

    def read(self, address: int, size: int) -> bytes:
        return self._ask(["read", address, size], b"", size)

    def __enter__(self) -> NodeMachine:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_open = False
        self.process.kill()
        self.process.communicate()


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
