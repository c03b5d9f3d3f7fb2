"""A recording of a running server: what came in, what was decided, and when. No text, no token ids.

`minivllm.vllm.Recorder` writes one, `minivllm.incident` reads it. A file is a row of gzip members,
one for each second in which something happened, so that a server that is killed, or a file that is
cut, loses the last second at most. Inside are lines of JSON: a header, then an array for each
event. Times are whole microseconds since the recording began.

    {"minivllm_recording": 1, "vllm": "0.32.0", "knobs": {...}, ...}           the header
    ["a", t, n, id, prompt_len, max_tokens, min_tokens, priority, arrival, hashes, features]
    ["f", t, [[n, num_output_tokens, status, hashes], ...]]          ended from outside
    ["s", t, dt, ids, tokens, preempted, running, waiting, free, crc]    a plan, made in dt
    ["u", t, dt, [[n, num_output_tokens, status, hashes], ...]]      the oldest plan's tokens came
    ["h", n, hashes]                                     hashes of blocks that outputs have filled
    ["r", t, done]                                       the prefix cache was reset
    ["t", n, prompt, output]                             token ids, if they were asked for
    ["e", t]                                             the server went down in order

A request has a number `n`. The `ids` of a plan are numbers in the order of scheduling, each less
the one before; 0 stands for "as in the plan before, one token each". `tokens` are runs, [count,
tokens, ...], or 0 for one token each. `hashes` are 8 bytes a block in base64: vLLM's block hashes
under a key that is thrown away, so that equal prefixes are equal and nothing else can be told.
`crc` is of the block ids that the plan handed out (`blocks_crc`).
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

RECORDING_VERSION = 1

HASH_BYTES = 8

MAX_LINE = 1 << 26
"""Bytes of a line: the state of a million blocks is below."""
MAX_BYTES = 1 << 33
"""Bytes that a file may unpack to."""
MAX_BLOCKS = 1 << 21
MAX_TOKENS = 1 << 24
"""Of a prompt."""


class Added(NamedTuple):
    """A request reached the scheduler."""

    time: float
    number: int


class End(NamedTuple):
    """A request is over."""

    number: int
    num_output_tokens: int
    status: str
    """vLLM's: FINISHED_STOPPED, FINISHED_LENGTH_CAPPED, FINISHED_ABORTED, ..."""


class Ended(NamedTuple):
    """Requests were ended from outside."""

    time: float
    ends: list[End]


class Planned(NamedTuple):
    """One call of `schedule()`."""

    time: float
    duration: float
    numbers: list[int]
    """Who got tokens, in the order of scheduling."""
    tokens: list[int]
    preempted: list[int]
    num_running: int
    num_waiting: int
    num_free_blocks: int
    crc: int


class Updated(NamedTuple):
    """The tokens of the oldest plan under way came."""

    time: float
    """When the update began: the tokens were there."""
    duration: float
    ends: list[End]


class Reset(NamedTuple):
    """The prefix cache was to be reset."""

    time: float
    done: bool


Event = Added | Ended | Planned | Updated | Reset


class RecordingError(ValueError):
    """A file that is no recording, or one that says what cannot be."""


@dataclass(slots=True)
class RecordedRequest:
    """All that a recording tells of one request."""

    number: int
    request_id: str
    time: float
    """Seconds from the recording's start: when the scheduler got it."""
    arrival: float
    """The same clock: when the server got it."""
    arrival_time: float
    """vLLM's own, seconds since 1970: it breaks ties."""
    prompt_len: int
    max_tokens: int
    min_tokens: int = 0
    priority: int = 0
    hashes: bytes = b""
    """8 bytes for each full block, prompt and output."""
    features: tuple[str, ...] = ()
    """What it asks of the server that our scheduler cannot follow."""
    num_output_tokens: int | None = None
    """None: it was not over when the recording ended."""
    status: str = ""
    ended: float | None = None
    prompt_token_ids: list[int] | None = None
    output_token_ids: list[int] | None = None

    @property
    def block_hashes(self) -> list[bytes]:
        """One for each full block that is known."""
        return [self.hashes[i : i + HASH_BYTES] for i in range(0, len(self.hashes), HASH_BYTES)]


def blocks_crc(new_block_ids: Mapping[int, Sequence[int]]) -> int:
    """A checksum of the blocks that a plan hands out: request number -> block ids, if any."""
    rows = sorted((n, *ids) for n, ids in new_block_ids.items() if ids)
    return zlib.crc32(str(rows).encode()) if rows else 0


