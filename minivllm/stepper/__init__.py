"""Steppers: one view of the scheduler, fed by a kernel, by the reader's browser, or by a recording.

Standard library only, so that the same files run in CPython and in Pyodide; all but
`SchedulerStepper`, which needs anywidget and loads on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minivllm.runs.scenario import (
        Scenario,
        ScenarioError,
        ScenarioRequest,
        with_arrival_pattern,
    )
    from minivllm.runs.scenarios import SCENARIOS
    from minivllm.stepper.session import StepperSession, record
    from minivllm.stepper.widget import SchedulerStepper

_HOME = {
    "Scenario": "minivllm.runs.scenario",
    "ScenarioError": "minivllm.runs.scenario",
    "ScenarioRequest": "minivllm.runs.scenario",
    "with_arrival_pattern": "minivllm.runs.scenario",
    "SCENARIOS": "minivllm.runs.scenarios",
    "StepperSession": "minivllm.stepper.session",
    "record": "minivllm.stepper.session",
    "SchedulerStepper": "minivllm.stepper.widget",
}

__all__ = [
    "SCENARIOS",
    "Scenario",
    "ScenarioError",
    "ScenarioRequest",
    "SchedulerStepper",
    "StepperSession",
    "record",
    "with_arrival_pattern",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minivllm.stepper' has no attribute {name!r}")
    from minivllm.extras import extra

    with extra("notebook", name):
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
