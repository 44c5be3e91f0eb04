"""The last inputs of an episode, oldest first and right-aligned, zeros where there were none."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.memory.contract.clock import Clock


def shift_window(
    recent: Float[Tensor, "batch window dim"],
    x: Float[Tensor, "batch time dim"],
    clock: Clock,
) -> Float[Tensor, "batch window dim"]:
    """Return the last `window` inputs after a segment, zero where they are of another episode or of none."""
    window = recent.shape[1]
    # The old ones only where they are left: a copy of a whole segment costs as much as a pass over it.
    behind = recent[:, min(x.shape[1], window) :]
    inputs = torch.cat([behind, x[:, max(0, x.shape[1] - window) :].to(recent.dtype)], dim=1)
    index = torch.arange(window, device=x.device)
    return torch.where((index >= window - clock.after[:, None])[..., None], inputs, 0)
