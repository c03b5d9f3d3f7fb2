"""Bring your own vLLM: a recording of a running server, replayed, judged, and asked what if.

    python -m minivllm.incident recording.jsonl.gz

`replay` runs our scheduler of the server's release on the recorded inputs and compares every
decision. What the run then tells is the same as of any run.
"""

from __future__ import annotations

from minivllm.incident.protocol import example
from minivllm.runs.recorded import Difference, RecordedRun, Replay, config_of
from minivllm.runs.recording import Recording, RecordingError, read_recording

__all__ = [
    "Difference",
    "RecordedRun",
    "Recording",
    "RecordingError",
    "Replay",
    "config_of",
    "example",
    "read_recording",
]
