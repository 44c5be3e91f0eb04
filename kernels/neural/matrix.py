"""Neural memories that are one matrix per head: what chunks need of each other is few products a chunk.

A chunk's error is its keys' product with the anchor, and what it adds to delta and momentum are products of
keys and errors whose factors gates alone decide. So factors, and what ties the tokens of a chunk to each
other, are formed for many chunks at once, and from chunk to chunk go only the products with the state, while
it is in a cache; backwards the same way round, by hand.

Letters as in `neural_memory_torch`; N chunks. Delta and momentum lie one above the other, `[2 D, D]`, so that
a product serves both. A name with `grad_` is the gradient of what the rest of the name is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.kernels.derivatives import is_wanted_again
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.neural.factors import Factors, Given, Segment
from scrubjay.kernels.neural.network import NEGLIGIBLE

# Chunks between looks for denormal numbers, beside the last.
_FLUSH_EVERY = 8
# Bytes of states kept at borders up to which none is computed a second time.
_MOST_KEPT = 2**25
# Numbers of a tensor of tokens that is gone through at once: as many as caches hold, with others beside it.
_MOST_NUMBERS = 2**17
# Borders at which no chunk begins: that of the anchor given, and that to which no gradient comes.
_GIVEN, _NOWHERE = -1, -2

Plainly = Callable[[Any, Sequence[Tensor], Tensor, Sequence[Tensor]], Sequence[Tensor]]


def run_matrices(
    segment: Segment, given: Given, plainly: Plainly
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return what tokens read, their gradients' squared lengths, and delta, momentum and anchor after.

    `plainly` returns the gradients of a segment's `Given` in operations that autograd follows.
    """
    tokens, weight, state = given[:6], given.weight, given[7:]
    count, size = len(given.query), max(1, _MOST_NUMBERS // given.query[0].numel())
    kept = 3 * given.delta.numel() * given.delta.element_size() * count <= _MOST_KEPT
    if size >= count:
        y, squared, *state = _Matrices.apply(segment, plainly, kept, *given)
        return y, squared, tuple(state)
    reads, squares = [], []
    # Split, not sliced: the gradients of slices would be summed up.
    parts = zip(*(x.split(size) for x in tokens), strict=True)
    for index, part in enumerate(parts):
        here = slice(index * size, (index + 1) * size)
        fresh, cut, incomplete, learned = (None if x is None else x[here] for x in segment[:4])
        chosen = Segment(fresh, cut, incomplete, learned, segment.read_before_write)
        y, squared, *state = _Matrices.apply(chosen, plainly, kept, *part, weight, *state)
        reads.append(y)
        squares.append(squared)
    return torch.cat(reads), torch.cat(squares), tuple(state)


class _Matrices(torch.autograd.Function):
    """A segment, with its gradient by hand."""

    @staticmethod
    def forward(ctx, segment: Segment, plainly: Plainly, keep: bool, *flat):
        given = Given(*flat)
        course, factors = _Course(segment, given), _factors(segment, given)
        walk = _Walk(segment, given, course, factors)
        y, squared, after = walk.forward()
        ctx.segment, ctx.plainly, ctx.course = segment, plainly, course
        if any(ctx.needs_input_grad):
            # Saved by autograd, all of it, which frees it after the backward pass and lets checkpoints drop
            # it.
            ctx.save_for_backward(*given, *((*factors, walk.states, walk.errors) if keep else ()))
        ctx.mark_non_differentiable(squared)
        ctx.set_materialize_grads(False)
        return y, squared, *after

    @staticmethod
    @without_autocast
    def backward(ctx, grad_y, _, *grad_after):
        flat, kept = ctx.saved_tensors[: len(Given._fields)], ctx.saved_tensors[len(Given._fields) :]
        if is_wanted_again(grad_y, *grad_after):
            return None, None, None, *ctx.plainly(ctx.segment, flat, grad_y, grad_after)
        given = Given(*flat)
        factors = Factors(*kept[:-2]) if kept else _factors(ctx.segment, given)
        walk = _Walk(ctx.segment, given, ctx.course, factors)
        if kept:
            walk.states, walk.errors = kept[-2:]
        else:
            walk.write()
        grad_y = torch.zeros_like(walk.given.query) if grad_y is None else grad_y.contiguous()
        return None, None, None, *walk.backward(grad_y, grad_after)


class _Walk:
    """The way through a segment's chunks: `forward`, or `backward` with what `write` found."""

    def __init__(self, segment: Segment, given: Given, course: _Course, factors: Factors) -> None:
        self.segment, self.given, self.course, self.factors = segment, given, course, factors
        self.count, self.rows, self.length, self.width = given.query.shape
        self.heads = len(given.weight)
        self.reads = _beside(given.query, self.factors.read_retained, self.factors.read_built)
        step = given.step_size[..., 0]
        self.writes = _beside(given.key, self.factors.end_mixed * step, self.factors.end_trace * step)

    def forward(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return what is read, the squared lengths of gradients, and the state after."""
        given = self.given
        y = self._by_weight(given.query, given.weight)
        self.write(y)
        pulls = self.factors.read_mixed * given.step_size.mT
        similar = torch.bmm(_flat(given.query), _flat(given.key).mT)
        _flat(y).baddbmm_(similar.mul_(_flat(pulls)), _flat(self.errors), alpha=-1)
        squared = (given.key * given.key).sum(-1).mul_((self.errors * self.errors).sum(-1))
        after = [self.states[self.count, :, 0].clone(), self.states[self.count, :, 1].clone()]
        return y, squared, [*after, self.states[self.course.source[-1], self.course.row, 0]]

    def write(self, y: Tensor | None = None) -> None:
        """Go from chunk to chunk; adds what is read of what chunks began with to `y`."""
        given, rows, width = self.given, self.rows, self.width
        self.states = given.query.new_empty(self.count + 2, rows, 2, width, width)
        self.states[0, :, 0], self.states[0, :, 1], self.states[-1, :, 0] = given[7:]
        self.errors, anchored = torch.empty_like(given.value), torch.empty_like(given.delta)
        states, tall = self.states.unbind(), self.states.flatten(2, 3).unbind()
        deltas, momenta = self.states[:, :, 0].unbind(), self.states[:, :, 1].unbind()
        chunks = zip(
            given.key.unbind(),
            given.value.unbind(),
            self.errors.unbind(),
            self.reads.unbind(),
            self.writes.mT.unbind(),
            *self._ends(),
            strict=True,
        )
        outputs = None if y is None else y.unbind()
        for index, (key, value, error, reads, writes, ends, built) in enumerate(chunks):
            if index in self.course.fresh:
                _empty(states[index], self.course.fresh[index])
            torch.baddbmm(value, key, self._anchored(index, anchored), beta=-1, out=error)
            if outputs is not None:
                outputs[index].baddbmm_(reads, tall[index])
            after = torch.mul(states[index], ends, out=states[index + 1])
            deltas[index + 1].addcmul_(built, momenta[index])
            tall[index + 1].baddbmm_(writes, error, alpha=-1)
            if index % _FLUSH_EVERY == _FLUSH_EVERY - 1 or index == self.count - 1:
                torch.hardshrink(after, NEGLIGIBLE, out=after)

    def backward(self, grad_y: Tensor, grad_after: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        """Return the gradients of all that was given."""
        given, factors = self.given, self.factors
        query, key, errors, grad = (_flat(x) for x in (given.query, given.key, self.errors, grad_y))
        step = given.step_size.mT
        pulls = _flat(factors.read_mixed * step)
        similar = torch.bmm(query, key.mT)
        grad_errors = torch.bmm((pulls * similar).mT, grad).neg_().view_as(given.value)
        grad_pulled = torch.bmm(grad, errors.mT).neg_()
        grad_similar = grad_pulled * pulls
        grad_mixed = grad_pulled.mul_(similar).view_as(factors.read_mixed)
        grad_step = (grad_mixed * factors.read_mixed).sum(-2)
        grad_mixed.mul_(step)
        grad_query = self._by_weight(grad_y, given.weight.mT)
        _flat(grad_query).baddbmm_(grad_similar, key)
        grad_key = torch.bmm(grad_similar.mT, query).view_as(given.key)
        grad_reads, grad_writes, grad_ends, grad_weight, grad_state = self._return(
            grad_y, grad_errors, grad_key, grad_after
        )
        grad_retained, grad_built = _pull_back(
            grad_reads, given.query, grad_query, factors.read_retained, factors.read_built
        )
        step = given.step_size[..., 0]
        grad_end_mixed, grad_end_trace = _pull_back(
            grad_writes.neg_(), given.key, grad_key, factors.end_mixed * step, factors.end_trace * step
        )
        grad_step.addcmul_(grad_end_mixed, factors.end_mixed).addcmul_(grad_end_trace, factors.end_trace)
        grad_logs = factors.backward(
            given.log_retention,
            given.log_momentum,
            self.segment.read_before_write,
            grad_retained,
            grad_built,
            grad_mixed,
            grad_end_mixed * step,
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

    def _return(self, grad_y: Tensor, grad_errors: Tensor, grad_key: Tensor, grad_after):
        """Go back from chunk to chunk, where `grad_errors` and `grad_key` are added to.

        Returns the gradients of `reads`, `writes` (negative), ends, weights in anchors, and the state.
        """
        course, rows, width = self.course, self.rows, self.width
        grad_reads, grad_writes = torch.empty_like(self.reads), torch.empty_like(self.writes)
        grad_ends = grad_y.new_empty(self.count, rows, 2, 2)
        anchored, grad_weight = torch.empty_like(self.given.delta), torch.zeros_like(self.given.delta)
        debts = _Debts(course)
        both = grad_y.new_empty(2, rows, 2, width, width)
        # Of a border and of that behind it, by turns: whole, its parts, and these one above the other.
        before, after = zip(both, both[:, :, 0], both[:, :, 1], both.flatten(2, 3), strict=True)
        nothing = all(grad is None for grad in grad_after)
        if not nothing:
            for part, grad in zip(after[1:3], grad_after, strict=False):
                part.copy_(grad) if grad is not None else part.zero_()
        if grad_after[2] is not None:
            debts.owe(grad_after[2], self.count)
        debts.pay(after[1], self.count)
        chunks = zip(
            self.given.key.mT.unbind(),
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
            key, error, reads, writes, ends, built, state, tall, of_y, *found = chunk
            of_error, of_key, of_reads, of_writes, of_ends = found
            if nothing:
                of_writes.zero_()
                of_ends.zero_()
                torch.bmm(reads, of_y, out=before[3])
            else:
                of_error.baddbmm_(writes, after[3], alpha=-1)
                torch.bmm(error, after[3].mT, out=of_writes)
                torch.bmm(after[0].flatten(2), state, out=of_ends)
                torch.mul(after[0], ends, out=before[0])
                before[2].addcmul_(built, after[1])
                before[3].baddbmm_(reads, of_y)
            torch.bmm(of_y, tall, out=of_reads)
            of_key.baddbmm_(of_error, self._anchored(index, anchored).mT)
            of_anchor = torch.bmm(key, of_error, out=anchored)
            grad_weight.add_(of_anchor)
            debts.owe(of_anchor, index)
            debts.pay(before[1], index)
            if index in course.stopped:
                _empty(before[0], course.stopped[index])
            after, before, nothing = before, after, False
        of_anchor = debts.at.get(_GIVEN)
        if of_anchor is None:
            of_anchor = torch.zeros_like(grad_weight)
        return (
            grad_reads,
            grad_writes,
            grad_ends,
            self._by_head(grad_weight).sum(0),
            (after[1], after[2], of_anchor),
        )

    def _ends(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return, for every chunk, what is left of its state and how much of momentum is in delta."""
        return self.factors.ends[..., None, None].unbind(), self.factors.end_built[..., None, None].unbind()

    def _anchored(self, index: int, out: Float[Tensor, "R D D"]) -> Float[Tensor, "R D D"]:
        """Return a chunk's weights."""
        anchor = self.course.anchor(self.states, index)
        if self.heads == 1:
            return torch.add(anchor, self.given.weight, out=out)
        torch.add(self._by_head(anchor), self.given.weight, out=self._by_head(out))
        return out

    def _by_head(self, x: Float[Tensor, "*N R D D"]) -> Float[Tensor, "*N B H D D"]:
        return x.unflatten(-3, (-1, self.heads))

    def _by_weight(self, x: Float[Tensor, "N R C D"], weight: Float[Tensor, "H D D"]) -> Tensor:
        """Return the products of all tokens with their head's weights."""
        if self.heads == 1:
            return (x.view(-1, self.width) @ weight[0]).view(x.shape)
        return (x.unflatten(1, (-1, self.heads)) @ weight).flatten(1, 2)

    def _weights_gradient(self, grad_y: Tensor) -> Float[Tensor, "H D D"]:
        """Return the gradient of the weights in reads."""
        query, width = self.given.query, self.width
        if self.heads == 1:
            return (query.view(-1, width).T @ grad_y.view(-1, width))[None]
        return self._by_head(query.mT @ grad_y).sum((0, 1))


class _Course:
    """What happens to which rows at borders of chunks, border 0 being that of the segment.

    `source` says at which border a row's anchor of each chunk, and after the last, was its delta; -1 is that
    given. `used` says the same where tokens are learned, and that anchors are own where none is.
    """

    def __init__(self, segment: Segment, given: Given) -> None:
        count, rows = given.query.shape[:2]
        self.device = given.query.device
        fresh, cut, incomplete, learned = (
            None if x is None else x.numpy(force=True) for x in (*segment[:3], segment.learned)
        )
        self.row = torch.arange(rows, device=self.device)
        self.fresh = self._places(fresh)
        self.stopped = self._places(fresh if cut is None else cut if fresh is None else cut | fresh)
        moves = np.ones((count + 1, rows), dtype=bool)
        moves[0] = False
        if incomplete is not None:
            moves[1:] = ~incomplete
        if fresh is not None:
            moves[:count] |= fresh
        border = np.arange(count + 1)[:, None]
        source = np.maximum.accumulate(np.where(moves, border, _GIVEN))
        elsewhere = source != border
        if learned is not None:
            elsewhere[:count] &= learned.any(-1)
        used = np.where(elsewhere, source, border)
        owing = used
        if cut is not None:
            last = np.maximum.accumulate(np.where(cut, border[:count], -1))
            owing = np.where(np.concatenate([last, last[-1:]]) <= used, used, _NOWHERE)
        self.source, self.used, self.owing = (self._there(x) for x in (source, used, owing))
        self.elsewhere = elsewhere.any(1).tolist()
        self.borders = [sorted(set(x)) for x in owing.tolist()]

    def _there(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(self.device)

    def _places(self, mask: np.ndarray | None) -> dict[int, Int[Tensor, " some"]]:
        """Return the rows of every chunk that has some."""
        if mask is None:
            return {}
        some = np.flatnonzero(mask.any(1)).tolist()
        return {index: self._there(np.flatnonzero(mask[index])) for index in some}

    def anchor(self, states: Float[Tensor, "N_and_2 R 2 D D"], index: int) -> Float[Tensor, "R D D"]:
        """Return the anchors of a chunk."""
        if not self.elsewhere[index]:
            return states[index, :, 0]
        if self.borders[index] == [_GIVEN]:
            return states[_GIVEN, :, 0]
        return states[self.used[index], self.row, 0]


class _Debts:
    """What anchors owe to the deltas they were, till the way back comes to their borders."""

    def __init__(self, course: _Course) -> None:
        self.course = course
        self.own: Tensor | None = None
        self.at: dict[int, Float[Tensor, "R D D"]] = {}

    def owe(self, grad: Float[Tensor, "R D D"], index: int) -> None:
        """Take the gradient of a chunk's anchors, which the caller may overwrite after `pay`."""
        course = self.course
        if not course.elsewhere[index]:
            self.own = grad
            return
        self.own = None
        borders = [border for border in course.borders[index] if border != _NOWHERE]
        for border in borders:
            part = grad.clone()
            if len(course.borders[index]) > 1:
                part.masked_fill_((course.owing[index] != border)[:, None, None], 0)
            self.at[border] = part.add_(self.at[border]) if border in self.at else part

    def pay(self, grad_delta: Float[Tensor, "R D D"], index: int) -> None:
        """Add all that is owed to a border's delta."""
        for part in (self.own, self.at.pop(index, None)):
            if part is not None:
                grad_delta.add_(part)
        self.own = None


def _factors(segment: Segment, given: Given) -> Factors:
    return Factors.of(given.log_retention, given.log_momentum, segment.learned, segment.read_before_write)


def _empty(state: Float[Tensor, "R 2 D D"], rows: Int[Tensor, " some"]) -> None:
    # All rows at once often, where environments are reset together, and quicker then.
    state.zero_() if len(rows) == len(state) else state.index_fill_(0, rows, 0)


def _flat(x: Float[Tensor, "N R *rest"]) -> Float[Tensor, "NR *rest"]:
    return x.reshape(-1, *x.shape[2:])


def _beside(x: Float[Tensor, "N R C D"], a: Float[Tensor, "N R C"], b: Tensor) -> Float[Tensor, "N R C both"]:
    """Return every token's two multiples, one beside the other."""
    both = x.new_empty(*x.shape[:3], 2, x.shape[3])
    torch.mul(x, a[..., None], out=both[..., 0, :])
    torch.mul(x, b[..., None], out=both[..., 1, :])
    return both.flatten(3)


def _pull_back(
    grad: Float[Tensor, "N R C both"], x: Float[Tensor, "N R C D"], grad_x: Tensor, a: Tensor, b: Tensor
) -> tuple[Float[Tensor, "N R C"], Float[Tensor, "N R C"]]:
    """Return the gradients of the factors of `_beside`; adds to `grad_x`."""
    grad_a, grad_b = grad.chunk(2, dim=-1)
    grad_x.addcmul_(grad_a, a[..., None]).addcmul_(grad_b, b[..., None])
    return (grad_a * x).sum(-1), (grad_b * x).sum(-1)
