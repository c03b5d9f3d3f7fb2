"""The executor with PyTorch: `ModelRunner` and `Sampler`, on a CPU or a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from minivllm.core.config import SchedulerConfig
from minivllm.core.kv_cache_manager import cdiv
from minivllm.core.request import Request
from minivllm.core.sampling_params import SamplingParams
from minivllm.core.scheduler import Scheduler
from minivllm.executor.abstract import ExecutorArgs
from minivllm.models.config import DEFAULT_MODEL
from minivllm.models.llama import LlamaModel, backend_and_dtype
from minivllm.models.loader import DTYPES, LoadedModel, load_model
from minivllm.runner import ModelRunner
from minivllm.sampler import Sampler
from minivllm.spec_decode import SpeculativeConfig
from minivllm.spec_decode.draft_model_proposer import DraftModelProposer, check_draft
from minivllm.spec_decode.ngram_proposer import NgramProposer
from minivllm.spec_decode.proposer import Proposer
from minivllm.tokenizer import Tokenizer


class TorchExecutor:
    """As `minivllm.executor.abstract.Executor`.

    Raises:
        ValueError: if the model or a knob cannot be used, or the cache does not hold one sequence
            of `max_model_len`.
    """

    def __init__(self, args: ExecutorArgs) -> None:
        self.device = _resolve_device(args.device)
        model = DEFAULT_MODEL if args.model is None else args.model
        loaded = model if isinstance(model, LoadedModel) else load_model(model, args.tokenizer)
        self.model_config = loaded.config
        self._open_tokenizer = loaded.open_tokenizer
        dtype = _resolve_dtype(args.dtype, self.device, loaded.config.dtype)
        scheduling: dict[str, Any] = {}
        speculation = draft = None
        if args.speculative_config is not None:
            speculation = SpeculativeConfig.of(args.speculative_config)
            scheduling["num_speculative_tokens"] = speculation.num_speculative_tokens
            if rows := speculation.num_speculative_tokens_per_batch_size:
                scheduling["num_speculative_tokens_per_batch_size"] = rows
            if speculation.method == "draft_model":
                scheduling["num_lookahead_tokens"] = speculation.num_speculative_tokens
                draft = speculation.load_model()
        _, cache_dtype = backend_and_dtype(
            loaded.config, dtype, self.device, args.batch_invariant, args.attention_backend
        )
        sizes = args.sizes(
            loaded.config,
            cache_dtype.itemsize,
            self.device,
            draft=draft.config if draft else None,
            **scheduling,
        )
        max_model_len = sizes.config.max_model_len
        if draft:
            check_draft(draft.config, loaded.config, max_model_len)

        def make_model(loaded: LoadedModel) -> LlamaModel:
            return LlamaModel(
                loaded.config,
                loaded.weights,
                dtype=dtype,
                device=self.device,
                max_model_len=max_model_len,
                block_size=args.block_size,
                batch_invariant=args.batch_invariant,
                attention_backend=args.attention_backend,
            )

        self.model = make_model(loaded)
        draft_model = make_model(draft) if draft else None
        sizes.measure(
            lambda config: profile_free_bytes(self.model, config, args.gpu_memory_utilization)
        )
        self.config = config = sizes.config
        self.runner = ModelRunner(self.model, config, enforce_eager=args.enforce_eager)
        self.sampler = Sampler(args.seed)
        self.speculative_config = speculation
        self.proposer: Proposer | None = None
        if draft_model:
            self.proposer = DraftModelProposer(draft_model, config)
        elif speculation:
            self.proposer = NgramProposer(*speculation.prompt_lookup)

    def get_tokenizer(self) -> Tokenizer:
        """As `Executor.get_tokenizer`."""
        return self._open_tokenizer()


def _resolve_device(device: str) -> str:
    if device != "auto":
        return str(torch.device(device))
    return "cuda" if torch.cuda.is_available() else "cpu"


def _resolve_dtype(dtype: str | torch.dtype, device: str, checkpoint: str) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype)
    name = dtype.removeprefix("torch.")
    if name == "auto":
        name = "float32" if device == "cpu" else checkpoint.removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not supported; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def profile_free_bytes(model: LlamaModel, config: SchedulerConfig, utilization: float) -> int:
    """Bytes of GPU memory left for the cache, measured by running the largest step.

    Source: vllm/v1/worker/gpu_worker.py, `determine_available_memory`.
    """
    if not 0 < utilization <= 1:
        raise ValueError(f"gpu_memory_utilization must lie in (0, 1], got {utilization}")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    # As many tokens as a step can have, of as many requests: each one's logits are sampled.
    num_requests = min(config.max_num_seqs, config.max_num_batched_tokens)
    length = min(config.max_num_batched_tokens // num_requests, config.max_model_len - 1)
    num_blocks = max(num_requests * cdiv(length, config.block_size), config.num_gpu_blocks)
    small = replace(
        config,
        num_gpu_blocks=num_blocks,
        enable_prefix_caching=False,  # the prompts are alike, and all are to be computed
        preemption_mode="recompute",
        num_cpu_blocks=0,
    )
    runner, scheduler = ModelRunner(model, small), Scheduler(small)
    for index in range(num_requests):
        params = SamplingParams(max_tokens=1, seed=0)
        scheduler.add_request(Request(str(index), [0] * length, params))
    Sampler().sample(*runner.execute(scheduler.schedule()))
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - runner.kv_caches.nbytes
    del runner
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    others = total - free - torch.cuda.memory_reserved()
    return int(total * utilization) - others - peak
