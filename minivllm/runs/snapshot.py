"""Every step as plain data: what a view draws, a test compares and a reader can print.

A `History` is a configuration and one `Snapshot` for each call of `schedule()`. It serialises to
JSON, and since the scheduler is deterministic, the inputs that it holds are enough to run it
again (`History.replay`), to its end or to any step before. A `SnapshotRecorder` writes it step by
step; `input_log` defers that to when somebody looks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from minivllm.core.block_pool import KVCacheBlock
from minivllm.core.config import SchedulerConfig
from minivllm.core.output import SchedulerOutput
from minivllm.core.request import Request, RequestStatus
from minivllm.core.sampling_params import SamplingParams
from minivllm.core.victim import VICTIM_POLICIES, VictimPolicy, priority_key

if TYPE_CHECKING:
    from minivllm.core.scheduler import Scheduler

SNAPSHOT_VERSION = 1

CAPS = ("gap", "long_prefill_token_threshold", "max_num_batched_tokens", "max_model_len")
"""What can bound a request's tokens in a step, in the order in which the scheduler applies them."""


class RequestRow(TypedDict):
    """An unfinished request, right after `schedule()`; this step's tokens count as computed."""

    status: str
    priority: int
    arrival_time: float
    num_prompt_tokens: int
    num_tokens: int
    num_computed_tokens: int
    num_output_tokens: int
    max_tokens: int | None
    num_preemptions: int
    num_cached_tokens: int
    """Given by the prefix cache at the latest admission."""
    num_scheduled_tokens: int
    """Of this step; 0: it got none."""
    block_table: list[int]
    cpu_block_table: list[int]
    """Its blocks in the CPU pool while it is swapped out."""


class ScheduledRow(TypedDict):
    """One grant of tokens, and what bound it."""

    request_id: str
    kind: str
    """`running`, `new` or `resumed`."""
    num_new_tokens: int
    cap: str
    """The cap of `CAPS` that bound: the first that no later one lowered."""
    limits: dict[str, int | None]
    """What each cap would have allowed; None: it did not apply."""


class BlockRows(TypedDict):
    """The pool; each list is indexed by block id, 0 being the null block."""

    state: str
    """A letter a block: `0` null, `.` free and empty, `e` free but cached (evictable), `p` in use
    and partly filled, `f` in use and full, `c` in use, full and cached."""
    ref_cnt: list[int]
    owners: list[list[str]]
    block_hash: list[str | None]
    """First 12 hexadecimal digits of the hash."""
    free_queue: list[int]
    """Ids in the order in which they will be handed out."""


class CPUBlockRows(TypedDict):
    """The CPU pool of preemption by swap."""

    num_blocks: int
    owners: list[str | None]
    """Indexed by CPU block id; a CPU block has at most one owner."""


class Snapshot(TypedDict):
    """One step: its inputs, the state right after `schedule()`, and what the update brought.

    `events` tells the step in order; each has a `type`, mostly a `request_id`, and:

    - `arrived`: num_prompt_tokens, max_tokens, priority, arrival_time
    - `refused`: reason (a sentence)
    - `aborted`, `stopped`: ended from outside
    - `preempted`: for_request_id, num_blocks_needed, num_free_blocks (the reason);
      victim_policy and victim_keys ([id, key] of every candidate in RUNNING, in order; the
      policy compares the keys); mode (`recompute` or `swap`), num_computed_tokens (to be done
      again, or kept), num_freed_blocks
    - `unscheduled`: num_tokens given back by a victim that this step had served already
    - `swapped_out`, `swapped_in`: blocks, as [from, to] pairs
    - `admitted`, `resumed`: num_computed_tokens at admission
    - `cache_hit`: num_tokens, block_ids
    - `chunked`: num_new_tokens of gap, and the cap
    - `evicted`: block_id, block_hash
    - `admission_stopped`: reason, one of `preempted_in_this_step`, `max_num_batched_tokens`,
      `max_num_seqs`, `enable_chunked_prefill`, `num_gpu_blocks` (then num_blocks_needed and
      num_free_blocks too); request_id is the head of the queue
    - `finished`: status, reason
    """

    version: int
    step: int
    time: float | None
    inputs: list[dict[str, Any]]
    """What came from outside since the last step: `{"type": "add", "request": {...}}` or
    `{"type": "finish", "request_id": ..., "status": ...}`."""
    waiting: list[str]
    running: list[str]
    requests: dict[str, RequestRow]
    scheduled: list[ScheduledRow]
    budget: dict[str, int]
    """`max_num_batched_tokens`, `spent`, `left`."""
    blocks: BlockRows
    cpu_blocks: CPUBlockRows
    events: list[dict[str, Any]]
    stats: dict[str, Any]
    """`StepStats` as a dict."""
    sampled: dict[str, int]
    """The token that the step's update gave each request; empty before the update."""
    finished: list[str]
    """Ended by the step's update."""


