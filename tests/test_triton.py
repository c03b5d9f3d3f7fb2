"""The GPU's paged attention, run on the CPU by Triton's interpreter, against the obvious one."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
import torch

from minivllm import SamplingParams
from minivllm.models.attention.metadata import AttentionMetadata
from minivllm.models.attention.reference import reference_paged_attention

# Before Triton is imported: it decides then. On a machine with a GPU the kernel is compiled.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton", reason="no Triton here: pip install triton (Linux) to run its kernel")

from minivllm.models.attention.triton import TritonPagedAttention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def batch(seed: int, block_size: int, num_heads: int, num_kv_heads: int, head_dim: int):
    """Decodes, whole prompts and chunks that continue, over a cache of garbage and blocks of it."""
    rng = random.Random(seed)
    query_lens = [1] * rng.randrange(6) + [rng.randrange(2, 40) for _ in range(rng.randrange(4))]
    query_lens = query_lens or [1]
    rng.shuffle(query_lens)
    contexts = [length + rng.choice([0, rng.randrange(150)]) for length in query_lens]
    num_blocks = 400
    free = rng.sample(range(1, num_blocks), num_blocks - 1)
    tables = [[free.pop() for _ in range(-(-context // block_size))] for context in contexts]
    generator = torch.Generator().manual_seed(seed)
    cache = torch.randn(2, num_blocks, block_size, num_kv_heads, head_dim, generator=generator)
    query = torch.randn(sum(query_lens), num_heads, head_dim, generator=generator)
    slots = torch.zeros(len(query), dtype=torch.long)
    return query, cache, AttentionMetadata.of(slots, query_lens, contexts, tables)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("block_size", "num_heads", "num_kv_heads", "head_dim"),
    [(16, 9, 3, 64), (16, 4, 4, 16), (8, 8, 1, 32), (5, 6, 2, 24)],
    ids=["smollm2", "no-sharing", "one-kv-head", "odd-sizes"],
)
def test_the_kernel_is_the_reference(seed, block_size, num_heads, num_kv_heads, head_dim):
    query, cache, metadata = batch(seed, block_size, num_heads, num_kv_heads, head_dim)
    scale = head_dim**-0.5
    expected = reference_paged_attention(query, cache, metadata, scale)
    kernel = TritonPagedAttention(block_size, num_kv_heads, torch.float32, DEVICE)
    kernel.multiprocessors = (2, 10, 132)[seed % 3]  # the more, the more a decode is split
    kernel.prepare(metadata)
    got = kernel(query.to(DEVICE), cache.to(DEVICE), scale)
    torch.testing.assert_close(got.cpu(), expected)


def test_keys_of_others_are_not_seen():
    """What lies in any slot beyond a request's own tokens, not a number even, changes nothing."""
    query, cache, metadata = batch(3, 16, 9, 3, 64)
    kernel = TritonPagedAttention(16, 3, torch.float32, DEVICE)
    kernel.prepare(metadata)
    before = kernel(query.to(DEVICE), cache.to(DEVICE), 0.125)
    own = torch.zeros(cache.shape[1] * cache.shape[2], dtype=torch.bool)
    for context, table in zip(metadata.seq_lens, metadata.block_tables, strict=True):
        for position in range(context):
            own[table[position // 16] * 16 + position % 16] = True
    cache.view(2, -1, 3, 64)[:, ~own] = float("nan")
    after = kernel(query.to(DEVICE), cache.to(DEVICE), 0.125)
    assert torch.equal(before, after)


def kernels():
    from minivllm.models.gpu_kernels import GPUKernels

    return GPUKernels()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [24, 64, 576, 1024])
def test_small_operators_are_pytorchs(width, dtype):
    from minivllm.models.ops import Ops

    generator = torch.Generator().manual_seed(width)

    def random(*shape):
        return (torch.randn(*shape, generator=generator) * 3).to(dtype).to(DEVICE)

    # PyTorch's in float32, from the same numbers: only what is stored is rounded.
    ours, theirs = kernels(), Ops()
    x, weight = random(7, 3, width), random(width)
    expected = theirs.rms_norm(x.float(), weight.float(), 1e-5)
    torch.testing.assert_close(ours.rms_norm(x, weight, 1e-5), expected.to(dtype))
    heads = random(7, 5, width)[:, 1:3]  # not contiguous
    expected = theirs.rms_norm(heads.float(), weight.float(), 1e-5)
    torch.testing.assert_close(ours.rms_norm(heads, weight, 1e-5), expected.to(dtype))
    gate_up = random(7, 2 * width)
    expected = theirs.silu_and_mul(gate_up.double()).to(dtype)
    torch.testing.assert_close(ours.silu_and_mul(gate_up), expected)
    for bias in (None, random(width)):
        residual, matrix = random(7, width), random(width, 24)
        x = random(7, 24)
        expected = residual.double() + x.double() @ matrix.double().t()
        if bias is not None:
            expected += bias.double()
        ours.add_linear(residual, x, matrix, bias)
        tolerance = 1e-4 if dtype == torch.float32 else 0.3
        torch.testing.assert_close(residual, expected.to(dtype), rtol=0.02, atol=tolerance)


@pytest.mark.parametrize("width", [100, 1024, 3000])
def test_sums_of_slices_are_pytorchs(width):
    from minivllm.models.gpu_kernels import slice_sums
    from minivllm.sampler import slice_sums_by_torch

    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(6, width, generator=generator) * 4
    logits[1, :50] = float("-inf")
    logits[2, 1024:2048] = float("-inf")
    logits[3] = float("-inf")
    logits[3, width // 2] = 1e30
    temperatures = torch.tensor([1.0, 0.6, 2.0, 1e-6, 1e-6, 0.1])
    highest, sums = slice_sums_by_torch(logits, temperatures, 1024)
    ours = slice_sums(logits.to(DEVICE), temperatures.to(DEVICE), 1024)
    assert torch.equal(ours[0].cpu(), highest)
    torch.testing.assert_close(ours[1].cpu().double(), sums, rtol=1e-5, atol=1e-6)
    assert not sums.isnan().any()


@pytest.mark.parametrize("norms", [False, True], ids=["plain", "head-norms"])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 16), (6, 2, 24), (16, 8, 128)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rotate_and_store_is_pytorchs(num_heads, num_kv_heads, head_dim, norms, dtype):
    """The queries, the cache written and what is left alone in it."""
    from minivllm.models.ops import HeadNorms, Ops

    generator = torch.Generator().manual_seed(head_dim)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)

    tokens = 11
    qkv = random(tokens, num_heads + 2 * num_kv_heads, head_dim)
    angles = torch.rand(50, head_dim // 2, generator=generator)
    cos, sin = torch.cat([angles.cos()] * 2, 1), torch.cat((-angles.sin(), angles.sin()), 1)
    positions = torch.randint(0, 50, (tokens,), generator=generator).to(DEVICE)
    slots = torch.randperm(8 * 4, generator=generator)[:tokens].to(DEVICE)
    weights = (random(head_dim), random(head_dim))
    cache = random(2, 8, 4, num_kv_heads, head_dim)
    rope = (cos.to(dtype).to(DEVICE), sin.to(dtype).to(DEVICE))

    def run(ops, convert):
        written = convert(cache.clone())
        head_norms = HeadNorms(*map(convert, weights), 1e-6) if norms else None
        query = ops.rotate_and_store(
            convert(qkv.clone()), num_heads, (convert(rope[0]), convert(rope[1])), positions,
            written, slots, head_norms,
        )  # fmt: skip
        return query, written

    expected_query, expected_cache = run(Ops(), torch.Tensor.float)
    query, written = run(kernels(), lambda tensor: tensor)
    torch.testing.assert_close(query, expected_query.to(dtype))
    torch.testing.assert_close(written, expected_cache.to(dtype))
    others = torch.ones(8 * 4, dtype=torch.bool)
    others[slots.cpu()] = False
    before, after = (each.flatten(1, 2)[:, others.to(DEVICE)] for each in (cache, written))
    assert torch.equal(before, after)


def test_the_engine_says_the_same_with_it():
    """A prompt cut into chunks, decodes beside it, a model of random weights: the same tokens."""
    from minivllm import LLM
    from minivllm.models.loader import tiny_random_model

    model = tiny_random_model()
    prompts = [{"prompt_token_ids": list(range(3, 3 + length))} for length in (5, 40, 21)]
    said = []
    for backend in ("sdpa", "triton"):
        llm = LLM(
            model,
            max_model_len=64,
            max_num_batched_tokens=16,
            num_gpu_blocks=32,
            attention_backend=backend,
        )
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=5))
        said.append([output.outputs[0].token_ids for output in outputs])
    assert said[0] == said[1]


