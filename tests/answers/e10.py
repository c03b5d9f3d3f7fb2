"""Answers to exercise 10, right and wrong, as the text of the answer cell."""

KEYS = ("tokens_in_step", "document_tokens", "document_steps", "new_chat_steps")
TRUE = {"2048/0": (2048, 2018, 8, 7), "2048/256": (286, 256, 63, 1), "512/0": (512, 482, 34, 32)}


def steps(**rows: tuple[int, int, int, int]) -> str:
    named = {name.replace("_", "/").lstrip("b"): row for name, row in rows.items()}
    table = {name: dict(zip(KEYS, row)) for name, row in {**TRUE, **named}.items()}
    return f"steps = {table!r}"


BY_FORMULA = """
steps = {}
for budget, threshold in ((2048, 0), (2048, 256), (512, 0)):
    piece = min(budget - 30, threshold or budget)
    count = -(-16_000 // piece)
    waits = 1
    if not threshold:
        last = 16_000 - (count - 1) * piece
        waits = count - 2 + (budget - 30 - last < 200)
    steps[f"{budget}/{threshold}"] = {
        "tokens_in_step": piece + 30,
        "document_tokens": piece,
        "document_steps": count,
        "new_chat_steps": waits,
    }
"""

DESIGN = """
from minivllm.sim import StepLoad, roofline

BUDGET, THRESHOLD = {budget}, {threshold}


def seconds(computed, chunk):
    load = StepLoad()
    for _ in range(20):
        load.add(1, 300, True)
    load.add(chunk, computed + chunk, False)
    return roofline("llama-3-8b", "h100").step_time(load)


piece = min(BUDGET - 20, THRESHOLD or BUDGET)
count = -(-16_000 // piece)
times = [seconds(piece * i, min(piece, 16_000 - piece * i)) for i in range(count)]
design = {{
    "max_num_batched_tokens": BUDGET,
    "long_prefill_token_threshold": THRESHOLD,
    "tokens_in_step": {tokens},
    "document_steps": {count},
    "chat_itl": {itl},
    "document_ttft": {ttft},
}}
"""


def design(budget: int = 2048, threshold: int = 224, **changes: str) -> str:
    parts = {
        "tokens": "piece + 20",
        "count": "count",
        "itl": "times[len(times) // 2]",
        "ttft": "sum(times)",
        **changes,
    }
    return DESIGN.format(budget=budget, threshold=threshold, **parts)


RIGHT = {
    "10a": {"as the engine": steps(), "by formula": BY_FORMULA},
    "10b": {
        "a ninth of the budget": design(),
        "an eighth": design(threshold=256),
        "a larger budget": design(4096, 240),
        "smaller pieces": design(2304, 192),
        "two digits everywhere": design(tokens="240", itl="0.0089", ttft="0.65"),
        "the budget of a large GPU": design(8192),
        "a larger one still": design(16_384, 256),
        "steps times one step": design(ttft="72 * 0.0089"),
    },
}

WRONG = {
    "10a": {
        "the budget is the document's": (
            steps(b2048_0=(2048, 2048, 8, 7)),
            "in RUNNING before it",
        ),
        "the chats are forgotten": (steps(b2048_256=(256, 256, 63, 1)), "chats decode"),
        "the threshold is forgotten": (steps(b2048_256=(2048, 2018, 8, 7)), "the threshold cuts"),
        "rounded down": (steps(b2048_0=(2048, 2018, 7, 7)), "last chunk"),
        "one more for the token": (steps(b2048_256=(286, 256, 64, 1)), "no further step"),
        "the whole budget divided": (steps(b512_0=(512, 482, 32, 32)), "somebody is served before"),
        "admitted beside the document": (steps(b2048_0=(2048, 2018, 8, 1)), "waits behind RUNNING"),
        "waits with a threshold too": (steps(b2048_256=(286, 256, 63, 61)), "not used up"),
        "the first leftover suffices": (
            steps(b2048_0=(2048, 2018, 8, 6)),
            "all of its 200",
        ),
    },
    "10b": {
        "the defaults of a large GPU": (design(8192, 0), "nothing limits a single document"),
        "the budget alone": (design(2048, 0), "nothing limits a single document"),
        "a small budget": (design(512, 0), "takes all that is left of the budget"),
        "a large threshold": (design(2048, 1024), "five documents and more at once"),
        "a threshold of half the budget": (design(1024, 512), "how many documents at once"),
        "tiny pieces": (design(2048, 96), "documents pay"),
        "milliseconds": (design(itl="1000 * times[0]"), "do not belong to your knobs"),
        "without the chats": (
            design(itl="0.0087"),
            "too small .* to two digits.*chats that decode are left out",
        ),
        "the document's first chunk": (design(itl="times[0]"), "too small .*first chunk"),
        "the document's last chunk": (design(itl="times[-2]"), "too large .*last chunk"),
        "the document waits": (design(ttft="1.7"), "too large"),
        "one step less": (design(count="71"), "document_steps"),
        "tokens without the chats": (design(tokens="piece"), "tokens_in_step"),
        "too coarse": (design(tokens="250"), "tokens_in_step"),
        "numbers of other knobs": (design(tokens="2048"), "do not belong to your knobs"),
    },
}
