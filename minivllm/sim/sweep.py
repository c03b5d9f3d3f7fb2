"""Many runs at once: every point of a grid, on all cores or on a cluster, and never twice.

    rows = sweep({"rate": [5, 10, 20], "budget": [512, 2048]}, workload, path="sweep.csv")

Points are independent, so any `concurrent.futures.Executor` will do: processes by default. On a
cluster, with Dask (`pip install "minivllm[cluster]"`):

    from dask.distributed import Client
    with Client("tcp://scheduler:8786") as client:      # Client() alone: a local cluster
        rows = sweep(grid, workload, executor=client.get_executor(), path="sweep.parquet")

The address is that of a running `dask scheduler`, to which `dask worker tcp://scheduler:8786` on
each machine has connected. The workers need the same Python, Dask and `minivllm`, nothing else: no
files are shared. Each finished point comes back as one row and is written at once, by the process
that called `sweep`; run the same sweep again, and only what is missing is computed. A worker that
dies costs the points that it was at, which Dask gives to another; a scheduler that dies and comes
back under its address costs those that were not done, which are given out once more.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from contextlib import ExitStack, closing
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from minivllm.extras import extra
from minivllm.sim.cluster import lasting
from minivllm.sim.config import SimulationConfig
from minivllm.sim.hardware import get_hardware
from minivllm.sim.models import get_model
from minivllm.sim.results import SLO, merge_rows
from minivllm.sim.workload import Mix, Workload
from minivllm.text_file import read_text

MAX_ATTEMPTS = 4
"""How often a point is given to an executor that cancels it, as a cluster does whose scheduler
goes away."""

T = TypeVar("T")


class SweepError(RuntimeError):
    """Some points failed. The others are done, and written."""

    def __init__(self, failures: dict[str, BaseException], rows: list[dict[str, Any]]) -> None:
        first, error = next(iter(failures.items()))
        points = "1 point" if len(failures) == 1 else f"{len(failures)} points"
        super().__init__(f"{points} failed; the first, {first}: {error}")
        self.failures = failures
        """Point, as text -> what was raised."""
        self.rows = rows


def grid_points(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """All combinations of a grid's values.

    Raises:
        ValueError: if a name has no values.
    """
    for name, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"grid: {name} must hold a list of values, got {values!r}")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def point_key(setup: SimulationConfig, slo: SLO | None = None) -> str:
    """A point's name in the results file: a hash of all that its result depends on, the engine
    itself apart (start a new file when that has changed)."""
    parts = [
        setup.to_dict(),
        setup.config().to_dict(),
        repr(get_model(setup.model)),  # a spec of one's own may borrow a name
        repr(get_hardware(setup.gpu)),
        repr(setup.workload),
        repr(getattr(setup.workload, "arrivals", None)),  # a trace's repr leaves them out
        repr(slo),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _run(setup: SimulationConfig, slo: SLO | None, on_refused: str) -> dict[str, Any]:
    """One point, in a worker."""
    return setup.summary(slo, on_refused=on_refused, max_records=20_000)


def sweep(
    grid: Mapping[str, Sequence[Any]],
    workload: Workload,
    *,
    base: SimulationConfig | None = None,
    slo: SLO | None = None,
    executor: Executor | None = None,
    path: str | Path | None = None,
    on_refused: str = "raise",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Simulate every point of a grid.

    Args:
        grid: name -> values to try. Names are those of `SimulationConfig.with_`: its fields, the
            scheduler's knobs, the workload's fields.
        workload: traffic; the grid may change its rate and the like.
        base: everything that the grid leaves as it is.
        slo: adds `goodput` and `slo_attainment` to the rows.
        executor: runs the points; it is not shut down. Default: a process for each core.
        path: results file, `.csv` or `.parquet` (needs pyarrow). Points found there are not run
            again; each new one is added as soon as it is done. Of one file, one sweep at a time.
        on_refused: as for `simulate`.
        progress: show a bar, if tqdm is installed.

    Returns:
        One row for each point, in the grid's order: its values, then `SimResult.summary`.

    Raises:
        ValueError: on an unknown name or a bad value, before anything runs.
        SweepError: if points failed, after all others are done.
    """
    setup = (base or SimulationConfig()).with_(workload=workload)
    points = grid_points(grid)
    setups = [setup.with_(**point) for point in points]
    for each in setups:
        each.config()  # a point that cannot work stops the sweep before it starts
    keys = [point_key(each, slo) for each in setups]
    file = None if path is None else _ResultsFile(Path(path))
    done = {} if file is None else file.rows
    missing = {
        key: (point, each)
        for key, point, each in zip(keys, points, setups, strict=True)
        if key not in done
    }

    failures: dict[str, BaseException] = {}
    fresh: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        if file is not None:
            stack.callback(file.close)
        if executor is None and missing:
            from concurrent.futures import ProcessPoolExecutor  # a browser has none

            workers = min(len(missing), os.cpu_count() or 1)
            executor = stack.enter_context(ProcessPoolExecutor(workers))
        tasks = {key: (_run, each, slo, on_refused) for key, (_, each) in missing.items()}
        executor = None if executor is None else lasting(executor)
        outcomes = stack.enter_context(closing(_outcomes(executor, tasks)))
        num_done = len(points) - len(missing)
        for key, future in _bar(outcomes, len(points), num_done, progress):
            point = missing[key][0]
            try:
                summary = future.result()
            except Exception as error:
                failures[str(point)] = error
                continue
            fresh[key] = {"key": key, **_labels(point), **summary}
            if file is not None:
                file.append(fresh[key])
    found = {**done, **fresh}
    rows = [
        {"key": key, **_labels(point), **found[key], **_labels(point)}
        for key, point in zip(keys, points, strict=True)
        if key in found
    ]
    if failures:
        raise SweepError(failures, rows)
    return rows


