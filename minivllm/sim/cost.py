"""What a step costs: from the batch to seconds.

A step is measured by a few sums over its requests (`StepLoad`); a cost model turns them into a
time. `RooflineCost` computes it from the shapes of a model and the peaks of a machine.
`FittedCost` takes it from steps of the real engine (`minivllm.sim.calibrate`).

Only +, ×, ÷ and max: the same numbers come out on every IEEE machine, a browser's included. (And
`math.fsum`, which rounds once; `sum` adds floats otherwise since Python 3.12.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from minivllm.core.config import check_int
from minivllm.core.output import SchedulerOutput
from minivllm.core.request import Request
from minivllm.sim.checks import check_number
from minivllm.sim.hardware import GIB, HardwareSpec, get_hardware
from minivllm.sim.models import ModelSpec, get_model
from minivllm.text_file import read_json


def scheduled_requests(plan: SchedulerOutput) -> Iterator[Request]:
    """Every request that computes something in a step: the running, then the admitted."""
    return chain(plan.scheduled_running_reqs, plan.scheduled_resumed_reqs, plan.scheduled_new_reqs)


@dataclass(slots=True)
class StepLoad:
    """A batch in numbers: all that a cost model may look at."""

    num_reqs: int = 0
    num_tokens: int = 0
    """Tokens computed: one of each decoding request, and the chunks of prompts."""
    num_sampled: int = 0
    """Positions that pass the output projection: the last of each request that gets a token, and
    those of proposed tokens."""
    kv_tokens: int = 0
    """Cached tokens read: the context of every request once, this step's tokens included."""
    attention_pairs: int = 0
    """(query token, context token) pairs: what attention multiplies."""
    swap_blocks: int = 0
    """Blocks copied between GPU and CPU, out and in."""

    def add(self, num_scheduled_tokens: int, context: int, sampled: int) -> None:
        """Count one request in: `context` tokens are computed once this step is done, and the last
        `sampled` of them pass the output projection (one, or with proposed tokens one more each).

        The i-th last of its n new tokens looks at `context - i` tokens, itself included.
        """
        self.num_reqs += 1
        self.num_tokens += num_scheduled_tokens
        self.num_sampled += sampled
        self.kv_tokens += context
        self.attention_pairs += (
            num_scheduled_tokens * context - num_scheduled_tokens * (num_scheduled_tokens - 1) // 2
        )

    @classmethod
    def of_plan(cls, plan: SchedulerOutput) -> StepLoad:
        """The load of a step that the scheduler has planned."""
        load = cls(swap_blocks=len(plan.blocks_to_swap_out) + len(plan.blocks_to_swap_in))
        num_tokens = plan.num_scheduled_tokens
        for request in scheduled_requests(plan):
            computed = request.num_computed_tokens
            num_sampled = max(computed - request.num_tokens + 1, 0)
            load.add(num_tokens[request.request_id], computed, num_sampled)
        return load

    @classmethod
    def of_decode(cls, requests: Sequence[Request], swap_blocks: int = 0) -> StepLoad:
        """The load of a step in which each of `requests` decodes one token: the common case."""
        context = sum([request.num_computed_tokens for request in requests])
        count = len(requests)
        return cls(count, count, count, context, context, swap_blocks)


class CostModel(Protocol):
    """Anything that can price a step."""

    @property
    def name(self) -> str:
        """For tables and titles."""

    def step_time(self, load: StepLoad) -> float:
        """Seconds that the step takes."""

    def to_dict(self) -> dict[str, Any]:
        """What it was made of, as JSON-serialisable data."""


