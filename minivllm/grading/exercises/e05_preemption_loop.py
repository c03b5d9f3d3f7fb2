"""Exercise 5: the `while True` loop that preempts, and what `_preempt_request` does."""

from __future__ import annotations

import random
from typing import Any

from minivllm.core import Scheduler
from minivllm.core.kv_cache_manager import cdiv
from minivllm.grading.exercises.workloads import (
    LEGEND,
    YOURS,
    Misread,
    Run,
    Step,
    first_difference,
    judge_cells,
    plain,
    read_workload,
    run,
    run_to_the_end,
    scenario_of,
    variant,
    workload,
)
from minivllm.grading.part import (
    Failed,
    Part,
    not_answered,
    shown,
    want_dict,
    want_int,
    want_list,
    want_str,
)
from minivllm.grading.sandbox import Student
from minivllm.runs.scenario import Scenario

TITLE = "The preemption loop"
CHAPTER = "06-preemption"

TWO_YIELD = workload(
    {
        "num_gpu_blocks": 10,
        "block_size": 4,
        "max_num_batched_tokens": 32,
        "long_prefill_token_threshold": 8,
        "enable_prefix_caching": False,
    },
    ("r0", 0, 32, 4),
    ("r1", 0, 11, 5),
    ("r2", 2, 3, 4),
    ("r3", 2, 7, 3),
)
TWO_YIELD_STEP = 3
"""Three run, no block is free, and the first needs two: more than the last one holds."""

ITSELF = workload(
    {
        "num_gpu_blocks": 9,
        "block_size": 4,
        "max_num_batched_tokens": 32,
        "enable_prefix_caching": False,
    },
    ("r0", 0, 12, 7),
    ("r1", 0, 7, 6),
    ("r2", 1, 6, 6),
    ("r3", 2, 5, 2),
)
ITSELF_STEP = 4
"""Three run, no block is free, and the last needs one."""


def show_state(scenario: Scenario, step: int) -> None:
    """Print how everybody stands at the beginning of a step."""
    before = run(scenario).steps[step - 1]
    names = [id_ for id_ in [*before.running, *before.waiting] if id_ not in before.finished]
    print(f"at the beginning of step {step}: {before.free_blocks} blocks free")
    print("request  status    num_tokens  num_computed_tokens  blocks held")
    for id_ in names:
        row, (known, computed) = before.requests[id_], before.after[id_]
        print(f"{id_:7}  {row['status']:8}  {known:10}  {computed:19}  {row['blocks']:11}")


# --- a and b: trace one step ----------------------------------------------------------------------

KEYS = {
    "victims": "who is preempted, in order",
    "freed_blocks": "the blocks that each victim gives back",
    "tokens": "who is scheduled in the step, with how many tokens",
    "running": "RUNNING after schedule(), in order",
    "waiting": "WAITING after schedule(), from the front",
    "free_blocks": "the blocks that are free after schedule()",
    "status": "the status of each victim after schedule()",
    "num_tokens": "num_tokens of each victim after schedule()",
    "num_computed_tokens": "num_computed_tokens of each victim after schedule()",
    "num_preemptions": "num_preemptions of each victim after schedule()",
    "readmitted_at": "the step in which each victim is admitted again",
    "tokens_then": "the tokens that each victim gets in that step",
}
Trace = dict[str, Any]


def trace_of(result: Run, number: int) -> Trace:
    """What one step does, and what becomes of its victims."""
    before, step = result.steps[number - 1], result.steps[number]
    later = result.steps[number + 1 :]
    victims = step.preempted
    back: dict[str, Step | None] = {
        id_: next((s for s in later if id_ in s.tokens), None) for id_ in victims
    }
    rows = {id_: step.requests[id_] for id_ in victims}
    return {
        "victims": victims,
        "freed_blocks": {id_: before.requests[id_]["blocks"] for id_ in victims},
        "tokens": step.tokens,
        "running": step.running,
        "waiting": step.waiting,
        "free_blocks": step.free_blocks,
        **{
            key: {id_: row[key] for id_, row in rows.items()}
            for key in ("status", "num_tokens", "num_computed_tokens", "num_preemptions")
        },
        "readmitted_at": {id_: s.step if s else None for id_, s in back.items()},
        "tokens_then": {id_: s.tokens[id_] if s else None for id_, s in back.items()},
    }


