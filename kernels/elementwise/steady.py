"""A scan whose decays are those of every step: nothing of them is spread out over time.

Letters: B batch, T time, D channels.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Num
from torch import Tensor

from scrubjay.kernels.derivatives import by_graph, is_wanted_again
from scrubjay.kernels.elementwise import blocks, reference
from scrubjay.kernels.elementwise.walk import beginnings, pass_over

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
        begins, states = beginnings(start, value), torch.empty_like(value)
        pass_over(begins, [[decay] * value.shape[1], value.unbind(1), states.unbind(1)], state)
        ctx.start, ctx.begins = start, begins
        ctx.save_for_backward(decay, value, state, states)
        return states

    @staticmethod
    def backward(ctx, grad):
        decay, value, state, states = ctx.saved_tensors
        start = ctx.start
        if is_wanted_again(grad):
            return None, *_by_graph(blocks.run, start, (decay, value, state), grad)
        back, of_values = decay.conj().resolve_conj(), torch.empty_like(states)
        steps = [[back] * grad.shape[1], grad.unbind(1)[::-1], of_values.unbind(1)[::-1]]
        pass_over([*ctx.begins[1:], None][::-1], steps, torch.zeros_like(state))
        before = torch.cat([state[:, None], states[:, :-1]], dim=1)
        of_state = back * of_values[:, 0]
        if start is not None:
            before.masked_fill_(start[..., None], 0)
            of_state = torch.where(start[:, :1], 0, of_state)
        grads = (of_values * before.conj()).sum((0, 1)), of_values, of_state
        if all(bool(torch.isfinite(x.sum())) for x in grads):
            return None, *grads
        # As in `walk`: there are numbers that nothing owes.
        return None, *_by_graph(lambda *given: reference.run(*given)[0], start, (decay, value, state), grad)


def _by_graph(run, start: Tensor | None, given: tuple[Tensor, ...], grad: Tensor) -> list[Tensor]:
    def spread(decay: Tensor, value: Tensor, state: Tensor) -> Tensor:
        return run(start, decay.expand_as(value), value, state)

    return by_graph(spread, given, grad)
