"""Record what vLLM's own scheduler decides, for `python -m minivllm.conformance`.

    python tools/record_vllm_traces.py traces.jsonl.gz --release 0.33.0 --workloads 1500 [--async]
    python tools/record_vllm_traces.py --release 0.33.0 --workloads 10000 --check

The first writes a file, the second compares each workload at once with what minivllm decides. The
release is installed by itself (tools/vllm_release.py); without `--release`, the vLLM that can be
imported is recorded. No model and no GPU are used. The scheduler is unmodified; sampled tokens come
from a formula. The workloads are mean: tiny caches, equal arrival times, chunks of 3 tokens; stop
tokens, `min_tokens`, aborts, and every knob of the scheduler that the release has. `--queue-caps`
sets those of 0.29.0 too, which the API server's front door holds: it is recorded before the
scheduler, which never sees whom it refuses.
`--speculative` proposes tokens, right ones and wrong ones, as a prompt look-up or a draft model
would; `--by-batch-size` with it, fewer while more requests run, in the releases that can.
`--small` makes workloads that are short to read and to store, `--plain` those that a scheduler can
be asked about that has no priorities, aborts, stop tokens and further knobs; `--scenarios` records
the ones that `minivllm.runs.scenarios` keeps because releases differ on them.

A run that does not end is kept with its first 100 steps at most, and `"ends": false`: two equals
can preempt each other for ever; before 0.29.0 a request at `max_model_len` can lack some of its
`min_tokens`, waits for ever, or fails an assertion of vLLM's when it is preempted.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from minivllm.core.releases import CHANGES, RELEASES  # noqa: E402
from minivllm.runs.agreement import QUEUE_CAPS  # noqa: E402
from minivllm.runs.conformance import (  # noqa: E402
    replay,
    sampled_token,
    workload_of,
)
from minivllm.runs.guesses import Guesses, verified  # noqa: E402
from minivllm.runs.scenarios import LIVELOCKS, PARTINGS  # noqa: E402

MAX_STEPS = 4000
"""More: the run does not end."""
KEPT_STEPS = 100
"""Of a run that does not end."""
NUM_TO_PROPOSE = "num_spec_tokens_to_schedule"
BY_BATCH_SIZE = "num_speculative_tokens_per_batch_size"
RELEASE_KNOBS = tuple(
    change.name for change in CHANGES if not change.is_switch and change.name != BY_BATCH_SIZE
)
"""Of vLLM's `SchedulerConfig`."""

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


