"""Who asks for what, and when: arrivals, lengths, mixes. (Recorded requests are in `trace`.)

A workload is a description; `start(seed)` makes a `Source` of it, from which the simulator takes
one arrival after another. An hour of traffic needs no more memory than a minute's.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Protocol

from minivllm.core.config import check_int
from minivllm.sim.checks import check_number, lookup
from minivllm.sim.lengths import (
    Constant,
    Length,
    LogNormal,
    UniformLength,
    exponential,
    gamma,
    uniform,
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request, before anyone has seen it."""

    time: float
    """Seconds from the start."""
    prompt_len: int
    output_len: int
    kind: str = ""
    """What kind of request, for tables that tell the kinds apart."""
    priority: int = 0
    prefix_group: str = ""
    """Requests of one group begin with the same `prefix_len` tokens."""
    prefix_len: int = 0
    hash_ids: tuple[int, ...] = ()
    """What the prompt consists of, if that is known: each id stands for `hash_size` tokens, the
    same wherever the id is the same; the last may be cut. A prompt that is longer ends in tokens of
    its own. More than a group can say: prefixes may branch."""
    hash_size: int = 0

    def __post_init__(self) -> None:
        check_number("arrival", self.time, least=0)
        check_int("prompt_len", self.prompt_len, 1)
        check_int("output_len", self.output_len, 1)
        check_int("prefix_len", self.prefix_len, 0)
        check_int("hash_size", self.hash_size, 1 if self.hash_ids else 0)
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise ValueError(f"priority must be an integer, got {self.priority!r}")


@dataclass(frozen=True)
class RequestClass:
    """A kind of request: how long its prompts and its outputs are."""

    name: str
    prompt: Length
    output: Length
    priority: int = 0
    num_prefix_groups: int = 0
    """Each request belongs to one of so many groups, e.g. system prompts; 0: to none."""
    prefix_len: int = 0
    """Tokens that a group shares; they come on top of `prompt`."""

    def __post_init__(self) -> None:
        check_int("num_prefix_groups", self.num_prefix_groups, 0)
        check_int("prefix_len", self.prefix_len, 0)
        if self.prefix_len and not self.num_prefix_groups:
            raise ValueError(
                f"prefix_len={self.prefix_len} needs num_prefix_groups of at least 1, got 0"
            )

    def draw(self, time: float, rng: Random) -> Arrival:
        """A request of this kind."""
        group = ""
        if self.num_prefix_groups:
            group = f"{self.name}-{int(uniform(rng) * self.num_prefix_groups)}"
        return Arrival(
            time,
            self.prompt.sample(rng) + (self.prefix_len if group else 0),
            self.output.sample(rng),
            self.name,
            self.priority,
            group,
            self.prefix_len if group else 0,
        )


