"""What the scheduler may spend: the knobs, checked once, when they are set."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

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
    """Decide as vLLM 0.22.1 to the letter, for conformance runs, where it should not be followed:

    - a request preempted in the very step that was to fill its blocks leaves their hashes
      behind, and a later one may be served keys and values that nobody wrote
      (`KVCacheManager.uncache_uncomputed_blocks`);
    - of two running requests with equal priority and arrival time, the older is the victim, and
      the two can preempt each other for ever (`victim.priority_as_upstream`).
    """

    def __post_init__(self) -> None:
        for name in ("num_gpu_blocks", "block_size", "max_num_batched_tokens", "max_num_seqs"):
            check_int(name, getattr(self, name), 1)
        check_int("max_model_len", self.max_model_len, 2)
        check_int("long_prefill_token_threshold", self.long_prefill_token_threshold, 0)
        check_int("num_cpu_blocks", self.num_cpu_blocks, 0)
        check_choice("policy", self.policy, POLICIES)
        check_choice("preemption_mode", self.preemption_mode, PREEMPTION_MODES)
        for name in (
            "enable_prefix_caching",
            "enable_chunked_prefill",
            "reserve_full_prompt",
            "admission_control",
            "keep_upstream_bugs",
        ):
            check_bool(name, getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """The knobs as JSON-serialisable data."""
        return asdict(self)

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
