"""`make bench`: measure, print, and write JSON.

python -m benchmarks                       everything
python -m benchmarks engines --quick       a look in a few minutes, not to be published
python -m benchmarks --publish             everything, for the book's page
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import engines, kernels, machine, peers, report, scheduler, start, workloads
from benchmarks.workloads import ROOT

PUBLISHED = ROOT / "book" / "benchmark-results"
"""A file for each machine that has published, and one of a GPU."""
PUBLISHED_GPU = PUBLISHED / report.GPU_FILE
DEFAULT_OUTPUT = ROOT / "_build" / "bench" / "results.json"
SECTIONS = ("engines", "bfloat16", "kernels", "scheduler", "start")
BFLOAT16_ENGINES = ("minivllm", "vllm-eager", "vllm")
"""The ones that are made for 16 bits."""
BFLOAT16_WORKLOADS = ("mixed", "batch1", "load")
VERSION = 1


def parser(prog: str = "python -m benchmarks") -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog=prog,
        description="Measure our engine beside its peers.",
        epilog="exit status: 0 measured; 1 it failed; 2 an option is not known.",
    )
    add = made.add_argument
    add("sections", nargs="*", default=[], help=f"of {', '.join(SECTIONS)}; default: all")
    add(
        "--engines",
        type=_names(peers.ENGINES),
        default=list(peers.ENGINES),
        metavar="A,B",
        help=f"of {', '.join(peers.ENGINES)}",
    )
    add(
        "--workloads",
        type=_names(workloads.NAMES),
        default=list(workloads.NAMES),
        metavar="A,B",
        help=f"of {', '.join(workloads.NAMES)}",
    )
    add("--rounds", type=int, default=3, help="runs of every engine, in turns (3)")
    add("--seed", type=int, default=0, help="another seed is another workload of the same kind")
    add("--rate", type=float, help="requests/s of 'load'; default: from what 'mixed' measured")
    add("--threads", type=int, default=machine.usable_cores(), help="of every engine")
    add("--model", default=None, help="as for LLM(); default: SmolLM2-135M-Instruct")
    add("--scale", type=float, default=1.0, help="0.25: a quarter of the requests")
    add("--quick", action="store_true", help="one round, a quarter of the requests")
    add("--timeout", type=float, default=900.0, help="seconds that one command may take (900)")
    add("--steps", type=int, default=96, help="that the scheduler is timed for (96)")
    add("--output", type=Path, default=DEFAULT_OUTPUT, help="where the JSON goes")
    add("--publish", action="store_true", help="write book/benchmark-results/ too")
    add("--bandwidth-mib", type=int, default=512, help=argparse.SUPPRESS)
    return made  # fmt: skip


def _names(known: Any) -> Any:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"{name!r} is unknown; the known ones are {', '.join(known)}"
                )
        return names

    return parse


def published_file(box: Mapping[str, Any], folder: Path = PUBLISHED) -> Path:
    """Where a machine's results stand in the book: the same machine's replace its own."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{box['cpu']} {box['threads']} threads".lower()).strip("-")
    return folder / f"{name}.json"


def write(path: Path, results: Mapping[str, Any]) -> None:
    """Write results, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(_rounded(results), indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _rounded(value: Any) -> Any:
    """Six digits: more are noise."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def main(
    arguments: Sequence[str] | None = None, prog: str = "python -m benchmarks"
) -> dict[str, Any]:
    """Measure what is asked for; returns it too."""
    options = parser(prog).parse_args(arguments)
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        raise SystemExit(f"{sorted(unknown)[0]!r} is no section; use {', '.join(SECTIONS)}")
    sections = options.sections or list(SECTIONS)
    if options.rounds < 1 or options.scale <= 0 or options.threads < 1:
        raise SystemExit("--rounds and --threads must be at least 1, --scale above 0")
    if options.quick:
        options.rounds, options.scale = 1, options.scale / 4
    if options.publish and (options.quick or set(sections) != set(SECTIONS)):
        raise SystemExit("--publish needs all sections, and no --quick: a page is made of it")
    from minivllm.models.loader import DEFAULT_MODEL

    model = options.model or DEFAULT_MODEL
    logs = options.output.parent / "logs"

    def say(line: str) -> None:
        print(line, flush=True)

    results: dict[str, Any] = {
        "version": VERSION,
        "date": datetime.date.today().isoformat(),
        "machine": machine.describe(options.threads),
    }
    precisions = {
        "engines": ("float32", options.engines, options.workloads),
        "bfloat16": (
            "bfloat16",
            [name for name in options.engines if name in BFLOAT16_ENGINES],
            [name for name in options.workloads if name in BFLOAT16_WORKLOADS],
        ),
    }
    for section, (dtype, names, works) in precisions.items():
        if section not in sections:
            continue
        settings = engines.Settings(
            model, options.threads, options.rounds, options.seed, options.scale, options.rate,
            options.timeout, dtype, bandwidth_mib=options.bandwidth_mib,
        )  # fmt: skip
        say(f"precision: {dtype}")
        try:
            results[section] = engines.measure(settings, names, works, logs / dtype, say)
        except ValueError as error:
            raise SystemExit(f"error: {error}") from None
        write(options.output, results)  # what has been measured is not lost with what follows
    if "kernels" in sections:
        say("kernels: beside oneDNN's")
        results["kernels"] = kernels.measure(options.threads)
        write(options.output, results)
    if "scheduler" in sections:
        small = [case for case in scheduler.CASES if max(case.running, case.waiting) <= 256]
        cases = small if options.quick else scheduler.CASES
        results["scheduler"] = scheduler.measure(
            options.rounds, options.steps, logs, say, cases, options.timeout
        )
        write(options.output, results)
    if "start" in sections:
        results["start"] = start.measure(model, max(options.rounds, 2))
    write(options.output, results)
    published = published_file(results["machine"])
    if options.publish:
        write(published, results)
    print("\n" + report.render(results))
    shown = [options.output, *([published] if options.publish else [])]
    print("\nwritten: " + ", ".join(os.path.relpath(path) for path in shown))
    return results


if __name__ == "__main__":
    main()
