"""Speculative decoding in the engine: other steps, the same tokens, and the same distribution."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import GREEDY, build, smollm2, token_ids

from minivllm import LLM, SamplingParams
from minivllm.core import AsyncScheduler
from minivllm.models.loader import load_model
from minivllm.sampler import Sampler, SamplerOutput
from minivllm.spec_decode import NgramProposer, SpeculativeConfig, TokenAhead, accepted
from minivllm.spec_decode.config import SpeculativeConfig as Config

NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1,
         "prompt_lookup_max": 3}  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load_model("tiny-random")


def draft(tiny: Any, num_tokens: int = 3) -> dict[str, Any]:
    """The model drafts for itself: all is accepted, if keys and values lie where they should."""
    return {"model": tiny, "num_speculative_tokens": num_tokens}


def prompts(number: int = 10, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    few = [rng.randrange(256) for _ in range(6)]
    return [
        {"prompt_token_ids": [rng.choice(few) for _ in range(rng.choice([1, 9, 40, 90]))]}
        for _ in range(number)
    ]


MODES: dict[str, dict[str, Any]] = {
    "plain": {"enable_prefix_caching": False},
    "chunks": {"max_num_batched_tokens": 24, "long_prefill_token_threshold": 16},
    "prefix caching": {"max_num_seqs": 4},
    "preemption": {"num_gpu_blocks": 20, "max_model_len": 160},
    "swap": {"num_gpu_blocks": 20, "max_model_len": 160, "preemption_mode": "swap",
             "num_cpu_blocks": 64},
    "priority": {"num_gpu_blocks": 20, "max_model_len": 160, "policy": "priority"},
    "batch-invariant": {"batch_invariant": True},
    "eager": {"enforce_eager": True},
    "bfloat16": {"dtype": "bfloat16"},
    "whole prompts": {"enable_chunked_prefill": False, "max_num_batched_tokens": 512},
    "the book's release": {"vllm_version": "0.22.1"},
    "recorded": {"record": True},
}  # fmt: skip

PARAMS = {
    "greedy": GREEDY,
    "sampled": SamplingParams(temperature=0.9, top_p=0.9, seed=5, max_tokens=24),
    "penalties": SamplingParams(
        temperature=0.7, seed=1, max_tokens=24, repetition_penalty=1.3, frequency_penalty=0.4,
        min_tokens=5,
    ),
    "stops": SamplingParams(temperature=0.0, max_tokens=40, stop_token_ids=list(range(40, 90))),
}  # fmt: skip


@pytest.mark.parametrize("proposer", ["ngram", "draft_model"])
@pytest.mark.parametrize("mode", MODES)
def test_the_tokens_are_the_same_in_every_mode(tiny, mode: str, proposer: str) -> None:
    knobs = MODES[mode]
    how = NGRAM if proposer == "ngram" else draft(tiny)
    plain, speculating = build(tiny, **knobs), build(tiny, **knobs, speculative_config=how)
    priority = [i % 3 for i in range(10)] if "policy" in knobs else None
    for params in PARAMS.values():
        expected = token_ids(plain, prompts(), params, priority=priority)
        assert token_ids(speculating, prompts(), params, priority=priority) == expected
    stats = speculating.llm_engine.scheduler.stats
    assert stats.num_accepted_tokens > 0
    if "num_gpu_blocks" in knobs:
        assert stats.num_preemptions > 0
    else:
        assert stats.num_nonempty_steps < plain.llm_engine.scheduler.stats.num_nonempty_steps
    assert not speculating.llm_engine.has_unfinished_requests()


@pytest.mark.parametrize("proposer", ["ngram", "draft_model"])
@pytest.mark.parametrize(
    "mode", ["plain", "chunks", "preemption", "swap", "priority", "the book's release"]
)
def test_the_tokens_are_the_same_if_steps_are_planned_ahead(tiny, mode: str, proposer: str) -> None:
    knobs = MODES[mode]
    how = NGRAM if proposer == "ngram" else draft(tiny)
    plain = build(tiny, **knobs)
    ahead = build(tiny, **knobs, speculative_config=how, async_scheduling=True)
    priority = [i % 3 for i in range(10)] if "policy" in knobs else None
    for params in (PARAMS["greedy"], PARAMS["penalties"], PARAMS["stops"]):
        expected = token_ids(plain, prompts(), params, priority=priority)
        assert token_ids(ahead, prompts(), params, priority=priority) == expected
    scheduler = ahead.llm_engine.scheduler
    assert isinstance(scheduler, AsyncScheduler)
    assert scheduler.stats.num_accepted_tokens > 0
    assert (scheduler.stats.num_preemptions > 0) == ("num_gpu_blocks" in knobs)
    assert not scheduler._in_flight
    pool = scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == scheduler.config.num_gpu_blocks


@pytest.mark.parametrize("version", ["0.23.0", "0.33.0"])
@pytest.mark.parametrize("mode", ["plain", "chunks", "prefix caching"])
def test_a_model_that_drafts_for_itself_is_always_right(tiny, mode: str, version: str) -> None:
    """Else its keys and values are not where they should be: after chunks, hits, other drafts.
    (0.22.1 gives a newcomer no slots for the first proposal.)"""
    knobs = {"max_num_seqs": 10, **MODES[mode], "vllm_version": version}
    llm = build(tiny, **knobs, speculative_config=draft(tiny))
    token_ids(llm, prompts(), SamplingParams(temperature=0, max_tokens=33, ignore_eos=True))
    stats = llm.llm_engine.scheduler.stats
    padding = 3 * 10  # tokens that only fill a batch up, at most once for each request
    assert stats.num_accepted_tokens >= stats.num_draft_tokens - padding > 0


def test_logprobs_are_the_same_and_as_many_as_tokens(tiny) -> None:
    params = SamplingParams(temperature=0, max_tokens=20, logprobs=2, prompt_logprobs=1)
    (expected,) = build(tiny).generate(prompts(1, 4), params, use_tqdm=False)
    (found,) = build(tiny, speculative_config=NGRAM).generate(prompts(1, 4), params, use_tqdm=False)
    assert len(found.outputs[0].logprobs) == len(found.outputs[0].token_ids) == 20
    assert found.outputs[0].logprobs == expected.outputs[0].logprobs
    assert found.prompt_logprobs == expected.prompt_logprobs


def test_a_stop_string_ends_at_the_same_token() -> None:
    """Wherever it ends: in the middle of what was accepted too."""
    prompt = "Again and again: one two three. one two three. one two three. one two"
    plain, speculating = build(smollm2()), build(smollm2(), speculative_config=NGRAM)
    whole = SamplingParams(temperature=0, max_tokens=24)
    (output,) = plain.generate([prompt], whole, use_tqdm=False)
    text = output.outputs[0].text
    for end in range(8, len(text), 20):
        params = SamplingParams(temperature=0, max_tokens=24, stop=[text[end - 4 : end]])
        (a,) = plain.generate([prompt], params, use_tqdm=False)
        (b,) = speculating.generate([prompt], params, use_tqdm=False)
        assert a.outputs[0].finish_reason == "stop"
        assert b.outputs[0] == a.outputs[0]
    assert speculating.llm_engine.scheduler.stats.num_accepted_tokens > 0


def test_the_number_of_proposed_tokens_falls_with_the_load(tiny) -> None:
    ranges = [(1, 2, 4), (4, 4, 1), (8, 8, 0)]
    llm = build(
        tiny, record=True,
        speculative_config={**draft(tiny, 4), "num_speculative_tokens_per_batch_size": ranges},
    )  # fmt: skip
    for number, most in ((1, 4), (3, 4), (4, 1), (6, 1), (8, 0)):
        first = len(llm.llm_engine.scheduler.history)
        token_ids(
            llm, prompts(number), SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
        )
        steps = llm.llm_engine.scheduler.history.steps[first:]
        drafts = [r["num_draft_tokens"] for s in steps for r in s["scheduled"] if
                  r["kind"] == "running" and len(s["scheduled"]) == number]  # fmt: skip
        assert max(drafts) == most


@pytest.mark.parametrize("proposer", ["ngram", "draft_model"])
@pytest.mark.parametrize("mode", ["plain", "chunks", "preemption", "priority"])
def test_it_falls_when_steps_are_planned_ahead_too(
    tiny, mode: str, proposer: str, monkeypatch
) -> None:
    """A plan keeps as many places as the size of the step before it gives; the same tokens."""
    knobs = MODES[mode]
    rows = [(1, 2, 4), (3, 5, 2), (7, 9, 0), (10, 128, 1)]
    sizes = {1: 4, 2: 4, 3: 2, 4: 2, 5: 2, 6: 2, 7: 0, 8: 0, 9: 0, 10: 1}
    how = NGRAM if proposer == "ngram" else draft(tiny, 4)
    how = {**how, "num_speculative_tokens_per_batch_size": rows}
    plain = build(tiny, **knobs)
    ahead = build(tiny, **knobs, speculative_config=how, async_scheduling=True)
    scheduler = ahead.llm_engine.scheduler
    assert isinstance(scheduler, AsyncScheduler)
    schedule, plans = scheduler.schedule, []

    def note() -> Any:
        plan = schedule()
        kept = {id_: len(ids) for id_, ids in plan.scheduled_spec_decode_tokens.items()}
        plans.append((list(plan.num_scheduled_tokens), kept))
        return plan

    monkeypatch.setattr(scheduler, "schedule", note)
    priority = [i % 3 for i in range(10)] if "policy" in knobs else None
    most = Counter[int]()
    for params in (PARAMS["greedy"], PARAMS["penalties"]):
        for number in (10, 4, 2):
            given = prompts(number)
            expected = token_ids(plain, given, params, priority=priority and priority[:number])
            found = token_ids(ahead, given, params, priority=priority and priority[:number])
            assert found == expected
    for (before, _), (_, kept) in pairwise(plans):
        for id_ in kept.keys() & set(before):
            assert kept[id_] <= sizes[len(before)]
            most[len(before)] = max(most[len(before)], kept[id_])
    assert (most[2], most[4]) == (4, 2)
    if proposer == "draft_model":  # which is right, unlike a look-up in so few random tokens
        assert scheduler.stats.num_accepted_tokens > 0


def test_a_step_cut_short_leaves_the_draft_model_no_request(tiny, monkeypatch) -> None:
    """The plan that is never carried out was the one that told of who had finished."""
    engine = build(tiny, max_num_seqs=1, speculative_config=draft(tiny)).llm_engine
    params = SamplingParams(temperature=0, max_tokens=4)
    for round_ in range(3):
        engine.add_request(f"ends {round_}", prompts(1)[0], params)
        while engine.has_unfinished_requests():
            (output,) = engine.step() or [None]
        assert len(output.outputs[0].token_ids) == 4
        engine.add_request(f"cut {round_}", prompts(1)[0], params)
        with monkeypatch.context() as patch:
            patch.setattr(engine.runner, "execute", lambda plan: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                engine.step()
        engine.abandon_step()


# --- the distribution ---------------------------------------------------------------------------


def chi_square(counts: Counter[int], probs: list[float]) -> float:
    """Pearson's statistic, over the number at which one in a million fair samples lies (Wilson and
    Hilferty's approximation): above 1, the sampler is biased."""
    total, df = sum(counts.values()), len(probs) - 1
    statistic = sum((counts[i] - total * p) ** 2 / (total * p) for i, p in enumerate(probs))
    return statistic / (df * (1 - 2 / (9 * df) + 4.75 * math.sqrt(2 / (9 * df))) ** 3)


