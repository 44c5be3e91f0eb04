"""What a layer of `TitansMAC` does chunk by chunk, over a segment.

Attention waits for what memory recalls, memory for what attention read. All that waits for neither is done
for all chunks at once: projections of inputs before, what memory reads after. In between a chunk is some
fifty operations. `memory/titans/backward.py` goes back the same way.

Letters as in `memory/titans/chunks.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.neural.factors import Factors
from scrubjay.kernels.neural.network import NEGLIGIBLE
from scrubjay.memory.parts.rotary import turn_pairs
from scrubjay.memory.parts.unit import inverse_length
from scrubjay.memory.titans.chunks import Chunk, Given, Kept, Outputs
from scrubjay.memory.titans.course import Course

NORM_EPS = 1e-5
READ_EPSILON = 1e-4
# Chunks between looks for denormal numbers, beside the last.
_FLUSH_EVERY = 8


def folded(at: Course, given: Given) -> tuple[Tensor, Tensor]:
    """Return the weights from recalls of length 1 to their projection, and on to paired keys and values."""
    outward = given.recalled_out * given.recalled_norm.repeat(at.sizes.memories)
    return outward, torch.cat([given.key.index_select(0, at.pairs), given.value]) @ outward


def to_inputs(at: Course, given: Given, scale: float) -> Float[Tensor, "four_dims D"]:
    """Return the weights of queries, `scale` times, keys, both in pairs, values and what memory is asked."""
    query, key = (weight.index_select(0, at.pairs) for weight in (given.query, given.key))
    return torch.cat([query * scale, key, given.value, given.recall_query])


class Forward:
    """The way forward: `run`."""

    def __init__(self, at: Course, given: Given) -> None:
        self.at, self.given = at, given
        sizes = at.sizes
        self.rows, self.width = sizes.batch * sizes.memories, sizes.dim // sizes.memories
        self.of_attention = (sizes.batch, sizes.length, sizes.heads, sizes.dim // sizes.heads)
        self.of_memory = (sizes.batch, sizes.length, 3, sizes.memories, self.width)

    def run(self) -> tuple[Outputs, Kept]:
        """Return what the segment comes to, and what the way back needs."""
        at, given, (batch, chunks, length, dim, *_) = self.at, self.given, self.at.sizes
        time = given.x.shape[1]
        normed, mean, deviation, here, asking = self._project()
        asked, asked_inverse = self._ask(asking)
        self._open(given)
        factors, logs = [], []
        for index, own in enumerate(self._chunks(here, asked)):
            anchored = self._begin(index)
            self._recall(index, own, anchored)
            self._attend(own)
            chosen, log = self._write(index, own, anchored)
            factors.append(chosen)
            logs.append(log)
        every = Factors(*(torch.cat(parts) for parts in zip(*factors, strict=True)))
        y, reads, similar, pulls = self._read(every)
        squared = (self.tokens[1] * self.tokens[1]).sum(-1).mul_((self.error * self.error).sum(-1))
        collected = (
            self.attended.view(-1, dim),
            self.written.view(-1, dim),
            y.view(chunks, batch, -1, length, self.width).transpose(2, 3).reshape(-1, dim),
            squared.view(chunks, batch, -1, length).transpose(2, 3).reshape(chunks * batch * length, -1),
        )
        attended, written, y, squared = (x.index_select(0, at.target) for x in collected)
        kept = Kept(
            normed,
            mean,
            deviation,
            asking,
            asked,
            asked_inverse,
            self.query,
            self.keys,
            self.values,
            self.states,
            self.anchor,
            self.recalled,
            self.recalled_inverse,
            self.scores,
            self.total,
            self.read,
            self.flat,
            self.attended,
            self.written,
            self.written_mean,
            self.written_deviation,
            self.writing,
            self.tokens,
            self.inverse,
            self.opened,
            self.step,
            torch.stack(logs),
            self.error,
            self.writes,
            reads,
            similar,
            pulls,
            list(every),
        )
        found = attended, written, y.unflatten(1, (-1, self.width)), squared
        *read, squared = (x.unflatten(0, (batch, time)) for x in found)
        return Outputs._make([*read, *self._after(), squared]), kept

    def _project(self) -> tuple[Tensor, ...]:
        """Lay the inputs and their projections on the grid; returns those that attention does not take."""
        at, given, (batch, chunks, length, dim, heads, rotated, still, *_) = (
            self.at,
            self.given,
            self.at.sizes,
        )
        rows = given.x.reshape(-1, dim)
        normed, mean, deviation = torch.native_layer_norm(rows, [dim], given.norm, given.norm_bias, NORM_EPS)
        width = dim // heads
        # exp2(x * log2(e)) takes a third of the time of exp(x).
        weights = to_inputs(at, given, width**-0.5 * math.log2(math.e))
        # One more row, of zeros, for places that no step fills.
        parts = rows.new_empty(len(rows) + 1, 5 * dim)
        torch.mm(normed, weights.T, out=parts[:-1, : 4 * dim])
        parts[:-1, 4 * dim :] = rows
        parts[-1] = 0
        laid = parts.index_select(0, at.source)
        by_head = laid.view(chunks, batch, length, 5, heads, width)
        self.query = rows.new_empty(chunks, batch, heads, length, width)
        turn_pairs(by_head[:, :, :, 0], at.turn, self.query.transpose(2, 3))
        slots = still + 2 * length
        self.keys = rows.new_empty(chunks, batch, heads, slots, width)
        self.values = torch.empty_like(self.keys)
        own = slice(still, still + length)
        turn_pairs(by_head[:, :, :, 1], at.turn, self.keys[..., own, :].transpose(2, 3))
        self.values[..., own, :] = by_head[:, :, :, 2].transpose(2, 3)
        if still:
            self.keys[..., :still, :rotated] = 0
            self.keys[..., :still, rotated:] = given.persistent_keys.transpose(0, 1)
            self.values[..., :still, :] = given.persistent_values.transpose(0, 1)
        here = laid[:, 4 * dim :].unflatten(0, (chunks, -1))
        return normed, mean, deviation, here, laid[:, 3 * dim : 4 * dim]

    def _ask(self, asking: Float[Tensor, "places D"]) -> tuple[Tensor, Tensor]:
        """Return what memory is asked, vectors of at most unit length, and what made them so."""
        sizes = self.at.sizes
        active = functional.silu(asking).view(sizes.chunks, *self.of_memory[:2], *self.of_memory[3:])
        active = active.transpose(2, 3)
        inverse = inverse_length(active)
        asked = torch.empty_like(active, memory_format=torch.contiguous_format)
        torch.mul(active, inverse, out=asked)
        return asked.flatten(1, 2), inverse

    def _open(self, given: Given) -> None:
        """Make room for what chunks leave."""
        (batch, chunks, length, dim, heads, *_), rows, width = self.at.sizes, self.rows, self.width
        new, steps = given.x.new_empty, batch * length
        self.states = new(chunks + 1, rows, 2, width, width)
        self.states[0, :, 0] = given.delta.reshape(rows, width, width)
        self.states[0, :, 1] = given.momentum.reshape(rows, width, width)
        self.anchor = given.anchor.reshape(rows, width, width).clone()
        self.folded = folded(self.at, given)[1].T
        self.recalled, self.recalled_inverse = (new(chunks, rows, length, size) for size in (width, 1))
        self.scores = new(chunks, batch * heads, length, self.keys.shape[3])
        self.total, self.read = (
            new(chunks, batch * heads, length, size) for size in (1, self.query.shape[-1])
        )
        self.flat, self.attended, self.written = (new(chunks, steps, dim) for _ in range(3))
        self.written_mean, self.written_deviation = (new(chunks, steps, 1) for _ in range(2))
        self.writing = new(chunks, steps, 3 * dim)
        self.tokens = new(3, chunks, rows, length, width)
        self.inverse = new(2, chunks, rows, length, 1)
        self.opened, self.step = new(chunks, 3, rows, length), new(chunks, rows, length)
        self.error = new(chunks, rows, length, width)
        self.writes = new(chunks, rows, length, 2 * width)

    def _chunks(self, here: Tensor, asked: Tensor) -> Iterable[Chunk]:
        """Return views of what chunks are given and write."""
        sizes, (batch, length, heads, width) = self.at.sizes, self.of_attention
        caches = [cache[..., -length:, :].transpose(2, 3) for cache in (self.keys, self.values)]
        by_head = (-1, batch, sizes.memories, length)
        whole = (
            here,
            asked,
            self.query.flatten(1, 2),
            self.keys.flatten(1, 2).mT,
            self.values.flatten(1, 2),
            *caches,
            self.recalled,
            self.recalled.view(*by_head, self.width).transpose(2, 3),
            self.recalled_inverse,
            self.scores,
            self.total,
            self.read,
            self.read.view(-1, batch, heads, length, width).transpose(2, 3),
            self.flat,
            self.flat.view(-1, *self.of_attention),
            self.attended,
            self.written,
            self.written_mean,
            self.written_deviation,
            self.writing,
            self.writing.view(-1, *self.of_memory).permute(0, 3, 1, 4, 2, 5),
            self.opened,
            self.opened.view(-1, 3, *by_head[1:]).permute(0, 2, 4, 1, 3),
            self.step,
            self.error,
            self.writes,
            self.writes.mT,
            self.states[:-1],
            self.states[1:],
        )
        of_tokens = (self.tokens.view(3, *by_head, self.width), self.tokens[:2], self.inverse)
        by_head, units, inverse = (x.unbind(1) for x in of_tokens)
        key, value = self.tokens[1].unbind(), self.tokens[2].unbind()
        every = zip(*(x.unbind() for x in whole), by_head, key, value, units, inverse, strict=True)
        return (Chunk(*views) for views in every)

    def _begin(self, index: int) -> Float[Tensor, "R W W"]:
        """Return the memory that a chunk recalls from and learns at."""
        state, anchor = self.states[index], self.states[index, :, 0] if index else self.anchor
        if index in self.at.fresh:
            for part in (state, anchor):
                empty(part, self.at.fresh[index])
        return plus_weight(self.at, anchor, self.given.weight)

    def _recall(self, index: int, own: Chunk, anchored: Float[Tensor, "R W W"]) -> None:
        """Write keys and values of what memory recalls."""
        at, (batch, _, length, dim, *_) = self.at, self.at.sizes
        recalled, inverse = own.recalled, own.recalled_inverse
        torch.bmm(own.asked, anchored, out=recalled)
        torch.mean(recalled * recalled, -1, keepdim=True, out=inverse)
        recalled.mul_(inverse.add_(READ_EPSILON).rsqrt_())
        products = torch.mm(own.recalled_by_step.reshape(-1, dim), self.folded)
        key, value = products.view(batch, length, 2, *self.of_attention[2:]).unbind(2)
        turn_pairs(key, at.turn, own.key_slots)
        own.value_slots.copy_(value)
        if index == 0 and at.held is not None:
            given_keys = self.given.keys.index_select(2, at.pairs)
            for cache, old in ((self.keys, given_keys), (self.values, self.given.values)):
                slots = cache[0][..., -2 * length :, :]
                old = old.reshape(batch, 2 * length, *self.of_attention[2:]).transpose(1, 2)
                slots.copy_(torch.where(at.held, old, slots))

    def _attend(self, own: Chunk) -> None:
        """Write what attention reads, added to the inputs, and its norm."""
        given = self.given
        scores = torch.bmm(own.query, own.keys, out=own.scores).add_(self.at.hidden)
        scores.sub_(scores.amax(-1, keepdim=True)).exp2_()
        torch.sum(scores, -1, keepdim=True, out=own.total)
        torch.bmm(scores, own.values, out=own.read).div_(own.total)
        own.flat_by_head.copy_(own.read_by_step)
        torch.addmm(own.here, own.flat, given.out.T, out=own.attended)
        torch.ops.aten.native_layer_norm.out(
            own.attended,
            [own.attended.shape[1]],
            given.write_norm,
            given.write_norm_bias,
            NORM_EPS,
            out0=own.written,
            out1=own.written_mean,
            out2=own.written_deviation,
        )

    def _write(self, index: int, own: Chunk, anchored: Tensor) -> tuple[Factors, Tensor]:
        """Learn what attention read; returns the chunk's factors and the logarithms of its gates."""
        given, after = self.given, own.after
        torch.mm(own.written, given.write.T, out=own.writing)
        torch.ops.aten.silu.out(own.writing_by_head, out=own.tokens_by_head)
        own.inverse.copy_(inverse_length(own.units))
        own.units.mul_(own.inverse)
        factors, logs = self._gate(index, own)
        error = torch.baddbmm(own.value, own.key, anchored, beta=-1, out=own.error)
        beside(own.key, factors.end_mixed[0] * own.step, factors.end_trace[0] * own.step, own.writes)
        torch.mul(own.state, factors.ends[0][..., None, None], out=after)
        after[:, 0].addcmul_(factors.end_built[0][:, None, None], own.state[:, 1])
        after.flatten(1, 2).baddbmm_(own.writes_across, error, alpha=-1)
        if index % _FLUSH_EVERY == _FLUSH_EVERY - 1 or index == self.at.sizes.chunks - 1:
            torch.hardshrink(after, NEGLIGIBLE, out=after)
        return factors, logs

    def _gate(self, index: int, own: Chunk) -> tuple[Factors, Tensor]:
        """Write how far tokens are learned, as `NeuralMemory` has it; returns the same as `_write`."""
        given, sizes, step = self.given, self.at.sizes, own.step
        logits = torch.addmm(given.gates_bias, own.written, given.gates.T)
        own.opened_by_step.copy_(logits.view(own.opened_by_step.shape))
        logs = own.opened[1:].clone()
        logs[1].neg_()
        logs = functional.logsigmoid(logs)
        logs[0].add_(math.log(sizes.most_momentum))
        opened = own.opened.sigmoid_()
        torch.mul(opened[1], -sizes.most_momentum * sizes.largest_step, out=step).add_(sizes.largest_step)
        step.mul_(opened[0])
        learned = None if self.at.learned is None else self.at.learned[index]
        if learned is not None:
            step.mul_(learned)
            logs.mul_(learned)
            learned = learned[None]
        return Factors.of(logs[None, 1], logs[None, 0], learned, sizes.read_before_write), logs

    def _read(self, factors: Factors) -> tuple[Tensor, ...]:
        """Return what memory reads after its writes, and of what it is made."""
        at, states = self.at, self.states[:-1].flatten(2, 3).flatten(0, 1)
        query, key, _ = (part.flatten(0, 1) for part in self.tokens)
        error = self.error.flatten(0, 1)
        reads = torch.empty_like(self.writes)
        beside(self.tokens[0], factors.read_retained, factors.read_built, reads)
        y = by_weight(at, query, self.given.weight)
        y.baddbmm_(reads.flatten(0, 1), states)
        similar = torch.bmm(query, key.mT)
        pulls = (factors.read_mixed * self.step[:, :, None]).flatten(0, 1)
        y.baddbmm_(similar * pulls, error, alpha=-1)
        return y, reads, similar, pulls

    def _after(self) -> tuple[Tensor, ...]:
        """Return the state after the segment."""
        at, given, last = self.at, self.given, self.states[-1]
        delta = last[:, 0].clone()
        anchor = delta
        if at.anchored is not None:
            row = torch.arange(self.rows)
            anchor = torch.where(
                (at.anchored == 0)[:, None, None], self.anchor, self.states[at.anchored, row, 0]
            )
        else:
            anchor = delta.clone()
        learned = (x.view(given.delta.shape) for x in (delta, last[:, 1].clone(), anchor))
        caches = []
        for cache in (self.keys, self.values):
            if at.last is None:
                held = cache[-1]
            else:
                held = cache[at.last[0], torch.arange(at.sizes.batch)]
            held = held[..., at.sizes.persistent :, :]
            if at.last is not None:
                held = torch.where(at.last[1], held, 0)
            caches.append(held.transpose(1, 2).reshape(given.keys.shape))
        return *learned, caches[0].index_select(2, at.apart), caches[1]


