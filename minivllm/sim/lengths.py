"""Random lengths and times, the same from the same seed on every machine.

All start from `random.Random.random()`: 53 bits of a Mersenne Twister, equal everywhere. Python's
own distributions may change with its version, and logarithms in their last bit with the C library;
so the sampling is written out here, lengths are whole tokens and times whole nanoseconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from statistics import NormalDist
from typing import Protocol

from minivllm.core.config import check_int
from minivllm.sim.checks import check_number

_NORMAL = NormalDist()
Z90 = 1.2815515655446004
"""The standard normal's 90th percentile."""


def uniform(rng: Random) -> float:
    """A number strictly between 0 and 1: its logarithm exists."""
    return (rng.getrandbits(52) + 0.5) * 2.0**-52


def normal(rng: Random) -> float:
    """A standard normal number, by inversion: one draw for each."""
    return _NORMAL.inv_cdf(uniform(rng))


def exponential(rng: Random) -> float:
    """An exponential number with mean 1."""
    return -math.log(uniform(rng))


def gamma(rng: Random, shape: float) -> float:
    """A gamma number with mean `shape` and scale 1 (Marsaglia and Tsang 2000)."""
    if shape < 1:  # one dimension up, and back
        return gamma(rng, shape + 1) * math.exp(math.log(uniform(rng)) / shape)
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    while True:
        x = normal(rng)
        v = (1 + c * x) ** 3
        if v > 0 and math.log(uniform(rng)) < 0.5 * x * x + d - d * v + d * math.log(v):
            return d * v


class Length(Protocol):
    """A distribution of token counts."""

    def sample(self, rng: Random) -> int:
        """A number of tokens, at least 1."""

    def mean(self) -> float:
        """The expected number of tokens."""


@dataclass(frozen=True)
class Constant:
    """Always the same."""

    tokens: int

    def __post_init__(self) -> None:
        check_int("tokens", self.tokens, 1)

    def sample(self, rng: Random) -> int:
        return self.tokens

    def mean(self) -> float:
        return float(self.tokens)


@dataclass(frozen=True)
class UniformLength:
    """Every whole number from `low` to `high`, both included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        check_int("low", self.low, 1)
        check_int("high", self.high, self.low)

    def sample(self, rng: Random) -> int:
        return self.low + int(uniform(rng) * (self.high - self.low + 1))

    def mean(self) -> float:
        return (self.low + self.high) / 2


@dataclass(frozen=True)
class LogNormal:
    """Lengths whose logarithm is normal: most are short, a few very long; cut at `high`.

    Args:
        median: half of all lengths lie below.
        sigma: standard deviation of the logarithm.
        high: longer ones become this long.
    """

    median: float
    sigma: float
    high: int = 1 << 30

    def __post_init__(self) -> None:
        check_number("median", self.median, above=0)
        check_number("sigma", self.sigma, least=0)
        check_int("high", self.high, 1)

    @classmethod
    def from_p90(cls, median: float, p90: float, high: int = 1 << 30) -> LogNormal:
        """The one with this median and this 90th percentile."""
        check_number("median", median, above=0)
        check_number("p90", p90, above=median)
        return cls(median, math.log(p90 / median) / Z90, high)

    @classmethod
    def from_mean(cls, mean: float, sigma: float, high: int = 1 << 30) -> LogNormal:
        """The one with this mean (before the cut) and this spread."""
        check_number("mean", mean, above=0)
        check_number("sigma", sigma, least=0)
        return cls(mean / math.exp(sigma * sigma / 2), sigma, high)

    def sample(self, rng: Random) -> int:
        length = round(self.median * math.exp(self.sigma * normal(rng)))
        return min(max(length, 1), self.high)

    def mean(self) -> float:
        """Of the cut distribution, rounding left out."""
        mean = self.median * math.exp(self.sigma * self.sigma / 2)
        if self.sigma == 0 or self.high >= 1 << 30:
            return min(mean, self.high)
        z = math.log(self.high / self.median) / self.sigma
        return mean * _NORMAL.cdf(z - self.sigma) + self.high * (1 - _NORMAL.cdf(z))


@dataclass(frozen=True)
class Empirical:
    """Drawn with equal chance from lengths that were seen."""

    values: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("values must hold at least one length")
        for value in self.values:
            check_int("values", value, 1)

    def sample(self, rng: Random) -> int:
        return self.values[int(uniform(rng) * len(self.values))]

    def mean(self) -> float:
        return sum(self.values) / len(self.values)
