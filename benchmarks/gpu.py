"""nano-vllm's benchmark on a GPU: 256 requests, prompts and outputs of 100 to 1024 tokens.

    python benchmarks/gpu.py        ours, and vLLM and nano-vllm where they are importable

The model is shaped like Qwen3-0.6B and has random weights in bfloat16: speed does not depend on
what they are. Engines run one after the other, each in a process of its own, because each wants the
GPU's memory. Each round has other prompts: nano-vllm's prefix cache cannot be switched off. The
result goes into the "gpu" part of the benchmark's JSON. Without CUDA it says so.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(ROOT)]  # this folder has modules named as others' are

from benchmarks import summary  # noqa: E402
from benchmarks.children import Worker, WorkerError  # noqa: E402
from benchmarks.peers import Engine, Place, look_into  # noqa: E402
from benchmarks.workloads import Request, as_json  # noqa: E402

QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}

ENGINES = (
    Engine("minivllm", "minivllm", "minivllm", "minivllm"),
    Engine(
        "vllm", "vLLM", "vllm", "vllm", ("vllm",), "vllm",
        options={"enforce_eager": False},
        environment={"VLLM_NO_USAGE_STATS": "1"},
    ),
    Engine(
        "nano-vllm", "nano-vllm", "nano-vllm", "nanovllm", ("nano-vllm",),
        "git+https://github.com/GeeeekExplorer/nano-vllm.git",
        options={"enforce_eager": False},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much is asked for; the defaults are those of nano-vllm's README."""

    requests: int = 256
    shortest: int = 100
    longest: int = 1024
    vocabulary: int = 10000


def make_requests(size: Size, seed: int = 0) -> list[Request]:
    """Random tokens: prefixes that two requests share are none."""
    rng = random.Random(seed)

    def length() -> int:
        return rng.randint(size.shortest, size.longest)

    prompts = [[rng.randint(3, size.vocabulary) for _ in range(length())]
               for _ in range(size.requests)]  # fmt: skip
    return [Request(f"r{i}", prompt, length()) for i, prompt in enumerate(prompts)]


def write_model(directory: Path, config: dict[str, Any] = QWEN3_06B) -> Path:
    """A Hugging Face directory that all engines load: random weights, the tiny tokenizer."""
    import torch

    from minivllm.models.config import ModelConfig
    from minivllm.models.loader import _random_weights
    from minivllm.tokenizer_files import tiny_tokenizer

    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "model.safetensors"
    if path.is_file():
        return directory
    shape = ModelConfig.from_hf(config)
    weights = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in _random_weights(shape, 0)
        if name != "lm_head.weight" or not shape.tie_word_embeddings
    }
    for index in range(shape.num_hidden_layers):
        for norm in ("q_norm", "k_norm"):
            name = f"model.layers.{index}.self_attn.{norm}.weight"
            weights[name] = torch.ones(shape.head_dim, dtype=torch.bfloat16)
    header, offset = {}, 0
    for name, tensor in weights.items():
        span = [offset, offset + tensor.nbytes]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": span}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in weights.values():
            file.write(tensor.contiguous().view(torch.uint8).numpy().data)
    (directory / "config.json").write_text(json.dumps(config))
    tiny_tokenizer().save(directory)
    temporary.rename(path)
    return directory


