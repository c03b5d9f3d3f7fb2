"""What the engine asks of whoever proposes tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from minivllm.core.output import SchedulerOutput
from minivllm.core.request import Request


class Proposer(Protocol):
    """`NgramProposer`, `DraftModelProposer`, or another."""

    def follow(self, plan: SchedulerOutput) -> None:
        """A plan was carried out; the scheduler has not been told yet what came of it."""

    def propose(self, most: Mapping[Request, int]) -> dict[str, list[int]]:
        """At most so many tokens for each request, by its id."""

    def forget_requests(self) -> None:
        """No request goes on."""
