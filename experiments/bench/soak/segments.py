"""Soak of the memories: segments of 100,000 steps, step by step, in pieces and whole.

Each memory runs in a process of its own. The batch has two rows of random inputs: one long episode, and one
with starts. Memory is that of the process, without files, added since the start of the part:

- step by step, without gradients, by the memory's stepper, as a policy acts. The table has the growth between
  a tenth of the steps and the end.
- in pieces of 1,000 steps without gradients, with the same growth.
- whole without gradients, and whole with gradients of inputs and parameters. The table has the peak.

Outputs, gradients and final states must be finite. The outputs of all divisions must agree, as in law 1 of
the contract. The table has the largest difference from the whole segment, relative to the largest output. The
default is float64: in float32, rounding may decide which of two chunks with nearly equal scores is read.
"""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from scrubjay.experiments.bench.soak import anonymous_bytes
from scrubjay.experiments.cli.failures import is_out_of_memory
from scrubjay.experiments.measurements import Records
from scrubjay.experiments.resources import limit_memory
from scrubjay.memory import Memory, State, list_memories, make_config

TOO_LARGE = "needs more memory than the limit"
"""Error of a part that is not a fault: a whole segment with gradients needs memory for each of its steps."""
_PIECE = 1_000
_PARTS = ("step", "cut", "whole", "learn")
_TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
_SLACK = 16 * 2**20  # bytes by which a process may grow while a memory steps; its state has a fixed size
_FIELDS = {"memory": str, "part": str, "seconds": float, "bytes": int, "difference": float, "error": str}


@dataclass(frozen=True, kw_only=True)
class SegmentsSoak:
    """Sizes of the soak of the memories."""

    memories: tuple[str, ...] = ()
    """Memories; by default all of the registry."""
    steps: int = 100_000
    """Steps of a segment."""
    dim: int = 32
    """Width of the inputs."""
    gib: float = 6.0
    """Memory in GiB that a part may add; a part that needs more ends there."""
    dtype: Literal["float32", "float64"] = "float64"
    """Dtype of parameters and inputs."""
    seed: int = 0
    """Seed of the weights and the inputs."""


class Segment:
    """Memory with the inputs of a long segment."""

    def __init__(self, soak: SegmentsSoak, name: str) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(soak.seed)
        dtype = {"float32": torch.float32, "float64": torch.float64}[soak.dtype]
        self.steps, self.piece = soak.steps, min(_PIECE, soak.steps // 10)
        self.memory: Memory = make_config(name, dim=soak.dim).build().to(dtype)
        self.x = torch.randn(2, soak.steps, soak.dim, dtype=dtype)
        self.start = torch.zeros(2, soak.steps, dtype=torch.bool)
        self.start[1, [soak.steps // 7, soak.steps // 2, soak.steps // 2 + 1]] = True

    @torch.no_grad()
    def step(self) -> tuple[Tensor, State, int]:
        """Run the stepper; return the outputs, the final state and the growth of memory in bytes."""
        outputs, growth = torch.zeros_like(self.x).add_(1), _Growth()
        stepper = self.memory.stepper(self.memory.initial_state(2))
        for t in range(self.steps):
            outputs[:, t] = stepper.step(self.x[:, t], self.start[:, t])
            if t + 1 in (self.steps // 10, self.steps):
                growth.measure()
        return outputs, stepper.state(), growth.bytes

    @torch.no_grad()
    def cut(self) -> tuple[Tensor, State, int]:
        """Run pieces, one after the other; return the same as `step`."""
        outputs, growth, state = torch.zeros_like(self.x).add_(1), _Growth(), self.memory.initial_state(2)
        for first in range(0, self.steps, self.piece):
            rows = slice(first, first + self.piece)
            outputs[:, rows], state = self.memory(self.x[:, rows], state, self.start[:, rows])
            if first + self.piece in (self.steps // 10, self.steps):
                growth.measure()
        return outputs, state, growth.bytes

    @torch.no_grad()
    def whole(self) -> tuple[Tensor, State]:
        """Return the outputs and the final state of the whole segment."""
        return self.memory(self.x, self.memory.initial_state(2), self.start)

    def learn(self) -> tuple[Tensor, State]:
        """Return gradients and the final state of the whole segment."""
        x = self.x.requires_grad_()
        y, state = self.memory(x, self.memory.initial_state(2), self.start)
        y.square().mean().backward()
        gradients = [value.grad for value in (x, *self.memory.parameters()) if value.grad is not None]
        return torch.cat([gradient.flatten() for gradient in gradients]), state


class _Growth:
    """Growth of this process's memory between two measurements."""

    def __init__(self) -> None:
        self._sizes: list[int] = []

    def measure(self) -> None:
        gc.collect()
        self._sizes.append(anonymous_bytes())

    @property
    def bytes(self) -> int:
        return self._sizes[-1] - self._sizes[0]


def run_memory(soak: SegmentsSoak, name: str) -> list[dict[str, Any]]:
    """Run all parts of a memory in this process; return a row for each."""
    segment, rows, outputs = Segment(soak, name), [], {}
    for part in _PARTS:
        row: dict[str, Any] = {"memory": name, "part": part, "bytes": 0, "difference": 0.0, "error": ""}
        began = time.perf_counter()
        try:
            with limit_memory(int(soak.gib * 2**30)), _measure_peak() as peak:
                outputs[part], state, *growth = getattr(segment, part)()
            row["bytes"] = growth[0] if growth else peak["bytes"]
            results = {"output": outputs[part], **state}
            if infinite := [name for name, value in results.items() if not _is_finite(value)]:
                row["error"] = f"not finite: {', '.join(infinite)}"
            elif growth and growth[0] > _SLACK:
                row["error"] = "grows"
        except (MemoryError, RuntimeError) as error:
            row["error"] = TOO_LARGE if is_out_of_memory(error) else str(error).splitlines()[0]
        rows.append({**row, "seconds": time.perf_counter() - began})
        print(f"{name}, {part}: {rows[-1]['seconds']:.0f} s", file=sys.stderr, flush=True)
    for row in rows[:2]:
        if {row["part"], "whole"} <= outputs.keys():
            row["difference"] = _difference(outputs[row["part"]], outputs["whole"])
            if not row["error"] and row["difference"] > _TOLERANCE[soak.dtype]:
                row["error"] = "differs"
    return rows


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())


def _difference(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


@contextmanager
def _measure_peak() -> Iterator[dict[str, int]]:
    """Yield a dict that has the peak of added memory in bytes when the `with` block has ended."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, peak = _read_status("VmRSS"), {}
    yield peak
    peak["bytes"] = _read_status("VmHWM") - before


def _read_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def run_segments(soak: SegmentsSoak, folder: Path) -> list[dict[str, Any]]:
    """Run the memories that have no rows yet, each in a new process; return all rows."""
    records = Records(folder / "segments.jsonl", _FIELDS)
    for name in soak.memories or list_memories():
        if not records.find(memory=name):
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
                for row in pool.submit(run_memory, soak, name).result():
                    records.append(row)
    return records.rows
