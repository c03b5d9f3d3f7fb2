"""Many runs: the same rows whoever computes them, no point twice, a front that nothing beats."""

from __future__ import annotations

import csv
import math
import os
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from minivllm.sim import (
    MIXES,
    SLO,
    Arrival,
    FixedCost,
    OpenLoop,
    SimulationConfig,
    Trace,
    get_model,
    pareto_front,
    read_results,
    sweep,
)
from minivllm.sim.sweep import SweepError, grid_points, point_key

WORKLOAD = OpenLoop("chat", 10, num_requests=15)
GRID = {"rate": [5, 7.5, 20], "budget": [64, 2048]}
QUIET = {"progress": False}


class Counting(Executor):
    """Runs in this process, and counts."""

    def __init__(self, stop_after=None):
        self.count = 0
        self.stop_after = stop_after

    def submit(self, function, /, *arguments, **options):
        future = Future()
        self.count += 1
        if self.stop_after is not None and self.count > self.stop_after:
            future.set_exception(RuntimeError("the machine went away"))
            return future
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


def test_a_row_for_each_point_in_the_grids_order():
    rows = sweep(GRID, WORKLOAD, executor=Counting(), **QUIET)
    assert [(row["rate"], row["budget"]) for row in rows] == [
        (rate, budget) for rate in GRID["rate"] for budget in GRID["budget"]
    ]
    for row in rows:
        scenario = SimulationConfig(replace(WORKLOAD, rate=row["rate"]))
        summary = scenario.with_(budget=row["budget"]).run().summary()
        assert {name: row[name] for name in summary} == summary
        assert "goodput" not in row
    with_slo = sweep({"rate": [5]}, WORKLOAD, slo=SLO(ttft=9), executor=Counting(), **QUIET)
    assert with_slo[0]["slo_attainment"] == 1


def test_processes_give_what_one_process_gives():
    expected = sweep(GRID, WORKLOAD, executor=Counting(), **QUIET)
    assert sweep(GRID, WORKLOAD, **QUIET) == expected  # the default: a process for each core
    with ProcessPoolExecutor(2) as processes, ThreadPoolExecutor(2) as threads:
        assert sweep(GRID, WORKLOAD, executor=processes, **QUIET) == expected
        assert sweep(GRID, WORKLOAD, executor=threads, **QUIET) == expected
        assert processes.submit(abs, -1).result() == 1  # it was not shut down


