"""Sequential scan that writes in place: the fastest path for many batch rows and channels.

The custom backward pass runs over the steps in reverse. Letters: B batch, T time, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Num
from torch import Tensor

from scrubjay.kernels.derivatives import differentiate_graph, needs_graph
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.elementwise import blocks, reference

WIDE = 2048
"""Smallest size of a step that is worth an operation of its own; smaller steps are processed by blocks."""


def scan(
    start: Bool[Tensor, "B T"] | None,
    decay: Num[Tensor, "B T D"],
    value: Num[Tensor, "B T D"],
    state: Num[Tensor, "B D"],
) -> Num[Tensor, "B T D"]:
    """Return the states after every step, with a custom backward pass; all inputs must be finite."""
    return _Scan.apply(start, decay, value, state)  # pyright: ignore[reportReturnType]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, start: Tensor | None, decay: Tensor, value: Tensor, state: Tensor):
        if state.numel() < WIDE:
            states = blocks.run(start, decay, value, state)
        else:
            states = torch.empty_like(value)
            _scan_in_place(_start_masks(start, decay), [x.unbind(1) for x in (decay, value, states)], state)
        ctx.start = start
        ctx.save_for_backward(decay, value, state, states)
        return states

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        decay, value, state, states = ctx.saved_tensors
        if needs_graph(grad):
            inputs = decay, value, state
            return None, *differentiate_graph(lambda *inputs: blocks.run(ctx.start, *inputs), inputs, grad)
        grads = _backward(ctx.start, decay, state, states, grad)
        if all(bool(torch.isfinite(x.sum())) for x in grads):
            return None, *grads
        # 0 * NaN is NaN, and a product of decays above 1 may overflow although no gradient depends on it.
        inputs = decay, value, state
        return None, *differentiate_graph(lambda *inputs: reference.run(ctx.start, *inputs)[0], inputs, grad)


def _scan_in_place(
    start_masks: Sequence[Tensor | None], steps: Sequence[Sequence[Tensor]], state: Tensor
) -> None:
    """Compute the state after every step, and write it to the step's tensor in `steps[2]`.

    `steps` holds three lists with one tensor per step: decays, values and states. The previous state counts
    as zero in batch rows that begin an episode.
    """
    for start_mask, decay, value, out in zip(start_masks, *steps, strict=True):
        if start_mask is not None:
            state = torch.where(start_mask, 0, state)
        state = torch.addcmul(value, decay, state, out=out)


def _start_masks(start: Tensor | None, decay: Tensor) -> list[Tensor | None]:
    """Return for every step the mask of batch rows that begin an episode, or None if no row does."""
    if start is None:
        return [None] * decay.shape[1]
    steps = zip(start.any(dim=0).tolist(), start[..., None].unbind(1), strict=True)
    return [start_mask if any_row else None for any_row, start_mask in steps]


def _backward(
    start: Tensor | None, decay: Tensor, state: Tensor, states: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of decays, values and the initial state, from the gradient of all states."""
    decay = decay.conj().resolve_conj()
    zeros = torch.zeros_like(state)
    if state.numel() < WIDE:
        next_decay, reversed_start = (
            None if x is None else torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1).flip(1)
            for x in (decay, start)
        )
        assert next_decay is not None
        grad_values = blocks.run(reversed_start, next_decay, grad.flip(1), zeros).flip(1)
    else:
        grad_values = torch.empty_like(states)
        steps = [[*decay.unbind(1)[1:], zeros], grad.unbind(1), grad_values.unbind(1)]
        _scan_in_place([*_start_masks(start, decay)[1:], None][::-1], [x[::-1] for x in steps], zeros)
    grad_decays = torch.empty_like(decay)
    torch.mul(grad_values[:, 1:], states[:, :-1].conj(), out=grad_decays[:, 1:])
    torch.mul(grad_values[:, 0], state.conj(), out=grad_decays[:, 0])
    grad_state = decay[:, 0] * grad_values[:, 0]
    if start is not None:
        grad_decays.masked_fill_(start[..., None], 0)
        grad_state = torch.where(start[:, :1], 0, grad_state)
    return grad_decays, grad_values, grad_state
