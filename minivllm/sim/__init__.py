"""The simulator: the same scheduler under a simulated clock.

    from minivllm.sim import OpenLoop, SimulationConfig

    setup = SimulationConfig(OpenLoop("chat", 20, duration=600), "llama-3-8b", "h100")
    print(setup.run().table())

Standard library only, figures and calibration apart. Read in this order: `simulate` (the loop),
`cost` (what a step costs), `workload` (who asks for what), `results`, `config`, `sweep`,
`handover`, `measured`. On the command line: `python -m minivllm.sim --help`.
"""

from __future__ import annotations

from minivllm.sim.config import SimulationConfig
from minivllm.sim.cost import CostModel, FittedCost, FixedCost, RooflineCost, StepLoad, roofline
from minivllm.sim.handover import llm_arguments, vllm_bench, vllm_serve, without_flag
from minivllm.sim.hardware import HARDWARE, HardwareSpec, get_hardware
from minivllm.sim.lengths import Constant, Empirical, LogNormal, UniformLength
from minivllm.sim.measured import (
    BenchResult,
    comparison_table,
    read_bench,
    read_benches,
    side_by_side,
    unlike,
)
from minivllm.sim.models import MODELS, ModelSpec, get_model
from minivllm.sim.results import SLO, LittlesLaw, RequestRecord, SimResult
from minivllm.sim.simulate import Simulation, simulate
from minivllm.sim.sweep import pareto_front, read_results, sweep
from minivllm.sim.trace import Trace
from minivllm.sim.workload import (
    MIXES,
    Arrival,
    ClosedLoop,
    Mix,
    OpenLoop,
    RequestClass,
    Workload,
    get_mix,
)

__all__ = [
    "HARDWARE",
    "MIXES",
    "MODELS",
    "SLO",
    "Arrival",
    "BenchResult",
    "ClosedLoop",
    "Constant",
    "CostModel",
    "Empirical",
    "FittedCost",
    "FixedCost",
    "HardwareSpec",
    "LittlesLaw",
    "LogNormal",
    "Mix",
    "ModelSpec",
    "OpenLoop",
    "RequestClass",
    "RequestRecord",
    "RooflineCost",
    "SimResult",
    "Simulation",
    "SimulationConfig",
    "StepLoad",
    "Trace",
    "UniformLength",
    "Workload",
    "comparison_table",
    "get_hardware",
    "get_mix",
    "get_model",
    "llm_arguments",
    "pareto_front",
    "read_bench",
    "read_benches",
    "read_results",
    "roofline",
    "side_by_side",
    "simulate",
    "sweep",
    "unlike",
    "vllm_bench",
    "vllm_serve",
    "without_flag",
]
