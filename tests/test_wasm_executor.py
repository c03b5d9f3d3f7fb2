"""The executor of a page gives the tokens of the one with PyTorch: the same kernels as WebAssembly,
here in wasmtime. tests/test_live_model.py has the page around them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import wasm_host
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from serving import build, smollm2_prompts, token_ids

from minivllm import LLM, SamplingParams
from minivllm.executor import wasm_executor
from minivllm.models.config import SMALL_MODEL
from minivllm.models.loader import DEFAULT_MODEL
from tools.live_model import bytes_in_memory

PROMPTS = [[(7 * i + j * j) % 900 + 3 for j in range(1 + i * 9 % 61)] for i in range(24)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)


@pytest.fixture(autouse=True)
def here_is_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of a page's own Python set it too."""
    monkeypatch.setattr(wasm_executor, "open_model", wasm_host.open_here)


def here(**knobs: Any) -> LLM:
    """The page's engine."""
    return LLM("tiny-random", device="wasm", **{"max_model_len": 128, **knobs})


def on_desktop(params: Any = GREEDY, **knobs: Any) -> list[list[int]]:
    """What the engine with PyTorch says."""
    llm = build(max_model_len=128, **knobs)
    return token_ids(llm, [{"prompt_token_ids": ids} for ids in PROMPTS], params)


def run(llm: LLM, params: Any = GREEDY) -> list[list[int]]:
    return token_ids(llm, [{"prompt_token_ids": ids} for ids in PROMPTS], params)


@pytest.mark.parametrize(
    "knobs",
    [
        {"max_num_seqs": 1, "enable_prefix_caching": False},
        {"enable_prefix_caching": False},
        {"max_num_batched_tokens": 24, "long_prefill_token_threshold": 10, "max_num_seqs": 8},
        {"num_gpu_blocks": 9, "max_num_batched_tokens": 64},
        {"num_gpu_blocks": 9, "preemption_mode": "swap", "num_cpu_blocks": 16},
        {"async_scheduling": True},
    ],
    ids=["alone", "together", "chunks", "recompute", "swap", "async"],
)
def test_greedy_tokens_are_the_desktops_however_the_scheduler_cuts(knobs: dict[str, Any]) -> None:
    llm = here(**knobs)
    assert run(llm) == on_desktop()
    stats = llm.llm_engine.scheduler.stats
    assert stats.num_preemptions > 0 or "num_gpu_blocks" not in knobs
    assert (stats.num_swapped_in_blocks > 0) == (knobs.get("preemption_mode") == "swap")


def test_the_prefix_cache_changes_nothing() -> None:
    llm = here(block_size=4)
    before = run(llm)
    assert run(llm) == before == on_desktop()
    assert llm.llm_engine.scheduler.stats.prefix_cache_hits > 100


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"temperature": 0.5, "top_p": 0.8},
        {"top_k": 20, "min_p": 0.05},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": -0.2},
        {"logit_bias": {5: 4.0, 9: -3.0}, "min_tokens": 3},
        {"allowed_token_ids": list(range(40, 80)), "bad_words": ["th", "e"]},
    ],
    ids=lambda asked: "+".join(asked) or "temperature",
)
def test_sampled_tokens_and_log_probabilities_are_the_desktops(asked: dict[str, Any]) -> None:
    params = SamplingParams(
        **{"temperature": 1.0, "seed": 4, "max_tokens": 8, "logprobs": 3, **asked}
    )
    prompts = [{"prompt_token_ids": ids} for ids in PROMPTS[:8]]
    ours = here().generate(prompts, params, use_tqdm=False)
    theirs = build(max_model_len=128).generate(prompts, params, use_tqdm=False)
    for one, other in zip(ours, theirs, strict=True):
        assert one.outputs[0].token_ids == other.outputs[0].token_ids
        assert one.outputs[0].text == other.outputs[0].text
        assert one.outputs[0].logprobs is not None
        for a, b in zip(one.outputs[0].logprobs, other.outputs[0].logprobs or (), strict=True):
            assert {t: (p.rank, pytest.approx(p.logprob, abs=1e-4)) for t, p in a.items()} == {
                t: (p.rank, p.logprob) for t, p in b.items()
            }


def test_log_probabilities_of_a_prompt_in_chunks() -> None:
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=2)
    prompt = {"prompt_token_ids": PROMPTS[6]}
    (one,) = here(max_num_batched_tokens=16).generate([prompt], params, use_tqdm=False)
    (other,) = build(max_model_len=128).generate([prompt], params, use_tqdm=False)
    assert one.prompt_logprobs is not None
    assert other.prompt_logprobs is not None
    assert one.prompt_logprobs[0] is None
    for a, b in zip(one.prompt_logprobs[1:], other.prompt_logprobs[1:], strict=True):
        assert a is not None
        assert b is not None
        assert {t: pytest.approx(p.logprob, abs=1e-4) for t, p in a.items()} == {
            t: p.logprob for t, p in b.items()
        }


def logits_of(llm: LLM, prompts: list[list[int]]) -> dict[str, Any]:
    """The first row of logits of each prompt, from one step."""
    engine = llm.llm_engine
    for index, ids in enumerate(prompts):
        engine.add_request(str(index), {"prompt_token_ids": ids}, GREEDY)
    requests, logits = engine.runner.execute(engine.scheduler.schedule())
    return {r.request_id: logits[row] for row, r in enumerate(requests)}


