"""Answers to extra exercise X2, right and wrong, as the text of the answer cell."""


def slots(**changes: int) -> str:
    truth = {"slot of 0": 72, "slot of 7": 79, "slot of 8": 32, "slot of 21": 109, "slot of 30": 22,
             "position in 37": 13, "more after 24": 0, "more after 27": 5}  # fmt: skip
    return f"slots = {truth | {name.replace('_', ' '): v for name, v in changes.items()}}"


def pool(**changes: object) -> str:
    truth = {1: ([5, 6, 7, 8, 9], 2), 3: ([5, 6, 7, 8, 9, 3], 1), 5: ([6, 7, 8, 9, 3], 1),
             6: ([8, 9, 3, 5, 4], 1)}  # fmt: skip
    for name, value in changes.items():
        queue, count = truth[int(name[1:])]
        truth[int(name[1:])] = (value, count) if name[0] == "q" else (queue, value)  # type: ignore
    return f"pool = {truth}"


POOL = """
class Pool:
    def __init__(self, num_blocks):
        self.free_queue = list(range(1, num_blocks + 1))
        self.ref_cnt = {block: 0 for block in self.free_queue}

    def get_new_blocks(self, n):
        if n > len(self.free_queue):
            raise ValueError("too few")
        blocks = [self.free_queue.pop(0) for _ in range(n)]
        for block in blocks:
            self.ref_cnt[block] = 1
        return blocks

    def touch(self, blocks):
        for block in blocks:
            if not self.ref_cnt[block]:
                self.free_queue.remove(block)
            self.ref_cnt[block] += 1

    def free_blocks(self, blocks):
        for block in blocks:
            self.ref_cnt[block] -= 1
            if not self.ref_cnt[block]:
                self.free_queue.append(block)
"""


def changed(old: str, new: str) -> str:
    assert POOL.count(old) == 1
    return POOL.replace(old, new)


RIGHT = {
    "x2a": {"a dict": slots(), "computed": slots() + "\nslots['slot of 0'] = 9 * 8"},
    "x2b": {
        "a table": pool(),
        "lists": pool().replace("(", "[").replace(")", "]"),
    },
    "x2c": {
        "lists": POOL,
        "a deque": "from collections import deque\n"
        + changed("list(range(1, num_blocks + 1))", "deque(range(1, num_blocks + 1))").replace(
            "pop(0)", "popleft()"
        ),
        "the queue in another way": changed(
            "blocks = [self.free_queue.pop(0) for _ in range(n)]",
            "blocks, self.free_queue = self.free_queue[:n], self.free_queue[n:]",
        ),
    },
}

WRONG = {
    "x2a": {
        "the stub": ("slots = {'slot of 0': None}", "not answered yet"),
        "where the block begins": (
            slots(slot_of_7=72, slot_of_21=104, slot_of_30=16),
            "further in",
        ),
        "does not multiply": (slots(slot_of_0=9, slot_of_7=16, slot_of_8=4), "multiply first"),
        "positions as slots": (slots(slot_of_0=0, slot_of_7=7, slot_of_8=8), "leads from one"),
        "the wrong entry": (slots(slot_of_7=23, slot_of_8=72, slot_of_21=37), "entry p // 8"),
        "the offset alone": (slots(position_in_37=5), "place in the block"),
        "room where there is none": (slots(more_after_24=8), "full to its last slot"),
        "used, not left": (slots(more_after_27=3), "How many are left"),
        "a slip": (slots(slot_of_30=23), "Divide the position"),
    },
    "x2b": {
        "the stub": ("pool = {1: ([], None)}", "not answered yet"),
        "nothing is shared": (pool(q1=[7, 8, 9]), "two full blocks are shared"),
        "to the front": (pool(q3=[3, 5, 6, 7, 8, 9], q5=[5, 6, 7, 8, 9]), "go to the end"),
        "no counts": (pool(q3=[5, 6, 7, 8, 9, 3, 2, 1]), "r1 still holds"),
        "too late": (pool(q3=[5, 6, 7, 8, 9]), "come back then"),
        "no fourth block": (pool(q5=[5, 6, 7, 8, 9, 3]), "13 tokens need a fourth"),
        "first block first": (pool(q6=[8, 9, 3, 4, 5]), "in reverse"),
        "nothing is revived": (pool(q6=[3, 5, 4, 2, 1]), "not an empty one"),
        "stays in the queue": (pool(q6=[8, 9, 3, 5, 4, 2, 1]), "not free any more"),
        "count of one": (pool(c1=1), "in how many tables"),
        "count not lowered": (pool(c3=2, c5=2), "r1's still holds it"),
    },
    "x2c": {
        "the stub": ("class Pool:\n    def __init__(self, n):\n        ...", "raises|read"),
        "returns nothing": (changed("return blocks", "pass"), "TypeError|should return"),
        "takes from the end": (changed("pop(0)", "pop()"), "front of the free queue"),
        "to the front": (changed("append(block)", "insert(0, block)"), "end of the queue"),
        "no owner counted": (changed("self.ref_cnt[block] += 1", "pass"), "One owner more"),
        "stays free": (changed("self.free_queue.remove(block)", "pass"), "leaves the queue"),
        "frees what is shared": (
            changed(
                "    if not self.ref_cnt[block]:\n                self.free_queue.append",
                "    self.free_queue.append",
            ),
            "those without an owner",
        ),
        "takes before it looks": (
            changed("if n > len(self.free_queue):", "if n > len(self.free_queue) + n:"),
            "change nothing",
        ),
        "reverses": (changed("for block in blocks:\n            self.ref_cnt[block] -= 1",
                             "for block in blocks[::-1]:\n            self.ref_cnt[block] -= 1"),
                     "in the order given"),
    },
}  # fmt: skip
