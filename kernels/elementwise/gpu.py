# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# pyright: reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Scan on Triton. A program loops over the steps of one batch row, for a block of independent channels.

The backward pass loops in reverse. It multiplies the gradient of the next state by the decay of the next
step, and adds the product to the gradient of the current state. Neither states nor gradients cross an
episode start.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.launch import Launch

_BLOCK = 128
_GRADS = ("grad", "grad_decay", "grad_value", "grad_state")


@triton.jit
def _forward_kernel(
    decay_ptr, value_ptr, state_ptr, start_ptr, states_ptr,
    T, D, STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the states of one batch row. STEP is 2 for pairs of real and imaginary parts, else 1."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    column = d * STEP
    # The initial state. [BLOCK]
    real = tl.load(state_ptr + row * (D * STEP) + column, mask=inside, other=0.0)
    if STEP == 2:
        imaginary = tl.load(state_ptr + row * (D * STEP) + column + 1, mask=inside, other=0.0)
    for t in range(T):
        offset = (row * T + t) * (D * STEP) + column
        # Load one step. [BLOCK]
        decay = tl.load(decay_ptr + offset, mask=inside, other=0.0)
        value = tl.load(value_ptr + offset, mask=inside, other=0.0)
        is_start = False
        if start_ptr is not None:
            is_start = tl.load(start_ptr + row * T + t) != 0
        # Advance the state and store it. [BLOCK]
        if STEP == 2:
            decay_imaginary = tl.load(decay_ptr + offset + 1, mask=inside, other=0.0)
            value_imaginary = tl.load(value_ptr + offset + 1, mask=inside, other=0.0)
            new_real = decay * real - decay_imaginary * imaginary + value
            imaginary = tl.where(
                is_start, value_imaginary, decay_imaginary * real + decay * imaginary + value_imaginary
            )
            real = tl.where(is_start, value, new_real)
            tl.store(states_ptr + offset + 1, imaginary, mask=inside)
        else:
            real = tl.where(is_start, value, decay * real + value)
        tl.store(states_ptr + offset, real, mask=inside)


@triton.jit
def _backward_kernel(
    decay_ptr, state_ptr, start_ptr, states_ptr, grad_ptr,
    grad_decay_ptr, grad_value_ptr, grad_state_ptr,
    T, D, STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradients of one batch row, from the last step to the first."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    column = d * STEP
    # Gradient that comes from the next step. [BLOCK]
    real = tl.zeros([BLOCK], tl.float32)
    imaginary = tl.zeros([BLOCK], tl.float32)
    for back in range(T):
        t = T - 1 - back
        offset = (row * T + t) * (D * STEP) + column
        # Add the step's own gradient; the sum is the gradient of the value. [BLOCK]
        real += tl.load(grad_ptr + offset, mask=inside, other=0.0)
        tl.store(grad_value_ptr + offset, real, mask=inside)
        is_start = False
        if start_ptr is not None:
            is_start = tl.load(start_ptr + row * T + t) != 0
        # The gradient of the decay needs the previous state. [BLOCK]
        if t == 0:
            before = state_ptr + row * (D * STEP) + column
        else:
            before = states_ptr + offset - D * STEP
        decay = tl.load(decay_ptr + offset, mask=inside, other=0.0)
        previous = tl.load(before, mask=inside, other=0.0)
        if STEP == 2:
            imaginary += tl.load(grad_ptr + offset + 1, mask=inside, other=0.0)
            tl.store(grad_value_ptr + offset + 1, imaginary, mask=inside)
            decay_imaginary = tl.load(decay_ptr + offset + 1, mask=inside, other=0.0)
            previous_imaginary = tl.load(before + 1, mask=inside, other=0.0)
            # Gradient of the decay: the gradient times the conjugate of the previous state.
            grad_decay = real * previous + imaginary * previous_imaginary
            grad_decay_imaginary = imaginary * previous - real * previous_imaginary
            tl.store(grad_decay_ptr + offset, tl.where(is_start, 0.0, grad_decay), mask=inside)
            tl.store(grad_decay_ptr + offset + 1, tl.where(is_start, 0.0, grad_decay_imaginary), mask=inside)
            next_real = real * decay + imaginary * decay_imaginary
            imaginary = tl.where(is_start, 0.0, imaginary * decay - real * decay_imaginary)
            real = tl.where(is_start, 0.0, next_real)
        else:
            tl.store(grad_decay_ptr + offset, tl.where(is_start, 0.0, real * previous), mask=inside)
            real = tl.where(is_start, 0.0, real * decay)
    tl.store(grad_state_ptr + row * (D * STEP) + column, real, mask=inside)
    if STEP == 2:
        tl.store(grad_state_ptr + row * (D * STEP) + column + 1, imaginary, mask=inside)


def run(
    decay: Tensor, value: Tensor, state: Tensor, start: Tensor | None, pairs: bool
) -> tuple[Tensor, Tensor]:
    """Return the states after every step, and the last state. All inputs must be float32."""
    shape = value.shape
    flat = (decay.reshape(*shape[:2], -1), value.reshape(*shape[:2], -1), state.reshape(shape[0], -1))
    states = _Scan.apply(start, 2 if pairs else 1, *flat)
    assert isinstance(states, Tensor)
    return states.view(shape), states[:, -1].reshape(shape[0], *shape[2:])


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, start: Tensor | None, step: int, *numbers: Tensor):
        decay, value, state = (x.contiguous() for x in numbers)
        ctx.start, ctx.step = None if start is None else start.contiguous(), step
        states = torch.empty_like(value)
        tensors = {"decay": decay, "value": value, "state": state, "start": ctx.start, "states": states}
        build_launch(_forward_kernel, step, tensors).run()
        ctx.save_for_backward(decay, state, states)
        return states

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "scan with implementation='triton' is differentiable once; use 'torch' for second derivatives"
            )
        decay, state, states = ctx.saved_tensors
        grads = torch.empty_like(decay), torch.empty_like(decay), torch.empty_like(state)
        tensors = {"decay": decay, "state": state, "start": ctx.start, "states": states}
        tensors |= zip(_GRADS, (grad.contiguous(), *grads), strict=True)
        build_launch(_backward_kernel, ctx.step, tensors).run()
        return None, None, *grads


