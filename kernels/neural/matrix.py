"""Neural memories with one matrix per head: few matrix products per chunk in the sequential loop.

The errors of a chunk are its keys times the anchor weights, minus its values. A chunk adds products of keys
and errors to delta and momentum, with coefficients that depend on the gates only. So the coefficients, and
the products between the tokens of a chunk, are computed for many chunks at once. The loop over chunks
computes only the products with the state, while the state is in the CPU cache. The custom backward pass has
the same structure.

Letters as in `kernels.neural_memory`; N chunks, R = B H. Delta and momentum are stacked, `[2 D, D]`, so that
one product serves both. `grad_x` is the gradient of `x`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.kernels.derivatives import needs_graph
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.neural.factors import Factors, MatrixInputs
from scrubjay.kernels.neural.loop import (
    LayerStates,
    LoopOptions,
    NeuralTokens,
    differentiate_loop,
    is_flush_due,
)
from scrubjay.kernels.neural.network import NEGLIGIBLE

# Memory for saved states at chunk borders; within it no state is recomputed in the backward pass.
_MAX_SAVED_BYTES = 2**25
# Largest tensor of tokens that is processed at once; it should fit into the CPU caches with other tensors.
_MAX_TOKEN_NUMBERS = 2**17
# Border numbers without a chunk: that of the initial anchor, and that of anchors that get no gradient.
_INITIAL_ANCHOR, _NO_GRADIENT = -1, -2


def run_matrix(
    options: LoopOptions, tokens: NeuralTokens, weight: Float[Tensor, "H D D"], layers: LayerStates
) -> tuple[Tensor, Tensor, LayerStates]:
    """Return the outputs, the squared norms of the inner gradients, and the final state.

    The results are those of `loop.run_loop` for a memory with one layer.
    """
    if options.shape.residual:
        weight = weight + torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
        options = options._replace(shape=dataclasses.replace(options.shape, residual=False))
    tokens = NeuralTokens(*(x.contiguous() for x in tokens))
    state = [part[0] for part in layers]
    count, size = len(tokens.query), max(1, _MAX_TOKEN_NUMBERS // tokens.query[0].numel())
    save = 3 * state[0].numel() * state[0].element_size() * count <= _MAX_SAVED_BYTES
    if size >= count:
        y, squared_norm, *state = _Matrices.apply(options, save, *tokens, weight, *state)  # pyright: ignore[reportGeneralTypeIssues]
        return y, squared_norm, LayerStates(*([x] for x in state))
    reads, squares = [], []
    # Split, not sliced: autograd would sum full-size gradients of slices.
    parts = zip(*(x.split(size) for x in tokens), strict=True)
    for index, part in enumerate(parts):
        chunks = slice(index * size, (index + 1) * size)
        fresh, cut, incomplete, valid_tokens = (None if x is None else x[chunks] for x in options[1:5])
        part_options = options._replace(
            fresh=fresh, cut=cut, incomplete=incomplete, valid_tokens=valid_tokens
        )
        y, squared_norm, *state = _Matrices.apply(part_options, save, *part, weight, *state)  # pyright: ignore[reportGeneralTypeIssues]
        reads.append(y)
        squares.append(squared_norm)
    return torch.cat(reads), torch.cat(squares), LayerStates(*([x] for x in state))


class _Matrices(torch.autograd.Function):
    """Autograd function over a segment (consecutive chunks), with the custom backward pass."""

    @staticmethod
    def forward(ctx, options: LoopOptions, save: bool, *flat):
        inputs = MatrixInputs(*flat)
        border_plan, factors = _BorderPlan(options, inputs), _factors(options, inputs)
        segment_pass = _SegmentPass(options, inputs, border_plan, factors)
        y, squared_norm, after = segment_pass.forward()
        ctx.options, ctx.border_plan = options, border_plan
        if any(ctx.needs_input_grad):
            # Autograd saves all of it: so it is freed after the backward pass and dropped by checkpointing.
            ctx.save_for_backward(
                *inputs, *((*factors, segment_pass.states, segment_pass.errors) if save else ())
            )
        ctx.mark_non_differentiable(squared_norm)
        ctx.set_materialize_grads(False)
        return y, squared_norm, *after

    @staticmethod
    @without_autocast
    def backward(ctx, grad_y, _, *grad_after):
        num_inputs = len(MatrixInputs._fields)
        inputs, saved_tensors = MatrixInputs(*ctx.saved_tensors[:num_inputs]), ctx.saved_tensors[num_inputs:]
        if needs_graph(grad_y, *grad_after):
            return None, None, *_differentiate(ctx.options, inputs, grad_y, *grad_after)
        factors = Factors(*saved_tensors[:-2]) if saved_tensors else _factors(ctx.options, inputs)
        segment_pass = _SegmentPass(ctx.options, inputs, ctx.border_plan, factors)
        if saved_tensors:
            segment_pass.states, segment_pass.errors = saved_tensors[-2:]
        else:
            segment_pass.write()
        grad_y = torch.zeros_like(segment_pass.inputs.query) if grad_y is None else grad_y.contiguous()
        return None, None, *segment_pass.backward(grad_y, grad_after)


def _differentiate(options: LoopOptions, inputs: MatrixInputs, *grads: Tensor | None) -> list[Tensor]:
    """Return the gradients of `inputs` by autograd, for higher derivatives."""
    heads = len(inputs.weight)
    weight = inputs.weight.expand(len(inputs.delta) // heads, -1, -1, -1).flatten(0, 1)
    layers = LayerStates(*([x] for x in inputs[7:]))
    grad_inputs = differentiate_loop(options, (NeuralTokens(*inputs[:6]), [weight], layers), *grads)
    # `unflatten` has no rule for batches of gradients.
    grad_inputs[6] = grad_inputs[6].reshape(-1, *inputs.weight.shape).sum(0)
    return grad_inputs


class _SegmentPass:
    """Forward and backward pass over a segment (consecutive chunks). `write` must precede `backward`."""

    def __init__(
        self, options: LoopOptions, inputs: MatrixInputs, border_plan: _BorderPlan, factors: Factors
    ) -> None:
        self.options, self.inputs, self.border_plan, self.factors = options, inputs, border_plan, factors
        self.count, self.rows, self.length, self.width = inputs.query.shape
        self.heads = len(inputs.weight)
        self.reads = _concat_multiples(inputs.query, self.factors.read_retention, self.factors.read_buildup)
        step = inputs.step_size[..., 0]
        self.writes = _concat_multiples(
            inputs.key, self.factors.end_mixing * step, self.factors.end_trace * step
        )

    def forward(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the outputs, the squared norms of the inner gradients, and the final state."""
        inputs = self.inputs
        y = self._by_weight(inputs.query, inputs.weight)
        self.write(y)
        step_mixing = self.factors.read_mixing * inputs.step_size.mT
        similarity = torch.bmm(_flatten_chunks(inputs.query), _flatten_chunks(inputs.key).mT)
        _flatten_chunks(y).baddbmm_(
            similarity.mul_(_flatten_chunks(step_mixing)), _flatten_chunks(self.errors), alpha=-1
        )
        squared_norm = (inputs.key * inputs.key).sum(-1).mul_((self.errors * self.errors).sum(-1))
        after = [self.states[self.count, :, 0].clone(), self.states[self.count, :, 1].clone()]
        return y, squared_norm, [*after, self.states[self.border_plan.source[-1], self.border_plan.row, 0]]

    def write(self, y: Tensor | None = None) -> None:
        """Loop over the chunks: compute the states and the errors.

        If `y` is passed, each query also reads the state before its chunk, and the result is added to `y`.
        """
        inputs, rows, width = self.inputs, self.rows, self.width
        self.states = inputs.query.new_empty(self.count + 2, rows, 2, width, width)
        self.states[0, :, 0], self.states[0, :, 1], self.states[-1, :, 0] = inputs[7:]
        self.errors, anchor_weights = torch.empty_like(inputs.value), torch.empty_like(inputs.delta)
        states, stacked_states = self.states.unbind(), self.states.flatten(2, 3).unbind()
        deltas, momenta = self.states[:, :, 0].unbind(), self.states[:, :, 1].unbind()
        chunks = zip(
            inputs.key.unbind(),
            inputs.value.unbind(),
            self.errors.unbind(),
            self.reads.unbind(),
            self.writes.mT.unbind(),
            *self._ends(),
            strict=True,
        )
        outputs = None if y is None else y.unbind()
        for index, (key, value, error, reads, writes, ends, buildup) in enumerate(chunks):
            if index in self.border_plan.fresh:
                _zero_rows(states[index], self.border_plan.fresh[index])
            torch.baddbmm(value, key, self._anchor_weights(index, anchor_weights), beta=-1, out=error)
            if outputs is not None:
                outputs[index].baddbmm_(reads, stacked_states[index])
            after = torch.mul(states[index], ends, out=states[index + 1])
            deltas[index + 1].addcmul_(buildup, momenta[index])
            stacked_states[index + 1].baddbmm_(writes, error, alpha=-1)
            if is_flush_due(index, self.count):
                torch.hardshrink(after, NEGLIGIBLE, out=after)

    def backward(self, grad_y: Tensor, grad_after: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Return the gradients of all fields of `MatrixInputs`."""
        inputs, factors = self.inputs, self.factors
        query, key, errors, grad = (
            _flatten_chunks(x) for x in (inputs.query, inputs.key, self.errors, grad_y)
        )
        step = inputs.step_size.mT
        step_mixing = _flatten_chunks(factors.read_mixing * step)
        similarity = torch.bmm(query, key.mT)
        grad_errors = torch.bmm((step_mixing * similarity).mT, grad).neg_().view_as(inputs.value)
        grad_weighted = torch.bmm(grad, errors.mT).neg_()
        grad_similarity = grad_weighted * step_mixing
        grad_mixing = grad_weighted.mul_(similarity).view_as(factors.read_mixing)
        grad_step = (grad_mixing * factors.read_mixing).sum(-2)
        grad_mixing.mul_(step)
        grad_query = self._by_weight(grad_y, inputs.weight.mT)
        _flatten_chunks(grad_query).baddbmm_(grad_similarity, key)
        grad_key = torch.bmm(grad_similarity.mT, query).view_as(inputs.key)
        grad_reads, grad_writes, grad_ends, grad_weight, grad_state = self._backward_states(
            grad_y, grad_errors, grad_key, grad_after
        )
        grad_retention, grad_buildup = _backward_multiples(
            grad_reads, inputs.query, grad_query, factors.read_retention, factors.read_buildup
        )
        step = inputs.step_size[..., 0]
        grad_end_mixing, grad_end_trace = _backward_multiples(
            grad_writes.neg_(), inputs.key, grad_key, factors.end_mixing * step, factors.end_trace * step
        )
        grad_step.addcmul_(grad_end_mixing, factors.end_mixing).addcmul_(grad_end_trace, factors.end_trace)
        grad_logs = factors.backward(
            inputs.log_retention,
            inputs.log_momentum,
            self.options.read_before_write,
            grad_retention,
            grad_buildup,
            grad_mixing,
            grad_end_mixing * step,
            grad_end_trace * step,
            grad_ends,
        )
        grad_weight = grad_weight + self._weights_gradient(grad_y)
        return (
            grad_query,
            grad_key,
            grad_errors.neg_(),
            grad_step[..., None],
            *grad_logs,
            grad_weight,
            *grad_state,
        )

    def _backward_states(self, grad_y: Tensor, grad_errors: Tensor, grad_key: Tensor, grad_after):
        """Loop over the chunks in reverse. Add to `grad_errors` and `grad_key` in place.

        Returns five results: the gradient of `self.reads`, the negative gradient of `self.writes`, the
        gradient of the coefficients at the ends of chunks, the part of the gradient of the initial weights
        that comes from the anchors, and the gradients of the initial state (delta, momentum, anchor).
        """
        border_plan, rows, width = self.border_plan, self.rows, self.width
        grad_reads, grad_writes = torch.empty_like(self.reads), torch.empty_like(self.writes)
        grad_ends = grad_y.new_empty(self.count, rows, 2, 2)
        anchor_weights, grad_weight = torch.empty_like(self.inputs.delta), torch.zeros_like(self.inputs.delta)
        anchor_gradients = _AnchorGradients(border_plan)
        buffers = grad_y.new_empty(2, rows, 2, width, width)
        # State gradients before and after a chunk, swapped each step: whole, delta, momentum, stacked.
        before, after = zip(buffers, buffers[:, :, 0], buffers[:, :, 1], buffers.flatten(2, 3), strict=True)
        is_zero = all(grad is None for grad in grad_after)
        if not is_zero:
            for part, grad in zip(after[1:3], grad_after, strict=False):
                part.copy_(grad) if grad is not None else part.zero_()
        if grad_after[2] is not None:
            anchor_gradients.add(grad_after[2], self.count)
        anchor_gradients.move_to(after[1], self.count)
        chunks = zip(
            self.inputs.key.mT.unbind(),
            self.errors.unbind(),
            self.reads.mT.unbind(),
            self.writes.unbind(),
            *self._ends(),
            self.states[: self.count].flatten(3).mT.unbind(),
            self.states[: self.count].flatten(2, 3).mT.unbind(),
            grad_y.unbind(),
            grad_errors.unbind(),
            grad_key.unbind(),
            grad_reads.unbind(),
            grad_writes.unbind(),
            grad_ends.unbind(),
            strict=True,
        )
        for index, chunk in reversed(list(enumerate(chunks))):
            key, error, reads, writes, ends, buildup, state, stacked_states, chunk_grad_y, *outputs = chunk
            grad_error, grad_chunk_key, grad_chunk_reads, grad_chunk_writes, grad_chunk_ends = outputs
            if is_zero:
                grad_chunk_writes.zero_()
                grad_chunk_ends.zero_()
                torch.bmm(reads, chunk_grad_y, out=before[3])
            else:
                grad_error.baddbmm_(writes, after[3], alpha=-1)
                torch.bmm(error, after[3].mT, out=grad_chunk_writes)
                torch.bmm(after[0].flatten(2), state, out=grad_chunk_ends)
                torch.mul(after[0], ends, out=before[0])
                before[2].addcmul_(buildup, after[1])
                before[3].baddbmm_(reads, chunk_grad_y)
            torch.bmm(chunk_grad_y, stacked_states, out=grad_chunk_reads)
            grad_chunk_key.baddbmm_(grad_error, self._anchor_weights(index, anchor_weights).mT)
            grad_anchor = torch.bmm(key, grad_error, out=anchor_weights)
            grad_weight.add_(grad_anchor)
            anchor_gradients.add(grad_anchor, index)
            anchor_gradients.move_to(before[1], index)
            if index in border_plan.gradient_stops:
                _zero_rows(before[0], border_plan.gradient_stops[index])
            after, before, is_zero = before, after, False
        grad_anchor = anchor_gradients.pending.get(_INITIAL_ANCHOR)
        if grad_anchor is None:
            grad_anchor = torch.zeros_like(grad_weight)
        return (
            grad_reads,
            grad_writes,
            grad_ends,
            self._by_head(grad_weight).sum(0),
            (after[1], after[2], grad_anchor),
        )

    def _ends(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the coefficients of the state at each chunk's end.

        The first tuple holds the decays of delta and momentum over each chunk. The second holds the factor
        of the momentum at the chunk's start in the delta at the chunk's end.
        """
        return self.factors.ends[..., None, None].unbind(), self.factors.end_buildup[..., None, None].unbind()

    def _anchor_weights(self, index: int, out: Float[Tensor, "R D D"]) -> Float[Tensor, "R D D"]:
        """Return the weights at the anchor of chunk `index`."""
        anchor = self.border_plan.anchor(self.states, index)
        if self.heads == 1:
            return torch.add(anchor, self.inputs.weight, out=out)
        torch.add(self._by_head(anchor), self.inputs.weight, out=self._by_head(out))
        return out

    def _by_head(self, x: Float[Tensor, "*N R D D"]) -> Float[Tensor, "*N B H D D"]:
        return x.unflatten(-3, (-1, self.heads))

    def _by_weight(self, x: Float[Tensor, "N R C D"], weight: Float[Tensor, "H D D"]) -> Tensor:
        """Return the product of each token with the weights of its head."""
        if self.heads == 1:
            return (x.view(-1, self.width) @ weight[0]).view(x.shape)
        return (x.unflatten(1, (-1, self.heads)) @ weight).flatten(1, 2)

    def _weights_gradient(self, grad_y: Tensor) -> Float[Tensor, "H D D"]:
        """Return the part of the gradient of the weights that comes from the reads."""
        query, width = self.inputs.query, self.width
        if self.heads == 1:
            return (query.view(-1, width).T @ grad_y.view(-1, width))[None]
        return self._by_head(query.mT @ grad_y).sum((0, 1))


class _BorderPlan:
    """Resets, gradient stops and anchors of each row at the borders between chunks.

    A row is one head of one batch row. Border n is the start of chunk n, and the last border is the end of
    the segment. The anchor at a border is the delta at this or an earlier border, or the initial anchor.
    Three tensors hold an index for each border and row:

    - `source`: the border whose delta is the anchor, or -1 for the initial anchor
    - `used_border`: the same, but the chunk's own start for a chunk without valid tokens
    - `gradient_target`: equal to `used_border`, but -2 if a later gradient stop blocks the anchor's gradient
    """

    def __init__(self, options: LoopOptions, inputs: MatrixInputs) -> None:
        count, rows = inputs.query.shape[:2]
        self.device = inputs.query.device
        fresh, cut, incomplete, valid_tokens = (
            None if x is None else x.numpy(force=True) for x in options[1:5]
        )
        self.row = torch.arange(rows, device=self.device)
        self.fresh = self._rows_by_chunk(fresh)
        self.gradient_stops = self._rows_by_chunk(
            fresh if cut is None else cut if fresh is None else cut | fresh
        )
        moves = np.ones((count + 1, rows), dtype=bool)
        moves[0] = False
        if incomplete is not None:
            moves[1:] = ~incomplete
        if fresh is not None:
            moves[:count] |= fresh
        border = np.arange(count + 1)[:, None]
        source = np.maximum.accumulate(np.where(moves, border, _INITIAL_ANCHOR))
        has_other_anchor = source != border
        if valid_tokens is not None:
            has_other_anchor[:count] &= valid_tokens.any(-1)
        used_border = np.where(has_other_anchor, source, border)
        gradient_target = used_border
        if cut is not None:
            last = np.maximum.accumulate(np.where(cut, border[:count], -1))
            gradient_target = np.where(
                np.concatenate([last, last[-1:]]) <= used_border, used_border, _NO_GRADIENT
            )
        self.source, self.used_border, self.gradient_target = (
            self._to_device(x) for x in (source, used_border, gradient_target)
        )
        self.has_other_anchor = has_other_anchor.any(1).tolist()
        self.borders = [sorted(set(x)) for x in gradient_target.tolist()]

    def _to_device(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(self.device)

    def _rows_by_chunk(self, mask: np.ndarray | None) -> dict[int, Int[Tensor, " some"]]:
        """Return a dict that maps a chunk n to the indices of all rows r for which `mask[n, r]` is True.

        Chunks without such a row are absent.
        """
        if mask is None:
            return {}
        some = np.flatnonzero(mask.any(1)).tolist()
        return {index: self._to_device(np.flatnonzero(mask[index])) for index in some}

    def anchor(self, states: Float[Tensor, "N_and_2 R 2 D D"], index: int) -> Float[Tensor, "R D D"]:
        """Return the anchors of chunk `index`, one for each head of each batch row."""
        if not self.has_other_anchor[index]:
            return states[index, :, 0]
        if self.borders[index] == [_INITIAL_ANCHOR]:
            return states[_INITIAL_ANCHOR, :, 0]
        return states[self.used_border[index], self.row, 0]


class _AnchorGradients:
    """Gradients of anchors, stored until the reverse loop reaches the chunk that begins with the anchor."""

    def __init__(self, border_plan: _BorderPlan) -> None:
        self.border_plan = border_plan
        self.own: Tensor | None = None
        self.pending: dict[int, Float[Tensor, "R D D"]] = {}

    def add(self, grad: Float[Tensor, "R D D"], index: int) -> None:
        """Add `grad`, the gradient of the anchors of chunk `index`.

        The tensor may be stored without a copy. The caller must not modify it before the next `move_to`.
        """
        border_plan = self.border_plan
        if not border_plan.has_other_anchor[index]:
            self.own = grad
            return
        self.own = None
        borders = [border for border in border_plan.borders[index] if border != _NO_GRADIENT]
        for border in borders:
            part = grad.clone()
            if len(border_plan.borders[index]) > 1:
                part.masked_fill_((border_plan.gradient_target[index] != border)[:, None, None], 0)
            self.pending[border] = part.add_(self.pending[border]) if border in self.pending else part

    def move_to(self, grad_delta: Float[Tensor, "R D D"], index: int) -> None:
        """Add stored anchor gradients to `grad_delta`, the gradient of the delta before chunk `index`.

        Only the gradients of anchors that equal this delta are added.
        """
        for part in (self.own, self.pending.pop(index, None)):
            if part is not None:
                grad_delta.add_(part)
        self.own = None


def _factors(options: LoopOptions, inputs: MatrixInputs) -> Factors:
    return Factors.from_gates(
        inputs.log_retention, inputs.log_momentum, options.valid_tokens, options.read_before_write
    )


def _zero_rows(state: Float[Tensor, "R 2 D D"], rows: Int[Tensor, " some"]) -> None:
    # Often all rows at once, where environments are reset together; that case is faster.
    state.zero_() if len(rows) == len(state) else state.index_fill_(0, rows, 0)


def _flatten_chunks(x: Float[Tensor, "N R *rest"]) -> Float[Tensor, "NR *rest"]:
    return x.reshape(-1, *x.shape[2:])


def _concat_multiples(
    x: Float[Tensor, "N R C D"], a: Float[Tensor, "N R C"], b: Tensor
) -> Float[Tensor, "N R C both"]:
    """Return a * x and b * x, concatenated along the last dim."""
    both = x.new_empty(*x.shape[:3], 2, x.shape[3])
    torch.mul(x, a[..., None], out=both[..., 0, :])
    torch.mul(x, b[..., None], out=both[..., 1, :])
    return both.flatten(3)


def _backward_multiples(
    grad: Float[Tensor, "N R C both"], x: Float[Tensor, "N R C D"], grad_x: Tensor, a: Tensor, b: Tensor
) -> tuple[Float[Tensor, "N R C"], Float[Tensor, "N R C"]]:
    """Return the gradients of a and b in `_concat_multiples`; add the gradient of x to `grad_x`."""
    grad_a, grad_b = grad.chunk(2, dim=-1)
    grad_x.addcmul_(grad_a, a[..., None]).addcmul_(grad_b, b[..., None])
    return (grad_a * x).sum(-1), (grad_b * x).sum(-1)
