"""Neural memory in torch: a loop over chunks with a few batched products each.

Autograd can differentiate this loop. Letters as in `neural_memory`; R = B H. Tensors of a chunk have the
shape `[R, C, ...]`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils import _pytree as pytree

from scrubjay.kernels.derivatives import differentiate_graph
from scrubjay.kernels.dispatch import needs_plain_autograd
from scrubjay.kernels.neural.factors import Factors
from scrubjay.kernels.neural.network import (
    NetworkShape,
    activate,
    backward_pass,
    clip_step,
    compute_error_share,
    compute_output,
    compute_tangent_base,
    flush_denormals,
    forward_pass,
    mirror_weights,
    residual_gradient,
)

# Chunks between two flushes of denormal numbers; the last chunk is flushed, too.
_FLUSH_EVERY = 8
# Coefficients between token pairs that are computed at once; they should fit into the CPU caches.
_MAX_PAIR_NUMBERS = 2**18


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


class LoopOptions(NamedTuple):
    """Arguments of a run over chunks that have no gradient. A mask without True is None."""

    shape: NetworkShape
    fresh: Bool[Tensor, "N R"] | None
    """Mask of chunks that begin with zero delta and momentum."""
    cut: Bool[Tensor, "N R"] | None
    """Mask of chunks whose start stops the gradient."""
    incomplete: Bool[Tensor, "N R"] | None
    """Mask of chunks whose last token is skipped. At the end of such a chunk, the anchor does not move."""
    valid_tokens: Bool[Tensor, "N R C"] | None
    """Mask of tokens that are not skipped."""
    read_before_write: bool
    threshold: Float[Tensor, "N R C 1"] | None = None
    """Threshold of each token's error; None if the loss has no threshold."""
    initial_weights: list[Tensor] | None = None
    """Initial duals, at which a `fresh` chunk begins; None if states are deltas, which begin at zero."""

    def borders(self, chunk: int) -> list[Bool[Tensor, "R 1 1"] | None]:
        """Return the masks `fresh`, `cut` and `incomplete` of one chunk."""
        return [None if mask is None else mask[chunk, :, None, None] for mask in self[1:4]]

    def coefficients(self, chunks: range, log_retention: Tensor, log_momentum: Tensor) -> Coefficients:
        """Return the coefficients of the learning rule for some chunks, from their gates."""
        valid_tokens = None if self.valid_tokens is None else self.valid_tokens[chunks.start : chunks.stop]
        return compute_coefficients(log_retention, log_momentum, valid_tokens, self.read_before_write)


def run_loop(
    options: LoopOptions,
    tokens: NeuralTokens,
    weights,
    layers: LayerStates,
    saved_chunks: list | None = None,
    interval: int = 1,
):
    """Run one chunk after another, differentiable by autograd.

    Args:
        options: Arguments without gradient.
        tokens: Queries, keys, values and gates of all chunks.
        weights: Initial weights of each layer, one matrix for every row.
        layers: Initial state.
        saved_chunks: Collects the results that the custom backward pass needs.
        interval: Number of chunks between two states in `saved_chunks`.
    """
    count, outputs, squares = len(tokens.query), [], []
    for group in split_range(range(count), group_length(tokens, interval)):
        whole = NeuralTokens(*(x[group.start : group.stop] for x in tokens))
        rules = options.coefficients(group, whole.log_retention, whole.log_momentum)
        values_by_chunk = zip(*(x.unbind(0) for x in (*whole, *rules)), strict=True)
        for index, numbers in zip(group, values_by_chunk, strict=True):
            chunk_tokens, rule = NeuralTokens(*numbers[: len(tokens)]), Coefficients(*numbers[len(tokens) :])
            border = None
            if saved_chunks is not None and index % interval == 0:
                # An anchor that is identical to delta is not saved twice.
                border = layers._replace(anchor=None if layers.anchor is layers.delta else layers.anchor)
            fresh, cut, incomplete = options.borders(index)
            layers = begin_chunk(fresh, cut, layers, options.initial_weights)
            anchor_weights = mirror_weights(weights, layers.anchor, options.shape)
            threshold = None if options.threshold is None else options.threshold[index]
            trace = _write(options.shape, chunk_tokens, rule.share, anchor_weights, threshold)
            base = compute_tangent_base(weights, anchor_weights, layers.anchor, options.shape)
            *reads, output = _read(options.shape, chunk_tokens.query, rule, trace, base, layers)
            outputs.append(output)
            squares.append(trace.squared_norm[..., 0])
            if saved_chunks is not None:
                hidden = trace.products[:-1]
                record = ChunkTrace(hidden, trace.deltas[-1], trace.step_size, trace.squared_norm, reads[:-1])
                saved_chunks.append((border, record))
            # Small values of a dual that decays as a whole are not negligible, because its softmax is used.
            flush = options.initial_weights is None and is_flush_due(index, count)
            layers = end_chunk(incomplete, rule, trace.inputs, trace.steps, layers, flush)
    if not outputs:
        return tokens.query, tokens.step_size[..., 0], layers
    return torch.stack(outputs), torch.stack(squares), layers


