"""Chunks of `TitansMAC` as one function of inputs, state and weights, with its gradient by hand.

A second derivative, and all that is not plain numbers on a CPU, goes the layer's plain way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scrubjay.kernels.derivatives import by_graph, is_wanted_again
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.memory.parts.heap import keep_freed
from scrubjay.memory.titans.backward import Backward
from scrubjay.memory.titans.chunks import Given, Kept, Outputs
from scrubjay.memory.titans.course import Course
from scrubjay.memory.titans.forward import Forward

_KEPT = len(Kept._fields) - 1


def run(plain: Callable[..., Sequence[Tensor]], at: Course, *given: Tensor) -> Outputs:
    """Return what a segment comes to.

    Args:
        plain: Its outputs but the last, of what is given, by plain operations.
        at: What follows from steps.
        given: Those of `Given`.
    """
    return Outputs(*_Segment.apply(plain, at, *given))


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plain, at, *given):
        keep_freed()
        outputs, kept = Forward(at, Given(*given)).run()
        ctx.plain, ctx.at = plain, at
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*given, *kept[:-1], *kept.factors)
        ctx.mark_non_differentiable(outputs.squared)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads):
        grads, count = grads[:-1], len(Given._fields)
        given, saved = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        if all(grad is None for grad in grads):
            return (None,) * (2 + count)
        if is_wanted_again(*grads):
            return None, None, *by_graph(ctx.plain, given, *grads)
        kept = Kept._make([*saved[:_KEPT], list(saved[_KEPT:])])
        back = Backward(ctx.at, Given(*given), kept, grads)
        return None, None, *back.run(any(ctx.needs_input_grad[3:8]))
