"""Sink attention: a causal sliding window over an episode plus the episode's first steps (attention sinks).

Based on StreamingLLM (Xiao et al. 2023, arXiv 2309.17453), with an optional learned sink logit per head: an
additional column of the softmax whose value is zero. Visibility depends on step numbers only, so one op
serves both a decode step over a ring buffer and a segment with resets. Key n is visible to query t if

    max(0, episode_start[t]) <= key_step[n] <= query_step[t]  and
    (key_step[n] < episode_start[t] + num_sinks  or  key_step[n] > query_step[t] - window).

A reset therefore does not have to clear the cache: older steps are before the episode's start and become
invisible. Keys may be in any order.

Dimension letters: B batch, T queries, N key slots, H query heads, G key heads, D width of keys, V width of
values, R = H / G query heads per key head, S sinks. For blocks of queries: K blocks, L queries and C columns
per block. Query head h uses key head `h * G // H`.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.kernels.dispatch import (
    any_dual,
    check_floats,
    is_compiled,
    is_traced,
    resolve,
    unsupported_dtype,
    without_autocast,
)
from scrubjay.kernels.sinks import reference, vectorized

Implementation = Literal["auto", "reference", "torch", "dense", "banded", "triton"]

_WIDEST_TRITON_HEAD = 256


@overload
def sink_attention(
    query: Float[Tensor, "B T H D"],
    keys: Float[Tensor, "B N G D"],
    values: Float[Tensor, "B N G V"],
    query_step: Int[Tensor, "B T"],
    key_step: Int[Tensor, "B N"],
    episode_start: Int[Tensor, "B T"],
    *,
    window: int,
    num_sinks: int = 0,
    sink_logit: Float[Tensor, " H"] | None = None,
    scale: float | None = None,
    return_lse: Literal[False] = False,
    implementation: Implementation = "auto",
) -> Float[Tensor, "B T H V"]: ...


@overload
def sink_attention(
    query: Float[Tensor, "B T H D"],
    keys: Float[Tensor, "B N G D"],
    values: Float[Tensor, "B N G V"],
    query_step: Int[Tensor, "B T"],
    key_step: Int[Tensor, "B N"],
    episode_start: Int[Tensor, "B T"],
    *,
    window: int,
    num_sinks: int = 0,
    sink_logit: Float[Tensor, " H"] | None = None,
    scale: float | None = None,
    return_lse: Literal[True],
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"]]: ...


@without_autocast
def sink_attention(
    query: Float[Tensor, "B T H D"],
    keys: Float[Tensor, "B N G D"],
    values: Float[Tensor, "B N G V"],
    query_step: Int[Tensor, "B T"],
    key_step: Int[Tensor, "B N"],
    episode_start: Int[Tensor, "B T"],
    *,
    window: int,
    num_sinks: int = 0,
    sink_logit: Float[Tensor, " H"] | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    implementation: Implementation = "auto",
) -> Float[Tensor, "B T H V"] | tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"]]:
    """Attend to the first `num_sinks` and the last `window` steps of each query's episode.

    The window includes the query's own step. No two slots may hold the same step. The output of a query
    without visible slots is zero. Slots that no query sees may hold any value, including NaN. Scores are
    computed in at least float32.

    "banded" takes time linear in T. It requires that the last T key slots are the queries' own steps, in
    order. "torch" selects "banded" where this holds and "banded" is faster, and otherwise "dense". The
    selection synchronizes with a GPU. A call with "dense" or "banded" does not synchronize, and checks the
    requirement of "banded" on a CPU only.

    Args:
        query: Queries of H heads.
        keys: Keys of G heads, in slots of any order.
        values: Values, in the slots of their keys.
        query_step: Number of each query's step in its batch row, counted across episodes; int32 or int64.
        key_step: Number of the step in each slot, int32 or int64; negative for an empty slot.
        episode_start: Index of the first step of each query's episode, int32 or int64.
        window: Window length in steps, at least 1.
        num_sinks: Number of sink steps at the start of an episode, 0 or more.
        sink_logit: For each head, the finite score of an additional key whose value is zero.
        scale: Factor of the scores; defaults to D**-0.5.
        return_lse: Also return the log-sum-exp of the scores and the sink logit, for `merge`; -inf for an
            empty sum. On a CPU this disables torch's fused attention, which returns no log-sum-exp.
        implementation: An implementation of `scrubjay.kernels.dispatch`, or "dense" or "banded".

    Raises ValueError on mismatched shapes, `window` < 1 or `num_sinks` < 0. Raises TypeError on a wrong
    dtype.
    """
    _check(query, keys, values, query_step, key_step, episode_start, window, num_sinks, sink_logit)
    factor: float = query.shape[-1] ** -0.5 if scale is None else scale
    path = resolve(
        implementation,
        query,
        keys,
        values,
        sink_logit,
        paths=("dense", "banded"),
        unsupported_reason=_unsupported_by_triton(query, keys, values),
    )
    steps = (query_step, key_step, episode_start)
    inputs = (query, keys, values, sink_logit, *steps, window, num_sinks, factor)
    if path == "reference":
        out, lse = reference.read_out(*inputs)
    elif path == "triton" or (is_compiled() and not return_lse):
        out, lse = _op(*inputs, path)
    elif return_lse:
        out, lse = vectorized.read_out_with_lse(*inputs, path)
    else:
        return _eager(*inputs, path)
    return (out, lse) if return_lse else out  # pyright: ignore[reportReturnType]


def sink_slot(step_in_episode: Int[Tensor, "*batch"], num_sinks: int, window: int) -> Int[Tensor, "*batch"]:
    """Return the slot to which a step is written in a cache of `num_sinks + window` slots.

    A cache that is filled in this way always holds every step that `sink_attention` reads with the same
    `num_sinks` and `window`.

    Args:
        step_in_episode: Number of the step in its episode, from 0.
        num_sinks: Slots for the first steps of an episode.
        window: Slots for the latest steps.
    """
    ring = num_sinks + (step_in_episode - num_sinks) % window
    return torch.where(step_in_episode < num_sinks, step_in_episode, ring)


def _eager(query, keys, values, sink_logit, *options) -> Tensor:
    """Run the torch path, with fused attention on a CPU.

    Explicit attention runs instead if the caller may need derivatives that fused attention does not support
    or does not accelerate.
    """
    inputs = (query, keys, values, sink_logit)
    is_transformed = is_traced() or torch._C._are_functorch_transforms_active() or any_dual(*inputs)
    learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    if not query.is_cpu or is_transformed or (learns and sink_logit is not None):
        return vectorized.read_out(*inputs, *options, use_fused=False)
    if learns:
        return _FusedFirstDerivative.apply(query, keys, values, *options)
    return vectorized.read_out(*inputs, *options, use_fused=True)


class _FusedFirstDerivative(torch.autograd.Function):
    """Torch path of sink attention without `sink_logit`.

    First derivatives use fused attention. Higher derivatives use explicit attention.
    """

    @staticmethod
    def forward(ctx, query, keys, values, *options):
        ctx.save_for_backward(query, keys, values)
        ctx.options = options
        ctx.leaves = [x.detach().requires_grad_(x.requires_grad) for x in (query, keys, values)]
        with torch.enable_grad():
            ctx.out = vectorized.read_out(*ctx.leaves, None, *options, use_fused=True)
        return ctx.out.detach()

    @staticmethod
    @without_autocast
    def backward(ctx, grad):
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or any_dual(grad):
            grads = _compute_vjp(grad, *inputs, None, *ctx.options, use_fused=False)
        else:
            # Retain the graph: the caller may run backward again.
            leaves = [x for x in ctx.leaves if x.requires_grad]
            leaf_grads = iter(torch.autograd.grad(ctx.out, leaves, grad, retain_graph=True))
            grads = [next(leaf_grads) if x.requires_grad else None for x in ctx.leaves]
        return *grads, *[None] * len(ctx.options)


@torch.library.custom_op("scrubjay::sink_attention", mutates_args=())
def _op(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    sink_logit: Tensor | None,
    query_step: Tensor,
    key_step: Tensor,
    episode_start: Tensor,
    window: int,
    num_sinks: int,
    scale: float,
    implementation: str,
) -> tuple[Tensor, Tensor]:
    """Return the output, and the log-sum-exp `[B, T, H]` of the scores, which is empty unless Triton ran."""
    steps = (query_step, key_step, episode_start)
    if implementation == "triton":
        from scrubjay.kernels.sinks import gpu

        return gpu.forward(query, keys, values, sink_logit, *steps, window, num_sinks, scale)
    out = vectorized.read_out(
        query, keys, values, sink_logit, *steps, window, num_sinks, scale, implementation, use_fused=True
    )
    return out.contiguous(), query.new_empty(0, dtype=torch.float32)


@_op.register_fake
def _op_fake(query, keys, values, *others):
    batch, time, heads, _ = query.shape
    shape = (batch, time, heads) if others[-1] == "triton" else (0,)
    return query.new_empty(batch, time, heads, values.shape[-1]), query.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("scrubjay::sink_attention_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    sink_logit: Tensor | None,
    out: Tensor,
    log_sum: Tensor,
    query_step: Tensor,
    key_step: Tensor,
    episode_start: Tensor,
    window: int,
    num_sinks: int,
    scale: float,
    implementation: str,
    log_sum_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of query, keys, values and sink_logit; the last is empty without a sink_logit."""
    options = (query_step, key_step, episode_start, window, num_sinks, scale)
    if implementation == "triton":
        from scrubjay.kernels.sinks import gpu

        grads = (grad, log_sum_grad)
        return gpu.backward(grads, query, keys, values, sink_logit, out, log_sum, *options)
    grads = _compute_vjp(
        grad, query, keys, values, sink_logit, *options, implementation, use_fused=sink_logit is None
    )
    grads = [gradient.contiguous() for gradient in grads]
    return grads[0], grads[1], grads[2], grads[3] if sink_logit is not None else query.new_empty(0)


