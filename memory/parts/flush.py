"""Episode starts inside a segment for fused recurrent kernels, which cannot reset their state.

An extra step, a flush, is inserted before every start. The flush saturates the gates. The state is therefore
exactly zero at the start, and no gradient passes the flush. Rows may have different numbers of flushes.
Shorter rows are padded at the end with steps that do not change the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.memory.contract.clock import episodes

SATURATED = 1e20
"""Gate input whose sigmoid is exactly 1 (exactly 0 if negated), whatever the weights add to it."""


@dataclass(frozen=True)
class FlushPlan:
    """Positions of the steps of a segment in the expanded segment, which has flushes and padding."""

    row_index: Int[Tensor, " steps"]
    """Index of each step in the expanded segment, whose axes `[stretched, batch]` are flattened. Entry
    b * time + t is the index of step t of row b."""
    step_type: Bool[Tensor, "stretched batch 3"]
    """One-hot type of each step: input, flush or padding."""

    @staticmethod
    def from_starts(start: Bool[Tensor, "batch time"]) -> FlushPlan | None:
        """Return the plan for the episode starts after the first step; None if no episode starts there."""
        batch, time = start.shape
        episode = episodes(start)
        flushes = episode - episode[:, :1]
        max_flushes = int(flushes[:, -1].max()) if batch else 0
        if max_flushes == 0:
            return None
        row = torch.arange(batch, device=start.device)
        step = torch.arange(time, device=start.device)
        row_index = ((step + flushes) * batch + row[:, None]).flatten()
        is_input = (
            start.new_zeros((time + max_flushes) * batch).index_fill(0, row_index, True).view(-1, batch)
        )
        is_padding = torch.arange(time + max_flushes, device=start.device)[:, None] >= time + flushes[:, -1]
        return FlushPlan(row_index, torch.stack([is_input, ~(is_input | is_padding), is_padding], dim=-1))

    def expand(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "stretched batch dim+3"]:
        """Insert steps with all inputs 0 for flushes (state resets) and padding, and append 3 columns.

        The columns contain the one-hot step type.
        """
        inputs = x.new_zeros(self.step_type[..., 0].numel(), x.shape[-1]).index_copy_(
            0, self.row_index, x.flatten(0, 1)
        )
        return torch.cat([inputs.unflatten(0, self.step_type.shape[:2]), self.step_type.to(x.dtype)], dim=-1)

    def collect(self, y: Float[Tensor, "stretched batch dim"]) -> Float[Tensor, "batch time dim"]:
        """Return the outputs of the original steps, without those of flushes (state resets) and padding."""
        return y.flatten(0, 1).index_select(0, self.row_index).unflatten(0, (y.shape[1], -1))


def cell_weights(cell: nn.RNNCellBase, dtype: torch.dtype) -> list[Tensor]:
    """Return a cell's weights in torch's order: input, hidden, input bias, hidden bias."""
    return [weight.to(dtype) for weight in (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)]


def expand_weights(
    weights: Sequence[Tensor], flush: tuple[int, ...], padding: tuple[int, ...]
) -> list[Tensor]:
    """Extend a recurrent layer's weights for the inputs that `FlushPlan.expand` returns.

    These inputs have three more features: a one-hot code of the step type (input, flush, padding). The input
    weight gets a column per step type. The column of "input" is the input bias, so flushes do not add the
    bias and give it no gradient. `flush` and `padding` set the other two columns, with one value per gate in
    the layer's order of gates: 1 opens the gate, -1 closes it, and 0 adds nothing to its input.

    Returns the input weight, hidden weight, input bias (zeros) and hidden bias.
    """
    weight, hidden_weight, bias, hidden_bias = weights
    width = hidden_weight.shape[1]
    gates = torch.tensor([flush, padding], dtype=weight.dtype, device=weight.device) * SATURATED
    columns = gates.T.repeat_interleave(width, dim=0)
    weight = torch.cat([weight, bias[:, None], columns], dim=1)
    return flatten_into_buffer([weight, hidden_weight, torch.zeros_like(bias), hidden_bias])


def flatten_into_buffer(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the weights as views of one buffer, which cuDNN accepts without a copy or a warning."""
    buffer = torch.cat([weight.flatten() for weight in weights])
    pieces = buffer.split([weight.numel() for weight in weights])
    return [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]
