"""Exercise 9: preemption that keeps what was computed, and what that costs."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NoReturn

from minivllm.core import RequestStatus, Scheduler
from minivllm.grading.exercises.drivers import loop, toy
from minivllm.grading.part import Failed, Part, want_dict, want_int, want_number
from minivllm.grading.sandbox import Student
from minivllm.sim import StepLoad, roofline

TITLE = "Swap instead of recompute"
CHAPTER = "07-priority-and-swap"
DRIVER = "minivllm.grading.exercises.drivers.d09"

Run = dict[str, Any]


# --- a: the scheduler -----------------------------------------------------------------------------


def random_workload(rng: random.Random, num_requests: int, kind: str) -> dict[str, Any]:
    """A cramped workload of a kind: `ample` CPU pool, `tight`, `aborts` (tight too), `priority`."""
    block_size = rng.choice([2, 3, 4])
    rows: list[dict[str, Any]] = [
        {
            "id": f"r{index}",
            "arrival_step": rng.randint(0, num_requests) if index else 0,
            "prompt_token_ids": [rng.randint(0, 5) for _ in range(rng.randint(2, 13))],
            "max_tokens": rng.randint(3, 14),
            "priority": rng.randint(0, 2) if kind == "priority" else 0,
        }
        for index in range(num_requests)
    ]
    blocks = [-(-(len(row["prompt_token_ids"]) + row["max_tokens"]) // block_size) for row in rows]
    most = max(blocks)
    pool = {"tight": rng.randint(0, most), "aborts": most}.get(kind, sum(blocks))
    return {
        "config": {
            "preemption_mode": "swap",
            "num_cpu_blocks": pool,
            "policy": "priority" if kind == "priority" else "fcfs",
            "block_size": block_size,
            "num_gpu_blocks": most + rng.randint(0, 2),
            "max_model_len": 64,
            "max_num_batched_tokens": rng.choice([8, 16, 32]),
            "max_num_seqs": rng.choice([3, 4, 8]),
            "enable_prefix_caching": rng.random() < 0.4,
        },
        "requests": rows,
    }


SERVED_ALREADY: dict[str, Any] = {
    "config": {
        "preemption_mode": "swap",
        "num_cpu_blocks": 6,
        "policy": "priority",
        "block_size": 2,
        "num_gpu_blocks": 7,
        "max_model_len": 64,
        "max_num_batched_tokens": 8,
        "max_num_seqs": 8,
        "enable_prefix_caching": False,
    },
    "requests": [
        {
            "id": f"r{index}",
            "arrival_step": arrival,
            "prompt_token_ids": [10 * index + i for i in range(prompt)],
            "max_tokens": output,
            "priority": priority,
        }
        for index, (arrival, prompt, output, priority) in enumerate(
            [(0, 3, 12, 3), (1, 5, 12, 1), (2, 3, 12, 1), (3, 2, 9, 0), (4, 2, 12, 0)]
        )
    ],
}
"""A victim that was served in this very step has blocks in its table that hold nothing yet. Whoever
copies them too runs out of pool, and recomputes twice as many tokens as need be."""


def reference(workload: Mapping[str, Any]) -> Run:
    """What the real core does, with the swap that it has."""
    model = toy.ToyModel(workload["config"]["block_size"])
    counts = {"out": 0}

    def observe(scheduler: Scheduler, output: Any, step: dict[str, Any]) -> None:
        counts["out"] += len(output.blocks_to_swap_out)
        step["swapped_now"] = [r.request_id for r in scheduler.waiting if r.num_computed_tokens > 0]

    result = loop.run(Scheduler, dict(workload), execute=model.execute, observe=observe)
    return {**result, "num_swapped_out_blocks": counts["out"]}


@cache
def hidden_workloads() -> list[tuple[str, dict[str, Any], Run]]:
    """Kind, workload and reference: small ones first; each swaps at least once, or could."""
    rng = random.Random("09a")
    found: list[tuple[str, dict[str, Any], Run]] = []
    kinds = ("ample", "tight", "ample", "aborts", "priority")
    while len(found) < 60:
        kind = kinds[len(found) % len(kinds)]
        workload = random_workload(rng, 2 + len(found) // 15, kind)
        result = reference(workload)
        if kind == "aborts":
            # Abort somebody whose blocks are on the CPU, as soon as they are.
            gone = [
                [index + 1, step["swapped_now"][0]]
                for index, step in enumerate(result["steps"][:-1])
                if step["swapped_now"]
            ]
            if not gone:
                continue
            workload["aborts"] = gone[:1]
            result = reference(workload)
        wanted = result["num_swapped_out_blocks"] or (
            kind == "tight" and result["num_recomputed_tokens"]
        )
        if wanted and result["outcome"] == "finished" and len(result["steps"]) < 150:
            found.append((kind, workload, result))
    found.append(("tight", SERVED_ALREADY, reference(SERVED_ALREADY)))
    return found


def recomputed(result: Run) -> int:
    """Tokens that were computed more than once, counted from the steps themselves."""
    total = 0
    furthest: dict[str, int] = {}
    for step in result["steps"]:
        for id_, num_tokens in step["scheduled"]:
            end = step["computed_after"][id_]
            total += max(0, min(furthest.get(id_, 0), end) - (end - num_tokens))
            furthest[id_] = max(furthest.get(id_, 0), end)
    return total


def check_swap(student: Student) -> None:
    """Part a: `SwappingScheduler` on hidden workloads, slot by slot."""
    hidden = hidden_workloads()
    results = student.call(f"{DRIVER}:serve", workloads=[workload for _, workload, _ in hidden])
    any_copied = any(told["out"] for result in results for told in result["preemptions"])
    for (kind, workload, real), result in zip(hidden, results):
        shows = short(workload)
        if result["problem"]:
            raise Failed(f"`SwappingScheduler` must build a scheduler: {result['problem']}.")
        check_preemptions(workload, result["preemptions"], shows)
        if result.get("raised"):
            student.call(f"{DRIVER}:serve_alone", workload=workload)
            raise Failed("`SwappingScheduler` raises in one run of a workload and not in the next.")
        check_copies(workload, result, shows)
        if result["outcome"] != "finished":
            raise Failed(
                f"The run does not come to its end: it is {result['outcome']} after "
                f"{len(result['steps'])} steps. A victim's blocks on the GPU must be free for "
                f"others once they are copied, and the victim must be back in WAITING.",
                workload=shows,
            )
        check_outputs(workload, result, real, shows)
        check_recomputed(kind, workload, result, real, shows, any_copied)
        if result["free_blocks_at_end"] != workload["config"]["num_gpu_blocks"]:
            raise Failed(
                f"Everybody is done and {result['free_blocks_at_end']} of "
                f"{workload['config']['num_gpu_blocks']} blocks on the GPU are free: some leaked.",
                workload=shows,
            )


def check_preemptions(
    workload: Mapping[str, Any], preemptions: Sequence[Mapping[str, Any]], shows: Any
) -> None:
    """Raise unless each preemption leaves the books as the core's does, the blocks apart."""

    def differs(told: Mapping[str, Any], what: str) -> NoReturn:
        raise Failed(
            f"In step {told['step']}, after `_preempt_request` of {told['id']}, {what}",
            workload=shows,
        )

    for told in preemptions:
        id_, waiting = told["id"], told["waiting"]
        if told["status"] != RequestStatus.PREEMPTED.name:
            differs(told, f"its status is {told['status']}; the core leaves it PREEMPTED.")
        if told["counted"] != 1:
            differs(
                told,
                f"its `num_preemptions` has grown by {told['counted']}: each preemption counts 1.",
            )
        if told["named"] != [id_]:
            differs(
                told,
                f"`output.preempted_req_ids` has got {told['named']} more: it should name the "
                f"victim, once. The scheduler looks there to see that this step was short of "
                f"blocks, and admits nobody then.",
            )
        if waiting.count(id_) != 1:
            differs(told, f"it stands {waiting.count(id_)} times in WAITING.")
        if workload["config"]["policy"] == "fcfs" and waiting[0] != id_:
            differs(
                told,
                f"{waiting[0]} is at the head of WAITING. Under FCFS a victim goes back in front "
                f"of those who came later: `add_request` puts it behind them.",
            )


