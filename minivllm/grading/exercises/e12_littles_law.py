"""Exercise 12: heads counted by Little's law, and the cap that serves the most users well."""

from __future__ import annotations

from functools import cache
from typing import Any

from minivllm.core.releases import REFERENCE
from minivllm.grading.part import Failed, Part, want_dict, want_int, want_number
from minivllm.sim import SLO, ClosedLoop, SimResult, SimulationConfig
from minivllm.sim.results import percentile

TITLE = "Little's law and the cap"
CHAPTER = "10-load-latency-littles-law"

USERS, SECONDS = 96, 120.0
MODEL, GPU, MIX = "llama-3-8b", "a10", "sharegpt"
GOAL = SLO(ttft=10.0, tpot=0.043)
CAPS = (24, 48, 72)
SEEDS = (121, 122, 1)
"""Of the runs that part b judges: two that nobody has seen, and the one that the notebook shows."""
CANDIDATES = (59,)
"""Caps that may be best; tests hold their neighbours against them."""
WITHIN = 0.9
"""Of the best candidate's goodput: what a cap must reach."""


@cache
def run(max_num_seqs: int, seed: int = 0) -> SimResult:
    """Two minutes of 96 users who each wait for their answer and ask again at once."""
    return SimulationConfig(
        ClosedLoop(MIX, USERS, duration=SECONDS),
        model=MODEL,
        gpu=GPU,
        knobs={"vllm_version": REFERENCE, "max_num_seqs": max_num_seqs},
        seed=seed,
    ).run()


def measured(max_num_seqs: int, seed: int = 0) -> dict[str, float]:
    """What a dashboard would show of a run: requests a second, and two mean times in seconds."""
    result = run(max_num_seqs, seed)
    return {
        "requests_per_second": result.num_finished / result.duration,
        "mean_e2e": result.e2e.mean,
        "mean_queue_time": result.queue_time.mean,
    }


# --- a: heads counted, heads computed -------------------------------------------------------------

HEADS = ("in_system", "waiting", "running")


def counted(max_num_seqs: int) -> dict[str, float]:
    """The same by counting heads over the whole run: nothing of Little's law is used."""
    result = run(max_num_seqs)
    in_system = sum(bucket.in_system for bucket in result.timeline.buckets) / result.duration
    running = sum(bucket.running for bucket in result.timeline.buckets) / result.duration
    return {"in_system": in_system, "waiting": in_system - running, "running": running}


def tolerance(max_num_seqs: int) -> dict[str, float]:
    """How far the two ways may lie apart: what they do in this run, and two digits of rounding."""
    row, heads = measured(max_num_seqs), counted(max_num_seqs)
    lam, e2e, queue = row["requests_per_second"], row["mean_e2e"], row["mean_queue_time"]
    computed = {"in_system": lam * e2e, "waiting": lam * queue, "running": lam * (e2e - queue)}
    return {name: abs(computed[name] - heads[name]) + 0.05 * computed[name] for name in HEADS}


def check_heads(value: object) -> None:
    """Part a: `heads`, mean numbers of requests from rates and times."""
    given = want_dict(value, "heads", keys=[str(cap) for cap in CAPS])
    for cap in CAPS:
        row = want_dict(given[str(cap)], f"heads[{cap}]", keys=HEADS)
        heads, allowed, seen = counted(cap), tolerance(cap), measured(cap)
        for name in HEADS:
            what = f"heads[{cap}][{name!r}]"
            number = want_number(row[name], what, low=0)
            if abs(number - heads[name]) > allowed[name]:
                raise Failed(f"{what} is {number:g}. {_heads_hint(name, number, cap, seen)}")


def _heads_hint(name: str, number: float, cap: int, seen: dict[str, float]) -> str:
    lam, e2e, queue = seen["requests_per_second"], seen["mean_e2e"], seen["mean_queue_time"]
    times = {"in_system": e2e, "waiting": queue, "running": e2e - queue}
    if abs(number - e2e / lam) <= 0.02 * e2e / lam:
        return "A time divided by a rate is no number of requests: look at the units."
    for other, seconds in times.items():
        if other != name and abs(number - lam * seconds) <= 0.05 * lam * seconds:
            return f"That is the number of requests {other.replace('_', ' ')}."
    if number in (cap, USERS, USERS - cap):
        return (
            "That is what the knobs say. The run begins empty and drains at the end, and a mean "
            "over time includes both."
        )
    return (
        "The law holds for any box that requests enter and leave: the number in it is the rate "
        "through it times the time spent in it. Which time belongs to this box?"
    )


