"""Forward pass of a layer of `TitansMAC` over a segment, chunk by chunk.

Attention depends on the memory's recalls, and the memory's writes depend on the attention outputs. Recalls,
attention and writes therefore run in a loop over chunks. A chunk takes about fifty operations in the loop.
The input projections run before the loop, and the reads of the memory after the loop, for all chunks at once.
`memory/titans/backward.py` is the backward pass.

`memory/titans/chunks.py` defines the dimension letters.
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
from scrubjay.memory.parts.layers import inverse_norm
from scrubjay.memory.parts.rotary import rotate_pairs
from scrubjay.memory.titans.chunks import Activations, ChunkViews, SegmentInputs, SegmentOutputs
from scrubjay.memory.titans.schedule import Schedule

NORM_EPS = 1e-5
READ_EPSILON = 1e-4
# Denormal numbers are flushed every so many chunks, and at the last chunk.
_FLUSH_EVERY = 8


def fold_recall_weights(schedule: Schedule, inputs: SegmentInputs) -> tuple[Tensor, Tensor]:
    """Return two weight matrices, both for normalized recalls.

    The first matrix maps them to projected recalls. The second matrix maps them to attention keys and values,
    stacked, with the keys ordered by rotary pairs.
    """
    recall_projection_weights = inputs.recall_out * inputs.recall_norm.repeat(schedule.sizes.memories)
    return recall_projection_weights, torch.cat(
        [inputs.key.index_select(0, schedule.pairs), inputs.value]
    ) @ recall_projection_weights


def build_input_weights(
    schedule: Schedule, inputs: SegmentInputs, scale: float
) -> Float[Tensor, "four_dims D"]:
    """Return the weights of scaled queries, keys, values and recall queries, stacked.

    The weights of queries and keys are ordered by rotary pairs.
    """
    query, key = (weight.index_select(0, schedule.pairs) for weight in (inputs.query, inputs.key))
    return torch.cat([query * scale, key, inputs.value, inputs.recall_query])


class Forward:
    """Forward pass over a segment. Call `run` to compute the outputs."""

    def __init__(self, schedule: Schedule, inputs: SegmentInputs) -> None:
        self.schedule, self.inputs = schedule, inputs
        sizes = schedule.sizes
        self.rows, self.width = sizes.batch * sizes.memories, sizes.dim // sizes.memories
        self.attention_shape = (sizes.batch, sizes.length, sizes.heads, sizes.dim // sizes.heads)
        self.memory_shape = (sizes.batch, sizes.length, 3, sizes.memories, self.width)

    def run(self) -> tuple[SegmentOutputs, Activations]:
        """Return the outputs of the segment and the activations for the backward pass."""
        schedule, inputs, (batch, chunks, length, dim, *_) = self.schedule, self.inputs, self.schedule.sizes
        time = inputs.x.shape[1]
        normed_x, mean, deviation, chunk_x, recall_projection = self._project()
        recall_queries, recall_query_inverse = self._normalize_recall_queries(recall_projection)
        self._allocate(inputs)
        factors, logs = [], []
        for index, chunk in enumerate(self._chunks(chunk_x, recall_queries)):
            anchor_weights = self._start_chunk(index)
            self._recall(index, chunk, anchor_weights)
            self._attend(chunk)
            chunk_factors, log = self._write(index, chunk, anchor_weights)
            factors.append(chunk_factors)
            logs.append(log)
        all_factors = Factors(*(torch.cat(parts) for parts in zip(*factors, strict=True)))
        y, reads, similarities, pair_weights = self._read(all_factors)
        squared_surprise = (self.tokens[1] * self.tokens[1]).sum(-1).mul_((self.error * self.error).sum(-1))
        by_step_values = (
            self.attention_out.view(-1, dim),
            self.write_input.view(-1, dim),
            y.view(chunks, batch, -1, length, self.width).transpose(2, 3).reshape(-1, dim),
            squared_surprise.view(chunks, batch, -1, length)
            .transpose(2, 3)
            .reshape(chunks * batch * length, -1),
        )
        attention_out, write_input, y, squared_surprise = (
            x.index_select(0, schedule.target) for x in by_step_values
        )
        activations = Activations(
            normed_x,
            mean,
            deviation,
            recall_projection,
            recall_queries,
            recall_query_inverse,
            self.query,
            self.keys,
            self.values,
            self.states,
            self.anchor,
            self.recalls,
            self.recall_inverse,
            self.scores,
            self.total,
            self.read,
            self.flat,
            self.attention_out,
            self.write_input,
            self.write_mean,
            self.write_deviation,
            self.write_projection,
            self.tokens,
            self.inverse,
            self.gate_values,
            self.step,
            torch.stack(logs),
            self.error,
            self.writes,
            reads,
            similarities,
            pair_weights,
            list(all_factors),
        )
        results = attention_out, write_input, y.unflatten(1, (-1, self.width)), squared_surprise
        *read, squared_surprise = (x.unflatten(0, (batch, time)) for x in results)
        return SegmentOutputs._make([*read, *self._final_state(), squared_surprise]), activations

    def _project(self) -> tuple[Tensor, ...]:
        """Project the inputs and arrange them by chunk and position.

        Return the normed inputs with their mean and deviation, the inputs by chunk, and the recall queries
        before the activation.
        """
        schedule, inputs, (batch, chunks, length, dim, heads, rotary_width, persistent, *_) = (
            self.schedule,
            self.inputs,
            self.schedule.sizes,
        )
        rows = inputs.x.reshape(-1, dim)
        normed_x, mean, deviation = torch.native_layer_norm(
            rows, [dim], inputs.norm, inputs.norm_bias, NORM_EPS
        )
        width = dim // heads
        # exp2(x * log2(e)) takes a third of the time of exp(x).
        weights = build_input_weights(schedule, inputs, width**-0.5 * math.log2(math.e))
        # One extra zero row for positions without a step.
        parts = rows.new_empty(len(rows) + 1, 5 * dim)
        torch.mm(normed_x, weights.T, out=parts[:-1, : 4 * dim])
        parts[:-1, 4 * dim :] = rows
        parts[-1] = 0
        grid_parts = parts.index_select(0, schedule.source)
        by_head = grid_parts.view(chunks, batch, length, 5, heads, width)
        self.query = rows.new_empty(chunks, batch, heads, length, width)
        rotate_pairs(by_head[:, :, :, 0], schedule.rotation, self.query.transpose(2, 3))
        slots = persistent + 2 * length
        self.keys = rows.new_empty(chunks, batch, heads, slots, width)
        self.values = torch.empty_like(self.keys)
        input_slots = slice(persistent, persistent + length)
        rotate_pairs(by_head[:, :, :, 1], schedule.rotation, self.keys[..., input_slots, :].transpose(2, 3))
        self.values[..., input_slots, :] = by_head[:, :, :, 2].transpose(2, 3)
        if persistent:
            self.keys[..., :persistent, :rotary_width] = 0
            self.keys[..., :persistent, rotary_width:] = inputs.persistent_keys.transpose(0, 1)
            self.values[..., :persistent, :] = inputs.persistent_values.transpose(0, 1)
        chunk_x = grid_parts[:, 4 * dim :].unflatten(0, (chunks, -1))
        return normed_x, mean, deviation, chunk_x, grid_parts[:, 3 * dim : 4 * dim]

    def _normalize_recall_queries(
        self, recall_projection: Float[Tensor, "places D"]
    ) -> tuple[Tensor, Tensor]:
        """Return the recall queries, each scaled to just below unit length, and the factors of this
        scaling."""
        sizes = self.schedule.sizes
        active = functional.silu(recall_projection).view(
            sizes.chunks, *self.memory_shape[:2], *self.memory_shape[3:]
        )
        active = active.transpose(2, 3)
        inverse = inverse_norm(active)
        recall_queries = torch.empty_like(active, memory_format=torch.contiguous_format)
        torch.mul(active, inverse, out=recall_queries)
        return recall_queries.flatten(1, 2), inverse

    def _allocate(self, inputs: SegmentInputs) -> None:
        """Allocate the activations of all chunks."""
        (batch, chunks, length, dim, heads, *_), rows, width = self.schedule.sizes, self.rows, self.width
        new, steps = inputs.x.new_empty, batch * length
        self.states = new(chunks + 1, rows, 2, width, width)
        self.states[0, :, 0] = inputs.delta.reshape(rows, width, width)
        self.states[0, :, 1] = inputs.momentum.reshape(rows, width, width)
        self.anchor = inputs.anchor.reshape(rows, width, width).clone()
        self.recall_weights = fold_recall_weights(self.schedule, inputs)[1].T
        self.recalls, self.recall_inverse = (new(chunks, rows, length, size) for size in (width, 1))
        self.scores = new(chunks, batch * heads, length, self.keys.shape[3])
        self.total, self.read = (
            new(chunks, batch * heads, length, size) for size in (1, self.query.shape[-1])
        )
        self.flat, self.attention_out, self.write_input = (new(chunks, steps, dim) for _ in range(3))
        self.write_mean, self.write_deviation = (new(chunks, steps, 1) for _ in range(2))
        self.write_projection = new(chunks, steps, 3 * dim)
        self.tokens = new(3, chunks, rows, length, width)
        self.inverse = new(2, chunks, rows, length, 1)
        self.gate_values, self.step = new(chunks, 3, rows, length), new(chunks, rows, length)
        self.error = new(chunks, rows, length, width)
        self.writes = new(chunks, rows, length, 2 * width)

    def _chunks(self, chunk_x: Tensor, recall_queries: Tensor) -> Iterable[ChunkViews]:
        """Return views of the inputs and activations of every chunk."""
        sizes, (batch, length, heads, width) = self.schedule.sizes, self.attention_shape
        caches = [cache[..., -length:, :].transpose(2, 3) for cache in (self.keys, self.values)]
        by_head = (-1, batch, sizes.memories, length)
        whole = (
            chunk_x,
            recall_queries,
            self.query.flatten(1, 2),
            self.keys.flatten(1, 2).mT,
            self.values.flatten(1, 2),
            *caches,
            self.recalls,
            self.recalls.view(*by_head, self.width).transpose(2, 3),
            self.recall_inverse,
            self.scores,
            self.total,
            self.read,
            self.read.view(-1, batch, heads, length, width).transpose(2, 3),
            self.flat,
            self.flat.view(-1, *self.attention_shape),
            self.attention_out,
            self.write_input,
            self.write_mean,
            self.write_deviation,
            self.write_projection,
            self.write_projection.view(-1, *self.memory_shape).permute(0, 3, 1, 4, 2, 5),
            self.gate_values,
            self.gate_values.view(-1, 3, *by_head[1:]).permute(0, 2, 4, 1, 3),
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
        chunks = zip(*(x.unbind() for x in whole), by_head, key, value, units, inverse, strict=True)
        return (ChunkViews(*views) for views in chunks)

    def _start_chunk(self, index: int) -> Float[Tensor, "R W W"]:
        """Reset rows that start an episode with this chunk, and return the anchor weights of the chunk."""
        state, anchor = self.states[index], self.states[index, :, 0] if index else self.anchor
        if index in self.schedule.fresh:
            for part in (state, anchor):
                zero_rows(part, self.schedule.fresh[index])
        return add_initial_weights(self.schedule, anchor, self.inputs.weight)

    def _recall(self, index: int, chunk: ChunkViews, anchor_weights: Float[Tensor, "R W W"]) -> None:
        """Compute the recalls of the memory, and their attention keys and values."""
        schedule, (batch, _, length, dim, *_) = self.schedule, self.schedule.sizes
        recalls, inverse = chunk.recalls, chunk.recall_inverse
        torch.bmm(chunk.recall_queries, anchor_weights, out=recalls)
        torch.mean(recalls * recalls, -1, keepdim=True, out=inverse)
        recalls.mul_(inverse.add_(READ_EPSILON).rsqrt_())
        products = torch.mm(chunk.recalls_by_step.reshape(-1, dim), self.recall_weights)
        key, value = products.view(batch, length, 2, *self.attention_shape[2:]).unbind(2)
        rotate_pairs(key, schedule.rotation, chunk.key_slots)
        chunk.value_slots.copy_(value)
        if index == 0 and schedule.cached_slots is not None:
            cached_keys = self.inputs.keys.index_select(2, schedule.pairs)
            for cache, old in ((self.keys, cached_keys), (self.values, self.inputs.values)):
                slots = cache[0][..., -2 * length :, :]
                old = old.reshape(batch, 2 * length, *self.attention_shape[2:]).transpose(1, 2)
                slots.copy_(torch.where(schedule.cached_slots, old, slots))

    def _attend(self, chunk: ChunkViews) -> None:
        """Compute the attention outputs plus the residual, and their layer norm."""
        inputs = self.inputs
        scores = torch.bmm(chunk.query, chunk.keys, out=chunk.scores).add_(self.schedule.hidden)
        scores.sub_(scores.amax(-1, keepdim=True)).exp2_()
        torch.sum(scores, -1, keepdim=True, out=chunk.total)
        torch.bmm(scores, chunk.values, out=chunk.read).div_(chunk.total)
        chunk.flat_by_head.copy_(chunk.read_by_step)
        torch.addmm(chunk.chunk_x, chunk.flat, inputs.out.T, out=chunk.attention_out)
        torch.ops.aten.native_layer_norm.out(
            chunk.attention_out,
            [chunk.attention_out.shape[1]],
            inputs.write_norm,
            inputs.write_norm_bias,
            NORM_EPS,
            out0=chunk.write_input,
            out1=chunk.write_mean,
            out2=chunk.write_deviation,
        )

    def _write(self, index: int, chunk: ChunkViews, anchor_weights: Tensor) -> tuple[Factors, Tensor]:
        """Write a chunk's attention outputs to the memory. Return the results of `_gate`."""
        inputs, after = self.inputs, chunk.after
        torch.mm(chunk.write_input, inputs.write.T, out=chunk.write_projection)
        torch.ops.aten.silu.out(chunk.write_projection_by_head, out=chunk.tokens_by_head)
        chunk.inverse.copy_(inverse_norm(chunk.units))
        chunk.units.mul_(chunk.inverse)
        factors, logs = self._gate(index, chunk)
        error = torch.baddbmm(chunk.value, chunk.key, anchor_weights, beta=-1, out=chunk.error)
        stack_multiples(
            chunk.key, factors.end_mixing[0] * chunk.step, factors.end_trace[0] * chunk.step, chunk.writes
        )
        torch.mul(chunk.state, factors.ends[0][..., None, None], out=after)
        after[:, 0].addcmul_(factors.end_buildup[0][:, None, None], chunk.state[:, 1])
        after.flatten(1, 2).baddbmm_(chunk.writes_transposed, error, alpha=-1)
        if index % _FLUSH_EVERY == _FLUSH_EVERY - 1 or index == self.schedule.sizes.chunks - 1:
            torch.hardshrink(after, NEGLIGIBLE, out=after)
        return factors, logs

    def _gate(self, index: int, chunk: ChunkViews) -> tuple[Factors, Tensor]:
        """Compute the step sizes of a chunk as in `NeuralMemory`.

        Return the `Factors` of the chunk, and the logarithms of its momentum and retention gates.
        """
        inputs, sizes, step = self.inputs, self.schedule.sizes, chunk.step
        logits = torch.addmm(inputs.gates_bias, chunk.write_input, inputs.gates.T)
        chunk.gate_values_by_step.copy_(logits.view(chunk.gate_values_by_step.shape))
        logs = chunk.gate_values[1:].clone()
        logs[1].neg_()
        logs = functional.logsigmoid(logs)
        logs[0].add_(math.log(sizes.max_momentum))
        gate_values = chunk.gate_values.sigmoid_()
        torch.mul(gate_values[1], -sizes.max_momentum * sizes.max_step, out=step).add_(sizes.max_step)
        step.mul_(gate_values[0])
        valid_steps = None if self.schedule.valid_steps is None else self.schedule.valid_steps[index]
        if valid_steps is not None:
            step.mul_(valid_steps)
            logs.mul_(valid_steps)
            valid_steps = valid_steps[None]
        return Factors.from_gates(logs[None, 1], logs[None, 0], valid_steps, sizes.read_before_write), logs

    def _read(self, factors: Factors) -> tuple[Tensor, ...]:
        """Return the memory's outputs for all chunks, and intermediate values for the backward pass."""
        schedule, states = self.schedule, self.states[:-1].flatten(2, 3).flatten(0, 1)
        query, key, _ = (part.flatten(0, 1) for part in self.tokens)
        error = self.error.flatten(0, 1)
        reads = torch.empty_like(self.writes)
        stack_multiples(self.tokens[0], factors.read_retention, factors.read_buildup, reads)
        y = apply_initial_weights(schedule, query, self.inputs.weight)
        y.baddbmm_(reads.flatten(0, 1), states)
        similarities = torch.bmm(query, key.mT)
        pair_weights = (factors.read_mixing * self.step[:, :, None]).flatten(0, 1)
        y.baddbmm_(similarities * pair_weights, error, alpha=-1)
        return y, reads, similarities, pair_weights

    def _final_state(self) -> tuple[Tensor, ...]:
        """Return the final state of the segment."""
        schedule, inputs, last = self.schedule, self.inputs, self.states[-1]
        delta = last[:, 0].clone()
        anchor = delta
        if schedule.anchor_chunk is not None:
            row = torch.arange(self.rows)
            anchor = torch.where(
                (schedule.anchor_chunk == 0)[:, None, None],
                self.anchor,
                self.states[schedule.anchor_chunk, row, 0],
            )
        else:
            anchor = delta.clone()
        memory_state = (x.view(inputs.delta.shape) for x in (delta, last[:, 1].clone(), anchor))
        caches = []
        for cache in (self.keys, self.values):
            if schedule.last is None:
                slots = cache[-1]
            else:
                slots = cache[schedule.last[0], torch.arange(schedule.sizes.batch)]
            slots = slots[..., schedule.sizes.persistent :, :]
            if schedule.last is not None:
                slots = torch.where(schedule.last[1], slots, 0)
            caches.append(slots.transpose(1, 2).reshape(inputs.keys.shape))
        return *memory_state, caches[0].index_select(2, schedule.inverse_pairs), caches[1]


