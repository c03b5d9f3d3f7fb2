"""The engines, each behind the same two calls: `info()` and `run(requests)`.

`run` returns, for each request, its token ids and the moment of each token, in seconds since the
start. minivllm and vLLM have the same interface and share one loop, so neither gets a better one.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

Requests = list[dict[str, Any]]
Result = dict[str, Any]


class Tokens:
    """What came out, and when."""

    def __init__(self, requests: Requests) -> None:
        self.start = time.perf_counter()
        self.ids: dict[str, list[int]] = {request["request_id"]: [] for request in requests}
        self.times: dict[str, list[float]] = {request["request_id"]: [] for request in requests}

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def wait_for(self, moment: float) -> None:
        """Sleep until then; an idle engine burns no core."""
        if (seconds := moment - self.now()) > 0:
            time.sleep(seconds)

    def add(self, request_id: str, token_ids: Sequence[int], moment: float) -> None:
        """New tokens of a request."""
        self.ids[request_id].extend(int(token_id) for token_id in token_ids)
        self.times[request_id].extend([moment] * len(token_ids))

    def result(self) -> Result:
        """Everything, as the driver wants it."""
        seconds = max((times[-1] for times in self.times.values() if times), default=0.0)
        return {"seconds": seconds, "token_ids": self.ids, "token_times": self.times}


def run_steps(engine: Any, params_of: Callable[[int], Any], requests: Requests) -> Result:
    """vLLM's offline loop: add what has arrived, step, note the tokens.

    Serves every engine with `add_request`, `step` and `has_unfinished_requests`.
    """
    pending = deque(sorted(requests, key=lambda request: request["arrival"]))
    prepared = {request["request_id"]: params_of(request["max_tokens"]) for request in requests}
    tokens = Tokens(requests)
    while pending or engine.has_unfinished_requests():
        while pending and pending[0]["arrival"] <= tokens.now():
            request = pending.popleft()
            request_id = request["request_id"]
            engine.add_request(
                request_id, {"prompt_token_ids": request["prompt"]}, prepared[request_id]
            )
        if not engine.has_unfinished_requests():
            tokens.wait_for(pending[0]["arrival"])
            continue
        outputs = engine.step()
        moment = tokens.now()
        for output in outputs:
            known = len(tokens.ids[output.request_id])
            if len(output.outputs[0].token_ids) > known:
                tokens.add(output.request_id, output.outputs[0].token_ids[known:], moment)
    return tokens.result()


def _torch_info() -> dict[str, Any]:
    import torch

    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


def _use_threads(count: int) -> None:
    import torch

    torch.set_num_threads(count)


_MATRICES = ("qkv", "o", "gate_up", "down")


class Minivllm:
    """Ours."""

    def __init__(self, options: dict[str, Any]) -> None:
        import minivllm
        from minivllm.core import SamplingParams
        from minivllm.engine import LLMEngine

        if options["device"] == "cpu":
            _use_threads(options["threads"])
        self.version = minivllm.__version__
        self.engine = LLMEngine(
            options["model"],
            dtype=options["dtype"],
            device=options["device"],
            max_model_len=options["max_model_len"],
            max_num_seqs=options["max_num_seqs"],
            max_num_batched_tokens=options["max_num_batched_tokens"],
            enable_prefix_caching=False,
            # None on a GPU: the engine's own rule decides.
            kv_cache_memory_bytes=options["cache_bytes"],
        )
        # Ours takes the cache's memory as blocks are first used. vLLM and llama.cpp take theirs as
        # they load; so that no round pays for it, neither does ours.
        self.engine.runner.kv_caches.zero_()
        temperature = options["temperature"]
        self.params = lambda max_tokens: SamplingParams(
            temperature=temperature, max_tokens=max_tokens, ignore_eos=True, detokenize=False
        )

    def info(self) -> dict[str, Any]:
        """Versions, threads, and the bytes of matrices that a step reads: a GGUF's stay small."""
        model = self.engine.model
        layers = [getattr(layer, name) for layer in model.layers for name in _MATRICES]
        read = sum(matrix.nbytes for matrix in [model.lm_head, *layers])
        return {"version": self.version, "read_bytes_per_step": read, **_torch_info()}

    def run(self, requests: Requests) -> Result:
        """Serve them."""
        return run_steps(self.engine, self.params, requests)


