"""Neural memory in torch: a loop over chunks, a handful of batched products each, and its gradient by hand.

`_Chunks` and `_loop` compute the same; autograd may differentiate the second, which serves higher derivatives
and what `_Chunks` leaves out. Letters, beside those of `neural_memory`: R = B H rows; tensors of a chunk are
`[R, C, ...]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from scrubjay.kernels.derivatives import by_graph, is_wanted_again
from scrubjay.kernels.dispatch import without_autocast, without_own_gradient
from scrubjay.kernels.neural.chunk import (
    ChunkGradient,
    Coefficients,
    Kept,
    Layers,
    Tokens,
    coefficients_of,
)
from scrubjay.kernels.neural.factors import Given, Segment
from scrubjay.kernels.neural.matrix import run_matrices
from scrubjay.kernels.neural.mirror import forgets_all
from scrubjay.kernels.neural.network import (
    TITANS,
    NetworkShape,
    NeuralState,
    Problem,
    activated,
    backward_pass,
    clipped_step,
    finish,
    flushed,
    forward_pass,
    mirrored,
    pack,
    residual_gradient,
    tangent,
    unpack,
)

# Chunks between looks for denormal numbers, beside the last.
_FLUSH_EVERY = 8
# Bytes of states kept at borders up to which none is computed a second time.
_MOST_KEPT = 2**25
# Numbers that tie tokens of a chunk to each other, formed at once: as many as caches hold.
_MOST_TIES = 2**18


class _Borders(NamedTuple):
    """What happens at chunk borders, `[N, R, 1, 1]` each, None where it happens to no row."""

    fresh: Tensor | None
    cut: Tensor | None
    incomplete: Tensor | None

    def at(self, chunk: int) -> _Borders:
        return _Borders(*(None if border is None else border[chunk] for border in self))


class _Plan(NamedTuple):
    """How the chunks are gone through."""

    shape: NetworkShape
    borders: _Borders
    learned: Tensor | None
    """Which tokens are, `[N, R, C]`, None if all."""
    read_before_write: bool
    threshold: Tensor | None = None
    """Of each token's error, `[N, R, C, 1]`, where there are such."""
    newborn: list[Tensor] | None = None
    """With what learned a `fresh` chunk begins, None for nothing."""

    def coefficients(self, chunks: range, log_retention: Tensor, log_momentum: Tensor) -> Coefficients:
        """Return the rule of some chunks from their gates."""
        learned = None if self.learned is None else self.learned[chunks.start : chunks.stop]
        return coefficients_of(log_retention, log_momentum, learned, self.read_before_write)


def run_chunks(problem: Problem, by_hand: bool) -> tuple[Tensor, Tensor, NeuralState]:
    """Run all chunks, `by_hand` where its gradient is enough."""
    query, key, value, gates, weights, state, shape, chunk_size, valid, fresh, cut, read_before_write, _ = (
        problem
    )
    batch, time, heads, width = query.shape
    count = time // chunk_size
    rows = batch * heads

    def by_chunk(x: Tensor) -> Tensor:
        folded = x.unflatten(1, (count, chunk_size)).movedim((1, 0, 3, 2), (0, 1, 2, 3))
        return folded.reshape(count, rows, chunk_size, *x.shape[3:])

    def by_row(border: Tensor | None) -> Tensor | None:
        if border is None or not border.any():
            return None
        return border.T[:, :, None].expand(count, batch, heads).reshape(count, rows, 1, 1)

    step_size, log_momentum, log_retention = (by_chunk(gate) for gate in gates)
    incomplete = learned = None
    if valid is not None and not valid.all():
        learned = by_chunk(valid[..., None].expand(batch, time, heads))
        step_size, log_momentum, log_retention = (
            gate.masked_fill(~learned, 0) for gate in (step_size, log_momentum, log_retention)
        )
        incomplete = by_row(~valid.unflatten(1, (count, chunk_size))[..., -1])
    tokens = Tokens(
        by_chunk(query), by_chunk(key), by_chunk(value), step_size[..., None], log_momentum, log_retention
    )
    layers = Layers(*(unpack(part.flatten(0, 1), shape) for part in state))
    plan = _Plan(shape, _Borders(by_row(fresh), by_row(cut), incomplete), learned, read_before_write)
    if problem.threshold is not None:
        plan = plan._replace(threshold=by_chunk(problem.threshold)[..., None])
    plain = not shape.norm and shape.learning == TITANS
    by_hand = by_hand and plain and not without_own_gradient(*tokens, *weights, *state)
    if by_hand and len(weights) == 1 and query.numel():
        y, squared, after = _of_matrices(plan, tokens, weights[0], layers)
    else:
        weights = [w.expand(batch, *w.shape).flatten(0, 1) for w in weights]
        run = _by_hand if by_hand else _of_duals if forgets_all(shape.learning.mirror) else _loop
        y, squared, after = run(plan, tokens, weights, layers)
    y = y.view(count, batch, heads, chunk_size, width).permute(1, 0, 3, 2, 4).reshape(query.shape)
    surprise = squared.detach().sqrt().view(count, batch, heads, chunk_size)
    surprise = surprise.permute(1, 0, 3, 2).reshape(batch, time, heads)
    after = NeuralState(*(pack(part).view(batch, heads, shape.size) for part in after))
    return y, surprise, after


