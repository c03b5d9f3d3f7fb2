"""Every tool that an exercise hands to its reader does what it is asked, not one fixed thing.

Each is called with two different arguments as its notebook offers it, and what comes out must
differ as it should. A notebook with a helper that is not tried here fails.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minivllm.grading.judge import exercises

ROOT = Path(__file__).resolve().parents[1]
CHILD = Path(__file__).with_name("notebook_helpers_child.py")


@dataclass
class Out:
    """What a call returned, and what it printed."""

    value: Any
    said: str

    @property
    def lines(self) -> int:
        return len(self.said.splitlines())


@dataclass
class Try:
    """Two calls of a helper, and what shall hold of what comes out."""

    one: str
    other: str
    should: Callable[[Out, Out], bool]


QUEUE = "('r0', 0, 14, 3), ('r1', 1, 18, 3), ('r2', 1, 5, 3), num_gpu_blocks=8"
LATE = "('r0', 0, 6, 4), ('r1', 1, 9, 2), max_num_batched_tokens=12"
SHOW_RUN = Try(
    "show_run(load(('r0', 0, 13, 3), max_num_batched_tokens=8))",
    "show_run(load(('r0', 0, 13, 3), max_num_batched_tokens=2))",
    lambda a, b: b.lines == a.lines + 5,  # 13 tokens in 7 steps, not in 2
)


def differs(a: Out, b: Out) -> bool:
    return True  # is asserted of each


def under(scheduler: str, workload: str) -> Try:
    """A scheduler of the exercise's beside the real one, on a workload that tells them apart."""
    return Try(f"show_run({workload}, {scheduler})", f"show_run({workload})", differs)


def loop_of(scheduler: str, row: str) -> Try:
    """The judge's loop: more blocks, fewer steps."""
    run = "len(loop.run({}, {{'config': {{'num_gpu_blocks': {}, 'block_size': 4, {}}}, 'requests': "
    run += "[{} for i in range(3)]}})['steps'])"
    knobs = "'enable_prefix_caching': False, 'policy': 'priority'"
    return Try(
        run.format(scheduler, 8, knobs, row),
        run.format(scheduler, 64, knobs, row),
        lambda a, b: a.value > b.value,
    )


def share(out: Out, metric: str) -> float:
    """The change that `show` prints for a metric, in percent."""
    found = re.search(rf"{metric}: .*, ([+-][\d.]+)%", out.said)
    assert found, out.said
    return float(found[1])


