"""Custom backward pass of linear memory, from the last chunk to the first.

The gradient of the log decays follows from the gradients of queries and keys, without matrix products. Let
c_i be the sum of log decays up to token i. Every product has a left factor (a query, or a key that is
compared with earlier keys) and a right factor (a key that is written). A left factor of token i is multiplied
by exp(c_i), a right factor of token i by exp(-c_i). So the gradient of c_i is the dot product of the left
factor with its gradient, minus the dot product of the right factor with its gradient.

`grad_x` is the gradient of `x`. Letters as in `chunks`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils import _pytree as pytree

from scrubjay.kernels.derivatives import differentiate_graph, needs_graph
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.linear.chunks import (
    LinearTokens,
    LinearTrace,
    compute_decays,
    from_chunks,
    run,
    split_tokens,
    to_chunks,
)
from scrubjay.kernels.linear.decay import backward_pair_products
from scrubjay.kernels.linear.reference import LinearInputs, Rule

# Largest tensor of tokens that is processed at once: it should fit into the CPU caches with other tensors,
# and be small enough that the allocator reuses its memory.
_MOST_NUMBERS = 2**16


class ChunkOptions(NamedTuple):
    """Arguments of the chunked computation that have no gradient."""

    start: Bool[Tensor, "B T"] | None
    rule: Rule
    length: int


def run_with_autograd(options: ChunkOptions, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs `[B, T, H, V]` and the final state, differentiable by autograd.

    `inputs` are query, key, value, log_decay, step, state and possibly erase_key.
    """
    y, after, _ = _forward(options, LinearInputs(*inputs))
    return y, after


def _forward(
    options: ChunkOptions, inputs: LinearInputs
) -> tuple[Tensor, Tensor, tuple[LinearTokens, LinearTrace]]:
    tokens = split_tokens(inputs, options.start, options.length)
    y, after, trace = run(tokens, inputs.state.flatten(0, 1), options.rule)
    batch, time = inputs.query.shape[:2]
    return from_chunks(y, batch, time), after.view(inputs.state.shape), (tokens, trace)


