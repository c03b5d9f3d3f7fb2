"""Answers to exercise 3, right and wrong, as the text of the answer cell."""

Row = tuple[str, int, int, int]


def scenario(name: str, step: object, rows: list[Row], **config: object) -> str:
    requests = [
        {"request_id": id_, "arrival_step": at, "num_prompt_tokens": prompt, "max_tokens": output}
        for id_, at, prompt, output in rows
    ]
    config = {"num_gpu_blocks": 64, "block_size": 4, **config}
    return f"{name} = {{'config': {config}, 'requests': {requests}, 'step': {step}}}"


def tokens(step: object = 0, rows: object = None, budget: int = 16, **config: object) -> str:
    rows = rows or [("r0", 0, 16, 4), ("r1", 0, 5, 4)]
    return scenario("no_tokens", step, rows, max_num_batched_tokens=budget, **config)  # type: ignore


def seats(step: object = 1, rows: object = None, seats: int = 2, **config: object) -> str:
    rows = rows or [("r0", 0, 6, 9), ("r1", 0, 6, 9), ("r2", 1, 5, 3)]
    return scenario("no_seats", step, rows, max_num_seqs=seats, **config)  # type: ignore


def blocks(step: object = 1, rows: object = None, blocks: int = 8, **config: object) -> str:
    rows = rows or [("r0", 0, 18, 6), ("r1", 1, 15, 3)]
    return scenario("no_blocks", step, rows, num_gpu_blocks=blocks, **config)  # type: ignore


def day(**changes: str) -> str:
    rows = {
        "s0": '(["r0"], "tokens")', "s1": '(["r1"], "blocks")', "s2": '([], "blocks")',
        "s3": '(["r2", "r3"], "tokens")', "s4": '(["r4"], "queue empty")', "s5": '([], "seats")',
        "s6": '(["r5"], "queue empty")', "s7": '([], "queue empty")', **changes,
    }  # fmt: skip
    return f"day = [{', '.join(rows.values())}]"


RIGHT = {
    "03a": {
        "a prompt as long as the budget": tokens(),
        "decodes spend it": tokens(
            3, [("r0", 0, 2, 9), ("r1", 0, 2, 9), ("r2", 3, 3, 3)], budget=2
        ),
        "a chunk that may not be cut": tokens(
            0, [("r0", 0, 10, 4), ("r1", 0, 8, 4)], enable_chunked_prefill=False
        ),
    },
    "03b": {
        "two seats": seats(),
        "one seat": seats(4, [("a", 0, 30, 20), ("b", 2, 1, 1)], seats=1),
        "a preempted request waits too": seats(2, [("a", 0, 5, 6), ("b", 1, 5, 6)], seats=1),
    },
    "03c": {
        "the head asks for four": blocks(),
        "room for the first chunk only": blocks(
            3, [("r0", 0, 18, 6), ("r1", 2, 15, 3)], max_num_batched_tokens=19
        ),
        "small one behind the head": blocks(
            2, [("r0", 0, 20, 8), ("r1", 2, 13, 1), ("r2", 2, 2, 1)]
        ),
    },
    "03d": {
        "a table": day(),
        "lists": day().replace("(", "[").replace(")", "]"),
        "None for nobody": day(s2='(None, "blocks")'),
    },
}

WRONG = {
    "03a": {
        "the stub": ("no_tokens = {}", "not answered yet"),
        "a prompt longer than what is left": (
            tokens(0, [("r0", 0, 12, 4), ("r1", 0, 9, 4)]),
            "admitted all the same",
        ),
        "a prompt longer than the budget": (tokens(0, [("r0", 0, 50, 4)]), "admitted all the same"),
        "blocks too": (tokens(num_gpu_blocks=5), "more than one"),
        "seats too": (tokens(max_num_seqs=1), "more than one"),
        "seats instead": (
            tokens(1, [("r0", 0, 4, 9), ("r1", 1, 5, 4)], max_num_seqs=1),
            "kept out for want of a token .* but of a seat",
        ),
        "one step late": (tokens(1), "nobody is left waiting"),
        "no such step": (tokens(50), "the run has steps"),
    },
    "03b": {
        "the stub": ("no_seats = {}", "not answered yet"),
        "before the newcomer arrives": (seats(0), "nobody is left waiting"),
        "tokens too": (
            seats(0, [("r0", 0, 20, 3), ("r1", 0, 5, 3)], seats=1, max_num_batched_tokens=16),
            "more than one",
        ),
        "blocks too": (seats(num_gpu_blocks=5), "more than one|preempts"),
        "a batch that is not full": (seats(seats=3), "nobody is left waiting"),
        "an unknown knob": (seats(max_num_requests=2), "unknown key"),
    },
    "03c": {
        "the stub": ("no_blocks = {}", "not answered yet"),
        "a request that never fits": (blocks(1, [("r0", 0, 18, 6), ("r1", 1, 40, 3)]), "refuses"),
        "counts the first chunk only": (
            blocks(
                1,
                [("r0", 0, 18, 6), ("r1", 1, 15, 3)],
                max_num_batched_tokens=9,
                reserve_full_prompt=False,
            ),
            "but of a token left",
        ),
        "a step that preempts": (
            blocks(2, [("r0", 0, 11, 12), ("r1", 0, 12, 9), ("r2", 3, 9, 3)], blocks=7),
            "A step that preempts",
        ),
        "the budget is spent as well": (
            blocks(0, [("r0", 0, 18, 6), ("r1", 0, 15, 3)], max_num_batched_tokens=18),
            "more than one",
        ),
        "the seats are taken as well": (blocks(max_num_seqs=1), "more than one"),
        "enough blocks": (blocks(blocks=20), "nobody is left waiting"),
    },
    "03d": {
        "the stub": ("day = [([], None)] * 8", "not answered yet"),
        "a prompt waits for a step that takes it whole": (
            day(s0='(["r1"], "tokens")'),
            "with a first chunk",
        ),
        "only the first chunk must fit": (day(s1='(["r1", "r2"], "blocks")'), "all its known"),
        "the small one overtakes": (day(s1='(["r1", "r3"], "blocks")'), "Nobody overtakes"),
        "no seats counted": (day(s5='(["r5"], "queue empty")'), "max_num_seqs bounds"),
        "blocks come back within the step": (
            day(s2='(["r2", "r3"], "tokens")'),
            "not in its own",
        ),
        "the budget is for each": (day(s0='(["r0", "r1"], "queue empty")'), "RUNNING's tokens"),
        "seats where blocks are short": (day(s1='(["r1"], "seats")'), "ends admission in step 1"),
        "queue empty where somebody waits": (
            day(s2='([], "queue empty")'),
            "nobody waits at the end",
        ),
        "unknown reason": (day(s2='([], "memory")'), "one of"),
    },
}
