"""The protocol's loop: a line of JSON in, a line out (`minivllm/runs/under_test.py`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, Protocol


class UnderTest(Protocol):
    """One run of a scheduler that is examined."""

    def step(self, message: dict[str, Any]) -> dict[str, Any]:
        """Plan a step."""

    def tokens(self, tokens: dict[str, int]) -> dict[str, Any]:
        """Take its tokens."""


def serve(hello: dict[str, Any], begin: Callable[[dict[str, Any]], UnderTest]) -> None:
    """Answer until the input ends; `begin` makes a run from a configuration."""
    for line in sys.stdin:
        message = json.loads(line)
        answer: dict[str, Any] = {}
        if message["op"] == "hello":
            answer = hello
        elif message["op"] == "begin":
            under = begin(message["config"])
        elif message["op"] == "step":
            answer = under.step(message)
        else:
            answer = under.tokens(message["tokens"])
        print(json.dumps(answer), flush=True)
