"""Extra exercise X1, for chapter 2: what a static batch computes, and what continuous saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from minivllm.grading.exercises.workloads import Misread, judge_cells, run, workload
from minivllm.grading.part import Failed, Part, want_dict, want_int, want_list, want_str

TITLE = "A static batch, counted"
CHAPTER = "02-static-and-continuous-batching"

Job = tuple[str, int, int]
"""A request: its name, prompt tokens, output tokens."""


def static(jobs: Sequence[Job], seats: int) -> dict[str, int]:
    """Steps and tokens of static batches of `seats` jobs each, in this order."""
    told = {"steps": 0, "tokens": 0, "prompt_padding": 0, "output_padding": 0}
    for start in range(0, len(jobs), seats):
        batch = jobs[start : start + seats]
        prompts, outputs = [p for _, p, _ in batch], [o for _, _, o in batch]
        rows = len(batch)
        told["steps"] += max(outputs)
        told["tokens"] += rows * (max(prompts) + max(outputs) - 1)
        told["prompt_padding"] += rows * max(prompts) - sum(prompts)
        told["output_padding"] += rows * max(outputs) - sum(outputs)
    return told


def continuous(jobs: Sequence[Job], seats: int) -> dict[str, int]:
    """Steps and tokens of the same jobs on the scheduler, all there in step 0."""
    config = {"num_gpu_blocks": 1000, "max_num_seqs": seats, "enable_prefix_caching": False}
    result = run(workload(config, *((name, 0, p, o) for name, p, o in jobs)))
    stats = result.scheduler.stats
    return {"steps": stats.num_steps, "tokens": stats.num_scheduled_tokens}


def compare(jobs: Sequence[Any], seats: int) -> None:
    """Print what both ways take for these jobs, [(name, prompt tokens, output tokens), ...]."""
    rows = read_jobs(jobs, "jobs")
    padded, served = static(rows, seats), continuous(rows, seats)
    print("            steps  tokens")
    print(f"static      {padded['steps']:5}  {padded['tokens']:6}")
    print(f"continuous  {served['steps']:5}  {served['tokens']:6}")
    print(f"static takes {padded['steps'] / served['steps']:.2f} times the steps")


def read_jobs(value: object, what: str, *, high: int = 40, longest: int = 200) -> list[Job]:
    """Checked jobs out of a list of (name, prompt tokens, output tokens).

    Raises:
        Failed: saying what is not well-formed.
    """
    jobs: list[Job] = []
    for index, row in enumerate(want_list(value, what, low=1, high=high)):
        where = f"{what}[{index}]"
        name, prompt, output = want_list(
            row, f"{where} (name, prompt tokens, output tokens)", length=3
        )
        jobs.append((
            want_str(name, f"{where}[0], the name"),
            want_int(prompt, f"{where}[1], the prompt tokens", low=1, high=longest),
            want_int(output, f"{where}[2], the output tokens", low=1, high=longest),
        ))  # fmt: skip
    names = [name for name, _, _ in jobs]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise Failed(f"{what} has two jobs named {twice!r}: give each a name of its own.")
    return jobs


# --- a: count both ways ---------------------------------------------------------------------------

SIX: tuple[Job, ...] = (
    ("A", 12, 5),
    ("B", 30, 2),
    ("C", 7, 9),
    ("D", 20, 3),
    ("E", 4, 12),
    ("F", 16, 6),
)
SEATS_OF_SIX = 3
QUESTIONS = {
    "static_steps": "the steps of the static batches",
    "static_tokens": "the tokens that the static batches compute",
    "prompt_padding": "the padding in prompts",
    "output_padding": "the tokens in rows whose answer had ended",
    "continuous_steps": "the steps of the continuous run",
    "continuous_tokens": "the tokens of the continuous run",
}


def counts_of_six() -> dict[str, int]:
    """What part a asks for."""
    padded, served = static(SIX, SEATS_OF_SIX), continuous(SIX, SEATS_OF_SIX)
    return {
        "static_steps": padded["steps"],
        "static_tokens": padded["tokens"],
        "prompt_padding": padded["prompt_padding"],
        "output_padding": padded["output_padding"],
        "continuous_steps": served["steps"],
        "continuous_tokens": served["tokens"],
    }


def _misreads(truth: Mapping[str, int]) -> list[Misread]:
    batches = [SIX[start : start + SEATS_OF_SIX] for start in range(0, len(SIX), SEATS_OF_SIX)]
    rows = len(SIX)

    def ends(wait: int) -> int:
        seats = [0] * SEATS_OF_SIX
        for _, _, output in SIX:
            first = seats.index(min(seats))
            seats[first] += output + wait * (seats[first] > 0)
        return max(seats)

    return [
        Misread(
            "A static batch runs until its longest answer is done, and the next one begins then: "
            "the steps of a batch are those of its longest answer.",
            {
                "static_steps": sum(output for _, _, output in SIX),
            },
            anywhere=True,
        ),
        Misread(
            "Two batches run one after the other: their steps add up.",
            {"static_steps": max(output for _, _, output in SIX)},
            anywhere=True,
        ),
        Misread(
            "The last output token is sampled and never computed: a row of a batch computes its "
            "longest prompt and its longest answer less one.",
            {
                "static_tokens": truth["static_tokens"] + rows,
                "continuous_tokens": truth["continuous_tokens"] + rows,
            },
            anywhere=True,
        ),
        Misread(
            "The first step computes the prompts and gives the first output token already: it is "
            "one of the steps of the longest answer, not one more.",
            {
                "static_steps": truth["static_steps"] + len(batches),
                "continuous_steps": ends(1),
            },
            anywhere=True,
        ),
        Misread(
            "A batch is padded to the longest of its own rows, not to the longest of all requests.",
            {
                "static_tokens": rows * (max(p for _, p, _ in SIX) + max(o for _, _, o in SIX) - 1),
                "prompt_padding": sum(max(p for _, p, _ in SIX) - p for _, p, _ in SIX),
                "output_padding": sum(max(o for _, _, o in SIX) - o for _, _, o in SIX),
            },
            anywhere=True,
        ),
        Misread(
            "In the continuous run a seat that is left in one step is taken in the next. Who comes "
            "in does not wait for the others to end.",
            {"continuous_steps": truth["static_steps"]},
            anywhere=True,
        ),
        Misread(
            "There are three seats, and six requests: half of them wait for a seat first.",
            {"continuous_steps": max(output for _, _, output in SIX)},
            anywhere=True,
        ),
        Misread(
            "The continuous run pads nothing: it computes each request's own prompt and output.",
            {"continuous_tokens": truth["static_tokens"]},
            anywhere=True,
        ),
    ]


def check_counts(value: object) -> None:
    """Part a: `counts`, six numbers."""
    rows = want_dict(value, "counts", keys=QUESTIONS)
    given = {name: want_int(rows[name], f"counts[{name!r}]", low=0) for name in QUESTIONS}
    truth = counts_of_six()
    judge_cells(
        given,
        truth,
        _misreads(truth),
        lambda name: QUESTIONS[name],
        otherwise=(
            "Draw the rectangle of each batch, three rows high: as wide as its longest prompt, and "
            "then as its longest answer less one."
            if any(given[n] != truth[n] for n in list(QUESTIONS)[:4])
            else "Draw a line for each seat, and write into it who sits there in which steps."
        ),
    )


# --- b: which requests belong together ------------------------------------------------------------

EIGHT: tuple[Job, ...] = (
    ("a", 28, 14),
    ("b", 3, 19),
    ("c", 16, 2),
    ("d", 14, 3),
    ("e", 15, 7),
    ("f", 30, 3),
    ("g", 19, 18),
    ("h", 2, 7),
)
SEATS = 4
NAMES = tuple(name for name, _, _ in EIGHT)


def cost(batches: Sequence[Sequence[str]]) -> int:
    """Tokens that these static batches of the eight compute."""
    jobs = {name: (name, prompt, output) for name, prompt, output in EIGHT}
    return sum(static([jobs[name] for name in batch], SEATS)["tokens"] for batch in batches)


def cheapest() -> int:
    """The fewest tokens that any two batches of four compute."""
    first = NAMES[0]
    choices = ([first, *others] for others in combinations(NAMES[1:], SEATS - 1))
    return min(cost([one, [name for name in NAMES if name not in one]]) for one in choices)


def check_batches(value: object) -> None:
    """Part b: `batches`, two lists of four names, as cheap as can be."""
    rows = want_list(value, "batches", length=2)
    given: list[list[str]] = []
    for index, row in enumerate(rows):
        where = f"batches[{index}]"
        names = want_list(row, where, length=SEATS)
        given.append([want_str(name, where, choices=NAMES) for name in names])
    named = [name for batch in given for name in batch]
    if missing := [name for name in NAMES if name not in named]:
        raise Failed(f"Each request is in one batch. In none of yours: {', '.join(missing)}.")
    tokens, fewest = cost(given), cheapest()
    if tokens == fewest:
        return
    prompt, output = ({name: job[i] for name, *job in EIGHT} for i in (0, 1))
    sorted_by = {
        "sorted by prompt": sorted(NAMES, key=lambda n: prompt[n]),
        "sorted by output": sorted(NAMES, key=lambda n: output[n]),
        "sorted by prompt and output together": sorted(NAMES, key=lambda n: prompt[n] + output[n]),
    }
    halves = {frozenset(batch) for batch in given}
    how = next(
        (
            words
            for words, names in sorted_by.items()
            if {frozenset(names[:SEATS]), frozenset(names[SEATS:])} == halves
        ),
        "",
    )
    raise Failed(
        f"These two batches compute {tokens} tokens; there are two that compute fewer. "
        + (
            f"You have them {how}. A batch pays for its longest prompt *and* for its longest "
            f"answer, which need not belong to the same request."
            if how
            else "What does each batch pay for? Its longest prompt and its longest answer. Put "
            "together what is long in either, so that the other batch is short in both."
        )
    )


# --- c: where continuous batching saves most ------------------------------------------------------

MOST_JOBS, LONGEST, FACTOR = 12, 30, 2.5


def check_unequal(value: object) -> None:
    """Part c: `jobs` of which static batches take `FACTOR` times the steps."""
    jobs = read_jobs(value, "jobs", high=MOST_JOBS, longest=LONGEST)
    padded, served = static(jobs, SEATS)["steps"], continuous(jobs, SEATS)["steps"]
    if padded >= FACTOR * served:
        return
    batches = [jobs[start : start + SEATS] for start in range(0, len(jobs), SEATS)]
    longest = [max(output for _, _, output in batch) for batch in batches]
    if len(batches) < 3:
        hint = (
            "With two batches static can take twice the steps at most: the longest answer alone "
            "takes as long as the longer batch. Use more of the twelve."
        )
    elif padded == served or len({output for _, _, output in jobs}) == 1:
        hint = "Equal lengths leave nothing to win. Which length decides how long a batch runs?"
    elif min(longest) < max(longest) / 2:
        hint = (
            f"The batches take {', '.join(map(str, longest))} steps: the short ones waste little. "
            f"What makes a batch long?"
        )
    else:
        hint = (
            "Each batch is long, but the continuous run is long too. What must the other seats "
            "look like, so that the long requests soon run beside each other?"
        )
    raise Failed(
        f"Static batches take {padded} steps and the continuous run {served}, "
        f"{padded / served:.2f} times as many; {FACTOR} times are asked for. {hint}",
        workload=jobs,
        label="Your jobs",
    )


PARTS = (
    Part("x1a", "Count both ways", 4, "counts", "value", check_counts, CHAPTER),
    Part("x1b", "Who belongs together", 3, "batches", "value", check_batches, CHAPTER),
    Part("x1c", "Where it saves most", 3, "jobs", "value", check_unequal, CHAPTER),
)