def _misreads(scenario: Scenario, number: int, truth: Trace, given: Trace) -> list[Misread]:
    result = run(scenario)
    before, step, victims = result.steps[number - 1], result.steps[number], truth["victims"]
    backwards = [*reversed(victims), *(id_ for id_ in truth["waiting"] if id_ not in victims)]
    behind = [*(id_ for id_ in truth["waiting"] if id_ not in victims), *victims]
    freed = sum(truth["freed_blocks"].values())

    def cell(says: str, key: str, value: Any) -> Misread:
        return Misread(says, {key: value}, anywhere=True)

    prompts = {id_: result.requests[id_].num_prompt_tokens for id_ in victims}
    first = (
        "FCFS: whoever was admitted last yields. Look at the end of RUNNING, not at its front, and "
        "not at who asks."
    )
    readmitted = [(given["readmitted_at"].get(id_), truth["readmitted_at"][id_]) for id_ in victims]
    too_early = any(said == at - 1 for said, at in readmitted) and all(
        said in (at, at - 1) for said, at in readmitted
    )
    wrong_end = given["victims"][:1] not in ([], before.running[-1:])
    return [
        cell(
            "The loop goes on until allocate_slots succeeds: hold what the first victim gives back "
            "against what is asked for.",
            "victims",
            victims[:1],
        ),
        cell(
            "The loop stops as soon as there is room: not everybody behind has to yield.",
            "victims",
            before.running[:0:-1],
        ),
        cell("The order in which they yield counts: from the end of RUNNING.", "victims",
             victims[::-1]),
        cell(
            "Nobody else is left to yield: what does the loop do when the one that asks is at the "
            "end of RUNNING itself?",
            "victims",
            [],
        ),
        cell(first, "victims", given["victims"] if wrong_end else None),
        cell(
            "Each victim goes to the very front of WAITING, one after the other: the last one to "
            "be preempted stands first.",
            "waiting",
            [*victims, *(id_ for id_ in truth["waiting"] if id_ not in victims)],
        ),
        cell(
            "A victim does not queue up behind those who wait already: it goes to the front.",
            "waiting",
            behind,
        ),
        cell(
            "A victim does not queue up behind those who wait already: it goes to the front.",
            "waiting",
            [*behind[: len(behind) - len(victims)], *reversed(victims)],
        ),
        cell("A victim waits again, with status PREEMPTED, at the front.", "waiting",
             [id_ for id_ in backwards if id_ not in victims]),
        cell("What the victims gave back is used: the one that asked takes its blocks of it.",
             "free_blocks", freed),
        cell("0 were free before. Add what the victims gave back, take off what was handed out.",
             "free_blocks", 0),
        cell(
            "A victim knows all its tokens still, those it has generated too: it loses keys and "
            "values, no text.",
            "num_tokens",
            prompts,
        ),
        cell("num_tokens counts known tokens: the step in which it yields adds none.",
             "num_tokens", {id_: n + 1 for id_, n in truth["num_tokens"].items()}),
        cell(
            "Its blocks are gone, and with them all keys and values: nothing of it is computed any "
            "more.",
            "num_computed_tokens",
            {id_: before.requests[id_]["num_computed_tokens"] for id_ in victims},
        ),
        cell("A preempted request is told apart from one that never ran by its status.",
             "status", dict.fromkeys(victims, "WAITING")),
        cell("A victim is not running any more.", "status", dict.fromkeys(victims, "RUNNING")),
        cell("This preemption counts.", "num_preemptions", dict.fromkeys(victims, 0)),
        cell(
            "Whoever was taken out of RUNNING before its turn gets nothing in this step.",
            "tokens",
            {**step.tokens, **{id_: 1 for id_ in before.running if id_ not in step.tokens}},
        ),
        cell(
            "A step that preempted admits nobody: a newcomer would take what the victim has just "
            "given back.",
            "tokens",
            {**step.tokens, "r3": result.requests["r3"].num_prompt_tokens},
        ),
        cell("The threshold caps what a request gets in one step, a long prompt too.", "tokens",
             {**step.tokens, **{id_: before.after[id_][0] - before.after[id_][1]
                                for id_ in step.tokens}}),
        cell(
            "It is not admitted in the step right after: as long as all its known tokens do not "
            "fit into the free blocks, it waits.",
            "readmitted_at",
            dict.fromkeys(victims, number + 1),
        ),
        cell("A step that preempted admits nobody.", "readmitted_at",
             dict.fromkeys(victims, number)),
        cell(
            "That is one step too early for somebody. A request that finishes in a step gives its "
            "blocks back at the end of it: they are there in the next one.",
            "readmitted_at",
            given["readmitted_at"] if too_early else None,
        ),
        cell(
            "It computes again what it knows: its prompt **and** the tokens that it had generated.",
            "tokens_then",
            prompts,
        ),
        cell(
            "All that it had computed is lost; one token is not enough to catch up.",
            "tokens_then",
            dict.fromkeys(victims, 1),
        ),
        cell(
            "The threshold caps a re-admitted request as it caps a prompt.",
            "tokens_then",
            dict(truth["num_tokens"]),
        ),
    ]  # fmt: skip