def _outcomes(
    executor: Executor | None, tasks: Mapping[str, tuple[Any, ...]]
) -> Generator[tuple[str, Future[dict[str, Any]]], None, None]:
    """Key and finished future of each task, as they finish; the rest is cancelled when closed.

    A cluster whose scheduler goes away cancels all that it had: that is given out again.
    """
    for attempt in range(MAX_ATTEMPTS):
        futures: dict[Future[dict[str, Any]], str] = {}
        lost = {}
        try:
            for key, task in tasks.items():
                assert executor is not None
                futures[executor.submit(*task)] = key
            for future in as_completed(futures):
                key = futures[future]
                if future.cancelled() and attempt + 1 < MAX_ATTEMPTS:
                    lost[key] = tasks[key]
                else:
                    yield key, future
        finally:
            for future in futures:
                future.cancel()
        tasks = lost


def _labels(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _label(value) for name, value in point.items()}


def _label(value: Any) -> Any:
    """A grid value as a cell of a table."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.name if isinstance(value, Mix) or hasattr(value, "name") else repr(value)


def _bar(outcomes: Iterable[T], total: int, initial: int, progress: bool) -> Iterable[T]:
    if not progress:
        return outcomes
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return outcomes
    return tqdm(outcomes, total=total, initial=initial, desc="sweep", unit="run")


class _ResultsFile:
    """Rows by key, on disk after each one. One process writes: the one that sweeps.

    A Parquet file cannot grow: its new rows wait in a journal beside it, a line of JSON each, until
    the sweep ends or the next one begins.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix not in (".csv", ".parquet"):
            raise ValueError(f"path {path.name}: must end in .csv or .parquet")
        if path.suffix == ".parquet":
            _pyarrow()  # before anything runs
        self.path = path
        found = read_results(path) if path.exists() or _journal(path).exists() else []
        self.rows = {row["key"]: row for row in found}
        self.columns = merge_rows(self.rows.values())
        self._last_sync = 0.0
        if path.suffix == ".parquet" and _journal(path).exists():
            self.close()

    def append(self, row: dict[str, Any]) -> None:
        """Add a row. A crash loses this one at most: a torn last line is dropped when read."""
        self.rows[row["key"]] = row
        if self.path.suffix == ".parquet":
            self._add(_journal(self.path), json.dumps(row) + "\n")
            return
        columns = merge_rows([dict.fromkeys(self.columns), row])
        if columns == self.columns and _ends_a_line(self.path):
            self._add(self.path, _csv_text([row], columns, header=False))
            return
        self.columns = columns
        text = _csv_text(self.rows.values(), columns, header=True)
        self._replace(lambda path: path.write_text(text, encoding="utf-8", newline=""))

    def close(self) -> None:
        """What waits in a journal goes into the Parquet file."""
        journal = _journal(self.path)
        if self.path.suffix != ".parquet" or not journal.exists():
            return
        pyarrow, parquet = _pyarrow()
        rows = self.rows.values()
        columns = merge_rows(rows)
        table = pyarrow.table({c: _same_kind([r.get(c) for r in rows]) for c in columns})
        self._replace(lambda path: parquet.write_table(table, path))
        journal.unlink()

    def _add(self, path: Path, text: str) -> None:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)  # one write: whole lines
            file.flush()
            if time.monotonic() - self._last_sync > 1:  # 10,000 rows a minute need no more
                os.fsync(file.fileno())
                self._last_sync = time.monotonic()

    def _replace(self, write: Callable[[Path], Any]) -> None:
        temporary = self.path.with_name(self.path.name + ".tmp")
        write(temporary)
        os.replace(temporary, self.path)


