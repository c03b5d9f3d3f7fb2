"""The simulator on the command line: see `python -m minivllm.sim --help`."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from minivllm.core.config import POLICIES, PREEMPTION_MODES
from minivllm.core.victim import VICTIM_POLICIES
from minivllm.extras import extra
from minivllm.sim.config import SimulationConfig
from minivllm.sim.cost import FittedCost
from minivllm.sim.handover import llm_arguments, vllm_bench, vllm_serve
from minivllm.sim.hardware import HARDWARE
from minivllm.sim.lengths import Constant
from minivllm.sim.measured import BenchResult, comparison_table, read_bench, side_by_side
from minivllm.sim.models import MODELS
from minivllm.sim.results import SLO, SimResult, merge_rows
from minivllm.sim.sweep import SweepError, pareto_front, sweep
from minivllm.sim.trace import Trace
from minivllm.sim.trace_formats import FORMATS, SHAREGPT, split_name
from minivllm.sim.workload import MIXES, ClosedLoop, Mix, OpenLoop, Workload

PROG = "python -m minivllm.sim"

DESCRIPTION = "Simulate an LLM server: the real scheduler, with a cost model in place of the GPU."

EPILOG = f"""\
examples:
  {PROG} --model llama-3-8b --gpu h100 --rate 20 --mix chat90-doc10 --budget 2048 --threshold 512
  {PROG} --gpu a100-80 --users 64 --prompt-len 500 --output-len 200 --report run.html
  {PROG} --rate 20 --vllm                         the same configuration for a real server
  {PROG} --measured result.json                   beside what `vllm bench serve` measured
  {PROG} --sweep rate=5,10,20 --sweep budget=512,2048 --out sweep.csv --pareto output_throughput,p99_ttft

