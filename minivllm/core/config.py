"""What the scheduler may spend: the knobs, checked once, when they are set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from itertools import pairwise
from operator import index
from typing import Any

from minivllm.core.releases import CHANGES, REFERENCE, check_knob, check_version, switches_of

POLICIES = ("fcfs", "priority")
PREEMPTION_MODES = ("recompute", "swap")


def check_int(name: str, value: object, minimum: int) -> None:
    """Raise unless `value` is an int (not a bool) of at least `minimum`.

    Raises:
        ValueError: naming the knob, its value and the limit.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")


def as_int(name: str, value: Any) -> int:
    """An integer of whatever kind (NumPy's and PyTorch's too, but no bool) as Python's.

    Raises:
        ValueError: naming the knob and its value.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None


def as_token_ids(name: str, token_ids: Any, vocab_size: int | None = None) -> list[int]:
    """Token ids as a list of Python's integers, from a list, an array, a tensor or the like.

    Args:
        vocab_size: they are below it; None: any will do.

    Raises:
        ValueError: naming `name` and the value that is no token id.
    """
    if hasattr(token_ids, "tolist"):
        token_ids = token_ids.tolist()
    if isinstance(token_ids, (str, bytes)) or not isinstance(token_ids, Iterable):
        raise ValueError(f"{name} must be a list of token ids, got {token_ids!r:.80}")
    ids = list(token_ids)
    limit = float("inf") if vocab_size is None else vocab_size
    if not ids or (set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < limit):
        return ids
    for position, token_id in enumerate(ids):
        ids[position] = as_int(f"{name}[{position}]", token_id)
        if vocab_size is None:
            check_int(f"{name}[{position}]", ids[position], 0)
        elif not 0 <= ids[position] < vocab_size:
            raise ValueError(
                f"{name}[{position}]: {token_id} is not in the vocabulary [0, {vocab_size})"
            )
    return ids


def unknown_name(problem: str, name: object, known: Iterable[str]) -> str:
    """The words for a name that nobody knows: the nearest known one, else all of them."""
    known = sorted(known)
    close = get_close_matches(str(name), known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
    return f"{problem} {name!r}{hint}"


def check_share(name: str, value: object) -> None:
    """Raise unless `value` is a number from 0 to below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


def as_batch_size_rows(name: str, rows: Any) -> tuple[tuple[int, int, int], ...]:
    """Rows (from, to, tokens) for batches of `from` to `to` requests, as tuples in order.

    Raises:
        ValueError: unless they begin at 1 and do not overlap; naming the row that is wrong.

    Source: v0.33.0:vllm/v1/spec_decode/dynamic/utils.py:7.
    """
    if not isinstance(rows, (list, tuple)) or not rows:
        raise ValueError(f"{name} must be a list of rows (from, to, tokens), got {rows!r:.80}")
    taken: list[tuple[int, int, int]] = []
    for row in rows:
        if not isinstance(row, (list, tuple)) or len(row) != 3:
            raise ValueError(f"{name} has {row!r:.80}; a row is (from, to, tokens)")
        start, end, tokens = (as_int(f"{name}: a number in {row!r:.80}", number) for number in row)
        if not 1 <= start <= end or tokens < 0:
            raise ValueError(
                f"{name} has {row!r:.80}; a row is (from, to, tokens) with 1 <= from <= to and "
                f"tokens of at least 0"
            )
        taken.append((start, end, tokens))
    taken.sort()
    if taken[0][0] != 1:
        raise ValueError(f"{name} begins with {taken[0]}; a step of 1 request needs a row too")
    for before, after in pairwise(taken):
        if after[0] <= before[1]:
            raise ValueError(f"{name} has {before} and {after}, which overlap")
    return tuple(taken)


