"""Helpers of custom backward passes: checks of the inputs, a fall-back to autograd, and reuse of memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch as functorch  # pyright: ignore[reportAttributeAccessIssue]

from scrubjay.kernels.dispatch import any_dual, needs_plain_autograd, without_autocast

_BLOCK_BYTES = 32_000_000


def run_custom(
    plain: Callable[..., Tensor | Sequence[Tensor]],
    forward: Callable[..., tuple[Sequence[Tensor], Sequence[Tensor | None]]],
    backward: Callable[..., Sequence[Tensor | None]],
    *inputs: Tensor,
) -> tuple[Tensor, ...]:
    """Return the outputs of `forward`, with a custom backward pass.

    Args:
        plain: Function that computes the outputs from `inputs` by differentiable torch operations. It serves
            higher derivatives.
        forward: Function that returns the outputs and the tensors to save, from `inputs`.
        backward: Function that returns a gradient for each of `inputs`. Its arguments are `inputs`, the saved
            tensors, the gradient of each output (None for an output without a gradient), and for each input
            whether it needs a gradient.
        inputs: Differentiable tensors.
    """
    retain_freed_memory()
    return _Custom.apply(plain, forward, backward, *inputs)  # pyright: ignore[reportReturnType]


class _Custom(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plain, forward, backward, *inputs):
        outputs, tensors = forward(*inputs)
        ctx.plain, ctx.run_backward, ctx.count = plain, backward, len(inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs, *tensors)
        return tuple(outputs)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads):
        inputs, tensors = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        if all(grad is None for grad in grads):
            input_grads = [None] * ctx.count
        elif needs_graph(*grads):
            input_grads = differentiate_graph(ctx.plain, inputs, *grads)
        else:
            input_grads = ctx.run_backward(inputs, tensors, grads, ctx.needs_input_grad[3:])
        return None, None, None, *input_grads


def supports_custom_backward(*tensors: Tensor) -> bool:
    """Return True if a custom backward pass supports `tensors`.

    All tensors must be on the CPU and have one dtype, float32 or wider. Autocast, tracing, torch.func and
    forward-mode autograd must be inactive.
    """
    first = tensors[0]
    return (
        first.is_cpu
        and first.dtype.itemsize >= 4
        and all(value.dtype == first.dtype for value in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not needs_plain_autograd(*tensors)
    )


def needs_graph(*grads: Tensor | None) -> bool:
    """Return True if the backward pass must record a graph of its own operations.

    This is necessary for higher derivatives, batched gradients, torch.func and forward-mode tangents.
    """
    return (
        torch.is_grad_enabled()
        or are_batched(*grads)
        or torch._C._are_functorch_transforms_active()
        or any_dual(*grads)
    )


def are_batched(*grads: Tensor | None) -> bool:
    """Return True if one of `grads` comes from `torch.autograd.grad(..., is_grads_batched=True)`."""
    return any(grad is not None and functorch.is_legacy_batchedtensor(grad) for grad in grads)


def differentiate_graph(
    run: Callable[..., Tensor | Sequence[Tensor]], inputs: Sequence[Tensor], *grads: Tensor | None
) -> list[Tensor]:
    """Run `run` on `inputs` under autograd and return the gradients of `inputs`.

    `grads` are the gradients of the outputs of `run`. The result can be differentiated again.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, because one input may have been computed from another.
        leaves = [g.view_as(g) if g.requires_grad else g.detach().requires_grad_() for g in inputs]
        outputs = run(*leaves)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    differentiable = [
        (y, grad) for y, grad in zip(outputs, grads, strict=True) if grad is not None and y.requires_grad
    ]
    grad_outputs = [grad for _, grad in differentiable]
    input_grads = torch.autograd.grad(
        [y for y, _ in differentiable], leaves, grad_outputs, create_graph=create_graph, allow_unused=True
    )
    return [
        torch.zeros_like(x) if grad is None else grad for grad, x in zip(input_grads, leaves, strict=True)
    ]


@functools.cache
def retain_freed_memory() -> None:
    """Make the C library retain freed memory in the whole process, up to 64 MB.

    Without this call, memory of tensors that are saved for the backward pass is returned to the system at the
    end of a gradient step and mapped again in the next step. Mapping a megabyte takes as long as writing the
    megabyte five times. When a block of at most 32 MiB is freed, glibc raises a limit: from then on it
    retains smaller blocks, up to twice the size of that block in total (mallopt(3), M_MMAP_THRESHOLD). This
    function therefore frees one block of 32 MB. The block is never written, so it costs nothing. On systems
    without glibc nothing changes."""
    torch.empty(_BLOCK_BYTES, dtype=torch.uint8)
