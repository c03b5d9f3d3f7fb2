"""The smallest workload that still shows something: taken apart piece by piece, by trial.

A workload is one of a trace (`minivllm.runs.conformance`); its `steps` are dropped, since they
would not be true of a smaller one: who needs decisions asks `conformance.decide`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

PLAIN_CONFIG: dict[str, Any] = {
    "long_prefill_token_threshold": 0,
    "policy": "fcfs",
    "enable_prefix_caching": False,
    "enable_chunked_prefill": True,
    "reserve_full_prompt": False,
    "num_lookahead_tokens": 0,
    "num_speculative_tokens_per_batch_size": None,
    "watermark": 0.0,
    "long_prefill_token_threshold_adaptive": False,
    "max_num_active_seqs": None,
    "prefill_schedule_interval": 1,
    "async_scheduling": False,
}
"""The value of each knob that a reader need not think about."""

DRAFTS = "num_speculative_tokens"
SIZES = ("num_usable_blocks", "max_num_batched_tokens", "max_num_seqs", "max_model_len")
NUMBERS = ("arrival_step", "arrival_time", "priority", "max_tokens", "min_tokens")


def size(workload: dict[str, Any]) -> tuple[int, int, int]:
    """What "smaller" means: requests and aborts; then tokens; then all other numbers."""
    requests, config = workload["requests"], workload["config"]
    tokens = sum(len(r["prompt_token_ids"]) + r["max_tokens"] for r in requests)
    odd = sum(config[name] != plain for name, plain in PLAIN_CONFIG.items() if name in config)
    numbers = sum(int(r.get(name, 0)) for r in requests for name in NUMBERS if name != "max_tokens")
    stops = sum(len(r.get("stop_token_ids", ())) for r in requests)
    rest = (
        50 * odd
        + config.get(DRAFTS, 0)
        + numbers
        + stops
        + config["block_size"]
        + sum(config[s] for s in SIZES)
    )
    distinct = sum(len(set(r["prompt_token_ids"])) for r in requests)
    return len(requests) + len(workload["aborts"]), tokens, rest + distinct


def shrink(
    workload: dict[str, Any], shows: Callable[[dict[str, Any]], bool], max_trials: int = 2000
) -> dict[str, Any]:
    """The smallest workload found that still `shows` it; no single piece of it can go.

    Args:
        workload: one that shows it.
        shows: whether a workload does; one that cannot be run at all may raise ValueError.
        max_trials: calls of `shows` after which the smallest so far is returned.
    """
    smallest = {key: value for key, value in workload.items() if key not in ("steps", "ends")}
    trials = 0
    found = True
    while found:
        found = False
        for smaller in candidates(smallest):
            if size(smaller) >= size(smallest) or not can_run(smaller):
                continue
            trials += 1
            if trials > max_trials:
                return smallest
            try:
                found = shows(smaller)
            except ValueError:
                continue
            if found:
                smallest = smaller
                break
    return smallest


def can_run(workload: dict[str, Any]) -> bool:
    """Whether vLLM would take it: each request fits, alone, with all that it may become."""
    config = workload["config"]
    limit, block_size = config["max_model_len"], config["block_size"]
    num_drafts = config[DRAFTS] + 1 if config.get(DRAFTS) else 0
    return (
        config["num_usable_blocks"] >= -(-limit // block_size)
        and config["max_num_batched_tokens"] >= config["max_num_seqs"] + num_drafts
        and (config["enable_chunked_prefill"] or config["max_num_batched_tokens"] >= limit)
        and config["long_prefill_token_threshold"] <= limit
        and not 0 < config["long_prefill_token_threshold"] < num_drafts
        and all(
            0 < len(r["prompt_token_ids"]) < limit and r.get("min_tokens", 0) <= r["max_tokens"]
            for r in workload["requests"]
        )
    )


def candidates(workload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Workloads with one piece less, the largest pieces first."""
    config, requests, aborts = workload["config"], workload["requests"], workload["aborts"]
    for index, request in enumerate(requests):
        if len(requests) > 1:
            left = [abort for abort in aborts if abort[1] != request["id"]]
            yield {**workload, "requests": requests[:index] + requests[index + 1 :], "aborts": left}
    for index in range(len(aborts)):
        yield {**workload, "aborts": aborts[:index] + aborts[index + 1 :]}
    for name, plain in PLAIN_CONFIG.items():
        if name in config and config[name] != plain:
            yield {**workload, "config": {**config, name: plain}}
    for index, request in enumerate(requests):
        for smaller in _smaller_requests(request):
            yield {**workload, "requests": [*requests[:index], smaller, *requests[index + 1 :]]}
    for name in (*SIZES, "block_size"):
        for value in _smaller(config[name], 1):
            yield {**workload, "config": {**config, name: value}}
    for value in _smaller(config.get(DRAFTS, 1), 1):
        slots = min(config["num_lookahead_tokens"], value)
        yield {**workload, "config": {**config, DRAFTS: value, "num_lookahead_tokens": slots}}
    # Several at once, where one alone changes what the others mean.
    for fewer in (1, 2, 4, 8):
        lengths = {name: config[name] - fewer for name in ("max_model_len", "num_usable_blocks")}
        if min(lengths.values()) > 0:
            yield {**workload, "config": {**config, **lengths}}
        cut = [
            {**r, "prompt_token_ids": r["prompt_token_ids"][:-fewer]}
            for r in requests
            if len(r["prompt_token_ids"]) > fewer
        ]
        if len(cut) == len(requests):
            yield {**workload, "requests": cut}


def _smaller_requests(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The request with one piece less."""
    for name in ("stop_token_ids", "min_tokens"):
        if name in request:
            yield {key: value for key, value in request.items() if key != name}
    prompt = request["prompt_token_ids"]
    for length in _smaller(len(prompt), 1):
        yield {**request, "prompt_token_ids": prompt[:length]}
    for name in NUMBERS:
        if name in request:
            for value in _smaller(int(request[name]), 1 if name == "max_tokens" else 0):
                yield {**request, name: type(request[name])(value)}
    if len(set(prompt)) > 1:
        yield {**request, "prompt_token_ids": prompt[:1] * len(prompt)}


def _smaller(value: int, least: int) -> Iterator[int]:
    """From the least possible upwards, in halves of what is left."""
    distance = value - least
    while distance > 0:
        yield value - distance
        distance //= 2
