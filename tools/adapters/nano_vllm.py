"""nano-vllm's scheduler (github.com/GeeeekExplorer/nano-vllm) behind the pipe, as it is.

    git clone https://github.com/GeeeekExplorer/nano-vllm
    NANO_VLLM=nano-vllm python -m minivllm.conformance run … -- python tools/adapters/nano_vllm.py

Needs numpy and xxhash. Of nano-vllm only `engine/scheduler.py`, `block_manager.py` and
`sequence.py` are loaded: the package itself would import CUDA kernels. Its block 0 is vLLM's 1. It
asks for a block when a length is 1 modulo `block_size`, which never happens with blocks of 1.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

for name in ("nanovllm", "nanovllm.engine"):  # packages without their __init__
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [os.path.join(os.environ["NANO_VLLM"], *name.split("."))]
sys.modules["nanovllm.config"] = ModuleType("nanovllm.config")
sys.modules["nanovllm.config"].__dict__["Config"] = SimpleNamespace

from nanovllm.engine.scheduler import Scheduler  # noqa: E402
from nanovllm.engine.sequence import Sequence  # noqa: E402
from nanovllm.sampling_params import SamplingParams  # noqa: E402
from pipe import serve  # type: ignore[import-not-found] # noqa: E402

HELLO = {
    "protocol": 1,
    "name": "nano-vllm",
    "decides": ["who", "tokens", "order", "preemption", "admission", "block_ids", "cache_hits"],
    "lacks": [
        "runs_without_end", "priority", "async_scheduling", "no_chunked_prefill",
        "no_prefix_caching", "no_reserve_full_prompt", "long_prefill_token_threshold", "watermark",
        "max_num_active_seqs", "prefill_schedule_interval", "aborts", "stop_token_ids",
        "min_tokens", "length_limit", "block_size_1",
    ],
}  # fmt: skip


class Under:
    """One scheduler, and the step that waits for its tokens."""

    def __init__(self, config: dict[str, Any]) -> None:
        Sequence.block_size = config["block_size"]
        self.scheduler = Scheduler(
            SimpleNamespace(
                max_num_seqs=config["max_num_seqs"],
                max_num_batched_tokens=config["max_num_batched_tokens"],
                eos=-1,
                kvcache_block_size=config["block_size"],
                num_kvcache_blocks=config["num_usable_blocks"],
            )
        )
        self.ids: dict[int, str] = {}
        self.planned: tuple[list[Any], bool] = ([], False)

    def step(self, message: dict[str, Any]) -> dict[str, Any]:
        for spec in message["add"]:
            params = SamplingParams(max_tokens=spec["max_tokens"], ignore_eos=True)
            sequence = Sequence(spec["prompt_token_ids"], params)
            self.ids[sequence.seq_id] = spec["id"]
            self.scheduler.add(sequence)
        everybody = (*self.scheduler.waiting, *self.scheduler.running)
        held = {s.seq_id for s in everybody if s.block_table}
        planned = ([], False) if self.scheduler.is_finished() else self.scheduler.schedule()
        self.planned = planned
        sequences = planned[0]
        new = [s for s in sequences if s.seq_id not in held]
        gone = [s for s in self.scheduler.waiting if s.seq_id in held and not s.block_table]
        return {
            "scheduled": [[self.ids[s.seq_id], s.num_scheduled_tokens] for s in sequences],
            "sampling": {
                self.ids[s.seq_id]: s.num_completion_tokens
                for s in sequences
                if not planned[1] or s.num_cached_tokens + s.num_scheduled_tokens == s.num_tokens
            },
            "preempted": [self.ids[s.seq_id] for s in gone],
            "admitted": [self.ids[s.seq_id] for s in new],
            "cached": {self.ids[s.seq_id]: s.num_cached_tokens for s in new},
            "block_ids": {self.ids[s.seq_id]: [b + 1 for b in s.block_table] for s in sequences},
        }

    def tokens(self, tokens: dict[str, int]) -> dict[str, Any]:
        sequences, is_prefill = self.planned
        sampled = [tokens.get(self.ids[s.seq_id], 0) for s in sequences]
        self.scheduler.postprocess(sequences, sampled, is_prefill)
        return {"finished": [self.ids[s.seq_id] for s in sequences if s.is_finished]}


if __name__ == "__main__":
    serve(HELLO, Under)
