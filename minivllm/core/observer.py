"""Who looks on: told what came in, what was planned and what that brought, and never asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from minivllm.core.output import SchedulerOutput, TokenIds
from minivllm.core.request import Request, RequestStatus

if TYPE_CHECKING:
    from minivllm.core.scheduler import Scheduler


class SchedulerObserver(Protocol):
    """What a scheduler tells. Each call comes when the thing has happened."""

    def begin(self, scheduler: Scheduler) -> None:
        """A scheduler was built; it will tell of itself from now on."""

    def request_added(self, request: Request) -> None:
        """A request came in, and was queued or (FINISHED_IGNORED) refused."""

    def requests_finished(self, requests: Sequence[Request], status: RequestStatus) -> None:
        """Requests were ended from outside."""

    def tokens_proposed(self, draft_token_ids: Mapping[str, Sequence[int]]) -> None:
        """These requests were given proposed tokens, for the next step to verify."""

    def step_planned(self, output: SchedulerOutput) -> None:
        """`schedule()` has decided."""

    def step_updated(
        self,
        output: SchedulerOutput,
        sampled_token_ids: Mapping[str, TokenIds],
        finished: Sequence[Request],
    ) -> None:
        """The tokens of a plan are in, and these requests have ended with them."""
