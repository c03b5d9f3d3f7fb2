"""The model against transformers, the fast attention against the obvious one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import build, hf_generate, hf_model, token_ids

from minivllm.core import SamplingParams, SchedulerConfig
from minivllm.models import llama
from minivllm.models.attention.batch_invariant import QUERY_TILE, BatchInvariantAttention
from minivllm.models.attention.cpu import CPUPagedAttention
from minivllm.models.attention.metadata import AttentionMetadata
from minivllm.models.attention.reference import reference_paged_attention
from minivllm.models.attention.sdpa import CHUNK_ROWS, PagedAttention
from minivllm.models.config import ModelConfig
from minivllm.models.cpu_kernels import load_kernels
from minivllm.models.llama import LlamaModel, fuse
from minivllm.models.loader import DEFAULT_MODEL, find_model, load_model, tiny_random_model
from minivllm.models.ops import write_kv_cache
from minivllm.runner import ModelRunner
from minivllm.tokenizer_files import tiny_tokenizer

BLOCK_SIZE = 16


def random_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, AttentionMetadata]:
    """Queries [T, 6, 16], a cache [2, 64, 16, 2, 16], and a mix of decodes and chunks."""
    rng = random.Random(seed)
    contexts = sorted((rng.randrange(1, 200) for _ in range(rng.randrange(12))), reverse=True)
    query_lens = [1] * len(contexts)
    chunks = []
    for longest in rng.choices([40, 40, CHUNK_ROWS + 60], k=rng.randrange(1, 4)):
        query_len = rng.randrange(2, longest)
        chunks.append((query_len + rng.choice([0, rng.randrange(300)]), query_len))
    for context, query_len in sorted(chunks) if seed % 2 else chunks:
        contexts.append(context)
        query_lens.append(query_len)
    tables = [rng.sample(range(1, 64), -(-context // BLOCK_SIZE)) for context in contexts]
    generator = torch.Generator().manual_seed(seed)
    cache = torch.randn(2, 64, BLOCK_SIZE, 2, 16, generator=generator)
    query = torch.randn(sum(query_lens), 6, 16, generator=generator)
    slots = torch.zeros(len(query), dtype=torch.long)
    return query, cache, AttentionMetadata.of(slots, query_lens, contexts, tables)


needs_kernels = pytest.mark.skipif(load_kernels() is None, reason="no C kernels here")


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize(
    "attention", [PagedAttention, pytest.param(CPUPagedAttention, marks=needs_kernels)]
)
def test_fast_attention_is_the_reference(seed: int, attention: Any) -> None:
    query, cache, metadata = random_batch(seed)
    expected = reference_paged_attention(query, cache, metadata, 0.25)
    fast = attention(BLOCK_SIZE, 2, torch.float32, "cpu")
    fast.prepare(metadata)
    # As a model has them: with the keys and values of the token beside its queries.
    apart = torch.cat((query, torch.zeros(len(query), 4, 16)), dim=1)[:, :6]
    torch.testing.assert_close(fast(apart, cache, 0.25), expected)
    # Masks and memory are kept: the next step must not see anything of this one.
    query, cache, metadata = random_batch(seed + 100)
    fast.prepare(metadata)
    expected = reference_paged_attention(query, cache, metadata, 0.25)
    torch.testing.assert_close(fast(query, cache, 0.25), expected)


@pytest.mark.parametrize("seed", range(12))
def test_batch_invariant_attention_is_the_reference(seed: int) -> None:
    query, cache, metadata = random_batch(seed)
    expected = reference_paged_attention(query, cache, metadata, 0.25)
    padding = -len(query) % QUERY_TILE
    padded = torch.cat((query, torch.zeros(padding, 6, 16)))
    metadata.slot_mapping = torch.zeros(len(padded), dtype=torch.long)
    invariant = BatchInvariantAttention(BLOCK_SIZE, 2, torch.float32, "cpu")
    for _ in range(2):  # a step prepared twice is that step: nothing is left of the first time
        invariant.prepare(metadata)
    got = invariant(padded, cache, 0.25)[: len(query)]
    torch.testing.assert_close(got, expected)


def test_write_kv_cache_fills_the_slots() -> None:
    cache = torch.zeros(2, 4, BLOCK_SIZE, 2, 16)
    key, value = torch.randn(3, 2, 16), torch.randn(3, 2, 16)
    write_kv_cache(key, value, cache, torch.tensor([17, 63, 16]))
    assert torch.equal(cache[0, 1, 1], key[0])
    assert torch.equal(cache[1, 3, 15], value[1])
    assert torch.equal(cache[0, 1, 0], key[2])
    assert cache.count_nonzero() == 3 * 2 * 2 * 16


def test_fuse_makes_a_view_of_neighbours_and_a_copy_of_others() -> None:
    whole = torch.arange(24.0).view(6, 4)
    parts = [whole[:1], whole[1:4], whole[4:]]
    assert torch.equal(fuse(parts), whole)
    assert fuse(parts).data_ptr() == whole.data_ptr()
    mixed = [whole[4:], whole[:1]]
    assert torch.equal(fuse(mixed), torch.cat(mixed))


# --- against transformers -----------------------------------------------------------------

SHAPE = {
    "vocab_size": 960, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
}  # fmt: skip
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}

MODELS = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3 rope": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "linear rope": ("Llama", {"rope_parameters": LINEAR_ROPE}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3 tied": ("Qwen3", {"tie_word_embeddings": True, "attention_bias": True}),
}


def save_hf_model(directory: Path, family: str, changes: dict[str, Any], **save: Any) -> Path:
    """A small model with random weights, norms and biases, as transformers writes it."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter += torch.randn_like(parameter) * 0.3
    model.save_pretrained(directory, **save)
    tiny_tokenizer().save(directory)
    return directory


