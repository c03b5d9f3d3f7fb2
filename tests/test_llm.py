"""`LLM` and `LLMEngine` as their users meet them."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import build, token_ids

from minivllm import LLM, LLMEngine, SamplingParams, TokensPrompt
from minivllm.core import TokenizedPrompt
from minivllm.detokenizer import IncrementalDetokenizer
from minivllm.models.loader import tiny_random_model
from minivllm.outputs import RequestOutput
from minivllm.tokenizer import Tokenizer
from minivllm.tokenizer_files import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return build()


def nothing_is_left(llm: LLM) -> bool:
    """No request, no held block, nothing to return."""
    engine = llm.llm_engine
    free = engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    return (
        not engine.has_unfinished_requests()
        and free == engine.scheduler.config.num_gpu_blocks
        and not engine._states
        and not engine._parents
    )


# --- vLLM's offline interface -------------------------------------------------------------


def test_script_for_vllm_runs_with_another_import() -> None:
    script = """
from minivllm import LLM, SamplingParams

prompts = ["Hello, my name is", "The capital of France is"]
sampling_params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=4)
if __name__ == "__main__":
    llm = LLM(model="tiny-random", tensor_parallel_size=1, gpu_memory_utilization=0.9,
              enforce_eager=True, trust_remote_code=True, dtype="auto", seed=0, max_model_len=128,
              enable_prefix_caching=True, disable_log_stats=True, max_num_seqs=4)
    outputs = llm.generate(prompts, sampling_params)
    for output in outputs:
        prompt = output.prompt
        generated_text = output.outputs[0].text
        print(f"Prompt: {prompt!r}, Generated text: {generated_text!r}")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("Generated text: ") == 2
    assert "Processed prompts: 100%" in done.stderr
    assert "output tokens/s" in done.stderr


def test_import_needs_no_torch() -> None:
    code = "import sys, minivllm; assert 'torch' not in sys.modules; minivllm.LLM; import torch"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_results_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts: list[Any] = [
        "a longer prompt " * 5, "b", {"prompt": "cc"}, {"prompt_token_ids": [9, 8]}, [9, 8],
    ]  # fmt: skip
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (9, 1, 5, 2, 2)]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [9, 1, 5, 2, 2]
    assert [output.prompt for output in outputs] == [prompts[0], "b", "cc", None, None]
    assert outputs[3].prompt_token_ids == [9, 8]
    assert outputs[3].outputs[0].token_ids == outputs[4].outputs[0].token_ids
    assert [int(output.request_id) for output in outputs] == sorted(
        int(output.request_id) for output in outputs
    )
    for output in outputs:
        assert output.finished
        assert output.error is None
        completion = output.outputs[0]
        assert (completion.finish_reason, completion.stop_reason) == ("length", None)
        assert completion.finished()
        assert completion.cumulative_logprob is None
        assert output.metrics is not None
        assert output.metrics.ttft is not None
    assert nothing_is_left(llm)


def test_one_prompt_no_prompts_default_params(llm: LLM) -> None:
    (output,) = llm.generate("hello", use_tqdm=False)
    assert 1 <= len(output.outputs[0].token_ids) <= 16
    assert llm.generate([], use_tqdm=False) == []
    (output,) = llm.generate([3, 4, 5], GREEDY, use_tqdm=False)
    assert output.prompt_token_ids == [3, 4, 5]
    assert llm.get_default_sampling_params() == SamplingParams()


def test_prefix_cache_hits_are_reported() -> None:
    llm = build()
    prompt = list(range(3, 53))
    (first,) = llm.generate([prompt], GREEDY, use_tqdm=False)
    (second,) = llm.generate([prompt], GREEDY, use_tqdm=False)
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 48)
    assert first.outputs[0].token_ids == second.outputs[0].token_ids


