"""How fast our products are beside oneDNN's, which PyTorch and vLLM multiply with on a CPU.

python -m benchmarks.kernels --threads 2      prints the rates, as JSON

oneDNN's weights are put in its own order first, as ours are in ours. All matrices of a layer are
multiplied in turn, so no weight is found in a cache that a model would not find it in.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.machine import measure_apart, usable_cores

if TYPE_CHECKING:
    from torch import Tensor

SHAPES = {
    "SmolLM2-135M": ((960, 576), (576, 576), (3072, 576), (576, 1536)),
    "Qwen2.5-0.5B": ((1152, 896), (896, 896), (9728, 896), (896, 4864)),
}
"""Outputs and inputs of a layer's matrices: of queries, keys and values together, of attention's
output, of gate and up together, of down."""
ROWS = (1, 8, 32, 128, 512, 1024)
"""Tokens in a step."""
LEAST_SECONDS = 0.05
"""Of a measurement: shorter ones are noise."""


def measure(threads: int, repeats: int = 5) -> list[dict[str, Any]]:
    """The rates in a process of its own, as `rates` gives them."""
    return list(measure_apart("benchmarks.kernels", threads, f"--repeats={repeats}"))


def rates(
    shapes: Sequence[str], rows: Sequence[int], repeats: int, least_seconds: float = LEAST_SECONDS
) -> list[dict[str, Any]]:
    """Operations a second of ours and of oneDNN in turns; a ratio above 1: ours are faster."""
    import torch

    found = []
    for shape in shapes:
        for precision in precisions():
            layer = Layer(shape, getattr(torch, precision))
            for number in rows:
                ours, theirs = layer.with_rows(number)
                ours(), theirs()
                pairs = [
                    (_seconds(ours, least_seconds), _seconds(theirs, least_seconds))
                    for _ in range(repeats)
                ]
                operations = 2 * number * layer.weights
                found.append({
                    "shape": shape, "precision": precision, "rows": number,
                    "minivllm": operations / min(mine for mine, _ in pairs),
                    "onednn": operations / min(other for _, other in pairs),
                    "ratio": statistics.median(other / mine for mine, other in pairs),
                })  # fmt: skip
    return found


def precisions() -> tuple[str, ...]:
    """Those that oneDNN multiplies in here: bfloat16 asks for AVX-512 or AVX-NE-CONVERT."""
    import torch

    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return ("float32", "bfloat16") if has_bfloat16 else ("float32",)


class Layer:
    """A layer's matrices in both orders, in as many copies as no cache holds."""

    COPIES_MIB = 128

    def __init__(self, shape: str, dtype: Any) -> None:
        import torch

        from minivllm.models.cpu_kernels import load_kernels

        kernels = load_kernels()
        if kernels is None:
            raise SystemExit("no CPU kernels here: they need Linux and a C compiler")
        self.kernels, self.dtype = kernels, dtype
        self.weights = sum(outputs * inputs for outputs, inputs in SHAPES[shape])
        copies = max(2, (self.COPIES_MIB << 20) // (self.weights * dtype.itemsize))
        torch.manual_seed(0)
        self.plain = [
            [torch.randn(size).to(dtype) for size in SHAPES[shape]] for _ in range(copies)
        ]
        self.packed = [[kernels.pack(weight) for weight in layer] for layer in self.plain]

    def with_rows(self, rows: int) -> tuple[Callable[[], list[Tensor]], Callable[[], list[Tensor]]]:
        """What to time: the products of the next copy of the layer, ours and oneDNN's."""
        import torch

        # Ours take activations in float32, whatever the weights are in.
        wide = [torch.randn(rows, weight.shape[1]) for weight in self.plain[0]]
        same = [x.to(self.dtype) for x in wide]
        packed, reordered = self.packed, [
            [_reordered(weight, rows) for weight in layer] for layer in self.plain
        ]  # fmt: skip
        turn = [0, 0]

        def ours() -> list[Tensor]:
            turn[0] = (turn[0] + 1) % len(packed)
            return [self.kernels.linear(x, weight) for x, weight in zip(wide, packed[turn[0]])]

        def theirs() -> list[Tensor]:
            turn[1] = (turn[1] + 1) % len(reordered)
            multiply = torch.ops.mkldnn._linear_pointwise
            return [
                multiply(x, weight, None, "none", [], "")
                for x, weight in zip(same, reordered[turn[1]])
            ]

        return ours, theirs


def _reordered(weight: Tensor, rows: int) -> Tensor:
    """In oneDNN's order for so many rows."""
    import torch

    reordered: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return reordered


def _seconds(call: Callable[[], object], least: float) -> float:
    """Of one call, over as many as it takes."""
    count, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < least:
        call()
        count += 1
    return passed / count


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Our products' rate beside oneDNN's.")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    print(json.dumps(rates(list(SHAPES), ROWS, options.repeats)))


if __name__ == "__main__":
    main()
