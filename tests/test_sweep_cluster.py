"""Runs on a cluster that loses a worker and its scheduler: the rows of one process.

MINIVLLM_ALL_LIVE=1 makes it ten thousand of them, which takes some minutes; else a thousand.

A scheduler and its workers are processes as `dask scheduler` and `dask worker` start them; on many
machines they differ in their addresses.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from minivllm.sim import Mix, OpenLoop, read_results, sweep
from minivllm.sim.__main__ import main
from minivllm.sim.cluster import ClusterExecutor, lasting
from minivllm.sim.lengths import Constant
from tests.test_sim_sweep import Counting

distributed = pytest.importorskip(
    "distributed", reason="Dask is not installed: pip install -r .ci/requirements.txt"
)
pytest.importorskip("pyarrow", reason="pyarrow is not installed: .ci/requirements.txt has it")

ROOT = Path(__file__).resolve().parents[1]
WORKLOAD = OpenLoop(Mix.of("short", Constant(40), Constant(3)), 10, num_requests=2)
NUM_RUNS = 10_000 if os.environ.get("MINIVLLM_ALL_LIVE") == "1" else 1_000
GRID = {
    "num_gpu_blocks": [64], "seed": list(range(NUM_RUNS // 4)), "rate": [2, 20],
    "budget": [16, 2048],
}  # fmt: skip
"""So few blocks that a run takes two milliseconds."""


class Cluster:
    """A scheduler and workers; each is killed with all that it started."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *arguments, "--no-dashboard"],
            cwd=self.folder, env=env, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.running.append(process)
        return process

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        return self._start("dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port))

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self._start(
            "dask_worker", self.address, "--nthreads", "1", "--death-timeout", "60",
            "--local-directory", str(self.folder),
        )  # fmt: skip

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """As a power cut does."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.running.remove(process)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for process in list(made.running):
        made.kill(process)


def lines_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills process groups")
def test_a_sweep_survives_a_worker_and_the_scheduler(cluster, tmp_path, capsys):
    pytest.importorskip("tqdm")
    path = tmp_path / "rows.parquet"
    journal = tmp_path / "rows.parquet.journal"
    scheduler, worker = cluster.start_scheduler(), cluster.start_worker()
    cluster.start_worker()
    killed_at: list[int] = []

    def disaster() -> None:
        while lines_in(journal) < NUM_RUNS // 5:
            time.sleep(0.05)
        killed_at.append(lines_in(journal))
        cluster.kill(worker)
        cluster.start_worker()
        while lines_in(journal) < NUM_RUNS // 2:
            time.sleep(0.05)
        killed_at.append(lines_in(journal))
        cluster.kill(scheduler)
        time.sleep(1)
        cluster.start_scheduler()
        cluster.start_worker()
        cluster.start_worker()

    saboteur = threading.Thread(target=disaster, daemon=True)
    saboteur.start()
    with distributed.Client(cluster.address, timeout=60) as client:
        executor = client.get_executor()
        rows = sweep(GRID, WORKLOAD, executor=executor, path=path)
    saboteur.join(timeout=30)
    assert len(killed_at) == 2
    assert killed_at[1] < NUM_RUNS, "nothing was left to lose"
    assert f"{NUM_RUNS}/{NUM_RUNS}" in capsys.readouterr().err  # the bar
    assert len(rows) == NUM_RUNS
    assert rows == sweep(GRID, WORKLOAD, executor=Counting(), progress=False)
    assert sorted(row["key"] for row in read_results(path)) == sorted(row["key"] for row in rows)
    assert not journal.exists()

    again = Counting()  # and what is written is not computed again
    assert sweep(GRID, WORKLOAD, executor=again, path=path, progress=False) == rows
    assert again.count == 0


@contextmanager
def client_of_threads(folder: Path) -> Iterator[distributed.Client]:
    """Of a cluster in this process."""
    with (
        distributed.LocalCluster(
            n_workers=1, processes=False, dashboard_address=None, local_directory=str(folder),
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        yield client


def test_results_that_were_on_their_way_are_computed_again(tmp_path, monkeypatch):
    """The scheduler dies when all is computed and little has arrived."""
    with client_of_threads(tmp_path) as client:
        gather, lost = client._gather_remote, []

        async def gather_unless_it_breaks(*args):
            arrived = await gather(*args)
            if len(lost) < 2:
                lost.append(arrived)
                raise OSError("the scheduler is gone")
            return arrived

        monkeypatch.setattr(client, "_gather_remote", gather_unless_it_breaks)
        grid, found = {"seed": list(range(6)), "num_gpu_blocks": [64]}, []
        executor = client.get_executor()
        waiting = threading.Thread(
            target=lambda: found.extend(sweep(grid, WORKLOAD, executor=executor, progress=False)),
            daemon=True,
        )
        waiting.start()
        waiting.join(timeout=60)
        assert not waiting.is_alive(), "it waits for what never comes"
    assert len(lost) == 2
    assert found == sweep(grid, WORKLOAD, executor=Counting(), progress=False)


def test_what_a_call_on_the_cluster_raises_is_raised_here(tmp_path):
    with client_of_threads(tmp_path) as client:
        executor = ClusterExecutor(client)
        with pytest.raises(OSError, match="no such"):
            executor.submit(fails, "no such").result(timeout=30)
        assert executor.submit(int, "ff", base=16).result(timeout=30) == 255
        slow = executor.submit(time.sleep, 1)
        assert slow.cancel()
        assert slow.cancelled()


def test_an_executor_that_hides_its_client_is_refused(tmp_path):
    with client_of_threads(tmp_path) as client:
        executor = client.get_executor(retries=2)
        kept = lasting(executor)
        assert isinstance(kept, ClusterExecutor)
        assert kept.client is client
        assert kept.options == {"retries": 2, "pure": False}
        del executor._client  # as another release of Dask may
        with pytest.raises(
            TypeError, match=r"give minivllm\.sim\.cluster\.ClusterExecutor\(client\)"
        ):
            lasting(executor)


def fails(words: str) -> None:
    raise OSError(words)


def test_the_command_line_sweeps_on_a_cluster(cluster, tmp_path, capsys):
    cluster.start_scheduler()
    cluster.start_worker()
    out = tmp_path / "rows.csv"
    line = ["--num-requests", "5", "--sweep", "rate=5,10", "--out", str(out)]
    assert main([*line, "--cluster", cluster.address]) == 0
    on_cluster = capsys.readouterr().out
    assert main([*line, "--workers", "1"]) == 0  # all of it is in the file
    assert capsys.readouterr().out == on_cluster
    assert len(read_results(out)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cluster", "tcp://127.0.0.1:9"], "mean nothing without --sweep"),
        (["--cluster", "tcp://127.0.0.1:9", "--sweep", "rate=5", "--workers", "2"], "--workers"),
    ],
)
def test_a_cluster_needs_a_sweep_and_has_workers_of_its_own(arguments, words, capsys):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err
