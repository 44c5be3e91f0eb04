"""What a neural memory is given: queries, keys and values, mixed with those of the inputs just before.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), section 4.4: a causal convolution, a filter per
channel, then SiLU and, but for values, a division by the length. All of it is little to compute and much to
read and write, so a segment is gone through in blocks that caches hold, forward and back, and only the
projected inputs are kept for the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels.dispatch import without_own_gradient

_EPSILON = 1e-6
# Numbers of a block, which with what is formed of them on the way fit a cache.
_BLOCK = 2**18


class Convolution(NamedTuple):
    """Filters over a segment's inputs and those before it; none reaches back beyond an episode's start."""

    taps: Float[Tensor, "taps width"]
    """The newest input's last."""
    tail: Float[Tensor, "batch taps-1 width"]
    """The last inputs before the segment."""
    step: Int[Tensor, "batch time"]
    """Every input's number in its episode."""

    @property
    def reach(self) -> int:
        """Inputs before its own that a sum takes in."""
        return len(self.taps) - 1

    def inputs(self, x: Tensor, steps: slice) -> Float[Tensor, "batch tail_and_steps width"]:
        """Return what the sums of some steps are made of."""
        missing = self.tail[:, steps.start :]
        inside = x[:, max(0, steps.start - self.reach) : steps.stop]
        return torch.cat([missing, inside], dim=1) if missing.shape[1] else inside

    def seen(self, steps: slice) -> list[Bool[Tensor, "batch steps 1"] | None]:
        """Return, for each tap, which of some steps have so old an input, None where all have."""
        step = self.step[:, steps]
        if not (step < self.reach).any():
            return [None] * len(self.taps)
        return [(step >= back)[..., None] for back in range(self.reach, 0, -1)] + [None]

    def sums(self, inputs: Tensor, steps: slice) -> Float[Tensor, "batch steps width"]:
        """Return the sums of some steps; `inputs` are theirs."""
        length = inputs.shape[1] - self.reach
        out = inputs[:, self.reach :] * self.taps[-1]
        for place, seen in enumerate(self.seen(steps)[:-1]):
            out = torch.addcmul(out, _only(seen, inputs[:, place : place + length]), self.taps[place])
        return out

    def pull_back(
        self, grad: Tensor, inputs: Tensor, steps: slice
    ) -> tuple[Float[Tensor, "batch tail_and_steps width"], Float[Tensor, "taps width"]]:
        """Return the gradients of `inputs` and taps from that of `sums`."""
        grad_inputs, grad_taps = torch.zeros_like(inputs), []
        length = grad.shape[1]
        for place, seen in enumerate(self.seen(steps)):
            shifted = slice(place, place + length)
            grad_inputs[:, shifted].addcmul_(_only(seen, grad), self.taps[place])
            grad_taps.append((grad * _only(seen, inputs[:, shifted])).sum((0, 1)))
        return grad_inputs, torch.stack(grad_taps)


