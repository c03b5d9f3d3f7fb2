"""Answers to exercise 2, right and wrong, as the text of the answer cell."""

RUNNING_FIRST = ([8, 1, 1, 1, 1, 0], [0, 9, 9, 2, 1, 0], [0, 0, 0, 7, 5, 1])
WAITING_FIRST = ([8, 0, 0, 1, 1, 1], [0, 10, 0, 9, 1, 1], [0, 0, 10, 0, 2, 1])


def tokens(one: object = RUNNING_FIRST, other: object = WAITING_FIRST) -> str:
    rows = [dict(zip(("r0", "r1", "r2"), order)) for order in (one, other)]  # type: ignore
    return f'tokens = {{"running_first": {rows[0]}, "waiting_first": {rows[1]}}}'


def starved(
    budget: int = 8, prompt: int = 8, arrivals: object = range(2, 8), id_: str = "r0",
    one: object = 1, other: object = 7, blocks: int = 200, output: int = 12,
) -> str:  # fmt: skip
    return f"""
starved = {{
    "config": {{"num_gpu_blocks": {blocks}, "block_size": 4, "max_num_batched_tokens": {budget}}},
    "requests": [
        {{"request_id": "r0", "arrival_step": 0, "num_prompt_tokens": 4, "max_tokens": {output}}},
        *({{"request_id": f"n{{i}}", "arrival_step": step, "num_prompt_tokens": {prompt},
           "max_tokens": 1}} for i, step in enumerate({list(arrivals)})),  # type: ignore
    ],
    "request_id": "{id_}",
    "gap_running_first": {one},
    "gap_waiting_first": {other},
}}
"""


def displaced(
    blocks: int = 4, arrival: int = 2, prompt: int = 5, victim: str = "r0", step: object = 2,
    p0: int = 7, m0: int = 7,
) -> str:  # fmt: skip
    return f"""
displaced = {{
    "config": {{"num_gpu_blocks": {blocks}, "block_size": 4}},
    "requests": [
        {{"request_id": "r0", "arrival_step": 0, "num_prompt_tokens": {p0}, "max_tokens": {m0}}},
        {{"request_id": "r1", "arrival_step": {arrival}, "num_prompt_tokens": {prompt},
          "max_tokens": 2}},
    ],
    "victim": "{victim}",
    "step": {step},
}}
"""


RIGHT = {
    "02a": {
        "a table": tokens(),
        "worked out": """
def order(first):
    need = {"r0": [0, 8, 5], "r1": [1, 20, 2], "r2": [2, 12, 2]}
    rows = {name: [0] * 6 for name in need}
    running = []
    for step in range(6):
        left = 10
        old = list(running)
        new = [n for n in need if need[n][0] <= step and need[n][2] and n not in running]
        for name in (old + new if first == "running" else new + old):
            if left == 0 and name in new:
                continue
            n = min(left, need[name][1])
            left -= n
            rows[name][step] = n
            need[name][1] -= n
            if name in new:
                running.append(name)
            if n and need[name][1] == 0:
                need[name][1] = 1
                need[name][2] -= 1
        running = [name for name in running if need[name][2]]
    return rows

tokens = {"running_first": order("running"), "waiting_first": order("waiting")}
""",
    },
    "02b": {
        "a prompt a step": starved(),
        "two small ones a step": starved(
            budget=10, prompt=5, arrivals=sorted([*range(3, 9)] * 2), other=7
        ),
        "large budget, long prompts": """
starved = {
    "config": {"num_gpu_blocks": 2000, "max_num_batched_tokens": 512},
    "requests": [
        {"request_id": "chat", "num_prompt_tokens": 20, "max_tokens": 40},
        *({"request_id": f"doc{i}", "arrival_step": 5 + i, "num_prompt_tokens": 600,
           "max_tokens": 4} for i in range(8)),
    ],
    "request_id": "chat",
    "gap_running_first": 1,
    "gap_waiting_first": 9,
}
""",
    },
    "02c": {
        "the last blocks": displaced(),
        "a larger cache, the last of two": """
displaced = {
    "config": {"num_gpu_blocks": 8, "block_size": 4, "max_num_batched_tokens": 64},
    "requests": [
        {"request_id": "a", "num_prompt_tokens": 5, "max_tokens": 12},
        {"request_id": "b", "num_prompt_tokens": 6, "max_tokens": 6},
        {"request_id": "c", "arrival_step": 3, "num_prompt_tokens": 15, "max_tokens": 1},
    ],
    "victim": "b",
    "step": 3,
}
""",
        "blocks of 16": displaced(blocks=4, p0=30, m0=20, arrival=3, prompt=20, step=3).replace(
            '"block_size": 4', '"block_size": 16'
        ),
    },
}

