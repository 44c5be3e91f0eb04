"""Custom backward pass of `memory/titans/forward.py`.

The pass has three parts. The first goes through the reads of the memory, for all chunks at once. The second
is the recurrence over chunks, from the last to the first. The third goes through the input projections and
computes the gradients of weights, for all chunks at once.

For second derivatives, and for tensors that the custom pass does not support (such as tensors on a GPU), the
layer's `forward` runs with torch's autograd.

`memory/titans/forward.py` defines the dimension letters. A name `grad_x` is the gradient with respect to x.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from scrubjay.kernels.derivatives import run_custom
from scrubjay.kernels.neural.factors import Factors
from scrubjay.kernels.neural.network import silu_slope
from scrubjay.memory.parts.attention import differentiate_read
from scrubjay.memory.parts.rotary import rotate_pairs
from scrubjay.memory.titans.forward import (
    Activations,
    Forward,
    SegmentInputs,
    SegmentOutputs,
    add_initial_weights,
    apply_initial_weights,
    build_input_weights,
    fold_recall_weights,
    merge_heads,
    zero_rows,
)
from scrubjay.memory.titans.schedule import Schedule

_NUM_ACTIVATIONS = len(Activations._fields)


def run_segment(
    plain: Callable[..., Sequence[Tensor]], schedule: Schedule, *inputs: Tensor
) -> SegmentOutputs:
    """Return the outputs of a segment, with a custom backward pass.

    Args:
        plain: Function that computes the same outputs from `inputs` with torch's autograd.
        schedule: Schedule of the segment.
        inputs: Fields of `SegmentInputs`.
    """

    def forward(*inputs):
        return Forward(schedule, SegmentInputs(*inputs)).run()

    def backward(inputs, tensors, grads, needs):
        return Backward(schedule, SegmentInputs(*inputs), tensors, grads).run(any(needs[1:6]))

    return SegmentOutputs(*run_custom(plain, forward, backward, *inputs))


class Backward:
    """Backward pass over a segment. Call `run` to compute the gradients.

    Args:
        schedule: Schedule of the segment.
        inputs: Inputs of the forward pass.
        tensors: Tensors that `Forward.run` returned for the backward pass.
        grads: Gradients of the outputs; None for an output without a gradient.
    """

    def __init__(
        self,
        schedule: Schedule,
        inputs: SegmentInputs,
        tensors: Sequence[Tensor],
        grads: Sequence[Tensor | None],
    ) -> None:
        self.schedule, self.inputs, self.grads = schedule, inputs, grads
        self.normed_x, self.mean, self.deviation, self.anchor, *tensors = tensors
        self.activations = Activations(*tensors[:_NUM_ACTIVATIONS])
        self.factors = Factors(*tensors[_NUM_ACTIVATIONS:])

    def run(self, needs_state_grad: bool) -> list[Tensor | None]:
        """Return the gradients of all inputs. Without `needs_state_grad`, the state has no gradients."""
        self._allocate()
        self._backward_reads()
        after = self._last_boundary()
        chunks = list(enumerate(self.activations.by_chunk()))
        for index, chunk in reversed(chunks):
            after = self._backward_chunk(index, chunk, after)
        state = self._differentiate_state(after) if needs_state_grad and after is not None else [None] * 5
        a, inputs, (_, _, _, dim, _, rotary_width, persistent, memories, *_) = (
            self.activations,
            self.inputs,
            self.schedule.sizes,
        )
        x, norm, norm_bias, query, key, value, recall_query = self._backward_inputs()
        grad_recall_out, other_key, other_value = self._differentiate_recalls()
        grad_norm = (grad_recall_out * inputs.recall_out).view(dim, memories, -1).sum((0, 1))
        write_input = a.write_input.view(-1, dim)
        return [
            x,
            *state,
            norm,
            norm_bias,
            query,
            key + other_key,
            value + other_value,
            self.grad_grid[:, 4 * dim :].T @ a.flat.view(-1, dim),
            self.grad_keys[..., :persistent, rotary_width:].sum((0, 1)).transpose(0, 1),
            self.grad_values[..., :persistent, :].sum((0, 1)).transpose(0, 1),
            recall_query,
            grad_norm,
            grad_recall_out * inputs.recall_norm.repeat(memories),
            *self.grad_norm,
            self.grad_write_projection.flatten(0, 1).T @ write_input,
            self.grad_logits.flatten(0, 1).T @ write_input,
            self.grad_logits.sum((0, 1)),
            self._differentiate_weight(),
        ]

    def _allocate(self) -> None:
        """Allocate the gradients of all chunks, and arrange those of the outputs by chunk and position."""
        a, inputs, schedule, (batch, chunks, length, dim, *_) = (
            self.activations,
            self.inputs,
            self.schedule,
            self.schedule.sizes,
        )
        new, steps, width = inputs.x.new_empty, len(schedule.target), schedule.sizes.width
        parts = new(steps + 1, 3 * dim)
        for place, grad in enumerate(self.grads[:3]):
            columns = parts[:-1, place * dim : (place + 1) * dim]
            columns.zero_() if grad is None else columns.copy_(grad.reshape(steps, dim))
        parts[-1] = 0
        grid_parts = parts.index_select(0, schedule.source).view(chunks, batch * length, 3 * dim)
        self.outer_grad_attention_out, self.outer_grad_write_input, grad_y = grid_parts.split(dim, dim=2)
        by_head = grad_y.reshape(chunks, batch, length, -1, width).transpose(2, 3)
        self.grad_y = by_head.reshape(a.error.shape)
        self.grad_grid = new(chunks * batch * length, 5 * dim)
        self.grad_query, self.grad_keys, self.grad_values, self.grad_recall_queries = (
            torch.empty_like(part) for part in (a.query, a.keys, a.values, a.recall_queries)
        )
        self.outer_grad_slots = self._arrange_cache_grads()
        self.grad_products = new(chunks, batch * length, 2 * dim)
        self.grad_write_projection = torch.empty_like(a.write_projection)
        self.grad_logits = new(chunks, batch * length, 3 * schedule.sizes.memories)
        self.grad_norm: list[Tensor] = [
            torch.zeros_like(x) for x in (inputs.write_norm, inputs.write_norm_bias)
        ]
        self.grad_weight = torch.zeros_like(self.anchor)
        self.slope = silu_slope(a.write_projection)
        self.recall_projection_weights, self.recall_weights = fold_recall_weights(schedule, inputs)
        self.inverse_rotation = schedule.rotation.conj().resolve_conj()
        # Gradients at two successive chunk boundaries, used alternately.
        self.boundary_grads = torch.empty_like(a.state[:1]).repeat(2, 1, 1, 1, 1)
        self.anchor_buffer = torch.empty_like(self.anchor)

    def _arrange_cache_grads(self) -> list[Tensor | None]:
        """Return the gradients of keys and values from the final caches; None if a cache has no gradient."""
        results: list[Tensor | None] = []
        last, (batch, length, heads, width) = self.schedule.last, self.schedule.sizes.attention_shape
        for grad in self.grads[6:8]:
            if grad is None:
                results.append(None)
                continue
            grad = grad if results else grad.index_select(2, self.schedule.pairs)
            slots = grad.reshape(batch, 2 * length, heads, width).transpose(1, 2)
            whole = torch.zeros_like(self.activations.keys)
            behind = whole[..., self.schedule.sizes.persistent :, :]
            if last is None:
                behind[-1] = slots
            else:
                behind[last[0], torch.arange(batch)] = torch.where(last[1], slots, 0)
            results.append(whole)
        return results

    def _backward_reads(self) -> None:
        """Backpropagate through the outputs `y` of the memory, for all chunks at once."""
        a, factors = self.activations, self.factors
        query, key, similarities, pair_weights, error, grad = (
            part.flatten(0, 1)
            for part in (a.tokens[:, 0], a.tokens[:, 1], a.similarities, a.pair_weights, a.error, self.grad_y)
        )
        self.grad_error = torch.bmm((pair_weights * similarities).mT, grad).neg_().view_as(a.error)
        grad_pair_product = torch.bmm(grad, error.mT).neg_()
        grad_similarities = grad_pair_product * pair_weights
        grad_mixed = grad_pair_product.mul_(similarities).view_as(factors.read_mixing)
        self.grad_step = (grad_mixed * factors.read_mixing).sum(-2)
        self.grad_mixed = grad_mixed.mul_(a.step[:, :, None])
        self.grad_tokens = torch.empty_like(a.tokens)
        grad_query, grad_key, _ = self.grad_tokens.unbind(1)
        product = apply_initial_weights(self.schedule, grad, self.inputs.weight.mT)
        product.baddbmm_(grad_similarities, key)
        states = a.state.flatten(2, 3).flatten(0, 1)
        grad_retained, grad_built = torch.bmm(grad, states.mT).view_as(a.reads).chunk(2, dim=-1)
        torch.addcmul(
            product.view_as(grad_query), grad_retained, factors.read_retention[..., None], out=grad_query
        )
        grad_query.addcmul_(grad_built, factors.read_buildup[..., None])
        self.grad_read_retention, self.grad_read_buildup = (
            (part * a.tokens[:, 0]).sum(-1) for part in (grad_retained, grad_built)
        )
        grad_key.copy_(torch.bmm(grad_similarities.mT, query).view_as(grad_key))

    def _last_boundary(self) -> Tensor | None:
        """Return the gradient of the memory after the last chunk; None if there is no such gradient."""
        chunks, anchor_chunk = self.schedule.sizes.chunks, self.schedule.anchor_chunk
        shape = self.anchor.shape
        grad_delta, grad_momentum, grad_anchor = (
            None if grad is None else grad.reshape(shape) for grad in self.grads[3:6]
        )
        self.grad_anchor = None
        if grad_anchor is not None and anchor_chunk is not None:
            self.grad_anchor = grad_anchor
            grad_anchor = grad_anchor.masked_fill((anchor_chunk != chunks)[:, None, None], 0)
        if grad_delta is None and grad_momentum is None and grad_anchor is None:
            return None
        after = self.boundary_grads[chunks % 2].zero_()
        for place, grad in ((0, grad_delta), (1, grad_momentum), (0, grad_anchor)):
            if grad is not None:
                after[:, place] += grad
        return after

    def _backward_chunk(self, index: int, chunk: Activations, after: Tensor | None) -> Tensor:
        """Backpropagate through a chunk.

        `after` is the gradient of the memory after the chunk. Return the gradient of the memory before the
        chunk.
        """
        schedule, anchor = self.schedule, chunk.state[:, 0] if index else self.anchor
        anchor_weights = add_initial_weights(schedule, anchor, self.inputs.weight)
        before = self.boundary_grads[index % 2]
        grad_writes, grad_ends = self._backward_boundary(index, chunk, before, after)
        grad_anchor = self._backward_writes(index, chunk, anchor_weights, grad_writes, grad_ends)
        self._backward_attention(index, chunk)
        self._backward_recall(index, chunk, anchor_weights, grad_anchor)
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

    def _backward_boundary(
        self, index: int, chunk: Activations, before: Tensor, after: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Backpropagate from the memory after a chunk to the memory before the chunk and to the writes.

        `after` is the gradient of the memory after the chunk. Store the gradient of the memory before the
        chunk in `before`, without the contribution of the anchor. Return the gradient of the writes, and the
        gradients `[R, 2, 2]`, for R networks, of the factors that map delta and momentum before the chunk to
        delta and momentum after the chunk.
        """
        flat, reads, grad_y = before.flatten(1, 2), chunk.reads.mT, self.grad_y[index]
        if after is None:
            torch.bmm(reads, grad_y, out=flat)
            return torch.zeros_like(chunk.writes), before.new_zeros(len(before), 2, 2)
        stacked_after, factors = after.flatten(1, 2), self.factors
        self.grad_error[index].baddbmm_(chunk.writes, stacked_after, alpha=-1)
        torch.mul(after, factors.ends[index][..., None, None], out=before)
        before[:, 1].addcmul_(factors.end_buildup[index][:, None, None], after[:, 0])
        flat.baddbmm_(reads, grad_y)
        grad_ends = torch.bmm(after.flatten(2), chunk.state.flatten(2).mT)
        return torch.bmm(chunk.error, stacked_after.mT).neg_(), grad_ends

    def _backward_writes(
        self, index: int, chunk: Activations, anchor_weights: Tensor, grad_writes: Tensor, grad_ends: Tensor
    ) -> Float[Tensor, "R W W"]:
        """Backpropagate through a chunk's writes, and return the gradient of the anchor weights."""
        factors = Factors(*(x[index : index + 1] for x in self.factors))
        key, step, grad_error = chunk.tokens[1], chunk.step, self.grad_error[index]
        _, grad_key, grad_value = self.grad_tokens[index]
        a, b = grad_writes.chunk(2, dim=-1)
        grad_key.addcmul_(a, (factors.end_mixing[0] * step)[..., None])
        grad_key.addcmul_(b, (factors.end_trace[0] * step)[..., None])
        grad_mixed, grad_trace = (a * key).sum(-1), (b * key).sum(-1)
        grad_step = self.grad_step[index].addcmul_(grad_mixed, factors.end_mixing[0])
        grad_step.addcmul_(grad_trace, factors.end_trace[0])
        grad_key.baddbmm_(grad_error, anchor_weights.mT)
        grad_anchor = torch.bmm(key.mT, grad_error, out=self.anchor_buffer)
        torch.neg(grad_error, out=grad_value)
        momentum, retention = chunk.logs[:, None]
        grad_logs = factors.backward(
            retention,
            momentum,
            self.schedule.sizes.read_before_write,
            self.grad_read_retention[index, None],
            self.grad_read_buildup[index, None],
            self.grad_mixed[index, None],
            (grad_mixed * step)[None],
            (grad_trace * step)[None],
            grad_ends[None],
        )
        self._backward_gates(index, chunk, grad_step, *grad_logs)
        self._backward_tokens(index, chunk)
        self._backward_norm(index, chunk)
        return grad_anchor

    def _backward_gates(
        self,
        index: int,
        chunk: Activations,
        grad_step: Tensor,
        grad_momentum: Tensor,
        grad_retention: Tensor,
    ) -> None:
        """Compute the gradients of the gate logits of a chunk."""
        sizes, gate_values = self.schedule.sizes, chunk.gate_values
        grad_logits = torch.empty_like(gate_values)
        complement = 1 - gate_values[:2]
        torch.mul(grad_step * chunk.step, complement[0], out=grad_logits[0])
        scale = -sizes.max_step * sizes.max_momentum
        torch.mul(grad_step * gate_values[0], gate_values[1], out=grad_logits[1]).mul_(scale)
        grad_logits[1].add_(grad_momentum[0]).mul_(complement[1])
        torch.mul(grad_retention[0], gate_values[2], out=grad_logits[2]).neg_()
        if self.schedule.valid_steps is not None:
            grad_logits.mul_(self.schedule.valid_steps[index])
        logits_by_step = grad_logits.view(3, sizes.batch, -1, sizes.length).permute(1, 3, 0, 2)
        self.grad_logits[index].view(logits_by_step.shape).copy_(logits_by_step)

    def _backward_tokens(self, index: int, chunk: Activations) -> None:
        """Compute the gradients of the memory's projected queries, keys and values in a chunk."""
        unit, grad, shape = chunk.tokens[:2], self.grad_tokens[index, :2], self.schedule.sizes.memory_shape
        radial = (unit * grad).sum(-1, keepdim=True)
        grad.addcmul_(unit, radial, value=-1).mul_(chunk.inverse)
        batch, length, _, memories, width = shape
        by_head = self.grad_tokens[index].view(3, batch, memories, length, width).permute(1, 3, 0, 2, 4)
        out = self.grad_write_projection[index].view(shape)
        torch.mul(by_head, self.slope[index].view(shape), out=out)

    def _backward_norm(self, index: int, chunk: Activations) -> None:
        """Backpropagate through the layer norm that follows a chunk's attention outputs."""
        inputs, (_, chunks, _, dim, *_) = self.inputs, self.schedule.sizes
        grad_write_input = torch.addmm(
            self.outer_grad_write_input[index], self.grad_write_projection[index], inputs.write
        )
        grad_write_input.addmm_(self.grad_logits[index], inputs.gates)
        grad_attention_out, *grad_norm = torch.ops.aten.native_layer_norm_backward(
            grad_write_input,
            chunk.attention_out,
            [dim],
            chunk.write_mean,
            chunk.write_deviation,
            inputs.write_norm,
            inputs.write_norm_bias,
            [True, True, True],
        )
        for whole, part in zip(self.grad_norm, grad_norm, strict=True):
            whole += part
        out = self.grad_grid.unflatten(0, (chunks, -1))[index, :, 4 * dim :]
        self.grad_attention_out = torch.add(grad_attention_out, self.outer_grad_attention_out[index], out=out)

    def _backward_attention(self, index: int, chunk: Activations) -> None:
        """Backpropagate through a chunk's attention to its queries, keys and values."""
        grad_flat = torch.mm(self.grad_attention_out, self.inputs.out)
        grad = grad_flat.view(self.schedule.sizes.attention_shape).transpose(1, 2).reshape(chunk.read.shape)
        query, keys, values = (part.flatten(0, 1) for part in (chunk.query, chunk.keys, chunk.values))
        grad_read, grad_scores = differentiate_read(grad, values, chunk.scores, chunk.total, chunk.read)
        torch.bmm(grad_scores, keys, out=self.grad_query[index].flatten(0, 1))
        torch.bmm(grad_scores.mT, query * math.log(2), out=self.grad_keys[index].flatten(0, 1))
        torch.bmm(chunk.scores.mT, grad_read, out=self.grad_values[index].flatten(0, 1))
        for whole, part in zip((self.grad_keys, self.grad_values), self.outer_grad_slots, strict=True):
            if part is not None:
                whole[index] += part[index]

    def _backward_recall(
        self, index: int, chunk: Activations, anchor_weights: Tensor, grad_anchor: Tensor
    ) -> None:
        """Backpropagate through a chunk's recalls, and add their contribution to `grad_anchor`."""
        schedule, (batch, length, heads, width) = self.schedule, self.schedule.sizes.attention_shape
        grads = [x[index, ..., schedule.sizes.persistent :, :] for x in (self.grad_keys, self.grad_values)]
        if index == 0 and schedule.cached_slots is not None:
            self.grad_cached_slots = [torch.where(schedule.cached_slots, grad, 0) for grad in grads]
            for grad in grads:
                grad.masked_fill_(schedule.cached_slots, 0)
        grad_key, grad_value = (grad[..., length:, :].transpose(1, 2) for grad in grads)
        grad_products = self.grad_products[index].view(batch, length, 2, heads, width)
        rotate_pairs(grad_key, self.inverse_rotation, grad_products[:, :, 0])
        grad_products[:, :, 1] = grad_value
        grad_unit = torch.mm(self.grad_products[index], self.recall_weights)
        unit = chunk.recalls
        grad = grad_unit.view(batch, length, -1, unit.shape[2]).transpose(1, 2).reshape(unit.shape)
        radial = (unit * grad).mean(-1, keepdim=True)
        grad = torch.addcmul(grad, unit, radial, value=-1).mul_(chunk.recall_inverse)
        torch.bmm(grad, anchor_weights.mT, out=self.grad_recall_queries[index])
        grad_anchor.baddbmm_(chunk.recall_queries.mT, grad)

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
        schedule, inputs, a, (batch, chunks, length, dim, heads, _, persistent, *_) = (
            self.schedule,
            self.inputs,
            self.activations,
            self.schedule.sizes,
        )
        input_slots = slice(persistent, persistent + length)
        parts = self.grad_grid.view(chunks, batch, length, 5, heads, -1)
        for place, grad in enumerate((self.grad_query, self.grad_keys[..., input_slots, :])):
            rotate_pairs(grad.transpose(2, 3), self.inverse_rotation, parts[:, :, :, place])
        parts[:, :, :, 2] = self.grad_values[..., input_slots, :].transpose(2, 3)
        unit, grad = a.recall_queries, self.grad_recall_queries
        radial = (unit * grad).sum(-1, keepdim=True)
        grad = torch.addcmul(grad, unit, radial, value=-1).mul_(a.recall_query_inverse.flatten(1, 2))
        grad = grad.view(chunks, batch, -1, length, schedule.sizes.width).transpose(2, 3)
        slope = silu_slope(a.recall_projection).view(grad.shape)
        torch.mul(grad, slope, out=parts[:, :, :, 3].flatten(-2).view(grad.shape))
        grad_by_step = self.grad_grid.index_select(0, schedule.target)
        grad_projections, grad_rows = grad_by_step.split([4 * dim, dim], dim=1)
        scale = (dim // heads) ** -0.5
        grad_x, grad_norm, grad_bias = torch.ops.aten.native_layer_norm_backward(
            grad_projections @ build_input_weights(schedule, inputs, scale),
            inputs.x.reshape(-1, dim),
            [dim],
            self.mean,
            self.deviation,
            inputs.norm,
            inputs.norm_bias,
            [True, True, True],
        )
        grad_query, grad_key, *others = (grad_projections.T @ self.normed_x).split(dim)
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
        memories, width = self.schedule.sizes.memories, self.schedule.sizes.width
        grad_anchors = self.grad_weight.unflatten(0, (-1, memories)).sum(0)
        query, grad = (
            x.unflatten(1, (-1, memories)).permute(2, 0, 1, 3, 4).reshape(memories, -1, width)
            for x in (self.activations.tokens[:, 0], self.grad_y)
        )
        return grad_anchors.baddbmm_(query.mT, grad)
