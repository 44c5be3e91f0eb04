"""Long short-term memory (Hochreiter & Schmidhuber 1997) with a forget gate (Gers et al. 2000)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scrubjay.kernels.dispatch import without_autocast
from scrubjay.memory.contract.base import SAME_AS_PAPER, Memory, MemoryConfig, State
from scrubjay.memory.parts.flush import FlushPlan, cell_weights, expand_weights, flatten_into_buffer


@dataclass(frozen=True)
class LSTMConfig(MemoryConfig):
    """Sizes of `LSTM`."""

    paper_values = SAME_AS_PAPER

    def build(self) -> LSTM:
        """Return a newly initialized LSTM."""
        return LSTM(self)


class LSTM(Memory):
    """One LSTM layer, as wide as its inputs. The state is the hidden vector and the cell vector.

    The layer computes in the state's dtype. A bfloat16 layer therefore rounds its outputs but not its state.
    """

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        self.cell = nn.LSTMCell(self.dim, self.dim)

    def initial_state(self, batch_size: int) -> State:
        """Return zero hidden and cell vectors, each `[batch, dim]`."""
        zeros = torch.zeros(batch_size, self.dim, dtype=self.state_dtype, device=self.device)
        return {"hidden": zeros, "cell": zeros.clone()}

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Process one step of every row."""
        hidden_and_cell = (state["hidden"], state["cell"])
        hidden, cell = torch.lstm_cell(
            x.to(self.state_dtype), hidden_and_cell, *cell_weights(self.cell, self.state_dtype)
        )
        return hidden.to(x.dtype), {"hidden": hidden, "cell": cell}

    def segment(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Process a segment of every row in one call of torch's fused LSTM kernel."""
        state = self.reset_state(state, start[:, 0])
        inputs = x.to(self.state_dtype)
        plan = FlushPlan.from_starts(start)
        if plan is None:
            y, cell = _lstm(
                inputs.transpose(0, 1), state, flatten_into_buffer(cell_weights(self.cell, self.state_dtype))
            )
            y = y.transpose(0, 1)
        else:
            # Gates are input, forget, candidate, output. A flush closes the first two: c' = 0 * c + 0 * g,
            # h' = 0. Padding keeps c, because the kernel returns only the last cell vector.
            weights = expand_weights(
                cell_weights(self.cell, self.state_dtype), flush=(-1, -1, 0, 0), padding=(-1, 1, 0, 0)
            )
            y, cell = _lstm(plan.expand(inputs), state, weights)
            y = plan.collect(y)
        # A copy: a view would keep the whole segment in memory and be serialized with it.
        hidden = y[:, -1].clone(memory_format=torch.contiguous_format)
        return y.to(x.dtype), {"hidden": hidden, "cell": cell}


@without_autocast
def _lstm(x: Tensor, state: State, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    y, _, cell = torch.lstm(
        x,
        (state["hidden"][None].contiguous(), state["cell"][None].contiguous()),
        weights,
        has_biases=True,
        num_layers=1,
        dropout=0.0,
        train=True,
        bidirectional=False,
        batch_first=False,
    )
    return y, cell[0]
