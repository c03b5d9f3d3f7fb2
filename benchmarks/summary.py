"""From token times to latencies, from rounds to a median with its spread, from ids to agreement."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most: with three rounds there is no more to say."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentile(values: Sequence[float], share: float) -> float:
    """The value that so large a share does not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


def latency(values: Sequence[float]) -> dict[str, float] | None:
    """Mean and tail, in seconds; None if there is nothing to take them of."""
    if not values:
        return None
    return {
        "mean": statistics.fmean(values),
        "p50": percentile(values, 0.5),
        "p99": percentile(values, 0.99),
    }


def digest(requests: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> dict[str, Any]:
    """One round in numbers.

    Raises:
        ValueError: if a request did not get as many tokens as it asked for: then the
            throughput would be of other work than the peers'.
    """
    ids, times = result["token_ids"], result["token_times"]
    ttft, gaps = [], []
    for request in requests:
        request_id, wanted = request["request_id"], request["max_tokens"]
        if len(ids[request_id]) != wanted:
            raise ValueError(
                f"request {request_id} got {len(ids[request_id])} tokens, asked for {wanted}"
            )
        moments = times[request_id]
        ttft.append(moments[0] - request["arrival"])
        gaps += [after - before for before, after in pairwise(moments)]
    output_tokens = sum(request["max_tokens"] for request in requests)
    return {
        "seconds": result["seconds"],
        "output_tokens_per_s": output_tokens / result["seconds"],
        "ttft": latency(ttft),
        "itl": latency(gaps),
    }


QUIET = 0.1
"""Cores that others may use during a round without a remark."""


def disturbance(row: Mapping[str, Any]) -> str:
    """A remark on a round in which other processes computed; "" on a quiet one."""
    cores = row.get("cores_of_others") or 0.0
    return f" (disturbed: other processes used {cores:.1f} cores)" if cores > QUIET else ""


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Ours over theirs, round by round: what slowed the machine in a round slowed both."""
    each = [mine / other for mine, other in zip(ours, theirs)]
    return {"each": each, **spread(each)}


def agreement(
    ours: Mapping[str, Sequence[int]], theirs: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """How many requests got the same tokens, and where the earliest difference is."""
    first: dict[str, Any] | None = None
    same = 0
    for request_id, mine in ours.items():
        other = theirs[request_id]
        position = first_difference(mine, other)
        if position is None:
            same += 1
        elif first is None or position < first["position"]:
            first = {
                "request_id": request_id,
                "position": position,
                "ours": _at(mine, position),
                "theirs": _at(other, position),
            }
    return {"requests": len(ours), "same": same, "first_difference": first}


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """The first output position at which they differ; None: they do not."""
    for position, (mine, other) in enumerate(zip(ours, theirs)):
        if mine != other:
            return position
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


def _at(token_ids: Sequence[int], position: int) -> int | None:
    return token_ids[position] if position < len(token_ids) else None
