"""Record a running vLLM: `vllm serve MODEL --scheduler-cls minivllm.vllm.Recorder`.

Nothing but Python is needed beside vLLM: this file, `minivllm.runs` and `minivllm.core`. The
scheduler stays vLLM's own, of whatever release: it is asynchronous where the server's would be.
What it is given and what it decides is noted, and a thread writes the notes
(`minivllm.runs.recording` has the format, `python -m minivllm.incident FILE` reads it).

Set in the server's environment:

- `MINIVLLM_RECORDING`: a directory (the current one by default), or a file, `NAME.jsonl.gz`;
- `MINIVLLM_RECORDING_MB`: most megabytes of all its files together, 256 by default; the oldest go;
- `MINIVLLM_RECORDING_TOKENS=1`: token ids too. Without it, no text and no token id is written.

A note that cannot be taken or written ends the recording, with one line in the server's log; the
server serves on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

from minivllm.runs.recording import (
    HASH_BYTES,
    RECORDING_VERSION,
    Segments,
    blocks_crc,
    dumps,
    encode_hashes,
    encode_ids,
    encode_tokens,
    micros,
)

log = logging.getLogger("vllm.minivllm")

FLUSH_SECONDS = 1.0
DEFAULT_MB = 256
MAX_BEHIND = 500_000
"""Notes that may wait for the disk."""


def recording_path() -> Path:
    """Where this process writes."""
    place = Path(os.environ.get("MINIVLLM_RECORDING") or ".")
    if place.name.endswith(".jsonl.gz"):
        return place
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return place / f"minivllm-{stamp}-{os.getpid()}.jsonl.gz"


class Tape:
    """Notes of one scheduler, written by a thread.

    Args:
        scheduler: vLLM's, built.
        path: of the file.
        max_bytes: of all files together.
        token_ids: write them too.
    """

    def __init__(
        self, scheduler: Any, path: Path, max_bytes: int = DEFAULT_MB << 20, token_ids: bool = False
    ) -> None:
        self.scheduler = scheduler
        self.token_ids = token_ids
        self.started = time.monotonic()
        self.epoch = time.time()
        self.notes: deque[tuple[Any, ...]] = deque()
        self.under_way: deque[tuple[Any, list[tuple[str, int]]]] = deque()
        """Plans whose tokens have not come: the plan, its requests and their computed tokens."""
        self.freed: list[Any] = []
        """Requests that the call under way has ended."""
        self.depth = 0
        """Calls under way: one may call another."""
        self.stopped = False
        self.wants_state = False
        """The writer asks for the state, to begin a new segment with."""
        self._asked = False
        self._failed = False
        self._key = os.urandom(16)
        self._requests: dict[str, tuple[int, Any, int]] = {}
        """Unfinished requests by id: number, request, and how many of its hashes are written."""
        self._num_added = 0
        self._last_ids: list[int] = []
        self.segments = Segments(path, max_bytes)
        self.segments.write(dumps(self.header(None)))
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="minivllm-recorder", daemon=True)
        self._thread.start()
        log.info("minivllm records this server's scheduler to %s", path)

    def now(self) -> float:
        return time.monotonic() - self.started

    def header(self, state: dict[str, Any] | None) -> dict[str, Any]:
        from vllm import __version__

        scheduler = self.scheduler
        return {
            "minivllm_recording": RECORDING_VERSION,
            "vllm": __version__,
            "async": is_async(scheduler.vllm_config),
            "model": _without_path(str(scheduler.vllm_config.model_config.model)),
            "epoch": self.epoch,
            "knobs": knobs_of(scheduler),
            "front_door": front_door(scheduler.scheduler_config),
            "unfollowed": unfollowed(scheduler),
            "state": state,
        }

    def stop(self, reason: str) -> None:
        """End the recording; the server goes on."""
        if not self._failed:
            self.stopped = self._failed = True
            self.notes.clear()
            log.warning("minivllm stopped recording: %s. The server goes on.", reason)

    def close(self) -> None:
        """Write what is left; the server goes down."""
        if self.stopped:
            return
        self.notes.append(("e", self.now()))
        self.stopped = True
        self._wake.set()
        self._thread.join(timeout=5)

    # --- the writer's thread --------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self.stopped:
                self._wake.wait(FLUSH_SECONDS)
                self._write()
            self._write()
        except Exception as error:  # whatever it is, the server must not die of it
            self.stop(f"{type(error).__name__}: {error}")
        finally:
            self.segments.close()

    def _write(self) -> None:
        if self._failed:
            return
        if len(self.notes) > MAX_BEHIND:
            raise RuntimeError(f"the disk is {len(self.notes):,} notes behind")
        lines: list[bytes] = []
        while self.notes:
            kind, *note = self.notes.popleft()
            if kind == "state":
                if lines:
                    self.segments.write(b"".join(lines))
                    lines = []
                self.segments.next()
                self._last_ids = []
                lines.append(dumps(self.header(self._state(*note))))
                self._asked = False
            else:
                lines += WRITERS[kind](self, *note)
        if lines:
            self.segments.write(b"".join(lines))
        if self.segments.full and not self._asked:
            self._asked = self.wants_state = True

    def _hashes(self, hashes: Any, first: int = 0) -> str:
        key, size = self._key, HASH_BYTES
        return encode_hashes(blake2b(h, digest_size=size, key=key).digest() for h in hashes[first:])

    def _added(self, when: float, request: Any, num_hashes: int) -> list[bytes]:
        number = self._num_added
        self._num_added += 1
        self._requests[request.request_id] = (number, request, num_hashes)
        return [dumps(["a", micros(when), *self._row(number, request, num_hashes)])]

    def _row(self, number: int, request: Any, num_hashes: int) -> list[Any]:
        params = request.sampling_params
        return [
            number,
            request.request_id,
            request.num_prompt_tokens,
            request.max_tokens,
            getattr(params, "min_tokens", 0) or 0,
            request.priority,
            request.arrival_time,
            self._hashes(request.block_hashes[:num_hashes]),
            features_of(request),
        ]

    def _ends(self, freed: list[tuple[Any, str, int]]) -> tuple[list[list[Any]], list[bytes]]:
        rows, more = [], []
        for request, status, num_output_tokens in freed:
            number, _, written = self._requests.pop(request.request_id, (None, None, 0))
            if number is None:
                continue
            hashes = self._hashes(request.block_hashes, written)
            rows.append([number, num_output_tokens, status, hashes])
            if self.token_ids:
                prompt, output = request.prompt_token_ids or [], request.output_token_ids
                more.append(dumps(["t", number, list(prompt), list(output)]))
        return rows, more

    def _ended(self, when: float, freed: list[tuple[Any, str, int]]) -> list[bytes]:
        rows, more = self._ends(freed)
        return [dumps(["f", micros(when), rows]), *more] if rows else []

    def _planned(
        self, when: float, duration: float, plan: Any, running: int, waiting: int, free: int
    ) -> list[bytes]:
        number = {id_: self._requests[id_][0] for id_ in plan.num_scheduled_tokens}
        ids = list(number.values())
        tokens = encode_tokens(plan.num_scheduled_tokens.values())
        same = ids == self._last_ids and tokens == 0
        encoded = 0 if same else encode_ids(ids)
        self._last_ids = ids
        new_blocks = {number[new.req_id]: new.block_ids[0] for new in plan.scheduled_new_reqs}
        cached = plan.scheduled_cached_reqs
        for id_, blocks in zip(cached.req_ids, cached.new_block_ids):
            if blocks:
                new_blocks[number[id_]] = blocks[0]
        preempted, more = [], []
        for id_ in plan.preempted_req_ids or ():
            victim, request, written = self._requests[id_]
            preempted.append(victim)
            if len(request.block_hashes) > written:
                hashes = request.block_hashes[written:]
                self._requests[id_] = (victim, request, written + len(hashes))
                more.append(dumps(["h", victim, self._hashes(hashes)]))
        line = ["s", micros(when), micros(duration), encoded, tokens, sorted(preempted),
                running, waiting, free, blocks_crc(new_blocks)]  # fmt: skip
        return [dumps(line), *more]

    def _updated(
        self, when: float, duration: float, freed: list[tuple[Any, str, int]]
    ) -> list[bytes]:
        rows, more = self._ends(freed)
        return [dumps(["u", micros(when), micros(duration), rows]), *more]

    def _reset(self, when: float, done: bool) -> list[bytes]:
        return [dumps(["r", micros(when), done])]

    def _bye(self, when: float) -> list[bytes]:
        return [dumps(["e", micros(when)])]

    def _state(
        self,
        rows: list[tuple[Any, ...]],
        running: list[str],
        waiting: list[str],
        free: list[int],
        hashed: list[tuple[int, bytes]],
        under_way: list[list[tuple[str, int]]],
        cadence: list[int],
    ) -> dict[str, Any]:
        """How things stand, for the header of a segment."""
        requests = []
        for request, num_hashes, standing in rows:
            number = self._requests[request.request_id][0]
            self._requests[request.request_id] = (number, request, num_hashes)
            requests.append({"request": self._row(number, request, num_hashes), **standing})
        number_of = {id_: entry[0] for id_, entry in self._requests.items()}
        key, size = self._key, HASH_BYTES
        digests = [blake2b(h, digest_size=size, key=key).digest() for _, h in hashed]
        return {
            "requests": requests,
            "running": [number_of[id_] for id_ in running],
            "waiting": [number_of[id_] for id_ in waiting],
            "free": encode_ids(free),
            "hashed": encode_ids([block_id for block_id, _ in hashed]),
            "hashes": encode_hashes(digests),
            "under_way": [
                [[number_of[id_], computed] for id_, computed in plan if id_ in number_of]
                for plan in under_way
            ],
            "prefill_cadence": cadence,
        }


WRITERS: dict[str, Callable[..., list[bytes]]] = {
    "a": Tape._added,
    "f": Tape._ended,
    "s": Tape._planned,
    "u": Tape._updated,
    "r": Tape._reset,
    "e": Tape._bye,
}


# --- the scheduler's own thread -------------------------------------------------------------


class Recording:
    """Notes what goes through vLLM's scheduler: put it before one as a base class."""

    tape: Tape | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            self.tape = Tape(
                self,
                recording_path(),
                int(float(os.environ.get("MINIVLLM_RECORDING_MB") or DEFAULT_MB) * (1 << 20)),
                os.environ.get("MINIVLLM_RECORDING_TOKENS", "0") not in ("", "0"),
            )
        except Exception as error:
            log.warning(
                "minivllm does not record (%s: %s). The server goes on.",
                type(error).__name__,
                error,
            )

    def add_request(self, request: Any) -> None:
        super().add_request(request)  # type: ignore[misc]
        if (tape := self.tape) is not None and not tape.stopped:
            tape.notes.append(("a", tape.now(), request, len(request.block_hashes)))

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        tape = self.tape
        if tape is None or tape.stopped:
            return super().schedule(*args, **kwargs)  # type: ignore[misc]
        if tape.wants_state:
            self._guarded(self._note_state)
        start = tape.now()
        plan = super().schedule(*args, **kwargs)  # type: ignore[misc]
        self._guarded(self._note_plan, start, plan)
        return plan

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        tape = self.tape
        if tape is None or tape.stopped:
            return super().update_from_output(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        start = tape.now()
        tape.depth += 1
        try:
            outputs = super().update_from_output(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        finally:
            tape.depth -= 1
        while tape.under_way and tape.under_way.popleft()[0] is not scheduler_output:
            pass
        tape.notes.append(("u", start, tape.now() - start, tape.freed))
        tape.freed = []
        return outputs

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        tape = self.tape
        if tape is None or tape.stopped:
            return super().finish_requests(*args, **kwargs)  # type: ignore[misc]
        ended = super().finish_requests(*args, **kwargs)  # type: ignore[misc]
        if tape.freed and not tape.depth:
            tape.notes.append(("f", tape.now(), tape.freed))
            tape.freed = []
        return ended

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        if (tape := self.tape) is not None and not tape.stopped:
            tape.freed.append((request, request.status.name, request.num_output_tokens))
        return super()._free_request(request, *args, **kwargs)  # type: ignore[misc]

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> Any:
        done = super().reset_prefix_cache(*args, **kwargs)  # type: ignore[misc]
        if (tape := self.tape) is not None and not tape.stopped:
            tape.notes.append(("r", tape.now(), bool(done)))
        return done

    def shutdown(self, *args: Any, **kwargs: Any) -> Any:
        if self.tape is not None:
            self.tape.close()
        return super().shutdown(*args, **kwargs)  # type: ignore[misc]

    def _guarded(self, note: Callable[..., None], *args: Any) -> None:
        assert self.tape is not None
        try:
            note(self.tape, *args)
        except Exception as error:
            self.tape.stop(f"{type(error).__name__}: {error}")

    def _note_plan(self, tape: Tape, start: float, plan: Any) -> None:
        requests = self.requests  # type: ignore[attr-defined]
        computed: list[tuple[str, int]] = []
        if tape.wants_state:  # it may have to be told in a header
            computed = [
                (id_, requests[id_].num_computed_tokens) for id_ in plan.num_scheduled_tokens
            ]
        tape.under_way.append((plan, computed))
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()  # type: ignore[attr-defined]
        sizes = len(self.running), len(self.waiting), free  # type: ignore[attr-defined]
        tape.notes.append(("s", start, tape.now() - start, plan, *sizes))

    def _note_state(self, tape: Tape) -> None:
        """Copy how things stand, between two steps, so that a new segment can begin."""
        if any(plan.num_scheduled_tokens and not computed for plan, computed in tape.under_way):
            return  # planned before the state was asked for: at the next step
        manager = self.kv_cache_manager  # type: ignore[attr-defined]
        rows = [
            (
                request,
                len(request.block_hashes),
                {
                    "status": request.status.name,
                    "num_computed_tokens": request.num_computed_tokens,
                    "num_output_tokens": request.num_output_tokens,
                    "num_output_placeholders": request.num_output_placeholders,
                    "num_preemptions": request.num_preemptions,
                    "is_prefill_chunk": bool(getattr(request, "is_prefill_chunk", False)),
                    "blocks": list(manager.get_block_ids(request.request_id)[0]),
                },
            )
            for request in self.requests.values()  # type: ignore[attr-defined]
        ]
        pool = manager.block_pool
        free = [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]
        # Of blocks with equal hashes, the one that is found first comes first.
        found = pool.cached_block_hash_to_block._cache.values()
        copies = (list(it.values()) if isinstance(it, dict) else [it] for it in found)
        hashed = [
            (block.block_id, block.block_hash[:-4])  # without the number of its group
            for block in chain.from_iterable(copies)
        ]
        running = [request.request_id for request in self.running]  # type: ignore[attr-defined]
        waiting = [request.request_id for request in self.waiting]  # type: ignore[attr-defined]
        under_way = [computed for _, computed in tape.under_way]
        cadence = cadence_of(self)
        tape.notes.append(("state", rows, running, waiting, free, hashed, under_way, cadence))
        tape.wants_state = False


# --- what the configuration says ------------------------------------------------------------


def _without_path(model: str) -> str:
    """The model's name: of one on this machine, without where it lies."""
    return Path(model).name if os.path.isabs(model) else model


def is_async(config: Any) -> bool:
    """Whether the server plans a step while another runs."""
    return bool(config.scheduler_config.async_scheduling)


KNOBS = {
    "long_prefill_token_threshold": 0,
    "long_prefill_token_threshold_adaptive": False,
    "max_num_active_seqs": None,
    "watermark": 0.0,
    "policy": "fcfs",
    "enable_chunked_prefill": True,
}
"""Of vLLM's `SchedulerConfig`, with the same name here; and what a release without it does."""


def knobs_of(scheduler: Any) -> dict[str, Any]:
    """The scheduler's limits under the names of `minivllm.core.SchedulerConfig`."""
    config = scheduler.scheduler_config
    knobs = {name: getattr(config, name, default) for name, default in KNOBS.items()}
    # With data parallelism the engine, not the scheduler, keeps the cadence of prompts.
    knobs["prefill_schedule_interval"] = getattr(scheduler, "local_prefill_interval", 1)
    return {
        **knobs,
        "num_gpu_blocks": scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1,
        "block_size": scheduler.block_size,
        "max_model_len": scheduler.max_model_len,
        "max_num_batched_tokens": scheduler.max_num_scheduled_tokens,
        "max_num_seqs": scheduler.max_num_running_reqs,
        "enable_prefix_caching": bool(scheduler.kv_cache_manager.enable_caching),
        "reserve_full_prompt": bool(getattr(config, "scheduler_reserve_full_isl", False)),
    }


def cadence_of(scheduler: Any) -> list[int]:
    """Where it stands between two steps with prompts: steps since the last, and whether behind."""
    if getattr(scheduler, "local_prefill_interval", 1) == 1:
        return []
    since = scheduler.num_executed_steps - scheduler.last_prefill_step
    return [since, int(scheduler.prefill_capacity_bound)]


def front_door(config: Any) -> dict[str, Any]:
    """What turns requests away before the scheduler sees them."""
    names = ("max_num_queued_reqs", "max_num_queued_tokens")
    return {name: value for name in names if (value := getattr(config, name, None)) is not None}


PARALLEL = (
    "pipeline_parallel_size",
    "data_parallel_size",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
)


def unfollowed(scheduler: Any) -> list[str]:
    """What the server is set to do and `minivllm.core` cannot: decisions may differ."""
    config, groups = scheduler.vllm_config, scheduler.kv_cache_config.kv_cache_groups
    parallel = config.parallel_config
    found = []
    if config.speculative_config is not None:
        found.append(f"speculative decoding ({getattr(config.speculative_config, 'method', '?')})")
    if getattr(scheduler, "connector", None) is not None:
        found.append(f"a KV connector ({type(scheduler.connector).__name__})")
    if getattr(scheduler, "ec_connector", None) is not None:
        found.append("an encoder-cache connector")
    if len(groups) != 1:
        found.append(f"{len(groups)} KV cache groups")
    specs = [type(group.kv_cache_spec).__name__ for group in groups]
    if other := sorted({spec for spec in specs if spec != "FullAttentionSpec"}):
        found.append(f"attention other than full ({', '.join(other)})")
    if getattr(scheduler, "is_encoder_decoder", False):
        found.append("an encoder-decoder model")
    sizes = {name: getattr(parallel, name, 1) for name in PARALLEL}
    found += [f"{name}={size}" for name, size in sizes.items() if size > 1]
    if getattr(scheduler, "hash_block_size", scheduler.block_size) != scheduler.block_size:
        found.append(f"hashes of {scheduler.hash_block_size} tokens")
    if getattr(config.model_config, "runner_type", "generate") != "generate":
        found.append(f"a {config.model_config.runner_type} model")
    return found


def features_of(request: Any) -> list[str]:
    """What one request asks for that `minivllm.core` cannot follow."""
    found = []
    if request.lora_request is not None:
        found.append("LoRA")
    if getattr(request, "mm_features", None):
        found.append("images or audio")
    if getattr(request, "prompt_embeds", None) is not None:
        found.append("prompt embeddings")
    if getattr(request, "structured_output_request", None) is not None:
        found.append("structured output")
    if request.pooling_params is not None:
        found.append("pooling")
    if getattr(request, "resumable", False):
        found.append("streamed input")
    if getattr(request, "skip_reading_prefix_cache", False):
        found.append("no reading of the prefix cache")
    return found


def recorder_class() -> type:
    """vLLM's scheduler that records itself: asynchronous, or not, as the server is set."""
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    class SyncRecorder(Recording, Scheduler):
        pass

    class Recorder(Recording, AsyncScheduler):
        def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
            if is_async(vllm_config):
                return super().__new__(cls)
            return SyncRecorder(vllm_config, *args, **kwargs)

    return Recorder


def __getattr__(name: str) -> Any:
    if name == "Recorder":  # vLLM is imported when it is asked for
        globals()[name] = recorder_class()
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