def test_a_cluster_gives_what_one_process_gives(tmp_path):
    """Dask's executor on a local cluster of two processes; a real one differs in its address."""
    pytest.importorskip("distributed", reason="Dask is not installed: pip install distributed")
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,
            local_directory=str(tmp_path), silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        executor = client.get_executor()
        rows = sweep(GRID, WORKLOAD, executor=executor, path=tmp_path / "rows.csv", **QUIET)
        workers = {client.submit(os.getpid, pure=False).result() for _ in range(4)}
        assert os.getpid() not in workers
    assert rows == sweep(GRID, WORKLOAD, executor=Counting(), **QUIET)
    assert read_results(tmp_path / "rows.csv") != []


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_sweep_goes_on_where_it_stopped(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    path = tmp_path / f"rows{suffix}"
    with pytest.raises(SweepError, match=r"2 points failed.*went away") as caught:
        sweep(GRID, WORKLOAD, executor=Counting(stop_after=4), path=path, **QUIET)
    assert len(caught.value.rows) == len(read_results(path)) == 4

    rest = Counting()
    rows = sweep(GRID, WORKLOAD, executor=rest, path=path, **QUIET)
    assert rest.count == 2
    assert rows == sweep(GRID, WORKLOAD, executor=Counting(), **QUIET)
    # And a larger grid computes what it adds, no more; columns that come later do too.
    larger = Counting()
    grid = {**GRID, "rate": [5, 7.5, 20, 40]}
    sweep(grid, WORKLOAD, executor=larger, path=path, **QUIET)
    assert larger.count == 2
    objective = Counting()
    rows = sweep(GRID, WORKLOAD, slo=SLO(ttft=1), executor=objective, path=path, **QUIET)
    assert objective.count == 6  # another question of the same points
    assert all(row["goodput"] > 0 for row in rows)
    assert len(read_results(path)) == 14
    assert not list(tmp_path.glob("*.tmp"))


def test_a_line_torn_by_a_crash_is_computed_again(tmp_path):
    path = tmp_path / "rows.csv"
    expected = sweep(GRID, WORKLOAD, executor=Counting(), path=path, **QUIET)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    again = Counting()
    assert sweep(GRID, WORKLOAD, executor=again, path=path, **QUIET) == expected
    assert again.count == 1
    with path.open(newline="") as file:
        assert len(list(csv.reader(file))) == 7
    assert sorted(read_results(path), key=str) == sorted(expected, key=str)


def test_the_same_point_under_another_name_is_not_run_again(tmp_path):
    path = tmp_path / "rows.csv"
    sweep({"budget": [64, 128]}, WORKLOAD, executor=Counting(), path=path, **QUIET)
    again = Counting()
    names = {"max_num_batched_tokens": [64, 128]}
    rows = sweep(names, WORKLOAD, executor=again, path=path, **QUIET)
    assert again.count == 0
    assert [row["max_num_batched_tokens"] for row in rows] == [64, 128]


def test_what_a_result_depends_on_is_in_its_key():
    base = SimulationConfig(WORKLOAD)
    thin = replace(get_model("llama-3-8b"), num_layers=4)
    one, other = (Arrival(0, 5, 5),), (Arrival(0, 5, 6),)
    others = [
        base.with_(seed=1),
        base.with_(rate=11),
        base.with_(gpu="h200"),
        base.with_(tp=2),
        base.with_(model=thin),  # of the same name
        base.with_(threshold=5),
        base.with_(until=3.0),
        base.with_(cost=FixedCost(0.1)),
        base.with_(mix=replace(MIXES["chat"], parts=MIXES["sharegpt"].parts)),
        base.with_(workload=Trace(one)),
        base.with_(workload=Trace(other)),  # as long, and of the same name
    ]
    keys = [point_key(scenario) for scenario in (base, *others)] + [point_key(base, SLO(ttft=1))]
    assert len(set(keys)) == len(keys)
    assert point_key(base) == point_key(SimulationConfig(OpenLoop("chat", 10, num_requests=15)))


def test_one_point_that_fails_does_not_take_the_others_along():
    grid = {"num_gpu_blocks": [2, 2000], "max_model_len": [4000]}
    with pytest.raises(SweepError, match=r"1 point failed.*'num_gpu_blocks': 2.*blocks") as caught:
        sweep(grid, WORKLOAD, executor=Counting(), **QUIET)
    assert [row["num_gpu_blocks"] for row in caught.value.rows] == [2000]
    rows = sweep(grid, WORKLOAD, executor=Counting(), on_refused="count", **QUIET)
    assert [row["num_refused"] for row in rows] == [15, 0]


class Interrupting(Executor):
    """Its first result is Ctrl-C; the rest wait for ever."""

    def __init__(self):
        self.futures = []

    def submit(self, function, /, *arguments, **options):
        future = Future()
        self.futures.append(future)
        if len(self.futures) == 6:
            self.futures[0].set_exception(KeyboardInterrupt())
        return future


def test_an_interrupted_sweep_cancels_what_has_not_begun():
    executor = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        sweep(GRID, WORKLOAD, executor=executor, **QUIET)
    assert [future.cancelled() for future in executor.futures] == [False] + [True] * 5


def test_the_bar_counts_what_was_done_before(tmp_path, capsys):
    pytest.importorskip("tqdm")
    path = tmp_path / "rows.csv"
    sweep({"rate": [5]}, WORKLOAD, executor=Counting(), path=path, **QUIET)
    assert capsys.readouterr().err == ""
    sweep({"rate": [5, 6]}, WORKLOAD, executor=Counting(), path=path)
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"rate": []}, ("rate", "list", "[]")),
        ({"rate": 5}, ("rate", "list", "5")),
        ({"policy": "fcfs"}, ("policy", "list", "'fcfs'")),
        ({"speed": [1]}, ("speed", "rate")),
        ({"rate": [1, -1]}, ("rate", "greater than 0", "-1")),
        ({"budget": [0]}, ("max_num_batched_tokens", "0")),
        ({"model": ["llama-3-70b"], "gpu": ["a10"]}, ("llama-3-70b", "141")),
        ({"budget": [5], "max_num_batched_tokens": [6]}, ("budget", "are the same")),
    ],
)
def test_a_bad_grid_is_named_before_anything_runs(grid, words):
    executor = Counting()
    with pytest.raises(ValueError) as caught:
        sweep(grid, WORKLOAD, executor=executor, **QUIET)
    for word in words:
        assert word in str(caught.value)
    assert executor.count == 0


def test_a_file_of_another_kind_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"rows\.xlsx: must end in \.csv or \.parquet"):
        sweep(GRID, WORKLOAD, path=tmp_path / "rows.xlsx", **QUIET)


def test_grids_of_things_get_names_for_labels():
    rows = sweep(
        {"mix": [MIXES["chat"], "alpaca"], "enable_prefix_caching": [False], "victim": [None]},
        WORKLOAD, executor=Counting(), **QUIET,
    )  # fmt: skip
    assert [row["mix"] for row in rows] == ["chat", "alpaca"]
    assert rows[0]["enable_prefix_caching"] is False
    assert rows[0]["victim"] is None
    assert grid_points({}) == [{}]


# --- the front ------------------------------------------------------------------------------

cells = st.one_of(st.integers(0, 6), st.floats(0, 6), st.just(math.nan))


@given(
    st.lists(st.fixed_dictionaries({"x": cells, "y": cells}), max_size=25),
    st.booleans(),
    st.booleans(),
)
def test_nothing_beats_the_front_and_it_leaves_nothing_unbeaten(rows, more_x, more_y):
    def better_or_equal(a, b):
        x = a["x"] >= b["x"] if more_x else a["x"] <= b["x"]
        return x and (a["y"] >= b["y"] if more_y else a["y"] <= b["y"])

    def same(a, b):
        return (a["x"], a["y"]) == (b["x"], b["y"])

    front = pareto_front(rows, "x", "y", more_x=more_x, more_y=more_y)
    known = [r for r in rows if not (math.isnan(r["x"]) or math.isnan(r["y"]))]
    for row in known:
        unbeaten = not any(better_or_equal(o, row) and not same(o, row) for o in known)
        assert unbeaten == any(same(row, kept) for kept in front)
    assert [row["x"] for row in front] == sorted(row["x"] for row in front)
    assert len({(row["x"], row["y"]) for row in front}) == len(front)


def test_a_column_that_is_missing_is_named():
    with pytest.raises(ValueError, match="'z' is not a number in every row"):
        pareto_front([{"x": 1, "y": 2}], "x", "z")
