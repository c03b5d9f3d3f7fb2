"""The bench for policies: what it measures, what it refuses, and the smallest loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from minivllm.core import Request
from minivllm.sim import Simulation, Trace
from minivllm.sim.bench import HELD_BACK, POLICIES, SHOWN, BrokenPolicy, Policy, bench, run
from minivllm.sim.bench.judge import PolicyRun, bench_cost, jain, seconds_alone
from minivllm.sim.bench.shrink import LOSES_BY, loss, smallest_loss
from minivllm.sim.bench.workloads import BenchWorkload

BY_NAME = {workload.name: workload for workload in (*SHOWN, *HELD_BACK)}
SMALL = replace(BY_NAME["a burst"], arrivals=BY_NAME["a burst"].arrivals[:24], num_gpu_blocks=96)


class SameAsFCFS(Policy):
    """Goes through the bench's own queue, and decides nothing."""

    def admits(self, request: Request, running: Sequence[Request]) -> bool:
        return True


@pytest.mark.parametrize("workload", SHOWN, ids=lambda workload: workload.name)
def test_fcfs_is_the_scheduler_as_it_is(workload: BenchWorkload) -> None:
    plain = Simulation(Trace(workload.arrivals), bench_cost(), workload.config()).run()
    for policy in (POLICIES["fcfs"], SameAsFCFS):
        assert PolicyRun(workload, policy(), bench_cost()).run().records == plain.records


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_of_the_table_ends_and_breaks_nothing(name: str) -> None:
    result = bench(POLICIES[name])
    assert len(result.outcomes) == len(SHOWN) + len(HELD_BACK)
    for outcome in result.outcomes:
        assert 0 < outcome.fairness <= 1
        assert 0 <= outcome.recompute_tax < 1
        assert outcome.slowdown > 0.99


def test_the_workloads_are_hard() -> None:
    """Blocks run out on most of them, those held back too, or no policy would differ."""
    preempted = [run(POLICIES["fcfs"], workload).preemptions > 0 for workload in BY_NAME.values()]
    assert sum(preempted) >= 7


def test_what_the_policies_promise() -> None:
    urgent, tenants = BY_NAME["urgent among batch"], BY_NAME["two tenants"]
    fcfs = {workload.name: run(POLICIES["fcfs"], workload) for workload in (urgent, tenants)}
    for name in ("priority", "urgent_seats"):
        now = run(POLICIES[name], urgent).by_kind["urgent"]
        assert now < 0.5 * fcfs[urgent.name].by_kind["urgent"], name
    fair = run(POLICIES["fair_queues"], tenants)
    assert fair.by_kind["quiet"] < fcfs[tenants.name].by_kind["quiet"]
    short = run(POLICIES["shortest_first"], BY_NAME["one giant"]).by_kind
    assert short["giant"] > run(POLICIES["fcfs"], BY_NAME["one giant"]).by_kind["giant"]


class NeverAdmits(Policy):
    def admits(self, request: Request, running: Sequence[Request]) -> bool:
        return False


class NotRunning(Policy):
    def victim(self, running: Sequence[Request]) -> Request:
        return Request("nobody", [1])


class TakesTurns(Policy):
    """The one that has come furthest yields, for ever."""

    def victim(self, running: Sequence[Request]) -> Request:
        return max(running, key=lambda request: request.num_computed_tokens)


class Cheats(Policy):
    """Says that tokens are computed that are not."""

    def served(self, request: Request, num_tokens: int) -> None:
        request.num_computed_tokens += 64


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (NeverAdmits, "the run does not end"),
        (NotRunning, "who does not run"),
        (Cheats, "has computed"),
    ],
)
def test_what_no_policy_may_do_is_found(policy: type[Policy], words: str) -> None:
    with pytest.raises(BrokenPolicy, match=words):
        bench(policy, [SMALL])


def test_a_run_that_goes_round_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minivllm.sim.bench.judge.MAX_STEPS", 30)
    with pytest.raises(BrokenPolicy, match="unfinished after 30 steps"):
        run(TakesTurns, SMALL)


def test_who_pays_is_named() -> None:
    result = bench(POLICIES["shortest_first"], [BY_NAME["one giant"]])
    assert "giant" in result.rows()[0][-1]
    assert "FCFS" in result.table()._repr_html_()
    assert bench(POLICIES["fcfs"], [SMALL]).score() == pytest.approx(
        {"throughput": 1, "ttft": 1, "slowdown": 1, "fairness": 1}
    )


class OneAtATime(Policy):
    def admits(self, request: Request, running: Sequence[Request]) -> bool:
        return not running


def test_the_smallest_loss_is_one_and_nothing_can_be_left_out() -> None:
    workload = replace(SMALL, arrivals=SMALL.arrivals[:12])
    found = smallest_loss(OneAtATime, [workload])
    assert found is not None
    assert loss(OneAtATime, found) > LOSES_BY
    assert len(found.arrivals) == 2
    for index in range(2):
        rest = found.arrivals[:index] + found.arrivals[index + 1 :]
        assert loss(OneAtATime, replace(found, arrivals=rest)) <= LOSES_BY
    assert smallest_loss(SameAsFCFS, [workload]) is None


def test_alone_is_alone() -> None:
    """What a request takes alone is what the simulator gives it alone."""
    arrival = BY_NAME["one giant"].arrivals[0]
    workload = replace(SMALL, arrivals=(arrival,), num_gpu_blocks=256)
    assert run(POLICIES["fcfs"], workload).slowdown == pytest.approx(1, rel=0.01)
    assert seconds_alone(1, 1, bench_cost(), workload) > 0
    assert jain([2.0, 2.0]) == 1
    assert jain([1.0, 0.0]) == 0.5