def test_decode_graphs_say_the_same_and_write_to_nobodys_blocks():
    """Steps padded to the sizes of CUDA graphs, here without the graphs: the same tokens, the
    same blocks written, and the null block besides."""
    from minivllm import LLM
    from minivllm.models.loader import tiny_random_model

    prompts = [{"prompt_token_ids": list(range(3, 3 + length))} for length in (5, 40, 21, 9, 30)]
    params = [SamplingParams(temperature=0, max_tokens=n) for n in (5, 9, 12, 3, 12)]

    def run(enforce_eager: bool):
        llm = LLM(
            tiny_random_model(),
            max_model_len=64,
            max_num_seqs=4,
            num_gpu_blocks=32,
            attention_backend="triton",
            enforce_eager=enforce_eager,
            enable_prefix_caching=False,
        )
        runner, sizes = llm.llm_engine.runner, []
        assert (runner.decoder is None) == enforce_eager
        if graphs := runner.decoder:
            replay = graphs.run
            graphs.run = lambda *args: (sizes.append(len(args[0])), replay(*args))[1]
        said = [output.outputs[0].token_ids for output in llm.generate(prompts, params)]
        written = runner.kv_caches.abs().sum(dim=(0, 1, 3, 4, 5)).nonzero().flatten().tolist()
        return said, set(written), set(sizes)

    (said, written, _), (said_padded, written_padded, sizes) = run(True), run(False)
    assert said_padded == said
    assert written_padded - {0} == written
    assert sizes == {1, 2, 3, 4}  # three are padded to four