@dataclass(frozen=True)
class RooflineCost:
    """Each part of a step takes as long as its slower half: arithmetic, or memory traffic.

    The parts follow one another, so their times add up:

    - matrix products: 2 FLOPs for each weight and token, against reading every weight once;
    - attention: 2 · 2 FLOPs for each pair and head dimension, against reading the context's
      keys and values;
    - with tensor parallelism, two all-reduces in each layer;
    - swapped blocks over PCIe, one copy for each block and layer, keys and values apart;
    - a fixed overhead.

    Not in it: activations' traffic, tile quantisation (a chunk of 257 tokens costs one of 384 on
    some kernels), CUDA-graph boundaries, pipeline parallelism. Source of the idea: Williams et
    al. 2009; for transformers, e.g. Pope et al. 2022, §2.

    Args:
        model: shapes.
        hardware: peaks and efficiencies.
        tensor_parallel: GPUs that share every matrix; must divide the attention heads.
        block_size: of a swapped block, in tokens.
    """

    model: ModelSpec
    hardware: HardwareSpec
    tensor_parallel: int = 1
    block_size: int = 16
    # Derived once: seconds for each unit of load.
    _flop: float = field(init=False, repr=False)
    _byte: float = field(init=False, repr=False)
    _weights: float = field(init=False, repr=False)
    _kv_token: float = field(init=False, repr=False)
    _fixed: float = field(init=False, repr=False)
    _token_link: float = field(init=False, repr=False)
    _swap_block: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        model, hardware, tp = self.model, self.hardware, self.tensor_parallel
        if isinstance(tp, bool) or not isinstance(tp, int) or tp < 1 or model.num_heads % tp:
            raise ValueError(
                f"tensor_parallel must divide the {model.num_heads} attention heads of "
                f"{model.name}, got {tp!r}"
            )
        check_int("block_size", self.block_size, 1)
        width = hardware.bytes_per_value
        derived = {
            "_flop": 1.0 / (hardware.peak_flops * hardware.flops_efficiency * tp),
            "_byte": 1.0 / (hardware.memory_bandwidth * hardware.bandwidth_efficiency * tp),
        }
        derived["_weights"] = (model.body_params + model.head_params) * width * derived["_byte"]
        kv_bytes = model.kv_bytes_per_token(width, tp)
        derived["_kv_token"] = kv_bytes * derived["_byte"]
        num_allreduces = 2 * model.num_layers if tp > 1 else 0
        derived["_fixed"] = hardware.step_overhead + num_allreduces * hardware.link_latency
        # A ring all-reduce sends every byte 2 (tp - 1) / tp times (Patarasuk and Yuan 2009).
        sent = 2.0 * (tp - 1) / tp * model.hidden_size * width
        derived["_token_link"] = num_allreduces * sent / hardware.link_bandwidth
        # Each GPU copies its own part over its own PCIe link, at the same time as the others.
        copies = 2 * model.num_layers
        derived["_swap_block"] = (
            copies * hardware.copy_latency
            + self.block_size * kv_bytes / tp / hardware.pcie_bandwidth
        )
        for key, value in derived.items():
            object.__setattr__(self, key, value)

    @property
    def name(self) -> str:
        count = f"{self.tensor_parallel}x " if self.tensor_parallel > 1 else ""
        return f"{self.model.name} on {count}{self.hardware.name}"

    def parts(self, load: StepLoad) -> dict[str, float]:
        """Seconds of each part: `linear`, `attention`, `allreduce`, `swap`, `fixed`."""
        model = self.model
        products = model.body_params * load.num_tokens + model.head_params * load.num_sampled
        return {
            "linear": max(2.0 * products * self._flop, self._weights),
            "attention": max(
                model.attention_flops * load.attention_pairs * self._flop,
                load.kv_tokens * self._kv_token,
            ),
            "allreduce": load.num_tokens * self._token_link,
            "swap": load.swap_blocks * self._swap_block,
            "fixed": self._fixed,
        }

    def step_time(self, load: StepLoad) -> float:
        parts = self.parts(load)
        if load.num_tokens == 0:  # nothing but copies
            return parts["swap"] + parts["fixed"]
        return math.fsum(parts.values())

    def num_kv_blocks(
        self,
        *,
        gpu_memory_utilization: float = 0.92,
        max_num_batched_tokens: int = 2048,
        draft_model: ModelSpec | None = None,
    ) -> int:
        """Blocks of KV cache that the memory holds besides weights and activations.

        vLLM measures the peak of a profiling run (vllm/v1/worker/gpu_worker.py,
        `determine_available_memory`). Here: the weights, the widest activations of a full step,
        and 1 GiB on each GPU for the CUDA context and its graphs (an assumption). A draft model's
        weights are there too, and each block holds its keys and values beside the model's.

        Raises:
            ValueError: if the weights alone do not fit.
        """
        model, hardware, tp = self.model, self.hardware, self.tensor_parallel
        share = check_number("gpu_memory_utilization", gpu_memory_utilization, above=0, most=1)
        width = hardware.bytes_per_value
        weights = model.num_params * width
        # Residual stream, its normed copy and the MLP's inner values, for every token of a step.
        inner = 4 * model.hidden_size + 2 * model.intermediate_size // tp
        activations = tp * max_num_batched_tokens * inner * width
        budget = hardware.memory_bytes * share * tp
        left = budget - weights - activations - tp * GIB
        slot = model.kv_bytes_per_token(width, tp)
        if draft_model is not None:
            left -= draft_model.num_params * width
            slot += draft_model.kv_bytes_per_token(width, tp)
        blocks = int(left // (self.block_size * slot))
        if blocks < 1:
            raise ValueError(
                f"{model.name} needs {weights / 1e9:.1f} GB for its weights and "
                f"{(activations + tp * GIB) / 1e9:.1f} GB besides; gpu_memory_utilization="
                f"{share:g} of {tp} x {hardware.memory_bytes / 1e9:.0f} GB is "
                f"{budget / 1e9:.1f} GB. Raise tensor_parallel or take a larger gpu."
            )
        return blocks

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "roofline",
            "model": self.model.name,
            "hardware": asdict(self.hardware),
            "tensor_parallel": self.tensor_parallel,
            "block_size": self.block_size,
        }


