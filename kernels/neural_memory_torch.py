"""Neural memory in torch: a loop over chunks, each a handful of batched products, and that loop's gradient by hand.

`_Chunks` and `_loop` compute the same; autograd may differentiate the second, which serves higher derivatives and
what `_Chunks` leaves out. Letters, beside those of `neural_memory`: R = B H rows; tensors of a chunk are `[R, C, ...]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from scrubjay.kernels.dispatch import any_dual, is_traced
from scrubjay.kernels.neural_network import (
    NetworkShape,
    NeuralState,
    Problem,
    backward_pass,
    clipped_step,
    error_share,
    finish,
    flushed,
    forward_pass,
    is_clipped,
    residual_gradient,
    row_inner,
    rule,
    unpack,
)

# Chunks between looks for denormal numbers, beside the last.
_FLUSH_EVERY = 8


class _Tokens(NamedTuple):
    """What is particular to a token: `[N, R, C, D]`, and its step and share of error `[N, R, C, 1]`."""

    query: Tensor
    key: Tensor
    value: Tensor
    step_size: Tensor
    share: Tensor


class Coefficients(NamedTuple):
    """The rule of every chunk, `[N, R, ...]`: at the places of reads, and at the chunk's end."""

    read_retained: Tensor
    read_built: Tensor
    read_mixed: Tensor
    end_mixed: Tensor
    end_trace: Tensor
    end_retained: Tensor
    end_built: Tensor
    end_kept: Tensor


class _Borders(NamedTuple):
    """What happens at chunk borders, `[N, R, 1, 1]` each, None where it happens to no row."""

    fresh: Tensor | None
    cut: Tensor | None
    incomplete: Tensor | None

    def at(self, chunk: int) -> _Borders:
        return _Borders(*(None if border is None else border[chunk] for border in self))


def run_chunks(problem: Problem, by_hand: bool) -> tuple[Tensor, Tensor, NeuralState]:
    """Run all chunks, `by_hand` where its gradient is enough."""
    query, key, value, gates, weights, state, shape, chunk_size, valid, fresh, cut, read_before_write = (
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
    incomplete = skipped = None
    if valid is not None and not valid.all():
        skipped = by_chunk(~valid[..., None].expand(batch, time, heads))
        step_size, log_momentum, log_retention = (
            gate.masked_fill(skipped, 0) for gate in (step_size, log_momentum, log_retention)
        )
        incomplete = by_row(~valid.unflatten(1, (count, chunk_size))[..., -1])
    coefficients = coefficients_of(
        log_retention, log_momentum, None if skipped is None else ~skipped, read_before_write
    )
    tokens = _Tokens(
        by_chunk(query),
        by_chunk(key),
        by_chunk(value),
        step_size[..., None],
        error_share(log_momentum, chunk_size)[..., None],
    )
    weights = [w.expand(batch, *w.shape).flatten(0, 1) for w in weights]
    layers = [unpack(part.flatten(0, 1), shape) for part in state]
    borders = _Borders(by_row(fresh), by_row(cut), incomplete)
    arguments = (shape, borders, tokens, coefficients, weights, layers)
    by_hand = by_hand and not shape.norm and not _is_transformed(*tokens, *coefficients, *weights, *state)
    y, squared, after = _by_hand(*arguments) if by_hand else _loop(*arguments)
    y = y.view(count, batch, heads, chunk_size, width).permute(1, 0, 3, 2, 4).reshape(query.shape)
    surprise = squared.detach().sqrt().view(count, batch, heads, chunk_size)
    surprise = surprise.permute(1, 0, 3, 2).reshape(batch, time, heads)
    after = NeuralState(
        *(torch.cat([x.flatten(1) for x in part], dim=1).view(batch, heads, shape.size) for part in after)
    )
    return y, surprise, after


def _is_transformed(*tensors: Tensor) -> bool:
    """Return whether a graph is recorded or a derivative taken that only plain operations have."""
    return is_traced() or torch._C._are_functorch_transforms_active() or any_dual(*tensors)


def coefficients_of(log_retention, log_momentum, valid, read_before_write) -> Coefficients:
    """Return the rule of chunks `[..., C]` at the places of reads and at the chunks' ends."""
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
    )