def heads_of(
    projected: Float[Tensor, "batch time three_dims"], num_heads: int, convolution: Convolution | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries and keys of at most unit length, and values, `[batch, time, heads, width]` each."""
    taps, tail, step = (None, None, None) if convolution is None else convolution
    if without_own_gradient(projected, taps, tail) or not projected.numel():
        return _plainly(projected, num_heads, convolution)
    return _Heads.apply(projected, taps, tail, step, num_heads)


def split_heads(mixed: Float[Tensor, "*batch three_dims"], num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries and keys of at most unit length, and values, of inputs that are mixed already."""
    query, key, value = functional.silu(mixed).unflatten(-1, (3, num_heads, -1)).unbind(-3)
    return unit(query), unit(key), value


def unit(x: Tensor) -> Tensor:
    """Return `x` with vectors of at most unit length, nearly that."""
    return x * _inverse_length(x)


def normalised(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Return `norm` of `x` in the norm's dtype: under autocast what is given may be narrower."""
    return norm(x.to(norm.weight.dtype))


def _plainly(projected: Tensor, num_heads: int, convolution: Convolution | None):
    """Compute `heads_of` in operations that can be differentiated any number of times."""
    if convolution is not None:
        whole = slice(0, projected.shape[1])
        projected = convolution.sums(convolution.inputs(projected, whole), whole)
    return split_heads(projected, num_heads)


class _Heads(torch.autograd.Function):
    """`heads_of` in blocks, with its gradient by hand."""

    @staticmethod
    def forward(ctx, projected, taps, tail, step, num_heads):
        ctx.save_for_backward(projected, taps, tail, step)
        ctx.num_heads = num_heads
        convolution = None if taps is None else Convolution(taps, tail, step)
        batch, time, width = projected.shape
        query, key, value = (
            projected.new_empty(batch, time, num_heads, width // (3 * num_heads)) for _ in range(3)
        )
        for steps in _blocks(projected):
            x = projected[:, steps]
            if convolution is not None:
                x = convolution.sums(convolution.inputs(projected, steps), steps)
            active = functional.silu(x).unflatten(-1, (3, num_heads, -1)).unbind(-3)
            for whole, part in zip((query, key), active, strict=False):
                torch.mul(part, _inverse_length(part), out=whole[:, steps])
            value[:, steps] = active[2]
        return query, key, value

    @staticmethod
    def backward(ctx, *grads):
        projected, taps, tail, step = ctx.saved_tensors
        convolution = None if taps is None else Convolution(taps, tail, step)
        if torch.is_grad_enabled():
            wanted = [x for x in (projected, taps, tail) if x is not None]
            names = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in wanted]
            again = None if convolution is None else Convolution(names[1], names[2], step)
            outputs = _plainly(names[0], ctx.num_heads, again)
            found = torch.autograd.grad(outputs, names, grads, create_graph=True)
            return *found, *[None] * (5 - len(found))
        grad_projected = torch.empty_like(projected)
        if convolution is None:
            for steps in _blocks(projected):
                grad_projected[:, steps] = _gradient(projected[:, steps], [grad[:, steps] for grad in grads])
            return grad_projected, None, None, None, None
        grad_taps = projected.new_zeros(convolution.taps.shape)
        owed = torch.zeros_like(convolution.tail)
        for steps in reversed(_blocks(projected)):
            inputs = convolution.inputs(projected, steps)
            grad = _gradient(convolution.sums(inputs, steps), [grad[:, steps] for grad in grads])
            grad_inputs, part = convolution.pull_back(grad, inputs, steps)
            grad_taps += part
            # What the steps behind owe to the last inputs of these.
            length = grad_inputs.shape[1]
            grad_inputs[:, length - convolution.reach :] += owed
            owed = grad_inputs[:, : convolution.reach]
            grad_projected[:, steps] = grad_inputs[:, convolution.reach :]
        return grad_projected, grad_taps.to(convolution.taps.dtype), owed, None, None


def _gradient(x: Float[Tensor, "batch steps three_dims"], grads: list[Tensor]) -> Tensor:
    """Return the gradient of mixed inputs from those of queries, keys and values."""
    gate = torch.sigmoid(x)
    active = x * gate
    slope = torch.addcmul(gate, active, 1 - gate).unflatten(-1, (3, *grads[0].shape[-2:]))
    parts = active.unflatten(-1, slope.shape[-3:]).unbind(-3)
    for index, (part, grad) in enumerate(zip(parts[:2], grads, strict=False)):
        inverse = _inverse_length(part)
        direction = part * inverse
        along = (direction * grad).sum(-1, keepdim=True)
        slope[..., index, :, :] *= torch.addcmul(grad, direction, along, value=-1).mul_(inverse)
    slope[..., 2, :, :] *= grads[2]
    return slope.flatten(-3)


def _blocks(x: Tensor) -> list[slice]:
    """Return the steps of each block; other devices than a CPU are given all at once."""
    batch, time, width = x.shape
    size = max(1, _BLOCK // (batch * width)) if x.device.type == "cpu" else time
    return [slice(begin, min(begin + size, time)) for begin in range(0, time, size)]


def _inverse_length(x: Tensor) -> Tensor:
    return torch.rsqrt((x * x).sum(-1, keepdim=True) + _EPSILON)


def _only(seen: Tensor | None, x: Tensor) -> Tensor:
    return x if seen is None else torch.where(seen, x, 0)
