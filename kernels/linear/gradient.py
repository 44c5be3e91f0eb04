"""The gradient of linear memory by hand, from the last chunk to the first.

Logarithms of decays need no products of their own: what a token i gives to the left side of a product, as
query or as key that is compared, is multiplied by exp(c_i), c the sum of logarithms, and what it gives to the
right side by exp(-c_i). So the gradient of c_i is the product of each side with its gradient, with that sign.

A name with `grad_` is the gradient of what the rest of the name is. Letters as in `chunks`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils import _pytree as pytree

from scrubjay.kernels.derivatives import by_graph, is_wanted_again
from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.linear.chunks import (
    Tokens,
    Trace,
    decays,
    in_chunks,
    in_time,
    run,
    tokens_of,
)
from scrubjay.kernels.linear.fading import pull_back
from scrubjay.kernels.linear.reference import Given, Rule

# Numbers of a tensor of tokens that is gone through at once: as many as caches hold, with others beside it,
# and as few as are not asked of the system anew every time.
_MOST_NUMBERS = 2**16


class Plan(NamedTuple):
    """What has no gradient."""

    start: Bool[Tensor, "B T"] | None
    rule: Rule
    length: int


def plainly(plan: Plan, *given: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is read `[B, T, H, V]` and the state after, in operations that autograd follows.

    `given` are query, key, value, log_decay, step and state.
    """
    y, after, _ = _forward(plan, Given(*given))
    return y, after


def _forward(plan: Plan, given: Given) -> tuple[Tensor, Tensor, tuple[Tokens, Trace]]:
    tokens = tokens_of(given, plan.start, plan.length)
    y, after, trace = run(tokens, given.state.flatten(0, 1), plan.rule)
    batch, time = given.query.shape[:2]
    return in_time(y, batch, time), after.view(given.state.shape), (tokens, trace)


