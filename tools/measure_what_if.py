"""Serve one model under several configurations and loads, for `minivllm.incident.protocol`.

    python tools/measure_what_if.py --vllm .venv-peers/bin/vllm --model MODEL_DIR OUT_DIR

Each configuration is a server of its own, recorded by minivllm.vllm.Recorder; each load is a run of
`vllm bench serve` with a seed of its own, the same under every configuration. OUT_DIR gets
`fit.jsonl.gz`, the recording under the first, and `what-if.json`, what the client measured. The
machine should have nothing else to do: on a busy one, give both the highest priority.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minivllm.incident.protocol import client_means
from minivllm.runs.recording import read_recording

ROOT = Path(__file__).resolve().parents[1]
PORT = 8199
COMMON = "--block-size 32 --enable-prefix-caching --max-model-len 1024"

FIT = "--num-gpu-blocks-override 257 --max-num-batched-tokens 2048 --max-num-seqs 64"
"""What the predictions are fitted to."""

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "small-budget": (
        "--num-gpu-blocks-override 257 --max-num-batched-tokens 64 --max-num-seqs 32",
        {"max_num_batched_tokens": 64, "max_num_seqs": 32},
    ),
    "few-seats": (
        "--num-gpu-blocks-override 257 --max-num-batched-tokens 2048 --max-num-seqs 4",
        {"max_num_seqs": 4},
    ),
    "few-blocks": (
        "--num-gpu-blocks-override 37 --max-num-batched-tokens 512 --max-num-seqs 64",
        {"num_gpu_blocks": 36, "max_num_batched_tokens": 512},
    ),
}
"""Flags of the server, and the same as our knobs, where they differ from the fit's."""

MORE = (
    "--random-input-len 96 --random-output-len 24 --random-range-ratio 0.8 --num-prompts 32 "
    "--request-rate 1.2 --seed 1",
    "--random-input-len 60 --random-output-len 40 --random-range-ratio 0.8 --num-prompts 32 "
    "--request-rate inf --seed 2",
    "--random-input-len 400 --random-output-len 16 --random-range-ratio 0.8 --num-prompts 12 "
    "--request-rate 0.5 --seed 3",
)
"""Loads under the fit's configuration alone: steps of many sizes."""

LOADS = {
    "steady": "--random-input-len 64 --random-output-len 32 --random-range-ratio 0.4 "
    "--num-prompts 32 --request-rate 0.9 --seed 11",
    "bursty": "--random-input-len 96 --random-output-len 40 --random-range-ratio 0.6 "
    "--num-prompts 32 --request-rate 1.0 --burstiness 0.3 --seed 12",
    "flood": "--random-input-len 80 --random-output-len 48 --random-range-ratio 0.5 "
    "--num-prompts 24 --request-rate inf --seed 13",
    "prefix": "--random-prefix-len 128 --random-input-len 40 --random-output-len 32 "
    "--random-range-ratio 0.3 --num-prompts 32 --request-rate 0.9 --seed 14",
}


class Bench:
    """Where vLLM and the model are, and where results go."""

    def __init__(self, vllm: Path, model: str, out: Path) -> None:
        self.vllm, self.model, self.out = vllm, model, out
        self.env = {**os.environ, "HF_HUB_OFFLINE": "1"}

    @contextmanager
    def server(self, name: str, flags: str) -> Iterator[subprocess.Popen[bytes]]:
        """A recorded server, up and listening: the leader of its process group."""
        env = {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            **self.env,
            "PYTHONPATH": str(ROOT),
            "MINIVLLM_RECORDING": str(self.out / f"{name}.jsonl.gz"),
        }
        command = f"{self.vllm} serve {shlex.quote(self.model)} --served-model-name m {COMMON} "
        command += f"--dtype float32 --enforce-eager --port {PORT} {flags} "
        command += "--scheduler-cls minivllm.vllm.Recorder"
        with (self.out / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                shlex.split(command), env=env, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait(process)
            yield process
        finally:
            if process.poll() is None:
                process.terminate()  # it ends its workers itself
            process.wait(timeout=60)

    def _wait(self, process: subprocess.Popen[bytes], seconds: float = 600.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if process.poll() is not None:
                raise RuntimeError(f"vllm serve ended with {process.returncode}; see its log")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(1)
        raise TimeoutError(f"vllm serve does not listen after {seconds:g} s; see its log")

    def load(self, flags: str) -> dict[str, float]:
        """One run of the client: the means that it measured, in seconds."""
        result = self.out / "result.json"
        command = f"{self.vllm} bench serve --backend openai --base-url http://127.0.0.1:{PORT} "
        command += f"--model m --tokenizer {shlex.quote(self.model)} --dataset-name random "
        command += f"--ignore-eos --save-result --result-filename {shlex.quote(str(result))} "
        command += f"--percentile-metrics ttft,itl,e2el {flags}"
        subprocess.run(shlex.split(command), env=self.env, check=True, stdout=subprocess.DEVNULL)
        return client_means(json.loads(result.read_text(encoding="utf-8")))


def requests_of_runs(recording: Path) -> list[tuple[int, int]]:
    """Of each run of the client, the first and the last number of its requests."""
    runs: dict[str, list[int]] = {}
    for number, request in read_recording(recording).requests.items():
        match = re.match(r"cmpl-(bench-[0-9a-f]+)-", request.request_id)
        if match:
            runs.setdefault(match[1], []).append(number)
    return [(min(numbers), max(numbers)) for numbers in runs.values()]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure what predictions are held against.")
    parser.add_argument("out", type=Path, help="a folder")
    parser.add_argument("--vllm", type=Path, default=Path("vllm"), help="the command")
    parser.add_argument("--model", required=True, help="a name or a folder")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.vllm, options.model, options.out)
    data: dict[str, Any] = {"loads": {}, "configs": {}}
    with bench.server("fit", FIT):
        for flags in MORE:
            bench.load(flags)
        for name, flags in LOADS.items():
            data["loads"][name] = {"flags": flags, "client": bench.load(flags)}
    runs = requests_of_runs(options.out / "fit.jsonl.gz")[len(MORE) :]
    for told, run in zip(data["loads"].values(), runs, strict=True):
        told["requests"] = run
    for config, (flags, knobs) in CONFIGS.items():
        with bench.server(config, flags):
            client = {name: bench.load(load) for name, load in LOADS.items()}
        data["configs"][config] = {"flags": flags, "knobs": knobs, "client": client}
    text = json.dumps(data, indent=1) + "\n"
    (options.out / "what-if.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
