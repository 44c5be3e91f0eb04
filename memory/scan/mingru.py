"""Minimal gated recurrent unit: a GRU whose gate and candidate do not depend on the state.

Feng et al. 2024 (arXiv 2410.01201, section 3.1 and appendix B.3):

    z_t = σ(W x_t),    h_t = (1 - z_t) h_{t-1} + z_t g(V x_t),    g(a) = a + 1/2 if a >= 0, else σ(a),

so h is an input-weighted mean of the candidates. Of the paper's two forms, this is the one with positive
candidates. h starts at 0 and is the output.

Differences from the paper: nothing is computed in log space. The paper needs it for its parallel scan;
`kernels.scan` never divides by products of 1 - z.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.memory.contract.base import MemoryConfig
from scrubjay.memory.scan.recurrence import ScanMemory, ScanUpdate


@dataclass(frozen=True)
class MinGRUConfig(MemoryConfig):
    """Configuration of `MinGRU`."""

    def build(self) -> MinGRU:
        """Return a freshly initialised memory."""
        return MinGRU(self)


class MinGRU(ScanMemory[None]):
    """One layer of minimal gated recurrent units, as wide as its input.

    State: `hidden` `[batch, dim]`, which is the output.
    """

    def __init__(self, config: MinGRUConfig) -> None:
        super().__init__(config, (config.dim,))
        self.inward = nn.Linear(self.dim, 2 * self.dim)

    def fold_weights(self) -> None:
        """Return None: no weights are derived from the parameters."""

    def write(self, x: Float[Tensor, "*batch dim"], weights: None) -> ScanUpdate:
        """Return the decay 1 - z, and z times the candidate."""
        gate, candidate = self.inward(x).to(self.state_dtype).chunk(2, dim=-1)
        gate = gate.sigmoid()
        # g without torch.where, which would compute a gradient of each branch.
        candidate = candidate.relu() + candidate.clamp(max=0).sigmoid()
        return ScanUpdate(1 - gate, gate * candidate, (x,))

    def read(
        self, hidden: Tensor, read_inputs: tuple[Tensor, ...], weights: None
    ) -> Float[Tensor, "*batch dim"]:
        """Return the state in the dtype of the inputs."""
        return hidden.to(read_inputs[0].dtype)
