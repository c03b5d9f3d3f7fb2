"""Every knob is read: a claim about behaviour that nothing reads is worse than none."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig
from minivllm.core.releases import CHANGES, NEWEST
from minivllm.runs.drive import drive

NEWER = {change.name for change in CHANGES if not change.is_switch}
"""Those that the book's release lacks."""

EXTREMES = {
    "vllm_version": {"vllm_version": "0.33.0", "long_prefill_token_threshold": 8},
    "num_gpu_blocks": {"num_gpu_blocks": 8},
    "block_size": {"block_size": 16},
    "max_model_len": {"max_model_len": 24},
    "max_num_batched_tokens": {"max_num_batched_tokens": 4},
    "max_num_seqs": {"max_num_seqs": 1},
    "long_prefill_token_threshold": {"long_prefill_token_threshold": 1},
    "long_prefill_token_threshold_adaptive": {
        "long_prefill_token_threshold": 1, "long_prefill_token_threshold_adaptive": True,
    },
    "max_num_active_seqs": {"max_num_active_seqs": 1},
    "max_num_queued_reqs": {"max_num_queued_reqs": 0},
    "max_num_queued_tokens": {"max_num_queued_tokens": 0},
    "watermark": {"watermark": 0.9},
    "prefill_schedule_interval": {"prefill_schedule_interval": 1_000},
    "num_speculative_tokens": {"num_speculative_tokens": 4},
    "num_speculative_tokens_per_batch_size": {
        "num_speculative_tokens": 4, "num_speculative_tokens_per_batch_size": [(1, 1, 0)],
    },
    "num_lookahead_tokens": {"num_speculative_tokens": 4, "num_lookahead_tokens": 4},
    "policy": {"policy": "priority"},
    "enable_prefix_caching": {"enable_prefix_caching": False},
    "enable_chunked_prefill": {"enable_chunked_prefill": False},
    "reserve_full_prompt": {
        "reserve_full_prompt": False, "max_num_batched_tokens": 4, "num_gpu_blocks": 10,
    },
    "preemption_mode": {"preemption_mode": "swap", "num_cpu_blocks": 16},
    "num_cpu_blocks": {"preemption_mode": "swap", "num_cpu_blocks": 16},
    "victim": {"victim": "least_computed"},
    "admission_control": {"admission_control": False},
    "keep_upstream_bugs": {"policy": "priority", "keep_upstream_bugs": True},
}  # fmt: skip
"""For each knob a value at its end, with what that value needs."""


def all_decisions(knobs: dict[str, Any]) -> list[Any]:
    """What a cramped run decides, step by step: long prompts and short ones, alike and not, one
    that can never fit, and two that are equal."""
    base = {
        "num_gpu_blocks": 12, "block_size": 4, "max_num_batched_tokens": 24, "max_model_len": 64,
        "max_num_seqs": 8,
    }  # fmt: skip
    arrivals = [
        (step, Request(f"r{i}", prompt, SamplingParams(max_tokens=12), priority=priority,
                       arrival_time=0.0))
        for i, (step, prompt, priority) in enumerate([
            (0, list(range(20)), 2), (0, list(range(9)), 1), (1, list(range(100, 118)), 1),
            (2, list(range(20)), 0), (3, list(range(60)), 0), (4, list(range(9)), 1),
        ])
    ]  # fmt: skip
    scheduler = drive(Scheduler(SchedulerConfig(**{**base, **knobs})), arrivals, max_steps=120)
    return [
        (
            [(row["request_id"], row["num_scheduled_tokens"]) for row in step["scheduled"]],
            [event for event in step["events"] if event["type"] in ("preempted", "refused")],
            {id_: row["block_table"] for id_, row in step["requests"].items()},
        )
        for step in scheduler.history.steps
    ]


@pytest.mark.parametrize("knob", EXTREMES)
def test_every_knob_is_read(knob: str) -> None:
    """Set to an extreme, it changes a decision: `max_num_partial_prefills` of vLLM never did."""
    assert set(EXTREMES) == {field.name for field in fields(SchedulerConfig)}
    knobs = EXTREMES[knob]
    others = {name: value for name, value in knobs.items() if name != knob}
    if knob in NEWER:
        others["vllm_version"] = NEWEST
        knobs = {**knobs, "vllm_version": NEWEST}
    assert all_decisions(knobs) != all_decisions(others)