def test_chat(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (output,) = llm.chat(messages, GREEDY, use_tqdm=False)
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert output.prompt_token_ids == llm.get_tokenizer().encode(text)
    two = llm.chat([messages, [*messages, {"role": "assistant", "content": "ho"}]], GREEDY, False)
    assert len(two) == 2
    assert two[0].outputs[0].token_ids == output.outputs[0].token_ids
    with pytest.raises(ValueError, match="at least one message"):
        llm.chat([[]], GREEDY)
    assert llm.chat([], GREEDY, use_tqdm=False) == []


def test_stream_grows(llm: LLM) -> None:
    seen: dict[str, list[RequestOutput]] = {}
    for output in llm.stream(["ab", "cd"], GREEDY):
        seen.setdefault(output.request_id, []).append(output)
    assert len(seen) == 2
    for outputs in seen.values():
        assert [len(output.outputs[0].token_ids) for output in outputs] == list(range(1, 9))
        assert [output.finished for output in outputs] == [False] * 7 + [True]
        for before, after in pairwise(outputs):
            assert after.outputs[0].text.startswith(before.outputs[0].text)


def test_closed_stream_aborts(llm: LLM) -> None:
    stream = llm.stream(["ab", "cd"], GREEDY)
    next(stream)
    assert llm.llm_engine.has_unfinished_requests()
    stream.close()
    assert nothing_is_left(llm)
    llm.stream(["ab"], GREEDY)  # never started: nothing was queued
    assert nothing_is_left(llm)


def test_n_outputs(llm: LLM) -> None:
    params = SamplingParams(n=3, max_tokens=5, ignore_eos=True, seed=1)
    one, other = llm.generate(["ab", "cd"], params, use_tqdm=False)
    for output in (one, other):
        assert len({tuple(completion.token_ids) for completion in output.outputs}) == 3
    assert nothing_is_left(llm)


def test_priority() -> None:
    llm = build(scheduling_policy="priority", max_num_seqs=1)
    order = [
        output.request_id
        for output in llm.stream(["a", "b", "c"], GREEDY, priority=[2, 0, 1])
        if output.finished
    ]
    assert order == ["1", "2", "0"]


# --- stopping -----------------------------------------------------------------------------


def some_output(llm: LLM, **params: Any) -> Any:
    params = {"temperature": 0.0, "max_tokens": 30, "ignore_eos": True, **params}
    (output,) = llm.generate(["hello world"], SamplingParams(**params), use_tqdm=False)
    assert nothing_is_left(llm)
    return output.outputs[0]


def test_eos_and_ignore_eos() -> None:
    loaded = tiny_random_model()
    free = some_output(build(loaded))
    ends = (free.token_ids[4], free.token_ids[9])
    object.__setattr__(loaded.config, "eos_token_ids", ends)  # two of them
    stopped = some_output(build(loaded), ignore_eos=False)
    assert stopped.token_ids == free.token_ids[:5]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", None)
    assert some_output(build(loaded)).token_ids == free.token_ids
    longer = some_output(build(loaded), ignore_eos=False, min_tokens=7)
    assert len(longer.token_ids) > 7
    assert not set(longer.token_ids[:7]) & set(ends)


def test_stop_token_ids(llm: LLM) -> None:
    free = some_output(llm)
    stop = free.token_ids[6]
    end = free.token_ids.index(stop) + 1
    stopped = some_output(llm, stop_token_ids=[stop])
    assert stopped.token_ids == free.token_ids[:end]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
    assert free.text.startswith(stopped.text)
    shown = some_output(llm, stop_token_ids=[stop], include_stop_str_in_output=True)
    assert shown.text.startswith(stopped.text)
    assert shown.token_ids == stopped.token_ids


def test_stop_strings(llm: LLM) -> None:
    free = some_output(llm)
    plain = [i for i in range(6, len(free.text) - 3) if free.text[i : i + 3].isalpha()]
    stop = free.text[plain[0] : plain[0] + 3]
    start = free.text.index(stop)
    stopped = some_output(llm, stop=["never there", stop])
    assert stopped.text == free.text[:start]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert len(stopped.token_ids) < 30
    shown = some_output(llm, stop=stop, include_stop_str_in_output=True)
    assert shown.text == free.text[: start + 3]
    late = some_output(llm, stop=stop, min_tokens=len(stopped.token_ids))
    assert len(late.token_ids) > len(stopped.token_ids)


def test_stop_string_found_with_the_last_token(llm: LLM) -> None:
    free = some_output(llm)
    cut = some_output(llm, max_tokens=10)
    assert cut.finish_reason == "length"
    tail = cut.text[-2:]
    if free.text.index(tail) == len(cut.text) - 2:
        stopped = some_output(llm, max_tokens=10, stop=tail)
        assert (stopped.finish_reason, stopped.stop_reason) == ("stop", tail)


def test_streamed_text_never_shows_a_stop_string(llm: LLM) -> None:
    free = some_output(llm)
    stop = free.text[8:12]
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True, stop=stop)
    texts = [output.outputs[0].text for output in llm.stream(["hello world"], params)]
    assert texts[-1] == free.text[: free.text.index(stop)]
    assert all(texts[-1].startswith(text) for text in texts)


