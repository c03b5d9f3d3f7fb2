"""The results as text. A ratio above 1 means that ours is faster, everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import summary

Row = Sequence[str]

GPU_FILE = "gpu.json"


def read_published(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Every machine's results, the newest first, and a GPU's, which is another machine's."""
    files = {path.name: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
    graphics = files.pop(GPU_FILE, None)
    return sorted(files.values(), key=lambda results: results["date"], reverse=True), graphics


def short_names(machines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What tells machines apart: the width of their registers, in bits, and their memory."""
    return [
        f"{_width(row['machine']['cpu'])}, {row['engines']['bandwidth_bytes_per_s'] / 1e9:.0f} GB/s"
        for row in machines
    ]


def _width(cpu: str) -> str:
    """`AMD EPYC (avx2)` → `AVX2`; a processor that says none by its name."""
    known = {"avx512f": "AVX-512", "avx2": "AVX2"}
    return next((words for flag, words in known.items() if f"({flag})" in cpu), cpu)


def table(head: Row, rows: Sequence[Row]) -> str:
    """Columns as wide as they must be, the first to the left and numbers to the right."""
    everything = [head, *rows]
    widths = [max(len(row[i]) for row in everything) for i in range(len(head))]

    def line(row: Row) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        return "  ".join(cells).rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, rows)])


def with_spread(values: Mapping[str, float] | None, digits: int = 2, scale: float = 1.0) -> str:
    """`median (least–most)`, or a dash."""
    if values is None:
        return "–"
    median, low, high = (f"{values[key] * scale:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low}–{high})"


def render(results: Mapping[str, Any]) -> str:
    """All sections that were measured."""
    sections: list[tuple[str, Callable[[Any], str]]] = [
        ("engines", engines),
        ("bfloat16", engines),
        ("kernels", kernels),
        ("scheduler", scheduler),
        ("start", start),
    ]
    parts = [machine(results["machine"])]
    parts += [show(results[name]) for name, show in sections if results.get(name)]
    return "\n\n".join(parts)


def machine(row: Mapping[str, Any]) -> str:
    """Where it was measured."""
    memory = row["memory_bytes"]
    words = f"{row['cpu']}, {row['cores']} cores, {row['threads']} threads used"
    return words + (f", {memory / 2**30:.0f} GiB" if memory else "")


def over_rounds(rounds: Sequence[Mapping[str, Any]], *keys: str) -> dict[str, float] | None:
    """A number of each round, as median and spread; None if a round has none."""
    values = []
    for row in rounds:
        value: Any = row
        for key in keys:
            value = value[key] if value is not None else None
        if value is None:
            return None
        values.append(value)
    return summary.spread(values)


def engines(section: Mapping[str, Any]) -> str:
    """One table for each workload, then memory, agreement and what is missing."""
    labels = {name: row["label"] for name, row in section["engines"].items()}
    parts = []
    for name, work in section["workloads"].items():
        rate = f", {work['rate']:.2f} requests/s" if work["rate"] else ""
        parts.append(
            f"{name}: {work['requests']} requests, {work['prompt_tokens']} prompt and "
            f"{work['output_tokens']} output tokens{rate}\n"
            + table(
                ("engine", "output tokens/s", "minivllm is x times", "TTFT ms mean", "p50", "p99",
                 "ITL ms mean", "p99", "same tokens"),
                [_engine_row(labels[key], key, work) for key in work["rounds"]],
            )
        )  # fmt: skip
        if name == "batch1":
            parts.append(_bandwidth_table(section, work, labels))
    parts.append(_memory_table(section, labels))
    differences = list(_differences(section, labels))
    if differences:
        parts.append("\n".join(differences))
    for row in section["engines"].values():
        if row["problem"]:
            install = f"\n    {row['install']}" if row.get("install") else ""
            parts.append(f"{row['label']}: {row['problem']}{install}")
    return "\n\n".join(parts)


def _engine_row(label: str, name: str, work: Mapping[str, Any]) -> Row:
    rounds = work["rounds"][name]
    agreed = work["agreement"].get(name)

    def milliseconds(*keys: str) -> str:
        values = over_rounds(rounds, *keys)
        return f"{values['median'] * 1000:.0f}" if values else "–"

    return (
        label,
        with_spread(over_rounds(rounds, "output_tokens_per_s"), 1),
        with_spread(work["ratios"].get(name)),
        milliseconds("ttft", "mean"),
        milliseconds("ttft", "p50"),
        milliseconds("ttft", "p99"),
        milliseconds("itl", "mean"),
        milliseconds("itl", "p99"),
        f"{agreed['same']}/{agreed['requests']}" if agreed else "–",
    )


def decode_speed(
    section: Mapping[str, Any], engine: str, rounds: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, float], dict[str, float]] | None:
    """Decoding alone: tokens a second, and the share of the memory's bandwidth that reading all
    weights for each token takes, as the engine keeps them."""
    itl = over_rounds(rounds, "itl", "mean")
    if itl is None:
        return None
    speed = {"median": 1 / itl["median"], "min": 1 / itl["max"], "max": 1 / itl["min"]}
    read = section["engines"][engine].get("read_bytes_per_step", section["read_bytes_per_step"])
    per_token = read / section["bandwidth_bytes_per_s"]
    return speed, {key: value * per_token for key, value in speed.items()}


def _bandwidth_table(
    section: Mapping[str, Any], work: Mapping[str, Any], labels: Mapping[str, str]
) -> str:
    rows = []
    for name, rounds in work["rounds"].items():
        if found := decode_speed(section, name, rounds):
            speed, share = found
            rows.append((labels[name], with_spread(speed, 1), with_spread(share, 0, 100) + " %"))
    bandwidth = section["bandwidth_bytes_per_s"] / 1e9
    return f"batch 1, decoding alone, of {bandwidth:.1f} GB/s measured\n" + table(
        ("engine", "tokens/s", "share of bandwidth"), rows
    )


def _memory_table(section: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    must = section["weight_bytes"] + section["settings"]["cache_bytes"]
    rows = [
        (
            labels[name],
            f"{row['peak_rss'] / 2**20:.0f}",
            f"{row['peak_rss'] / must:.2f}",
            f"{row['load_seconds']:.1f}",
        )
        for name, row in section["engines"].items()
        if "peak_rss" in row
    ]
    return f"memory, weights and cache being {must / 2**20:.0f} MiB\n" + table(
        ("engine", "peak MiB", "of weights + cache", "load s"), rows
    )


def _differences(section: Mapping[str, Any], labels: Mapping[str, str]) -> Any:
    for name, work in section["workloads"].items():
        for engine, agreed in work["agreement"].items():
            if first := agreed["first_difference"]:
                yield (
                    f"{name}: {labels[engine]} first differs from minivllm at output token "
                    f"{first['position'] + 1} of {first['request_id']}: {first['theirs']}, "
                    f"ours {first['ours']}"
                )
        for engine, rounds in work["rounds"].items():
            for number, row in enumerate(rounds, 1):
                if remark := summary.disturbance(row):
                    yield f"{name}, round {number}: {labels[engine]}{remark}"
        for engine, steady in work["same_tokens_every_round"].items():
            if not steady:
                yield f"{name}: {labels[engine]} did not give the same tokens in every round"


def kernels(section: Sequence[Mapping[str, Any]]) -> str:
    """Products, a line for each number of rows."""
    rows = [
        (
            f"{row['shape']}, {row['precision']}, {row['rows']} rows",
            f"{row['minivllm'] / 1e9:.0f}",
            f"{row['onednn'] / 1e9:.0f}",
            f"{row['ratio']:.2f}",
        )
        for row in section
    ]
    return table(("a layer's products", "minivllm, GFLOP/s", "oneDNN", "minivllm is x times"), rows)


def scheduler(section: Mapping[str, Any]) -> str:
    """Ours and vLLM's, case by case."""
    versions = section["versions"]
    head = (
        "scheduler, us per running request and step",
        "minivllm",
        f"vLLM {versions.get('vllm', '')}".strip(),
        "minivllm is x times as fast",
    )
    rows = [
        (
            row["words"],
            with_spread(row["minivllm"]),
            with_spread(row["vllm"]),
            with_spread(row["ratio"]),
        )
        for row in section["cases"]
    ]
    problem = f"\nvLLM's scheduler: {section['problem']}" if section["problem"] else ""
    return table(head, rows) + problem


def start(section: Mapping[str, Any]) -> str:
    """Seconds of a fresh process."""
    rows = [(row["label"], with_spread(row)) for row in section.values()]
    return table(("from the start of a process to", "seconds"), rows)


def gpu(section: Mapping[str, Any]) -> str:
    """The GPU's workload."""
    rows = [
        (
            row["label"],
            with_spread(over_rounds(row["rounds"], "output_tokens_per_s"), 0)
            if row["rounds"]
            else row["problem"],
            with_spread(row["ratio"]),
        )
        for row in section["engines"].values()
    ]
    return f"GPU: {section['device']}, {section['model']}\n" + table(
        ("engine", "output tokens/s", "minivllm is x times"), rows
    )