def test_logits_do_not_depend_on_the_batch_by_a_single_bit() -> None:
    together = logits_of(here(), PROMPTS)
    assert len(together) == len(PROMPTS)
    for index in (0, 5, 17):
        assert logits_of(here(), [PROMPTS[index]])["0"] == together[str(index)]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_logits_do_not_depend_on_the_number_of_threads_by_a_single_bit(
    num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bits(prompts: list[list[int]]) -> list[bytes]:
        return [row.tobytes() for row in logits_of(here(), prompts).values()]

    alone = [bits(PROMPTS), bits(PROMPTS[5:6]), run(here())]
    _, file = wasm_host.open_here("tiny-random")
    with wasm_host.NodeMachine(num_threads) as machine:
        monkeypatch.setattr(wasm_executor, "open_model", lambda _: (machine, file))
        monkeypatch.setattr(wasm_executor, "_models", {})
        assert [bits(PROMPTS), bits(PROMPTS[5:6]), run(here())] == alone


class Rewritten(wasm_host.FileOnDisk):
    """The small model with its matrices in a format of blocks, or as the floats that these are."""

    def __init__(self, kind: GGMLQuantizationType, as_floats: bool) -> None:
        super().__init__(SMALL_MODEL)
        data = bytearray(self.data)
        for tensor in self.contents["tensors"].values():
            if len(tensor["shape"]) == 2:
                bytes_ = np.frombuffer(self.part(tensor["offset"], tensor["size"]), np.uint8)
                rows = bytes_.reshape(tensor["shape"][0], -1)
                floats = dequantize(rows, GGMLQuantizationType(tensor["kind"]))
                blocks = quantize(floats, kind)
                made = (dequantize(blocks, kind) if as_floats else blocks).tobytes()
                place = {"offset": len(data), "size": len(made)}
                tensor |= {"kind": 0 if as_floats else int(kind), **place}
                data += made
        self.data = bytes(data)


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0])
def test_weights_that_stay_blocks_give_the_logits_of_their_floats_to_the_bit(
    kind: GGMLQuantizationType, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for as_floats in (False, True):
        file = Rewritten(kind, as_floats)
        machine = wasm_host.WasmtimeMachine()
        monkeypatch.setattr(wasm_executor, "open_model", lambda _, f=file, m=machine: (m, f))
        llm = LLM(f"{kind.name}, floats: {as_floats}", device="wasm", max_model_len=128)
        found[as_floats] = logits_of(llm, [[token % 512 for token in ids] for ids in PROMPTS])
    assert found[False] == found[True]
    assert len({tuple(row) for row in found[True].values()}) == len(PROMPTS)


@pytest.mark.parametrize("name", [SMALL_MODEL, "tiny-random"])
def test_a_page_knows_how_much_memory_a_model_will_take(name: str) -> None:
    machine, file = wasm_host.open_here(name)
    for tensor in file.contents["tensors"].values():
        if len(tensor["shape"]) == 2:
            size = machine.call("matrix_bytes", tensor["kind"], *tensor["shape"])
            assert bytes_in_memory(tensor) == size


def test_a_model_of_floats_and_of_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Rewritten(GGMLQuantizationType.Q4_1, as_floats=False)
    file.contents["tensors"]["model.embed_tokens.weight"]["kind"] = 0
    opened = (wasm_host.WasmtimeMachine(), file)
    monkeypatch.setattr(wasm_executor, "open_model", lambda _: opened)
    with pytest.raises(ValueError, match=f"{SMALL_MODEL}: .* all of floats or all of blocks"):
        LLM("of both", device="wasm")


def test_memory_comes_back_when_an_engine_goes() -> None:
    machine = wasm_host.open_here("tiny-random")[0]
    run(here(num_gpu_blocks=4000))
    before = machine.memory.data_len(machine.store)
    for _ in range(4):
        run(here(num_gpu_blocks=4000))
    assert machine.memory.data_len(machine.store) <= before + 4000 * 16 * 2 * 2 * 2 * 16 * 4


def test_too_large_a_cache_says_what_to_turn() -> None:
    with pytest.raises(MemoryError, match=r"the page has no .* MB for the KV cache: ask for less"):
        here(num_gpu_blocks=1_000_000)


@pytest.mark.parametrize(
    "knobs",
    [
        {"dtype": "bfloat16"},
        {"attention_backend": "triton"},
        {"speculative_config": {"num_speculative_tokens": 2}},
    ],
    ids=str,
)
def test_what_a_page_cannot_do_is_refused_by_name(knobs: dict[str, Any]) -> None:
    (name,) = knobs
    with pytest.raises(ValueError, match=f"^{name}=.*: the engine of a page .*; leave {name} out"):
        here(**knobs)


def test_an_engine_whose_step_was_cut_short_goes_on() -> None:
    engine = here().llm_engine
    engine.add_request("a", {"prompt_token_ids": PROMPTS[3]}, GREEDY)
    engine.step()
    engine.abandon_step()
    assert not engine.runner.block_tables
    assert run(here()) == on_desktop()


def test_a_row_that_is_not_there() -> None:
    logits = wasm_executor.Logits(wasm_host.open_here("tiny-random")[0], 2, 8)
    assert logits.shape == (2, 8)
    with pytest.raises(IndexError, match="2 rows of logits, no row 2"):
        logits[2]


@pytest.mark.skipif(
    os.environ.get("MINIVLLM_ALL_LIVE") != "1", reason="MINIVLLM_ALL_LIVE=1: it takes a minute"
)
def test_the_default_model_says_what_it_says_on_the_desktop() -> None:
    """The 64 prompts of tests/test_tokens.py."""
    ours = LLM(DEFAULT_MODEL, device="wasm", max_model_len=512)
    inputs = [{"prompt_token_ids": ids} for ids in smollm2_prompts()]
    assert token_ids(ours, inputs) == token_ids(build(DEFAULT_MODEL), inputs)
