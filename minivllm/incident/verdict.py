"""What a recording shows, in words with numbers: what was short, who paid, which knob to turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Any

from minivllm.core import SchedulerConfig
from minivllm.core.releases import CHANGES
from minivllm.incident.ledger import RESOURCES, Ledger, Served, Step, Victim
from minivllm.incident.units import duration, unit_of
from minivllm.incident.what_if import (
    METRICS,
    Oracle,
    Prediction,
    changed_config,
    measured_means,
    median_error,
    relative_errors,
)
from minivllm.runs.explain import count, names
from minivllm.sim.results import percentile

KNOB_OF = {
    "tokens": "max_num_batched_tokens",
    "seats": "max_num_seqs",
    "blocks": "num_gpu_blocks",
    "threshold": "long_prefill_token_threshold",
    "cadence": "prefill_schedule_interval",
}


def knob_of(resource: str, config: SchedulerConfig) -> str:
    """The knob that sets how much of a resource there is."""
    if resource == "seats" and config.max_num_active_seqs:
        return "max_num_active_seqs"
    return KNOB_OF[resource]


NUM_SPIKES = 5

MIN_SHARE = 0.01
"""A resource that bound in fewer of the steps gets no trial."""

MIN_GAIN = 0.03
"""A knob that gains less of the mean end-to-end time is not worth a restart."""

CALMER = 0.7
"""The longest wait is worth a word where a knob leaves no more than this of it."""

MAX_TRIED = 4_000
"""Requests that knobs are tried on: of more, the so many in a row that took the longest."""


@dataclass
class Spike:
    """A step that made requests wait for their next token."""

    step: Step
    requests: list[Served]
    """Whose longest gap it made, the longest first."""
    cause: str

    @property
    def seconds(self) -> float:
        """The longest of those gaps."""
        return self.requests[0].max_itl


@dataclass
class Verdict:
    """What is told of one recording; `text` says it, `to_dict` has the numbers."""

    ledger: Ledger
    means: dict[str, float]
    percentiles: dict[str, dict[str, float]]
    steps_bound: dict[str, int]
    seconds_bound: dict[str, float]
    busy: float
    """Seconds in which a step was under way."""
    host: float
    """Of those, between a step's tokens and the next plan."""
    spikes: list[Spike]
    blocked: tuple[int, float, int]
    """Steps whose queue's head did not fit while one behind it would have; their seconds; the most
    requests behind it in one of them."""
    oracle: Oracle | None = None
    trust: dict[str, float] = field(default_factory=dict)
    """How far the same configuration, predicted, lies from what was measured."""
    tried: list[Prediction] = field(default_factory=list)
    """The configuration as it was, then others, the best first."""
    notes: list[str] = field(default_factory=list)

    @property
    def best(self) -> Prediction | None:
        """The trial with the largest gain, if it is worth it."""
        if len(self.tried) < 2:
            return None
        as_it_was, best = self.tried[:2]
        gain = 1 - best.means["e2e"] / as_it_was.means["e2e"]
        return best if gain >= MIN_GAIN else None


def judge(ledger: Ledger, *, try_knobs: bool = True) -> Verdict:
    """What a replayed recording shows.

    Args:
        ledger: of the recording.
        try_knobs: predict what other knobs would have given; it takes most of the time.
    """
    timed = ledger.timed()
    bound = Counter(resource for step in timed for resource in step.bound)
    seconds = dict.fromkeys(RESOURCES, 0.0)
    for step in timed:
        for resource in step.bound:
            seconds[resource] += step.seconds
    behind = [step for step in timed if step.head_blocks_others]
    verdict = Verdict(
        ledger,
        measured_means(ledger),
        _percentiles(ledger),
        {resource: bound[resource] for resource in RESOURCES},
        seconds,
        fsum(step.seconds for step in timed),
        fsum(step.host for step in timed),
        _spikes(ledger),
        (
            len(behind),
            fsum(step.seconds for step in behind),
            max((step.head_blocks_others for step in behind), default=0),
        ),
    )
    if ledger.replay.difference is not None:
        verdict.notes.append(
            "decisions differ: what follows is of the steps before the first difference alone"
        )
    if try_knobs:
        try:
            _try_knobs(verdict)
        except ValueError as error:
            verdict.notes.append(f"no knob was tried: {error}")
    return verdict


