"""Answers to exercise 5, right and wrong, as the text of the answer cell."""

from __future__ import annotations

TWO_YIELD = {
    "victims": ["r2", "r1"],
    "freed_blocks": {"r1": 3, "r2": 1},
    "tokens": {"r0": 8},
    "running": ["r0"],
    "waiting": ["r1", "r2", "r3"],
    "free_blocks": 2,
    "status": {"r1": "PREEMPTED", "r2": "PREEMPTED"},
    "num_tokens": {"r1": 13, "r2": 4},
    "num_computed_tokens": {"r1": 0, "r2": 0},
    "num_preemptions": {"r1": 1, "r2": 1},
    "readmitted_at": {"r1": 7, "r2": 7},
    "tokens_then": {"r1": 8, "r2": 4},
}
ITSELF = {
    "victims": ["r2"],
    "freed_blocks": {"r2": 2},
    "tokens": {"r0": 1, "r1": 1},
    "running": ["r0", "r1"],
    "waiting": ["r2", "r3"],
    "free_blocks": 2,
    "status": {"r2": "PREEMPTED"},
    "num_tokens": {"r2": 9},
    "num_computed_tokens": {"r2": 0},
    "num_preemptions": {"r2": 1},
    "readmitted_at": {"r2": 6},
    "tokens_then": {"r2": 9},
}


def two_yield(**changes: object) -> str:
    return f"two_yield = {TWO_YIELD | changes}"


def itself(**changes: object) -> str:
    return f"itself = {ITSELF | changes}"


def loop(body: str) -> str:
    lines = "\n".join(f"    {line}" for line in body.strip("\n").splitlines())
    return f"def preemption_loop(running, num_free_blocks):\n{lines}\n"


def at_most(victims: int) -> str:
    return loop(f"""
running, s, p = list(running), [], []
i = 0
while i < len(running):
    r = running[i]
    for _ in range({victims}):
        if r["blocks_needed"] <= num_free_blocks:
            break
        v = running.pop()
        p.append(v["id"])
        num_free_blocks += v["blocks_held"]
        if v is r:
            break
    if r["id"] in p:
        break
    num_free_blocks -= r["blocks_needed"]
    s.append(r["id"])
    i += 1
return {{"scheduled": s, "preempted": p, "num_free_blocks": num_free_blocks}}
""")


FORGETS = {"A": "count", "B": "front", "C": "free", "D": "status", "E": "tell", "F": "computed"}
CRAMPED = [("r0", 0, 12, 7), ("r1", 0, 7, 6), ("r2", 1, 6, 6), ("r3", 2, 5, 2)]


def faults(rows: list[tuple[str, int, int, int]] = CRAMPED, blocks: int = 9, **forgets: str) -> str:
    requests = [
        {"request_id": id_, "arrival_step": step, "num_prompt_tokens": prompt, "max_tokens": output}
        for id_, step, prompt, output in rows
    ]
    config = {"num_gpu_blocks": blocks, "block_size": 4, "enable_prefix_caching": False}
    answer = {"config": config, "requests": requests, "forgets": FORGETS | forgets}
    return f"faults = {answer}"


RIGHT = {
    "05a": {
        "as it stands": two_yield(),
        "the status in small letters": two_yield(status={"r1": "preempted", "r2": "Preempted"}),
        "keys in another order": "two_yield = " + repr(dict(reversed(TWO_YIELD.items()))),
        "tuples, and zeros spelt out": two_yield(
            victims=("r2", "r1"), waiting=("r1", "r2", "r3"), tokens={"r0": 8, "r1": 0, "r2": 0}
        ),
    },
    "05b": {"as it stands": itself()},
    "05c": {
        "as the engine": loop("""
running = list(running)
scheduled, preempted = [], []
index = 0
while index < len(running):
    request = running[index]
    while request["blocks_needed"] > num_free_blocks:
        victim = running.pop()
        preempted.append(victim["id"])
        num_free_blocks += victim["blocks_held"]
        if victim is request:
            break
    else:
        num_free_blocks -= request["blocks_needed"]
        scheduled.append(request["id"])
        index += 1
        continue
    break
return {"scheduled": scheduled, "preempted": preempted, "num_free_blocks": num_free_blocks}
"""),
        "a deque from both ends": """
from collections import deque

def preemption_loop(running, num_free_blocks):
    queue, scheduled, preempted = deque(running), [], []
    while queue:
        request = queue.popleft()
        while num_free_blocks < request["blocks_needed"] and queue:
            victim = queue.pop()
            num_free_blocks += victim["blocks_held"]
            preempted.append(victim["id"])
        if num_free_blocks >= request["blocks_needed"]:
            num_free_blocks -= request["blocks_needed"]
            scheduled.append(request["id"])
        else:
            num_free_blocks += request["blocks_held"]
            preempted.append(request["id"])
    return dict(scheduled=scheduled, preempted=preempted, num_free_blocks=num_free_blocks)
""",
        "two indices": loop("""
first, last = 0, len(running) - 1
while first <= last:
    if running[first]["blocks_needed"] <= num_free_blocks:
        num_free_blocks -= running[first]["blocks_needed"]
        first += 1
    else:
        num_free_blocks += running[last]["blocks_held"]
        last -= 1
return {
    "scheduled": [r["id"] for r in running[:first]],
    "preempted": [r["id"] for r in running[:last:-1]],
    "num_free_blocks": num_free_blocks,
}
"""),
    },
    "05d": {
        "one preemption, somebody waiting": faults(),
        "two victims": faults(
            [*((f"r{i}", 0, 9, 12) for i in range(3)), ("r3", 1, 8, 3), ("r4", 1, 8, 3)],
            blocks=10,
        ),
    },
}