@pytest.mark.parametrize("name", MODELS)
def test_model_says_what_transformers_says(name: str, tmp_path: Path) -> None:
    directory = save_hf_model(tmp_path, *MODELS[name])
    rng = random.Random(name)
    prompts = [[rng.randrange(960) for _ in range(n)] for n in (1, 5, 40, 130, 300)]
    expected = [hf_generate(hf_model(directory), prompt) for prompt in prompts]
    loaded = load_model(directory)
    assert token_ids(build(loaded, max_num_batched_tokens=64), prompts) == expected
    assert token_ids(build(loaded, batch_invariant=True), prompts) == expected


def test_old_spelling_of_rope_parameters(tmp_path: Path) -> None:
    """transformers 4 wrote `rope_theta` and `rope_scaling`."""
    new = {"architectures": ["LlamaForCausalLM"], **SHAPE, "rope_parameters": LLAMA3_ROPE}
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    old |= {"rope_theta": 10000.0, "rope_scaling": scaling}
    assert ModelConfig.from_hf(old) == ModelConfig.from_hf(new)


def test_bfloat16_is_close_to_float32() -> None:
    prompts = [[i, 2 * i, 3 * i] for i in range(3, 11)]
    exact = token_ids(build(), prompts)
    for backend in ("auto", "sdpa"):
        rounded = token_ids(build(dtype="bfloat16", attention_backend=backend), prompts)
        first_tokens = [a[0] == b[0] for a, b in zip(exact, rounded)]
        assert sum(first_tokens) >= 6
    by_pytorch = build(dtype=torch.bfloat16, attention_backend="sdpa")
    assert by_pytorch.llm_engine.runner.kv_caches.dtype is torch.bfloat16


@needs_kernels
def test_bfloat16_of_the_kernels_is_nearer_to_float32_than_transformers() -> None:
    """Matrices are rounded, sums are not."""
    from serving import smollm2
    from transformers import AutoModelForCausalLM

    ids = list(range(500, 560))
    directory = find_model(DEFAULT_MODEL)
    with torch.inference_mode():
        exact, theirs = (
            AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)(torch.tensor([ids]))
            .logits[0, -1]
            .float()
            for dtype in (torch.float32, torch.bfloat16)
        )
    recorder = record(smollm2(), [ids], batch_invariant=False, dtype="bfloat16")
    ours = recorder.logits[tuple(ids)].float()
    assert (ours - exact).norm() < (theirs - exact).norm()
    model = recorder.engine.runner.model
    assert (model.dtype, model.weight_dtype) == (torch.float32, torch.bfloat16)
    shape = 2 * model.config.intermediate_size, model.config.hidden_size
    assert model.layers[0].gate_up.nbytes == 2 * shape[0] * shape[1]


