"""The requests that every engine gets: seeded, and plain data."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

NAMES = ("mixed", "batch1", "long", "load")
"""In the order of running: `load` takes its rate from what `mixed` measured."""


@dataclass(frozen=True)
class Request:
    """One request: greedy, and it goes on past the end-of-sequence token."""

    request_id: str
    prompt: list[int]
    max_tokens: int
    arrival: float = 0.0
    """Seconds after the start; it comes then, whether or not the engine is ready (open loop)."""


def corpus_text() -> str:
    """English that never changes: the licence. Prompts are pieces of it."""
    return (ROOT / "LICENSE").read_text(encoding="utf-8")


def make(
    name: str,
    corpus: Sequence[int],
    *,
    seed: int = 0,
    scale: float = 1.0,
    rate: float | None = None,
) -> list[Request]:
    """The requests of a workload.

    Args:
        corpus: token ids to cut prompts from.
        seed: another seed is another workload of the same kind.
        scale: 0.1 keeps a tenth of the requests, of those of `batch1` a tenth of the tokens.
        rate: arrivals a second; `load` needs it.

    Raises:
        ValueError: on an unknown name, or a `load` without a rate.
    """
    if name not in BUILDERS:
        raise ValueError(f"workload {name!r} is unknown; the known ones are {', '.join(NAMES)}")
    if not corpus:
        raise ValueError("the corpus is empty: prompts are cut from it")
    rng = random.Random(f"{name} {seed}")
    requests = BUILDERS[name](rng, corpus, scale)
    if name != "load":
        return requests
    if rate is None or not rate > 0:
        raise ValueError(f"workload 'load' needs a rate above 0 requests/s (--rate), got {rate}")
    # Exponential gaps of mean 1 are drawn once and stretched: another rate, the same pattern.
    moment, arriving = 0.0, []
    for request in requests:
        arriving.append(
            Request(request.request_id, request.prompt, request.max_tokens, moment / rate)
        )
        moment += rng.expovariate(1.0)
    return arriving


def as_json(requests: Sequence[Request]) -> list[dict[str, Any]]:
    """The form that goes through a worker's pipe."""
    return [asdict(request) for request in requests]


def _piece(rng: random.Random, corpus: Sequence[int], length: int) -> list[int]:
    """So many tokens from a random place, going on at the front where the corpus ends."""
    start = rng.randrange(len(corpus))
    return [corpus[(start + i) % len(corpus)] for i in range(length)]


def _mixed(rng: random.Random, corpus: Sequence[int], scale: float) -> list[Request]:
    """Short and long prompts, short and long outputs, all there at once."""
    return [
        Request(f"r{i}", _piece(rng, corpus, rng.randint(16, 256)), rng.randint(8, 128))
        for i in range(max(1, round(48 * scale)))
    ]


def _batch1(rng: random.Random, corpus: Sequence[int], scale: float) -> list[Request]:
    """One reader, alone: its speed is the memory's."""
    return [Request("r0", _piece(rng, corpus, 64), max(4, round(96 * scale)))]


def _long(rng: random.Random, corpus: Sequence[int], scale: float) -> list[Request]:
    """Long contexts, where attention weighs."""
    return [
        Request(f"r{i}", _piece(rng, corpus, 1500), 64) for i in range(max(1, round(8 * scale)))
    ]


BUILDERS: dict[str, Callable[[random.Random, Sequence[int], float], list[Request]]] = {
    "mixed": _mixed,
    "batch1": _batch1,
    "long": _long,
    "load": _mixed,
}
