"""How far two runs of one workload agree: class of decision by class of decision.

A run is a list of steps in the words of the pipe (`under_test`): whom a full queue refused; who is
scheduled, with how many tokens, how many of them proposed, in which order; who was preempted; who
was admitted, and what the prefix cache gave him; the block tables. Two runs agree in a class if
they do in every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Step = dict[str, Any]

CLASSES: dict[str, Callable[[Step, set[str]], Any]] = {
    "refusals": lambda step, both: sorted(step["refused"]),
    "who": lambda step, both: sorted(id_ for id_, _ in step["scheduled"]),
    "tokens": lambda step, both: {id_: n for id_, n in step["scheduled"] if id_ in both},
    "drafts": lambda step, both: {k: n for k, n in step["drafts"].items() if k in both},
    "order": lambda step, both: [id_ for id_, _ in step["scheduled"] if id_ in both],
    "preemption": lambda step, both: sorted(step["preempted"]),
    "admission": lambda step, both: step["admitted"],
    "block_ids": lambda step, both: {k: v for k, v in step["block_ids"].items() if k in both},
    "cache_hits": lambda step, both: {k: v for k, v in step["cached"].items() if k in both},
}
"""What of a step each class compares, given the ids that both runs scheduled in it."""

FIELDS = {
    "refusals": "refused",
    "drafts": "drafts",
    "preemption": "preempted",
    "admission": "admitted",
    "block_ids": "block_ids",
    "cache_hits": "cached",
}
"""The field that a step needs for a class; the others need `scheduled` alone."""


def told(steps: list[Step]) -> list[Step]:
    """A recorded run's steps in the words of the pipe."""
    rows = []
    computed: dict[str, int] = {}
    running: list[str] = []
    for step in steps:
        tokens = dict(step["scheduled"])
        stayed = set(running) - set(step["preempted"])
        admitted = [id_ for id_ in step["running"] if id_ not in stayed]
        computed |= step["computed_after"]
        rows.append(
            {
                "scheduled": step["scheduled"],
                "preempted": step["preempted"],
                "admitted": admitted,
                "cached": {id_: computed[id_] - tokens[id_] for id_ in admitted if id_ in tokens},
                "block_ids": step["block_ids"],
                "drafts": {id_: len(ids) for id_, ids in step.get("drafts", {}).items()},
                "refused": step.get("refused", []),
            }
        )
        running = [id_ for id_ in step["running"] if id_ not in step["finished"]]
    return rows


def first_differences(
    ours: list[Step], theirs: list[Step], classes: list[str]
) -> dict[str, tuple[int, Any, Any]]:
    """By class, the first step in which the runs differ, and what each decided there.

    A run that ends before the other is compared as one that schedules nobody.
    """
    nothing: Step = {"scheduled": [], "preempted": [], "admitted": []}
    nothing |= {"cached": {}, "block_ids": {}, "drafts": {}, "refused": []}
    found: dict[str, tuple[int, Any, Any]] = {}
    for index in range(max(len(ours), len(theirs))):
        our = ours[index] if index < len(ours) else nothing
        their = theirs[index] if index < len(theirs) else nothing
        both = {id_ for id_, _ in our["scheduled"]} & {id_ for id_, _ in their["scheduled"]}
        for name in classes:
            if name not in found:
                a, b = CLASSES[name](our, both), CLASSES[name](their, both)
                if a != b:
                    found[name] = (index, a, b)
    return found


QUEUE_CAPS = ("max_num_queued_reqs", "max_num_queued_tokens")
"""Knobs of vLLM's API server, whose refusals a trace has too."""

FEATURES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "priority": lambda w: w["config"]["policy"] == "priority",
    "prefix_caching": lambda w: w["config"]["enable_prefix_caching"],
    "no_prefix_caching": lambda w: not w["config"]["enable_prefix_caching"],
    "chunked_prefill": lambda w: w["config"]["enable_chunked_prefill"],
    "no_chunked_prefill": lambda w: not w["config"]["enable_chunked_prefill"],
    "reserve_full_prompt": lambda w: w["config"]["reserve_full_prompt"],
    "no_reserve_full_prompt": lambda w: not w["config"]["reserve_full_prompt"],
    "long_prefill_token_threshold": lambda w: w["config"]["long_prefill_token_threshold"] > 0,
    "watermark": lambda w: w["config"].get("watermark", 0) > 0,
    "max_num_active_seqs": lambda w: w["config"].get("max_num_active_seqs") is not None,
    "prefill_schedule_interval": lambda w: w["config"].get("prefill_schedule_interval", 1) > 1,
    "async_scheduling": lambda w: w["config"].get("async_scheduling", False),
    "block_size_1": lambda w: w["config"]["block_size"] == 1,
    "aborts": lambda w: bool(w["aborts"]),
    "stop_token_ids": lambda w: any(r.get("stop_token_ids") for r in w["requests"]),
    "min_tokens": lambda w: any(r.get("min_tokens") for r in w["requests"]),
    "length_limit": lambda w: any(
        len(r["prompt_token_ids"]) + r["max_tokens"] > w["config"]["max_model_len"]
        for r in w["requests"]
    ),
    "speculative_tokens": lambda w: w["config"].get("num_speculative_tokens", 0) > 0,
    "num_lookahead_tokens": lambda w: w["config"].get("num_lookahead_tokens", 0) > 0,
    "num_speculative_tokens_per_batch_size": lambda w: bool(
        w["config"].get("num_speculative_tokens_per_batch_size")
    ),
    "queue_caps": lambda w: any(w["config"].get(name) is not None for name in QUEUE_CAPS),
    "runs_without_end": lambda w: not w.get("ends", True),
}
"""What a workload asks of a scheduler; one that lacks it is not asked."""


def needs(workload: dict[str, Any]) -> list[str]:
    """The features that a workload needs."""
    return [name for name, needed in FEATURES.items() if needed(workload)]
