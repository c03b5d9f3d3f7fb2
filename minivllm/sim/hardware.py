"""Hardware as the cost model sees it: how fast it multiplies, how fast it reads, how much it holds.

Peak numbers are the data sheets'. What a kernel reaches of them, and what a step costs besides
kernels, no data sheet says: `flops_efficiency`, `bandwidth_efficiency`, `step_overhead` and the
latencies are assumptions, round numbers in the range that serving engines report. Change them with
`dataclasses.replace`, or fit a cost model to measured steps (`minivllm.sim.calibrate`).
"""

from __future__ import annotations

from dataclasses import dataclass

from minivllm.core.config import check_int
from minivllm.sim.checks import check_number, lookup

GIB = 1 << 30


@dataclass(frozen=True)
class HardwareSpec:
    """One accelerator, or one CPU.

    Raises:
        ValueError: naming the number that is out of range.
    """

    name: str
    title: str
    peak_flops: float
    """Dense FLOP/s at 16 bits (data sheets also print twice that, for sparse matrices)."""
    memory_bandwidth: float
    """Bytes/s between the chip and its memory."""
    memory_bytes: float
    pcie_bandwidth: float
    """Bytes/s to the host's memory, in one direction: half of what data sheets print."""
    link_bandwidth: float
    """Bytes/s to other GPUs, in one direction."""
    source: str
    flops_efficiency: float = 0.6
    """Share of the peak that large matrix products reach."""
    bandwidth_efficiency: float = 0.8
    """Share of the bandwidth that reading weights and cache reaches."""
    step_overhead: float = 1.5e-3
    """Seconds of a step that are no kernel's: scheduling, launching, sampling, detokenising."""
    link_latency: float = 10e-6
    """Seconds of an all-reduce of nothing."""
    copy_latency: float = 5e-6
    """Seconds to start one copy between host and device: small copies never see the bandwidth."""
    bytes_per_value: int = 2
    """Of a weight, a key or a value: 2 for bfloat16, 4 for float32."""

    def __post_init__(self) -> None:
        for name in ("peak_flops", "memory_bandwidth", "memory_bytes", "pcie_bandwidth",
                     "link_bandwidth"):  # fmt: skip
            check_number(name, getattr(self, name), above=0)
        for name in ("flops_efficiency", "bandwidth_efficiency"):
            check_number(name, getattr(self, name), above=0, most=1)
        for name in ("step_overhead", "link_latency", "copy_latency"):
            check_number(name, getattr(self, name), least=0)
        check_int("bytes_per_value", self.bytes_per_value, 1)


HARDWARE: dict[str, HardwareSpec] = {
    spec.name: spec
    for spec in (
        HardwareSpec(
            "a10", "NVIDIA A10", 125e12, 600e9, 24e9, 32e9, 32e9,
            "NVIDIA A10 Tensor Core GPU data sheet: 125 TFLOPS BF16, 600 GB/s, 24 GB GDDR6, "
            "PCIe Gen4 64 GB/s (both directions), no NVLink",
        ),
        HardwareSpec(
            "l4", "NVIDIA L4", 121e12, 300e9, 24e9, 32e9, 32e9,
            "NVIDIA L4 Tensor Core GPU data sheet: 242 TFLOPS BF16 with sparsity, so 121 dense, "
            "300 GB/s, 24 GB GDDR6, PCIe Gen4 64 GB/s (both directions), no NVLink",
        ),
        HardwareSpec(
            "a100-40", "NVIDIA A100 40 GB SXM", 312e12, 1555e9, 40e9, 32e9, 300e9,
            "NVIDIA A100 Tensor Core GPU data sheet: 312 TFLOPS BF16, 1,555 GB/s, 40 GB HBM2, "
            "PCIe Gen4 64 GB/s and NVLink 600 GB/s (both directions)",
        ),
        HardwareSpec(
            "a100-80", "NVIDIA A100 80 GB SXM", 312e12, 2039e9, 80e9, 32e9, 300e9,
            "NVIDIA A100 80GB Tensor Core GPU data sheet: 312 TFLOPS BF16, 2,039 GB/s, 80 GB "
            "HBM2e, PCIe Gen4 64 GB/s and NVLink 600 GB/s (both directions)",
        ),
        HardwareSpec(
            "h100", "NVIDIA H100 SXM", 989.5e12, 3.35e12, 80e9, 64e9, 450e9,
            "NVIDIA H100 Tensor Core GPU data sheet, SXM: 1,979 TFLOPS BF16 with sparsity, so "
            "989.5 dense, 3.35 TB/s, 80 GB HBM3, PCIe Gen5 128 GB/s and NVLink 900 GB/s (both "
            "directions)",
        ),
        HardwareSpec(
            "h200", "NVIDIA H200 SXM", 989.5e12, 4.8e12, 141e9, 64e9, 450e9,
            "NVIDIA H200 Tensor Core GPU data sheet, SXM: 1,979 TFLOPS BF16 with sparsity, so "
            "989.5 dense, 4.8 TB/s, 141 GB HBM3e, PCIe Gen5 128 GB/s and NVLink 900 GB/s (both "
            "directions)",
        ),
        HardwareSpec(
            "cpu", "two cores of a server CPU (measured)", 0.24e12, 24e9, 4 * GIB, 24e9, 24e9,
            "measured with minivllm.sim.calibrate.measure_host(): float32 matrix product and copy",
            flops_efficiency=0.7, bandwidth_efficiency=0.8, step_overhead=4e-3, bytes_per_value=4,
        ),
    )
}  # fmt: skip
"""Every machine that can be named."""


def get_hardware(name: str | HardwareSpec) -> HardwareSpec:
    """A machine by its name, whatever the case; a `HardwareSpec` passes through.

    Raises:
        ValueError: naming the machines that are known.
    """
    return lookup("gpu", name, HARDWARE, HardwareSpec)