def test_max_tokens_none_goes_to_max_model_len() -> None:
    llm = build(max_model_len=40)
    (output,) = llm.generate(
        [[5] * 30], SamplingParams(temperature=0, max_tokens=None, ignore_eos=True), use_tqdm=False
    )
    assert len(output.outputs[0].token_ids) == 10
    assert output.outputs[0].finish_reason == "length"


# --- text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["plain", "naïve café", "日本語", "🎉👩‍👩‍👧‍👦 ok", "a\ufffdb", "é" * 9], ids=ascii
)
def test_detokenizer_never_shows_half_a_character(text: str) -> None:
    tokenizer = tiny_tokenizer()
    detokenizer = IncrementalDetokenizer(tokenizer, tokenizer.encode("before "))
    ids = tokenizer.encode(text)
    for token_id in ids:
        detokenizer.update([token_id])
        assert text.startswith(detokenizer.text)
    assert detokenizer.text == text
    at_once = IncrementalDetokenizer(tokenizer, [])
    at_once.update(ids)
    assert at_once.text == text


def test_detokenizer_skips_special_tokens() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("a<|im_end|>b")
    for skip, text in [(True, "ab"), (False, "a<|im_end|>b")]:
        detokenizer = IncrementalDetokenizer(tokenizer, [], skip_special_tokens=skip)
        detokenizer.update(ids)
        assert detokenizer.text == text


def test_detokenizer_finds_a_stop_string_across_tokens() -> None:
    tokenizer = tiny_tokenizer()
    detokenizer = IncrementalDetokenizer(tokenizer, [], stop=["END", "E N"])
    shown = []
    for character in "this is the END of it":
        stop = detokenizer.update(tokenizer.encode(character))
        shown.append(detokenizer.visible_text(stop is not None))
        if stop:
            break
    assert stop == "END"
    assert shown[-1] == "this is the "
    assert all("this is the ".startswith(text) for text in shown)


def test_no_detokenize(llm: LLM) -> None:
    output = some_output(llm, detokenize=False)
    assert output.text == ""
    assert len(output.token_ids) == 30