class Vllm:
    """vLLM in this process, driven by its own `LLMEngine`."""

    def __init__(self, options: dict[str, Any]) -> None:
        import vllm
        from vllm import SamplingParams
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self.version = vllm.__version__
        arguments: dict[str, Any] = {
            "model": options["model"],
            "dtype": options["dtype"],
            "max_model_len": options["max_model_len"],
            "max_num_seqs": options["max_num_seqs"],
            "max_num_batched_tokens": options["max_num_batched_tokens"],
            "enforce_eager": options["enforce_eager"],
            "enable_prefix_caching": False,
            "disable_log_stats": True,
        }
        if options["cache_bytes"]:
            arguments["kv_cache_memory_bytes"] = options["cache_bytes"]
        self.engine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        temperature = options["temperature"]
        self.params = lambda max_tokens: SamplingParams(
            temperature=temperature, max_tokens=max_tokens, ignore_eos=True, detokenize=False
        )

    def info(self) -> dict[str, Any]:
        """Versions and threads, and what was preloaded: vLLM's CPU guide asks for two libraries."""
        preload = [os.path.basename(p) for p in os.environ.get("LD_PRELOAD", "").split(":") if p]
        return {"version": self.version, **_torch_info(), "preloaded": preload}

    def run(self, requests: Requests) -> Result:
        """Serve them."""
        return run_steps(self.engine, self.params, requests)