def in_parts(plan: Plan, *given: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same with the gradient by hand, some rows and chunks at a time: what caches hold."""
    batch, time, heads, width = given[0].shape
    token = heads * max(width, given[2].shape[-1])
    chunk = min(time, plan.length)
    rows = max(1, min(batch, _MOST_NUMBERS // (token * chunk)))
    steps = max(1, _MOST_NUMBERS // (token * chunk * rows)) * plan.length
    if rows >= batch and steps >= time:
        return _LinearMemory.apply(plan, *given)  # pyright: ignore[reportReturnType]
    starts = [None] * -(-batch // rows) if plan.start is None else plan.start.split(rows)
    outputs, states = [], []
    # Split, not sliced: the gradients of slices would be summed up.
    for start, *tokens, state in zip(starts, *(x.split(rows) for x in given), strict=True):
        reads = []
        starts_of_parts = [None] * -(-time // steps) if start is None else start.split(steps, dim=1)
        for part, *here in zip(starts_of_parts, *(x.split(steps, dim=1) for x in tokens), strict=True):
            y, state = _LinearMemory.apply(plan._replace(start=part), *here, state)  # pyright: ignore[reportGeneralTypeIssues]
            reads.append(y)
        outputs.append(torch.cat(reads, dim=1) if len(reads) > 1 else reads[0])
        states.append(state)
    if len(outputs) == 1:
        return outputs[0], states[0]
    return torch.cat(outputs), torch.cat(states)


class _LinearMemory(torch.autograd.Function):
    """All chunks, with their gradient by hand: `apply(plan, query, key, value, log_decay, step, state)`."""

    @staticmethod
    def forward(ctx, plan: Plan, *given: Tensor):
        y, after, kept = _forward(plan, Given(*given))
        ctx.plan = plan
        if any(ctx.needs_input_grad):
            # Saved by autograd, all of it: freed after the backward pass, dropped by checkpoints.
            leaves, ctx.spec = pytree.tree_flatten(kept)
            ctx.save_for_backward(*given, *leaves)
        ctx.set_materialize_grads(False)
        return y, after

    @staticmethod
    @without_autocast
    def backward(ctx, grad_y, grad_after):
        given, leaves = Given(*ctx.saved_tensors[:6]), list(ctx.saved_tensors[6:])
        if grad_y is None and grad_after is None:
            return (None,) * 7
        if is_wanted_again(grad_y, grad_after):
            grads = by_graph(lambda *named: plainly(ctx.plan, *named), given, grad_y, grad_after)
            return None, *grads
        tokens, trace = pytree.tree_unflatten(leaves, ctx.spec)
        return None, *_pull_back(ctx.plan, given, tokens, trace, grad_y, grad_after)


def _pull_back(
    plan: Plan,
    given: Given,
    tokens: Tokens,
    trace: Trace,
    grad_y: Tensor | None,
    grad_after: Tensor | None,
) -> tuple[Tensor, ...]:
    """Return the gradients of `given`."""
    query, key, value, _, step = tokens
    batch, time, heads, _ = given.query.shape
    fading, tied, stepped, errors = trace.fading, trace.tied, trace.stepped, trace.errors
    grad_y = torch.zeros_like(value) if grad_y is None else in_chunks(grad_y, plan.length)
    grad_state = torch.zeros_like(trace.states[0]) if grad_after is None else grad_after.flatten(0, 1)
    grad_value, grad_states, grad_state = _return(tokens, trace, grad_y, grad_state)

    lefts, owed = [query], [grad_y @ errors.mT]
    if plan.rule == "delta":
        lefts, owed = [query, key], [*owed, (grad_value @ errors.mT).tril_(-1).neg_()]
    (grad_query, *grad_left), grad_stepped = pull_back(fading, tied, owed, lefts, stepped)
    grad_query.add_((grad_y @ trace.states.mT).mul_(fading.since))
    grad_since = _over(query * grad_query, tied)
    for grad in grad_left:
        grad.sub_((grad_value @ trace.states.mT).mul_(fading.since))
        grad_since.add_(_over(key * grad, tied))
    at_end = (errors @ grad_states.mT).mul_(fading.until)
    grad_stepped.add_(at_end)
    grad_since.sub_(_over(stepped * grad_stepped, tied))
    kept = (fading.whole * trace.states * grad_states).sum(-1)
    grad_since[:, :, -1].add_(_over(kept, tied)).add_(_over((stepped * at_end).sum(2), tied))
    grad_key = grad_left[0].addcmul_(grad_stepped, step) if grad_left else grad_stepped * step
    grad_step = (key * grad_stepped).sum(-1, keepdim=True)
    found = [in_time(x, batch, time) for x in (grad_query, grad_key, grad_value)]
    grad_log = log_gradient(plan, given.log_decay, grad_since, heads)
    return *found, grad_log, in_time(grad_step, batch, time)[..., 0], grad_state.view(given.state.shape)


def _return(
    tokens: Tokens, trace: Trace, grad_y: Tensor, grad_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Go back from chunk to chunk.

    Returns the gradients of values, of the states behind chunks, and of the first state.
    """
    fading = trace.fading
    grad_errors = trace.read.mT @ grad_y
    looked = (tokens.query * fading.since).mT @ grad_y
    written = trace.stepped * fading.until
    behind, whole = torch.empty_like(trace.states), fading.whole
    for index in reversed(range(len(grad_y))):
        behind[index] = grad_state
        grad_errors[index].baddbmm_(written[index], grad_state)
        grad_state = torch.addcmul(looked[index], whole[index], grad_state)
        if trace.reached is not None:
            grad_state.baddbmm_(trace.reached[index].mT, grad_errors[index], alpha=-1)
    grad_value = grad_errors if trace.inverse is None else trace.inverse.mT @ grad_errors
    return grad_value, behind, grad_state


def _over(x: Tensor, tied: Tensor | None) -> Tensor:
    """Return the sum over channels where they fade alike."""
    return x if tied is None else x.sum(-1, keepdim=True)


def log_gradient(plan: Plan, log_decay: Tensor, grad_since: Tensor, heads: int) -> Tensor:
    """Return the gradient of logarithms from that of their sums: of all at and behind them in the episode."""
    batch, time = log_decay.shape[:2]
    count, _, length, width = grad_since.shape
    lower = torch.ones(length, length, dtype=torch.bool, device=log_decay.device).tril()
    same = lower
    if plan.start is not None:
        episode = in_chunks(plan.start[..., None, None].to(log_decay.dtype), length)[..., 0].cumsum(-1)
        same = (episode[..., :, None] == episode[..., None, :]) & lower
    by_time = grad_since.view(count, batch, heads, length, width).transpose(2, 3).flatten(3)
    summed = same.to(log_decay.dtype).mT @ by_time
    summed = summed.view(count, batch, length, heads, width).transpose(0, 1)
    summed = summed.reshape(batch, count * length, heads, width)[:, :time]
    # What is not selected in `decays` has no gradient.
    summed = summed.masked_fill(decays(log_decay, plan.start) == 0, 0)
    return summed.reshape(log_decay.shape)
