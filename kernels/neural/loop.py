"""Neural memory in torch: a loop over chunks with a few batched products each, and its custom backward pass.

`_ChunkLoop` and `_run_loop` compute the same results. Autograd can differentiate `_run_loop`, which serves
higher derivatives and the options that `_ChunkLoop` does not support. Letters as in `neural_memory`;
R = B H. Tensors of a chunk have the shape `[R, C, ...]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from scrubjay.kernels.derivatives import differentiate_graph, needs_graph
from scrubjay.kernels.dispatch import needs_plain_autograd, without_autocast
from scrubjay.kernels.neural.chunk import (
    ChunkGradient,
    ChunkTrace,
    Coefficients,
    LayerStates,
    NeuralTokens,
    compute_coefficients,
)
from scrubjay.kernels.neural.factors import MatrixInputs, SegmentOptions
from scrubjay.kernels.neural.matrix import run_matrices
from scrubjay.kernels.neural.mirror_map import forgets_all
from scrubjay.kernels.neural.network import (
    TITANS,
    NetworkShape,
    NeuralState,
    Problem,
    activate,
    backward_pass,
    clip_step,
    compute_output,
    compute_tangent_base,
    flush_denormals,
    forward_pass,
    mirror_weights,
    pack,
    residual_gradient,
    unpack,
)

# Chunks between two flushes of denormal numbers; the last chunk is flushed, too.
_FLUSH_EVERY = 8
# Memory for saved states at chunk borders; within it no state is recomputed in the backward pass.
_MAX_SAVED_BYTES = 2**25
# Coefficients between token pairs that are computed at once; they should fit into the CPU caches.
_MAX_PAIR_NUMBERS = 2**18


class _ChunkBorders(NamedTuple):
    """Masks of chunks that begin with a reset or a gradient stop, or whose last token is skipped.

    Each mask is `[N, R, 1, 1]` for N chunks and R heads of all batch rows. A mask without True is None.
    """

    fresh: Tensor | None
    cut: Tensor | None
    incomplete: Tensor | None

    def select(self, chunk: int) -> _ChunkBorders:
        """Return the three masks of one chunk, `[R, 1, 1]` each, for R memory heads of all batch rows."""
        return _ChunkBorders(*(None if border is None else border[chunk] for border in self))


class _LoopOptions(NamedTuple):
    """Options of the loop over chunks."""

    shape: NetworkShape
    borders: _ChunkBorders
    valid_tokens: Tensor | None
    """Mask of tokens that are not skipped, `[N, R, C]`; None if no token is skipped."""
    read_before_write: bool
    threshold: Tensor | None = None
    """Threshold of each token's error, `[N, R, C, 1]`; None if the loss has no threshold."""
    initial_weights: list[Tensor] | None = None
    """Initial duals, at which a `fresh` chunk begins; None if states are deltas, which begin at zero."""

    def coefficients(self, chunks: range, log_retention: Tensor, log_momentum: Tensor) -> Coefficients:
        """Return the coefficients of the learning rule for some chunks, from their gates."""
        valid_tokens = None if self.valid_tokens is None else self.valid_tokens[chunks.start : chunks.stop]
        return compute_coefficients(log_retention, log_momentum, valid_tokens, self.read_before_write)


