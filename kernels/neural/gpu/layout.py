"""Tensors of the kernels of neural memory, the layout of their contents, and the launch of a kernel.

A tensor is passed to the kernel parameter of the same name: tensor `states` as `states_ptr`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scrubjay.kernels.launch import Launch, name_strides, pad_size
from scrubjay.kernels.neural.network import NetworkShape, NeuralState


class NeuralKernelInputs(NamedTuple):
    """Inputs of the kernels: tokens `[B, T, H, D]` of any dtype; rule, weights and state in float32."""

    query: Tensor
    key: Tensor
    value: Tensor
    rule: Tensor
    """Step sizes and coefficients of every chunk, `[R, N, size]`, at the offsets of `Layout.rule_slots`."""
    weights: tuple[Tensor, ...]
    state: NeuralState
    borders: KernelBorders


class BorderFlag(IntFlag):
    """Bit flags of a chunk: its start, its end, and its anchor, the weights at which gradients are taken."""

    FRESH = 1
    """The chunk begins with zero delta and momentum."""
    FRESH_OR_CUT = 2
    """No gradient flows across the chunk's start."""
    INCOMPLETE = 4
    """The chunk's last token is skipped, so the anchor does not move."""
    OLD_ANCHOR = 8
    """The chunk's anchor is older than its first delta, or it is the initial anchor."""
    AFTER_INCOMPLETE = 16
    """The chunk before is incomplete; always set for chunk 0."""
    FRESH_NEXT = 32
    """The next chunk is fresh."""


class KernelBorders(NamedTuple):
    """Flags and anchor sources of all chunks, `[B, N]` each.

    `flags` holds `BorderFlag` bits. `source` is the chunk whose first delta is the anchor, or -1 for the
    initial anchor.
    """

    flags: Tensor
    source: Tensor


class NeuralKernelTrace(NamedTuple):
    """Outputs of the forward kernels that the backward pass needs.

    Two tensors hold all results. One tensor per result would cost more registers for addresses. `states`,
    `[R, N + 1, 2, P]`, holds delta and momentum before each of N chunks, and after the last chunk. P is the
    number of weights of one head.
    """

    states: Tensor
    trace: Tensor
    """Intermediate results of every chunk, `[R, N, size]`, for R = B H rows of N chunks.

    `Layout.trace_slots` holds the offset of each result in the last dim.
    """


class NeuralKernelGrads(NamedTuple):
    """Inputs and outputs of the backward kernels, which run in the order of `backward_launches`."""

    grad: Tensor
    """Gradient of the outputs; an input."""
    query_grad: Tensor
    rule_grad: Tensor
    """Gradient of the coefficients. Each kernel writes the entries that depend on its part of the forward
    pass."""
    grads: Tensor
    """Gradients of the intermediate results of each chunk, at the offsets of `Layout.grad_slots`."""
    states_grad: Tensor
    """Gradients of the states. The last entry must hold that of the final state."""
    anchor_grad: Tensor
    """Gradient of the final anchor, which the kernels overwrite with that of the initial anchor."""


