"""Stable Hadamard memory: a matrix whose entries each have their own multiplicative gate.

Le et al. 2024 (arXiv 2410.10132, sections 3 and 4). The memory of step t is the matrix M_t, with gates C_t
and output y. x is the normed input. The key k, the query q and the value v are linear functions of x; k and q
are rectified, and each is divided by the sum of its coordinates. theta_t is a row of a learned table with L
rows. V, e, U and W are weights:

    M_t = C_t * M_{t-1} + (s v) k^T,    C_t = 1 + tanh(theta_t (V x)^T),   s = σ(e x),   y = W (M_t q + U x)

The gates are 1 on average. Products of gates over steps are also 1 on average, if theta_t is sampled
independently at every step. The memory is called stable for this reason.

Differences from the published code: step n of an episode uses row n mod L of the table. Two of the published
files always use row 0, because they draw a number between 0 and 1 and round it down. A third file draws a row
at random in every call, so a repeated step gives another result.

Entries of M are clamped to [-100, 100], as in one of the published files. Products of gates are bounded only
on average. Without the clamp, a constant observation makes entries overflow float32 within a few thousand
steps. An entry at the bound stays at the bound until its gates decay it, and earlier writes to the entry are
lost. Batch rows without an entry at the bound follow the equation and use `kernels.scan`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.memory.contract.base import Memory, MemoryConfig, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.scan.hadamard import BOUND, HadamardUpdate, scan_segment


@dataclass(frozen=True)
class SHMConfig(MemoryConfig):
    """Configuration of `SHM`. Raises ValueError on an invalid size."""

    memory_size: int = 16
    """Size of the square matrix: number of its rows and of its columns."""
    table_size: int = 128
    """Number of rows in the table of gate parameters. Step n of an episode uses row n modulo `table_size`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("memory_size", "table_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    def build(self) -> SHM:
        """Return a newly initialized memory."""
        return SHM(self)


class SHM(Memory):
    """One layer of stable Hadamard memory.

    State: `matrix` `[batch, size, size]` has an axis for values, then an axis for keys. `time` `[batch]` is
    the number of steps in the episode.
    """

    def __init__(self, config: SHMConfig) -> None:
        super().__init__(config)
        self.size, self.table_size = config.memory_size, config.table_size
        self.norm = nn.LayerNorm(self.dim)
        self.project = nn.Linear(self.dim, 5 * self.size + 1, bias=False)
        self.table = nn.Parameter(nn.init.xavier_uniform_(torch.empty(self.table_size, self.size)))
        self.out = nn.Linear(self.size, self.dim)

    def initial_state(self, batch_size: int) -> State:
        """Return a zero matrix and step count 0 for every row."""
        shape = (batch_size, self.size, self.size)
        return {
            "matrix": torch.zeros(shape, dtype=self.state_dtype, device=self.device),
            "time": torch.zeros(batch_size, dtype=torch.int64, device=self.device),
        }

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Process one step of every row."""
        update = HadamardUpdate.from_projections(*self._write(x, state["time"]))
        matrix = torch.addcmul(update.value, update.gate, state["matrix"]).clamp(-BOUND, BOUND)
        return self._out(x, update.read(matrix)), {"matrix": matrix, "time": state["time"] + 1}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Process a segment of every row."""
        clock = Clock.from_starts(state["time"], start)
        read, matrix = scan_segment(*self._write(x, clock.step), state["matrix"], start)
        return self._out(x, read), {"matrix": matrix, "time": clock.age_after}

    def _write(self, x: Float[Tensor, "*batch dim"], time: Int[Tensor, "*batch"]) -> tuple[Tensor, Tensor]:
        """Return the projected inputs, and the gate parameters that the table holds for each step."""
        dtype = self.state_dtype
        return self.project(self.norm(x)).to(dtype), self.table.to(dtype)[time % self.table_size]

    def _out(self, x: Tensor, read: Float[Tensor, "*batch size"]) -> Tensor:
        return self.out(read.to(self.out.weight.dtype)).to(x.dtype)
