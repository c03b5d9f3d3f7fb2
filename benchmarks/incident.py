"""How long it takes to replay and judge a recording, and to ask what if: in CPU seconds.

    python benchmarks/incident.py --hours 1 --rate 20

An hour of a server that never was: `tests/stand_in.py`, whose steps cost what the roofline of
llama-3-8b on an H100 says, recorded under a clock that jumps. Prompts and outputs have ShareGPT's
lengths. Making the recording takes longer than what is measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from minivllm import vllm  # noqa: E402
from minivllm.core import SamplingParams, SchedulerConfig  # noqa: E402
from minivllm.core.releases import NEWEST  # noqa: E402
from minivllm.incident.ledger import Ledger  # noqa: E402
from minivllm.incident.verdict import judge  # noqa: E402
from minivllm.incident.what_if import Oracle  # noqa: E402
from minivllm.runs.recording import read_recording  # noqa: E402
from minivllm.sim import OpenLoop, StepLoad, roofline  # noqa: E402
from tests import stand_in  # noqa: E402

CONFIG = SchedulerConfig(
    vllm_version=NEWEST, num_gpu_blocks=9_000, block_size=16, max_model_len=8_192,
    max_num_seqs=256, admission_control=False, keep_upstream_bugs=True,
)  # fmt: skip
HOST = 0.0003
"""Seconds between two steps."""


def make_recording(path: Path, hours: float, rate: float) -> None:
    """Serve the traffic, recorded."""
    release = ModuleType("vllm")
    release.__version__ = NEWEST  # type: ignore[attr-defined]
    sys.modules["vllm"] = release
    os.environ |= {"MINIVLLM_RECORDING": str(path), "MINIVLLM_RECORDING_MB": "4000"}
    now = 0.0
    vllm.Tape.now = lambda tape: now  # type: ignore[method-assign]
    stand_in.CONFIG = CONFIG
    cost = roofline("llama-3-8b", "h100")
    server: Any = stand_in.SyncServer(CONFIG)
    source = OpenLoop("sharegpt", rate=rate, duration=3600 * hours).start(1)
    number = 0
    while server.requests or source.next_time() < float("inf"):
        if not server.requests:
            now = max(now, source.next_time())
        while source.next_time() <= now:
            arrival = source.pop()
            params = SamplingParams(max_tokens=arrival.output_len, ignore_eos=True)
            prompt = [number + 10] * arrival.prompt_len
            at = server.tape.epoch + arrival.time
            request = stand_in.VllmRequest(f"r{number}", prompt, params, arrival_time=at)
            server.add_request(request)
            number += 1
        plan = server.schedule()
        now += cost.step_time(StepLoad.of_plan(plan.inner))
        caught_up = (i for i in plan.num_scheduled_tokens if server.requests[i].is_caught_up)
        server.update_from_output(plan, dict.fromkeys(caught_up, 5))
        now += HOST
        while len(server.tape.notes) > 50_000:
            time.sleep(0.05)  # no real server is that fast: let the writer follow
    server.shutdown()


def timed(what: str, work: Callable[[], Any]) -> Any:
    """Do it, and print the CPU seconds that it took."""
    start = time.process_time()
    result = work()
    print(f"{what:<28}{time.process_time() - start:8.1f} s of CPU time", flush=True)
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time replay, verdict and what-if.")
    parser.add_argument("--hours", type=float, default=0.05, help="of traffic (default 0.05)")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second (default 20)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hour.jsonl.gz"
        make_recording(path, options.hours, options.rate)
        recording = read_recording(path)
        print(
            f"{len(recording.requests):,} requests, {recording.num_steps:,} steps, "
            f"{path.stat().st_size / 1e6:.1f} MB"
        )
        ledger = timed("replay, every step compared", lambda: Ledger.of(read_recording(path)))
        if ledger.replay.difference is not None:
            sys.exit(f"decisions differ: {ledger.replay.difference}")
        timed("verdict, with its trials", lambda: judge(ledger))
        timed("one what-if of all of it", lambda: Oracle(ledger).ask({"max_num_seqs": 64}))


if __name__ == "__main__":
    main()
