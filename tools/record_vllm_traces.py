"""Record what vLLM's own scheduler decides, for `python -m minivllm.conformance`.

    python tools/record_vllm_traces.py traces.jsonl.gz --workloads 1500 --seed 100 [--async]

Needs vLLM 0.22.1 (CPU or CUDA build) importable; no model and no GPU are used. The scheduler is
unmodified; sampled tokens come from a formula. The workloads are meaner than the ones under
tests/data/vllm-0.22.1-part.jsonl.gz: tiny caches, equal arrival times, chunks of 3 tokens.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

from minivllm.runs.conformance import sampled_token

MAX_STEPS = 4000  # more: the run does not end (vLLM's equals can preempt each other for ever)

MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 8192,
    "torch_dtype": "float32",
}


def random_workload(rng: random.Random) -> dict[str, Any]:
    """A configuration that vLLM accepts, requests and aborts; `steps` is still empty."""
    block_size = rng.choice([1, 2, 4, 8, 16])
    max_model_len = rng.choice([24, 64, 128, 256])
    blocks_for_one = -(-max_model_len // block_size)
    chunked = rng.random() < 0.8
    max_num_seqs = rng.choice([1, 2, 4, 8, 16])
    budget = max(rng.choice([8, 16, 32, 64, 256]), max_num_seqs)
    config = {
        "block_size": block_size,
        "num_usable_blocks": blocks_for_one + rng.randint(0, blocks_for_one),
        "max_model_len": max_model_len,
        "max_num_batched_tokens": budget if chunked else max(budget, max_model_len),
        "max_num_seqs": max_num_seqs,
        "long_prefill_token_threshold": min(rng.choice([0, 0, 0, 3, 5, 8, 32]), max_model_len),
        "policy": rng.choice(["fcfs", "priority", "priority"]),
        "enable_prefix_caching": rng.random() < 0.7,
        "enable_chunked_prefill": chunked,
        "reserve_full_prompt": rng.random() < 0.5,
    }
    prefixes = [[rng.randint(3, 900) for _ in range(max_model_len)] for _ in range(2)]
    requests = []
    for index in range(rng.randint(2, 16)):
        prompt = [rng.randint(3, 900) for _ in range(rng.randint(1, max_model_len - 1))]
        prefix = rng.choice([None, *prefixes])
        if prefix:
            shared = rng.randint(0, len(prompt))
            prompt[:shared] = prefix[:shared]
        arrival_step = rng.choice([0, 0, rng.randint(0, 30)])
        requests.append(
            {
                "id": f"r{index}",
                "arrival_step": arrival_step,
                "arrival_time": float(rng.choice([arrival_step, index, 0])),
                "prompt_token_ids": prompt,
                "max_tokens": rng.randint(1, min(80, max_model_len)),
                "priority": rng.randint(0, 3),
            }
        )
    aborts = [
        [rng.randint(0, 60), f"r{rng.randrange(len(requests))}"]
        for _ in range(rng.choice([0, 0, 1, 3]))
    ]
    return {"config": config, "requests": requests, "aborts": aborts, "steps": []}


class Recorder:
    """vLLM's scheduler, and what it needs around it."""

    def __init__(self, model_directory: str) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import init_none_hash

        self.model_directory = model_directory
        self.hash = sha256
        init_none_hash(sha256)

    def scheduler(self, knobs: dict[str, Any]) -> Any:
        """vLLM's `Scheduler` or `AsyncScheduler`, unmodified, for one full-attention group."""
        import torch
        from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        block_size = knobs["block_size"]
        cache_config = CacheConfig(
            block_size=block_size, enable_prefix_caching=knobs["enable_prefix_caching"]
        )
        vllm_config = VllmConfig(
            scheduler_config=SchedulerConfig(
                max_num_seqs=knobs["max_num_seqs"],
                max_num_batched_tokens=knobs["max_num_batched_tokens"],
                max_model_len=knobs["max_model_len"],
                long_prefill_token_threshold=knobs["long_prefill_token_threshold"],
                enable_chunked_prefill=knobs["enable_chunked_prefill"],
                policy=knobs["policy"],
                scheduler_reserve_full_isl=knobs["reserve_full_prompt"],
                is_encoder_decoder=False,
                async_scheduling=knobs.get("async_scheduling", False),
            ),
            model_config=ModelConfig(
                model=self.model_directory,
                tokenizer=self.model_directory,
                skip_tokenizer_init=True,
                dtype="float32",
                max_model_len=knobs["max_model_len"],
            ),
            cache_config=cache_config,
        )
        cache_config.num_gpu_blocks = knobs["num_usable_blocks"] + 1
        spec = FullAttentionSpec(
            block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32
        )
        make_scheduler = AsyncScheduler if knobs.get("async_scheduling") else Scheduler
        return make_scheduler(
            vllm_config=vllm_config,
            kv_cache_config=KVCacheConfig(
                num_blocks=cache_config.num_gpu_blocks,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
            ),
            structured_output_manager=StructuredOutputManager(vllm_config),
            block_size=block_size,
        )

    def record(self, workload: dict[str, Any]) -> bool:
        """Fill in `steps`; False if the run does not end."""
        from vllm.v1.request import RequestStatus

        knobs, requests = workload["config"], workload["requests"]
        scheduler = self.scheduler(knobs)
        index_of = {spec["id"]: index for index, spec in enumerate(requests)}
        last_arrival = max(spec["arrival_step"] for spec in requests)
        in_flight: list[tuple[Any, Any]] = []
        num_ahead = int(knobs.get("async_scheduling", False))
        for step in range(MAX_STEPS):
            if step > last_arrival and not scheduler.requests:
                return True
            for spec in requests:
                if spec["arrival_step"] == step:
                    scheduler.add_request(self.request(spec, knobs))
            for when, request_id in workload["aborts"]:
                if when == step:
                    scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
            workload["steps"].append(self.step(scheduler, index_of, in_flight, num_ahead))
        return False

    def request(self, spec: dict[str, Any], knobs: dict[str, Any]) -> Any:
        """vLLM's `Request`."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher
        from vllm.v1.request import Request

        hasher = None
        if knobs["enable_prefix_caching"]:
            hasher = get_request_block_hasher(knobs["block_size"], self.hash)
        return Request(
            request_id=spec["id"],
            prompt_token_ids=list(spec["prompt_token_ids"]),
            sampling_params=SamplingParams(
                max_tokens=spec["max_tokens"], ignore_eos=True, temperature=0.0
            ),
            pooling_params=None,
            arrival_time=spec["arrival_time"],
            priority=spec["priority"],
            block_hasher=hasher,
        )

    def step(
        self,
        scheduler: Any,
        index_of: dict[str, int],
        in_flight: list[tuple[Any, Any]],
        num_ahead: int,
    ) -> dict[str, Any]:
        """One call of `schedule()`, and one of `update_from_output()` with the tokens of this plan
        or, async, of the one before it."""
        from vllm.v1.outputs import ModelRunnerOutput

        output = scheduler.schedule()
        ids = list(output.num_scheduled_tokens)
        live = {id_: scheduler.requests[id_] for id_ in ids}
        manager = scheduler.kv_cache_manager
        # A placeholder counts the token that this very plan gives.
        sampled = {
            id_: sampled_token(
                index_of[id_],
                request.num_output_tokens + max(request.num_output_placeholders - 1, 0),
            )
            for id_, request in live.items()
            if request.num_computed_tokens >= request.num_tokens
        }
        row = {
            "scheduled": [[id_, output.num_scheduled_tokens[id_]] for id_ in ids],
            "computed_after": {id_: request.num_computed_tokens for id_, request in live.items()},
            "preempted": sorted(output.preempted_req_ids or []),
            "running": [request.request_id for request in scheduler.running],
            "waiting": [request.request_id for request in scheduler.waiting],
            "block_ids": {id_: list(manager.get_block_ids(id_)[0]) for id_ in ids},
            "free_blocks": manager.block_pool.get_num_free_blocks(),
            "sampled": sampled,
        }
        before = set(scheduler.requests)
        model_output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={id_: index for index, id_ in enumerate(ids)},
            sampled_token_ids=[[sampled[id_]] if id_ in sampled else [] for id_ in ids],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        in_flight.append((output, model_output))
        if len(in_flight) > num_ahead:
            scheduler.update_from_output(*in_flight.pop(0))
        row["finished"] = sorted(before - set(scheduler.requests))
        return row


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Record decisions of vLLM's scheduler.")
    parser.add_argument("file", type=Path, help="where to write, .jsonl.gz")
    parser.add_argument("--workloads", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument(
        "--async", action="store_true", dest="ahead", help="plan before the last plan's tokens"
    )
    args = parser.parse_args()

    os.environ["HF_HUB_OFFLINE"] = "1"
    import vllm

    written = preemptions = 0
    endless: list[int] = []
    with tempfile.TemporaryDirectory() as directory, gzip.open(args.file, "wt") as lines:
        (Path(directory) / "config.json").write_text(json.dumps(MODEL_CONFIG))
        recorder = Recorder(directory)
        for seed in range(args.seed, args.seed + args.workloads):
            workload = random_workload(random.Random(seed))
            if args.ahead:
                workload["config"]["async_scheduling"] = True
            if not recorder.record(workload):
                endless.append(seed)
                continue
            workload["vllm"] = vllm.__version__
            lines.write(json.dumps(workload) + "\n")
            written += 1
            preemptions += sum(len(step["preempted"]) for step in workload["steps"])
    print(f"{written} workloads, {preemptions} preemptions; runs without end: {endless or 'none'}")


if __name__ == "__main__":
    main()