def check_copies(workload: Mapping[str, Any], result: Run, shows: Any) -> None:
    """Replay the run on a cache of our own: every slot that is read must hold what it should."""
    block_size = workload["config"]["block_size"]
    pool = workload["config"]["num_cpu_blocks"]
    model = toy.ToyModel(block_size)
    tokens = {row["id"]: list(row["prompt_token_ids"]) for row in workload["requests"]}
    restored_at: dict[str, int] = {}
    preempted: set[str] = set()
    for number, step in enumerate(result["steps"]):
        for name in ("out", "in"):
            check_pairs(name, step[name], number, pool, workload, shows)
        model.copy(step["out"], step["in"])
        for id_, num_tokens in step["scheduled"]:
            end, table = step["computed_after"][id_], step["tables"][id_]
            if id_ in preempted:
                preempted.discard(id_)
                restored_at[id_] = number if end > num_tokens else -1
            if len(table) * block_size < end:
                raise Failed(
                    f"In step {number} {id_} has {end} computed tokens and only {len(table)} "
                    f"blocks: it came back without room for what was restored.",
                    workload=shows,
                )
            model.write(table, tokens[id_], end - num_tokens, end)
        for id_, _ in step["scheduled"]:
            end, table = step["computed_after"][id_], step["tables"][id_]
            wrong = first_wrong_slot(model, table, tokens[id_][:end])
            if wrong is not None:
                raise Failed(
                    f"In step {number} {id_} reads its position {wrong} from block "
                    f"{table[wrong // block_size]}, and what stands there is not what was computed "
                    f"for it. {_why(number, step, restored_at.get(id_), wrong, end, block_size)}",
                    workload=shows,
                )
        preempted.update(step["preempted"])
        for id_, token in step["sampled"].items():
            tokens[id_].append(token)


