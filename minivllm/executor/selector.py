"""Which executor the engine gets. No other module imports one."""

from __future__ import annotations

import sys

from minivllm.executor.abstract import Executor, ExecutorArgs


def _torch(args: ExecutorArgs) -> Executor:
    from minivllm.executor.torch_executor import TorchExecutor  # a page has no PyTorch

    return TorchExecutor(args)


def _wasm(args: ExecutorArgs) -> Executor:
    from minivllm.executor.wasm_executor import WasmExecutor

    return WasmExecutor(args)


EXECUTORS = {"torch": _torch, "wasm": _wasm}
"""What makes an executor of the engine's arguments."""


def choose_executor(device: str) -> str:
    """The name in `EXECUTORS` to use: "wasm" in a page, and where tests ask for it."""
    return "wasm" if device == "wasm" or sys.platform == "emscripten" else "torch"


def make_executor(args: ExecutorArgs) -> Executor:
    """The executor for this machine.

    Raises:
        ValueError: if the model or a knob cannot be used.
    """
    return EXECUTORS[choose_executor(args.device)](args)