def run_in_parts(options: ChunkOptions, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs and the final state, with the custom backward pass.

    Processes a few batch rows and chunks at a time, so that their tensors fit into the CPU caches.
    """
    batch, time, heads, width = inputs[0].shape
    token = heads * max(width, inputs[2].shape[-1])
    chunk = min(time, options.length)
    rows = max(1, min(batch, _MOST_NUMBERS // (token * chunk)))
    steps = max(1, _MOST_NUMBERS // (token * chunk * rows)) * options.length
    if rows >= batch and steps >= time:
        return _LinearMemory.apply(options, *inputs)  # pyright: ignore[reportReturnType]
    starts = [None] * -(-batch // rows) if options.start is None else options.start.split(rows)
    outputs, states = [], []
    # Split, not sliced: autograd would sum full-size gradients of slices.
    for start, *part in zip(starts, *(x.split(rows) for x in inputs), strict=True):
        state = part.pop(5)
        reads = []
        part_starts = [None] * -(-time // steps) if start is None else start.split(steps, dim=1)
        for part_start, *part_tokens in zip(part_starts, *(x.split(steps, dim=1) for x in part), strict=True):
            part_inputs = (*part_tokens[:5], state, *part_tokens[5:])
            y, state = _LinearMemory.apply(options._replace(start=part_start), *part_inputs)  # pyright: ignore[reportGeneralTypeIssues]
            reads.append(y)
        outputs.append(torch.cat(reads, dim=1) if len(reads) > 1 else reads[0])
        states.append(state)
    if len(outputs) == 1:
        return outputs[0], states[0]
    return torch.cat(outputs), torch.cat(states)


class _LinearMemory(torch.autograd.Function):
    """Autograd function over all chunks. Its inputs are `options` and the fields of `LinearInputs`."""

    @staticmethod
    def forward(ctx, options: ChunkOptions, *inputs: Tensor):
        y, after, trace = _forward(options, LinearInputs(*inputs))
        ctx.options, ctx.count = options, len(inputs)
        if any(ctx.needs_input_grad):
            # Autograd saves all of it: so it is freed after the backward pass and dropped by checkpointing.
            leaves, ctx.spec = pytree.tree_flatten(trace)
            ctx.save_for_backward(*inputs, *leaves)
        ctx.set_materialize_grads(False)
        return y, after

    @staticmethod
    @without_autocast
    def backward(ctx, grad_y, grad_after):
        inputs, leaves = ctx.saved_tensors[: ctx.count], list(ctx.saved_tensors[ctx.count :])
        if grad_y is None and grad_after is None:
            return (None,) * (1 + ctx.count)
        if needs_graph(grad_y, grad_after):
            grads = differentiate_graph(
                lambda *tensors: run_with_autograd(ctx.options, *tensors), inputs, grad_y, grad_after
            )
            return None, *grads
        tokens, trace = pytree.tree_unflatten(leaves, ctx.spec)
        return None, *_backward(ctx.options, LinearInputs(*inputs), tokens, trace, grad_y, grad_after)


def _backward(
    options: ChunkOptions,
    inputs: LinearInputs,
    tokens: LinearTokens,
    trace: LinearTrace,
    grad_y: Tensor | None,
    grad_after: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of the tensors of `inputs`."""
    query, key, value, _, step, _ = tokens
    batch, time, heads, _ = inputs.query.shape
    decay_products, pair_decays, scaled_keys, errors = (
        trace.decay_products,
        trace.pair_decays,
        trace.scaled_keys,
        trace.errors,
    )
    grad_y = torch.zeros_like(value) if grad_y is None else to_chunks(grad_y, options.length)
    grad_state = torch.zeros_like(trace.states[0]) if grad_after is None else grad_after.flatten(0, 1)
    grad_value, grad_states, grad_state = _backward_states(tokens, trace, grad_y, grad_state)

    lefts, grad_products = [query], [grad_y @ errors.mT]
    if options.rule == "delta":
        lefts.append(tokens.key_to_erase)
        grad_products.append((grad_value @ errors.mT).tril_(-1).neg_())
    (grad_query, *grad_left), grad_scaled_keys = backward_pair_products(
        decay_products, pair_decays, grad_products, lefts, scaled_keys
    )
    grad_query.add_((grad_y @ trace.states.mT).mul_(decay_products.from_start))
    grad_log_sums = _sum_channels(query * grad_query, pair_decays)
    for grad in grad_left:
        grad.sub_((grad_value @ trace.states.mT).mul_(decay_products.from_start))
        grad_log_sums.add_(_sum_channels(tokens.key_to_erase * grad, pair_decays))
    grad_end = (errors @ grad_states.mT).mul_(decay_products.to_end)
    grad_scaled_keys.add_(grad_end)
    grad_log_sums.sub_(_sum_channels(scaled_keys * grad_scaled_keys, pair_decays))
    state_terms = (decay_products.chunk_decay * trace.states * grad_states).sum(-1)
    grad_log_sums[:, :, -1].add_(_sum_channels(state_terms, pair_decays)).add_(
        _sum_channels((scaled_keys * grad_end).sum(2), pair_decays)
    )
    grad_erase_keys = grad_left if tokens.erase_key is not None else []
    if grad_left and not grad_erase_keys:
        grad_key = grad_left[0].addcmul_(grad_scaled_keys, step)
    else:
        grad_key = grad_scaled_keys * step
    grad_step = (key * grad_scaled_keys).sum(-1, keepdim=True)
    grad_tokens = [from_chunks(x, batch, time) for x in (grad_query, grad_key, grad_value)]
    grad_log = log_gradient(options, inputs.log_decay, grad_log_sums, heads)
    return (
        *grad_tokens,
        grad_log,
        from_chunks(grad_step, batch, time)[..., 0],
        grad_state.view(inputs.state.shape),
        *(from_chunks(x, batch, time) for x in grad_erase_keys),
    )


def _backward_states(
    tokens: LinearTokens, trace: LinearTrace, grad_y: Tensor, grad_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loop over the chunks in reverse.

    Returns the gradients of the values, of the state after each chunk, and of the initial state.
    """
    decay_products = trace.decay_products
    grad_errors = trace.read_scores.mT @ grad_y
    decayed_queries = (tokens.query * decay_products.from_start).mT @ grad_y
    decayed_keys = trace.scaled_keys * decay_products.to_end
    grad_states_after, chunk_decay = torch.empty_like(trace.states), decay_products.chunk_decay
    for index in reversed(range(len(grad_y))):
        grad_states_after[index] = grad_state
        grad_errors[index].baddbmm_(decayed_keys[index], grad_state)
        grad_state = torch.addcmul(decayed_queries[index], chunk_decay[index], grad_state)
        if trace.inverse_keys is not None:
            grad_state.baddbmm_(trace.inverse_keys[index].mT, grad_errors[index], alpha=-1)
    grad_value = grad_errors if trace.inverse is None else trace.inverse.mT @ grad_errors
    return grad_value, grad_states_after, grad_state


def _sum_channels(x: Tensor, pair_decays: Tensor | None) -> Tensor:
    """Return the sum of `x` over channels if all channels share one decay, else `x`."""
    return x if pair_decays is None else x.sum(-1, keepdim=True)


def log_gradient(options: ChunkOptions, log_decay: Tensor, grad_log_sums: Tensor, heads: int) -> Tensor:
    """Return the gradient of the log decays.

    For each token, it is the sum of `grad_log_sums` over this token and the later tokens of the same episode
    and chunk. It is zero where the decay is zero.
    """
    batch, time = log_decay.shape[:2]
    count, _, length, width = grad_log_sums.shape
    lower = torch.ones(length, length, dtype=torch.bool, device=log_decay.device).tril()
    same_episode = lower
    if options.start is not None:
        episode = to_chunks(options.start[..., None, None].to(log_decay.dtype), length)[..., 0].cumsum(-1)
        same_episode = (episode[..., :, None] == episode[..., None, :]) & lower
    grad_by_time = grad_log_sums.view(count, batch, heads, length, width).transpose(2, 3).flatten(3)
    grad_log = same_episode.to(log_decay.dtype).mT @ grad_by_time
    grad_log = grad_log.view(count, batch, length, heads, width).transpose(0, 1)
    grad_log = grad_log.reshape(batch, count * length, heads, width)[:, :time]
    # Log decays that `compute_decays` replaces by zero have no gradient.
    grad_log = grad_log.masked_fill(compute_decays(log_decay, options.start) == 0, 0)
    return grad_log.reshape(log_decay.shape)
