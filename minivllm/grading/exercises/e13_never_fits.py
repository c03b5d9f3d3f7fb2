"""Exercise 13: a request that can never fit, who has to notice, and what vLLM does."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from minivllm.core import RequestStatus, Scheduler, check_enough_kv_cache_memory
from minivllm.core.kv_cache_manager import cdiv
from minivllm.grading.exercises.drivers import loop
from minivllm.grading.part import (
    Failed,
    Part,
    shown,
    want_dict,
    want_int,
    want_list,
    want_str,
)
from minivllm.grading.sandbox import Student

TITLE = "Requests that can never fit"
CHAPTER = "11-admission-and-never-fits"
DRIVER = "minivllm.grading.exercises.drivers.d13"

Row = dict[str, Any]
UNLIMITED = {"max_model_len": 64, "max_num_batched_tokens": 32, "enable_prefix_caching": False}


def request_row(num_prompt_tokens: int, max_tokens: int | None, **more: Any) -> Row:
    """A request of a workload; no two prompts begin with the same token."""
    id_ = more.pop("id", "r0")
    return {
        "id": id_,
        "prompt_token_ids": [7 + sum(map(ord, id_))] * num_prompt_tokens,
        "max_tokens": max_tokens,
        **more,
    }


def ends_alone(row: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a request comes to its end in an empty engine that refuses nobody."""
    knobs = {**config, "admission_control": False}
    result = loop.run(Scheduler, {"config": knobs, "requests": [{**row, "arrival_step": 0}]})
    return bool(result["outcome"] == "finished")


# --- a: how much is too much ----------------------------------------------------------------------

PROMPTS = (1, 30, 47, 48)
CACHE = {"num_gpu_blocks": 12, "block_size": 4, **UNLIMITED}
ASKED = ((10, 7), (13, 4), (16, 1), (16, 2), (3, 30))
SHORT_MODEL = {"block_size": 4, **UNLIMITED, "max_model_len": 20}
"""The second question's engine: a sequence has at most 20 tokens."""


@cache
def limits() -> dict[str, list[int]]:
    """What the engine says: tried out, one number after the other."""
    tokens = []
    for prompt in PROMPTS:
        fits = [n for n in range(1, 64) if ends_alone(request_row(prompt, n), CACHE)]
        # Beyond max_model_len a larger max_tokens changes nothing.
        tokens.append(max(n for n in fits if prompt + n <= CACHE["max_model_len"]))
    blocks = []
    for prompt, max_tokens in ASKED:
        row = request_row(prompt, max_tokens)
        blocks.append(
            next(n for n in range(1, 40) if ends_alone(row, {**SHORT_MODEL, "num_gpu_blocks": n}))
        )
    return {"max_tokens": tokens, "num_gpu_blocks": blocks}


def check_limits(value: object) -> None:
    """Part a: `limits`, nine numbers that the engine is asked for."""
    given = want_dict(value, "limits", keys=("max_tokens", "num_gpu_blocks"))
    truth = limits()
    for name, cases in (("max_tokens", PROMPTS), ("num_gpu_blocks", ASKED)):
        numbers = want_list(given[name], f"limits[{name!r}]", length=len(cases))
        for index, (case, number, right) in enumerate(zip(cases, numbers, truth[name])):
            what = f"limits[{name!r}][{index}]"
            if want_int(number, what, low=0, high=10_000) != right:
                hint = _hint(name, case, number)
                raise Failed(f"{what}, for {_told(name, case)}, is {number}. {hint}")


def _told(name: str, case: Any) -> str:
    if name == "max_tokens":
        return f"a prompt of {case} tokens"
    return f"a prompt of {case[0]} tokens with max_tokens={case[1]}"


