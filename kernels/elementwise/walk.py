"""A scan one step after the other, in place: where rows and channels are many, nothing is faster.

The gradient by hand walks back the same way. Letters: B batch, T time, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Num
from torch import Tensor

from scrubjay.kernels.derivatives import by_graph, is_wanted_again
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.elementwise import blocks, reference

WIDE = 2048
"""Numbers of a step of which fewer cost less than to begin an operation on them, so blocks share it."""


def scan(
    start: Bool[Tensor, "B T"] | None,
    decay: Num[Tensor, "B T D"],
    value: Num[Tensor, "B T D"],
    state: Num[Tensor, "B D"],
) -> Num[Tensor, "B T D"]:
    """Return the states after every step, with their gradient by hand; what is given is finite."""
    return _Scan.apply(start, decay, value, state)  # pyright: ignore[reportReturnType]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, start: Tensor | None, decay: Tensor, value: Tensor, state: Tensor):
        if state.numel() < WIDE:
            states = blocks.run(start, decay, value, state)
        else:
            states = torch.empty_like(value)
            _walk(_begins(start, decay), [x.unbind(1) for x in (decay, value, states)], state)
        ctx.start = start
        ctx.save_for_backward(decay, value, state, states)
        return states

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        decay, value, state, states = ctx.saved_tensors
        if is_wanted_again(grad):
            given = decay, value, state
            return None, *by_graph(lambda *given: blocks.run(ctx.start, *given), given, grad)
        grads = _pull_back(ctx.start, decay, state, states, grad)
        if all(bool(torch.isfinite(x.sum())) for x in grads):
            return None, *grads
        # A zero forgets no NaN, and decays above 1 may leave all numbers in a product that nothing owes.
        given = decay, value, state
        return None, *by_graph(lambda *given: reference.run(ctx.start, *given)[0], given, grad)


def _walk(begins: Sequence[Tensor | None], steps: Sequence[Sequence[Tensor]], state: Tensor) -> None:
    """Write states, the last of `steps`, from decays and values; some rows begin with nothing."""
    for begin, decay, value, out in zip(begins, *steps, strict=True):
        if begin is not None:
            state = torch.where(begin, 0, state)
        state = torch.addcmul(value, decay, state, out=out)


def _begins(start: Tensor | None, decay: Tensor) -> list[Tensor | None]:
    """Return of each step which rows begin an episode, None where none does: most steps."""
    if start is None:
        return [None] * decay.shape[1]
    steps = zip(start.any(dim=0).tolist(), start[..., None].unbind(1), strict=True)
    return [begin if any_row else None for any_row, begin in steps]


def _pull_back(
    start: Tensor | None, decay: Tensor, state: Tensor, states: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of decays, values and the state before, from that of all states."""
    decay = decay.conj().resolve_conj()
    nothing = torch.zeros_like(state)
    if state.numel() < WIDE:
        later, back = (
            None if x is None else torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1).flip(1)
            for x in (decay, start)
        )
        assert later is not None
        of_values = blocks.run(back, later, grad.flip(1), nothing).flip(1)
    else:
        of_values = torch.empty_like(states)
        steps = [[*decay.unbind(1)[1:], nothing], grad.unbind(1), of_values.unbind(1)]
        _walk([*_begins(start, decay)[1:], None][::-1], [x[::-1] for x in steps], nothing)
    of_decays = torch.empty_like(decay)
    torch.mul(of_values[:, 1:], states[:, :-1].conj(), out=of_decays[:, 1:])
    torch.mul(of_values[:, 0], state.conj(), out=of_decays[:, 0])
    of_state = decay[:, 0] * of_values[:, 0]
    if start is not None:
        of_decays.masked_fill_(start[..., None], 0)
        of_state = torch.where(start[:, :1], 0, of_state)
    return of_decays, of_values, of_state
