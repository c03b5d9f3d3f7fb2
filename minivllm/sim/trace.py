"""Requests that were recorded, or made by hand."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

from minivllm.core.config import check_int
from minivllm.sim.checks import check_number
from minivllm.sim.trace_formats import (
    FORMATS,
    NO_TIMES,
    ReadTrace,
    numbered,
    read_rows,
    read_trace,
    split_name,
)
from minivllm.sim.workload import Arrival, CappedSource, OpenSource, Source, Workload, gap


@dataclass(frozen=True)
class Trace:
    """Requests that were recorded, or made by hand, in the order of their arrival.

    Args:
        arrivals: the requests.
        name: for tables.
        max_concurrency: requests that the client has under way at most; who is due while so many
            are waits at the client, where nobody measures (`vllm bench serve --max-concurrency`).
        has_times: whether the arrival times are anybody's; if not, all are 0 (see `at_rate`).
        notes: what was left out, estimated or changed when the trace was read.

    Raises:
        ValueError: if there is no request.
    """

    arrivals: tuple[Arrival, ...] = field(repr=False)
    name: str = "trace"
    max_concurrency: int | None = None
    has_times: bool = True
    notes: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.arrivals:
            raise ValueError(f"arrivals: the trace {self.name!r} is empty")
        if self.max_concurrency is not None:
            check_int("max_concurrency", self.max_concurrency, 1)
        ordered = tuple(sorted(self.arrivals, key=lambda arrival: arrival.time))
        object.__setattr__(self, "arrivals", ordered)

    def start(self, seed: int) -> Source:
        if self.max_concurrency is not None:
            return CappedSource(iter(self.arrivals), self.max_concurrency)
        return OpenSource(iter(self.arrivals))

    def to_dict(self) -> dict[str, Any]:
        data = {"kind": "trace", "name": self.name, "num_requests": len(self.arrivals)}
        if self.max_concurrency is not None:
            data["max_concurrency"] = self.max_concurrency
        return data

    def scaled(self, factor: float) -> Trace:
        """The same requests, arriving `factor` times as fast."""
        check_number("factor", factor, above=0)
        moved = (replace(a, time=round(a.time / factor, 9)) for a in self.arrivals)
        return replace(self, arrivals=tuple(moved), name=f"{self.name} x{factor:g}")

    def at_rate(self, rate: float, burstiness: float = 1.0, seed: int = 0) -> Trace:
        """The same requests in the same order, arriving as an `OpenLoop` makes them arrive.

        Raises:
            ValueError: as for `OpenLoop`.
        """
        rng, time, moved = Random(seed), 0.0, []
        for arrival in self.arrivals:
            time = round(time + gap(rng, rate, burstiness), 9)
            moved.append(replace(arrival, time=time))
        name = f"{self.name} at {rate:g}/s"
        notes = tuple(note for note in self.notes if NO_TIMES not in note)
        return replace(self, arrivals=tuple(moved), name=name, has_times=True, notes=notes)

    @classmethod
    def record(cls, workload: Workload, seed: int, name: str = "trace") -> Trace:
        """The arrivals of an open loop, written down: to play the very same ones elsewhere."""
        source = workload.start(seed)
        arrivals = []
        while source.next_time() < math.inf:
            arrivals.append(source.pop())
        return cls(tuple(arrivals), name)

    @classmethod
    def from_rows(cls, rows: Iterable[dict[str, Any]], name: str = "trace") -> Trace:
        """A trace from dictionaries with the columns of a form in `FORMATS`; others are passed
        over.

        Raises:
            ValueError: naming the row, the column and what is wrong.
        """
        return cls._of(read_rows(numbered(rows, "row"), name), name)

    @classmethod
    def load(cls, source: str | Path, *, count_tokens: Callable[[str], int] | None = None) -> Trace:
        """Read a trace: `.csv` with a header line, `.jsonl` with one object a line, or `.json`
        with conversations; also gzipped.

        Args:
            source: a path; as `NAME:PATH` it is read as that form (`FORMATS`, "sharegpt"), which
                otherwise the columns tell.
            count_tokens: of a text, for conversations.

        Raises:
            ValueError: naming the file, the line, the column and what is wrong.
            OSError: if there is no such file.
        """
        form, path = split_name(source)
        return cls._of(read_trace(path, form, count_tokens), path.name)

    @classmethod
    def _of(cls, read: ReadTrace, name: str) -> Trace:
        return cls(tuple(read.arrivals), name, has_times=read.has_times, notes=tuple(read.notes))

    def save(self, path: str | Path) -> None:
        """Write a trace that `load` reads, as `.csv` or `.jsonl`."""
        path = Path(path)
        columns = FORMATS["minivllm"].columns
        rows = [
            {name: getattr(a, column.attribute) for name, column in columns.items()}
            for a in self.arrivals
        ]
        with path.open("w", encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                for row in rows:
                    writer.writerow({**row, "hash_ids": " ".join(map(str, row["hash_ids"]))})
            elif path.suffix in (".jsonl", ".ndjson"):
                file.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                raise ValueError(f"trace {path.name}: must end in .csv or .jsonl")