def _hint(name: str, case: Any, number: int) -> str:
    if name == "max_tokens":
        slots = CACHE["num_gpu_blocks"] * CACHE["block_size"]
        if number == slots - case:
            return (
                "That fills every slot with a token that is known. Is every token that is known at "
                "the end also computed?"
            )
        if number >= 1 and ends_alone(request_row(case, number), CACHE):
            return "A request with one more output token still ends."
        return (
            "A request that asks for so many never ends: when it needs a block beyond the last, it "
            "can only preempt itself, again and again."
        )
    prompt, max_tokens = case
    size, longest = SHORT_MODEL["block_size"], SHORT_MODEL["max_model_len"]
    if prompt + max_tokens > longest and number == -(-(prompt + max_tokens - 1) // size):
        return "A sequence ends at max_model_len, whatever max_tokens says."
    if number == -(-(min(prompt + max_tokens, longest)) // size):
        return (
            "That is one token too many: the last output token is sampled, and nothing follows it "
            "that would look at its keys and values."
        )
    if number == -(-prompt // size):
        return "That holds the prompt. What it says needs slots too."
    return "Count the tokens that are computed, then round up to blocks."


# --- b: admission control -------------------------------------------------------------------------


def random_workload(rng: random.Random, num_requests: int) -> dict[str, Any]:
    """Requests on both sides of the border, and exactly on it."""
    block_size = rng.choice([1, 2, 3, 4, 8])
    num_blocks = rng.randint(3, 10)
    slots = block_size * num_blocks
    longest = rng.choice([slots - rng.randint(1, 3), slots + 1, slots + 2, 2 * slots, 200])
    config = {
        "num_gpu_blocks": num_blocks,
        "block_size": block_size,
        "max_model_len": max(2, longest),
        "max_num_batched_tokens": rng.choice([4, 16, 64]),
        "max_num_seqs": rng.choice([1, 2, 4]),
        "policy": rng.choice(["fcfs", "fcfs", "priority"]),
        "enable_prefix_caching": rng.random() < 0.3,
        "reserve_full_prompt": rng.random() < 0.7,
    }
    rows = []
    for index in range(num_requests):
        prompt = rng.randint(1, slots + 3)
        room = slots + 1 - prompt  # output tokens that exactly fit
        output = rng.choice([room, room + 1, room - 1, rng.randint(1, 6), rng.randint(1, 6), 90])
        rows.append(
            request_row(
                prompt,
                None if rng.random() < 0.1 else max(1, output),
                id=f"r{index}",
                arrival_step=rng.randint(0, 2 * index),
                arrival_time=float(index),
                priority=rng.randint(0, 1),
            )
        )
    return {"config": config, "requests": rows}


def refused_by_reference(workload: Mapping[str, Any]) -> dict[str, bool]:
    """Whom the real core refuses."""
    scheduler = Scheduler(loop.SchedulerConfig(**workload["config"]))
    return {
        row["id"]: scheduler.refusal_reason(loop.make_request(row)) is not None
        for row in workload["requests"]
    }


@cache
def hidden_workloads() -> list[dict[str, Any]]:
    """Seeded workloads, small ones first; in most of them somebody never fits."""
    rng = random.Random("13b")
    found: list[dict[str, Any]] = []
    while len(found) < 100:
        workload = random_workload(rng, 1 + len(found) // 20)
        refused = refused_by_reference(workload)
        # The wanted workloads hold both sorts; a single request is of either.
        if len(refused) > 1 and len(set(refused.values())) < 2:
            continue
        if loop.run(Scheduler, workload)["outcome"] == "finished":
            found.append(workload)
    return found


def _most(row: Row, config: Mapping[str, Any]) -> int:
    """Tokens known at the end."""
    tokens = len(row["prompt_token_ids"]) + (row["max_tokens"] or config["max_model_len"])
    return int(min(tokens, config["max_model_len"]))


def _slots(config: Mapping[str, Any]) -> int:
    return int(config["num_gpu_blocks"] * config["block_size"])


def _too_long(row: Row, config: Mapping[str, Any]) -> bool:
    return len(row["prompt_token_ids"]) >= config["max_model_len"]


def _never_fits(row: Row, config: Mapping[str, Any]) -> bool:
    return _too_long(row, config) or _most(row, config) - 1 > _slots(config)


RULES: tuple[tuple[Callable[[Row, Mapping[str, Any]], bool], str], ...] = (
    (lambda row, config: False, "Nobody is refused at all."),
    (
        lambda row, config: _too_long(row, config) or len(row["prompt_token_ids"]) > _slots(config),
        "The prompt alone is held against the cache. A request that fits when it comes can still "
        "grow beyond the last block.",
    ),
    (
        lambda row, config: _too_long(row, config) or _most(row, config) > _slots(config),
        "It is one token too strict: the last output token is known and never computed.",
    ),
    (
        lambda row, config: _most(row, config) - 1 > _slots(config),
        "Memory is minded. A prompt that leaves no room below max_model_len for one output token "
        "must be refused too.",
    ),
    (
        lambda row, config: (
            _too_long(row, config)
            or len(row["prompt_token_ids"]) + (row["max_tokens"] or config["max_model_len"]) - 1
            > _slots(config)
        ),
        "max_tokens may ask for more than max_model_len allows. The sequence ends at max_model_len "
        "all the same.",
    ),
    (
        lambda row, config: _too_long(row, config),
        "max_model_len is minded. A cache can be smaller than that.",
    ),
    (
        lambda row, config: (
            len(row["prompt_token_ids"]) > config["max_model_len"]
            or _most(row, config) - 1 > _slots(config)
        ),
        "A prompt of exactly max_model_len tokens is let in: where would its first output go?",
    ),
    (
        lambda row, config: (
            _never_fits(row, config)
            or len(row["prompt_token_ids"]) > config["max_num_batched_tokens"]
        ),
        "The budget refuses nobody: a prompt above max_num_batched_tokens is cut, and computed in "
        "several steps.",
    ),
    (
        lambda row, config: (
            _too_long(row, config)
            or (_most(row, config) - 1) // config["block_size"] > config["num_gpu_blocks"]
        ),
        "The blocks are rounded down: tokens that fill a part of a block need all of it.",
    ),
    (
        lambda row, config: (
            len(row["prompt_token_ids"]) + (row["max_tokens"] or config["max_model_len"]) - 1
            > _slots(config)
        ),
        "max_model_len has no part in it. It ends a sequence that asks for more, and a prompt that "
        "leaves no room below it for one output token must be refused.",
    ),
)
"""What a wrong admission control may refuse instead, and what to say to it."""


def check_admission(student: Student) -> None:
    """Part b: `AdmittingScheduler` on hidden workloads."""
    hidden = hidden_workloads()
    results = student.call(f"{DRIVER}:serve", workloads=hidden)
    for workload, result in zip(hidden, results):
        shows = short(workload)
        if result["problem"]:
            raise Failed(f"`AdmittingScheduler` must build a scheduler: {result['problem']}.")
        expected = refused_by_reference(workload)
        for id_, told in result["refused"].items():
            check_refusal(id_, told, expected[id_], shows)
            if expected[id_]:
                check_reason(workload, id_, told["error"])
        for id_, refuse in expected.items():
            if refuse != (id_ in result["refused"]):
                raise Failed(
                    f"{_told_row(workload, id_)} "
                    + (
                        "can never come to its end, and is let in"
                        if refuse
                        else "would come to its end if it were let in, and is refused"
                    )
                    + f". {_outcome(result)}"
                    + (_which_rule(hidden, results) or _sizes(workload, id_)),
                    workload=shows,
                )
        if result["outcome"] != "finished":
            raise Failed(
                f"The right ones are refused, and yet the run does not drain. {_outcome(result)}",
                workload=shows,
            )
        theirs = loop.run(Scheduler, workload)["outputs"]
        for id_, ours in result["outputs"].items():
            if not expected[id_] and ours["token_ids"] != theirs[id_]["token_ids"]:
                raise Failed(f"{id_} is let in and gets another output.", workload=shows)


def check_refusal(id_: str, told: Mapping[str, Any], refuse: bool, shows: Any) -> None:
    """Raise unless a refusal looks like one."""
    if told["returned"] is None:
        raise Failed(
            f"add_request returned None for {id_}. It returns True for a request that is queued "
            f"and False for one that is refused.",
            workload=shows,
        )
    if not refuse:
        return
    if told["known"]:
        raise Failed(
            f"add_request returned False for {id_}, and the scheduler has it in `requests` all the "
            f"same: whoever is refused must not be queued.",
            workload=shows,
        )
    if told["status"] != RequestStatus.FINISHED_IGNORED.name:
        raise Failed(
            f"{id_} is refused, and its status is {told['status']}: whoever holds the request "
            f"could not tell that it is over. There is a status for one that was never started.",
            workload=shows,
        )
    if not told["error"]:
        raise Failed(
            f"{id_} is refused without a word: put into `request.error` why, for its sender.",
            workload=shows,
        )
    if told["num_output_tokens"]:
        raise Failed(f"{id_} is refused and has output tokens.", workload=shows)


def check_reason(workload: Mapping[str, Any], id_: str, reason: str) -> None:
    """Raise unless a refusal's reason names what the request needs and what there is."""
    config = workload["config"]
    row = next(row for row in workload["requests"] if row["id"] == id_)
    prompt, most, length = len(row["prompt_token_ids"]), _most(row, config), config["max_model_len"]
    asked = row["max_tokens"] or length - prompt
    needs = {prompt, asked, prompt + asked, most, most - prompt, most - 1, prompt + asked - 1}
    there: set[int] = set()
    if prompt >= length:
        there |= {length, length - 1}
        needs |= {prompt + 1}
    if most - 1 > _slots(config):
        there |= {config["num_gpu_blocks"], _slots(config), _slots(config) + 1}
        needs |= {cdiv(tokens, config["block_size"]) for tokens in needs}
    named = [int(number) for number in re.findall(r"(?<![\w.])\d{1,9}(?![\w])", reason)]
    if any(
        number in there and needs.intersection(named[:index] + named[index + 1 :])
        for index, number in enumerate(named)
    ):
        return
    raise Failed(
        f"{id_} is refused rightly, for this reason: {shown(reason)}. Its sender cannot tell from "
        f"that what to change. Name two numbers: what the request needs, and what there is of it"
        f"{' (max_model_len)' if prompt >= length else ' (in blocks or in tokens)'}.",
        workload=short(workload),
    )


def _told_row(workload: Mapping[str, Any], id_: str) -> str:
    row = next(row for row in workload["requests"] if row["id"] == id_)
    return f"{id_} ({len(row['prompt_token_ids'])} prompt tokens, max_tokens={row['max_tokens']})"


def _outcome(result: Mapping[str, Any]) -> str:
    if result["outcome"] == "stuck":
        return f"After {result['num_steps']} steps nobody gets a token any more. "
    if result["outcome"] == "endless":
        return f"After {result['num_steps']} steps the run still goes on: somebody starts over. "
    return ""


def _which_rule(hidden: list[dict[str, Any]], results: list[dict[str, Any]]) -> str:
    decided = [
        (row, workload["config"], row["id"] in result["refused"])
        for workload, result in zip(hidden, results)
        for row in workload["requests"]
    ]
    best, says = 0, ""
    for rule, words in RULES:
        agree = sum(rule(row, config) == refused for row, config, refused in decided)
        if agree > best:
            best, says = agree, words
    if best >= 0.98 * len(decided):
        return says
    alone = [
        (row, workload["config"], row["id"] in result["refused"])
        for workload, result in zip(hidden, results)
        for row in workload["requests"]
        if len(workload["requests"]) == 1
    ]
    if all(_never_fits(row, config) == refused for row, config, refused in alone):
        return (
            "Whoever comes alone is decided upon rightly. Whether somebody can ever fit does not "
            "depend on who is there now: compare with the whole cache."
        )
    return ""


def _sizes(workload: Mapping[str, Any], id_: str) -> str:
    """The three sizes that a request is decided by."""
    config = workload["config"]
    row = next(row for row in workload["requests"] if row["id"] == id_)
    return (
        f"Its prompt has {len(row['prompt_token_ids'])} tokens, at its longest "
        f"{_most(row, config)} are known (max_model_len is {config['max_model_len']}), and the "
        f"cache has {config['num_gpu_blocks']} blocks of {config['block_size']}."
    )


def short(workload: Mapping[str, Any]) -> dict[str, Any]:
    """A workload as a message shows it."""
    return loop.brief(workload)


# --- c: what vLLM does ----------------------------------------------------------------------------

WHERE = ("start-up", "front door", "scheduler", "nobody")
MODEL_LEN, BLOCK_SIZE, BLOCKS = 8192, 16, 300
CASES = {
    "prompt 9000": (9000, 10),
    "prompt 8192": (8192, 10),
    "prompt 8191": (8191, 10),
    "prompt 8000, no max_tokens": (8000, None),
    "prompt 100, max_tokens 50": (100, 50),
}
"""Requests, by LLM.generate, to an engine with max_model_len=8192 that has started.

The OpenAI server would refuse `prompt 8191` as well: it adds max_tokens before it compares
(vllm/renderers/params.py:421).
"""


@cache
def truth() -> dict[str, Any]:
    """What the real core, which follows vLLM here, says."""

    def starts(blocks: int, model_len: int) -> bool:
        try:
            check_enough_kv_cache_memory(blocks, BLOCK_SIZE, model_len)
        except ValueError:
            return False
        return True

    config: dict[str, Any] = {
        "num_gpu_blocks": 600,
        "block_size": BLOCK_SIZE,
        "max_model_len": MODEL_LEN,
        "max_num_batched_tokens": 8192,
    }
    outputs = {}
    for name, (prompt, max_tokens) in CASES.items():
        scheduler = Scheduler(loop.SchedulerConfig(**config))
        request = loop.make_request(request_row(prompt, max_tokens))
        scheduler.add_request(request)
        while scheduler.has_unfinished_requests():
            _, output = loop.plan(scheduler)
            scheduler.update_from_output(output, {"r0": 1} if request.is_caught_up else {})
        outputs[name] = request.num_output_tokens
    return {
        "smallest_blocks": next(n for n in range(1, 5000) if starts(n, MODEL_LEN)),
        "longest_model_len": max(n for n in range(2, 9000) if starts(BLOCKS, n)),
        "output_tokens": outputs,
        "refused_by": {
            "max_model_len 8192 with 300 blocks": "start-up",
            **{n: "nobody" if outputs[n] else "front door" for n in CASES},
        },
        "ignored_means": RequestStatus.get_finished_reason(RequestStatus.FINISHED_IGNORED),
        # Two lines name it, vllm/v1/request.py:329 and vllm/v1/request.py:353; none assigns it.
        "sets_ignored": 0,
    }


HINTS = {
    "smallest_blocks": (
        "At start-up vLLM asks whether the cache holds one sequence of max_model_len tokens, in "
        "whole blocks."
    ),
    "longest_model_len": (
        "The same question the other way round: the error message names the longest model length "
        "that the cache would hold."
    ),
    "ignored_means": "Every finished status has a reason for the API; this one shares another's.",
    "sets_ignored": (
        "The status is defined, and has a reason. Look for a line that gives it to a request: not "
        "every name in a code base is used."
    ),
}


def check_vllm(value: object) -> None:
    """Part c: `vllm`, commitments about vLLM 0.22.1."""
    right = truth()
    given = want_dict(value, "vllm", keys=tuple(right))
    for name in ("smallest_blocks", "longest_model_len", "sets_ignored"):
        number = want_int(given[name], f"vllm[{name!r}]", low=0, high=1 << 30)
        if number != right[name]:
            raise Failed(f"vllm[{name!r}] is {number}. {HINTS[name]}")
    tokens = want_dict(given["output_tokens"], "vllm['output_tokens']", keys=tuple(CASES))
    refused = want_dict(given["refused_by"], "vllm['refused_by']", keys=tuple(right["refused_by"]))
    for case, where in right["refused_by"].items():
        what = f"vllm['refused_by'][{case!r}]"
        said = want_str(refused[case], what, choices=WHERE)
        if said != where:
            raise Failed(f"{what} is {said!r}. {_where_hint(said, case)}")
    for case, count in right["output_tokens"].items():
        what = f"vllm['output_tokens'][{case!r}]"
        number = want_int(tokens[case], what, low=0, high=1 << 30)
        if number != count:
            more = "more" if number > count else "fewer"
            raise Failed(
                f"{what} is {number}, {more} than it gets. A sequence ends at max_tokens or at "
                f"max_model_len, prompt and output together; who is refused gets nothing."
            )
    said = want_str(given["ignored_means"], "vllm['ignored_means']")
    if said != right["ignored_means"]:
        raise Failed(f"vllm['ignored_means'] is {said!r}. {HINTS['ignored_means']}")


def _where_hint(said: str, case: str) -> str:
    if said == "scheduler":
        return (
            "vLLM's scheduler refuses nobody: by the time that a request is in WAITING, two others "
            "have looked at it. Which?"
        )
    if case.startswith("max_model_len"):
        return "That is a matter of the server's own configuration: no request is needed to see it."
    if said == "start-up":
        return "The server runs already, and this request is the first that it hears of."
    return (
        "The door of LLM.generate compares the prompt with max_model_len, which must leave room "
        "for at least one output token. Only the OpenAI server looks at max_tokens as well."
    )


PARTS = (
    Part("13a", "How much is too much", 2, "limits", "value", check_limits, CHAPTER),
    Part("13b", "Admission control", 5, "AdmittingScheduler", "code", check_admission, CHAPTER),
    Part("13c", "What vLLM does", 3, "vllm", "value", check_vllm, CHAPTER),
)