@needs_kernels
def test_bfloat16_of_the_kernels_is_batch_invariant() -> None:
    check_bitwise(
        "tiny-random", shared_prompts(960), VARIANTS, batch_invariant=False, dtype="bfloat16"
    )


def test_logits_of_sampled_rows_only() -> None:
    loaded = tiny_random_model()
    model = LlamaModel(
        loaded.config, loaded.weights, dtype=torch.float32, device="cpu", max_model_len=64,
        block_size=16,
    )  # fmt: skip
    runner = ModelRunner(model, SchedulerConfig(num_gpu_blocks=8, max_model_len=64))
    assert runner.kv_caches.shape == (2, 2, 9, 16, 2, 16)
    assert runner.cpu_kv_caches.shape[0] == 0


# --- batch invariance ---------------------------------------------------------------------


class Recorder:
    """Keeps each request's logits as they come out of the runner."""

    def __init__(self, llm: Any) -> None:
        self.engine = llm.llm_engine
        self.logits: dict[tuple[int, ...], torch.Tensor] = {}
        execute = self.engine.runner.execute

        def recording(plan: Any) -> Any:
            requests, logits = execute(plan)
            for request, row in zip(requests, logits):
                self.logits[tuple(request.all_token_ids)] = row.clone()
            return requests, logits

        self.engine.runner.execute = recording


def record(model: Any, prompts: list[list[int]], alone: bool = False, **kwargs: Any) -> Recorder:
    llm = build(model, **{"batch_invariant": True, **kwargs})
    recorder = Recorder(llm)
    for group in [[prompt] for prompt in prompts] if alone else [prompts]:
        token_ids(llm, group)
    return recorder


def check_bitwise(
    model: Any, prompts: list[list[int]], variants: dict[str, dict[str, Any]], **mode: Any
) -> None:
    expected = record(model, prompts, alone=True, enable_prefix_caching=False, **mode).logits
    assert len(expected) > len(prompts)
    for name, kwargs in variants.items():
        recorder = record(model, prompts, **kwargs, **mode)
        got = recorder.logits
        assert got.keys() == expected.keys(), name
        wrong = [len(key) for key in expected if not torch.equal(got[key], expected[key])]
        assert not wrong, (name, wrong)
        stats = recorder.engine.scheduler.stats
        assert (stats.num_preemptions > 0) == ("num_gpu_blocks" in kwargs), name
        assert (stats.num_swapped_in_blocks > 0) == ("num_cpu_blocks" in kwargs), name


VARIANTS: dict[str, dict[str, Any]] = {
    "together": {"enable_prefix_caching": False},
    "chunks of 7": {"max_num_batched_tokens": 7, "enable_prefix_caching": False},
    "chunks of 50": {"max_num_batched_tokens": 50, "max_num_seqs": 3},
    "prefix caching": {"max_num_seqs": 2},
    "preempted": {"num_gpu_blocks": 12, "max_model_len": 192, "enable_prefix_caching": False},
    "preempted, cached": {"num_gpu_blocks": 12, "max_model_len": 192},
    "swapped": {
        "num_gpu_blocks": 12, "max_model_len": 192, "preemption_mode": "swap", "num_cpu_blocks": 32,
    },
}  # fmt: skip


def shared_prompts(vocab_size: int) -> list[list[int]]:
    """17 prompts, some with a common beginning, all of other lengths."""
    rng = random.Random(0)
    common = [rng.randrange(vocab_size) for _ in range(100)]
    lengths = [1, 2, 9, 15, 16, 17, 31, 33, 47, 64, 65, 80, 90, 96, 99, 100, 100]
    tails = [[rng.randrange(vocab_size) for _ in range(rng.randrange(1, 30))] for _ in lengths]
    return [common[:length] + tail for length, tail in zip(lengths, tails)]


def test_batch_invariance_bit_for_bit() -> None:
    check_bitwise("tiny-random", shared_prompts(960), VARIANTS)


def test_batch_invariance_of_smollm2() -> None:
    from serving import smollm2

    prompts = shared_prompts(40000)[8:13]
    names = ("together", "chunks of 50", "swapped")
    check_bitwise(smollm2(), prompts, {name: VARIANTS[name] for name in names})


