"""A scan whose decays are those of every step: nothing of them is spread out over time.

Letters: B batch, T time, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Num
from torch import Tensor

from scrubjay.kernels.derivatives import by_graph, is_wanted_again
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.elementwise import blocks, reference

NARROW = 256
"""Numbers of a step of which fewer are quicker done by blocks."""


def scan(
    start: Bool[Tensor, "B T"] | None,
    decay: Num[Tensor, " D"],
    value: Num[Tensor, "B T D"],
    state: Num[Tensor, "B D"],
) -> Num[Tensor, "B T D"]:
    """Return the states after every step, with their gradient by hand; what is given is finite."""
    return _Scan.apply(start, decay, value, state)  # pyright: ignore[reportReturnType]


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, start: Tensor | None, decay: Tensor, value: Tensor, state: Tensor):
        states = value.clone(memory_format=torch.contiguous_format)
        pass_over(_decays(start, decay, value.shape[1]), states.unbind(1), state)
        ctx.start = start
        ctx.save_for_backward(decay, value, state, states)
        return states

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        decay, value, state, states = ctx.saved_tensors
        start = ctx.start
        if is_wanted_again(grad):
            return None, *_by_graph(blocks.run, start, (decay, value, state), grad)
        back = decay.conj().resolve_conj()
        of_values = grad.clone(memory_format=torch.contiguous_format)
        decays = [*_decays(start, back, grad.shape[1])[1:], back][::-1]
        pass_over(decays, of_values.unbind(1)[::-1], torch.zeros_like(state))
        before = torch.cat([state[:, None], states[:, :-1]], dim=1)
        of_state = back * of_values[:, 0]
        if start is not None:
            before.masked_fill_(start[..., None], 0)
            of_state = torch.where(start[:, :1], 0, of_state)
        of_decay = (of_values * before.conj()).sum((0, 1))
        if bool(torch.isfinite(of_decay.sum() + of_values.sum() + of_state.sum())):
            return None, of_decay, of_values, of_state
        # As in `walk`: there are numbers that nothing owes.
        return None, *_by_graph(lambda *given: reference.run(*given)[0], start, (decay, value, state), grad)


def _decays(start: Tensor | None, decay: Tensor, time: int) -> list[Tensor]:
    """Return those of each step, with zeros for rows that begin an episode where some do: at few steps."""
    if start is None:
        return [decay] * time
    some = start.any(dim=0)
    fading = iter(torch.where(start.T[some][..., None], 0, decay).unbind())
    return [next(fading) if begins else decay for begins in some.tolist()]


def pass_over(decays: Sequence[Tensor], steps: Sequence[Tensor], state: Tensor, scale: float = 1) -> None:
    """Turn the values of one step after the other into states, whose decays are `scale` times those given."""
    for decay, step in zip(decays, steps, strict=True):
        state = step.addcmul_(decay, state, value=scale)


def _by_graph(run, start: Tensor | None, given: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    def spread(decay: Tensor, value: Tensor, state: Tensor) -> Tensor:
        return run(start, decay.expand_as(value), value, state)

    return by_graph(spread, given, grad)
