"""Answers to extra exercise X3, right and wrong, as the text of the answer cell."""

Row = tuple[str, int, int, int]


def scenario(name: str, rows: list[Row], extra: str = "", **config: object) -> str:
    requests = [
        {"request_id": id_, "arrival_step": at, "num_prompt_tokens": prompt, "max_tokens": output}
        for id_, at, prompt, output in rows
    ]
    config = {"block_size": 4, "enable_prefix_caching": False, **config}
    return f"{name} = {{'config': {config}, 'requests': {requests}{extra}}}"


SHORT = [("r0", 1, 23, 11), ("r1", 1, 16, 11), ("r2", 0, 2, 9)]
THREE = [("r2", 0, 15, 12), ("r1", 1, 17, 6), ("r0", 4, 16, 7)]
CHUNKS = [("r0", 0, 5, 4), ("r1", 0, 14, 2), ("r2", 3, 14, 3)]


def pays(rows: list[Row] = SHORT, who: str = "r2", blocks: int = 10, **config: object) -> str:
    config = {"max_num_batched_tokens": 64, **config}
    return scenario("who_pays", rows, f", 'request': {who!r}", num_gpu_blocks=blocks, **config)


def turned(rows: list[Row] = THREE, blocks: int = 11, **config: object) -> str:
    config = {"max_num_batched_tokens": 64, **config}
    return scenario("turned", rows, num_gpu_blocks=blocks, **config)


def idle(rows: list[Row] = CHUNKS, blocks: int = 8, budget: int = 8, **config: object) -> str:
    return scenario("idle", rows, num_gpu_blocks=blocks, max_num_batched_tokens=budget, **config)


RIGHT = {
    "x3a": {
        "a short one first": pays(),
        "small chunks": pays(
            [("r0", 1, 8, 6), ("r1", 2, 22, 13), ("r2", 0, 14, 8)], "r0", 12,
            max_num_batched_tokens=8,
        ),
        "it comes last": pays(
            [("r0", 4, 7, 12), ("r1", 2, 5, 12), ("r2", 3, 18, 13)], "r1", 9,
            max_num_batched_tokens=16,
        ),
    },
    "x3b": {
        "three alike": turned(),
        "chunks": turned(
            [("r0", 5, 19, 3), ("r1", 0, 14, 9), ("r2", 0, 18, 8)], 10, max_num_batched_tokens=16
        ),
        "ten blocks": turned([("r0", 3, 19, 6), ("r1", 3, 17, 8), ("r2", 1, 16, 7)], 10),
    },
    "x3c": {
        "one step": idle(),
        "twelve blocks": idle([("r0", 4, 4, 5), ("r1", 4, 17, 11), ("r2", 1, 24, 3)], 12),
        "a larger budget": idle([("r0", 0, 5, 5), ("r1", 3, 20, 6), ("r2", 0, 14, 3)], 10, 16),
    },
}  # fmt: skip

WRONG = {
    "x3a": {
        "the stub": ("who_pays = {}", "not answered yet"),
        "nobody is preempted": (pays(blocks=40), "no victim to choose"),
        "saves nothing": (pays(THREE, "r2", 11), "should save tokens"),
        "not the one who pays": (pays(who="r0"), "times are asked for"),
        "a stranger": (pays(who="r9"), "one of"),
        "turns the knob": (pays(victim="least_computed"), "leave the knob victim out"),
        "never fits": (pays([*SHORT, ("r3", 0, 90, 5)]), "refuses"),
    },
    "x3b": {
        "the stub": ("turned = {}", "not answered yet"),
        "nobody is preempted": (turned(blocks=60), "no victim to choose"),
        "the RFC is right": (turned(SHORT, 10), "the RFC is right"),
        "turns the knob": (turned(victim="last_admitted"), "leave the knob"),
    },
    "x3c": {
        "the stub": ("idle = {}", "not answered yet"),
        "enough blocks": (idle(blocks=40), "In no step does somebody wait"),
        "thrash": (
            idle([("r0", 0, 22, 4), ("r1", 0, 26, 4), ("r2", 0, 24, 4)], 10, 12),
            "somebody is preempted",
        ),
        "no chunks": (
            idle([("r0", 0, 18, 6), ("r1", 1, 15, 3)], 8, 64),
            "Somebody waits while blocks are free",
        ),
        "turns the knob": (idle(reserve_full_prompt=False), "leave the knob"),
    },
}
