"""Recordings of a server: written, cut, broken, replayed. vLLM itself is not needed."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm import vllm
from minivllm.core import SchedulerConfig
from minivllm.incident import RecordedRun, RecordingError, Replay, read_recording
from minivllm.incident.__main__ import main
from minivllm.runs.recording import encode_ids, encode_tokens
from tests.stand_in import CONFIG, SECRET, serve

DATA = Path(__file__).parent / "data" / "recordings"
REAL = sorted(DATA.glob("*.jsonl.gz"))


def replayed(path: Path) -> Replay:
    replay = Replay(read_recording(path)).run()
    assert replay.difference is None, str(replay.difference)
    return replay


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_a_real_server_is_replayed_to_its_last_step(path: Path, capsys) -> None:
    replay = replayed(path)
    assert replay.num_steps == replay.recording.num_steps > 10
    assert main([str(path)]) == 0
    steps = f"{replay.num_steps:,}"
    assert f"{steps} of {steps} steps identical" in capsys.readouterr().out


def test_the_real_ones_meet_what_matters() -> None:
    stats = [replayed(path).scheduler.stats for path in REAL]
    assert sum(s.num_preemptions for s in stats) > 10
    assert sum(s.prefix_cache_hits for s in stats) > 100
    assert {read_recording(path).header["async"] for path in REAL} == {True, False}
    assert any(read_recording(path).state for path in REAL)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_what_is_recorded_is_replayed(tmp_path, monkeypatch, ahead, policy) -> None:
    config = SchedulerConfig(**{**CONFIG.to_dict(), "policy": policy})
    for seed in range(4):
        path = tmp_path / f"{seed}.jsonl.gz"
        server, planned = serve(path, monkeypatch, seed=seed, ahead=ahead, config=config)
        server.shutdown()
        replay = replayed(path)
        assert replay.num_steps == planned
        assert not replay.live
        assert replay.scheduler.stats.num_preemptions == server.inner.stats.num_preemptions
        assert replay.scheduler.stats.prefix_cache_hits == server.inner.stats.prefix_cache_hits > 0


def test_no_text_and_no_token_id_is_written(tmp_path, monkeypatch) -> None:
    server, _ = serve(tmp_path / "a.jsonl.gz", monkeypatch)
    server.shutdown()
    assert str(SECRET) not in gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).decode()
    monkeypatch.setenv("MINIVLLM_RECORDING_TOKENS", "1")
    server, _ = serve(tmp_path / "b.jsonl.gz", monkeypatch)
    server.shutdown()
    asked = read_recording(tmp_path / "b.jsonl.gz")
    prompts = [request.prompt_token_ids for request in asked.requests.values()]
    assert all(len(prompt) == asked.requests[n].prompt_len for n, prompt in enumerate(prompts))
    assert any(prompt[0] == SECRET for prompt in prompts)
    assert replayed(tmp_path / "b.jsonl.gz").num_steps == asked.num_steps


def test_hashes_are_not_the_servers_own(tmp_path, monkeypatch) -> None:
    """A digest without its key tells nobody which prompt it was."""
    for name in "ab":
        server, _ = serve(tmp_path / f"{name}.jsonl.gz", monkeypatch)
        server.shutdown()
    first, second = (
        {h for r in read_recording(tmp_path / f"{name}.jsonl.gz").requests.values()
         for h in r.block_hashes}
        for name in "ab"
    )  # fmt: skip
    assert len(first) == len(second) > 10
    assert not first & second


def test_a_killed_server_loses_at_most_the_last_second(tmp_path) -> None:
    """The process gets SIGKILL from itself in mid-run; what was flushed before is there."""
    path = tmp_path / "killed.jsonl.gz"
    code = f"""
