"""Minimal gated recurrent unit: a GRU whose gate and candidate ask nothing of the past.

Feng et al. 2024 (arXiv 2410.01201, section 3.1 and appendix B.3):

    z_t = σ(W x_t),    h_t = (1 - z_t) h_{t-1} + z_t g(V x_t),    g(a) = a + 1/2 if a >= 0, else σ(a),

so that h is a mean of what was written, weighted as the inputs choose. Of the paper's two forms this is the
one whose candidates are positive; h begins at 0, and is the output.

Where it differs: nothing is computed in logarithms, by which the paper scans in parallel, for `kernels.scan`
never divides by products of 1 - z.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.memory.contract.base import MemoryConfig
from scrubjay.memory.scan.recurrence import ScanMemory, Written


@dataclass(frozen=True)
class MinGRUConfig(MemoryConfig):
    """Sizes of `MinGRU`."""

    def build(self) -> MinGRU:
        """Return a freshly initialised memory of these sizes."""
        return MinGRU(self)


class MinGRU(ScanMemory[None]):
    """One layer of minimal gated recurrent units, as wide as its inputs.

    State: `hidden` `[batch, dim]`, which is the output.
    """

    def __init__(self, config: MinGRUConfig) -> None:
        super().__init__(config, (config.dim,))
        self.inward = nn.Linear(self.dim, 2 * self.dim)

    def folded(self) -> None:
        """Return nothing: no weight is made of others."""

    def write(self, x: Float[Tensor, "*batch dim"], weights: None) -> Written:
        """Return 1 - z, and z times the candidate."""
        gate, candidate = self.inward(x).to(self.state_dtype).chunk(2, dim=-1)
        gate = gate.sigmoid()
        # g without a choice between two, of which each would have a gradient of its own.
        candidate = candidate.relu() + candidate.clamp(max=0).sigmoid()
        return Written(1 - gate, gate * candidate, (x,))

    def read(self, hidden: Tensor, aside: tuple[Tensor, ...], weights: None) -> Float[Tensor, "*batch dim"]:
        """Return the state, in the inputs' dtype."""
        return hidden.to(aside[0].dtype)
