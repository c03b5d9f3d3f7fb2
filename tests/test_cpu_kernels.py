"""The C kernels against PyTorch and the obvious attention: any shape, any batch, the same bits."""

from __future__ import annotations

import itertools
import platform
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from minivllm import LLM, SamplingParams
from minivllm.models import cpu_kernels
from minivllm.models.attention.cpu import CPUPagedAttention
from minivllm.models.attention.metadata import AttentionMetadata
from minivllm.models.attention.reference import reference_paged_attention
from minivllm.models.attention.sdpa import PagedAttention
from minivllm.models.attention.selector import choose_backend
from minivllm.models.blocks import BLOCK_COLUMNS, Blocks
from minivllm.models.cpu_decoder import CPUDecoder
from minivllm.models.cpu_kernels import CPUKernels, is_packed, load_kernels
from minivllm.models.loader import tiny_random_model
from minivllm.models.ops import Ops

needs_kernels = pytest.mark.skipif(
    load_kernels() is None, reason="the C kernels need Linux and a C compiler"
)


@pytest.fixture(params=[4, 8, 16], ids="lanes-{}".format)
def kernels(request: pytest.FixtureRequest, no_kernels: pytest.MonkeyPatch) -> CPUKernels:
    """The kernels for NEON's, AVX2's and AVX-512's width, on any processor: wider vectors than it
    has are taken apart by the compiler, and the source is the same."""
    no_kernels.setattr(cpu_kernels, "_FLAGS", (*cpu_kernels._FLAGS, f"-DLANES={request.param}"))
    found = load_kernels()
    assert found is not None
    assert found.lanes == request.param
    return found


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Nothing is loaded yet, and nothing stays loaded."""
    load_kernels.cache_clear()
    yield monkeypatch
    load_kernels.cache_clear()


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


SHAPES = [(0, 16, 8), (1, 16, 1), (1, 48, 8), (2, 32, 584), (3, 64, 576), (5, 16, 1536),
          (7, 960, 768), (8, 16, 287), (13, 32, 289), (25, 16, 1161), (128, 48, 64),
          (257, 32, 1536), (300, 16, 40), (2, 13, 64), (5, 1, 67)]  # fmt: skip


@needs_kernels
@pytest.mark.parametrize(("rows", "out_features", "in_features"), SHAPES)
def test_linear_is_the_product(kernels, rows, out_features, in_features):
    x, plain = randn(rows, in_features), randn(out_features, in_features)
    exact = (x.double() @ plain.double().T).float()
    weight = kernels.pack(plain)
    assert is_packed(weight) == (out_features % kernels.panel == 0), "odd widths are PyTorch's"
    torch.testing.assert_close(kernels.linear(x, weight), exact, atol=1e-4, rtol=1e-5)
    bias, residual = randn(out_features), randn(rows, out_features)
    expected = exact + bias
    torch.testing.assert_close(kernels.linear(x, weight, bias), expected, atol=1e-4, rtol=1e-5)
    added = residual.clone()
    kernels.add_linear(added, x, weight, bias)
    torch.testing.assert_close(added, residual + expected, atol=1e-4, rtol=1e-5)
    room = randn(rows, out_features, seed=1)
    assert kernels.linear(x, weight, bias, out=room) is room
    torch.testing.assert_close(room, expected, atol=1e-4, rtol=1e-5)


@needs_kernels
@pytest.mark.parametrize(("rows", "out_features", "in_features"), SHAPES)
def test_linear_of_bfloat16_is_the_product(kernels, rows, out_features, in_features):
    """With weights of 16 bits; whether x is rounded too depends on the processor."""
    x, plain = randn(rows, in_features), randn(out_features, in_features).bfloat16()
    weight = kernels.pack(plain)
    assert is_packed(weight) == (out_features % kernels.panel == in_features % 2 == 0)
    assert not is_packed(weight) or weight.numel() * weight.itemsize == plain.numel() * 2
    product = kernels.linear(x, weight)
    results = []
    for seen in (x, x.bfloat16()):
        exact = (seen.double() @ plain.double().T).float()
        error = (product - exact).abs().max() / exact.abs().max() if rows else torch.zeros(())
        results.append(error.item() < 2e-6)
    assert any(results)
    if results[0] and is_packed(weight):
        as_floats = kernels.linear(x, kernels.pack(plain.float()))
        torch.testing.assert_close(product, as_floats, atol=1e-4, rtol=1e-5)
    residual = randn(rows, out_features)
    added = residual.clone()
    kernels.add_linear(added, x, weight)
    torch.testing.assert_close(added, residual + product, atol=1e-4, rtol=1e-5)
    ids = torch.arange(0, out_features, 3)
    assert torch.equal(kernels.embed(ids, weight), plain[ids].float())


@needs_kernels
def test_a_row_times_bfloat16_has_the_same_bits_in_any_batch(kernels):
    x, weight = randn(300, 1536), kernels.pack(randn(64, 1536).bfloat16())
    alone = torch.cat([kernels.linear(row[None], weight) for row in x[:40]])
    for rows in (2, 7, 12, 13, 40, 300):
        assert torch.equal(kernels.linear(x[:rows], weight)[:40], alone[:rows])


def blocks(out_features, in_features, seed=0):
    """Numbers of all sizes, with scales and least values of 16 bits, as a file has them."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(-128, 128, (out_features, in_features), generator=generator)
    shared = torch.randn(2, out_features, in_features // BLOCK_COLUMNS, generator=generator)
    return Blocks(numbers.to(torch.int8), *shared.half().float())


@needs_kernels
@pytest.mark.parametrize(("out_features", "in_features"), [(64, 32), (96, 576), (32, 1536)])
def test_linear_of_bytes_has_the_bits_of_its_floats(kernels, out_features, in_features):
    matrix = blocks(out_features, in_features)
    packed, floats = kernels.pack_blocks(matrix), kernels.pack(matrix.floats())
    assert packed.numel() < 0.32 * floats.numel() * floats.itemsize
    for rows in (0, 1, 2, 5, 6, 7, 11, 12, 13, 24, 25, 40, 300):
        x, residual = randn(rows, in_features), randn(rows, out_features)
        assert torch.equal(kernels.linear(x, packed), kernels.linear(x, floats))
        added = residual.clone(), residual.clone()
        kernels.add_linear(added[0], x, packed)
        kernels.add_linear(added[1], x, floats)
        assert torch.equal(*added)
    ids = torch.tensor([0, out_features - 1, 17, 17])
    assert torch.equal(kernels.embed(ids, packed), matrix.floats()[ids])
    assert kernels.embed(ids[:0], packed).shape == (0, in_features)
    assert kernels.pack_blocks(blocks(kernels.panel + 1, 64)) is None, "odd widths are PyTorch's"


@needs_kernels
def test_linear_takes_rows_and_columns_that_lie_apart(kernels):
    wide, weight = randn(17, 200), randn(32, 64)
    for x in (wide[:, :64], wide[:, 5:69], wide[::2, :64], wide[:, ::3][:, :64], wide[:0, :64]):
        torch.testing.assert_close(kernels.linear(x, kernels.pack(weight)), F.linear(x, weight))


@needs_kernels
@pytest.mark.parametrize("vocab_size", [48, 50])
def test_embed_finds_the_rows_of_a_packed_matrix(kernels, vocab_size):
    weight, token_ids = randn(vocab_size, 24), torch.tensor([0, 47, 15, 16, 3, 3])
    assert torch.equal(kernels.embed(token_ids, kernels.pack(weight)), weight[token_ids])
    assert kernels.embed(token_ids[:0], kernels.pack(weight)).shape == (0, 24)


@needs_kernels
def test_pack_leaves_what_it_packs_and_takes_rows_that_lie_apart(kernels):
    weight = randn(32, 40)
    before, packed = weight.clone(), kernels.pack(weight[:, 8:32])
    assert torch.equal(weight, before)
    x = randn(3, 24)
    torch.testing.assert_close(kernels.linear(x, packed), F.linear(x, weight[:, 8:32]))


@needs_kernels
def test_a_row_has_the_same_bits_in_any_batch_and_with_any_number_of_threads(kernels):
    x, weight = randn(700, 1160), kernels.pack(randn(64, 1160))
    together = kernels.linear(x, weight)
    threads = torch.get_num_threads()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            for first, last in ((0, 1), (5, 7), (4, 9), (0, 64), (40, 110), (254, 700)):
                assert torch.equal(kernels.linear(x[first:last], weight), together[first:last])
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.parametrize("rows", [0, 1, 4, 5, 40, 500])
def test_the_operators_between_the_products(kernels, rows):
    plain = Ops()
    x, weight = 3 * randn(rows, 576), randn(576)
    torch.testing.assert_close(kernels.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5))
    # Far from 0 silu is the identity, or 0: neither may overflow on the way.
    gate_up = randn(rows, 2 * 72)
    gate_up[:, ::5] *= 60
    expected = plain.silu_and_mul(gate_up.clone())
    torch.testing.assert_close(kernels.silu_and_mul(gate_up), expected)


