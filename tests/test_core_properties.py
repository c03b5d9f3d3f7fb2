"""The core under any mix of requests, steps and aborts, with every configuration."""

from __future__ import annotations

import json

import hypothesis.strategies as st
from hypothesis import HealthCheck, given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from shadow import ShadowModel

from minivllm.core import (
    Request,
    RequestStatus,
    SamplingParams,
    Scheduler,
    SchedulerConfig,
)
from minivllm.runs import History, InputLog, replay

RELAXED = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@st.composite
def configs(draw):
    block_size = draw(st.integers(1, 5))
    max_model_len = draw(st.integers(2, 40))
    swap = draw(st.booleans())
    return SchedulerConfig(
        block_size=block_size,
        num_gpu_blocks=draw(st.integers(1, 16)),
        max_model_len=max_model_len,
        max_num_batched_tokens=draw(st.integers(1, 48)),
        max_num_seqs=draw(st.integers(1, 6)),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 1, 3, 16])),
        policy=draw(st.sampled_from(["fcfs", "priority"])),
        enable_prefix_caching=draw(st.booleans()),
        enable_chunked_prefill=draw(st.booleans()),
        reserve_full_prompt=draw(st.booleans()),
        preemption_mode="swap" if swap else "recompute",
        num_cpu_blocks=draw(st.integers(0, 12)) if swap else 0,
        victim=draw(st.sampled_from([None, None, "last_admitted", "priority", "least_computed"])),
    )


# Few different tokens, so that prefixes are shared often.
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=30)