def run_chunks(problem: Problem, custom_backward: bool) -> tuple[Tensor, Tensor, NeuralState]:
    """Run all chunks, with the custom backward pass if `custom_backward` is set and the problem allows it."""
    query, key, value, gates, weights, state, shape, chunk_size, valid, fresh, cut, *_ = problem
    batch, time, heads, width = query.shape
    count = time // chunk_size
    rows = batch * heads

    def by_chunk(x: Tensor) -> Tensor:
        chunks = x.unflatten(1, (count, chunk_size)).movedim((1, 0, 3, 2), (0, 1, 2, 3))
        return chunks.reshape(count, rows, chunk_size, *x.shape[3:])

    def by_row(border: Tensor | None) -> Tensor | None:
        if border is None or not border.any():
            return None
        return border.T[:, :, None].expand(count, batch, heads).reshape(count, rows, 1, 1)

    step_size, log_momentum, log_retention = (by_chunk(gate) for gate in gates)
    incomplete = valid_tokens = None
    if valid is not None and not valid.all():
        valid_tokens = by_chunk(valid[..., None].expand(batch, time, heads))
        step_size, log_momentum, log_retention = (
            gate.masked_fill(~valid_tokens, 0) for gate in (step_size, log_momentum, log_retention)
        )
        incomplete = by_row(~valid.unflatten(1, (count, chunk_size))[..., -1])
    tokens = NeuralTokens(
        by_chunk(query), by_chunk(key), by_chunk(value), step_size[..., None], log_momentum, log_retention
    )
    layers = LayerStates(*(unpack(part.flatten(0, 1), shape) for part in state))
    borders = _ChunkBorders(by_row(fresh), by_row(cut), incomplete)
    options = _LoopOptions(shape, borders, valid_tokens, problem.read_before_write)
    if problem.threshold is not None:
        options = options._replace(threshold=by_chunk(problem.threshold)[..., None])
    plain = not shape.norm and shape.learning == TITANS
    custom_backward = custom_backward and plain and not needs_plain_autograd(*tokens, *weights, *state)
    if custom_backward and len(weights) == 1 and query.numel():
        y, squared_norm, after = _run_matrices(options, tokens, weights[0], layers)
    else:
        weights = [w.expand(batch, *w.shape).flatten(0, 1) for w in weights]
        whole_dual = forgets_all(shape.learning.mirror)
        run = _run_custom if custom_backward else _run_duals if whole_dual else _run_loop
        y, squared_norm, after = run(options, tokens, weights, layers)
    y = y.view(count, batch, heads, chunk_size, width).permute(1, 0, 3, 2, 4).reshape(query.shape)
    surprise = squared_norm.detach().sqrt().view(count, batch, heads, chunk_size)
    surprise = surprise.permute(1, 0, 3, 2).reshape(batch, time, heads)
    after = NeuralState(*(pack(part).view(batch, heads, shape.size) for part in after))
    return y, surprise, after


def _run_loop(
    options: _LoopOptions,
    tokens: NeuralTokens,
    weights,
    layers: LayerStates,
    saved_chunks: list | None = None,
    interval: int = 1,
):
    """Run one chunk after another, differentiable by autograd.

    `saved_chunks` collects the results that the custom backward pass needs, including the state before
    every `interval`-th chunk.
    """
    count, outputs, squares = len(tokens.query), [], []
    for group in _split_range(range(count), _group_length(tokens, interval)):
        whole = NeuralTokens(*(x[group.start : group.stop] for x in tokens))
        rules = options.coefficients(group, whole.log_retention, whole.log_momentum)
        values_by_chunk = zip(*(x.unbind(0) for x in (*whole, *rules)), strict=True)
        for index, numbers in zip(group, values_by_chunk, strict=True):
            chunk_tokens, rule = NeuralTokens(*numbers[: len(tokens)]), Coefficients(*numbers[len(tokens) :])
            border = None
            if saved_chunks is not None and index % interval == 0:
                # An anchor that is identical to delta is not saved twice.
                border = layers._replace(anchor=None if layers.anchor is layers.delta else layers.anchor)
            layers = _begin_chunk(options.borders.select(index), layers, options.initial_weights)
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
            flush = options.initial_weights is None and _is_flush_due(index, count)
            layers = _end_chunk(options.borders.select(index), rule, trace.inputs, trace.steps, layers, flush)
    if not outputs:
        return tokens.query, tokens.step_size[..., 0], layers
    return torch.stack(outputs), torch.stack(squares), layers


