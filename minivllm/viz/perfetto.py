"""A run as a trace for ui.perfetto.dev or chrome://tracing. Standard library only.

    write_perfetto("run.json", engine)

then open the file there: each request is a track, each grant of tokens a slice; preemptions and
ends are instants; below are counters for the batch, the tokens and the KV cache.

The format is Chrome's "Trace Event Format", JSON object form: times in microseconds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from minivllm.runs.snapshot import Snapshot
from minivllm.runs.steps import arrival_order, steps_of

US_PER_STEP = 1000
"""Without a clock, a step is drawn a millisecond long."""

SCHEDULER, REQUESTS = 1, 2
"""The two processes of the trace."""

INSTANTS = ("arrived", "refused", "preempted", "swapped_in", "aborted", "stopped", "finished")


def to_perfetto(source: Any, *, clock: bool | None = None) -> dict[str, Any]:
    """A run as a trace, JSON-serialisable.

    Args:
        source: a run (see `minivllm.runs.steps.steps_of`).
        clock: place steps by the scheduler's clock (seconds); False: each step one millisecond
            long; None: by the clock if there was one.

    Raises:
        ValueError: if the run has no step, or the clock is asked for and none ran.
    """
    steps = steps_of(source)
    has_clock = all(snapshot["time"] is not None for snapshot in steps)
    if clock and not has_clock:
        raise ValueError("no clock ran: build the scheduler with one, or set clock=False")
    by_clock = has_clock if clock is None else clock
    times = _clock_times(steps) if by_clock else _step_times(steps)

    order = arrival_order(steps)
    events = _names(order)
    open_waits: dict[str, float] = {}
    for snapshot, (start, duration) in zip(steps, times):
        events.append(_step_slice(snapshot, start, duration))
        events += _counters(snapshot, start)
        events += _grants(snapshot, start, duration, order)
        events += _waits(snapshot, start, open_waits, order)
        events += _instants(snapshot, start, duration, order)
    end = round(sum(times[-1]), 3)
    for request_id, start in open_waits.items():
        events.append(_wait(request_id, start, end, order))
    events.append(_counter("running", end, {"requests": 0}))
    events.sort(key=lambda event: (event["ph"] != "M", event["ts"]))
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "source": "minivllm",
            "time": "the scheduler's clock" if by_clock else f"{US_PER_STEP} us a step",
        },
    }


def write_perfetto(path: str | os.PathLike[str], source: Any, *, clock: bool | None = None) -> Path:
    """Write `to_perfetto` to a file; returns its path.

    Raises:
        ValueError: as `to_perfetto`.
    """
    target = Path(path)
    trace = to_perfetto(source, clock=clock)
    target.write_text(json.dumps(trace, separators=(",", ":")), encoding="utf-8")
    return target


def _step_times(steps: Sequence[Snapshot]) -> list[tuple[float, float]]:
    return [(snapshot["step"] * US_PER_STEP, US_PER_STEP) for snapshot in steps]


def _clock_times(steps: Sequence[Snapshot]) -> list[tuple[float, float]]:
    """Start and duration of each step; it lasts until the next begins, the last as the median.

    Raises:
        ValueError: if the clock ran backwards.
    """
    starts = [(snapshot["time"] or 0.0) * 1e6 for snapshot in steps]
    gaps = [after - before for before, after in pairwise(starts)]
    if any(gap < 0 for gap in gaps):
        raise ValueError("the clock ran backwards between two steps; set clock=False")
    last = sorted(gaps)[len(gaps) // 2] if gaps else float(US_PER_STEP)
    first = starts[0]
    return [(round(start - first, 3), round(gap, 3)) for start, gap in zip(starts, [*gaps, last])]


def _names(order: dict[str, int]) -> list[dict[str, Any]]:
    """Tracks get names, and the order of arrival."""

    def meta(what: str, pid: int, tid: int, **args: Any) -> dict[str, Any]:
        return {"name": what, "ph": "M", "pid": pid, "tid": tid, "ts": 0, "args": args}

    events = [
        meta("process_name", SCHEDULER, 0, name="scheduler"),
        meta("process_sort_index", SCHEDULER, 0, sort_index=0),
        meta("thread_name", SCHEDULER, 1, name="steps"),
        meta("process_name", REQUESTS, 0, name="requests"),
        meta("process_sort_index", REQUESTS, 0, sort_index=1),
    ]
    for request_id, index in order.items():
        events.append(meta("thread_name", REQUESTS, index + 1, name=request_id))
        events.append(meta("thread_sort_index", REQUESTS, index + 1, sort_index=index))
    return events


def _slice(
    name: str, category: str, pid: int, tid: int, start: float, duration: float, args: Any
) -> dict[str, Any]:
    return {
        "name": name, "cat": category, "ph": "X", "pid": pid, "tid": tid,
        "ts": start, "dur": duration, "args": args,
    }  # fmt: skip


def _step_slice(snapshot: Snapshot, start: float, duration: float) -> dict[str, Any]:
    args = {
        "scheduled_tokens": snapshot["budget"]["spent"],
        "budget": snapshot["budget"]["max_num_batched_tokens"],
        "requests": len(snapshot["scheduled"]),
        "preemptions": snapshot["stats"]["num_preemptions"],
    }
    return _slice(f"step {snapshot['step']}", "step", SCHEDULER, 1, start, duration, args)


def _counter(name: str, time: float, values: dict[str, int]) -> dict[str, Any]:
    return {"name": name, "ph": "C", "pid": SCHEDULER, "tid": 0, "ts": time, "args": values}


def _counters(snapshot: Snapshot, time: float) -> list[dict[str, Any]]:
    blocks = snapshot["blocks"]
    in_use = len(blocks["state"]) - 1 - len(blocks["free_queue"])
    return [
        _counter("running", time, {"requests": len(snapshot["running"])}),
        _counter("waiting", time, {"requests": len(snapshot["waiting"])}),
        _counter("batch size", time, {"requests": len(snapshot["scheduled"])}),
        _counter("scheduled tokens", time, {"tokens": snapshot["budget"]["spent"]}),
        _counter(
            "KV cache blocks",
            time,
            {"in use": in_use, "free, cached": blocks["state"].count("e")},
        ),
    ]


def _grants(
    snapshot: Snapshot, start: float, duration: float, order: dict[str, int]
) -> list[dict[str, Any]]:
    events = []
    for row in snapshot["scheduled"]:
        request = snapshot["requests"][row["request_id"]]
        tokens, computed = row["num_scheduled_tokens"], request["num_computed_tokens"]
        if row["kind"] == "resumed":
            name = f"resume {tokens}"
        elif computed - tokens < request["num_prompt_tokens"]:
            name = f"prefill {tokens}"
        else:
            name = "decode"
        args = {
            "step": snapshot["step"],
            "tokens": tokens,
            "cap": row["cap"],
            "num_computed_tokens": computed,
            "num_tokens": request["num_tokens"],
            "blocks": len(request["block_table"]),
        }
        tid = order[row["request_id"]] + 1
        events.append(_slice(name, "tokens", REQUESTS, tid, start, duration, args))
    return events


def _wait(request_id: str, start: float, end: float, order: dict[str, int]) -> dict[str, Any]:
    tid = order[request_id] + 1
    return _slice("waiting", "queue", REQUESTS, tid, start, round(end - start, 3), {})


def _waits(
    snapshot: Snapshot, time: float, open_waits: dict[str, float], order: dict[str, int]
) -> list[dict[str, Any]]:
    """Slices of the waits that ended before this step; those that begin are noted."""
    waiting = set(snapshot["waiting"])
    over = [request_id for request_id in open_waits if request_id not in waiting]
    events = [_wait(id_, open_waits.pop(id_), time, order) for id_ in over]
    for request_id in snapshot["waiting"]:
        open_waits.setdefault(request_id, time)
    return events


def _instants(
    snapshot: Snapshot, start: float, duration: float, order: dict[str, int]
) -> list[dict[str, Any]]:
    events = []
    for event in snapshot["events"]:
        if event["type"] not in INSTANTS:
            continue
        args = {k: v for k, v in event.items() if k not in ("type", "request_id", "victim_keys")}
        late = event["type"] == "finished"  # known when the step's tokens are there
        events.append(
            {
                "name": event["type"],
                "cat": "event",
                "ph": "i",
                "s": "t",
                "pid": REQUESTS,
                "tid": order[event["request_id"]] + 1,
                "ts": round(start + duration, 3) if late else start,
                "args": {"step": snapshot["step"], **args},
            }
        )
    return events
