"""The engine: a loop of schedule, execute, sample, update."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from minivllm.core.async_scheduler import AsyncScheduler
from minivllm.core.config import SchedulerConfig, check_int
from minivllm.core.kv_cache_manager import cdiv, check_enough_kv_cache_memory
from minivllm.core.output import EngineCoreOutput, SchedulerOutput
from minivllm.core.request import Request, RequestStatus
from minivllm.core.sampling_params import SamplingParams
from minivllm.core.scheduler import Scheduler
from minivllm.detokenizer import IncrementalDetokenizer
from minivllm.models.llama import LlamaModel
from minivllm.models.loader import DEFAULT_MODEL, DTYPES, LoadedModel, load_model
from minivllm.outputs import CompletionOutput, RequestOutput
from minivllm.runner import ModelRunner
from minivllm.runs import make_observer
from minivllm.sampler import Sampler
from minivllm.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]
"""A text, `{"prompt": text}`, token ids or `{"prompt_token_ids": [...]}`."""

DEFAULT_MAX_MODEL_LEN = 2048
"""Upper limit of `max_model_len` if none is given: a longer one costs memory few need."""

DEFAULT_KV_CACHE_BYTES = 512 << 20
DEFAULT_KV_CACHE_SEQUENCES = 8
"""On a CPU the cache holds so many sequences of `max_model_len`, if these bytes suffice."""


@dataclass
class RequestState:
    """What the engine keeps of a prompt: its `n` requests, and their text so far."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    requests: list[Request] = field(default_factory=list)
    detokenizers: list[IncrementalDetokenizer | None] = field(default_factory=list)
    completions: list[CompletionOutput] = field(default_factory=list)

    def to_output(self) -> RequestOutput:
        """A snapshot for the caller."""
        first = self.requests[0]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[completion.copy() for completion in self.completions],
            finished=all(completion.finished() for completion in self.completions),
            metrics=first.metrics,
            num_cached_tokens=first.num_cached_tokens,
            error=first.error,
        )