@dataclass(frozen=True)
class Mix:
    """Kinds of requests, each with its share."""

    name: str
    parts: tuple[tuple[float, RequestClass], ...]
    source: str = ""
    """Where the numbers come from, and what about them is assumed."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts: a mix needs at least one kind of request")
        for weight, _ in self.parts:
            check_number("weight", weight, above=0)

    @classmethod
    def of(cls, name: str, prompt: Length, output: Length, source: str = "") -> Mix:
        """One kind of request alone."""
        return cls(name, ((1.0, RequestClass(name, prompt, output)),), source)

    def draw(self, time: float, rng: Random) -> Arrival:
        """A request of one of the kinds."""
        if len(self.parts) == 1:
            return self.parts[0][1].draw(time, rng)
        left = uniform(rng) * math.fsum(weight for weight, _ in self.parts)
        for weight, kind in self.parts:
            left -= weight
            if left < 0:
                return kind.draw(time, rng)
        return self.parts[-1][1].draw(time, rng)

    def mean_lengths(self) -> tuple[float, float]:
        """Expected prompt and output tokens of a request."""
        total = math.fsum(weight for weight, _ in self.parts)
        prompt = output = 0.0
        for weight, kind in self.parts:
            shared = kind.prefix_len if kind.num_prefix_groups else 0
            prompt += weight / total * (kind.prompt.mean() + shared)
            output += weight / total * kind.output.mean()
        return prompt, output


CHAT = RequestClass("chat", Constant(200), LogNormal.from_mean(200, 0.7, high=1024))
DOC = RequestClass("doc", Constant(16_000), LogNormal.from_mean(200, 0.7, high=1024))

MIXES: dict[str, Mix] = {
    mix.name: mix
    for mix in (
        Mix.of(
            "sharegpt",
            LogNormal.from_mean(161.31, 1.0, high=1024),
            LogNormal.from_mean(337.99, 0.8, high=1024),
            "Means: Kwon et al. 2023 (PagedAttention), figure 11: ShareGPT, 161.31 tokens in and "
            "337.99 out. The lognormal form, its sigmas and the cut at 1,024 are assumed.",
        ),
        Mix.of(
            "alpaca",
            LogNormal.from_mean(19.31, 0.5, high=256),
            LogNormal.from_mean(58.45, 0.9, high=512),
            "Means: Kwon et al. 2023 (PagedAttention), figure 11: Alpaca, 19.31 tokens in and "
            "58.45 out. The lognormal form, its sigmas and the cuts are assumed.",
        ),
        Mix.of(
            "conversation",
            LogNormal.from_p90(1730, 5696, high=8192),
            LogNormal.from_p90(415, 834, high=2048),
            "Lognormals through the medians and 90th percentiles of openchat_sharegpt4: Agrawal "
            "et al. 2024 (Sarathi-Serve), table 2: prompts 1,730 and 5,696 tokens, outputs 415 "
            "and 834. The lognormal form and the cuts are assumed.",
        ),
        Mix.of(
            "summarisation",
            LogNormal.from_p90(7059, 12985, high=16_000),
            LogNormal.from_p90(208, 371, high=2048),
            "Lognormals through the medians and 90th percentiles of arxiv_summarization: Agrawal "
            "et al. 2024 (Sarathi-Serve), table 2: prompts 7,059 and 12,985 tokens, outputs 208 "
            "and 371. The lognormal form and the cuts are assumed.",
        ),
        Mix("chat", ((1.0, CHAT),), "Made up: 200-token prompts, about 200 output tokens."),
        Mix(
            "chat90-doc10",
            ((0.9, CHAT), (0.1, DOC)),
            "Made up (exercise 10): nine chats of 200 tokens to each document of 16,000; about "
            "200 output tokens either way.",
        ),
        Mix(
            "shared-prefix",
            ((1.0, RequestClass("agent", UniformLength(20, 200), UniformLength(50, 250),
                                num_prefix_groups=8, prefix_len=1024)),),
            "Made up: eight system prompts of 1,024 tokens, each followed by a short question.",
        ),
    )
}  # fmt: skip
"""Every mix that can be named."""


def get_mix(name: str | Mix) -> Mix:
    """A mix by its name; a `Mix` passes through.

    Raises:
        ValueError: naming the mixes that are known.
    """
    return lookup("mix", name, MIXES, Mix)


class Source(Protocol):
    """The arrivals of one run."""

    def next_time(self) -> float:
        """When the next request arrives; infinity: none is on its way."""

    def pop(self) -> Arrival:
        """That request."""

    def finished(self, time: float) -> None:
        """A request has left the system: in a closed loop, its user will ask again."""


class Workload(Protocol):
    """A description of traffic, from which runs are made."""

    def start(self, seed: int) -> Source:
        """The arrivals of a run: the same for the same seed."""

    def to_dict(self) -> dict[str, Any]:
        """The description as JSON-serialisable data."""


class OpenSource:
    """Arrivals that do not care whether earlier requests are done."""

    def __init__(self, arrivals: Iterator[Arrival]) -> None:
        self._arrivals = arrivals
        self._next = next(arrivals, None)

    def next_time(self) -> float:
        return math.inf if self._next is None else self._next.time

    def pop(self) -> Arrival:
        arrival, self._next = self._next, next(self._arrivals, None)
        assert arrival is not None
        return arrival

    def finished(self, time: float) -> None:
        pass


class CappedSource(OpenSource):
    """Arrivals of a client that has at most `limit` requests under way: who is due then waits for
    one to finish, and counts as arrived when it is sent."""

    def __init__(self, arrivals: Iterator[Arrival], limit: int) -> None:
        super().__init__(arrivals)
        self._free = [0.0] * limit
        """When each of the client's places became free."""

    def next_time(self) -> float:
        return max(super().next_time(), self._free[0]) if self._free else math.inf

    def pop(self) -> Arrival:
        time = self.next_time()
        heapq.heappop(self._free)
        return replace(super().pop(), time=time)

    def finished(self, time: float) -> None:
        heapq.heappush(self._free, time)