def check_bool(name: str, value: object) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Every number that limits a step. Names follow vLLM's (`vllm/config/scheduler.py`).

    Three resources are scarce, and each has its knob: tokens in a step
    (`max_num_batched_tokens`), places in the batch (`max_num_seqs`) and memory
    (`num_gpu_blocks` × `block_size` token slots).
    """

    vllm_version: str = REFERENCE
    """Decide as this release of vLLM: one of `releases.RELEASES`."""

    num_gpu_blocks: int
    """Blocks that requests can own. vLLM's number of the same name counts the null block too."""

    block_size: int = 16
    """Token slots in one block."""

    max_model_len: int = 2048
    """Longest sequence, prompt and output together, in tokens."""

    max_num_batched_tokens: int = 2048
    """Token budget of one step."""

    max_num_seqs: int = 128
    """Most requests in RUNNING at once."""

    long_prefill_token_threshold: int = 0
    """Most tokens that one request gets in one step; 0 turns the cap off."""

    long_prefill_token_threshold_adaptive: bool = False
    """Raise the threshold to the budget's share for each request, if that is more (0.31.0)."""

    max_num_active_seqs: int | None = None
    """Most requests that admission lets run, below `max_num_seqs`; None: as that (0.31.0)."""

    max_num_queued_reqs: int | None = None
    """Refuse a request beyond this many unfinished ones; None: never (0.29.0)."""

    max_num_queued_tokens: int | None = None
    """Refuse a request while so many prompt tokens wait for a first token; None: never (0.29.0)."""

    watermark: float = 0.0
    """Share of all blocks, the null block counted, that admission leaves free (0.24.0)."""

    prefill_schedule_interval: int = 1
    """Compute prompts once in so many steps, while somebody can decode between (0.33.0)."""

    num_speculative_tokens: int = 0
    """Most tokens that may be proposed for a request in one step; 0: no speculation."""

    num_speculative_tokens_per_batch_size: Sequence[Sequence[int]] | None = None
    """Fewer while more run: rows (from, to, tokens), so many after a step of `from` to `to`
    requests. Sizes between two rows, and beyond the last, belong to the row before; None: always
    `num_speculative_tokens` (0.24.0)."""

    num_lookahead_tokens: int = 0
    """Slots beyond a request's tokens, for a proposer that keeps keys and values of its own; as
    many as `num_speculative_tokens` for a draft model, 0 for a prompt look-up."""

    policy: str = "fcfs"
    """`fcfs`, or `priority`: a lower `Request.priority` runs first."""

    enable_prefix_caching: bool = True
    """Share full blocks between requests that begin with the same tokens."""

    enable_chunked_prefill: bool = True
    """Let a prompt be cut at the token budget. Off: it waits for a step that takes it whole."""

    reserve_full_prompt: bool = True
    """Admit only if all known tokens fit now (vLLM's `scheduler_reserve_full_isl`)."""

    preemption_mode: str = "recompute"
    """What a victim's blocks become: `recompute` drops them, `swap` copies them to the CPU."""

    num_cpu_blocks: int = 0
    """Blocks of the CPU pool that `swap` copies to; a full pool falls back to recompute."""

    victim: str | None = None
    """Name in `VICTIM_POLICIES`; None: the policy's own choice."""

    admission_control: bool = True
    """Refuse a request that can never fit. Off, it waits forever (and, FCFS, so do the others)."""

    keep_upstream_bugs: bool = False
    """Decide as vLLM to the letter, for conformance runs, where it should not be followed:

    - a request preempted in the very step that was to fill its blocks leaves their hashes
      behind, and a later one may be served keys and values that nobody wrote
      (`KVCacheManager.uncache_uncomputed_blocks`);
    - of two running requests with equal priority and arrival time, the older is the victim, and
      the two can preempt each other for ever (`victim.priority_as_upstream`);
    - before 0.29.0, a request at `max_model_len` that lacks some of its `min_tokens` goes on, and
      is never given a token again (`request.check_stop`).
    """

    def __post_init__(self) -> None:
        for name in ("num_gpu_blocks", "block_size", "max_num_batched_tokens", "max_num_seqs"):
            check_int(name, getattr(self, name), 1)
        check_int("max_model_len", self.max_model_len, 2)
        check_int("long_prefill_token_threshold", self.long_prefill_token_threshold, 0)
        check_int("num_cpu_blocks", self.num_cpu_blocks, 0)
        check_int("num_speculative_tokens", self.num_speculative_tokens, 0)
        check_int("num_lookahead_tokens", self.num_lookahead_tokens, 0)
        check_int("prefill_schedule_interval", self.prefill_schedule_interval, 1)
        for name, least in (
            ("max_num_active_seqs", 1),
            ("max_num_queued_reqs", 0),
            ("max_num_queued_tokens", 0),
        ):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), least)
        check_share("watermark", self.watermark)
        check_choice("policy", self.policy, POLICIES)
        check_choice("preemption_mode", self.preemption_mode, PREEMPTION_MODES)
        for name in (
            "long_prefill_token_threshold_adaptive",
            "enable_prefix_caching",
            "enable_chunked_prefill",
            "reserve_full_prompt",
            "admission_control",
            "keep_upstream_bugs",
        ):
            check_bool(name, getattr(self, name))
        if self.max_num_active_seqs is not None and self.max_num_active_seqs > self.max_num_seqs:
            raise ValueError(
                f"max_num_active_seqs must be at most max_num_seqs={self.max_num_seqs}, "
                f"got {self.max_num_active_seqs}"
            )
        if self.num_speculative_tokens_per_batch_size is not None:
            name = "num_speculative_tokens_per_batch_size"
            rows = as_batch_size_rows(name, self.num_speculative_tokens_per_batch_size)
            object.__setattr__(self, name, rows)
            if not self.num_speculative_tokens:
                raise ValueError(f"{name}={rows!r:.80} does nothing: num_speculative_tokens is 0")
        if self.num_lookahead_tokens > self.num_speculative_tokens:
            raise ValueError(
                f"num_lookahead_tokens={self.num_lookahead_tokens} slots are for proposed tokens, "
                f"of which there are at most num_speculative_tokens={self.num_speculative_tokens}"
            )
        if self.max_num_batched_tokens <= self.num_speculative_tokens:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} has no room for a token and "
                f"num_speculative_tokens={self.num_speculative_tokens} proposed ones. Raise the "
                f"one or lower the other."
            )
        check_version(self.vllm_version)
        if self.num_lookahead_tokens and self.max_num_scheduled_tokens < 1:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} leaves no token: in vLLM "
                f"{self.vllm_version} a draft model takes one of it for each of "
                f"max_num_seqs={self.max_num_seqs} requests. Raise it, or lower max_num_seqs."
            )
        for change in CHANGES:
            if not change.is_switch:
                value = getattr(self, change.name)
                if value != getattr(type(self), change.name):
                    check_knob(change.name, value, self.vllm_version)

    @property
    def max_num_scheduled_tokens(self) -> int:
        """The budget, less what a draft model takes of it: a token for each request."""
        if not self.num_lookahead_tokens:
            return self.max_num_batched_tokens
        as_used = switches_of(self.vllm_version).draft_slots_as_used
        return self.max_num_batched_tokens - (1 if as_used else self.max_num_seqs)

    @property
    def watermark_blocks(self) -> int:
        """Blocks that admission leaves free while anything runs.

        Source: v0.33.0:vllm/v1/core/kv_cache_manager.py:210.
        """
        return int(self.watermark * (self.num_gpu_blocks + 1))

    def num_spec_tokens_to_schedule(self, num_reqs: int) -> int:
        """Most tokens to propose to each request after a step of so many.

        Source: v0.33.0:vllm/v1/core/sched/scheduler.py:1710.
        """
        most = self.num_speculative_tokens
        for start, _, num_tokens in reversed(self.num_speculative_tokens_per_batch_size or ()):
            if start <= num_reqs:
                return min(num_tokens, most)
        return most

    def to_dict(self) -> dict[str, Any]:
        """The knobs as JSON-serialisable data."""
        data = asdict(self)
        if rows := self.num_speculative_tokens_per_batch_size:
            data["num_speculative_tokens_per_batch_size"] = [list(row) for row in rows]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SchedulerConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: on a knob that does not exist, or a value that is not allowed.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(
                f"unknown knob {unknown[0]!r}; the knobs are {', '.join(sorted(known))}"
            )
        return cls(**data)
