"""Custom backward pass of `memory/titans/forward.py`.

The pass has three parts. The first goes through the reads of the memory, for all chunks at once. The second
is the recurrence over chunks, from the last to the first. The third goes through the input projections and
computes the gradients of weights, for all chunks at once.

`memory/titans/chunks.py` defines the dimension letters. A name `grad_x` is the gradient with respect to x.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.kernels.neural.factors import Factors
from scrubjay.kernels.neural.network import silu_slope
from scrubjay.memory.parts.rotary import rotate_pairs
from scrubjay.memory.titans.chunks import Activations, SegmentInputs
from scrubjay.memory.titans.forward import (
    add_initial_weights,
    apply_initial_weights,
    build_input_weights,
    fold_recall_weights,
    merge_heads,
    zero_rows,
)
from scrubjay.memory.titans.schedule import Schedule


class Backward:
    """Backward pass over a segment. Call `run` to compute the gradients.

    Args:
        schedule: Schedule of the segment.
        inputs: Inputs of the forward pass.
        activations: Activations of the forward pass.
        grads: Gradients of all outputs except `squared_surprise`; None for an output without a gradient.
    """

    def __init__(
        self,
        schedule: Schedule,
        inputs: SegmentInputs,
        activations: Activations,
        grads: Sequence[Tensor | None],
    ) -> None:
        self.schedule, self.inputs, self.activations, self.grads = schedule, inputs, activations, grads
        sizes = schedule.sizes
        self.rows, self.width = sizes.batch * sizes.memories, sizes.dim // sizes.memories
        self.attention_shape = (sizes.batch, sizes.length, sizes.heads, sizes.dim // sizes.heads)
        self.memory_shape = (sizes.batch, sizes.length, 3, sizes.memories, self.width)
        self.factors = Factors(*activations.factors)

    def run(self, needs_state_grad: bool) -> list[Tensor | None]:
        """Return the gradients of all inputs. Without `needs_state_grad`, the state has no gradients."""
        self._arrange_output_grads()
        self._allocate()
        self._backward_reads()
        after = self._last_boundary()
        for index in reversed(range(self.schedule.sizes.chunks)):
            after = self._backward_chunk(index, after)
        state = self._differentiate_state(after) if needs_state_grad and after is not None else [None] * 5
        activations, inputs, (_, _, _, dim, _, rotary_width, persistent, *_) = (
            self.activations,
            self.inputs,
            self.schedule.sizes,
        )
        x, norm, norm_bias, query, key, value, recall_query = self._backward_inputs()
        grad_recall_out, other_key, other_value = self._differentiate_recalls()
        grad_norm = (grad_recall_out * inputs.recall_out).view(dim, -1, self.width).sum((0, 1))
        write_input = activations.write_input.view(-1, dim)
        return [
            x,
            *state,
            norm,
            norm_bias,
            query,
            key + other_key,
            value + other_value,
            self.grad_grid[:, 4 * dim :].T @ activations.flat.view(-1, dim),
            self.grad_keys[..., :persistent, rotary_width:].sum((0, 1)).transpose(0, 1),
            self.grad_values[..., :persistent, :].sum((0, 1)).transpose(0, 1),
            recall_query,
            grad_norm,
            grad_recall_out * inputs.recall_norm.repeat(self.schedule.sizes.memories),
            *self.grad_norm,
            self.grad_write_projection.flatten(0, 1).T @ write_input,
            self.grad_logits.flatten(0, 1).T @ write_input,
            self.grad_logits.sum((0, 1)),
            self._differentiate_weight(),
        ]

    def _arrange_output_grads(self) -> None:
        """Arrange the gradients of the per-step outputs by chunk and position."""
        (batch, chunks, length, dim, *_), steps = self.schedule.sizes, len(self.schedule.target)
        parts = self.inputs.x.new_empty(steps + 1, 3 * dim)
        for place, grad in enumerate(self.grads[:3]):
            columns = parts[:-1, place * dim : (place + 1) * dim]
            columns.zero_() if grad is None else columns.copy_(grad.reshape(steps, dim))
        parts[-1] = 0
        grid_parts = parts.index_select(0, self.schedule.source).view(chunks, batch * length, 3 * dim)
        self.outer_grad_attention_out, self.outer_grad_write_input, grad_y = grid_parts.split(dim, dim=2)
        by_head = grad_y.reshape(chunks, batch, length, -1, self.width).transpose(2, 3)
        self.grad_y = by_head.reshape(chunks, self.rows, length, self.width)

    def _allocate(self) -> None:
        """Allocate the gradients of all chunks."""
        activations, inputs, (batch, chunks, length, dim, *_) = (
            self.activations,
            self.inputs,
            self.schedule.sizes,
        )
        new, steps = inputs.x.new_empty, batch * length
        self.grad_grid = new(chunks * steps, 5 * dim)
        self.grad_query = torch.empty_like(activations.query)
        self.grad_keys, self.grad_values = (
            torch.empty_like(activations.keys),
            torch.empty_like(activations.values),
        )
        self.outer_grad_slots = self._arrange_cache_grads()
        self.grad_products = new(chunks, steps, 2 * dim)
        self.grad_recall_queries = torch.empty_like(activations.recall_queries)
        self.grad_write_projection = torch.empty_like(activations.write_projection)
        self.grad_logits = new(chunks, steps, 3 * self.schedule.sizes.memories)
        self.grad_norm: list[Tensor] = [
            torch.zeros_like(x) for x in (inputs.write_norm, inputs.write_norm_bias)
        ]
        self.grad_weight = torch.zeros_like(activations.anchor)
        self.slope = silu_slope(activations.write_projection)
        self.recall_projection_weights, self.recall_weights = fold_recall_weights(self.schedule, inputs)
        self.inverse_rotation = self.schedule.rotation.conj().resolve_conj()
        # Gradients at two successive chunk boundaries, used alternately.
        self.boundary_grads = new(2, self.rows, 2, self.width, self.width)
        self.anchor_buffer = torch.empty_like(activations.anchor)

    def _arrange_cache_grads(self) -> list[Tensor | None]:
        """Return the gradients of keys and values from the final caches; None if a cache has no gradient."""
        results: list[Tensor | None] = []
        for grad in self.grads[6:8]:
            if grad is None:
                results.append(None)
                continue
            batch, length, heads, width = self.attention_shape
            grad = grad.index_select(2, self.schedule.pairs) if not results else grad
            slots = grad.reshape(batch, 2 * length, heads, width).transpose(1, 2)
            whole = torch.zeros_like(self.activations.keys)
            behind = whole[..., self.schedule.sizes.persistent :, :]
            if self.schedule.last is None:
                behind[-1] = slots
            else:
                behind[self.schedule.last[0], torch.arange(batch)] = torch.where(
                    self.schedule.last[1], slots, 0
                )
            results.append(whole)
        return results

    def _backward_reads(self) -> None:
        """Backpropagate through the outputs `y` of the memory, for all chunks at once."""
        activations, factors, schedule = self.activations, self.factors, self.schedule
        query, key, _ = (part.flatten(0, 1) for part in activations.tokens)
        error, grad = activations.error.flatten(0, 1), self.grad_y.flatten(0, 1)
        grad_error = torch.bmm((activations.pair_weights * activations.similarities).mT, grad).neg_()
        grad_pair_product = torch.bmm(grad, error.mT).neg_()
        grad_similarities = grad_pair_product * activations.pair_weights
        grad_mixed = grad_pair_product.mul_(activations.similarities).view_as(factors.read_mixing)
        self.grad_step = (grad_mixed * factors.read_mixing).sum(-2)
        self.grad_mixed = grad_mixed.mul_(activations.step[:, :, None])
        self.grad_tokens = torch.empty_like(activations.tokens)
        grad_query, grad_key, _ = self.grad_tokens
        product = apply_initial_weights(schedule, grad, self.inputs.weight.mT).baddbmm_(
            grad_similarities, key
        )
        grad_reads = torch.bmm(grad, activations.states[:-1].flatten(2, 3).flatten(0, 1).mT).view_as(
            activations.reads
        )
        a, b = grad_reads.chunk(2, dim=-1)
        torch.addcmul(product.view_as(a), a, factors.read_retention[..., None], out=grad_query)
        grad_query.addcmul_(b, factors.read_buildup[..., None])
        self.grad_read_retention, self.grad_read_buildup = (
            (part * activations.tokens[0]).sum(-1) for part in (a, b)
        )
        grad_key.copy_(torch.bmm(grad_similarities.mT, query).view_as(a))
        self.grad_error = grad_error.view_as(activations.error)

    def _last_boundary(self) -> Tensor | None:
        """Return the gradient of the memory after the last chunk; None if there is no such gradient."""
        grad_delta, grad_momentum, grad_anchor = self.grads[3:6]
        self.grad_anchor = None
        if grad_anchor is not None:
            grad_anchor = grad_anchor.reshape(self.anchor_buffer.shape)
            if self.schedule.anchor_chunk is not None:
                self.grad_anchor, grad_anchor = (
                    grad_anchor,
                    grad_anchor.masked_fill(
                        (self.schedule.anchor_chunk != self.schedule.sizes.chunks)[:, None, None], 0
                    ),
                )
        if grad_delta is None and grad_momentum is None and grad_anchor is None:
            return None
        after = self.boundary_grads[self.schedule.sizes.chunks % 2].zero_()
        for place, grad in ((0, grad_delta), (1, grad_momentum), (0, grad_anchor)):
            if grad is not None:
                after[:, place] += grad.reshape(self.anchor_buffer.shape)
        return after

    def _backward_chunk(self, index: int, after: Tensor | None) -> Tensor:
        """Backpropagate through a chunk.

        `after` is the gradient of the memory after the chunk. Return the gradient of the memory before the
        chunk.
        """
        activations, inputs, schedule = self.activations, self.inputs, self.schedule
        anchor = activations.states[index, :, 0] if index else activations.anchor
        anchor_weights = add_initial_weights(schedule, anchor, inputs.weight)
        before = self.boundary_grads[index % 2]
        grad_ends = self._backward_boundary(index, before, after)
        grad_anchor = self._backward_writes(index, anchor_weights, grad_ends)
        self._backward_attention(index)
        self._backward_recall(index, anchor_weights, grad_anchor)
        self.grad_weight += grad_anchor
        if index:
            before[:, 0] += grad_anchor
        else:
            self.grad_first_anchor = grad_anchor
        if self.grad_anchor is not None:
            anchor_grad = self.grad_anchor.masked_fill((schedule.anchor_chunk != index)[:, None, None], 0)
            (before[:, 0] if index else grad_anchor).add_(anchor_grad)
        if index in schedule.gradient_stops:
            zero_rows(before, schedule.gradient_stops[index])
            if not index:
                zero_rows(grad_anchor, schedule.gradient_stops[index])
        return before

    def _backward_boundary(self, index: int, before: Tensor, after: Tensor | None) -> Tensor:
        """Backpropagate from the memory after a chunk to the memory before the chunk and to the writes.

        `after` is the gradient of the memory after the chunk. Store the gradient of the memory before the
        chunk in `before`, without the contribution of the anchor. Store the gradient of the writes in
        `grad_writes`. Return the gradients `[R, 2, 2]`, for R networks, of the factors that map delta and
        momentum before the chunk to delta and momentum after the chunk.
        """
        activations, factors = self.activations, self.factors
        flat, reads, grad_y = before.flatten(1, 2), activations.reads[index].mT, self.grad_y[index]
        if after is None:
            torch.bmm(reads, grad_y, out=flat)
            self.grad_writes = torch.zeros_like(activations.writes[index])
            return before.new_zeros(self.rows, 2, 2)
        stacked_after, error = after.flatten(1, 2), self.grad_error[index]
        error.baddbmm_(activations.writes[index], stacked_after, alpha=-1)
        self.grad_writes = torch.bmm(activations.error[index], stacked_after.mT).neg_()
        grad_ends = torch.bmm(after.flatten(2), activations.states[index].flatten(2).mT)
        torch.mul(after, factors.ends[index][..., None, None], out=before)
        before[:, 1].addcmul_(factors.end_buildup[index][:, None, None], after[:, 0])
        flat.baddbmm_(reads, grad_y)
        return grad_ends

    def _backward_writes(
        self, index: int, anchor_weights: Tensor, grad_ends: Tensor
    ) -> Float[Tensor, "R W W"]:
        """Backpropagate through a chunk's writes, and return the gradient of the anchor weights."""
        activations, factors, step = self.activations, self.factors, self.activations.step[index]
        key = activations.tokens[1, index]
        grad_key, grad_value = self.grad_tokens[1:, index]
        end_mixing, end_trace = factors.end_mixing[index], factors.end_trace[index]
        a, b = self.grad_writes.chunk(2, dim=-1)
        grad_key.addcmul_(a, (end_mixing * step)[..., None]).addcmul_(b, (end_trace * step)[..., None])
        grad_mixed, grad_trace = (a * key).sum(-1), (b * key).sum(-1)
        grad_step = self.grad_step[index].addcmul_(grad_mixed, end_mixing).addcmul_(grad_trace, end_trace)
        grad_error = self.grad_error[index]
        grad_key.baddbmm_(grad_error, anchor_weights.mT)
        grad_anchor = torch.bmm(key.mT, grad_error, out=self.anchor_buffer)
        torch.neg(grad_error, out=grad_value)
        chunk_slice = slice(index, index + 1)
        momentum, retention = activations.logs[index]
        grad_logs = Factors(*(x[chunk_slice] for x in factors)).backward(
            retention[None],
            momentum[None],
            self.schedule.sizes.read_before_write,
            self.grad_read_retention[chunk_slice],
            self.grad_read_buildup[chunk_slice],
            self.grad_mixed[chunk_slice],
            (grad_mixed * step)[None],
            (grad_trace * step)[None],
            grad_ends[None],
        )
        self._backward_gates(index, grad_step, *grad_logs)
        self._backward_tokens(index)
        self._backward_norm(index)
        return grad_anchor

    def _backward_gates(
        self, index: int, grad_step: Tensor, grad_momentum: Tensor, grad_retention: Tensor
    ) -> None:
        """Compute the gradients of the gate logits of a chunk."""
        sizes, gate_values, step = (
            self.schedule.sizes,
            self.activations.gate_values[index],
            self.activations.step[index],
        )
        grad_logits = torch.empty_like(gate_values)
        complement = 1 - gate_values[:2]
        torch.mul(grad_step * step, complement[0], out=grad_logits[0])
        scale = -sizes.max_step * sizes.max_momentum
        torch.mul(grad_step * gate_values[0], gate_values[1], out=grad_logits[1]).mul_(scale).add_(
            grad_momentum[0]
        )
        grad_logits[1].mul_(complement[1])
        torch.mul(grad_retention[0], gate_values[2], out=grad_logits[2]).neg_()
        if self.schedule.valid_steps is not None:
            grad_logits.mul_(self.schedule.valid_steps[index])
        logits_by_step = grad_logits.view(3, sizes.batch, -1, sizes.length).permute(1, 3, 0, 2)
        self.grad_logits[index].view(logits_by_step.shape).copy_(logits_by_step)

    def _backward_tokens(self, index: int) -> None:
        """Compute the gradients of the memory's projected queries, keys and values in a chunk."""
        unit, grad = self.activations.tokens[:2, index], self.grad_tokens[:2, index]
        radial = (unit * grad).sum(-1, keepdim=True)
        grad.addcmul_(unit, radial, value=-1).mul_(self.activations.inverse[:, index])
        batch, length, _, memories, width = self.memory_shape
        by_head = self.grad_tokens[:, index].view(3, batch, memories, length, width).permute(1, 3, 0, 2, 4)
        out = self.grad_write_projection[index].view(self.memory_shape)
        torch.mul(by_head, self.slope[index].view(self.memory_shape), out=out)

    def _backward_norm(self, index: int) -> None:
        """Backpropagate through the layer norm that follows a chunk's attention outputs."""
        inputs, activations, dim = self.inputs, self.activations, self.schedule.sizes.dim
        grad_write_input = torch.addmm(
            self.outer_grad_write_input[index], self.grad_write_projection[index], inputs.write
        )
        grad_write_input.addmm_(self.grad_logits[index], inputs.gates)
        grad_attention_out, *grad_norm = torch.ops.aten.native_layer_norm_backward(
            grad_write_input,
            activations.attention_out[index],
            [dim],
            activations.write_mean[index],
            activations.write_deviation[index],
            inputs.write_norm,
            inputs.write_norm_bias,
            [True, True, True],
        )
        for whole, part in zip(self.grad_norm, grad_norm, strict=True):
            whole += part
        out = self.grad_grid.unflatten(0, (self.schedule.sizes.chunks, -1))[index, :, 4 * dim :]
        self.grad_attention_out = torch.add(grad_attention_out, self.outer_grad_attention_out[index], out=out)

    def _backward_attention(self, index: int) -> None:
        """Backpropagate through a chunk's attention to its queries, keys and values."""
        activations = self.activations
        grad_flat = (
            torch.mm(self.grad_attention_out, self.inputs.out).view(self.attention_shape).transpose(1, 2)
        )
        grad_read = grad_flat.reshape(activations.read[index].shape).div_(activations.total[index])
        keys, values = activations.keys[index].flatten(0, 1), activations.values[index].flatten(0, 1)
        query, scores = activations.query[index].flatten(0, 1), activations.scores[index]
        grad_scores = torch.bmm(grad_read, values.mT)
        grad_scores.sub_((grad_read * activations.read[index]).sum(-1, keepdim=True)).mul_(scores)
        torch.bmm(grad_scores, keys, out=self.grad_query[index].flatten(0, 1))
        torch.bmm(grad_scores.mT, query * math.log(2), out=self.grad_keys[index].flatten(0, 1))
        torch.bmm(scores.mT, grad_read, out=self.grad_values[index].flatten(0, 1))
        for whole, part in zip((self.grad_keys, self.grad_values), self.outer_grad_slots, strict=True):
            if part is not None:
                whole[index] += part[index]

    def _backward_recall(self, index: int, anchor_weights: Tensor, grad_anchor: Tensor) -> None:
        """Backpropagate through a chunk's recalls, and add their contribution to `grad_anchor`."""
        activations, schedule, (batch, length, heads, width) = (
            self.activations,
            self.schedule,
            self.attention_shape,
        )
        grads = [x[index, ..., schedule.sizes.persistent :, :] for x in (self.grad_keys, self.grad_values)]
        if index == 0 and schedule.cached_slots is not None:
            self.grad_cached_slots = [torch.where(schedule.cached_slots, grad, 0) for grad in grads]
            for grad in grads:
                grad.masked_fill_(schedule.cached_slots, 0)
        grad_key, grad_value = (grad[..., length:, :].transpose(1, 2) for grad in grads)
        grad_products = self.grad_products[index].view(batch, length, 2, heads, width)
        rotate_pairs(grad_key, self.inverse_rotation, grad_products[:, :, 0])
        grad_products[:, :, 1] = grad_value
        grad_unit = torch.mm(self.grad_products[index], self.recall_weights).view(
            batch, length, -1, self.width
        )
        grad = grad_unit.transpose(1, 2).reshape(activations.recalls[index].shape)
        unit = activations.recalls[index]
        radial = (unit * grad).mean(-1, keepdim=True)
        grad = torch.addcmul(grad, unit, radial, value=-1).mul_(activations.recall_inverse[index])
        torch.bmm(grad, anchor_weights.mT, out=self.grad_recall_queries[index])
        grad_anchor.baddbmm_(activations.recall_queries[index].mT, grad)

    def _differentiate_state(self, before: Tensor) -> list[Tensor | None]:
        """Return the gradients of the initial state."""
        inputs = self.inputs
        memory_grads = [before[:, 0].clone(), before[:, 1].clone(), self.grad_first_anchor]
        results: list[Tensor | None] = [x.reshape(inputs.delta.shape) for x in memory_grads]
        if self.schedule.cached_slots is None:
            return [*results, torch.zeros_like(inputs.keys), torch.zeros_like(inputs.values)]
        keys, values = (x.transpose(1, 2).reshape(inputs.keys.shape) for x in self.grad_cached_slots)
        return [*results, keys.index_select(2, self.schedule.inverse_pairs), values]

    def _backward_inputs(self) -> tuple[Tensor, ...]:
        """Return the gradients of the inputs, of the norm's parameters and of the projection weights."""
        schedule, inputs, activations, (batch, chunks, length, dim, heads, _, persistent, *_) = (
            self.schedule,
            self.inputs,
            self.activations,
            self.schedule.sizes,
        )
        input_slots = slice(persistent, persistent + length)
        steps = self.grad_grid.view(chunks * batch, length, 5, dim)
        by_head = steps.view(chunks, batch, length, 5, heads, -1)
        for place, grad in enumerate((self.grad_query, self.grad_keys[..., input_slots, :])):
            rotate_pairs(grad.transpose(2, 3), self.inverse_rotation, by_head[:, :, :, place])
        by_head[:, :, :, 2] = self.grad_values[..., input_slots, :].transpose(2, 3)
        unit = activations.recall_queries
        radial = (unit * self.grad_recall_queries).sum(-1, keepdim=True)
        inverse = activations.recall_query_inverse.flatten(1, 2)
        grad_recall_projection = torch.addcmul(self.grad_recall_queries, unit, radial, value=-1).mul_(inverse)
        grad_recall_projection = grad_recall_projection.view(chunks, batch, -1, length, self.width).transpose(
            2, 3
        )
        slope = silu_slope(activations.recall_projection).view(grad_recall_projection.shape)
        out = steps[:, :, 3].unflatten(-1, (-1, self.width)).unflatten(0, (chunks, batch))
        torch.mul(grad_recall_projection, slope, out=out)
        grad_by_step = self.grad_grid.index_select(0, schedule.target)
        grad_projections, grad_rows = grad_by_step.split([4 * dim, dim], dim=1)
        scale = (dim // heads) ** -0.5
        grad_x, grad_norm, grad_bias = torch.ops.aten.native_layer_norm_backward(
            grad_projections @ build_input_weights(schedule, inputs, scale),
            inputs.x.reshape(-1, dim),
            [dim],
            activations.mean,
            activations.deviation,
            inputs.norm,
            inputs.norm_bias,
            [True, True, True],
        )
        grad_query, grad_key, *others = (grad_projections.T @ activations.normed_x).split(dim)
        grad_query, grad_key = (
            grad.index_select(0, schedule.inverse_pairs) for grad in (grad_query * scale, grad_key)
        )
        return (grad_x + grad_rows).view(inputs.x.shape), grad_norm, grad_bias, grad_query, grad_key, *others

    def _differentiate_recalls(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient of the recall projection, and gradients of the key and value weights.

        The gradients of the key and value weights only include the contribution of the recalls.
        """
        inputs, dim = self.inputs, self.schedule.sizes.dim
        units = merge_heads(self.schedule, self.activations.recalls.flatten(0, 1))
        grad_recall_weights = self.grad_products.flatten(0, 1).T @ units
        grad_key, grad_value = (grad_recall_weights @ self.recall_projection_weights.T).split(dim)
        both = torch.cat([inputs.key.index_select(0, self.schedule.pairs), inputs.value])
        return both.T @ grad_recall_weights, grad_key.index_select(0, self.schedule.inverse_pairs), grad_value

    def _differentiate_weight(self) -> Float[Tensor, "M W W"]:
        """Return the gradient of the memory's initial weights."""
        memories = self.schedule.sizes.memories
        grad_anchors = self.grad_weight.unflatten(0, (-1, memories)).sum(0)
        query, grad = (
            x.unflatten(1, (-1, memories)).permute(2, 0, 1, 3, 4).reshape(memories, -1, self.width)
            for x in (self.activations.tokens[0], self.grad_y)
        )
        return grad_anchors.baddbmm_(query.mT, grad)
