"""What a paragraph would need three readings for, drawn: each function returns a `Drawing`.

Whatever can be is taken from a run (a snapshot's rows, a queue's ids), so a drawing is as true as
the figures are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from minivllm.core.block_pool import hash_block_tokens
from minivllm.runs.snapshot import CAPS, ScheduledRow, Snapshot
from minivllm.viz.svg import Drawing, width_of

WIDE = 680  # px: the column of a page


def request_life() -> Drawing:
    """The states of a request, and what leads from one to the next (`RequestStatus`)."""
    d = Drawing(
        WIDE,
        250,
        "The life of a request. It arrives and is WAITING; if it can never fit it is refused at "
        "once, as "
        "FINISHED_IGNORED. Admission takes it from WAITING to RUNNING. A running request ends as "
        "FINISHED_STOPPED, FINISHED_LENGTH_CAPPED or FINISHED_ABORTED, or is preempted: PREEMPTED "
        "requests stand in the queue WAITING again, at its front, and are admitted as the others "
        "are.",
    )
    d.text(4, 74, "arrives", role="muted")
    d.line([(54, 70), (92, 70)], arrow=True)
    d.box(94, 48, 120, 44, "WAITING", "waiting", bold=True)
    d.line([(214, 60), (322, 60)], arrow=True)
    d.text(268, 52, "admitted", anchor="middle", role="muted", size=13)
    d.box(324, 48, 120, 44, "RUNNING", "prefill", bold=True)
    d.line([(444, 70), (482, 70)], arrow=True)
    d.box(
        484,
        22,
        192,
        96,
        ["FINISHED_STOPPED", "FINISHED_LENGTH_CAPPED", "FINISHED_ABORTED"],
        "decode",
        size=13,
    )
    d.line([(384, 92), (384, 186), (216, 186)], "preempted", arrow=True)
    d.text(392, 146, "preempted: its blocks are freed,", role="muted", size=13)
    d.text(392, 163, "its tokens are kept", role="muted", size=13)
    d.box(94, 164, 120, 44, "PREEMPTED", "preempted", bold=True)
    d.line([(154, 164), (154, 94)], "preempted", arrow=True)
    d.text(146, 134, "front of the queue", anchor="end", role="muted", size=13)
    d.line([(74, 70), (74, 24), (236, 24)], arrow=True)
    d.text(242, 28, "FINISHED_IGNORED: can never fit", role="muted", size=13)
    words = "A request that was preempted stands in the queue WAITING, with the status PREEMPTED."
    d.text(4, 240, words, role="muted", size=13)
    return d


def kv_cache(num_tokens: int = 6) -> Drawing:
    """One layer of a step that computes one token: what is read, and what is added.

    Args:
        num_tokens: known tokens, the one that the step computes included.
    """
    d = Drawing(
        WIDE,
        250,
        f"A KV cache in one step. Of {num_tokens} tokens the first {num_tokens - 1} have their "
        "key and "
        f"value in the cache from earlier steps. The step computes the query, key and value of "
        "the last "
        f"token only, adds its key and value to the cache, and compares its query with all "
        f"{num_tokens} keys. No earlier key or value changes.",
    )
    left, width = 92, (WIDE - 96) / num_tokens
    for row, y in (("token", 30), ("key", 92), ("value", 132)):
        d.text(4, y + 21, row, role="muted")
        for i in range(num_tokens):
            new = i == num_tokens - 1
            x = left + i * width
            if row == "token":
                d.box(x, y, width - 8, 32, str(i), "decode" if new else "muted", mono=True)
            else:
                name = f"{row[0].upper()}{i}"
                d.box(x, y, width - 8, 32, name, "decode" if new else "cached", mono=True)
    right = left + (num_tokens - 1) * width
    middle = right + (width - 8) / 2
    d.line([(middle, 62), (middle, 90)], "decode", arrow=True)
    d.text(left, 80, "computed in earlier steps, kept", role="muted", size=13)
    d.text(right - 4, 20, "this step", role="muted", size=13)
    d.box(right, 198, width - 8, 32, f"Q{num_tokens - 1}", "decode", mono=True)
    d.text(4, 219, "query", role="muted")
    for i in range(num_tokens):
        x = left + i * width + (width - 8) / 2
        d.line([(middle, 198), (x, 166)], "decode", arrow=True, dashed=i < num_tokens - 1, thick=1)
    words = "is compared with every key, weighs every value, and is not kept"
    d.text(left, 244, words, role="muted", size=13)
    return d


def rectangle(jobs: Sequence[tuple[str, int, int]]) -> Drawing:
    """A static batch as the rectangle that it is computed in.

    Args:
        jobs: of one batch, as (request id, prompt tokens, output tokens).
    """
    longest_prompt, longest_output = max(p for _, p, _ in jobs), max(o for _, _, o in jobs)
    padding = sum(longest_prompt - p for _, p, _ in jobs)
    dead = sum(longest_output - o for _, _, o in jobs)
    d = Drawing(
        WIDE,
        62 + 34 * len(jobs),
        f"A static batch of {len(jobs)} requests as a rectangle: every row has {longest_prompt} "
        "places for "
        f"the prompt and {longest_output} for the output. {padding} places are padding before a "
        "prompt, "
        f"{dead} belong to rows whose answer had ended. "
        + " ".join(f"{name}: {p} prompt tokens, {o} output tokens." for name, p, o in jobs),
    )
    left, token = 44, (WIDE - 48) / (longest_prompt + longest_output)
    border = left + longest_prompt * token
    d.text(left, 18, f"prompt: {longest_prompt} places", role="muted", size=13)
    d.text(border + 4, 18, f"output: {longest_output} places", role="muted", size=13)
    for row, (name, prompt, output) in enumerate(jobs):
        y = 28 + 34 * row
        d.text(4, y + 20, name, mono=True)
        if prompt < longest_prompt:
            d.rect(left, y, (longest_prompt - prompt) * token, 28, "waiting", hatch=True)
        d.box(border - prompt * token, y, prompt * token, 28, str(prompt), "prefill", tint=0.35)
        d.box(border, y, output * token, 28, str(output), "decode", tint=0.35)
        if output < longest_output:
            x = border + output * token
            d.rect(x, y, (longest_output - output) * token, 28, "preempted", hatch=True)
    y = 34 + 34 * len(jobs)
    for x, role, words in (
        (left, "waiting", "padding before the prompt"),
        (left + 230, "preempted", "computed after the answer has ended"),
    ):
        d.rect(x, y + 4, 22, 14, role, hatch=True)
        d.text(x + 28, y + 16, words, role="muted", size=13)
    return d


def flat_list(step: Snapshot) -> Drawing:
    """A step's tokens as the one list that the model gets, each with its owner.

    Args:
        step: a snapshot; its requests' positions are those that the step computes.
    """
    rows = step["scheduled"]
    total = sum(row["num_scheduled_tokens"] for row in rows)
    spans = []
    for row in rows:
        last = step["requests"][row["request_id"]]["num_computed_tokens"]
        spans.append((row["request_id"], last - row["num_scheduled_tokens"], last))
    told = ", ".join(
        f"{name} at position{f' {begin}' if end == begin + 1 else f's {begin} to {end - 1}'}"
        for name, begin, end in spans
    )
    d = Drawing(WIDE, 116, f"One flat list of {total} tokens without padding: {told}.")
    cell, x = (WIDE - 8) / total, 4.0
    for number, (_, begin, end) in enumerate(spans):
        for _ in range(begin, end):
            d.rect(x, 34, cell - 1.5, 30, f"r{number % 8}", tint=0.45)
            x += cell
    x, level = 4.0, 0
    for number, (name, begin, end) in enumerate(spans):
        words = f"{name}: {begin}" if end == begin + 1 else f"{name}: {begin} to {end - 1}"
        middle = x + (end - begin) * cell / 2
        if end - begin == 1:  # its label is wider than its cell: each stands on a level of its own
            y = 84 + 15 * (level % 3)
            d.line([(middle, 64), (middle, y - 10)], f"r{number % 8}", thick=1)
            d.text(middle - 3 if level else 2, y, words, size=13)
            level += 1
        else:
            d.text(middle, 84, words, size=13, anchor="middle")
        x += (end - begin) * cell
    words = "request and position of each token; only attention needs them"
    d.text(4, 22, words, role="muted", size=13)
    return d


def free_queue(queues: Sequence[tuple[str, Sequence[int]]]) -> Drawing:
    """The free queue at several moments, front on the left, as the linked list that it is.

    Args:
        queues: (what has happened, block ids from the front), one row each.
    """
    told = " ".join(
        f"{words}: {', '.join(map(str, ids)) or 'empty'}, front first." for words, ids in queues
    )
    d = Drawing(WIDE, 20 + 72 * len(queues), f"The free queue. {told}")
    for row, (words, ids) in enumerate(queues):
        y = 18 + 72 * row
        d.text(4, y, words, size=13, role="muted")
        d.text(4, y + 33, "front", size=13)
        x = 52.0
        for number, block in enumerate(ids):
            d.box(x, y + 12, 48, 32, str(block), "muted" if number else "budget", mono=True)
            if number + 1 < len(ids):
                d.line([(x + 48, y + 23), (x + 74, y + 23)], "ink", arrow=True)
                d.line([(x + 74, y + 34), (x + 48, y + 34)], "ink", arrow=True)
            x += 76
        d.text(x - 20 if ids else x, y + 33, "end", size=13)
    return d


def caps_on_a_line(rows: Sequence[ScheduledRow], words: Mapping[str, str] | None = None) -> Drawing:
    """For each request of a step, its four caps on a line of tokens; the smallest is what it gets.

    Args:
        rows: the `scheduled` of a snapshot.
        words: what to call a cap of `CAPS`; the missing keep their names.
    """
    call = {
        "gap": "gap",
        "long_prefill_token_threshold": "threshold",
        "max_num_batched_tokens": "budget left",
        "max_model_len": "room",
        **(words or {}),
    }
    known = [{k: v for k, v in row["limits"].items() if v is not None} for row in rows]
    shown = [{k: v for k, v in limits.items() if k != "max_model_len"} for limits in known]
    longest = max(max(limits.values()) for limits in shown)
    told = " ".join(
        f"{row['request_id']} gets {row['num_scheduled_tokens']}, the smallest of "
        + ", ".join(f"{call[k]} {limits[k]}" for k in CAPS if k in limits)
        + "."
        for row, limits in zip(rows, known)
    )
    d = Drawing(WIDE, 26 + 84 * len(rows), f"The caps of one step on a line of tokens. {told}")
    left, token = 76, (WIDE - 160) / longest
    for number, (row, limits) in enumerate(zip(rows, shown)):
        y = 44 + 84 * number
        got = row["num_scheduled_tokens"]
        d.text(4, y + 16, row["request_id"], mono=True)
        d.line([(left, y + 24), (left + longest * token + 8, y + 24)], "muted", arrow=True)
        d.rect(left, y, got * token, 22, "prefill", tint=0.45)
        order = sorted(limits, key=lambda k: (limits[k], CAPS.index(k)))
        end = [-1.0, -1.0]  # of the last label on each of two levels
        for k in order:
            x = left + limits[k] * token
            bound = k == row["cap"]
            label = f"{call[k]} {limits[k]}"
            start = max(left, min(x - width_of(label, 13) / 2, WIDE - width_of(label, 13) - 2))
            level = 0 if start > end[0] else 1
            start = max(start, end[level] + 8)
            end[level] = start + width_of(label, 13)
            d.line(
                [(x, y - 4), (x, y + 28)], "accent" if bound else "ink", thick=2.5 if bound else 1.5
            )
            d.text(start, y + (42 if level == 0 else -10), label, size=13, bold=bound)
    return d


def taken_back(step: Snapshot, running_before: Sequence[str]) -> Drawing:
    """How a step takes back what it had planned for a victim.

    Args:
        step: a snapshot in which one request was preempted and unscheduled.
        running_before: RUNNING when the step began, in order.

    Raises:
        ValueError: if the step unscheduled nobody.
    """
    taken = [e for e in step["events"] if e["type"] == "unscheduled"]
    if not taken:
        raise ValueError(f"step {step['step']} takes no plan back")
    (preempted,) = (e for e in step["events"] if e["type"] == "preempted")
    victim, asks = preempted["request_id"], preempted["for_request_id"]
    tokens = taken[0]["num_scheduled_tokens"]
    index = list(running_before).index(asks)
    place = list(running_before).index(victim)
    after = [name for name in running_before if name != victim]
    planned = {
        row["request_id"]: row["num_scheduled_tokens"]
        for row in step["scheduled"]
        if row["request_id"] in running_before[:index]
    }
    before = {name: planned.get(name, tokens) for name in running_before[:index]}
    d = Drawing(
        WIDE,
        268,
        f"{asks} asks for a block and the victim is {victim}, which stands before it in RUNNING "
        "and was "
        f"given {tokens} token in this step. Before: RUNNING is {', '.join(running_before)}, the "
        "loop is "
        f"at index {index}, the plan is {before}. After: RUNNING is {', '.join(after)}, the index "
        "is "
        f"{index - 1}, the plan is {planned}, and {tokens} token is back in the budget. The loop "
        "is still "
        f"at {asks}.",
    )
    for top, title, names, at, plan in (
        (0, f"before: {asks} asks for a block", running_before, index, before),
        (
            138,
            f"after: {victim} is out, and {tokens} token is back in the budget",
            after,
            index - 1,
            planned,
        ),
    ):
        d.text(4, top + 18, title, bold=True)
        d.text(4, top + 54, "RUNNING", role="muted")
        x = 84.0
        for number, name in enumerate(names):
            role = "preempted" if name == victim else "prefill"
            d.box(x, top + 32, 92, 34, name, role, mono=True)
            d.text(x + 46, top + 82, str(number), size=13, role="muted", anchor="middle")
            if number == at:
                d.line([(x + 46, top + 108), (x + 46, top + 88)], "accent", arrow=True, thick=2)
                d.text(x + 56, top + 104, f"req_index = {at}", size=13, mono=True)
            x += 104
        d.text(446, top + 54, "plan", role="muted")
        listed = [f"{name}: {n}" for name, n in plan.items()] or ["nobody"]
        d.box(490, top + 28, 180, 46, listed, "budget", size=13, mono=True)
        assert place < index
    return d


def hash_chain(prompts: Mapping[str, Sequence[int]], block_size: int = 4) -> Drawing:
    """The blocks of prompts with their names, each made from its tokens and the name before it.

    Args:
        prompts: token ids by name.
        block_size: tokens in a block; a last block that is not full has no name.
    """
    chains: dict[str, list[tuple[tuple[int, ...], str]]] = {}
    for name, tokens in prompts.items():
        parent, chains[name] = None, []
        for start in range(0, len(tokens), block_size):
            block = tuple(tokens[start : start + block_size])
            if len(block) == block_size:
                parent = hash_block_tokens(parent, block)
                chains[name].append((block, parent.hex()[:4]))
            else:
                chains[name].append((block, ""))
    owners: dict[str, list[str]] = {}
    for name, blocks in chains.items():
        for _, digest in blocks:
            if digest:
                owners.setdefault(digest, []).append(name)
    shared = {digest: names for digest, names in owners.items() if len(names) > 1}
    told = "; ".join(f"{' and '.join(names)} share the name {d}" for d, names in shared.items())
    d = Drawing(
        WIDE,
        8 + 92 * len(chains),
        "Each full block's name is a hash of its tokens and of the name of the block before it. "
        + " ".join(
            f"{name}: "
            + ", ".join(f"{list(b)} is {digest or 'unnamed'}" for b, digest in blocks)
            + "."
            for name, blocks in chains.items()
        )
        + f" {told or 'No two are equal'}.",
    )
    for row, (name, blocks) in enumerate(chains.items()):
        y = 8 + 92 * row
        d.text(4, y + 24, name, mono=True, bold=True)
        for column, (block, digest) in enumerate(blocks):
            x = 40 + 214 * column
            d.box(x, y, 140, 36, " ".join(map(str, block)), "muted", mono=True)
            if not digest:
                d.text(x + 70, y + 70, "not full: no name", role="muted", size=13, anchor="middle")
                continue
            d.line([(x + 70, y + 36), (x + 70, y + 50)], "ink", arrow=True)
            d.box(
                x,
                y + 52,
                140,
                30,
                digest,
                "cached" if digest in shared else "muted",
                mono=True,
                bold=digest in shared,
            )
            if column + 1 < len(blocks) and blocks[column + 1][1]:
                d.line([(x + 140, y + 67), (x + 212, y + 67)], "ink", arrow=True)
    return d


def doors() -> Drawing:
    """The way of a request through what checks it, and what each check says to the client."""
    rows = (
        ("gateway (yours)", ["too many wait?"], "429: later, or elsewhere", "budget"),
        ("OpenAI server", ["prompt + max_tokens", "more than max_model_len?"], "400", "preempted"),
        (
            "input processor",
            ["prompt of max_model_len", "tokens or more?"],
            "400; LLM(): an error",
            "preempted",
        ),
        ("WAITING", ["no limit in 0.22.1"], "", "waiting"),
        ("schedule()", ["too few tokens, seats or blocks?"], "waits, and all behind it", "waiting"),
        ("RUNNING", ["max_tokens or", "max_model_len reached?"], "ends: length", "decode"),
    )
    d = Drawing(
        WIDE,
        70 + 66 * len(rows),
        "The way of a request. Before any request: start-up fails unless one sequence of "
        "max_model_len fits "
        "into the cache. Then, in order: "
        + " ".join(
            f"{name}: {' '.join(q)}{f' Then {no}.' if no else ''}" for name, q, no, _ in rows
        ),
    )
    d.box(
        4,
        4,
        672,
        40,
        "start-up, once: does one sequence of max_model_len fit into the cache? If not: error.",
        "muted",
        size=13,
    )
    for number, (name, question, answer, role) in enumerate(rows):
        y = 62 + 66 * number
        d.box(4, y, 150, 44, name, "prefill", bold=True)
        d.box(170, y, 270, 44, question, "muted", size=13, tint=0.08)
        if answer:
            d.line([(440, y + 22), (474, y + 22)], role, arrow=True)
            d.box(476, y, 200, 44, answer, role, size=13)
        if number + 1 < len(rows):
            d.line([(79, y + 44), (79, y + 66)], "ink", arrow=True)
    return d


def step_bars(bars: Mapping[str, Mapping[str, int]], budget: int) -> Drawing:
    """Steps as stacked bars of tokens against the budget.

    Args:
        bars: for each step's label, tokens by what they are for: the keys are the same in all.
        budget: the most that a step may compute.

    Raises:
        ValueError: if a step has more tokens than the budget.
    """
    roles = ("decode", "prefill", "cached", "budget")
    names = list(next(iter(bars.values())))
    for label, parts in bars.items():
        if sum(parts.values()) > budget:
            raise ValueError(f"{label}: {sum(parts.values())} tokens of {budget}")
    told = " ".join(
        f"{label}: "
        + ", ".join(f"{parts[n]} {n}" for n in names)
        + f", {budget - sum(parts.values())} unused."
        for label, parts in bars.items()
    )
    d = Drawing(WIDE, 66 + 46 * len(bars), f"Tokens of a step against a budget of {budget}. {told}")
    left, token = 130, (WIDE - 140) / budget
    x = float(left)
    for role, name in zip(roles, names):
        d.rect(x, 8, 22, 14, role, tint=0.45)
        d.text(x + 28, 20, name, size=13, role="muted")
        x += 40 + width_of(name, 13)
    d.rect(x, 8, 22, 14, "waiting", hatch=True)
    d.text(x + 28, 20, "unused", size=13, role="muted")
    for row, (label, parts) in enumerate(bars.items()):
        y, x = 34 + 46 * row, float(left)
        d.text(4, y + 23, label)
        for role, name in zip(roles, names):
            width = parts[name] * token
            if not width:
                continue
            fits = width_of(str(parts[name]), 13) < width
            d.box(x, y, width, 36, str(parts[name]) if fits else "", role, size=13, tint=0.45)
            x += width
        if sum(parts.values()) < budget:
            d.rect(x, y, left + budget * token - x, 36, "waiting", hatch=True)
    y = 38 + 46 * len(bars)
    d.line([(left + budget * token, 28), (left + budget * token, y)], "accent", thick=2)
    d.text(left + budget * token, y + 16, f"budget {budget}", size=13, anchor="end")
    return d


def server_boxes(boxes: Mapping[str, tuple[float, float, float]], unit: str = "second") -> Drawing:
    """A server as the three boxes of Little's law, each with its own three numbers.

    Args:
        boxes: (requests in it, arrivals in a unit of time, time in it) of `server`, `WAITING` and
            `RUNNING`.
        unit: of time.
    """

    def law(name: str) -> tuple[str, str, str]:
        L, lam, W = boxes[name]
        return f"L = {L:.2f} requests", f"λ = {lam:.2f} a {unit}", f"W = {W:.2f} {unit}s"

    told = " ".join(f"{name}: {', '.join(law(name))}." for name in boxes)
    d = Drawing(WIDE, 216, f"The server holds the queue WAITING and the batch RUNNING. {told}")
    d.rect(84, 20, 512, 186, "muted", tint=0.06)
    d.text(96, 42, "the server", bold=True)
    d.text(96, 196, ", ".join(law("server")), mono=True, size=13)
    for x, name, role in ((104, "WAITING", "waiting"), (356, "RUNNING", "prefill")):
        d.rect(x, 56, 220, 116, role)
        d.text(x + 110, 82, name, bold=True, anchor="middle")
        for line, words in enumerate(law(name)):
            d.text(x + 20, 108 + 22 * line, words, mono=True, size=13)
    d.line([(10, 114), (102, 114)], "ink", arrow=True)
    d.text(4, 100, "arrivals", size=13, role="muted")
    d.line([(324, 114), (354, 114)], "ink", arrow=True)
    d.line([(576, 114), (670, 114)], "ink", arrow=True)
    d.text(606, 100, "answers", size=13, role="muted")
    return d


def decision_ladder(
    symptom: str, steps: Sequence[tuple[Sequence[str], Sequence[str]]], otherwise: Sequence[str]
) -> Drawing:
    """Questions in the order in which to ask them; a yes leads to the right, a no to the next.

    Args:
        symptom: what is seen.
        steps: (the question, what a yes means), each as lines.
        otherwise: what is left after a no to all.
    """
    told = " ".join(f"{' '.join(q)} If yes: {' '.join(a)}." for q, a in steps)
    d = Drawing(
        WIDE,
        56 + 84 * len(steps) + 60,
        f"What to do when {symptom}. {told} Otherwise: {' '.join(otherwise)}.",
    )
    d.box(4, 4, 316, 34, symptom, "accent", bold=True, size=13)
    y = 56.0
    d.line([(162, 38), (162, y)], "ink", arrow=True)
    for question, answer in steps:
        d.box(4, y, 316, 58, question, "muted", size=13, tint=0.1)
        d.line([(320, y + 29), (372, y + 29)], "decode", arrow=True)
        d.text(330, y + 22, "yes", size=13)
        d.box(374, y, 302, 58, answer, "decode", size=13)
        d.line([(162, y + 58), (162, y + 84)], "ink", arrow=True)
        d.text(170, y + 75, "no", size=13)
        y += 84
    d.box(4, y, 672, 52, otherwise, "waiting", size=13)
    return d
