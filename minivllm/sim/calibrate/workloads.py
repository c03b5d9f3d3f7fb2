"""What is played to the engine: workloads to fit to, and others to judge by."""

from __future__ import annotations

from typing import Any

from minivllm.sim.lengths import Constant, LogNormal, UniformLength
from minivllm.sim.workload import ClosedLoop, Mix, OpenLoop, RequestClass, Workload


def mix(name: str, prompt: Any, output: Any) -> Mix:
    return Mix(name, ((1.0, RequestClass(name, prompt, output)),))


WIDE = mix("wide", UniformLength(4, 500), UniformLength(2, 32))
SHORT = mix("short", UniformLength(4, 60), UniformLength(16, 64))

TRAINING: dict[str, Workload] = {
    **{f"wide, {n} users": ClosedLoop(WIDE, n, num_requests=6 + 2 * n) for n in (1, 3, 8, 20)},
    **{f"short, {n} users": ClosedLoop(SHORT, n, num_requests=4 + n) for n in (1, 2, 5, 12, 28)},
}
"""What the fit sees: every batch size, prompts alone, decodes alone, and both together."""

HELD_OUT: dict[str, Workload] = {
    "chat, Poisson, light": OpenLoop(
        mix("chat", LogNormal(60, 0.6, 400), LogNormal(40, 0.5, 150)), 0.5, num_requests=15
    ),
    "chat, Poisson, busy": OpenLoop(
        mix("chat", LogNormal(60, 0.6, 400), LogNormal(40, 0.5, 150)), 1.4, num_requests=40
    ),
    "chat, in bursts": OpenLoop(
        mix("chat", LogNormal(60, 0.6, 400), LogNormal(40, 0.5, 150)),
        0.9, num_requests=25, burstiness=0.25,
    ),
    "documents": OpenLoop(
        mix("document", LogNormal(500, 0.4, 900), Constant(24)), 0.3, num_requests=10
    ),
    "16 users who think": ClosedLoop(
        mix("user", UniformLength(20, 250), LogNormal(30, 0.6, 120)), 16, 2.0, num_requests=48
    ),
}  # fmt: skip
"""What it is judged by: other lengths, other arrivals, queues."""

SEEDS = (1, 2)
"""Of the training workloads, and of those held out."""
