"""A scan by blocks of time: all blocks step together from nothing, then what each begins with is handed on.

Of T steps this takes about 3 sqrt(T) operations one after the other, which autograd follows.

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
    """Return the states after every step, in operations that autograd follows; what is given is finite."""
    batch, time, width = decay.shape
    if start is not None:
        decay = torch.where(start[..., None], 0, decay)
    length = max(_SHORTEST, math.isqrt(time))
    missing = -time % length
    if missing:
        decay, value = (torch.cat([x, x.new_zeros(batch, missing, width)], dim=1) for x in (decay, value))
    # [L, B, N, D]: the steps that all blocks take at once lie together.
    decays, values = (x.view(batch, -1, length, width).permute(2, 0, 1, 3).unbind(0) for x in (decay, value))
    local, kept = [values[0]], [decays[0]]
    for here, what in zip(decays[1:], values[1:], strict=True):
        local.append(torch.addcmul(what, here, local[-1]))
        kept.append(here * kept[-1])
    begins = [state]
    for last, part in zip(local[-1].unbind(1)[:-1], kept[-1].unbind(1)[:-1], strict=True):
        begins.append(torch.addcmul(last, part, begins[-1]))
    carried = torch.stack(begins, dim=1)[:, :, None]
    states = torch.addcmul(torch.stack(local, dim=2), torch.stack(kept, dim=2), carried)
    return states.flatten(1, 2)[:, :time]