def _loop(
    shape: NetworkShape, borders: _Borders, tokens, coefficients, weights, layers, kept: list | None = None
):
    """Run chunk after chunk in operations that autograd follows; `kept` collects what the gradient by hand needs."""
    delta, momentum, anchor = layers
    outputs, squares = [], []
    chunked = zip(*(x.unbind(0) for x in (*tokens, *coefficients)), strict=True)
    for index, (query, key, value, step_size, share, *rest) in enumerate(chunked):
        border, at = borders.at(index), Coefficients(*rest)
        for mask, blank in ((border.fresh, torch.zeros_like), (border.cut, torch.Tensor.detach)):
            if mask is not None:
                delta, momentum, anchor = (
                    [torch.where(mask, blank(x), x) for x in part] for part in (delta, momentum, anchor)
                )
        anchored = [w + a for w, a in zip(weights, anchor, strict=True)]
        trace = _write(shape, key, value, step_size, share, anchored)
        *reads, output = _read(shape, query, at, trace, weights, delta, momentum)
        outputs.append(output)
        squares.append(trace.squared[..., 0])
        if kept is not None:
            kept.append(
                _Kept(
                    delta, momentum, anchored, trace._replace(inputs=trace.inputs[1:], steps=[]), reads[:-1]
                )
            )
        delta, momentum = _advance(at, trace, delta, momentum)
        if index % _FLUSH_EVERY == _FLUSH_EVERY - 1 or index == len(tokens.query) - 1:
            delta, momentum = ([flushed(x) for x in part] for part in (delta, momentum))
        anchor = (
            delta
            if border.incomplete is None
            else [torch.where(border.incomplete, a, d) for a, d in zip(anchor, delta, strict=True)]
        )
    if not outputs:
        return tokens.query, tokens.step_size[..., 0], layers
    return torch.stack(outputs), torch.stack(squares), (delta, momentum, anchor)


class _Trace(NamedTuple):
    """What a chunk's keys went through: all that reads, updates and the gradient need of it."""

    inputs: list[Tensor]
    products: list[Tensor]
    deltas: list[Tensor]
    steps: list[Tensor]
    """The deltas times the step that was taken."""
    step_size: Tensor
    squared: Tensor


class _Kept(NamedTuple):
    """What a chunk leaves for its gradient; the key is an argument, steps and activations of reads are formed again."""

    delta: list[Tensor]
    momentum: list[Tensor]
    anchored: list[Tensor]
    trace: _Trace
    reads: list[Tensor]


def _write(shape: NetworkShape, key, value, step_size, share, anchored) -> _Trace:
    inputs, products, prediction = forward_pass(key, anchored, shape)
    error = residual_gradient(prediction, value)
    deltas = backward_pass(error, products, anchored, shape)
    taken, squared = clipped_step(step_size, share, error, inputs, deltas, shape)
    return _Trace(inputs, products, deltas, [taken * d for d in deltas], taken, squared)


def _read(
    shape: NetworkShape, query, at: Coefficients, trace: _Trace, weights, delta, momentum
) -> list[Tensor]:
    """Return every layer's product with each token's own weights, then the output."""
    x, products = query, []
    for layer, step in enumerate(trace.steps):
        if layer:
            x = functional.silu(products[-1])
        product = torch.baddbmm(x @ weights[layer], at.read_retained * x, delta[layer])
        product = torch.baddbmm(product, at.read_built * x, momentum[layer])
        alike = at.read_mixed * (x @ trace.inputs[layer].mT)
        products.append(torch.baddbmm(product, alike, step, alpha=-1))
    return [*products, finish(query, products[-1], shape)]


def _advance(at: Coefficients, trace: _Trace, delta, momentum) -> tuple[list[Tensor], list[Tensor]]:
    after_delta, after_momentum = [], []
    for x, step, d, s in zip(trace.inputs, trace.steps, delta, momentum, strict=True):
        kept = torch.addcmul(at.end_retained * d, at.end_built, s)
        after_delta.append(torch.baddbmm(kept, (at.end_mixed * x).mT, step, alpha=-1))
        after_momentum.append(torch.baddbmm(at.end_kept * s, (at.end_trace * x).mT, step, alpha=-1))
    return after_delta, after_momentum


