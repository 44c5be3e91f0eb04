"""Loop over the chunks of a neural memory with several layers, with a custom backward pass.

The results are those of `loop.run_loop`. Letters as in `kernels.neural_memory`; `grad_x` is the gradient of
`x`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from scrubjay.kernels.derivatives import needs_graph
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.neural.loop import (
    ChunkTrace,
    Coefficients,
    LayerStates,
    LoopOptions,
    NeuralTokens,
    begin_chunk,
    differentiate_loop,
    end_chunk,
    group_length,
    is_flush_due,
    run_loop,
    split_range,
)
from scrubjay.kernels.neural.network import NetworkShape, is_clipped, row_inner

# Memory for saved states at chunk borders; within it no state is recomputed in the backward pass.
_MAX_SAVED_BYTES = 2**25


def run_layers(
    options: LoopOptions, tokens: NeuralTokens, weights: list[Tensor], layers: LayerStates
) -> tuple[Tensor, Tensor, LayerStates]:
    """Return the outputs, the squared norms of the inner gradients, and the final state."""
    leaves, spec = pytree.tree_flatten((tokens, weights, layers))
    y, squared_norm, *after = _ChunkLoop.apply(options, spec, *leaves)  # pyright: ignore[reportGeneralTypeIssues]
    return y, squared_norm, pytree.tree_unflatten(after, pytree.tree_structure(layers))


class _ChunkLoop(torch.autograd.Function):
    """Autograd function over the loop, with the custom backward pass."""

    @staticmethod
    def forward(ctx, options: LoopOptions, spec: pytree.TreeSpec, *flat: Tensor):
        tokens, weights, layers = inputs = pytree.tree_unflatten(flat, spec)
        saved_chunks: list | None = [] if any(ctx.needs_input_grad) else None
        ctx.options, ctx.interval = options, _choose_interval(tokens, layers)
        y, squared_norm, after = run_loop(options, tokens, weights, layers, saved_chunks, ctx.interval)
        # Autograd saves all of it: so it is freed after the backward pass and dropped by checkpointing.
        leaves, ctx.spec = pytree.tree_flatten((inputs, saved_chunks))
        ctx.save_for_backward(*leaves)
        ctx.mark_non_differentiable(squared_norm)
        # Outputs of an autograd function must not be its inputs.
        input_ids = {id(x) for x in flat}
        return y, squared_norm, *(x.clone() if id(x) in input_ids else x for part in after for x in part)

    @staticmethod
    @without_autocast
    def backward(ctx, grad_y, _, *grad_after):
        inputs, saved_chunks = pytree.tree_unflatten(ctx.saved_tensors, ctx.spec)
        if needs_graph(grad_y, *grad_after):
            return None, None, *differentiate_loop(ctx.options, inputs, grad_y, *grad_after)
        tokens, weights, layers = inputs
        return (
            None,
            None,
            *_backward(ctx.options, ctx.interval, tokens, weights, layers, saved_chunks, grad_y, grad_after),
        )


def _choose_interval(tokens: NeuralTokens, layers: LayerStates) -> int:
    """Return the number of chunks between two saved states.

    This is the smallest number for which the saved and the recomputed states fit in the memory limit. It
    never exceeds the square root of the number of chunks, because there the fewest states are held.
    """
    state = sum(x.numel() * x.element_size() for x in (*layers.delta, *layers.momentum))
    count, most = len(tokens.query), _MAX_SAVED_BYTES // max(1, state)
    root = max(1, math.isqrt(count))
    intervals = (interval for interval in range(1, root) if -(-count // interval) + interval - 1 <= most)
    return next(intervals, root)


def _backward(
    options: LoopOptions,
    interval: int,
    tokens: NeuralTokens,
    weights: list[Tensor],
    layers: LayerStates,
    saved_chunks: list[tuple[LayerStates | None, ChunkTrace]],
    grad_y,
    grad_after,
) -> list[Tensor]:
    """Loop over the chunks in reverse; return the gradients of all inputs of `_ChunkLoop`."""
    # Copies, because they are modified in place.
    grads = pytree.tree_unflatten([x.clone() for x in grad_after], pytree.tree_structure(layers))
    grad_tokens = NeuralTokens(*(torch.empty_like(x) for x in tokens))
    grad_weights = [torch.zeros_like(w) for w in weights]
    for group in reversed(split_range(range(len(saved_chunks)), group_length(tokens, interval))):
        logs = [
            x[group.start : group.stop].detach().requires_grad_()
            for x in (tokens.log_retention, tokens.log_momentum)
        ]
        with torch.enable_grad():
            rules = options.coefficients(group, *logs)
        grad_rules = [torch.empty_like(x) for x in rules]
        rule_by_chunk = {
            index: Coefficients(*(x.detach()[place] for x in rules)) for place, index in enumerate(group)
        }
        for segment in reversed(split_range(group, interval)):
            chunks = _recompute_chunks(options, segment, tokens, rule_by_chunk, weights, saved_chunks)
            for index in reversed(segment):
                chunk = chunks.pop()
                grads = _backward_chunk(chunk, options.borders(index), grad_y[index], grads, grad_weights)
                for whole, part in zip(grad_tokens, chunk.token_gradients(), strict=False):
                    whole[index] = part
                for whole, part in zip(grad_rules, chunk.coefficient_gradients(), strict=True):
                    whole[index - group.start] = part
        grad_logs = torch.autograd.grad(rules, logs, grad_rules)
        for whole, part in zip((grad_tokens.log_retention, grad_tokens.log_momentum), grad_logs, strict=True):
            whole[group.start : group.stop] = part
    return pytree.tree_leaves((grad_tokens, grad_weights, grads))


def _recompute_chunks(
    options: LoopOptions,
    segment: range,
    tokens: NeuralTokens,
    rule_by_chunk: dict[int, Coefficients],
    weights,
    saved_chunks,
) -> list[ChunkGradient]:
    """Recompute the states of a segment; return a `ChunkGradient` for each chunk."""
    layers = saved_chunks[segment.start][0]
    if layers.anchor is None:
        layers = layers._replace(anchor=layers.delta)
    chunks = []
    for index in segment:
        fresh, cut, incomplete = options.borders(index)
        chunk_tokens = NeuralTokens(*(x[index] for x in tokens))
        layers = begin_chunk(fresh, cut, layers)
        chunk = ChunkGradient(
            options.shape, rule_by_chunk[index], saved_chunks[index][1], chunk_tokens, weights, layers
        )
        chunks.append(chunk)
        if index < segment[-1]:
            flush = is_flush_due(index, len(saved_chunks))
            layers = end_chunk(incomplete, rule_by_chunk[index], chunk.inputs, chunk.steps, layers, flush)
    return chunks


def _backward_chunk(
    chunk: ChunkGradient, borders: list[Tensor | None], grad_y, grads: LayerStates, grad_weights
) -> LayerStates:
    """Return the gradients of the state before a chunk. `grads` are the gradients of the state after it."""
    *stops, incomplete = borders
    old_anchor_grads = [] if incomplete is None else [a.masked_fill(~incomplete, 0) for a in grads.anchor]
    for layer, (grad_delta, grad_anchor) in enumerate(zip(grads.delta, grads.anchor, strict=True)):
        grad_delta.add_(grad_anchor - old_anchor_grads[layer] if old_anchor_grads else grad_anchor)
    chunk.backward_end(grads.delta, grads.momentum)
    chunk.backward_read(grad_y, grad_weights)
    chunk.backward_write(grad_weights)
    for anchor_grad, rest in zip(chunk.anchor, old_anchor_grads, strict=False):
        anchor_grad.add_(rest)
    grads = LayerStates(chunk.delta, chunk.momentum, chunk.anchor)
    for mask in stops:
        if mask is not None:
            grads = LayerStates(*([x.masked_fill(mask, 0) for x in part] for part in grads))
    return grads


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