COUNT = 'return {"scheduled": s, "preempted": p, "num_free_blocks": num_free_blocks}'

WRONG = {
    "05a": {
        "the stub": (two_yield(**dict.fromkeys(TWO_YIELD)), "not answered yet"),
        "the one that asks yields": (two_yield(victims=["r0"]), "admitted last yields"),
        "the first of RUNNING yields": (
            two_yield(victims=["r0", "r1"]),
            "admitted last yields",
        ),
        "one victim is enough": (two_yield(victims=["r2"]), "until allocate_slots succeeds"),
        "the victims' order": (two_yield(victims=["r1", "r2"]), "order in which they yield"),
        "victims queue up at the end": (two_yield(waiting=["r3", "r2", "r1"]), "to the front"),
        "the queue's order": (two_yield(waiting=["r2", "r1", "r3"]), "stands first"),
        "the freed blocks stay free": (two_yield(free_blocks=4), "is used"),
        "waiting again": (
            two_yield(status={"r1": "WAITING", "r2": "WAITING"}),
            "by its status",
        ),
        "the output is lost": (two_yield(num_tokens={"r1": 11, "r2": 3}), "it loses keys"),
        "the computed tokens stay": (
            two_yield(num_computed_tokens={"r1": 12, "r2": 3}),
            "blocks are gone",
        ),
        "back in the next step": (two_yield(readmitted_at={"r1": 4, "r2": 4}), "step right after"),
        "back in the step that frees the blocks": (
            two_yield(readmitted_at={"r1": 6, "r2": 6}),
            "one step too early.*in the next one",
        ),
        "one of them back too early": (
            two_yield(readmitted_at={"r1": 7, "r2": 6}),
            "one step too early",
        ),
        "no threshold at re-admission": (
            two_yield(tokens_then={"r1": 13, "r2": 4}),
            "caps a re-admitted",
        ),
        "the prompt alone is computed again": (
            two_yield(tokens_then={"r1": 11, "r2": 3}),
            r"prompt \*\*and\*\*",
        ),
        "a newcomer in the same step": (two_yield(tokens={"r0": 8, "r3": 7}), "admits nobody"),
        "a key missing": (
            "two_yield = " + repr({k: v for k, v in TWO_YIELD.items() if k != "status"}),
            "missing",
        ),
        "a list where a dict is wanted": (two_yield(freed_blocks=[1, 3]), "should be a dict"),
    },
    "05b": {
        "nobody yields": (itself(victims=[]), "at the end of RUNNING itself"),
        "another one yields": (itself(victims=["r1"]), "admitted last yields"),
        "everybody behind the first": (itself(victims=["r2", "r1"]), "as soon as there is room"),
        "it is scheduled all the same": (
            itself(tokens={"r0": 1, "r1": 1, "r2": 1}),
            "gets nothing in this step",
        ),
        "the next one is admitted": (itself(tokens={"r0": 1, "r1": 1, "r3": 5}), "admits nobody"),
        "back at once": (itself(readmitted_at={"r2": 5}), "step right after"),
        "one token to go": (itself(tokens_then={"r2": 1}), "all that it had computed is lost"),
        "its blocks are handed out": (itself(free_blocks=0), "Add what the victims gave back"),
    },
    "05c": {
        "the stub": (loop("..."), "returned nothing"),
        "the first of RUNNING yields": (
            loop(f"""
running, s, p = list(running), [], []
while running:
    r = running[0]
    while r["blocks_needed"] > num_free_blocks and running:
        v = running.pop(0)
        p.append(v["id"])
        num_free_blocks += v["blocks_held"]
    if not running or running[0] is not r:
        break
    running.pop(0)
    num_free_blocks -= r["blocks_needed"]
    s.append(r["id"])
{COUNT}
"""),
            "the last of RUNNING yields|neither",
        ),
        "gives up": (
            loop(f"""
s, p = [], []
for r in running:
    if r["blocks_needed"] > num_free_blocks:
        break
    num_free_blocks -= r["blocks_needed"]
    s.append(r["id"])
{COUNT}
"""),
            "does not give up",
        ),
        "passes over": (
            loop(f"""
s, p = [], []
for r in running:
    if r["blocks_needed"] <= num_free_blocks:
        num_free_blocks -= r["blocks_needed"]
        s.append(r["id"])
{COUNT}
"""),
            "does not pass on to the next",
        ),
        "one victim and no more": (
            loop(f"""
running, s, p = list(running), [], []
i = 0
while i < len(running):
    r = running[i]
    if r["blocks_needed"] > num_free_blocks:
        v = running.pop()
        p.append(v["id"])
        num_free_blocks += v["blocks_held"]
        if v is r or r["blocks_needed"] > num_free_blocks:
            break
    num_free_blocks -= r["blocks_needed"]
    s.append(r["id"])
    i += 1
{COUNT}
"""),
            "does not give up|Too few",
        ),
        "no loop: one victim, then served whatever is free": (
            at_most(1),
            "more are handed out than there are.*ask again",
        ),
        "two victims at most, then served whatever is free": (
            at_most(2),
            "more are handed out than there are.*ask again",
        ),
        "three victims at most, then served whatever is free": (
            at_most(3),
            "more are handed out than there are.*ask again",
        ),
        "never its own victim": (
            loop(f"""
running, s, p = list(running), [], []
i = 0
while i < len(running):
    r = running[i]
    while r["blocks_needed"] > num_free_blocks and len(running) > i + 1:
        v = running.pop()
        p.append(v["id"])
        num_free_blocks += v["blocks_held"]
    if r["blocks_needed"] > num_free_blocks:
        break
    num_free_blocks -= r["blocks_needed"]
    s.append(r["id"])
    i += 1
{COUNT}
"""),
            "neither scheduled nor preempted|yields itself",
        ),
        "victims' blocks forgotten": (
            loop(f"""
running, s, p = list(running), [], []
i = 0
free = num_free_blocks
while i < len(running):
    r = running[i]
    out = False
    while r["blocks_needed"] > free:
        v = running.pop()
        p.append(v["id"])
        free += v["blocks_held"]
        if v is r:
            out = True
            break
    if out:
        break
    free -= r["blocks_needed"]
    num_free_blocks -= r["blocks_needed"]
    s.append(r["id"])
    i += 1
{COUNT}
"""),
            "count them",
        ),
        "handed-out blocks still free": (
            loop(f"""
running, s, p = list(running), [], []
i = 0
while i < len(running):
    r = running[i]
    out = False
    while r["blocks_needed"] > num_free_blocks:
        v = running.pop()
        p.append(v["id"])
        num_free_blocks += v["blocks_held"]
        if v is r:
            out = True
            break
    if out:
        break
    s.append(r["id"])
    i += 1
{COUNT}
"""),
            "not free any more|Too few|neither",
        ),
        "an id that is not there": (
            loop('return {"scheduled": ["x"], "preempted": [], "num_free_blocks": 0}'),
            "one of",
        ),
    },
    "05d": {
        "the stub": ("faults = {}", "not answered yet"),
        "plenty of blocks": (faults(blocks=90), "Nobody is preempted"),
        "nobody else waits": (faults(CRAMPED[:3], blocks=8), "anybody else in WAITING"),
        "count and tell swapped": (
            faults(A="tell", E="count"),
            "not 'tell' that scheduler A forgets.*num_preemptions of r2",
        ),
        "status and computed swapped": (faults(D="computed", F="status"), "status of r2"),
        "free taken for a second victim": (faults(C="leave"), "not 'leave' that scheduler C"),
        "front taken for the lost text": (faults(B="text"), "not 'text' that scheduler B"),
        "computed taken for the lost text": (
            faults(F="text"),
            "not 'text'.*num_computed_tokens of",
        ),
        "the same twice": (faults(A="free"), "no two of them"),
        "an unknown word": (faults(A="nothing"), "one of"),
    },
}