# --- writing --------------------------------------------------------------------------------


def dumps(value: Any) -> bytes:
    """One line."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def micros(seconds: float) -> int:
    """Seconds as the file has them."""
    return round(seconds * 1e6)


def encode_hashes(hashes: Iterable[bytes]) -> str:
    """Hashes of `HASH_BYTES` each, as text."""
    return base64.b64encode(b"".join(hashes)).decode()


def encode_ids(numbers: Sequence[int]) -> list[int]:
    """Each less the one before: small numbers, which compress well."""
    return [b - a for a, b in zip(chain((0,), numbers), numbers)]


def encode_tokens(tokens: Iterable[int]) -> list[int] | int:
    """Runs of equal numbers; 0: all are 1."""
    runs = [x for value, run in groupby(tokens) for x in (len(list(run)), value)]
    return 0 if not runs or runs[1:] == [1] else runs


class Segments:
    """Files of at most `max_bytes` in all: when one is full the next begins, and the oldest go.

    Args:
        path: of the first, `NAME.jsonl.gz`; the next are `NAME.1.jsonl.gz`, `NAME.2.jsonl.gz`, ...
        max_bytes: of all together; each segment may have a quarter.
        open_file: for tests.
    """

    NUM_KEPT = 4

    def __init__(
        self, path: Path, max_bytes: int, open_file: Callable[..., BinaryIO] = open
    ) -> None:
        self.path = path
        self.limit = max(max_bytes // self.NUM_KEPT, 1)
        self._open = open_file
        self.number = 0
        self._size = 0
        self._file = open_file(path, "wb")

    def path_of(self, number: int) -> Path:
        """Of a segment."""
        stem = self.path.name.removesuffix(".jsonl.gz")
        return self.path.with_name(f"{stem}.{number}.jsonl.gz") if number else self.path

    @property
    def full(self) -> bool:
        """Whether the next segment should begin."""
        return self._size >= self.limit

    def next(self) -> None:
        """Begin the next segment, and drop the oldest."""
        self._file.close()
        self.number += 1
        self._size = 0
        self._file = self._open(self.path_of(self.number), "wb")
        if self.number >= self.NUM_KEPT:
            self.path_of(self.number - self.NUM_KEPT).unlink(missing_ok=True)

    def write(self, lines: bytes) -> None:
        """Write whole lines, so that they can be read whatever comes after."""
        member = gzip.compress(lines, 4, mtime=0)
        self._file.write(member)
        self._file.flush()
        self._size += len(member)

    def close(self) -> None:
        self._file.close()


# --- reading --------------------------------------------------------------------------------


@dataclass
class Recording:
    """A recording, read: who came, and, as often as one asks, what happened.

    `events` unpacks the file anew, so that an hour of steps need not lie in memory.
    """

    header: dict[str, Any]
    requests: dict[int, RecordedRequest]
    source: bytes = field(repr=False)
    """The file, packed."""
    name: str = "the recording"
    num_steps: int = 0
    """Plans made."""
    duration: float = 0.0
    """Seconds from the first event to the last."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know: that the file is cut, for one."""

    @property
    def version(self) -> str:
        """vLLM's, without the build."""
        return str(self.header["vllm"]).split("+")[0]

    @property
    def state(self) -> dict[str, Any] | None:
        """How things stood when this segment began; None: there was nothing yet."""
        return self.header.get("state")

    def events(self) -> Iterator[Event]:
        """What happened, in order."""
        return _events(self.source, self.name, None)


def is_recording(data: bytes) -> bool:
    """Whether a file that begins so is a recording, by its first line."""
    try:
        start = zlib.decompressobj(31).decompress(data, 4096)
    except zlib.error:
        start = data[:4096]
    return start.lstrip(b"\xef\xbb\xbf").startswith(b'{"minivllm_recording"')


def read_recording(source: str | Path | bytes, name: str | None = None) -> Recording:
    """Read a recording, whole or cut.

    Raises:
        RecordingError: naming the file, the line, and what is wrong.
        OSError: if it cannot be opened.
    """
    name = name or ("the recording" if isinstance(source, bytes) else Path(source).name)
    if not isinstance(source, bytes):
        source = Path(source).read_bytes()  # at once: the server may be writing still
    recording = Recording({}, {}, source, name)
    first = last = None
    for event in _events(source, name, recording):
        recording.num_steps += isinstance(event, Planned)
        first = event.time if first is None else first
        last = event.time
    if first is not None and last is not None:
        recording.duration = last - first
    if not recording.num_steps:
        recording.notes.append(f"{name}: it holds no step")
    return recording