@dataclass
class StepInFlight:
    """A step that the device has been given. Its tokens come by themselves."""

    plan: SchedulerOutput
    request_ids: list[str]
    """Of the requests that get a token."""
    token_ids: Tensor
    """Theirs, on the CPU, once `arrived`."""
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, plan: SchedulerOutput, request_ids: list[str], token_ids: Tensor) -> StepInFlight:
        """Have the tokens copied as soon as they are there."""
        if token_ids.device.type == "cpu":
            return cls(plan, request_ids, token_ids, None)
        here = torch.empty(len(token_ids), dtype=torch.long, pin_memory=True)
        here.copy_(token_ids, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return cls(plan, request_ids, here, arrived)

    def wait(self) -> dict[str, int]:
        """Token id by request id."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(self.request_ids, self.token_ids.tolist(), strict=True))


class LLMEngine:
    """A model, a scheduler, and the requests between them.

    Args:
        model: as for `load_model`, or a model loaded already.
        tokenizer: directory with another tokenizer than the model's own.
        dtype: "auto" (float32 on a CPU, else the checkpoint's own), "float32", "bfloat16" or
            "float16".
        device: "auto" (CUDA if there is one), or a torch device.
        seed: of the seeds of requests that bring none; None: different in every run.
        max_model_len: default: the model's limit, at most `DEFAULT_MAX_MODEL_LEN`.
        num_gpu_blocks: blocks of KV cache; default: what `kv_cache_memory_bytes` holds, or on
            CUDA what `gpu_memory_utilization` leaves, or on a CPU `DEFAULT_KV_CACHE_SEQUENCES`
            sequences within `DEFAULT_KV_CACHE_BYTES`, and one sequence at least.
        num_cpu_blocks: of the pool that `preemption_mode="swap"` copies to; default: as many as
            `swap_space` GiB hold.
        batch_invariant: the logits of a token do not depend, by a single bit, on the batch.
        attention_backend: "sdpa" (PyTorch's), "cpu" or "triton" (our kernels), or "auto": the
            device's own kernel where it can be had.
        enforce_eager: run each operator by itself in every step; by default a decode step is one
            call, of a CUDA graph on a GPU with Triton, of C on a CPU with our kernels.
        async_scheduling: plan and launch a step while the one before it runs (see
            `AsyncScheduler`). Default: on a GPU, unless steps are recorded.
        record: keep a snapshot of each step in `scheduler.history`; True, False or "eager" (see
            `minivllm.runs.make_observer`).
        scheduling: the other knobs of `SchedulerConfig`.

    Raises:
        ValueError: if the model or a knob cannot be used, or the cache does not hold one
            sequence of `max_model_len`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel = DEFAULT_MODEL,
        *,
        tokenizer: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str = "auto",
        seed: int | None = 0,
        max_model_len: int | None = None,
        block_size: int = 16,
        num_gpu_blocks: int | None = None,
        kv_cache_memory_bytes: int | None = None,
        gpu_memory_utilization: float = 0.92,
        num_cpu_blocks: int | None = None,
        swap_space: float = 4,
        batch_invariant: bool = False,
        attention_backend: str = "auto",
        enforce_eager: bool = False,
        async_scheduling: bool | None = None,
        record: bool | Literal["eager"] = False,
        clock: Callable[[], float] | None = time.monotonic,
        **scheduling: Any,
    ) -> None:
        self.device = _resolve_device(device)
        loaded = model if isinstance(model, LoadedModel) else load_model(model, tokenizer)
        self.model_config = loaded.config
        self._open_tokenizer = loaded.open_tokenizer
        torch_dtype = _resolve_dtype(dtype, self.device, loaded.config.dtype)
        max_model_len = self._resolve_max_model_len(max_model_len)
        check_int("block_size", block_size, 1)

        block_bytes = block_size * loaded.config.kv_bytes_per_token(torch_dtype.itemsize)
        if scheduling.get("preemption_mode") != "swap":
            num_cpu_blocks = 0
        elif num_cpu_blocks is None:
            num_cpu_blocks = int(swap_space * (1 << 30)) // block_bytes
        # Sizes and knobs are checked before weights are moved and memory is taken.
        wanted = cdiv(max_model_len, block_size)
        if num_gpu_blocks is None and kv_cache_memory_bytes is not None:
            num_gpu_blocks = kv_cache_memory_bytes // block_bytes
        if num_gpu_blocks is None and self.device == "cpu":
            affordable = DEFAULT_KV_CACHE_BYTES // block_bytes
            num_gpu_blocks = max(min(DEFAULT_KV_CACHE_SEQUENCES * wanted, affordable), wanted)
        if num_gpu_blocks is not None:
            check_enough_kv_cache_memory(num_gpu_blocks, block_size, max_model_len)
        config = SchedulerConfig(
            num_gpu_blocks=wanted if num_gpu_blocks is None else num_gpu_blocks,
            block_size=block_size,
            max_model_len=max_model_len,
            num_cpu_blocks=num_cpu_blocks,
            **scheduling,
        )

        self.model = LlamaModel(
            loaded.config,
            loaded.weights,
            dtype=torch_dtype,
            device=self.device,
            max_model_len=max_model_len,
            block_size=block_size,
            batch_invariant=batch_invariant,
            attention_backend=attention_backend,
        )
        if num_gpu_blocks is None:
            free_bytes = self._profile_free_bytes(config, gpu_memory_utilization)
            num_gpu_blocks = max(free_bytes // block_bytes - 1, 0)  # less the null block
            check_enough_kv_cache_memory(num_gpu_blocks, block_size, max_model_len)
            config = replace(config, num_gpu_blocks=num_gpu_blocks)
        self.runner = ModelRunner(self.model, config, enforce_eager=enforce_eager)
        if async_scheduling is None:
            async_scheduling = self.device.startswith("cuda") and not record
        self.async_scheduling = async_scheduling
        make_scheduler = AsyncScheduler if async_scheduling else Scheduler
        self.scheduler = make_scheduler(config, observer=make_observer(record), clock=clock)
        self.sampler = Sampler(seed)
        self._states: dict[str, RequestState] = {}
        self._parents: dict[str, tuple[RequestState, int]] = {}
        """Request id in the scheduler -> whose it is, and which of its `n` outputs."""
        self._refused: list[RequestState] = []
        self._in_flight: StepInFlight | None = None

    # --- requests come in -----------------------------------------------------------------

    def check_request(self, prompt: Prompt, params: SamplingParams, priority: int = 0) -> Prompt:
        """Make sure that a prompt can be served, without queueing it.

        Returns:
            The prompt with its token ids.

        Raises:
            ValueError: if it cannot; the message says why.
        """
        text, token_ids = self._tokenize(prompt, params)
        request = Request("", token_ids, params, priority=priority)
        if reason := self.scheduler.refusal_reason(request):
            raise ValueError(reason.removeprefix(f"request {request.request_id}: "))
        return {"prompt": text, "prompt_token_ids": token_ids}

    def _tokenize(self, prompt: Prompt, params: SamplingParams) -> tuple[str | None, list[int]]:
        """A prompt's text, if it has one, and its token ids, checked against the vocabulary."""
        text: str | None = None
        token_ids: Sequence[int] | None = None
        if isinstance(prompt, str):
            text = prompt
        elif isinstance(prompt, Mapping):
            text, token_ids = prompt.get("prompt"), prompt.get("prompt_token_ids")
        else:
            token_ids = prompt
        if token_ids is None and isinstance(text, str):
            token_ids = self.tokenizer.encode(text)
        if not isinstance(token_ids, (list, tuple)):
            raise ValueError(
                'a prompt must be a string, a list of token ids, {"prompt": ...} or '
                f'{{"prompt_token_ids": [...]}}, got {prompt!r:.80}'
            )
        if not token_ids:
            raise ValueError("the prompt is empty; give at least one token")
        vocab_size = self.model_config.vocab_size
        for token_id in token_ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int):
                raise ValueError(f"a token id must be an integer, got {token_id!r}")
            if not 0 <= token_id < vocab_size:
                raise ValueError(f"token id {token_id} is not in the vocabulary [0, {vocab_size})")
        for token_id in params.stop_token_ids or ():
            if token_id >= vocab_size:
                raise ValueError(
                    f"stop_token_ids: {token_id} is not in the vocabulary [0, {vocab_size})"
                )
        return text, list(token_ids)

    def add_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        arrival_time: float | None = None,
    ) -> None:
        """Queue a prompt. One that can never fit ends at once: the next `step` returns it, with
        the reason in its `error`.

        Raises:
            ValueError: on an unusable prompt or an id in use; nothing is queued then.
        """
        params = params if params is not None else SamplingParams()
        if request_id in self._states:
            raise ValueError(f"request id {request_id!r} is taken by an unfinished request")
        text, token_ids = self._tokenize(prompt, params)
        state = RequestState(request_id, text, token_ids)
        first_seed = self.sampler.fresh_seed() if params.seed is None else params.seed
        for index in range(params.n):
            request = Request(
                request_id if params.n == 1 else f"{index}_{request_id}",
                token_ids,
                replace(params, n=1, seed=first_seed + index),
                priority=priority,
                arrival_time=arrival_time,
                eos_token_id=self.model_config.eos_token_ids,
            )
            state.requests.append(request)
            state.completions.append(CompletionOutput(index, "", []))
            state.detokenizers.append(self._detokenizer(token_ids, params))
        if any(request.request_id in self._parents for request in state.requests):
            raise ValueError(f"request id {request_id!r} clashes with an output of another request")

        self._states[request_id] = state
        for index, request in enumerate(state.requests):
            if self.scheduler.add_request(request):
                self._parents[request.request_id] = (state, index)
            else:
                reason = RequestStatus.get_finished_reason(request.status)
                state.completions[index].finish_reason = reason
        if state.completions[0].finished():  # refused, and so are the others: they are alike
            self._refused.append(self._states.pop(request_id))

    def abort_request(self, request_ids: str | Iterable[str]) -> None:
        """End requests now and forget them; ids that are not known are passed over."""
        ids = {request_ids} if isinstance(request_ids, str) else set(request_ids)
        self._refused = [state for state in self._refused if state.request_id not in ids]
        for request_id in ids & self._states.keys():
            requests = self._states.pop(request_id).requests
            scheduler_ids = [request.request_id for request in requests]
            self.scheduler.finish_requests(scheduler_ids, RequestStatus.FINISHED_ABORTED)
            for scheduler_id in scheduler_ids:
                self._parents.pop(scheduler_id, None)

    def abandon_step(self) -> None:
        """Clean up after a step that an exception cut short: abort all requests.

        `schedule` has counted the step's tokens as computed and published the blocks that they
        fill. If the model did not write them, nobody may find them in the prefix cache.
        """
        self.abort_request(list(self._states))
        self._in_flight = None
        self.scheduler.kv_cache_manager.block_pool.reset_prefix_cache()
        self.runner.forget_requests()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that prompts go through; read when it is first needed.

        Raises:
            ValueError: if its file is broken.
        """
        return self._open_tokenizer()

    def has_unfinished_requests(self) -> bool:
        """Whether `step` has anything left to do or to return."""
        return self.scheduler.has_unfinished_requests() or bool(self._refused)

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer that prompts go through."""
        return self.tokenizer

    # --- one step -------------------------------------------------------------------------

    def step(self) -> list[RequestOutput]:
        """Give every scheduled request its next tokens; return the requests that changed."""
        if self.async_scheduling:
            return self._step_ahead()
        plan = self.scheduler.schedule()
        requests, logits = self.runner.execute(plan)
        token_ids = self.sampler.sample(requests, logits)
        return self._update(plan, token_ids)

    def _step_ahead(self) -> list[RequestOutput]:
        """As `step`, with the next step launched before this one's tokens are waited for."""
        step, self._in_flight = self._in_flight, None
        if step is None or not step.plan.num_scheduled_tokens:  # all its requests are gone
            step = self._launch()
        if step.plan.num_scheduled_tokens:
            ahead = self._launch()
            if ahead.plan.num_scheduled_tokens:
                self._in_flight = ahead
        return self._update(step.plan, step.wait())

    def _launch(self) -> StepInFlight:
        """Plan a step and give it to the device."""
        plan = self.scheduler.schedule()
        requests, logits = self.runner.execute(plan)
        token_ids = self.sampler.sample_on_device(requests, logits)
        if requests:
            self.runner.keep_tokens(requests, token_ids)
        return StepInFlight.of(plan, [request.request_id for request in requests], token_ids)

    def _update(self, plan: SchedulerOutput, token_ids: Mapping[str, int]) -> list[RequestOutput]:
        """Tell the scheduler, turn tokens into text, end requests that met a stop string."""
        changed = {state.request_id: state for state in self._refused}
        self._refused = []
        for output in self.scheduler.update_from_output(plan, token_ids):
            state, index = self._parents[output.request_id]
            self._append(state, index, output)
            changed[state.request_id] = state
            if state.completions[index].finished():
                del self._parents[output.request_id]
            if all(completion.finished() for completion in state.completions):
                del self._states[state.request_id]
        return [state.to_output() for state in changed.values()]

    def _append(self, state: RequestState, index: int, output: EngineCoreOutput) -> None:
        completion, detokenizer = state.completions[index], state.detokenizers[index]
        completion.token_ids += output.new_token_ids
        completion.finish_reason = output.finish_reason
        completion.stop_reason = output.stop_reason
        if detokenizer is None:
            return
        stop = detokenizer.update(output.new_token_ids, output.finish_reason == "stop")
        if stop is not None:
            completion.finish_reason, completion.stop_reason = "stop", stop
            state.requests[index].stop_reason = stop
            if output.finish_reason is None:
                # The scheduler knows tokens, not text: it has to be told.
                self.scheduler.finish_requests(output.request_id, RequestStatus.FINISHED_STOPPED)
        completion.text = detokenizer.visible_text(completion.finished())

    def _detokenizer(
        self, prompt_token_ids: Sequence[int], params: SamplingParams
    ) -> IncrementalDetokenizer | None:
        if not params.detokenize:
            return None
        return IncrementalDetokenizer(
            self.tokenizer,
            prompt_token_ids,
            stop=params.stop or (),
            min_tokens=params.min_tokens,
            skip_special_tokens=params.skip_special_tokens,
            include_stop_str_in_output=params.include_stop_str_in_output,
        )

    # --- sizes ----------------------------------------------------------------------------

    def _resolve_max_model_len(self, max_model_len: int | None) -> int:
        limit = self.model_config.derived_max_model_len
        if max_model_len is None:
            return min(limit, DEFAULT_MAX_MODEL_LEN)
        check_int("max_model_len", max_model_len, 2)
        if max_model_len > limit:
            raise ValueError(
                f"max_model_len={max_model_len} exceeds the {limit} positions that the model "
                f"was trained for; set it to at most {limit}"
            )
        return max_model_len

    def _profile_free_bytes(self, config: SchedulerConfig, utilization: float) -> int:
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
        runner, scheduler = ModelRunner(self.model, small), Scheduler(small)
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
