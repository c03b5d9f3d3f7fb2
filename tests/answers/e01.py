"""Answers to exercise 1, right and wrong, as the text of the answer cell."""

A = "(20, 12), (21, 20), (22, 21), (23, 22), None, None"
B = "None, (15, 4), (16, 15), (17, 16), None, None"
C = "None, None, (6, 0), (7, 6), (8, 7), None"


def numbers(a: str = A, b: str = B, c: str = C) -> str:
    return f'numbers = {{"A": [{a}], "B": [{b}], "C": [{c}]}}'


MIXED = """
mixed = {{
    "config": {{"num_gpu_blocks": 64, "block_size": 4, "max_num_batched_tokens": {budget}}},
    "requests": [
        {{"request_id": "r0", "arrival_step": 0, "num_prompt_tokens": 8, "max_tokens": 9}},
        {{"request_id": "r1", "arrival_step": {arrival}, "num_prompt_tokens": {p1},
          "max_tokens": 4}},
        {{"request_id": "r2", "arrival_step": {arrival}, "num_prompt_tokens": {p2},
          "max_tokens": 4}},
    ],
    "step": {step},
}}
"""


def mixed(budget: int = 16, arrival: int = 1, p1: int = 25, p2: int = 30, step: int = 2) -> str:
    return MIXED.format(budget=budget, arrival=arrival, p1=p1, p2=p2, step=step)


EXPOSED = """
exposed = {{
    "config": {{"num_gpu_blocks": 64, "block_size": 4, "max_num_batched_tokens": {budget}}},
    "requests": [
        {{"request_id": "r0", "arrival_step": 0, "num_prompt_tokens": {p0}, "max_tokens": {m0}}},
        {{"request_id": "r1", "arrival_step": {arrival}, "num_prompt_tokens": {p1},
          "max_tokens": 4}},
        {{"request_id": "r2", "arrival_step": {late}, "num_prompt_tokens": 5, "max_tokens": 3}},
    ],
    "A_differs_at": {a},
    "B_differs_at": {b},
}}
"""


def exposed(
    budget: int = 8, p0: int = 6, m0: int = 12, arrival: int = 0, p1: int = 20, late: int = 7,
    a: str = "1", b: str = "7",
) -> str:  # fmt: skip
    return EXPOSED.format(budget=budget, p0=p0, m0=m0, arrival=arrival, p1=p1, late=late, a=a, b=b)


HELPER = """
def after_step(requests, token_budget):
    return caught_up(requests, token_budget)
"""

RIGHT = {
    "01a": {
        "pairs as tuples": numbers(),
        "pairs as lists": numbers().replace("(", "[").replace(")", "]"),
        "built step by step": """
numbers = {"A": [], "B": [], "C": []}
requests = {"A": [20, 0, 4, 0], "B": [15, 0, 3, 1], "C": [6, 0, 3, 2]}
for step in range(6):
    left = 12
    for name, request in requests.items():
        if request[3] > step or request[2] == 0:
            numbers[name].append(None)
            continue
        n = min(left, request[0] - request[1])
        left -= n
        request[1] += n
        if n and request[0] == request[1]:
            request[0] += 1
            request[2] -= 1
        numbers[name].append(tuple(request[:2]) if request[2] else None)
""",
    },
    "01b": {
        "a loop": """
def after_step(requests, token_budget):
    after = []
    for num_tokens, num_computed_tokens in requests:
        n = min(num_tokens - num_computed_tokens, token_budget)
        token_budget -= n
        num_computed_tokens += n
        caught_up = n > 0 and num_computed_tokens == num_tokens
        after.append((num_tokens + caught_up, num_computed_tokens))
    return after
""",
        "running sums": """
from itertools import accumulate

def after_step(requests, token_budget):
    ends = list(accumulate((t - c for t, c in requests), initial=0))
    result = []
    for (tokens, computed), start, end in zip(requests, ends, ends[1:]):
        n = max(0, min(end, token_budget) - start)
        full = computed + n == tokens
        result.append([tokens + 1 if full else tokens, computed + n])
    return result
""",
        "recursive": """
def after_step(requests, token_budget):
    if not requests:
        return []
    (known, computed), *others = requests
    n = min(known - computed, token_budget)
    if computed + n < known:
        first = (known, computed + n)
    else:
        first = (known + 1, known)
    return [first] + after_step(others, token_budget - n)
""",
    },
    "01c": {
        "budget cuts both": mixed(),
        "other numbers": mixed(budget=32, p1=33, p2=90),
        "a threshold cuts": """
mixed = {
    "config": {"num_gpu_blocks": 100, "max_num_batched_tokens": 64,
               "long_prefill_token_threshold": 20},
    "requests": [
        {"request_id": "chat", "num_prompt_tokens": 5, "max_tokens": 30},
        {"request_id": "mail", "arrival_step": 3, "num_prompt_tokens": 39, "max_tokens": 5},
        {"request_id": "book", "arrival_step": 4, "num_prompt_tokens": 500, "max_tokens": 2},
    ],
    "step": 4,
}
""",
    },
    "01d": {
        "a stream, a long prompt, a latecomer": exposed(),
        "default budget with a threshold": """
exposed = {
    "config": {"num_gpu_blocks": 64, "long_prefill_token_threshold": 4},
    "requests": [
        {"request_id": "x", "num_prompt_tokens": 3, "max_tokens": 20},
        {"request_id": "y", "num_prompt_tokens": 16, "max_tokens": 20},
        {"request_id": "z", "arrival_step": 9, "num_prompt_tokens": 2, "max_tokens": 2},
    ],
    "A_differs_at": 1,
    "B_differs_at": 9,
}
""",
        "B first": """
exposed = {
    "config": {"num_gpu_blocks": 64, "block_size": 16, "max_num_batched_tokens": 16},
    "requests": [
        {"request_id": "s", "num_prompt_tokens": 4, "max_tokens": 12},
        {"request_id": "t", "arrival_step": 3, "num_prompt_tokens": 2, "max_tokens": 12},
        {"request_id": "u", "arrival_step": 3, "num_prompt_tokens": 40, "max_tokens": 3},
    ],
    "A_differs_at": 4,
    "B_differs_at": 3,
}
""",
    },
}

