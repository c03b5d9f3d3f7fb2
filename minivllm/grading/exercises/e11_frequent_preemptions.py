"""Exercise 11: a server that preempts all day, and the three knobs that stop it."""

from __future__ import annotations

from functools import cache
from typing import Any

from minivllm.core.releases import REFERENCE
from minivllm.grading.part import Failed, Part, want_dict, want_int, want_number, want_str
from minivllm.sim import OpenLoop, SimResult, SimulationConfig

TITLE = "Frequent preemptions"
CHAPTER = "06-preemption"

BASE: dict[str, Any] = {
    "gpu_memory_utilization": 0.92,
    "max_num_seqs": 96,
    "max_num_batched_tokens": 2048,
    "tensor_parallel_size": 1,
}
RATE, SECONDS = 6.5, 60.0
HINTED_SEEDS = (4, 1)
"""The minutes on which the notebook tells its reader to try a knob."""
SEEDS_OF_A = (*HINTED_SEEDS, 111, 104)
RARE = 0.01
"""Preemptions for each finished request."""

FIXES = ("gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens")


def scenario(seed: int = 0, **knobs: Any) -> SimulationConfig:
    """A minute of ShareGPT-like traffic on one A10, with some knobs turned."""
    setting = {**BASE, **knobs}
    return SimulationConfig(
        OpenLoop("sharegpt", RATE, duration=SECONDS),
        model="llama-3-8b",
        gpu="a10",
        tensor_parallel=setting["tensor_parallel_size"],
        gpu_memory_utilization=setting["gpu_memory_utilization"],
        knobs={
            "vllm_version": REFERENCE,
            "max_num_seqs": setting["max_num_seqs"],
            "max_num_batched_tokens": setting["max_num_batched_tokens"],
        },
        seed=seed,
    )


@cache
def _run(seed: int, knobs: tuple[tuple[str, Any], ...]) -> SimResult:
    return scenario(seed, **dict(knobs)).run()


def run(seed: int = 0, **knobs: Any) -> SimResult:
    """Simulate it."""
    return _run(seed, tuple(sorted(knobs.items())))


def preemptions(result: SimResult) -> float:
    """Preemptions for each finished request."""
    return float(result.stats["num_preemptions"] / max(1, result.num_finished))


# --- a: turn each knob alone ----------------------------------------------------------------------


def check_fixes(value: object) -> None:
    """Part a: `fixes`, three knobs, each of which alone stops the preemptions."""
    given = want_dict(value, "fixes", keys=FIXES)
    fixes: dict[str, Any] = {
        "gpu_memory_utilization": want_number(
            given[FIXES[0]], f"fixes[{FIXES[0]!r}]", low=0.5, high=0.99
        ),
        "max_num_seqs": want_int(given[FIXES[1]], f"fixes[{FIXES[1]!r}]", low=1, high=1024),
        "max_num_batched_tokens": want_int(
            given[FIXES[2]], f"fixes[{FIXES[2]!r}]", low=1, high=65_536
        ),
    }
    budget = fixes["max_num_batched_tokens"]
    if budget < BASE["max_num_seqs"]:
        raise Failed(
            f"max_num_batched_tokens={budget} is less than max_num_seqs={BASE['max_num_seqs']}: "
            f"vLLM does not start so, since not even one token for each request would fit into a "
            f"step. Each knob is turned alone."
        )
    for name, setting in fixes.items():
        if setting == BASE[name]:
            raise Failed(f"fixes[{name!r}] is {setting}: that is how the server runs now.")
        for seed in SEEDS_OF_A:
            try:
                share = preemptions(run(seed, **{name: setting}))
            except ValueError as error:  # no room for the weights, or for one request
                raise Failed(f"With {name}={setting} the server cannot run: {error}") from None
            if share > RARE:
                unseen = "" if seed in HINTED_SEEDS else ", a minute that you have not seen"
                raise Failed(
                    f"With {name}={setting}, and the rest as it was, there are still "
                    f"{100 * share:.2g} preemptions for 100 requests in "
                    f"run({seed}, {name}={setting}){unseen}. {_direction(name, setting)}"
                )
        halfway = (setting + BASE[name]) / 2
        if isinstance(setting, int):
            halfway = round(halfway)
        if all(preemptions(run(seed, **{name: halfway})) <= RARE for seed in SEEDS_OF_A):
            raise Failed(
                f"{name}={setting} stops the preemptions, and so does {halfway:g}, half-way "
                f"between yours and the old one: it is turned further than needed, and each turn "
                f"has its price."
            )


