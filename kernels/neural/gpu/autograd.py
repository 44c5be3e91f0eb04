"""Autograd function over all kernels of neural memory, and main configurations, which the tests compile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.launch import Launch, ensure_dense_rows
from scrubjay.kernels.neural.gpu.layout import (
    BorderFlag,
    KernelBorders,
    Layout,
    NeuralKernelGrads,
    NeuralKernelInputs,
    NeuralKernelTrace,
    allocate_trace,
    build_launch,
)
from scrubjay.kernels.neural.gpu.read import lower_read_gradient_kernel, read_gradient_kernel, read_kernel
from scrubjay.kernels.neural.gpu.rule import rule_gradient_kernel
from scrubjay.kernels.neural.gpu.write import write_gradient_kernel, write_kernel
from scrubjay.kernels.neural.loop import Coefficients, compute_coefficients
from scrubjay.kernels.neural.network import NetworkShape, NeuralState, Problem


def run_kernels(problem: Problem) -> tuple[Tensor, Tensor, NeuralState]:
    """Run all chunks on Triton kernels. The results are those of `loop.run_loop`."""
    batch, time, heads, _ = problem.query.shape
    count, rows = time // problem.chunk_size, batch * heads

    def by_chunk(x: Tensor) -> Tensor:
        return x.transpose(1, 2).reshape(rows, count, problem.chunk_size)

    gates, valid_tokens = [by_chunk(gate) for gate in problem.gates], None
    if problem.valid is not None:
        valid_tokens = by_chunk(problem.valid[..., None].expand(batch, time, heads))
        gates = [gate.masked_fill(~valid_tokens, 0) for gate in gates]
    step_size, log_momentum, log_retention = gates
    coefficients = compute_coefficients(log_retention, log_momentum, valid_tokens, problem.read_before_write)
    layout = Layout(problem.shape, problem.chunk_size)
    options = _KernelOptions(layout, _build_borders(problem, count))
    y, squared_norm, *after = _ChunkLoop.apply(
        options,
        problem.query,
        problem.key,
        problem.value,
        _pack_rule(layout, step_size, coefficients),
        *problem.weights,
        *problem.state,
    )
    return y, squared_norm.sqrt().view(batch, heads, time).transpose(1, 2), NeuralState(*after)


def _pack_rule(layout: Layout, step_size: Tensor, rule: Coefficients) -> Tensor:
    """Return one tensor `[R, N, size]`, with the step sizes and coefficients of each chunk.

    `Layout.rule_slots` lists the offsets in the last dim.
    """
    rows, count, _ = step_size.shape
    end_scalars = (rule.end_retention, rule.end_buildup, rule.end_momentum_retention)
    parts = [
        step_size,
        rule.read_retention,
        rule.read_buildup,
        rule.end_mixing,
        rule.end_trace,
        *end_scalars,
        rule.share,
    ]
    first = torch.cat([part.reshape(rows, count, -1) for part in parts], dim=-1)
    padding = step_size.new_zeros(rows, count, layout.rule_slots["read_mixing"] - first.shape[-1])
    mixing = rule.read_mixing.reshape(rows, count, -1)
    rest = step_size.new_zeros(
        rows, count, layout.sizes()["RULE_SIZE"] - layout.rule_slots["read_mixing"] - mixing.shape[-1]
    )
    return torch.cat([first, padding, mixing, rest], dim=-1)


def _build_borders(problem: Problem, count: int) -> KernelBorders:
    batch, device = problem.query.shape[0], problem.query.device
    all_false = torch.zeros(batch, count, dtype=torch.bool, device=device)
    fresh = all_false if problem.fresh is None else problem.fresh
    border = fresh if problem.cut is None else fresh | problem.cut
    incomplete = all_false
    if problem.valid is not None:
        incomplete = ~problem.valid.unflatten(1, (count, problem.chunk_size))[..., -1]
    after_incomplete = torch.cat([~all_false[:, :1], incomplete[:, :-1]], dim=1)
    has_old_anchor = after_incomplete & ~fresh
    fresh_next = torch.cat([fresh[:, 1:], all_false[:, :1]], dim=1)
    # In the order of `BorderFlag`.
    bits = (fresh, border, incomplete, has_old_anchor, after_incomplete, fresh_next)
    flags = sum(bit.to(torch.int32) << place for place, bit in enumerate(bits))
    chunk = torch.arange(count, device=device).expand(batch, count)
    source = chunk.masked_fill(has_old_anchor, -1).cummax(dim=1).values
    return KernelBorders(flags.contiguous(), source.to(torch.int32).contiguous())  # pyright: ignore[reportAttributeAccessIssue]


class _KernelOptions(NamedTuple):
    """Arguments of the kernels that have no gradient."""

    layout: Layout
    borders: KernelBorders


class _ChunkLoop(torch.autograd.Function):
    """Autograd function over all kernels, differentiable once."""

    @staticmethod
    def forward(ctx, options: _KernelOptions, *flat: Tensor):
        ctx.options = options
        y, squared_norm, after, trace = forward(_inputs(options, flat), options.layout)
        ctx.mark_non_differentiable(squared_norm)
        ctx.save_for_backward(*flat, *trace)
        return y, squared_norm, *after

    @staticmethod
    @without_autocast
    def backward(ctx, grad_y, _, *grad_after):
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "neural_memory with implementation='triton' is differentiable once; "
                "use 'torch' for second derivatives"
            )
        *flat, states, saved_chunks = ctx.saved_tensors
        inputs, trace = _inputs(ctx.options, flat), NeuralKernelTrace(states, saved_chunks)
        return None, *backward(inputs, ctx.options.layout, trace, grad_y, NeuralState(*grad_after))


def _inputs(options: _KernelOptions, flat: Sequence[Tensor]) -> NeuralKernelInputs:
    tokens = [ensure_dense_rows(x) for x in flat[:3]]
    rule, *rest = (x.contiguous() for x in flat[3:])
    return NeuralKernelInputs(*tokens, rule, tuple(rest[:-3]), NeuralState(*rest[-3:]), options.borders)  # pyright: ignore[reportCallIssue]


def forward(
    inputs: NeuralKernelInputs, layout: Layout
) -> tuple[Tensor, Tensor, NeuralState, NeuralKernelTrace]:
    """Return the outputs, squared norms of the inner gradients, the final state, and the saved results."""
    query, state, flags = inputs.query, inputs.state, inputs.borders.flags
    y, trace, anchor = query.new_empty(query.shape), allocate_trace(inputs, layout), state.anchor.clone()
    starts_fresh, ends_incomplete = (
        ((flags[:, n] & bit) != 0)[:, None, None]
        for n, bit in ((0, BorderFlag.FRESH.value), (-1, BorderFlag.INCOMPLETE.value))
    )
    for place, part in enumerate((state.delta, state.momentum)):
        trace.states[:, 0, place] = part.masked_fill(starts_fresh, 0).flatten(0, 1)
    for launch in forward_launches(inputs, layout, trace, anchor, y):
        launch.run()
    delta, momentum = (trace.states[:, -1, place].clone().view_as(anchor) for place in (0, 1))
    after = NeuralState(delta, momentum, torch.where(ends_incomplete, anchor, delta))
    return y, layout.view(trace.trace, "squared_norm").flatten(1), after, trace


def backward(
    inputs: NeuralKernelInputs,
    layout: Layout,
    trace: NeuralKernelTrace,
    grad_y: Tensor,
    grad_after: NeuralState,
) -> list[Tensor]:
    """Return the gradients of tokens, rule, weights and state, in this order."""
    incomplete = ((inputs.borders.flags[:, -1] & BorderFlag.INCOMPLETE.value) != 0)[:, None, None]
    # The anchor after the last chunk is its delta, unless the chunk is incomplete.
    grad_delta = grad_after.delta + grad_after.anchor.masked_fill(incomplete, 0)
    states_grad = torch.empty_like(trace.states)
    states_grad[:, -1] = torch.stack([grad_delta, grad_after.momentum], dim=2).flatten(0, 1)
    grads = NeuralKernelGrads(
        grad_y.contiguous(),
        inputs.query.new_empty(inputs.query.shape),
        torch.empty_like(inputs.rule),
        inputs.rule.new_empty(*inputs.rule.shape[:2], layout.sizes()["GRADS_SIZE"]),
        states_grad,
        grad_after.anchor.masked_fill(~incomplete, 0).contiguous(),
    )
    for launch in backward_launches(inputs, layout, trace, grads):
        launch.run()
    grad_state = [states_grad[:, 0, place].reshape(grads.anchor_grad.shape) for place in (0, 1)]
    key = layout.view(grads.grads, "key_grad" if len(inputs.weights) == 2 else "x_grad")
    key, error = (_tokens(x, inputs) for x in (key, layout.view(grads.grads, "error_grad")))
    tokens = [grads.query_grad, key.to(inputs.key.dtype), error.neg().to(inputs.value.dtype)]
    weights = _weight_gradients(inputs, layout, trace, grads.grad, grads.grads)
    return [*tokens, grads.rule_grad, *weights, *grad_state, grads.anchor_grad]


def forward_launches(
    inputs: NeuralKernelInputs, layout: Layout, trace: NeuralKernelTrace, anchor: Tensor, y: Tensor
) -> list[Launch]:
    """Return the kernel launches, not yet run, that fill `trace` and write the outputs to `y`.

    `anchor` must hold the initial anchor. Before a chunk whose last token is skipped, it is overwritten with
    the anchor of this chunk. Other chunks do not change it.
    """
    rows, count, _ = inputs.rule.shape
    tensors = trace._asdict() | {"anchor": anchor, "out": y}
    return [
        build_launch(write_kernel, rows, inputs, layout, tensors),
        build_launch(read_kernel, rows * count, inputs, layout, tensors),
    ]


def backward_launches(
    inputs: NeuralKernelInputs, layout: Layout, trace: NeuralKernelTrace, grads: NeuralKernelGrads
) -> list[Launch]:
    """Return the kernel launches, not yet run, that fill `grads`: the reads, the writes, the coefficients."""
    rows, count, _ = inputs.rule.shape
    tensors = trace._asdict() | grads._asdict() | {"anchor": inputs.state.anchor}
    reads = (read_gradient_kernel, lower_read_gradient_kernel)[: len(inputs.weights)]
    return [
        *(build_launch(kernel, rows * count, inputs, layout, tensors) for kernel in reads),
        build_launch(write_gradient_kernel, rows, inputs, layout, tensors),
        build_launch(rule_gradient_kernel, rows * count, inputs, layout, tensors),
    ]


def _tokens(x: Tensor, inputs: NeuralKernelInputs) -> Tensor:
    """Join chunks `[R, N, C, .]` to `[B, T, H, .]`."""
    batch, _, heads, _ = inputs.query.shape
    return x.unflatten(0, (batch, heads)).flatten(2, 3).transpose(1, 2)


def _weight_gradients(
    inputs: NeuralKernelInputs, layout: Layout, trace: NeuralKernelTrace, grad_y: Tensor, grads: Tensor
) -> list[Tensor]:
    """Return the gradients of the initial weights of each layer, summed over all tokens."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bthi,btho->hio", a.float(), b.float())

    def view_tokens(whole: Tensor, name: str) -> Tensor:
        return _tokens(layout.view(whole, name), inputs)

    query, key, error = inputs.query, inputs.key, view_tokens(grads, "error_grad")
    if len(inputs.weights) == 1:
        return [product(query, grad_y) + product(key, error)]
    lower = product(query, view_tokens(grads, "read_grad")) + product(key, view_tokens(grads, "product_grad"))
    reads, hidden = (
        functional.silu(view_tokens(trace.trace, "read")),
        functional.silu(view_tokens(trace.trace, "product")),
    )
    upper = product(reads, grad_y) + product(hidden, error)
    return [lower, upper.add_(product(view_tokens(grads, "slope_grad"), view_tokens(trace.trace, "error")))]


