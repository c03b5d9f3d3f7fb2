"""Text inputs read with or without a byte-order mark, and name an encoding that is not UTF-8."""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minivllm.models.loader import _read_json
from minivllm.runs.conformance import read_traces
from minivllm.sim import FittedCost, Trace, read_bench, read_results
from minivllm.sim.calibrate import Calibration, recorded
from minivllm.text_file import open_text, read_json, read_text
from minivllm.tokenizer_files import load_tokenizer, tiny_tokenizer

COST = FittedCost(0.01, {}, {0: 0.001})
TRACE = {"arrival": 0.5, "prompt_len": 5, "output_len": 3}
BENCH = {"duration": 2.0, "completed": 3, "mean_ttft_ms": 3.0}
WORKLOAD = {"config": {}, "requests": [], "aborts": [], "steps": []}

INPUTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "t.csv": ("arrival,prompt_len,output_len\n0.5,5,3\n", lambda path: Trace.load(path).arrivals),
    "t.jsonl": (json.dumps(TRACE) + "\n", lambda path: Trace.load(path).arrivals),
    "talk.json": (
        json.dumps([{"conversations": [{"from": "human", "value": "how much"},
                                       {"from": "gpt", "value": "a lot of é"}]}]),
        lambda path: Trace.load(path).arrivals,
    ),
    "bench.json": (json.dumps(BENCH), lambda path: read_bench(path).statistics),
    "rows.csv": ("key,rate\na,5\n", read_results),
    "cost.json": (json.dumps(COST.to_dict()), FittedCost.load),
    "calibration.json": (
        json.dumps(recorded().to_dict()), lambda path: Calibration.load(path).to_dict()
    ),
    "workloads.jsonl": (json.dumps(WORKLOAD) + "\n", lambda path: list(read_traces(path))),
    "config.json": (json.dumps({"a": "é"}), lambda path: _read_json(path.parent, path.name)),
}  # fmt: skip
"""A file's name, what is in it, and who reads it."""


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_a_byte_order_mark_changes_nothing(name: str, ending: str, tmp_path: Path) -> None:
    text, read = INPUTS[name]
    path = tmp_path / name
    data = text.replace("\n", ending).encode()
    path.write_bytes(data)
    expected = read(path)
    path.write_bytes(codecs.BOM_UTF8 + data)
    assert read(path) == expected


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize(
    "encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]
)
def test_another_encoding_is_named_with_what_to_do(
    name: str, encoding: str, tmp_path: Path
) -> None:
    text, read = INPUTS[name]
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=rf"{name}.*UTF-(16|32).*save it as UTF-8"):
        read(path)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "workloads.jsonl"])
def test_packed_lines_are_read_too(name: str, tmp_path: Path) -> None:
    text, read = INPUTS[name]
    plain, packed = tmp_path / name, tmp_path / f"{name}.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(codecs.BOM_UTF8 + text.encode()))
    assert read(packed) == read(plain)


def test_files_put_together_keep_each_its_mark(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(2 * (codecs.BOM_UTF8 + json.dumps(TRACE).encode() + b"\r\n"))
    assert len(Trace.load(path).arrivals) == 2


def test_a_text_may_be_empty_or_short(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    for text in ("", "a", "ab", "é"):
        path.write_text(text, encoding="utf-8")
        assert read_text(path) == text
        with open_text(path) as file:
            assert file.read() == text


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": "\xe9"}')  # Latin-1
    with pytest.raises(ValueError, match=r"x\.json: not UTF-8 text.*save it as UTF-8"):
        read_json(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_text(tmp_path / "nowhere")


def test_a_tokenizers_settings_may_begin_with_a_mark(tmp_path: Path) -> None:
    expected = tiny_tokenizer()
    expected.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (path := tmp_path / name).is_file():
            path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    read = load_tokenizer(tmp_path)
    assert (read.eos_token_id, read.chat_template) == (
        expected.eos_token_id, expected.chat_template,
    )  # fmt: skip