def roofline(
    model: str | ModelSpec,
    gpu: str | HardwareSpec,
    *,
    tensor_parallel: int = 1,
    block_size: int = 16,
) -> RooflineCost:
    """`RooflineCost` of a model and a machine by their names.

    Raises:
        ValueError: on an unknown name, or a `tensor_parallel` that the model cannot be cut into.
    """
    return RooflineCost(get_model(model), get_hardware(gpu), tensor_parallel, block_size)


@dataclass(frozen=True)
class FixedCost:
    """Every step takes the same time. For tests, and for queueing theory."""

    seconds: float

    def __post_init__(self) -> None:
        check_number("seconds", self.seconds, above=0)

    @property
    def name(self) -> str:
        return f"{self.seconds:g} s a step"

    def step_time(self, load: StepLoad) -> float:
        return self.seconds

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "fixed", "seconds": self.seconds}


LINEAR_FEATURES = ("num_reqs", "num_sampled", "kv_tokens", "attention_pairs", "swap_blocks")


@dataclass(frozen=True)
class FittedCost:
    """Step times of a real engine: a line in each feature, bent at knots in the tokens.

    time = constant + Σ coefficient · feature + Σ slope · max(0, num_tokens - knot)
         + bump of num_tokens, if it has one

    The bends are what a roofline has too: a few tokens cost as much as one (the weights are read
    anyway), many cost in proportion; the knot at 0 is the plain cost of a token. No feature's
    coefficient is negative, and no stretch between two knots slopes down. A bump is what no
    roofline has: matrix products of some few rows are slower than of one row more.
    """

    constant: float
    linear: dict[str, float]
    """Seconds for each unit of a feature of `LINEAR_FEATURES`."""
    slopes: dict[int, float]
    """Knot -> seconds added for each token beyond it; negative where the line gets flatter."""
    title: str = "fitted"
    error: dict[str, float] = field(default_factory=dict)
    """How well it fits: see `minivllm.sim.calibrate.fit`."""
    about: dict[str, Any] = field(default_factory=dict)
    """What was measured: model, threads, versions, date."""
    bumps: dict[int, float] = field(default_factory=dict)
    """Number of tokens -> seconds added to a step of exactly so many."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.linear) - set(LINEAR_FEATURES))
        if unknown:
            raise ValueError(
                f"linear: unknown feature {unknown[0]!r}; known are {', '.join(LINEAR_FEATURES)}"
            )
        check_number("constant", self.constant, least=0)
        for name, value in [*self.linear.items(), *self.bumps.items()]:
            check_number(f"coefficient of {name}", value, least=0)
        slope = 0.0  # of the stretch so far; differences of slopes may be off by a rounding
        for knot in sorted(self.slopes):
            change = self.slopes[knot]
            slope += check_number(f"coefficient of {knot}", change, least=-slope - 1e-12)

    @property
    def name(self) -> str:
        return self.title

    def step_time(self, load: StepLoad) -> float:
        seconds = self.constant
        for feature, value in self.linear.items():
            seconds += value * getattr(load, feature)
        for knot, slope in self.slopes.items():
            if load.num_tokens > knot:
                seconds += slope * (load.num_tokens - knot)
        if load.num_tokens in self.bumps:
            seconds += self.bumps[load.num_tokens]
        return seconds

    def to_dict(self) -> dict[str, Any]:
        data = asdict(self)
        for part in ("slopes", "bumps"):
            data[part] = {str(tokens): seconds for tokens, seconds in data[part].items()}
        return {"kind": "fitted", **data}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FittedCost:
        """The inverse of `to_dict`.

        Raises:
            ValueError: if a part is missing or not a number.
        """
        try:
            return cls(
                constant=data["constant"],
                linear=dict(data["linear"]),
                slopes={int(knot): slope for knot, slope in data["slopes"].items()},
                title=data.get("title", "fitted"),
                error=dict(data.get("error", {})),
                about=dict(data.get("about", {})),
                bumps={int(tokens): bump for tokens, bump in data.get("bumps", {}).items()},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a fitted cost model: {error!r}") from error

    def save(self, path: str | Path) -> None:
        """Write it as JSON, with its error."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> FittedCost:
        """Read what `save` wrote.

        Raises:
            ValueError: naming the file and what is wrong with it.
            OSError: if there is no such file.
        """
        data = read_json(path)
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{Path(path).name}: {error}") from None


def mean_relative_error(cost: CostModel, steps: Iterable[tuple[StepLoad, float]]) -> float:
    """Mean of |predicted - measured| / measured over steps."""
    errors = [abs(cost.step_time(load) - seconds) / seconds for load, seconds in steps]
    return sum(errors) / len(errors)
