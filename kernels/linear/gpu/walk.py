"""All kernels of linear memory as one operation, differentiable once."""

from __future__ import annotations

import torch
from torch import Tensor

from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.linear.chunks import in_chunks, in_time, tokens_of
from scrubjay.kernels.linear.fading import fade
from scrubjay.kernels.linear.gpu.forward import forward_launches
from scrubjay.kernels.linear.gpu.gradients import backward_launches
from scrubjay.kernels.linear.gpu.layout import Grads, Inputs, Kept
from scrubjay.kernels.linear.gradient import Plan, log_gradient
from scrubjay.kernels.linear.reference import Given

# Tiles of fewer tokens are as large, and those of more spill registers.
_SHORTEST, _LONGEST = 16, 32


def run(plan: Plan, exact: bool, *given: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is read `[B, T, H, V]` and the state after.

    `given` are the parts of a `Given` in float32, `exact` is whether products keep all their digits.
    """
    plan = plan._replace(length=max(_SHORTEST, min(_LONGEST, plan.length)))
    return _Walk.apply(plan, exact, *given)  # pyright: ignore[reportReturnType]


class _Walk(torch.autograd.Function):
    @staticmethod
    def forward(ctx, plan: Plan, exact: bool, *given: Tensor):
        whole = Given(*given)
        inputs, state = inputs_of(plan, exact, whole), whole.state
        trace, after = new_kept(inputs), state.flatten(0, 1).clone(memory_format=torch.contiguous_format)
        out = torch.empty_like(inputs.value)
        for launch in forward_launches(inputs, trace, after, out):
            launch.run()
        ctx.plan, ctx.exact = plan, exact
        ctx.save_for_backward(*given, *trace)
        batch, time = whole.query.shape[:2]
        return in_time(out, batch, time), after.view(state.shape)

    @staticmethod
    @without_autocast
    def backward(ctx, grad_y, grad_after):
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "linear_memory with implementation='triton' is differentiable once; "
                "use 'torch' for second derivatives"
            )
        given, trace = Given(*ctx.saved_tensors[:6]), Kept(*ctx.saved_tensors[6:])
        return None, None, *_pull_back(ctx.plan, ctx.exact, given, trace, grad_y, grad_after)


def inputs_of(plan: Plan, exact: bool, given: Given) -> Inputs:
    """Return what the kernels read of what `run` is given."""
    tokens = tokens_of(given, plan.start, plan.length)
    fading = fade(tokens.decay)
    # A level's factors, left and right blocks by turns as tokens are.
    levels = [torch.stack([until, since], dim=3).flatten(2, 4) for since, until in fading.joints]
    parts = (tokens.query, tokens.key, tokens.value, tokens.step[..., 0], torch.stack(levels, dim=2))
    query, key, value, step, stacked, since, until = (
        x.contiguous() for x in (*parts, fading.since, fading.until)
    )
    return Inputs(query, key, value, step, stacked, since, until, plan.rule == "delta", exact)


def new_kept(inputs: Inputs) -> Kept:
    """Return room for what a forward pass leaves."""
    count, rows, length, width = inputs.query.shape
    new, square = inputs.query.new_empty, (count, rows, length, length)
    # Errors by the hebbian rule are the values.
    errors = torch.empty_like(inputs.value) if inputs.delta else inputs.value
    inverse = new(square) if inputs.delta else new(0)
    reached = torch.empty_like(inputs.key) if inputs.delta else new(0)
    return Kept(new(square), inverse, reached, errors, new(count, rows, width, inputs.value.shape[-1]))


def new_grads(inputs: Inputs, trace: Kept, grad: Tensor, grad_state: Tensor) -> Grads:
    """Return room for what a backward pass leaves; `grad_state` is overwritten."""
    owed = torch.empty_like(grad)
    of_value = torch.empty_like(grad) if inputs.delta else owed
    like = (inputs.query, inputs.key, inputs.step, inputs.since, inputs.key)
    return Grads(
        grad, owed, torch.empty_like(trace.states), grad_state, of_value, *map(torch.empty_like, like)
    )


def _pull_back(plan: Plan, exact: bool, given: Given, trace: Kept, grad_y, grad_after) -> list[Tensor]:
    """Return the gradients of `given`."""
    inputs, (batch, time, heads, _) = inputs_of(plan, exact, given), given.query.shape
    grad_state = grad_after.flatten(0, 1).clone(memory_format=torch.contiguous_format)
    grads = new_grads(inputs, trace, in_chunks(grad_y, plan.length).contiguous(), grad_state)
    for launch in backward_launches(inputs, trace, grads):
        launch.run()
    tokens = [in_time(x, batch, time) for x in (grads.grad_query, grads.grad_key, grads.grad_value)]
    of_log = log_gradient(plan, given.log_decay, grads.grad_since, heads)
    of_step = in_time(grads.grad_step[..., None], batch, time)[..., 0]
    return [*tokens, of_log, of_step, grad_state.view(given.state.shape)]