def _unpacked(source: bytes, notes: list[str], name: str) -> Iterator[bytes]:
    """Pieces of the text; of a cut or a broken file, those before the break."""
    with io.BytesIO(source) as raw:
        piece = raw.read(1 << 16)
        if piece[:2] != b"\x1f\x8b":
            while piece:
                yield piece
                piece = raw.read(1 << 20)
            return
        unpack = zlib.decompressobj(31)
        while piece:
            try:
                while piece:
                    if unpack.eof:
                        unpack = zlib.decompressobj(31)
                    text = unpack.decompress(piece, 1 << 22)
                    piece = unpack.unused_data if unpack.eof else unpack.unconsumed_tail
                    if text:
                        yield text
            except zlib.error as error:
                notes.append(f"{name}: it is broken ({error}); what comes before is read")
                return
            piece = raw.read(1 << 16)
        if not unpack.eof:
            notes.append(f"{name}: it is cut; up to a second before its end is lost")


def _lines(source: bytes, notes: list[str], name: str) -> Iterator[bytes]:
    rest, total = b"", 0
    for piece in _unpacked(source, notes, name):
        total += len(piece)
        if total > MAX_BYTES:
            raise RecordingError(f"{name}: it unpacks to more than {MAX_BYTES >> 30} GiB")
        *lines, rest = (rest + piece).split(b"\n") if rest else piece.split(b"\n")
        if len(rest) > MAX_LINE:
            raise RecordingError(f"{name}: a line is longer than {MAX_LINE >> 20} MiB")
        yield from lines
    if rest:
        try:
            _parsed(rest)
        except (ValueError, RecursionError):
            if not notes:
                notes.append(f"{name}: its last line is cut, and left out")
        else:
            yield rest


BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]')
MAX_DEPTH = 64


def _parsed(line: bytes) -> Any:
    """A line's value. Not of one that is nested deeply: a page's Python has little stack.

    Raises:
        ValueError: if it is no JSON.
    """
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH:
        depth = 0
        for found in BRACKETS.finditer(line):
            depth += (found[0] in b"[{") - (found[0] in b"]}")
            if depth > MAX_DEPTH:
                raise ValueError("it is nested too deeply")
    return json.loads(line)


def _events(source: bytes, name: str, recording: Recording | None) -> Iterator[Event]:
    """The events; `recording` is filled with what they tell of the requests."""
    notes: list[str] = []
    lines = _lines(source, notes, name)
    header = _header(next(lines, b""), name)
    reader = _Reader(header, recording)
    if recording is not None:
        recording.header, recording.notes = header, notes
        reader.take_state()
    for number, line in enumerate(lines, 2):
        try:
            event = reader.event(_parsed(line))
        except (
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            RecursionError,
            OverflowError,
        ) as error:
            reason = error if isinstance(error, RecordingError) else f"not an event ({error})"
            raise RecordingError(f"{name}, line {number}: {reason}") from None
        if event is not None:
            yield event


MAX_FRONT = 600.0
"""Seconds that a request may take from the server's front door to its scheduler: an arrival time
that lies further off is no time of day, but somebody's number."""

BROKEN = (ValueError, TypeError, KeyError, IndexError, RecursionError, OverflowError)
"""What a line that is no event raises."""


