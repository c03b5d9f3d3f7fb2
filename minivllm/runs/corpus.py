"""The corpus that others can run: recorded decisions of vLLM's scheduler, one file a release.

    python -m minivllm.conformance corpus --out FOLDER [FILE ...]

takes the recordings of a clone's tests/data, or those that are named, and writes into FOLDER
`vllm-RELEASE.jsonl.gz`, the schema of the format, `manifest.json` (workloads, steps and SHA-256 of
each file) and `README.md`. Every workload is replayed first: a corpus that minivllm itself does not
decide as vLLM did is not written. The same recordings give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minivllm.core.releases import RELEASES
from minivllm.runs import under_test
from minivllm.runs.agreement import CLASSES, FEATURES
from minivllm.runs.conformance import FORMAT, read_traces, release_of, replay

SCHEMA = Path(__file__).with_name("trace.schema.json")
RECORDINGS = Path("tests") / "data"


def read_recordings(paths: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    """The workloads of files, by release, each of them replayed.

    Raises:
        ValueError: naming the file and the workload that cannot be read, or that we decide
            otherwise.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        for number, workload in enumerate(read_traces(path), 1):
            try:
                release = release_of(workload)
                if difference := replay(workload):
                    raise ValueError(f"minivllm decides otherwise: {difference}")
            except ValueError as error:
                raise ValueError(f"{path}, workload {number}: {error}") from None
            found.setdefault(release, []).append({"format": FORMAT, **workload, "vllm": release})
    return {release: found[release] for release in RELEASES if release in found}


def write_corpus(recordings: dict[str, list[dict[str, Any]]], folder: Path) -> dict[str, Any]:
    """Write the files; the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for release, workloads in recordings.items():
        lines = "".join(json.dumps(w, separators=(",", ":")) + "\n" for w in workloads)
        data = gzip.compress(lines.encode(), mtime=0)
        name = f"vllm-{release}.jsonl.gz"
        (folder / name).write_bytes(data)
        files[name] = {
            "release": release,
            "workloads": len(workloads),
            "asynchronous": sum(w["config"].get("async_scheduling", False) for w in workloads),
            "steps": sum(len(w["steps"]) for w in workloads),
            "preemptions": sum(len(s["preempted"]) for w in workloads for s in w["steps"]),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    manifest = {"format": FORMAT, "protocol": under_test.PROTOCOL, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    (folder / SCHEMA.name).write_bytes(SCHEMA.read_bytes())
    (folder / "README.md").write_text(readme(files), encoding="utf-8")
    return manifest


def readme(files: dict[str, dict[str, Any]]) -> str:
    """What the corpus says of itself."""
    protocol = (under_test.__doc__ or "").split("\n", 2)[2]
    rows = "\n".join(
        f"| `{name}` | {row['workloads']} | {row['asynchronous']} | {row['steps']} |"
        for name, row in files.items()
    )
    return f"""# What vLLM's scheduler decides, release by release

Random workloads, run through the unmodified scheduler of each release; format {FORMAT}, described
by `{SCHEMA.name}`. One JSON object a line: the knobs, the requests, and every step's decisions.

| file | workloads | of them async | steps |
| --- | --- | --- | --- |
{rows}

Classes of decision: {", ".join(CLASSES)}. Features: {", ".join(FEATURES)}.

## Examine a scheduler

{protocol}"""


def main(argv: list[str], prog: str) -> int:
    """The command line, under the name `prog`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Write the corpus of recorded decisions that others can run."
    )
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="recorded traces")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    args = parser.parse_args(argv)
    paths = args.files or sorted(RECORDINGS.glob("vllm-*.jsonl.*"))
    try:
        if not paths:
            raise ValueError(f"no recordings in {RECORDINGS}: run this in a clone, or name files")
        manifest = write_corpus(read_recordings(paths), args.out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, row in manifest["files"].items():
        print(f"{args.out / name}: {row['workloads']} workloads, {row['steps']} steps")
    return 0