def _hugging_face(options: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    _use_threads(options["threads"])
    model = AutoModelForCausalLM.from_pretrained(
        options["model"], dtype=getattr(torch, options["dtype"]), local_files_only=True
    )
    return model.eval()


def _transformers_info() -> dict[str, Any]:
    import transformers

    return {"version": transformers.__version__, **_torch_info()}


class HfStatic:
    """transformers' `generate` in batches, each as slow as its longest member."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.model = _hugging_face(options)
        self.model.generation_config.eos_token_id = None
        self.batch_size = options["batch_size"]

    def info(self) -> dict[str, Any]:
        """Versions and threads."""
        return _transformers_info()

    def run(self, requests: Requests) -> Result:
        """A batch is whoever has arrived, in order, `batch_size` at most."""
        pending = deque(sorted(requests, key=lambda request: request["arrival"]))
        tokens = Tokens(requests)
        while pending:
            tokens.wait_for(pending[0]["arrival"])
            batch: Requests = []
            while (
                pending and len(batch) < self.batch_size and pending[0]["arrival"] <= tokens.now()
            ):
                batch.append(pending.popleft())
            self._generate(batch, tokens)
        return tokens.result()

    def _generate(self, batch: Requests, tokens: Tokens) -> None:
        import torch
        from transformers import StoppingCriteriaList

        width = max(len(request["prompt"]) for request in batch)
        padded = [[0] * (width - len(r["prompt"])) + r["prompt"] for r in batch]
        mask = [[0] * (width - len(r["prompt"])) + [1] * len(r["prompt"]) for r in batch]
        moments: list[float] = []

        def note(input_ids: Any, scores: Any, **_: Any) -> Any:
            moments.append(tokens.now())
            return torch.zeros(len(input_ids), dtype=torch.bool)

        with torch.inference_mode():
            output = self.model.generate(
                input_ids=torch.tensor(padded),
                attention_mask=torch.tensor(mask),
                do_sample=False,
                max_new_tokens=max(request["max_tokens"] for request in batch),
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([note]),
            )
        for request, row in zip(batch, output[:, width:].tolist()):
            # What is computed past a request's own end is nobody's: it counts for nothing.
            for token_id, moment in zip(row[: request["max_tokens"]], moments):
                tokens.add(request["request_id"], [token_id], moment)


class HfContinuous:
    """transformers' own continuous batching: its manager runs in a thread."""

    def __init__(self, options: dict[str, Any]) -> None:
        from transformers import ContinuousBatchingConfig, GenerationConfig

        self.model = _hugging_face(options)
        page_size = 16
        page_bytes = page_size * options["kv_bytes_per_token"]
        self.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=128
        )
        self.config = ContinuousBatchingConfig(
            page_size=page_size,
            num_blocks=options["cache_bytes"] // page_bytes,
            max_batch_tokens=options["max_num_batched_tokens"],
            max_requests_per_batch=options["max_num_seqs"],
            allow_block_sharing=False,
        )
        self.manager = self.model.init_continuous_batching(
            generation_config=self.generation_config, continuous_batching_config=self.config
        )
        self.manager.start()

    def info(self) -> dict[str, Any]:
        """Versions and threads."""
        return _transformers_info()

    def run(self, requests: Requests) -> Result:
        """Another thread adds what arrives; this one takes tokens as they are streamed."""
        tokens = Tokens(requests)

        def arrive() -> None:
            for request in sorted(requests, key=lambda request: request["arrival"]):
                tokens.wait_for(request["arrival"])
                self.manager.add_request(
                    request["prompt"],
                    request_id=request["request_id"],
                    max_new_tokens=request["max_tokens"],
                    streaming=True,
                    eos_token_id=-1,
                )

        threading.Thread(target=arrive, daemon=True).start()
        left = len(requests)
        while left:
            output = self.manager.get_result(timeout=1)
            if output is None:
                if not self.manager.is_running():
                    raise RuntimeError("the continuous batching manager has stopped")
                continue
            if output.error:
                raise RuntimeError(f"request {output.request_id}: {output.error}")
            known = len(tokens.ids[output.request_id])
            if len(output.generated_tokens) > known:
                tokens.add(output.request_id, output.generated_tokens[known:], tokens.now())
            left -= output.is_finished()
        return tokens.result()


