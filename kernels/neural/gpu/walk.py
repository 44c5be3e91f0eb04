"""All kernels as one operation on a problem, and its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.launch import with_dense_rows
from scrubjay.kernels.neural.chunk import Coefficients, coefficients_of
from scrubjay.kernels.neural.gpu.gradients.read import read_gradient_launches
from scrubjay.kernels.neural.gpu.gradients.rule import rule_gradient_launch
from scrubjay.kernels.neural.gpu.gradients.write import write_gradient_launch
from scrubjay.kernels.neural.gpu.layout import Borders, Inputs, Kept, Layout, new_kept
from scrubjay.kernels.neural.gpu.read import read_launch
from scrubjay.kernels.neural.gpu.write import write_launch
from scrubjay.kernels.neural.network import NeuralState, Problem


def run_walk(problem: Problem) -> tuple[Tensor, Tensor, NeuralState]:
    """Run all chunks: `run_chunks`, in kernels."""
    batch, time, heads, _ = problem.query.shape
    count, rows = time // problem.chunk_size, batch * heads

    def by_chunk(x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(rows, count, problem.chunk_size)

    gates, learned = [by_chunk(gate) for gate in problem.gates], None
    if problem.valid is not None:
        learned = by_chunk(problem.valid[..., None].expand(batch, time, heads))
        gates = [gate.masked_fill(~learned, 0) for gate in gates]
    step_size, log_momentum, log_retention = gates
    coefficients = coefficients_of(log_retention, log_momentum, learned, problem.read_before_write)
    layout = Layout(problem.shape, problem.chunk_size)
    options = Options(layout, _borders(problem, count))
    y, squared, *after = _Walk.apply(
        options,
        problem.query,
        problem.key,
        problem.value,
        _rule(layout, step_size, coefficients),
        *problem.weights,
        *problem.state,
    )
    return y, squared.sqrt().view(batch, heads, time).transpose(1, 2), NeuralState(*after)


def _rule(layout: Layout, step_size: Tensor, at: Coefficients) -> Tensor:
    """Lay out what each chunk's tokens multiply, in the order in which the kernels find it."""
    rows, count, _ = step_size.shape
    ends = (at.end_retained, at.end_built, at.end_kept)
    parts = [step_size, at.read_retained, at.read_built, at.end_mixed, at.end_trace, *ends, at.share]
    first = torch.cat([part.reshape(rows, count, -1) for part in parts], dim=-1)
    padding = step_size.new_zeros(rows, count, layout.mixed - first.shape[-1])
    mixed = at.read_mixed.reshape(rows, count, -1)
    rest = step_size.new_zeros(rows, count, layout.sizes()["RULE"] - layout.mixed - mixed.shape[-1])
    return torch.cat([first, padding, mixed, rest], dim=-1)


def _borders(problem: Problem, count: int) -> Borders:
    batch, device = problem.query.shape[0], problem.query.device
    never = torch.zeros(batch, count, dtype=torch.bool, device=device)
    fresh = never if problem.fresh is None else problem.fresh
    border = fresh if problem.cut is None else fresh | problem.cut
    incomplete = never
    if problem.valid is not None:
        incomplete = ~problem.valid.unflatten(1, (count, problem.chunk_size))[..., -1]
    follows = torch.cat([~never[:, :1], incomplete[:, :-1]], dim=1)
    held = follows & ~fresh
    ends = torch.cat([fresh[:, 1:], never[:, :1]], dim=1)
    bits = (fresh, border, incomplete, held, follows, ends)
    flags = sum(bit.to(torch.int32) << place for place, bit in enumerate(bits))
    chunk = torch.arange(count, device=device).expand(batch, count)
    source = chunk.masked_fill(held, -1).cummax(dim=1).values
    return Borders(flags.contiguous(), source.to(torch.int32).contiguous())  # pyright: ignore[reportAttributeAccessIssue]


class Options(NamedTuple):
    """What all kernels of a walk are told beside tensors with gradients."""

    layout: Layout
    borders: Borders


class _Walk(torch.autograd.Function):
    """All kernels as one operation, differentiable once."""

    @staticmethod
    def forward(ctx, options: Options, *flat: Tensor):
        ctx.options = options
        y, squared, after, kept = forward(_inputs(options, flat), options.layout)
        ctx.mark_non_differentiable(squared)
        ctx.save_for_backward(*flat, *kept)
        return y, squared, *after

    @staticmethod
    @without_autocast
    def backward(ctx, grad_y, _, *grad_after):
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "neural_memory with implementation='triton' is differentiable once; "
                "use 'torch' for second derivatives"
            )
        *flat, states, chunks = ctx.saved_tensors
        inputs, kept = _inputs(ctx.options, flat), Kept(states, chunks)
        return None, *backward(inputs, ctx.options.layout, kept, grad_y, NeuralState(*grad_after))