def check_pairs(
    name: str, pairs: Any, number: int, pool: int, workload: Mapping[str, Any], shows: Any
) -> None:
    """Raise unless the copies of a step name blocks that exist."""
    order = "(GPU block, CPU block)" if name == "out" else "(CPU block, GPU block)"
    blocks = workload["config"]["num_gpu_blocks"]
    for pair in pairs:
        if len(pair) != 2 or any(type(number) is not int for number in pair):
            raise Failed(
                f"blocks_to_swap_{name} holds {pair!r:.60}; it should hold pairs of block ids, "
                f"{order}.",
                workload=shows,
            )
        gpu, cpu = pair if name == "out" else reversed(pair)
        if not 0 <= cpu < pool:
            raise Failed(
                f"In step {number} blocks_to_swap_{name} holds the pair {pair}, {order}: the CPU "
                f"pool has num_cpu_blocks={pool}, so its ids end at {pool - 1}. A victim that does "
                f"not fit into what is left of the pool is recomputed.",
                workload=shows,
            )
        if not 1 <= gpu <= blocks:
            raise Failed(
                f"In step {number} blocks_to_swap_{name} holds the pair {pair}, {order}: the GPU "
                f"has the blocks 1 to {blocks}.",
                workload=shows,
            )


def first_wrong_slot(model: toy.ToyModel, table: list[int], token_ids: list[int]) -> int | None:
    """The first position whose slot does not hold what it should."""
    before = toy.EMPTY
    for position, token in enumerate(token_ids):
        expected = toy.mix(before, token) or 1
        if model.read(table, position) != expected:
            return position
        before = expected
    return None


def _why(
    number: int, step: Mapping[str, Any], restored_at: int | None, wrong: int, end: int, size: int
) -> str:
    """A guess at why a slot is wrong."""
    if restored_at is None or restored_at < 0:
        return (
            "It was not restored before: was its block handed to somebody else while it still "
            "held it, or were other blocks copied than its own?"
        )
    if restored_at == number and not step["in"]:
        return (
            "It has just come back with its num_computed_tokens, and blocks_to_swap_in is empty: "
            "who brings its blocks back?"
        )
    if wrong // size == (end - 1) // size or (restored_at == number and wrong >= size):
        return (
            "It has come back from the CPU, and its first positions are right. Is every block "
            "copied, the last one too, which need not be full, and each into the block that stands "
            "at its place in the table that the request has now?"
        )
    return (
        "It has come back from the CPU. The copy out must name the blocks that it had, in order; "
        "the copy in the blocks that it has now; and a block of the CPU pool that holds somebody's "
        "tokens must not be given to anybody else."
    )


def check_outputs(workload: Mapping[str, Any], result: Run, real: Run, shows: Any) -> None:
    """Everybody says what it says without preemption, and is accounted for."""
    for id_, theirs in real["outputs"].items():
        ours = result["outputs"][id_]
        if ours["status"] == "FINISHED_ABORTED" == theirs["status"]:
            continue
        if ours["token_ids"] != theirs["token_ids"] or ours["status"] != theirs["status"]:
            raise Failed(
                f"{id_} ends as {ours['status']} with {len(ours['token_ids'])} tokens, and not "
                f"with the output that it has when nobody is preempted.",
                workload=shows,
            )


