"""Scan with one decay per channel, equal at all steps. The decay is not expanded over time.

Letters: B batch, T time, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Num
from torch import Tensor

from scrubjay.kernels.derivatives import differentiate_graph, needs_graph
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.elementwise import blocks, reference

NARROW = 256
"""Smallest size of a step for this scan; smaller steps are faster by blocks."""


def scan(
    start: Bool[Tensor, "B T"] | None,
    decay: Num[Tensor, " D"],
    value: Num[Tensor, "B T D"],
    state: Num[Tensor, "B D"],
) -> Num[Tensor, "B T D"]:
    """Return the states after every step, with a custom backward pass; all inputs must be finite."""
    return _Scan.apply(start, decay, value, state)  # pyright: ignore[reportReturnType]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, start: Tensor | None, decay: Tensor, value: Tensor, state: Tensor):
        states = value.clone(memory_format=torch.contiguous_format)
        scan_in_place(_decays_per_step(start, decay, value.shape[1]), states.unbind(1), state)
        ctx.start = start
        ctx.save_for_backward(decay, value, state, states)
        return states

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        decay, value, state, states = ctx.saved_tensors
        start = ctx.start
        if needs_graph(grad):
            return None, *_differentiate_graph(blocks.run, start, (decay, value, state), grad)
        conjugate = decay.conj().resolve_conj()
        grad_values = grad.clone(memory_format=torch.contiguous_format)
        decays = [*_decays_per_step(start, conjugate, grad.shape[1])[1:], conjugate][::-1]
        scan_in_place(decays, grad_values.unbind(1)[::-1], torch.zeros_like(state))
        states_before = torch.cat([state[:, None], states[:, :-1]], dim=1)
        grad_state = conjugate * grad_values[:, 0]
        if start is not None:
            states_before.masked_fill_(start[..., None], 0)
            grad_state = torch.where(start[:, :1], 0, grad_state)
        grad_decay = (grad_values * states_before.conj()).sum((0, 1))
        if bool(torch.isfinite(grad_decay.sum() + grad_values.sum() + grad_state.sum())):
            return None, grad_decay, grad_values, grad_state
        # As in `sequential`: NaN and overflow in values on which no gradient depends.
        return None, *_differentiate_graph(
            lambda *inputs: reference.run(*inputs)[0], start, (decay, value, state), grad
        )


def _decays_per_step(start: Tensor | None, decay: Tensor, time: int) -> list[Tensor]:
    """Return the decay of each step. It is zero in batch rows that begin an episode at that step."""
    if start is None:
        return [decay] * time
    some = start.any(dim=0)
    changed_decays = iter(torch.where(start.T[some][..., None], 0, decay).unbind())
    return [next(changed_decays) if has_start else decay for has_start in some.tolist()]


def scan_in_place(decays: Sequence[Tensor], steps: Sequence[Tensor], state: Tensor, scale: float = 1) -> None:
    """Replace the value of each step in `steps` by the state after this step, in place.

    The factor of the previous state is the decay of the step times `scale`.
    """
    for decay, step in zip(decays, steps, strict=True):
        state = step.addcmul_(decay, state, value=scale)


def _differentiate_graph(run, start: Tensor | None, inputs: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    def run_expanded(decay: Tensor, value: Tensor, state: Tensor) -> Tensor:
        return run(start, decay.expand_as(value), value, state)

    return differentiate_graph(run_expanded, inputs, grad)
