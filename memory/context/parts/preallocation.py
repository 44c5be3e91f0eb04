"""Preallocation for a growing cache: new tokens are written in place, without a copy of the earlier ones."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 256
"""Number of tokens by which the capacity grows."""


def compute_capacity(columns: int, most: int | None = None) -> int:
    """Return the capacity for `columns` tokens: the next multiple of `BLOCK`, limited by `most`."""
    capacity = -(-columns // BLOCK) * BLOCK
    return capacity if most is None else max(min(capacity, most), columns)


def append(
    buffer: Float[Tensor, "batch heads capacity *width"] | None,
    count: int,
    new: Float[Tensor, "batch heads length *width"],
    most: int | None = None,
) -> Float[Tensor, "batch heads more *width"]:
    """Write the `new` tokens after the first `count` tokens of a buffer, and return the buffer.

    The buffer is changed in place if the new tokens fit. If they do not fit, the result is a larger buffer
    that ends with zeros. With gradients, the result is always a new buffer: autograd needs the old one.
    """
    total = count + new.shape[2]
    if buffer is not None and total <= buffer.shape[2] and not _must_not_change(buffer, new):
        buffer[:, :, count:total] = new
        return buffer
    spare = new.new_zeros(*new.shape[:2], compute_capacity(total, most) - total, *new.shape[3:])
    before = [] if buffer is None else [buffer[:, :, :count]]
    return torch.cat([*before, new, spare], dim=2)


def shrink(
    buffer: Float[Tensor, "batch heads capacity width"], count: int
) -> Float[Tensor, "batch heads less width"]:
    """Return the buffer with only the capacity that its first `count` tokens need."""
    columns = compute_capacity(count)
    return buffer if columns == buffer.shape[2] else buffer[:, :, :columns].clone()


def make_writable(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state that can be written in place.

    The result is a copy if the tensors of `state` were created in inference mode.
    """
    if not any(map(_is_frozen, state.values())):
        return state
    return {name: tensor.clone() for name, tensor in state.items()}


def _is_frozen(tensor: Tensor) -> bool:
    # Tensors created in inference mode cannot be written in place outside of it.
    return tensor.is_inference() and not torch.is_inference_mode_enabled()


def _must_not_change(buffer: Tensor, new: Tensor) -> bool:
    return _is_frozen(buffer) or buffer.requires_grad or (torch.is_grad_enabled() and new.requires_grad)
