"""A step told in sentences, from its snapshot: the only place where the wording lives.

The view shows them, its live region speaks them, and a notebook can print them:

    for sentence in explain(scheduler.history[3]):
        print(sentence)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from minivllm.core.config import SchedulerConfig
from minivllm.runs.snapshot import ScheduledRow, Snapshot

MAX_NAMES = 6
"""So many ids a sentence names; of more it gives the number."""


def explain(snapshot: Snapshot, config: SchedulerConfig | None = None) -> list[str]:
    """The step in sentences, in the order in which the scheduler decided.

    Args:
        snapshot: one step of a `History`.
        config: of the run; with it, a swap that fell back to recompute is named as such.
    """
    events = snapshot["events"]
    before = [e for e in events if e["type"] in ("arrived", "refused", "aborted", "stopped")]
    sentences = _inputs(before)
    sentences += _preemptions(events, snapshot, config)
    sentences += _running(snapshot)
    sentences += _admissions(events, snapshot)
    sentences += _evictions(events)
    sentences += _admission_stopped(events, snapshot)
    sentences += _totals(snapshot)
    sentences += _verified(events)
    sentences += _outcome(events, snapshot)
    return sentences


def names(ids: Iterable[str | int]) -> str:
    """`r0`, `r0 and r1`, `r0, r1 and r2`, or the first few and how many more."""
    listed = [str(id_) for id_ in ids]
    if len(listed) > MAX_NAMES:
        shown = ", ".join(listed[: MAX_NAMES - 1])
        return f"{shown} and {len(listed) - MAX_NAMES + 1} more"
    return " and ".join(filter(None, [", ".join(listed[:-1]), listed[-1] if listed else ""]))


def count(number: int, noun: str) -> str:
    """`1 block`, `2 blocks`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _inputs(events: Sequence[dict[str, Any]]) -> list[str]:
    """Who came, who was refused, who was ended from outside; equal neighbours in one sentence."""

    def key(event: dict[str, Any]) -> tuple[Any, ...]:
        refused = event["request_id"] if event["type"] == "refused" else None
        numbers = (event.get(k) for k in ("num_prompt_tokens", "max_tokens", "priority"))
        return (event["type"], refused, *numbers)

    sentences = []
    for (type_, *_), group in groupby(events, key):
        rows = list(group)
        ids, first = names(row["request_id"] for row in rows), rows[0]
        if type_ == "arrived":
            most = "no limit but the model's"
            if first["max_tokens"] is not None:
                most = f"at most {count(first['max_tokens'], 'token')}"
            priority = f", priority {first['priority']}" if first["priority"] else ""
            verb, each = ("arrives", "") if len(rows) == 1 else ("arrive", " each")
            sentences.append(
                f"{ids} {verb}: {count(first['num_prompt_tokens'], 'prompt token')}{each}, "
                f"{most} to generate{priority}."
            )
        elif type_ == "refused":
            reason = first["reason"].removeprefix(f"request {first['request_id']}: ")
            sentences.append(f"{ids} is refused: {reason}")
        else:
            verb = "are" if len(rows) > 1 else "is"
            what = "aborted" if type_ == "aborted" else "stopped"
            sentences.append(f"{ids} {verb} {what} from outside; all blocks go back.")
    return sentences


def _preemptions(
    events: Sequence[dict[str, Any]], snapshot: Snapshot, config: SchedulerConfig | None
) -> list[str]:
    sentences = []
    given_back: dict[str, int] = {}
    for event in events:
        victim = event.get("request_id", "")
        if event["type"] == "unscheduled":
            given_back[victim] = event["num_scheduled_tokens"]
        elif event["type"] == "preempted":
            sentences.append(_preemption(event, config))
            comparison = _comparison(event)
            if comparison:
                sentences.append(comparison)
            if victim in given_back:
                tokens = count(given_back.pop(victim), "token")
                sentences.append(
                    f"{victim} had been given {tokens} in this very step: back to the budget."
                )
        elif event["type"] == "swapped_out":
            sentences.append(
                f"Copied to the CPU for {victim}: {_pairs(event['blocks'], 'GPU', 'CPU')}."
            )
    return sentences


def _preemption(event: dict[str, Any], config: SchedulerConfig | None) -> str:
    victim, for_request = event["request_id"], event["for_request_id"]
    policy = event["victim_policy"].removesuffix("_as_upstream")
    who = {
        "last_admitted": "FCFS preempts the last running",
        "priority": "PRIORITY preempts the least urgent",
        "least_computed": "the policy preempts the one with the fewest computed tokens",
    }.get(policy, "the policy preempts")
    if victim == for_request:
        alone = len(event["victim_keys"] or ()) == 1
        who = "no one else is running" if alone else who.replace("preempts", "picks")
        who += ", so it preempts itself" if alone else f", {victim} itself"
    else:
        who += f", {victim}" if not who.endswith("preempts") else f" {victim}"

    freed = f"{count(event['num_freed_blocks'], 'block')} freed"
    tokens = count(event["num_computed_tokens"], "computed token")
    if event["mode"] == "swap":
        cost = f"{freed}, {tokens} kept on the CPU"
    else:
        cost = f"{freed}, {tokens} dropped"
        if config is not None and config.preemption_mode == "swap":
            cost += "; the CPU pool has no room for a swap"
    return (
        f"{for_request} needs {count(event['num_blocks_needed'], 'block')}, "
        f"{event['num_free_blocks']} free: {who} ({cost})."
    )


