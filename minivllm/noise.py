"""The random numbers of sampling: a function of a request's seed and of which token it is.

There is no generator state to lose, so a preempted request picks up where it was.
"""

from __future__ import annotations

import random

_MASK = (1 << 64) - 1


class FreshSeeds:
    """Seeds for requests that bring none.

    Args:
        seed: of the seeds; None: from the system.
    """

    def __init__(self, seed: int | None) -> None:
        self._random = random.Random(seed)

    def fresh_seed(self) -> int:
        """A seed for a request without one."""
        return self._random.getrandbits(63)


def uniform_noise(seed: int, counter: int) -> float:
    """A number in [0, 1) for each (seed, counter): SplitMix64 (Steele et al. 2014), 53 bits."""
    state = _mix(_mix(seed & _MASK) + (counter + 1) * 0x9E3779B97F4A7C15 & _MASK)
    return (state >> 11) / (1 << 53)


def _mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)