def _loop(plan: _Plan, tokens: Tokens, weights, layers: Layers, kept: list | None = None, every: int = 1):
    """Run chunk after chunk in operations that autograd follows.

    `kept` collects what the gradient by hand needs, the state of every `every`-th border among it.
    """
    count, outputs, squares = len(tokens.query), [], []
    for group in _parts(range(count), _group(tokens, every)):
        whole = Tokens(*(x[group.start : group.stop] for x in tokens))
        rules = plan.coefficients(group, whole.log_retention, whole.log_momentum)
        chunked = zip(*(x.unbind(0) for x in (*whole, *rules)), strict=True)
        for index, numbers in zip(group, chunked, strict=True):
            here, at = Tokens(*numbers[: len(tokens)]), Coefficients(*numbers[len(tokens) :])
            border = None
            if kept is not None and index % every == 0:
                # An anchor that is delta is not saved a second time.
                border = layers._replace(anchor=None if layers.anchor is layers.delta else layers.anchor)
            layers = _enter(plan.borders.at(index), layers, plan.newborn)
            anchored = mirrored(weights, layers.anchor, plan.shape)
            threshold = None if plan.threshold is None else plan.threshold[index]
            trace = _write(plan.shape, here, at.share, anchored, threshold)
            base = tangent(weights, anchored, layers.anchor, plan.shape)
            *reads, output = _read(plan.shape, here.query, at, trace, base, layers)
            outputs.append(output)
            squares.append(trace.squared[..., 0])
            if kept is not None:
                hidden = trace.products[:-1]
                kept.append(
                    (border, Kept(hidden, trace.deltas[-1], trace.step_size, trace.squared, reads[:-1]))
                )
            # Of a dual that fades as a whole, nothing small is nothing: its softmax is what matters.
            flush = plan.newborn is None and _flushes(index, count)
            layers = _leave(plan.borders.at(index), at, trace.inputs, trace.steps, layers, flush)
    if not outputs:
        return tokens.query, tokens.step_size[..., 0], layers
    return torch.stack(outputs), torch.stack(squares), layers


def _parts(chunks: range, length: int) -> list[range]:
    return [chunks[begin : begin + length] for begin in range(0, len(chunks), length)]