# --- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "prompt 1: the prompt is empty"),
        ([], "prompt 1: the prompt is empty"),
        (
            {"prompt_token_ids": [960]},
            r"prompt 1: prompt_token_ids\[0\]: 960 is not in the vocabulary \[0, 960\)",
        ),
        ([3, -1], r"prompt 1: prompt_token_ids\[1\]: -1 is not in the vocabulary"),
        ([3, 1.5], r"prompt 1: prompt_token_ids\[1\] must be an integer, got 1\.5"),
        ([3, True], r"prompt 1: prompt_token_ids\[1\] must be an integer, got True"),
        ([3] * 512, "prompt 1: a prompt of 512 tokens .* exceed max_model_len=512"),
        ({"text": "a"}, "prompt 1: a prompt has no key 'text'; known are cache_salt, prompt, "),
        ({"prompt_tokens_ids": [3]}, "no key 'prompt_tokens_ids'; did you mean 'prompt_token_ids'"),
        ({"prompt": "a", "cachesalt": "b"}, "no key 'cachesalt'; did you mean 'cache_salt'"),
        (
            {"prompt": "a", "multi_modal_data": {"image": 1}},
            "a prompt's 'multi_modal_data' is not supported: the models here read text only",
        ),
        ({"prompt_embeds": torch.ones(2, 4)}, "'prompt_embeds' is not supported"),
        ({"prompt": "a", "cache_salt": ""}, "cache_salt must be a non-empty string, got ''"),
        ({"prompt": 3}, "prompt 1: a prompt must be"),
        ({"cache_salt": "a"}, "prompt 1: a prompt must be"),
        (b"bytes", "prompt 1: a prompt must be"),
        (np.ones((2, 2)), r"prompt 1: prompt_token_ids\[0\] must be an integer, got \[1.0, 1.0\]"),
        (7, "prompt 1: a prompt must be"),
        (None, "prompt 1: a prompt must be"),
    ],
    ids=repr,
)
def test_unusable_prompts(llm: LLM, prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        llm.generate(["fine", prompt], GREEDY, use_tqdm=False)
    assert nothing_is_left(llm)
    assert len(token_ids(llm, ["fine"], GREEDY)[0]) == 8


def test_token_ids_of_other_kinds(llm: LLM) -> None:
    ids = [3, 200, 5]
    prompts: list[Any] = [
        ids, tuple(ids), np.array(ids), np.array(ids, dtype=np.uint16), torch.tensor(ids),
        list(np.array(ids)), [torch.tensor(i) for i in ids], {"prompt_token_ids": np.array(ids)},
        TokensPrompt(prompt_token_ids=ids), range(3, 6),
    ]  # fmt: skip
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    for output in outputs[:-1]:
        assert output.prompt_token_ids == ids
        assert {type(token_id) for token_id in output.prompt_token_ids} == {int}
        assert output.outputs[0].token_ids == outputs[0].outputs[0].token_ids
    assert outputs[-1].prompt_token_ids == [3, 4, 5]
    for alone in (np.array(ids), torch.tensor(ids), list(np.array(ids)), tuple(ids)):
        assert token_ids(llm, alone) == token_ids(llm, [ids])  # type: ignore[arg-type]
    rows = np.array([ids, [4, 5, 6]])
    assert token_ids(llm, rows) == token_ids(llm, [ids, [4, 5, 6]])  # type: ignore[arg-type]
    for nothing in (7, None, b"ab"):
        with pytest.raises(ValueError, match="prompts must be a prompt or a list of prompts"):
            llm.generate(nothing, GREEDY)  # type: ignore[arg-type]


def test_a_prompt_is_tokenised_and_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = build()
    made, encoded = [], []
    check, encode = TokenizedPrompt.__init__, Tokenizer.encode

    def counted(self: TokenizedPrompt, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        check(self, *args, **kwargs)

    monkeypatch.setattr(TokenizedPrompt, "__init__", counted)
    monkeypatch.setattr(Tokenizer, "encode", lambda *a, **k: encoded.append(a) or encode(*a, **k))
    stream = llm.stream(["hello", {"prompt": "ab"}, [3, 4]], SamplingParams(n=3, max_tokens=2))
    next(stream)
    assert (len(made), len(encoded)) == (3, 2)
    requests = [r for state in llm.llm_engine._states.values() for r in state.requests]
    assert len(requests) == 9
    for request in requests:
        assert any(request.prompt_token_ids is prompt.token_ids for prompt in made)
    stream.close()


def test_cache_salt_keeps_prompts_apart() -> None:
    llm = build()
    ids = list(range(3, 53))

    def cached(**options: Any) -> int | None:
        prompt = {"prompt_token_ids": ids, **options}
        return llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens

    assert [cached(cache_salt=salt) for salt in ("alice", "alice", "bob")] == [0, 48, 0]
    assert [cached(), cached(), cached(cache_salt=None)] == [0, 48, 48]
    assert [cached(cache_salt="bob"), cached(cache_salt="bo")] == [48, 0]
    blocks = llm.llm_engine.scheduler.kv_cache_manager.block_pool.cached_block_hash_to_block
    assert len(blocks) >= 4 * 3  # four chains of three blocks, none shared


def test_unusable_parameters(llm: LLM) -> None:
    with pytest.raises(ValueError, match="2 prompts, but 1 sampling_params"):
        llm.generate(["a", "b"], [GREEDY])
    with pytest.raises(ValueError, match="2 prompts, but 3 priority"):
        llm.generate(["a", "b"], GREEDY, priority=[1, 2, 3])
    with pytest.raises(ValueError, match="prompt 1: 'x' is not a SamplingParams"):
        llm.generate(["a", "b"], [GREEDY, "x"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="prompt 0: stop_token_ids: 960 is not in the vocabulary"):
        llm.generate(["a"], SamplingParams(stop_token_ids=[960]))
    with pytest.raises(ValueError, match=r"prompt 0: .*priority must be an integer"):
        llm.generate(["a"], GREEDY, priority=["high"])  # type: ignore[list-item]
    assert nothing_is_left(llm)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_model_length": 5}, "no argument 'max_model_length'; did you mean 'max_model_len'"),
        ({"xyzzy": 5}, "no argument 'xyzzy'; known are"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size=2: minivllm runs on one device"),
        ({"logprobs_mode": "processed_logits"}, "set it to 'raw_logprobs'"),
        ({"max_logprobs": -2}, "max_logprobs must be at least -1"),
        ({"quantization": "awq"}, "quantization='awq' is not supported"),
        ({"dtype": "int8"}, "dtype 'int8' is not supported; use auto, float32"),
        ({"max_model_len": 4096}, "max_model_len=4096 exceeds the 2048 positions"),
        ({"max_model_len": 1}, "max_model_len must be at least 2"),
        ({"num_gpu_blocks_override": 4}, "set max_model_len to at most 64"),
        ({"kv_cache_memory_bytes": 100_000}, "one sequence of max_model_len=512"),
        ({"max_num_seqs": 0}, "max_num_seqs must be at least 1"),
        ({"block_size": 0}, "block_size must be at least 1"),
        ({"scheduling_policy": "lifo"}, "policy must be one of"),
        ({"model": "nobody/nothing"}, "'nobody/nothing' is neither a directory"),
    ],
    ids=repr,
)
def test_unusable_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_arguments_reach_the_scheduler() -> None:
    llm = build(
        max_num_seqs=3, max_num_batched_tokens=600, long_prefill_token_threshold=5, block_size=8,
        scheduling_policy="priority", enable_prefix_caching=False, enable_chunked_prefill=False,
        num_gpu_blocks_override=70, preemption_mode="swap", swap_space=0.001, max_model_len=500,
        scheduler_reserve_full_isl=False, victim="least_computed", disable_log_stats=True,
    )  # fmt: skip
    config = llm.llm_engine.scheduler.config
    assert config.to_dict() | {
        "max_num_seqs": 3, "max_num_batched_tokens": 600, "long_prefill_token_threshold": 5,
        "block_size": 8, "policy": "priority", "enable_prefix_caching": False,
        "enable_chunked_prefill": False, "num_gpu_blocks": 70, "preemption_mode": "swap",
        "max_model_len": 500, "reserve_full_prompt": False, "victim": "least_computed",
    } == config.to_dict()  # fmt: skip
    assert config.num_cpu_blocks == (1 << 30) // 1000 // (8 * 2 * 2 * 2 * 16 * 4)
    assert llm.llm_engine.runner.cpu_kv_caches.shape[0] == config.num_cpu_blocks


def test_size_of_the_cache() -> None:
    assert LLM("tiny-random", device="cpu").llm_engine.scheduler.config.num_gpu_blocks == 8 * 128
    llm = build(kv_cache_memory_bytes=1 << 20)
    assert llm.llm_engine.scheduler.config.num_gpu_blocks == (1 << 20) // (16 * 512)
    assert llm.llm_engine.runner.kv_caches.shape[2] == 129


# --- the engine -------------------------------------------------------------------------------


def run(engine: LLMEngine) -> dict[str, RequestOutput]:
    finished = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = output
    return finished


def test_step_is_four_lines() -> None:
    """Schedule, execute, sample, update: the book shows it."""
    import ast
    import inspect
    import textwrap

    function = ast.parse(textwrap.dedent(inspect.getsource(LLMEngine.step))).body[0]
    assert isinstance(function, ast.FunctionDef)
    docstring, ahead, *lines = function.body
    assert isinstance(docstring, ast.Expr)
    assert ast.unparse(ahead) == "if self.async_scheduling:\n    return self._step_ahead()"
    calls = [next(n.func.attr for n in ast.walk(line) if isinstance(n, ast.Call)) for line in lines]  # type: ignore[attr-defined]
    assert calls == ["schedule", "execute", "sample", "_update"]


def test_requests_join_and_leave_a_running_batch() -> None:
    engine = build().llm_engine
    engine.add_request("a", [3, 4, 5], GREEDY)
    assert [output.request_id for output in engine.step()] == ["a"]
    engine.add_request("b", "hello", GREEDY)
    engine.add_request("c", [7] * 20, GREEDY)
    assert [output.request_id for output in engine.step()] == ["a", "b", "c"]
    engine.abort_request("b")
    engine.abort_request(["b", "nobody"])
    finished = run(engine)
    assert finished.keys() == {"a", "c"}
    alone = token_ids(build(), [[3, 4, 5], [7] * 20], GREEDY)
    assert [finished[name].outputs[0].token_ids for name in "ac"] == alone


def test_never_fitting_request_is_ignored_and_blocks_no_one() -> None:
    engine = build(num_gpu_blocks=32, block_size=16).llm_engine
    engine.add_request("long", [3] * 512, GREEDY)
    engine.add_request("next", [3], GREEDY)
    finished = run(engine)
    output = finished["long"]
    assert output.finished
    assert output.outputs[0].finish_reason == "length"
    assert output.outputs[0].token_ids == []
    assert output.error is not None
    assert "max_model_len=512" in output.error
    assert len(finished["next"].outputs[0].token_ids) == 8
    engine.add_request("long", [3] * 600, SamplingParams(n=2))
    assert engine.has_unfinished_requests()
    (output,) = engine.step()
    assert [c.finish_reason for c in output.outputs] == ["length", "length"]
    assert not engine.has_unfinished_requests()


def test_request_ids_in_use() -> None:
    engine = build().llm_engine
    engine.add_request("a", [3], SamplingParams(n=2, max_tokens=2))
    with pytest.raises(ValueError, match="'a' is taken"):
        engine.add_request("a", [3], GREEDY)
    with pytest.raises(ValueError, match="'0_a' clashes"):
        engine.add_request("0_a", [3], GREEDY)
    with pytest.raises(ValueError, match="the prompt is empty"):
        engine.add_request("b", [], GREEDY)
    assert run(engine).keys() == {"a"}
    engine.add_request("a", [3], GREEDY)
    assert run(engine).keys() == {"a"}


def test_generate_beside_other_requests() -> None:
    llm = build()
    llm.llm_engine.add_request("mine", [3, 4], GREEDY)
    llm.generate([[5]], SamplingParams(max_tokens=2), use_tqdm=False)
    assert run(llm.llm_engine).keys() == {"mine"}


@pytest.mark.parametrize("place", ["execute", "sample", "update"])
def test_interrupted_generate_leaves_nothing_behind(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = build()
    engine = llm.llm_engine
    prompts = [list(range(3, 103)), list(range(3, 60))]
    expected = token_ids(build(), prompts, GREEDY)
    owner, name = {
        "execute": (engine.runner, "execute"),
        "sample": (engine.sampler, "sample"),
        "update": (engine.scheduler, "update_from_output"),
    }[place]

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(prompts, GREEDY, use_tqdm=False)
    assert nothing_is_left(llm)
    # The prompts' blocks were published, but never written: they must not be found.
    assert token_ids(llm, prompts, GREEDY) == expected


def test_interrupt_between_steps_keeps_the_prefix_cache(llm: LLM) -> None:
    prompt = list(range(200, 264))
    for output in llm.stream([prompt], GREEDY):
        if len(output.outputs[0].token_ids) == 3:
            break
    del output
    (again,) = llm.generate([prompt], GREEDY, use_tqdm=False)
    assert again.num_cached_tokens == 48


def test_device_argument() -> None:
    assert build(device="cpu").llm_engine.runner.kv_caches.device.type == "cpu"
    if not torch.cuda.is_available():
        assert LLM("tiny-random").llm_engine.device == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_gives_the_same_tokens() -> None:
    prompts = [[i, 2 * i, 5] * 9 for i in range(3, 20)]
    expected = token_ids(build(device="cpu"), prompts, GREEDY)
    for backend in ("sdpa", "triton"):
        engine = build(device="cuda", num_gpu_blocks=200, attention_backend=backend)
        assert token_ids(engine, prompts, GREEDY) == expected
    swapping = build(
        device="cuda", num_gpu_blocks=32, block_size=4, max_model_len=128, num_cpu_blocks=200,
        preemption_mode="swap",
    )  # fmt: skip
    assert token_ids(swapping, prompts, GREEDY) == expected
