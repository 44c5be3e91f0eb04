"""Minimal gated recurrent unit: a GRU whose gate and candidate do not depend on the state.

Feng et al. 2024 (arXiv 2410.01201, section 3.1 and appendix B.3). At step t with input x, gate z and state h:

    z_t = σ(W x_t),    h_t = (1 - z_t) h_{t-1} + z_t g(V x_t),    g(a) = a + 1/2 if a >= 0, else σ(a),

so h is a weighted mean of the candidates g(V x), with weights that depend on the inputs. The paper has two
forms. This form has positive candidates. h starts at 0 and is the output.

Differences from the paper: the paper computes its parallel scan in log space. `kernels.scan` does not need
this, because it never divides by a product of decays 1 - z.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from scrubjay.memory.contract.base import SAME_AS_PAPER, MemoryConfig
from scrubjay.memory.scan.recurrence import ScanMemory, ScanUpdate


@dataclass(frozen=True)
class MinGRUConfig(MemoryConfig):
    """Configuration of `MinGRU`."""

    paper_values = SAME_AS_PAPER

    def build(self) -> MinGRU:
        """Return a newly initialized memory."""
        return MinGRU(self)


class MinGRU(ScanMemory[None]):
    """One layer of minimal gated recurrent units, as wide as its input.

    State: `hidden` `[batch, dim]`, which is the output.
    """

    def __init__(self, config: MinGRUConfig) -> None:
        super().__init__(config, (config.dim,))
        self.inward = nn.Linear(self.dim, 2 * self.dim)

    def fold_weights(self) -> None:
        """Return None, because the memory needs no derived weights."""

    def write(self, x: Float[Tensor, "*batch dim"], weights: None) -> ScanUpdate:
        """Return the state update for the gate z: the decay 1 - z, and z times the candidate."""
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
