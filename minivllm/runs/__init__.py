"""Runs as data: what goes in, what was decided, told and replayed. Standard library only.

`scenario` and `scenarios` are inputs, `drive` runs them without a model, `recorder` and `input_log`
observe a scheduler and write its history (`snapshot`), `replay` runs that again, `recording` and
`recorded` are a real server's run, written and replayed, `explain` tells a step in sentences, and
`conformance` compares a run with vLLM's.
"""

from __future__ import annotations

from typing import Literal

from minivllm.core import Scheduler
from minivllm.runs.input_log import InputLog
from minivllm.runs.recorder import Recorder
from minivllm.runs.replay import replay
from minivllm.runs.snapshot import SNAPSHOT_VERSION, History, Snapshot

__all__ = [
    "SNAPSHOT_VERSION",
    "History",
    "InputLog",
    "Recorder",
    "Snapshot",
    "make_observer",
    "observe",
    "replay",
]


def make_observer(record: bool | Literal["eager"]) -> InputLog | Recorder | None:
    """The observer that `record` asks for.

    Args:
        record: True: the inputs are noted, and snapshots are made from them when somebody looks;
            "eager": each step's is made as it happens, which takes many times the step itself.

    Raises:
        ValueError: if `record` is none of True, False and "eager".
    """
    if record not in (True, False, "eager"):
        raise ValueError(f"record must be True, False or 'eager', got {record!r}")
    if not record:
        return None
    return Recorder() if record == "eager" else InputLog()


def observe(scheduler: Scheduler) -> Scheduler:
    """The same scheduler, which from now on keeps a `history`; it must be new.

    Raises:
        ValueError: if it has run already, or has another observer.
    """
    if scheduler.observer is not None or scheduler.step or scheduler.requests:
        raise ValueError("only a new scheduler that has no observer can be observed")
    # A subclass may be built by more than its configuration, or decide by more than its inputs.
    scheduler.observer = InputLog() if type(scheduler) is Scheduler else Recorder()
    scheduler.observer.begin(scheduler)
    return scheduler
