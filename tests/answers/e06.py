"""Answers to exercise 6, right and wrong, as the text of the answer cell."""

from __future__ import annotations

Row = tuple[str, int, int, int]


def answer(
    name: str, rows: list[Row], blocks: int, more: dict | None = None, **knobs: object
) -> str:
    requests = [
        {"request_id": id_, "arrival_step": step, "num_prompt_tokens": prompt, "max_tokens": output}
        for id_, step, prompt, output in rows
    ]
    config = {"num_gpu_blocks": blocks, "block_size": 4, "enable_prefix_caching": False, **knobs}
    return f"{name} = { ({'config': config, 'requests': requests} | (more or {})) }"


REAL = {"r0": 0, "r1": 4, "r2": 4, "r3": 6, "r4": 7}
PASSES = {"r0": 0, "r1": 10, "r2": 1, "r3": 3, "r4": 7}


def admitted(real: object = None, passes_over: object = None) -> str:
    return f"admitted = {{'real': {real or REAL}, 'passes_over': {passes_over or PASSES}}}"


def small(
    every: int = 1, count: int = 14, start: int = 1, tokens: int = 5, out: int = 3
) -> list[Row]:
    return [(f"s{i}", start + every * i, tokens, out) for i in range(count)]


def starving(
    rows: list[Row] | None = None, blocks: int = 12, id_: str = "big",
    real: object = 4, other: object = 16, **knobs: object,
) -> str:  # fmt: skip
    rows = rows or [("r0", 0, 20, 4), ("big", 1, 36, 3), *small()]
    more = {"request_id": id_, "admitted_real": real, "admitted_passes_over": other}
    return answer("starving", rows, blocks, more, **knobs)


TWINS: list[Row] = [("a", 0, 11, 8), ("b", 0, 11, 8)]


def stuck(
    rows: list[Row] | None = None, blocks: int = 6, since: object = 2, **knobs: object
) -> str:
    return answer("stuck", rows or TWINS, blocks, {"stuck_from": since}, **knobs)


def thrash(
    rows: list[Row] | None = None, blocks: int = 20, victim: str = "a", step: object = 3,
    **knobs: object,
) -> str:  # fmt: skip
    rows = rows or [("a", 0, 40, 12), ("b", 3, 38, 12)]
    return answer("thrash", rows, blocks, {"first_victim": victim, "first_step": step}, **knobs)


OPEN: list[Row] = [("r0", 2, 4, 3), ("r1", 2, 16, 10), ("r2", 0, 12, 8)]


def guard(rows: list[Row] | None = None, blocks: int = 10, **knobs: object) -> str:
    knobs = {"max_num_batched_tokens": 16, "reserve_full_prompt": False, **knobs}
    return answer("guard", rows or OPEN, blocks, **knobs)


RIGHT = {
    "06a": {"as it stands": admitted()},
    "06b": {
        "a small one in every step": starving(),
        "a larger cache, two at a time": starving(
            [("r0", 0, 40, 3), ("big", 1, 90, 2), *small(count=50, tokens=4, out=6)],
            blocks=25,
            real=3,
            other=56,
        ),
        "a stream of long ones": starving(
            [("x", 0, 16, 5), ("big", 2, 60, 1), *small(4, 6, 2, tokens=20, out=9)],
            blocks=16,
            real=5,
            other=33,
        ),
    },
    "06c": {
        "twins": stuck(),
        "three of them": stuck([(f"r{i}", 0, 7, 9) for i in range(3)], blocks=6, since=2),
        "blocks of 16": stuck(
            [("a", 0, 60, 40), ("b", 0, 60, 40)], blocks=8, since=5, block_size=16
        ),
    },
    "06d": {
        "two that do not fit together": thrash(),
        "three": thrash(
            [("a", 0, 30, 9), ("b", 1, 30, 9), ("c", 2, 30, 9)], blocks=20, victim="b", step=2
        ),
        "one long text, many short ones": thrash(
            [("a", 0, 70, 12), *((f"b{i}", 3 + 4 * i, 38, 2) for i in range(6))],
            blocks=28,
            victim="a",
            step=3,
        ),
    },
    "06e": {
        "room for the first chunk is enough": guard(),
        "priority": """
guard = {
    "config": {"num_gpu_blocks": 12, "block_size": 4, "policy": "priority",
               "enable_prefix_caching": False},
    "requests": [
        {"request_id": "a", "num_prompt_tokens": 15, "max_tokens": 12, "priority": 1},
        {"request_id": "b", "num_prompt_tokens": 31, "max_tokens": 6, "priority": 2},
        {"request_id": "c", "arrival_step": 1, "num_prompt_tokens": 8, "max_tokens": 4,
         "priority": 0},
    ],
}
""",
    },
}

