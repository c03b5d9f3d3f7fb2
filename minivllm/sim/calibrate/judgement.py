"""How far a fitted cost model is off, and the file that keeps both."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivllm.core import SchedulerConfig
from minivllm.core.config import check_choice
from minivllm.sim.calibrate.steps import MeasuredRun
from minivllm.sim.checks import check_number
from minivllm.sim.cost import CostModel, FittedCost
from minivllm.sim.simulate import simulate
from minivllm.sim.workload import Workload
from minivllm.text_file import read_json


@dataclass(frozen=True)
class Validation:
    """A workload measured and simulated: means in seconds."""

    name: str
    metric: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted / measured - 1."""
        return self.predicted / self.measured - 1

    def to_dict(self) -> dict[str, Any]:
        """As a row of a table."""
        return {
            "name": self.name,
            "metric": self.metric,
            "measured": self.measured,
            "predicted": self.predicted,
            "error": self.error,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Validation:
        """The inverse of `to_dict`.

        Raises:
            KeyError: if a column is missing.
            ValueError: if a mean is not a positive number.
        """
        check_choice("metric", data["metric"], METRICS)
        means = [check_number(key, data[key], above=0) for key in ("measured", "predicted")]
        return cls(str(data["name"]), data["metric"], *means)


METRICS = ("ttft", "itl", "tpot", "e2e")
JUDGED = ("ttft", "itl")
"""What the error is reported of."""


def compare(
    run: MeasuredRun, workload: Workload, cost: CostModel, config: SchedulerConfig, *, seed: int = 0
) -> list[Validation]:
    """Lay a measured run beside the simulation of the same arrivals: one row for each mean."""
    result = simulate(workload, cost, config, seed=seed)
    return [
        Validation(
            run.name,
            metric,
            sum(getattr(run, metric)) / len(getattr(run, metric)),
            getattr(result, metric).mean,
        )
        for metric in METRICS
    ]


FORMAT = "minivllm-calibration"
VERSION = 1
TARGET = 0.15
"""Largest error of a mean, predicted over measured, that this project allows itself."""


@dataclass
class Calibration:
    """A fitted cost model, and how well it predicts what it has not seen."""

    cost: FittedCost
    training: list[Validation]
    held_out: list[Validation]

    def worst(self, metric: str) -> Validation:
        """The held-out workload whose mean of `metric` is predicted worst."""
        rows = [row for row in self.held_out if row.metric == metric]
        if not rows:
            raise ValueError(f"metric {metric!r} is not among {', '.join(METRICS)}")
        return max(rows, key=lambda row: abs(row.error))

    def table(self) -> str:
        """Measured beside predicted."""
        lines = [f"{'workload':<24}{'mean of':<8}{'measured':>10}{'predicted':>11}{'error':>9}"]
        for title, rows in (("fitted to", self.training), ("held out", self.held_out)):
            lines.append(f"-- {title}")
            lines += [
                f"{r.name:<24}{r.metric:<8}{r.measured:>10.4f}{r.predicted:>11.4f}{r.error:>+9.1%}"
                for r in rows
            ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-serialisable data: the cost model's, which can be read alone (`FittedCost.load`),
        and what it was judged by."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **self.cost.to_dict(),
            "training": [row.to_dict() for row in self.training],
            "held_out": [row.to_dict() for row in self.held_out],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Calibration:
        """The inverse of `to_dict`.

        Raises:
            ValueError: on another format or version, a part that is missing or no number, or
                errors that are not those of the rows.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(
                f"format: not a {FORMAT}; make one with python -m minivllm.sim.calibrate"
            )
        if data.get("version") != VERSION:
            raise ValueError(
                f"version: {data.get('version')!r}, this code reads {VERSION}; calibrate again"
            )
        try:
            cost = FittedCost.from_dict(data)
            rows = [
                [Validation.from_dict(row) for row in data[part]]
                for part in ("training", "held_out")
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"a part of the calibration is missing: {error!r}") from error
        result = cls(cost, *rows)
        for metric in JUDGED:
            key = f"held_out_mean_{metric}"
            stated = check_number(key, cost.error.get(key), least=0)
            if not math.isclose(stated, mean_error(result.held_out, metric), abs_tol=1e-6):
                raise ValueError(f"{key}: {stated} is not the mean error of the held-out rows")
        return result

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            ValueError: as for `from_dict`, naming the file.
        """
        data = read_json(path)
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise ValueError(f"{Path(path).name}: {error}") from error


RECORDED = Path(__file__).with_name("cpu-calibration.json")
"""A calibration made with this file's `main`, kept with the code: see its `about`."""


def recorded() -> Calibration:
    """The calibration that is kept with the code."""
    return Calibration.load(RECORDED)


def mean_error(rows: Iterable[Validation], metric: str) -> float:
    errors = [abs(row.error) for row in rows if row.metric == metric]
    if not errors:
        raise ValueError(f"held_out: no row of {metric}; it must be judged by something")
    return sum(errors) / len(errors)
