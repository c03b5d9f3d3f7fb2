"""A history made when somebody looks is, to the byte, the one written step by step."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
from pathlib import Path
from types import MethodType

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from shadow import ShadowModel
from test_core_properties import RELAXED, configs, prompts

from minivllm.core import (
    FCFSRequestQueue,
    KVCacheManager,
    Request,
    RequestStatus,
    SamplingParams,
    Scheduler,
    SchedulerConfig,
)
from minivllm.grading.exercises.workloads import variant
from minivllm.runs import History, InputLog, Recorder, conformance, make_observer, observe
from minivllm.runs.replay import replay
from minivllm.runs.scenario import ScenarioError
from minivllm.stepper.fork import change_config

SMALL = SchedulerConfig(num_gpu_blocks=12, block_size=2, max_model_len=40, max_num_seqs=4)


class LastFirst(FCFSRequestQueue):
    def add_request(self, request):
        self._queue.appendleft(request)


ONE_A_STEP = """
if output.scheduled_new_reqs:
    break
request = self.waiting.peek_request()
"""

schedule_waiting = Scheduler._schedule_waiting


def schedule_few(scheduler, output, token_budget):
    return schedule_waiting(scheduler, output, min(token_budget, 3))


class Variant(Scheduler):
    _schedule_waiting = schedule_few


class Run:
    """A scheduler and its model, moved by named actions."""

    def __init__(self, config, record, cls=Scheduler, clock=True):
        ticks = itertools.count()
        self.scheduler = cls(
            config,
            observer=make_observer(record),
            clock=(lambda: next(ticks) / 8) if clock else None,
        )
        self.history = self.scheduler.history
        self.model = ShadowModel(self.scheduler)
        self.num_added = 0

    def add(self, prompt, max_tokens, priority, eos):
        params = SamplingParams(max_tokens=max_tokens)
        name = f"r{self.num_added}"
        self.num_added += 1
        self.scheduler.add_request(
            Request(name, prompt, params, priority=priority, eos_token_id=eos)
        )

    def schedule(self):
        self.output = self.scheduler.schedule()
        self.sampled = self.model.execute(self.output)

    def update(self):
        self.scheduler.update_from_output(self.output, self.sampled)

    def step(self):
        self.schedule()
        self.update()

    def fail(self):
        """An update that lacks its last token, and then, perhaps, one of what is left."""
        self.schedule()
        sampled = dict(list(self.sampled.items())[:-1])
        try:
            self.scheduler.update_from_output(self.output, sampled)
        except ValueError:
            self.abort_all()

    def abort(self, number):
        self.scheduler.finish_requests(f"r{number}", RequestStatus.FINISHED_ABORTED)

    def abort_all(self):
        """As an engine does after a step that an exception cut short."""
        self.scheduler.finish_requests(None, RequestStatus.FINISHED_ABORTED)
        self.scheduler.running.clear()  # those that the failed update had ended already
        self.scheduler.kv_cache_manager.block_pool.reset_prefix_cache()

    # What no input tells:

    def other_victim(self):
        self.scheduler.select_victim = lambda running: running[0]

    def other_queue(self):
        waiting = list(self.scheduler.waiting)
        self.scheduler.waiting = LastFirst()
        for request in waiting:
            self.scheduler.waiting.add_request(request)

    def other_method(self):
        self.scheduler._schedule_waiting = MethodType(schedule_few, self.scheduler)

    def other_manager(self):
        if not self.scheduler.requests:
            self.scheduler.kv_cache_manager = KVCacheManager(9, self.scheduler.config.block_size, 0)

    def other_knobs(self):
        blocks = self.scheduler.config.num_gpu_blocks + 1
        with contextlib.suppress(ScenarioError):
            change_config(self.scheduler, max_num_batched_tokens=5, num_gpu_blocks=blocks)

    def other_caching(self):
        caching = self.scheduler.config.enable_prefix_caching
        change_config(self.scheduler, enable_prefix_caching=not caching)


adding = st.tuples(
    st.just("add"),
    prompts,
    st.integers(1, 12),
    st.integers(-1, 2),
    st.one_of(st.none(), st.just(1)),
)
inputs = st.one_of(
    adding,
    adding,
    st.just(("step",)),
    st.just(("step",)),
    st.just(("step",)),
    st.tuples(st.just("abort"), st.integers(0, 6)),
)
outside = st.sampled_from(["abort_all", "other_victim", "other_queue", "other_knobs"]).map(
    lambda name: (name,)
)


def check_same(config, actions, looks, cls=Scheduler, clock=True):
    """Do the same to both; look after the actions that `looks` says, and at the end."""
    lazy, eager = (Run(config, record, cls, clock) for record in (True, "eager"))
    for action, look in itertools.zip_longest(actions, looks[: len(actions)], fillvalue=False):
        parts = ("schedule", "update") if action == ("step",) else (action[0],)
        for name in parts:
            for run in (lazy, eager):
                getattr(run, name)(*action[1:])
            if look:
                assert lazy.history.to_json() == eager.history.to_json()
                assert len(lazy.history) == lazy.scheduler.step
    assert lazy.history.to_json() == eager.history.to_json()
    assert lazy.scheduler.history is lazy.history
    assert lazy.history == eager.history == lazy.history
    return lazy, eager


@settings(RELAXED, max_examples=150)
@given(
    config=configs(),
    actions=st.lists(inputs, max_size=40),
    looks=st.one_of(
        st.just([]), st.just([True] * 40), st.lists(st.booleans(), min_size=40, max_size=40)
    ),
    clock=st.booleans(),
)
def test_inputs_alone(config, actions, looks, clock):
    lazy, _ = check_same(config, actions, looks, clock=clock)
    assert not lazy.scheduler.observer._eager, "nothing but inputs, and yet recorded eagerly"


@settings(RELAXED, max_examples=150)
@given(
    config=configs(),
    before=st.lists(inputs, max_size=20),
    change=outside,
    after=st.lists(st.one_of(inputs, inputs, inputs, outside), max_size=20),
    looks=st.one_of(st.just([]), st.lists(st.booleans(), min_size=41, max_size=41)),
)
def test_what_no_input_tells(config, before, change, after, looks):
    check_same(config, [*before, change, *after], looks)


@pytest.mark.parametrize(
    "change",
    [
        "other_victim",
        "other_queue",
        "other_manager",
        "other_knobs",
        "other_caching",
        "abort_all",
    ],
)
@pytest.mark.parametrize("when", [0, 3])
@pytest.mark.parametrize("preemption_mode", ["recompute", "swap"])
def test_each_change_is_seen(change, when, preemption_mode):
    config = SchedulerConfig(
        num_gpu_blocks=8,
        block_size=2,
        max_num_seqs=4,
        preemption_mode=preemption_mode,
        num_cpu_blocks=6 if preemption_mode == "swap" else 0,
    )
    add = [("add", [1, 0, 1, 1], 6, 0, None), ("add", [1, 0, 1, 1, 0], 5, 1, None)]
    steps = [("step",)] * 6
    actions = [*(add if change != "other_manager" else []), *steps[:when], (change,)]
    lazy, _ = check_same(config, [*actions, *add, *steps, *steps], [False] * 40)
    # A reset of an empty cache is none.
    assert lazy.scheduler.observer._eager or (change, when) == ("abort_all", 0)


def test_a_subclass_is_told_by_its_own_code():
    actions = [("add", [1, 0, 1, 1, 0, 0, 1], 6, 0, None), *[("step",)] * 9]
    lazy, _ = check_same(SMALL, actions, [], cls=Variant)
    assert not lazy.scheduler.observer._eager
    assert isinstance(observe(Variant(SMALL)).observer, Recorder)


def test_an_edited_copy_of_the_scheduler_is_told_by_its_own_code():
    admits_one = variant("admits_one", "request = self.waiting.peek_request()", ONE_A_STEP)
    actions = [*[("add", [1, 0, 1, 1, 0], 6, 0, None)] * 3, *[("step",)] * 9]
    lazy, _ = check_same(SMALL, actions, [], cls=admits_one)
    assert not lazy.scheduler.observer._eager
    assert [len(step["running"]) for step in lazy.history.steps[:4]] == [1, 2, 3, 3]


def test_a_request_of_another_kind_is_recorded_as_it_is():
    class Hasty(Request):
        pass

    histories = []
    for record in (True, "eager"):
        run = Run(SMALL, record)
        run.add([1, 2, 3], 4, 0, None)
        run.step()
        run.scheduler.add_request(Hasty("hasty", [3, 2, 1]))
        shorter = Request("shorter", [3, 2, 1], SamplingParams(max_tokens=9))
        shorter.max_tokens = 2
        run.scheduler.add_request(shorter)
        for _ in range(4):
            run.step()
        histories.append(run.history.to_json())
    assert histories[0] == histories[1]


@settings(RELAXED, max_examples=60)
@given(config=configs(), before=st.lists(inputs, max_size=12), after=st.lists(inputs, max_size=12))
def test_an_update_that_raised_is_told_truly_or_not_at_all(config, before, after):
    said = ""
    try:
        check_same(config, [*before, ("fail",), *after], [])
    except RuntimeError as error:
        said = str(error)
    assert not said or "observer=Recorder()" in said


def test_a_method_replaced_says_so_and_a_recorder_tells_it():
    config = SchedulerConfig(num_gpu_blocks=60, block_size=2, max_model_len=40)
    lazy, eager = (Run(config, record) for record in (True, "eager"))
    for run in (lazy, eager):
        run.other_method()
        for token in range(3):
            run.add([token] * 7, 8, 0, None)
            run.step()
    with pytest.raises(RuntimeError, match=r"observer=Recorder"):
        len(lazy.history)
    assert [row["num_scheduled_tokens"] for row in eager.history[0]["scheduled"]] == [3]


def test_vllms_workloads(monkeypatch):
    made = []

    def build(config, *, observer):
        made.append(Scheduler(config, observer=(InputLog(), Recorder())[len(made)]))
        return made[-1]

    monkeypatch.setattr(conformance, "Scheduler", build)
    path = Path(__file__).parent / "data" / "vllm-0.22.1-edge.jsonl.gz"
    for workload in itertools.islice(conformance.read_traces(path), 12):
        made.clear()
        for _ in range(2):
            assert conformance.replay(workload) is None
        lazy, eager = made
        assert not lazy.observer._eager
        assert lazy.history.to_json() == eager.history.to_json()


def test_two_plans_at_once():
    """An update of another plan than the latest."""
    histories = []
    for record in (True, "eager"):
        run = Run(SMALL, record)
        for _ in range(3):
            run.add([1, 2, 3, 4, 5], 8, 0, None)
        run.schedule()
        first = run.output, run.sampled
        run.schedule()
        run.scheduler.update_from_output(*first)
        run.step()
        histories.append(run.history.to_json())
    assert histories[0] == histories[1]


# --- what a look costs --------------------------------------------------------------------


def test_no_snapshot_is_made_while_nobody_looks(monkeypatch):
    made = []
    write = Recorder.step_planned
    monkeypatch.setattr(
        Recorder,
        "step_planned",
        lambda recorder, output: (made.append(output.step), write(recorder, output)),
    )
    run = Run(SMALL, True)
    run.add([1, 2, 3], 30, 0, None)
    for _ in range(9):
        run.step()
    assert made == []
    assert len(run.history) == 9
    assert made == list(range(9))
    run.step()
    run.history.to_json(), run.history.steps, run.history.pending_inputs
    assert made == list(range(10)), "each step is written once"
    assert not run.scheduler.observer._inputs, "what has been told need not be kept"
    run.scheduler.select_victim = min
    run.step()
    assert made == list(range(11))


def test_the_clock_is_read_as_often_as_ever_and_never_by_a_look():
    reads = {}
    for record in (False, True, "eager"):
        ticks = itertools.count()
        scheduler = Scheduler(SMALL, observer=make_observer(record), clock=ticks.__next__)
        scheduler.add_request(Request("r", [1, 2, 3], SamplingParams(max_tokens=2)))
        for _ in range(2):
            scheduler.update_from_output(scheduler.schedule(), {"r": 5})
        if record:
            assert [step["time"] for step in scheduler.history.steps] == [3, 5]
        reads[record] = next(ticks)
    assert reads[True] == reads["eager"] == reads[False] + 2


def test_a_copy_is_of_what_has_happened():
    run = Run(SMALL, True, clock=False)
    run.add([1, 2, 3], 9, 0, None)
    run.step()
    text = run.history.to_json()
    copies = [copy.copy(run.history), pickle.loads(pickle.dumps(run.history))]
    other = copy.deepcopy(run)
    deep = copy.deepcopy(run.history)
    run.step()
    assert [type(one) for one in copies] == [History, History]
    assert [one.to_json() for one in [*copies, deep, other.history]] == [text] * 4
    other.step()
    assert other.history.to_json() == run.history.to_json()
    with pytest.raises(TypeError, match="unhashable"):
        hash(run.history)


# --- what cannot be told ------------------------------------------------------------------


def urgent(scheduler):
    scheduler.requests["r2"].priority = -5


def backwards(scheduler):
    scheduler.running.reverse()


def longer(scheduler):
    scheduler.requests["r1"].append_output_token_id(7)


@pytest.mark.parametrize("by_hand", [urgent, backwards, longer])
def test_a_change_by_hand_is_told_with_what_to_do(by_hand):
    config = SchedulerConfig(num_gpu_blocks=9, block_size=2, policy="priority")
    run = Run(config, True)
    for _ in range(3):
        run.add([1, 2, 3], 8, 0, None)
    run.step()
    by_hand(run.scheduler)
    run.step()
    for _ in range(2):  # and at the second look too
        with pytest.raises(RuntimeError, match=r"it had .*by hand.*record='eager'"):
            len(run.history)
    run.step()  # the run itself goes on


def test_a_change_by_hand_does_not_end_the_run():
    run = Run(SchedulerConfig(num_gpu_blocks=9, block_size=2), True)
    for _ in range(3):
        run.add([1, 2, 3], 8, 0, None)
    run.step()
    backwards(run.scheduler)
    run.step()
    run.other_victim()
    run.step()
    with pytest.raises(RuntimeError, match="record='eager'"):
        run.history.to_json()


def test_what_record_may_be():
    with pytest.raises(ValueError, match="True, False or 'eager', got 'lazy'"):
        make_observer("lazy")


def test_salts_and_skipped_caches_are_part_of_a_run():
    skip = SamplingParams(max_tokens=2, prompt_logprobs=1)
    kinds = [{}, {"cache_salt": "a"}, {"cache_salt": "a"}, {"cache_salt": "b"},
             {"sampling_params": skip}, {}]  # fmt: skip
    histories = []
    for record in (True, "eager"):
        scheduler = Scheduler(SMALL, observer=make_observer(record))
        model = ShadowModel(scheduler)
        requests = []
        for index, kind in enumerate(kinds):
            kind = {"sampling_params": SamplingParams(max_tokens=2), **kind}
            requests.append(Request(f"r{index}", [5] * 7, **kind))
            scheduler.add_request(requests[-1])
            while scheduler.has_unfinished_requests():
                output = scheduler.schedule()
                scheduler.update_from_output(output, model.execute(output))
        assert [request.num_cached_tokens for request in requests] == [0, 0, 6, 0, 0, 6]
        history = History.from_json(scheduler.history.to_json())
        assert replay(history).history.to_json() == history.to_json()
        histories.append(history.to_json())
    assert histories[0] == histories[1]
