"""Sampling: the right distribution, and nobody else's business."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from serving import build, token_ids

from minivllm import SamplingParams
from minivllm.core import Request
from minivllm.noise import uniform_noise
from minivllm.sampler import Sampler, keep_likeliest


def request(request_id: str = "r", outputs: int = 0, **params: Any) -> Request:
    made = Request(request_id, [1], SamplingParams(**params), eos_token_id=[0, 3])
    for _ in range(outputs):
        made.append_output_token_id(5)
    made.num_computed_tokens = made.num_tokens
    return made


def sample(logits: torch.Tensor, *requests: Request) -> list[int]:
    return list(Sampler(0).sample(requests, logits.clone()).values())


def test_noise_is_uniform_and_its_own_for_each_seed_and_counter() -> None:
    noise = [uniform_noise(seed, counter) for seed in range(100) for counter in range(100)]
    assert len(set(noise)) == len(noise)
    assert 0 <= min(noise) < 0.001
    assert 0.999 < max(noise) < 1
    assert statistics.mean(noise) == pytest.approx(0.5, abs=0.01)
    assert statistics.pstdev(noise) == pytest.approx(12**-0.5, abs=0.01)
    assert uniform_noise(-1, 0) == uniform_noise((1 << 64) - 1, 0)


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, -1.0, 4.0]])
    rows = [request("a", temperature=0.0), request("b", temperature=0.0)]
    assert sample(logits, *rows) == [1, 0]
    assert sample(torch.empty(0, 3)) == []


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, [0.1, 0.2, 0.3, 0.4]),
        ({"top_k": 2}, [0, 0, 3 / 7, 4 / 7]),
        ({"top_p": 0.75}, [0, 2 / 9, 3 / 9, 4 / 9]),
        ({"top_k": 3, "top_p": 0.7}, [0, 0, 3 / 7, 4 / 7]),
        ({"top_k": -1, "top_p": 1.0}, [0.1, 0.2, 0.3, 0.4]),
        ({"temperature": 0.5}, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        ({"temperature": 1e-6}, [0, 0, 0, 1]),
        ({"top_p": 1e-9}, [0, 0, 0, 1]),
        ({"min_p": 0.6}, [0, 0, 3 / 7, 4 / 7]),
        ({"min_p": 0.4, "top_p": 0.75}, [0, 0, 3 / 7, 4 / 7]),
        ({"min_p": 0.6, "temperature": 2.0}, [0, 0.2748, 0.3366, 0.3886]),  # roots of 2, 3, 4
    ],
    ids=str,
)
def test_frequencies_are_the_probabilities(params: dict[str, Any], expected: list[float]) -> None:
    n = 4000
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(n, 4)
    rows = [request(str(i), seed=i, **params) for i in range(n)]
    drawn = torch.tensor(sample(logits, *rows))
    frequencies = drawn.bincount(minlength=4) / n
    wanted = torch.tensor(expected, dtype=torch.float32)
    torch.testing.assert_close(frequencies, wanted, atol=0.03, rtol=0)
    assert (frequencies[wanted == 0] == 0).all()


def test_top_p_finds_the_nucleus_in_and_beyond_the_first_candidates() -> None:
    for flatness in (0.0, 1e-3, 0.05):  # 0: uniform, and 1024 candidates are not enough
        probs = (torch.arange(5000.0) * -flatness).softmax(0)
        order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
        kept = keep_likeliest(probs[order], 0, 0.9)
        assert 0.9 - 1e-5 <= kept.sum() < 0.9 + 2 * probs[0]
        assert torch.equal(kept[kept > 0], probs[order][kept > 0])
    kept = keep_likeliest(torch.full((5000,), 1 / 5000), 3000, 0.5)
    assert 1490 <= (kept > 0).sum() <= 1510


def test_min_tokens_forbids_every_way_to_stop() -> None:
    logits = torch.tensor([[9.0, 1.0, 7.0, 8.0, 2.0]])
    assert sample(logits, request(temperature=0.0)) == [0]
    params: dict[str, Any] = {"temperature": 0.0, "min_tokens": 2, "stop_token_ids": [2]}
    assert sample(logits, request(outputs=0, **params)) == [4]
    assert sample(logits, request(outputs=1, **params)) == [4]
    assert sample(logits, request(outputs=2, **params)) == [0]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits = torch.randn(24, 3000, generator=torch.Generator().manual_seed(0)) * 3
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0}, {}, {"top_k": 50}, {"top_p": 0.8},
        {"temperature": 2.0, "top_p": 0.99}, {"top_k": 2000, "top_p": 0.9}, {"min_p": 0.1},
        {"repetition_penalty": 1.5, "frequency_penalty": 0.3}, {"allowed_token_ids": [5, 6, 7, 8]},
        {"temperature": 0.0, "logit_bias": {9: 20.0}}, {"min_tokens": 16, "presence_penalty": 2.0},
        {"temperature": 0.0, "repetition_penalty": 0.5},
    ]  # fmt: skip
    rows = [request(str(i), outputs=i, seed=i, **kinds[i % 12]) for i in range(24)]
    together = sample(logits, *rows)
    assert together == [sample(logits[i : i + 1], row)[0] for i, row in enumerate(rows)]
    assert together[::-1] == sample(logits.flip(0), *rows[::-1])


def test_extreme_logits() -> None:
    logits = torch.full((1, 5), float("-inf"))
    logits[0, 3] = 1e30
    assert sample(logits, request(seed=1)) == [3]
    assert sample(logits, request(seed=1, top_p=0.5, temperature=1e-8)) == [3]
    huge = torch.tensor([[3e38, -3e38, 3e38]])
    assert sample(huge, request(seed=2)) in ([0], [2])


# --- in the engine ------------------------------------------------------------------------

PROMPTS = [[i, 300 + i, 7] * (1 + i % 5) for i in range(3, 15)]


def seeded(**kwargs: Any) -> list[SamplingParams]:
    return [
        SamplingParams(seed=i, max_tokens=12, ignore_eos=True, temperature=0.8, **kwargs)
        for i in range(len(PROMPTS))
    ]


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_seeded_output_does_not_depend_on_the_batch_or_on_preemption(mode: str) -> None:
    llm = build(batch_invariant=True, max_num_seqs=1)
    alone = token_ids(llm, PROMPTS, seeded(top_p=0.9))
    assert token_ids(build(batch_invariant=True), PROMPTS, seeded(top_p=0.9)) == alone
    cramped = build(
        batch_invariant=True, block_size=2, num_gpu_blocks=40, max_model_len=64,
        preemption_mode=mode, num_cpu_blocks=100,
    )  # fmt: skip
    assert token_ids(cramped, PROMPTS, seeded(top_p=0.9)) == alone
    assert cramped.llm_engine.scheduler.stats.num_preemptions > 0


def test_without_a_seed_every_request_has_its_own() -> None:
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    first = token_ids(build(), [[3]] * 4, params)
    assert len({tuple(ids) for ids in first}) == 4
    assert token_ids(build(), [[3]] * 4, params) == first  # LLM(seed=0), as vLLM's default
    assert token_ids(build(seed=1), [[3]] * 4, params) != first


def test_n_outputs_have_seeds_that_count_up() -> None:
    (output,) = build().generate(
        [[3, 4]], SamplingParams(n=3, seed=5, max_tokens=6, ignore_eos=True), use_tqdm=False
    )
    assert [completion.index for completion in output.outputs] == [0, 1, 2]
    for index, completion in enumerate(output.outputs):
        params = SamplingParams(seed=5 + index, max_tokens=6, ignore_eos=True)
        assert token_ids(build(), [[3, 4]], params) == [completion.token_ids]
