"""Answers to exercise 11, right and wrong, as the text of the answer cell."""


def fixes(memory: float = 0.98, seqs: int = 70, budget: int = 100) -> str:
    return (
        f'fixes = {{"gpu_memory_utilization": {memory}, "max_num_seqs": {seqs}, '
        f'"max_num_batched_tokens": {budget}}}'
    )


ROWS = {
    "gpu_memory_utilization": (2613, "better", "same", "better"),
    "max_num_seqs": (2270, "worse", "better", "worse"),
    "max_num_batched_tokens": (2006, "worse", "same", "worse"),
    "tensor_parallel_size": (12254, "better", "better", "better"),
}


def prices(**rows: tuple[int, str, str, str]) -> str:
    keys = ("num_gpu_blocks", "p50_ttft", "p50_itl", "output_throughput")
    table = {name: dict(zip(keys, row)) for name, row in {**ROWS, **rows}.items()}
    return f"prices = {table!r}"


ASKED = """
from minivllm.sim import roofline


def blocks(tensor_parallel=1, **memory):
    cost = roofline("llama-3-8b", "a10", tensor_parallel=tensor_parallel)
    return cost.num_kv_blocks(**{"gpu_memory_utilization": 0.92, **memory})


def row(blocks, trends):
    return dict(zip(("num_gpu_blocks", "p50_ttft", "p50_itl", "output_throughput"),
                    (blocks, *trends.split())))


prices = {
    "gpu_memory_utilization": row(blocks(gpu_memory_utilization=0.95), "better same better"),
    "max_num_seqs": row(blocks(), "worse better worse"),
    "max_num_batched_tokens": row(blocks(max_num_batched_tokens=8192), "worse better worse"),
    "tensor_parallel_size": row(blocks(2), "better better better"),
}
"""


def lines(memory: str, seqs: str, budget: str) -> str:
    return (
        f'lines = {{"gpu_memory_utilization": "{memory}", "max_num_seqs": "{seqs}", '
        f'"max_num_batched_tokens": "{budget}"}}'
    )


GOOD = ("gpu_worker.py:447", "scheduler.py:549", "scheduler.py:348")

RIGHT = {
    "11a": {
        "a little margin": fixes(),
        "another margin": fixes(0.985, 68, 96),
        "at the edge": fixes(0.99, 72, 104),
    },
    "11b": {"as the simulator": prices(), "blocks asked of the cost model": ASKED},
    "11c": {
        "as in the book": lines(*GOOD),
        "as the drill's card": lines(GOOD[0], GOOD[1], "scheduler.py:392"),
        "where it is asserted": lines("utils.py:409", "scheduler.py:830", "scheduler.py:827"),
        "other lines and whole paths": lines(
            "vllm/v1/worker/gpu_worker.py#L448", "vllm/v1/core/sched/scheduler.py:103", GOOD[2]
        ),
    },
}

WRONG = {
    "11a": {
        "too little memory added": (fixes(memory=0.93), "busiest minute"),
        "memory taken away": (fixes(memory=0.90), "fewer blocks"),
        "no room for the weights": (fixes(memory=0.6), "cannot run"),
        "more seats": (fixes(seqs=128), "want more blocks"),
        "hardly fewer seats": (fixes(seqs=90), "what a request holds"),
        "far too few seats": (fixes(seqs=16), "turned further than needed"),
        "what the cache holds at a random moment": (fixes(seqs=86), r"leave a sixth"),
        "seats that fail in a busy minute": (fixes(seqs=76), r"run\(4, max_num_seqs=76\)"),
        "the mean output halved": (fixes(seqs=114), "want more blocks"),
        "a budget that fails in a busy minute": (
            fixes(budget=112),
            r"1\.5 preemptions for 100 requests in run\(4,.*slowing admission",
        ),
        "too little memory for a busy minute": (
            fixes(memory=0.97),
            r"run\(4, gpu_memory_utilization=0\.97\)",
        ),
        "half the budget": (fixes(budget=1024), "slowing admission down"),
        "a budget below the seats": (fixes(budget=64), "does not start"),
        "nothing turned": (fixes(seqs=96), "how the server runs now"),
        "all memory": (fixes(memory=1.0), "at most 0.99"),
    },
    "11b": {
        "nothing moves the blocks": (
            prices(gpu_memory_utilization=(2270, "better", "same", "better")),
            "which of them does this knob move",
        ),
        "activations are forgotten": (
            prices(max_num_batched_tokens=(2270, "worse", "same", "worse")),
            "activations",
        ),
        "two GPUs, twice the blocks": (
            prices(tensor_parallel_size=(4540, "better", "better", "better")),
            "weights once",
        ),
        "fewer seats start sooner": (
            prices(max_num_seqs=(2270, "better", "better", "worse")),
            "waits in the queue",
        ),
        "fewer seats flow slower": (
            prices(max_num_seqs=(2270, "worse", "worse", "worse")),
            "how many requests are in such a step",
        ),
        "memory makes steps faster": (
            prices(gpu_memory_utilization=(2613, "better", "better", "better")),
            "only decodes",
        ),
        "a large budget costs no throughput": (
            prices(max_num_batched_tokens=(2006, "worse", "same", "same")),
            "seeds 2 and 3 is .* tokens/s as it is and .* tokens/s then.*computed twice",
        ),
        "a large budget lets people start sooner": (
            prices(max_num_batched_tokens=(2006, "better", "same", "worse")),
            "waits in the queue",
        ),
    },
    "11c": {
        "seats and budget confused": (lines(GOOD[0], GOOD[2], GOOD[1]), "another knob acts"),
        "the right file": (lines(GOOD[0], "scheduler.py:1", GOOD[2]), "right file"),
        "the victim's line": (lines(GOOD[0], GOOD[1], "scheduler.py:481"), "decides nothing"),
        "blocks for a request": (
            lines("kv_cache_manager.py:236", GOOD[1], GOOD[2]),
            "meet what it limits",
        ),
        "another file": (lines("kv_cache_utils.py:794", GOOD[1], GOOD[2]), "meet what it limits"),
        "no line": (lines("gpu_worker.py", GOOD[1], GOOD[2]), "should look like"),
    },
}