def _by_hand(shape: NetworkShape, borders: _Borders, tokens, coefficients, weights, layers):
    flat = [*tokens, *coefficients, *weights, *(x for part in layers for x in part)]
    out = _Chunks.apply(shape, borders, *flat)
    depth = len(weights)
    return out[0], out[1], [list(out[2 + depth * part : 2 + depth * (part + 1)]) for part in range(3)]


def _split(flat: Sequence, depth: int):
    """Undo the flattening of `_by_hand`."""
    tokens, coefficients = _Tokens(*flat[:5]), Coefficients(*flat[5:13])
    weights = flat[13 : 13 + depth]
    parts = [list(flat[13 + depth * k : 13 + depth * (k + 1)]) for k in (1, 2, 3)]
    return tokens, coefficients, weights, parts


class _Chunks(torch.autograd.Function):
    """The loop over chunks with its gradient by hand."""

    @staticmethod
    def forward(ctx, shape, borders, *flat):
        depth = len(shape.layers)
        tokens, coefficients, weights, layers = _split(flat, depth)
        kept: list | None = [] if any(ctx.needs_input_grad) else None
        y, squared, after = _loop(shape, borders, tokens, coefficients, weights, layers, kept)
        # Saved by autograd, all of it, which frees it after the backward pass and lets checkpoints drop it.
        leaves, ctx.spec = pytree.tree_flatten(kept)
        ctx.given = len(flat)
        ctx.save_for_backward(*flat, *leaves)
        ctx.shape, ctx.borders = shape, borders
        ctx.mark_non_differentiable(squared)
        # What autograd is given must not be what it gave.
        given = {id(x) for x in flat}
        return y, squared, *(x.clone() if id(x) in given else x for part in after for x in part)

    @staticmethod
    def backward(ctx, grad_y, _, *grad_after):
        flat, leaves = ctx.saved_tensors[: ctx.given], list(ctx.saved_tensors[ctx.given :])
        if torch.is_grad_enabled():
            return None, None, *_by_autograd(ctx.shape, ctx.borders, flat, grad_y, grad_after)
        return (
            None,
            None,
            *_pull_back(
                ctx.shape, ctx.borders, flat, pytree.tree_unflatten(leaves, ctx.spec), grad_y, grad_after
            ),
        )


def _by_autograd(shape: NetworkShape, borders: _Borders, flat, grad_y, grad_after):
    """Return the gradients with a graph of their own, for a second derivative."""
    depth = len(shape.layers)
    # Names of their own, since one input may have been computed from another.
    inputs = [x.view_as(x) if x.requires_grad else x.detach().requires_grad_() for x in flat]
    y, _, after = _loop(shape, borders, *_split(inputs, depth))
    outputs = [y, *(x for part in after for x in part)]
    grads = [grad_y, *grad_after]
    live, along = zip(*((o, g) for o, g in zip(outputs, grads, strict=True) if o.requires_grad), strict=True)
    return torch.autograd.grad(live, inputs, along, create_graph=True, allow_unused=True)