def _group(tokens: Tokens, every: int) -> int:
    """Return how many chunks have their rule formed at once, a multiple of `every`."""
    _, rows, length, _ = tokens.query.shape
    return max(1, _MOST_TIES // max(1, rows * length**2) // every) * every


def _interval(tokens: Tokens, layers: Layers) -> int:
    """Return from one border to how many chunks on the state is kept.

    One, if so many states are few bytes; else the fewest that keep states and those between two within the
    bound, at most the root of the number of chunks, by which their sum is least.
    """
    state = sum(x.numel() * x.element_size() for x in (*layers.delta, *layers.momentum))
    count, most = len(tokens.query), _MOST_KEPT // max(1, state)
    root = max(1, math.isqrt(count))
    return next((every for every in range(1, root) if -(-count // every) + every - 1 <= most), root)


def _enter(border: _Borders, layers: Layers, newborn: list[Tensor] | None = None) -> Layers:
    """Return the state with which a chunk begins."""
    if border.fresh is None and border.cut is None:
        return layers
    nothing = [torch.zeros_like(x) for x in layers.momentum]
    born = nothing if newborn is None else newborn
    if border.fresh is not None:
        layers = _where(border.fresh, Layers(born, nothing, born), layers)
    if border.cut is not None:
        # A dual is cut from what was learned, not from the weights that it was born with.
        detached = Layers(*([x.detach() for x in part] for part in layers))
        if newborn is not None:
            delta, anchor = (
                [x + (w - w.detach()) for x, w in zip(part, newborn, strict=True)] for part in detached[::2]
            )
            detached = Layers(delta, detached.momentum, anchor)
        layers = _where(border.cut, detached, layers)
    return layers


def _where(mask: Tensor, chosen: Layers, others: Layers) -> Layers:
    return Layers(
        *(
            [torch.where(mask, a, b) for a, b in zip(part, rest, strict=True)]
            for part, rest in zip(chosen, others, strict=True)
        )
    )


def _flushes(index: int, count: int) -> bool:
    """Return whether denormal numbers are looked for behind this chunk."""
    return index % _FLUSH_EVERY == _FLUSH_EVERY - 1 or index == count - 1


def _leave(border: _Borders, at: Coefficients, inputs, steps, layers: Layers, flush: bool) -> Layers:
    """Return the state behind a chunk."""
    delta, momentum = _advance(at, inputs, steps, layers.delta, layers.momentum)
    if flush:
        delta, momentum = ([flushed(x) for x in part] for part in (delta, momentum))
    if border.incomplete is None:
        return Layers(delta, momentum, delta)
    anchor = [torch.where(border.incomplete, a, d) for a, d in zip(layers.anchor, delta, strict=True)]
    return Layers(delta, momentum, anchor)


class _Trace(NamedTuple):
    """What a chunk's keys went through: all that reads, updates and the gradient need of it."""

    inputs: list[Tensor]
    products: list[Tensor]
    deltas: list[Tensor]
    steps: list[Tensor]
    """The deltas times the step that was taken."""
    step_size: Tensor
    squared: Tensor


def _write(
    shape: NetworkShape, here: Tokens, share: Tensor, anchored: list[Tensor], threshold: Tensor | None
) -> _Trace:
    inputs, products, prediction = forward_pass(here.key, anchored, shape)
    error = prediction - here.value
    pull = residual_gradient(error, threshold, shape)
    deltas = backward_pass(pull, products, anchored, shape)
    taken, squared = clipped_step(here.step_size, share, error, pull, inputs, deltas, shape)
    return _Trace(inputs, products, deltas, [taken * d for d in deltas], taken, squared)


def _read(
    shape: NetworkShape, query: Tensor, at: Coefficients, trace: _Trace, weights, layers: Layers
) -> list[Tensor]:
    """Return every layer's product with each token's own weights, then the output."""
    x, products = query, []
    for layer, step in enumerate(trace.steps):
        if layer:
            x = activated(products[-1], shape)
        product = _plus(x @ weights[layer], at.read_retained * x, layers.delta[layer])
        product = _plus(product, at.read_built * x, layers.momentum[layer])
        alike = at.read_mixed * (x @ trace.inputs[layer].mT)
        products.append(_plus(product, alike, step, -1))
    return [*products, finish(query, products[-1], shape)]


def _advance(at: Coefficients, inputs, steps, delta, momentum) -> tuple[list[Tensor], list[Tensor]]:
    after_delta, after_momentum = [], []
    for x, step, d, s in zip(inputs, steps, delta, momentum, strict=True):
        kept = torch.addcmul(at.end_retained * d, at.end_built, s)
        after_delta.append(_plus(kept, (at.end_mixed * x).mT, step, -1))
        after_momentum.append(_plus(at.end_kept * s, (at.end_trace * x).mT, step, -1))
    return after_delta, after_momentum


def _plus(total: Tensor, a: Tensor, b: Tensor, factor: int = 1) -> Tensor:
    """Return `total`, which nobody else needs, plus factor a b: in place unless a graph may be recorded."""
    if torch.is_grad_enabled() or without_own_gradient():
        return torch.baddbmm(total, a, b, alpha=factor)
    return total.baddbmm_(a, b, alpha=factor)


def _by_hand(plan: _Plan, tokens: Tokens, weights, layers: Layers):
    out = _Chunks.apply(plan, *tokens, *weights, *(x for part in layers for x in part))
    depth = len(weights)
    return out[0], out[1], Layers(*(list(out[2 + depth * k : 2 + depth * (k + 1)]) for k in range(3)))


def _of_matrices(plan: _Plan, tokens: Tokens, weight: Tensor, layers: Layers):
    """Run all chunks of a memory of one layer."""
    if plan.shape.residual:
        weight = weight + torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    fresh, cut, incomplete = (None if border is None else border[..., 0, 0] for border in plan.borders)
    segment = Segment(fresh, cut, incomplete, plan.learned, plan.read_before_write)
    delta, momentum, anchor = (part[0] for part in layers)
    tokens = Tokens(*(x.contiguous() for x in tokens))
    given = Given(*tokens, weight, delta, momentum, anchor)
    y, squared, after = run_matrices(segment, given, _matrices_by_autograd)
    return y, squared, Layers(*([part] for part in after))


def _matrices_by_autograd(segment: Segment, flat: Sequence[Tensor], grad_y, grad_after):
    """Return the gradients of some chunks of matrices with a graph of their own, for a second derivative."""
    heads, width, _ = Given(*flat).weight.shape
    borders = _Borders(*(None if x is None else x[..., None, None] for x in segment[:3]))
    plan = _Plan(
        NetworkShape(((width, width),), residual=False, norm=False),
        borders,
        segment.learned,
        segment.read_before_write,
    )

    def run(*inputs: Tensor) -> list[Tensor]:
        given = Given(*inputs)
        weight = given.weight.expand(len(given.delta) // heads, -1, -1, -1).flatten(0, 1)
        y, _, after = _loop(plan, Tokens(*given[:6]), [weight], Layers(*([x] for x in given[7:])))
        return [y, *(x for part in after for x in part)]

    return by_graph(run, flat, grad_y, *grad_after)


def _of_duals(plan: _Plan, tokens: Tokens, weights, layers: Layers):
    """Run all chunks of a memory whose whole dual fades: what it has learned is then all that there is."""
    delta, anchor = ([w + x for w, x in zip(weights, part, strict=True)] for part in layers[::2])
    nothing = [torch.zeros_like(w) for w in weights]
    duals = Layers(delta, layers.momentum, anchor)
    y, squared, after = _loop(plan._replace(newborn=weights), tokens, nothing, duals)
    delta, anchor = ([x - w for w, x in zip(weights, part, strict=True)] for part in after[::2])
    return y, squared, Layers(delta, after.momentum, anchor)


def _split(flat: Sequence, depth: int) -> tuple[Tokens, list[Tensor], Layers]:
    """Undo the flattening of `_by_hand`."""
    tokens, rest = Tokens(*flat[:6]), list(flat[6:])
    weights, *layers = (rest[depth * k : depth * (k + 1)] for k in range(4))
    return tokens, weights, Layers(*layers)


class _Chunks(torch.autograd.Function):
    """The loop over chunks with its gradient by hand."""

    @staticmethod
    def forward(ctx, plan: _Plan, *flat):
        tokens, weights, layers = _split(flat, len(plan.shape.layers))
        kept: list | None = [] if any(ctx.needs_input_grad) else None
        ctx.every = _interval(tokens, layers)
        y, squared, after = _loop(plan, tokens, weights, layers, kept, ctx.every)
        # Saved by autograd, all of it, which frees it after the backward pass and lets checkpoints drop it.
        leaves, ctx.spec = pytree.tree_flatten(kept)
        ctx.given = len(flat)
        ctx.save_for_backward(*flat, *leaves)
        ctx.plan = plan
        ctx.mark_non_differentiable(squared)
        # What autograd is given must not be what it gave.
        given = {id(x) for x in flat}
        return y, squared, *(x.clone() if id(x) in given else x for part in after for x in part)

    @staticmethod
    @without_autocast
    def backward(ctx, grad_y, _, *grad_after):
        flat, leaves = ctx.saved_tensors[: ctx.given], list(ctx.saved_tensors[ctx.given :])
        if is_wanted_again(grad_y, *grad_after):
            return None, *_by_autograd(ctx.plan, flat, grad_y, grad_after)
        kept = pytree.tree_unflatten(leaves, ctx.spec)
        return None, *_pull_back(ctx.plan, ctx.every, flat, kept, grad_y, grad_after)


def _by_autograd(plan: _Plan, flat, grad_y, grad_after):
    """Return the gradients with a graph of their own, for a second derivative."""

    def run(*inputs: Tensor) -> list[Tensor]:
        y, _, after = _loop(plan, *_split(inputs, len(plan.shape.layers)))
        return [y, *(x for part in after for x in part)]

    return by_graph(run, flat, grad_y, *grad_after)


def _pull_back(plan: _Plan, every: int, flat, kept: list[tuple[Layers | None, Kept]], grad_y, grad_after):
    """Return the gradients of all that `_Chunks` was given, going from the last chunk to the first.

    A name with `grad_` is the gradient of what the rest of the name is.
    """
    depth = len(plan.shape.layers)
    tokens, weights, _ = _split(flat, depth)
    # Copies, which are added to.
    grads = Layers(*([x.clone() for x in grad_after[depth * k : depth * (k + 1)]] for k in range(3)))
    grad_tokens = Tokens(*(torch.empty_like(x) for x in tokens))
    grad_weights = [torch.zeros_like(w) for w in weights]
    for group in reversed(_parts(range(len(kept)), _group(tokens, every))):
        logs = [
            x[group.start : group.stop].detach().requires_grad_()
            for x in (tokens.log_retention, tokens.log_momentum)
        ]
        with torch.enable_grad():
            rules = plan.coefficients(group, *logs)
        grad_rules = [torch.empty_like(x) for x in rules]
        at = {index: Coefficients(*(x.detach()[place] for x in rules)) for place, index in enumerate(group)}
        for segment in reversed(_parts(group, every)):
            replayed = _replay(plan, segment, tokens, at, weights, kept)
            for index in reversed(segment):
                chunk = replayed.pop()
                grads = _back(chunk, plan.borders.at(index), grad_y[index], grads, grad_weights)
                for whole, part in zip(grad_tokens, chunk.tokens(), strict=False):
                    whole[index] = part
                for whole, part in zip(grad_rules, chunk.coefficients(), strict=True):
                    whole[index - group.start] = part
        grad_logs = torch.autograd.grad(rules, logs, grad_rules)
        for whole, part in zip((grad_tokens.log_retention, grad_tokens.log_momentum), grad_logs, strict=True):
            whole[group.start : group.stop] = part
    return *grad_tokens, *grad_weights, *grads.delta, *grads.momentum, *grads.anchor


def _replay(
    plan: _Plan, segment: range, tokens: Tokens, at: dict[int, Coefficients], weights, kept
) -> list[ChunkGradient]:
    """Return the gradients of chunks from one kept border to the next, yet to be gone through."""
    layers = kept[segment.start][0]
    if layers.anchor is None:
        layers = layers._replace(anchor=layers.delta)
    chunks = []
    for index in segment:
        border, here = plan.borders.at(index), Tokens(*(x[index] for x in tokens))
        layers = _enter(border, layers)
        chunk = ChunkGradient(plan.shape, at[index], kept[index][1], here, weights, layers)
        chunks.append(chunk)
        if index < segment[-1]:
            flush = _flushes(index, len(kept))
            layers = _leave(border, at[index], chunk.inputs, chunk.steps, layers, flush)
    return chunks


def _back(chunk: ChunkGradient, border: _Borders, grad_y, grads: Layers, grad_weights) -> Layers:
    """Return the gradients before a chunk from those behind it."""
    owed = [] if border.incomplete is None else [a.masked_fill(~border.incomplete, 0) for a in grads.anchor]
    for layer, (to_delta, to_anchor) in enumerate(zip(grads.delta, grads.anchor, strict=True)):
        to_delta.add_(to_anchor - owed[layer] if owed else to_anchor)
    chunk.leave(grads.delta, grads.momentum)
    chunk.read(grad_y, grad_weights)
    chunk.write(grad_weights)
    for grad_anchor, rest in zip(chunk.anchor, owed, strict=False):
        grad_anchor.add_(rest)
    grads = Layers(chunk.delta, chunk.momentum, chunk.anchor)
    for mask in (border.fresh, border.cut):
        if mask is not None:
            grads = Layers(*([x.masked_fill(mask, 0) for x in part] for part in grads))
    return grads
