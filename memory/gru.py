"""Gated recurrent unit (Cho et al. 2014, arXiv 1406.1078), in the variant that torch and cuDNN compute."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scrubjay.memory.contract.base import Memory, MemoryConfig, State
from scrubjay.memory.parts.flush import FlushPlan, cell_weights, one_buffer, stretched_weights


@dataclass(frozen=True)
class GRUConfig(MemoryConfig):
    """Sizes of `GRU`."""

    def build(self) -> GRU:
        """Return a freshly initialised GRU."""
        return GRU(self)


class GRU(Memory):
    """One GRU layer, as wide as its inputs; the state is its hidden vector.

    It computes in the state's dtype, so a bfloat16 layer rounds its outputs but not what it remembers.
    """

    def __init__(self, config: GRUConfig) -> None:
        super().__init__(config)
        self.cell = nn.GRUCell(self.dim, self.dim)

    def initial_state(self, batch_size: int) -> State:
        """Return a zero hidden vector, `[batch, dim]`."""
        return {"hidden": torch.zeros(batch_size, self.dim, dtype=self.state_dtype, device=self.device)}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance every row by one input."""
        hidden = torch.gru_cell(
            x.to(self.state_dtype), state["hidden"], *cell_weights(self.cell, self.state_dtype)
        )
        return hidden.to(x.dtype), {"hidden": hidden}

    def segment(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Advance every row by a segment in one call of the fused kernel."""
        hidden = self.reset_state(state, start[:, 0])["hidden"]
        inputs = x.to(self.state_dtype)
        plan = FlushPlan.of(start)
        if plan is None:
            y = _gru(
                inputs.transpose(0, 1), hidden, one_buffer(cell_weights(self.cell, self.state_dtype))
            ).transpose(0, 1)
        else:
            # Reset and update gates shut, candidate tanh(0): h' = (1 - 0) * 0 + 0 * h.
            weights = stretched_weights(
                cell_weights(self.cell, self.state_dtype), flush=(-1, -1, 0), padding=(-1, 1, 0)
            )
            y = plan.collect(_gru(plan.stretch(inputs), hidden, weights))
        # A copy: a view would keep the whole segment alive, and travel with it.
        return y.to(x.dtype), {"hidden": y[:, -1].clone(memory_format=torch.contiguous_format)}


def _gru(x: Tensor, hidden: Tensor, weights: list[Tensor]) -> Tensor:
    y, _ = torch.gru(
        x,
        hidden[None].contiguous(),
        weights,
        has_biases=True,
        num_layers=1,
        dropout=0.0,
        train=True,
        bidirectional=False,
        batch_first=False,
    )
    return y
