"""The second half of chunk retrieval: what queries read of chunks that are chosen.

Letters as in `chunk_retrieval`.
"""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.kernels.dispatch import is_traced, resolve, without_autocast, without_data
from scrubjay.kernels.retrieval import reference, vectorised
from scrubjay.kernels.retrieval.checks import check_heads, check_memory, nothing, of_one_dtype, unsupported
from scrubjay.kernels.retrieval.op import Combine, Implementation
from scrubjay.kernels.retrieval.problem import Choice, Reading


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
    """Return each query's read-out of the chunks chosen for it, zeros where there is none.

    A negative chunk is none; no query has one twice. `combine="hierarchical"` weights one attention per chunk
    by a softmax over `scores`, through which gradients flow to what chose; `"joint"` is one softmax over all
    tokens and looks at no score. Chunks that nobody has chosen may hold anything, NaN included.

    Args:
        query: What asks, H heads.
        keys: M chunks of C steps, G heads.
        values: What is read, a step's beside its key.
        chunks: As `choose_chunks` returns them, S heads.
        scores: Theirs, for "hierarchical".
        combine: "hierarchical" or "joint".
        scale: Of the products inside chunks, by default D**-0.5.
        positions: A code for each step of a chunk, added to keys and values.
        lengths: Of the chunks, in steps.
        return_lse: Whether the logarithm of the softmax's sum comes with the read-out, for `merge`.
        implementation: As in `chunk_retrieval`.

    Raises ValueError on mismatched shapes, a chunk that is not there (CPU) and a hierarchical read without
    scores, TypeError on wrong dtypes.
    """
    check_memory(query, keys, values, positions, lengths, combine)
    joint = combine == "joint"
    _check_chunks(query, keys, chunks, scores, joint)
    query, keys, values, positions = of_one_dtype(query, keys, values, positions)
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
        unsupported=unsupported(query, widths, reading.units, choice.top_k),
    )
    if 0 in (keys.shape[1], keys.shape[2], choice.top_k, *query.shape):
        out, lse = nothing(query, values)
    elif path == "reference":
        out, lse = reference.attend(reading, choice)
    elif path == "triton":
        out, _, _, lse = _op(*reading._replace(scores=None if joint else scores), joint, choice.scale)
    else:
        out, lse = vectorised.attend(reading, choice, path)
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
    """Run Triton's kernel: the read-out, weights and log normalisers for its backward, and the lse."""
    from scrubjay.kernels.retrieval import gpu

    reading = Reading(query, keys, values, chunks, scores, positions, lengths)
    read = gpu.read(reading, Choice(chunks.shape[3], joint, scale, 1.0, 0, 0))
    return read.out, read.weights, read.normalisers, read.lse


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
    reading, read = Reading(*ctx.saved_tensors[:7]), ctx.saved_tensors[7:]
    wanted = list(ctx.needs_input_grad[:7])
    if grad is None and lse_grad is None:
        return (None,) * 9
    grad = torch.zeros_like(read[0]) if grad is None else grad
    grads = _backward_op(*reading, *ctx.options, grad, lse_grad, *read, wanted)
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), None, None


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
    wanted: list[bool],
) -> list[Tensor]:
    """Return a gradient for each of the seven tensors, empty where none is wanted."""
    from scrubjay.kernels.retrieval import gpu

    reading = Reading(query, keys, values, chunks, scores, positions, lengths)
    choice = Choice(chunks.shape[3], joint, scale, 1.0, 0, 0)
    read, arrived = gpu.Filled(out, weights, normalisers, lse), gpu.Grads(grad, lse_grad)
    grads = gpu.backward(reading, choice, read, arrived, wanted[1] or wanted[2] or wanted[5])
    return [
        grads[name].to(getattr(reading, name).dtype) if asked else query.new_empty(0)
        for name, asked in zip(Reading._fields, wanted, strict=True)
    ]


@_backward_op.register_fake
def _(
    query, keys, values, chunks, scores, positions, lengths, joint, scale,
    grad, lse_grad, out, weights, normalisers, lse, wanted,
):  # fmt: skip
    return without_data((query, keys, values, chunks, scores, positions, lengths), wanted)


def _check_chunks(query: Tensor, keys: Tensor, chunks: Tensor, scores: Tensor | None, joint: bool) -> None:
    if chunks.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"chunks have dtype {chunks.dtype}; expected torch.int32 or torch.int64")
    if chunks.ndim != 4 or chunks.shape[:2] != query.shape[:2]:
        expected = f"[{query.shape[0]}, {query.shape[1]}, S, K]"
        raise ValueError(f"chunks have shape {tuple(chunks.shape)}; expected {expected}")
    check_heads("coarse heads", chunks.shape[2], query.shape[2])
    if scores is None and not joint:
        raise ValueError("combine='hierarchical' weighs chunks by scores: give them, or combine='joint'")
    if scores is not None and not scores.is_floating_point():
        raise TypeError(f"scores have dtype {scores.dtype}; expected a floating-point one")
    if scores is not None and scores.shape != chunks.shape:
        raise ValueError(f"scores have shape {tuple(scores.shape)}; expected {tuple(chunks.shape)}")
    if not is_traced() and not chunks.is_cuda and chunks.numel() and int(chunks.max()) >= keys.shape[1]:
        raise ValueError(f"chunk {int(chunks.max())} is chosen, but there are {keys.shape[1]}")
