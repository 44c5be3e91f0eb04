"""Stable Hadamard memory: a matrix whose entries each have their own multiplicative gate.

Le et al. 2024 (arXiv 2410.10132, sections 3 and 4). x is normed, theta are the L rows of a table, and k and q
are rectified and divided by their sums:

    M_t = C_t * M_{t-1} + (s v) k^T,    C_t = 1 + tanh(theta_t (V x)^T),   s = σ(e x),   y = W (M_t q + U x)

The gates are 1 on average, and so are their products if theta_t is sampled independently at every step. The
memory is called stable for this reason.

Differences from the published code: a step uses row n mod L of the table, where n is its number in the
episode. Two of the published files always use row 0, since they round a sample between 0 and 1 down. A third
one samples at every call, so repeating a step gives another result. Entries are clamped to [-100, 100], as in
one of the files: products of gates are bounded on average only, and under a constant observation entries
overflow float32 within a few thousand steps. An entry at the bound stays there until its gates decay it, and
earlier writes to it are then lost. Steps with no entry at the bound follow the equation, by `kernels.scan`.
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
    """Number of rows and of columns of the matrix."""
    table_size: int = 128
    """Rows theta of the table; step n of an episode uses row n modulo this size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("memory_size", "table_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    def build(self) -> SHM:
        """Return a freshly initialised memory."""
        return SHM(self)


class SHM(Memory):
    """One layer of stable Hadamard memory.

    State: `matrix` `[batch, size, size]`, values by keys, and `time` `[batch]`, the number of steps in the
    episode.
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
        """Advance every row by one step."""
        update = HadamardUpdate.from_projections(*self._write(x, state["time"]))
        matrix = torch.addcmul(update.value, update.gate, state["matrix"]).clamp(-BOUND, BOUND)
        return self._out(x, update.read(matrix)), {"matrix": matrix, "time": state["time"] + 1}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance every row by a segment."""
        clock = Clock.from_starts(state["time"], start)
        read, matrix = scan_segment(*self._write(x, clock.step), state["matrix"], start)
        return self._out(x, read), {"matrix": matrix, "time": clock.age_after}

    def _write(self, x: Float[Tensor, "*batch dim"], time: Int[Tensor, "*batch"]) -> tuple[Tensor, Tensor]:
        """Return the projections of inputs and their table rows."""
        dtype = self.state_dtype
        return self.project(self.norm(x)).to(dtype), self.table.to(dtype)[time % self.table_size]

    def _out(self, x: Tensor, read: Float[Tensor, "*batch size"]) -> Tensor:
        return self.out(read.to(self.out.weight.dtype)).to(x.dtype)
