"""Window of the last inputs of an episode, oldest first and right-aligned, zero-padded."""

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
    """Return the last `window` inputs after a segment, with zeros before the current episode."""
    window = recent.shape[1]
    # Only the needed steps are concatenated: copying a whole segment costs as much as a pass over it.
    behind = recent[:, min(x.shape[1], window) :]
    inputs = torch.cat([behind, x[:, max(0, x.shape[1] - window) :].to(recent.dtype)], dim=1)
    index = torch.arange(window, device=x.device)
    return torch.where((index >= window - clock.age_after[:, None])[..., None], inputs, 0)
