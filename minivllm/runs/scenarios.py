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
    question="In step 2, does r1 wait for a phase of its own, or get what r0 leaves of the budget?",
    config={"num_gpu_blocks": 24, "block_size": 4, "max_num_batched_tokens": 16},
    requests=_requests(("r0", 0, 40, 6), ("r1", 0, 12, 6), ("r2", 2, 6, 4)),
    step=2,
)

CONTINUOUS = Scenario(
    name="continuous",
    title="A free seat is taken at once",
    question="Four seats, eight requests: in how many steps is a seat empty while a request waits?",
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
    title="Short of tokens, of seats, of blocks",
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
    title="A long prompt arrives beside a stream",
    question="How many tokens are in the step in which r0 gets its next token?",
    config={"num_gpu_blocks": 40, "block_size": 16, "max_num_batched_tokens": 512},
    requests=_requests(("r0", 0, 8, 24), ("r1", 6, 256, 8)),
    step=6,
)

DECODE_SPIKE_THRESHOLD = _variant(
    DECODE_SPIKE,
    "decode-spike-threshold",
    "The long prompt in chunks of 32",
    "With long_prefill_token_threshold=32 no step is long: how much later is r1's first token?",
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


SPECULATION = Scenario(
    name="speculation",
    title="Tokens proposed, and taken back",
    question="Four tokens are proposed to r0 in each step: how many does it keep each time?",
    config={
        "num_gpu_blocks": 24,
        "block_size": 4,
        "max_num_batched_tokens": 32,
        "num_speculative_tokens": 4,
    },
    requests=_requests(("r0", 0, 10, 20), ("r1", 1, 8, 14)),
    step=2,
)

SPECULATION_AT_LOAD = Scenario(
    name="speculation-at-load",
    title="Proposed tokens use up the budget",
    question="Six requests, sixteen tokens a step: why are r4 and r5 not admitted in step 1?",
    config={
        "num_gpu_blocks": 40,
        "block_size": 4,
        "max_num_batched_tokens": 16,
        "num_speculative_tokens": 4,
        "enable_prefix_caching": False,
    },
    requests=_requests(*((f"r{i}", 0, 4, 8) for i in range(6))),
    step=1,
)

FOURTH_CAP = Scenario(
    name="fourth-cap",
    title="No room for the proposed tokens",
    question="Four tokens are proposed to r0 in its last steps too: which cap lets fewer through?",
    config={
        "num_gpu_blocks": 8,
        "block_size": 4,
        "max_model_len": 20,
        "max_num_batched_tokens": 16,
        "num_speculative_tokens": 4,
    },
    requests=_requests(("r0", 0, 8, 12)),
    step=4,
)


# --- where releases part: each the smallest that search and shrinking found ------------------


def _parting(name: str, title: str, question: str, since: str, **more: Any) -> Scenario:
    """As release `since` decides it; the one before it decides otherwise, by one switch alone.

    Blocks of one slot and no more tokens than it takes: whatever is left plays a part.
    """
    small = {"block_size": 1, "enable_prefix_caching": False, "reserve_full_prompt": False}
    config = {"vllm_version": since, **small, **more.pop("config")}
    return Scenario(
        name=name,
        title=title,
        question=question,
        config=config,
        step=more.pop("step"),
        requests=tuple(request for rows in more.pop("requests") for request in rows),
    )


PARTINGS: dict[str, tuple[Scenario, ...]] = {
    "lookahead_at_admission": (
        _parting(
            "draft-slots-at-admission",
            "Slots for the draft model",
            "r0's prompt is one token: is r0 given one block in its first step, or two?",
            "0.23.0",
            config={
                "num_gpu_blocks": 2,
                "max_model_len": 2,
                "max_num_batched_tokens": 3,
                "max_num_seqs": 1,
                "num_speculative_tokens": 1,
                "num_lookahead_tokens": 1,
            },
            requests=[_requests(("r0", 0, 1, 1))],
            step=0,
        ),
    ),
    "free_unhashed_first": (
        _parting(
            "free-order",
            "Which free block is next",
            "r0 gave block 1 back; does r1 get it, or block 2, which was never used?",
            "0.24.0",
            config={"num_gpu_blocks": 2, "max_num_batched_tokens": 1, "max_num_seqs": 1},
            requests=[_requests(("r0", 0, 1, 1), ("r1", 0, 1, 1))],
            step=1,
        ),
        _parting(
            "free-order-hit",
            "What the free order is for",
            "r1 yielded in step 8; how many of its 9 tokens does it find in the cache in step 9?",
            "0.24.0",
            config={
                "num_gpu_blocks": 4,
                "block_size": 4,
                "max_model_len": 10,
                "max_num_batched_tokens": 2,
                "max_num_seqs": 2,
                "policy": "priority",
                "enable_prefix_caching": True,
            },
            requests=[
                _requests(("r0", 0, 1, 9)),
                _requests(("r1", 0, 5, 5), priority=1),
                _requests(("r2", 1, 1, 1)),
            ],
            step=9,
        ),
    ),
    "pads_decodes": (
        _parting(
            "padded",
            "As long as its neighbour",
            "r1 has one token to compute, beside r0, and one block is free: is it admitted?",
            "0.25.0",
            config={
                "num_gpu_blocks": 3,
                "max_model_len": 3,
                "max_num_batched_tokens": 4,
                "max_num_seqs": 2,
                "num_speculative_tokens": 1,
            },
            requests=[_requests(("r0", 0, 1, 2), ("r1", 1, 1, 1))],
            step=1,
        ),
    ),
    "append_uncached": (
        _parting(
            "free-order-uncached",
            "Without a cache, at the end of the line again",
            "In 0.27 alone r1 gets block 2: what made the reuse of block 1 worth restoring?",
            "0.27.0",
            config={"num_gpu_blocks": 2, "max_num_batched_tokens": 1, "max_num_seqs": 1},
            requests=[_requests(("r0", 0, 1, 1), ("r1", 0, 1, 1))],
            step=1,
        ),
    ),
    "skipped_victim_counts": (
        _parting(
            "passed-over",
            "The list closes up",
            "r0 yields without having been given tokens: does r2 get its turn in this step?",
            "0.28.0",
            config={
                "num_gpu_blocks": 4,
                "max_model_len": 3,
                "max_num_batched_tokens": 3,
                "max_num_seqs": 3,
                "policy": "priority",
                "enable_prefix_caching": True,
                "keep_upstream_bugs": True,
            },
            requests=[
                _requests(("r0", 0, 1, 3), priority=1, min_tokens=3),
                _requests(("r1", 1, 1, 2), ("r2", 1, 1, 2)),
            ],
            step=2,
        ),
    ),
    "draft_slots_as_used": (
        _parting(
            "draft-budget",
            "What the draft model takes of the budget",
            "The budget is 4 and there are two seats: does r0's prompt of 3 fit into one step?",
            "0.28.0",
            config={
                "num_gpu_blocks": 2,
                "block_size": 2,
                "max_model_len": 4,
                "max_num_batched_tokens": 4,
                "max_num_seqs": 2,
                "num_speculative_tokens": 1,
                "num_lookahead_tokens": 1,
            },
            requests=[_requests(("r0", 0, 3, 1))],
            step=0,
        ),
    ),
    "pads_before_the_end": (
        _parting(
            "no-room-to-pad",
            "No room to pad",
            "max_model_len is 3, and r1's one token would be padded with two: does it wait for r0?",
            "0.29.0",
            config={
                "num_gpu_blocks": 3,
                "max_model_len": 3,
                "max_num_batched_tokens": 5,
                "max_num_seqs": 2,
                "num_speculative_tokens": 2,
            },
            requests=[_requests(("r0", 0, 1, 2), ("r1", 1, 1, 1))],
            step=1,
        ),
    ),
    "min_tokens_last": (
        _parting(
            "min-tokens",
            "min_tokens beyond the longest sequence",
            "r0 may have one token and wants at least two: does it ever end?",
            "0.29.0",
            config={
                "num_gpu_blocks": 2,
                "max_model_len": 2,
                "max_num_batched_tokens": 1,
                "max_num_seqs": 1,
                "keep_upstream_bugs": True,
            },
            requests=[_requests(("r0", 0, 1, 2), min_tokens=2)],
            step=0,
        ),
    ),
    "pads_alone": (
        _parting(
            "padded-alone",
            "Padded beside nobody",
            "r1 finds its first token in the cache, and nobody runs: is it scheduled with one?",
            "0.30.0",
            config={
                "num_gpu_blocks": 4,
                "max_model_len": 4,
                "max_num_batched_tokens": 3,
                "max_num_seqs": 1,
                "enable_prefix_caching": True,
                "num_speculative_tokens": 1,
            },
            requests=[
                _requests(("r0", 0, 1, 1), ("r1", 0, 2, 1), prefix_group="p", num_prefix_tokens=1)
            ],
            step=1,
        ),
    ),
    "lone_request_uncapped": (
        _parting(
            "alone",
            "A cap for nobody's sake",
            "r0 is alone and the cap is 3: how many of its 4 tokens are in the first step?",
            "0.31.0",
            config={
                "num_gpu_blocks": 4,
                "max_num_batched_tokens": 4,
                "max_num_seqs": 1,
                "long_prefill_token_threshold": 3,
            },
            requests=[_requests(("r0", 0, 4, 1))],
            step=0,
        ),
    ),
    "self_preemption_goes_on": (
        _parting(
            "self-preemption",
            "Who yields to himself",
            "r0 needs a block, is the least urgent itself and yields: does r1 run in this step?",
            "0.33.0",
            config={
                "num_gpu_blocks": 2,
                "block_size": 2,
                "max_model_len": 4,
                "max_num_batched_tokens": 2,
                "max_num_seqs": 2,
                "policy": "priority",
            },
            requests=[_requests(("r0", 0, 1, 3), priority=1), _requests(("r1", 1, 1, 2))],
            step=2,
        ),
    ),
    "accepted_cached_at_once": (
        _parting(
            "last-block",
            "The block of the last accepted token",
            "r0 ends with an accepted token: is the block before it the next that is handed out?",
            "0.33.0",
            config={
                "num_gpu_blocks": 4,
                "max_model_len": 4,
                "max_num_batched_tokens": 3,
                "max_num_seqs": 1,
                "enable_prefix_caching": True,
                "num_speculative_tokens": 1,
            },
            requests=[_requests(("r0", 0, 1, 3), ("r1", 0, 1, 1))],
            step=2,
        ),
    ),
}
"""By switch: the smallest workload on which its release and the one before it part."""

_EQUALS = {
    "max_model_len": 6,
    "max_num_batched_tokens": 2,
    "max_num_seqs": 2,
    "long_prefill_token_threshold": 1,
    "policy": "priority",
    "enable_prefix_caching": False,
    "reserve_full_prompt": False,
    "keep_upstream_bugs": True,
}

LIVELOCKS = (
    Scenario(
        name="livelock",
        title="Two equals, for ever",
        question="r0 and r1 are equal and one of them has to yield: does either ever end?",
        config={"vllm_version": "0.33.0", "num_gpu_blocks": 3, "block_size": 2, **_EQUALS},
        requests=_requests(("r0", 0, 5, 1), ("r1", 0, 4, 2), arrival_time=0),
        step=4,
    ),
    Scenario(
        name="livelock-until-0-32",
        title="Two equals, for ever until 0.32",
        question="Two equals take turns for ever here; what does 0.33 do in the step that ends it?",
        config={"vllm_version": "0.32.0", "num_gpu_blocks": 6, "block_size": 1, **_EQUALS},
        requests=_requests(("r0", 0, 5, 1), ("r1", 0, 5, 1), arrival_time=0),
        step=3,
    ),
)
"""Runs without end under vLLM's own choice among equals (`keep_upstream_bugs`), the smallest of
each kind: one in every release, one that ends since 0.33.0."""

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
        SPECULATION,
        SPECULATION_AT_LOAD,
        FOURTH_CAP,
        *(scenario for partings in PARTINGS.values() for scenario in partings),
        *LIVELOCKS,
    )
}
"""By name, in the order in which a menu shows them."""
