"""The engine: a loop of schedule, execute, sample, update."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from minivllm.bad_words import bad_words_token_ids
from minivllm.core.async_scheduler import AsyncScheduler
from minivllm.core.config import check_int
from minivllm.core.output import EngineCoreOutput, SchedulerOutput
from minivllm.core.prompt import TokenizedPrompt
from minivllm.core.request import Request, RequestStatus
from minivllm.core.sampling_params import SamplingParams
from minivllm.core.scheduler import Scheduler
from minivllm.detokenizer import IncrementalDetokenizer
from minivllm.executor.abstract import ExecutorArgs, PendingTokens, SampledTokens
from minivllm.executor.selector import make_executor
from minivllm.inputs import Prompt, tokenize
from minivllm.logprobs import LogprobsProcessor
from minivllm.outputs import CompletionOutput, RequestOutput
from minivllm.runs import make_observer
from minivllm.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

    from minivllm.models.loader import LoadedModel
    from minivllm.spec_decode.config import SpeculativeConfig


@dataclass
class RequestState:
    """What the engine keeps of a prompt: its `n` requests, and their text so far."""

    request_id: str
    prompt: TokenizedPrompt
    requests: list[Request] = field(default_factory=list)
    detokenizers: list[IncrementalDetokenizer | None] = field(default_factory=list)
    completions: list[CompletionOutput] = field(default_factory=list)
    logprobs: list[LogprobsProcessor | None] = field(default_factory=list)
    prompt_logprobs: LogprobsProcessor | None = None

    def to_output(self) -> RequestOutput:
        """A snapshot for the caller."""
        first = self.requests[0]
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt.text,
            prompt_token_ids=self.prompt.token_ids,
            prompt_logprobs=self.prompt_logprobs.positions if self.prompt_logprobs else None,
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
    sampled: PendingTokens


class LLMEngine:
    """A model, a scheduler, and the requests between them.

    Args:
        model: as for `load_model`, or a model loaded already; None: `DEFAULT_MODEL`, and in a page
            of the book the one that its reader has chosen.
        tokenizer: directory with another tokenizer than the model's own.
        dtype: "auto" (float32 on a CPU, else the checkpoint's own), "float32", "bfloat16" or
            "float16". On a CPU with our kernels, "bfloat16" has matrices in 16 bits, and sums,
            activations and the KV cache in float32: half the memory and half the time to read.
        device: "auto" (CUDA if there is one), or a torch device.
        seed: of the seeds of requests that bring none; None: different in every run.
        max_logprobs: most log probabilities that a request may ask for, for each token; -1: all.
        max_model_len: default: the model's limit, at most `sizes.DEFAULT_MAX_MODEL_LEN`.
        num_gpu_blocks: blocks of KV cache; default: what `kv_cache_memory_bytes` holds, or on
            CUDA what `gpu_memory_utilization` leaves, or on a CPU
            `sizes.DEFAULT_KV_CACHE_SEQUENCES` sequences within `sizes.DEFAULT_KV_CACHE_BYTES`, and
            one sequence at least.
        num_cpu_blocks: of the pool that `preemption_mode="swap"` copies to; default: as many as
            `swap_space` GiB hold.
        batch_invariant: the logits of a token do not depend, by a single bit, on the batch.
        attention_backend: "sdpa" (PyTorch's), "cpu" or "triton" (our kernels), or "auto": the
            device's own kernel where it can be had.
        enforce_eager: run each operator by itself in every step; by default a decode step is one
            call, of a CUDA graph on a GPU with Triton, of C on a CPU with our kernels.
        async_scheduling: plan and launch a step while the one before it runs (see
            `AsyncScheduler`); with proposed tokens, plan it only. Default: on a GPU, unless steps
            are recorded or tokens proposed.
        speculative_config: propose tokens and verify several in a step: the fields of
            `SpeculativeConfig`, as vLLM has them, for example `{"method": "ngram",
            "num_speculative_tokens": 4}`. The tokens that come out are the same.
        record: keep a snapshot of each step in `scheduler.history`; True, False or "eager" (see
            `minivllm.runs.make_observer`).
        scheduling: the other knobs of `SchedulerConfig`.

    Raises:
        ValueError: if the model or a knob cannot be used, or the cache does not hold one
            sequence of `max_model_len`.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel | None = None,
        *,
        tokenizer: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str = "auto",
        seed: int | None = 0,
        max_logprobs: int = 20,
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
        speculative_config: Mapping[str, Any] | SpeculativeConfig | None = None,
        record: bool | Literal["eager"] = False,
        clock: Callable[[], float] | None = time.monotonic,
        **scheduling: Any,
    ) -> None:
        if speculative_config is None:
            for name in ("num_speculative_tokens", "num_lookahead_tokens"):
                if scheduling.get(name):
                    raise ValueError(
                        f"{name}={scheduling[name]} does nothing without a proposer; set "
                        f'speculative_config={{"num_speculative_tokens": {scheduling[name]}}}'
                    )
        check_int("max_logprobs", max_logprobs, -1)
        self.max_logprobs = max_logprobs
        self.executor = executor = make_executor(
            ExecutorArgs(
                model=model,
                tokenizer=tokenizer,
                dtype=dtype,
                device=device,
                seed=seed,
                max_model_len=max_model_len,
                block_size=block_size,
                num_gpu_blocks=num_gpu_blocks,
                kv_cache_memory_bytes=kv_cache_memory_bytes,
                gpu_memory_utilization=gpu_memory_utilization,
                num_cpu_blocks=num_cpu_blocks,
                swap_space=swap_space,
                batch_invariant=batch_invariant,
                attention_backend=attention_backend,
                enforce_eager=enforce_eager,
                speculative_config=speculative_config,
                scheduling=scheduling,
            )
        )
        self.device, self.model = executor.device, executor.model
        self.model_config = executor.model_config
        self.runner, self.sampler = executor.runner, executor.sampler
        self.speculative_config, self.proposer = executor.speculative_config, executor.proposer
        if async_scheduling is None:
            has_proposer = self.proposer is not None
            async_scheduling = self.device.startswith("cuda") and not (record or has_proposer)
        self.async_scheduling = async_scheduling
        make_scheduler = AsyncScheduler if async_scheduling else Scheduler
        self.scheduler = make_scheduler(
            executor.config, observer=make_observer(record), clock=clock
        )
        self._bad_words: dict[tuple[str, ...], list[list[int]]] = {}
        self._states: dict[str, RequestState] = {}
        self._parents: dict[str, tuple[RequestState, int]] = {}
        """Request id in the scheduler -> whose it is, and which of its `n` outputs."""
        self._refused: list[RequestState] = []
        self._in_flight: StepInFlight | None = None

    # --- requests come in -----------------------------------------------------------------

    def check_request(
        self, prompt: Prompt, params: SamplingParams, priority: int = 0
    ) -> TokenizedPrompt:
        """Make sure that a prompt can be served, without queueing it.

        Returns:
            The prompt as `add_request` takes it without looking again.

        Raises:
            ValueError: if it cannot; the message says why.
        """
        checked = self._check(prompt, params)
        request = Request("", checked, params, priority=priority)
        if reason := self.scheduler.refusal_reason(request):
            raise ValueError(reason.removeprefix(f"request {request.request_id}: "))
        return checked

    def _check(self, prompt: Prompt, params: SamplingParams) -> TokenizedPrompt:
        vocab_size = self.model_config.vocab_size
        checked = tokenize(prompt, self.get_tokenizer, vocab_size)
        params.verify(vocab_size, self.max_logprobs)
        self._bad_words_token_ids(params)
        return checked

    def _bad_words_token_ids(self, params: SamplingParams) -> list[list[int]]:
        """The tokens of `bad_words`; looked up, as many requests have the same."""
        if not params.bad_words:
            return []
        words = tuple(params.bad_words)
        if words not in self._bad_words:
            token_ids = bad_words_token_ids(words, self.tokenizer)
            if (most := max(map(max, token_ids))) >= self.model_config.vocab_size:
                raise ValueError(f"bad_words: the tokenizer's token {most} is none of the model's")
            self._bad_words[words] = token_ids
        return self._bad_words[words]

    def add_request(
        self,
        request_id: str,
        prompt: Prompt | TokenizedPrompt,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        arrival_time: float | None = None,
    ) -> None:
        """Queue a prompt. One that can never fit ends at once: the next `step` returns it, with
        the reason in its `error`.

        Args:
            prompt: checked here, unless `check_request` has done it.

        Raises:
            ValueError: on an unusable prompt or an id in use; nothing is queued then.
        """
        params = params if params is not None else SamplingParams()
        if request_id in self._states:
            raise ValueError(f"request id {request_id!r} is taken by an unfinished request")
        if not isinstance(prompt, TokenizedPrompt):
            prompt = self._check(prompt, params)
        state = RequestState(request_id, prompt)
        tokenizer = self.tokenizer if params.detokenize else None
        if params.prompt_logprobs is not None:
            state.prompt_logprobs = LogprobsProcessor(tokenizer)
        bad_words = self._bad_words_token_ids(params)
        first_seed = self.sampler.fresh_seed() if params.seed is None else params.seed
        for index in range(params.n):
            request = Request(
                request_id if params.n == 1 else f"{index}_{request_id}",
                prompt,
                replace(params, n=1, seed=first_seed + index),
                priority=priority,
                arrival_time=arrival_time,
                eos_token_id=self.model_config.eos_token_ids,
                bad_words_token_ids=bad_words,
            )
            state.requests.append(request)
            completion, processor = CompletionOutput(index, "", []), None
            if params.logprobs is not None:
                processor = LogprobsProcessor(tokenizer)
                completion.logprobs, completion.cumulative_logprob = processor.positions, 0.0
            state.completions.append(completion)
            state.logprobs.append(processor)
            state.detokenizers.append(self._detokenizer(prompt.token_ids, params))
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
        if self.proposer is not None:
            self.proposer.forget_requests()

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that prompts go through; read when it is first needed.

        Raises:
            ValueError: if its file is broken.
        """
        return self.executor.get_tokenizer()

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

    def _propose(self, plan: SchedulerOutput, request_ids: Iterable[str]) -> dict[str, list[int]]:
        """Tokens to follow those that the requests have after `plan`; a request that has ended gets
        none."""
        assert self.proposer is not None
        most: dict[Request, int] = {}
        for request_id in request_ids:
            request = self.scheduler.requests.get(request_id)
            if request is not None:
                # The step that verifies gives one token more than it accepts.
                room = self.scheduler.config.max_model_len - request.num_tokens - 1
                if request.max_tokens is not None:
                    room = min(room, request.max_tokens - request.num_output_tokens - 1)
                most[request] = min(plan.num_spec_tokens_to_schedule, room)
        most = {request: k for request, k in most.items() if k > 0}
        return self.proposer.propose(most) if most else {}

    def _step_ahead(self) -> list[RequestOutput]:
        """As `step`, with the next step launched before this one's tokens are waited for."""
        step, self._in_flight = self._in_flight, None
        if step is None or not step.plan.num_scheduled_tokens:  # all its requests are gone
            step = self._launch(self.scheduler.schedule())
        if self.proposer is not None:
            return self._step_ahead_of_drafts(step)
        if step.plan.num_scheduled_tokens:
            ahead = self._launch(self.scheduler.schedule(), step.sampled.read)
            if ahead.plan.num_scheduled_tokens:
                self._in_flight = ahead
        return self._update(step.plan, step.sampled.read())

    def _step_ahead_of_drafts(self, step: StepInFlight) -> list[RequestOutput]:
        """As `step`, with the next step planned while this one runs. It can be launched only when
        this one's tokens are there: they say what is proposed next, and at which positions."""
        assert isinstance(self.scheduler, AsyncScheduler)
        plan = self.scheduler.schedule()
        outputs = self._update(step.plan, step.sampled.read())
        going = plan.num_scheduled_tokens  # without those who have just ended
        plan.scheduled_running_reqs = [
            request for request in plan.scheduled_running_reqs if request.request_id in going
        ]
        decoding = [r.request_id for r in plan.scheduled_running_reqs]
        decoding = [id_ for id_ in decoding if id_ in plan.scheduled_spec_decode_tokens]
        drafts = self._propose(step.plan, decoding)
        self.scheduler.update_draft_token_ids_in_output(drafts, plan)
        ahead = self._launch(plan)
        if going:
            self._in_flight = ahead
        return outputs

    def _launch(
        self,
        plan: SchedulerOutput,
        late_token_ids: Callable[[], Mapping[str, int | list[int]]] = dict,
    ) -> StepInFlight:
        """Give a planned step to the device; `late_token_ids` are those of the step before."""
        requests, logits = self.runner.execute(plan)
        sampled = self.sampler.sample_on_device(requests, logits, late_token_ids)
        if self.proposer is not None:
            self.proposer.follow(plan)
        elif requests:
            self.runner.keep_tokens(requests, sampled)
        return StepInFlight(plan, sampled.to_host())

    def _update(self, plan: SchedulerOutput, sampled: SampledTokens) -> list[RequestOutput]:
        """Tell the scheduler, turn tokens into text, end requests that met a stop string; with a
        proposer, have tokens proposed for the next step, unless that is planned already."""
        proposes = self.proposer if not self.async_scheduling else None
        if proposes is not None:
            proposes.follow(plan)
        changed = {state.request_id: state for state in self._refused}
        self._refused = []
        for output in self.scheduler.update_from_output(plan, sampled):
            state, index = self._parents[output.request_id]
            self._append(state, index, output)
            for told in sampled.logprobs.get(output.request_id, ())[: len(output.new_token_ids)]:
                self._append_logprobs(state, index, told)
            if index == 0 and state.prompt_logprobs and not state.prompt_logprobs.positions:
                self._tell_prompt_logprobs(state, state.prompt_logprobs)
            changed[state.request_id] = state
            if state.completions[index].finished():
                del self._parents[output.request_id]
            if all(completion.finished() for completion in state.completions):
                del self._states[state.request_id]
        if proposes is not None:
            self.scheduler.update_draft_token_ids(self._propose(plan, sampled))
        return [state.to_output() for state in changed.values()]

    def _append(self, state: RequestState, index: int, output: EngineCoreOutput) -> None:
        completion, detokenizer = state.completions[index], state.detokenizers[index]
        completion.finish_reason = output.finish_reason
        completion.stop_reason = output.stop_reason
        if detokenizer is None:
            completion.token_ids += output.new_token_ids
            return
        stop, token_ids = None, output.new_token_ids
        for place, token_id in enumerate(token_ids, 1):
            completion.token_ids.append(token_id)
            is_last = place == len(token_ids)
            stop = detokenizer.update([token_id], is_last and output.finish_reason == "stop")
            if stop is not None:
                del token_ids[place:]  # accepted, and after the end
                break
        if stop is not None:
            completion.finish_reason, completion.stop_reason = "stop", stop
            state.requests[index].stop_reason = stop
            if output.finish_reason is None:
                # The scheduler knows tokens, not text: it has to be told.
                self.scheduler.finish_requests(output.request_id, RequestStatus.FINISHED_STOPPED)
        completion.text = detokenizer.visible_text(completion.finished())

    def _append_logprobs(
        self, state: RequestState, index: int, told: tuple[list[int], list[float], int]
    ) -> None:
        processor = state.logprobs[index]
        assert processor
        processor.append(*told)
        state.completions[index].cumulative_logprob = processor.cumulative_logprob

    def _tell_prompt_logprobs(self, state: RequestState, processor: LogprobsProcessor) -> None:
        processor.positions.append(None)
        for row in self.runner.pop_prompt_logprobs(state.requests[0]):
            processor.append(*row)

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