def test_splits_of_keys():
    """Never more than asked for, one for many requests, and enough to be busy with one."""
    from minivllm.models.attention.splits import MAX_SPLITS, PROGRAMS, num_splits

    assert num_splits(1, 8, 132) == MAX_SPLITS
    assert num_splits(0, 8, 132) == MAX_SPLITS
    assert num_splits(1000, 8, 132) == 1
    for decodes in range(1, 300):
        splits = num_splits(decodes, 8, 132)
        assert splits in (1, 2, 4, 8, 16, 32)
        assert splits == 1 or decodes * 8 * splits <= PROGRAMS * 132
        assert splits == MAX_SPLITS or 2 * splits * decodes * 8 > PROGRAMS * 132


@pytest.mark.parametrize("most", [1, 3, 8, 17, 256, 1000])
def test_sizes_of_graphs(most):
    from minivllm.models.cuda_graphs import MAX_BATCH_SIZE, graph_batch_sizes

    sizes = graph_batch_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == min(most, MAX_BATCH_SIZE)
    for batch in range(1, sizes[-1] + 1):
        padded = min(size for size in sizes if size >= batch)
        assert padded < 2 * batch or padded == 1
        assert padded - batch < 16


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"attention_backend": "flash"},
            "attention_backend must be one of auto, sdpa, cpu, triton",
        ),
        ({"attention_backend": "triton", "batch_invariant": True}, "leave attention_backend at"),
    ],
)
def test_what_cannot_be_chosen(knobs, message):
    from minivllm import LLM
    from minivllm.models.loader import tiny_random_model

    with pytest.raises(ValueError, match=message):
        LLM(tiny_random_model(), max_model_len=64, **knobs)


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU is no error")
def test_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        TritonPagedAttention(16, 3, torch.float32, "cpu")


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minivllm.models import gpu_kernels
from minivllm.models.attention import triton as triton_attention

TYPES = {"width": "i32", "inner": "i32", "table_width": "i32", "eps": "fp32", "scale": "fp32",
         "sums": "*fp32", "highest": "*fp32", "temperatures": "*fp32", "parts": "*fp32",
         "positions": "*i64", "slot_mapping": "*i64", "block_tables": "*i32"}
HEADS = {"num_heads": 16, "num_kv_heads": 8}
TILE = {**HEADS, "head_dim": 128, "padded_dim": 128, "block_size": 16, "num_rows": 16,
        "num_keys": 128, "num_splits": 1}
ROTATE = {**HEADS, "half": 64, "padded_half": 64}
for kernel, constants in (
    (gpu_kernels.rms_norm_kernel, {"padded_width": 1024}),
    (gpu_kernels.silu_and_mul_kernel, {"num_columns": 1024}),
    (gpu_kernels.slice_sums_kernel, {"num_columns": 1024}),
    (gpu_kernels.rotate_and_store_kernel, {**ROTATE, "has_norms": True}),
    (gpu_kernels.rotate_and_store_kernel, {**ROTATE, "has_norms": False}),
    (triton_attention.paged_attention_kernel, {**TILE, "num_rows": 64, "num_keys": 32}),
    (triton_attention.paged_attention_kernel, {**TILE, "num_splits": 8}),
    (triton_attention.join_splits_kernel, {
        "num_heads": 16, "head_dim": 128, "padded_dim": 128, "num_splits": 8
    }),
):
    for dtype in ("*bf16", "*fp32"):
        signature = {
            name: "constexpr" if name in constants
            else TYPES.get(name, "*i32" if name.startswith("tile_") else dtype)
            for name in kernel.arg_names
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        print(kernel.__name__, dtype, len(compiled.asm["cubin"]))
"""


def test_the_kernels_compile_for_a_gpu():
    """The interpreter runs what the compiler refuses; this needs no GPU, for an H100 all the
    same."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 16