def _comparison(event: dict[str, Any]) -> str | None:
    """What the policy compared, where it compares more than the order of admission."""
    keys = event["victim_keys"]
    policy = event["victim_policy"].removesuffix("_as_upstream")
    if policy not in ("priority", "least_computed") or not keys or len(keys) < 2:
        return None
    if policy == "priority":
        # Whoever has the largest key goes: show the end that decides.
        keys = sorted(keys, key=lambda pair: pair[1], reverse=True)
        listed = [f"{id_} ({key[0]}, {_number(key[1])})" for id_, key in keys]
        what = "Largest (priority, arrival)"
    else:
        keys = sorted(keys, key=lambda pair: pair[1])
        listed = [f"{id_} {key}" for id_, key in keys]
        what = "Fewest computed tokens"
    return f"{what} first: {names(listed)}."


def _number(value: float) -> str:
    return f"{value:g}"


def _pairs(pairs: Sequence[Sequence[int]], source: str, target: str) -> str:
    listed = ", ".join(f"{a}→{b}" for a, b in pairs[:MAX_NAMES])
    more = f" and {len(pairs) - MAX_NAMES} more" if len(pairs) > MAX_NAMES else ""
    return f"{count(len(pairs), 'block')} ({source}→{target} {listed}{more})"


def _running(snapshot: Snapshot) -> list[str]:
    """What those who were running already get."""
    rows = [row for row in snapshot["scheduled"] if row["kind"] == "running"]
    decoding = [row for row in rows if row["limits"]["gap"] == 1]
    guessing = [row for row in rows if row["num_draft_tokens"]]
    sentences = []
    if decoding:
        verb = "decodes" if len(decoding) == 1 else "decode"
        each = "1 token" if len(decoding) == 1 else "1 token each"
        sentences.append(f"{names(r['request_id'] for r in decoding)} {verb}: {each}.")
    sentences += [f"{row['request_id']} decodes: {_guesses(row)}." for row in guessing]
    rest = [row for row in rows if row["limits"]["gap"] != 1 and row not in guessing]
    return sentences + [f"{r['request_id']} goes on: {_grant(r, 'tokens left')}." for r in rest]


def _guesses(row: ScheduledRow) -> str:
    """`1 token and 4 proposed ones`, and what bound them."""
    num_drafts = row["num_draft_tokens"]
    num_known = row["num_scheduled_tokens"] - num_drafts
    what = f"{count(num_known, 'token')} and {num_drafts} proposed"
    num_left = (row["limits"]["gap"] or 0) - row["num_scheduled_tokens"]
    if num_left:
        what += f", {num_left} more cut by {row['cap']}"
    return what


def _verified(events: Sequence[dict[str, Any]]) -> list[str]:
    """`r0: 4 proposed, 2 accepted, 2 taken back.`"""
    sentences = []
    for event in events:
        if event["type"] == "verified":
            proposed, accepted = event["num_draft_tokens"], event["num_accepted_tokens"]
            sentences.append(
                f"{event['request_id']}: {proposed} proposed, {accepted} accepted, "
                f"{proposed - accepted} taken back."
            )
    return sentences


def _grant(row: ScheduledRow, known: str = "tokens", num_cached_tokens: int = 0) -> str:
    """`all 12 prompt tokens`, or `20 of the 48 tokens ...` and what bound them."""
    tokens, gap = row["num_scheduled_tokens"], row["limits"]["gap"] or 0
    if num_cached_tokens:
        what = f"{num_cached_tokens} of {num_cached_tokens + gap} tokens come from the prefix "
        what += f"cache, the other {gap} " + ("is computed" if gap == 1 else "are computed")
        if tokens < gap:
            what += f" by and by, {tokens} now"
    elif tokens == gap:
        return f"all {gap} {known}" if gap > 1 else "1 token"
    else:
        what = f"{tokens} of {gap} {known}"
    if tokens == gap:
        return what
    cap = row["cap"]
    if cap == "max_num_batched_tokens":
        return f"{what}, all that is left of the budget"
    if cap == "long_prefill_token_threshold":
        return f"{what}, bounded by {cap}={row['limits'][cap]}"
    return f"{what}, bounded by {cap}"