PROBS = [0.4, 0.25, 0.15, 0.1, 0.06, 0.04]


def second_tokens(rule: Any, number: int = 6000) -> Counter[int]:
    """What stands at the second place, where token 1 is always proposed for the first one and
    token 0 for the second; the model says `PROBS` wherever it is asked."""
    from minivllm.core import Request

    sampler, logits = Sampler(0), torch.tensor(PROBS).log().repeat(3, 1)
    found: Counter[int] = Counter()
    for seed in range(number):
        tokens: list[int] = []
        request = Request("r", [0], SamplingParams(temperature=1.0, seed=seed))
        while len(tokens) < 2:
            places = [TokenAhead(request, [1, 0][:k]) for k in range(3)]
            drawn = sampler.sample_on_device(places, logits.clone()).token_ids.tolist()
            got = rule([1, 0], drawn)
            for token in got:
                request.append_output_token_id(token)
            tokens += got
        found[tokens[1]] += 1
    return found


def test_the_distribution_is_the_models() -> None:
    assert chi_square(second_tokens(accepted), PROBS) < 1


def lenient(drafts: list[int], sampled: list[int]) -> list[int]:
    """A biased rule: a proposal that is likely enough is taken whatever the model drew."""
    tokens = []
    for token, proposed in zip(sampled, [*drafts, None], strict=True):
        tokens.append(token if proposed is None or PROBS[proposed] < 0.3 else proposed)
        if tokens[-1] != proposed:
            break
    return tokens


