"""Chunks of `TitansMAC` as one autograd function of inputs, state and weights.

The function computes first derivatives by a custom backward pass. For second derivatives, and for tensors
that this pass does not support (such as tensors on a GPU), the layer's `forward` runs with torch's autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scrubjay.kernels.derivatives import differentiate_graph, needs_graph, retain_freed_memory
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.memory.titans.backward import Backward
from scrubjay.memory.titans.chunks import Activations, SegmentInputs, SegmentOutputs
from scrubjay.memory.titans.forward import Forward
from scrubjay.memory.titans.schedule import Schedule

_NUM_TENSORS = len(Activations._fields) - 1


def run(plain: Callable[..., Sequence[Tensor]], schedule: Schedule, *inputs: Tensor) -> SegmentOutputs:
    """Return the outputs of a segment.

    Args:
        plain: Function that computes the same outputs from `inputs` with torch's autograd. It omits
            `squared_surprise`.
        schedule: Schedule of the segment.
        inputs: Fields of `SegmentInputs`.
    """
    return SegmentOutputs(*_Segment.apply(plain, schedule, *inputs))


class _Segment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plain, schedule, *inputs):
        retain_freed_memory()
        outputs, activations = Forward(schedule, SegmentInputs(*inputs)).run()
        ctx.plain, ctx.schedule = plain, schedule
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*inputs, *activations[:-1], *activations.factors)
        ctx.mark_non_differentiable(outputs.squared_surprise)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads):
        grads, count = grads[:-1], len(SegmentInputs._fields)
        inputs, tensors = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        if all(grad is None for grad in grads):
            return (None,) * (2 + count)
        if needs_graph(*grads):
            return None, None, *differentiate_graph(ctx.plain, inputs, *grads)
        activations = Activations._make([*tensors[:_NUM_TENSORS], list(tensors[_NUM_TENSORS:])])
        backward = Backward(ctx.schedule, SegmentInputs(*inputs), activations, grads)
        return None, None, *backward.run(any(ctx.needs_input_grad[3:8]))
