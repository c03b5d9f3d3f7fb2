"""A script for vLLM's offline interface. `tools/record_vllm_sampling.py` runs it under vLLM, and
`tests/test_sampling_params.py` with `minivllm` in the place of `vllm` in its imports."""

from __future__ import annotations

from typing import Any

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

PROMPTS = [
    "The capital of France is",
    "Once upon a time there was a little",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4,",
    "日本の首都は",
    "My favourite emoji are 🎉 and 🦊 and",
]
BASE: dict[str, Any] = {"temperature": 0.0, "max_tokens": 16}
CASES: list[dict[str, Any]] = [
    {"logprobs": 2},
    {"logprobs": 0, "prompt_logprobs": 0, "ignore_eos": True},
    {"logprobs": True, "prompt_logprobs": 3},
    {"repetition_penalty": 1.3, "logprobs": 1},
    {"repetition_penalty": 0.7},
    {"presence_penalty": 1.5},
    {"presence_penalty": -1.0, "frequency_penalty": -0.5, "max_tokens": 24},
    {"frequency_penalty": 0.8, "logprobs": 1, "max_tokens": 24},
    {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.3},
    {"bad_words": ["Paris", "the", "girl named", " fib", "1", "。"]},
    {"bad_words": ["in the", ", and", "return 1"], "repetition_penalty": 1.2},
    {"allowed_token_ids": list(range(260, 2000)), "logprobs": 1},
    {"allowed_token_ids": list(range(0, 49152, 7)), "repetition_penalty": 1.5},
    {"logit_bias": {28: 6.0, 30: -100.0, 253: 3.5, 5345: -20.0}, "logprobs": 1},
    {"logit_bias": {2: 50.0}, "min_tokens": 5},
    {"logit_bias": {2: 50.0}, "min_tokens": 5, "ignore_eos": True, "max_tokens": 8},
    {"min_tokens": 6, "stop_token_ids": [28, 30, 253, 282, 198, 33, 216], "logprobs": 1},
    {"stop": ["the", ","], "min_tokens": 3, "logprobs": 0},
    {"stop": ["the", "\n", "2"], "include_stop_str_in_output": True},
    {"temperature": 1.0, "min_p": 1.0, "seed": 1, "logprobs": 1},
    {"temperature": 0.8, "top_k": 1, "min_p": 0.5, "repetition_penalty": 1.2},
    {"temperature": 2.0, "top_p": 1e-6, "frequency_penalty": 0.5, "seed": -1},
    {"max_tokens": 4, "detokenize": False, "logprobs": 1, "prompt_logprobs": 1},
    {"skip_special_tokens": False, "spaces_between_special_tokens": False, "min_tokens": 16},
]
REFUSED: list[dict[str, Any]] = [
    {"n": 0}, {"n": 2, "temperature": 0.0}, {"presence_penalty": 2.1}, {"presence_penalty": -2.1},
    {"frequency_penalty": 2.1}, {"frequency_penalty": -2.1}, {"repetition_penalty": 0.0},
    {"repetition_penalty": -1.0}, {"repetition_penalty": float("inf")}, {"temperature": -0.1},
    {"temperature": 2.1}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1},
    {"top_k": -2}, {"min_p": -0.1}, {"min_p": 1.1}, {"max_tokens": 0}, {"min_tokens": -1},
    {"min_tokens": 5, "max_tokens": 4}, {"logprobs": -2}, {"prompt_logprobs": -2}, {"stop": ""},
    {"stop": [""]}, {"stop": "a", "detokenize": False}, {"stop_token_ids": ["a"]},
    {"bad_words": [""]}, {"no_such_parameter": 1},
]  # fmt: skip
ACCEPTED: list[dict[str, Any]] = [
    {}, {"n": 3}, {"presence_penalty": 2.0, "frequency_penalty": -2.0}, {"repetition_penalty": 9.0},
    {"temperature": 2.0, "top_p": 1.0, "top_k": -1, "min_p": 1.0}, {"max_tokens": None},
    {"min_tokens": 16}, {"logprobs": -1, "prompt_logprobs": -1}, {"seed": -1}, {"stop": ["a"]},
    {"logit_bias": {0: -100}}, {"allowed_token_ids": [1]}, {"bad_words": ["a b"]},
    {"skip_clone": True, "spaces_between_special_tokens": False, "extra_args": None},
]  # fmt: skip
REFUSED_BY_THE_ENGINE: list[dict[str, Any]] = [
    {"logprobs": 21}, {"prompt_logprobs": -1}, {"stop_token_ids": [49152]},
    {"allowed_token_ids": []}, {"allowed_token_ids": [-1]}, {"allowed_token_ids": [49152]},
    {"logit_bias": {49152: 1.0}}, {"logit_bias": {-1: 1.0}},
]  # fmt: skip


def places(logprobs: Any) -> Any:
    """For each place, of each token: id, log probability, rank, text."""
    if logprobs is None:
        return None
    return [
        place and [[id_, round(t.logprob, 6), t.rank, t.decoded_token] for id_, t in place.items()]
        for place in logprobs
    ]


def told(output: Any) -> dict[str, Any]:
    """What a result says."""
    (completion,) = output.outputs
    return {
        "token_ids": list(completion.token_ids),
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
        "cumulative_logprob": completion.cumulative_logprob,
        "logprobs": places(completion.logprobs),
        "prompt_logprobs": places(output.prompt_logprobs),
    }


def is_refused(call: Any) -> bool:
    """Whether a call raises anything: vLLM has errors of its own."""
    try:
        call()
    except Exception:
        return True
    return False


def main(model: str) -> dict[str, Any]:
    """Everything, as JSON-serialisable data."""
    llm = LLM(
        model=model, dtype="float32", max_model_len=512, enforce_eager=True, seed=0,
        max_num_seqs=16, disable_log_stats=True,
    )  # fmt: skip
    ids = llm.get_tokenizer().encode(PROMPTS[0])
    prompts: list[Any] = [*PROMPTS[1:], TokensPrompt(prompt_token_ids=list(ids))]
    params = [SamplingParams(**{**BASE, **case}) for case in CASES]
    results = [
        [told(output) for output in llm.generate(prompts, one, use_tqdm=False)] for one in params
    ]
    # The same once more, in one batch: every request beside unlike ones.
    mixed = llm.generate(
        [prompt for _ in params for prompt in prompts],
        [one for one in params for _ in prompts],
        use_tqdm=False,
    )
    messages = [{"role": "user", "content": "Name three colours."}]
    chat = llm.chat(messages, SamplingParams(**BASE, logprobs=2), use_tqdm=False)
    checks = {
        "refused": [is_refused(lambda p=p: SamplingParams(**p)) for p in REFUSED],
        "accepted": [not is_refused(lambda p=p: SamplingParams(**p)) for p in ACCEPTED],
        "refused_by_the_engine": [
            is_refused(lambda p=p: llm.generate(prompts[:1], SamplingParams(**p), use_tqdm=False))
            for p in REFUSED_BY_THE_ENGINE
        ],
    }
    return {
        "results": results,
        "mixed_token_ids": [list(output.outputs[0].token_ids) for output in mixed],
        "chat": told(chat[0]),
        "checks": checks,
    }
