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
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.kernels import scan
from scrubjay.kernels.dispatch import is_traced
from scrubjay.memory.contract.base import Memory, MemoryConfig, State
from scrubjay.memory.contract.clock import Clock

BOUND = 100.0
"""How far entries of a memory's matrix may be from 0."""
_EPSILON = 1e-5


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


class Written(NamedTuple):
    """What inputs do to the matrix, and how they read it."""

    gate: Float[Tensor, "*batch size size"]
    value: Float[Tensor, "*batch size size"]
    query: Float[Tensor, "*batch size"]
    through: Float[Tensor, "*batch size"]


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
        written = self._write(x, state["time"])
        matrix = torch.addcmul(written.value, written.gate, state["matrix"]).clamp(-BOUND, BOUND)
        return self._read(x, matrix, written), {"matrix": matrix, "time": state["time"] + 1}

    def segment(
        self, x: Float[Tensor, "batch time dim"], state: State, start: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Advance every row by a segment."""
        clock = Clock.of(state["time"], start)
        written = self._write(x, clock.step)
        matrices = bounded_scan(written.gate, written.value, state["matrix"], start)
        return self._read(x, matrices, written), {"matrix": matrices[:, -1].clone(), "time": clock.after}

    def _write(self, x: Float[Tensor, "*batch dim"], time: Int[Tensor, "*batch"]) -> Written:
        size, dtype = self.size, self.state_dtype
        given = self.project(self.norm(x)).to(dtype)
        both, value, gate, through, strength = given.split([2 * size, size, size, size, 1], dim=-1)
        both = both.unflatten(-1, (2, size)).relu()
        key, query = (both / (_EPSILON + both.sum(-1, keepdim=True))).unbind(-2)
        theta = self.table.to(dtype)[time % self.table_size]
        # 1 + tanh(a) = 2 σ(2 a), which is quicker.
        gate = 2 * torch.sigmoid((2 * theta)[..., :, None] * gate[..., None, :])
        value = (strength.sigmoid() * value)[..., :, None] * key[..., None, :]
        return Written(gate, value, query, through)

    def _read(self, x: Tensor, matrix: Float[Tensor, "*batch size size"], written: Written) -> Tensor:
        # Products of many small matrices with a vector each are slower.
        y = (matrix * written.query[..., None, :]).sum(-1) + written.through
        return self.out(y.to(self.out.weight.dtype)).to(x.dtype)


def bounded_scan(
    gate: Float[Tensor, "batch time size size"],
    value: Float[Tensor, "batch time size size"],
    matrix: Float[Tensor, "batch size size"],
    start: Bool[Tensor, "batch time"],
) -> Float[Tensor, "batch time size size"]:
    """Return the matrices after every step, whose entries stop at the bound.

    Rows of which none comes there are scanned, the others go step by step, as all do where nothing can be
    looked at.
    """
    if is_traced() or torch._C._are_functorch_transforms_active():
        return _step_by_step(gate, value, matrix, start)
    given = gate, value, matrix, start
    over = _largest(matrix) >= BOUND
    while True:
        free = [x[~over] for x in given] if over.any() else given
        matrices, _ = scan(*free[:3], start=free[3])
        beyond = ~(_largest(matrices) <= BOUND)
        if not beyond.any():
            break
        # Scanned anew without the rows that may have left all numbers, whose gradients would be none.
        over = over.masked_scatter(~over, beyond)
    if not over.any():
        return matrices
    held = _step_by_step(*(x[over] for x in given))
    order = torch.cat([(~over).nonzero()[:, 0], over.nonzero()[:, 0]]).argsort()
    return torch.cat([matrices, held])[order]


def _largest(numbers: Tensor) -> Float[Tensor, " batch"]:
    rows = numbers.detach().flatten(1)
    return torch.maximum(rows.amax(dim=1), -rows.amin(dim=1))  # a vector's norm takes five times as long


def _step_by_step(gate: Tensor, value: Tensor, matrix: Tensor, start: Tensor) -> Tensor:
    matrices = []
    for now, written, begins in zip(gate.unbind(1), value.unbind(1), start.unbind(1), strict=True):
        kept = torch.where(begins[:, None, None], 0, matrix)
        matrix = torch.addcmul(written, now, kept).clamp(-BOUND, BOUND)
        matrices.append(matrix)
    return torch.stack(matrices, dim=1)
