"""The scheduler by release: what vLLM changed since 0.22.1, one named switch for each change.

Read from the released wheels. A release behaves as the one before it, less or more the rows of
`CHANGES`: a switch is looked up once, when a scheduler is built, and acts in one line of the code
that it changes; a knob is a field of `SchedulerConfig`, refused where the release lacks it. Only
what a plain text model can meet is here: full attention, one KV cache group, no connector.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

RELEASES = (
    "0.22.1",
    "0.23.0",
    "0.24.0",
    "0.25.0",
    "0.25.1",
    "0.26.0",
    "0.27.0",
    "0.27.1",
    "0.28.0",
    "0.29.0",
    "0.30.0",
    "0.31.0",
    "0.32.0",
    "0.33.0",
)
"""Oldest first: every release on PyPI from the book's on."""

REFERENCE = RELEASES[0]
"""The release that the book and the exercises name, and cite by line."""

NEWEST = RELEASES[-1]


@dataclass(frozen=True, kw_only=True)
class Switches:
    """How one release decides where releases differ. Each field is a row of `CHANGES`."""

    lookahead_at_admission: bool = False
    free_unhashed_first: bool = False
    pads_decodes: bool = False
    pads_before_the_end: bool = False
    pads_alone: bool = False
    append_uncached: bool = False
    skipped_victim_counts: bool = False
    draft_slots_as_used: bool = False
    min_tokens_last: bool = False
    lone_request_uncapped: bool = False
    self_preemption_goes_on: bool = False
    accepted_cached_at_once: bool = False


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of behaviour, from release `since` on, and before `until` if it was taken back."""

    name: str
    """Of the switch, a field of `Switches`; or of the knob, a field of `SchedulerConfig`."""
    since: str
    until: str | None = None
    upstream: str
    """vLLM's pull request, or the report where the request is not known; empty: neither is."""
    before: str
    """File and line in `REFERENCE` that decided the same thing."""
    source: str
    """File and line in `NEWEST` where it acts."""
    what: str
    why: str
    needs_drafts: bool = False
    """Whether it shows with proposed tokens alone."""

    @property
    def is_switch(self) -> bool:
        """Whether the release decides it alone; False: it is a knob, off until somebody sets it."""
        return self.name in SWITCH_NAMES

    def holds_in(self, version: str) -> bool:
        """Whether `version` has it."""
        index = RELEASES.index(version)
        ended = self.until is not None and index >= RELEASES.index(self.until)
        return index >= RELEASES.index(self.since) and not ended


SWITCH_NAMES = frozenset(field.name for field in fields(Switches))

