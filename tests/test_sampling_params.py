"""`SamplingParams`: what is taken and refused, and that each parameter does what vLLM's does."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import build, token_ids

from minivllm import LLM, SamplingParams
from minivllm.bad_words import bad_words_token_ids
from minivllm.core import Request
from minivllm.core.sampling_params import REFUSED, WITHOUT_EFFECT
from minivllm.logits_processors import LogitsProcessors
from minivllm.logprobs import LogprobsProcessor
from minivllm.models.loader import DEFAULT_MODEL
from minivllm.sampler import Sampler
from minivllm.tokenizer_files import tiny_tokenizer

VOCAB = 24
HERE = Path(__file__).parent


# --- what is taken and what is refused ----------------------------------------------------


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"max_token": 3},
            "SamplingParams has no parameter 'max_token'; did you mean 'max_tokens'",
        ),
        ({"temprature": 0}, "did you mean 'temperature'"),
        ({"presence_penality": 1}, "did you mean 'presence_penalty'"),
        ({"xyzzy": 1}, "no parameter 'xyzzy'; known are allowed_token_ids, bad_words"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs is not supported: there are"),
        ({"logits_processors": [print]}, "logits_processors is not supported: use logit_bias"),
        ({"presence_penalty": 2.5}, r"presence_penalty must lie in \[-2, 2\], got 2.5"),
        ({"frequency_penalty": -3}, r"frequency_penalty must lie in \[-2, 2\], got -3"),
        ({"repetition_penalty": 0}, r"repetition_penalty must lie in \(0, inf\), got 0"),
        ({"repetition_penalty": math.inf}, "repetition_penalty must be a finite number"),
        ({"min_p": 1.5}, r"min_p must lie in \[0, 1\], got 1.5"),
        ({"temperature": 2.5}, r"temperature must lie in \[0, 2\], got 2.5"),
        ({"top_p": 0}, r"top_p must lie in \(0, 1\], got 0"),
        ({"n": 2, "temperature": 0.0}, "n must be 1 at temperature 0 .*, got 2"),
        ({"logprobs": -2}, "logprobs must be at least -1, got -2"),
        ({"prompt_logprobs": 1.5}, "prompt_logprobs must be an integer, got 1.5"),
        ({"bad_words": "no"}, "bad_words must be a list of strings, got 'no'"),
        ({"bad_words": [""]}, "bad_words must hold non-empty strings"),
        ({"allowed_token_ids": []}, "allowed_token_ids is empty"),
        ({"allowed_token_ids": [-1]}, r"allowed_token_ids\[0\] must be at least 0, got -1"),
        ({"stop_token_ids": 5}, "stop_token_ids must be a list of token ids, got 5"),
        ({"stop_token_ids": ["a"]}, r"stop_token_ids\[0\] must be an integer, got 'a'"),
        ({"logit_bias": [1, 2]}, "logit_bias must be a dict"),
        ({"logit_bias": {"a": 1}}, "a token id of logit_bias must be an integer, got 'a'"),
        ({"logit_bias": {3: math.nan}}, r"logit_bias\[3\] must be a finite number or -inf"),
    ],
    ids=repr,
)
def test_unusable(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**params)


def test_what_asks_for_nothing_is_passed_over() -> None:
    params = SamplingParams(  # type: ignore[call-arg]
        skip_clone=True, spaces_between_special_tokens=False, extra_args=None, flat_logprobs=False
    )
    assert params == SamplingParams()


def test_values_become_what_vllm_makes_of_them() -> None:
    params = SamplingParams(
        seed=-1, logprobs=True, prompt_logprobs=0, bad_words=["b", "a", "b"], stop_token_ids=[3, 3],
        logit_bias={"7": 1, 5: -math.inf},  # type: ignore[dict-item]
    )  # fmt: skip
    assert (params.seed, params.logprobs, params.prompt_logprobs) == (None, 1, 0)
    assert (params.bad_words, params.stop_token_ids) == (["b", "a"], [3])
    assert params.logit_bias == {7: 1, 5: -math.inf}
    one, other = build().generate([[5]] * 2, SamplingParams(seed=-1, max_tokens=16), use_tqdm=False)
    assert one.outputs[0].token_ids != other.outputs[0].token_ids


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"allowed_token_ids": [960]}, r"allowed_token_ids: 960 is not in the vocabulary \[0, 960"),
        ({"logit_bias": {960: 1.0}}, "logit_bias: 960 is not in"),
        ({"stop_token_ids": [1000]}, "stop_token_ids: 1000 is not in"),
        ({"logprobs": 21}, "logprobs=21 exceeds max_logprobs=20: ask for fewer, or give the LLM"),
        ({"prompt_logprobs": -1}, "prompt_logprobs=-1 exceeds max_logprobs=20"),
    ],
    ids=repr,
)
def test_what_the_engine_cannot_give(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build().generate([[5]], SamplingParams(**params), use_tqdm=False)


def test_bad_words_are_looked_for_alone_and_after_a_space() -> None:
    tokenizer = tiny_tokenizer()
    a, spaced_a = tokenizer.encode("a"), tokenizer.encode(" a")
    assert bad_words_token_ids([" a"], tokenizer) == [a, spaced_a]
    assert bad_words_token_ids(["Ab"], tokenizer) == [tokenizer.encode("Ab")]  # " Ab" is longer
    with pytest.raises(ValueError, match="bad_words: '  ' has no token"):
        bad_words_token_ids(["  "], tokenizer)


# --- what they do to the logits -----------------------------------------------------------


def plainly(logits: torch.Tensor, request: Request) -> torch.Tensor:
    """One row, changed token by token, in vLLM's order."""
    params, outputs = request.sampling_params, request.output_token_ids
    row = logits.clone()
    for token in range(VOCAB):
        if params.allowed_token_ids and token not in params.allowed_token_ids:
            row[token] = -math.inf
        for word in request.bad_words_token_ids:
            text = [*outputs, token]
            if len(text) >= len(word) and text[-len(word) :] == list(word):
                row[token] = -math.inf
        if len(outputs) < params.min_tokens and token in (0, 3, *(params.stop_token_ids or ())):
            row[token] = -math.inf
        row[token] += (params.logit_bias or {}).get(token, 0.0)
        if token in outputs or token in request.prompt_token_ids:
            factor = params.repetition_penalty
            row[token] = row[token] / factor if row[token] > 0 else row[token] * factor
        row[token] -= params.frequency_penalty * outputs.count(token)
        row[token] -= params.presence_penalty * (token in outputs)
    return row