@dataclass
class History:
    """A run, step by step.

    Args:
        config: of the scheduler that ran.
        steps: one snapshot for each call of `schedule()`.
        pending_inputs: what came in after the last of them.
    """

    config: SchedulerConfig
    steps: list[Snapshot] = field(default_factory=list)
    pending_inputs: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> Snapshot:
        return self.steps[step]

    def to_dict(self) -> dict[str, Any]:
        """The history as JSON-serialisable data."""
        return {
            "version": SNAPSHOT_VERSION,
            "config": self.config.to_dict(),
            "steps": self.steps,
            "pending_inputs": self.pending_inputs,
        }

    def to_json(self) -> str:
        """The history as compact JSON; the same run gives the same bytes."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> History:
        """The inverse of `to_dict`.

        Raises:
            ValueError: if the version is another, or a part is missing.
        """
        version = data.get("version")
        if version != SNAPSHOT_VERSION:
            raise ValueError(f"history has version {version!r}; this code reads {SNAPSHOT_VERSION}")
        for key in ("config", "steps"):
            if key not in data:
                raise ValueError(f"history has no {key!r}")
        for index, step in enumerate(data["steps"]):
            missing = sorted(Snapshot.__required_keys__ - set(step))
            if missing:
                raise ValueError(f"step {index} of the history has no {missing[0]!r}")
        return cls(
            SchedulerConfig.from_dict(data["config"]),
            list(data["steps"]),
            list(data.get("pending_inputs", ())),
        )

    @classmethod
    def from_json(cls, text: str) -> History:
        """The inverse of `to_json`.

        Raises:
            ValueError: if `text` is not JSON or not a history.
        """
        data = json.loads(text)
        if not isinstance(data, dict):
            raise ValueError("a history is a JSON object")
        return cls.from_dict(data)

    def replay(
        self,
        num_steps: int | None = None,
        *,
        config: SchedulerConfig | None = None,
        select_victim: VictimPolicy | None = None,
    ) -> Scheduler:
        """A scheduler brought to where this run stood after `num_steps` steps.

        Args:
            num_steps: None: all of them, and the pending inputs.
            config: run with other limits instead; the sampled tokens are taken as recorded
                where a request samples in another step too.
            select_victim: the function, if the run used one that has no name.

        Raises:
            ValueError: if the run has fewer steps.
        """
        from minivllm.core.scheduler import Scheduler

        if num_steps is None:
            num_steps = len(self.steps)
        if not 0 <= num_steps <= len(self.steps):
            raise ValueError(f"the run has {len(self.steps)} steps, not {num_steps}")
        times = [step["time"] for step in self.steps if step["time"] is not None]
        scheduler = Scheduler(config or self.config, record=True)
        if times:
            scheduler.clock = lambda: times[min(scheduler.step, len(times) - 1)]
        if select_victim is not None:
            scheduler.select_victim = select_victim
        for step in self.steps[:num_steps]:
            apply_inputs(scheduler, step["inputs"])
            output = scheduler.schedule()
            scheduler.update_from_output(output, step["sampled"])
        if num_steps == len(self.steps):
            apply_inputs(scheduler, self.pending_inputs)
        return scheduler


def request_to_dict(request: Request) -> dict[str, Any]:
    """All that is needed to make the same request again."""
    return {
        "request_id": request.request_id,
        "prompt_token_ids": request.prompt_token_ids,
        "sampling_params": asdict(request.sampling_params),
        "priority": request.priority,
        "arrival_time": request.arrival_time,
        "eos_token_ids": sorted(request.eos_token_ids),
    }


def request_from_dict(data: Mapping[str, Any]) -> Request:
    """The inverse of `request_to_dict`."""
    return Request(
        data["request_id"],
        data["prompt_token_ids"],
        SamplingParams(**data["sampling_params"]),
        priority=data["priority"],
        arrival_time=data["arrival_time"],
        eos_token_id=data["eos_token_ids"],
    )


def apply_inputs(scheduler: Scheduler, inputs: Sequence[Mapping[str, Any]]) -> None:
    """Give a scheduler what came from outside before a recorded step."""
    for item in inputs:
        if item["type"] == "add":
            scheduler.add_request(request_from_dict(item["request"]))
        else:
            scheduler.finish_requests(item["request_id"], RequestStatus[item["status"]])


class SnapshotRecorder:
    """Listens to one scheduler and writes its history."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.history = History(scheduler.config)
        self._events: list[dict[str, Any]] = []
        self._scheduled: list[ScheduledRow] = []
        self._preemption: dict[str, Any] = {}
        self.listen_to(scheduler)

    def listen_to(self, scheduler: Scheduler) -> None:
        """Go on with this scheduler, which stands where the one before stood."""
        self.scheduler = scheduler
        scheduler.kv_cache_manager.block_pool.on_evicted = self._evicted

    def event(self, type_: str, request: Request | None, **data: Any) -> None:
        """Add one event to the step that is going on, or to the next."""
        subject = {} if request is None else {"request_id": request.request_id}
        self._events.append({"type": type_, **subject, **data})

    def arrived(self, request: Request) -> None:
        self.history.pending_inputs.append({"type": "add", "request": request_to_dict(request)})
        self.event(
            "arrived",
            request,
            num_prompt_tokens=request.num_prompt_tokens,
            max_tokens=request.max_tokens,
            priority=request.priority,
            arrival_time=request.arrival_time,
        )

    def finished_from_outside(self, request: Request) -> None:
        self.history.pending_inputs.append(
            {"type": "finish", "request_id": request.request_id, "status": request.status.name}
        )
        aborted = request.status is RequestStatus.FINISHED_ABORTED
        self.event("aborted" if aborted else "stopped", request)

    def scheduled(
        self, kind: str, request: Request, gap: int, token_budget: int, num_new_tokens: int
    ) -> None:
        config = self.scheduler.config
        model_len = config.max_model_len - 1 - request.num_computed_tokens
        limits: dict[str, int | None] = {
            "gap": gap,
            "long_prefill_token_threshold": config.long_prefill_token_threshold or None,
            "max_num_batched_tokens": token_budget,
            "max_model_len": model_len if kind == "running" else None,
        }
        cap, bound = "gap", gap
        for name in CAPS:
            limit = limits[name]
            if limit is not None and limit < bound:
                cap, bound = name, limit
        self._scheduled.append(
            {
                "request_id": request.request_id,
                "kind": kind,
                "num_new_tokens": num_new_tokens,
                "cap": cap,
                "limits": limits,
            }
        )
        if num_new_tokens < gap:
            self.event("chunked", request, num_new_tokens=num_new_tokens, gap=gap, cap=cap)

    def unscheduled(self, victim: Request) -> None:
        for index, row in enumerate(self._scheduled):
            if row["request_id"] == victim.request_id:
                del self._scheduled[index]
                self.event("unscheduled", victim, num_tokens=row["num_new_tokens"])
                return

    def preempting(self, victim: Request, request: Request, num_new_tokens: int) -> None:
        scheduler = self.scheduler
        manager = scheduler.kv_cache_manager
        policy, keys = _victim_keys(scheduler.select_victim, scheduler.running)
        self._preemption = {
            "for_request_id": request.request_id,
            "num_blocks_needed": manager.get_num_blocks_to_allocate(request, num_new_tokens),
            "num_free_blocks": manager.block_pool.get_num_free_blocks(),
            "victim_policy": policy,
            "victim_keys": keys,
            "num_computed_tokens": victim.num_computed_tokens,
        }

    def preempted(self, victim: Request, copies: list[tuple[int, int]] | None) -> None:
        num_free_blocks = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        num_freed_blocks = num_free_blocks - self._preemption["num_free_blocks"]
        mode = "recompute" if copies is None else "swap"
        self.event(
            "preempted", victim, **self._preemption, mode=mode, num_freed_blocks=num_freed_blocks
        )
        if copies is not None:
            self.event("swapped_out", victim, blocks=[list(pair) for pair in copies])

    def admitted(self, request: Request, resumed: bool, copies: list[tuple[int, int]]) -> None:
        self.event(
            "resumed" if resumed else "admitted",
            request,
            num_computed_tokens=request.num_computed_tokens,
        )
        if request.num_cached_tokens:
            table = self.scheduler.kv_cache_manager.get_block_ids(request.request_id)
            num_blocks = request.num_cached_tokens // self.scheduler.config.block_size
            self.event(
                "cache_hit",
                request,
                num_tokens=request.num_cached_tokens,
                block_ids=table[:num_blocks],
            )
        if copies:
            self.event("swapped_in", request, blocks=[list(pair) for pair in copies])

    def admission_stopped(self, reason: str, num_blocks_needed: int | None = None) -> None:
        scheduler = self.scheduler
        data = {}
        if num_blocks_needed is not None:
            data = {
                "num_blocks_needed": num_blocks_needed,
                "num_free_blocks": scheduler.kv_cache_manager.block_pool.get_num_free_blocks(),
            }
        self.event("admission_stopped", scheduler.waiting.peek_request(), reason=reason, **data)

    def _evicted(self, block: KVCacheBlock) -> None:
        assert block.block_hash is not None
        self.event("evicted", None, block_id=block.block_id, block_hash=block.block_hash.hex()[:12])

    def end_of_schedule(self, output: SchedulerOutput) -> None:
        """Write the step's snapshot; the update completes it."""
        scheduler = self.scheduler
        budget = scheduler.config.max_num_batched_tokens
        spent = output.total_num_scheduled_tokens
        self.history.steps.append(
            {
                "version": SNAPSHOT_VERSION,
                "step": output.step,
                "time": scheduler.clock() if scheduler.clock else None,
                "inputs": self.history.pending_inputs,
                "waiting": [request.request_id for request in scheduler.waiting],
                "running": [request.request_id for request in scheduler.running],
                "requests": {
                    request_id: self._request_row(request, output)
                    for request_id, request in scheduler.requests.items()
                },
                "scheduled": self._scheduled,
                "budget": {
                    "max_num_batched_tokens": budget,
                    "spent": spent,
                    "left": budget - spent,
                },
                "blocks": self._block_rows(),
                "cpu_blocks": self._cpu_block_rows(),
                "events": self._events,
                "stats": output.stats.to_dict(),
                "sampled": {},
                "finished": [],
            }
        )
        self.history.pending_inputs = []
        self._events = []
        self._scheduled = []

    def end_of_update(
        self, output: SchedulerOutput, sampled: Mapping[str, int], finished: Sequence[Request]
    ) -> None:
        """Add what the update brought to the step's snapshot."""
        snapshot = self.history.steps[output.step]
        snapshot["sampled"] = {
            request_id: sampled[request_id]
            for request_id in output.num_scheduled_tokens
            if request_id in sampled
        }
        for request in finished:
            snapshot["finished"].append(request.request_id)
            snapshot["events"].append(
                {
                    "type": "finished",
                    "request_id": request.request_id,
                    "status": request.status.name,
                    "reason": RequestStatus.get_finished_reason(request.status),
                }
            )

    def _request_row(self, request: Request, output: SchedulerOutput) -> RequestRow:
        manager = self.scheduler.kv_cache_manager
        return {
            "status": request.status.name,
            "priority": request.priority,
            "arrival_time": request.arrival_time or 0.0,
            "num_prompt_tokens": request.num_prompt_tokens,
            "num_tokens": request.num_tokens,
            "num_computed_tokens": request.num_computed_tokens,
            "num_output_tokens": request.num_output_tokens,
            "max_tokens": request.max_tokens,
            "num_preemptions": request.num_preemptions,
            "num_cached_tokens": request.num_cached_tokens,
            "num_scheduled_tokens": output.num_scheduled_tokens.get(request.request_id, 0),
            "block_table": manager.get_block_ids(request.request_id),
            "cpu_block_table": list(manager.req_to_cpu_blocks.get(request.request_id, ())),
        }

    def _block_rows(self) -> BlockRows:
        manager = self.scheduler.kv_cache_manager
        blocks = manager.block_pool.blocks
        owners: list[list[str]] = [[] for _ in blocks]
        full = [False] * len(blocks)
        for request_id, table in manager.req_to_blocks.items():
            num_full = self.scheduler.requests[request_id].num_computed_tokens // manager.block_size
            for index, block in enumerate(table):
                owners[block.block_id].append(request_id)
                full[block.block_id] |= index < num_full
        state = []
        for block in blocks:
            if block.is_null:
                state.append("0")
            elif block.ref_cnt == 0:
                state.append("e" if block.block_hash else ".")
            elif block.block_hash:
                state.append("c")
            else:
                state.append("f" if full[block.block_id] else "p")
        return {
            "state": "".join(state),
            "ref_cnt": [block.ref_cnt for block in blocks],
            "owners": owners,
            "block_hash": [
                block.block_hash.hex()[:12] if block.block_hash else None for block in blocks
            ],
            "free_queue": [
                block.block_id
                for block in manager.block_pool.free_block_queue.get_all_free_blocks()
            ],
        }

    def _cpu_block_rows(self) -> CPUBlockRows:
        manager = self.scheduler.kv_cache_manager
        num_blocks = manager.num_cpu_blocks
        owners: list[str | None] = [None] * num_blocks
        for request_id, table in manager.req_to_cpu_blocks.items():
            for block_id in table:
                owners[block_id] = request_id
        return {"num_blocks": num_blocks, "owners": owners}


def _victim_keys(
    select_victim: VictimPolicy, running: Sequence[Request]
) -> tuple[str, list[list[Any]] | None]:
    """The name of a victim policy, and what it compares, for each candidate."""
    names = {policy: name for name, policy in VICTIM_POLICIES.items()}
    name = names.get(select_victim)
    if name is None:
        return "custom", None
    keys: list[list[Any]] = []
    for index, request in enumerate(running):
        key: Any = index
        if name in ("priority", "priority_as_upstream"):
            key = list(priority_key(request))
        elif name == "least_computed":
            key = request.num_computed_tokens
        keys.append([request.request_id, key])
    return name, keys