def measure_engine(
    engine: Engine, place: Place, options: dict[str, Any], size: Size,
    rounds: int, timeout: float, logs: Path, say: Callable[[str], None],
) -> tuple[list[dict[str, Any]], str | None]:  # fmt: skip
    """Its rounds, and what went wrong if something did."""
    done: list[dict[str, Any]] = []
    worker = Worker(
        f"gpu-{engine.name}",
        python=place.python,
        environment={"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", **engine.environment},
        log=logs / f"gpu-{engine.name}.log",
    )
    try:
        worker.ask(timeout, do="load", kind=engine.kind, options={**options, **engine.options})
        warm_up = replace(size, requests=max(1, size.requests // 8))
        worker.ask(timeout, do="run", requests=as_json(make_requests(warm_up, seed=rounds)))
        for number in range(rounds):
            plain = as_json(make_requests(size, seed=number))
            result = worker.ask(timeout, do="run", requests=plain)
            done.append(summary.digest(plain, result))
            speed = done[-1]["output_tokens_per_s"]
            say(f"GPU, round {number + 1}: {engine.label} {speed:,.0f} output tokens/s")
    except (WorkerError, ValueError) as error:
        say(f"{engine.label}: left out. {error}")
        return done, str(error).splitlines()[0].split(" (log: ")[0]
    finally:
        worker.close()
    return done, None


def measure(
    model: Path, device: str, size: Size, rounds: int, timeout: float, logs: Path,
    say: Callable[[str], None], pythons: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Every engine that is importable in one of the interpreters."""
    import torch

    from minivllm.models.loader import load_model

    requests = make_requests(size)  # of the first round
    shape = load_model(model).config
    options = {
        "model": str(model),
        "device": device,
        "dtype": "bfloat16",
        "temperature": 0.6,
        "threads": torch.get_num_threads(),
        "max_model_len": min(4096, shape.max_position_embeddings),
        "max_num_seqs": 256,
        "max_num_batched_tokens": 16384,
        # On a GPU each takes what its own rule leaves; on a CPU there is no such rule.
        "cache_bytes": None if device == "cuda" else 1 << 26,
    }
    rows: dict[str, dict[str, Any]] = {}
    for engine in ENGINES:
        row: dict[str, Any] = {"label": engine.label, "rounds": [], "ratio": None, "problem": None}
        rows[engine.name] = row
        place = _find(engine, pythons)
        if place is None:
            row["problem"] = "not installed"
            say(f"{engine.label}: not installed. To have it:\n    pip install {engine.requirement}")
            continue
        row["version"] = place.versions.get(engine.module)
        row["rounds"], row["problem"] = measure_engine(
            engine, place, options, size, rounds, timeout, logs, say
        )
        ours = [one["output_tokens_per_s"] for one in rows["minivllm"]["rounds"]]
        theirs = [one["output_tokens_per_s"] for one in row["rounds"]]
        if engine.name != "minivllm" and ours and theirs:
            row["ratio"] = summary.ratios(ours, theirs)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "model": "Qwen3-0.6B's shape, random weights, bfloat16",
        "requests": len(requests),
        "prompt_tokens": sum(len(request.prompt) for request in requests),
        "output_tokens": sum(request.max_tokens for request in requests),
        "engines": rows,
    }


def _find(engine: Engine, pythons: Sequence[str]) -> Place | None:
    if engine.kind == "minivllm":
        return Place(sys.executable, {})
    for python in pythons:
        place = look_into(python, (engine,))
        if engine.module in place.versions:
            return place
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    from benchmarks.__main__ import DEFAULT_OUTPUT, PUBLISHED_GPU, write
    from benchmarks.peers import interpreters

    parser = argparse.ArgumentParser(description="nano-vllm's benchmark on a GPU.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--timeout", type=float, default=600.0)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT.with_name("gpu.json"))
    parser.add_argument("--note", help="what a reader of the page has to know of the peers")
    parser.add_argument("--publish", action="store_true", help="into the book's results too")
    options = parser.parse_args(arguments)
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured, and the page goes on saying so")
        return 0
    from benchmarks import report
    from minivllm.models.weight_cache import cache_root

    def say(line: str) -> None:
        print(line, flush=True)

    model = write_model(cache_root() / "bench" / "qwen3-0.6b-random")
    result = measure(
        model, "cuda", Size(options.requests), options.rounds, options.timeout,
        options.output.parent / "logs", say, interpreters(),
    )  # fmt: skip
    result["note"] = options.note
    print("\n" + report.gpu(result))
    for path in [options.output, *([PUBLISHED_GPU] if options.publish else [])]:
        write(path, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
