"""`LLM`: vLLM's offline interface. A script written for it runs with another import."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from inspect import signature
from itertools import count
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from minivllm.core.config import SchedulerConfig, unknown_name
from minivllm.core.prompt import TokenizedPrompt
from minivllm.core.releases import NEWEST
from minivllm.core.sampling_params import SamplingParams
from minivllm.engine import LLMEngine
from minivllm.inputs import Prompt, as_prompts
from minivllm.outputs import RequestOutput
from minivllm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from minivllm.models.loader import LoadedModel

_RENAMED = {
    "num_gpu_blocks_override": "num_gpu_blocks",
    "scheduling_policy": "policy",
    "scheduler_reserve_full_isl": "reserve_full_prompt",
}
"""vLLM's name of a knob -> ours; ours is taken too."""

_MUST_BE_ONE = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")

_WITHOUT_EFFECT = frozenset({
    "attention_config", "code_revision",
    "compilation_config", "config_format", "cpu_offload_gb", "cudagraph_capture_sizes",
    "disable_cascade_attn", "disable_custom_all_reduce", "disable_hybrid_kv_cache_manager",
    "disable_log_stats", "distributed_executor_backend", "download_dir",
    "generation_config", "hf_token", "kv_cache_metrics", "load_format",
    "max_parallel_loading_workers", "max_seq_len_to_capture", "optimization_level", "revision",
    "runner", "safetensors_load_strategy", "task", "tokenizer_mode", "tokenizer_revision",
    "trust_remote_code", "use_tqdm_on_load",
})  # fmt: skip
"""Arguments of vLLM's that change how it runs, not what comes out: taken and passed over."""

_KNOBS = frozenset(signature(LLMEngine).parameters) - {"scheduling"} | {
    field.name for field in fields(SchedulerConfig)
}