@_backward_op.register_fake
def _backward_op_fake(grad, query, keys, values, sink_logit, *others):
    inputs = (query, keys, values, query.new_empty(0) if sink_logit is None else sink_logit)
    return tuple(tensor.new_empty(tensor.shape) for tensor in inputs)


def _compute_vjp(grad, query, keys, values, sink_logit, *options, use_fused) -> tuple[Tensor, ...]:
    """Return the torch path's gradients of query, keys and values, and of sink_logit unless it is None."""
    inputs = (query, keys, values, sink_logit)[: 3 if sink_logit is None else 4]

    def run(query, keys, values, sink_logit=None):
        return vectorized.read_out(query, keys, values, sink_logit, *options, use_fused=use_fused)

    # Also works inside a custom op, where autograd is disabled.
    return torch.func.vjp(run, *inputs)[1](grad)


def _save(ctx, inputs, output):
    ctx.options = inputs[7:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:7], *(output if inputs[-1] == "triton" else (None, None)))


def _backward(ctx, grad, log_sum_grad):
    if grad is None and log_sum_grad is None:
        return (None,) * 11
    query, keys, values, sink_logit, query_step, key_step, episode_start, out, log_sum = ctx.saved_tensors
    if grad is None:
        grad = query.new_zeros(*query.shape[:3], values.shape[-1])
    if out is None:
        out = log_sum = query.new_empty(0)
        log_sum_grad = None
    inputs = (query, keys, values, sink_logit, out, log_sum, query_step, key_step, episode_start)
    *grads, sink_grad = _backward_op(grad, *inputs, *ctx.options, log_sum_grad)
    return *grads, None if sink_logit is None else sink_grad, *[None] * 7