def build_launch(kernel: Any, step: int, tensors: dict[str, Tensor | None]) -> Launch:
    """Return the launch of a kernel, not yet run, with `tensors` matched to its parameters by name.

    Tensors are contiguous: decay, value and states `[B, T, D * STEP]`, the initial state `[B, D * STEP]`, and
    their gradients.
    """
    states = tensors["states"]
    assert states is not None
    batch, time, width = states.shape
    grid = (batch, triton.cdiv(width // step, _BLOCK))
    sizes = {"T": time, "D": width // step}
    return Launch.match(kernel, grid, tensors, sizes, {"STEP": step, "BLOCK": _BLOCK})


def configurations() -> dict[str, Launch]:
    """Return example launches by name. They hold meta tensors, so they compile without a GPU."""
    launches = {}
    for step, starts in ((1, False), (1, True), (2, True)):
        numbers = torch.empty(16, 64, 256 * step, device="meta")
        state = torch.empty(16, 256 * step, device="meta")
        tensors = dict.fromkeys(("decay", "value", "states", *_GRADS), numbers)
        tensors |= dict.fromkeys(("state", "grad_state"), state)
        tensors["start"] = torch.empty(16, 64, dtype=torch.bool, device="meta") if starts else None
        name = f"{'pairs' if step == 2 else 'numbers'}{', starts' * starts}, D=256"
        launches[f"forward: {name}"] = build_launch(_forward_kernel, step, tensors)
        launches[f"gradient: {name}"] = build_launch(_backward_kernel, step, tensors)
    return launches