class LLM:
    """A model that completes prompts, many at a time.

    Args:
        model: see `minivllm.models.loader.load_model`; default: SmolLM2-135M-Instruct, and in a
            page of the book the one that its reader has chosen.
        tokenizer: directory with another tokenizer.
        kwargs: any argument of `LLMEngine`, by its name or by vLLM's; arguments of vLLM's
            that change nothing here are passed over. `vllm_version` defaults to the newest release
            that the scheduler knows.

    Raises:
        ValueError: on an argument that does not exist or cannot be satisfied.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | LoadedModel | None = None,
        *,
        tokenizer: str | None = None,
        **kwargs: Any,
    ) -> None:
        arguments = {"vllm_version": NEWEST, **_engine_arguments(kwargs)}
        self.llm_engine = LLMEngine(model, tokenizer=tokenizer, **arguments)
        self._request_ids = count()

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer that prompts go through."""
        return self.llm_engine.get_tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        """What `generate` uses if it is given none."""
        return SamplingParams()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts.

        Args:
            prompts: one or several, each a text, token ids (a NumPy array or a tensor will do),
                `{"prompt": ...}` or `{"prompt_token_ids": ...}`, the last two with a `cache_salt`
                if they are to share no block with prompts of another salt.
            sampling_params: one for all, or one for each.
            use_tqdm: show a progress bar.
            priority: one for each prompt; lower is served first (`policy="priority"`).

        Returns:
            One result for each prompt, in their order.

        Raises:
            ValueError: if any prompt cannot be served; none has been queued then.
        """
        ready = self._check_requests(prompts, sampling_params, priority)
        finished: dict[str, RequestOutput] = {}
        num_tokens = 0
        with tqdm(total=len(ready), desc="Processed prompts", disable=not use_tqdm) as bar:
            for output in self._run(ready):
                if output.finished:
                    finished[output.request_id] = output
                    num_tokens += sum(len(c.token_ids) for c in output.outputs)
                    if elapsed := bar.format_dict["elapsed"]:
                        bar.set_postfix_str(f"{num_tokens / elapsed:.1f} output tokens/s", False)
                    bar.update()
        return [finished[request_id] for request_id, *_ in ready]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several; see `generate`.

        Args:
            messages: each with `role` and `content` (text, parts of text, or None); a list of
                such lists is several.

        Raises:
            ValueError: if a conversation is empty or the chat template refuses it.
        """
        several = [messages] if messages and isinstance(messages[0], Mapping) else messages
        prompts = []
        for conversation in several:
            if not conversation:
                raise ValueError("a conversation needs at least one message")
            token_ids = self.get_tokenizer().apply_chat_template(
                conversation,  # type: ignore[arg-type]
                add_generation_prompt=add_generation_prompt,
                chat_template=chat_template,
                **(chat_template_kwargs or {}),
            )
            prompts.append({"prompt_token_ids": token_ids})
        return self.generate(prompts, sampling_params, use_tqdm)

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        priority: Sequence[int] | None = None,
    ) -> Iterator[RequestOutput]:
        """As `generate`, but each result comes again and again as it grows, the last time with
        `finished` set. `request_id`s count up in the order of the prompts.

        All checks are made before this returns. Closing the iterator aborts what is unfinished.
        """
        return self._run(self._check_requests(prompts, sampling_params, priority))

    def _check_requests(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
    ) -> list[tuple[str, TokenizedPrompt, SamplingParams, int]]:
        """Check all prompts before any is queued: id, tokens, parameters, priority of each."""
        prompts = as_prompts(prompts)
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params = [sampling_params or SamplingParams()] * len(prompts)
        else:
            params = list(sampling_params)
        priorities = [0] * len(prompts) if priority is None else list(priority)
        for name, values in (("sampling_params", params), ("priority", priorities)):
            if len(values) != len(prompts):
                raise ValueError(f"{len(prompts)} prompts, but {len(values)} {name}")

        ready = []
        for index, (prompt, one, rank) in enumerate(zip(prompts, params, priorities, strict=True)):
            if not isinstance(one, SamplingParams):
                raise ValueError(f"prompt {index}: {one!r} is not a SamplingParams")
            try:
                checked = self.llm_engine.check_request(prompt, one, rank)
            except ValueError as error:
                raise ValueError(f"prompt {index}: {error}") from error
            ready.append((str(next(self._request_ids)), checked, one, rank))
        return ready

    def _run(
        self, ready: Sequence[tuple[str, TokenizedPrompt, SamplingParams, int]]
    ) -> Iterator[RequestOutput]:
        """Queue requests and step until they are finished; abort them if the caller stops first."""
        engine = self.llm_engine
        unfinished = {request_id for request_id, *_ in ready}
        try:
            for request_id, prompt, params, priority in ready:
                engine.add_request(request_id, prompt, params, priority=priority)
            while unfinished:
                for output in engine.step():
                    if output.request_id in unfinished:
                        if output.finished:
                            unfinished.discard(output.request_id)
                        yield output
        except GeneratorExit:
            raise
        except BaseException:  # Ctrl-C and out-of-memory too: the step may be half done
            engine.abandon_step()
            raise
        finally:
            engine.abort_request(unfinished)


def _engine_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for `LLMEngine` from arguments named as vLLM names them.

    Raises:
        ValueError: on a name that neither knows, or more than one device.
    """
    arguments = {}
    for name, value in kwargs.items():
        if name in _MUST_BE_ONE:
            if value != 1:
                raise ValueError(f"{name}={value}: minivllm runs on one device, set it to 1")
        elif name == "quantization":
            if value is not None:
                raise ValueError(
                    f"quantization={value!r} is not supported; a quantised .gguf file is "
                    f"dequantised when it is loaded"
                )
        elif name == "logprobs_mode":
            if value not in (None, "raw_logprobs"):
                raise ValueError(
                    f"logprobs_mode={value!r} is not supported: log probabilities are the model's, "
                    f"before parameters change them; set it to 'raw_logprobs'"
                )
        elif (ours := _RENAMED.get(name, name)) in _KNOBS:
            if value is not None:
                arguments[ours] = value
        elif name not in _WITHOUT_EFFECT:
            raise ValueError(unknown_name("LLM has no argument", name, _KNOBS | set(_RENAMED)))
    return arguments