def configurations() -> dict[str, Launch]:
    """Return example launches by name. They hold meta tensors, so they compile without a GPU."""
    launches = {}
    for dtype, width, hidden, length in (
        (torch.bfloat16, 64, None, 32),
        (torch.float32, 32, None, 32),
        (torch.float16, 32, 64, 16),
    ):
        depth = "a matrix" if hidden is None else f"hidden {hidden}"
        name = f"{str(dtype).removeprefix('torch.')}, D={width}, {depth}, C={length}"
        for launch in _example(dtype, width, hidden, length):
            launches[f"{launch.name}: {name}"] = launch
    return launches


def _example(dtype: torch.dtype, width: int, hidden: int | None, length: int) -> list[Launch]:
    batch, count, heads = 8, 16, 4
    rows = batch * heads

    def meta(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*sizes, dtype=dtype, device="meta")

    layers = ((width, width),) if hidden is None else ((width, hidden), (hidden, width))
    layout = Layout(NetworkShape(layers, residual=False, norm=False), length)
    tokens = [meta(batch, count * length, heads, width, dtype=dtype) for _ in range(3)]
    rule, state = meta(rows, count, layout.sizes()["RULE_SIZE"]), meta(batch, heads, layout.shape.size)
    flags = meta(batch, count, dtype=torch.int32)
    weights = tuple(meta(heads, a, b) for a, b in layers)
    query, key, value = tokens
    inputs = NeuralKernelInputs(
        query, key, value, rule, weights, NeuralState(state, state, state), KernelBorders(flags, flags)
    )
    trace, chunk_grads = allocate_trace(inputs, layout), meta(rows, count, layout.sizes()["GRADS_SIZE"])
    grads = NeuralKernelGrads(query, query, rule, chunk_grads, trace.states, state)
    return [
        *forward_launches(inputs, layout, trace, state, query),
        *backward_launches(inputs, layout, trace, grads),
    ]