def _save_for_second(ctx, inputs, output):
    ctx.options = inputs[10:14]
    ctx.save_for_backward(*inputs[:5], *inputs[7:10])


def _second_backward(ctx, *grads):
    if ctx.options[-1] == "triton":
        raise NotImplementedError(
            "sink_attention with implementation='triton' is differentiable once; use 'torch' for second "
            "derivatives"
        )
    grad, query, keys, values, sink_logit, *steps = ctx.saved_tensors
    inputs = (grad, query, keys, values, sink_logit)[: 4 if sink_logit is None else 5]

    def run(grad, query, keys, values, sink_logit=None):
        return _compute_vjp(grad, query, keys, values, sink_logit, *steps, *ctx.options, use_fused=False)

    second_grads = torch.func.vjp(run, *inputs)[1](grads[: len(inputs) - 1])
    return *second_grads, *[None] * (15 - len(second_grads))


_op.register_autograd(_backward, setup_context=_save)
_backward_op.register_autograd(_second_backward, setup_context=_save_for_second)


def _unsupported_by_triton(query: Tensor, keys: Tensor, values: Tensor) -> str | None:
    if reason := unsupported_dtype(query):
        return reason
    if keys.dtype != query.dtype or values.dtype != query.dtype:
        return f"no kernel for a mixture of {query.dtype}, {keys.dtype} and {values.dtype}"
    width = max(query.shape[-1], values.shape[-1])
    if width > _WIDEST_TRITON_HEAD:
        return f"no kernel for heads of width {width}, above {_WIDEST_TRITON_HEAD}"
    return None


def _check(query, keys, values, query_step, key_step, episode_start, window, num_sinks, sink_logit) -> None:
    if window < 1:
        raise ValueError(f"window={window}: must be at least 1, because it includes the query's own step")
    if num_sinks < 0:
        raise ValueError(f"num_sinks={num_sinks}: must be 0 or more")
    for name, tensor in (("query", query), ("keys", keys), ("values", values)):
        if tensor.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected 4 dimensions")
    check_floats(query=query, keys=keys, values=values)
    batch, time, heads, width = query.shape
    slots, groups = keys.shape[1:3]
    if keys.shape[0] != batch or keys.shape[3] != width:
        raise ValueError(f"keys has shape {tuple(keys.shape)}; expected [{batch}, slots, heads, {width}]")
    if values.shape[:3] != keys.shape[:3]:
        raise ValueError(
            f"values has shape {tuple(values.shape)}; expected {tuple(keys.shape[:3])} + (width,)"
        )
    if groups < 1 or heads % groups:
        raise ValueError(f"{groups} key heads do not divide {heads} query heads; use a divisor of {heads}")
    for name, tensor, shape in (
        ("query_step", query_step, (batch, time)),
        ("key_step", key_step, (batch, slots)),
        ("episode_start", episode_start, (batch, time)),
    ):
        if tensor.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} has dtype {tensor.dtype}; expected int64 or int32")
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")
    if sink_logit is not None and sink_logit.shape != (heads,):
        raise ValueError(f"sink_logit has shape {tuple(sink_logit.shape)}; expected ({heads},)")
