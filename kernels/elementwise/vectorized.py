"""Scan in torch: the definition, by blocks of steps, and in place with a custom backward pass.

Letters: B batch, T time, D channels; N blocks, L steps of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Num
from torch import Tensor

from scrubjay.kernels.derivatives import differentiate_graph, needs_graph
from scrubjay.kernels.dispatch import without_autocast

WIDE = 2048
"""Smallest size of a step that is worth an operation of its own; smaller steps are processed by blocks."""
NARROW = 256
"""Smallest size of a step with a decay that is equal at all steps; smaller steps are processed by blocks."""
_SHORTEST_BLOCK = 4


def run_reference(
    start: Bool[Tensor, "B T"] | None,
    decay: Num[Tensor, "B T *D"],
    value: Num[Tensor, "B T *D"],
    state: Num[Tensor, "B *D"],
) -> tuple[Num[Tensor, "B T *D"], Num[Tensor, "B *D"]]:
    """Return the states after every step, and the last state. This is the definition: one step at a time.

    Complex numbers must have a complex dtype. Pairs of real and imaginary parts are not supported.
    """
    states = []
    for t in range(decay.shape[1]):
        if start is None:
            state = decay[:, t] * state + value[:, t]
        else:
            # Selected, not multiplied by zero: 0 * NaN is NaN, here and in the gradient.
            is_start = start[:, t].view(-1, *[1] * (state.ndim - 1))
            next_state = decay[:, t] * torch.where(is_start, 0, state) + value[:, t]
            state = torch.where(is_start, value[:, t], next_state)
        states.append(state)
    return torch.stack(states, dim=1) if states else value, state


def run_blocks(
    start: Bool[Tensor, "B T"] | None,
    decay: Num[Tensor, "B T D"],
    value: Num[Tensor, "B T D"],
    state: Num[Tensor, "B D"],
) -> Num[Tensor, "B T D"]:
    """Return the states after every step, differentiable by autograd; all inputs must be finite.

    First all blocks advance in parallel, each from a zero state. Then a loop over blocks computes the state
    before each block. Finally, the decayed state before a block is added to all states of the block. This
    takes about 3 sqrt(T) sequential operations for T steps.
    """
    batch, time, width = decay.shape
    if start is not None:
        decay = torch.where(start[..., None], 0, decay)
    length = max(_SHORTEST_BLOCK, math.isqrt(time))
    missing = -time % length
    if missing:
        decay, value = (torch.cat([x, x.new_zeros(batch, missing, width)], dim=1) for x in (decay, value))
    # [L, B, N, D]: step l of all blocks is contiguous.
    decays, values = (x.view(batch, -1, length, width).permute(2, 0, 1, 3).unbind(0) for x in (decay, value))
    local, decay_products = [values[0]], [decays[0]]
    for decay_step, value_step in zip(decays[1:], values[1:], strict=True):
        local.append(torch.addcmul(value_step, decay_step, local[-1]))
        decay_products.append(decay_step * decay_products[-1])
    block_states = [state]
    for end_state, end_decay in zip(local[-1].unbind(1)[:-1], decay_products[-1].unbind(1)[:-1], strict=True):
        block_states.append(torch.addcmul(end_state, end_decay, block_states[-1]))
    first_states = torch.stack(block_states, dim=1)[:, :, None]
    states = torch.addcmul(torch.stack(local, dim=2), torch.stack(decay_products, dim=2), first_states)
    return states.flatten(1, 2)[:, :time]


def run_in_place(
    start: Bool[Tensor, "B T"] | None,
    decay: Num[Tensor, "B T D"] | Num[Tensor, " D"],
    value: Num[Tensor, "B T D"],
    state: Num[Tensor, "B D"],
) -> Num[Tensor, "B T D"]:
    """Return the states after every step, with a custom backward pass; all inputs must be finite.

    This is the fastest path for many batch rows and channels. A decay `[D]` is equal at all steps, and is not
    expanded over time. The backward pass runs over the steps in reverse.
    """
    return _Scan.apply(start, decay, value, state)  # pyright: ignore[reportReturnType]


def scan_in_place(decays: Sequence[Tensor], steps: Sequence[Tensor], state: Tensor, scale: float = 1) -> None:
    """Replace the value of each step in `steps` by the state after this step, in place.

    The factor of the previous state is the decay of the step times `scale`.
    """
    for decay, step in zip(decays, steps, strict=True):
        state = step.addcmul_(decay, state, value=scale)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, start: Tensor | None, decay: Tensor, value: Tensor, state: Tensor):
        if decay.ndim > 1 and state.numel() < WIDE:
            states = run_blocks(start, decay, value, state)
        else:
            states = _scan(start, decay, value, state)
        ctx.start = start
        ctx.save_for_backward(decay, value, state, states)
        return states

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        start, (decay, value, state, states) = ctx.start, ctx.saved_tensors

        def differentiate(run: Callable[..., Tensor]) -> list[Tensor]:
            return differentiate_graph(
                lambda decay, value, state: run(start, decay.expand_as(value), value, state),
                (decay, value, state),
                grad,
            )

        if needs_graph(grad):
            return None, *differentiate(run_blocks)
        grads = _backward(start, decay.conj().resolve_conj(), state, states, grad)
        if bool(torch.isfinite(grads[0].sum() + grads[1].sum() + grads[2].sum())):
            return None, *grads
        # 0 * NaN is NaN, and a product of decays above 1 may overflow although no gradient depends on it.
        return None, *differentiate(lambda *inputs: run_reference(*inputs)[0])


def _scan(start: Tensor | None, decay: Tensor, value: Tensor, state: Tensor, reverse: bool = False) -> Tensor:
    """Return the states after every step.

    With `reverse`, return the gradients of the values. `value` is then the gradient of the states, and
    `state` is zero.
    """
    # In reverse, a step is multiplied by the decay of the step after it.
    first, order = (1, -1) if reverse else (0, 1)
    has_start = [] if start is None else start.any(dim=0).tolist()
    if decay.ndim == 1:
        decays = [decay] * value.shape[1]
        if start is not None:
            # Instead of states, decays are set to zero where an episode begins, for all steps at once.
            own_decays = iter(torch.where(start.T[start.any(dim=0)][..., None], 0, decay).unbind())
            decays = [next(own_decays) if some else decay for some in has_start]
        states = value.clone(memory_format=torch.contiguous_format)
        scan_in_place([*decays[first:], *[decay] * first][::order], states.unbind(1)[::order], state)
        return states
    masks: list[Tensor | None] = [None] * value.shape[1]
    if start is not None:
        masks = [x if some else None for some, x in zip(has_start, start[..., None].unbind(1), strict=True)]
    states = torch.empty_like(value, memory_format=torch.contiguous_format)
    decays, masks = [*decay.unbind(1)[first:], *[state] * first], [*masks[first:], *[None] * first]
    steps = (decays, value.unbind(1), states.unbind(1), masks)
    for decay_step, value_step, out, mask in zip(*(x[::order] for x in steps), strict=True):
        state = torch.addcmul(
            value_step, decay_step, state if mask is None else torch.where(mask, 0, state), out=out
        )
    return states


def _backward(
    start: Tensor | None, decay: Tensor, state: Tensor, states: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of decays, values and the initial state, from the gradient of all states.

    `decay` is the complex conjugate of the decays.
    """
    zeros, is_steady = torch.zeros_like(state), decay.ndim == 1
    if is_steady or state.numel() >= WIDE:
        grad_values = _scan(start, decay, grad, zeros, reverse=True)
    else:
        next_decay, reversed_start = (
            None if x is None else torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1).flip(1)
            for x in (decay, start)
        )
        assert next_decay is not None
        grad_values = run_blocks(reversed_start, next_decay, grad.flip(1), zeros).flip(1)
    if is_steady:
        grad_decays = grad_values * torch.cat([state[:, None], states[:, :-1]], dim=1).conj()
    else:
        grad_decays = torch.empty_like(decay)
        torch.mul(grad_values[:, 1:], states[:, :-1].conj(), out=grad_decays[:, 1:])
        torch.mul(grad_values[:, 0], state.conj(), out=grad_decays[:, 0])
    grad_state = (decay if is_steady else decay[:, 0]) * grad_values[:, 0]
    if start is not None:
        grad_decays.masked_fill_(start[..., None], 0)
        grad_state = torch.where(start[:, :1], 0, grad_state)
    return grad_decays.sum((0, 1)) if is_steady else grad_decays, grad_values, grad_state
