"""Slot contents of a window with attention sinks after any number of steps."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def compute_slot_steps(
    count: Int[Tensor, " batch"], num_sinks: int, window: int
) -> Int[Tensor, "batch slots"]:
    """Return the step that each slot holds after `count` steps, counted from 0; -1 for an empty slot.

    Slots are those of `kernels.sink_slot`: the first `num_sinks` steps, then a ring of the last `window`.
    """
    slot = torch.arange(num_sinks + window, device=count.device)
    newest = count[:, None] - 1
    # The step in a ring slot is as far behind the newest step as the two slots are apart.
    ring = newest - (newest - slot) % window
    step = torch.where(slot < num_sinks, slot, ring)
    return torch.where((step >= slot) & (step <= newest), step, -1)
