"""From measured steps to a `FittedCost`: least squares, no coefficient negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Any

from minivllm.sim.checks import check_number
from minivllm.sim.cost import LINEAR_FEATURES, FittedCost, StepLoad, mean_relative_error
from minivllm.sim.results import percentile

KNOTS = (0, 4, 16, 64, 256)
"""Where the line in `num_tokens` may bend."""

BUMPS = (2, 3)
"""Numbers of tokens that may take longer than the line says: libraries multiply one row as a
vector, four or more as a matrix, and two or three in neither way well."""

NUM_FEATURES = 1 + len(LINEAR_FEATURES) + len(KNOTS) + len(BUMPS)


def features(load: StepLoad) -> list[float]:
    """A load as the fit sees it: 1, the linear features, the tokens in each stretch between two
    knots, and whether it has a bump."""
    n = load.num_tokens
    linear = [float(getattr(load, name)) for name in LINEAR_FEATURES]
    ends = (*KNOTS[1:], n)
    stretches = [float(max(min(n, max(end, knot)) - knot, 0)) for knot, end in zip(KNOTS, ends)]
    return [1.0, *linear, *stretches, *(float(n == bump) for bump in BUMPS)]


def fit(
    steps: Sequence[tuple[StepLoad, float]],
    *,
    title: str = "fitted",
    about: dict[str, Any] | None = None,
    pauses: bool = False,
) -> FittedCost:
    """The cost model closest to measured steps: least squares of the relative error, no
    coefficient and no slope negative, fitted again without the steps that lie far off (another
    process had the core, or the garbage collector ran).

    Args:
        steps: loads and seconds.
        title: of the model.
        about: what was measured.
        pauses: leave no step out, and let a step count by its seconds: the fit is then of the mean
            step, pauses included, and not of the typical one.

    Raises:
        ValueError: on fewer than two steps for each coefficient, on a time that is not positive,
            and on steps too much alike to tell the coefficients apart.
    """
    if len(steps) < 2 * NUM_FEATURES:
        raise ValueError(
            f"steps: {len(steps)} are too few to fit {NUM_FEATURES} coefficients; measure at "
            f"least {2 * NUM_FEATURES}"
        )
    _check_variety(steps)
    kept = list(steps)
    for _ in range(0 if pauses else 3):
        cost = _to_cost(_least_squares(kept), title, about)
        errors = [abs(cost.step_time(load) / seconds - 1) for load, seconds in kept]
        limit = max(4 * percentile(sorted(errors), 50), MIN_OUTLIER)
        close = [step for step, error in zip(kept, errors, strict=True) if error <= limit]
        if len(close) == len(kept) or len(close) < 2 * NUM_FEATURES:
            break
        kept = close
    cost = _to_cost(_least_squares(kept), title, about)
    for _ in range(3 if pauses else 0):
        spread = [sqrt(cost.step_time(load)) for load, _ in kept]
        cost = _to_cost(_least_squares(kept, spread), title, about)
    seconds = sum(s for _, s in steps)
    error = {
        "num_steps": float(len(steps)),
        "num_steps_left_out": float(len(steps) - len(kept)),
        "mean_relative_error": mean_relative_error(cost, steps),
        "mean_relative_error_kept": mean_relative_error(cost, kept),
        "total_time_error": sum(cost.step_time(load) for load, _ in steps) / seconds - 1,
    }
    return replace(cost, error=error)


MIN_OUTLIER = 0.3
"""A step off by less is never left out: that would hide what the model cannot say."""
MIN_BATCH_SIZES = 3
MIN_PROMPT_LENGTHS = 3


def _check_variety(steps: Sequence[tuple[StepLoad, float]]) -> None:
    """Decodes alone in several batch sizes, and prompts of several lengths, or nothing is known."""
    for _, seconds in steps:
        check_number("seconds of a step", seconds, above=0)
    decodes = {load.num_reqs for load, _ in steps if load.num_tokens == load.num_reqs}
    prompts = {load.num_tokens for load, _ in steps if load.num_tokens > load.num_reqs}
    if len(decodes) < MIN_BATCH_SIZES:
        raise ValueError(
            f"steps: decodes alone come in {len(decodes)} batch sizes, at least {MIN_BATCH_SIZES} "
            f"are needed; measure more users at once"
        )
    if len(prompts) < MIN_PROMPT_LENGTHS:
        raise ValueError(
            f"steps: those with prompts compute {len(prompts)} different numbers of tokens, at "
            f"least {MIN_PROMPT_LENGTHS} are needed; measure prompts of more lengths"
        )


def _to_cost(x: list[float], title: str, about: dict[str, Any] | None) -> FittedCost:
    constant, *rest = x
    parts = iter(rest)
    linear = {name: next(parts) for name in LINEAR_FEATURES}
    stretches = [next(parts) for _ in KNOTS]
    changes = [slope - before for before, slope in zip([0.0, *stretches], stretches)]
    slopes = dict(zip(KNOTS, changes, strict=True))
    bumps = dict(zip(BUMPS, parts, strict=True))
    return FittedCost(constant, linear, slopes, title, about=about or {}, bumps=bumps)


def _least_squares(
    steps: Sequence[tuple[StepLoad, float]], spread: Sequence[float] | None = None
) -> list[float]:
    """min Σ ((x·f - t) / s)² with x >= 0, on the normal equations (Lawson and Hanson 1974, §23.3).

    Args:
        steps: loads, and the seconds t.
        spread: s, how far each may lie off; None: in proportion to t.
    """
    if spread is None:
        spread = [seconds for _, seconds in steps]
    rows = [[value / s for value in features(load)] for (load, _), s in zip(steps, spread)]
    wanted = [seconds / s for (_, seconds), s in zip(steps, spread)]
    n = len(rows[0])
    scale = [max(max(row[i] for row in rows), 1e-30) for i in range(n)]
    rows = [[value / s for value, s in zip(row, scale, strict=True)] for row in rows]
    gram = [[sum(row[i] * row[j] for row in rows) for j in range(n)] for i in range(n)]
    target = [sum(row[i] * y for row, y in zip(rows, wanted, strict=True)) for i in range(n)]
    x = [0.0] * n
    free: list[int] = []  # coefficients that may differ from 0
    for _ in range(10 * n):
        slopes = [target[i] - sum(gram[i][j] * x[j] for j in range(n)) for i in range(n)]
        held = [i for i in range(n) if i not in free and slopes[i] > 1e-9 * len(rows)]
        if not held:
            break
        free.append(max(held, key=lambda i: slopes[i]))
        while True:
            best = _solve(gram, target, free)
            if min(best) > 0:
                break
            # Go towards the solution until the first coefficient would turn negative; hold it at 0.
            share, stop = min(
                (x[i] / (x[i] - value), i)
                for i, value in zip(free, best, strict=True)
                if value <= 0
            )
            for i, value in zip(free, best, strict=True):
                x[i] += share * (value - x[i])
            x[stop] = 0.0
            free.remove(stop)
        for i, value in zip(free, best, strict=True):
            x[i] = value
    return [value / s for value, s in zip(x, scale, strict=True)]


def _solve(gram: list[list[float]], target: list[float], free: list[int]) -> list[float]:
    """The least squares of some of the features alone: Gaussian elimination with pivots."""
    n = len(free)
    a = [[gram[i][j] for j in free] + [target[i]] for i in free]
    for k in range(n):
        a[k][k] *= 1 + 1e-12  # features that are alike share what they explain
        pivot = max(range(k, n), key=lambda i: abs(a[i][k]))
        a[k], a[pivot] = a[pivot], a[k]
        for i in range(k + 1, n):
            factor = a[i][k] / a[k][k] if a[k][k] else 0.0
            for j in range(k, n + 1):
                a[i][j] -= factor * a[k][j]
    x = [0.0] * n
    for k in reversed(range(n)):
        rest = a[k][n] - sum(a[k][j] * x[j] for j in range(k + 1, n))
        x[k] = rest / a[k][k] if a[k][k] else 0.0
    return x