class LlamaCpp:
    """llama.cpp, continuously batched as its server does it: decodes first, then prompts."""

    def __init__(self, options: dict[str, Any]) -> None:
        import llama_cpp

        self.api = api = llama_cpp
        api.llama_backend_init()
        # Weights stay as they are in the file; repacked ones are for quantised types.
        self.model = api.llama_model_load_from_file(
            str(options["gguf"]).encode(), api.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {options['gguf']}")
        self.vocab_size = options["vocab_size"]
        self.max_num_seqs = min(options["max_num_seqs"], 256)  # LLAMA_MAX_SEQ
        self.budget = options["max_num_batched_tokens"]
        self.threads = options["threads"]
        params = api.llama_context_default_params()
        params.n_ctx = options["cache_bytes"] // options["kv_bytes_per_token"] // 256 * 256
        params.n_batch = self.budget
        params.n_ubatch = options["n_ubatch"]
        params.n_seq_max = self.max_num_seqs
        params.n_threads = params.n_threads_batch = self.threads
        params.type_k = params.type_v = api.GGML_TYPE_F32
        params.kv_unified = True
        params.no_perf = True
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context with these settings")
        self.batch = api.llama_batch_init(self.budget, 0, 1)

    def info(self) -> dict[str, Any]:
        """Version, threads and what the library was compiled for."""
        features = self.api.llama_print_system_info().decode().strip(" |")
        return {
            "version": self.api.__version__,
            "threads": self.threads,
            "features": features,
        }

    def run(self, requests: Requests) -> Result:
        """Serve them."""
        api, batch = self.api, self.batch
        memory = api.llama_get_memory(self.context)
        api.llama_memory_clear(memory, False)
        pending = deque(sorted(requests, key=lambda request: request["arrival"]))
        free = list(range(self.max_num_seqs))
        running: list[dict[str, Any]] = []
        tokens = Tokens(requests)
        while pending or running:
            while pending and free and pending[0]["arrival"] <= tokens.now():
                request = pending.popleft()
                running.append({**request, "seq": free.pop(0), "done": 0})
            if not running:
                tokens.wait_for(pending[0]["arrival"])
                continue
            size, sampled = 0, []
            # Those that decode stand before those whose prompt is not yet through.
            for slot in sorted(running, key=lambda r: r["done"] < len(r["prompt"])):
                output = tokens.ids[slot["request_id"]]
                done, prompt = slot["done"], slot["prompt"]
                room = self.budget - size
                new = prompt[done : done + room] if done < len(prompt) else output[-1:]
                if not new or len(new) > room:
                    continue
                for offset, token_id in enumerate(new):
                    batch.token[size] = token_id
                    batch.pos[size] = done + offset
                    batch.n_seq_id[size] = 1
                    batch.seq_id[size][0] = slot["seq"]
                    batch.logits[size] = 0
                    size += 1
                slot["done"] = done + len(new)
                if slot["done"] >= len(prompt):
                    batch.logits[size - 1] = 1
                    sampled.append(slot)
            batch.n_tokens = size
            if status := api.llama_decode(self.context, batch):
                raise RuntimeError(f"llama_decode returned {status} for {size} tokens")
            best = self._argmax(len(sampled))
            moment = tokens.now()
            for slot, token_id in zip(sampled, best):
                tokens.add(slot["request_id"], [token_id], moment)
                if len(tokens.ids[slot["request_id"]]) >= slot["max_tokens"]:
                    running.remove(slot)
                    free.append(slot["seq"])
                    api.llama_memory_seq_rm(memory, slot["seq"], -1, -1)
        return tokens.result()

    def _argmax(self, count: int) -> list[int]:
        """The likeliest token of each row of logits."""
        import numpy as np

        if not count:
            return []
        logits = np.ctypeslib.as_array(
            self.api.llama_get_logits(self.context), shape=(count, self.vocab_size)
        )
        return logits.argmax(axis=1).tolist()


class NanoVllm:
    """nano-vllm (GPU), through the loop of its own `generate`."""

    def __init__(self, options: dict[str, Any]) -> None:
        from nanovllm import LLM, SamplingParams

        self.engine = LLM(
            options["model"],
            enforce_eager=options["enforce_eager"],
            max_model_len=options["max_model_len"],
            max_num_seqs=options["max_num_seqs"],
            max_num_batched_tokens=options["max_num_batched_tokens"],
        )
        temperature = options["temperature"]
        self.params = lambda max_tokens: SamplingParams(
            temperature=temperature, max_tokens=max_tokens, ignore_eos=True
        )

    def info(self) -> dict[str, Any]:
        """Versions."""
        from importlib.metadata import version

        return {"version": version("nano-vllm"), **_torch_info()}

    def run(self, requests: Requests) -> Result:
        """All at once, as in its README; it tells the tokens only when a request has finished."""
        names = {}
        tokens = Tokens(requests)
        for request in requests:
            self.engine.add_request(request["prompt"], self.params(request["max_tokens"]))
            names[self.engine.scheduler.waiting[-1].seq_id] = request["request_id"]
        while not self.engine.is_finished():
            finished, _ = self.engine.step()
            moment = tokens.now()
            for seq_id, token_ids in finished:
                tokens.add(names[seq_id], token_ids, moment)
        return tokens.result()


ADAPTERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "minivllm": Minivllm,
    "vllm": Vllm,
    "hf-static": HfStatic,
    "hf-continuous": HfContinuous,
    "llama.cpp": LlamaCpp,
    "nano-vllm": NanoVllm,
}