def twice(drafts: list[int], sampled: list[int]) -> list[int]:
    """Another: after a rejection, the draw for the next place is used."""
    tokens = accepted(drafts, sampled)
    return tokens if len(tokens) == len(sampled) else [*tokens[:-1], sampled[len(tokens)]]


@pytest.mark.parametrize("biased", [lenient, twice])
def test_the_test_of_the_distribution_catches_a_biased_rule(biased: Any) -> None:
    assert chi_square(second_tokens(biased), PROBS) > 1


@given(st.lists(st.integers(0, 3), max_size=5), st.data())
def test_accepted_is_the_common_beginning_and_one(drafts, data) -> None:
    n = len(drafts) + 1
    sampled = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    tokens = accepted(drafts, sampled)
    assert tokens == sampled[: len(tokens)]
    assert tokens[:-1] == drafts[: len(tokens) - 1]
    assert len(tokens) == n or tokens[-1] != drafts[len(tokens) - 1]


def test_places_come_in_any_order(tiny) -> None:
    from minivllm.core import Request

    request = Request("r", [0])
    places = [TokenAhead(request, [7, 8][:k]) for k in (2, 0, 1)]
    sampled = SamplerOutput(places, torch.tensor([9, 7, 8])).read()
    assert dict(sampled) == {"r": [7, 8, 9]}


