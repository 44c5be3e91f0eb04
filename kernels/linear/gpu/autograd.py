"""Autograd function over all kernels of linear memory, and main configurations, which the tests compile."""

from __future__ import annotations

import torch
from torch import Tensor

from scrubjay.kernels.dispatch import without_autocast
from scrubjay.kernels.launch import Launch
from scrubjay.kernels.linear.chunks import from_chunks, split_tokens, to_chunks
from scrubjay.kernels.linear.decay import multiply_decays
from scrubjay.kernels.linear.gpu.forward import forward_launches
from scrubjay.kernels.linear.gpu.gradients import backward_launches
from scrubjay.kernels.linear.gpu.layout import LinearKernelGrads, LinearKernelInputs, LinearKernelTrace
from scrubjay.kernels.linear.gradient import ChunkOptions, log_gradient
from scrubjay.kernels.linear.reference import LinearInputs

# Shorter chunks are padded to 16 tokens, and longer ones than 32 would spill registers.
_SHORTEST, _LONGEST = 16, 32


def run(options: ChunkOptions, exact: bool, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs `[B, T, H, V]` and the final state.

    `inputs` are the fields of a `LinearInputs` in float32. `exact` selects 3xTF32 products instead of TF32.
    """
    options = options._replace(length=max(_SHORTEST, min(_LONGEST, options.length)))
    return _ChunkLoop.apply(options, exact, *inputs)  # pyright: ignore[reportReturnType]


class _ChunkLoop(torch.autograd.Function):
    """Autograd function over all kernels, differentiable once."""

    @staticmethod
    def forward(ctx, options: ChunkOptions, exact: bool, *inputs: Tensor):
        arguments = LinearInputs(*inputs)
        kernel_inputs, state = build_inputs(options, exact, arguments), arguments.state
        trace, after = (
            allocate_trace(kernel_inputs),
            state.flatten(0, 1).clone(memory_format=torch.contiguous_format),
        )
        out = torch.empty_like(kernel_inputs.value)
        for launch in forward_launches(kernel_inputs, trace, after, out):
            launch.run()
        ctx.options, ctx.exact, ctx.count = options, exact, len(inputs)
        ctx.save_for_backward(*inputs, *trace)
        batch, time = arguments.query.shape[:2]
        return from_chunks(out, batch, time), after.view(state.shape)

    @staticmethod
    @without_autocast
    def backward(ctx, grad_y, grad_after):
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "linear_memory with implementation='triton' is differentiable once; "
                "use 'torch' for second derivatives"
            )
        inputs = LinearInputs(*ctx.saved_tensors[: ctx.count])
        trace = LinearKernelTrace(*ctx.saved_tensors[ctx.count :])
        return None, None, *_backward(ctx.options, ctx.exact, inputs, trace, grad_y, grad_after)


def build_inputs(options: ChunkOptions, exact: bool, inputs: LinearInputs) -> LinearKernelInputs:
    """Split tokens into chunks, compute products of decays in each chunk, and return the kernels' inputs."""
    tokens = split_tokens(inputs, options.start, options.length)
    decay_products = multiply_decays(tokens.decay)
    # The decays of a level, left and right blocks interleaved in the order of the tokens.
    levels = [
        torch.stack([to_end, from_start], dim=3).flatten(2, 4)
        for from_start, to_end in decay_products.block_products
    ]
    parts = (tokens.query, tokens.key, tokens.value, tokens.step[..., 0], torch.stack(levels, dim=2))
    query, key, value, step, level_decays, from_start, to_end = (
        x.contiguous() for x in (*parts, decay_products.from_start, decay_products.to_end)
    )
    erase_key = None if tokens.erase_key is None else tokens.erase_key.contiguous()
    return LinearKernelInputs(
        query, key, value, step, level_decays, from_start, to_end, options.rule == "delta", exact, erase_key
    )


def allocate_trace(kernel_inputs: LinearKernelInputs) -> LinearKernelTrace:
    """Return empty tensors for the outputs of the forward kernels."""
    count, rows, length, width = kernel_inputs.query.shape
    new, square = kernel_inputs.query.new_empty, (count, rows, length, length)
    # With the hebbian rule the errors are the values.
    errors = torch.empty_like(kernel_inputs.value) if kernel_inputs.delta else kernel_inputs.value
    inverse = new(square) if kernel_inputs.delta else new(0)
    inverse_keys = torch.empty_like(kernel_inputs.key) if kernel_inputs.delta else new(0)
    return LinearKernelTrace(
        new(square), inverse, inverse_keys, errors, new(count, rows, width, kernel_inputs.value.shape[-1])
    )


def allocate_grads(
    kernel_inputs: LinearKernelInputs, trace: LinearKernelTrace, grad: Tensor, grad_state: Tensor
) -> LinearKernelGrads:
    """Return the arguments of the backward kernels, with empty tensors for their outputs.

    The kernels overwrite `grad_state`.
    """
    grad_errors = torch.empty_like(grad)
    grad_value = torch.empty_like(grad) if kernel_inputs.delta else grad_errors
    templates = (
        kernel_inputs.query,
        kernel_inputs.key,
        kernel_inputs.step,
        kernel_inputs.from_start,
        kernel_inputs.key,
    )
    grad_query, grad_key, grad_step, grad_log_sums, grad_right = map(torch.empty_like, templates)
    return LinearKernelGrads(
        grad,
        grad_errors,
        torch.empty_like(trace.states),
        grad_state,
        grad_value,
        grad_query,
        grad_key,
        grad_step,
        grad_log_sums,
        grad_right,
        grad_key if kernel_inputs.erase_key is None else torch.empty_like(grad_key),
    )


def _backward(
    options: ChunkOptions, exact: bool, inputs: LinearInputs, trace: LinearKernelTrace, grad_y, grad_after
) -> list[Tensor]:
    """Return the gradients of the tensors of `inputs`."""
    kernel_inputs, (batch, time, heads, _) = build_inputs(options, exact, inputs), inputs.query.shape
    grad_state = grad_after.flatten(0, 1).clone(memory_format=torch.contiguous_format)
    grads = allocate_grads(kernel_inputs, trace, to_chunks(grad_y, options.length).contiguous(), grad_state)
    for launch in backward_launches(kernel_inputs, trace, grads):
        launch.run()
    tokens = [from_chunks(x, batch, time) for x in (grads.grad_query, grads.grad_key, grads.grad_value)]
    grad_log = log_gradient(options, inputs.log_decay, grads.grad_log_sums, heads)
    grad_step = from_chunks(grads.grad_step[..., None], batch, time)[..., 0]
    result = [*tokens, grad_log, grad_step, grad_state.view(inputs.state.shape)]
    if inputs.erase_key is not None:
        result.append(from_chunks(grads.grad_erase_key, batch, time))
    return result


def configurations() -> dict[str, Launch]:
    """Return example launches by name. They hold meta tensors, so they compile without a GPU."""
    launches = {}
    for dtype, width, per_channel, rule in (
        (torch.bfloat16, 64, False, "delta"),
        (torch.bfloat16, 64, True, "delta"),
        (torch.bfloat16, 64, True, "delta with erase keys"),
        (torch.float32, 32, False, "delta"),
        (torch.float32, 64, False, "hebbian"),
    ):
        decay = "channel" if per_channel else "head"
        name = f"{str(dtype).removeprefix('torch.')}, {rule}, one decay per {decay}, D={width}, C=32"
        for launch in _example(dtype == torch.float32, width, per_channel, rule):
            from_keys = "keys' " * launch.constants.get("FROM_KEYS", False)
            launches[f"{from_keys}{launch.name}: {name}"] = launch
    return launches


def _example(exact: bool, width: int, channel: bool, rule: str) -> list[Launch]:
    count, rows, length, levels = 16, 32, 32, 5

    def meta(*sizes: int) -> Tensor:
        return torch.empty(count, rows, *sizes, device="meta")

    factors = width if channel else 1
    tokens, decays = meta(length, width), meta(length, factors)
    inputs = LinearKernelInputs(
        tokens,
        tokens,
        tokens,
        meta(length),
        meta(levels, length, factors),
        decays,
        decays,
        delta=rule != "hebbian",
        exact=exact,
        erase_key=tokens if "erase" in rule else None,
    )
    trace, state = allocate_trace(inputs), torch.empty(rows, width, width, device="meta")
    grads = allocate_grads(inputs, trace, tokens, state)
    return [*forward_launches(inputs, trace, state, tokens), *backward_launches(inputs, trace, grads)]