CHANGES = (
    Change(
        name="lookahead_at_admission",
        since="0.23.0",
        upstream="#16612",
        before="vllm/v1/core/sched/scheduler.py:705",
        source="v0.33.0:vllm/v1/core/sched/scheduler.py:1405",
        what="A draft model's slots are taken at admission too, not from the first running step "
        "on.",
        why="The draft model computes right behind the prompt's last token, in the step of the "
        "prompt.",
        needs_drafts=True,
    ),
    Change(
        name="free_unhashed_first",
        since="0.24.0",
        upstream="#42656",
        before="vllm/v1/core/block_pool.py:431",
        source="v0.33.0:vllm/v1/core/block_pool.py:845",
        what="Freed blocks without a hash go to the front of the free queue, hashed ones to its "
        "end.",
        why="A block that no request can find again is worth nothing: hand it out before one that "
        "the prefix cache could still serve.",
    ),
    Change(
        name="watermark",
        since="0.24.0",
        upstream="#44594",
        before="vllm/v1/core/kv_cache_manager.py:387",
        source="v0.33.0:vllm/v1/core/kv_cache_manager.py:586",
        what="Admission leaves this share of the blocks free, unless nothing runs.",
        why="Whoever fills the cache to the last block makes the next step preempt, and the victim "
        "comes back at once and fills it again.",
    ),
    Change(
        name="num_speculative_tokens_per_batch_size",
        since="0.24.0",
        upstream="#32374",
        before="vllm/v1/core/sched/async_scheduler.py:35",
        source="v0.33.0:vllm/v1/core/sched/scheduler.py:1710",
        what="How many tokens are proposed after a step, and how many places the next plan made "
        "ahead keeps, follow from the number of requests in the step; no newcomer is padded.",
        why="A rejected token costs nothing while arithmetic units are idle, and takes time from "
        "others when they are not.",
        needs_drafts=True,
    ),
    Change(
        name="pads_decodes",
        since="0.25.0",
        upstream="#45237",
        before="vllm/v1/core/sched/scheduler.py:654",
        source="v0.33.0:vllm/v1/core/sched/scheduler.py:1318",
        what="With speculation, a newcomer with one token to compute (its prompt came from the "
        "cache) is padded to the size of the decodes, or waits if the budget has no room for "
        "that.",
        why="A batch in which all have as many tokens runs as one CUDA graph.",
        needs_drafts=True,
    ),
    Change(
        name="append_uncached",
        since="0.27.0",
        until="0.28.0",
        upstream="#48017",
        before="vllm/v1/core/block_pool.py:431",
        source="v0.33.0:vllm/v1/core/block_pool.py:837",
        what="With prefix caching off, freed blocks go to the end of the free queue.",
        why="Meant to save the sorting by hash where there are no hashes. It turned the reuse of "
        "the latest block into a walk through all of them; #51482 put it back.",
    ),
    Change(
        name="skipped_victim_counts",
        since="0.28.0",
        upstream="#49097",
        before="vllm/v1/core/sched/scheduler.py:479",
        source="v0.33.0:vllm/v1/core/sched/scheduler.py:947",
        what="Under PRIORITY, a victim that stood before the request in turn moves the turn back "
        "by one, whether it had tokens in this step or not.",
        why="Else the list closes up, the turn stays, and the next request is passed over.",
    ),
    Change(
        name="draft_slots_as_used",
        since="0.28.0",
        upstream="#51725",
        before="vllm/config/vllm.py:1557",
        source="v0.33.0:vllm/v1/core/sched/scheduler.py:721",
        what="The token that a draft model computes beyond the others is taken from the budget for "
        "each request of the step; before, for max_num_seqs requests in every step.",
        why="A large max_num_seqs used the budget up: 256 places cost 256 tokens with one request "
        "running.",
        needs_drafts=True,
    ),
    Change(
        name="pads_before_the_end",
        since="0.29.0",
        upstream="#53962",
        before="vllm/v1/core/sched/scheduler.py:654",
        source="v0.33.0:vllm/v1/core/sched/scheduler.py:1321",
        what="A newcomer is not padded where max_model_len leaves no room for that; before, it "
        "waited.",
        why="It waited, and all behind it, until nothing else ran.",
        needs_drafts=True,
    ),
    Change(
        name="min_tokens_last",
        since="0.29.0",
        upstream="#51299",
        before="vllm/v1/core/sched/utils.py:100",
        source="v0.33.0:vllm/v1/core/sched/utils.py:126",
        what="A stop token and the length limits are looked at before `min_tokens`.",
        why="A request that reached max_model_len before its min_tokens ran for ever. The sampler "
        "keeps stop tokens away until then.",
    ),
    Change(
        name="max_num_queued_reqs",
        since="0.29.0",
        upstream="#49445",
        before="vllm/v1/engine/async_llm.py:280",
        source="v0.33.0:vllm/v1/engine/async_llm.py:353",
        what="A request is refused while this many are unfinished.",
        why="An endless queue only hides that somebody else should serve the request.",
    ),
    Change(
        name="max_num_queued_tokens",
        since="0.29.0",
        upstream="#49445",
        before="vllm/v1/engine/async_llm.py:280",
        source="v0.33.0:vllm/v1/engine/async_llm.py:374",
        what="A request is refused while the prompts still without a token hold this many tokens.",
        why="Target time to first token × prefill throughput: longer queues miss the target.",
    ),
    Change(
        name="pads_alone",
        since="0.30.0",
        upstream="#55798",
        before="vllm/v1/core/sched/scheduler.py:654",
        source="v0.33.0:vllm/v1/core/sched/scheduler.py:1316",
        what="A newcomer is padded though nobody runs, if the cache gave all of its prompt but the "
        "last token.",
        why="The first of a burst missed the graph that all the others ran in.",
        needs_drafts=True,
    ),
    Change(
        name="lone_request_uncapped",
        since="0.31.0",
        upstream="#57951",
        before="vllm/v1/core/sched/scheduler.py:390",
        source="v0.33.0:vllm/v1/core/sched/scheduler.py:761",
        what="long_prefill_token_threshold is ignored while there is one request, running or not.",
        why="The cap keeps budget for others. With no others it only wastes it.",
    ),
    Change(
        name="long_prefill_token_threshold_adaptive",
        since="0.31.0",
        upstream="#57951",
        before="vllm/v1/core/sched/scheduler.py:390",
        source="v0.33.0:vllm/v1/core/sched/scheduler.py:768",
        what="The threshold is at least budget // requests, running and waiting.",
        why="With few requests a fixed cap leaves the budget half empty.",
    ),
    Change(
        name="max_num_active_seqs",
        since="0.31.0",
        upstream="#56758",
        before="vllm/v1/core/sched/scheduler.py:549",
        source="v0.33.0:vllm/v1/core/sched/scheduler.py:1073",
        what="Admission stops at this many running requests, at most max_num_seqs.",
        why="max_num_seqs sizes the runner's buffers and graphs too; a smaller batch should not "
        "need smaller ones.",
    ),
    Change(
        name="self_preemption_goes_on",
        since="0.33.0",
        upstream="#26765",
        before="vllm/v1/core/sched/scheduler.py:490",
        source="v0.33.0:vllm/v1/core/sched/scheduler.py:985",
        what="Under PRIORITY, a request that preempts itself no longer ends the running pass.",
        why="Those behind it are more urgent, and it has just freed its blocks.",
    ),
    Change(
        name="accepted_cached_at_once",
        since="0.33.0",
        upstream="#54979",
        before="vllm/v1/core/sched/scheduler.py:1371",
        source="v0.33.0:vllm/v1/core/sched/scheduler.py:2410",
        what="Blocks that accepted tokens filled are published when the tokens come, not in the "
        "next step.",
        why="A request that ends with that step has no next one, and its last blocks were lost to "
        "the cache.",
        needs_drafts=True,
    ),
    Change(
        name="prefill_schedule_interval",
        since="0.33.0",
        upstream="#54627",
        before="vllm/v1/core/sched/scheduler.py:329",
        source="v0.33.0:vllm/v1/core/sched/scheduler.py:782",
        what="Prompts are computed once in this many steps; the steps between only decode.",
        why="Each prompt chunk slows down every decode in its step. From 0.24.0 on the knob worked "
        "with data parallelism alone (#44558), and one engine passed it over in silence.",
    ),
)
"""By release, then as they act in a step."""


def check_version(version: object) -> str:
    """The version, if the table knows it.

    Raises:
        ValueError: naming the versions that it knows.
    """
    if not isinstance(version, str) or version not in RELEASES:
        raise ValueError(f"vllm_version must be one of {', '.join(RELEASES)}; got {version!r}")
    return version


def switches_of(version: str) -> Switches:
    """The switches of a release.

    Raises:
        ValueError: if the table does not know the release.
    """
    check_version(version)
    rows = (change for change in CHANGES if change.is_switch)
    return Switches(**{change.name: change.holds_in(version) for change in rows})


def check_knob(name: str, value: object, version: str) -> None:
    """Raise if `version` has no knob of this name, which somebody has set.

    Raises:
        ValueError: naming the knob, the release, and the first one that has it.
    """
    change = next(change for change in CHANGES if change.name == name)
    if not change.holds_in(version):
        raise ValueError(
            f"{name}={value!r} does nothing in vLLM {version}: the knob came with {change.since} "
            f"({change.upstream}). Set vllm_version={change.since!r} or newer, or leave it alone."
        )