def _journal(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


def _ends_a_line(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _csv_text(rows: Iterable[dict[str, Any]], columns: list[str], *, header: bool) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _same_kind(values: list[Any]) -> list[Any]:
    """A column that Parquet can hold: a float makes all its numbers floats, a text all texts."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) < 2:
        return values
    convert: type = float if kinds == {int, float} else str
    return [None if value is None else convert(value) for value in values]


def _pyarrow() -> tuple[Any, Any]:
    try:
        with extra("sim", "a .parquet results file"):
            pyarrow = import_module("pyarrow")
            parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise ValueError(f"{error}; or take .csv") from error
    return pyarrow, parquet


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a results file, numbers as numbers. An unfinished last line is passed over."""
    path = Path(path)
    if path.suffix == ".parquet":
        journal = _journal(path)
        lines = _whole_lines(journal).splitlines() if journal.exists() else []
        new = [json.loads(line) for line in lines]
        read_table = _pyarrow()[1].read_table
        old = [] if new and not path.exists() else read_table(path).to_pylist()
        return [*old, *new]
    return [
        {column: _value(cell) for column, cell in row.items()}
        for row in csv.DictReader(io.StringIO(_whole_lines(path)))
    ]


def _whole_lines(path: Path) -> str:
    text = read_text(path)
    return text[: text.rfind("\n") + 1]


def _value(cell: str) -> Any:
    """A cell of a CSV file as what it was."""
    if cell in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[cell]
    try:
        return float(cell) if any(c in cell for c in ".enfNI") else int(cell)
    except ValueError:
        return cell


def pareto_front(
    rows: Iterable[dict[str, Any]], x: str, y: str, *, more_x: bool = True, more_y: bool = False
) -> list[dict[str, Any]]:
    """The rows that no other row beats in both columns, in the order of `x`.

    Args:
        rows: e.g. what `sweep` returned.
        x: a column, e.g. `output_throughput`; `more_x`: more of it is better.
        y: another, e.g. `p99_ttft`; `more_y`: more of it is better.

    Raises:
        ValueError: if a row lacks a column.
    """
    candidates = []
    for row in rows:
        for column in (x, y):
            if not isinstance(row.get(column), (int, float)):
                raise ValueError(f"column {column!r} is not a number in every row")
        if not (math.isnan(row[x]) or math.isnan(row[y])):
            candidates.append(row)
    # Best x first, and among equals best y: then a row counts if its y beats all before it.
    candidates.sort(key=lambda r: (-r[x] if more_x else r[x], -r[y] if more_y else r[y]))
    front: list[dict[str, Any]] = []
    for row in candidates:
        if not front or (row[y] > front[-1][y] if more_y else row[y] < front[-1][y]):
            front.append(row)
    return sorted(front, key=lambda row: row[x])
