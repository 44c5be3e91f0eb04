"""Resets inside a segment for fused recurrent kernels, which know nothing of them.

One extra step, a flush, goes before every start: it drives the gates to exactly nothing carried over, so the
kernel arrives at the start with a zero state, and no gradient crosses it either. Each row grows by its own
number of flushes; the shorter rows are padded at the end with steps that hold what they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.memory.contract.clock import episodes

SATURATED = 1e20
"""A gate's input whose sigmoid is exactly 1, or negated exactly 0, whatever the weights add to it."""


@dataclass(frozen=True)
class FlushPlan:
    """Where the steps of a segment go in the stretched one, time first."""

    place: Int[Tensor, " steps"]
    """Row of the flattened `[stretched, batch]` that step t of row b goes to, at b * time + t."""
    kind: Bool[Tensor, "stretched batch 3"]
    """One-hot: an input, a flush, padding."""

    @staticmethod
    def of(start: Bool[Tensor, "batch time"]) -> FlushPlan | None:
        """Return the plan for the starts after the first step, or None where there are none."""
        batch, time = start.shape
        episode = episodes(start)
        flushes = episode - episode[:, :1]
        most = int(flushes[:, -1].max()) if batch else 0
        if most == 0:
            return None
        row = torch.arange(batch, device=start.device)
        step = torch.arange(time, device=start.device)
        place = ((step + flushes) * batch + row[:, None]).flatten()
        is_input = start.new_zeros((time + most) * batch).index_fill(0, place, True).view(-1, batch)
        is_padding = torch.arange(time + most, device=start.device)[:, None] >= time + flushes[:, -1]
        return FlushPlan(place, torch.stack([is_input, ~(is_input | is_padding), is_padding], dim=-1))

    def stretch(self, x: Float[Tensor, "batch time dim"]) -> Float[Tensor, "stretched batch dim+3"]:
        """Return the inputs at their places, zeros elsewhere, and every step's kind in three more columns."""
        inputs = x.new_zeros(self.kind[..., 0].numel(), x.shape[-1]).index_copy_(
            0, self.place, x.flatten(0, 1)
        )
        return torch.cat([inputs.unflatten(0, self.kind.shape[:2]), self.kind.to(x.dtype)], dim=-1)

    def collect(self, y: Float[Tensor, "stretched batch dim"]) -> Float[Tensor, "batch time dim"]:
        """Return the outputs of the inputs' steps."""
        return y.flatten(0, 1).index_select(0, self.place).unflatten(0, (y.shape[1], -1))


def cell_weights(cell: nn.RNNCellBase, dtype: torch.dtype) -> list[Tensor]:
    """Return a cell's weights in torch's order: input, hidden, input bias, hidden bias."""
    return [weight.to(dtype) for weight in (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)]


def stretched_weights(
    weights: Sequence[Tensor], flush: tuple[int, ...], padding: tuple[int, ...]
) -> list[Tensor]:
    """Return a recurrent layer's weights for stretched inputs: input, hidden, input bias, hidden bias.

    `flush` and `padding` say of each gate, in the layer's order, whether such a step opens it (1), closes it
    (-1) or feeds it zero (0). The input bias becomes the weight of the kind "an input", so that a flush has
    none and sends it no gradient.
    """
    weight, hidden_weight, bias, hidden_bias = weights
    width = hidden_weight.shape[1]
    gates = torch.tensor([flush, padding], dtype=weight.dtype, device=weight.device) * SATURATED
    columns = gates.T.repeat_interleave(width, dim=0)
    weight = torch.cat([weight, bias[:, None], columns], dim=1)
    return one_buffer([weight, hidden_weight, torch.zeros_like(bias), hidden_bias])


def one_buffer(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the weights as views of one buffer, the layout that cuDNN takes without copying or complaint."""
    buffer = torch.cat([weight.flatten() for weight in weights])
    pieces = buffer.split([weight.numel() for weight in weights])
    return [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]
