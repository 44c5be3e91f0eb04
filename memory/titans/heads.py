"""Queries, keys and values of a neural memory, with a causal convolution.

As in Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663, section 4.4), projected inputs pass a causal
convolution with one filter per channel, then SiLU. Queries and keys are then divided by their length. The
speed of these operations is limited by memory bandwidth. The forward and backward passes therefore run in
blocks of steps that fit the CPU cache, and save only the projected inputs for the backward pass.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.kernels.derivatives import run_custom
from scrubjay.kernels.dispatch import needs_plain_autograd
from scrubjay.memory.parts.layers import inverse_norm, normalize_vectors

# Numbers in a block; a block and its intermediate values fit a CPU cache.
_BLOCK = 2**18


class Convolution(NamedTuple):
    """Causal convolution over a segment and the inputs before the segment.

    The convolution never reads inputs of an earlier episode.
    """

    taps: Float[Tensor, "taps width"]
    """Filter weights. The last weight applies to the newest input."""
    tail: Float[Tensor, "batch taps-1 width"]
    """Last inputs before the segment."""
    step: Int[Tensor, "batch time"]
    """Index of each input in its episode, from 0."""

    @property
    def reach(self) -> int:
        """Number of earlier inputs that an output of the convolution uses."""
        return len(self.taps) - 1

    def gather_inputs(self, x: Tensor, steps: slice) -> Float[Tensor, "batch tail_and_steps width"]:
        """Return the inputs from which `convolve` computes the outputs of `steps`.

        These are the `reach` inputs before `steps`, followed by the inputs at `steps`.
        """
        previous = self.tail[:, steps.start :]
        current = x[:, max(0, steps.start - self.reach) : steps.stop]
        return torch.cat([previous, current], dim=1) if previous.shape[1] else current

    def tap_masks(self, steps: slice) -> list[Float[Tensor, "batch steps 1"] | None]:
        """Return one mask of `steps` for each tap (filter weight), to be multiplied with the tap's inputs.

        An entry is 1 if the tap's input is in the same episode as the step, else 0. None means 1 everywhere.
        """
        step = self.step[:, steps]
        if not (step < self.reach).any():
            return [None] * len(self.taps)
        step = step[..., None]
        return [(step >= back).to(self.taps.dtype) for back in range(self.reach, 0, -1)] + [None]

    def convolve(self, inputs: Tensor, steps: slice) -> Float[Tensor, "batch steps width"]:
        """Return the outputs of the convolution for the steps in the slice `steps`.

        `inputs` is the result of `gather_inputs` for the same slice.
        """
        length = inputs.shape[1] - self.reach
        out = inputs[:, self.reach :] * self.taps[-1]
        for place, mask in enumerate(self.tap_masks(steps)[:-1]):
            out = torch.addcmul(out, _apply_mask(mask, inputs[:, place : place + length]), self.taps[place])
        return out

    def backward(
        self, grad: Tensor, inputs: Tensor, steps: slice
    ) -> tuple[Float[Tensor, "batch tail_and_steps width"], Float[Tensor, "taps width"]]:
        """Return the gradients of `inputs` and of the taps. `grad` is the gradient of the outputs."""
        grad_inputs, grad_taps = torch.empty_like(inputs), grad.new_empty(self.taps.shape)
        length = grad.shape[1]
        grad_inputs[:, : self.reach].zero_()
        torch.mul(grad, self.taps[-1], out=grad_inputs[:, self.reach :])
        torch.sum(grad * inputs[:, self.reach :], (0, 1), out=grad_taps[-1])
        for place, mask in enumerate(self.tap_masks(steps)[:-1]):
            window = slice(place, place + length)
            masked_grad = _apply_mask(mask, grad)
            grad_inputs[:, window].addcmul_(masked_grad, self.taps[place])
            torch.sum(masked_grad * inputs[:, window], (0, 1), out=grad_taps[place])
        return grad_inputs, grad_taps


def compute_heads(
    projections: Float[Tensor, "batch time three_dims"],
    num_heads: int,
    convolution: Convolution | None = None,
) -> Float[Tensor, "batch time 3 heads width"]:
    """Return queries, keys and values, stacked. Queries and keys have at most unit length."""
    tensors = (projections,) if convolution is None else (projections, convolution.taps, convolution.tail)
    step = None if convolution is None else convolution.step

    def run_torch(x: Tensor, *taps_and_tail: Tensor) -> Tensor:
        if taps_and_tail:
            own, whole = Convolution._make((*taps_and_tail, step)), slice(0, x.shape[1])
            x = own.convolve(own.gather_inputs(x, whole), whole)
        return torch.stack(split_heads(x, num_heads), dim=2)

    if needs_plain_autograd(*tensors) or not projections.numel():
        return run_torch(*tensors)
    forward = functools.partial(_forward, num_heads, step)
    return run_custom(run_torch, forward, functools.partial(_backward, step), *tensors)[0]


def split_heads(
    projections: Float[Tensor, "*batch three_dims"], num_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values from convolved projections.

    Queries and keys have at most unit length.
    """
    query, key, value = functional.silu(projections).unflatten(-1, (3, num_heads, -1)).unbind(-3)
    return normalize_vectors(query), normalize_vectors(key), value


