"""What the recorder touches of vLLM, in small: a server's scheduler without vLLM.

Its decisions are our own scheduler's, its requests, plans and outputs have vLLM's names, so that
`minivllm.vllm.Recording` can be put before it. Real recordings are in tests/data/recordings.
"""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from minivllm.core import (
    AsyncScheduler,
    Request,
    RequestStatus,
    SamplingParams,
    Scheduler,
    SchedulerConfig,
)
from minivllm.core.block_pool import hash_block_tokens
from minivllm.sim import StepLoad
from minivllm.vllm import Recording, Tape


class FullAttentionSpec:
    """Its name is what counts."""


class VllmRequest(Request):
    """Our request with what vLLM's has besides."""

    lora_request = pooling_params = prompt_embeds = structured_output_request = None
    mm_features: tuple[Any, ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hash_blocks()

    def append_output_token_id(self, token_id: int) -> None:
        super().append_output_token_id(token_id)
        self._hash_blocks()

    def _hash_blocks(self) -> None:
        """vLLM's requests hash their blocks when these are full, not when somebody asks."""
        hashes, size = self.block_hashes, CONFIG.block_size
        while (len(hashes) + 1) * size <= len(self.all_token_ids):
            tokens = self.all_token_ids[len(hashes) * size :][:size]
            hashes.append(hash_block_tokens(hashes[-1] if hashes else None, tokens))


class VllmScheduler:
    """vLLM's interface before our scheduler; `make` decides whether it is asynchronous."""

    make: type[Scheduler] = Scheduler

    def __init__(self, config: SchedulerConfig) -> None:
        self.inner = self.make(config)
        inner_free = self.inner._free_request
        self.inner._free_request = lambda request: self._free_request(request, inner_free)  # type: ignore[method-assign]
        self.max_num_scheduled_tokens = config.max_num_batched_tokens
        self.max_num_running_reqs = config.max_num_seqs
        self.max_model_len, self.block_size = config.max_model_len, config.block_size
        self.scheduler_config = SimpleNamespace(
            long_prefill_token_threshold=config.long_prefill_token_threshold,
            policy=config.policy,
            watermark=config.watermark,
            long_prefill_token_threshold_adaptive=config.long_prefill_token_threshold_adaptive,
            enable_chunked_prefill=config.enable_chunked_prefill,
            scheduler_reserve_full_isl=config.reserve_full_prompt,
            async_scheduling=self.make is AsyncScheduler,
        )
        self.vllm_config = SimpleNamespace(
            scheduler_config=self.scheduler_config,
            model_config=SimpleNamespace(model="toy", runner_type="generate"),
            parallel_config=SimpleNamespace(),
            speculative_config=None,
        )
        spec = SimpleNamespace(kv_cache_spec=FullAttentionSpec())
        self.kv_cache_config = SimpleNamespace(kv_cache_groups=[spec])
        self.kv_cache_manager = Manager(self.inner)
        self.local_prefill_interval = config.prefill_schedule_interval

    @property
    def num_executed_steps(self) -> int:
        return self.inner.prefill_cadence.num_steps

    @property
    def last_prefill_step(self) -> int:
        return self.inner.prefill_cadence.last_prefill_step

    @property
    def prefill_capacity_bound(self) -> bool:
        return self.inner.prefill_cadence.is_behind

    def _free_request(self, request: Request, free: Any) -> None:
        free(request)

    @property
    def requests(self) -> dict[str, Request]:
        return self.inner.requests

    @property
    def running(self) -> list[Request]:
        return self.inner.running

    @property
    def waiting(self) -> Any:
        return self.inner.waiting

    def add_request(self, request: Request) -> None:
        self.inner.add_request(request)

    def schedule(self) -> Any:
        plan = self.inner.schedule()
        admitted = {r.request_id for r in plan.scheduled_new_reqs}
        old = [id_ for id_ in plan.num_scheduled_tokens if id_ not in admitted]
        new_ids = [plan.new_block_ids.get(id_) for id_ in old]
        return SimpleNamespace(
            inner=plan,
            num_scheduled_tokens=dict(plan.num_scheduled_tokens),
            preempted_req_ids=set(plan.preempted_req_ids),
            scheduled_new_reqs=[
                SimpleNamespace(req_id=id_, block_ids=(plan.new_block_ids[id_],))
                for id_ in plan.num_scheduled_tokens
                if id_ in admitted
            ],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=old, new_block_ids=[None if ids is None else (ids,) for ids in new_ids]
            ),
        )

    def update_from_output(self, plan: Any, tokens: dict[str, int]) -> Any:
        return self.inner.update_from_output(plan.inner, tokens)

    def finish_requests(self, ids: Any, status: RequestStatus) -> Any:
        return self.inner.finish_requests(ids, status)

    def reset_prefix_cache(self) -> bool:
        return self.inner.kv_cache_manager.block_pool.reset_prefix_cache()

    def shutdown(self) -> None:
        pass