def empty(part: Float[Tensor, "R *rest"], rows: Int[Tensor, " some"]) -> None:
    """Write zeros to these rows."""
    # All at once often, where environments are reset together, and quicker then.
    part.zero_() if len(rows) == len(part) else part.index_fill_(0, rows, 0)


def plus_weight(
    at: Course, anchor: Float[Tensor, "R W W"], weight: Float[Tensor, "M W W"]
) -> Float[Tensor, "R W W"]:
    """Return memories with the weights that they are born with."""
    return (anchor.unflatten(0, (-1, at.sizes.memories)) + weight).flatten(0, 1)


def by_weight(at: Course, x: Float[Tensor, "NR C W"], weight: Float[Tensor, "M W W"]) -> Tensor:
    """Return the products of tokens with the weights that their memories are born with."""
    if at.sizes.memories == 1:
        return (x.view(-1, x.shape[-1]) @ weight[0]).view(x.shape)
    return (x.unflatten(0, (-1, at.sizes.memories)) @ weight).flatten(0, 1)


def by_step(at: Course, x: Float[Tensor, "R C W"]) -> Float[Tensor, "steps D"]:
    """Return a chunk's vectors of all heads of memory, one head beside the other."""
    of_heads = x.unflatten(0, (-1, at.sizes.memories)).transpose(1, 2)
    return of_heads.reshape(-1, at.sizes.dim)


def beside(
    x: Float[Tensor, "*rows C W"], a: Float[Tensor, "*rows C"], b: Tensor, out: Float[Tensor, "*rows C two_W"]
) -> Float[Tensor, "*rows C two_W"]:
    """Return every token's two multiples, one beside the other."""
    both = out.unflatten(-1, (2, -1))
    torch.mul(x, a[..., None], out=both[..., 0, :])
    torch.mul(x, b[..., None], out=both[..., 1, :])
    return out
