"""How far predictions lie off: fit to one configuration, predict others, serve these and compare.

`tools/measure_what_if.py` served SmolLM2 with vLLM on a CPU under four configurations, each under
the same four loads. The recording of the first is all that a prediction knows of the server; what
the client measured under the other three is what it is held against. The recording and the
measured means are kept in `recordings/`, so that the table is made anew whenever it is asked for:

    print(table(cases()))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from minivllm.incident.ledger import Ledger
from minivllm.incident.what_if import METRICS, Oracle, measured_means, relative_errors
from minivllm.runs.recording import read_recording
from minivllm.text_file import read_json

RECORDINGS = Path(__file__).parent / "recordings"
"""Made from a real server: `fit`, and the incidents of chapter 17."""

TARGET = 0.10
"""Median error that predictions are to keep to."""


@dataclass(frozen=True)
class Case:
    """One load under one configuration that the fit has not seen. Times in seconds, means."""

    config: str
    load: str
    knobs: dict[str, Any]
    predicted: dict[str, float]
    measured: dict[str, float]

    @property
    def errors(self) -> dict[str, float]:
        """Predicted less measured, in shares of what was measured."""
        return relative_errors(self.predicted, self.measured)


def example(name: str) -> Path:
    """The path of a recording that comes along.

    Raises:
        ValueError: naming those that there are.
    """
    path = RECORDINGS / f"{name}.jsonl.gz"
    if not path.is_file():
        known = ", ".join(sorted(p.name.split(".")[0] for p in RECORDINGS.glob("*.jsonl.gz")))
        raise ValueError(f"{name!r} is no recording that comes along; there is {known}")
    return path


def cases(directory: Path = RECORDINGS) -> list[Case]:
    """Every prediction beside what was measured.

    What lies between the server's clock and the client's (HTTP, tokenisation, text) is taken from
    the load under the fitted configuration, where both are known.

    Args:
        directory: with `fit.jsonl.gz` and `what-if.json` of `tools/measure_what_if.py`.

    Raises:
        ValueError: if a file is not what it should be.
    """
    data = read_json(directory / "what-if.json")
    ledger = Ledger.of(read_recording(directory / "fit.jsonl.gz"))
    oracle = Oracle(ledger)
    found = []
    for load, told in data["loads"].items():
        first, last = told["requests"]
        numbers = [request.number for request in oracle.traffic.requests]
        traffic = oracle.traffic.part(numbers.index(first), numbers.index(last) + 1)
        server = measured_means(ledger, traffic)
        outside = {name: told["client"][name] - server[name] for name in METRICS}
        for name, config in data["configs"].items():
            predicted = oracle.ask(config["knobs"], traffic).means
            at_client = {metric: predicted[metric] + outside[metric] for metric in METRICS}
            found.append(Case(name, load, config["knobs"], at_client, config["client"][load]))
    return found


def median_errors(found: Iterable[Case]) -> dict[str, float]:
    """Of each metric, the median over cases of how far it lies off, either way."""
    errors = [case.errors for case in found]
    return {name: median(abs(error[name]) for error in errors) for name in METRICS}


def table(found: Iterable[Case]) -> str:
    """The cases as text."""
    found = list(found)
    lines = [f"{'configuration':<15}{'load':<9}" + "".join(f"{m.upper():>26}" for m in METRICS)]
    for case in sorted(found, key=lambda case: case.config):
        cells = "".join(_cell(case, metric) for metric in METRICS)
        lines.append(f"{case.config:<15}{case.load:<9}{cells}")
    middle = median_errors(found)
    lines.append(f"{'median error':<24}" + "".join(f"{middle[m]:>26.1%}" for m in METRICS))
    return "\n".join(lines)


def _cell(case: Case, metric: str) -> str:
    predicted, measured = case.predicted[metric], case.measured[metric]
    return f"{f'{predicted:.3f} / {measured:.3f} s {case.errors[metric]:+.1%}':>26}"


def client_means(result: Mapping[str, Any]) -> dict[str, float]:
    """Of `METRICS`, in seconds, from the JSON of `vllm bench serve --save-result`."""
    names = {"ttft": "mean_ttft_ms", "itl": "mean_itl_ms", "e2e": "mean_e2el_ms"}
    return {metric: result[name] / 1000 for metric, name in names.items()}