class Manager:
    """vLLM's names of our KV cache manager's parts."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._manager = scheduler.kv_cache_manager
        pool = self._manager.block_pool
        self.enable_caching = pool.enable_caching
        self.block_pool = SimpleNamespace(
            num_gpu_blocks=pool.num_gpu_blocks,
            get_num_free_blocks=pool.get_num_free_blocks,
            free_block_queue=SimpleNamespace(get_all_free_blocks=lambda: list(self._free(pool))),
            cached_block_hash_to_block=SimpleNamespace(_cache=Cache(pool)),
        )

    def get_block_ids(self, request_id: str) -> tuple[list[int]]:
        return (self._manager.get_block_ids(request_id),)

    @staticmethod
    def _free(pool: Any) -> Any:
        block = pool.free_block_queue.head.next_free_block
        while block is not pool.free_block_queue.tail:
            yield block
            block = block.next_free_block


class Cache:
    """Blocks by hash, the hash with its group behind it."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def values(self) -> Any:
        for copies in self.pool.cached_block_hash_to_block.values():
            yield {
                id_: SimpleNamespace(block_id=id_, block_hash=block.block_hash + b"\0\0\0\0")
                for id_, block in copies.items()
            }


class SyncServer(Recording, VllmScheduler):
    """Records itself."""


class AsyncServer(Recording, VllmScheduler):
    """Records itself, and plans ahead."""

    make = AsyncScheduler


SECRET = 987_654
"""Every prompt has it: it must not be in a recording."""

CONFIG = SchedulerConfig(
    num_gpu_blocks=24,
    block_size=4,
    max_model_len=64,
    max_num_batched_tokens=24,
    max_num_seqs=6,
    admission_control=False,
    keep_upstream_bugs=True,
)


def serve(
    path: Path,
    monkeypatch: Any,
    *,
    seed: int = 0,
    num_requests: int = 40,
    config: SchedulerConfig = CONFIG,
    ahead: bool = False,
    between: Any = None,
) -> tuple[Any, int]:
    """A server under a random load, recorded to `path`; it is not shut down.

    Args:
        between: called before each step with the server.

    Returns:
        The server, and how many steps it planned.
    """
    _pretend(path, monkeypatch, config)
    rng = random.Random(seed)
    server = (AsyncServer if ahead else SyncServer)(config)
    prefix = [SECRET, *range(1, 20)]
    waiting, under_way, planned = num_requests, [], 0
    while waiting or server.requests or under_way:
        for _ in range(min(waiting, rng.choice([0, 0, 1, 3]))):
            waiting -= 1
            server.add_request(_request(rng, num_requests - waiting, prefix))
        if server.requests and rng.random() < 0.03:
            server.finish_requests([rng.choice(list(server.requests))], RequestStatus(6))
        if rng.random() < 0.02:
            server.reset_prefix_cache()
        if between is not None:
            between(server)
        if server.requests:
            plan = server.schedule()
            planned += 1
            under_way.append((plan, _tokens(server, plan, rng)))
        if len(under_way) > ahead or (under_way and not server.requests):
            server.update_from_output(*under_way.pop(0))
    return server, planned


def _pretend(path: Path, monkeypatch: Any, config: SchedulerConfig) -> None:
    """A module that says which release it is, and where to record to."""
    vllm = ModuleType("vllm")
    vllm.__version__ = config.vllm_version + "+cpu"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setenv("MINIVLLM_RECORDING", str(path))


def _request(rng: random.Random, index: int, prefix: list[int]) -> VllmRequest:
    length = rng.randint(1, 40)
    prompt = (prefix if rng.random() < 0.5 else [SECRET + rng.randrange(9)] * 20)[:length]
    prompt += [rng.randrange(50, 99) for _ in range(length - len(prompt))]
    request = VllmRequest(
        f"r{index}",
        prompt,
        SamplingParams(max_tokens=rng.randint(1, 20), stop_token_ids=[7], min_tokens=0),
        priority=rng.randrange(3),
        arrival_time=float(index),
    )
    return request