def _pull_back(shape: NetworkShape, borders: _Borders, flat, kept: list[_Kept], grad_y, grad_after):
    """Return the gradients of all that `_Chunks` was given, going through the chunks from the last to the first.

    A name with `grad_` is the gradient of what the rest of the name is.
    """
    depth = len(shape.layers)
    tokens, coefficients, weights, _layers = _split(flat, depth)
    grad_delta, grad_momentum, grad_anchor = (
        list(grad_after[depth * part : depth * (part + 1)]) for part in range(3)
    )
    grad_tokens = [torch.empty_like(x) for x in tokens]
    grad_coefficients = Coefficients(*(torch.empty_like(x) for x in coefficients))
    grad_weights = [torch.zeros_like(w) for w in weights]
    for index in reversed(range(len(kept))):
        border, at = borders.at(index), Coefficients(*(x[index] for x in coefficients))
        here = _Tokens(*(x[index] for x in tokens))
        if border.incomplete is None:
            grad_delta = [d + a for d, a in zip(grad_delta, grad_anchor, strict=True)]
            grad_anchor = [torch.zeros_like(a) for a in grad_anchor]
        else:
            moved = [a.masked_fill(border.incomplete, 0) for a in grad_anchor]
            grad_delta = [d + a for d, a in zip(grad_delta, moved, strict=True)]
            grad_anchor = [a - b for a, b in zip(grad_anchor, moved, strict=True)]
        chunk = _ChunkGradient(shape, at, kept[index], here, weights, grad_weights)
        chunk.leave(grad_delta, grad_momentum)
        chunk.read(grad_y[index])
        chunk.write()
        for whole, part in zip(grad_tokens, chunk.tokens(), strict=True):
            whole[index] = part
        for whole, part in zip(grad_coefficients, chunk.coefficients, strict=True):
            whole[index] = part
        grad_delta, grad_momentum = chunk.delta, chunk.momentum
        grad_anchor = [a + b for a, b in zip(grad_anchor, chunk.anchor, strict=True)]
        for mask in (border.fresh, border.cut):
            if mask is not None:
                grad_delta, grad_momentum, grad_anchor = (
                    [x.masked_fill(mask, 0) for x in part]
                    for part in (grad_delta, grad_momentum, grad_anchor)
                )
    return *grad_tokens, *grad_coefficients, *grad_weights, *grad_delta, *grad_momentum, *grad_anchor


