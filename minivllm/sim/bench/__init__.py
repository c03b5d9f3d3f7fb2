"""A bench for scheduling policies: write one in a few lines, see on whom it is hard.

    from minivllm.sim.bench import Policy, bench

    class ShortestPrompt(Policy):
        def order(self, request):
            return request.num_prompt_tokens

    print(bench(ShortestPrompt).table())

`policy` is what one writes, `policies` has vLLM's and those debated there, `workloads` who asks,
`judge` runs and compares, `shrink` finds the smallest workload on which a policy loses.
"""

from __future__ import annotations

from minivllm.sim.bench.judge import Bench, Outcome, bench, run
from minivllm.sim.bench.policies import POLICIES
from minivllm.sim.bench.policy import BrokenPolicy, Policy
from minivllm.sim.bench.shrink import smallest_loss
from minivllm.sim.bench.workloads import HELD_BACK, SHOWN, BenchWorkload

__all__ = [
    "HELD_BACK",
    "POLICIES",
    "SHOWN",
    "Bench",
    "BenchWorkload",
    "BrokenPolicy",
    "Outcome",
    "Policy",
    "bench",
    "run",
    "smallest_loss",
]
