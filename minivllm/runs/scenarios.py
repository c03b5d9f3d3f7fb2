"""The named scenarios: each small enough to read, each with one thing to see.

`tests/test_scenarios.py` holds every one to what its question promises.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minivllm.runs.scenario import Scenario, ScenarioRequest


def _requests(*rows: tuple[str, int, int, int], **more: Any) -> tuple[ScenarioRequest, ...]:
    """From (id, arrival step, prompt tokens, output tokens) each."""
    return tuple(
        ScenarioRequest(
            request_id=id_, arrival_step=step, num_prompt_tokens=prompt, max_tokens=output, **more
        )
        for id_, step, prompt, output in rows
    )


def _variant(of: Scenario, name: str, title: str, question: str, **changes: Any) -> Scenario:
    """The same arrivals under other knobs; `step` may change too."""
    step = changes.pop("step", of.step)
    config = {**of.config, **changes}
    return replace(of, name=name, title=title, question=question, config=config, step=step)


TWO_NUMBERS = Scenario(
    name="two-numbers",
    title="Two numbers racing",
    question="Where does r1's first token come from: a phase of its own, or the budget r0 leaves?",
    config={"num_gpu_blocks": 24, "block_size": 4, "max_num_batched_tokens": 16},
    requests=_requests(("r0", 0, 40, 6), ("r1", 0, 12, 6), ("r2", 2, 6, 4)),
    step=2,
)

CONTINUOUS = Scenario(
    name="continuous",
    title="A seat is given on at once",
    question="Four seats, eight requests: how long does a seat stay empty while somebody waits?",
    config={
        "num_gpu_blocks": 12,
        "block_size": 16,
        "max_num_batched_tokens": 128,
        "max_num_seqs": 4,
        "enable_prefix_caching": False,
    },
    requests=_requests(
        ("r0", 0, 12, 5), ("r1", 0, 30, 24), ("r2", 0, 8, 10), ("r3", 0, 20, 7),
        ("r4", 0, 26, 6), ("r5", 0, 10, 20), ("r6", 0, 16, 9), ("r7", 0, 34, 12),
    ),
    step=5,
)  # fmt: skip

PAGES = Scenario(
    name="pages",
    title="Blocks given out, shared and given back",
    question="Which blocks are in two block tables, and which does r0 give back when it ends?",
    config={"num_gpu_blocks": 12, "block_size": 4, "max_num_batched_tokens": 32},
    requests=(
        *_requests(("r0", 0, 10, 4), ("r1", 1, 14, 9), prefix_group="system", num_prefix_tokens=8),
        *_requests(("r2", 3, 14, 9)),
    ),
    step=1,
)

THREE_LIMITS = Scenario(
    name="three-limits",
    title="Three ways to be short",
    question="Admission stops in steps 0, 1 and 6: what is short each time?",
    config={
        "num_gpu_blocks": 12,
        "block_size": 4,
        "max_num_batched_tokens": 16,
        "max_num_seqs": 3,
        "enable_prefix_caching": False,
    },
    requests=_requests(("r0", 0, 10, 6), ("r1", 0, 14, 10), ("r2", 0, 4, 12), ("r3", 1, 22, 4)),
    step=0,
)

CRAMPED = Scenario(
    name="cramped",
    title="A cramped cache",
    question="Five requests, sixteen blocks: who is preempted, and how much work is lost?",
    config={
        "num_gpu_blocks": 16,
        "block_size": 4,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 8,
        "enable_prefix_caching": False,
    },
    requests=_requests(
        ("r0", 0, 10, 16), ("r1", 0, 13, 16), ("r2", 1, 9, 16), ("r3", 2, 11, 14), ("r4", 4, 8, 12)
    ),
    step=5,
)

CRAMPED_SWAP = _variant(
    CRAMPED,
    "swap",
    "A cramped cache that swaps",
    "The victims' blocks are copied to the CPU and back: what is computed twice now?",
    preemption_mode="swap",
    num_cpu_blocks=12,
)

DECODE_SPIKE = Scenario(
    name="decode-spike",
    title="A long prompt lands on a decoding stream",
    question="How many tokens are in the step in which r0 gets its next token?",
    config={"num_gpu_blocks": 40, "block_size": 16, "max_num_batched_tokens": 512},
    requests=_requests(("r0", 0, 8, 24), ("r1", 6, 256, 8)),
    step=6,
)

DECODE_SPIKE_THRESHOLD = _variant(
    DECODE_SPIKE,
    "decode-spike-threshold",
    "The long prompt in slices of 32",
    "With long_prefill_token_threshold=32 the spike is gone: what does r1 pay for it?",
    long_prefill_token_threshold=32,
)

SHARED_PREFIX = Scenario(
    name="shared-prefix",
    title="Eight requests, one system prompt",
    question="Eight prompts of 68 tokens in one step: how many of the 544 are computed?",
    config={"num_gpu_blocks": 64, "block_size": 4, "max_num_batched_tokens": 256},
    requests=_requests(
        *((f"r{i}", 0, 68, 4) for i in range(8)), prefix_group="system", num_prefix_tokens=64
    ),
    step=0,
)

SHARED_PREFIX_OFF = _variant(
    SHARED_PREFIX,
    "shared-prefix-off",
    "The same without prefix caching",
    "Every request computes the system prompt again: what runs out first, tokens or blocks?",
    enable_prefix_caching=False,
)

PRIORITY_INVERSION = Scenario(
    name="priority-inversion",
    title="Priority inversion",
    question="urgent (priority 0) is the most urgent: why do r0 and r1 keep running before it?",
    config={
        "num_gpu_blocks": 16,
        "block_size": 4,
        "max_num_batched_tokens": 64,
        "policy": "priority",
        "enable_prefix_caching": False,
    },
    requests=(
        *_requests(("r0", 0, 22, 14), ("r1", 0, 24, 14), priority=5),
        *_requests(("urgent", 3, 16, 6), priority=0),
        *_requests(("r3", 4, 8, 4), priority=3),
    ),
    step=4,
)

NEVER_FITS = Scenario(
    name="never-fits",
    title="A request that can never fit",
    question="r1 needs more blocks than exist: what happens to it, and to those behind it?",
    config={
        "num_gpu_blocks": 12,
        "block_size": 4,
        "max_num_batched_tokens": 64,
        "enable_prefix_caching": False,
    },
    requests=_requests(("r0", 0, 9, 5), ("r1", 1, 54, 8), ("r2", 2, 8, 5), ("r3", 2, 6, 4)),
    step=1,
)

NEVER_FITS_STUCK = _variant(
    NEVER_FITS,
    "never-fits-stuck",
    "The same with admission control off",
    "Nobody refuses r1 now: who will ever be admitted again?",
    admission_control=False,
    step=5,
)

HEAD_OF_LINE = Scenario(
    name="head-of-line",
    title="Head-of-line blocking",
    question="r2 and r3 would fit into the free blocks: why do they wait?",
    config={
        "num_gpu_blocks": 20,
        "block_size": 4,
        "max_num_batched_tokens": 64,
        "enable_prefix_caching": False,
    },
    requests=_requests(("r0", 0, 30, 10), ("r1", 1, 50, 6), ("r2", 2, 6, 5), ("r3", 2, 5, 5)),
    step=3,
)

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        TWO_NUMBERS,
        CONTINUOUS,
        PAGES,
        THREE_LIMITS,
        CRAMPED,
        CRAMPED_SWAP,
        DECODE_SPIKE,
        DECODE_SPIKE_THRESHOLD,
        SHARED_PREFIX,
        SHARED_PREFIX_OFF,
        PRIORITY_INVERSION,
        NEVER_FITS,
        NEVER_FITS_STUCK,
        HEAD_OF_LINE,
    )
}
"""By name, in the order in which a menu shows them."""
