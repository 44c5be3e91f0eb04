"""Scan by blocks of consecutive steps.

First all blocks advance in parallel, each from a zero state. Then a loop over blocks computes the state
before each block. Finally, the decayed state before a block is added to all states of the block.

This takes about 3 sqrt(T) sequential operations for T steps. Autograd can differentiate the operations.

Letters: B batch, N blocks, L steps of a block, D channels.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Num
from torch import Tensor

_SHORTEST = 4


def run(
    start: Bool[Tensor, "B T"] | None,
    decay: Num[Tensor, "B T D"],
    value: Num[Tensor, "B T D"],
    state: Num[Tensor, "B D"],
) -> Num[Tensor, "B T D"]:
    """Return the states after every step, differentiable by autograd; all inputs must be finite."""
    batch, time, width = decay.shape
    if start is not None:
        decay = torch.where(start[..., None], 0, decay)
    length = max(_SHORTEST, math.isqrt(time))
    missing = -time % length
    if missing:
        decay, value = (torch.cat([x, x.new_zeros(batch, missing, width)], dim=1) for x in (decay, value))
    # [L, B, N, D]: step l of all blocks is contiguous.
    decays, values = (x.view(batch, -1, length, width).permute(2, 0, 1, 3).unbind(0) for x in (decay, value))
    local, decay_products = [values[0]], [decays[0]]
    for decay_step, value_step in zip(decays[1:], values[1:], strict=True):
        local.append(torch.addcmul(value_step, decay_step, local[-1]))
        decay_products.append(decay_step * decay_products[-1])
    block_states = [state]
    for end_state, end_decay in zip(local[-1].unbind(1)[:-1], decay_products[-1].unbind(1)[:-1], strict=True):
        block_states.append(torch.addcmul(end_state, end_decay, block_states[-1]))
    first_states = torch.stack(block_states, dim=1)[:, :, None]
    states = torch.addcmul(torch.stack(local, dim=2), torch.stack(decay_products, dim=2), first_states)
    return states.flatten(1, 2)[:, :time]
