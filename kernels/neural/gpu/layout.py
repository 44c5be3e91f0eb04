"""Tensors of the kernels of neural memory, and the layout of their contents."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

from torch import Tensor

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
    chunks: Tensor
    """Intermediate results of every chunk, `[R, N, size]`, for R = B H rows of N chunks.

    `Layout.trace_slots` holds the offset of each result in the last dim.
    """


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
