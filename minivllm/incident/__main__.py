"""`python -m minivllm.incident FILE`: see `make_parser`."""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minivllm.core.releases import RELEASES
from minivllm.extras import extra
from minivllm.incident.ledger import Ledger
from minivllm.incident.sources import is_less, read_sources
from minivllm.incident.sources import told as sources_told
from minivllm.incident.verdict import Verdict, judge, prediction_to_dict, table, to_dict
from minivllm.incident.verdict import told as verdict_told
from minivllm.incident.what_if import (
    Oracle,
    Prediction,
    measured_means,
    parse_knob,
    relative_errors,
)
from minivllm.runs.recorded import RecordedRun, Replay
from minivllm.runs.recording import Recording, read_recording
from minivllm.viz.perfetto import write_perfetto

PROG = "python -m minivllm.incident"


def make_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Replay what a vLLM server recorded (vllm serve --scheduler-cls "
        "minivllm.vllm.Recorder), step by step, and explain what happened.",
        epilog="exit status: 0 every step as the server; 1 one was not; 2 nothing to replay.",
    )
    parser.add_argument(
        "file", type=Path, nargs="+",
        help="of minivllm.vllm.Recorder, NAME.jsonl.gz; or less: the log or the flags of `vllm "
        "serve`, one or two scrapes of /metrics, a result of `vllm bench serve`, together",
    )  # fmt: skip
    parser.add_argument(
        "--as", dest="version", choices=RELEASES, metavar="RELEASE",
        help="decide as this release of vLLM, whatever the file says",
    )  # fmt: skip
    parser.add_argument(
        "--what-if", action="append", default=[], metavar="KNOB=VALUE[,...]",
        help="predict the same requests under other knobs: max_num_batched_tokens=4096, "
        "blocks=*1.5, release=0.33.0, victim=least_computed, queue=priority, ...; several times",
    )  # fmt: skip
    parser.add_argument(
        "--no-advice", action="store_false", dest="advice", help="try no knobs: quicker"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the verdict as JSON")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write it as a page with figures")
    parser.add_argument(
        "--steps", metavar="A:B", help="the steps that --perfetto draws (default 0:1000)"
    )
    parser.add_argument(
        "--perfetto", type=Path, metavar="OUT", help="draw them for ui.perfetto.dev"
    )
    return parser


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The command line; returns the exit status."""
    options = make_parser(prog).parse_args(arguments)
    try:
        asked = [parse_knob(text) for text in options.what_if]
        if any(is_less(path) for path in options.file):
            print(sources_told(read_sources(options.file)))
            return 0
        if len(options.file) > 1:
            raise ValueError("give one recording at a time: each segment is replayed by itself")
        recording = read_recording(options.file[0])
        ledger = Ledger.of(recording, options.version)
        said = "\n".join([*(f"note: {note}" for note in recording.notes), told(ledger.replay)])
        print(said, end="\n\n", flush=True)
        verdict = judge(ledger, try_knobs=options.advice and not asked)
        print(verdict_told(verdict), flush=True)
        predictions = _predictions(ledger, asked)
        _write(options, verdict, said, predictions)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0 if ledger.replay.difference is None else 1


def _predictions(ledger: Ledger, asked: Sequence[dict[str, Any]]) -> list[Prediction]:
    """The configuration as it was, and what was asked for; each printed."""
    if not asked:
        return []
    oracle = Oracle(ledger)
    as_it_was = oracle.ask({})
    predictions = [as_it_was, *(oracle.ask(knobs) for knobs in asked)]
    print("\nWhat if (the same requests, steps priced by this recording):")
    print("\n".join(table(as_it_was, predictions[1:])))
    paused = oracle.ask({}, pauses=True) if oracle.pauses else as_it_was
    errors = relative_errors(paused.means, measured_means(ledger))
    off = ", ".join(f"{name.upper()} {error:+.1%}" for name, error in errors.items())
    print(f"The configuration as it was, predicted, lies off what was measured by: {off}.")
    print(PROTOCOL)
    for note in [*oracle.traffic.notes, *filter(None, [oracle.told_pauses])]:
        print(f"note: {note}")
    return predictions


PROTOCOL = (
    "Arrivals stay as recorded: users who wait for an answer before they ask again would ask "
    "otherwise."
)


def _write(
    options: argparse.Namespace, verdict: Verdict, said: str, predictions: list[Prediction]
) -> None:
    """The files that were asked for."""
    recording = verdict.ledger.recording
    if options.json is not None:
        data = to_dict(verdict)
        data["asked"] = [prediction_to_dict(prediction) for prediction in predictions]
        options.json.write_text(json.dumps(data, indent=1, allow_nan=False), encoding="utf-8")
    if options.html is not None:
        with extra("sim", "--html"):
            from minivllm.incident.report import report
        options.html.write_text(report(verdict, said, predictions), encoding="utf-8")
    if options.perfetto is not None:
        first, last = _window(options.steps, recording)
        write_perfetto(options.perfetto, RecordedRun(recording, first, last - first).history)
        print(f"steps {first:,} to {last - 1:,}: {options.perfetto}, for ui.perfetto.dev")


def _window(text: str | None, recording: Recording) -> tuple[int, int]:
    first, _, last = (text or "0:1000").partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise ValueError(f"--steps must be A:B with A < B, got {text}")
    return int(first), min(int(last), recording.num_steps)


def told(replay: Replay) -> str:
    """Whether our scheduler decided as the server did, and if not, why that may be."""
    recording = replay.recording
    kind = "asynchronous" if recording.header.get("async") else "synchronous"
    lines = [
        f"vLLM {recording.version}, {kind} scheduling, {len(recording.requests):,} requests in "
        f"{recording.duration:,.1f} s",
        f"{replay.num_steps:,} of {recording.num_steps:,} steps identical"
        + (
            f", as {replay.config.vllm_version}" * (replay.config.vllm_version != recording.version)
        ),
    ]
    if replay.difference is not None:
        lines.append(f"first difference: {replay.difference}")
    cannot = list(recording.header["unfollowed"])
    asked: dict[str, int] = {}
    for request in recording.requests.values():
        for feature in request.features:
            asked[feature] = asked.get(feature, 0) + 1
    cannot += [f"{feature} ({count:,} requests)" for feature, count in asked.items()]
    if cannot:
        lines.append(f"the server has what our scheduler cannot follow: {'; '.join(cannot)}")
    elif replay.difference is not None:
        lines.append(
            "no feature is known that would explain it: please report it, with the recording"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
