"""Prompts in every n-th step only: the steps between belong to the decodes.

A chunk of a prompt makes its step longer, and every decode in that step waits for it. Gathered
into fewer steps, prompts disturb fewer decodes, and take longer themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from minivllm.core.output import SchedulerOutput
from minivllm.core.request import Request


class PrefillCadence:
    """Says which steps hold prompts back (`prefill_schedule_interval`), for one engine.

    Args:
        interval: steps from one with prompt tokens to the next, at least 1; 1: none is held.
        notes_chunks: keep each request's `is_prefill_chunk` even so.

    Source: v0.33.0:vllm/v1/core/sched/scheduler.py:404.
    """

    def __init__(self, interval: int, notes_chunks: bool = False) -> None:
        self.interval = interval
        self.notes_chunks = notes_chunks
        self.num_steps = 0
        """Steps that had tokens."""
        self.last_prefill_step = -interval
        self.is_behind = False
        """Whether the last step that admitted left somebody waiting: then nobody is held."""

    def holds(self, running: Iterable[Request]) -> bool:
        """Whether the step to come only decodes. It has to have something to decode."""
        return (
            self.interval > 1
            and not self.is_behind
            and self.num_steps + 1 - self.last_prefill_step < self.interval
            and any(not request.is_prefill_chunk for request in running)
        )

    def planned(self, output: SchedulerOutput, num_waiting: int) -> None:
        """Note what a step was given; its tokens are not counted as computed yet."""
        if self.interval == 1 and not self.notes_chunks:
            return
        if not output.holds_prefills and not output.preempted_req_ids:
            self.is_behind = num_waiting > 0
        self.num_steps += bool(output.num_scheduled_tokens)
        if any(r.is_prefill_chunk for r in self._running(output)) or any(
            request.num_computed_tokens < request.num_tokens - 1
            for request in (*output.scheduled_new_reqs, *output.scheduled_resumed_reqs)
        ):
            self.last_prefill_step = self.num_steps
        for request in (
            *output.scheduled_running_reqs,
            *output.scheduled_new_reqs,
            *output.scheduled_resumed_reqs,
        ):
            num_tokens = output.num_scheduled_tokens[request.request_id]
            request.is_prefill_chunk = request.num_computed_tokens + num_tokens < request.num_tokens

    def _running(self, output: SchedulerOutput) -> Sequence[Request]:
        """Who went on in this step, the victims that had been given tokens before they yielded."""
        victims = (
            p.victim for p in output.preemptions if p.victim.request_id in p.num_scheduled_tokens
        )
        return [*output.scheduled_running_reqs, *victims]
