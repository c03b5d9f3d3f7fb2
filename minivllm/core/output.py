"""What the scheduler hands to the model runner, and to the caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from minivllm.core.request import Request
from minivllm.core.stats import StepStats

TokenIds = int | Sequence[int]
"""What a step gives a request: a token, or, if some were proposed to it, all that it gets."""


@dataclass(slots=True)
class Preemption:
    """Who yields to whom, and what there was to decide by: all as it stood before."""

    victim: Request
    for_request: Request
    """Who asked for blocks; the victim itself, if no one else was left to yield."""
    num_blocks_needed: int
    num_free_blocks: int
    num_freed_blocks: int
    """Blocks of the victim that no one shares."""
    num_computed_tokens: int
    """The victim's: dropped, or kept on the CPU by a swap."""
    running: list[Request]
    """RUNNING, from which the victim was chosen."""
    num_scheduled_tokens: dict[str, int]
    """The plan so far: the victim's tokens in it go back to the budget."""


@dataclass(slots=True)
class AdmissionStop:
    """Why the request at the head of WAITING was not admitted, and so no one behind it."""

    request: Request
    reason: str
    """`preempted_in_this_step`, or the knob that bound: `max_num_batched_tokens`, `max_num_seqs`,
    `max_num_active_seqs`, `prefill_schedule_interval`, `enable_chunked_prefill`, `num_gpu_blocks`
    or `watermark`."""
    num_blocks_needed: int | None = None
    """If blocks bound; those that the watermark keeps free come on top."""
    num_free_blocks: int | None = None


@dataclass(slots=True)
class SchedulerOutput:
    """The plan of one step (vllm/v1/core/sched/output.py:181).

    The tokens of a request in this step are those at positions
    `[num_computed_tokens - n, num_computed_tokens)`: `schedule()` has counted them in already.
    A request whose `num_computed_tokens` has thereby reached `num_tokens` gets a token sampled.
    """

    step: int
    stats: StepStats
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    """Tokens of each request, in the order of scheduling: RUNNING first, then the admitted."""
    total_num_scheduled_tokens: int = 0
    long_prefill_token_threshold: int = 0
    """Most tokens for one request in this step; 0: no cap."""
    holds_prefills: bool = False
    """Whether this step only decodes (`prefill_schedule_interval`)."""
    scheduled_new_reqs: list[Request] = field(default_factory=list)
    """Admitted for the first time."""
    scheduled_resumed_reqs: list[Request] = field(default_factory=list)
    """Admitted again after a preemption."""
    scheduled_running_reqs: list[Request] = field(default_factory=list)
    new_block_ids: dict[str, list[int]] = field(default_factory=dict)
    """Whole block table of the new and the resumed; what was appended, of the running."""
    num_left_tokens: dict[str, int] = field(default_factory=dict)
    """Known or proposed tokens that a cap left, of each request that one cut."""
    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=dict)
    """Proposed tokens that the step verifies, the last of their request's; -1 pads a request to
    the size of the others, and is never accepted."""
    num_spec_tokens_to_schedule: int = 0
    """Most tokens to propose to each request after this step."""
    num_draft_slots: int = 0
    """Tokens of the budget that each request of the step takes for its proposer."""
    preempted_req_ids: list[str] = field(default_factory=list)
    preemptions: list[Preemption] = field(default_factory=list)
    """Why, one for each of `preempted_req_ids`."""
    admission_stopped: AdmissionStop | None = None
    """None: WAITING was admitted whole, or was empty."""
    evictions: list[tuple[int, bytes]] = field(default_factory=list)
    """(block id, hash) of cached blocks that were handed out for something else, in order."""
    finished_req_ids: set[str] = field(default_factory=set)
    """Finished since the last step: the runner can drop their state."""
    blocks_to_swap_out: list[tuple[int, int]] = field(default_factory=list)
    """(GPU block, CPU block) copies to make first."""
    blocks_to_swap_in: list[tuple[int, int]] = field(default_factory=list)
    """(CPU block, GPU block) copies to make next, before the forward pass."""


@dataclass(slots=True)
class EngineCoreOutput:
    """What one step gave one request (vllm/v1/engine/__init__.py)."""

    request_id: str
    new_token_ids: list[int]
    finish_reason: str | None = None
    """`stop`, `length` or `abort`; None while it goes on."""
    stop_reason: int | str | None = None
    """The stop token or string that ended it; None for EOS."""
