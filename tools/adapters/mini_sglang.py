"""mini-sglang's scheduler (github.com/sgl-project/mini-sglang) behind the pipe, as it is.

    git clone https://github.com/sgl-project/mini-sglang
    MINI_SGLANG=mini-sglang/python python -m minivllm.conformance run … -- \\
        python tools/adapters/mini_sglang.py

Needs PyTorch. Its `Scheduler` runs, with its managers, step by step as in its `normal_loop`, but
nothing is computed: replaced are the engine and pinned memory (there is no GPU), and the comparison
of two keys, which is C++ there. Page 0 is vLLM's block 1. It keeps those that decode in a set,
which has no order; and it never preempts: a request is admitted when all tokens that it may ever
have fit.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from pipe import serve  # type: ignore[import-not-found]

ROOT = os.environ["MINI_SGLANG"]
for name in ("minisgl", "minisgl.scheduler", "minisgl.utils", "minisgl.kernel"):
    sys.modules[name] = ModuleType(name)  # packages without their __init__
    sys.modules[name].__path__ = [os.path.join(ROOT, *name.split("."))]


def compare_key(x: torch.Tensor, y: torch.Tensor) -> int:
    """How many tokens two keys have in common at their beginning."""
    length = min(len(x), len(y))
    different = (x[:length] != y[:length]).nonzero()
    return int(different[0]) if len(different) else length


def print_nothing(*_: Any) -> None:
    """What its loggers and its stream do here."""


def empty(*size: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
    """`torch.empty` of memory that no GPU reads."""
    return EMPTY(*size, **more)


EMPTY = torch.empty
vars(torch)["empty"] = empty
setattr(torch.Tensor, "pin_memory", lambda self: self)  # noqa: B010
utils = sys.modules["minisgl.utils"].__dict__
for module in ("misc", "registry"):
    utils.update(vars(import_module(f"minisgl.utils.{module}")))
queues = ("ZmqPubQueue", "ZmqPullQueue", "ZmqPushQueue", "ZmqSubQueue")
utils.update(dict.fromkeys(("load_tokenizer", *queues)))
utils["init_logger"] = lambda name: SimpleNamespace(
    debug_rank0=print_nothing, warning_rank0=print_nothing, info_rank0=print_nothing
)
sys.modules["minisgl.scheduler.config"] = ModuleType("minisgl.scheduler.config")
sys.modules["minisgl.scheduler.config"].__dict__["SchedulerConfig"] = SimpleNamespace
sys.modules["minisgl.kernel"].__dict__["fast_compare_key"] = compare_key

import minisgl.core  # noqa: E402
from minisgl.core import Context, SamplingParams, set_global_ctx  # noqa: E402
from minisgl.message import AbortBackendMsg, UserMsg  # noqa: E402
from minisgl.scheduler.cache import CacheManager  # noqa: E402
from minisgl.scheduler.decode import DecodeManager  # noqa: E402
from minisgl.scheduler.prefill import ChunkedReq, PrefillManager  # noqa: E402
from minisgl.scheduler.scheduler import Scheduler  # noqa: E402
from minisgl.scheduler.table import TableManager  # noqa: E402

HELLO = {
    "protocol": 1,
    "name": "mini-sglang",
    "decides": ["who", "tokens", "admission", "block_ids", "cache_hits"],
    "lacks": [
        "runs_without_end", "priority", "async_scheduling", "no_chunked_prefill",
        "no_reserve_full_prompt", "long_prefill_token_threshold", "watermark",
        "max_num_active_seqs", "prefill_schedule_interval", "stop_token_ids", "min_tokens",
    ],
}  # fmt: skip


class Under(Scheduler):
    """Its scheduler without an engine, and the batch that waits for its tokens."""

    def __init__(self, config: dict[str, Any]) -> None:
        block_size = config["block_size"]
        minisgl.core._GLOBAL_CTX = None  # of the workload before
        set_global_ctx(Context(page_size=block_size))
        pages = -(-config["max_model_len"] // block_size)
        table = torch.zeros(config["max_num_seqs"], pages * block_size, dtype=torch.int32)
        cache = "radix" if config["enable_prefix_caching"] else "naive"
        self.engine = SimpleNamespace(max_seq_len=config["max_model_len"])
        self.table_manager = TableManager(config["max_num_seqs"], table)
        self.cache_manager = CacheManager(config["num_usable_blocks"], block_size, table, cache)
        self.decode_manager = DecodeManager(block_size)
        self.prefill_manager = PrefillManager(
            self.cache_manager, self.table_manager, self.decode_manager
        )
        self.prefill_budget = config["max_num_batched_tokens"]
        self.finished_reqs: set[Any] = set()
        self.eos_token_id = -1
        self.ids: dict[int, str] = {}
        self.prompts: dict[int, int] = {}
        self.batch: Any = None
        self.finished: list[str] = []

    def _prepare_batch(self, batch: Any) -> Any:
        self.cache_manager.allocate_paged(batch.reqs)  # the rest is for the engine
        return SimpleNamespace(batch=batch)

    def send_result(self, reply: list[Any]) -> None:
        self.finished = [self.ids[message.uid] for message in reply if message.finished]

    def step(self, message: dict[str, Any]) -> dict[str, Any]:
        for spec in message["add"]:
            uid = len(self.ids)
            self.ids[uid], self.prompts[uid] = spec["id"], len(spec["prompt_token_ids"])
            params = SamplingParams(max_tokens=spec["max_tokens"], ignore_eos=True)
            prompt = torch.tensor(spec["prompt_token_ids"], dtype=torch.int32)
            self._process_one_msg(UserMsg(uid, prompt, params))
        for uid, name in self.ids.items():
            if name in message["abort"]:
                self._process_one_msg(AbortBackendMsg(uid))
        held = {p.uid for p in self.prefill_manager.pending_list if p.chunked_req}
        self.batch = self._schedule_next_batch()
        reqs = self.batch.batch.reqs if self.batch else []
        new = [r for r in reqs if self.batch.batch.is_prefill and r.uid not in held]
        return {
            "scheduled": [[self.ids[r.uid], r.extend_len] for r in reqs],
            "sampling": {
                self.ids[r.uid]: r.device_len - self.prompts[r.uid]
                for r in reqs
                if not isinstance(r, ChunkedReq)
            },
            "admitted": [self.ids[r.uid] for r in new],
            "cached": {self.ids[r.uid]: r.cached_len for r in new},
            "block_ids": {self.ids[r.uid]: self.blocks(r) for r in reqs},
        }

    def blocks(self, req: Any) -> list[int]:
        """Its block table, as vLLM counts: from 1."""
        size = self.cache_manager.page_size
        slots = self.cache_manager.page_table[req.table_idx, : req.device_len : size]
        return [int(slot) // size + 1 for slot in slots]

    def tokens(self, tokens: dict[str, int]) -> dict[str, Any]:
        self.finished = []
        if self.batch:
            reqs = self.batch.batch.reqs
            for req in reqs:
                req.complete_one()  # as its engine does after the forward pass
            self.decode_manager.filter_reqs(reqs)
            sampled = torch.tensor([tokens.get(self.ids[r.uid], 0) for r in reqs])
            done = SimpleNamespace(synchronize=print_nothing)
            self._process_last_data((self.batch, (None, sampled.to(torch.int32), done)))
        return {"finished": self.finished}


if __name__ == "__main__":
    serve(HELLO, Under)