def _admissions(events: Sequence[dict[str, Any]], snapshot: Snapshot) -> list[str]:
    rows = {row["request_id"]: row for row in snapshot["scheduled"] if row["kind"] != "running"}
    hits = {e["request_id"]: e["num_cached_tokens"] for e in events if e["type"] == "cache_hit"}
    copies = {e["request_id"]: e["blocks"] for e in events if e["type"] == "swapped_in"}
    told = []  # (id, what happens to it, one more sentence)
    for event in events:
        id_ = event.get("request_id", "")
        if event["type"] not in ("admitted", "resumed") or id_ not in rows:
            continue
        again, known = "", "prompt tokens"
        if event["type"] == "resumed":
            again, known = " again", "tokens, prompt and output"
        copied = ""
        if id_ in copies:
            known = "tokens that it lacks"
            copied = f"Copied back to the GPU for {id_}: {_pairs(copies[id_], 'CPU', 'GPU')}."
        told.append((id_, f"{again}: {_grant(rows[id_], known, hits.get(id_, 0))}", copied))

    sentences = []
    for (what, copied), group in groupby(told, lambda item: item[1:]):
        ids = [item[0] for item in group]
        verb = "are each" if len(ids) > 1 else "is"
        sentences.append(f"{names(ids)} {verb} admitted{what}.")
        if copied:
            sentences.append(copied)
    return sentences


def _evictions(events: Sequence[dict[str, Any]]) -> list[str]:
    blocks = [event["block_id"] for event in events if event["type"] == "evicted"]
    if not blocks:
        return []
    subject, pronoun = ("block", "its") if len(blocks) == 1 else ("blocks", "their")
    return [f"Handed out anew, {pronoun} cached tokens forgotten: {subject} {names(blocks)}."]


def _admission_stopped(events: Sequence[dict[str, Any]], snapshot: Snapshot) -> list[str]:
    sentences = []
    for event in events:
        if event["type"] != "admission_stopped":
            continue
        id_, reason, budget = event["request_id"], event["reason"], snapshot["budget"]
        if reason == "num_gpu_blocks":
            why = (
                f"it needs {count(event['num_blocks_needed'], 'block')}, "
                f"{event['num_free_blocks']} free"
            )
        elif reason == "max_num_batched_tokens":
            why = f"the budget of {count(budget['max_num_batched_tokens'], 'token')} is spent"
        elif reason == "watermark":
            why = (
                f"it needs {count(event['num_blocks_needed'], 'block')}, and of "
                f"{event['num_free_blocks']} free the watermark keeps too many"
            )
        elif reason == "max_num_active_seqs":
            why = f"so many run as admission lets, max_num_active_seqs={len(snapshot['running'])}"
        elif reason == "prefill_schedule_interval":
            why = "this step only decodes (prefill_schedule_interval)"
        elif reason == "max_num_seqs":
            why = f"the batch is full, max_num_seqs={len(snapshot['running'])}"
        elif reason == "enable_chunked_prefill":
            why = (
                f"chunked prefill is off, and its tokens do not fit whole into the "
                f"{budget['left']} left of the budget"
            )
        else:
            why = "a step that had to preempt admits no one"
        behind = [other for other in snapshot["waiting"] if other != id_]
        rest = f"; {names(behind)} behind it" if behind else ""
        sentences.append(f"{id_} waits: {why}{rest}.")
    return sentences


def _totals(snapshot: Snapshot) -> list[str]:
    num_tokens, num_reqs = snapshot["budget"]["spent"], len(snapshot["scheduled"])
    if num_reqs == 0:
        if not snapshot["requests"]:
            return ["Nothing to schedule."]
        return ["No token is scheduled."]
    redone = snapshot["stats"]["num_recomputed_tokens"]
    again = f", {redone} of them computed before and lost" if redone else ""
    return [
        f"In all {count(num_tokens, 'token')} of {snapshot['budget']['max_num_batched_tokens']} "
        f"for {count(num_reqs, 'request')}{again}."
    ]


def _outcome(events: Sequence[dict[str, Any]], snapshot: Snapshot) -> list[str]:
    sentences = []
    requests = snapshot["requests"]
    first = [id_ for id_ in snapshot["sampled"] if requests[id_]["num_output_tokens"] == 0]
    if first:
        noun = "gets its first token" if len(first) == 1 else "get their first token"
        sentences.append(f"{names(first)} {noun}.")
    finished = [event for event in events if event["type"] == "finished"]
    for reason, group in groupby(finished, lambda event: event["reason"]):
        ids = [event["request_id"] for event in group]
        verb = "finishes" if len(ids) == 1 else "finish"
        whose = "its" if len(ids) == 1 else "their"
        why = "the length asked for is reached" if reason == "length" else "a stop token came"
        sentences.append(f"{names(ids)} {verb}: {why}, {whose} blocks go back.")
    return sentences
