"""Writes the history of a run, step by step, from what the scheduler's plans say."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from minivllm.core.output import AdmissionStop, Preemption, SchedulerOutput, TokenIds
from minivllm.core.request import Request, RequestStatus
from minivllm.core.scheduler import Scheduler
from minivllm.core.victim import VICTIM_POLICIES, priority_key
from minivllm.runs.snapshot import (
    CAPS,
    SNAPSHOT_VERSION,
    BlockRows,
    CPUBlockRows,
    History,
    RequestRow,
    ScheduledRow,
)


class Recorder:
    """Observes one scheduler and writes a snapshot of each step as it happens.

    `Scheduler(config, observer=Recorder())`; a subclass with rules of its own is told truly too,
    since all comes from its plan. An `InputLog` is the cheaper one.
    """

    scheduler: Scheduler
    history: History

    def begin(self, scheduler: Scheduler) -> None:
        self.history = History(scheduler.config)
        self.first_step = scheduler.step
        """What was planned before is not told: a window into a long run begins late."""
        self._inputs_told: list[dict[str, Any]] = []
        self.follow(scheduler)

    def follow(self, scheduler: Scheduler) -> None:
        """Go on with this scheduler, which stands where the one before stood."""
        self.scheduler = scheduler

    def request_added(self, request: Request) -> None:
        self.history.pending_inputs.append({"type": "add", "request": request_to_dict(request)})
        self._inputs_told.append(
            event(
                "arrived",
                request,
                num_prompt_tokens=request.num_prompt_tokens,
                max_tokens=request.max_tokens,
                priority=request.priority,
                arrival_time=request.arrival_time,
            )
        )
        if request.status is RequestStatus.FINISHED_IGNORED:
            self._inputs_told.append(event("refused", request, reason=request.error))

    def requests_finished(self, requests: Sequence[Request], status: RequestStatus) -> None:
        for request in requests:
            self.history.pending_inputs.append(
                {"type": "finish", "request_id": request.request_id, "status": status.name}
            )
            aborted = status is RequestStatus.FINISHED_ABORTED
            self._inputs_told.append(event("aborted" if aborted else "stopped", request))

    def tokens_proposed(self, draft_token_ids: Mapping[str, Sequence[int]]) -> None:
        if draft_token_ids:
            token_ids = {request_id: list(ids) for request_id, ids in draft_token_ids.items()}
            self.history.pending_inputs.append({"type": "draft", "token_ids": token_ids})

    def step_planned(self, output: SchedulerOutput) -> None:
        """Write the step's snapshot; the update completes it."""
        scheduler = self.scheduler
        budget = scheduler.config.max_num_batched_tokens
        spent = output.total_num_scheduled_tokens
        plan = _Plan(scheduler, output)
        self.history.steps.append(
            {
                "version": SNAPSHOT_VERSION,
                "step": output.step,
                "time": scheduler.clock() if scheduler.clock else None,
                "inputs": self.history.pending_inputs,
                "waiting": [request.request_id for request in scheduler.waiting],
                "running": [request.request_id for request in scheduler.running],
                "requests": {
                    request_id: _request_row(scheduler, request, output)
                    for request_id, request in scheduler.requests.items()
                },
                "scheduled": [plan.rows[request_id] for request_id in output.num_scheduled_tokens],
                "budget": {
                    "max_num_batched_tokens": budget,
                    "spent": spent,
                    "left": budget - spent,
                },
                "blocks": _block_rows(scheduler),
                "cpu_blocks": _cpu_block_rows(scheduler),
                "events": self._inputs_told + plan.events,
                "stats": output.stats.to_dict(),
                "sampled": {},
                "finished": [],
            }
        )
        self.history.pending_inputs = []
        self._inputs_told = []

    def step_updated(
        self,
        output: SchedulerOutput,
        sampled_token_ids: Mapping[str, TokenIds],
        finished: Sequence[Request],
    ) -> None:
        """Add what the update brought to the step's snapshot."""
        if output.step < self.first_step:
            return
        snapshot = self.history.steps[output.step - self.first_step]
        snapshot["sampled"] = {
            request_id: sampled_token_ids[request_id]
            for request_id in output.num_scheduled_tokens
            if request_id in sampled_token_ids
        }
        for request_id, drafts in output.scheduled_spec_decode_tokens.items():
            if request_id in sampled_token_ids:
                token_ids = sampled_token_ids[request_id]
                num_accepted = 0 if isinstance(token_ids, int) else len(token_ids) - 1
                snapshot["events"].append(
                    {
                        "type": "verified",
                        "request_id": request_id,
                        "num_draft_tokens": len(drafts),
                        "num_accepted_tokens": num_accepted,
                    }
                )
        for request in finished:
            snapshot["finished"].append(request.request_id)
            reason = RequestStatus.get_finished_reason(request.status)
            snapshot["events"].append(
                event("finished", request, status=request.status.name, reason=reason)
            )


