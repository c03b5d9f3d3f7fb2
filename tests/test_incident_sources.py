"""From less than a recording: flags, logs, metrics and benchmarks of real servers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from minivllm.incident.__main__ import main
from minivllm.incident.sources import Known, read_flags, read_log, read_metrics, read_sources, told

DATA = Path(__file__).parent / "data" / "server"
LOG, METRICS = DATA / "serve.log", DATA / "metrics.txt"


def test_the_log_of_a_real_server_tells_its_configuration() -> None:
    known = read_sources([LOG])
    config = known.config()
    assert config.vllm_version == "0.32.0"
    assert config.num_gpu_blocks == 256  # --num-gpu-blocks-override 257, with the null block
    assert (config.block_size, config.max_model_len, config.max_num_seqs) == (32, 1024, 4)
    assert config.enable_prefix_caching
    assert not known.missing
    assert known.outcome["max_waiting"] == 2
    assert "--num-gpu-blocks 256" in told(known)


def test_the_cache_size_alone_gives_the_blocks_if_the_block_size_is_known() -> None:
    lines = [line for line in LOG.read_text().splitlines() if "KV cache size" in line]
    known = Known()
    read_log("\n".join(lines), known)
    assert "num_gpu_blocks" in known.finish().missing
    read_flags("vllm serve m --block-size 32", known)
    assert known.finish().knobs["num_gpu_blocks"] == 8_224 // 32 - 1


def test_metrics_tell_load_outcome_and_blocks() -> None:
    known = read_sources([METRICS])
    assert known.knobs["block_size"] == 32
    assert known.knobs["num_gpu_blocks"] == 256
    assert known.load["requests"] > 70
    assert 0 < known.outcome["mean_itl"] < known.outcome["mean_ttft"] < known.outcome["mean_e2e"]
    assert "max_num_seqs" in known.missing
    assert any("one scrape tells of all" in note for note in known.notes)


def test_what_of_the_first_token_is_queue_and_what_is_prefill() -> None:
    known = read_sources([LOG, METRICS])
    said = told(known)
    assert "Of the 1.01 s to a first token, 43.0 µs (0%) are waiting to be scheduled." in said
    assert "940 ms (93%) pass from there to the first token: look at the steps" in said
    known.outcome["mean_prefill_time"] = 0.4
    assert "400 ms (40%) pass from there to the first token." in told(known)


def test_two_scrapes_tell_of_what_lies_between() -> None:
    before = METRICS.read_text()
    count = re.compile(r"^(vllm:prompt_tokens_total\{.*\}) (.*)$", re.MULTILINE)
    after = count.sub(lambda match: f"{match[1]} {float(match[2]) + 1000}", before)
    assert after != before
    known = Known()
    read_metrics([("a", before), ("b", after)], known)
    assert known.load["prompt_tokens"] == 1000
    assert known.load["output_tokens"] == 0
    with pytest.raises(ValueError, match="a is later than b"):
        read_metrics([("a", before), ("b", "vllm:generation_tokens_total 0\n")], Known())


@pytest.mark.parametrize(
    ("command", "knobs"),
    [
        ("vllm serve m --max-num-seqs 64 --max-num-batched-tokens=4096",
         {"max_num_seqs": 64, "max_num_batched_tokens": 4096}),
        ("vllm serve m --max_num_seqs 64 --no-enable-prefix-caching",
         {"max_num_seqs": 64, "enable_prefix_caching": False}),
        ("vllm serve m \\\n  --max-model-len 8k --scheduling-policy priority",
         {"max_model_len": 8000, "policy": "priority"}),
        ("vllm serve m --num-gpu-blocks-override 100 --watermark 0.05 --max-model-len 8K",
         {"num_gpu_blocks": 99, "watermark": 0.05, "max_model_len": 8192}),
        ("vllm serve m --enable-chunked-prefill --port 80 --max-num-seqs 2",
         {"enable_chunked_prefill": True, "max_num_seqs": 2}),
    ],
)  # fmt: skip
def test_flags_are_read(command: str, knobs: dict[str, object]) -> None:
    known = Known()
    read_flags(command, known)
    assert known.knobs.items() >= knobs.items()
    assert known.finish().knobs["long_prefill_token_threshold"] == 0


def test_a_flag_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match=r"--max-num-seqs must be a number, got 'many'"):
        read_flags("vllm serve m --max-num-seqs many", Known())


def test_files_that_disagree_are_told() -> None:
    known = Known()
    read_flags("vllm serve m --max-num-seqs 8", known, "a.sh")
    read_flags("vllm serve m --max-num-seqs 9", known, "b.sh")
    assert known.knobs["max_num_seqs"] == 8
    assert known.notes == ["max_num_seqs is 8 by a.sh and 9 by b.sh; the first is taken"]


def test_what_is_missing_is_said_with_how_to_get_it(tmp_path, capsys) -> None:
    flags = tmp_path / "serve.sh"
    flags.write_text("vllm serve m --max-num-seqs 8\n")
    assert main([str(flags)]) == 0
    said = capsys.readouterr().out
    assert "num_gpu_blocks: the server's log says `KV cache size: … tokens`" in said
    assert "--scheduler-cls minivllm.vllm.Recorder" in said
    with pytest.raises(ValueError, match="vllm_version is not known: the server's log"):
        read_sources([flags]).config()


def test_a_benchmark_joins_the_log(tmp_path, capsys) -> None:
    bench = tmp_path / "result.json"
    rows = {"duration": 10.0, "completed": 2, "input_lens": [5, 6], "output_lens": [2, 2],
            "ttfts": [0.1, 0.3], "itls": [[0.05], [0.07]], "start_times": [0.0, 1.0],
            "total_input_tokens": 11, "total_output_tokens": 4}  # fmt: skip
    bench.write_text(json.dumps(rows))
    assert main([str(LOG), str(bench)]) == 0
    said = capsys.readouterr().out
    assert "--measured result.json" in said
    assert "mean_ttft: 0.2" in said
    assert read_sources([bench]).load["requests"] == 2


@pytest.mark.parametrize("data", [b"", b"hello world", b"\x00\x01\x02", b"[1, 2]", b"{}"])
def test_what_is_none_of_these_is_an_error(data, tmp_path, capsys) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(data)
    assert main([str(path)]) == 2
    assert "error: " in capsys.readouterr().err


def test_hostile_lines_do_no_harm(tmp_path) -> None:
    lines = [
        "INFO 11-29 10:00:00 [x.py:1] non-default args: {'max_num_seqs': __import__('os')}",
        "INFO 11-29 10:00:00 [x.py:1] non-default args: {'max_num_seqs': 7, 'x': <object>}",
        "INFO 11-29 10:00:00 [x.py:1] KV cache size: ,,, tokens",
        "INFO 11-29 10:00:00 [x.py:1] Initializing a V1 LLM engine (v9.9.9) with config: x",
        "INFO 11-29 10:00:00 [x.py:1] " + "(" * 100_000,
    ]
    known = Known()
    read_log("\n".join(lines), known)
    assert known.knobs == {"max_num_seqs": 7}
    assert any("vLLM 9.9.9 is not known" in note for note in known.notes)