def check_trace(name: str, value: object, scenario: Scenario, number: int) -> None:
    """One traced step, key by key."""
    given = want_dict(value, name, keys=KEYS)
    for key, item in given.items():
        if item is None:
            raise Failed(f"{name}[{key!r}] is not answered yet: {KEYS[key]}.")
    truth = trace_of(run(scenario), number)
    for key in ("victims", "running", "waiting"):
        want_list(given[key], f"{name}[{key!r}]", high=10)
    want_int(given["free_blocks"], f"{name}['free_blocks']")
    for key in ("freed_blocks", "tokens", "status", "num_tokens", "num_computed_tokens",
                "num_preemptions", "readmitted_at", "tokens_then"):  # fmt: skip
        if not isinstance(given[key], dict):
            raise Failed(
                f"{name}[{key!r}] ({KEYS[key]}) should be a dict with an entry for each request, "
                f"got {shown(given[key])}."
            )
    given["status"] = {
        id_: word.strip().upper() if isinstance(word, str) else word
        for id_, word in given["status"].items()
    }
    for key in ("tokens", "freed_blocks"):  # to say that somebody gets 0 is no mistake
        given[key] = {id_: n for id_, n in given[key].items() if n != 0}
    judge_cells(
        given,
        truth,
        _misreads(scenario, number, truth, given),
        lambda key: f"{name}[{key!r}], {KEYS[key]}",
        otherwise=(
            "Go through the loop turn by turn: ask for blocks; if there are none, take the last of "
            "RUNNING, free its blocks, put it at the front of WAITING, ask again."
        ),
    )


def check_two_yield(value: object) -> None:
    """Part a: the first of three needs more than one victim gives."""
    check_trace("two_yield", value, TWO_YIELD, TWO_YIELD_STEP)


def check_itself(value: object) -> None:
    """Part b: the last of three needs a block, and is itself at the end of RUNNING."""
    check_trace("itself", value, ITSELF, ITSELF_STEP)


# --- c: the loop as a function --------------------------------------------------------------------


def _hidden_scenario(index: int) -> Scenario:
    """A seeded run in which blocks are short, of one of three kinds.

    Decodes that ask for a block each; a long prompt in chunks at the front of RUNNING, which takes
    several victims at a time; and one in the middle, with nobody but victims of a block each behind
    it, so that two or three of them must yield, or all of them and it itself.
    """
    rng = random.Random(f"05c:{index}")
    kind = ("decodes", "long first", "long and small")[index % 3]
    pieces = kind != "decodes"
    small = kind == "long and small"
    rows = [
        (
            f"r{i}",
            rng.randint(0, 1 if pieces else 4),
            rng.randint(1, 3 if small else 6 if pieces else 12),
            rng.randint(6, 12),
        )
        for i in range(rng.randint(2, 8 if small else 6))
    ]
    old = [(f"old{i}", 0, rng.randint(3, 12), 8) for i in range(rng.randint(0, 2) * small)]
    blocks = rng.randint(11, 14) if pieces else rng.randint(7, 12)
    return workload(
        {
            "num_gpu_blocks": blocks,
            "block_size": 4,
            "max_num_batched_tokens": 512,
            "long_prefill_token_threshold": rng.choice([12, 16]) if pieces else 0,
            "reserve_full_prompt": not small,
            "enable_prefix_caching": False,
        },
        *old,
        *([("long", 0, rng.randint(36, 42), 2)] if pieces else []),
        *rows,
    )