exit status: 0 done; 1 it ran and failed; 2 what was asked for makes no sense.
"""  # noqa: E501

DEFAULT_MIX = "chat"
DEFAULT_RATE = 10.0
DEFAULT_DURATION = 120.0
DEFAULT_PARETO = "output_throughput,p99_ttft"

KNOB_OPTIONS = (
    "max_num_batched_tokens", "long_prefill_token_threshold", "max_num_seqs", "max_model_len",
    "num_gpu_blocks", "block_size", "policy", "preemption_mode", "num_cpu_blocks", "victim",
    "enable_prefix_caching", "enable_chunked_prefill", "reserve_full_prompt",
)  # fmt: skip
"""Options that are the scheduler's knobs; not given: the knob's default."""


def make_parser(prog: str = PROG) -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog=prog, description=DESCRIPTION, epilog=EPILOG.replace(PROG, prog), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.set_defaults(prog=prog)
    # fmt: off
    add = parser.add_argument_group("model and machine").add_argument
    add("--model", default="llama-3-8b", metavar="NAME", help=", ".join(MODELS))
    add("--gpu", default="h100", metavar="NAME", help=", ".join(HARDWARE))
    add("--tp", type=int, default=1, dest="tensor_parallel", metavar="N",
        help="GPUs that share the model (default 1)")
    add("--gpu-memory-utilization", type=float, default=0.92, metavar="SHARE", help="default 0.92")
    add("--cost", type=Path, metavar="FILE",
        help="step times from a file of minivllm.sim.calibrate, not from the roofline")

    add = parser.add_argument_group("traffic").add_argument
    add("--mix", metavar="NAME", help=f"{', '.join(MIXES)} (default {DEFAULT_MIX})")
    add("--prompt-len", type=int, metavar="TOKENS", help="every prompt this long, instead of a mix")
    add("--output-len", type=int, metavar="TOKENS", help="every output this long, likewise")
    add("--rate", type=float, help=f"requests a second, Poisson (default {DEFAULT_RATE:g})")
    add("--burstiness", type=float, help="1: Poisson; less: in bursts; more: smoother")
    add("--users", type=int, metavar="N", help="a closed loop instead of a rate")
    add("--think-time", type=float, metavar="S", help="of a user between answer and next question")
    add("--duration", type=float, metavar="S",
        help=f"seconds of arrivals (default {DEFAULT_DURATION:g}, unless --num-requests is given)")
    add("--num-requests", type=int, metavar="N", help="how many arrive in all")
    add("--trace", metavar="[FORM:]FILE",
        help=".csv or .jsonl with arrival, prompt_len, output_len, and if you like kind, "
             "priority, prefix_group, prefix_len; or as published, told by the columns or named: "
             f"{', '.join([*FORMATS, SHAREGPT][1:])} (conversations: --rate says when they arrive)")
    add("--seed", type=int, default=0, help="of the traffic (default 0)")
    add("--until", type=float, metavar="S", help="stop the clock here, whoever is in flight")
    add("--count-refused", action="store_true",
        help="go on when a request can never fit, and count it")

    add = parser.add_argument_group("scheduler (vLLM's names and defaults)").add_argument
    add("--budget", type=int, dest="max_num_batched_tokens", metavar="TOKENS",
        help="max_num_batched_tokens: tokens in a step")
    add("--threshold", type=int, dest="long_prefill_token_threshold", metavar="TOKENS",
        help="long_prefill_token_threshold: of one request in a step")
    add("--max-num-seqs", type=int, metavar="N", help="requests in a step (default 256)")
    add("--max-model-len", type=int, metavar="TOKENS", help="longest sequence")
    add("--num-gpu-blocks", type=int, metavar="N", help="KV cache (default: what the memory holds)")
    add("--block-size", type=int, metavar="TOKENS", help="default 16")
    add("--policy", choices=POLICIES)
    add("--preemption-mode", choices=PREEMPTION_MODES)
    add("--num-cpu-blocks", type=int, metavar="N", help="room for swapped blocks")
    add("--victim", choices=tuple(VICTIM_POLICIES))
    add("--prefix-caching", action=argparse.BooleanOptionalAction, dest="enable_prefix_caching")
    add("--chunked-prefill", action=argparse.BooleanOptionalAction, dest="enable_chunked_prefill")
    add("--reserve-full-prompt", action=argparse.BooleanOptionalAction)

    add = parser.add_argument_group("what comes out").add_argument
    add("--slo", metavar="M=S,...", help="seconds at most, e.g. ttft=1,tpot=0.05: adds goodput")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--report", type=Path, metavar="PAGE.html", help="write a page that needs no network")
    add("--measured", type=Path, metavar="FILE",
        help="result of `vllm bench serve --save-result`, to lay beside; its requests are "
             "replayed, as nearly as it tells them (--save-detailed)")
    add("--result", type=int, metavar="N",
        help="which of several results in that file, from 1 (default: the last)")
    add("--vllm", action="store_true", help="print the configuration for vLLM; simulate nothing")

    add = parser.add_argument_group("many runs").add_argument
    add("--sweep", action="append", default=[], metavar="NAME=V,V,...",
        help="try several values of a knob or of the traffic; repeat it for a grid")
    add("--out", type=Path, metavar="FILE",
        help=".csv or .parquet; what it holds already is not run again")
    add("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    add("--cluster", metavar="ADDRESS",
        help="run it on a Dask cluster: its scheduler's, such as tcp://host:8786")
    add("--pareto", metavar="X,Y",
        help=f"columns; the front has most of X and least of Y (default {DEFAULT_PARETO})")
    # fmt: on
    return parser


def parse_slo(text: str | None) -> SLO | None:
    """`ttft=1,tpot=0.05` as an `SLO`.

    Raises:
        ValueError: on an unknown metric, or a limit that is no positive number.
    """
    if text is None:
        return None
    limits: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in SLO.__dataclass_fields__:
            known = ", ".join(SLO.__dataclass_fields__)
            raise ValueError(f"--slo: {name!r} is not known; known are {known}")
        try:
            limits[name] = float(value)
        except ValueError:
            raise ValueError(f"--slo: {name} must be seconds, got {value!r}") from None
    return SLO(**limits)


def parse_grid(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`["rate=5,10", "policy=fcfs"]` as a grid for `sweep`.

    Raises:
        ValueError: if a text is not of this form, or names what was named before.
    """
    grid: dict[str, list[Any]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not name or not all(value.strip() for value in values.split(",")):
            raise ValueError(f"--sweep {text!r}: must be NAME=VALUE,VALUE,...")
        if name in grid:
            raise ValueError(f"--sweep {name}: given twice")
        grid[name] = [_value(value.strip()) for value in values.split(",")]
    return grid


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        number = float(text)
    except ValueError:
        return text
    return int(text) if text.lstrip("+-").isdigit() else number


SWEEP_OPTIONS = ("out", "workers", "cluster", "pareto")
TRAFFIC_OPTIONS = ("trace", "mix", "rate", "burstiness", "users", "think_time", "duration",
                   "num_requests", "prompt_len", "output_len")  # fmt: skip


def make_workload(options: argparse.Namespace) -> Workload:
    """The traffic that the options describe.

    Raises:
        ValueError: on options that contradict each other, or are out of range.
    """
    given = vars(options)
    open_only = ("rate", "burstiness")
    loop = (
        *open_only,
        "users",
        "think_time",
        "duration",
        "num_requests",
        "prompt_len",
        "output_len",
    )
    clashes = {"trace": loop, "users": open_only, "rate": ("think_time",)}
    if options.trace is not None and _has_no_times(options.trace):
        clashes["trace"] = tuple(name for name in loop if name not in open_only)
    for name, others in clashes.items():
        for other in others:
            if given[name] is not None and given[other] is not None:
                raise ValueError(f"{_option(other)} means nothing with {_option(name)}")
    if options.think_time is not None and options.users is None:
        raise ValueError("--think-time means nothing without --users")
    if options.trace is not None:
        trace = Trace.load(options.trace)
        if options.rate is not None:
            trace = trace.at_rate(options.rate, options.burstiness or 1.0, options.seed)
        return trace
    mix: str | Mix = options.mix or DEFAULT_MIX
    if options.prompt_len is not None or options.output_len is not None:
        if options.prompt_len is None or options.output_len is None:
            raise ValueError("--prompt-len and --output-len must be given together")
        try:
            prompt, output = Constant(options.prompt_len), Constant(options.output_len)
        except ValueError as error:
            raise ValueError(f"--prompt-len, --output-len: {error}") from None
        mix = Mix.of(f"{options.prompt_len}+{options.output_len}", prompt, output)
    duration = options.duration
    if duration is None and options.num_requests is None:
        duration = DEFAULT_DURATION
    if options.users is not None:
        think_time = options.think_time or 0.0
        return ClosedLoop(mix, options.users, think_time, duration, options.num_requests)
    rate = DEFAULT_RATE if options.rate is None else options.rate
    burstiness = 1.0 if options.burstiness is None else options.burstiness
    return OpenLoop(mix, rate, duration, options.num_requests, burstiness)


def _has_no_times(trace: str) -> bool:
    """Whether it is a file of conversations, by its name."""
    name, path = split_name(trace)
    return name == SHAREGPT or (name is None and ".json" in path.suffixes)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def simulation_config(options: argparse.Namespace, workload: Workload) -> SimulationConfig:
    """What the options describe, with this traffic.

    Raises:
        ValueError: naming what is wrong.
    """
    return SimulationConfig(
        workload,
        options.model,
        options.gpu,
        options.tensor_parallel,
        {name: value for name in KNOB_OPTIONS if (value := getattr(options, name)) is not None},
        options.gpu_memory_utilization,
        options.seed,
        None if options.cost is None else FittedCost.load(options.cost),
        options.until,
    )


def run_once(options: argparse.Namespace) -> None:
    """Simulate one setup, and print it."""
    slo = parse_slo(options.slo)
    measured = None
    if options.measured is not None:
        measured = read_bench(options.measured, options.result)
    elif options.result is not None:
        raise ValueError("--result means nothing without --measured")
    workload, notes = choose_traffic(options, measured)
    setup = simulation_config(options, workload)
    for note in notes:
        _say(options, note)
    if options.vllm:
        parts = [vllm_serve(setup), llm_arguments(setup)]
        if not isinstance(workload, Trace):
            parts.insert(1, vllm_bench(setup))
        print("\n\n".join(parts).rstrip())
        return
    _check_report(options.report)
    result = setup.run(on_refused="count" if options.count_refused else "raise")
    comparison = None
    if measured is not None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            comparison = side_by_side(result, measured)
        for warning in caught:
            notes.append(str(warning.message))
            _say(options, notes[-1])
    if options.report is not None:
        report = _report_module()
        report.save_report(report.run_report(setup, result, slo, comparison, notes), options.report)
    if options.json:
        data = {**result.to_dict(records=False), "scenario": setup.to_dict()}
        data["summary"] = result.summary(slo)
        if comparison is not None:
            data["comparison"] = comparison
        if notes:
            data["notes"] = notes
        print(json.dumps(without_nan(data), indent=2))
    else:
        print(text(setup, result, slo, comparison))


def choose_traffic(
    options: argparse.Namespace, measured: BenchResult | None
) -> tuple[Workload, list[str]]:
    """The measured run's requests, if the file tells them apart; else what the options describe;
    if they describe nothing, as many requests of the measured mean lengths. And what to say about
    it.

    Raises:
        ValueError: as for `make_workload`.
    """
    given = [_option(name) for name in TRAFFIC_OPTIONS if getattr(options, name) is not None]
    workload: Workload
    notes: list[str] = []
    if measured is not None:
        notes += measured.notes
        named = f"{measured.name}: {', '.join(given)}"
        if measured.has_requests or not given:
            try:
                workload = measured.traffic(options.seed)
            except ValueError as error:
                workload = make_workload(options)
                notes.append(f"{error} Simulated is {_describe(workload)} instead")
            else:
                if given:
                    notes.append(f"{named}: not used, its own requests are replayed")
        else:
            workload = make_workload(options)
            notes.append(f"{named}: what is simulated, since the file does not tell requests apart")
    else:
        workload = make_workload(options)
    if isinstance(workload, Trace):
        notes += workload.notes
    return workload, notes


def _describe(workload: Workload) -> str:
    return ", ".join(
        f"{name} {value}"
        for name, value in workload.to_dict().items()
        if value is not None and name != "kind"
    )


def _say(options: argparse.Namespace, note: str) -> None:
    print(f"{options.prog}: note: {note}", file=sys.stderr)


def text(
    setup: SimulationConfig,
    result: SimResult,
    slo: SLO | None,
    comparison: Sequence[dict[str, Any]] | None,
) -> str:
    """A run for people: what was simulated, the table, Little's Law, the measured run beside it."""
    config = setup.config()
    cost = setup.cost or setup.roofline()
    lines = [
        f"{cost.name}; budget {config.max_num_batched_tokens}, threshold "
        f"{config.long_prefill_token_threshold}, up to {config.max_num_seqs} requests, "
        f"{config.num_gpu_blocks:,} blocks of {config.block_size}",
        f"traffic: {_describe(setup.workload)}, seed {setup.seed}",
        result.table(slo),
    ]
    try:
        law = result.littles_law()
    except ValueError:  # too short a run to cut a window out of
        pass
    else:
        verdict = "holds" if law.holds else "no steady state, so it need not hold"
        lines.append(
            f"\nLittle's Law: L = {law.L:.2f}, λ·W = {law.lam:.2f}/s · {law.W:.2f} s = "
            f"{law.lam * law.W:.2f} (± {max(law.half_width, 0.01 * law.L):.2f}): {verdict}"
        )
    if comparison is not None:
        lines += ["", comparison_table(comparison)]
    return "\n".join(lines)


def run_sweep(options: argparse.Namespace) -> None:
    """Simulate a grid, and print its rows."""
    if options.vllm or options.measured is not None:
        raise ValueError("--vllm and --measured are for one run, --sweep is for many")
    grid = parse_grid(options.sweep)
    slo = parse_slo(options.slo)
    x, y = _pareto_columns(options.pareto or DEFAULT_PARETO)
    _check_report(options.report)
    workload, notes = choose_traffic(options, None)
    for note in notes:
        _say(options, note)
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    with ExitStack() as stack:
        executor: Executor | None = None
        if options.cluster is not None:
            if options.workers is not None:
                raise ValueError("--workers means nothing with --cluster, which has its own")
            with extra("cluster", "--cluster"):
                distributed = import_module("distributed")
            executor = stack.enter_context(distributed.Client(options.cluster)).get_executor()
        elif options.workers is not None:
            executor = stack.enter_context(ProcessPoolExecutor(options.workers))
        rows = sweep(
            grid, workload, base=simulation_config(options, workload), slo=slo, executor=executor,
            path=options.out, on_refused="count" if options.count_refused else "raise",
            progress=sys.stderr.isatty(),
        )  # fmt: skip
    front = pareto_front(rows, x, y)
    if options.report is not None:
        report = _report_module()
        report.save_report(report.sweep_report(rows, x, y, list(grid)), options.report)
    if options.json:
        print(json.dumps(without_nan(rows), indent=2))
    else:
        print(sweep_table(rows, list(grid), x, y, front))


def _pareto_columns(text: str) -> tuple[str, str]:
    x, comma, y = text.partition(",")
    if not (x and comma and y) or "," in y:
        raise ValueError(f"--pareto {text!r}: must be two columns, X,Y")
    return x, y


def sweep_table(
    rows: Sequence[dict[str, Any]],
    names: Sequence[str],
    x: str,
    y: str,
    front: Sequence[dict[str, Any]],
) -> str:
    """A sweep for people: the grid's names, the main columns, a star on the Pareto front."""
    shown = ["request_throughput", "output_throughput", "mean_ttft", "p99_ttft", "mean_itl",
             "p99_itl", "num_preemptions", "goodput", x, y]  # fmt: skip
    known = merge_rows(rows)
    columns = list(dict.fromkeys([*names, *(column for column in shown if column in known)]))
    table = [columns] + [[_short(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    on_front = {id(row) for row in front}
    marks = [" ", *("*" if id(row) in on_front else " " for row in rows)]
    lines = [
        mark + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for mark, line in zip(marks, table, strict=True)
    ]
    return "\n".join([*lines, f"* on the Pareto front: most {x}, least {y}"])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _check_report(path: Path | None) -> None:
    """Fail before a long run, not after it."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise ValueError(f"--report {path}: there is no directory {path.parent}")
    _report_module()


def _report_module() -> ModuleType:
    """The only part that needs more than the standard library."""
    try:
        with extra("sim", "--report"):
            return import_module("minivllm.sim.report")
    except ImportError as error:
        raise ValueError(str(error)) from None


def without_nan(data: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(data, dict):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def main(arguments: Sequence[str] | None = None, prog: str = PROG) -> int:
    """The command line, under the name `prog`.

    Returns:
        The exit status: 0, 1 if a run failed, 2 if what was asked for makes no sense.
    """
    options = make_parser(prog).parse_args(arguments)
    try:
        if options.sweep:
            run_sweep(options)
        else:
            if any(getattr(options, name) is not None for name in SWEEP_OPTIONS):
                named = ", ".join(map(_option, SWEEP_OPTIONS[:-1]))
                last = _option(SWEEP_OPTIONS[-1])
                raise ValueError(f"{named} and {last} mean nothing without --sweep")
            run_once(options)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 0
    except KeyboardInterrupt:
        return 130
    except (SweepError, RuntimeError) as error:
        return _fail(prog, error, 1)
    except (ValueError, OSError) as error:
        return _fail(prog, error, 2)
    return 0


def _fail(prog: str, error: Exception, status: int) -> int:
    message = " ".join(str(error).split())
    print(f"{prog}: error: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