def _direction(name: str, setting: float) -> str:
    wrong_way = (setting < BASE[name]) == (name == "gpu_memory_utilization")
    if wrong_way:
        return {
            "gpu_memory_utilization": "Less memory holds fewer blocks.",
            "max_num_seqs": "More requests at once want more blocks.",
            "max_num_batched_tokens": "A larger budget lets prompts in faster.",
        }[name]
    return {
        "gpu_memory_utilization": "How many blocks does the busiest minute want?",
        "max_num_seqs": (
            "Divide the slots of the cache by what a request holds at a random moment: its prompt, "
            "and more than half of the mean output, since long answers stay longer; then leave a "
            "sixth for a minute with many of them."
        ),
        "max_num_batched_tokens": (
            "This knob works by slowing admission down: tokens of prompts that enter in a second "
            "are what the decodes leave of the budget, times the steps of a second. Only a budget "
            "close to the number of running requests leaves them little."
        ),
    }[name]


# --- b: what each fix costs -----------------------------------------------------------------------

TURNS: dict[str, Any] = {
    "gpu_memory_utilization": 0.95,
    "max_num_seqs": 48,
    "max_num_batched_tokens": 8192,
    "tensor_parallel_size": 2,
}
METRICS = ("p50_ttft", "p50_itl", "output_throughput")
TRENDS = ("better", "same", "worse")
SEEDS = (2, 3)
"""The minutes that part b compares."""
SAME = 0.03
"""A change that is smaller counts as none."""
BORDER = 0.01
"""Within so much of `SAME` both verdicts are right."""


def metric_of(result: SimResult, metric: str) -> float:
    """A metric of a run: seconds, or tokens a second."""
    if metric == "output_throughput":
        return result.output_throughput
    return result.percentile(metric.removeprefix("p50_"), 50)


def measured(metric: str, **knobs: Any) -> float:
    """What part b compares: the mean of a metric over the minutes of `SEEDS`."""
    return sum(metric_of(run(seed, **knobs), metric) for seed in SEEDS) / len(SEEDS)


def compare(**knobs: Any) -> dict[str, tuple[float, float]]:
    """Each metric as it is and with some knobs turned: exactly what the judge compares."""
    return {metric: (measured(metric), measured(metric, **knobs)) for metric in METRICS}


def trends(metric: str, before: float, after: float) -> list[str]:
    """What may be said of a change: one word, or two near the border."""
    change = after / before - 1
    moved = "better" if (change > 0) == (metric == "output_throughput") else "worse"
    found = ["same"] if abs(change) < SAME + BORDER else []
    return [*found, moved] if abs(change) > SAME - BORDER else found


def check_consequences(value: object) -> None:
    """Part b: `prices`, for each of four turns the blocks and three trends."""
    given = want_dict(value, "prices", keys=tuple(TURNS))
    keys = ("num_gpu_blocks", *METRICS)
    rows = {name: want_dict(given[name], f"prices[{name!r}]", keys=keys) for name in TURNS}
    for name, setting in TURNS.items():
        what = f"prices[{name!r}]['num_gpu_blocks']"
        number = want_int(rows[name]["num_gpu_blocks"], what, low=0, high=10_000_000)
        blocks = scenario(0, **{name: setting}).config().num_gpu_blocks
        if abs(number - blocks) > 0.01 * blocks:
            hint = _blocks_hint(name, number)
            raise Failed(f"{what}, with {name}={setting}, is {number}. {hint}")
    for name, setting in TURNS.items():
        for metric in METRICS:
            what = f"prices[{name!r}][{metric!r}]"
            said = want_str(rows[name][metric], what, choices=TRENDS)
            before, after = measured(metric), measured(metric, **{name: setting})
            if said not in trends(metric, before, after):
                unit = "tokens/s" if metric == "output_throughput" else "s"
                raise Failed(
                    f"{what}, with {name}={setting}, is not {said!r}: the mean of seeds "
                    f"{' and '.join(map(str, SEEDS))} is {before:.4g} {unit} as it is and "
                    f"{after:.4g} {unit} then. {_trend_hint(metric)}"
                )


