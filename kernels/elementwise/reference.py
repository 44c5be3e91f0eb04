"""Reference definition of the scan: one step at a time."""

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
    """Return the states after every step, and the last state.

    Complex numbers must have a complex dtype. Pairs of real and imaginary parts are not supported.
    """
    states = []
    for t in range(decay.shape[1]):
        if start is None:
            state = decay[:, t] * state + value[:, t]
        else:
            # Selected, not multiplied by zero: 0 * NaN is NaN, here and in the gradient.
            is_start = start[:, t].view(-1, *[1] * (state.ndim - 1))
            next_state = decay[:, t] * torch.where(is_start, 0, state) + value[:, t]
            state = torch.where(is_start, value[:, t], next_state)
        states.append(state)
    return torch.stack(states, dim=1) if states else value, state
