"""Attention inside selected chunks, the second half of chunk retrieval.

Letters as in `chunk_retrieval`.
"""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.kernels.dispatch import empty_gradients, is_traced, resolve, without_autocast
from scrubjay.kernels.retrieval import reference, vectorized
from scrubjay.kernels.retrieval.op import Combine, Implementation
from scrubjay.kernels.retrieval.problem import (
    Choice,
    Reading,
    check_heads,
    check_memory,
    empty_output,
    promote_dtypes,
    unsupported_sizes,
)


@overload
def attend_chosen(
    query: Float[Tensor, "B T H D"],
    keys: Float[Tensor, "B M C G D"],
    values: Float[Tensor, "B M C G V"],
    chunks: Int[Tensor, "B T S K"],
    scores: Float[Tensor, "B T S K"] | None = None,
    *,
    combine: Combine = "hierarchical",
    scale: float | None = None,
    positions: Float[Tensor, "C D"] | None = None,
    lengths: Int[Tensor, "B M"] | None = None,
    return_lse: Literal[False] = False,
    implementation: Implementation = "auto",
) -> Float[Tensor, "B T H V"]: ...


@overload
def attend_chosen(
    query: Float[Tensor, "B T H D"],
    keys: Float[Tensor, "B M C G D"],
    values: Float[Tensor, "B M C G V"],
    chunks: Int[Tensor, "B T S K"],
    scores: Float[Tensor, "B T S K"] | None = None,
    *,
    combine: Combine = "hierarchical",
    scale: float | None = None,
    positions: Float[Tensor, "C D"] | None = None,
    lengths: Int[Tensor, "B M"] | None = None,
    return_lse: Literal[True],
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"]]: ...


@without_autocast
def attend_chosen(
    query: Float[Tensor, "B T H D"],
    keys: Float[Tensor, "B M C G D"],
    values: Float[Tensor, "B M C G V"],
    chunks: Int[Tensor, "B T S K"],
    scores: Float[Tensor, "B T S K"] | None = None,
    *,
    combine: Combine = "hierarchical",
    scale: float | None = None,
    positions: Float[Tensor, "C D"] | None = None,
    lengths: Int[Tensor, "B M"] | None = None,
    return_lse: bool = False,
    implementation: Implementation = "auto",
) -> Float[Tensor, "B T H V"] | tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"]]:
    """Attend to the chunks selected for each query; queries without chunks return zeros.

    Negative chunk indices are ignored. A query must not list a chunk twice. `combine="hierarchical"` computes
    one attention output per chunk, and weights these outputs by a softmax over `scores`. So gradients reach
    the scores. `"joint"` is one softmax over the tokens of all selected chunks and ignores the scores. Chunks
    that no query selected may hold any values, including NaN.

    Args:
        query: Queries with H heads.
        keys: M chunks of C steps, G heads.
        values: Value of each step, in the layout of `keys`.
        chunks: Chunk indices for S heads, as returned by `choose_chunks`.
        scores: Scores of the chunks; required by "hierarchical".
        combine: "hierarchical" or "joint".
        scale: Scale of the logits inside chunks, D**-0.5 by default.
        positions: Position code of each step of a chunk, added to keys and values.
        lengths: Lengths of the chunks in steps; None if all steps are used.
        return_lse: Also return the logsumexp of the softmax, for `merge`.
        implementation: As in `chunk_retrieval`.

    Raises ValueError on mismatched shapes, on chunk indices out of range (CPU only) and on hierarchical
    attention without scores. Raises TypeError on wrong dtypes.
    """
    check_memory(query, keys, values, positions, lengths, combine)
    joint = combine == "joint"
    _check_chunks(query, keys, chunks, scores, joint)
    query, keys, values, positions = promote_dtypes(query, keys, values, positions)
    absent = chunks < 0
    if lengths is not None and keys.shape[1]:
        row = torch.arange(len(query), device=query.device)[:, None, None, None]
        absent = absent | (lengths[row, chunks.clamp(min=0)] <= 0)
    if joint or scores is None:
        scores = query.new_zeros(chunks.shape, dtype=torch.float32)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(absent, -math.inf)
    chunks = chunks.masked_fill(scores == -math.inf, -1).long()
    choice = Choice(chunks.shape[3], joint, query.shape[-1] ** -0.5 if scale is None else scale, 1.0, 0, 0)
    choice = choice._replace(return_lse=return_lse)
    reading = Reading(query, keys, values, chunks, scores, positions, lengths)
    widths = {"head width": query.shape[-1], "value width": values.shape[-1]}
    path = resolve(
        implementation,
        *(tensor for tensor in reading if tensor is not None),
        paths=("dense", "listed", "gather"),
        unsupported_reason=unsupported_sizes(query, widths, reading.units, choice.top_k),
    )
    if 0 in (keys.shape[1], keys.shape[2], choice.top_k, *query.shape):
        out, lse = empty_output(query, values)
    elif path == "reference":
        out, lse = reference.attend(reading, choice)
    elif path == "triton":
        out, _, _, lse = _op(*reading._replace(scores=None if joint else scores), joint, choice.scale)
    else:
        out, lse = vectorized.attend(reading, choice, path)
    return (out, lse) if return_lse else out  # pyright: ignore[reportReturnType]


@torch.library.custom_op("scrubjay::attend_chosen", mutates_args=())
def _op(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    chunks: Tensor,
    scores: Tensor | None,
    positions: Tensor | None,
    lengths: Tensor | None,
    joint: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Run the Triton kernel. Return the read-out, weights and log normalisers (for backward), and the lse."""
    from scrubjay.kernels.retrieval import gpu

    reading = Reading(query, keys, values, chunks, scores, positions, lengths)
    outputs = gpu.run_attention(reading, Choice(chunks.shape[3], joint, scale, 1.0, 0, 0))
    return outputs.out, outputs.weights, outputs.normalisers, outputs.lse


@_op.register_fake
def _(query, keys, values, chunks, scores, positions, lengths, joint, scale):
    batch, time, heads, _ = query.shape
    normalisers = (batch, time, heads, 1 if joint else chunks.shape[3])
    return (
        query.new_empty(batch, time, heads, values.shape[-1]),
        query.new_empty(chunks.shape, dtype=torch.float32),
        query.new_empty(normalisers, dtype=torch.float32),
        query.new_empty(batch, time, heads, dtype=torch.float32),
    )


def _setup_context(ctx, inputs, output) -> None:
    ctx.options = inputs[7:]
    ctx.save_for_backward(*inputs[:7], *output)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, _weights, _normalisers, lse_grad) -> tuple:
    reading, outputs = Reading(*ctx.saved_tensors[:7]), ctx.saved_tensors[7:]
    needs_gradient = list(ctx.needs_input_grad[:7])
    if grad is None and lse_grad is None:
        return (None,) * 9
    grad = torch.zeros_like(outputs[0]) if grad is None else grad
    grads = _backward_op(*reading, *ctx.options, grad, lse_grad, *outputs, needs_gradient)
    return *(g if is_needed else None for g, is_needed in zip(grads, needs_gradient, strict=True)), None, None


_op.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("scrubjay::attend_chosen_backward", mutates_args=())
def _backward_op(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    chunks: Tensor,
    scores: Tensor | None,
    positions: Tensor | None,
    lengths: Tensor | None,
    joint: bool,
    scale: float,
    grad: Tensor,
    lse_grad: Tensor | None,
    out: Tensor,
    weights: Tensor,
    normalisers: Tensor,
    lse: Tensor,
    needs_gradient: list[bool],
) -> list[Tensor]:
    """Return the gradients of the first seven arguments; an empty tensor where no gradient is needed."""
    from scrubjay.kernels.retrieval import gpu

    reading = Reading(query, keys, values, chunks, scores, positions, lengths)
    choice = Choice(chunks.shape[3], joint, scale, 1.0, 0, 0)
    outputs, output_grads = (
        gpu.AttentionOutputs(out, weights, normalisers, lse),
        gpu.OutputGrads(grad, lse_grad),
    )
    grads = gpu.backward(
        reading, choice, outputs, output_grads, needs_gradient[1] or needs_gradient[2] or needs_gradient[5]
    )
    return [
        grads[name].to(getattr(reading, name).dtype) if is_needed else query.new_empty(0)
        for name, is_needed in zip(Reading._fields, needs_gradient, strict=True)
    ]


@_backward_op.register_fake
def _(
    query, keys, values, chunks, scores, positions, lengths, joint, scale,
    grad, lse_grad, out, weights, normalisers, lse, needs_gradient,
):  # fmt: skip
    return empty_gradients((query, keys, values, chunks, scores, positions, lengths), needs_gradient)


def _check_chunks(query: Tensor, keys: Tensor, chunks: Tensor, scores: Tensor | None, joint: bool) -> None:
    if chunks.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"chunks have dtype {chunks.dtype}; expected torch.int32 or torch.int64")
    if chunks.ndim != 4 or chunks.shape[:2] != query.shape[:2]:
        expected = f"[{query.shape[0]}, {query.shape[1]}, heads, selected chunks]"
        raise ValueError(f"chunks have shape {tuple(chunks.shape)}; expected {expected}")
    check_heads("heads of chunks", chunks.shape[2], query.shape[2])
    if scores is None and not joint:
        raise ValueError("combine='hierarchical' needs scores; pass scores or use combine='joint'")
    if scores is not None and not scores.is_floating_point():
        raise TypeError(f"scores have dtype {scores.dtype}; expected a floating-point dtype")
    if scores is not None and scores.shape != chunks.shape:
        raise ValueError(f"scores have shape {tuple(scores.shape)}; expected {tuple(chunks.shape)}")
    if not is_traced() and not chunks.is_cuda and chunks.numel() and int(chunks.max()) >= keys.shape[1]:
        raise ValueError(f"chunks has index {int(chunks.max())}, but keys has only {keys.shape[1]} chunks")
