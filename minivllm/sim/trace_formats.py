"""Trace files as they are published: which columns each has, and how they become requests.

`FORMATS` has an entry for each form. A file is read by name (`azure:FILE`), or by the columns that
it has, where only one form fits.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from decimal import Decimal, InvalidOperation
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from minivllm.sim.workload import Arrival
from minivllm.text_file import open_text, read_json

Row = tuple[str, dict[Any, Any]]
"""A row, and the place to name in an error: "line 3"."""


# --- one cell -------------------------------------------------------------------------------

_DATE = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)(?:\.(\d+))? ?(Z|[+-]\d\d:?\d\d)?", re.ASCII
)


def integer(value: Any) -> int:
    """An integer from a cell: `"12"` and `12.0` will do, `12.5` and True will not."""
    number = float(value)
    if isinstance(value, bool) or number != int(number):
        raise ValueError(value)
    return int(number)


def seconds(value: Any) -> Decimal:
    """Seconds from a number, or from a date and time (UTC unless it says otherwise): from 1970.

    Decimal, since a float has no room for a date and 100 nanoseconds (Azure's resolution).
    """
    if isinstance(value, bool):
        raise ValueError(value)
    if match := _DATE.fullmatch(str(value).strip()):
        day, time, fraction, zone = match.groups()
        zone = "+00:00" if zone in (None, "Z") else zone
        whole = datetime.strptime(f"{day} {time}{zone}", "%Y-%m-%d %H:%M:%S%z")
        since = whole - datetime(1970, 1, 1, tzinfo=timezone.utc)
        return since.days * 86_400 + since.seconds + Decimal(f"0.{fraction or 0}")
    try:
        return Decimal(str(value).strip())
    except InvalidOperation:
        raise ValueError(value) from None


def milliseconds(value: Any) -> Decimal:
    """Seconds from a number of milliseconds."""
    return seconds(value) / 1000


def ids(value: Any) -> tuple[int, ...]:
    """A list of integers; in a CSV cell: "0 1 2"."""
    if isinstance(value, str):
        value = re.split(r"[\s,]+", value.strip(" []"))
    return tuple(integer(one) for one in value)


@dataclass(frozen=True)
class Column:
    """Where a column's value goes, and how to read it."""

    attribute: str
    """Of `Arrival`."""
    convert: Callable[[Any], Any]
    what: str
    """For errors: "must be ..."."""
    required: bool = True


_TIME = "a number of seconds, or a date and time"


# --- the forms ------------------------------------------------------------------------------


@dataclass(frozen=True)
class TraceFormat:
    """A form of trace file."""

    name: str
    source: str
    columns: Mapping[str, Column]
    published: bool = True
    """Somebody else's: its times count from the first request's, and what has no tokens failed."""
    hash_size: int = 0
    """Tokens that each of `hash_ids` stands for."""

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that must be there."""
        return tuple(name for name, column in self.columns.items() if column.required)


FORMATS: dict[str, TraceFormat] = {
    form.name: form
    for form in (
        TraceFormat(
            "minivllm",
            "ours: what `Trace.save` writes",
            {
                "arrival": Column("time", seconds, _TIME),
                "prompt_len": Column("prompt_len", integer, "an integer"),
                "output_len": Column("output_len", integer, "an integer"),
                "kind": Column("kind", str, "a text", False),
                "priority": Column("priority", integer, "an integer", False),
                "prefix_group": Column("prefix_group", str, "a text", False),
                "prefix_len": Column("prefix_len", integer, "an integer", False),
                "hash_ids": Column("hash_ids", ids, "integers", False),
                "hash_size": Column("hash_size", integer, "an integer", False),
            },
            published=False,
        ),
        TraceFormat(
            "azure",
            "Azure LLM inference traces of 2023 and 2024: github.com/Azure/AzurePublicDataset",
            {
                "TIMESTAMP": Column("time", seconds, _TIME),
                "ContextTokens": Column("prompt_len", integer, "an integer"),
                "GeneratedTokens": Column("output_len", integer, "an integer"),
            },
        ),
        TraceFormat(
            "burstgpt",
            "Wang et al. 2024: github.com/HPMLL/BurstGPT; its rows without tokens are failures",
            {
                "Timestamp": Column("time", seconds, _TIME),
                "Request tokens": Column("prompt_len", integer, "an integer"),
                "Response tokens": Column("output_len", integer, "an integer"),
                "Model": Column("kind", str, "a text", False),
            },
        ),
        TraceFormat(
            "mooncake",
            "Qin et al. 2024: github.com/kvcache-ai/Mooncake; a hash id is a block of 512 tokens",
            {
                "timestamp": Column("time", milliseconds, "a number of milliseconds"),
                "input_length": Column("prompt_len", integer, "an integer"),
                "output_length": Column("output_len", integer, "an integer"),
                "hash_ids": Column("hash_ids", ids, "a list of integers", False),
            },
            hash_size=512,
        ),
    )
}
"""Every form whose rows are requests, by the name that `NAME:FILE` takes."""

SHAREGPT = "sharegpt"
"""Conversations: texts instead of lengths, and no times."""

NO_TIMES = "it has no arrival times, so that all requests arrive at 0; a rate (--rate) spreads them"

CHARACTERS_PER_TOKEN = 4
"""Of English text, about: what a length is estimated by if nobody counts tokens."""


def split_name(source: str | Path) -> tuple[str | None, Path]:
    """`"azure:traces/a.csv"` as a form's name and a path; None: no form is named.

    Raises:
        ValueError: if what stands before the colon is no form's name, and no such file is there.
    """
    name, colon, rest = str(source).partition(":")
    known = (*FORMATS, SHAREGPT)
    if not colon or isinstance(source, Path):
        return None, Path(source)
    if name.lower() in known:
        return name.lower(), Path(rest)
    if len(name) > 1 and "/" not in name and "\\" not in name and not Path(source).exists():
        raise ValueError(f"trace {source}: no form {name!r} is known; known are {', '.join(known)}")
    return None, Path(source)


@dataclass
class ReadTrace:
    """What a trace file holds."""

    arrivals: list[Arrival]
    has_times: bool = True
    notes: list[str] = field(default_factory=list)
    """What was left out, estimated or changed: to be said to whoever reads the results."""


def read_trace(
    path: Path, name: str | None = None, count_tokens: Callable[[str], int] | None = None
) -> ReadTrace:
    """Read a file of requests: `.csv`, `.jsonl`, or `.json` (conversations), also gzipped.

    Args:
        path: the file.
        name: of a form; None: by the columns.
        count_tokens: of a text, for conversations; None: estimated from its characters.

    Raises:
        ValueError: naming the file, the place in it and what is wrong.
        OSError: if it cannot be read.
    """
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind == ".json" or (name == SHAREGPT and kind != ".jsonl"):
        values = read_json(path)
        if not isinstance(values, list) or not all(isinstance(row, dict) for row in values):
            raise ValueError(f"{path.name}: must be a list of objects, as ShareGPT's files are")
        return read_rows(numbered(values, "entry"), path.name, name, count_tokens)
    lines = {".csv": _csv_lines, ".jsonl": _json_lines, ".ndjson": _json_lines}.get(kind)
    if lines is None:
        raise ValueError(f"trace {path.name}: must end in .csv, .jsonl or .json")
    try:
        with open_text(path) as file:
            return read_rows(lines(file), path.name, name, count_tokens)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: not UTF-8 text: {error}; save it as UTF-8") from None


def numbered(rows: Iterable[dict[Any, Any]], word: str) -> Iterator[Row]:
    """Rows with the place of each."""
    return ((f"{word} {number}", row) for number, row in enumerate(rows, start=1))


def read_rows(
    rows: Iterator[Row],
    title: str,
    name: str | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> ReadTrace:
    """Requests from rows; see `read_trace`."""
    try:
        first = next(rows, None)
        if first is None:
            return ReadTrace([])
        rows = chain([first], rows)
        if name == SHAREGPT or (name is None and _turns(first[1]) is not None):
            return _read_conversations(rows, title, count_tokens)
        return _read_requests(rows, title, _form_of(*first, name))
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise ValueError(f"{title}, {error}") from None


def _form_of(place: str, row: Mapping[Any, Any], name: str | None) -> TraceFormat:
    """The form that is named, or the one form whose columns are there."""
    fitting = [
        form
        for form in ([FORMATS[name]] if name else FORMATS.values())
        if all(column in row for column in form.needed)
    ]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(str(column) for column in row if column is not None)
    if fitting:
        names = ", ".join(form.name for form in fitting)
        raise ValueError(
            f"{place}: the columns {found} fit {names}; name one, as in {fitting[0].name}:FILE"
        )
    wanted = FORMATS[name or "minivllm"]
    missing = [column for column in wanted.needed if column not in row]
    others = "; ".join(
        f"{form.name}: {', '.join(form.needed)}"
        for form in FORMATS.values()
        if form.published and not name
    )
    verb = "is" if len(missing) == 1 else "are"
    hint = ""
    if len(row) == 1 and (mark := next((mark for mark in ";\t|" if mark in found), "")):
        hint = f" The cells are separated by {mark!r}: separate them by commas."
    raise ValueError(
        f"{place}: {', '.join(missing)} {verb} missing. The columns found are {found}; needed are "
        f"{', '.join(wanted.needed)}{f' (or those of {others})' if others else ''}.{hint}"
    )


def _read_requests(rows: Iterable[Row], title: str, form: TraceFormat) -> ReadTrace:
    found: list[tuple[str, Decimal, dict[str, Any]]] = []
    num_empty = 0
    for place, row in rows:
        values = _values(place, row, form)
        if form.published and 0 in (values["prompt_len"], values["output_len"]):
            num_empty += 1
            continue
        found.append((place, values.pop("time"), values))
    start, unit, notes = _start_of_time([time for _, time, _ in found], form)
    if num_empty:
        notes.append(f"{num_empty} rows without prompt or output tokens are left out: they failed")
    arrivals = []
    for place, time, values in found:
        if values.get("hash_ids") and form.hash_size:
            values["hash_size"] = form.hash_size
            values["prefix_group"] = str(values["hash_ids"][0])
            values["prefix_len"] = min(form.hash_size, values["prompt_len"])
        try:
            arrivals.append(Arrival(round(float((time - start) / unit), 9), **values))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
    return ReadTrace(arrivals, notes=[f"{title}: {note}" for note in notes])


def _values(place: str, row: Mapping[Any, Any], form: TraceFormat) -> dict[str, Any]:
    """A row's cells, by the attribute of `Arrival` that each is for."""
    values: dict[str, Any] = {}
    for name, column in form.columns.items():
        value = row.get(name)
        if value is None or value == "":
            if column.required:
                raise ValueError(f"{place}: {name} is missing; needed are {', '.join(form.needed)}")
            continue
        try:
            values[column.attribute] = read = column.convert(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{place}: {name} must be {column.what}, got {value!r}") from None
        if isinstance(read, Decimal) and not read.is_finite():
            raise ValueError(f"{place}: {name} must be a finite number, got {value}")
    return values


_EPOCH = Decimal(100_000_000)
"""Seconds. No trace is three years long: later times count from 1970, not from a start."""

_EPOCH_UNITS = ((1, "seconds"), (10**3, "milliseconds"), (10**6, "microseconds"),
                (10**9, "nanoseconds"))  # fmt: skip


def _start_of_time(times: Sequence[Decimal], form: TraceFormat) -> tuple[Decimal, int, list[str]]:
    """What to subtract from each time, the units in a second, and what to say about it."""
    first = min(times, default=Decimal(0))
    column = next(name for name, column in form.columns.items() if column.attribute == "time")
    unit, word = 1, "seconds"
    if first >= _EPOCH:
        # Until the year 2286 seconds since 1970 are below 1e10; milliseconds begin at 1e11.
        unit, word = [it for it in _EPOCH_UNITS if first >= _EPOCH * it[0]][-1]
    elif not (form.published and first):
        return Decimal(0), 1, []
    of = "" if unit == 1 else f"{word} since 1970, "
    return first, unit, [f"{column}: {of}taken as relative, so that the first request arrives at 0"]


# --- conversations --------------------------------------------------------------------------


def _turns(row: Mapping[Any, Any]) -> list[tuple[str, str]] | None:
    """Who says what, in ShareGPT's spelling or OpenAI's; None if it is no conversation."""
    turns = next(
        (row[key] for key in ("conversations", "conversation", "messages") if key in row), None
    )
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return None
    said = [
        (turn.get("from", turn.get("role")), turn.get("value", turn.get("content")))
        for turn in turns
    ]
    return [(who, text) for who, text in said if isinstance(who, str) and isinstance(text, str)]


def _read_conversations(
    rows: Iterable[Row], title: str, count_tokens: Callable[[str], int] | None
) -> ReadTrace:
    """The first question of each conversation, as long as its answer was: as `vllm bench serve
    --dataset-name sharegpt` takes them (vllm/benchmarks/datasets/datasets.py)."""
    count = count_tokens or (lambda text: round(len(text) / CHARACTERS_PER_TOKEN))
    arrivals, num_left_out = [], 0
    for place, row in rows:
        turns = _turns(row)
        if turns is None:
            found = ", ".join(map(str, row))
            raise ValueError(
                f"{place}: conversations is missing. The keys found are {found}; needed is "
                f"conversations, a list of {{'from': ..., 'value': ...}}"
            )
        asked = next((i for i, (who, _) in enumerate(turns) if who in ("human", "user")), None)
        lengths = [] if asked is None else [count(text) for _, text in turns[asked : asked + 2]]
        if len(lengths) < 2 or 0 in lengths:
            num_left_out += 1
            continue
        arrivals.append(Arrival(0.0, lengths[0], lengths[1]))
    notes = [f"{title}: {NO_TIMES}"]
    if count_tokens is None:
        notes.append(
            f"{title}: lengths are estimated, {CHARACTERS_PER_TOKEN} characters a token; "
            f"Trace.load(FILE, count_tokens=...) counts them"
        )
    if num_left_out:
        notes.append(f"{title}: {num_left_out} conversations without question and answer left out")
    return ReadTrace(arrivals, has_times=False, notes=notes)


# --- lines ----------------------------------------------------------------------------------


def _csv_lines(file: TextIO) -> Iterator[Row]:
    """Rows of a CSV file, each with its (last) line."""
    reader = csv.DictReader(file)
    try:
        if reader.fieldnames is not None:
            reader.fieldnames = [name.strip() for name in reader.fieldnames]
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


def _json_lines(file: TextIO) -> Iterator[Row]:
    """Objects of a JSONL file, each with its line; empty lines are passed over."""
    for number, line in enumerate(file, start=1):
        line = line.strip().lstrip("\ufeff")  # files put together keep each its byte-order mark
        if not line:
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: must be an object, got {line:.40}")
        yield f"line {number}", row