tokens = st.integers(0, VOCAB - 1)
penalties = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 2.0])
asked = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3]),
        "frequency_penalty": penalties,
        "presence_penalty": penalties,
        "logit_bias": st.dictionaries(tokens, st.sampled_from([-math.inf, -5.0, 0.5, 8.0])),
        "allowed_token_ids": st.lists(tokens, min_size=1),
        "min_tokens": st.integers(0, 8),
        "stop_token_ids": st.lists(tokens, max_size=3),
        "ignore_eos": st.booleans(),
    },
)


@settings(deadline=None)
@given(st.data())
def test_the_logits_of_each_row_are_changed_as_its_parameters_say(data: st.DataObject) -> None:
    processors = LogitsProcessors()
    requests = []
    for index, params in enumerate(data.draw(st.lists(asked, min_size=1, max_size=5))):
        prompt = data.draw(st.lists(tokens, min_size=1, max_size=6))
        words = data.draw(st.lists(st.lists(tokens, min_size=1, max_size=3), max_size=3))
        params = SamplingParams(**params, bad_words=["x"] * bool(words))
        request = Request(
            str(index), prompt, params, eos_token_id=[0, 3], bad_words_token_ids=words
        )
        request.num_computed_tokens = len(prompt)
        requests.append(request)
    for step in range(data.draw(st.integers(1, 6))):
        logits = torch.randn(len(requests), VOCAB, generator=torch.Generator().manual_seed(step))
        expected = [plainly(row, r) for row, r in zip(logits, requests, strict=True)]
        processors.apply(logits, requests, dict)
        torch.testing.assert_close(logits, torch.stack(expected), atol=1e-5, rtol=1e-5)
        for request in requests:
            request.append_output_token_id(data.draw(tokens))
            request.num_computed_tokens += 1