def split_range(chunks: range, length: int) -> list[range]:
    """Split a range of chunks into ranges of at most `length` chunks."""
    return [chunks[begin : begin + length] for begin in range(0, len(chunks), length)]


def group_length(tokens: NeuralTokens, interval: int) -> int:
    """Return the number of chunks whose coefficients are computed at once, a multiple of `interval`."""
    _, rows, length, _ = tokens.query.shape
    return max(1, _MAX_PAIR_NUMBERS // max(1, rows * length**2) // interval) * interval


def begin_chunk(
    fresh: Tensor | None, cut: Tensor | None, layers: LayerStates, initial_weights: list[Tensor] | None = None
) -> LayerStates:
    """Return the state at the start of a chunk, after resets and gradient stops."""
    if fresh is None and cut is None:
        return layers
    zeros = [torch.zeros_like(x) for x in layers.momentum]
    first_duals = zeros if initial_weights is None else initial_weights
    if fresh is not None:
        layers = _select_rows(fresh, LayerStates(first_duals, zeros, first_duals), layers)
    if cut is not None:
        # A cut detaches the learned part of a dual, not its initial weights.
        detached_state = LayerStates(*([x.detach() for x in part] for part in layers))
        if initial_weights is not None:
            delta, anchor = (
                [x + (w - w.detach()) for x, w in zip(part, initial_weights, strict=True)]
                for part in detached_state[::2]
            )
            detached_state = LayerStates(delta, detached_state.momentum, anchor)
        layers = _select_rows(cut, detached_state, layers)
    return layers


def _select_rows(mask: Tensor, selected_state: LayerStates, other_state: LayerStates) -> LayerStates:
    return LayerStates(
        *(
            [torch.where(mask, a, b) for a, b in zip(part, rest, strict=True)]
            for part, rest in zip(selected_state, other_state, strict=True)
        )
    )


def is_flush_due(index: int, count: int) -> bool:
    """Return True if denormal numbers must be replaced by zero after chunk `index` of `count` chunks."""
    return index % _FLUSH_EVERY == _FLUSH_EVERY - 1 or index == count - 1


def end_chunk(
    incomplete: Tensor | None, rule: Coefficients, inputs, steps, layers: LayerStates, flush: bool
) -> LayerStates:
    """Return the state after a chunk.

    Args:
        incomplete: Mask of rows whose last token is skipped; None if there are none.
        rule: Coefficients of the chunk.
        inputs: Inputs of each layer for the keys.
        steps: Step of each token in each layer.
        layers: State before the chunk.
        flush: Replace denormal numbers by zero.
    """
    delta, momentum = _advance(rule, inputs, steps, layers.delta, layers.momentum)
    if flush:
        delta, momentum = ([flush_denormals(x) for x in part] for part in (delta, momentum))
    if incomplete is None:
        return LayerStates(delta, momentum, delta)
    anchor = [torch.where(incomplete, a, d) for a, d in zip(layers.anchor, delta, strict=True)]
    return LayerStates(delta, momentum, anchor)


class _WriteTrace(NamedTuple):
    """Results of the inner forward and backward pass on the keys of a chunk."""

    inputs: list[Tensor]
    products: list[Tensor]
    deltas: list[Tensor]
    steps: list[Tensor]
    """For each layer, the product of the clipped step sizes and the layer's gradients in `deltas`."""
    step_size: Tensor
    squared_norm: Tensor


def _write(
    shape: NetworkShape,
    tokens: NeuralTokens,
    share: Tensor,
    anchor_weights: list[Tensor],
    threshold: Tensor | None,
) -> _WriteTrace:
    inputs, products, prediction = forward_pass(tokens.key, anchor_weights, shape)
    error = prediction - tokens.value
    pull = residual_gradient(error, threshold, shape)
    deltas = backward_pass(pull, products, anchor_weights, shape)
    step_size, squared_norm = clip_step(tokens.step_size, share, error, pull, inputs, deltas, shape)
    return _WriteTrace(inputs, products, deltas, [step_size * d for d in deltas], step_size, squared_norm)


def _read(
    shape: NetworkShape, query: Tensor, rule: Coefficients, trace: _WriteTrace, weights, layers: LayerStates
) -> list[Tensor]:
    """Return the pre-activation of each layer for the queries, and the network's output as last entry."""
    x, products = query, []
    for layer, step in enumerate(trace.steps):
        if layer:
            x = activate(products[-1], shape)
        product = _add_product(x @ weights[layer], rule.read_retention * x, layers.delta[layer])
        product = _add_product(product, rule.read_buildup * x, layers.momentum[layer])
        similarity = rule.read_mixing * (x @ trace.inputs[layer].mT)
        products.append(_add_product(product, similarity, step, -1))
    return [*products, compute_output(query, products[-1], shape)]


def _advance(rule: Coefficients, inputs, steps, delta, momentum) -> tuple[list[Tensor], list[Tensor]]:
    after_delta, after_momentum = [], []
    for x, step, d, s in zip(inputs, steps, delta, momentum, strict=True):
        delta_part = torch.addcmul(rule.end_retention * d, rule.end_buildup, s)
        after_delta.append(_add_product(delta_part, (rule.end_mixing * x).mT, step, -1))
        momentum_part = rule.end_momentum_retention * s
        after_momentum.append(_add_product(momentum_part, (rule.end_trace * x).mT, step, -1))
    return after_delta, after_momentum


def _add_product(total: Tensor, a: Tensor, b: Tensor, factor: int = 1) -> Tensor:
    """Return `total` + `factor` a @ b. May overwrite `total` if no graph is recorded."""
    if torch.is_grad_enabled() or needs_plain_autograd():
        return torch.baddbmm(total, a, b, alpha=factor)
    return total.baddbmm_(a, b, alpha=factor)


def run_duals(options: LoopOptions, tokens: NeuralTokens, weights, layers: LayerStates):
    """Run the loop on duals (initial weights plus delta) instead of deltas. Retention then decays duals."""
    delta, anchor = ([w + x for w, x in zip(weights, part, strict=True)] for part in layers[::2])
    zeros = [torch.zeros_like(w) for w in weights]
    duals = LayerStates(delta, layers.momentum, anchor)
    y, squared_norm, after = run_loop(options._replace(initial_weights=weights), tokens, zeros, duals)
    delta, anchor = ([x - w for w, x in zip(weights, part, strict=True)] for part in after[::2])
    return y, squared_norm, LayerStates(delta, after.momentum, anchor)


def differentiate_loop(
    options: LoopOptions, inputs: tuple[NeuralTokens, list[Tensor], LayerStates], *grads: Tensor | None
) -> list[Tensor]:
    """Return the gradients of all leaves of `inputs` by autograd, for higher derivatives.

    `grads` are the gradients of the outputs and of the final state.
    """
    leaves, spec = pytree.tree_flatten(inputs)

    def run(*leaves: Tensor) -> list[Tensor]:
        y, _, after = run_loop(options, *pytree.tree_unflatten(leaves, spec))
        return [y, *pytree.tree_leaves(after)]

    return differentiate_graph(run, leaves, *grads)