@dataclass(frozen=True)
class Layout:
    """Offsets and widths of a chunk's data in the packed tensors. A chunk has `length` tokens."""

    shape: NetworkShape
    length: int

    @property
    def trace_slots(self) -> dict[str, tuple[int, int]]:
        """Offset and width of each saved result of a chunk. The width is the number of values per token."""
        inner, width = self.shape.layers[-1]
        hidden = inner * (len(self.shape.layers) - 1)
        return self._slots(
            product=hidden,
            inner=hidden,
            read=hidden,
            error=width,
            clipped_step=1,
            squared_norm=1,
            x_squares=1,
            inner_squares=1,
        )

    @property
    def grad_slots(self) -> dict[str, tuple[int, int]]:
        """Offset and width of the gradient of each intermediate result of a chunk. The width is per token."""
        inner, width = self.shape.layers[-1]
        hidden = inner * (len(self.shape.layers) - 1)
        return self._slots(
            x_grad=inner,
            error_grad=width,
            key_grad=width,
            inner_grad=hidden,
            read_grad=hidden,
            slope_grad=hidden,
            product_grad=hidden,
        )

    @property
    def rule_slots(self) -> dict[str, int]:
        """Offset of each coefficient of a chunk. The step sizes are at offset 0."""
        length = self.length
        return {
            "read_retention": length,
            "read_buildup": 2 * length,
            "end_mixing": 3 * length,
            "end_trace": 4 * length,
            "end_retention": 5 * length,
            "end_buildup": 5 * length + 1,
            "end_momentum_retention": 5 * length + 2,
            "error_share": 5 * length + 3,
            "read_mixing": _padded(6 * length + 3),
        }

    def sizes(self) -> dict[str, int]:
        """Return the element counts of a chunk's coefficients, saved results and gradients."""
        return {
            "RULE_SIZE": _padded(self.rule_slots["read_mixing"] + self.length**2),
            "TRACE_SIZE": _padded(_end(self.trace_slots, self.length)),
            "GRADS_SIZE": _padded(_end(self.grad_slots, self.length)),
        }

    def view(self, whole: Tensor, name: str) -> Tensor:
        """Return a view of the saved result or gradient `name` in the packed tensor `whole`.

        The view has shape `[R, N, C, width]`: R = B H rows, N chunks, C tokens per chunk.
        """
        offset, width = (self.trace_slots | self.grad_slots)[name]
        return whole[..., offset : offset + self.length * width].unflatten(-1, (self.length, width))

    def _slots(self, **widths: int) -> dict[str, tuple[int, int]]:
        slots, offset = {}, 0
        for name, width in widths.items():
            slots[name] = offset, width
            offset = _padded(offset + self.length * width)
        return slots


def _end(slots: dict[str, tuple[int, int]], length: int) -> int:
    return max(offset + length * width for offset, width in slots.values())


def _padded(size: int) -> int:
    """Return `size`, rounded up to a multiple of 16, so that loads are aligned."""
    return -(-size // 16) * 16


def allocate_trace(inputs: NeuralKernelInputs, layout: Layout) -> NeuralKernelTrace:
    """Return empty tensors for the outputs of the forward kernels."""
    rows, count, _ = inputs.rule.shape
    new = inputs.rule.new_empty
    return NeuralKernelTrace(
        new(rows, count + 1, 2, layout.shape.size), new(rows, count, layout.sizes()["TRACE_SIZE"])
    )


def build_launch(
    kernel: Any,
    programs: int,
    inputs: NeuralKernelInputs,
    layout: Layout,
    tensors: dict[str, Tensor],
) -> Launch:
    """Return the launch of a kernel: inputs, `tensors` and constants are matched to parameters by name."""
    inner, width = layout.shape.layers[-1]
    tokens = {"query": inputs.query, "key": inputs.key, "value": inputs.value}
    exact = all(x.dtype == torch.float32 for x in tokens.values())
    constants = {
        "C": layout.length,
        "D": width,
        "I": inner,
        "DEPTH": len(layout.shape.layers),
        "RESIDUAL": layout.shape.residual,
        "PRECISION": "tf32x3" if exact else "tf32",
        "BLOCK_C": pad_size(layout.length),
        "BLOCK_D": pad_size(width),
        "BLOCK_I": 16,
        **layout.sizes(),
        **{name.upper(): offset for name, offset in layout.rule_slots.items()},
        **{name.upper(): offset for name, (offset, _) in (layout.trace_slots | layout.grad_slots).items()},
    }
    lower, upper = inputs.weights if len(inputs.weights) == 2 else (None, *inputs.weights)
    own = tokens | {"rule": inputs.rule, "lower": lower, "upper": upper} | inputs.borders._asdict()
    sizes = {"N": inputs.rule.shape[1], "H": inputs.query.shape[2]} | name_strides("bth", tokens)
    # One warp for every 16 tokens of a chunk, but at least four.
    num_warps = max(4, pad_size(layout.length) // 16)
    return Launch.match(kernel, (programs,), own | tensors, sizes, constants, num_warps, num_stages=1)
