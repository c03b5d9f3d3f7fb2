"""A recording of a real server, opened in a page: bytes in, then a session that steps it.

Messages before it is open, each answered at once, so that a long way is told as it is made:

- `load` (data: the file in base64, name): read it; answers with `num_steps`, `name` and `notes`.
- `seek` (step): replay up to that step, at most `STEPS_A_SEEK` of them; answers with `at`, and
  `reached` once it is there.
- `open`: from where the replay stands; then it is a `LiveSession`, and its messages are answered.

A later `load` begins anew, a later `seek` goes on from where the replay stands, or, backwards, from
the beginning.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from minivllm.runs.recorded import RecordedRun, Replay
from minivllm.runs.recording import Recording, read_recording
from minivllm.runs.scenario import LIMITS, shown
from minivllm.runs.snapshot import Snapshot
from minivllm.stepper.live import LiveSession

STEPS_A_SEEK = 1_000
MAX_DATA = 64 << 20
"""Bytes of a file."""
MAX_BLOCKS = LIMITS["num_gpu_blocks"][1]
"""So many blocks a view draws; of a larger pool, the first."""


class RecordingSession:
    """Answers a view's messages about one recording; whatever comes in, an answer comes out."""

    def __init__(self) -> None:
        self.recording: Recording | None = None
        self.replay: Replay | None = None
        self.live: LiveSession | None = None

    def handle_json(self, text: str) -> str:
        """`handle`, JSON both ways."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            message = None
        return json.dumps(self.handle(message), separators=(",", ":"))

    def handle(self, message: object) -> dict[str, Any]:
        """Answer one message; never raises for what the message or the file says."""
        if not isinstance(message, Mapping):
            return _refused(None, f"a message is an object, got {shown(message)}")
        id_, type_ = message.get("id"), message.get("type")
        own = {"load": self._load, "seek": self._seek, "open": self._open}
        try:
            if isinstance(type_, str) and type_ in own:
                return {"id": id_, "ok": True, **own[type_](message)}
            if self.live is None:
                return _refused(id_, "no recording is open")
            return _drawable(self.live.handle(message))
        except (ValueError, MemoryError) as error:
            return _refused(id_, str(error) or "it does not fit into this page's memory")

    def _load(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self.recording = self.replay = self.live = None
        data, name = message.get("data"), message.get("name")
        if not isinstance(data, str) or len(data) > MAX_DATA * 4 // 3 + 4:
            raise ValueError(f"a file of at most {MAX_DATA >> 20} MB is expected")
        try:
            content = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("the file did not arrive whole") from None
        recording = read_recording(content, name if isinstance(name, str) else None)
        if not recording.num_steps:
            raise ValueError(f"{recording.name}: it holds no step")
        self.replay = Replay(recording)
        self.recording = recording
        return {
            "name": recording.name,
            "num_steps": recording.num_steps,
            "vllm": recording.version,
            "notes": recording.notes,
        }

    def _seek(self, message: Mapping[str, Any]) -> dict[str, Any]:
        recording, step = self.recording, message.get("step")
        if recording is None or self.replay is None:
            raise ValueError("no recording is loaded")
        if type(step) is not int or not 0 <= step < recording.num_steps:
            raise ValueError(
                f"step must be an integer from 0 to {recording.num_steps - 1}, got {shown(step)}"
            )
        if self.live is not None or step < self.replay.num_steps:
            self.replay, self.live = Replay(recording), None
        self.replay.run(min(step, self.replay.num_steps + STEPS_A_SEEK))
        if self.replay.difference is not None:
            raise ValueError(f"decisions differ from here on: {self.replay.difference}")
        return {"at": self.replay.num_steps, "reached": self.replay.num_steps == step}

    def _open(self, message: Mapping[str, Any]) -> dict[str, Any]:
        if self.recording is None or self.replay is None:
            raise ValueError("no recording is loaded")
        run = RecordedRun(self.recording, self.replay.num_steps, replay=self.replay)
        title = f"{self.recording.name}: vLLM {self.recording.version}"
        self.live = LiveSession(run.scheduler, run, title)
        return _drawable(self.live.answer(0, everything=True))


def _refused(id_: Any, message: str) -> dict[str, Any]:
    return {"id": id_, "ok": False, "errors": [{"field": "", "message": message}]}


def _drawable(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer whose pools have no more blocks than a view draws."""
    if answer.get("config", {}).get("num_gpu_blocks", 0) > MAX_BLOCKS:
        total = answer["config"]["num_gpu_blocks"]
        answer["config"] = {**answer["config"], "num_gpu_blocks": MAX_BLOCKS}
        answer["steps"] = [_cut(snapshot) for snapshot in answer["steps"]]
        if "scenario" in answer:
            question = f"The pool has {total:,} blocks; drawn are the first {MAX_BLOCKS:,}."
            answer["scenario"]["question"] = f"{answer['scenario']['question']} {question}".strip()
    return answer


def _cut(snapshot: Snapshot) -> dict[str, Any]:
    blocks, size = snapshot["blocks"], MAX_BLOCKS + 1
    rows = {
        id_: {**row, "block_table": [b for b in row["block_table"] if b < size]}
        for id_, row in snapshot["requests"].items()
    }
    return {
        **snapshot,
        "requests": rows,
        "blocks": {
            "state": blocks["state"][:size],
            "ref_cnt": blocks["ref_cnt"][:size],
            "owners": blocks["owners"][:size],
            "block_hash": blocks["block_hash"][:size],
            "free_queue": [b for b in blocks["free_queue"] if b < size],
        },
    }
