"""Requests that were recorded, or made by hand."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from minivllm.sim.checks import check_number
from minivllm.sim.workload import Arrival, OpenSource, Source, Workload


@dataclass(frozen=True)
class Trace:
    """Requests that were recorded, or made by hand, in the order of their arrival.

    Raises:
        ValueError: if there is none.
    """

    arrivals: tuple[Arrival, ...] = field(repr=False)
    name: str = "trace"

    def __post_init__(self) -> None:
        if not self.arrivals:
            raise ValueError(f"arrivals: the trace {self.name!r} is empty")
        ordered = tuple(sorted(self.arrivals, key=lambda arrival: arrival.time))
        object.__setattr__(self, "arrivals", ordered)

    def start(self, seed: int) -> Source:
        return OpenSource(iter(self.arrivals))

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "trace", "name": self.name, "num_requests": len(self.arrivals)}

    def scaled(self, factor: float) -> Trace:
        """The same requests, arriving `factor` times as fast."""
        check_number("factor", factor, above=0)
        moved = (replace(a, time=round(a.time / factor, 9)) for a in self.arrivals)
        return Trace(tuple(moved), f"{self.name} x{factor:g}")

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
        """A trace from dictionaries with the columns of `TRACE_COLUMNS`; the first three must be
        there, others are passed over.

        Raises:
            ValueError: naming the row, the column and what is wrong.
        """
        numbered = ((f"row {number}", row) for number, row in enumerate(rows, start=1))
        try:
            arrivals = tuple(_arrivals_of(numbered))
        except ValueError as error:
            raise ValueError(f"{name}, {error}") from None
        return cls(arrivals, name)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a trace: `.csv` with a header line, or `.jsonl` with one object a line.

        Raises:
            ValueError: naming the file, the line, the column and what is wrong.
            OSError: if there is no such file.
        """
        path = Path(path)
        read = {".csv": _csv_lines, ".jsonl": _json_lines, ".ndjson": _json_lines}.get(path.suffix)
        if read is None:
            raise ValueError(f"trace {path.name}: must end in .csv or .jsonl")
        try:
            with path.open(encoding="utf-8", newline="") as file:
                arrivals = tuple(_arrivals_of(read(file)))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path.name}: not UTF-8 text: {error}") from None
        except ValueError as error:
            raise ValueError(f"{path.name}, {error}") from None
        return cls(arrivals, path.name)

    def save(self, path: str | Path) -> None:
        """Write a trace that `load` reads, as `.csv` or `.jsonl`."""
        path = Path(path)
        rows = [
            {column: getattr(a, attribute) for column, (attribute, *_) in TRACE_COLUMNS.items()}
            for a in self.arrivals
        ]
        with path.open("w", encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                writer = csv.DictWriter(file, TRACE_COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
            elif path.suffix in (".jsonl", ".ndjson"):
                file.writelines(json.dumps(row) + "\n" for row in rows)
            else:
                raise ValueError(f"trace {path.name}: must end in .csv or .jsonl")


def _integer(value: Any) -> int:
    """An integer from a cell: `"12"` and `12.0` will do, `12.5` and True will not."""
    number = float(value)
    if isinstance(value, bool) or number != int(number):
        raise ValueError(value)
    return int(number)


TRACE_COLUMNS: dict[str, tuple[str, Callable[[Any], Any], bool]] = {
    "arrival": ("time", float, True),
    "prompt_len": ("prompt_len", _integer, True),
    "output_len": ("output_len", _integer, True),
    "kind": ("kind", str, False),
    "priority": ("priority", _integer, False),
    "prefix_group": ("prefix_group", str, False),
    "prefix_len": ("prefix_len", _integer, False),
}
"""Column of a trace file -> attribute of `Arrival`, how to read it, whether it must be there."""


def _arrivals_of(rows: Iterable[tuple[str, dict[Any, Any]]]) -> Iterator[Arrival]:
    """Requests from rows, each with the place to name in an error."""
    for place, row in rows:
        values: dict[str, Any] = {}
        for column, (attribute, convert, required) in TRACE_COLUMNS.items():
            value = row.get(column)
            if value is None or value == "":
                if required:
                    raise ValueError(f"{place}: {column} is missing")
                continue
            try:
                values[attribute] = convert(value)
            except (TypeError, ValueError, OverflowError):
                kind = "a number" if convert is float else "an integer"
                raise ValueError(f"{place}: {column} must be {kind}, got {value!r}") from None
        try:
            yield Arrival(**values)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None


def _csv_lines(file: TextIO) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Rows of a CSV file, each with its (last) line."""
    reader = csv.DictReader(file)
    try:
        for row in reader:
            place = f"line {reader.line_num}"
            if extra := row.get(None):
                num_columns = len(row) - 1
                raise ValueError(
                    f"{place}: {num_columns + len(extra)} cells under {num_columns} columns"
                )
            yield place, row
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: not CSV: {error}") from None


def _json_lines(file: TextIO) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Objects of a JSONL file, each with its line; empty lines are passed over."""
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: must be an object, got {line.strip():.40}")
        yield f"line {number}", row