def test_a_late_token_counts_and_is_asked_for_only_if_it_does() -> None:
    late = Request("a", [1], SamplingParams(temperature=0.0, presence_penalty=2.0))
    late.num_computed_tokens = 2  # its first token is on its way
    logits = torch.tensor([[0.0, 0.0, 1.5, 1.0]])
    sampled = Sampler().sample_on_device([late], logits.clone(), lambda: {"a": 2})
    assert sampled.read() == {"a": 3}
    plain = Request("b", [1], SamplingParams(temperature=0.0, logit_bias={1: 9.0}))
    plain.num_computed_tokens = 2
    sampled = Sampler().sample_on_device([plain], logits.clone(), lambda: pytest.fail("asked"))
    assert sampled.read() == {"b": 1}


# --- in the engine ------------------------------------------------------------------------

PROMPTS = [[i, 300 + i, 7] * (1 + i % 5) for i in range(3, 17)]
KINDS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.4},
    {"presence_penalty": 1.5, "frequency_penalty": 0.5},
    {"bad_words": ["a", "th", "e f"]},
    {"allowed_token_ids": list(range(100, 160)), "min_tokens": 20},
    {"logit_bias": {50: 3.0, 51: -4.0}, "repetition_penalty": 0.9},
    {"min_tokens": 10, "stop_token_ids": list(range(200, 500))},
    {},
]
LOGPROBS: list[dict[str, Any]] = [
    {}, {"logprobs": 3}, {"prompt_logprobs": 0}, {"logprobs": 0, "prompt_logprobs": 5},
]  # fmt: skip


def all_kinds(**more: Any) -> list[SamplingParams]:
    """Each kind greedy and drawn."""
    ways = [{"temperature": 0.0}, {"temperature": 0.9, "min_p": 0.05}]
    shared = {"max_tokens": 20, **more}
    return [
        SamplingParams(**{**shared, **way, **kind}, seed=i, **LOGPROBS[(i + j) % len(LOGPROBS)])
        for i, way in enumerate(ways)
        for j, kind in enumerate(KINDS)
    ]


def told(llm: LLM, prompts: list[Any], params: Any) -> list[tuple[Any, ...]]:
    """Tokens and all log probabilities."""
    return [
        (c.token_ids, c.logprobs, c.cumulative_logprob, output.prompt_logprobs)
        for output in llm.generate(prompts, params, use_tqdm=False)
        for c in output.outputs
    ]


@pytest.fixture(scope="module")
def alone() -> list[tuple[Any, ...]]:
    """What each request gets if nobody shares its batch."""
    llm = build(batch_invariant=True, max_num_seqs=1, enable_prefix_caching=False)
    return told(llm, PROMPTS, all_kinds())


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"async_scheduling": True},
        {"max_num_batched_tokens": 8},
        {"block_size": 2, "num_gpu_blocks": 44, "max_model_len": 64},
        {"block_size": 2, "num_gpu_blocks": 44, "max_model_len": 64, "async_scheduling": True},
        {"block_size": 2, "num_gpu_blocks": 44, "max_model_len": 64, "async_scheduling": True,
         "max_num_batched_tokens": 6, "reserve_full_prompt": False},
        {"block_size": 2, "num_gpu_blocks": 44, "max_model_len": 64, "preemption_mode": "swap",
         "num_cpu_blocks": 100},
    ],
    ids=repr,
)  # fmt: skip
def test_the_same_tokens_and_log_probabilities_however_they_are_scheduled(
    alone: list[tuple[Any, ...]], knobs: dict[str, Any]
) -> None:
    llm = build(batch_invariant=True, **knobs)
    assert told(llm, PROMPTS, all_kinds()) == alone
    if "num_gpu_blocks" in knobs:
        assert llm.llm_engine.scheduler.stats.num_preemptions > 0


