"""One chunk of a neural memory: what it is given, what it leaves for its gradient, and that gradient by hand.

Letters as in `neural_memory_torch`; a name with `grad_` is the gradient of what the rest of the name is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.neural.network import NetworkShape, error_share, is_clipped, row_inner, rule


class Tokens(NamedTuple):
    """What is particular to a token, of all chunks or of one."""

    query: Float[Tensor, "*N R C D"]
    key: Float[Tensor, "*N R C D"]
    value: Float[Tensor, "*N R C D"]
    step_size: Float[Tensor, "*N R C 1"]
    log_momentum: Float[Tensor, "*N R C"]
    log_retention: Float[Tensor, "*N R C"]


class Coefficients(NamedTuple):
    """The rule of chunks: at the places of reads, at the chunk's end, and each token's share of its error."""

    read_retained: Float[Tensor, "*N R C 1"]
    read_built: Float[Tensor, "*N R C 1"]
    read_mixed: Float[Tensor, "*N R C C"]
    end_mixed: Float[Tensor, "*N R C 1"]
    end_trace: Float[Tensor, "*N R C 1"]
    end_retained: Float[Tensor, "*N R 1 1"]
    end_built: Float[Tensor, "*N R 1 1"]
    end_kept: Float[Tensor, "*N R 1 1"]
    share: Float[Tensor, "*N R C 1"]


def coefficients_of(
    log_retention: Float[Tensor, "*N R C"],
    log_momentum: Float[Tensor, "*N R C"],
    valid: Bool[Tensor, "*N R C"] | None,
    read_before_write: bool,
) -> Coefficients:
    """Return the rule of chunks at the places of reads and at the chunks' ends."""
    whole = rule(log_retention, log_momentum, valid)
    read = whole.retained, whole.built, whole.mixed
    if read_before_write:
        # Row t of what is read is row t - 1 of what is written; nothing has happened before row 0.
        retained, built, mixed = (x[..., :-1] if x.ndim == 3 else x[..., :-1, :] for x in read)
        read = (
            functional.pad(retained, (1, 0), value=1.0),
            functional.pad(built, (1, 0)),
            functional.pad(mixed, (0, 0, 1, 0)),
        )
    return Coefficients(
        read_retained=read[0][..., None],
        read_built=read[1][..., None],
        read_mixed=read[2],
        end_mixed=whole.mixed[..., -1, :, None],
        end_trace=whole.trace[..., None],
        end_retained=whole.retained[..., -1, None, None],
        end_built=whole.built[..., -1, None, None],
        end_kept=whole.kept[..., -1, None, None],
        share=error_share(log_momentum, log_momentum.shape[-1])[..., None],
    )


class Layers(NamedTuple):
    """The state at a border, its layers apart."""

    delta: list[Tensor]
    momentum: list[Tensor]
    anchor: list[Tensor]


class Kept(NamedTuple):
    """What a chunk leaves for its gradient: what takes a product to form again, but its border's state."""

    products: list[Tensor]
    """Those of the key's way through the network that an activation follows."""
    error: Tensor
    step_size: Tensor
    """The step that was taken."""
    squared: Tensor
    reads: list[Tensor]
    """Those of the query's way that an activation follows."""


