"""The definition of a scan: one step at a time."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Num
from torch import Tensor


def run(
    start: Bool[Tensor, "B T"] | None,
    decay: Num[Tensor, "B T *D"],
    value: Num[Tensor, "B T *D"],
    state: Num[Tensor, "B *D"],
) -> tuple[Num[Tensor, "B T *D"], Num[Tensor, "B *D"]]:
    """Return the states after every step and the last; complex numbers where pairs are meant."""
    states = []
    for t in range(decay.shape[1]):
        if start is None:
            state = decay[:, t] * state + value[:, t]
        else:
            # Chosen, not multiplied: a zero forgets no NaN, neither here nor in a gradient.
            begins = start[:, t].view(-1, *[1] * (state.ndim - 1))
            went_on = decay[:, t] * torch.where(begins, 0, state) + value[:, t]
            state = torch.where(begins, value[:, t], went_on)
        states.append(state)
    return torch.stack(states, dim=1) if states else value, state
