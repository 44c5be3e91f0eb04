"""One chunk of a neural memory: its inputs, its saved intermediate results, and its custom backward pass.

Letters as in `kernels.neural_memory`; `grad_x` is the gradient of `x`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.neural.factors import Factors
from scrubjay.kernels.neural.network import (
    NetworkShape,
    compute_error_share,
    is_clipped,
    row_inner,
)


class NeuralTokens(NamedTuple):
    """Queries, keys, values and gates of the tokens of all chunks, or of a single chunk (without N)."""

    query: Float[Tensor, "*N R C D"]
    key: Float[Tensor, "*N R C D"]
    value: Float[Tensor, "*N R C D"]
    step_size: Float[Tensor, "*N R C 1"]
    log_momentum: Float[Tensor, "*N R C"]
    log_retention: Float[Tensor, "*N R C"]


class Coefficients(NamedTuple):
    """Coefficients of the learning rule.

    The `read_` fields apply to the read of each token, the `end_` fields to the state at the chunk's end.
    `share` is the largest part of a token's error that its step may remove.
    """

    read_retention: Float[Tensor, "*N R C 1"]
    read_buildup: Float[Tensor, "*N R C 1"]
    read_mixing: Float[Tensor, "*N R C C"]
    end_mixing: Float[Tensor, "*N R C 1"]
    end_trace: Float[Tensor, "*N R C 1"]
    end_retention: Float[Tensor, "*N R 1 1"]
    end_buildup: Float[Tensor, "*N R 1 1"]
    end_momentum_retention: Float[Tensor, "*N R 1 1"]
    share: Float[Tensor, "*N R C 1"]


def compute_coefficients(
    log_retention: Float[Tensor, "*N R C"],
    log_momentum: Float[Tensor, "*N R C"],
    valid: Bool[Tensor, "*N R C"] | None,
    read_before_write: bool,
) -> Coefficients:
    """Return the coefficients of the learning rule for each token's read and for the end of each chunk."""
    factors = Factors.from_gates(log_retention, log_momentum, valid, read_before_write)
    return Coefficients(
        read_retention=factors.read_retention[..., None],
        read_buildup=factors.read_buildup[..., None],
        read_mixing=factors.read_mixing,
        end_mixing=factors.end_mixing[..., None],
        end_trace=factors.end_trace[..., None],
        end_retention=factors.ends[..., :1, None],
        end_buildup=factors.end_buildup[..., None, None],
        end_momentum_retention=factors.ends[..., 1:, None],
        share=compute_error_share(log_momentum, log_momentum.shape[-1])[..., None],
    )


class LayerStates(NamedTuple):
    """State of a neural memory between two chunks. Each list holds one tensor per layer."""

    delta: list[Tensor]
    momentum: list[Tensor]
    anchor: list[Tensor]


class ChunkTrace(NamedTuple):
    """Intermediate results of a chunk that its backward pass needs.

    The backward pass recomputes all other results, such as the activations and the gradients of each layer.
    The state is saved separately.
    """

    products: list[Tensor]
    """Pre-activations of each hidden layer when the network reads the keys."""
    error: Tensor
    step_size: Tensor
    """Step size after clipping."""
    squared_norm: Tensor
    reads: list[Tensor]
    """Pre-activations of each hidden layer when the network reads the queries."""


