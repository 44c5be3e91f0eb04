# pyright: reportCallIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false, reportOperatorIssue=false, reportPossiblyUnboundVariable=false
"""Scan on Triton: a program walks one row through time for a block of channels, which do not know each other.

The gradient walks back: what a state owes is its own and, times its decay, what the next one owes. Nothing
crosses a start in either direction, so no number there is looked at.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.launch import Launch

_BLOCK = 128


@triton.jit
def _forward_kernel(
    decay_ptr, value_ptr, state_ptr, start_ptr, states_ptr,
    T, D, STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the states of one row; STEP is 2 where numbers are pairs."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    at = d * STEP
    real = tl.load(state_ptr + row * (D * STEP) + at, mask=inside, other=0.0)
    if STEP == 2:
        imaginary = tl.load(state_ptr + row * (D * STEP) + at + 1, mask=inside, other=0.0)
    for t in range(T):
        here = (row * T + t) * (D * STEP) + at
        decay = tl.load(decay_ptr + here, mask=inside, other=0.0)
        value = tl.load(value_ptr + here, mask=inside, other=0.0)
        begins = False
        if start_ptr is not None:
            begins = tl.load(start_ptr + row * T + t) != 0
        if STEP == 2:
            turn = tl.load(decay_ptr + here + 1, mask=inside, other=0.0)
            other = tl.load(value_ptr + here + 1, mask=inside, other=0.0)
            went = decay * real - turn * imaginary + value
            imaginary = tl.where(begins, other, turn * real + decay * imaginary + other)
            real = tl.where(begins, value, went)
            tl.store(states_ptr + here + 1, imaginary, mask=inside)
        else:
            real = tl.where(begins, value, decay * real + value)
        tl.store(states_ptr + here, real, mask=inside)


@triton.jit
def _backward_kernel(
    decay_ptr, state_ptr, start_ptr, states_ptr, grad_ptr,
    grad_decay_ptr, grad_value_ptr, grad_state_ptr,
    T, D, STEP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradients of one row, from the last step to the first."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    at = d * STEP
    # What is owed by the step after.
    real = tl.zeros([BLOCK], tl.float32)
    imaginary = tl.zeros([BLOCK], tl.float32)
    for back in range(T):
        t = T - 1 - back
        here = (row * T + t) * (D * STEP) + at
        real += tl.load(grad_ptr + here, mask=inside, other=0.0)
        tl.store(grad_value_ptr + here, real, mask=inside)
        begins = False
        if start_ptr is not None:
            begins = tl.load(start_ptr + row * T + t) != 0
        if t == 0:
            before = state_ptr + row * (D * STEP) + at
        else:
            before = states_ptr + here - D * STEP
        decay = tl.load(decay_ptr + here, mask=inside, other=0.0)
        known = tl.load(before, mask=inside, other=0.0)
        if STEP == 2:
            imaginary += tl.load(grad_ptr + here + 1, mask=inside, other=0.0)
            tl.store(grad_value_ptr + here + 1, imaginary, mask=inside)
            turn = tl.load(decay_ptr + here + 1, mask=inside, other=0.0)
            other = tl.load(before + 1, mask=inside, other=0.0)
            # Times the conjugate of what it was multiplied with.
            of_decay = real * known + imaginary * other
            of_turn = imaginary * known - real * other
            tl.store(grad_decay_ptr + here, tl.where(begins, 0.0, of_decay), mask=inside)
            tl.store(grad_decay_ptr + here + 1, tl.where(begins, 0.0, of_turn), mask=inside)
            owed = real * decay + imaginary * turn
            imaginary = tl.where(begins, 0.0, imaginary * decay - real * turn)
            real = tl.where(begins, 0.0, owed)
        else:
            tl.store(grad_decay_ptr + here, tl.where(begins, 0.0, real * known), mask=inside)
            real = tl.where(begins, 0.0, real * decay)
    tl.store(grad_state_ptr + row * (D * STEP) + at, real, mask=inside)
    if STEP == 2:
        tl.store(grad_state_ptr + row * (D * STEP) + at + 1, imaginary, mask=inside)


class _Given(NamedTuple):
    """What the kernels read, contiguous: numbers `[B, T, D * step]`, the state `[B, D * step]`."""

    decay: Tensor
    value: Tensor
    state: Tensor
    start: Tensor | None


class _Grads(NamedTuple):
    """What the gradient's kernel fills."""

    decay: Tensor
    value: Tensor
    state: Tensor


def run(
    decay: Tensor, value: Tensor, state: Tensor, start: Tensor | None, pairs: bool
) -> tuple[Tensor, Tensor]:
    """Return the states after every step, and the last one; what is given is float32."""
    shape = value.shape
    flat = (decay.reshape(*shape[:2], -1), value.reshape(*shape[:2], -1), state.reshape(shape[0], -1))
    states = _Scan.apply(start, 2 if pairs else 1, *flat)
    assert isinstance(states, Tensor)
    return states.view(shape), states[:, -1].reshape(shape[0], *shape[2:])


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, start: Tensor | None, step: int, *numbers: Tensor):
        decay, value, state = (x.contiguous() for x in numbers)
        given = _Given(decay, value, state, None if start is None else start.contiguous())
        states = torch.empty_like(given.value)
        forward_launch(given, step, states).run()
        ctx.start, ctx.step = given.start, step
        ctx.save_for_backward(given.decay, given.state, states)
        return states

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "scan with implementation='triton' is differentiable once; use 'torch' for second derivatives"
            )
        decay, state, states = ctx.saved_tensors
        given = _Given(decay, states, state, ctx.start)
        grads = _Grads(torch.empty_like(decay), torch.empty_like(decay), torch.empty_like(state))
        backward_launch(given, ctx.step, grad.contiguous(), grads).run()
        return None, None, *grads


def forward_launch(given: _Given, step: int, states: Tensor) -> Launch:
    """Return the launch that fills `states`."""
    return _launch(_forward_kernel, step, states, given._asdict() | {"states": states})


def backward_launch(given: _Given, step: int, grad: Tensor, grads: _Grads) -> Launch:
    """Return the launch that fills `grads` from the gradient of all states, which `given` has for values."""
    tensors = {name: x for name, x in given._asdict().items() if name != "value"}
    tensors |= {"states": given.value, "grad": grad}
    tensors |= {f"grad_{name}": x for name, x in grads._asdict().items()}
    return _launch(_backward_kernel, step, given.value, tensors)


def configurations() -> dict[str, Launch]:
    """Return the launches of the main configurations on meta tensors, to compile without a GPU."""
    launches = {}
    for step, starts in ((1, False), (1, True), (2, True)):
        numbers = torch.empty(16, 64, 256 * step, device="meta")
        state = torch.empty(16, 256 * step, device="meta")
        start = torch.empty(16, 64, dtype=torch.bool, device="meta") if starts else None
        name = f"{'pairs' if step == 2 else 'numbers'}{', starts' * starts}, D=256"
        given = _Given(numbers, numbers, state, start)
        launches[f"forward: {name}"] = forward_launch(given, step, numbers)
        grads = _Grads(numbers, numbers, state)
        launches[f"gradient: {name}"] = backward_launch(given, step, numbers, grads)
    return launches


def _launch(kernel, step: int, states: Tensor, tensors: dict[str, Tensor | None]) -> Launch:
    batch, time, width = states.shape
    width //= step
    sizes = {"T": time, "D": width}
    arguments = {f"{name}_ptr": x for name, x in tensors.items()} | sizes
    grid = (batch, triton.cdiv(width, _BLOCK))
    return Launch(kernel, grid, arguments, {"STEP": step, "BLOCK": _BLOCK})
