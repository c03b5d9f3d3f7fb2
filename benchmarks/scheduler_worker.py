"""Times one scheduler, ours or vLLM's, in decode's steady state. Runs inside a worker."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCK_SIZE = 16
PROMPT_TOKENS = 16
WARM_UP_STEPS = 8
MAX_MODEL_LEN = 2048

Step = Callable[[], tuple[float, float]]
"""One step; seconds of `schedule()` and of `update_from_output()`."""


def blocks_needed(running: int, steps: int) -> int:
    """The smallest pool in which nobody is ever preempted: every step so far, and this case's."""
    tokens = PROMPT_TOKENS + WARM_UP_STEPS + steps + 2
    return running * (-(-tokens // BLOCK_SIZE) + 1)


def measure(
    engine: str, running: int, waiting: int, pool: int, steps: int, record: bool
) -> dict[str, Any]:
    """Microseconds per running request and step, one for each step.

    Args:
        engine: "minivllm" or "vllm".
        running: requests that decode, all through.
        waiting: requests in the queue, which no place in the batch is free for.
        pool: blocks.
        steps: steps to time, in which each request takes a new block every 16.
        record: keep snapshots (ours only).
    """
    build = {"minivllm": _minivllm, "vllm": _vllm}[engine]
    # Nobody finishes, and ours, which refuses what can never fit, refuses nobody.
    version, step = build(running, waiting, pool, WARM_UP_STEPS + steps + 1, record)
    for _ in range(WARM_UP_STEPS):
        step()
    gc.collect()
    gc.freeze()  # as vLLM's engine does when it is up
    times = [step() for _ in range(steps)]
    gc.unfreeze()
    scale = 1e6 / running
    return {
        "version": version,
        "schedule_us": [schedule * scale for schedule, _ in times],
        "update_us": [update * scale for _, update in times],
    }


def _minivllm(
    running: int, waiting: int, pool: int, max_tokens: int, record: bool
) -> tuple[str, Step]:
    import minivllm
    from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig
    from minivllm.runs import make_observer

    config = SchedulerConfig(
        num_gpu_blocks=pool,
        block_size=BLOCK_SIZE,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=running,
        max_num_batched_tokens=max(running * PROMPT_TOKENS, 2048),
        enable_prefix_caching=False,
    )
    scheduler = Scheduler(config, observer=make_observer(record), clock=time.monotonic)
    for index in range(running + waiting):
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0)
        scheduler.add_request(Request(f"r{index}", [index % 900] * PROMPT_TOKENS, params))

    def step() -> tuple[float, float]:
        start = time.perf_counter()
        plan = scheduler.schedule()
        planned = time.perf_counter()
        if len(plan.num_scheduled_tokens) != running:
            raise RuntimeError(f"{len(plan.num_scheduled_tokens)} of {running} were scheduled")
        tokens = dict.fromkeys(plan.num_scheduled_tokens, 7)
        begin = time.perf_counter()
        scheduler.update_from_output(plan, tokens)
        return planned - start, time.perf_counter() - begin

    return minivllm.__version__, step


def _vllm(running: int, waiting: int, pool: int, max_tokens: int, record: bool) -> tuple[str, Step]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import vllm
    from vllm.v1.outputs import ModelRunnerOutput

    # What is recorded for the conformance test is what is timed here.
    from tools.record_vllm_traces import MODEL_CONFIG, Recorder

    if record:
        raise ValueError("vLLM's scheduler does not record: record must be False")
    knobs = {
        "block_size": BLOCK_SIZE,
        "num_usable_blocks": pool,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": running,
        "max_num_batched_tokens": max(running * PROMPT_TOKENS, 2048),
        "long_prefill_token_threshold": 0,
        "policy": "fcfs",
        "enable_prefix_caching": False,
        "enable_chunked_prefill": True,
        "reserve_full_prompt": True,
    }
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "config.json").write_text(json.dumps(MODEL_CONFIG))
        recorder = Recorder(directory)
        scheduler = recorder.scheduler(knobs)
    for index in range(running + waiting):
        spec = {
            "id": f"r{index}",
            "prompt_token_ids": [index % 900] * PROMPT_TOKENS,
            "max_tokens": max_tokens,
            "arrival_time": float(index),
            "priority": 0,
        }
        scheduler.add_request(recorder.request(spec, knobs))

    def step() -> tuple[float, float]:
        start = time.perf_counter()
        plan = scheduler.schedule()
        planned = time.perf_counter()
        ids = list(plan.num_scheduled_tokens)
        if len(ids) != running:
            raise RuntimeError(f"{len(ids)} of {running} were scheduled")
        output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={id_: index for index, id_ in enumerate(ids)},
            sampled_token_ids=[[7] for _ in ids],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        begin = time.perf_counter()
        scheduler.update_from_output(plan, output)
        return planned - start, time.perf_counter() - begin

    return vllm.__version__, step