@needs_kernels
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim"), [(9, 3, 64), (4, 4, 16), (6, 2, 24), (8, 1, 128)]
)
def test_rotate_and_store(kernels, num_heads, num_kv_heads, head_dim):
    rows, block_size, num_blocks = 37, 16, 8
    qkv = randn(rows, num_heads + 2 * num_kv_heads, head_dim)
    rope = randn(200, head_dim), randn(200, head_dim, seed=1)
    positions = torch.randperm(200)[:rows]
    slots = torch.randperm(block_size * num_blocks)[:rows]
    caches = [torch.zeros(2, num_blocks, block_size, num_kv_heads, head_dim) for _ in range(2)]
    queries = [
        ops.rotate_and_store(qkv.clone(), num_heads, rope, positions, cache, slots)
        for ops, cache in zip((Ops(), kernels), caches)
    ]
    torch.testing.assert_close(queries[1], queries[0])
    torch.testing.assert_close(caches[1], caches[0])
    assert caches[0].count_nonzero() == 2 * rows * num_kv_heads * head_dim


def decodes(seed: int, block_size: int, num_heads: int, num_kv_heads: int, head_dim: int):
    rng = random.Random(seed)
    contexts = sorted((rng.randrange(1, 300) for _ in range(rng.randrange(1, 9))), reverse=True)
    free = rng.sample(range(1, 2000), 1999)
    tables = [[free.pop() for _ in range(-(-n // block_size))] for n in contexts]
    cache = randn(2, 2000, block_size, num_kv_heads, head_dim, seed=seed)
    query = 2 * randn(len(contexts), num_heads, head_dim, seed=seed)
    slots = torch.zeros(len(contexts), dtype=torch.long)
    return query, cache, AttentionMetadata.of(slots, [1] * len(contexts), contexts, tables)


@needs_kernels
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("block_size", "num_heads", "num_kv_heads", "head_dim"),
    [(16, 9, 3, 64), (16, 4, 4, 16), (8, 8, 1, 40), (5, 6, 2, 24), (1, 4, 2, 8), (32, 32, 2, 128),
     (16, 128, 2, 128)],
    ids=["smollm2", "no-sharing", "one-kv-head", "odd-sizes", "blocks-of-one", "sixteen-share",
         "as-wide-as-may-be"],
)  # fmt: skip
def test_paged_attention_is_the_reference(
    kernels, seed, block_size, num_heads, num_kv_heads, head_dim
):
    if head_dim % kernels.lanes:
        pytest.skip("such heads are PyTorch's")
    query, cache, metadata = decodes(seed, block_size, num_heads, num_kv_heads, head_dim)
    expected = reference_paged_attention(query, cache, metadata, head_dim**-0.5)
    attention = CPUPagedAttention(block_size, num_kv_heads, torch.float32, "cpu")
    attention.prepare(metadata)
    got = attention(query.clone(), cache, head_dim**-0.5)
    torch.testing.assert_close(got, expected)
    # A request alone, in tasks of one head: the same bits as with the others.
    for index in range(len(query)):
        alone = AttentionMetadata(
            metadata.slot_mapping[:1],
            metadata.query_lens[:1],
            metadata.seq_lens[index : index + 1],
            metadata.block_tables[index : index + 1],
        )
        attention.prepare(alone)
        one = attention(query[index : index + 1], cache, head_dim**-0.5)
        assert torch.equal(one[0], got[index])


@needs_kernels
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("block_size", "num_heads", "num_kv_heads", "head_dim"),
    [(16, 9, 3, 64), (16, 4, 2, 16), (5, 6, 2, 24), (1, 4, 2, 8)],
)
def test_a_prompt_attends_with_the_same_bits_however_it_is_cut(
    kernels, seed, block_size, num_heads, num_kv_heads, head_dim
):
    """Neighbours share the reading of their keys: which ones depends on the cuts."""
    if head_dim % kernels.lanes:
        pytest.skip("such heads are PyTorch's")
    rng = random.Random(seed)
    length = rng.randrange(2, 200)
    table = [rng.sample(range(1, 400), -(-length // block_size))]
    cache = randn(2, 400, block_size, num_kv_heads, head_dim, seed=seed)
    query = 2 * randn(length, num_heads, head_dim, seed=seed)
    attention = CPUPagedAttention(block_size, num_kv_heads, torch.float32, "cpu")

    def attend(start: int, end: int) -> torch.Tensor:
        slots = torch.zeros(end - start, dtype=torch.long)
        metadata = AttentionMetadata.of(slots, [end - start], [end], table)
        attention.prepare(metadata)
        return attention(query[start:end].clone(), cache, head_dim**-0.5)

    whole = attend(0, length)
    slots = torch.zeros(length, dtype=torch.long)
    metadata = AttentionMetadata.of(slots, [length], [length], table)
    expected = reference_paged_attention(query, cache, metadata, head_dim**-0.5)
    torch.testing.assert_close(whole, expected)
    cuts = sorted({0, length, *(rng.randrange(length) for _ in range(rng.randrange(1, 9)))})
    for start, end in itertools.pairwise(cuts):
        assert torch.equal(attend(start, end), whole[start:end])


@needs_kernels
def test_scores_far_apart_and_slots_of_others_do_no_harm():
    """Scores in the thousands stay finite; what lies beyond a request's tokens is never read."""
    query, cache, metadata = decodes(3, 16, 9, 3, 64)
    query *= 1000
    expected = reference_paged_attention(query, cache, metadata, 1.0)
    own = torch.zeros(2000 * 16, dtype=torch.bool)
    for context, table in zip(metadata.seq_lens, metadata.block_tables):
        for position in range(context):
            own[table[position // 16] * 16 + position % 16] = True
    cache.flatten(1, 2)[:, ~own] = float("nan")
    attention = CPUPagedAttention(16, 3, torch.float32, "cpu")
    attention.prepare(metadata)
    # Floats between 4,096 and 8,192 lie 0.0005 apart, and e^0.0005 is what a weight is off by then.
    torch.testing.assert_close(attention(query, cache, 1.0), expected, rtol=1e-3, atol=1e-4)


@needs_kernels
def test_the_engine_says_the_same_with_and_without(no_kernels):
    model = tiny_random_model()
    prompts = [{"prompt_token_ids": list(range(3, 3 + length))} for length in (5, 40, 21)]
    said = []
    for switch in ("1", "0"):
        no_kernels.setenv("MINIVLLM_CPU_KERNELS", switch)
        load_kernels.cache_clear()
        llm = LLM(model, max_model_len=64, max_num_batched_tokens=16)
        runs_c = isinstance(llm.llm_engine.model.attention, CPUPagedAttention)
        assert runs_c == isinstance(llm.llm_engine.model.ops, CPUKernels) == (switch == "1")
        outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=9))
        said.append([output.outputs[0].token_ids for output in outputs])
    assert said[0] == said[1]


@needs_kernels
def test_a_decode_step_in_one_call_is_the_same_to_the_bit(kernels):
    """The same kernels in the same order: equal hidden states and caches, whatever the batch."""
    steps: dict[bool, list[torch.Tensor]] = {}
    caches: dict[bool, torch.Tensor] = {}
    for enforce_eager in (True, False):
        llm = LLM(
            tiny_random_model(), max_model_len=64, max_num_seqs=5, enforce_eager=enforce_eager
        )
        runner, seen = llm.llm_engine.runner, steps.setdefault(enforce_eager, [])
        assert isinstance(runner.decoder, CPUDecoder) != enforce_eager
        compute_logits = runner.model.compute_logits
        runner.model.compute_logits = lambda hidden, of=compute_logits, to=seen: (
            to.append(hidden.clone()),
            of(hidden),
        )[1]
        prompts = [{"prompt_token_ids": list(range(3, 3 + n))} for n in (5, 30, 16, 9, 2, 40)]
        params = [SamplingParams(temperature=0, max_tokens=n) for n in (4, 9, 20, 7, 20, 12)]
        llm.generate(prompts, params)
        caches[enforce_eager] = runner.kv_caches
    assert len(steps[True]) == len(steps[False]) > 15
    for one, other in zip(steps[True], steps[False]):
        assert torch.equal(one, other)
    assert torch.equal(caches[True], caches[False])


@needs_kernels
def test_models_with_more_in_a_layer_decode_operator_by_operator():
    model = tiny_random_model()
    config = replace(model.config, qkv_bias=True)
    weights = dict(model.weights)
    for name in list(weights):
        for projection in ("q_proj", "k_proj", "v_proj"):
            if name.endswith(f"{projection}.weight"):
                bias = randn(len(weights[name]))
                weights[name.removesuffix("weight") + "bias"] = bias
    llm = LLM(replace(model, config=config, weights=weights), max_model_len=64)
    assert llm.llm_engine.runner.decoder is None
    prompt = {"prompt_token_ids": [5, 6, 7]}
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    (said,) = llm.generate([prompt], params)
    assert len(said.outputs[0].token_ids) == 9


def test_no_compiler_no_kernels_and_no_error(no_kernels, tmp_path):
    no_kernels.setenv("PATH", str(tmp_path))
    no_kernels.delenv("CC", raising=False)
    assert load_kernels() is None
    model = LLM(tiny_random_model(), max_model_len=64).llm_engine.model
    assert type(model.ops) is Ops
    assert type(model.attention) is PagedAttention


@pytest.mark.skipif(sys.platform != "linux", reason="no kernels there")
@pytest.mark.parametrize(
    "says", ["exit 1", "echo nonsense; exit 0"], ids=["fails", "makes-nothing"]
)
def test_a_compiler_that_does_not_work_is_a_warning(no_kernels, tmp_path, caplog, says):
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\n{says}\n")
    compiler.chmod(0o755)
    no_kernels.setenv("CC", str(compiler))
    no_kernels.setenv("MINIVLLM_CACHE", str(tmp_path / "cache"))
    assert load_kernels() is None
    assert "no CPU kernels" in caplog.text


@needs_kernels
def test_compiled_once_and_again_for_another_machine(no_kernels, tmp_path):
    no_kernels.setenv("MINIVLLM_CACHE", str(tmp_path))
    compiled: list[Path] = []
    compile_ = cpu_kernels._compile
    no_kernels.setattr(
        cpu_kernels,
        "_compile",
        lambda cc, flags, source, to: (compiled.append(to), compile_(cc, flags, source, to))[1],
    )
    for _ in range(2):
        load_kernels.cache_clear()
        assert load_kernels() is not None
    assert len(compiled) == 1
    fingerprint = cpu_kernels._fingerprint_of_machine
    no_kernels.setattr(
        cpu_kernels, "_fingerprint_of_machine", lambda *of: "another" + fingerprint(*of)
    )
    load_kernels.cache_clear()
    assert load_kernels() is not None
    assert len(compiled) == 2


def test_the_backend_can_be_asked_for_and_says_what_it_needs(no_kernels):
    no_kernels.setenv("MINIVLLM_CPU_KERNELS", "0")
    with pytest.raises(ValueError, match=r"needs Linux, a C compiler \(cc\) and float32"):
        LLM(tiny_random_model(), max_model_len=64, attention_backend="cpu")


@pytest.mark.parametrize("heads", [(128, 8, 136), (2049, 1, 8), (4, 2, 12)])
def test_heads_that_the_kernel_has_no_room_for_are_refused(heads):
    """The kernel's arrays lie on the stack: it must never see more."""
    num_heads, num_kv_heads, head_dim = heads
    config = replace(
        tiny_random_model().config,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
    )
    assert not cpu_kernels.can_attend(config)
    with pytest.raises(ValueError, match=r"a width that \d+ divides, together at most 16,384"):
        choose_backend("cpu", "cpu", False, kernel_fits=cpu_kernels.can_attend(config))
    fallback = choose_backend("auto", "cpu", False, kernel_fits=cpu_kernels.can_attend(config))
    assert fallback == "sdpa"


@needs_kernels
def test_the_source_compiles_without_a_warning(tmp_path):
    compile_kernels(tmp_path / "k.so", "cc")


def compile_kernels(to: Path, compiler: str, *flags: str) -> None:
    command = [compiler, *cpu_kernels._FLAGS, *flags, "-Wall", "-Wextra", "-Werror", "-shared"]
    command += ["-fPIC", str(cpu_kernels.SOURCE), "-o", str(to)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("objdump"), reason="reads x86's machine code"
)
@pytest.mark.parametrize(
    ("march", "register", "most"), [("haswell", "ymm", 12), ("skylake-avx512", "zmm", 24)]
)
def test_the_sums_of_a_full_tile_stay_in_registers(tmp_path, march, register, most):
    """Of all loops in the tile the one with most products has a full tile's sums, of the
    processor's width, and keeps none of them in memory."""
    compile_kernels(tmp_path / "k.so", "cc", f"-march={march}")
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "--disassemble=tile_of", str(tmp_path / "k.so")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    code = [(int(at, 16), what) for at, what in re.findall(r"^ +([0-9a-f]+):\t(.+)$", text, re.M)]
    loops = []
    for end, what in code:
        jump = re.match(r"j\w+ +([0-9a-f]+)", what)
        if jump and int(jump[1], 16) < end:
            body = [what for at, what in code if int(jump[1], 16) <= at <= end]
            sums = {re.search(r"%(\w+)$", what)[1] for what in body if what.startswith("vfmadd")}
            if len(body) < 250 and not any("vaddps" in what for what in body):
                loops.append((len(sums), body))
    num_sums, body = max(loops, key=lambda loop: loop[0])
    assert num_sums == most
    assert all(register in what for what in body if what.startswith("vfmadd"))
    assert not [what for what in body if "mm" in what and re.search(r"\(%r[sb]p", what)]


@needs_kernels
@pytest.mark.parametrize("width", ["128", "wide", "0"])
def test_a_width_that_no_kernel_has_is_refused(no_kernels, width):
    no_kernels.setenv("MINIVLLM_CPU_WIDTH", width)
    with pytest.raises(ValueError, match=f"MINIVLLM_CPU_WIDTH='{width}'.* at most 256 or 512 bits"):
        load_kernels()


@needs_kernels
def test_the_width_is_the_processors_or_less(no_kernels):
    widest = load_kernels().lanes
    no_kernels.setenv("MINIVLLM_CPU_WIDTH", "256")
    load_kernels.cache_clear()
    assert load_kernels().lanes == min(widest, 8)


ARM = {"compiler": "aarch64-linux-gnu-gcc", "emulator": "qemu-aarch64"}


@pytest.mark.skipif(
    not all(map(shutil.which, ARM.values())),
    reason="optional: apt-get install gcc-aarch64-linux-gnu qemu-user",
)
def test_on_arm_the_kernels_give_the_same_bits(tmp_path):
    """NEON, compiled for Arm and emulated, against the same source with 4 lanes here."""
    program = tmp_path / "driver.c"
    program.write_text(ARM_DRIVER.replace("SOURCE", str(cpu_kernels.SOURCE)))
    flags = [flag for flag in cpu_kernels._FLAGS if "native" not in flag]
    said = []
    for compiler, target, prefix in (
        (ARM["compiler"], [], [ARM["emulator"]]),
        ("cc", ["-march=haswell", "-DLANES=4"], []),
    ):
        binary = tmp_path / compiler
        command = [compiler, *flags, *target, "-static", str(program), "-o", str(binary), "-lm"]
        subprocess.run(command, check=True, capture_output=True)
        numbers = torch.cat([randn(37 * 304), randn(64 * 304), randn(2 * 1536)]).numpy().tobytes()
        done = subprocess.run(
            [*prefix, str(binary)], input=numbers, capture_output=True, check=True
        )
        said.append(torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).view(3, 37, 64))
    assert torch.equal(said[0], said[1])
    product, attended, activated = said[0]
    exact = randn(37 * 304).view(37, 304) @ randn(64 * 304).view(64, 304).T
    torch.testing.assert_close(product, exact, atol=1e-4, rtol=1e-5)
    assert attended.isfinite().all()
    assert attended.count_nonzero() == 37 * 64
    gate, up = attended.chunk(2, dim=1)
    torch.testing.assert_close(activated[:, :32], F.silu(gate) * up)


ARM_DRIVER = """
#include "SOURCE"
#include <stdio.h>

#define READ(array) if (fread(array, sizeof array, 1, stdin) != 1) return 1
#define WRITE(array) fwrite(array, sizeof array, 1, stdout)
#define ATTEND(of, at, rows, threads) \\
    paged_attention(of, 64, keys, values, table, 3, owners, at, rows, 4, 2, 16, 16, 0.25f, threads)
static float x[37 * 304], w[64 * 304], packed[64 * 304 + 4096], keys[1536], values[1536];
static float y[37 * 64], part[37 * 64];

int main(void) {
    int64_t table[3] = {2, 0, 1}, owners[37] = {0}, positions[37];
    for (int i = 0; i < 37; i++) positions[i] = i;
    READ(x); READ(w); READ(keys); READ(values);
    pack(packed, w, 64, 304, 2);
    linear(y, x, 304, packed, 37, 64, 304, 0, 2);
    for (int first = 0; first < 37; first += 5) { /* any batch, any number of threads */
        int64_t rows = min(5, 37 - first);
        linear(part, x + first * 304, 304, packed, rows, 64, 304, 0, 1);
        if (memcmp(part, y + first * 64, rows * 64 * sizeof(float))) return 2;
    }
    WRITE(y);
    memcpy(part, y, sizeof y);
    ATTEND(y, positions, 37, 2);
    for (int i = 0; i < 37; i++) ATTEND(part + i * 64, positions + i, 1, 1);
    if (memcmp(part, y, sizeof y)) return 3;
    WRITE(y);
    silu_and_mul(y, 37, 32, 1);
    WRITE(y);
    return 0;
}
"""
