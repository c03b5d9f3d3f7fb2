"""The clocks that a replay counts its seconds by, and how fast the machine is now."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minivllm.core.config import check_choice
from minivllm.sim.results import percentile

CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}
"""`cpu`: what this process spends on the CPU, all its threads together, so take one thread."""


class ReplayClock:
    """Seconds since the start of a replay: it can jump over idle time, stand still, and run at
    another pace than the clock it reads."""

    def __init__(self, clock: str = "cpu", pace: float = 1.0) -> None:
        check_choice("clock", clock, tuple(CLOCKS))
        self._clock = CLOCKS[clock]
        self._pace = pace
        self._before = 0.0
        self._mark = self._clock()

    def now(self) -> float:
        return self._before + (self._clock() - self._mark) * self._pace

    def jump_to(self, seconds: float) -> None:
        """Nothing is to be done before then."""
        self._before += max(seconds - self.now(), 0.0)

    def set_pace(self, pace: float) -> None:
        """From here on, a second of the clock counts as so many."""
        self._before, self._mark = self.now(), self._clock()
        self._pace = pace

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens inside takes no time."""
        self._before = self.now()
        yield
        self._mark = self._clock()


class Reference:
    """How fast the machine is now, beside when this was made: a fixed computation, timed again.

    On a shared machine even CPU seconds stretch, while neighbours use the memory or the other half
    of a core. A replay asks every `EVERY` steps, and counts its seconds at that pace.

    Half of it reads a large matrix for four rows, as a decode step does; half multiplies small
    matrices, as a prompt does.
    """

    EVERY = 5
    WINDOW = 7

    def __init__(self, clock: str = "cpu") -> None:
        import torch

        self._clock = CLOCKS[clock]
        self._large = torch.rand(49_152, 576), torch.rand(4, 576)
        self._small = torch.rand(1_536, 576), torch.rand(64, 576)
        self._latest: deque[float] = deque(maxlen=self.WINDOW)
        for _ in range(3):
            self._time()
        self.baseline = percentile(sorted(self._time() for _ in range(25)), 50)
        """Seconds that it takes at pace 1."""

    def _time(self) -> float:
        import torch.nn.functional as F

        start = self._clock()
        F.linear(self._large[1], self._large[0])
        for _ in range(8):
            F.linear(self._small[1], self._small[0])
        return self._clock() - start

    def pace(self) -> float:
        """Below 1: slower than at the start, so that a second now counts less."""
        self._latest.append(self._time())
        return self.baseline / percentile(sorted(self._latest), 50)
