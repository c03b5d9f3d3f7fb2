"""Who asks, on the bench: small workloads, each hard in a way of its own, and their like.

Those held back are drawn as the shown ones are, from other seeds and with other lengths: a policy
that was fitted to what is shown does worse there. They are in this file; a page does not print
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from minivllm.core import SchedulerConfig
from minivllm.sim.workload import Arrival

Draw = Callable[[Random, float], list[Arrival]]


@dataclass(frozen=True)
class BenchWorkload:
    """Requests, and the cache and seats that they meet."""

    name: str
    arrivals: tuple[Arrival, ...]
    num_gpu_blocks: int = 256
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 512

    def config(self) -> SchedulerConfig:
        """The scheduler's knobs: no prefix cache, so that blocks are counted plainly."""
        return SchedulerConfig(
            num_gpu_blocks=self.num_gpu_blocks,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=4096,
            enable_prefix_caching=False,
        )


def _chat(rng: Random, time: float, size: float, kind: str = "chat", priority: int = 0) -> Arrival:
    return Arrival(
        time, int(size * rng.randint(20, 200)), int(size * rng.randint(20, 120)), kind, priority
    )


def _document(rng: Random, time: float, size: float) -> Arrival:
    return Arrival(time, int(size * rng.randint(800, 1800)), rng.randint(20, 60), "document")


def chats_and_documents(rng: Random, size: float) -> list[Arrival]:
    """Three chats for each document, within a second and a half."""
    times = sorted(rng.uniform(0, 1.5) for _ in range(40))
    draw = (_document if rng.random() < 0.25 else _chat for _ in times)
    return [make(rng, time, size) for make, time in zip(draw, times)]


def burst(rng: Random, size: float) -> list[Arrival]:
    """Everybody at once: the cache is short from the first second on."""
    return [_chat(rng, 0.001 * i, 2 * size) for i in range(48)]


def urgent_among_batch(rng: Random, size: float) -> list[Arrival]:
    """A flood of batch work, and now and then an urgent chat."""
    batch = [_chat(rng, rng.uniform(0, 2), 3 * size, "batch", 0) for _ in range(36)]
    urgent = [_chat(rng, rng.uniform(0, 6), size, "urgent", -1) for _ in range(10)]
    return sorted([*batch, *urgent], key=lambda arrival: arrival.time)


def two_tenants(rng: Random, size: float) -> list[Arrival]:
    """One tenant sends six times as much as the other."""
    loud = [_chat(rng, rng.uniform(0, 3), 2 * size, "loud") for _ in range(42)]
    quiet = [_chat(rng, rng.uniform(0, 3), size, "quiet") for _ in range(7)]
    return sorted([*loud, *quiet], key=lambda arrival: arrival.time)


def one_giant(rng: Random, size: float) -> list[Arrival]:
    """A prompt that needs most of the cache, among a stream of short ones."""
    short = [_chat(rng, 0.02 * i, size, "short") for i in range(44)]
    giant = Arrival(0.2, int(3000 + 200 * size), 40, "giant")
    return sorted([*short, giant], key=lambda arrival: arrival.time)


DRAWS: dict[str, Draw] = {
    "chats and documents": chats_and_documents,
    "a burst": burst,
    "urgent among batch": urgent_among_batch,
    "two tenants": two_tenants,
    "one giant": one_giant,
}


def _made(name: str, draw: Draw, seed: int, size: float) -> BenchWorkload:
    return BenchWorkload(name, tuple(draw(Random(seed), size)))


SHOWN = tuple(_made(name, draw, 1, 1.0) for name, draw in DRAWS.items())
HELD_BACK = tuple(
    _made(f"held back {number}", draw, 100 + number, 0.7 + 0.15 * number)
    for number, draw in enumerate(DRAWS.values(), 1)
)