TRIES: dict[str, dict[str, Try]] = {
    "01_two_numbers": {
        "show_run": SHOW_RUN,
        "DECODES_WAIT": under("DECODES_WAIT", "answer('01d', 'exposed')"),
        "PROMPTS_WAIT": under("PROMPTS_WAIT", "answer('01d', 'exposed')"),
    },
    "02_running_first": {
        "show_run": SHOW_RUN,
        "WaitingFirst": under("WaitingFirst", f"load({LATE})"),
    },
    "03_three_conditions": {
        "show_run": SHOW_RUN,
        "door_at": Try(
            f"vars(door_at(load({QUEUE}), 1)[1])",
            "vars(door_at(load(('r0', 0, 9, 4), ('r1', 0, 9, 4), max_num_seqs=1), 1)[1])",
            lambda a, b: (
                [name for name, holds in a.value["holds"].items() if not holds] == ["blocks"]
                and [name for name, holds in b.value["holds"].items() if not holds] == ["seats"]
            ),
        ),
    },
    "04_the_clamp": {"show_run": SHOW_RUN},
    "05_preemption_loop": {
        "show_state": Try(
            "show_state(TWO_YIELD, TWO_YIELD_STEP)",
            "show_state(ITSELF, ITSELF_STEP)",
            lambda a, b: "32" in a.said and "32" not in b.said,  # r0's prompt
        ),
        "show_faulty": Try(
            "show_faulty('F', answer('05d', 'faults'))",
            "show_faulty('real', answer('05d', 'faults'))",
            differs,
        ),
    },
    "06_stop_or_retry": {
        "show_run": SHOW_RUN,
        "PassesOver": under("PassesOver", f"load({QUEUE})"),
        "AdmissionPreempts": under("AdmissionPreempts", f"load({QUEUE})"),
        "GIVES_UP": under("GIVES_UP", "answer('06c', 'stuck')"),
        "ALWAYS_ADMITS": under("ALWAYS_ADMITS", "answer('06e', 'guard')"),
    },
    "07_priority": {
        "Reference": Try(
            *(
                "loop.run(Reference, {'config': {'policy': 'priority', 'num_gpu_blocks': 8, "
                "'block_size': 4, 'max_num_seqs': 1}, 'requests': [row('r0', 0, 3, 3, "
                f"{first}), row('r1', 0, 3, 3, {second})]}})['steps'][0]['scheduled']"
                for first, second in ((0, 1), (1, 0))
            ),
            lambda a, b: (a.value, b.value) == ([["r0", 3]], [["r1", 3]]),
        ),
        "loop": loop_of("Reference", "row(f'r{i}', i, 9, 9, i)"),
        "row": Try(
            "row('r0', 0, 9, 8, 2)",
            "row('r1', 1, 7, 6, 0)",
            lambda a, b: (
                [len(v) if isinstance(v, list) else v for v in b.value.values()]
                == ["r1", 1, 7, 6, 0]
            ),
        ),
    },
    "08_stats": {
        "show_run": Try("show_run(SHORT)", f"show_run(load({LATE}))", differs),
        "run": Try(
            "len(run(Nobody(), [(0, tokens(0, 9), 3)], num_gpu_blocks=8))",
            "len(run(Nobody(), [(0, tokens(0, 9), 3)], num_gpu_blocks=8, "
            "max_num_batched_tokens=2))",
            lambda a, b: (a.value, b.value) == (3, 7),
        ),
        "tokens": Try(
            "tokens(0, 3)",
            "tokens(100, 2)",
            lambda a, b: (a.value, b.value) == ([0, 1, 2], [100, 101]),
        ),
    },
    "09_swap": {
        "loop": loop_of("answer('09a', 'SwappingScheduler')", "row(f'r{i}', i, 9, 9)"),
        "ToyModel": Try(
            *(
                "loop.run(Recomputing, {'config': {'num_gpu_blocks': 16, 'block_size': 4}, "
                f"'requests': [row('r0', 0, {prompt}, 3)]}}, execute=ToyModel(4).execute)"
                "['outputs']['r0']['token_ids']"
                for prompt in (9, 10)
            ),
            lambda a, b: len(a.value) == len(b.value) == 3,
        ),
        "row": Try(
            "row('r0', 0, 9, 8)",
            "row('r1', 1, 7, 6)",
            lambda a, b: (
                [len(v) if isinstance(v, list) else v for v in b.value.values()] == ["r1", 1, 7, 6]
            ),
        ),
    },
    "10_budget_and_threshold": {
        "serve": Try(
            "serve(2048, 0, seed=1)",
            "serve(512, 0, 1)",
            lambda a, b: b.value["chat_itl_p99"] < a.value["chat_itl_p99"] / 2,
        ),
    },
    "11_frequent_preemptions": {
        "run": Try(
            "run(4).stats['num_preemptions']",
            "run(4, max_num_seqs=64).stats['num_preemptions']",
            lambda a, b: a.value > 50 > b.value,
        ),
        "preemptions": Try(
            "preemptions(run(4))",
            "preemptions(run(4, max_num_seqs=64))",
            lambda a, b: a.value > 0.1 and b.value < 0.01,
        ),
        "report": Try(
            "report()",
            "report(seed=1, tensor_parallel_size=2)",
            lambda a, b: "seed 4 as it is" in a.said and "seed 1 {'tensor_par" in b.said,
        ),
        "compare": Try(
            "compare(max_num_seqs=48)['p50_ttft']",
            "compare(tensor_parallel_size=2)['p50_ttft']",
            lambda a, b: a.value[0] == b.value[0] and a.value[1] > 2 * a.value[0] > b.value[1],
        ),
        "show": Try(
            "show(max_num_seqs=48)",
            "show(tensor_parallel_size=2)",
            lambda a, b: (
                share(a, "p50_ttft") > 100
                and share(a, "output_throughput") < -3
                and share(b, "p50_ttft") < -50
                and share(b, "output_throughput") > 3
            ),
        ),
    },
    "12_littles_law": {
        "measured": Try(
            "measured(24)",
            "measured(72)",
            lambda a, b: (
                a.value["requests_per_second"] < b.value["requests_per_second"]
                and a.value["mean_queue_time"] > b.value["mean_queue_time"]
            ),
        ),
        "try_cap": Try(
            "try_cap(40, seed=1)",
            "try_cap(80, seed=1)",
            lambda a, b: a.value["tpot"] < b.value["tpot"] and a.value["ttft"] > b.value["ttft"],
        ),
    },
    "13_never_fits": {
        "loop": loop_of("answer('13b', 'AdmittingScheduler')", "row(f'r{i}', 9, 9)"),
        "row": Try(
            "row('r0', 9, 8)",
            "row('r1', 7, 6)",
            lambda a, b: (
                [len(v) if isinstance(v, list) else v for v in b.value.values()] == ["r1", 7, 6]
            ),
        ),
    },
    "x1_static_batches": {
        "compare": Try(
            "compare([('a', 3, 9), ('b', 3, 1)], 1)",
            "compare([('a', 3, 9), ('b', 3, 1)], 2)",
            lambda a, b: "static         10" in a.said and "static          9" in b.said,
        ),
    },
    "x2_slots_and_counts": {},
    "x3_turn_the_claim": {
        "show_run": Try(
            "show_run(answer('x3b', 'turned'))",
            "show_run(answer('x3c', 'idle'))",
            lambda a, b: "preempted" in a.said and "preempted" not in b.said,
        ),
        "compare_victims": Try(
            "compare_victims(answer('x3a', 'who_pays'))",
            "compare_victims(answer('x3b', 'turned'))",
            lambda a, b: again(a)[0] > again(a)[1] and again(b)[0] < again(b)[1],
        ),
        "compare_check": Try(
            "compare_check(answer('x3c', 'idle'))",
            "compare_check(answer('x3b', 'turned'))",
            lambda a, b: (
                a.said.split("on ")[1].split()[:2] == ["8", "0"]
                and a.said.split("off ")[1].split()[:2] == ["7", "0"]
                and b.said.split("on ")[1].split()[1] != "0"
            ),
        ),
    },
}


def again(out: Out) -> list[int]:
    """The column "computed again" of `compare_victims`."""
    return [int(line.split()[3]) for line in out.said.splitlines()[1:]]


@pytest.mark.parametrize("name", exercises())
def test_each_helper_tells_two_arguments_apart(name: str) -> None:
    tries = TRIES[name]
    calls = [call for one in tries.values() for call in (one.one, one.other)]
    done = subprocess.run(
        [sys.executable, str(CHILD), str(ROOT / "solutions" / f"{name}.ipynb")],
        input=json.dumps(calls),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told["helpers"]) == set(tries), "each helper is tried, and nothing else"
    outs = [Out(**result) for result in told["results"]]
    for (helper, one), a, b in zip(tries.items(), outs[::2], outs[1::2], strict=True):
        assert (a.value, a.said) != (b.value, b.said), f"{helper} says the same twice: {a}"
        assert one.should(a, b), f"{helper}: {a} and {b}"
