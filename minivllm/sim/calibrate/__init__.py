"""From steps of the real engine to a cost model, and how far it is off.

    python -m minivllm.sim.calibrate --out cpu.json

runs the default model here for some minutes: a set of workloads to fit to, and others to judge by,
in turns, so that a machine that slows down slows both. Each request is handed to the engine when it
is due, as a server would, and every step's load and seconds are written down; idle time is skipped.

The seconds are those that this process spends on the CPU, with one thread unless told otherwise:
on a machine that does other work too, waiting for a core is not the engine's. `--clock wall` counts
it in. And they are counted at the pace of a `Reference`, unless `--no-pace` is given.

Needs torch (the engine); the fit itself, and reading what was saved, do not.
"""

from __future__ import annotations

from minivllm.sim.calibrate.clock import CLOCKS, Reference, ReplayClock
from minivllm.sim.calibrate.fitting import fit
from minivllm.sim.calibrate.host import describe, measure_host
from minivllm.sim.calibrate.judgement import (
    JUDGED,
    METRICS,
    TARGET,
    Calibration,
    Validation,
    compare,
    recorded,
)
from minivllm.sim.calibrate.session import calibrate, judge, make_engine, measure
from minivllm.sim.calibrate.steps import MeasuredRun, replay
from minivllm.sim.calibrate.workloads import HELD_OUT, SHORT, TRAINING, WIDE

__all__ = [
    "CLOCKS",
    "HELD_OUT",
    "JUDGED",
    "METRICS",
    "SHORT",
    "TARGET",
    "TRAINING",
    "WIDE",
    "Calibration",
    "MeasuredRun",
    "Reference",
    "ReplayClock",
    "Validation",
    "calibrate",
    "compare",
    "describe",
    "fit",
    "judge",
    "make_engine",
    "measure",
    "measure_host",
    "recorded",
    "replay",
]