class ChunkGradient:
    """Backward pass of one chunk: call `backward_end`, `backward_read` and `backward_write` in this order.

    The constructor recomputes the intermediate results that were not saved.

    Args:
        shape: Sizes of the network.
        rule: Coefficients of the chunk.
        chunk_trace: Saved results of the chunk's forward pass.
        tokens: Queries, keys, values and gates of the chunk's tokens.
        weights: Initial weights of the network.
        layers: State at the chunk's start.
    """

    def __init__(
        self,
        shape: NetworkShape,
        rule: Coefficients,
        chunk_trace: ChunkTrace,
        tokens: NeuralTokens,
        weights,
        layers: LayerStates,
    ):
        self.shape, self.rule, self.chunk_trace = shape, rule, chunk_trace
        self.tokens, self.weights = tokens, weights
        self.delta_before, self.momentum_before = layers.delta, layers.momentum
        self.anchor_weights = [w + a for w, a in zip(weights, layers.anchor, strict=True)]
        self.inputs = [tokens.key, *(functional.silu(product) for product in chunk_trace.products)]
        self.deltas = [chunk_trace.error]
        self.slopes: list[Tensor] = []
        self.curvatures: list[Tensor] = []
        for layer in range(len(weights) - 1, 0, -1):
            _, slope, curvature = _silu_derivatives(chunk_trace.products[layer - 1], second=True)
            inner = self.deltas[0] @ self.anchor_weights[layer].mT
            self.slopes.insert(0, slope)
            self.curvatures.insert(0, curvature.mul_(inner))
            self.deltas.insert(0, inner.mul_(slope))
        self.steps = [chunk_trace.step_size * delta for delta in self.deltas]

    def backward_end(self, grad_delta: list[Tensor], grad_momentum: list[Tensor]) -> None:
        """Backpropagate through `loop._advance`, from the gradients of the state after the chunk."""
        rule = self.rule
        self.delta, self.momentum, self.grad_inputs, self.grad_steps = [], [], [], []
        grad_ends = [torch.zeros_like(rule.end_retention) for _ in range(3)]
        grad_mixing, grad_trace = torch.zeros_like(rule.end_mixing), torch.zeros_like(rule.end_trace)
        negative_mixing, negative_trace = -rule.end_mixing, -rule.end_trace
        for layer, (x, step) in enumerate(zip(self.inputs, self.steps, strict=True)):
            delta, momentum = self.delta_before[layer], self.momentum_before[layer]
            delta_grad, momentum_grad = grad_delta[layer], grad_momentum[layer]
            for index, (a, b) in enumerate(
                ((delta, delta_grad), (momentum, delta_grad), (momentum, momentum_grad))
            ):
                grad_ends[index] += _inner(a, b)
            self.delta.append(rule.end_retention * delta_grad)
            self.momentum.append(
                torch.addcmul(rule.end_buildup * delta_grad, rule.end_momentum_retention, momentum_grad)
            )
            by_delta, by_momentum = step @ delta_grad.mT, step @ momentum_grad.mT
            grad_mixing -= row_inner(x, by_delta)
            grad_trace -= row_inner(x, by_momentum)
            self.grad_inputs.append((negative_mixing * by_delta).addcmul_(negative_trace, by_momentum))
            grad_step = (negative_mixing * x) @ delta_grad
            self.grad_steps.append(grad_step.baddbmm_(negative_trace * x, momentum_grad))
        self.end = grad_mixing, grad_trace, grad_ends[0], grad_ends[1], grad_ends[2]

    def backward_read(self, grad_y: Tensor, grad_weights: list[Tensor]) -> None:
        """Backpropagate through `loop._read`; add the gradients of the weights to `grad_weights`."""
        rule, chunk_trace = self.rule, self.chunk_trace
        grad_retention = torch.zeros_like(rule.read_retention)
        grad_buildup = torch.zeros_like(rule.read_buildup)
        grad_mixing = torch.zeros_like(rule.read_mixing)
        grad = grad_y
        for layer in range(len(self.weights) - 1, -1, -1):
            x, slope = self.tokens.query, None
            if layer:
                x, slope, _ = _silu_derivatives(chunk_trace.reads[layer - 1], second=False)
            other, step = self.inputs[layer], self.steps[layer]
            similarity = x @ other.mT
            self.grad_steps[layer].baddbmm_((rule.read_mixing * similarity).mT, grad, alpha=-1)
            grad_weighted = grad @ step.mT
            grad_mixing.addcmul_(grad_weighted, similarity, value=-1)
            grad_similarity = (grad_weighted * rule.read_mixing).neg_()
            self.grad_inputs[layer].baddbmm_(grad_similarity.mT, x)
            by_delta = grad @ self.delta_before[layer].mT
            by_momentum = grad @ self.momentum_before[layer].mT
            grad_retention += row_inner(x, by_delta)
            grad_buildup += row_inner(x, by_momentum)
            grad_weights[layer].baddbmm_(x.mT, grad)
            self.delta[layer].baddbmm_((rule.read_retention * x).mT, grad)
            self.momentum[layer].baddbmm_((rule.read_buildup * x).mT, grad)
            grad_input = (grad @ self.weights[layer].mT).baddbmm_(grad_similarity, other)
            grad_input.addcmul_(rule.read_retention, by_delta).addcmul_(rule.read_buildup, by_momentum)
            grad = grad_input if slope is None else grad_input.mul_(slope)
        self.grad_query = grad + grad_y if self.shape.residual else grad
        self.reads = grad_retention, grad_buildup, grad_mixing

    def backward_write(self, grad_weights: list[Tensor]) -> None:
        """Backpropagate through `loop._write`: the clip, the inner backward and the inner forward pass.

        Adds the gradients of the weights to `grad_weights`.
        """
        shape, deltas, slopes, step_size = self.shape, self.deltas, self.slopes, self.chunk_trace.step_size
        self.grad_step_size, self.grad_share = torch.zeros_like(step_size), torch.zeros_like(step_size)
        for grad, delta in zip(self.grad_steps, deltas, strict=True):
            self.grad_step_size += row_inner(grad, delta)
        grad_deltas = [step_size * grad for grad in self.grad_steps]
        if is_clipped(shape):
            self._unclip(grad_deltas)
        self.anchor: list[Tensor] = []
        grad_products: list[Tensor] = []
        for layer, slope in enumerate(slopes):
            upper_weights = self.anchor_weights[layer + 1]
            grad_products.append(self.curvatures[layer].mul_(grad_deltas[layer]))
            grad_inner = grad_deltas[layer].mul_(slope)
            grad_deltas[layer + 1].baddbmm_(grad_inner, upper_weights)
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
            self.grad_inputs[layer].baddbmm_(grad_products[layer], self.anchor_weights[layer].mT)
        for total, part in zip(grad_weights, self.anchor, strict=True):
            total += part
        if shape.residual:
            self.grad_inputs[0] += self.grad_error

    def _unclip(self, grad_deltas: list[Tensor]) -> None:
        """Backpropagate through the step sizes of clipped tokens.

        A clipped step size is s |r|^2 / |gradient|^2. Here r is the token's error, and s is the largest part
        of the error that a step may remove. This step size does not depend on the step-size gate, so the gate
        gets no gradient from clipped tokens.
        """
        chunk_trace = self.chunk_trace
        is_clipped_token = chunk_trace.step_size != self.tokens.step_size
        if not is_clipped_token.any():
            return
        per_square = torch.where(
            is_clipped_token, -self.grad_step_size * chunk_trace.step_size / chunk_trace.squared_norm, 0
        )
        for layer, (x, delta) in enumerate(zip(self.inputs, self.deltas, strict=True)):
            self.grad_inputs[layer].addcmul_(2 * per_square * row_inner(delta, delta), x)
            grad_deltas[layer].addcmul_(2 * per_square * row_inner(x, x), delta)
        per_step = torch.where(is_clipped_token, self.grad_step_size / chunk_trace.squared_norm, 0)
        self.grad_share = per_step * row_inner(chunk_trace.error, chunk_trace.error)
        grad_deltas[-1].addcmul_(2 * per_step * self.rule.share, chunk_trace.error)
        self.grad_step_size = torch.where(is_clipped_token, 0, self.grad_step_size)

    def token_gradients(self) -> tuple[Tensor, ...]:
        """Return the gradients of query, key, value and step size."""
        return self.grad_query, self.grad_inputs[0], -self.grad_error, self.grad_step_size

    def coefficient_gradients(self) -> Coefficients:
        """Return the gradients of the coefficients."""
        return Coefficients(*self.reads, *self.end, self.grad_share)


def _inner(a: Tensor, b: Tensor) -> Float[Tensor, "R 1 1"]:
    return (a * b).sum((-1, -2), keepdim=True)


def _silu_derivatives(x: Tensor, second: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return SiLU, its first derivative and its second derivative.

    The third result is correct only if `second` is True.
    """
    gate = torch.sigmoid(x)
    complement = 1 - gate
    active = x * gate
    slope = torch.addcmul(gate, active, complement)
    if second:
        complement.mul_((slope + gate).addcmul_(active, gate, value=-1))
    return active, slope, complement
