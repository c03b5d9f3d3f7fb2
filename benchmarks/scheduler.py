"""The scheduler alone: microseconds per running request and step, ours beside vLLM's own.

Each case is a fresh scheduler in decode's steady state. Two say whether a cost depends on what it
must not: a pool a hundred times larger, and 10,000 requests in the queue.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import peers, summary
from benchmarks.children import Worker, WorkerError
from benchmarks.peers import ENGINES
from benchmarks.scheduler_worker import blocks_needed


@dataclass(frozen=True)
class Case:
    """One scheduler's situation."""

    running: int
    waiting: int = 0
    huge_pool: bool = False
    record: bool = False

    def words(self) -> str:
        """For the table."""
        return ", ".join(
            [f"{self.running} running"]
            + ([f"{self.waiting:,} waiting"] if self.waiting else [])
            + (["100 times the blocks"] if self.huge_pool else [])
            + (["recording"] if self.record else [])
        )


CASES = (
    Case(16),
    Case(256),
    Case(1024),
    Case(16, huge_pool=True),
    Case(256, huge_pool=True),
    Case(256, waiting=10_000),
    Case(16, record=True),
    Case(256, record=True),
    Case(1024, record=True),
)


def measure(
    rounds: int,
    steps: int,
    logs: Path,
    say: Callable[[str], None],
    cases: Sequence[Case] = CASES,
    timeout: float = 300.0,
) -> dict[str, Any]:
    """Every case in every round, ours and then vLLM's."""
    workers = {"minivllm": Worker("scheduler-minivllm", log=logs / "scheduler-minivllm.log")}
    problem = _start_vllm(workers, logs)
    if problem:
        say(f"vLLM's scheduler: {problem}")
    versions: dict[str, str] = {}
    times: dict[tuple[Case, str], list[float]] = {}
    try:
        for number in range(rounds):
            for case in cases:
                for name in list(workers):
                    if case.record and name == "vllm":
                        continue
                    order = _order(name, case, steps)
                    try:
                        reply = workers[name].ask(timeout, do="scheduler", case=order)
                    except WorkerError as error:
                        problem = str(error).splitlines()[0].split(" (log: ")[0]
                        say(f"{name}'s scheduler: left out. {error}")
                        workers.pop(name).close()
                        continue
                    versions[name] = reply["version"]
                    both = [a + b for a, b in zip(reply["schedule_us"], reply["update_us"])]
                    times.setdefault((case, name), []).append(statistics.fmean(both))
            say(f"scheduler, round {number + 1} of {rounds}: done")
    finally:
        for worker in workers.values():
            worker.close()
    return {
        "versions": versions,
        "problem": problem,
        "steps": steps,
        "cases": [_row(case, times) for case in cases],
    }


def _start_vllm(workers: dict[str, Worker], logs: Path) -> str | None:
    """Start vLLM's scheduler, 0.22.1's if it is there; say what is amiss."""
    place = peers.find(ENGINES["vllm"])
    if place is None:
        return f"not installed. To have it:\n    {ENGINES['vllm'].install_line()}"
    folder = peers.scheduler_path(place.python)
    extra = {"VLLM_LOGGING_LEVEL": "ERROR"}
    problem = None
    if folder is not None:
        extra["PYTHONPATH"] = f"{folder}:{peers.ROOT}"
    elif place.versions["vllm"] != peers.VLLM_SCHEDULER:
        problem = (
            f"{place.versions['vllm']} instead of {peers.VLLM_SCHEDULER}. To have that:\n"
            f"    {peers.scheduler_install_line()}"
        )
    workers["vllm"] = Worker(
        "scheduler-vllm", python=place.python, environment=extra, log=logs / "scheduler-vllm.log"
    )
    return problem


def _order(name: str, case: Case, steps: int) -> dict[str, Any]:
    blocks = blocks_needed(case.running, steps)
    return {
        "engine": name,
        "running": case.running,
        "waiting": case.waiting,
        "pool": blocks * 100 if case.huge_pool else blocks,
        "steps": steps,
        "record": case.record,
    }


def _row(case: Case, times: dict[tuple[Case, str], list[float]]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": asdict(case), "words": case.words()}
    for name in ("minivllm", "vllm"):
        rounds = times.get((case, name))
        row[name] = summary.spread(rounds) if rounds else None
    ours, theirs = times.get((case, "minivllm")), times.get((case, "vllm"))
    # Theirs over ours: above 1, ours is faster, as with tokens a second.
    row["ratio"] = summary.ratios(theirs, ours) if ours and theirs else None
    return row
