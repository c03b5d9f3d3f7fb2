"""Token identity: however the scheduler cuts and mixes, the output is transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
from serving import (
    GREEDY,
    build,
    hf_generate,
    hf_model,
    smollm2,
    smollm2_prompts,
    smollm2_reference,
    token_ids,
)

from minivllm.models.loader import DEFAULT_MODEL, find_model


def check(llm: Any, **kwargs: Any) -> None:
    prompts, expected = smollm2_reference()
    got = token_ids(llm, [{"prompt_token_ids": ids} for ids in prompts], **kwargs)
    wrong = [i for i, (a, b) in enumerate(zip(got, expected)) if a != b]
    assert not wrong, [(i, got[i], expected[i]) for i in wrong]
    assert not llm.llm_engine.has_unfinished_requests()


def test_there_are_enough_prompts_of_every_kind() -> None:
    lengths = [len(ids) for ids in smollm2_prompts()]
    assert len(lengths) >= 64
    assert min(lengths) == 1
    assert sum(length >= 300 for length in lengths) >= 5


@pytest.mark.parametrize("index", range(3, 64, 12))
def test_the_reference_is_what_transformers_makes(index: int) -> None:
    prompts, expected = smollm2_reference()
    model = hf_model(find_model(DEFAULT_MODEL))
    assert hf_generate(model, prompts[index]) == expected[index]


def test_one_at_a_time() -> None:
    llm = build(smollm2(), max_num_seqs=1, enable_prefix_caching=False)
    check(llm)
    assert llm.llm_engine.scheduler.stats.avg_batch_size == 1


def test_continuous_batching() -> None:
    llm = build(smollm2(), enable_prefix_caching=False)
    check(llm)
    assert llm.llm_engine.scheduler.stats.avg_batch_size > 16


@pytest.mark.parametrize(("budget", "threshold"), [(24, 0), (160, 0), (512, 40)], ids=str)
def test_chunked_prefill(budget: int, threshold: int) -> None:
    llm = build(
        smollm2(),
        max_num_batched_tokens=budget,
        max_num_seqs=16,
        long_prefill_token_threshold=threshold,
        enable_prefix_caching=False,
    )
    check(llm)


def test_prefix_caching() -> None:
    llm = build(smollm2(), max_num_seqs=8)
    check(llm)
    assert llm.llm_engine.scheduler.stats.prefix_cache_hits > 1000


@pytest.mark.parametrize(
    ("preemption_mode", "policy", "prefix_caching"),
    [
        ("recompute", "fcfs", False),
        ("recompute", "priority", True),
        ("swap", "fcfs", True),
        ("swap", "priority", False),
    ],
)
def test_cramped_cache(preemption_mode: str, policy: str, prefix_caching: bool) -> None:
    llm = build(
        smollm2(),
        policy=policy,
        preemption_mode=preemption_mode,
        num_gpu_blocks=36,
        num_cpu_blocks=64,
        enable_prefix_caching=prefix_caching,
        max_num_batched_tokens=256,
    )
    priorities = [i % 3 for i in range(len(smollm2_prompts()))]
    check(llm, priority=priorities if policy == "priority" else None)
    stats = llm.llm_engine.scheduler.stats
    assert stats.num_preemptions > 0
    assert (stats.num_swapped_in_blocks > 0) == (preemption_mode == "swap")


def test_prompts_taken_whole() -> None:
    check(build(smollm2(), enable_chunked_prefill=False, max_num_batched_tokens=512))


def test_reference_is_not_trivial() -> None:
    """The references differ from one another, and some end before the limit."""
    _, expected = smollm2_reference()
    assert len({tuple(ids) for ids in expected}) > 40
    model = hf_model(find_model(DEFAULT_MODEL))
    chat = smollm2().tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )
    (output,) = build(smollm2()).generate([chat], GREEDY, use_tqdm=False)
    assert output.outputs[0].token_ids == hf_generate(model, chat)
    assert output.outputs[0].text == "The capital of France is Paris."
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", None)