def test_each_parameter_shows_in_the_output() -> None:
    llm = build()
    free = generate(llm, {})
    assert generate(llm, {"bad_words": ["zz"]}) == free or "zz" in text_of(llm, free)
    word = text_of(llm, free[4:5])
    assert word.strip() not in text_of(llm, generate(llm, {"bad_words": [word.strip()]}))
    assert set(generate(llm, {"allowed_token_ids": [40, 50, 60]})) <= {40, 50, 60}
    assert set(generate(llm, {"logit_bias": {77: 100.0}})) == {77}
    assert len(set(generate(llm, {"frequency_penalty": 2.0, "presence_penalty": 2.0}))) > len(
        set(generate(llm, {"frequency_penalty": -2.0, "presence_penalty": -2.0}))
    )
    eos = llm.llm_engine.model_config.eos_token_ids
    wanted = {"logit_bias": {eos[0]: 100.0}, "ignore_eos": True}
    assert set(generate(llm, wanted)) == set(eos)
    assert not set(generate(llm, {**wanted, "min_tokens": 30})) & set(eos)


def generate(llm: LLM, params: dict[str, Any]) -> list[int]:
    params = {"temperature": 0.0, "max_tokens": 30, "ignore_eos": True, **params}
    return token_ids(llm, ["hello world"], SamplingParams(**params))[0]


def text_of(llm: LLM, ids: list[int]) -> str:
    return llm.get_tokenizer().decode(ids)


# --- log probabilities --------------------------------------------------------------------


def test_log_probabilities_are_the_models_and_the_same_in_prompt_and_output() -> None:
    llm = build(batch_invariant=True)
    prompt = llm.get_tokenizer().encode("a quick brown fox")
    params = SamplingParams(
        temperature=0.7, seed=1, max_tokens=12, ignore_eos=True, logprobs=4, prompt_logprobs=4,
        repetition_penalty=1.5, logit_bias={70: 5.0},
    )  # fmt: skip
    (output,) = llm.generate([prompt], params, use_tqdm=False)
    (completion,) = output.outputs
    whole = SamplingParams(max_tokens=1, prompt_logprobs=4)
    (again,) = llm.generate([prompt + completion.token_ids], whole, use_tqdm=False)
    assert output.prompt_logprobs
    assert completion.logprobs
    assert again.prompt_logprobs
    assert output.prompt_logprobs[0] is None
    assert again.prompt_logprobs == output.prompt_logprobs + completion.logprobs
    assert (again.num_cached_tokens, again.outputs[0].logprobs) == (0, None)
    places = [*zip(completion.token_ids, completion.logprobs, strict=True)]
    places += [*zip(prompt[1:], output.prompt_logprobs[1:], strict=True)]
    for token_id, place in places:
        own, *_ = place.items()
        assert own[0] == token_id
        assert sorted(p.rank for p in place.values()) == [
            1,
            2,
            3,
            4,
            *[own[1].rank] * (len(place) - 4),
        ]
        by_rank = sorted(place.values(), key=lambda p: p.rank or 0)
        assert [p.logprob for p in by_rank] == sorted((p.logprob for p in by_rank), reverse=True)
    total = sum(place[token_id].logprob for token_id, place in places[:12])
    assert completion.cumulative_logprob == pytest.approx(total)
    assert any(place[token_id].rank != 1 for token_id, place in places[:12])


def test_all_of_the_vocabulary() -> None:
    llm = build(max_logprobs=-1)
    params = SamplingParams(max_tokens=2, logprobs=-1, prompt_logprobs=-1, ignore_eos=True)
    (output,) = llm.generate([[5, 6]], params, use_tqdm=False)
    assert output.prompt_logprobs
    assert output.outputs[0].logprobs
    for place in [output.prompt_logprobs[1], *output.outputs[0].logprobs]:
        assert place
        assert len(place) == 960
        assert sum(math.exp(told.logprob) for told in place.values()) == pytest.approx(1, abs=1e-4)