def random_workload(
    rng: random.Random, version: str, small: bool = False, speculative: bool = False
) -> dict[str, Any]:
    """A configuration that vLLM accepts, requests and aborts; `steps` is still empty.

    Releases get the same workload from the same `rng`, but for the knobs that some lack.
    """
    block_size = rng.choice([1, 2, 4, 8, 16])
    max_model_len = rng.choice([24, 32, 48] if small else [24, 64, 128, 256])
    blocks_for_one = -(-max_model_len // block_size)
    chunked = rng.random() < 0.8
    max_num_seqs = rng.choice([1, 2, 4, 8, 16])
    budget = max(rng.choice([8, 16, 32, 64, 256]), max_num_seqs)
    config = {
        "block_size": block_size,
        "num_usable_blocks": blocks_for_one + rng.randint(0, blocks_for_one // (2 if small else 1)),
        "max_model_len": max_model_len,
        "max_num_batched_tokens": budget if chunked else max(budget, max_model_len),
        "max_num_seqs": max_num_seqs,
        "long_prefill_token_threshold": min(rng.choice([0, 0, 0, 3, 5, 8, 32]), max_model_len),
        "policy": rng.choice(["fcfs", "priority", "priority"]),
        "enable_prefix_caching": rng.random() < 0.7,
        "enable_chunked_prefill": chunked,
        "reserve_full_prompt": rng.random() < 0.5,
    }
    knobs = {
        "watermark": rng.choice([0.0, 0.0, 0.01, 0.1, 0.3]),
        "long_prefill_token_threshold_adaptive": rng.random() < 0.3,
        "max_num_active_seqs": rng.choice([None, None, rng.randint(1, max_num_seqs)]),
        "prefill_schedule_interval": rng.choice([1, 1, 2, 3, 8]),
    }
    has = {change.name for change in CHANGES if change.holds_in(version)}
    config |= {name: value for name, value in knobs.items() if name in has}
    prefixes = [[rng.randint(3, 900) for _ in range(max_model_len)] for _ in range(2)]
    requests = []
    for index in range(rng.randint(2, 8 if small else 16)):
        prompt = [rng.randint(3, 900) for _ in range(rng.randint(1, max_model_len - 1))]
        prefix = rng.choice([None, *prefixes])
        if prefix:
            shared = rng.randint(0, len(prompt))
            prompt[:shared] = prefix[:shared]
        arrival_step = rng.choice([0, 0, rng.randint(0, 30)])
        max_tokens = rng.randint(1, min(80, max_model_len))
        request = {
            "id": f"r{index}",
            "arrival_step": arrival_step,
            "arrival_time": float(rng.choice([arrival_step, index, 0])),
            "prompt_token_ids": prompt,
            "max_tokens": max_tokens,
            "priority": rng.randint(0, 3),
        }
        stop_at, room = rng.randint(0, max_tokens), max_model_len - len(prompt)
        least = rng.randint(0, max_tokens if rng.random() < 0.05 else min(max_tokens, room))
        if rng.random() < 0.3:
            request["stop_token_ids"] = [sampled_token(index, stop_at)]
        if rng.random() < 0.3:
            request["min_tokens"] = least
        requests.append(request)
    aborts = [
        [rng.randint(0, 60), f"r{rng.randrange(len(requests))}"]
        for _ in range(rng.choice([0, 0, 1, 3]))
    ]
    if speculative:
        config |= speculation(rng, config)
    return {"config": config, "requests": requests, "aborts": aborts, "steps": []}


def speculation(rng: random.Random, config: dict[str, Any]) -> dict[str, Any]:
    """Knobs for proposed tokens, and those that they need changed."""
    num_drafts = rng.randint(1, 5)
    has_model = rng.random() < 0.4
    budget = max(config["max_num_batched_tokens"], config["max_num_seqs"] + num_drafts + 1)
    threshold = config["long_prefill_token_threshold"]
    return {
        "num_speculative_tokens": num_drafts,
        "num_lookahead_tokens": num_drafts if has_model else 0,
        "max_num_batched_tokens": budget
        if config["enable_chunked_prefill"]
        else budget + config["max_num_seqs"],
        # A lower one cuts padded requests, and vLLM fails an assertion.
        "long_prefill_token_threshold": max(threshold, num_drafts + 1) if threshold else 0,
    }


def by_batch_size(rng: random.Random, config: dict[str, Any]) -> list[list[int]]:
    """Rows (from, to, tokens) for batches up to the largest or not so far, with gaps, and some with
    more tokens than may be proposed."""
    rows: list[list[int]] = []
    start = 1
    for _ in range(rng.choice([1, 2, 2, 3, 4])):
        end = start + rng.choice([0, 0, 1, 2, 5])
        rows.append([start, end, rng.randint(0, config["num_speculative_tokens"] + 1)])
        start = end + rng.choice([1, 1, 1, 2, 4])
    return rows


def proposed_tokens(seed: str, request_index: int, num_output_tokens: int, most: int) -> list[int]:
    """Some tokens after those that a request has, each right three times in four."""
    rng = random.Random(f"{seed}/{request_index}/{num_output_tokens}")
    return [
        sampled_token(request_index, num_output_tokens + i) + (rng.random() < 0.25)
        for i in range(rng.choice([0, most, most, rng.randint(0, most)]))
    ]


def made_plain(workload: dict[str, Any]) -> dict[str, Any]:
    """What every scheduler has: first come, first served, chunks, prompts and lengths that fit."""
    config = workload["config"]
    config |= {"policy": "fcfs", "enable_chunked_prefill": True, "long_prefill_token_threshold": 0}
    config["reserve_full_prompt"] = True
    for name in RELEASE_KNOBS:
        config.pop(name, None)
    for request in workload["requests"]:
        request.pop("stop_token_ids", None)
        request.pop("min_tokens", None)
        request["priority"] = 0
        room = config["max_model_len"] - len(request["prompt_token_ids"])
        request["max_tokens"] = min(request["max_tokens"], room)
    return {**workload, "aborts": []}


class Model:
    """Stands in for a model's runner: what it has sampled and proposed."""

    def __init__(self, index_of: dict[str, int], guesses: bool) -> None:
        self.index_of = index_of
        self.guesses = Guesses(self.says) if guesses else None
        self.num_sampled: Counter[str] = Counter()
        self.proposed: dict[str, list[int]] = {}

    def sample(self, ids: list[str], drafts: dict[str, list[int]]) -> dict[str, int | list[int]]:
        """The token of each request; with proposed ones, those that are right and one more."""
        sampled: dict[str, int | list[int]] = {}
        for id_ in ids:
            says, first = partial(sampled_token, self.index_of[id_]), self.num_sampled[id_]
            sampled[id_] = verified(drafts[id_], first, says) if id_ in drafts else says(first)
            self.num_sampled[id_] += len(as_list(sampled[id_]))
        return sampled

    def says(self, request: Any, index: int) -> int:
        """An output token of vLLM's or our request."""
        return sampled_token(self.index_of[request.request_id], index)

    def propose(self, request: Any, most: int) -> list[int]:
        """For vLLM's request: as a scenario's proposer does, or more mixed."""
        id_ = request.request_id
        if self.guesses:
            return self.guesses.draft_token_ids(request, most)
        return proposed_tokens("drafts", self.index_of[id_], self.num_sampled[id_], most)


class FrontDoor:
    """vLLM's API server as far as it refuses: `AsyncLLM.check_admission`, and the `OutputProcessor`
    whose requests it counts; unmodified, without an engine behind them."""

    def __init__(self, scheduler_config: Any) -> None:
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.output_processor import OutputProcessor

        self.llm = object.__new__(AsyncLLM)
        self.llm.scheduler_config = scheduler_config
        self.llm.output_processor = OutputProcessor(None, log_stats=False)
        self.llm.admission_stats = self.llm.logger_manager = None

    def lets_in(self, request: Any) -> bool:
        """Whether vLLM's request may queue; it is counted then."""
        from vllm.v1.engine import EngineCoreRequest

        try:
            self.llm.check_admission(request_id=request.request_id)
        except Exception as error:
            # Named so: they are no exceptions that releases without the caps could import.
            if type(error).__name__ not in ("QueueOverflowError", "MaxQueuedTokensError"):
                raise
            return False
        asked = EngineCoreRequest(
            request_id=request.request_id,
            external_req_id=request.request_id,
            prompt_token_ids=request.prompt_token_ids,
            mm_features=None,
            sampling_params=request.sampling_params,
            pooling_params=None,
            arrival_time=request.arrival_time,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        self.llm.output_processor.add_request(asked, None)
        return True

    def told(self, outputs: dict[int, Any]) -> None:
        """What an update brought: first tokens, and ends."""
        for each in outputs.values():
            self.llm.output_processor.process_outputs(each.outputs)

    def aborted(self, request_id: str) -> None:
        """A client has gone."""
        self.llm.output_processor.abort_requests([request_id], internal=True)


class Recorder:
    """vLLM's scheduler, and what it needs around it."""

    def __init__(self, model_directory: str) -> None:
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import init_none_hash

        self.model_directory = model_directory
        self.hash = sha256
        self.num_cut = 0  # runs ended before a plan of less than one token
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
                **{name: knobs[name] for name in RELEASE_KNOBS if name in knobs},
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
        if num_drafts := knobs.get("num_speculative_tokens"):
            vllm_config = replace(
                vllm_config, speculative_config=self.speculation(vllm_config, knobs, num_drafts)
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

    def speculation(self, vllm_config: Any, knobs: dict[str, Any], num_drafts: int) -> Any:
        """vLLM's `SpeculativeConfig`: of a draft model if it needs slots, of a look-up if not."""
        from vllm.config import SpeculativeConfig

        how: dict[str, Any] = {"method": "ngram", "prompt_lookup_max": 3, "prompt_lookup_min": 1}
        if knobs["num_lookahead_tokens"]:
            how = {"method": "draft_model", "model": self.model_directory}
        if rows := knobs.get(BY_BATCH_SIZE):
            how[BY_BATCH_SIZE] = rows
        return SpeculativeConfig(
            num_speculative_tokens=num_drafts,
            target_model_config=vllm_config.model_config,
            target_parallel_config=vllm_config.parallel_config,
            **how,
        )

    def record(self, workload: dict[str, Any], guesses: bool = False) -> None:
        """Fill in `steps`, and `ends` if the run does not; tokens are proposed as a scenario's are
        if `guesses`."""
        from vllm.v1.request import RequestStatus

        knobs, requests = workload["config"], workload["requests"]
        scheduler = self.scheduler(knobs)
        index_of = {spec["id"]: index for index, spec in enumerate(requests)}
        last_arrival = max(spec["arrival_step"] for spec in requests)
        in_flight: list[tuple[Any, Any]] = []
        num_ahead = int(knobs.get("async_scheduling", False))
        model = Model(index_of, guesses)
        door = None
        if any(name in knobs for name in QUEUE_CAPS):
            door = FrontDoor(scheduler.vllm_config.scheduler_config)
        for step in range(MAX_STEPS):
            if step > last_arrival and not scheduler.requests:
                return
            refused = []
            for spec in requests:
                if spec["arrival_step"] == step:
                    request = self.request(spec, knobs)
                    if door is None or door.lets_in(request):
                        scheduler.add_request(request)
                    else:
                        refused.append(spec["id"])
            for when, request_id in workload["aborts"]:
                if when == step:
                    if door is not None:
                        door.aborted(request_id)
                    scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
            try:
                row = self.step(scheduler, model, in_flight, num_ahead, door)
            except AssertionError:  # vLLM itself gives up: so ends a plan of 0 tokens in 0.22.1
                break
            if any(num_tokens < 1 for _, num_tokens in row["scheduled"]):
                self.num_cut += 1
                break  # the same with async scheduling, one step before the assertion
            if door is not None:
                row["refused"] = refused
            workload["steps"].append(row)
        workload["ends"] = False
        del workload["steps"][KEPT_STEPS:]

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
                max_tokens=spec["max_tokens"],
                min_tokens=spec.get("min_tokens", 0),
                stop_token_ids=spec.get("stop_token_ids"),
                ignore_eos=True,
                temperature=0.0,
            ),
            pooling_params=None,
            arrival_time=spec["arrival_time"],
            priority=spec["priority"],
            block_hasher=hasher,
        )

    def step(
        self,
        scheduler: Any,
        model: Model,
        in_flight: list[tuple[Any, Any]],
        num_ahead: int,
        door: FrontDoor | None,
    ) -> dict[str, Any]:
        """One call of `schedule()`, and one of `update_from_output()` with the tokens of this plan
        or, async, of the one before it."""
        from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

        were_running = {request.request_id for request in scheduler.running}
        output = scheduler.schedule()
        ids = list(output.num_scheduled_tokens)
        live = {id_: scheduler.requests[id_] for id_ in ids}
        manager = scheduler.kv_cache_manager
        drafts = {id_: list(ids) for id_, ids in output.scheduled_spec_decode_tokens.items()}
        if num_ahead:  # vLLM's runner fills the places in, and the scheduler never sees with what
            for id_ in drafts.keys() & were_running:
                proposed = model.proposed[id_][: len(drafts[id_])]
                drafts[id_] = proposed + [-1] * (len(drafts[id_]) - len(proposed))
        sampled = model.sample(
            [id_ for id_, r in live.items() if r.num_computed_tokens >= r.num_tokens], drafts
        )
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
        speculates = scheduler.num_spec_tokens > 0
        if speculates:
            row["drafts"] = drafts
        before = set(scheduler.requests)
        model_output = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={id_: index for index, id_ in enumerate(ids)},
            sampled_token_ids=[as_list(sampled.get(id_, [])) for id_ in ids],
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        in_flight.append((output, model_output))
        if len(in_flight) > num_ahead:
            outputs = scheduler.update_from_output(*in_flight.pop(0))
            if door is not None:
                door.told(outputs)
        row["finished"] = sorted(before - set(scheduler.requests))
        if speculates:
            # A release without the knob does not say: always as many.
            most = getattr(output, NUM_TO_PROPOSE, scheduler.num_spec_tokens)
            if getattr(scheduler, "dynamic_sd_lookup", None) is not None:
                row[NUM_TO_PROPOSE] = most
            row["proposed"] = {
                id_: model.propose(scheduler.requests[id_], most)
                for id_ in sampled
                if id_ in scheduler.requests
            }
            model.proposed |= row["proposed"]
            if not num_ahead:
                scheduler.update_draft_token_ids(
                    DraftTokenIds(list(row["proposed"]), [[*i] for i in row["proposed"].values()])
                )
        return row


def as_list(tokens: int | list[int]) -> list[int]:
    """vLLM's form: a list of each request."""
    return [tokens] if isinstance(tokens, int) else list(tokens)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Record decisions of vLLM's scheduler.")
    parser.add_argument("file", type=Path, nargs="?", help="where to write, .jsonl.gz")
    parser.add_argument(
        "--check",
        action="store_true",
        help="replay each workload at once, every other one async; no file is needed",
    )
    parser.add_argument("--release", help=f"to install and record, {RELEASES[0]} or newer")
    parser.add_argument("--workloads", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--small", action="store_true", help="at most 8 requests of 48 tokens")
    parser.add_argument("--speculative", action="store_true", help="propose tokens")
    parser.add_argument(
        "--by-batch-size", action="store_true", help="fewer proposed tokens in larger batches"
    )
    parser.add_argument(
        "--scenarios", action="store_true", help="the scenarios in which two releases part"
    )
    parser.add_argument("--plain", action="store_true", help="what every scheduler has, no more")
    parser.add_argument(
        "--queue-caps", action="store_true", help="with the API server's caps, since 0.29.0"
    )
    parser.add_argument(
        "--async", action="store_true", dest="ahead", help="plan before the last plan's tokens"
    )
    args = parser.parse_args()
    if args.by_batch_size and not args.speculative:
        parser.error("--by-batch-size goes with --speculative")
    if not (args.file or args.check):
        parser.error("name a file to write, or --check")
    if args.release:
        return in_release(args.release, sys.argv[1:])
    logging.disable()  # each configuration brings advice on speed
    try:
        import vllm
    except ImportError as error:
        parser.error(f"no vLLM can be imported ({error}); name one with --release")
    version = vllm.__version__.split("+")[0]
    if version not in RELEASES:
        parser.error(f"vLLM {version} is no release of the table in minivllm/core/releases.py")

    written = preemptions = ahead = 0
    endless: list[int] = []
    different: list[str] = []
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        lines = stack.enter_context(gzip.open(args.file, "wt")) if args.file else None
        (Path(directory) / "config.json").write_text(json.dumps(MODEL_CONFIG))
        recorder = Recorder(directory)
        for seed, workload in given_workloads(args, version):
            if args.plain:
                workload = made_plain(workload)
            if args.ahead or (args.check and seed % 2):
                workload["config"]["async_scheduling"] = True
                ahead += 1
            recorder.record(workload, guesses=args.scenarios)
            if not workload.get("ends", True):
                endless.append(seed)
            workload["vllm"] = version
            if lines:
                lines.write(json.dumps(workload) + "\n")
            if args.check and (difference := replay(workload)):
                different.append(f"seed {seed}, {difference}")
            written += 1
            preemptions += sum(len(step["preempted"]) for step in workload["steps"])
    print(
        f"vLLM {version}: {written} workloads, {preemptions} preemptions; "
        f"runs without end: {endless or 'none'}"
    )
    if recorder.num_cut:
        print(f"{recorder.num_cut} of them cut before vLLM plans less than one token, not compared")
    if args.check:
        print(f"{written - len(different)}/{written} workloads identical, {ahead} of them async")
        print("".join(f"first difference: {text}\n" for text in different[:1]), end="")
    return 1 if different else 0


def given_workloads(args: argparse.Namespace, version: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The workloads to record, each with its number, or its seed."""
    if args.scenarios:
        chosen = [*chain(*PARTINGS.values()), *LIVELOCKS]
        yield from enumerate({**workload_of(scenario), "steps": []} for scenario in chosen)
    else:
        for seed in range(args.seed, args.seed + args.workloads):
            rng = random.Random(seed)
            workload = random_workload(rng, version, args.small, args.speculative)
            if args.by_batch_size:
                workload["config"][BY_BATCH_SIZE] = by_batch_size(rng, workload["config"])
            if args.queue_caps:
                caps = (
                    rng.choice([None, rng.randint(1, 5)]),
                    rng.choice([None, rng.randint(1, 90)]),
                )
                workload["config"] |= dict(zip(QUEUE_CAPS, caps, strict=True))
            yield seed, workload


def in_release(version: str, arguments: list[str]) -> int:
    """Run this tool again under a release of vLLM; returns the exit status."""
    from tools.vllm_release import release_command

    try:
        python, environment = release_command(version)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    at = next(i for i, argument in enumerate(arguments) if argument.startswith("--release"))
    del arguments[at : at + (1 if "=" in arguments[at] else 2)]
    return subprocess.run([python, __file__, *arguments], env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
