"""What the kernels read and leave, and the launch of one, which takes of it what it names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import triton
from torch import Tensor

from scrubjay.kernels.launch import Launch


@dataclass(frozen=True)
class Inputs:
    """What the kernels read: tokens in chunks, float32 and contiguous."""

    query: Tensor
    key: Tensor
    value: Tensor
    step: Tensor
    levels: Tensor
    """Decays multiplied `[N, R, L, C, F]`, of blocks of 1, 2, 4, ... tokens; see `tiles`."""
    since: Tensor
    until: Tensor
    delta: bool
    exact: bool
    """Whether products of float32 keep their digits."""

    @property
    def tile(self) -> int:
        """Channels of values that one program of a walk takes."""
        return min(32, _block(self.value.shape[-1]))

    def tensors(self) -> dict[str, Tensor]:
        """Return them by name."""
        names = ("query", "key", "value", "step", "levels", "since", "until")
        return {name: getattr(self, name) for name in names}


class Kept(NamedTuple):
    """What a forward pass leaves for its gradient; the hebbian rule has errors of its own alone."""

    read: Tensor
    inverse: Tensor
    reached: Tensor
    errors: Tensor
    states: Tensor


class Grads(NamedTuple):
    """What a backward pass is given and leaves."""

    grad: Tensor
    grad_errors: Tensor
    behind: Tensor
    grad_state: Tensor
    grad_value: Tensor
    grad_query: Tensor
    grad_key: Tensor
    grad_step: Tensor
    grad_since: Tensor
    grad_right: Tensor
    """Of keys times steps."""


def launch_of(
    kernel: Any, grid: tuple[int, ...], inputs: Inputs, given: dict[str, Tensor], **more: bool
) -> Launch:
    """Return the launch of a kernel, which takes of tensors, sizes and constants those that it names."""
    count, rows, length, width = inputs.query.shape
    constants: dict[str, object] = {
        "C": length,
        "K": width,
        "V": inputs.value.shape[-1],
        "F": inputs.since.shape[-1],
        "LEVELS": inputs.levels.shape[2],
        "DELTA": inputs.delta,
        "PRECISION": "tf32x3" if inputs.exact else "tf32",
        "BLOCK_C": _block(length),
        "BLOCK_K": _block(width),
        "BLOCK_V": _block(inputs.value.shape[-1]),
        "TILE_V": inputs.tile,
        **more,
    }
    known: dict[str, object] = {f"{name}_ptr": tensor for name, tensor in given.items()}
    known |= {"N": count, "R": rows}
    return Launch(
        kernel,
        grid,
        {name: known[name] for name in kernel.arg_names if name in known},
        {name: constants[name] for name in kernel.arg_names if name in constants},
        num_warps=8,
        num_stages=1,
    )


def _block(size: int) -> int:
    return max(16, triton.next_power_of_2(size))