def _tokens(server: Any, plan: Any, rng: random.Random) -> dict[str, int]:
    tokens = {}
    for id_ in plan.num_scheduled_tokens:
        request = server.requests[id_]
        if request.num_computed_tokens >= len(request.all_token_ids):
            tokens[id_] = rng.choice([7, *range(100, 120)])
    return tokens


class TimedServer:
    """A server whose steps take a given time, under a clock that jumps: recorded, and measured.

    Args:
        path: of the recording.
        monkeypatch: pytest's.
        config: its knobs.
        seconds: what a step takes, by its load.
        ahead: plan a step while another runs.
    """

    def __init__(
        self,
        path: Path,
        monkeypatch: Any,
        config: SchedulerConfig,
        seconds: Any,
        ahead: bool = False,
    ) -> None:
        self.now = 0.0
        _pretend(path, monkeypatch, config)
        monkeypatch.setattr(Tape, "now", lambda tape: self.now)
        self.server: Any = (AsyncServer if ahead else SyncServer)(config)
        self.inner: Scheduler = self.server.inner
        self.seconds = seconds
        self.ahead = ahead
        self.loads: list[StepLoad] = []
        self.times: dict[str, list[float]] = {}
        self.arrived: dict[str, float] = {}

    def run(self, num_requests: int, rate: float) -> None:
        """Serve so many requests, at so many a second; then shut down."""
        rng = random.Random(5)
        prefixes = [[SECRET + i] * 40 for i in range(30)]
        arrivals, time = [], 0.0
        for index in range(num_requests):
            time += rng.expovariate(rate)
            length = rng.randint(1, 40)
            prompt = rng.choice(prefixes)[: rng.randint(0, length)]
            prompt = [*prompt, *([1000 + index] * (length - len(prompt)))]
            params = SamplingParams(max_tokens=rng.randint(1, 20), ignore_eos=True)
            arrivals.append((time, f"r{index}", prompt, params))
        under_way: list[tuple[Any, float]] = []
        while arrivals or self.server.requests or under_way:
            if not self.server.requests and not under_way:
                self.now = max(self.now, arrivals[0][0])
            while arrivals and arrivals[0][0] <= self.now:
                self._add(*arrivals.pop(0))
            if self.server.requests:
                begun = max(self.now, under_way[-1][1]) if under_way else self.now
                plan = self.server.schedule()
                load = StepLoad.of_plan(plan.inner)
                self.loads += [load] if load.num_tokens else []
                under_way.append((plan, begun + (self.seconds(load) if load.num_tokens else 0.0)))
                if self.ahead and len(under_way) < 2:
                    continue
            self._update(*under_way.pop(0))
        self.server.shutdown()

    def _add(self, time: float, id_: str, prompt: list[int], params: SamplingParams) -> None:
        epoch = self.server.tape.epoch
        self.arrived[id_] = time
        self.server.add_request(VllmRequest(id_, prompt, params, arrival_time=epoch + time))

    def _update(self, plan: Any, end: float) -> None:
        self.now = end
        tokens = {}
        for id_ in plan.num_scheduled_tokens:
            request = self.server.requests.get(id_)
            if request is not None and self._is_sampled(plan, request):
                tokens[id_] = 5
                self.times.setdefault(id_, []).append(end)
        self.server.update_from_output(plan, tokens)

    def _is_sampled(self, plan: Any, request: Request) -> bool:
        computed = request.num_computed_tokens
        if isinstance(self.inner, AsyncScheduler):
            in_flight = self.inner._in_flight.get(plan.inner.step)
            computed = in_flight[1].get(request.request_id, 0) if in_flight else 0
        return computed >= len(request.all_token_ids)

    def means(self) -> dict[str, float]:
        """Mean TTFT, ITL and E2E in seconds, as a client would have measured them."""
        rows = [(self.arrived[id_], times) for id_, times in self.times.items()]
        gaps = [b - a for _, times in rows for a, b in pairwise(times)]
        return {
            "ttft": sum(times[0] - arrival for arrival, times in rows) / len(rows),
            "itl": sum(gaps) / len(gaps),
            "e2e": sum(times[-1] - arrival for arrival, times in rows) / len(rows),
        }