def _blocks_hint(name: str, number: int) -> str:
    if number == scenario().config().num_gpu_blocks:
        return (
            "That is what the server has now. Weights, activations of a full step and the cache "
            "share the memory: which of them does this knob move?"
        )
    if name == "tensor_parallel_size":
        return (
            "Both GPUs together hold the weights once: what was left on one GPU is not what is "
            "left on each of two."
        )
    return "Ask `roofline(...).num_kv_blocks(...)` with both of its arguments as they are then."


def _trend_hint(metric: str) -> str:
    return {
        "p50_ttft": (
            "Somebody who is not let in waits in the queue; somebody who is preempted is computed "
            "again while others wait. Which of the two does this knob make more of?"
        ),
        "p50_itl": (
            "The median pause between two tokens is a step that only decodes: preemptions are far "
            "out in the tail. How many requests are in such a step now, and how fast is it read?"
        ),
        "output_throughput": (
            "Tokens that are computed twice count once; and a step reads the weights once, however "
            "many requests share it. Which of the two moves here, and is it 3 %?"
        ),
    }[metric]


# --- c: the code ----------------------------------------------------------------------------------

LINES: dict[str, dict[str, tuple[int, ...]]] = {
    "gpu_memory_utilization": {
        "vllm/v1/worker/gpu_worker.py": (300, 447, 448),
        "vllm/v1/worker/utils.py": (408, 409),
    },
    "max_num_seqs": {"vllm/v1/core/sched/scheduler.py": (103, 549, 830)},
    "max_num_batched_tokens": {
        "vllm/v1/core/sched/scheduler.py": (
            *(104, 105, 106, 107, 348, 366, 392, 465, 498, 548, 663, 669, 802, 827, 829),
        )
    },
}
"""Where each knob's number is used, in vLLM 0.22.1; in the book's words:
vllm/v1/worker/gpu_worker.py:447, vllm/v1/core/sched/scheduler.py:549 and
vllm/v1/core/sched/scheduler.py:348."""


def check_lines(value: object) -> None:
    """Part c: `lines`, for each knob a line of vLLM where it acts."""
    given = want_dict(value, "lines", keys=FIXES)
    for name in FIXES:
        what = f"lines[{name!r}]"
        text = want_str(given[name], what).strip().replace("#L", ":").replace(" ", "")
        path, _, number = text.rpartition(":")
        if not path.endswith(".py") or not number.isdecimal():
            raise Failed(f'{what} should look like "scheduler.py:123", got {text[:80]!r}.')
        if int(number[:9]) in _lines_of(name, path):
            continue
        owner = next((other for other in FIXES if int(number[:9]) in _lines_of(other, path)), "")
        if owner:
            raise Failed(f"{what} is {text[:80]}: at that line another knob acts, {owner}.")
        if any(_names(known, path) for known in LINES[name]):
            raise Failed(
                f"{what} is {text[:80]}: the right file, but at that line the knob decides "
                f"nothing. An assertion, or a line that only passes it on, is not it."
            )
        raise Failed(
            f"{what} is {text[:80]}. Where does this knob's number meet what it limits: memory "
            f"when the server starts, the batch at admission, or tokens in a step?"
        )


def _names(known: str, path: str) -> bool:
    return f"/{known}".endswith("/" + path.lstrip("/")) or path.endswith(known)


def _lines_of(name: str, path: str) -> tuple[int, ...]:
    return tuple(n for known, lines in LINES[name].items() if _names(known, path) for n in lines)


PARTS = (
    Part("11a", "Turn each knob alone", 4, "fixes", "value", check_fixes, CHAPTER),
    Part("11b", "What each turn costs", 4, "prices", "value", check_consequences, CHAPTER),
    Part("11c", "The code behind each knob", 2, "lines", "value", check_lines, CHAPTER),
)
