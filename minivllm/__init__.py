"""A small, readable LLM serving engine that schedules as vLLM 0.22.1 does.

`import minivllm` needs the standard library only: what needs torch loads on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minivllm.core import SamplingParams
    from minivllm.engine import LLMEngine
    from minivllm.inputs import TextPrompt, TokensPrompt
    from minivllm.llm import LLM
    from minivllm.outputs import CompletionOutput, RequestOutput

__version__ = "0.1.0"

_HOME = {
    "LLM": "minivllm.llm",
    "LLMEngine": "minivllm.engine",
    "SamplingParams": "minivllm.core",
    "CompletionOutput": "minivllm.outputs",
    "RequestOutput": "minivllm.outputs",
    "TextPrompt": "minivllm.inputs",
    "TokensPrompt": "minivllm.inputs",
}

__all__ = [
    "LLM",
    "CompletionOutput",
    "LLMEngine",
    "RequestOutput",
    "SamplingParams",
    "TextPrompt",
    "TokensPrompt",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minivllm' has no attribute {name!r}")
    from minivllm.extras import extra

    with extra("engine", name):
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
