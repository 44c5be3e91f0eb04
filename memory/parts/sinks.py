"""Slot contents of a window with attention sinks after any number of steps."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def compute_slot_steps(
    count: Int[Tensor, " batch"], num_sinks: int, window: int
) -> Int[Tensor, "batch slots"]:
    """Return the number of the step (from 0) in each slot after `count` steps; -1 for an empty slot.

    The first `num_sinks` slots hold the first steps. The other slots are a ring buffer of the last `window`
    steps, as in `kernels.sink_slot`.
    """
    slot = torch.arange(num_sinks + window, device=count.device)
    newest = count[:, None] - 1
    # The step in a ring slot is as far behind the newest step as the two slots are apart.
    ring = newest - (newest - slot) % window
    step = torch.where(slot < num_sinks, slot, ring)
    return torch.where((step >= slot) & (step <= newest), step, -1)
