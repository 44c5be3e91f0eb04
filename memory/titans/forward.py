"""Forward pass of a layer of `TitansMAC` over a segment, chunk by chunk.

Attention depends on the memory's recalls, and the memory's writes depend on the attention outputs. Recalls,
attention and writes therefore run in a loop over chunks. A chunk takes about fifty operations in the loop.
The input projections run before the loop, and the reads of the memory after the loop, for all chunks at once.
`memory/titans/backward.py` is the backward pass.

Letters of dimensions:

- B batch, T steps, N chunks, C positions in a chunk, D width of the layer, P persistent tokens.
- Attention has H heads of width E, D = H * E, and S = P + 2 * C slots of keys.
- The memory has M heads of width W, D = M * W, and R = B * M networks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.neural.factors import Factors
from scrubjay.kernels.neural.loop import is_flush_due
from scrubjay.kernels.neural.network import NEGLIGIBLE
from scrubjay.memory.parts.attention import LOG2_E, read_values
from scrubjay.memory.parts.layers import inverse_norm
from scrubjay.memory.parts.rotary import rotate_pairs
from scrubjay.memory.titans.schedule import Schedule

NORM_EPS = 1e-5
READ_EPSILON = 1e-4


class SegmentInputs(NamedTuple):
    """Differentiable arguments of `backward.run_segment`: inputs, then the state, then parameters."""

    x: Float[Tensor, "B T D"]
    delta: Float[Tensor, "B M W*W"]
    momentum: Float[Tensor, "B M W*W"]
    anchor: Float[Tensor, "B M W*W"]
    keys: Float[Tensor, "B 2*C D"]
    values: Float[Tensor, "B 2*C D"]
    norm: Tensor
    norm_bias: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    persistent_keys: Float[Tensor, "P H still"]
    persistent_values: Float[Tensor, "P H E"]
    recall_query: Tensor
    recall_norm: Float[Tensor, " W"]
    recall_out: Tensor
    write_norm: Tensor
    write_norm_bias: Tensor
    write: Float[Tensor, "3*D D"]
    gates: Float[Tensor, "3*M D"]
    gates_bias: Float[Tensor, " 3*M"]
    weight: Float[Tensor, "M W W"]


class SegmentOutputs(NamedTuple):
    """Outputs of a segment. All except `squared_surprise` are differentiable."""

    attention_out: Float[Tensor, "B T D"]
    write_input: Float[Tensor, "B T D"]
    reads: Float[Tensor, "B T M W"]
    delta: Float[Tensor, "B M W*W"]
    momentum: Float[Tensor, "B M W*W"]
    anchor: Float[Tensor, "B M W*W"]
    keys: Float[Tensor, "B 2*C D"]
    values: Float[Tensor, "B 2*C D"]
    squared_surprise: Float[Tensor, "B T M"]
    """Squared length of the gradient that each step writes to each memory head."""


class Activations(NamedTuple):
    """Activations of all chunks that the forward pass saves for the backward pass. The first axis is N."""

    recall_projection: Float[Tensor, "N B*C D"]
    """Recall queries before the activation."""
    recall_queries: Float[Tensor, "N R C W"]
    recall_query_inverse: Float[Tensor, "N B M C 1"]
    query: Float[Tensor, "N B H C E"]
    keys: Float[Tensor, "N B H S E"]
    values: Float[Tensor, "N B H S E"]
    state: Float[Tensor, "N R 2 W W"]
    """Delta and momentum, stacked, at the start of every chunk."""
    recalls: Float[Tensor, "N R C W"]
    """Recalls after RMS normalization."""
    recall_inverse: Float[Tensor, "N R C 1"]
    scores: Float[Tensor, "N B*H C S"]
    """Unnormalized attention weights, as powers of 2."""
    total: Float[Tensor, "N B*H C 1"]
    read: Float[Tensor, "N B*H C E"]
    flat: Float[Tensor, "N B*C D"]
    attention_out: Float[Tensor, "N B*C D"]
    write_input: Float[Tensor, "N B*C D"]
    write_mean: Float[Tensor, "N B*C 1"]
    write_deviation: Float[Tensor, "N B*C 1"]
    write_projection: Float[Tensor, "N B*C 3*D"]
    """Queries, keys and values of the memory, before the activation."""
    tokens: Float[Tensor, "N 3 R C W"]
    """Queries, keys and values of the memory. Each query and each key has at most unit length."""
    inverse: Float[Tensor, "N 2 R C 1"]
    gate_values: Float[Tensor, "N 3 R C"]
    """Sigmoids of the gate logits."""
    step: Float[Tensor, "N R C"]
    logs: Float[Tensor, "N 2 R C"]
    """Logarithms of the momentum and retention gates."""
    error: Float[Tensor, "N R C W"]
    writes: Float[Tensor, "N R C 2*W"]
    reads: Float[Tensor, "N R C 2*W"]
    similarities: Float[Tensor, "N R C C"]
    pair_weights: Float[Tensor, "N R C C"]

    def by_chunk(self) -> list[Activations]:
        """Return the activations of each chunk, without the first axis."""
        return [Activations(*views) for views in zip(*(part.unbind() for part in self), strict=True)]


class Forward:
    """Forward pass over a segment. Call `run` to compute the outputs."""

    def __init__(self, schedule: Schedule, inputs: SegmentInputs) -> None:
        self.schedule, self.inputs = schedule, inputs

    def run(self) -> tuple[SegmentOutputs, list[Tensor]]:
        """Return the outputs of the segment, and the tensors from which `Backward` is made."""
        schedule, inputs, (batch, chunks, length, *_) = self.schedule, self.inputs, self.schedule.sizes
        norm_outputs, grid_x = self._project()
        a, rows, width = self.activations, schedule.sizes.rows, schedule.sizes.width
        self.states[0, :, 0] = inputs.delta.reshape(rows, width, width)
        self.states[0, :, 1] = inputs.momentum.reshape(rows, width, width)
        self.anchor = inputs.anchor.reshape(rows, width, width).clone()
        self.recall_weights = fold_recall_weights(schedule, inputs)[1].T
        factors = []
        for index, (chunk, chunk_x) in enumerate(zip(a.by_chunk(), grid_x, strict=True)):
            anchor_weights = self._start_chunk(index)
            self._recall(index, chunk, anchor_weights)
            self._attend(chunk, chunk_x)
            factors.append(self._write(index, chunk, anchor_weights))
        all_factors = Factors(*(torch.cat(parts) for parts in zip(*factors, strict=True)))
        y = self._read(all_factors)
        key, error = a.tokens[:, 1], a.error
        squared_surprise = (key * key).sum(-1).mul_((error * error).sum(-1))
        by_head = (y.view(chunks, batch, -1, length, width), squared_surprise.view(chunks, batch, -1, length))
        y, squared_surprise = (x.transpose(2, 3).flatten(0, 2).flatten(1) for x in by_head)
        attention_out, write_input, y, squared_surprise = (
            x.view(-1, x.shape[-1]).index_select(0, schedule.target).unflatten(0, (batch, -1))
            for x in (a.attention_out, a.write_input, y, squared_surprise)
        )
        read = attention_out, write_input, y.unflatten(2, (-1, width))
        outputs = SegmentOutputs._make([*read, *self._final_state(), squared_surprise])
        return outputs, [*norm_outputs, self.anchor, *a, *all_factors]

    def _project(self) -> tuple[tuple[Tensor, ...], Float[Tensor, "N steps D"]]:
        """Allocate the activations, project the inputs, and arrange them by chunk and position.

        Return the normed inputs with their mean and deviation, and the inputs by chunk.
        """
        schedule, inputs, (batch, chunks, length, dim, heads, rotary_width, persistent, *_) = (
            self.schedule,
            self.inputs,
            self.schedule.sizes,
        )
        rows, width = inputs.x.reshape(-1, dim), dim // heads
        norm_outputs = torch.native_layer_norm(rows, [dim], inputs.norm, inputs.norm_bias, NORM_EPS)
        weights = build_input_weights(schedule, inputs, width**-0.5 * LOG2_E)
        # One extra zero row for positions without a step.
        parts = rows.new_empty(len(rows) + 1, 5 * dim)
        torch.mm(norm_outputs[0], weights.T, out=parts[:-1, : 4 * dim])
        parts[:-1, 4 * dim :] = rows
        parts[-1] = 0
        grid_parts = parts.index_select(0, schedule.source).view(chunks, batch * length, 5 * dim)
        *_, recall_projection, grid_x = grid_parts.split(dim, dim=2)
        a = self.activations = self._allocate(recall_projection)
        by_head = grid_parts.view(chunks, batch, length, 5, heads, width)
        rotate_pairs(by_head[:, :, :, 0], schedule.rotation, a.query.transpose(2, 3))
        input_slots = slice(persistent, persistent + length)
        rotate_pairs(by_head[:, :, :, 1], schedule.rotation, a.keys[..., input_slots, :].transpose(2, 3))
        a.values[..., input_slots, :] = by_head[:, :, :, 2].transpose(2, 3)
        if persistent:
            a.keys[..., :persistent, :rotary_width] = 0
            a.keys[..., :persistent, rotary_width:] = inputs.persistent_keys.transpose(0, 1)
            a.values[..., :persistent, :] = inputs.persistent_values.transpose(0, 1)
        # Recall queries are scaled to just below unit length.
        active = functional.silu(recall_projection).view(chunks, batch, length, -1, schedule.sizes.width)
        active = active.transpose(2, 3)
        a.recall_query_inverse.copy_(inverse_norm(active))
        torch.mul(active, a.recall_query_inverse, out=a.recall_queries.view(active.shape))
        return norm_outputs, grid_x

    def _allocate(self, recall_projection: Tensor) -> Activations:
        """Return uninitialized activations of all chunks."""
        sizes, new = self.schedule.sizes, self.inputs.x.new_empty
        (batch, chunks, length, dim, heads, _, persistent, memories, *_), rows, width = (
            sizes,
            sizes.rows,
            sizes.width,
        )
        steps, slots, networks = batch * length, persistent + 2 * length, (chunks, rows, length)
        by_head, attention_width = (chunks, batch, heads), dim // heads
        read_shape = (chunks, batch * heads, length)
        self.states = new(chunks + 1, rows, 2, width, width)
        return Activations(
            recall_projection,
            recall_queries=new(*networks, width),
            recall_query_inverse=new(chunks, batch, memories, length, 1),
            query=new(*by_head, length, attention_width),
            keys=new(*by_head, slots, attention_width),
            values=new(*by_head, slots, attention_width),
            state=self.states[:-1],
            recalls=new(*networks, width),
            recall_inverse=new(*networks, 1),
            scores=new(*read_shape, slots),
            total=new(*read_shape, 1),
            read=new(*read_shape, attention_width),
            flat=new(chunks, steps, dim),
            attention_out=new(chunks, steps, dim),
            write_input=new(chunks, steps, dim),
            write_mean=new(chunks, steps, 1),
            write_deviation=new(chunks, steps, 1),
            write_projection=new(chunks, steps, 3 * dim),
            # Stored by kind, so that the tokens of all chunks are one block.
            tokens=new(3, *networks, width).transpose(0, 1),
            inverse=new(2, *networks, 1).transpose(0, 1),
            gate_values=new(chunks, 3, rows, length),
            step=new(networks),
            logs=new(chunks, 2, rows, length),
            error=new(*networks, width),
            writes=new(*networks, 2 * width),
            reads=new(*networks, 2 * width),
            similarities=new(*networks, length),
            pair_weights=new(*networks, length),
        )

    def _start_chunk(self, index: int) -> Float[Tensor, "R W W"]:
        """Reset rows that start an episode with this chunk, and return the anchor weights of the chunk."""
        state, anchor = self.states[index], self.states[index, :, 0] if index else self.anchor
        if index in self.schedule.fresh:
            for part in (state, anchor):
                zero_rows(part, self.schedule.fresh[index])
        return add_initial_weights(self.schedule, anchor, self.inputs.weight)

    def _recall(self, index: int, chunk: Activations, anchor_weights: Float[Tensor, "R W W"]) -> None:
        """Compute the recalls of the memory, and their attention keys and values."""
        schedule, (batch, _, length, _, heads, *_) = self.schedule, self.schedule.sizes
        recalls, inverse = chunk.recalls, chunk.recall_inverse
        torch.bmm(chunk.recall_queries, anchor_weights, out=recalls)
        torch.mean(recalls * recalls, -1, keepdim=True, out=inverse)
        recalls.mul_(inverse.add_(READ_EPSILON).rsqrt_())
        products = torch.mm(merge_heads(schedule, recalls), self.recall_weights)
        key, value = products.view(batch, length, 2, heads, -1).unbind(2)
        key_slots, value_slots = (x[..., -length:, :].transpose(1, 2) for x in (chunk.keys, chunk.values))
        rotate_pairs(key, schedule.rotation, key_slots)
        value_slots.copy_(value)
        if index == 0 and schedule.cached_slots is not None:
            cached_keys = self.inputs.keys.index_select(2, schedule.pairs)
            for cache, old in ((chunk.keys, cached_keys), (chunk.values, self.inputs.values)):
                slots = cache[..., -2 * length :, :]
                old = old.reshape(batch, 2 * length, heads, -1).transpose(1, 2)
                slots.copy_(torch.where(schedule.cached_slots, old, slots))

    def _attend(self, chunk: Activations, chunk_x: Float[Tensor, "steps D"]) -> None:
        """Compute the attention outputs plus the residual, and their layer norm."""
        inputs, batch = self.inputs, self.schedule.sizes.batch
        query, keys, values = (part.flatten(0, 1) for part in (chunk.query, chunk.keys, chunk.values))
        torch.bmm(query, keys.mT, out=chunk.scores).add_(self.schedule.hidden)
        read_values(chunk.scores, values, chunk.total, chunk.read)
        read_by_step = chunk.read.unflatten(0, (batch, -1)).transpose(1, 2)
        chunk.flat.view(read_by_step.shape).copy_(read_by_step)
        torch.addmm(chunk_x, chunk.flat, inputs.out.T, out=chunk.attention_out)
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

    def _write(self, index: int, chunk: Activations, anchor_weights: Tensor) -> Factors:
        """Write a chunk's attention outputs to the memory, and return the `Factors` of the chunk."""
        inputs, sizes, after = self.inputs, self.schedule.sizes, self.states[index + 1]
        torch.mm(chunk.write_input, inputs.write.T, out=chunk.write_projection)
        by_head = chunk.write_projection.view(sizes.memory_shape).permute(2, 0, 3, 1, 4)
        torch.ops.aten.silu.out(by_head, out=chunk.tokens.view(by_head.shape))
        units = chunk.tokens[:2]
        chunk.inverse.copy_(inverse_norm(units))
        units.mul_(chunk.inverse)
        _, key, value = chunk.tokens
        factors = self._gate(index, chunk)
        error = torch.baddbmm(value, key, anchor_weights, beta=-1, out=chunk.error)
        stack_multiples(
            key, factors.end_mixing[0] * chunk.step, factors.end_trace[0] * chunk.step, chunk.writes
        )
        torch.mul(chunk.state, factors.ends[0][..., None, None], out=after)
        after[:, 0].addcmul_(factors.end_buildup[0][:, None, None], chunk.state[:, 1])
        after.flatten(1, 2).baddbmm_(chunk.writes.mT, error, alpha=-1)
        if is_flush_due(index, sizes.chunks):
            torch.hardshrink(after, NEGLIGIBLE, out=after)
        return factors

    def _gate(self, index: int, chunk: Activations) -> Factors:
        """Compute the step sizes of a chunk as in `NeuralMemory`, and return the `Factors` of the chunk."""
        inputs, sizes, step, logs = self.inputs, self.schedule.sizes, chunk.step, chunk.logs
        logits = torch.addmm(inputs.gates_bias, chunk.write_input, inputs.gates.T)
        logits = logits.view(sizes.batch, sizes.length, 3, sizes.memories).permute(2, 0, 3, 1)
        chunk.gate_values.view(logits.shape).copy_(logits)
        logs.copy_(chunk.gate_values[1:])
        logs[1].neg_()
        logs.copy_(functional.logsigmoid(logs))
        logs[0].add_(math.log(sizes.max_momentum))
        gate_values = chunk.gate_values.sigmoid_()
        torch.mul(gate_values[1], -sizes.max_momentum * sizes.max_step, out=step).add_(sizes.max_step)
        step.mul_(gate_values[0])
        valid_steps = None if self.schedule.valid_steps is None else self.schedule.valid_steps[index]
        if valid_steps is not None:
            step.mul_(valid_steps)
            logs.mul_(valid_steps)
            valid_steps = valid_steps[None]
        return Factors.from_gates(logs[None, 1], logs[None, 0], valid_steps, sizes.read_before_write)

    def _read(self, factors: Factors) -> Float[Tensor, "NR C W"]:
        """Return the memory's outputs for all chunks."""
        schedule, a = self.schedule, self.activations
        query, key = (a.tokens[:, kind].flatten(0, 1) for kind in (0, 1))
        states, error = a.state.flatten(2, 3).flatten(0, 1), a.error.flatten(0, 1)
        stack_multiples(a.tokens[:, 0], factors.read_retention, factors.read_buildup, a.reads)
        y = apply_initial_weights(schedule, query, self.inputs.weight)
        y.baddbmm_(a.reads.flatten(0, 1), states)
        torch.bmm(query, key.mT, out=a.similarities.flatten(0, 1))
        torch.mul(factors.read_mixing, a.step[:, :, None], out=a.pair_weights)
        return y.baddbmm_((a.similarities * a.pair_weights).flatten(0, 1), error, alpha=-1)

    def _final_state(self) -> tuple[Tensor, ...]:
        """Return the final state of the segment."""
        schedule, inputs, a, last = self.schedule, self.inputs, self.activations, self.states[-1]
        delta = last[:, 0].clone()
        anchor = delta
        if schedule.anchor_chunk is not None:
            row = torch.arange(schedule.sizes.rows)
            anchor = torch.where(
                (schedule.anchor_chunk == 0)[:, None, None],
                self.anchor,
                self.states[schedule.anchor_chunk, row, 0],
            )
        else:
            anchor = delta.clone()
        memory_state = (x.view(inputs.delta.shape) for x in (delta, last[:, 1].clone(), anchor))
        caches = []
        for cache in (a.keys, a.values):
            if schedule.last is None:
                slots = cache[-1]
            else:
                slots = cache[schedule.last[0], torch.arange(schedule.sizes.batch)]
            slots = slots[..., schedule.sizes.persistent :, :]
            if schedule.last is not None:
                slots = torch.where(schedule.last[1], slots, 0)
            caches.append(slots.transpose(1, 2).reshape(inputs.keys.shape))
        return *memory_state, caches[0].index_select(2, schedule.inverse_pairs), caches[1]


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
