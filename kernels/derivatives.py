"""What gradients written by hand have in common: when another way is to be gone, and that way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._C import _functorch as functorch  # pyright: ignore[reportAttributeAccessIssue]

from scrubjay.kernels.dispatch import any_dual, without_own_gradient


def has_own_gradient(*given: Tensor) -> bool:
    """Return whether a gradient by hand serves: of one dtype, at least float32, on a CPU, not recorded."""
    first = given[0]
    return (
        first.is_cpu
        and first.dtype.itemsize >= 4
        and all(value.dtype == first.dtype for value in given)
        and not torch.is_autocast_enabled("cpu")
        and not without_own_gradient(*given)
    )


def is_wanted_again(*grads: Tensor | None) -> bool:
    """Return whether gradients are to have gradients, or come in batches or with tangents."""
    return (
        torch.is_grad_enabled()
        or come_in_batches(*grads)
        or torch._C._are_functorch_transforms_active()
        or any_dual(*grads)
    )


def come_in_batches(*grads: Tensor | None) -> bool:
    """Return whether these are gradients of `torch.autograd.grad(..., is_grads_batched=True)`."""
    return any(grad is not None and functorch.is_legacy_batchedtensor(grad) for grad in grads)


def by_graph(
    run: Callable[..., Tensor | Sequence[Tensor]], given: Sequence[Tensor], *grads: Tensor | None
) -> list[Tensor]:
    """Return the gradients of `given` by the graph of `run`, which can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Names of their own, since one input may have been computed from another.
        leaves = [g.view_as(g) if g.requires_grad else g.detach().requires_grad_() for g in given]
        outputs = run(*leaves)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    asked = [
        (y, grad) for y, grad in zip(outputs, grads, strict=True) if grad is not None and y.requires_grad
    ]
    along = [grad for _, grad in asked]
    found = torch.autograd.grad([y for y, _ in asked], leaves, along, create_graph=again, allow_unused=True)
    return [torch.zeros_like(x) if grad is None else grad for grad, x in zip(found, leaves, strict=True)]
