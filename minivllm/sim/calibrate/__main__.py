"""The calibration on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import minivllm.sim.calibrate as package
from minivllm.sim.calibrate import CLOCKS, Reference, calibrate, make_engine


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: see the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m minivllm.sim.calibrate", description=package.__doc__
    )
    parser.add_argument("--out", type=Path, help="write the calibration here, as JSON")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads that torch may use")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="cpu", help="what a second is")
    parser.add_argument(
        "--no-pace", action="store_false", dest="pace",
        help="take seconds as they are, on a machine that does nothing else",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    engine = make_engine(num_threads=options.threads)
    result = calibrate(
        engine,
        title="smollm2-135m on a CPU, fitted",
        clock=options.clock,
        reference=Reference(options.clock) if options.pace else None,
    )
    print(result.table())
    print("\n" + "\n".join(f"{key:<28}{value:>12.4f}" for key, value in result.cost.error.items()))
    if options.out:
        result.save(options.out)


if __name__ == "__main__":
    main()