WRONG = {
    "06a": {
        "the stub": (
            admitted(dict.fromkeys(REAL), dict.fromkeys(REAL)),
            "not answered yet",
        ),
        "the two swapped": (admitted(PASSES, REAL), "other scheduler"),
        "both stop at the head": (admitted(REAL, REAL), "goes on behind it"),
        "both go on": (admitted(PASSES, PASSES), "stops at the first"),
        "within the finisher's step": (
            admitted({"r0": 0, "r1": 3, "r2": 3, "r3": 5, "r4": 6}),
            "when the step is over",
        ),
        "a step late": (
            admitted({"r0": 1, "r1": 5, "r2": 5, "r3": 7, "r4": 8}),
            "in which it arrives",
        ),
        "everybody at once": (
            admitted({"r0": 0, "r1": 1, "r2": 1, "r3": 3, "r4": 7}),
            "only where there is room|all its known",
        ),
        "half a request": (admitted({**REAL, "r1": 4.5}), "whole number"),
    },
    "06b": {
        "the stub": ("starving = {}", "not answered yet"),
        "a few overtake": (
            starving([("r0", 0, 20, 4), ("big", 1, 36, 3), *small(count=3)]),
            "always be there",
        ),
        "nobody behind it": (
            starving([("r0", 0, 20, 4), ("big", 1, 36, 3)]),
            "who arrives behind it",
        ),
        "the big one fits": (starving(blocks=60), "fits, and nobody could"),
        "the small ones are the starved": (starving(id_="s5", real=9, other=6), "less than 10"),
        "too late by one": (starving(real=5), "Steps count from 0"),
        "never admitted, says the answer": (starving(other=99), "passing over"),
        "can never fit": (starving(blocks=8), "refuses"),
    },
    "06c": {
        "the stub": ("stuck = {}", "not answered yet"),
        "plenty of blocks": (stuck(blocks=40), "nobody is preempted"),
        "the one in front gets on": (
            stuck([("a", 0, 9, 4), ("b", 0, 11, 8)], blocks=6),
            "gets on, finishes",
        ),
        "one request": (stuck([("a", 0, 11, 8)]), "nobody is preempted"),
        "the step before": (stuck(since=1), "still gets tokens"),
        "the step after": (stuck(since=3), "stood still before"),
        "never fits": (stuck(blocks=3), "refuses"),
    },
    "06d": {
        "the stub": ("thrash = {}", "not answered yet"),
        "everybody fits": (thrash(blocks=60), "everybody fits"),
        "preemptions of the real one": (
            thrash([("a", 0, 12, 20), ("b", 0, 12, 20)], blocks=9),
            "real scheduler computes",
        ),
        "one that loses little": (
            thrash([("a", 0, 12, 9), ("b", 6, 68, 1)], step=6),
            "at least 100",
        ),
        "blames the newcomer": (thrash(victim="b"), "newcomer itself does not"),
        "the step after": (thrash(step=4), "head of the queue"),
        "never fits": (thrash(blocks=10), "refuses"),
    },
    "06e": {
        "the stub": ("guard = {}", "not answered yet"),
        "the default reservation": (guard(reserve_full_prompt=True), "ask for less|never asked"),
        "the cramped run": (
            guard(TWINS, blocks=6, reserve_full_prompt=True, max_num_batched_tokens=64),
            "ask for less",
        ),
        "plenty of blocks": (guard(blocks=50), "never asked"),
        "a small one waits behind the victim": (
            guard(
                [*TWINS, ("c", 1, 2, 2)],
                blocks=6,
                reserve_full_prompt=True,
                max_num_batched_tokens=64,
            ),
            "ask for less|another one be the head",
        ),
        "a short victim": (
            guard(TWINS, blocks=6, max_num_batched_tokens=64),
            "does not fit into what is left",
        ),
        "a knob that is not one": (guard(reserve=False), "unknown key"),
    },
}