def check_recomputed(
    kind: str, workload: Mapping[str, Any], result: Run, real: Run, shows: Any, any_copied: bool
) -> None:
    """Nothing is computed twice that the CPU pool had room for."""
    ours, theirs = recomputed(result), recomputed(real)
    if ours <= theirs:
        return
    turned_away = recomputed_with_room(workload, result)
    if not any_copied:
        says = (
            "No block was copied to the CPU at all. `_preempt_request` decides what becomes of a "
            "victim: what it frees is lost, and num_computed_tokens says how much of a request "
            "counts as computed."
        )
    elif turned_away and turned_away[0]["table"] > turned_away[0]["free"]:
        told = turned_away[0]
        says = (
            f"In step {told['step']} {told['id']} has {told['table']} blocks, and its "
            f"{told['computed']} computed tokens fill {told['needed']} of them: the rest were "
            f"given out in this very step and hold nothing yet. {told['free']} blocks of the pool "
            f"are free."
        )
    elif turned_away and all(told["needed"] == told["free"] for told in turned_away):
        told = turned_away[0]
        says = (
            f"A victim that exactly fits was not let in: in step {told['step']} {told['id']} needs "
            f"{told['needed']} blocks of the pool, and {told['free']} are free."
        )
    elif copied_empty := copies_of_nothing(workload, result):
        told = copied_empty
        says = (
            f"In step {told['step']} {told['out']} blocks of {told['id']} are copied, and its "
            f"{told['computed']} computed tokens fill fewer. What holds nothing yet takes room in "
            f"the pool from somebody who would need it."
        )
    elif kind == "aborts":
        says = (
            "Somebody was aborted while its blocks were on the CPU, and the pool was small. Whose "
            "are those blocks of the pool now?"
        )
    elif kind == "tight":
        says = (
            "The pool is small here, but a victim that would have fitted into what was free of it "
            "was recomputed. Does a block go back to the pool when its request is restored?"
        )
    else:
        says = "The pool has room for everybody here: nobody has to lose a token."
    raise Failed(
        f"{ours} tokens are computed more than once, where {theirs} have to be. {says}",
        workload=shows,
    )