class SchedulerMachine(RuleBasedStateMachine):
    """Drives a scheduler, and checks after every action what must always hold."""

    @initialize(config=configs())
    def build(self, config):
        self.scheduler = Scheduler(config, observer=InputLog())
        self.model = ShadowModel(self.scheduler)
        self.requests = {}
        self.idle_steps = 0

    @rule(
        prompt=prompts,
        max_tokens=st.one_of(st.none(), st.integers(1, 20)),
        priority=st.integers(-1, 2),
        arrival_time=st.one_of(st.none(), st.integers(0, 3).map(float)),
        eos=st.one_of(st.none(), st.integers(0, 2)),
    )
    def add(self, prompt, max_tokens, priority, arrival_time, eos):
        request_id = f"r{len(self.requests)}"
        request = Request(
            request_id,
            prompt,
            SamplingParams(max_tokens=max_tokens),
            priority=priority,
            arrival_time=arrival_time,
            eos_token_id=eos,
        )
        self.requests[request_id] = request
        if self.scheduler.add_request(request):
            assert request.status is RequestStatus.WAITING
        else:
            assert request.status is RequestStatus.FINISHED_IGNORED
            assert request.error
            assert request_id not in self.scheduler.requests

    @rule()
    def step(self):
        scheduler, config = self.scheduler, self.scheduler.config
        before = {id_: r.num_computed_tokens for id_, r in scheduler.requests.items()}
        running_before = [r.request_id for r in scheduler.running]
        output = scheduler.schedule()

        scheduled = output.num_scheduled_tokens
        assert sum(scheduled.values()) == output.total_num_scheduled_tokens
        assert output.total_num_scheduled_tokens <= config.max_num_batched_tokens
        assert all(tokens >= 1 for tokens in scheduled.values())
        assert set(scheduled) <= {r.request_id for r in scheduler.running}
        assert not set(scheduled) & set(output.preempted_req_ids)
        if config.long_prefill_token_threshold:
            assert max(scheduled.values(), default=0) <= config.long_prefill_token_threshold
        if output.preempted_req_ids:
            assert not output.scheduled_new_reqs
            assert not output.scheduled_resumed_reqs
            assert set(output.preempted_req_ids) <= set(running_before)
        # RUNNING comes first, in its order.
        first = [id_ for id_ in scheduled if id_ in running_before]
        assert list(scheduled)[: len(first)] == first
        assert first == [id_ for id_ in running_before if id_ in scheduled]
        for request in output.scheduled_running_reqs:
            id_ = request.request_id
            assert request.num_computed_tokens == before[id_] + scheduled[id_]

        if scheduler.has_unfinished_requests():
            # Progress: a step may only preempt, but not twice in a row for ever.
            self.idle_steps = 0 if scheduled else self.idle_steps + 1
            assert self.idle_steps <= len(running_before) + 1, "no request moves"
        outputs = scheduler.update_from_output(output, self.model.execute(output))
        for engine_output in outputs:
            request = self.requests[engine_output.request_id]
            assert request.is_finished == (engine_output.finish_reason is not None)
            assert request.output_token_ids[-1:] == engine_output.new_token_ids

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data):
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        was_alive = request_id in self.scheduler.requests
        ended = self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        assert ended == ([request_id] if was_alive else [])

    @invariant()
    def each_request_is_in_exactly_one_place(self):
        running = [r.request_id for r in self.scheduler.running]
        waiting = [r.request_id for r in self.scheduler.waiting]
        assert sorted(running + waiting) == sorted(self.scheduler.requests)
        assert len(running) <= self.scheduler.config.max_num_seqs
        for request_id, request in self.requests.items():
            expected = {
                RequestStatus.RUNNING: running,
                RequestStatus.WAITING: waiting,
                RequestStatus.PREEMPTED: waiting,
            }
            if request.is_finished:
                assert request_id not in self.scheduler.requests
            else:
                assert request_id in expected[request.status]
                assert 0 <= request.num_computed_tokens <= request.num_tokens
                assert request.num_tokens <= self.scheduler.config.max_model_len

    @invariant()
    def each_block_is_in_exactly_one_place(self):
        manager = self.scheduler.kv_cache_manager
        pool = manager.block_pool
        owners = dict.fromkeys(range(pool.num_gpu_blocks), 0)
        for request_id, table in manager.req_to_blocks.items():
            assert request_id in self.scheduler.requests
            assert len({block.block_id for block in table}) == len(table)
            for block in table:
                owners[block.block_id] += 1
        free = pool.free_block_queue.get_all_free_blocks()
        assert len(free) == pool.get_num_free_blocks() == len({b.block_id for b in free})
        for block in pool.blocks[1:]:
            assert block.ref_cnt == owners[block.block_id]
            assert (block.ref_cnt == 0) == (block in free)
        assert owners[0] == 0
        assert pool.null_block not in free

        hashed = {b.block_id for b in pool.blocks if b.block_hash is not None}
        listed = [id_ for copies in pool.cached_block_hash_to_block.values() for id_ in copies]
        assert sorted(listed) == sorted(hashed)
        if not self.scheduler.config.enable_prefix_caching:
            assert not hashed
            assert set(owners.values()) <= {0, 1}

        cpu = list(manager.free_cpu_blocks)
        for request_id, table in manager.req_to_cpu_blocks.items():
            assert self.scheduler.requests[request_id].status is RequestStatus.PREEMPTED
            cpu += table
        assert sorted(cpu) == list(range(manager.num_cpu_blocks))

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        for _ in range(3000):
            if not scheduler.has_unfinished_requests():
                break
            self.step()
        assert not scheduler.has_unfinished_requests(), "requests that never end"
        self.each_block_is_in_exactly_one_place()
        assert scheduler.kv_cache_manager.usage == 0.0, "leaked blocks"
        assert not scheduler.kv_cache_manager.req_to_cpu_blocks
        for request in self.requests.values():
            assert request.is_finished
            if request.status is RequestStatus.FINISHED_LENGTH_CAPPED:
                assert (
                    request.num_output_tokens == request.max_tokens
                    or request.num_tokens == scheduler.config.max_model_len
                )
        self.history_reproduces_the_run()

    def history_reproduces_the_run(self):
        history = self.scheduler.history
        text = history.to_json()
        restored = History.from_json(text)
        assert restored.to_json() == text
        assert replay(restored).history.to_json() == text
        middle = len(history) // 2
        half = replay(restored, middle)
        assert half.history.steps == json.loads(text)["steps"][:middle]
        for snapshot in history.steps:
            self.snapshot_is_consistent(snapshot)

    @staticmethod
    def snapshot_is_consistent(snapshot):
        blocks, requests = snapshot["blocks"], snapshot["requests"]
        assert sorted(snapshot["waiting"] + snapshot["running"]) == sorted(requests)
        assert snapshot["budget"]["spent"] == sum(
            row["num_scheduled_tokens"] for row in snapshot["scheduled"]
        )
        for block_id, (state, ref_cnt, owners) in enumerate(
            zip(blocks["state"], blocks["ref_cnt"], blocks["owners"], strict=True)
        ):
            assert ref_cnt == len(owners)
            assert owners == [id_ for id_ in owners if block_id in requests[id_]["block_table"]]
            assert (state in ".e") == (block_id in blocks["free_queue"])
            assert (state in "ec") == (blocks["block_hash"][block_id] is not None)
        for way in ("out", "in"):
            copies = [e["blocks"] for e in snapshot["events"] if e["type"] == f"swapped_{way}"]
            assert sum(map(len, copies)) == snapshot["stats"][f"num_swapped_{way}_blocks"]
        for row in snapshot["scheduled"]:
            limits = {name: limit for name, limit in row["limits"].items() if limit is not None}
            assert row["num_scheduled_tokens"] == min(limits.values()) == limits[row["cap"]]
            assert (
                requests[row["request_id"]]["num_scheduled_tokens"] == row["num_scheduled_tokens"]
            )


SchedulerMachine.TestCase.settings = settings(RELAXED, max_examples=150, stateful_step_count=40)
TestScheduler = SchedulerMachine.TestCase


@settings(RELAXED, max_examples=100)
@given(
    config=configs(),
    specs=st.lists(
        st.tuples(prompts, st.integers(1, 12), st.integers(0, 2)), min_size=1, max_size=6
    ),
)
def test_output_does_not_depend_on_the_schedule(config, specs):
    """Whatever is cut, shared, preempted or swapped, each request gets the tokens it gets alone."""

    def run(config, specs):
        scheduler = Scheduler(config)
        model = ShadowModel(scheduler, vocabulary=50)
        requests = [
            Request(f"r{i}", prompt, SamplingParams(max_tokens=n), priority=priority)
            for i, (prompt, n, priority) in specs
        ]
        accepted = [request for request in requests if scheduler.add_request(request)]
        while scheduler.has_unfinished_requests():
            output = scheduler.schedule()
            scheduler.update_from_output(output, model.execute(output))
        return {request.request_id: request.output_token_ids for request in accepted}

    together = run(config, list(enumerate(specs)))
    alone = {}
    for index, spec in enumerate(specs):
        alone.update(run(config, [(index, spec)]))
    assert together == alone