def _split_range(chunks: range, length: int) -> list[range]:
    return [chunks[begin : begin + length] for begin in range(0, len(chunks), length)]


def _group_length(tokens: NeuralTokens, interval: int) -> int:
    """Return the number of chunks whose coefficients are computed at once, a multiple of `interval`."""
    _, rows, length, _ = tokens.query.shape
    return max(1, _MAX_PAIR_NUMBERS // max(1, rows * length**2) // interval) * interval


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


def _begin_chunk(
    border: _ChunkBorders, layers: LayerStates, initial_weights: list[Tensor] | None = None
) -> LayerStates:
    """Return the state at the start of a chunk, after resets and gradient stops."""
    if border.fresh is None and border.cut is None:
        return layers
    zeros = [torch.zeros_like(x) for x in layers.momentum]
    first_duals = zeros if initial_weights is None else initial_weights
    if border.fresh is not None:
        layers = _select_rows(border.fresh, LayerStates(first_duals, zeros, first_duals), layers)
    if border.cut is not None:
        # A cut detaches the learned part of a dual, not its initial weights.
        detached_state = LayerStates(*([x.detach() for x in part] for part in layers))
        if initial_weights is not None:
            delta, anchor = (
                [x + (w - w.detach()) for x, w in zip(part, initial_weights, strict=True)]
                for part in detached_state[::2]
            )
            detached_state = LayerStates(delta, detached_state.momentum, anchor)
        layers = _select_rows(border.cut, detached_state, layers)
    return layers


def _select_rows(mask: Tensor, selected_state: LayerStates, other_state: LayerStates) -> LayerStates:
    return LayerStates(
        *(
            [torch.where(mask, a, b) for a, b in zip(part, rest, strict=True)]
            for part, rest in zip(selected_state, other_state, strict=True)
        )
    )


def _is_flush_due(index: int, count: int) -> bool:
    """Return True if denormal numbers must be replaced by zero after chunk `index` of `count` chunks."""
    return index % _FLUSH_EVERY == _FLUSH_EVERY - 1 or index == count - 1


def _end_chunk(
    border: _ChunkBorders, rule: Coefficients, inputs, steps, layers: LayerStates, flush: bool
) -> LayerStates:
    """Return the state after a chunk."""
    delta, momentum = _advance(rule, inputs, steps, layers.delta, layers.momentum)
    if flush:
        delta, momentum = ([flush_denormals(x) for x in part] for part in (delta, momentum))
    if border.incomplete is None:
        return LayerStates(delta, momentum, delta)
    anchor = [torch.where(border.incomplete, a, d) for a, d in zip(layers.anchor, delta, strict=True)]
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


def _run_custom(options: _LoopOptions, tokens: NeuralTokens, weights, layers: LayerStates):
    out = _ChunkLoop.apply(options, *tokens, *weights, *(x for part in layers for x in part))
    depth = len(weights)
    return out[0], out[1], LayerStates(*(list(out[2 + depth * k : 2 + depth * (k + 1)]) for k in range(3)))


def _run_matrices(options: _LoopOptions, tokens: NeuralTokens, weight: Tensor, layers: LayerStates):
    """Run all chunks of a memory with one layer."""
    if options.shape.residual:
        weight = weight + torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    fresh, cut, incomplete = (None if border is None else border[..., 0, 0] for border in options.borders)
    segment = SegmentOptions(fresh, cut, incomplete, options.valid_tokens, options.read_before_write)
    delta, momentum, anchor = (part[0] for part in layers)
    tokens = NeuralTokens(*(x.contiguous() for x in tokens))
    matrix_inputs = MatrixInputs(*tokens, weight, delta, momentum, anchor)
    y, squared_norm, after = run_matrices(segment, matrix_inputs, _differentiate_matrices)
    return y, squared_norm, LayerStates(*([part] for part in after))


def _differentiate_matrices(segment: SegmentOptions, flat: Sequence[Tensor], grad_y, grad_after):
    """Return the gradients of all `MatrixInputs` of a segment by autograd, for higher derivatives."""
    heads, width, _ = MatrixInputs(*flat).weight.shape
    borders = _ChunkBorders(*(None if x is None else x[..., None, None] for x in segment[:3]))
    options = _LoopOptions(
        NetworkShape(((width, width),), residual=False, norm=False),
        borders,
        segment.valid_tokens,
        segment.read_before_write,
    )

    def run(*inputs: Tensor) -> list[Tensor]:
        matrix_inputs = MatrixInputs(*inputs)
        weight = matrix_inputs.weight.expand(len(matrix_inputs.delta) // heads, -1, -1, -1).flatten(0, 1)
        y, _, after = _run_loop(
            options,
            NeuralTokens(*matrix_inputs[:6]),
            [weight],
            LayerStates(*([x] for x in matrix_inputs[7:])),
        )
        return [y, *(x for part in after for x in part)]

    return differentiate_graph(run, flat, grad_y, *grad_after)


def _run_duals(options: _LoopOptions, tokens: NeuralTokens, weights, layers: LayerStates):
    """Run the loop on duals (initial weights plus delta) instead of deltas. Retention then decays duals."""
    delta, anchor = ([w + x for w, x in zip(weights, part, strict=True)] for part in layers[::2])
    zeros = [torch.zeros_like(w) for w in weights]
    duals = LayerStates(delta, layers.momentum, anchor)
    y, squared_norm, after = _run_loop(options._replace(initial_weights=weights), tokens, zeros, duals)
    delta, anchor = ([x - w for w, x in zip(weights, part, strict=True)] for part in after[::2])
    return y, squared_norm, LayerStates(delta, after.momentum, anchor)


def _unflatten(flat: Sequence, depth: int) -> tuple[NeuralTokens, list[Tensor], LayerStates]:
    """Return tokens, weights and state from the flat arguments that `_run_custom` passes."""
    tokens, rest = NeuralTokens(*flat[:6]), list(flat[6:])
    weights, *layers = (rest[depth * k : depth * (k + 1)] for k in range(4))
    return tokens, weights, LayerStates(*layers)


class _ChunkLoop(torch.autograd.Function):
    """Autograd function over the loop, with the custom backward pass."""

    @staticmethod
    def forward(ctx, options: _LoopOptions, *flat):
        tokens, weights, layers = _unflatten(flat, len(options.shape.layers))
        saved_chunks: list | None = [] if any(ctx.needs_input_grad) else None
        ctx.interval = _choose_interval(tokens, layers)
        y, squared_norm, after = _run_loop(options, tokens, weights, layers, saved_chunks, ctx.interval)
        # Autograd saves all of it: so it is freed after the backward pass and dropped by checkpointing.
        leaves, ctx.spec = pytree.tree_flatten(saved_chunks)
        ctx.num_inputs = len(flat)
        ctx.save_for_backward(*flat, *leaves)
        ctx.options = options
        ctx.mark_non_differentiable(squared_norm)
        # Outputs of an autograd function must not be its inputs.
        input_ids = {id(x) for x in flat}
        return y, squared_norm, *(x.clone() if id(x) in input_ids else x for part in after for x in part)

    @staticmethod
    @without_autocast
    def backward(ctx, grad_y, _, *grad_after):
        flat, leaves = ctx.saved_tensors[: ctx.num_inputs], list(ctx.saved_tensors[ctx.num_inputs :])
        if needs_graph(grad_y, *grad_after):
            return None, *_differentiate_loop(ctx.options, flat, grad_y, grad_after)
        saved_chunks = pytree.tree_unflatten(leaves, ctx.spec)
        return None, *_backward(ctx.options, ctx.interval, flat, saved_chunks, grad_y, grad_after)


def _differentiate_loop(options: _LoopOptions, flat, grad_y, grad_after):
    """Return the gradients of all inputs of `_ChunkLoop` by autograd, for higher derivatives."""

    def run(*inputs: Tensor) -> list[Tensor]:
        y, _, after = _run_loop(options, *_unflatten(inputs, len(options.shape.layers)))
        return [y, *(x for part in after for x in part)]

    return differentiate_graph(run, flat, grad_y, *grad_after)


def _backward(
    options: _LoopOptions,
    interval: int,
    flat,
    saved_chunks: list[tuple[LayerStates | None, ChunkTrace]],
    grad_y,
    grad_after,
):
    """Loop over the chunks in reverse; return the gradients of all inputs of `_ChunkLoop`."""
    depth = len(options.shape.layers)
    tokens, weights, _ = _unflatten(flat, depth)
    # Copies, because they are modified in place.
    grads = LayerStates(*([x.clone() for x in grad_after[depth * k : depth * (k + 1)]] for k in range(3)))
    grad_tokens = NeuralTokens(*(torch.empty_like(x) for x in tokens))
    grad_weights = [torch.zeros_like(w) for w in weights]
    for group in reversed(_split_range(range(len(saved_chunks)), _group_length(tokens, interval))):
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
        for segment in reversed(_split_range(group, interval)):
            chunks = _recompute_chunks(options, segment, tokens, rule_by_chunk, weights, saved_chunks)
            for index in reversed(segment):
                chunk, border = chunks.pop(), options.borders.select(index)
                grads = _backward_chunk(chunk, border, grad_y[index], grads, grad_weights)
                for whole, part in zip(grad_tokens, chunk.token_gradients(), strict=False):
                    whole[index] = part
                for whole, part in zip(grad_rules, chunk.coefficient_gradients(), strict=True):
                    whole[index - group.start] = part
        grad_logs = torch.autograd.grad(rules, logs, grad_rules)
        for whole, part in zip((grad_tokens.log_retention, grad_tokens.log_momentum), grad_logs, strict=True):
            whole[group.start : group.stop] = part
    return *grad_tokens, *grad_weights, *grads.delta, *grads.momentum, *grads.anchor


def _recompute_chunks(
    options: _LoopOptions,
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
        border, chunk_tokens = options.borders.select(index), NeuralTokens(*(x[index] for x in tokens))
        layers = _begin_chunk(border, layers)
        chunk = ChunkGradient(
            options.shape, rule_by_chunk[index], saved_chunks[index][1], chunk_tokens, weights, layers
        )
        chunks.append(chunk)
        if index < segment[-1]:
            flush = _is_flush_due(index, len(saved_chunks))
            layers = _end_chunk(border, rule_by_chunk[index], chunk.inputs, chunk.steps, layers, flush)
    return chunks


def _backward_chunk(
    chunk: ChunkGradient, border: _ChunkBorders, grad_y, grads: LayerStates, grad_weights
) -> LayerStates:
    """Return the gradients of the state before a chunk. `grads` are the gradients of the state after it."""
    old_anchor_grads = (
        [] if border.incomplete is None else [a.masked_fill(~border.incomplete, 0) for a in grads.anchor]
    )
    for layer, (grad_delta, grad_anchor) in enumerate(zip(grads.delta, grads.anchor, strict=True)):
        grad_delta.add_(grad_anchor - old_anchor_grads[layer] if old_anchor_grads else grad_anchor)
    chunk.backward_end(grads.delta, grads.momentum)
    chunk.backward_read(grad_y, grad_weights)
    chunk.backward_write(grad_weights)
    for anchor_grad, rest in zip(chunk.anchor, old_anchor_grads, strict=False):
        anchor_grad.add_(rest)
    grads = LayerStates(chunk.delta, chunk.momentum, chunk.anchor)
    for mask in (border.fresh, border.cut):
        if mask is not None:
            grads = LayerStates(*([x.masked_fill(mask, 0) for x in part] for part in grads))
    return grads
