"""Our engine and its peers on the same requests, in turns.

All engines are loaded; all but the one that runs are stopped (SIGSTOP), so no idle one spins on
the cores. A round is one run of every engine; ratios are taken within a round.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine, peers, summary, workloads
from benchmarks.children import Worker, WorkerError
from benchmarks.peers import ENGINES, Engine

Say = Callable[[str], None]

LOAD_SHARE = 0.7
"""Of the requests a second that the slower of vLLM and ours has just served, all there at once."""


@dataclass(frozen=True)
class Settings:
    """What all engines share."""

    model: str
    threads: int
    rounds: int = 3
    seed: int = 0
    scale: float = 1.0
    rate: float | None = None
    timeout: float = 900.0
    dtype: str = "float32"
    max_model_len: int = 2048
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    cache_bytes: int = 1 << 30
    bandwidth_mib: int = 512


@dataclass(frozen=True)
class Model:
    """What the driver has to know of the model."""

    directory: str
    vocab_size: int
    kv_bytes_per_token: int
    weight_bytes: int
    read_bytes: int
    """Bytes of weights that a step reads: all but an embedding table that is no output layer too,
    of which it takes a row for each token."""
    corpus: list[int]


def open_model(name: str, dtype: str) -> Model:
    """Look at it, without keeping its weights."""
    from minivllm.models.loader import DTYPES, find_model, load_model

    loaded = load_model(name)
    itemsize = DTYPES[dtype].itemsize
    elements = {key: tensor.numel() for key, tensor in loaded.weights.items()}
    total = sum(elements.values())
    read = total
    if not loaded.config.tie_word_embeddings:
        read -= elements["model.embed_tokens.weight"]
    return Model(
        name if name == "tiny-random" else str(find_model(name)),
        loaded.config.vocab_size,
        loaded.config.kv_bytes_per_token(itemsize),
        total * itemsize,
        read * itemsize,
        loaded.tokenizer.encode(workloads.corpus_text()),
    )


class Bench:
    """The workers and what they measured."""

    def __init__(self, settings: Settings, model: Model, logs: Path, say: Say) -> None:
        self.settings, self.model, self.logs, self.say = settings, model, logs, say
        self.workers: dict[str, Worker] = {}
        self.engines: dict[str, dict[str, Any]] = {}

    def start(self, names: Sequence[str]) -> None:
        """Load and warm up every engine that is installed; say how to install the others."""
        for name in names:
            engine = ENGINES[name]
            row: dict[str, Any] = {"label": engine.label, "problem": None}
            self.engines[name] = row
            place = peers.find(engine)
            if place is None:
                row["problem"] = "not installed"
                row["install"] = engine.install_line()
                self.say(f"{engine.label}: not installed. To have it:\n    {row['install']}")
                continue
            if engine.kind != "minivllm" and self.model.directory == "tiny-random":
                row["problem"] = "needs a model's directory, and tiny-random has none"
                self.say(f"{engine.label}: {row['problem']}")
                continue
            try:
                self._load(engine, place.python, row)
            except (WorkerError, ValueError, OSError) as error:
                self._lose(name, error)

    def _load(self, engine: Engine, python: str, row: dict[str, Any]) -> None:
        settings = self.settings
        options = {**self._shared_options(), **engine.options}
        if engine.kind == "llama.cpp":
            from benchmarks.gguf_f32 import float32_gguf

            options["gguf"] = str(float32_gguf(Path(self.model.directory)))
        worker = Worker(
            engine.name,
            python=python,
            environment=peers.environment(engine, python, settings.threads),
            log=self.logs / f"{engine.name}.log",
        )
        self.workers[engine.name] = worker
        info = worker.ask(settings.timeout, do="load", kind=engine.kind, options=options)
        row |= {"load_seconds": info.pop("seconds"), **info}
        # Shapes that the workloads will have: kernels are chosen, packed and compiled now.
        warm = workloads.make("mixed", self.model.corpus, seed=-1, scale=settings.scale * 0.35)
        worker.ask(settings.timeout, do="run", requests=workloads.as_json(warm))
        self.say(f"{engine.label}: ready ({row['version']}, {row['load_seconds']:.1f} s)")

    def _shared_options(self) -> dict[str, Any]:
        settings, model = self.settings, self.model
        return {
            "model": model.directory,
            "vocab_size": model.vocab_size,
            "kv_bytes_per_token": model.kv_bytes_per_token,
            "device": "cpu",
            "temperature": 0.0,
            "threads": settings.threads,
            "dtype": settings.dtype,
            "max_model_len": settings.max_model_len,
            "max_num_seqs": settings.max_num_seqs,
            "max_num_batched_tokens": settings.max_num_batched_tokens,
            "cache_bytes": settings.cache_bytes,
        }

    def run(self, name: str, rate: float | None = None) -> dict[str, Any]:
        """All rounds of one workload."""
        settings = self.settings
        made = workloads.make(
            name, self.model.corpus, seed=settings.seed, scale=settings.scale, rate=rate
        )
        requests = workloads.as_json(made)
        rounds: dict[str, list[dict[str, Any]]] = {}
        tokens: dict[str, dict[str, list[int]]] = {}
        steady: dict[str, bool] = {}
        for number in range(settings.rounds):
            for engine in [e for e in self.workers if name in ENGINES[e].workloads]:
                before, started = machine.busy_seconds(), time.monotonic()
                try:
                    result = self.workers[engine].ask(settings.timeout, do="run", requests=requests)
                    row = summary.digest(requests, result)
                except (WorkerError, ValueError) as error:
                    self._lose(engine, error)
                    continue
                after, wall = machine.busy_seconds(), time.monotonic() - started
                if before is not None and after is not None:
                    row["cores_of_others"] = max(0.0, after - before - result["cpu_seconds"]) / wall
                self.engines[engine]["peak_rss"] = result["peak_rss"]
                rounds.setdefault(engine, []).append(row)
                first = tokens.setdefault(engine, result["token_ids"])
                steady[engine] = steady.get(engine, True) and first == result["token_ids"]
                self.say(
                    f"{name}, round {number + 1}: {ENGINES[engine].label} "
                    f"{row['output_tokens_per_s']:.1f} output tokens/s{summary.disturbance(row)}"
                )
        return {
            "requests": len(requests),
            "prompt_tokens": sum(len(request["prompt"]) for request in requests),
            "output_tokens": sum(request["max_tokens"] for request in requests),
            "rate": rate,
            "rounds": rounds,
            "same_tokens_every_round": steady,
            **_compared(rounds, tokens),
        }

    def _lose(self, name: str, error: Exception) -> None:
        """Go on without an engine."""
        if worker := self.workers.pop(name, None):
            worker.close()
        self.engines[name]["problem"] = _without_paths(error)
        self.say(f"{ENGINES[name].label}: left out. {error}")

    def close(self) -> None:
        """End all workers."""
        for worker in self.workers.values():
            worker.close()


def _without_paths(error: Exception) -> str:
    """A message for the published file: its first line, up to where the log lies."""
    return str(error).splitlines()[0].split(" (log: ")[0]


def _compared(
    rounds: dict[str, list[dict[str, Any]]], tokens: dict[str, dict[str, list[int]]]
) -> dict[str, Any]:
    """Ours beside each peer; nothing if ours did not run."""
    if "minivllm" not in rounds:
        return {"ratios": {}, "agreement": {}}
    ours = [row["output_tokens_per_s"] for row in rounds["minivllm"]]
    others = [name for name in rounds if name != "minivllm"]
    return {
        "ratios": {
            name: summary.ratios(ours, [row["output_tokens_per_s"] for row in rounds[name]])
            for name in others
        },
        "agreement": {name: summary.agreement(tokens["minivllm"], tokens[name]) for name in others},
    }


def load_rate(mixed: dict[str, Any]) -> float | None:
    """Requests a second that vLLM and ours can both hold; None if neither has run `mixed`."""
    seconds = [
        row["seconds"]
        for name in ("minivllm", "vllm", "vllm-eager")
        for row in mixed["rounds"].get(name, ())
    ]
    return LOAD_SHARE * mixed["requests"] / max(seconds) if seconds else None


def measure(
    settings: Settings, engines: Sequence[str], names: Sequence[str], logs: Path, say: Say
) -> dict[str, Any]:
    """Everything about engines, as plain data.

    Raises:
        ValueError: if `load` is asked for, and neither a rate nor `mixed` to take it from.
    """
    if "load" in names and settings.rate is None and "mixed" not in names:
        raise ValueError("workload 'load' takes its rate from 'mixed': run both, or set --rate")
    model = open_model(settings.model, settings.dtype)
    bytes_per_s = machine.bandwidth(settings.threads, settings.bandwidth_mib)
    say(f"memory: {bytes_per_s / 1e9:.1f} GB/s read with {settings.threads} threads")
    bench = Bench(settings, model, logs, say)
    results: dict[str, Any] = {}
    try:
        bench.start(engines)
        for name in sorted(names, key=workloads.NAMES.index):
            rate = None
            if name == "load":
                rate = settings.rate or load_rate(results["mixed"])
                if rate is None:
                    say("load: left out, no engine has run 'mixed' to take its rate from")
                    continue
            results[name] = bench.run(name, rate)
    finally:
        bench.close()
    # Neighbours on the machine only ever slow it: the better of before and after is nearer.
    bytes_per_s = max(bytes_per_s, machine.bandwidth(settings.threads, settings.bandwidth_mib))
    shared = bench._shared_options()
    return {
        "settings": {
            "model": settings.model,
            **{key: shared[key] for key in (
                "dtype", "threads", "max_model_len", "max_num_seqs", "max_num_batched_tokens",
                "cache_bytes",
            )},
            "seed": settings.seed,
            "scale": settings.scale,
            "rounds": settings.rounds,
        },
        "bandwidth_bytes_per_s": bytes_per_s,
        "weight_bytes": model.weight_bytes,
        "read_bytes_per_step": model.read_bytes,
        "engines": json.loads(json.dumps(bench.engines)),
        "workloads": results,
    }  # fmt: skip