def _header(line: bytes, name: str) -> dict[str, Any]:
    try:
        header = _parsed(line.lstrip(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or "minivllm_recording" not in header:
        raise RecordingError(
            f"{name}: this is no recording of minivllm.vllm.Recorder; its first line is no header"
        )
    version = header["minivllm_recording"]
    if version != RECORDING_VERSION:
        raise RecordingError(
            f"{name}: a recording of version {version!r}; this code reads {RECORDING_VERSION}. "
            f"Take a newer minivllm."
        )
    knobs = header.get("knobs")
    if not isinstance(knobs, dict) or not isinstance(header.get("vllm"), str):
        raise RecordingError(f"{name}: its header has no knobs, or no vllm release")
    blocks = knobs.get("num_gpu_blocks")
    if type(blocks) is not int or not 1 <= blocks <= MAX_BLOCKS:
        raise RecordingError(
            f"{name}: num_gpu_blocks must be an integer from 1 to {MAX_BLOCKS}, got {blocks!r:.40}"
        )
    unfollowed = header.setdefault("unfollowed", [])
    if not isinstance(unfollowed, list) or not all(isinstance(x, str) for x in unfollowed):
        raise RecordingError(f"{name}: 'unfollowed' in its header must be a list of strings")
    return header


def _int(value: Any, least: int = 0, most: int = 1 << 62) -> int:
    if type(value) is not int or not least <= value <= most:
        raise RecordingError(f"an integer from {least} to {most} is expected, got {value!r:.40}")
    return value


def _ints(values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise RecordingError(f"a list of integers is expected, got {values!r:.40}")
    return values


def _time(value: Any) -> float:
    return _int(value, -(1 << 52), 1 << 52) / 1e6


def _hashes(value: Any) -> bytes:
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise RecordingError("hashes are no base64") from None
    if len(data) % HASH_BYTES:
        raise RecordingError(f"hashes have {len(data)} bytes, no multiple of {HASH_BYTES}")
    return data


def _number_of(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        raise RecordingError(f"a number is expected, got {value!r:.40}")
    return float(value)


class _Reader:
    """Lines to events."""

    def __init__(self, header: dict[str, Any], recording: Recording | None) -> None:
        self.header = header
        self.recording = recording
        self.epoch = _number_of(header.get("epoch", 0.0))
        self._numbers: list[int] = []

    def take_state(self) -> None:
        """The requests that were there when the segment began."""
        state = self.header.get("state")
        if state is None:
            return
        try:
            for row in state["requests"]:
                self._add(0, row["request"])
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise RecordingError(f"its header's state is broken: {error}") from None

    def event(self, row: Any) -> Event | None:
        kind = row[0]
        if kind == "s":
            _, time, duration, ids, tokens, preempted, running, waiting, free, crc = row
            if ids == 0:
                numbers = self._numbers
            else:
                numbers = self._numbers = list(accumulate(_ints(ids)))
            if tokens == 0:
                counts = [1] * len(numbers)
            else:
                runs = _ints(tokens)
                if sum(runs[::2]) != len(numbers) or min(runs, default=0) < 1 or len(runs) % 2:
                    raise RecordingError(f"tokens of {len(numbers)} requests: {tokens!r:.60}")
                counts = [x for n, value in zip(runs[::2], runs[1::2]) for x in (value,) * n]
            return Planned(
                _time(time), _time(duration), numbers, counts, _ints(preempted),
                _int(running), _int(waiting), _int(free), _int(crc),
            )  # fmt: skip
        if kind == "u":
            _, time, duration, ends = row
            return Updated(_time(time), _time(duration), self._ends(ends, time))
        if kind == "a":
            return self._add(_time(row[1]), row[2:])
        if kind == "f":
            return Ended(_time(row[1]), self._ends(row[2], row[1]))
        if kind == "h":
            if self.recording is not None:
                self.recording.requests[row[1]].hashes += _hashes(row[2])
            return None
        if kind == "r":
            return Reset(_time(row[1]), bool(row[2]))
        if kind == "t":
            if self.recording is not None:
                request = self.recording.requests[row[1]]
                request.prompt_token_ids, request.output_token_ids = _ints(row[2]), _ints(row[3])
            return None
        if kind == "e":
            return None
        raise RecordingError(f"event {kind!r:.40} is not known")

    def _add(self, time: float, row: Sequence[Any]) -> Added:
        number, id_, prompt_len, max_tokens, min_tokens, priority, arrival, hashes, features = row
        number = _int(number)
        if self.recording is not None:
            if not isinstance(id_, str) or not isinstance(features, list):
                raise RecordingError("a request's id is no string, or its features no list")
            if number in self.recording.requests:
                raise RecordingError(f"request {number} is added twice")
            arrival_time = _number_of(arrival)
            self.recording.requests[number] = RecordedRequest(
                number,
                id_,
                time,
                arrival
                if time - MAX_FRONT <= (arrival := arrival_time - self.epoch) <= time
                else time,
                arrival_time,
                _int(prompt_len, 1, MAX_TOKENS),
                _int(max_tokens, 0, MAX_TOKENS * 4),
                _int(min_tokens, 0, MAX_TOKENS * 4),
                _int(priority, -(1 << 62)),
                _hashes(hashes),
                tuple(str(feature) for feature in features),
            )
        return Added(time, number)

    def _ends(self, rows: Any, time: int) -> list[End]:
        ends = []
        for number, num_output_tokens, status, hashes in rows:
            end = End(_int(number), _int(num_output_tokens), str(status))
            ends.append(end)
            if self.recording is not None:
                request = self.recording.requests[number]
                request.hashes += _hashes(hashes)
                request.num_output_tokens, request.status = end[1:]
                request.ended = _time(time)
        return ends