WRONG = {
    "01a": {
        "nothing yet": ("numbers = {}", "not answered yet"),
        "None for one that waits": (
            numbers(c="None, None, None, (7, 6), (8, 7), None"),
            "arrived and waits has both numbers",
        ),
        "only Nones": (numbers("None, " * 6, "None, " * 6, "None, " * 6), "not answered yet"),
        "the sampled token counts as computed": (
            numbers(
                "(20, 12), (21, 21), (22, 22), (23, 23), None, None",
                "None, (15, 4), (16, 16), (17, 17), None, None",
                "None, None, (6, 0), (7, 7), (8, 8), None",
            ),
            "known, not computed",
        ),
        "read before the update": (
            numbers(
                "(20, 12), (20, 20), (21, 21), (22, 22), (23, 23), None",
                "None, (15, 4), (15, 15), (16, 16), (17, 17), None",
                "None, None, (6, 0), (6, 6), (7, 7), (8, 8)",
            ),
            "after the sampled token",
        ),
        "num_tokens is the output": (
            numbers("(0, 12), (1, 20), (2, 21), (3, 22), None, None"),
            "the prompt's too",
        ),
        "the gap instead of the computed": (
            numbers("(20, 8), (21, 1), (22, 1), (23, 1), None, None"),
            "not the gap that is left",
        ),
        "tokens of the step instead of the sum": (
            numbers("(20, 12), (21, 8), (22, 1), (23, 1), None, None"),
            "in all steps together",
        ),
        "a budget for each request": (
            numbers(
                b="None, (15, 12), (16, 15), (17, 16), None, None",
                c="None, None, (7, 6), (8, 7), None, None",
            ),
            "budget is shared",
        ),
        "every chunk samples": (
            numbers("(21, 12), (22, 21), (23, 22), None, None, None"),
            "samples nothing",
        ),
        "a newcomer waits a step": (
            numbers(b="None, (15, 0), (15, 11), (16, 15), (17, 16), None"),
            "very step in which it arrives",
        ),
        "prompts are never cut": (
            numbers("(21, 20), (22, 21), (23, 22), None, None, None"),
            "is cut, and goes on",
        ),
        "decodes pause for prompts": (
            numbers("(20, 12), (21, 20), (21, 20), (21, 20), (22, 21), (23, 22)"),
            "decodes pause",
        ),
        "prompts wait for decodes": (
            numbers(c="None, None, (6, 0), (6, 0), (6, 0), (7, 6)"),
            "let a prompt wait",
        ),
        "the finished keep their numbers": (
            numbers("(20, 12), (21, 20), (22, 21), (23, 22), (24, 23), (24, 23)"),
            "is gone by the end",
        ),
        "the two swapped": (
            numbers("(12, 20), (20, 21), (21, 22), (22, 23), None, None"),
            "order is turned",
        ),
        "a list too short": (numbers(a="(20, 12)"), "6 items"),
        "words": ('numbers = {"A": "many", "B": [None] * 6, "C": [None] * 6}', "should be a list"),
    },
    "01b": {
        "NumPy": (
            "import numpy as np\ndef after_step(requests, token_budget):\n    return []",
            "numpy cannot be used here; the standard library and minivllm can",
        ),
        "a generator": (
            "def after_step(requests, token_budget):\n    yield from requests",
            "should return a list; it returned a generator",
        ),
        "an iterator of pairs": (
            "def after_step(requests, token_budget):\n    return map(tuple, requests)",
            "should return a list; it returned a map",
        ),
        "a helper in another cell": (HELPER, "'caught_up' is not defined.*must stand in this cell"),
        "the stub": (
            "def after_step(requests, token_budget):\n    return None",
            "returned nothing",
        ),
        "nothing moves": (
            "def after_step(requests, token_budget):\n    return list(requests)",
            "left at the end|got no token",
        ),
        "a budget for each": (
            """
def after_step(requests, token_budget):
    out = []
    for t, c in requests:
        n = min(t - c, token_budget)
        out.append((t + (n == t - c), c + n))
    return out
""",
            "share one budget",
        ),
        "every chunk samples": (
            """
def after_step(requests, token_budget):
    out = []
    for t, c in requests:
        n = min(t - c, token_budget)
        token_budget -= n
        out.append((t + (n > 0), c + n))
    return out
""",
            "In the middle of a prompt nothing is sampled",
        ),
        "the sampled token is computed at once": (
            """
def after_step(requests, token_budget):
    out = []
    for t, c in requests:
        n = min(t - c, token_budget)
        token_budget -= n
        if n == t - c:
            out.append((t + 1, t + 1))
        else:
            out.append((t, c + n))
    return out
""",
            "computed in the next one",
        ),
        "nobody samples": (
            """
def after_step(requests, token_budget):
    out = []
    for t, c in requests:
        n = min(t - c, token_budget)
        token_budget -= n
        out.append((t, c + n))
    return out
""",
            "got no token",
        ),
        "prompts are not cut": (
            """
def after_step(requests, token_budget):
    out = []
    for t, c in requests:
        n = t - c if t - c <= token_budget else 0
        token_budget -= n
        out.append((t + (n > 0), c + n))
    return out
""",
            "left at the end|in their order",
        ),
        "a phase for prompts": (
            """
def after_step(requests, token_budget):
    prompts = any(t - c > 1 for t, c in requests)
    out = []
    for t, c in requests:
        n = 0 if prompts and t - c == 1 else min(t - c, token_budget)
        token_budget -= n
        out.append((t + (n == t - c), c + n))
    return out
""",
            "no step in which prompts, or decodes, have to wait|in their order",
        ),
        "decodes first": (
            """
def after_step(requests, token_budget):
    out = [None] * len(requests)
    for i in sorted(range(len(requests)), key=lambda i: requests[i][0] - requests[i][1]):
        t, c = requests[i]
        n = min(t - c, token_budget)
        token_budget -= n
        out[i] = (t + (n == t - c), c + n)
    return out
""",
            "in their order",
        ),
        "raises": (
            "def after_step(requests, token_budget):\n    return requests[0].num_tokens",
            "AttributeError",
        ),
        "nothing but a number": (
            "def after_step(requests, token_budget):\n    return 3",
            "a pair for each",
        ),
    },
    "01c": {
        "the stub": ("mixed = {}", "not answered yet"),
        "everything fits": (mixed(budget=256), "first chunk of a prompt"),
        "all at once": (mixed(arrival=0, p1=14, p2=40, step=0), "output token"),
        "prompts one after the other": (mixed(p1=15, p2=30, step=2), "last chunk"),
        "the step before": (mixed(step=1), "last chunk"),
        "budget so small that one prompt fills it": (mixed(budget=8), "last chunk|first chunk"),
        "no such step": (mixed(step=99), "the run has steps"),
        "knob misspelt": (
            mixed().replace("max_num_batched_tokens", "max_batched_tokens"),
            "unknown key",
        ),
        "never fits": (
            mixed().replace('"num_gpu_blocks": 64', '"num_gpu_blocks": 4'),
            "refuses a request",
        ),
    },
    "01d": {
        "the stub": ("exposed = {}", "not answered yet"),
        "one request": (
            """
exposed = {"config": {"num_gpu_blocks": 64},
           "requests": [{"request_id": "r0", "num_prompt_tokens": 50, "max_tokens": 9}],
           "A_differs_at": 1, "B_differs_at": 1}
""",
            "Scheduler A does on this workload what the real one does",
        ),
        "prompts fit whole": (exposed(budget=200, b="4"), "Scheduler A does on this workload"),
        "nobody arrives while another decodes": (
            exposed(late=0),
            "Scheduler B does on this workload|not first in step",
        ),
        "counted from 1": (exposed(a="2", b="8"), "numbered from 0"),
        "the arrival's step for the long prompt": (exposed(a="0"), "still does what the real one"),
        "not predicted": (exposed(a="None", b="None"), "not answered yet"),
    },
}