def _percentiles(ledger: Ledger) -> dict[str, dict[str, float]]:
    values: dict[str, Sequence[float]] = {
        "ttft": sorted(s.ttft for s in ledger.served),
        "itl": sorted(ledger.itl[:: max(len(ledger.itl) // 500_000, 1)]),
        "e2e": sorted(s.e2e for s in ledger.served),
        "queue": sorted(s.queue for s in ledger.served),
    }
    return {
        name: {f"p{p}": percentile(ordered, p) for p in (50, 90, 99)} | {"max": ordered[-1]}
        for name, ordered in values.items()
        if ordered
    }


# --- spikes ---------------------------------------------------------------------------------


def _spikes(ledger: Ledger) -> list[Spike]:
    """The steps behind the longest gaps between two tokens."""
    made: dict[int, list[Served]] = {}
    steps: dict[int, Step] = {}
    for served in ledger.worst(20 * NUM_SPIKES):
        if served.max_itl <= 0:
            break
        end = served.max_itl_from + served.max_itl
        step = ledger.slowest_of(served.max_itl_from, end)
        if step is not None:
            made.setdefault(step.step, []).append(served)
            steps[step.step] = step
    first = list(made)[:NUM_SPIKES]
    return [Spike(steps[n], made[n], _cause(ledger, steps[n], made[n][0])) for n in first]


def _cause(ledger: Ledger, step: Step, served: Served) -> str:
    """Why a request waited so long for a token: in a few words."""
    since, until = served.max_itl_from, served.max_itl_from + served.max_itl
    within = list(ledger.between(since, until))
    computing = fsum(min(s.end, until) - max(s.begun, since) for s in within)
    if served.max_itl - computing > 0.5 * served.max_itl:
        return "between two steps the server did something else"
    preempted_in = ledger.victims.get(served.number, Victim(served.number)).steps
    own = next((s for s in within if s.step in preempted_in), None)
    own_tokens = step.largest[0] == served.number  # computed once more
    if own is not None and (own_tokens or step.seconds < 0.5 * served.max_itl):
        steps_later = count(within[-1].step - own.step, "step")
        return (
            f"step {own.step:,} preempted {served.request_id}, and its next token came "
            f"{steps_later} later"
        )
    number, tokens = step.largest
    if tokens > 1:
        who = ledger.recording.requests[number]
        return (
            f"the step computed {step.load.num_tokens:,} tokens, {tokens:,} of them of the prompt "
            f"of {who.request_id} ({who.prompt_len:,} tokens)"
        )
    typical = percentile(sorted(s.seconds for s in ledger.timed()), 50)
    return (
        f"the step only decoded {count(step.load.num_reqs, 'request')} and took "
        f"{duration(step.seconds)} (typical: {duration(typical)}): the machine "
        f"paused, not the scheduler"
    )


# --- knobs ----------------------------------------------------------------------------------


def candidates(verdict: Verdict) -> list[dict[str, Any]]:
    """Knobs worth trying for what was short, most pressing first."""
    config = changed_config(verdict.ledger, {})
    found = [knobs for resource in _short(verdict) for knobs in _turns(resource, config)]
    if not found and verdict.spikes:
        tokens = verdict.spikes[0].step.largest[1]
        if tokens > 1:  # one prompt made the others wait: cut it
            found.append({"long_prefill_token_threshold": max(tokens // 8, config.block_size)})
    return [knobs for knobs in found if _changes(verdict.ledger, knobs, config)]


def _short(verdict: Verdict) -> list[str]:
    """Resources that bound in enough steps to try their knobs, most pressing first."""
    least = MIN_SHARE * max(len(verdict.ledger.timed()), 1)
    by_share = sorted(RESOURCES, key=lambda r: verdict.seconds_bound[r], reverse=True)
    return [resource for resource in by_share if verdict.steps_bound[resource] >= least]


def _changes(ledger: Ledger, knobs: dict[str, Any], config: SchedulerConfig) -> bool:
    """Whether a configuration with these knobs exists, and may decide otherwise."""
    try:
        new = changed_config(ledger, knobs)
    except ValueError:
        return False
    return new != config and (
        list(knobs) != ["watermark"] or new.watermark_blocks != config.watermark_blocks
    )


def _turns(resource: str, config: SchedulerConfig) -> list[dict[str, Any]]:
    has = {change.name for change in CHANGES if change.holds_in(config.vllm_version)}
    if resource == "tokens":
        budget = config.max_num_batched_tokens
        return [{"max_num_batched_tokens": 2 * budget}, {"max_num_batched_tokens": 4 * budget}]
    seats = knob_of("seats", config)
    if resource == "seats":
        if config.max_num_active_seqs:
            return [{"max_num_active_seqs": None}]
        return [{"max_num_seqs": 2 * config.max_num_seqs}]
    if resource == "blocks":
        turns: list[dict[str, Any]] = [{"num_gpu_blocks": config.num_gpu_blocks * 3 // 2}]
        if "watermark" in has and not config.watermark:
            turns.append({"watermark": 0.05})
        turns.append({seats: max(getattr(config, seats) // 2, 1)})
        return turns
    if resource == "threshold":
        return [{"long_prefill_token_threshold": 0}]
    return [{"prefill_schedule_interval": 1}]


def _try_knobs(verdict: Verdict) -> None:
    oracle = verdict.oracle = Oracle(verdict.ledger)
    traffic = oracle.traffic.worst(verdict.ledger, MAX_TRIED)
    if len(traffic.requests) < len(oracle.traffic.requests):
        verdict.notes.append(
            f"knobs are tried on the {MAX_TRIED:,} requests in a row that took the longest, of "
            f"{len(oracle.traffic.requests):,}, those from {traffic.reached[0]:,.0f} s on"
        )
    if oracle.pauses:
        verdict.notes.append(oracle.told_pauses)
    as_it_was = oracle.ask({}, traffic)
    paused = oracle.ask({}, traffic, pauses=True) if oracle.pauses else as_it_was
    verdict.trust = relative_errors(paused.means, measured_means(verdict.ledger, traffic))
    others = [oracle.ask(knobs, traffic) for knobs in candidates(verdict)[:4]]
    others.sort(key=lambda prediction: prediction.means["e2e"])
    verdict.tried = [as_it_was, *others]


# --- told -----------------------------------------------------------------------------------


def told(verdict: Verdict) -> str:
    """The verdict as text."""
    if not verdict.ledger.timed():
        return "\n".join([*verdict.notes, "no step computed anything: there is nothing to judge"])
    parts = [
        *(f"note: {note}" for note in verdict.notes),
        _load(verdict),
        _latencies(verdict),
        _bounds(verdict),
        _recompute(verdict),
        _blocking(verdict),
        _hits(verdict),
        _worst(verdict),
        _advice(verdict),
    ]
    return "\n\n".join(filter(None, parts))


def _load(verdict: Verdict) -> str:
    ledger = verdict.ledger
    timed = ledger.timed()
    duration = max(ledger.recording.duration, 1e-9)
    outputs = sum(s.output_len for s in ledger.served)
    prompts = sum(s.prompt_len for s in ledger.served)
    batch = fsum(step.load.num_reqs for step in timed) / len(timed)
    return (
        f"Load: {len(ledger.served):,} requests had tokens, {prompts:,} of prompts and "
        f"{outputs:,} of outputs, {outputs / duration:,.1f} a second; a step was under way "
        f"{min(verdict.busy / duration, 1):.0%} of the time, {verdict.host / verdict.busy:.1%} of "
        f"that between two steps; {batch:.1f} requests in a step on average, "
        f"{max(step.num_waiting for step in timed):,} waiting at most, blocks "
        f"{max(step.usage for step in timed):.0%} used at most."
    )


def _latencies(verdict: Verdict) -> str:
    unit, scale, decimals = unit_of(verdict.means.values())
    head = f"{'seconds' if unit == 's' else unit:<10}" + "".join(
        f"{c:>10}" for c in ("mean", "p50", "p90", "p99", "max")
    )
    rows = [head]
    for name, values in verdict.percentiles.items():
        mean = verdict.means.get(name)
        if mean is None:
            mean = fsum(s.queue for s in verdict.ledger.served) / len(verdict.ledger.served)
        cells = [mean, *values.values()]
        rows.append(f"{name.upper() if name != 'queue' else name:<10}"
                    + "".join(f"{cell * scale:>10,.{decimals}f}" for cell in cells))  # fmt: skip
    return "\n".join(rows)


def _bounds(verdict: Verdict) -> str:
    total = len(verdict.ledger.timed())
    free = sum(not step.bound for step in verdict.ledger.timed())
    lines = [f"What was short, in {count(total, 'step')}: nothing in {free:,} ({free / total:.1%})"]
    for resource in sorted(RESOURCES, key=lambda r: -verdict.steps_bound[r]):
        number = verdict.steps_bound[resource]
        if number:
            config = verdict.ledger.replay.config
            knob = knob_of(resource, config)
            lines.append(
                f"  {resource:<10}{number:>10,} steps ({number / total:.1%}), "
                f"{duration(verdict.seconds_bound[resource])}   {knob}={getattr(config, knob)}"
            )
    return "\n".join(lines)


def _recompute(verdict: Verdict) -> str:
    ledger = verdict.ledger
    if not ledger.victims:
        return "Preemptions: none."
    timed = ledger.timed()
    redone = sum(step.num_recomputed for step in timed)
    computed = sum(step.load.num_tokens for step in timed)
    seconds = fsum(step.seconds * step.num_recomputed / step.load.num_tokens for step in timed)
    times = sum(victim.times for victim in ledger.victims.values())
    paid = sorted(ledger.victims.values(), key=lambda v: -v.seconds)[:3]
    requests = ledger.recording.requests
    told = "; ".join(
        f"{requests[v.number].request_id} {count(v.times, 'time')}, {v.tokens:,} tokens dropped, "
        f"{duration(v.seconds)} out"
        for v in paid
    )
    gainer, gained = ledger.gainers.most_common(1)[0]
    return (
        f"Preemptions: {times:,} of {count(len(ledger.victims), 'request')}. {redone:,} tokens "
        f"were computed again, {redone / computed:.1%} of all, about {duration(seconds)} of the "
        f"server's time. Who paid most: {told}. Most room was made for "
        f"{requests[gainer].request_id}, {count(gained, 'time')}."
    )


def _blocking(verdict: Verdict) -> str:
    steps, seconds, most = verdict.blocked
    if not steps:
        return ""
    return (
        f"Head-of-line blocking: in {count(steps, 'step')} ({duration(seconds)}) the head of the "
        f"queue did not fit while others behind it would have, {most} of them at most."
    )


def _hits(verdict: Verdict) -> str:
    ledger = verdict.ledger
    if not ledger.replay.config.enable_prefix_caching:
        return "Prefix cache: off."
    asked = max(ledger.admitted_tokens, 1)
    hit, lost = ledger.hit_tokens, ledger.lost_tokens
    return (
        f"Prefix cache: {hit / asked:.1%} of {ledger.admitted_tokens:,} prompt tokens came from it;"
        f" a cache that never evicts would have given {(hit + lost) / asked:.1%}, so that "
        f"{lost / asked:.1%} ({lost:,} tokens) were lost to {ledger.num_evictions:,} evictions."
    )


def _worst(verdict: Verdict) -> str:
    if not verdict.spikes:
        return ""
    lines = ["Longest waits for a next token:"]
    for spike in verdict.spikes:
        ids = names(served.request_id for served in spike.requests[:2])
        more = len(spike.requests) - 2
        others = f" and {more} more" if more > 0 else ""
        lines.append(
            f"  {duration(spike.seconds)}, {ids}{others}: step {spike.step.step:,} at "
            f"{spike.step.start:,.3f} s; {spike.cause}."
        )
    return "\n".join(lines)


def _advice(verdict: Verdict) -> str:
    if not verdict.tried:
        return ""
    as_it_was, *others = verdict.tried
    off = "nothing was measured to hold the configuration as it was against"
    if verdict.trust:
        error = median_error(verdict.trust)
        off = f"the configuration as it was is predicted {error:.0%} off in the median"
    lines = [f"What if (the same requests, steps priced by this recording; {off}):"]
    lines += table(as_it_was, others)
    best = verdict.best
    if best is None:
        lines.append(
            f"No knob that was tried gains {MIN_GAIN:.0%} of the mean end-to-end time; leave them "
            f"alone."
            if others
            else "No knob was tried: none that could help can be turned further."
            if _short(verdict)
            else "Nothing was short: no knob was tried."
        )
    else:
        gain = 1 - best.means["e2e"] / as_it_was.means["e2e"]
        lines.append(
            f"Largest expected gain: {best.name}, {gain:.0%} off the mean end-to-end time."
        )
        wrong = abs(verdict.trust.get("e2e", 0.0))
        if wrong > gain / 2:
            lines.append(
                f"Beware: for the configuration as it was, that time is predicted {wrong:.0%} "
                f"off. An error of the size of the gain: measure the gain before you rely on it."
            )
    calmest = min(others, key=lambda p: p.result.itl.high, default=as_it_was)
    if calmest.result.itl.high < CALMER * as_it_was.result.itl.high:
        lines.append(
            f"Longest wait for a next token: {duration(as_it_was.result.itl.high)}, with "
            f"{calmest.name} {duration(calmest.result.itl.high)}."
        )
    return "\n".join(lines)


def table(as_it_was: Prediction, others: Sequence[Prediction]) -> list[str]:
    """Predictions, one a line, with their change against the first."""
    unit, scale, decimals = unit_of(as_it_was.means.values())
    rows = [f"  {'':<36}" + "".join(f"{f'mean {m.upper()} ({unit})':>22}" for m in METRICS)
            + f"{f'max ITL ({unit})':>16}{'preemptions':>13}"]  # fmt: skip
    for prediction in (as_it_was, *others):
        cells = ""
        for metric in METRICS:
            value = prediction.means[metric]
            change = value / as_it_was.means[metric] - 1 if as_it_was.means[metric] else 0.0
            shown = f"{value * scale:,.{decimals}f}" + (
                f" ({change:+.0%})" if prediction is not as_it_was else ""
            )
            cells += f"{shown:>22}"
        cells += f"{prediction.result.itl.high * scale:>16,.{decimals}f}"
        rows.append(
            f"  {prediction.name:<36}{cells}{prediction.result.stats['num_preemptions']:>13,}"
        )
    return rows


def to_dict(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON-serialisable data; times in seconds, shares from 0 to 1."""
    ledger = verdict.ledger
    recording, replay = ledger.recording, ledger.replay
    timed = ledger.timed()
    return {
        "recording": {
            "name": recording.name,
            "vllm": recording.version,
            "async": bool(recording.header.get("async")),
            "model": str(recording.header.get("model", "")),
            "config": replay.config.to_dict(),
            "duration": recording.duration,
            "num_requests": len(recording.requests),
            "num_steps": recording.num_steps,
            "num_identical_steps": replay.num_steps,
            "difference": None if replay.difference is None else str(replay.difference),
            "unfollowed": recording.header["unfollowed"],
            "notes": [*recording.notes, *verdict.notes],
        },
        "means": {name: _finite(value) for name, value in verdict.means.items()},
        "percentiles": verdict.percentiles,
        "busy": verdict.busy,
        "host": verdict.host,
        "steps_bound": verdict.steps_bound,
        "seconds_bound": verdict.seconds_bound,
        "num_preemptions": sum(v.times for v in ledger.victims.values()),
        "num_recomputed_tokens": sum(step.num_recomputed for step in timed),
        "num_computed_tokens": sum(step.load.num_tokens for step in timed),
        "victims": [
            {
                "request_id": recording.requests[v.number].request_id,
                "times": v.times,
                "tokens": v.tokens,
                "seconds": v.seconds,
            }
            for v in sorted(ledger.victims.values(), key=lambda v: -v.seconds)[:100]
        ],
        "head_of_line": dict(zip(("steps", "seconds", "most_behind"), verdict.blocked)),
        "prefix_cache": {
            "prompt_tokens": ledger.admitted_tokens,
            "hit_tokens": ledger.hit_tokens,
            "lost_tokens": ledger.lost_tokens,
            "num_evictions": ledger.num_evictions,
        },
        "spikes": [
            {
                "seconds": spike.seconds,
                "step": spike.step.step,
                "time": spike.step.start,
                "requests": [served.request_id for served in spike.requests],
                "cause": spike.cause,
            }
            for spike in verdict.spikes
        ],
        "prediction_error": verdict.trust,
        "what_if": [prediction_to_dict(p) for p in verdict.tried],
        "best": None if verdict.best is None else verdict.best.knobs,
    }


def prediction_to_dict(prediction: Prediction) -> dict[str, Any]:
    """A prediction as JSON-serialisable data."""
    return {
        "knobs": prediction.knobs,
        "means": prediction.means,
        "num_preemptions": prediction.result.stats["num_preemptions"],
        "output_throughput": prediction.result.output_throughput,
        "max_itl": prediction.result.itl.high,
    }


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None