def hidden_loops(count: int) -> list[dict[str, Any]]:
    """The RUNNING half of steps of seeded runs: what it had, and what it did."""
    cases = []
    for index in range(count):
        scenario = _hidden_scenario(index)
        config = scenario.scheduler_config()
        result = run(scenario, max_steps=120)
        for before, step in zip(result.steps, result.steps[1:]):
            ids = [id_ for id_ in before.running if id_ not in before.finished]
            if not ids:
                continue
            running = []
            for id_ in ids:
                known, computed = before.after[id_]
                gap = known - computed
                tokens = min(gap, config.long_prefill_token_threshold or gap)
                held = before.requests[id_]["blocks"]
                needs = max(0, cdiv(computed + tokens, config.block_size) - held)
                running.append({"id": id_, "blocks_held": held, "blocks_needed": needs})
            free = before.free_blocks + sum(before.requests[i]["blocks"] for i in before.finished)
            admitted = sum(step.requests[id_]["blocks"] for id_ in [*step.new, *step.resumed])
            cases.append(
                {
                    "running": running,
                    "num_free_blocks": free,
                    "after": {
                        "scheduled": [id_ for id_ in step.tokens if id_ in ids],
                        "preempted": step.preempted,
                        "num_free_blocks": step.free_blocks + admitted,
                    },
                }
            )
    # Every kind, the smallest first; of the many steps without a preemption some are enough.
    cases.sort(key=lambda case: (len(case["running"]), case["num_free_blocks"], str(case)))
    quiet = [case for case in cases if not case["after"]["preempted"]]
    return [case for case in cases if case["after"]["preempted"]] + quiet[:: len(quiet) // 60 + 1]


def check_loop(student: Student) -> None:
    """Part c: `preemption_loop`, on the RUNNING half of hidden steps."""
    cases = hidden_loops(90)
    answers = student.call(
        "minivllm.grading.exercises.drivers.d05:loops",
        cases=[{key: case[key] for key in ("running", "num_free_blocks")} for case in cases],
    )
    for case, answer in zip(cases, answers):
        _judge_loop(case, answer)


def _judge_loop(case: dict[str, Any], answer: object) -> None:
    shows = {key: case[key] for key in ("running", "num_free_blocks")}

    def fail(says: str) -> Failed:
        return Failed(says, workload={**shows, "your preemption_loop": answer})

    if not_answered(answer) and not isinstance(answer, dict):
        raise fail("preemption_loop returned nothing.")
    given = want_dict(answer, "what preemption_loop returns", keys=case["after"])
    ids = [row["id"] for row in case["running"]]
    for key in ("scheduled", "preempted"):
        for id_ in want_list(given[key], f"{key!r} of preemption_loop", high=len(ids) * 2):
            want_str(id_, f"an id in {key!r}", choices=ids)
    free = want_int(given["num_free_blocks"], "'num_free_blocks' of preemption_loop")
    if given == case["after"]:
        return
    scheduled, preempted = given["scheduled"], given["preempted"]
    wanted = case["after"]
    held = {row["id"]: row["blocks_held"] for row in case["running"]}
    needs = {row["id"]: row["blocks_needed"] for row in case["running"]}
    if set(scheduled) & set(preempted):
        raise fail(
            f"{sorted(set(scheduled) & set(preempted))[0]} is scheduled and preempted: under FCFS "
            f"a victim comes from the end of RUNNING, and its turn has not come yet."
        )
    if preempted and preempted != list(reversed(ids))[: len(preempted)]:
        raise fail(
            f"You preempt {preempted}. FCFS: the last of RUNNING yields, then the last of those "
            f"who are left, in that order."
        )
    if free < 0:
        raise fail(
            f"You leave {free} blocks free: more are handed out than there are. After each victim "
            f"ask again, until all that is asked for is there; if that never comes, the one that "
            f"asks is the last to yield."
        )
    if len(preempted) < len(wanted["preempted"]):
        if set(scheduled) | set(preempted) != set(ids):
            raise fail(
                "Somebody is neither scheduled nor preempted. When blocks are short the loop does "
                "not give up and does not pass on to the next: it preempts until there is room."
            )
        raise fail(
            "Too few are preempted: all that is asked for must be there before a request is "
            "scheduled, and when the one that asks is the last, it yields itself."
        )
    if len(preempted) > len(wanted["preempted"]):
        raise fail(
            "Too many are preempted: after each victim the loop asks again, and stops as soon as "
            "there is room. Blocks that are free already count, and so does what victims gave "
            "back for somebody before."
        )
    if scheduled != wanted["scheduled"]:
        raise fail(
            f"You schedule {scheduled}. Whoever is left in RUNNING when its turn comes and gets "
            f"its blocks is scheduled, one that needs none too."
        )
    right = case["num_free_blocks"] + sum(held[i] for i in preempted)
    if free == right:
        raise fail("The blocks that are handed out are not free any more.")
    if free == case["num_free_blocks"] - sum(needs[i] for i in scheduled):
        raise fail("The blocks of the victims are free again: count them.")
    raise fail(
        "The free blocks do not add up: what was free, plus what the victims held, minus what was "
        "handed out."
    )


# --- d: what _preempt_request must not forget -----------------------------------------------------

FORGETS = {
    "free": "to give its blocks back",
    "computed": "to set num_computed_tokens to 0",
    "status": "to set the status to PREEMPTED",
    "count": "to count the preemption",
    "front": "that the front of WAITING is its place: it puts the victim at the back",
    "tell": "to tell the step's output that somebody was preempted",
    "text": "that the generated tokens stay known: it drops them",
    "leave": "that only one yields at a time: it preempts a second one as well",
}


def _forget(name: str, old: str, new: str = "") -> type[Scheduler]:
    return variant(f"forgets_{name}", old, new)


FAULTY: dict[str, type[Scheduler]] = {
    "A": _forget("count", "request.num_preemptions += 1"),
    "B": _forget(
        "front", "self.waiting.prepend_request(request)", "self.waiting.add_request(request)"
    ),
    "C": _forget(
        "free",
        """
        self.kv_cache_manager.free(request)
        request.max_num_computed_tokens = max(
        """,
        "request.max_num_computed_tokens = max(",
    ),
    "D": _forget("status", "request.status = RequestStatus.PREEMPTED"),
    "E": _forget("tell", "output.preempted_req_ids.append(request.request_id)"),
    "F": _forget("computed", "request.num_computed_tokens = 0"),
}
"""Schedulers whose `_preempt_request` forgets one thing each."""

_FORGOTTEN = {"A": "count", "B": "front", "C": "free", "D": "status", "E": "tell", "F": "computed"}


def show_faulty(letter: str, wanted: dict[str, Any], max_steps: int = 30) -> None:
    """Print a workload's run under a faulty scheduler, with the status of everybody.

    Args:
        letter: A to F; anything else shows the real scheduler.
        wanted: an answer that holds a workload will do.
    """
    result = run(scenario_of(wanted), FAULTY.get(letter, Scheduler), max_steps=max_steps)
    print(LEGEND)
    for step in result.steps:
        print(f"step {step.step}: scheduled {step.tokens or 'nobody'}, preempted {step.preempted}, "
              f"free blocks {step.free_blocks}")  # fmt: skip
        print(f"  RUNNING {step.running}  WAITING {step.waiting}")
        for id_, row in step.requests.items():
            print(f"    {id_}: {row['status']}, computed {row['num_computed_tokens']} of "
                  f"{row['num_tokens']}, blocks {row['blocks']}, preemptions "
                  f"{row['num_preemptions']}")  # fmt: skip
    print(f"the run {result.outcome} {result.error}".rstrip())


def check_faults(value: Any) -> None:
    """Part d: `faults`, a workload that exposes all six, and what each forgets."""
    scenario = read_workload(value, "faults", "forgets")
    forgets = want_dict(value["forgets"], "faults['forgets']", keys=FAULTY)
    said = {
        letter: want_str(name, f"faults['forgets'][{letter!r}]", choices=FORGETS)
        for letter, name in forgets.items()
    }
    real = run_to_the_end(scenario, "faults")
    if not real.num_preemptions:
        raise Failed(
            "Nobody is preempted in your workload: a scheduler that forgets something when it "
            "preempts is not seen. Make blocks scarce.",
            workload=plain(scenario),
            label=YOURS,
        )
    for letter, scheduler_class in FAULTY.items():
        difference = first_difference(real, run(scenario, scheduler_class))
        if difference is None:
            raise Failed(
                f"On your workload scheduler {letter} does what the real one does, in each of the "
                f"{len(real.steps)} steps. Is there anybody else in WAITING when somebody is "
                f"preempted?",
                workload=plain(scenario),
                label=YOURS,
            )
    twice = [name for name in FORGETS if list(said.values()).count(name) > 1]
    if twice:
        raise Failed(
            f"You say {twice[0]!r} of two schedulers: no two of them forget the same.",
            workload=plain(scenario),
            label=YOURS,
        )
    for letter, name in said.items():
        if name != _FORGOTTEN[letter]:
            step, what = first_difference(real, run(scenario, FAULTY[letter])) or (0, "")
            raise Failed(
                f"It is not {name!r} that scheduler {letter} forgets. On your workload it differs "
                f"from the real one in step {step} for the first time, in {what}: compare the two "
                f"there.",
                workload=plain(scenario, until_step=step),
                label=YOURS,
            )


PARTS = (
    Part("05a", "One asks, two yield", 4, "two_yield", "value", check_two_yield, CHAPTER),
    Part("05b", "Its own victim", 4, "itself", "value", check_itself, CHAPTER),
    Part("05c", "The loop as a function", 4, "preemption_loop", "code", check_loop, CHAPTER),
    Part("05d", "What must not be forgotten", 4, "faults", "value", check_faults, CHAPTER),
)
