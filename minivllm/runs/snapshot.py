"""Every step as plain data: what a view draws, a test compares and a reader can print.

A `History` is a configuration and one `Snapshot` for each call of `schedule()`. It serialises to
JSON, and since the scheduler is deterministic, the inputs that it holds are enough to run it
again (`runs.replay`), to its end or to any step before. A `Recorder` writes it step by step; an
`InputLog` defers that to when somebody looks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from minivllm.core.config import SchedulerConfig
from minivllm.core.output import TokenIds

SNAPSHOT_VERSION = 2

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
    num_scheduled_tokens: int
    cap: str
    """The cap of `CAPS` that bound: the first that no later one lowered."""
    limits: dict[str, int | None]
    """What each cap would have allowed; None: it did not apply."""
    num_draft_tokens: int
    """How many of the tokens are proposed ones, to be verified."""


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
    - `unscheduled`: num_scheduled_tokens given back by a victim that this step had served already
    - `swapped_out`, `swapped_in`: blocks, as [from, to] pairs
    - `admitted`, `resumed`: num_computed_tokens at admission
    - `cache_hit`: num_cached_tokens, block_ids
    - `chunked`: num_scheduled_tokens of gap, and the cap
    - `evicted`: block_id, block_hash
    - `admission_stopped`: reason, one of `preempted_in_this_step`, `max_num_batched_tokens`,
      `max_num_seqs`, `max_num_active_seqs`, `prefill_schedule_interval`, `watermark`,
      `enable_chunked_prefill`, `num_gpu_blocks` (then num_blocks_needed and
      num_free_blocks too); request_id is the head of the queue
    - `verified`: num_draft_tokens that were proposed, num_accepted_tokens of them
    - `finished`: status, reason
    """

    version: int
    step: int
    time: float | None
    inputs: list[dict[str, Any]]
    """What came from outside since the last step: `{"type": "add", "request": {...}}` or
    `{"type": "finish", "request_id": ..., "status": ...}` or
    `{"type": "draft", "token_ids": {request id: proposed tokens}}`."""
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
    sampled: dict[str, TokenIds]
    """What the step's update gave each request: a token, or with proposed ones all that it got;
    empty before the update."""
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