import os, signal, time
from pathlib import Path
from typing import Any
import pytest
import minivllm.vllm
from tests.stand_in import serve
minivllm.vllm.FLUSH_SECONDS = 0.05
steps = []
def between(server):
    steps.append(1)
    if len(steps) == 60:
        time.sleep(0.5)
        print(server.tape._num_added, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
serve(Path({str(path)!r}), pytest.MonkeyPatch(), between=between)
"""
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert run.returncode == -9, run.stderr
    replay = replayed(path)
    assert len(replay.recording.requests) == int(run.stdout) > 10
    assert replay.num_steps == replay.recording.num_steps > 30


def test_cut_anywhere_what_is_left_is_replayed(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.jsonl.gz"
    monkeypatch.setattr(vllm, "FLUSH_SECONDS", 0.001)
    server, planned = serve(path, monkeypatch, num_requests=80)
    server.shutdown()
    data = path.read_bytes()
    rng, some, none = random.Random(1), 0, 0
    for _ in range(60):
        end = rng.randrange(len(data))
        try:
            cut = read_recording(data[:end])
        except RecordingError:  # not even the header
            none += 1
            continue
        replay = Replay(cut).run()
        assert replay.difference is None, f"cut at {end}: {replay.difference}"
        assert replay.num_steps == cut.num_steps <= planned
        some += cut.num_steps > 0
    assert some > 30 > none


def test_broken_bytes_are_an_error_or_a_note(tmp_path) -> None:
    data = REAL[0].read_bytes()
    rng = random.Random(2)
    for _ in range(200):
        broken = bytearray(data)
        broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        with suppress(RecordingError):  # nothing else may come
            Replay(read_recording(bytes(broken))).run()


LINES = gzip.decompress(REAL[0].read_bytes()).splitlines()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, len(LINES) - 1), st.integers(0, 10), VALUES)
def test_a_hostile_line_is_an_error_or_a_difference(line: int, place: int, value: object) -> None:
    row = json.loads(LINES[line])
    row[place % len(row)] = value
    lines = [*LINES]
    lines[line] = json.dumps(row).encode()
    with suppress(RecordingError):  # nothing else may come
        Replay(read_recording(b"\n".join(lines))).run()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(json.loads(LINES[0])["knobs"])), VALUES)
def test_a_hostile_knob_is_an_error(knob: str, value: object) -> None:
    header = json.loads(LINES[0])
    header["knobs"][knob] = value
    lines = [json.dumps(header).encode(), *LINES[1:]]
    with suppress(RecordingError):  # nothing else may come
        Replay(read_recording(b"\n".join(lines))).run()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no header"),
        (b"hello\n", "no header"),
        (b'{"version": 1}\n', "no header"),
        (b'{"minivllm_recording": 2}\n', "newer minivllm"),
        (b'{"minivllm_recording": 1, "vllm": "0.32.0"}\n', "no knobs"),
        (b'{"minivllm_recording": 1, "vllm": "1", "knobs": {"num_gpu_blocks": 1e99}}', "num_gpu"),
        (gzip.compress(b"[" * 100_000), "no header"),
    ],
)
def test_what_is_no_recording_is_refused(data: bytes, message: str, tmp_path, capsys) -> None:
    with pytest.raises(RecordingError, match=message):
        read_recording(data)
    for name in ("x.jsonl.gz", "x.jsonl"):
        (tmp_path / name).write_bytes(data)
        assert main([str(tmp_path / name)]) == 2
        assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("end", [0, 1, 5, 12, 20])
def test_a_recording_cut_in_its_first_bytes_is_an_error(end: int, tmp_path, capsys) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(REAL[0].read_bytes()[:end])
    assert main([str(path)]) == 2
    assert "error: " in capsys.readouterr().err


def test_a_release_that_is_not_known_is_named(tmp_path, capsys) -> None:
    header = json.loads(LINES[0])
    header["vllm"] = "0.99.0"
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join([json.dumps(header).encode(), *LINES[1:]])))
    assert main([str(path)]) == 2
    assert "vLLM 0.99.0; the releases that can be replayed are 0.22.1" in capsys.readouterr().err
    assert main([str(path), "--as", "0.22.1"]) == 0


def test_another_release_decides_otherwise_and_the_first_step_is_named(capsys) -> None:
    path = DATA / "vllm-0.32.0-async.jsonl.gz"
    assert main([str(path), "--as", "0.22.1"]) == 1
    said = capsys.readouterr().out
    assert "steps identical, as 0.22.1" in said
    assert "first difference: step " in said
    assert "please report it" in said


def test_a_feature_that_cannot_be_followed_is_named(tmp_path, monkeypatch, capsys) -> None:
    lines = [json.loads(line) for line in LINES]
    lines[0]["unfollowed"] = ["a KV connector (LMCache)"]
    added = next(line for line in lines[1:] if line[0] == "a")
    added[-1] = ["LoRA"]
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    main([str(path)])
    assert "cannot follow: a KV connector (LMCache); LoRA (1 requests)" in capsys.readouterr().out


def test_a_full_disk_ends_the_recording_and_nothing_else(tmp_path, monkeypatch, caplog) -> None:
    real = vllm.Segments.write

    def full(self, lines: bytes) -> None:
        if self._size:  # the header is there
            raise OSError(28, "No space left on device")
        real(self, lines)

    monkeypatch.setattr(vllm.Segments, "write", full)
    server, planned = serve(tmp_path / "a.jsonl.gz", monkeypatch, num_requests=200)
    server.shutdown()
    assert planned > 200
    assert not server.requests
    lines = [r.getMessage() for r in caplog.records if "stopped recording" in r.getMessage()]
    assert len(lines) == 1
    assert "No space left" in lines[0]
    assert read_recording(tmp_path / "a.jsonl.gz").notes == ["a.jsonl.gz: it holds no step"]


def test_no_place_to_write_is_said_and_the_server_serves(tmp_path, monkeypatch, caplog) -> None:
    server, planned = serve(tmp_path / "no" / "a.jsonl.gz", monkeypatch)
    server.shutdown()
    assert planned > 20
    assert "does not record (FileNotFoundError" in caplog.text


CADENCE = SchedulerConfig(
    **{
        **CONFIG.to_dict(),
        "vllm_version": "0.33.0",
        "prefill_schedule_interval": 20,
        "max_num_seqs": 60,
        "num_gpu_blocks": 400,
        "max_num_batched_tokens": 200,
    }
)
"""Nearly every step is one that holds prompts back, so a segment begins among them."""


@pytest.mark.parametrize(
    ("ahead", "config"), [(False, CONFIG), (True, CONFIG), (False, CADENCE), (True, CADENCE)]
)
def test_segments_keep_to_their_size_and_each_is_whole(
    tmp_path, monkeypatch, ahead, config
) -> None:
    """Of a server that is stopped in the middle of its work."""
    import time

    monkeypatch.setattr(vllm, "FLUSH_SECONDS", 0.002)
    monkeypatch.setenv("MINIVLLM_RECORDING_MB", "0.01")
    steps = iter(range(100))

    def until_stopped(server: Any) -> None:
        time.sleep(0.001)
        if next(steps, None) is None:
            server.shutdown()
            raise KeyboardInterrupt

    path = tmp_path / "a.jsonl.gz"
    with pytest.raises(KeyboardInterrupt):
        serve(
            path, monkeypatch, num_requests=200, config=config, ahead=ahead, between=until_stopped
        )
    paths = list(tmp_path.glob("a*.jsonl.gz"))
    assert 2 <= len(paths) <= vllm.Segments.NUM_KEPT
    assert not (tmp_path / "a.jsonl.gz").exists()
    for path in paths:
        recording = read_recording(path)
        assert recording.state is not None
        assert replayed(path).num_steps == recording.num_steps


def test_a_window_into_a_long_run_is_as_that_part_of_the_whole() -> None:
    recording = read_recording(DATA / "vllm-0.22.1-sync.jsonl.gz")
    whole = RecordedRun(recording, 0, recording.num_steps).history.steps
    part = RecordedRun(recording, 20, 10)
    assert [step["step"] for step in part.history.steps] == list(range(20, 30))
    first = part.history.steps[1:]
    assert first == whole[21:30]
    part.step()
    assert part.history.steps[-1] == whole[30]
    with pytest.raises(RecordingError, match="no step 100000"):
        RecordedRun(recording, 100_000)


def test_the_stepper_steps_a_recording() -> None:
    pytest.importorskip("anywidget")
    from minivllm.stepper import SchedulerStepper

    recording = read_recording(DATA / "vllm-0.32.0-async.jsonl.gz")
    run = RecordedRun(recording, 40, 3)
    stepper = SchedulerStepper(run)
    assert len(stepper.history) == 3
    assert stepper.sentences
    answer = stepper._session.handle({"id": 1, "type": "step"})
    assert answer["ok"]
    assert [step["step"] for step in answer["steps"]] == [3]  # as the view counts: 43 less 40
    refused = stepper._session.handle({"id": 2, "type": "abort", "request_id": "x"})
    assert not refused["ok"]


def test_perfetto_draws_some_steps(tmp_path, capsys) -> None:
    out = tmp_path / "out.json"
    path = DATA / "vllm-0.22.1-sync.jsonl.gz"
    assert main([str(path), "--steps", "10:20", "--perfetto", str(out)]) == 0
    assert "steps 10 to 19" in capsys.readouterr().out
    assert json.loads(out.read_text())["traceEvents"]
    assert main([str(path), "--steps", "10", "--perfetto", str(out)]) == 2


@given(st.lists(st.integers(0, 50)))
def test_ids_and_tokens_are_read_as_written(numbers: list[int]) -> None:
    from itertools import accumulate

    assert list(accumulate(encode_ids(numbers))) == numbers
    runs = encode_tokens([n + 1 for n in numbers])
    if runs == 0:
        assert set(numbers) <= {0}
    else:
        counts = [v for n, value in zip(runs[::2], runs[1::2]) for v in [value] * n]
        assert counts == [n + 1 for n in numbers]


def test_the_recorder_needs_nothing_but_python() -> None:
    code = "import sys, minivllm.vllm; print([m for m in sys.modules if m.partition('.')[0] in "
    code += "('torch', 'numpy', 'plotly', 'vllm')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