# --- proposers ----------------------------------------------------------------------------------


def ngram_as_specified(ids: list[int], shortest: int, longest: int, most: int) -> list[int]:
    """Look for the longest run of last tokens, the earliest place first."""
    for n in range(min(longest, len(ids) - 1), shortest - 1, -1):
        for start in range(len(ids) - n):
            if ids[start : start + n] == ids[-n:]:
                return ids[start + n : start + n + most]
    return []


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=24),
    st.integers(1, 3), st.integers(0, 3), st.integers(1, 5),
)  # fmt: skip
def test_the_look_up_finds_the_longest_and_earliest(ids, shortest, more, most) -> None:
    proposer = NgramProposer(shortest, shortest + more)
    assert proposer.look_up(ids, most) == ngram_as_specified(ids, shortest, shortest + more, most)


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"num_speculative_tokens": 0}, "num_speculative_tokens must be at least 1, got 0"),
        ({"method": "ngram"}, "needs num_speculative_tokens"),
        ({"num_speculative_tokens": 2, "method": "eagle"}, "method must be .*'eagle'"),
        ({"num_speculative_tokens": 2, "method": "draft_model"}, "needs a model"),
        ({"num_speculative_token": 2}, "did you mean 'num_speculative_tokens'"),
        ({"num_speculative_tokens": 2, "prompt_lookup_min": 4, "prompt_lookup_max": 2},
         "prompt_lookup_min=4 must be at most prompt_lookup_max=2"),
        ({"num_speculative_tokens": 2, "prompt_lookup_max": 0}, "prompt_lookup_max must be at le"),
        ({"num_speculative_tokens": 2, "num_speculative_tokens_per_batch_size": [(1, 4, -1)]},
         r"per_batch_size has \(1, 4, -1\); .* tokens of at least 0"),
        ({"num_speculative_tokens": 2, "num_speculative_tokens_per_batch_size": [(2, 4, 1)]},
         "a step of 1 request needs a row"),
        ({"num_speculative_tokens": 2, "num_speculative_tokens_per_batch_size": []},
         "must be a list of rows"),
        ({"num_speculative_tokens": 2,
          "num_speculative_tokens_per_batch_size": [(1, 4, 2), (4, 8, 1)]},
         "which overlap"),
        ("ngram", "must be a mapping"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(settings_: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SpeculativeConfig.of(settings_)


def test_bad_engines_are_named(tiny) -> None:
    with pytest.raises(ValueError, match=r"no room for a token and num_speculative_tokens=100"):
        LLM(tiny, device="cpu", max_num_batched_tokens=64,
            speculative_config={"num_speculative_tokens": 100})  # fmt: skip
    other = dataclasses.replace(
        tiny, config=dataclasses.replace(tiny.config, vocab_size=tiny.config.vocab_size - 1)
    )
    with pytest.raises(ValueError, match=r"vocabulary of \d+ tokens, the model one of \d+"):
        LLM(tiny, device="cpu", speculative_config={"model": other, "num_speculative_tokens": 1})


def test_a_hundred_proposed_tokens_and_a_look_up_longer_than_the_prompt(tiny) -> None:
    how = {"num_speculative_tokens": 100, "prompt_lookup_min": 1, "prompt_lookup_max": 50}
    llm = build(tiny, speculative_config=how)
    assert token_ids(llm, prompts(4), GREEDY) == token_ids(build(tiny), prompts(4), GREEDY)


def test_vllms_words_mean_the_same() -> None:
    config = Config.of({"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_max": 4})
    assert (config.prompt_lookup_min, config.prompt_lookup_max) == (4, 4)
    assert Config.of({"num_speculative_tokens": 5}).prompt_lookup_max == 5
