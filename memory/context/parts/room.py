"""Room ahead of a growing cache.

A token is written into it, and what is there already is not copied for every one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 256
"""Columns by which room grows."""


def columns_of_room(columns: int, most: int | None = None) -> int:
    """Return how many columns there is room for where `columns` are held, and none to spare beyond `most`."""
    room = -(-columns // BLOCK) * BLOCK
    return room if most is None else max(min(room, most), columns)


def append(
    room: Float[Tensor, "batch heads room *width"] | None,
    held: int,
    new: Float[Tensor, "batch heads length *width"],
    most: int | None = None,
) -> Float[Tensor, "batch heads more *width"]:
    """Return the room with new columns after the first `held`, and zeros after those that are new room.

    The same tensor, or where they do not fit, a larger one.

    Gradients need what was there before untouched, and so get a new one each time.
    """
    total = held + new.shape[2]
    if room is not None and total <= room.shape[2] and not _must_not_change(room, new):
        room[:, :, held:total] = new
        return room
    spare = new.new_zeros(*new.shape[:2], columns_of_room(total, most) - total, *new.shape[3:])
    before = [] if room is None else [room[:, :, :held]]
    return torch.cat([*before, new, spare], dim=2)


def shrink(
    room: Float[Tensor, "batch heads room width"], held: int
) -> Float[Tensor, "batch heads less width"]:
    """Return the room when only the first `held` columns are left.

    What is no longer needed of it is freed.
    """
    columns = columns_of_room(held)
    return room if columns == room.shape[2] else room[:, :, :columns].clone()


def writable(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state that may be written to: copies of what outlived inference mode, else the same."""
    if not any(map(_outlived, state.values())):
        return state
    return {name: tensor.clone() for name, tensor in state.items()}


def _outlived(tensor: Tensor) -> bool:
    # What is made in inference mode may not be written to outside of it.
    return tensor.is_inference() and not torch.is_inference_mode_enabled()


def _must_not_change(room: Tensor, new: Tensor) -> bool:
    return _outlived(room) or room.requires_grad or (torch.is_grad_enabled() and new.requires_grad)