class _ChunkGradient:
    """The gradient of one chunk, in the reverse order of its computation: `leave`, `read`, `write`."""

    def __init__(self, shape, at, kept: _Kept, here: _Tokens, weights, grad_weights) -> None:
        self.shape, self.at, self.kept, self.here = shape, at, kept, here
        self.weights, self.grad_weights = weights, grad_weights
        self.inputs = [here.key, *kept.trace.inputs]
        self.steps = [kept.trace.step_size * delta for delta in kept.trace.deltas]
        self.anchored = kept.anchored

    def leave(self, grad_delta: list[Tensor], grad_momentum: list[Tensor]) -> None:
        """Begin with what comes from the next chunk, by `_advance`."""
        at, kept = self.at, self.kept
        self.delta, self.momentum, self.grad_inputs, self.grad_steps = [], [], [], []
        ends = [torch.zeros_like(at.end_retained) for _ in range(3)]
        mixed, trace = torch.zeros_like(at.end_mixed), torch.zeros_like(at.end_trace)
        for layer, (x, step) in enumerate(zip(self.inputs, self.steps, strict=True)):
            delta, momentum = kept.delta[layer], kept.momentum[layer]
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
            self.grad_inputs.append((at.end_mixed * by_delta).addcmul_(at.end_trace, by_momentum).neg_())
            grad_step = (at.end_mixed * x) @ to_delta
            self.grad_steps.append(grad_step.baddbmm_(at.end_trace * x, to_momentum).neg_())
        self.end = mixed, trace, *ends

    def read(self, grad_y: Tensor) -> None:
        """Go back through `_read`."""
        at, kept = self.at, self.kept
        retained, built = torch.zeros_like(at.read_retained), torch.zeros_like(at.read_built)
        alike = torch.zeros_like(at.read_mixed)
        grad = grad_y
        for layer in range(len(self.weights) - 1, -1, -1):
            x, slope = _silu(kept.reads[layer - 1])[:2] if layer else (self.here.query, None)
            other, step = self.inputs[layer], self.steps[layer]
            similarity = x @ other.mT
            self.grad_steps[layer].baddbmm_((at.read_mixed * similarity).mT, grad, alpha=-1)
            grad_alike = grad @ step.mT
            alike.addcmul_(grad_alike, similarity, value=-1)
            grad_similarity = (grad_alike * at.read_mixed).neg_()
            self.grad_inputs[layer].baddbmm_(grad_similarity.mT, x)
            by_delta, by_momentum = grad @ kept.delta[layer].mT, grad @ kept.momentum[layer].mT
            retained += row_inner(x, by_delta)
            built += row_inner(x, by_momentum)
            self.grad_weights[layer].baddbmm_(x.mT, grad)
            self.delta[layer].baddbmm_((at.read_retained * x).mT, grad)
            self.momentum[layer].baddbmm_((at.read_built * x).mT, grad)
            below = torch.baddbmm(grad @ self.weights[layer].mT, grad_similarity, other)
            below.addcmul_(at.read_retained, by_delta).addcmul_(at.read_built, by_momentum)
            grad = below if slope is None else below.mul_(slope)
        self.grad_query = grad + grad_y if self.shape.residual else grad
        self.coefficients = Coefficients(retained, built, alike, *self.end)

    def write(self) -> None:
        """Go back through `_write`: the clip, the inner backward pass, the inner forward pass."""
        trace, shape = self.kept.trace, self.shape
        deltas, products, taken = trace.deltas, trace.products, trace.step_size
        self.grad_step_size, self.grad_share = torch.zeros_like(taken), torch.zeros_like(taken)
        for grad, delta in zip(self.grad_steps, deltas, strict=True):
            self.grad_step_size += row_inner(grad, delta)
        grad_deltas = [taken * grad for grad in self.grad_steps]
        if is_clipped(shape):
            self._unclip(grad_deltas)
        self.anchor = [torch.zeros_like(w) for w in self.weights]
        grad_products: list[Tensor] = []
        slopes = []
        for layer in range(len(self.weights) - 1):
            _, slope, bend = _silu(products[layer])
            slopes.append(slope)
            upper = self.anchored[layer + 1]
            grad_inner = grad_deltas[layer] * slope
            inner = deltas[layer + 1] @ upper.mT
            grad_products.append(grad_deltas[layer] * inner * bend)
            grad_deltas[layer + 1].baddbmm_(grad_inner, upper)
            self.anchor[layer + 1].baddbmm_(grad_inner.mT, deltas[layer + 1])
        self.grad_error = grad_deltas[-1]
        grad_products.append(self.grad_error)
        for layer in range(len(self.weights) - 1, -1, -1):
            if layer < len(self.weights) - 1:
                grad_products[layer].addcmul_(self.grad_inputs[layer + 1], slopes[layer])
            self.anchor[layer].baddbmm_(self.inputs[layer].mT, grad_products[layer])
            self.grad_inputs[layer].baddbmm_(grad_products[layer], self.anchored[layer].mT)
        for whole, part in zip(self.grad_weights, self.anchor, strict=True):
            whole += part
        if shape.residual:
            self.grad_inputs[0] += self.grad_error

    def _unclip(self, grad_deltas: list[Tensor]) -> None:
        """Pass on what the clipped step, share |r|^2 / |gradient|^2, owes to its parts; it owes the gate nothing."""
        trace = self.kept.trace
        clipped = trace.step_size != self.here.step_size
        if not clipped.any():
            return
        per_square = torch.where(clipped, -self.grad_step_size * trace.step_size / trace.squared, 0)
        for layer, (x, delta) in enumerate(zip(self.inputs, trace.deltas, strict=True)):
            self.grad_inputs[layer].addcmul_(2 * per_square * row_inner(delta, delta), x)
            grad_deltas[layer].addcmul_(2 * per_square * row_inner(x, x), delta)
        per_step = torch.where(clipped, self.grad_step_size / trace.squared, 0)
        error = trace.deltas[-1]
        self.grad_share = per_step * row_inner(error, error)
        per_error = per_step * self.here.share
        grad_deltas[-1].addcmul_(2 * per_error, trace.deltas[-1])
        self.grad_step_size = torch.where(clipped, 0, self.grad_step_size)

    def tokens(self) -> _Tokens:
        """Return the gradients of what the chunk was given of its tokens."""
        return _Tokens(
            self.grad_query, self.grad_inputs[0], -self.grad_error, self.grad_step_size, self.grad_share
        )


def _inner(a: Tensor, b: Tensor) -> Float[Tensor, "R 1 1"]:
    return (a * b).sum((-1, -2), keepdim=True)


def _silu(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return SiLU and its first and second derivatives."""
    gate = torch.sigmoid(x)
    shut = 1 - gate
    active = x * gate
    slope = torch.addcmul(gate, active, shut)
    return active, slope, shut * (slope + gate - active * gate)