def test_prompt_logprobs_read_nothing_from_the_prefix_cache() -> None:
    llm = build()
    scheduler = llm.llm_engine.scheduler
    prompt = list(range(3, 70))
    ask = SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=1)
    (first,) = llm.generate([prompt], ask, use_tqdm=False)
    (second,) = llm.generate([prompt], ask, use_tqdm=False)
    assert (second.num_cached_tokens, second.prompt_logprobs) == (0, first.prompt_logprobs)
    assert scheduler.stats.prefix_cache_queries == 0
    (plain,) = llm.generate([prompt], SamplingParams(max_tokens=2), use_tqdm=False)
    assert (plain.num_cached_tokens, plain.prompt_logprobs) == (64, None)
    with pytest.raises(ValueError, match="prompt_logprobs need skip_reading_prefix_cache=True"):
        SamplingParams(prompt_logprobs=1, skip_reading_prefix_cache=False)
    skip = SamplingParams(max_tokens=1, skip_reading_prefix_cache=True)
    assert llm.generate([prompt], skip, use_tqdm=False)[0].num_cached_tokens == 0


def test_long_prompts_are_told_in_pieces() -> None:
    prompt = [i * 7 % 960 for i in range(400)]  # more than `LOGITS_AT_ONCE`
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=2, logprobs=2)
    whole, cut = (
        told(build(batch_invariant=True, max_num_batched_tokens=budget), [prompt, [5]], params)
        for budget in (2048, 60)
    )
    assert whole == cut
    assert len(whole[0][3]) == 400
    assert whole[1][3] == [None]  # of the first token nothing is told


def test_nothing_left_to_sample_crashes_nothing() -> None:
    llm = build()
    nothing: dict[str, Any] = {"allowed_token_ids": [7], "logit_bias": {7: -math.inf}}
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, max_tokens=2, logprobs=1, **nothing)
        assert len(token_ids(llm, [[5]], params)[0]) in (1, 2)
    assert not llm.llm_engine.has_unfinished_requests()


def test_parameters_go_through_json() -> None:
    params = SamplingParams(logit_bias={3: 1.5}, bad_words=["a"], stop="b", seed=5, min_p=0.1)
    assert SamplingParams(**json.loads(json.dumps(params.to_dict()))) == params
    assert SamplingParams().to_dict() == {}


def test_streams_tell_the_prompt_first_and_each_token_as_it_comes() -> None:
    llm = build(async_scheduling=True)
    params = SamplingParams(n=2, max_tokens=5, ignore_eos=True, logprobs=1, prompt_logprobs=1)
    outputs = list(llm.stream([[5, 6, 7]], params))
    for output in outputs:
        assert output.prompt_logprobs
        assert len(output.prompt_logprobs) == 3
        for completion in output.outputs:
            assert completion.logprobs is not None
            assert [next(iter(place)) for place in completion.logprobs] == completion.token_ids
    assert [len(c.logprobs or ()) for c in outputs[0].outputs] == [1, 1]


def test_without_text_tokens_are_not_decoded() -> None:
    params = SamplingParams(max_tokens=1, logprobs=0, prompt_logprobs=0, detokenize=False)
    (output,) = build().generate([[5, 6]], params, use_tqdm=False)
    assert output.prompt_logprobs
    assert output.outputs[0].logprobs
    for place in [output.prompt_logprobs[1], *output.outputs[0].logprobs]:
        assert place
        assert [told.decoded_token for told in place.values()] == [None]


@settings(deadline=None)
@given(st.text(st.characters(exclude_characters="\ufffd", codec="utf-8"), max_size=20))
def test_decoded_tokens_in_a_row_are_the_text(text: str) -> None:
    processor = LogprobsProcessor(tiny_tokenizer())
    for token_id in tiny_tokenizer().encode(text):
        processor.append([token_id, 5], [-1.0, -2.0], 1)
    told = [next(iter(place.values())) for place in processor.positions]
    assert "".join(one.decoded_token or "" for one in told) == text


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_tokens() -> None:
    greedy = all_kinds()[: len(KINDS)]
    here = token_ids(build(), PROMPTS[: len(KINDS)], greedy)
    for knobs in ({"async_scheduling": True}, {"async_scheduling": False}):
        llm = build(device="cuda", num_gpu_blocks=200, **knobs)
        assert token_ids(llm, PROMPTS[: len(KINDS)], greedy) == here


