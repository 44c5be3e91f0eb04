"""Stable Hadamard memory: a matrix whose every entry is kept, faded or strengthened by a gate of its own.

Le et al. 2024 (arXiv 2410.10132, sections 3 and 4), with x normed, L rows theta of a table, and k and q
rectified and divided by their sums:

    M_t = C_t * M_{t-1} + (s v) k^T,    C_t = 1 + tanh(theta_t (V x)^T),   s = σ(e x),   y = W (M_t q + U x)

The gates are 1 on average, and so are their products as long as theta_t is drawn anew at every step, from
which the memory has its name.

Where it differs: a step takes row n mod L of the table, n being its number in the episode. Of the published
files two take row 0 at every step, as they round what they draw from 0 to 1, and one draws anew at every
call, by which a step twice taken is not the same. Entries are kept within -100 and 100, as in one of the
files: products of gates are bounded on average alone, and if an observation lasts, entries grow until float32
overflows within a few thousand steps. So an entry that is at its bound stays there until its gates let it
fade, and what was written to it before is then forgotten. Steps of which no entry is at a bound are those of
the equation, by `kernels.scan`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.memory.contract.base import Memory, MemoryConfig, State
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.scan.hadamard import BOUND, Written, segment


@dataclass(frozen=True)
class SHMConfig(MemoryConfig):
    """Sizes of `SHM`. Raises ValueError on one that cannot work."""

    memory_size: int = 16
    """Rows and columns of the matrix."""
    table_size: int = 128
    """Rows theta of the table, of which the steps of an episode take one after the other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("memory_size", "table_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    def build(self) -> SHM:
        """Return a freshly initialised memory of these sizes."""
        return SHM(self)


class SHM(Memory):
    """One stable Hadamard memory.

    State: `matrix` `[batch, size, size]`, values by keys, and `time` `[batch]`, the steps of the episode.
    """

    def __init__(self, config: SHMConfig) -> None:
        super().__init__(config)
        self.size, self.table_size = config.memory_size, config.table_size
        self.norm = nn.LayerNorm(self.dim)
        self.project = nn.Linear(self.dim, 5 * self.size + 1, bias=False)
        self.table = nn.Parameter(nn.init.xavier_uniform_(torch.empty(self.table_size, self.size)))
        self.out = nn.Linear(self.size, self.dim)

    def initial_state(self, batch_size: int) -> State:
        """Return an empty matrix and the age 0 of each row's episode."""
        shape = (batch_size, self.size, self.size)
        return {
            "matrix": torch.zeros(shape, dtype=self.state_dtype, device=self.device),
            "time": torch.zeros(batch_size, dtype=torch.int64, device=self.device),
        }

    def step(self, x: Float[Tensor, "batch dim"], state: State) -> tuple[Float[Tensor, "batch dim"], State]:
        """Advance every row by one input."""
        written = Written.of(*self._write(x, state["time"]))
        matrix = torch.addcmul(written.value, written.gate, state["matrix"]).clamp(-BOUND, BOUND)
        return self._out(x, written.read(matrix)), {"matrix": matrix, "time": state["time"] + 1}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance every row by a segment."""
        clock = Clock.of(state["time"], start)
        read, matrix = segment(*self._write(x, clock.step), state["matrix"], start)
        return self._out(x, read), {"matrix": matrix, "time": clock.after}

    def _write(self, x: Float[Tensor, "*batch dim"], time: Int[Tensor, "*batch"]) -> tuple[Tensor, Tensor]:
        """Return projections of inputs, and the rows of the table."""
        dtype = self.state_dtype
        return self.project(self.norm(x)).to(dtype), self.table.to(dtype)[time % self.table_size]

    def _out(self, x: Tensor, read: Float[Tensor, "*batch size"]) -> Tensor:
        return self.out(read.to(self.out.weight.dtype)).to(x.dtype)