class ChunkGradient:
    """The gradient of one chunk, in the reverse order of its computation: `leave`, `read`, `write`.

    Begins with what the chunk did not keep.

    Args:
        shape: Sizes of the network.
        at: The chunk's coefficients.
        kept: What its forward pass kept.
        here: Its keys, values and queries.
        weights: The network's weights at its start.
        layers: What `_advance` needs of the layers.
    """

    def __init__(
        self, shape: NetworkShape, at: Coefficients, kept: Kept, here: Tokens, weights, layers: Layers
    ):
        self.shape, self.at, self.kept, self.here, self.weights = shape, at, kept, here, weights
        self.delta_before, self.momentum_before = layers.delta, layers.momentum
        self.anchored = [w + a for w, a in zip(weights, layers.anchor, strict=True)]
        self.inputs = [here.key, *(functional.silu(product) for product in kept.products)]
        self.deltas = [kept.error]
        self.slopes: list[Tensor] = []
        self.curved: list[Tensor] = []
        for layer in range(len(weights) - 1, 0, -1):
            _, slope, bend = _silu(kept.products[layer - 1], bend=True)
            inner = self.deltas[0] @ self.anchored[layer].mT
            self.slopes.insert(0, slope)
            self.curved.insert(0, bend.mul_(inner))
            self.deltas.insert(0, inner.mul_(slope))
        self.steps = [kept.step_size * delta for delta in self.deltas]

    def leave(self, grad_delta: list[Tensor], grad_momentum: list[Tensor]) -> None:
        """Begin with what comes from the next chunk, by `_advance`."""
        at = self.at
        self.delta, self.momentum, self.grad_inputs, self.grad_steps = [], [], [], []
        ends = [torch.zeros_like(at.end_retained) for _ in range(3)]
        mixed, trace = torch.zeros_like(at.end_mixed), torch.zeros_like(at.end_trace)
        less_mixed, less_trace = -at.end_mixed, -at.end_trace
        for layer, (x, step) in enumerate(zip(self.inputs, self.steps, strict=True)):
            delta, momentum = self.delta_before[layer], self.momentum_before[layer]
            to_delta, to_momentum = grad_delta[layer], grad_momentum[layer]
            for index, (a, b) in enumerate(
                ((delta, to_delta), (momentum, to_delta), (momentum, to_momentum))
            ):
                ends[index] += _inner(a, b)
            self.delta.append(at.end_retained * to_delta)
            self.momentum.append(torch.addcmul(at.end_built * to_delta, at.end_kept, to_momentum))
            by_delta, by_momentum = step @ to_delta.mT, step @ to_momentum.mT
            mixed -= row_inner(x, by_delta)
            trace -= row_inner(x, by_momentum)
            self.grad_inputs.append((less_mixed * by_delta).addcmul_(less_trace, by_momentum))
            grad_step = (less_mixed * x) @ to_delta
            self.grad_steps.append(grad_step.baddbmm_(less_trace * x, to_momentum))
        self.end = mixed, trace, ends[0], ends[1], ends[2]

    def read(self, grad_y: Tensor, grad_weights: list[Tensor]) -> None:
        """Go back through `_read`; adds to `grad_weights`."""
        at, kept = self.at, self.kept
        retained, built = torch.zeros_like(at.read_retained), torch.zeros_like(at.read_built)
        alike = torch.zeros_like(at.read_mixed)
        grad = grad_y
        for layer in range(len(self.weights) - 1, -1, -1):
            x, slope, _ = _silu(kept.reads[layer - 1], bend=False) if layer else (self.here.query, None, None)
            other, step = self.inputs[layer], self.steps[layer]
            similarity = x @ other.mT
            self.grad_steps[layer].baddbmm_((at.read_mixed * similarity).mT, grad, alpha=-1)
            grad_alike = grad @ step.mT
            alike.addcmul_(grad_alike, similarity, value=-1)
            grad_similarity = (grad_alike * at.read_mixed).neg_()
            self.grad_inputs[layer].baddbmm_(grad_similarity.mT, x)
            by_delta = grad @ self.delta_before[layer].mT
            by_momentum = grad @ self.momentum_before[layer].mT
            retained += row_inner(x, by_delta)
            built += row_inner(x, by_momentum)
            grad_weights[layer].baddbmm_(x.mT, grad)
            self.delta[layer].baddbmm_((at.read_retained * x).mT, grad)
            self.momentum[layer].baddbmm_((at.read_built * x).mT, grad)
            below = (grad @ self.weights[layer].mT).baddbmm_(grad_similarity, other)
            below.addcmul_(at.read_retained, by_delta).addcmul_(at.read_built, by_momentum)
            grad = below if slope is None else below.mul_(slope)
        self.grad_query = grad + grad_y if self.shape.residual else grad
        self.reads = retained, built, alike

    def write(self, grad_weights: list[Tensor]) -> None:
        """Go back through `_write`: clip, inner backward and forward passes; adds to `grad_weights`."""
        shape, deltas, slopes, taken = self.shape, self.deltas, self.slopes, self.kept.step_size
        self.grad_step_size, self.grad_share = torch.zeros_like(taken), torch.zeros_like(taken)
        for grad, delta in zip(self.grad_steps, deltas, strict=True):
            self.grad_step_size += row_inner(grad, delta)
        grad_deltas = [taken * grad for grad in self.grad_steps]
        if is_clipped(shape):
            self._unclip(grad_deltas)
        self.anchor: list[Tensor] = []
        grad_products: list[Tensor] = []
        for layer, slope in enumerate(slopes):
            upper = self.anchored[layer + 1]
            grad_products.append(self.curved[layer].mul_(grad_deltas[layer]))
            grad_inner = grad_deltas[layer].mul_(slope)
            grad_deltas[layer + 1].baddbmm_(grad_inner, upper)
            self.anchor.append(grad_inner.mT @ deltas[layer + 1])
        self.grad_error = grad_deltas[-1]
        grad_products.append(self.grad_error)
        for layer in range(len(self.weights) - 1, -1, -1):
            if layer < len(self.weights) - 1:
                grad_products[layer].addcmul_(self.grad_inputs[layer + 1], slopes[layer])
            if layer:
                self.anchor[layer - 1].baddbmm_(self.inputs[layer].mT, grad_products[layer])
            else:
                self.anchor.insert(0, self.inputs[0].mT @ grad_products[0])
            self.grad_inputs[layer].baddbmm_(grad_products[layer], self.anchored[layer].mT)
        for whole, part in zip(grad_weights, self.anchor, strict=True):
            whole += part
        if shape.residual:
            self.grad_inputs[0] += self.grad_error

    def _unclip(self, grad_deltas: list[Tensor]) -> None:
        """Pass on what a clipped step, share |r|^2 / |gradient|^2, owes its parts; nothing to the gate."""
        kept = self.kept
        clipped = kept.step_size != self.here.step_size
        if not clipped.any():
            return
        per_square = torch.where(clipped, -self.grad_step_size * kept.step_size / kept.squared, 0)
        for layer, (x, delta) in enumerate(zip(self.inputs, self.deltas, strict=True)):
            self.grad_inputs[layer].addcmul_(2 * per_square * row_inner(delta, delta), x)
            grad_deltas[layer].addcmul_(2 * per_square * row_inner(x, x), delta)
        per_step = torch.where(clipped, self.grad_step_size / kept.squared, 0)
        self.grad_share = per_step * row_inner(kept.error, kept.error)
        grad_deltas[-1].addcmul_(2 * per_step * self.at.share, kept.error)
        self.grad_step_size = torch.where(clipped, 0, self.grad_step_size)

    def tokens(self) -> tuple[Tensor, ...]:
        """Return the gradients of query, key, value and step."""
        return self.grad_query, self.grad_inputs[0], -self.grad_error, self.grad_step_size

    def coefficients(self) -> Coefficients:
        """Return the gradients of the rule."""
        return Coefficients(*self.reads, *self.end, self.grad_share)


def _inner(a: Tensor, b: Tensor) -> Float[Tensor, "R 1 1"]:
    return (a * b).sum((-1, -2), keepdim=True)


def _silu(x: Tensor, bend: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return SiLU, its first derivative and, if asked for, its second."""
    gate = torch.sigmoid(x)
    shut = 1 - gate
    active = x * gate
    slope = torch.addcmul(gate, active, shut)
    return active, slope, shut.mul_((slope + gate).addcmul_(active, gate, value=-1)) if bend else shut