# --- beside vLLM's own answers ------------------------------------------------------------


@pytest.fixture(scope="module")
def vllm() -> dict[str, Any]:
    """What vLLM answered, see `tools/record_vllm_sampling.py`."""
    return json.loads(gzip.decompress((HERE / "data" / "vllm-sampling.json.gz").read_bytes()))


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """The script for vLLM with its imports changed, and what came out."""
    source = (HERE / "offline_script.py").read_text().replace("from vllm", "from minivllm")
    names: dict[str, Any] = {"__name__": "offline_script"}
    exec(compile(source, "offline_script.py", "exec"), names)
    names["answers"] = names["main"](DEFAULT_MODEL)
    return names


def check_answer(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name in ("token_ids", "finish_reason", "stop_reason"):
        assert ours[name] == theirs[name]
    # Of a last token that ends inside a character vLLM shows nothing, ours the space before it.
    assert ours["text"] in (theirs["text"], theirs["text"] + " ")
    for name in ("logprobs", "prompt_logprobs"):
        assert (ours[name] is None) == (theirs[name] is None)
        assert len(ours[name] or ()) == len(theirs[name] or ())
        for here, there in zip(ours[name] or (), theirs[name] or ()):
            assert (here is None) == (there is None)
            for (*one, one_rank, one_text), (*other, rank, text) in zip(here or (), there or ()):
                assert (one[0], one_rank, one_text) == (other[0], rank, text)
                assert one[1] == pytest.approx(other[1], abs=1e-4)
    if theirs["cumulative_logprob"] is None:
        assert ours["cumulative_logprob"] is None
    else:
        assert ours["cumulative_logprob"] == pytest.approx(theirs["cumulative_logprob"], abs=1e-3)


@pytest.mark.xdist_group("vllms script")
def test_a_script_for_vllm_gets_vllms_answers(script: dict[str, Any], vllm: dict[str, Any]) -> None:
    ours = script["answers"]
    assert len(ours["results"]) == len(vllm["results"]) == len(script["CASES"])
    for mine, recorded in zip(ours["results"], vllm["results"]):
        assert len(mine) == len(recorded) == len(script["PROMPTS"])
        for one, other in zip(mine, recorded):
            check_answer(one, other)
    check_answer(ours["chat"], vllm["chat"])
    assert ours["mixed_token_ids"] == vllm["mixed_token_ids"]
    assert ours["checks"] == vllm["checks"]
    assert all(all(outcomes) for outcomes in vllm["checks"].values())


@pytest.mark.xdist_group("vllms script")
def test_the_recording_has_every_parameter_do_something(
    script: dict[str, Any], vllm: dict[str, Any]
) -> None:
    """Else equal answers would show nothing."""
    plain, cases = vllm["results"][0], script["CASES"]
    for name in (
        "repetition_penalty", "presence_penalty", "frequency_penalty", "bad_words", "stop",
        "allowed_token_ids", "logit_bias", "stop_token_ids",
    ):  # fmt: skip
        rows = [row for row, case in zip(vllm["results"], cases) if name in case]
        pairs = [
            (one["token_ids"], base["token_ids"]) for row in rows for one, base in zip(row, plain)
        ]
        assert any(one[:16] != base for one, base in pairs), name


def test_every_parameter_of_vllm_is_taken_refused_or_without_effect(vllm: dict[str, Any]) -> None:
    taken = set(SamplingParams.__dataclass_fields__)
    assert set(vllm["keywords"]) <= taken | set(REFUSED) | WITHOUT_EFFECT
    assert taken <= set(vllm["keywords"])
    for name, (nothing, instead) in REFUSED.items():
        assert SamplingParams(**{name: nothing}) == SamplingParams()
        with pytest.raises(ValueError, match=f"{name} is not supported: {instead[:9]}"):
            SamplingParams(**{name: "something"})