@needs_kernels
def test_our_cpu_kernels_are_batch_invariant_without_being_asked() -> None:
    """Each sum has one order, whatever the batch."""
    from serving import smollm2

    check_bitwise("tiny-random", shared_prompts(960), VARIANTS, batch_invariant=False)
    prompts = [list(range(600, 900)), *shared_prompts(40000)[5:14]]
    names = ("together", "chunks of 50", "swapped")
    variants = {name: {**VARIANTS[name], "max_model_len": 512} for name in names}
    variants["swapped"] |= {"num_gpu_blocks": 33, "num_cpu_blocks": 64}
    check_bitwise(smollm2(), prompts, variants, batch_invariant=False)


def test_other_mode_is_not_invariant_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would test nothing."""
    monkeypatch.setattr(llama, "load_kernels", lambda: None)
    prompts = shared_prompts(960)
    rows: list[dict[tuple[int, ...], torch.Tensor]] = []
    for group in ([[prompt] for prompt in prompts], [prompts]):
        llm = build(enable_prefix_caching=False)
        recorder = Recorder(llm)
        for part in group:
            token_ids(llm, part)
        rows.append(recorder.logits)
    alone, together = rows
    assert alone.keys() == together.keys()
    assert any(not torch.equal(alone[key], together[key]) for key in alone)


@pytest.mark.parametrize("backend", ["sdpa", "auto"])
def test_a_step_in_pieces_is_the_step(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More tokens than a CPU takes at once: with the kernels they share scratch memory."""
    prompts = [list(range(3, 3 + length)) for length in (70, 21, 5, 40)]
    found = []
    for rows in (16, 512):
        monkeypatch.setattr(llama, "CPU_ROWS", rows)
        llm = build(tiny_random_model(), attention_backend=backend)
        recorder = Recorder(llm)
        token_ids(llm, prompts)
        found.append(recorder.logits)
    assert found[0].keys() == found[1].keys()
    for key, logits in found[0].items():
        torch.testing.assert_close(logits, found[1][key], atol=1e-4, rtol=1e-4)


def test_logits_are_not_overwritten_by_later_steps() -> None:
    """Scratch memory is reused from step to step; what a caller gets is his."""
    llm = build(tiny_random_model(), max_num_seqs=4)
    engine = llm.llm_engine
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    for index in range(3):
        engine.add_request(str(index), {"prompt_token_ids": list(range(3, 9 + index))}, params)
    kept, copies = [], []
    while engine.has_unfinished_requests():
        plan = engine.scheduler.schedule()
        requests, logits = engine.runner.execute(plan)
        kept.append(logits)
        copies.append(logits.clone())
        token_ids = engine.sampler.sample(requests, logits)
        engine.scheduler.update_from_output(plan, token_ids)
    assert len(kept) == 4
    assert all(torch.equal(one, other) for one, other in zip(kept, copies))


def test_batch_invariance_needs_a_fitting_block_size() -> None:
    with pytest.raises(ValueError, match="block_size that divides 64, got 24"):
        build(batch_invariant=True, block_size=24)


@pytest.mark.parametrize("backend", ["sdpa", "auto"])
def test_the_last_layer_does_without_rows_that_no_one_samples(backend: str) -> None:
    """Steps that mix decodes, prompts and chunks: what is left is what all rows would give."""
    llm = build(
        tiny_random_model(), max_num_batched_tokens=24, max_num_seqs=6, attention_backend=backend
    )
    model = llm.llm_engine.model
    forward, trimmed = model.forward, []

    def compare(token_ids, positions, kv_caches, metadata, sampling=None):
        every = forward(token_ids, positions, kv_caches, metadata)
        if sampling is None:
            return every
        model.attention.prepare(metadata)
        kept = forward(token_ids, positions, kv_caches, metadata, sampling)
        rows = (metadata.query_lens.cumsum() - 1)[sampling]
        torch.testing.assert_close(kept, every[rows])
        trimmed.append((len(every), len(kept)))
        return kept

    model.forward = compare  # type: ignore[method-assign]
    prompts = [{"prompt_token_ids": list(range(3, 3 + n))} for n in (60, 5, 21, 9, 30, 2, 70)]
    token_ids(llm, prompts)
    assert any(kept == 0 for _, kept in trimmed)
    assert any(1 < kept < every for every, kept in trimmed)