def zero_rows(part: Float[Tensor, "R *rest"], rows: Int[Tensor, " some"]) -> None:
    """Fill these rows with zeros."""
    # Environments are often reset together, and zeroing everything is faster.
    part.zero_() if len(rows) == len(part) else part.index_fill_(0, rows, 0)


def add_initial_weights(
    schedule: Schedule, anchor: Float[Tensor, "R W W"], weight: Float[Tensor, "M W W"]
) -> Float[Tensor, "R W W"]:
    """Return the anchor weights: the initial weights `weight` plus the difference `anchor`."""
    return (anchor.unflatten(0, (-1, schedule.sizes.memories)) + weight).flatten(0, 1)


def apply_initial_weights(
    schedule: Schedule, x: Float[Tensor, "NR C W"], weight: Float[Tensor, "M W W"]
) -> Tensor:
    """Multiply tokens by the initial weights of their memory head."""
    if schedule.sizes.memories == 1:
        return (x.view(-1, x.shape[-1]) @ weight[0]).view(x.shape)
    return (x.unflatten(0, (-1, schedule.sizes.memories)) @ weight).flatten(0, 1)


def merge_heads(schedule: Schedule, x: Float[Tensor, "R C W"]) -> Float[Tensor, "steps D"]:
    """Return the vectors of a chunk's steps, with memory heads concatenated."""
    by_step = x.unflatten(0, (-1, schedule.sizes.memories)).transpose(1, 2)
    return by_step.reshape(-1, schedule.sizes.dim)


def stack_multiples(
    x: Float[Tensor, "*rows C W"], a: Float[Tensor, "*rows C"], b: Tensor, out: Float[Tensor, "*rows C two_W"]
) -> Float[Tensor, "*rows C two_W"]:
    """Write `x * a` and `x * b`, concatenated along the last axis, to `out`, and return `out`."""
    both = out.unflatten(-1, (2, -1))
    torch.mul(x, a[..., None], out=both[..., 0, :])
    torch.mul(x, b[..., None], out=both[..., 1, :])
    return out