WRONG = {
    "02a": {
        "the stub": (tokens(([None] * 6,) * 3, ([None] * 6,) * 3), "not answered yet"),
        "the orders swapped": (tokens(WAITING_FIRST, RUNNING_FIRST), "other order"),
        "a prompt in the middle goes first": (
            tokens(other=([8, 0, 0, 0, 0, 1], [0, 10, 10, 1, 1, 0], [0, 0, 0, 9, 3, 1])),
            "in RUNNING from then on",
        ),
        "decodes pause for prompts": (
            tokens(one=([8, 1, 0, 0, 0, 1], [0, 9, 10, 1, 0, 1], [0, 0, 0, 9, 3, 1])),
            "does not pause|RUNNING",
        ),
        "prompts wait for decodes": (
            tokens(one=([8, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 10], [0, 0, 0, 0, 0, 0])),
            "gets what the budget has left",
        ),
        "the budget is for each": (
            tokens(one=([8, 1, 1, 1, 1, 0], [0, 10, 10, 1, 0, 0], [0, 0, 10, 2, 1, 0])),
            "for all together",
        ),
        "served a step after the arrival": (
            tokens(one=([0, 8, 1, 1, 1, 1], [0, 0, 9, 9, 2, 1], [0, 0, 0, 0, 7, 5])),
            "very step in which it arrives",
        ),
        "one token too many": (
            tokens(one=([8, 1, 1, 1, 1, 1], *RUNNING_FIRST[1:])),
            "count its output tokens",
        ),
        "gone a step too early": (
            tokens(one=([8, 1, 1, 1, 0, 0], *RUNNING_FIRST[1:])),
            "count its output tokens",
        ),
        "five steps": (tokens(one=([8, 1, 1, 1, 1],) * 3), "6 items"),
    },
    "02b": {
        "the stub": ("starved = {}", "not answered yet"),
        "the newcomers leave room": (starved(prompt=6, other=6), "leaves tokens of the budget"),
        "one long prompt": (
            starved(prompt=60, arrivals=[2], other=8),
            "each step needs a new one",
        ),
        "all arrive at once": (
            starved(prompt=2, arrivals=[2] * 8, other=5),
            "each step needs a new one",
        ),
        "nobody arrives while it decodes": (
            starved(arrivals=range(20, 26)),
            "Nobody is admitted while",
        ),
        "starved by blocks": (
            starved(blocks=9, output=20, budget=16).replace('"max_tokens": 1}', '"max_tokens": 9}'),
            "preemption",
        ),
        "a budget too small for the runners": (
            starved(budget=2, prompt=20, arrivals=[0, 0, 0], id_="n1").replace(
                '"max_tokens": 1', '"max_tokens": 9'
            ),
            "order is not what starves|below",
        ),
        "a newcomer that waits": (starved(id_="n3"), "single token"),
        "counts the steps in between": (starved(one=0, other=6), "not 0"),
        "only the second count wrong": (starved(other=6), "token to token"),
        "nobody of that name": (starved(id_="r9"), "one of"),
    },
    "02c": {
        "the stub": ("displaced = {}", "not answered yet"),
        "plenty of blocks": (displaced(blocks=40), "make them scarce"),
        "blocks short under both orders": (
            displaced(blocks=4, arrival=1, prompt=4, p0=7, m0=9),
            "whatever the order",
        ),
        "the newcomer comes too early": (
            displaced(arrival=1, prompt=5),
            "very step|whatever the order",
        ),
        "blames the newcomer": (displaced(victim="r1"), "admitted in this very step"),
        "the step after": (displaced(step=3), "not first in step 3"),
        "needs more than there is": (displaced(blocks=3), "refuses"),
    },
}