def apply_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Return `norm(x)`, computed in the norm's dtype. Under autocast, `x` may have a lower precision."""
    return norm(x.to(norm.weight.dtype))


def _forward(num_heads, step, projections, *taps_and_tail):
    """Return queries, keys and values, computed in blocks of steps, and the tensors to save."""
    convolution = Convolution._make((*taps_and_tail, step)) if taps_and_tail else None
    batch, time, width = projections.shape
    out = projections.new_empty(batch, time, 3, num_heads, width // (3 * num_heads))
    blocks, x = _split_blocks(projections), projections
    for steps in blocks:
        x = projections[:, steps]
        if convolution is not None:
            x = convolution.convolve(convolution.gather_inputs(projections, steps), steps)
        block = out[:, steps]
        block.copy_(functional.silu(x).view_as(block))
        block[:, :, :2].mul_(inverse_norm(block[:, :, :2]))
    # The sums of a single block are small enough to save.
    return [out], [x] if convolution is not None and len(blocks) == 1 else []


def _backward(step, inputs, sums, grads, _):
    """Return the gradients of the projections and, with a convolution, of its taps and tail."""
    (projections, *taps_and_tail), (grad,) = inputs, grads
    grad_projections = torch.empty_like(projections)
    if not taps_and_tail:
        for steps in _split_blocks(projections):
            grad_projections[:, steps] = _heads_backward(projections[:, steps], grad[:, steps])
        return [grad_projections]
    convolution = Convolution._make((*taps_and_tail, step))
    grad_taps = torch.zeros_like(convolution.taps, dtype=projections.dtype)
    carried_grad = torch.zeros_like(convolution.tail)
    for steps in reversed(_split_blocks(projections)):
        inputs = convolution.gather_inputs(projections, steps)
        convolved_x = sums[0] if sums else convolution.convolve(inputs, steps)
        grad_sums = _heads_backward(convolved_x, grad[:, steps])
        grad_inputs, part = convolution.backward(grad_sums, inputs, steps)
        grad_taps += part
        # Gradients of later steps with respect to the last inputs of this block.
        length = grad_inputs.shape[1]
        grad_inputs[:, length - convolution.reach :] += carried_grad
        carried_grad = grad_inputs[:, : convolution.reach]
        grad_projections[:, steps] = grad_inputs[:, convolution.reach :]
    return [grad_projections, grad_taps.to(convolution.taps.dtype), carried_grad]


def _heads_backward(
    x: Float[Tensor, "batch steps three_dims"], grad: Float[Tensor, "batch steps 3 heads width"]
) -> Tensor:
    """Return the gradient of the convolved projections `x`, given `grad` for queries, keys and values."""
    gate = torch.sigmoid(x)
    active = x * gate
    slope = torch.addcmul(gate, active, 1 - gate).view_as(grad)
    directions, grads = active.view_as(grad)[:, :, :2], grad[:, :, :2]
    inverse = inverse_norm(directions)
    directions.mul_(inverse)
    radial = (directions * grads).sum(-1, keepdim=True)
    slope[:, :, :2].mul_(torch.addcmul(grads, directions, radial, value=-1).mul_(inverse))
    slope[:, :, 2].mul_(grad[:, :, 2])
    return slope.flatten(-3)


def _split_blocks(x: Tensor) -> list[slice]:
    """Return one slice of steps per block. A block fits a CPU cache; on other devices, it has all steps."""
    batch, time, width = x.shape
    size = max(1, _BLOCK // (batch * width)) if x.device.type == "cpu" else time
    return [slice(begin, min(begin + size, time)) for begin in range(0, time, size)]


def _apply_mask(mask: Tensor | None, x: Tensor) -> Tensor:
    # All inputs of a segment are finite, and a product is many times faster than torch.where.
    return x if mask is None else x * mask