def event(type_: str, request: Request, **data: Any) -> dict[str, Any]:
    """One line of a snapshot's `events`."""
    return {"type": type_, "request_id": request.request_id, **data}


def request_to_dict(request: Request) -> dict[str, Any]:
    """All that is needed to make the same request again."""
    salt = request.prompt.cache_salt
    return {
        "request_id": request.request_id,
        "prompt_token_ids": request.prompt_token_ids,
        "sampling_params": request.sampling_params.to_dict(),
        "priority": request.priority,
        "arrival_time": request.arrival_time,
        "eos_token_ids": sorted(request.eos_token_ids),
        **({} if salt is None else {"cache_salt": salt}),
    }


class _Plan:
    """A plan told in the order in which it was made.

    Args:
        scheduler: as it stands after `schedule()`.
        output: its plan.
    """

    def __init__(self, scheduler: Scheduler, output: SchedulerOutput) -> None:
        self.scheduler = scheduler
        self.output = output
        self.rows: dict[str, ScheduledRow] = {}
        """Of everyone who was given tokens, those who had to yield them too."""
        self.events: list[dict[str, Any]] = []
        self._evictions = deque(output.evictions)
        self._kinds = {r.request_id: "new" for r in output.scheduled_new_reqs}
        self._kinds |= {r.request_id: "resumed" for r in output.scheduled_resumed_reqs}
        self._victims = {p.victim.request_id: p for p in output.preemptions}

        token_budget = scheduler.max_num_scheduled_tokens
        at_clamp: dict[str, int] = {}  # of those for whom others yielded: less than afterwards
        for decision in _in_order(output):
            if isinstance(decision, Preemption):
                at_clamp.setdefault(decision.for_request.request_id, token_budget)
                token_budget += self._preempted(decision)
            else:
                request_id, num_tokens = decision
                budget = at_clamp.pop(request_id, token_budget)
                self._scheduled(request_id, num_tokens, budget)
                token_budget -= num_tokens + output.num_draft_slots
        self._evicted(len(self._evictions))
        if output.admission_stopped is not None:
            self._stopped(output.admission_stopped)

    def _preempted(self, preemption: Preemption) -> int:
        """Tell of it; returns the tokens that go back to the budget."""
        victim, output = preemption.victim, self.output
        num_tokens = preemption.num_scheduled_tokens.get(victim.request_id, 0)
        if num_tokens:
            self.events.append(event("unscheduled", victim, num_scheduled_tokens=num_tokens))
            num_tokens += output.num_draft_slots
        cpu_table = self.scheduler.kv_cache_manager.req_to_cpu_blocks.get(victim.request_id, ())
        copies = [[gpu, cpu] for gpu, cpu in output.blocks_to_swap_out if cpu in cpu_table]
        policy, keys = self._victim_keys(preemption)
        self.events.append(
            event(
                "preempted",
                victim,
                for_request_id=preemption.for_request.request_id,
                num_blocks_needed=preemption.num_blocks_needed,
                num_free_blocks=preemption.num_free_blocks,
                victim_policy=policy,
                victim_keys=keys,
                num_computed_tokens=preemption.num_computed_tokens,
                mode="swap" if copies else "recompute",
                num_freed_blocks=preemption.num_freed_blocks,
            )
        )
        if copies:
            self.events.append(event("swapped_out", victim, blocks=copies))
        return num_tokens

    def _scheduled(self, request_id: str, num_tokens: int, token_budget: int) -> None:
        """Tell of it, with what bound it. `token_budget` is what was left when it was clamped."""
        output, config = self.output, self.scheduler.config
        request = self.scheduler.requests[request_id]
        if request_id in output.num_scheduled_tokens:
            num_computed_tokens = request.num_computed_tokens - num_tokens
            gap = num_tokens + output.num_left_tokens.get(request_id, 0)
        else:  # it had to yield them
            num_computed_tokens = self._victims[request_id].num_computed_tokens
            gap = max(request.num_tokens - num_computed_tokens, num_tokens)
        kind = self._kinds.get(request_id, "running")
        room = config.max_model_len - 1 - num_computed_tokens
        limits: dict[str, int | None] = {
            "gap": gap,
            "long_prefill_token_threshold": output.long_prefill_token_threshold or None,
            "max_num_batched_tokens": token_budget,
            "max_model_len": room if kind == "running" else None,
        }
        # The first of the lowest; min() keeps the first of equals.
        cap = min((c for c in CAPS if limits[c] is not None), key=lambda c: limits[c] or 0)
        self.rows[request_id] = {
            "request_id": request_id,
            "kind": kind,
            "num_scheduled_tokens": num_tokens,
            "num_draft_tokens": len(output.scheduled_spec_decode_tokens.get(request_id, ())),
            "cap": cap,
            "limits": limits,
        }
        new_block_ids = output.new_block_ids.get(request_id, ())
        own = [i for i, (block_id, _) in enumerate(self._evictions) if block_id in new_block_ids]
        self._evicted(own[-1] + 1 if own else 0)
        if kind != "running":
            self._admitted(request, kind, num_computed_tokens)
        if num_tokens < gap:
            self.events.append(
                event("chunked", request, num_scheduled_tokens=num_tokens, gap=gap, cap=cap)
            )

    def _admitted(self, request: Request, kind: str, num_computed_tokens: int) -> None:
        manager, output = self.scheduler.kv_cache_manager, self.output
        verb = "resumed" if kind == "resumed" else "admitted"
        self.events.append(event(verb, request, num_computed_tokens=num_computed_tokens))
        table = manager.get_block_ids(request.request_id)
        if num_cached_tokens := request.num_cached_tokens:
            block_ids = table[: num_cached_tokens // manager.block_size]
            self.events.append(
                event(
                    "cache_hit", request, num_cached_tokens=num_cached_tokens, block_ids=block_ids
                )
            )
        elif copies := [
            [cpu, gpu]
            for cpu, gpu in output.blocks_to_swap_in
            if num_computed_tokens and gpu in table
        ]:
            self.events.append(event("swapped_in", request, blocks=copies))

    def _evicted(self, number: int) -> None:
        for _ in range(number):
            block_id, block_hash = self._evictions.popleft()
            self.events.append(
                {"type": "evicted", "block_id": block_id, "block_hash": block_hash.hex()[:12]}
            )

    def _stopped(self, stop: AdmissionStop) -> None:
        numbers = {}
        if stop.num_blocks_needed is not None:
            numbers = {
                "num_blocks_needed": stop.num_blocks_needed,
                "num_free_blocks": stop.num_free_blocks,
            }
        self.events.append(event("admission_stopped", stop.request, reason=stop.reason, **numbers))

    def _victim_keys(self, preemption: Preemption) -> tuple[str, list[list[Any]] | None]:
        """The name of the victim policy, and what it compares, for each candidate."""
        names = {policy: name for name, policy in VICTIM_POLICIES.items()}
        name = names.get(self.scheduler.select_victim)
        if name is None:
            return "custom", None
        keys: list[list[Any]] = []
        for index, request in enumerate(preemption.running):
            key: Any = index
            if name in ("priority", "priority_as_upstream"):
                key = list(priority_key(request))
            elif name == "least_computed":
                key = self._num_computed_before(request)
            keys.append([request.request_id, key])
        return name, keys

    def _num_computed_before(self, request: Request) -> int:
        """Its computed tokens while the plan was made."""
        if victim := self._victims.get(request.request_id):
            return victim.num_computed_tokens
        return request.num_computed_tokens - self.output.num_scheduled_tokens.get(
            request.request_id, 0
        )


def _in_order(output: SchedulerOutput) -> Iterator[Preemption | tuple[str, int]]:
    """The decisions of a plan: (request id, tokens given), and preemptions, as they were taken."""
    told: set[str] = set()
    for preemption in output.preemptions:
        for item in preemption.num_scheduled_tokens.items():
            if item[0] not in told:
                told.add(item[0])
                yield item
        yield preemption
    for item in output.num_scheduled_tokens.items():
        if item[0] not in told:
            yield item


def _request_row(scheduler: Scheduler, request: Request, output: SchedulerOutput) -> RequestRow:
    manager = scheduler.kv_cache_manager
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


def _block_rows(scheduler: Scheduler) -> BlockRows:
    manager = scheduler.kv_cache_manager
    blocks = manager.block_pool.blocks
    owners: list[list[str]] = [[] for _ in blocks]
    full = [False] * len(blocks)
    for request_id, table in manager.req_to_blocks.items():
        num_full = scheduler.requests[request_id].num_computed_tokens // manager.block_size
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
            block.block_id for block in manager.block_pool.free_block_queue.get_all_free_blocks()
        ],
    }


def _cpu_block_rows(scheduler: Scheduler) -> CPUBlockRows:
    manager = scheduler.kv_cache_manager
    num_blocks = manager.num_cpu_blocks
    owners: list[str | None] = [None] * num_blocks
    for request_id, table in manager.req_to_cpu_blocks.items():
        for block_id in table:
            owners[block_id] = request_id
    return {"num_blocks": num_blocks, "owners": owners}
