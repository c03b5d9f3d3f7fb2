"""Exercise 10: nine chats to each long document, one budget, one threshold."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from minivllm.core import Request, SamplingParams, Scheduler, SchedulerConfig, SchedulerOutput
from minivllm.core.releases import REFERENCE
from minivllm.grading.part import Failed, Part, want_dict, want_int, want_number
from minivllm.sim import OpenLoop, SimulationConfig, StepLoad, roofline
from minivllm.sim.results import percentile

TITLE = "The budget and the threshold"
CHAPTER = "05-chunked-prefill-and-the-budget"
LOAD = "10-load-latency-littles-law"

MODEL, GPU = "llama-3-8b", "h100"
CHAT, DOCUMENT = 200, 16_000
RATE, BURSTINESS, SECONDS = 8.0, 0.5, 90.0
SEEDS = (211, 212, 1)
"""Of the traffic that is judged: two that nobody has seen, and the one that the notebook shows."""

SLO = {
    "chat_itl_p99": 0.060,
    "chat_ttft_p99": 0.250,
    "document_ttft_p90": 2.6,
}
"""Seconds: between two tokens of a chat while a document is being read; to the first token."""


# --- a: what a document does to a step ------------------------------------------------------------

SETTINGS = {"2048/0": (2048, 0), "2048/256": (2048, 256), "512/0": (512, 0)}
NUM_CHATS = 30
ASKED = ("tokens_in_step", "document_tokens", "document_steps", "new_chat_steps")
WORDS = {
    "tokens_in_step": "tokens in the document's second step",
    "document_tokens": "tokens of the document in that step",
    "document_steps": "steps until the document's first output token",
    "new_chat_steps": "steps until the new chat's first output token",
}


def play(budget: int, threshold: int) -> dict[str, int]:
    """Thirty chats decode, a document comes, and before its third step another chat."""
    scheduler = Scheduler(
        SchedulerConfig(
            num_gpu_blocks=4096,
            max_model_len=32_768,
            max_num_batched_tokens=budget,
            long_prefill_token_threshold=threshold,
            enable_prefix_caching=False,
        )
    )

    def add(id_: str, num_prompt_tokens: int) -> Request:
        params = SamplingParams(max_tokens=2000, ignore_eos=True)
        request = Request(id_, [1] * num_prompt_tokens, params)
        scheduler.add_request(request)
        return request

    def step() -> SchedulerOutput:
        output = scheduler.schedule()
        caught_up = [i for i in output.num_scheduled_tokens if scheduler.requests[i].is_caught_up]
        scheduler.update_from_output(output, dict.fromkeys(caught_up, 1))
        return output

    chats = [add(f"chat{i}", CHAT) for i in range(NUM_CHATS)]
    while not all(chat.num_output_tokens for chat in chats):
        step()
    document = add("document", DOCUMENT)
    found, number = {}, 0
    newcomer: Request | None = None
    while not (document.num_output_tokens and newcomer and newcomer.num_output_tokens):
        number += 1
        if number == 3:
            newcomer = add("newcomer", CHAT)
        output = step()
        if number == 2:
            found["tokens_in_step"] = output.total_num_scheduled_tokens
            found["document_tokens"] = output.num_scheduled_tokens["document"]
        if document.num_output_tokens and "document_steps" not in found:
            found["document_steps"] = number
        if newcomer and newcomer.num_output_tokens and "new_chat_steps" not in found:
            found["new_chat_steps"] = number - 2
    return found


def check_steps(value: object) -> None:
    """Part a: `steps`, four numbers for each of three settings."""
    given = want_dict(value, "steps", keys=tuple(SETTINGS))
    for name, (budget, threshold) in SETTINGS.items():
        row = want_dict(given[name], f"steps[{name!r}]", keys=ASKED)
        truth = play(budget, threshold)
        for key in ASKED:
            what = f"steps[{name!r}][{key!r}]"
            number = want_int(row[key], what, low=0, high=1_000_000)
            if number != truth[key]:
                raise Failed(
                    f"{what} is {number}; the engine counts otherwise ({WORDS[key]}). "
                    f"{_step_hint(key, number, budget, threshold, truth)}"
                )


def _step_hint(key: str, number: int, budget: int, threshold: int, truth: dict[str, int]) -> str:
    left = budget - NUM_CHATS
    if key in ("tokens_in_step", "document_tokens"):
        if number == budget and key == "document_tokens":
            return "The chats that decode are in RUNNING before it, and take a token each first."
        if threshold and number >= left:
            return "The threshold cuts what one request gets in a step, whatever the budget leaves."
        if number == threshold and key == "tokens_in_step":
            return "The chats decode in the same step."
        return "Count the decoding chats first, then clamp what the document gets."
    if key == "document_steps":
        whole = -(-DOCUMENT // (threshold or budget))
        if number == whole and not threshold:
            return "The whole budget is not the document's: somebody is served before it."
        if number == truth[key] - 1:
            return "The last chunk, however small, needs a step too."
        if number == truth[key] + 1:
            return (
                "The step that computes the last of the prompt samples the first output token: "
                "there is no further step for it."
            )
        return "Divide what is to be computed by what the document gets in a step, and round up."
    if number <= 1 and truth[key] > 1:
        return (
            "The newcomer waits behind RUNNING: while the document takes all that the chats leave "
            "of the budget, nobody is admitted."
        )
    if truth[key] == 1:
        return "With the threshold, the budget is not used up when admission begins."
    return (
        "It is admitted in the first step in which the document leaves something of the budget, "
        "and it gets its first token when all of its 200 have been computed."
    )


# --- b: the choice --------------------------------------------------------------------------------


def documents_in(plan: SchedulerOutput) -> int:
    """How many documents a step reads."""
    lists = (plan.scheduled_running_reqs, plan.scheduled_new_reqs, plan.scheduled_resumed_reqs)
    return sum(
        r.num_prompt_tokens == DOCUMENT and plan.num_scheduled_tokens[r.request_id] > 1
        for requests in lists
        for r in requests
    )


def traffic(budget: int, threshold: int, seed: int) -> SimulationConfig:
    """Ninety seconds of chats and documents under these knobs."""
    return SimulationConfig(
        OpenLoop("chat90-doc10", RATE, duration=SECONDS, burstiness=BURSTINESS),
        model=MODEL,
        gpu=GPU,
        knobs={
            "vllm_version": REFERENCE,
            "max_num_batched_tokens": budget,
            "long_prefill_token_threshold": threshold,
        },
        seed=seed,
    )


def serve(budget: int, threshold: int, seed: int) -> dict[str, float]:
    """Serve the traffic: what the SLO asks for, in seconds."""
    gaps: list[float] = []

    def watch(start: float, seconds: float, plan: SchedulerOutput, load: StepLoad) -> None:
        if load.num_tokens > load.num_reqs and documents_in(plan):
            decoding = sum(
                r.num_prompt_tokens == CHAT and r.num_output_tokens > 0
                for r in plan.scheduled_running_reqs
            )
            gaps.extend([seconds] * decoding)

    result = traffic(budget, threshold, seed).run(on_step=watch)
    gaps.sort()
    return {
        "chat_itl_p99": percentile(gaps, 99),
        "chat_ttft_p99": result.percentile("ttft", 99, "chat"),
        "document_ttft_p90": result.percentile("ttft", 90, "doc"),
    }


BESIDE, CONTEXT = 20, 300


@cache
def _cost() -> Any:
    return roofline(MODEL, GPU)


def step_seconds(chunk: int, computed: int, num_chats: int = BESIDE) -> float:
    """A step in which chats decode and a document computes a chunk."""
    load = StepLoad()
    for _ in range(num_chats):
        load.add(1, CONTEXT, True)
    if chunk:
        load.add(chunk, computed + chunk, computed + chunk == DOCUMENT)
    return float(_cost().step_time(load))


def document_alone(budget: int, threshold: int) -> dict[str, tuple[float, float]]:
    """For the knobs: each number's lowest and highest value that the cost model supports."""
    piece = min(budget - BESIDE, threshold or budget, DOCUMENT)
    times, computed = [], 0
    while computed < DOCUMENT:
        chunk = min(piece, DOCUMENT - computed)
        times.append(step_seconds(chunk, computed))
        computed += chunk
    # The chunk that begins or the one that ends where half of the document is computed.
    half = [
        step_seconds(min(piece, DOCUMENT // 2), at)
        for at in (max(0, DOCUMENT // 2 - piece), DOCUMENT // 2)
    ]
    sums = [sum(times), *(len(times) * seconds for seconds in half)]
    return {
        "tokens_in_step": (piece + BESIDE, piece + BESIDE),
        "document_steps": (len(times), len(times)),
        "chat_itl": (min(half), max(half)),
        "document_ttft": (min(sums), max(sums)),
    }


def _slack(name: str, exact: float) -> float:
    """How far from `exact` an answer may be: two significant digits; 5 % of what is a sum."""
    if name == "document_ttft":
        return 0.05 * exact
    return 0.5 * 10.0 ** (math.floor(math.log10(exact)) - 1)


def _itl_hint(number: float, budget: int, threshold: int) -> str:
    """What a wrong `chat_itl` is instead, where that can be told."""
    piece = min(budget - BESIDE, threshold or budget, DOCUMENT)
    half = DOCUMENT // 2 - piece
    others = {
        "the chats that decode are left out": step_seconds(piece, max(0, half), 0),
        "that is the document's first chunk, which has nothing before it": step_seconds(piece, 0),
        "that is its last chunk": step_seconds(piece, DOCUMENT - piece),
        "the document's chunk is left out": step_seconds(0, 0),
    }
    words, seconds = min(others.items(), key=lambda other: abs(other[1] - number))
    return f" It looks as if {words}." if abs(seconds - number) < 0.01 * seconds else ""


KNOBS = ("max_num_batched_tokens", "long_prefill_token_threshold")
REASONS = ("tokens_in_step", "document_steps", "chat_itl", "document_ttft")


def check_design(value: object) -> None:
    """Part b: `design`, two knobs and four numbers that justify them."""
    given = want_dict(value, "design", keys=(*KNOBS, *REASONS))
    budget = want_int(given[KNOBS[0]], f"design[{KNOBS[0]!r}]", low=64, high=65_536)
    threshold = want_int(given[KNOBS[1]], f"design[{KNOBS[1]!r}]", low=0, high=65_536)
    for name, (low, high) in document_alone(budget, threshold).items():
        number = want_number(given[name], f"design[{name!r}]", low=0)
        if not low - _slack(name, low) <= number <= high + _slack(name, high):
            raise Failed(
                f"Your numbers do not belong to your knobs: design[{name!r}] is {number:g}, too "
                f"{'small' if number < low else 'large'} for {BESIDE} decoding chats and one "
                f"document, half of it computed, under max_num_batched_tokens={budget} and "
                f"long_prefill_token_threshold={threshold}, to two digits. (Times are in seconds.)"
                + (_itl_hint(number, budget, threshold) if name == "chat_itl" else ""),
            )
    for seed in SEEDS:
        check_slo(seed, budget, threshold)


def check_slo(seed: int, budget: int, threshold: int) -> None:
    """Raise unless a run meets the SLO, with what the miss says about the knobs."""
    row = serve(budget, threshold, seed)
    seen = f"of seed {seed}" if seed == SEEDS[-1] else "that you have not seen"
    missed = [name for name, limit in SLO.items() if not row[name] <= limit]
    if not missed:
        return
    told = ", ".join(f"{name} {row[name]:.3f} s (limit {SLO[name]:.3f})" for name in missed)
    if "chat_itl_p99" in missed:
        says = (
            "A chat's next token waits for the whole step. How many tokens of documents can be in "
            "one step, when a burst brings five documents and more at once? "
            + (
                "Nothing limits a single document but the budget."
                if not threshold
                else "Look at the threshold times that number, and at the budget."
            )
        )
    elif "chat_ttft_p99" in missed:
        says = "New chats wait to be admitted. " + (
            "While a document takes all that is left of the budget, admission has nothing."
            if not threshold
            else "How many documents at once use up the budget under your threshold?"
        )
    else:
        says = (
            "The documents pay: each of their steps reads all the weights and gives them few "
            "tokens. How many steps does one take?"
        )
    raise Failed(
        f"On traffic {seen}, the SLO is missed: {told}. {says}",
        chapter=CHAPTER if "chat_itl_p99" in missed else LOAD,
        workload={"max_num_batched_tokens": budget, "long_prefill_token_threshold": threshold},
        label="Knobs",
    )


PARTS = (
    Part("10a", "What a document does to a step", 3, "steps", "value", check_steps, CHAPTER),
    Part("10b", "The choice, with its reasons", 5, "design", "value", check_design, LOAD),
)