def recomputed_with_room(workload: Mapping[str, Any], result: Run) -> list[dict[str, Any]]:
    """Preemptions that recompute though the pool, by the copies made so far, has the room.

    Each with `needed` and `free`, in blocks.
    """
    config = workload["config"]
    held: dict[str, int] = {}
    found = []
    for number, step in enumerate(result["steps"]):
        for at, id_ in workload.get("aborts", ()):
            if at == number:
                held.pop(id_, None)
        for told in result["preemptions"]:
            if told["step"] != number:
                continue
            needed = -(-told["computed"] // config["block_size"])
            free = config["num_cpu_blocks"] - sum(held.values())
            if told["out"]:
                held[told["id"]] = told["out"]
            elif 0 < needed <= free:
                found.append({**told, "needed": needed, "free": free})
        for id_, _ in step["scheduled"]:
            held.pop(id_, None)
    return found


def copies_of_nothing(workload: Mapping[str, Any], result: Run) -> dict[str, Any] | None:
    """The first preemption that copies more blocks than the computed tokens fill."""
    size = workload["config"]["block_size"]
    return next(
        (told for told in result["preemptions"] if told["out"] > -(-told["computed"] // size)), None
    )


def short(workload: Mapping[str, Any]) -> dict[str, Any]:
    """A workload as a message shows it."""
    return loop.brief(workload)


# --- b: what it costs -----------------------------------------------------------------------------

MODEL, GPU, BLOCK_SIZE = "llama-3-8b", "h100", 16
CONTEXTS = (256, 1024, 4096)
GPUS = ("a10", "a100-80", "h100")
VICTIM = 1024
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NUM_OTHERS, OTHERS_CONTEXT = 32, 1000
DIGITS = 0.05
"""What writing a number with two significant digits may move it by: 1.05 becomes 1.1 or 1.0."""


def others() -> StepLoad:
    """The step that runs anyway: the requests that decode beside the victim."""
    load = StepLoad()
    for _ in range(NUM_OTHERS):
        load.add(1, OTHERS_CONTEXT, True)
    return load


def swap_seconds(context: int, block_size: int = BLOCK_SIZE, gpu: str = GPU) -> float:
    """Copying a request of `context` tokens out and back in."""
    load = StepLoad(swap_blocks=2 * -(-context // block_size))
    return roofline(MODEL, gpu, block_size=block_size).parts(load)["swap"]


def recompute_seconds(context: int, gpu: str = GPU) -> float:
    """What computing `context` tokens again adds to a step that runs anyway."""
    cost, load = roofline(MODEL, gpu), others()
    load.add(context, context, False)
    return cost.step_time(load) - cost.step_time(others())


def with_victim(context: int, gpu: str = GPU) -> float:
    """The step that computes `context` tokens again beside the others, whole."""
    load = others()
    load.add(context, context, False)
    return roofline(MODEL, gpu).step_time(load)


def cheapest_size(gpu: str) -> int:
    """The smallest block size of `SIZES` at which swapping the victim is cheaper."""
    return next(
        size for size in SIZES if swap_seconds(VICTIM, size, gpu) < recompute_seconds(VICTIM, gpu)
    )


def misreadings(name: str, context: int) -> tuple[tuple[float, str], ...]:
    """Wrong numbers of seconds, and what to say to them."""
    cost = roofline(MODEL, GPU)
    hardware = cost.hardware
    alone = StepLoad()
    alone.add(context, context, False)
    if name == "recompute_seconds":
        flops = 2.0 * cost.model.body_params * context
        return (
            (
                cost.step_time(alone),
                "That is a step that computes nothing else. This step runs anyway and reads the "
                "weights anyway: what do the additional tokens add to it?",
            ),
            (
                cost.step_time(others()) * context,
                "That is one step for each token. A prompt's tokens are computed side by side, in "
                "one step.",
            ),
            (
                flops / hardware.peak_flops / hardware.flops_efficiency,
                "That is the arithmetic of the added tokens. The step that runs anyway waits for "
                "the weights from memory, and while it waits there is arithmetic to spare.",
            ),
        )
    num_bytes = 2 * context * cost.model.kv_bytes_per_token(hardware.bytes_per_value)
    return (
        (swap_seconds(context) / 2, "That is one way. A victim's blocks go out, and come back."),
        (
            num_bytes / hardware.pcie_bandwidth,
            "That is the bytes over the bandwidth of PCIe. Each block is copied by itself, in each "
            "layer, keys and values apart, and every copy takes a moment to start.",
        ),
        (
            num_bytes / (hardware.memory_bandwidth * hardware.bandwidth_efficiency),
            "That is the speed of the GPU's own memory. Between GPU and CPU there is PCIe.",
        ),
        (
            context * swap_seconds(BLOCK_SIZE),
            "That is a copy of a whole block for each token. A block holds block_size of them.",
        ),
    )


def check_costs(value: object) -> None:
    """Part b: `costs`, seconds and break-even block sizes, from the cost model."""
    given = want_dict(value, "costs", keys=("swap_seconds", "recompute_seconds", "block_size"))
    tables: dict[str, Callable[[int], float]] = {
        "swap_seconds": swap_seconds,
        "recompute_seconds": recompute_seconds,
    }
    for name, seconds_of in tables.items():
        row = want_dict(given[name], f"costs[{name!r}]", keys=[str(c) for c in CONTEXTS])
        for context in CONTEXTS:
            what = f"costs[{name!r}][{context}]"
            number = want_number(row[str(context)], what, low=0)
            seconds = seconds_of(context)
            if abs(number - seconds) > DIGITS * seconds:
                raise Failed(
                    f"{what} is {number:g} s. {_cost_hint(name, context, number, seconds)}"
                )
    sizes = want_dict(given["block_size"], "costs['block_size']", keys=GPUS)
    for gpu in GPUS:
        what = f"costs['block_size'][{gpu!r}]"
        size = want_int(sizes[gpu], what, low=1, high=SIZES[-1])
        if size not in SIZES:
            raise Failed(f"{what} is {size}; a power of two is asked for, 1 to {SIZES[-1]}.")
        if size == cheapest_size(gpu):
            continue
        if swap_seconds(VICTIM, size, gpu) < recompute_seconds(VICTIM, gpu):
            raise Failed(
                f"{what} is {size}: swapping {VICTIM} tokens is cheaper there, but with smaller "
                f"blocks it is too. The smallest is asked for."
            )
        raise Failed(
            f"{what} is {size}: with blocks that small, recomputing {VICTIM} tokens on this GPU is "
            f"still cheaper. What does a larger block save, and how fast does this GPU compute?"
        )


def _cost_hint(name: str, context: int, number: float, seconds: float) -> str:
    for wrong, says in misreadings(name, context):
        if abs(number - wrong) <= DIGITS * wrong:
            return says
    if 900 < number / seconds < 1100:
        return "Seconds are asked for, not milliseconds."
    if name == "recompute_seconds" and abs(number - with_victim(context)) <= DIGITS * number:
        return (
            "That is the time of the whole step, and the others' part of it is spent anyway: give "
            "the difference of two steps, with and without the victim."
        )
    return (
        f"The cost model says {'less' if number > seconds else 'more'}. Ask it: "
        "`roofline(...).parts(load)` and `.step_time(load)`, with a `StepLoad` of just this work."
    )


PARTS = (
    Part("09a", "Swap a victim out and in", 6, "SwappingScheduler", "code", check_swap, CHAPTER),
    Part("09b", "What swapping costs", 3, "costs", "value", check_costs, CHAPTER),
)
