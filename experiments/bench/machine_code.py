"""Compiled code of the Triton kernels, without a GPU: registers, spills, shared memory, tensor cores.

    python -P -m scrubjay.experiments.bench.machine_code

Compiles every main configuration to machine code for compute capabilities 8.0 (A100), 9.0 (H100) and 10.0
(B200), with the pointer alignment that real launches have. Prints a table per op. Options: `--help`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import tyro

from scrubjay.kernels.launch import Build, Launch

PACKAGES = {
    "chunk_retrieval": "retrieval",
    "sink_attention": "sinks",
    "neural_memory": "neural",
    "linear_memory": "linear",
    "nearest": "search",
    "scan": "elementwise",
}
"""Package of `scrubjay.kernels` with the kernels of each op."""
OPS = tuple(PACKAGES)
# Shared memory limit per block in bytes, by compute capability.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_CORE_INSTRUCTIONS = ("mma.sync", "wgmma", "tcgen05.mma")


@dataclass(frozen=True)
class MachineCode:
    """Options of the compilation."""

    ops: tuple[str, ...] = OPS
    """Ops of `scrubjay.kernels` to compile."""
    capabilities: tuple[int, ...] = tuple(SHARED_LIMIT)
    """Compute capabilities times ten, e.g. 90 for 9.0."""


def configurations(op: str) -> dict[str, Launch]:
    """Return example launches of an op's kernels by name. They hold meta tensors, so no GPU is needed."""
    return importlib.import_module(f"scrubjay.kernels.{PACKAGES[op]}.gpu").configurations()


def uses_tensor_cores(build: Build) -> bool:
    """Return True if the machine code has instructions for tensor cores."""
    return any(instruction in build.ptx for instruction in TENSOR_CORE_INSTRUCTIONS)


def main(options: MachineCode) -> None:
    """Compile the kernels and print tables of their machine code."""
    import triton

    print(
        f"triton {triton.__version__}. Cells: registers per thread / spilled bytes / KiB of shared memory / "
        "tensor cores used."
    )
    for op in options.ops:
        columns = [f"sm_{capability}" for capability in options.capabilities]
        print(f"\n{op}:\n\n| kernel | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
        for name, launch in configurations(op).items():
            builds = [launch.build(capability) for capability in options.capabilities]
            cells = [
                f"{build.registers} / {build.spilled_bytes} / {build.shared / 1024:.1f} / "
                f"{'yes' if uses_tensor_cores(build) else 'no'}"
                for build in builds
            ]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(MachineCode, description=__doc__))
