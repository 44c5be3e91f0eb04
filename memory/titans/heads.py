"""What a neural memory is given: queries, keys and values, mixed with those of the inputs just before.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), section 4.4: a causal convolution, a filter per
channel, then SiLU and, but for values, a division by the length. All of it is little to compute and much to
read and write, so a segment is gone through in blocks that caches hold, forward and back, and only the
projected inputs are kept for the gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels.derivatives import by_graph, is_wanted_again
from scrubjay.kernels.dispatch import without_autocast, without_own_gradient
from scrubjay.memory.parts.unit import inverse_length, unit

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

    def seen(self, steps: slice) -> list[Float[Tensor, "batch steps 1"] | None]:
        """Return, for each tap, ones where some steps have so old an input, None where all have."""
        step = self.step[:, steps]
        if not (step < self.reach).any():
            return [None] * len(self.taps)
        step = step[..., None]
        return [(step >= back).to(self.taps.dtype) for back in range(self.reach, 0, -1)] + [None]

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
        grad_inputs, grad_taps = torch.empty_like(inputs), grad.new_empty(self.taps.shape)
        length = grad.shape[1]
        grad_inputs[:, : self.reach].zero_()
        torch.mul(grad, self.taps[-1], out=grad_inputs[:, self.reach :])
        torch.sum(grad * inputs[:, self.reach :], (0, 1), out=grad_taps[-1])
        for place, seen in enumerate(self.seen(steps)[:-1]):
            shifted = slice(place, place + length)
            own = _only(seen, grad)
            grad_inputs[:, shifted].addcmul_(own, self.taps[place])
            torch.sum(own * inputs[:, shifted], (0, 1), out=grad_taps[place])
        return grad_inputs, grad_taps


def heads_of(
    projected: Float[Tensor, "batch time three_dims"], num_heads: int, convolution: Convolution | None = None
) -> Float[Tensor, "batch time 3 heads width"]:
    """Return queries and keys of at most unit length, and values."""
    taps, tail, step = (None, None, None) if convolution is None else convolution
    if without_own_gradient(projected, taps, tail) or not projected.numel():
        return _plainly(projected, num_heads, convolution)
    return _Heads.apply(projected, taps, tail, step, num_heads)


def split_heads(mixed: Float[Tensor, "*batch three_dims"], num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries and keys of at most unit length, and values, of inputs that are mixed already."""
    query, key, value = functional.silu(mixed).unflatten(-1, (3, num_heads, -1)).unbind(-3)
    return unit(query), unit(key), value


def normalised(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Return `norm` of `x` in the norm's dtype: under autocast what is given may be narrower."""
    return norm(x.to(norm.weight.dtype))


def _plainly(projected: Tensor, num_heads: int, convolution: Convolution | None) -> Tensor:
    """Compute `heads_of` in operations that can be differentiated any number of times."""
    if convolution is not None:
        whole = slice(0, projected.shape[1])
        projected = convolution.sums(convolution.inputs(projected, whole), whole)
    return torch.stack(split_heads(projected, num_heads), dim=2)


class _Heads(torch.autograd.Function):
    """`heads_of` in blocks, with its gradient by hand."""

    @staticmethod
    def forward(ctx, projected, taps, tail, step, num_heads):
        ctx.num_heads = num_heads
        convolution = None if taps is None else Convolution(taps, tail, step)
        batch, time, width = projected.shape
        out = projected.new_empty(batch, time, 3, num_heads, width // (3 * num_heads))
        blocks, x = _blocks(projected), projected
        for steps in blocks:
            x = projected[:, steps]
            if convolution is not None:
                x = convolution.sums(convolution.inputs(projected, steps), steps)
            block = out[:, steps]
            block.copy_(functional.silu(x).view_as(block))
            block[:, :, :2].mul_(inverse_length(block[:, :, :2]))
        # The sums of one block are few enough to be kept.
        sums = x if convolution is not None and len(blocks) == 1 else None
        ctx.save_for_backward(projected, taps, tail, step, sums)
        return out

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        projected, taps, tail, step, sums = ctx.saved_tensors
        convolution = None if taps is None else Convolution(taps, tail, step)
        if is_wanted_again(grad):

            def run(x: Tensor, *mixing: Tensor) -> Tensor:
                mixed = Convolution(mixing[0], mixing[1], step) if mixing else None
                return _plainly(x, ctx.num_heads, mixed)

            found = by_graph(run, [x for x in (projected, taps, tail) if x is not None], grad)
            return *found, *[None] * (5 - len(found))
        grad_projected = torch.empty_like(projected)
        if convolution is None:
            for steps in _blocks(projected):
                grad_projected[:, steps] = _gradient(projected[:, steps], grad[:, steps])
            return grad_projected, None, None, None, None
        grad_taps = torch.zeros_like(convolution.taps, dtype=projected.dtype)
        owed = torch.zeros_like(convolution.tail)
        for steps in reversed(_blocks(projected)):
            inputs = convolution.inputs(projected, steps)
            mixed = convolution.sums(inputs, steps) if sums is None else sums
            of_sums = _gradient(mixed, grad[:, steps])
            grad_inputs, part = convolution.pull_back(of_sums, inputs, steps)
            grad_taps += part
            # What the steps behind owe to the last inputs of these.
            length = grad_inputs.shape[1]
            grad_inputs[:, length - convolution.reach :] += owed
            owed = grad_inputs[:, : convolution.reach]
            grad_projected[:, steps] = grad_inputs[:, convolution.reach :]
        return grad_projected, grad_taps.to(convolution.taps.dtype), owed, None, None


def _gradient(
    x: Float[Tensor, "batch steps three_dims"], grad: Float[Tensor, "batch steps 3 heads width"]
) -> Tensor:
    """Return the gradient of mixed inputs from those of queries, keys and values."""
    gate = torch.sigmoid(x)
    active = x * gate
    slope = torch.addcmul(gate, active, 1 - gate).view_as(grad)
    directions, grads = active.view_as(grad)[:, :, :2], grad[:, :, :2]
    inverse = inverse_length(directions)
    directions.mul_(inverse)
    along = (directions * grads).sum(-1, keepdim=True)
    slope[:, :, :2].mul_(torch.addcmul(grads, directions, along, value=-1).mul_(inverse))
    slope[:, :, 2].mul_(grad[:, :, 2])
    return slope.flatten(-3)


def _blocks(x: Tensor) -> list[slice]:
    """Return the steps of each block; other devices than a CPU are given all at once."""
    batch, time, width = x.shape
    size = max(1, _BLOCK // (batch * width)) if x.device.type == "cpu" else time
    return [slice(begin, min(begin + size, time)) for begin in range(0, time, size)]


def _only(seen: Tensor | None, x: Tensor) -> Tensor:
    # All that a segment is given is finite, and a product is many times quicker than a selection.
    return x if seen is None else x * seen