def _inputs(options: Options, flat: Sequence[Tensor]) -> Inputs:
    tokens = [with_dense_rows(x) for x in flat[:3]]
    rule, *rest = (x.contiguous() for x in flat[3:])
    return Inputs(*tokens, rule, tuple(rest[:-3]), NeuralState(*rest[-3:]), options.borders)  # pyright: ignore[reportCallIssue]


def forward(inputs: Inputs, layout: Layout) -> tuple[Tensor, Tensor, NeuralState, Kept]:
    """Return outputs, squared lengths of gradients, the state after, and what is kept for a gradient."""
    query, state, flags = inputs.query, inputs.state, inputs.borders.flags
    y, kept, anchor = query.new_empty(query.shape), new_kept(inputs, layout), state.anchor.clone()
    starts_fresh, ends_incomplete = (
        ((flags[:, n] & bit) != 0)[:, None, None] for n, bit in ((0, 1), (-1, 4))
    )
    for place, part in enumerate((state.delta, state.momentum)):
        kept.states[:, 0, place] = part.masked_fill(starts_fresh, 0).flatten(0, 1)
    write_launch(inputs, layout, anchor, kept).run()
    read_launch(inputs, layout, y, kept).run()
    delta, momentum = (kept.states[:, -1, place].clone().view_as(anchor) for place in (0, 1))
    after = NeuralState(delta, momentum, torch.where(ends_incomplete, anchor, delta))
    return y, layout.view(kept.chunks, "squared").flatten(1), after, kept


def backward(
    inputs: Inputs, layout: Layout, kept: Kept, grad_y: Tensor, grad_after: NeuralState
) -> list[Tensor]:
    """Return the gradients of tokens, rule, weights and state, in this order."""
    incomplete = ((inputs.borders.flags[:, -1] & 4) != 0)[:, None, None]
    grad_y = grad_y.contiguous()
    grad_query, grad_rule = inputs.query.new_empty(inputs.query.shape), torch.empty_like(inputs.rule)
    owed = inputs.rule.new_empty(*inputs.rule.shape[:2], layout.sizes()["OWED"])
    # The anchor after the last chunk is its delta, unless the chunk is incomplete.
    grad_delta = grad_after.delta + grad_after.anchor.masked_fill(incomplete, 0)
    grad_anchor = grad_after.anchor.masked_fill(~incomplete, 0).contiguous()
    to = torch.empty_like(kept.states)
    to[:, -1] = torch.stack([grad_delta, grad_after.momentum], dim=2).flatten(0, 1)
    for launch in read_gradient_launches(inputs, layout, kept, grad_y, grad_query, grad_rule, owed, to):
        launch.run()
    write_gradient_launch(inputs, layout, kept, grad_rule, owed, to, grad_anchor).run()
    rule_gradient_launch(inputs, layout, kept, grad_rule, to).run()
    grad_state = [to[:, 0, place].reshape(grad_anchor.shape) for place in (0, 1)]
    key = layout.view(owed, "key_owed" if len(inputs.weights) == 2 else "x_owed")
    key, error = (_tokens(x, inputs) for x in (key, layout.view(owed, "error_owed")))
    tokens = [grad_query, key.to(inputs.key.dtype), error.neg().to(inputs.value.dtype)]
    weights = _weight_gradients(inputs, layout, kept, grad_y, owed)
    return [*tokens, grad_rule, *weights, *grad_state, grad_anchor]


def _tokens(x: Tensor, inputs: Inputs) -> Tensor:
    """Return `[B, T, H, .]` of what lies in chunks `[R, N, C, .]`."""
    batch, _, heads, _ = inputs.query.shape
    return x.unflatten(0, (batch, heads)).flatten(2, 3).transpose(1, 2)


def _weight_gradients(
    inputs: Inputs, layout: Layout, kept: Kept, grad_y: Tensor, owed: Tensor
) -> list[Tensor]:
    """Return the gradients of the weights: of every product with them, inputs^T gradient, over all tokens."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bthi,btho->hio", a.float(), b.float())

    def of(whole: Tensor, name: str) -> Tensor:
        return _tokens(layout.view(whole, name), inputs)

    query, key, error = inputs.query, inputs.key, of(owed, "error_owed")
    if len(inputs.weights) == 1:
        return [product(query, grad_y) + product(key, error)]
    lower = product(query, of(owed, "read_grad")) + product(key, of(owed, "product_grad"))
    reads, hidden = functional.silu(of(kept.chunks, "read")), functional.silu(of(kept.chunks, "product"))
    upper = product(reads, grad_y) + product(hidden, error)
    return [lower, upper.add_(product(of(owed, "slope_grad"), of(kept.chunks, "error")))]
