"""Tensors of the kernels of linear memory, and the launch of a kernel.

A field is passed to the kernel parameter of the same name: field `key` as `key_ptr`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from scrubjay.kernels.launch import Launch, pad_size


@dataclass(frozen=True)
class LinearKernelInputs:
    """Inputs of the kernels: tokens in chunks, float32 and contiguous."""

    query: Tensor
    key: Tensor
    value: Tensor
    step: Tensor
    levels: Tensor
    """Decays inside blocks of 1, 2, 4, ... tokens, `[N, R, LEVELS, C, F]`; see `kernels.linear.gpu.tiles`."""
    from_start: Tensor
    to_end: Tensor
    delta: bool
    exact: bool
    """Compute matrix products by 3xTF32, which is nearly as precise as float32. False selects TF32."""
    erase_key: Tensor | None = None
    """Erase keys of the delta rule; None if they are the keys."""

    @property
    def tile(self) -> int:
        """Number of value channels that one program handles in a kernel that loops over chunks."""
        return min(32, pad_size(self.value.shape[-1]))

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that are tensors, by name. Without erase keys, the keys take their place."""
        names = ("query", "key", "value", "step", "levels", "from_start", "to_end")
        erase_key = self.key if self.erase_key is None else self.erase_key
        return {name: getattr(self, name) for name in names} | {"erase_key": erase_key}


class LinearKernelTrace(NamedTuple):
    """Outputs of the forward kernels that the backward pass needs.

    With the hebbian rule `inverse` and `inverse_keys` are empty and `errors` are the values.
    """

    read_scores: Tensor
    inverse: Tensor
    inverse_keys: Tensor
    errors: Tensor
    states: Tensor


class LinearKernelGrads(NamedTuple):
    """Inputs and outputs of the backward kernels."""

    grad: Tensor
    grad_errors: Tensor
    grad_states_after: Tensor
    grad_state: Tensor
    grad_value: Tensor
    grad_query: Tensor
    grad_key: Tensor
    grad_step: Tensor
    grad_log_sums: Tensor
    grad_right: Tensor
    """Gradient of the scaled keys (keys times step sizes)."""
    grad_erase_key: Tensor
    """Gradient of the erase keys; `grad_key` if they are the keys."""


def build_launch(
    kernel: Any, grid: tuple[int, ...], inputs: LinearKernelInputs, tensors: dict[str, Tensor], **more: bool
) -> Launch:
    """Return the launch of a kernel, with tensors, sizes and constants matched to parameters by name."""
    count, rows, length, width = inputs.query.shape
    constants: dict[str, object] = {
        "C": length,
        "K": width,
        "V": inputs.value.shape[-1],
        "F": inputs.from_start.shape[-1],
        "LEVELS": inputs.levels.shape[2],
        "DELTA": inputs.delta,
        "ERASE": inputs.erase_key is not None,
        "PRECISION": "tf32x3" if inputs.exact else "tf32",
        "BLOCK_C": pad_size(length),
        "BLOCK_K": pad_size(width),
        "BLOCK_V": pad_size(inputs.value.shape[-1]),
        "TILE_V": inputs.tile,
        **more,
    }
    return Launch.match(kernel, grid, tensors, {"N": count, "R": rows}, constants, num_warps=8, num_stages=1)
