"""Sessions: messages in, snapshots out; the same in any Python, and nothing a message can break."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm.core import KVCacheManager, RequestStatus
from minivllm.runs import History, replay
from minivllm.runs.scenario import KNOBS
from minivllm.stepper import SCENARIOS, Scenario, ScenarioRequest, StepperSession, record
from minivllm.stepper import session as session_module
from minivllm.stepper.fork import change_config
from minivllm.stepper.session import MESSAGES, Branch

ROOT = Path(__file__).resolve().parents[1]


class Client:
    """A view that only speaks JSON."""

    def __init__(self, scenario: str | Scenario = "cramped", steps: int = 0) -> None:
        self.session = StepperSession()
        row = SCENARIOS[scenario] if isinstance(scenario, str) else scenario
        self.ask("open", scenario=row.to_dict())
        if steps:
            self.ask("step", count=steps)

    def ask(self, type_: str, **fields: Any) -> dict[str, Any]:
        answer = self.raw(type_, **fields)
        assert answer["ok"], answer
        return answer

    def errors(self, type_: str, **fields: Any) -> dict[str, str]:
        before = self.state()
        answer = self.raw(type_, **fields)
        assert not answer["ok"], answer
        assert self.state() == before
        return {error["field"]: error["message"] for error in answer["errors"]}

    def raw(self, type_: str, **fields: Any) -> dict[str, Any]:
        text = json.dumps({"id": 7, "type": type_, **fields})
        answer = json.loads(self.session.handle_json(text))
        assert answer["id"] == 7
        return answer

    def state(self) -> str:
        branches = self.session.branches.values()
        return json.dumps([[b.answer(0, scenario=True), b.living()] for b in branches])


def all_steps(client: Client, branch: str = "main") -> list[dict[str, Any]]:
    return client.ask("export", branch=branch)["history"]["steps"]


# --- stepping ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_one_by_one_or_all_at_once_the_run_is_the_same(name: str) -> None:
    client, steps, sentences = Client(name), [], []
    while True:
        answer = client.ask("step")
        steps += answer["steps"]
        sentences += answer["sentences"]
        if answer["done"] or answer["stuck"]:
            break
    recording = json.loads(json.dumps(record(SCENARIOS[name])))
    assert steps == recording["steps"]
    assert sentences == recording["sentences"]
    assert client.ask("step", count=1000)["steps"] == []
    history = History.from_dict(client.ask("export")["history"])
    assert json.loads(replay(history).history.to_json())["steps"] == steps


def test_open_answers_with_the_scenario_and_no_step() -> None:
    answer = Client().ask("open", scenario=SCENARIOS["swap"].to_dict())
    assert answer["branch"] == "main"
    assert answer["steps"] == answer["sentences"] == []
    assert answer["config"]["preemption_mode"] == "swap"
    assert Scenario.from_dict(answer["scenario"]) == SCENARIOS["swap"]
    assert not answer["done"]


def test_an_empty_scenario_is_done_and_can_be_filled_by_hand() -> None:
    empty = replace(SCENARIOS["cramped"], requests=())
    client = Client(empty)
    assert client.ask("step")["done"]
    client.ask("add_request", request={"request_id": "x", "num_prompt_tokens": 3, "max_tokens": 2})
    assert len(client.ask("step", count=9)["steps"]) == 2


def test_steps_before_anyone_arrives_are_steps_too() -> None:
    late = replace(SCENARIOS["cramped"].requests[0], arrival_step=3)
    client = Client(replace(SCENARIOS["cramped"], requests=(late,)))
    answer = client.ask("step", count=4)
    assert [step["budget"]["spent"] for step in answer["steps"]] == [0, 0, 0, 10]
    assert answer["sentences"][0] == ["Nothing to schedule."]


def test_a_run_stops_at_its_limit_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MAX_STEPS", 9)
    client = Client()
    answer = client.ask("step", count=50)
    assert len(answer["steps"]) == 9
    assert not answer["done"]
    assert "num_gpu_blocks" in answer["notice"]
    assert client.ask("step")["steps"] == []


def test_the_largest_run_stays_within_its_memory() -> None:
    big = SCENARIOS["cramped"].with_knobs(num_gpu_blocks=4096)
    assert Branch("main", big).max_steps * 4096 <= session_module.MAX_CELLS


# --- knobs and arrivals -----------------------------------------------------------------------


def test_a_knob_runs_main_again_to_the_same_step() -> None:
    client = Client(steps=12)
    answer = client.ask("set_knobs", knobs={"num_gpu_blocks": 40})
    assert len(answer["steps"]) == 12
    assert answer["scenario"]["config"]["num_gpu_blocks"] == 40
    again = SCENARIOS["cramped"].with_knobs(num_gpu_blocks=40)
    assert answer["steps"] == json.loads(json.dumps(record(again, 12)["steps"]))
    assert answer["config"]["num_gpu_blocks"] == 40
    client.ask("reset")
    assert client.ask("step")["config"]["num_gpu_blocks"] == 40


def test_arrivals_change_and_change_back() -> None:
    client = Client(steps=5)
    before = all_steps(client)
    answer = client.ask("set_arrivals", pattern={"kind": "every", "every": 4})
    assert [r["arrival_step"] for r in answer["scenario"]["requests"]] == [0, 4, 8, 12, 16]
    answer = client.ask("set_arrivals", pattern={"kind": "as_written"})
    assert answer["steps"] == before


def test_bad_knobs_leave_everything_as_it_was() -> None:
    client = Client(steps=6)
    assert "got 0" in client.errors("set_knobs", knobs={"max_num_seqs": 0})["max_num_seqs"]
    assert client.errors("set_knobs", knobs={"max_num_seqs": 2, "nonsense": 1})
    assert "object" in client.errors("set_knobs", knobs=[1]).popitem()[1]
    assert "kind" in client.errors("set_arrivals", pattern={"kind": "never"})
    assert client.errors("set_arrivals", pattern=None)


# --- by hand ----------------------------------------------------------------------------------


def test_an_added_request_arrives_before_the_next_step_and_survives_a_knob() -> None:
    client = Client(steps=3)
    client.ask("add_request", request={"request_id": "x", "num_prompt_tokens": 5, "max_tokens": 2})
    [step] = client.ask("step")["steps"]
    assert [e["request_id"] for e in step["events"] if e["type"] == "arrived"] == ["x"]
    answer = client.ask("set_knobs", knobs={"num_gpu_blocks": 32})
    arrived = [e["request_id"] for e in answer["steps"][3]["events"] if e["type"] == "arrived"]
    assert arrived == ["x"]
    client.ask("reset")
    assert '"x"' not in json.dumps(client.ask("step", count=40)["steps"])


def test_an_abort_ends_a_request_before_the_next_step() -> None:
    client = Client(steps=3)
    client.ask("abort", request_id="r1")
    [step] = client.ask("step")["steps"]
    assert {"type": "aborted", "request_id": "r1"} in step["events"]
    assert "r1" not in step["requests"]
    assert "r1" in client.errors("abort", request_id="r1")["request_id"]
    assert "no unfinished request" in client.errors("abort", request_id="nobody")["request_id"]
    assert client.errors("abort", request_id=None)


def test_ids_are_unique_and_requests_checked() -> None:
    client = Client(steps=3)
    row = {"request_id": "r0", "num_prompt_tokens": 5}
    assert "taken" in client.errors("add_request", request=row)["request.request_id"]
    row = {"request_id": "x", "num_prompt_tokens": 5, "arrival_step": 1}
    assert "at least 3" in client.errors("add_request", request=row)["request.arrival_step"]
    assert "request.num_prompt_tokens" in client.errors("add_request", request={"request_id": "x"})
    assert client.errors("add_request", request=None)
    client.ask("add_request", request={"request_id": "x", "num_prompt_tokens": 5})
    row = {"request_id": "x", "num_prompt_tokens": 5}
    assert "taken" in client.errors("add_request", request=row)["request.request_id"]
    client.ask("abort", request_id="x")  # added and aborted before it ever arrived
    assert "aborted" in {e["type"] for e in client.ask("step")["steps"][0]["events"]}


def test_no_more_than_500_requests() -> None:
    first = SCENARIOS["cramped"].requests[0]
    requests = tuple(replace(first, request_id=f"r{i}") for i in range(500))
    client = Client(replace(SCENARIOS["cramped"], requests=requests))
    row = {"request_id": "x", "num_prompt_tokens": 5}
    assert "500" in client.errors("add_request", request=row)["request"]


def test_an_intervention_frees_a_stuck_run() -> None:
    client = Client("never-fits-stuck")
    answer = client.ask("step", count=100)
    assert answer["stuck"]
    client.ask("abort", request_id="r1")
    answer = client.ask("step", count=100)
    assert answer["done"]
    assert not answer["stuck"]


# --- rewind -----------------------------------------------------------------------------------


def test_rewind_forgets_what_came_later_and_goes_on_the_same() -> None:
    client = Client(steps=20)
    steps = all_steps(client)
    answer = client.ask("rewind", step=5)
    assert answer["first_step"] == 5
    assert answer["steps"] == []
    assert client.ask("step", count=15)["steps"] == steps[5:]
    assert "0 to 20" in client.errors("rewind", step=21)["step"]


def test_rewind_keeps_what_was_done_by_hand_at_that_step() -> None:
    client = Client(steps=4)
    for name in ("x", "y"):
        client.ask("add_request", request={"request_id": name, "num_prompt_tokens": 4})
        client.ask("step", count=3)
        client.ask("rewind", step=4)
    [step] = client.ask("step")["steps"]
    arrived = [e["request_id"] for e in step["events"] if e["type"] == "arrived"]
    assert arrived == ["r4", "x", "y"]
    client.ask("rewind", step=3)
    assert '"x"' not in json.dumps(client.ask("step", count=40)["steps"])


# --- forks ------------------------------------------------------------------------------------


def test_a_fork_shares_the_past_and_goes_its_own_way() -> None:
    client = Client(steps=10)
    main = all_steps(client)
    answer = client.ask("fork", step=5, knobs={"num_gpu_blocks": 34})
    assert answer["branch"] == "fork"
    assert answer["fork"] == {"step": 5, "knobs": {"num_gpu_blocks": 34}}
    assert answer["steps"] == main[:5]
    assert answer["config"]["num_gpu_blocks"] == 34
    answer = client.ask("step", branch="fork", count=100)
    assert answer["first_step"] == 5
    assert answer["done"]
    assert "num_gpu_blocks is 34 (was 16)" in answer["sentences"][0][0]
    assert not any(e["type"] == "preempted" for s in answer["steps"] for e in s["events"])
    assert all_steps(client) == main
    assert len(answer["steps"][0]["blocks"]["state"]) == 35


def test_a_fork_without_a_change_stays_like_main() -> None:
    for name in SCENARIOS:
        client = Client(name)
        client.ask("step", count=100)
        main = all_steps(client)
        for step in range(len(main) + 1):
            client.ask("fork", step=step)
            client.ask("step", branch="fork", count=100)
            assert all_steps(client, "fork") == main


def test_a_fork_hears_of_later_arrivals_and_of_what_was_done_by_hand() -> None:
    client = Client(steps=6)
    client.ask("add_request", request={"request_id": "x", "num_prompt_tokens": 5})
    client.ask("step")
    client.ask("fork", step=2, knobs={"max_num_seqs": 3})
    steps = client.ask("step", branch="fork", count=100)["steps"]
    arrived = {
        e["request_id"]: s["step"] for s in steps for e in s["events"] if e["type"] == "arrived"
    }
    assert arrived == {"r3": 2, "r4": 4, "x": 6}


def test_reset_takes_the_fork_back_to_its_beginning_and_main_drops_it() -> None:
    client = Client(steps=8)
    client.ask("fork", step=4, knobs={"max_num_seqs": 2})
    client.ask("step", branch="fork", count=5)
    assert len(client.ask("reset", branch="fork")["steps"]) == 4
    client.ask("rewind", branch="fork", step=4)
    assert client.errors("rewind", branch="fork", step=3)
    for message in ({"type_": "reset"}, {"type_": "set_knobs", "knobs": {}}):
        client.ask("fork", step=0, knobs={})
        client.ask(**message)
        assert "main" in client.errors("step", branch="fork")["branch"]


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"block_size": 8}, ("whole run", "4 slots")),
        ({"num_gpu_blocks": 15}, ("grow", "16", "15")),
        ({"max_model_len": 12}, ("tokens already", "at least")),
        ({"num_gpu_blocks": 9999}, ("4096",)),
    ],
)
def test_a_fork_refuses_what_cannot_change_in_mid_run(knobs: Any, words: tuple[str, ...]) -> None:
    client = Client(steps=8)
    message = client.errors("fork", step=5, knobs=knobs)[next(iter(knobs))]
    for word in words:
        assert word in message


def test_a_fork_needs_a_step_that_was_made() -> None:
    client = Client(steps=3)
    for step in (4, -1, None, True, "1", 1.0):
        assert "0 to 3" in client.errors("fork", step=step, knobs={})["step"]


def check_consistent(manager: KVCacheManager) -> None:
    """Every block is free or owned, as often as its count says; every CPU block too."""
    pool = manager.block_pool
    owners = [0] * len(pool.blocks)
    for table in manager.req_to_blocks.values():
        for block in table:
            owners[block.block_id] += 1
    free = {block.block_id for block in pool.free_block_queue.get_all_free_blocks()}
    assert len(free) == pool.get_num_free_blocks()
    for block in pool.blocks[1:]:
        assert block.ref_cnt == owners[block.block_id]
        assert (block.block_id in free) == (block.ref_cnt == 0)
    used = [b for table in manager.req_to_cpu_blocks.values() for b in table]
    assert sorted(used + manager.free_cpu_blocks) == list(range(manager.num_cpu_blocks))


fork_knobs = st.fixed_dictionaries(
    {},
    optional={
        "max_num_batched_tokens": st.integers(1, 64),
        "max_num_seqs": st.integers(1, 8),
        "long_prefill_token_threshold": st.integers(0, 8),
        "enable_chunked_prefill": st.booleans(),
        "reserve_full_prompt": st.booleans(),
        "policy": st.sampled_from(("fcfs", "priority")),
        "victim": st.sampled_from((None, "least_computed", "priority")),
        "preemption_mode": st.sampled_from(("recompute", "swap")),
        "num_cpu_blocks": st.integers(12, 30),
        "num_gpu_blocks": st.integers(16, 40),
        "enable_prefix_caching": st.booleans(),
    },
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(("cramped", "swap", "priority-inversion")),
    st.integers(0, 20),
    fork_knobs,
    fork_knobs,
)
def test_any_mix_of_knobs_leaves_the_pool_consistent(
    name: str, step: int, before: dict[str, Any], knobs: dict[str, Any]
) -> None:
    before.setdefault("num_gpu_blocks", 16)
    knobs["num_gpu_blocks"] = max(knobs.get("num_gpu_blocks", 16), before["num_gpu_blocks"])
    knobs["num_cpu_blocks"] = max(knobs.get("num_cpu_blocks", 12), before.get("num_cpu_blocks", 12))
    branch = Branch("fork", SCENARIOS[name].with_knobs(**before))
    branch.run(step)
    branch.turn_knobs(knobs)
    scheduler = branch.scheduler
    check_consistent(scheduler.kv_cache_manager)
    while len(branch.steps) < 300 and branch.step():
        check_consistent(scheduler.kv_cache_manager)
        if not scheduler.config.enable_prefix_caching:
            assert not any(branch.steps[-1]["blocks"]["block_hash"])
    if branch.done:
        assert scheduler.kv_cache_manager.usage == 0
    else:  # requests admitted under the old knobs may never fit the new ones
        assert branch.stuck or len(branch.steps) == 300


def test_fewer_seats_than_are_taken_admit_nobody_until_enough_have_gone() -> None:
    branch = Branch("main", SCENARIOS["cramped"].with_knobs(num_gpu_blocks=40))
    branch.run(4)
    assert len(branch.steps[-1]["running"]) == 4
    branch.turn_knobs({"max_num_seqs": 2})
    branch.run(100)
    assert branch.done
    for snapshot in branch.steps[4:]:
        admitted = any(row["kind"] == "new" for row in snapshot["scheduled"])
        assert not admitted or len(snapshot["running"]) <= 2


def test_grown_memory_is_used_before_cached_blocks_are_evicted() -> None:
    branch = Branch("main", SCENARIOS["shared-prefix"])
    branch.run(100)
    pool = branch.scheduler.kv_cache_manager.block_pool
    before = [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]
    change_config(branch.scheduler, num_gpu_blocks=66)
    after = [block.block_id for block in pool.free_block_queue.get_all_free_blocks()]
    assert after == [65, 66, *before]


def test_a_policy_that_changes_orders_the_queue_anew() -> None:
    rows = [("a", 5), ("b", 1), ("c", 3)]
    requests = tuple(
        ScenarioRequest(request_id=id_, num_prompt_tokens=8, priority=priority)
        for id_, priority in rows
    )
    scenario = replace(SCENARIOS["cramped"], requests=requests).with_knobs(max_num_seqs=1)
    branch = Branch("main", scenario)
    branch.run(1)
    assert [r.request_id for r in branch.scheduler.waiting] == ["b", "c"]
    change_config(branch.scheduler, policy="priority")
    branch.scheduler.finish_requests("b", RequestStatus.FINISHED_ABORTED)
    branch.intervene(
        session_module.Intervention(
            1, add=ScenarioRequest(request_id="d", num_prompt_tokens=4, priority=2)
        )
    )
    branch.run(2)
    assert [r.request_id for r in branch.scheduler.waiting] == ["d", "c"]


# --- messages that are none -------------------------------------------------------------------


def test_nothing_is_answered_before_a_scenario_is_open() -> None:
    for type_ in MESSAGES:
        if type_ != "open":
            answer = StepperSession().handle({"id": 1, "type": type_})
            assert not answer["ok"]


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        "step",
        {},
        {"type": "__init__"},
        {"type": ["step"]},
        {"type": "step", "branch": "side"},
        {"type": "step", "branch": ["main"]},
        {"type": "step", "count": 0},
        {"type": "step", "count": 1001},
        {"type": "step", "count": True},
        {"type": "step", "count": 1.0},
        {"type": "step", "more": 1},
        {"type": "open"},
        {"type": "open", "scenario": "cramped"},
        {"type": "fork"},
    ],
)
def test_a_bad_message_gets_errors_and_changes_nothing(message: Any) -> None:
    client = Client(steps=4)
    before = client.state()
    answer = client.session.handle(message)
    assert answer["ok"] is False
    assert answer["errors"]
    assert client.state() == before


@pytest.mark.parametrize("text", ["", "{", "[" * 50_000, "NaN", '{"type": "step", "count": 1e400}'])
def test_bad_json_gets_an_answer_in_json(text: str) -> None:
    answer = json.loads(Client().session.handle_json(text))
    assert answer["ok"] is False
    assert answer["errors"][0]["message"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
rows = st.fixed_dictionaries(
    {},
    optional={
        "request_id": st.sampled_from(("r0", "x", "y")) | json_values,
        "num_prompt_tokens": st.integers(0, 30) | json_values,
        "max_tokens": st.integers(0, 9) | json_values,
        "priority": st.integers(-2, 2),
    },
)
messages = st.fixed_dictionaries(
    {"type": st.sampled_from(tuple(MESSAGES))},
    optional={
        "branch": st.sampled_from(("main", "fork")) | json_values,
        "count": st.integers(0, 9) | json_values,
        "step": st.integers(-1, 12) | json_values,
        "knobs": st.dictionaries(
            st.sampled_from(KNOBS), st.integers(0, 40) | json_values, max_size=2
        ),
        "request": rows,
        "request_id": st.sampled_from(("r0", "r1", "x")) | json_values,
        "pattern": st.fixed_dictionaries({"kind": st.sampled_from(("every", "poisson", "burst"))}),
    },
)


def trimmed(message: dict[str, Any]) -> dict[str, Any]:
    """Without the fields that its type does not have, mostly."""
    known = ("type", *MESSAGES[message["type"]])
    return {key: value for key, value in message.items() if key in known}


@settings(max_examples=60, deadline=None)
@given(st.lists(messages, max_size=12))
def test_no_sequence_of_messages_breaks_a_session(sequence: list[dict[str, Any]]) -> None:
    session = StepperSession()
    session.handle({"type": "open", "scenario": SCENARIOS["cramped"].to_dict()})
    for message in sequence:
        answer = session.handle(trimmed(message))
        json.dumps(answer)
        assert answer["ok"] or answer["errors"]
        for branch in session.branches.values():
            check_consistent(branch.scheduler.kv_cache_manager)
            assert len(branch.sentences) == len(branch.steps)


# --- the same everywhere ----------------------------------------------------------------------


def random_scenario(seed: int) -> Scenario:
    rng = random.Random(seed)
    requests = tuple(
        ScenarioRequest(
            request_id=f"r{i}",
            arrival_step=rng.randrange(12),
            num_prompt_tokens=(prompt := rng.randint(4, 40)),
            max_tokens=rng.randint(1, 20),
            priority=rng.randint(0, 3),
            prefix_group="g" if (shared := rng.randrange(prompt) * (rng.random() < 0.5)) else None,
            num_prefix_tokens=shared,
        )
        for i in range(rng.randint(1, 12))
    )
    knobs = {
        "num_gpu_blocks": rng.randint(20, 50),
        "block_size": rng.choice((2, 4, 8)),
        "max_num_batched_tokens": rng.randint(8, 64),
        "max_num_seqs": rng.randint(1, 8),
        "policy": rng.choice(("fcfs", "priority")),
        "preemption_mode": rng.choice(("recompute", "swap")),
        "num_cpu_blocks": rng.randint(0, 20),
        "enable_prefix_caching": rng.random() < 0.7,
    }
    return Scenario(
        name="random", title="", question="", config=knobs, requests=requests, seed=seed
    )


def test_every_run_ends_and_is_the_same_in_another_process() -> None:
    """Hash randomisation is on in the child: no order may depend on it."""
    texts = [random_scenario(seed).to_json() for seed in range(30)]
    code = (
        "import json, sys, hashlib\n"
        "from minivllm.stepper import Scenario, record\n"
        "for line in sys.stdin:\n"
        "    text = json.dumps(record(Scenario.from_json(line)))\n"
        "    print(hashlib.sha256(text.encode()).hexdigest())\n"
        "bad = {'torch', 'numpy', 'plotly', 'anywidget'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join(texts),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    here = []
    for text in texts:
        recording = record(Scenario.from_json(text))
        assert recording["done"] != recording["stuck"]
        here.append(hashlib.sha256(json.dumps(recording).encode()).hexdigest())
    assert run.stdout.split() == here
