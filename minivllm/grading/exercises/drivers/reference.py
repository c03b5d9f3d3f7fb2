"""The real schedulers, kept for comparison in a kernel whose core is then stripped.

A notebook imports this before it takes a feature out. The judge's child never does, and could not
afterwards: what it takes is gone by then.
"""

from __future__ import annotations

from typing import Any

from minivllm.core import Scheduler, SchedulerConfig
from minivllm.core.request_queue import PriorityRequestQueue
from minivllm.core.victim import priority_key


class PriorityReference(Scheduler):
    """Decides as the core does under `policy="priority"`, whatever becomes of the core."""

    def __init__(self, config: SchedulerConfig, **options: Any) -> None:
        super().__init__(config, **options)
        self.waiting = PriorityRequestQueue()
        self.select_victim = lambda running: max(reversed(running), key=priority_key)