# --- b: the cap -----------------------------------------------------------------------------------

NUMBERS = ("throughput", "ttft", "tpot")


def goodput(max_num_seqs: int, seed: int) -> float:
    """Requests a second that meet the goal."""
    return run(max_num_seqs, seed).goodput(GOAL)


def full_house(max_num_seqs: int, seed: int) -> dict[str, float]:
    """Throughput, median TTFT and median TPOT of a run while all users are there."""
    result = run(max_num_seqs, seed)
    finished = [r for r in result.records if 20.0 <= r.arrival + r.e2e <= SECONDS]
    ttft = sorted(r.ttft for r in finished)
    tpot = sorted(r.tpot for r in finished if r.output_len > 1)
    return {
        "throughput": len(finished) / (SECONDS - 20.0),
        "ttft": percentile(ttft, 50) if ttft else SECONDS,
        "tpot": percentile(tpot, 50) if tpot else 0.0,
    }


def check_cap(value: object) -> None:
    """Part b: `design`, a cap and what is expected of it."""
    given = want_dict(value, "design", keys=("max_num_seqs", *NUMBERS))
    cap = want_int(given["max_num_seqs"], "design['max_num_seqs']", low=1, high=1024)
    said = {name: want_number(given[name], f"design[{name!r}]", low=0) for name in NUMBERS}
    means = {
        name: sum(full_house(cap, seed)[name] for seed in SEEDS) / len(SEEDS) for name in NUMBERS
    }
    best = max(CANDIDATES, key=lambda c: sum(goodput(c, seed) for seed in SEEDS))
    most = sum(goodput(best, seed) for seed in SEEDS)
    mine = sum(goodput(cap, seed) for seed in SEEDS)
    if mine < WITHIN * most:
        slow_start, slow_flow = _misses(cap)
        raise Failed(
            f"With max_num_seqs={cap}, {mine / most:.0%} of the goodput is reached that the best "
            f"cap has; {WITHIN:.0%} is asked for. {slow_start:.0%} of the requests miss the TTFT "
            f"of {GOAL.ttft:g} s, {slow_flow:.0%} the TPOT of {GOAL.tpot:g} s. "
            + (
                "A larger batch makes each step longer: how long may a step take?"
                if slow_flow > slow_start
                else "Whoever is not in the batch waits: how many, and how fast do they get in?"
            )
        )
    for name in NUMBERS:
        values = [full_house(cap, seed)[name] for seed in SEEDS]
        # What two runs differ by, and a tenth: a median is not the mean that the law speaks of.
        allowed = max(values) - min(values) + 0.1 * means[name]
        if abs(said[name] - means[name]) > allowed:
            raise Failed(
                f"The cap is good; design[{name!r}] is {said[name]:g}, and that is not what comes "
                f"of it. {_number_hint(name)}"
            )


def _misses(cap: int) -> tuple[float, float]:
    """Shares of requests that miss the TTFT, and the TPOT."""
    records = [record for seed in SEEDS for record in run(cap, seed).records]
    start, flow = SLO(ttft=GOAL.ttft), SLO(tpot=GOAL.tpot)
    return (
        sum(not start.met(record) for record in records) / len(records),
        sum(not flow.met(record) for record in records) / len(records),
    )


def _number_hint(name: str) -> str:
    return {
        "throughput": (
            "The batch is a box too: max_num_seqs requests are in it, and each stays there for as "
            "long as its tokens take."
        ),
        "ttft": (
            f"The queue is a box too: {USERS} users less those in the batch are in it, and they "
            f"pass at the throughput. (In seconds.)"
        ),
        "tpot": (
            "Seconds between two tokens are the length of a step, at this batch and the contexts "
            "that its requests have, and now and then with a prompt in it."
        ),
    }[name]


PARTS = (
    Part("12a", "Count heads without counting", 3, "heads", "value", check_heads, CHAPTER),
    Part("12b", "Choose the cap", 5, "design", "value", check_cap, CHAPTER),
)


def try_cap(max_num_seqs: int, seed: int = 0) -> dict[str, Any]:
    """A run of the notebook's: goodput, and what `design` asks for."""
    row = full_house(max_num_seqs, seed)
    return {"goodput": goodput(max_num_seqs, seed), **row}