def gap(rng: Random, rate: float, burstiness: float = 1.0) -> float:
    """Seconds between two arrivals of an `OpenLoop`.

    Raises:
        ValueError: if the rate or the burstiness is no positive number.
    """
    check_number("rate", rate, above=0)
    if burstiness == math.inf:
        return 1 / rate
    check_number("burstiness", burstiness, above=0)
    if burstiness == 1:
        return exponential(rng) / rate
    return gamma(rng, burstiness) / (burstiness * rate)


def _check_end(duration: float | None, num_requests: int | None) -> None:
    if duration is None and num_requests is None:
        raise ValueError("duration or num_requests must be given: traffic has to end")
    if duration is not None:
        check_number("duration", duration, above=0)
    if num_requests is not None:
        check_int("num_requests", num_requests, 1)


@dataclass(frozen=True)
class OpenLoop:
    """Requests that arrive at a rate, whatever becomes of them.

    Args:
        mix: what they ask for: a `Mix`, or the name of one.
        rate: requests a second, on average.
        duration: seconds after which no more arrive.
        num_requests: how many arrive; with `duration`, whichever is reached first.
        burstiness: of the gaps. 1: exponential, a Poisson process. Less: bursts (gamma gaps whose
            squared coefficient of variation is 1 / burstiness). More: smoother. `math.inf`: a
            steady beat. The same meaning as in `vllm bench serve --burstiness`.

    Raises:
        ValueError: naming the parameter, if it is negative, NaN or missing.
    """

    mix: Mix | str
    rate: float
    duration: float | None = None
    num_requests: int | None = None
    burstiness: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mix", get_mix(self.mix))
        gap(Random(0), self.rate, self.burstiness)  # it checks them
        _check_end(self.duration, self.num_requests)

    def start(self, seed: int) -> Source:
        return OpenSource(self._arrivals(Random(seed)))

    def _arrivals(self, rng: Random) -> Iterator[Arrival]:
        assert isinstance(self.mix, Mix)
        time, count = 0.0, 0
        while self.num_requests is None or count < self.num_requests:
            time = round(time + gap(rng, self.rate, self.burstiness), 9)
            if self.duration is not None and time > self.duration:
                return
            yield self.mix.draw(time, rng)
            count += 1

    def to_dict(self) -> dict[str, Any]:
        assert isinstance(self.mix, Mix)
        burstiness = "inf" if self.burstiness == math.inf else self.burstiness
        return {
            "kind": "open",
            "mix": self.mix.name,
            "rate": self.rate,
            "duration": self.duration,
            "num_requests": self.num_requests,
            "burstiness": burstiness,
        }


@dataclass(frozen=True)
class ClosedLoop:
    """Users who each wait for their answer, think, and ask again.

    A slow server is asked less: the load adapts, as it does in a benchmark with a fixed
    concurrency (`vllm bench serve --max-concurrency`).

    Args:
        mix: what they ask for.
        users: how many there are.
        think_time: seconds between an answer and the next question, on average; exponential.
        duration: seconds after which nobody asks any more.
        num_requests: how many are asked in all.

    Raises:
        ValueError: naming the parameter.
    """

    mix: Mix | str
    users: int
    think_time: float = 0.0
    duration: float | None = None
    num_requests: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mix", get_mix(self.mix))
        check_int("users", self.users, 1)
        check_number("think_time", self.think_time, least=0)
        _check_end(self.duration, self.num_requests)

    def start(self, seed: int) -> Source:
        return _ClosedSource(self, Random(seed))

    def to_dict(self) -> dict[str, Any]:
        assert isinstance(self.mix, Mix)
        return {
            "kind": "closed",
            "mix": self.mix.name,
            "users": self.users,
            "think_time": self.think_time,
            "duration": self.duration,
            "num_requests": self.num_requests,
        }


class _ClosedSource:
    """The users of a `ClosedLoop`: when each will ask next."""

    def __init__(self, loop: ClosedLoop, rng: Random) -> None:
        self.loop = loop
        self.rng = rng
        self.left = math.inf if loop.num_requests is None else loop.num_requests
        self.times = sorted(self._think(0.0) for _ in range(loop.users))

    def _think(self, now: float) -> float:
        mean = self.loop.think_time
        return round(now + mean * exponential(self.rng), 9) if mean else now

    def next_time(self) -> float:
        over = self.loop.duration
        if not self.times or not self.left or (over is not None and self.times[0] > over):
            return math.inf
        return self.times[0]

    def pop(self) -> Arrival:
        self.left -= 1
        assert isinstance(self.loop.mix, Mix)
        return self.loop.mix.draw(heapq.heappop(self.times), self.rng)

    def finished(self, time: float) -> None:
        heapq.heappush(self.times, self._think(time))
