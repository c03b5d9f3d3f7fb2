"""Answers to exercise 12, right and wrong, as the text of the answer cell."""

HEADS = """
SEEN = {{24: (1.828, 40.81, 29.07), 48: (3.154, 24.60, 11.56), 72: (4.317, 18.54, 4.438)}}
heads = {{}}
for cap, (rate, e2e, queue) in SEEN.items():
    heads[cap] = {{"in_system": {system}, "waiting": {waiting}, "running": {running}}}
"""


def heads(
    system: str = "rate * e2e", waiting: str = "rate * queue", running: str = "rate * (e2e - queue)"
) -> str:
    return HEADS.format(system=system, waiting=waiting, running=running)


def design(cap: int, throughput: float, ttft: float, tpot: float) -> str:
    return (
        f'design = {{"max_num_seqs": {cap}, "throughput": {throughput}, "ttft": {ttft}, '
        f'"tpot": {tpot}}}'
    )


RIGHT = {
    "12a": {
        "three boxes": heads(),
        "two boxes and a difference": heads(running="rate * e2e - rate * queue"),
        "two digits": """
heads = {
    "24": {"in_system": 75, "waiting": 53, "running": 21},
    "48": {"in_system": 78, "waiting": 36, "running": 41},
    "72": {"in_system": 80, "waiting": 19, "running": 61},
}
""",
    },
    "12b": {
        "sixty": design(60, 4.5, 7.9, 0.0417),
        "by Little": """
cap, users, tokens = 62, 96, 325
tpot = 0.042
stay = tokens * tpot
throughput = cap / stay
design = {
    "max_num_seqs": cap, "throughput": throughput, "ttft": (users - cap) / throughput, "tpot": tpot
}
""",
        "sixty-three": design(63, 4.7, 6.9, 0.042),
    },
}

WRONG = {
    "12a": {
        "the knobs instead of the run": (
            heads(system="96", waiting="96 - cap", running="cap"),
            "what the knobs say",
        ),
        "waiting and running swapped": (
            heads(waiting="rate * (e2e - queue)", running="rate * queue"),
            "requests running",
        ),
        "the whole stay for those who run": (heads(running="rate * e2e"), "requests in system"),
        "divided": (heads(system="e2e / rate"), "look at the units"),
        "added": (heads(system="rate + e2e"), "which time belongs"),
        "the rate forgotten": (heads(waiting="queue"), "which time belongs"),
    },
    "12b": {
        "no cap": (design(256, 4.6, 0.3, 0.05), "how long may a step take"),
        "everybody in": (design(96, 4.6, 0.3, 0.05), "how long may a step take"),
        "too careful": (design(32, 2.4, 23, 0.037), "how many"),
        "one by one": (design(1, 0.1, 300, 0.033), "how many"),
        "a little too large": (design(72, 5.1, 4.7, 0.044), "how long may a step take"),
        "no queue in the TTFT": (design(62, 4.6, 0.2, 0.042), "the queue is a box"),
        "milliseconds": (design(62, 4.6, 7.2, 42), "length of a step"),
        "the users over the step": (design(62, 1476.0, 7.2, 0.042), "the batch is a box"),
    },
}
