"""The gradient of what `memory/titans/forward.py` does.

First what memory read, of all chunks at once; then from the last chunk to the first what each passes on to
the one before; then the inputs' projections and, of all chunks at once, what weights are owed.

Letters as in `memory/titans/chunks.py`. A name with `of_` is the gradient of what the rest of the name is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.kernels.neural.factors import Factors
from scrubjay.kernels.neural.network import silu_slope
from scrubjay.memory.parts.rotary import turn_pairs
from scrubjay.memory.titans.chunks import Given, Kept
from scrubjay.memory.titans.course import Course
from scrubjay.memory.titans.forward import (
    by_step,
    by_weight,
    empty,
    folded,
    plus_weight,
    to_inputs,
)


class Backward:
    """The way back: `run`.

    Args:
        at: What follows from steps.
        given: What the way forward was given.
        kept: What it kept.
        grads: The gradients of all outputs but the last; None for those that nobody asks about.
    """

    def __init__(self, at: Course, given: Given, kept: Kept, grads: Sequence[Tensor | None]) -> None:
        self.at, self.given, self.kept, self.grads = at, given, kept, grads
        sizes = at.sizes
        self.rows, self.width = sizes.batch * sizes.memories, sizes.dim // sizes.memories
        self.of_attention = (sizes.batch, sizes.length, sizes.heads, sizes.dim // sizes.heads)
        self.of_memory = (sizes.batch, sizes.length, 3, sizes.memories, self.width)
        self.factors = Factors(*kept.factors)

    def run(self, of_state: bool) -> list[Tensor | None]:
        """Return the gradients of all that was given, of the state if that is asked for."""
        self._lay()
        self._open()
        self._return_reads()
        after = self._after()
        for index in reversed(range(self.at.sizes.chunks)):
            after = self._return(index, after)
        state = self._of_state(after) if of_state and after is not None else [None] * 5
        kept, given, (_, _, _, dim, _, rotated, still, *_) = self.kept, self.given, self.at.sizes
        x, norm, norm_bias, query, key, value, recall_query = self._return_inputs()
        outward, other_key, other_value = self._of_recalls()
        of_norm = (outward * given.recalled_out).view(dim, -1, self.width).sum((0, 1))
        written = kept.written.view(-1, dim)
        return [
            x,
            *state,
            norm,
            norm_bias,
            query,
            key + other_key,
            value + other_value,
            self.of_laid[:, 4 * dim :].T @ kept.flat.view(-1, dim),
            self.of_keys[..., :still, rotated:].sum((0, 1)).transpose(0, 1),
            self.of_values[..., :still, :].sum((0, 1)).transpose(0, 1),
            recall_query,
            of_norm,
            outward * given.recalled_norm.repeat(self.at.sizes.memories),
            *self.of_norm,
            self.of_writing.flatten(0, 1).T @ written,
            self.of_logits.flatten(0, 1).T @ written,
            self.of_logits.sum((0, 1)),
            self._of_weight(),
        ]

    def _lay(self) -> None:
        """Lay the gradients of attended, written and read steps on the grid."""
        (batch, chunks, length, dim, *_), steps = self.at.sizes, len(self.at.target)
        parts = self.given.x.new_empty(steps + 1, 3 * dim)
        for place, grad in enumerate(self.grads[:3]):
            columns = parts[:-1, place * dim : (place + 1) * dim]
            columns.zero_() if grad is None else columns.copy_(grad.reshape(steps, dim))
        parts[-1] = 0
        laid = parts.index_select(0, self.at.source).view(chunks, batch * length, 3 * dim)
        self.to_attended, self.to_written, of_y = laid.split(dim, dim=2)
        by_head = of_y.reshape(chunks, batch, length, -1, self.width).transpose(2, 3)
        self.of_y = by_head.reshape(chunks, self.rows, length, self.width)

    def _open(self) -> None:
        """Make room for what chunks are owed."""
        kept, given, (batch, chunks, length, dim, *_) = self.kept, self.given, self.at.sizes
        new, steps = given.x.new_empty, batch * length
        self.of_laid = new(chunks * steps, 5 * dim)
        self.of_query = torch.empty_like(kept.query)
        self.of_keys, self.of_values = torch.empty_like(kept.keys), torch.empty_like(kept.values)
        self.to_slots = self._to_slots()
        self.of_products = new(chunks, steps, 2 * dim)
        self.of_asked = torch.empty_like(kept.asked)
        self.of_writing = torch.empty_like(kept.writing)
        self.of_logits = new(chunks, steps, 3 * self.at.sizes.memories)
        self.of_norm: list[Tensor] = [torch.zeros_like(x) for x in (given.write_norm, given.write_norm_bias)]
        self.of_weight = torch.zeros_like(kept.anchor)
        self.slope = silu_slope(kept.writing)
        self.outward, self.folded = folded(self.at, given)
        self.back = self.at.turn.conj().resolve_conj()
        # A border's and that behind it, by turns.
        self.borders = new(2, self.rows, 2, self.width, self.width)
        self.anchored = torch.empty_like(kept.anchor)

    def _to_slots(self) -> list[Tensor | None]:
        """Return the gradients of all chunks' keys and values by the state after, None where it has none."""
        found: list[Tensor | None] = []
        for grad in self.grads[6:8]:
            if grad is None:
                found.append(None)
                continue
            batch, length, heads, width = self.of_attention
            grad = grad.index_select(2, self.at.pairs) if not found else grad
            slots = grad.reshape(batch, 2 * length, heads, width).transpose(1, 2)
            whole = torch.zeros_like(self.kept.keys)
            behind = whole[..., self.at.sizes.persistent :, :]
            if self.at.last is None:
                behind[-1] = slots
            else:
                behind[self.at.last[0], torch.arange(batch)] = torch.where(self.at.last[1], slots, 0)
            found.append(whole)
        return found

    def _return_reads(self) -> None:
        """Go back through what memory read after its writes, of all chunks at once."""
        kept, factors, at = self.kept, self.factors, self.at
        query, key, _ = (part.flatten(0, 1) for part in kept.tokens)
        error, grad = kept.error.flatten(0, 1), self.of_y.flatten(0, 1)
        of_error = torch.bmm((kept.pulls * kept.similar).mT, grad).neg_()
        of_pulled = torch.bmm(grad, error.mT).neg_()
        of_similar = of_pulled * kept.pulls
        of_mixed = of_pulled.mul_(kept.similar).view_as(factors.read_mixed)
        self.of_step = (of_mixed * factors.read_mixed).sum(-2)
        self.of_mixed = of_mixed.mul_(kept.step[:, :, None])
        self.of_tokens = torch.empty_like(kept.tokens)
        of_query, of_key, _ = self.of_tokens
        product = by_weight(at, grad, self.given.weight.mT).baddbmm_(of_similar, key)
        of_reads = torch.bmm(grad, kept.states[:-1].flatten(2, 3).flatten(0, 1).mT).view_as(kept.reads)
        a, b = of_reads.chunk(2, dim=-1)
        torch.addcmul(product.view_as(a), a, factors.read_retained[..., None], out=of_query)
        of_query.addcmul_(b, factors.read_built[..., None])
        self.of_retained, self.of_built = ((part * kept.tokens[0]).sum(-1) for part in (a, b))
        of_key.copy_(torch.bmm(of_similar.mT, query).view_as(a))
        self.of_error = of_error.view_as(kept.error)

    def _after(self) -> Tensor | None:
        """Return the gradient of the last border, None if nobody asks about the state after."""
        of_delta, of_momentum, of_anchor = self.grads[3:6]
        self.of_anchor = None
        if of_anchor is not None:
            of_anchor = of_anchor.reshape(self.anchored.shape)
            if self.at.anchored is not None:
                self.of_anchor, of_anchor = (
                    of_anchor,
                    of_anchor.masked_fill((self.at.anchored != self.at.sizes.chunks)[:, None, None], 0),
                )
        if of_delta is None and of_momentum is None and of_anchor is None:
            return None
        after = self.borders[self.at.sizes.chunks % 2].zero_()
        for place, grad in ((0, of_delta), (1, of_momentum), (0, of_anchor)):
            if grad is not None:
                after[:, place] += grad.reshape(self.anchored.shape)
        return after

    def _return(self, index: int, after: Tensor | None) -> Tensor:
        """Go back through a chunk; returns the gradient of the border before it from that behind it."""
        kept, given, at = self.kept, self.given, self.at
        anchor = kept.states[index, :, 0] if index else kept.anchor
        anchored = plus_weight(at, anchor, given.weight)
        before = self.borders[index % 2]
        of_ends = self._return_borders(index, before, after)
        of_anchor = self._return_writes(index, anchored, of_ends)
        self._return_attention(index)
        self._return_recall(index, anchored, of_anchor)
        self.of_weight += of_anchor
        if index:
            before[:, 0] += of_anchor
        else:
            self.of_first = of_anchor
        if self.of_anchor is not None:
            owed = self.of_anchor.masked_fill((at.anchored != index)[:, None, None], 0)
            (before[:, 0] if index else of_anchor).add_(owed)
        if index in at.stopped:
            empty(before, at.stopped[index])
            if not index:
                empty(of_anchor, at.stopped[index])
        return before

    def _return_borders(self, index: int, before: Tensor, after: Tensor | None) -> Tensor:
        """Write the gradient of the border before a chunk, but for its anchor, and those of its writes.

        Returns those of how much of delta and momentum `[R, 2, 2]` is left in delta and momentum.
        """
        kept, factors = self.kept, self.factors
        flat, reads, of_y = before.flatten(1, 2), kept.reads[index].mT, self.of_y[index]
        if after is None:
            torch.bmm(reads, of_y, out=flat)
            self.of_writes = torch.zeros_like(kept.writes[index])
            return before.new_zeros(self.rows, 2, 2)
        tall, error = after.flatten(1, 2), self.of_error[index]
        error.baddbmm_(kept.writes[index], tall, alpha=-1)
        self.of_writes = torch.bmm(kept.error[index], tall.mT).neg_()
        of_ends = torch.bmm(after.flatten(2), kept.states[index].flatten(2).mT)
        torch.mul(after, factors.ends[index][..., None, None], out=before)
        before[:, 1].addcmul_(factors.end_built[index][:, None, None], after[:, 0])
        flat.baddbmm_(reads, of_y)
        return of_ends

    def _return_writes(self, index: int, anchored: Tensor, of_ends: Tensor) -> Float[Tensor, "R W W"]:
        """Go back through what a chunk learned, to what attention read; returns the anchor's gradient."""
        kept, factors, step = self.kept, self.factors, self.kept.step[index]
        key = kept.tokens[1, index]
        of_key, of_value = self.of_tokens[1:, index]
        end_mixed, end_trace = factors.end_mixed[index], factors.end_trace[index]
        a, b = self.of_writes.chunk(2, dim=-1)
        of_key.addcmul_(a, (end_mixed * step)[..., None]).addcmul_(b, (end_trace * step)[..., None])
        of_mixed, of_trace = (a * key).sum(-1), (b * key).sum(-1)
        of_step = self.of_step[index].addcmul_(of_mixed, end_mixed).addcmul_(of_trace, end_trace)
        of_error = self.of_error[index]
        of_key.baddbmm_(of_error, anchored.mT)
        of_anchor = torch.bmm(key.mT, of_error, out=self.anchored)
        torch.neg(of_error, out=of_value)
        here = slice(index, index + 1)
        momentum, retention = kept.logs[index]
        of_logs = Factors(*(x[here] for x in factors)).backward(
            retention[None],
            momentum[None],
            self.at.sizes.read_before_write,
            self.of_retained[here],
            self.of_built[here],
            self.of_mixed[here],
            (of_mixed * step)[None],
            (of_trace * step)[None],
            of_ends[None],
        )
        self._return_gates(index, of_step, *of_logs)
        self._return_tokens(index)
        self._return_norm(index)
        return of_anchor

    def _return_gates(self, index: int, of_step: Tensor, of_momentum: Tensor, of_retention: Tensor) -> None:
        """Write the gradients of a chunk's gates' logits."""
        sizes, opened, step = self.at.sizes, self.kept.opened[index], self.kept.step[index]
        of_logits = torch.empty_like(opened)
        shut = 1 - opened[:2]
        torch.mul(of_step * step, shut[0], out=of_logits[0])
        most = -sizes.largest_step * sizes.most_momentum
        torch.mul(of_step * opened[0], opened[1], out=of_logits[1]).mul_(most).add_(of_momentum[0])
        of_logits[1].mul_(shut[1])
        torch.mul(of_retention[0], opened[2], out=of_logits[2]).neg_()
        if self.at.learned is not None:
            of_logits.mul_(self.at.learned[index])
        by_step = of_logits.view(3, sizes.batch, -1, sizes.length).permute(1, 3, 0, 2)
        self.of_logits[index].view(by_step.shape).copy_(by_step)

    def _return_tokens(self, index: int) -> None:
        """Write the gradients of what a chunk's queries, keys and values are made of."""
        unit, grad = self.kept.tokens[:2, index], self.of_tokens[:2, index]
        along = (unit * grad).sum(-1, keepdim=True)
        grad.addcmul_(unit, along, value=-1).mul_(self.kept.inverse[:, index])
        batch, length, _, memories, width = self.of_memory
        by_head = self.of_tokens[:, index].view(3, batch, memories, length, width).permute(1, 3, 0, 2, 4)
        out = self.of_writing[index].view(self.of_memory)
        torch.mul(by_head, self.slope[index].view(self.of_memory), out=out)

    def _return_norm(self, index: int) -> None:
        """Write the gradient of what a chunk's attention made of the inputs."""
        given, kept, dim = self.given, self.kept, self.at.sizes.dim
        of_written = torch.addmm(self.to_written[index], self.of_writing[index], given.write)
        of_written.addmm_(self.of_logits[index], given.gates)
        of_attended, *of_norm = torch.ops.aten.native_layer_norm_backward(
            of_written,
            kept.attended[index],
            [dim],
            kept.written_mean[index],
            kept.written_deviation[index],
            given.write_norm,
            given.write_norm_bias,
            [True, True, True],
        )
        for whole, part in zip(self.of_norm, of_norm, strict=True):
            whole += part
        out = self.of_laid.unflatten(0, (self.at.sizes.chunks, -1))[index, :, 4 * dim :]
        self.of_attended = torch.add(of_attended, self.to_attended[index], out=out)

    def _return_attention(self, index: int) -> None:
        """Write the gradients of a chunk's queries, keys and values of attention."""
        kept = self.kept
        of_flat = torch.mm(self.of_attended, self.given.out).view(self.of_attention).transpose(1, 2)
        of_read = of_flat.reshape(kept.read[index].shape).div_(kept.total[index])
        keys, values = kept.keys[index].flatten(0, 1), kept.values[index].flatten(0, 1)
        query, scores = kept.query[index].flatten(0, 1), kept.scores[index]
        of_scores = torch.bmm(of_read, values.mT)
        of_scores.sub_((of_read * kept.read[index]).sum(-1, keepdim=True)).mul_(scores)
        torch.bmm(of_scores, keys, out=self.of_query[index].flatten(0, 1))
        torch.bmm(of_scores.mT, query * math.log(2), out=self.of_keys[index].flatten(0, 1))
        torch.bmm(scores.mT, of_read, out=self.of_values[index].flatten(0, 1))
        for whole, part in zip((self.of_keys, self.of_values), self.to_slots, strict=True):
            if part is not None:
                whole[index] += part[index]

    def _return_recall(self, index: int, anchored: Tensor, of_anchor: Tensor) -> None:
        """Go back through what a chunk recalled; adds to the anchor's gradient."""
        kept, at, (batch, length, heads, width) = self.kept, self.at, self.of_attention
        grads = [x[index, ..., at.sizes.persistent :, :] for x in (self.of_keys, self.of_values)]
        if index == 0 and at.held is not None:
            self.of_held = [torch.where(at.held, grad, 0) for grad in grads]
            for grad in grads:
                grad.masked_fill_(at.held, 0)
        of_key, of_value = (grad[..., length:, :].transpose(1, 2) for grad in grads)
        of_products = self.of_products[index].view(batch, length, 2, heads, width)
        turn_pairs(of_key, self.back, of_products[:, :, 0])
        of_products[:, :, 1] = of_value
        of_unit = torch.mm(self.of_products[index], self.folded).view(batch, length, -1, self.width)
        grad = of_unit.transpose(1, 2).reshape(kept.recalled[index].shape)
        unit = kept.recalled[index]
        along = (unit * grad).mean(-1, keepdim=True)
        grad = torch.addcmul(grad, unit, along, value=-1).mul_(kept.recalled_inverse[index])
        torch.bmm(grad, anchored.mT, out=self.of_asked[index])
        of_anchor.baddbmm_(kept.asked[index].mT, grad)

    def _of_state(self, before: Tensor) -> list[Tensor | None]:
        """Return the gradients of the state that was given."""
        given = self.given
        learned = [before[:, 0].clone(), before[:, 1].clone(), self.of_first]
        found: list[Tensor | None] = [x.reshape(given.delta.shape) for x in learned]
        if self.at.held is None:
            return [*found, torch.zeros_like(given.keys), torch.zeros_like(given.values)]
        keys, values = (x.transpose(1, 2).reshape(given.keys.shape) for x in self.of_held)
        return [*found, keys.index_select(2, self.at.apart), values]

    def _return_inputs(self) -> tuple[Tensor, ...]:
        """Return the gradients of the inputs, their norm, and of the weights of what is projected of them."""
        at, given, kept, (batch, chunks, length, dim, heads, _, still, *_) = (
            self.at,
            self.given,
            self.kept,
            self.at.sizes,
        )
        own = slice(still, still + length)
        steps = self.of_laid.view(chunks * batch, length, 5, dim)
        by_head = steps.view(chunks, batch, length, 5, heads, -1)
        for place, grad in enumerate((self.of_query, self.of_keys[..., own, :])):
            turn_pairs(grad.transpose(2, 3), self.back, by_head[:, :, :, place])
        by_head[:, :, :, 2] = self.of_values[..., own, :].transpose(2, 3)
        unit = kept.asked
        along = (unit * self.of_asked).sum(-1, keepdim=True)
        inverse = kept.asked_inverse.flatten(1, 2)
        of_asking = torch.addcmul(self.of_asked, unit, along, value=-1).mul_(inverse)
        of_asking = of_asking.view(chunks, batch, -1, length, self.width).transpose(2, 3)
        slope = silu_slope(kept.asking).view(of_asking.shape)
        out = steps[:, :, 3].unflatten(-1, (-1, self.width)).unflatten(0, (chunks, batch))
        torch.mul(of_asking, slope, out=out)
        collected = self.of_laid.index_select(0, at.target)
        of_projected, of_rows = collected.split([4 * dim, dim], dim=1)
        scale = (dim // heads) ** -0.5
        of_x, of_norm, of_bias = torch.ops.aten.native_layer_norm_backward(
            of_projected @ to_inputs(at, given, scale),
            given.x.reshape(-1, dim),
            [dim],
            kept.mean,
            kept.deviation,
            given.norm,
            given.norm_bias,
            [True, True, True],
        )
        of_query, of_key, *others = (of_projected.T @ kept.normed).split(dim)
        of_query, of_key = (grad.index_select(0, at.apart) for grad in (of_query * scale, of_key))
        return (of_x + of_rows).view(given.x.shape), of_norm, of_bias, of_query, of_key, *others

    def _of_recalls(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of what projects recalls, of keys and of values."""
        given, dim = self.given, self.at.sizes.dim
        units = by_step(self.at, self.kept.recalled.flatten(0, 1))
        of_folded = self.of_products.flatten(0, 1).T @ units
        of_key, of_value = (of_folded @ self.outward.T).split(dim)
        both = torch.cat([given.key.index_select(0, self.at.pairs), given.value])
        return both.T @ of_folded, of_key.index_select(0, self.at.apart), of_value

    def _of_weight(self) -> Float[Tensor, "M W W"]:
        """Return the gradient of the weights that memory is born with."""
        memories = self.at.sizes.memories
        of_anchors = self.of_weight.unflatten(0, (-1, memories)).sum(0)
        query, grad = (
            x.unflatten(1, (-1, memories)).permute(2, 0, 1, 3, 4).reshape(memories, -1, self.width)
            for x in (self.kept.tokens[0], self.of_y)
        )
        return of_anchors.baddbmm_(query.mT, grad)
