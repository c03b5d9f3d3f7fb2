"""One point of a design space: a model on a machine, the scheduler's knobs, and traffic."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from minivllm.core import SchedulerConfig
from minivllm.core.config import check_int
from minivllm.core.releases import NEWEST
from minivllm.runs.guesses import ACCEPTANCE_RATE
from minivllm.sim.checks import check_number
from minivllm.sim.cost import CostModel, RooflineCost, roofline
from minivllm.sim.hardware import HardwareSpec, get_hardware
from minivllm.sim.models import ModelSpec, get_model
from minivllm.sim.results import SLO, SimResult
from minivllm.sim.simulate import simulate
from minivllm.sim.workload import OpenLoop, Workload

KNOBS = frozenset(f.name for f in fields(SchedulerConfig))
ALIASES = {
    "budget": "max_num_batched_tokens",
    "threshold": "long_prefill_token_threshold",
    "tp": "tensor_parallel",
}
"""Short names, as on the command line."""

MAX_MODEL_LEN = 32_768
"""Default of `max_model_len`, where the model allows it: the longest named mix fits."""


DEFAULT_WORKLOAD = OpenLoop("chat", rate=10.0, duration=120.0)
"""Two minutes of short chats."""


@dataclass(frozen=True)
class SimulationConfig:
    """Everything that a run needs.

    Args:
        workload: who asks for what, and when.
        model: name in `MODELS`, or a `ModelSpec`.
        gpu: name in `HARDWARE`, or a `HardwareSpec`.
        tensor_parallel: GPUs that share the model.
        knobs: of `SchedulerConfig`. `vllm_version` defaults to the newest release that
            `releases.RELEASES` knows, `num_gpu_blocks` to what the memory holds,
            `max_num_seqs` to 256, `max_model_len` to the model's limit, at most `MAX_MODEL_LEN`
            and at most what the cache holds.
        gpu_memory_utilization: share of the memory that may be used.
        seed: of the workload.
        cost: another cost model than the roofline, e.g. a `FittedCost`.
        acceptance_rate: how often a proposed token is right (`num_speculative_tokens`), 0 to 1.
        draft_model: which model proposes, a name or a `ModelSpec`: its weights, keys and values
            take memory, its steps take time. None: proposing is free, as a look-up nearly is.
        until: seconds of simulated time after which the run stops; None: when all is done.

    Raises:
        ValueError: on an unknown name or knob, or a model that does not fit.
    """

    workload: Workload = DEFAULT_WORKLOAD
    model: str | ModelSpec = "llama-3-8b"
    gpu: str | HardwareSpec = "h100"
    tensor_parallel: int = 1
    knobs: dict[str, Any] = field(default_factory=dict)
    gpu_memory_utilization: float = 0.92
    seed: int = 0
    cost: CostModel | None = None
    until: float | None = None
    acceptance_rate: float = ACCEPTANCE_RATE
    draft_model: str | ModelSpec | None = None

    def __post_init__(self) -> None:
        model = get_model(self.model)
        if self.draft_model is not None:
            draft = get_model(self.draft_model)
            if draft.vocab_size != model.vocab_size:
                raise ValueError(
                    f"draft_model: {draft.name} has a vocabulary of {draft.vocab_size} tokens, "
                    f"{model.name} one of {model.vocab_size}; take one of the same tokenizer"
                )
            if not self.knobs.get("num_speculative_tokens"):
                raise ValueError("draft_model: nothing is proposed; set num_speculative_tokens")
        get_hardware(self.gpu)
        check_int("tensor_parallel", self.tensor_parallel, 1)
        check_int("seed", self.seed, 0)
        share = self.gpu_memory_utilization
        check_number("gpu_memory_utilization", share, above=0, most=1)
        check_number("acceptance_rate", self.acceptance_rate, least=0, most=1)
        if self.until is not None:
            check_number("until", self.until, above=0)
        for knob in self.knobs:
            if knob not in KNOBS:
                known = ", ".join(sorted(KNOBS))
                raise ValueError(f"knobs: {knob!r} is not one; known are {known}")

    def roofline(self) -> RooflineCost:
        """The roofline of this model on this machine."""
        block_size = self.knobs.get("block_size", SchedulerConfig.block_size)
        return roofline(
            self.model, self.gpu, tensor_parallel=self.tensor_parallel, block_size=block_size
        )

    def draft_cost(self) -> RooflineCost | None:
        """The roofline of the draft model, on as many GPUs as the model; None without one."""
        if self.draft_model is None:
            return None
        return roofline(self.draft_model, self.gpu, tensor_parallel=self.tensor_parallel)

    def config(self) -> SchedulerConfig:
        """The scheduler's configuration, with the cache as large as the memory allows."""
        knobs: dict[str, Any] = {"vllm_version": NEWEST, "max_num_seqs": 256, **self.knobs}
        draft = None if self.draft_model is None else get_model(self.draft_model)
        if draft is not None:
            knobs.setdefault("num_lookahead_tokens", knobs["num_speculative_tokens"])
        if "num_gpu_blocks" not in knobs:
            knobs["num_gpu_blocks"] = self.roofline().num_kv_blocks(
                gpu_memory_utilization=self.gpu_memory_utilization,
                max_num_batched_tokens=knobs.get(
                    "max_num_batched_tokens", SchedulerConfig.max_num_batched_tokens
                ),
                draft_model=draft,
            )
        if "max_model_len" not in knobs:
            slots = knobs["num_gpu_blocks"] * knobs.get("block_size", SchedulerConfig.block_size)
            limit = min(get_model(self.model).max_position, MAX_MODEL_LEN, slots)
            knobs["max_model_len"] = limit
        return SchedulerConfig(**knobs)

    def with_(self, **changes: Any) -> SimulationConfig:
        """The same with some fields changed: its own, the scheduler's knobs, or the workload's
        (`rate`, `mix`, `users`, ...), whichever has the name; `ALIASES` are understood.

        Raises:
            ValueError: if nothing has the name.
        """
        own: dict[str, Any] = {}
        knobs: dict[str, Any] = {}
        traffic: dict[str, Any] = {}
        workload = changes.get("workload", self.workload)
        for name, value in changes.items():
            alias, name = name, ALIASES.get(name, name)
            if alias != name and name in changes:
                raise ValueError(f"{alias} and {name} are the same: set one of them")
            if name in KNOBS:
                knobs[name] = value
            elif name in {f.name for f in fields(self)}:
                own[name] = value
            elif is_dataclass(workload) and name in {f.name for f in fields(workload)}:
                traffic[name] = value
            else:
                known = {f.name for f in fields(self)} | KNOBS | set(ALIASES)
                if is_dataclass(workload):
                    known |= {f.name for f in fields(workload)}
                raise ValueError(f"{name!r} cannot be set; known are {', '.join(sorted(known))}")
        knobs = {**own.get("knobs", self.knobs), **knobs}
        if traffic:
            own["workload"] = replace(workload, **traffic)
        return replace(self, **{**own, "knobs": knobs})

    def run(self, **options: Any) -> SimResult:
        """Simulate it. `options` are `simulate`'s: `on_refused`, `max_records`, `on_step`."""
        options.setdefault("until", self.until)
        options.setdefault("acceptance_rate", self.acceptance_rate)
        options.setdefault("draft_cost", self.draft_cost())
        return simulate(
            self.workload,
            self.cost if self.cost is not None else self.roofline(),
            self.config(),
            seed=self.seed,
            **options,
        )

    def summary(self, slo: SLO | None = None, **options: Any) -> dict[str, Any]:
        """Simulate it, and give the result as one flat row."""
        return self.run(**options).summary(slo)

    def to_dict(self) -> dict[str, Any]:
        """What was set, as JSON-serialisable data."""
        cost = self.cost if self.cost is not None else self.roofline()
        return {
            "model": get_model(self.model).name,
            "gpu": get_hardware(self.gpu).name,
            "tensor_parallel": self.tensor_parallel,
            "knobs": dict(self.knobs),
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "seed": self.seed,
            "until": self.until,
            "acceptance_rate": self.acceptance_rate,
            "draft_model": None if self.draft_model is None else get_model(self.draft_model).name,
            "cost": cost.to_dict(),
            "workload": self.workload.to_dict(),
        }
