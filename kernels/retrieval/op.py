"""Chunk retrieval: score a query against chunk summaries, select the top k, attend inside them.

HCAM (Lampinen et al. 2021, arXiv 2105.14039), Landmark attention (arXiv 2305.16300), LongHeads (arXiv
2402.10685) and MoBA (arXiv 2502.13189) share this operation. Policies, caches and agents use it.

Letters: B batch, T queries, M chunks, C chunk length, H query heads, G key heads, S coarse heads (the heads
of `summary_query`, which select chunks), D head width, V value width, K selected chunks. Query head h reads
key head `h * G // H` and the selection of coarse head `h * S // H`. A unit is a pair of coarse head and key
head that some query head uses. There are U = lcm(S, G) units. The H / U query heads of a unit read the same
keys of the same chunks.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.dispatch import (
    empty_gradients,
    is_compiled,
    load_implementation,
    resolve,
    without_autocast,
)
from scrubjay.kernels.retrieval.choose import check_counts, check_summaries
from scrubjay.kernels.retrieval.problem import (
    Choice,
    Problem,
    as_mask,
    check_heads,
    check_memory,
    empty_output,
    promote_dtypes,
    unsupported_sizes,
)

Combine = Literal["hierarchical", "joint"]
Implementation = Literal["auto", "reference", "torch", "triton", "dense", "listed", "gather"]


@overload
def chunk_retrieval(
    query: Float[Tensor, "B T H D"],
    keys: Float[Tensor, "B M C G D"],
    values: Float[Tensor, "B M C G V"],
    summaries: Float[Tensor, "B M Gs Ds"],
    valid: Int[Tensor, "B T"] | Bool[Tensor, "B T M"],
    *,
    top_k: int,
    combine: Combine = "hierarchical",
    scale: float | None = None,
    summary_query: Float[Tensor, "B T S Ds"] | None = None,
    summary_scale: float | None = None,
    positions: Float[Tensor, "C D"] | None = None,
    lengths: Int[Tensor, "B M"] | None = None,
    num_sink_chunks: int = 0,
    num_local_chunks: int = 0,
    stop_memory_gradient: bool = False,
    return_lse: Literal[False] = False,
    implementation: Implementation = "auto",
) -> Float[Tensor, "B T H V"]: ...


@overload
def chunk_retrieval(
    query: Float[Tensor, "B T H D"],
    keys: Float[Tensor, "B M C G D"],
    values: Float[Tensor, "B M C G V"],
    summaries: Float[Tensor, "B M Gs Ds"],
    valid: Int[Tensor, "B T"] | Bool[Tensor, "B T M"],
    *,
    top_k: int,
    combine: Combine = "hierarchical",
    scale: float | None = None,
    summary_query: Float[Tensor, "B T S Ds"] | None = None,
    summary_scale: float | None = None,
    positions: Float[Tensor, "C D"] | None = None,
    lengths: Int[Tensor, "B M"] | None = None,
    num_sink_chunks: int = 0,
    num_local_chunks: int = 0,
    stop_memory_gradient: bool = False,
    return_lse: Literal[True],
    implementation: Implementation = "auto",
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"]]: ...


@without_autocast
def chunk_retrieval(
    query: Float[Tensor, "B T H D"],
    keys: Float[Tensor, "B M C G D"],
    values: Float[Tensor, "B M C G V"],
    summaries: Float[Tensor, "B M Gs Ds"],
    valid: Int[Tensor, "B T"] | Bool[Tensor, "B T M"],
    *,
    top_k: int,
    combine: Combine = "hierarchical",
    scale: float | None = None,
    summary_query: Float[Tensor, "B T S Ds"] | None = None,
    summary_scale: float | None = None,
    positions: Float[Tensor, "C D"] | None = None,
    lengths: Int[Tensor, "B M"] | None = None,
    num_sink_chunks: int = 0,
    num_local_chunks: int = 0,
    stop_memory_gradient: bool = False,
    return_lse: bool = False,
    implementation: Implementation = "auto",
) -> Float[Tensor, "B T H V"] | tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"]]:
    """Attend to the `top_k` best chunks of each query; queries without readable chunks return zeros.

    `choose_chunks` and `attend_chosen` are the two halves of this op, as separate functions.

    `valid` is the number of leading chunks that a query may read, or a mask. For causal retrieval, pass
    `position // C`. Then a query reads only chunks that were complete before it. Chunk scores are
    `summary_query · summaries * summary_scale` (`summary_query` defaults to `query`, `summary_scale` to
    Ds**-0.5). Ties go to the earlier chunk. The first `num_sink_chunks` and the last `num_local_chunks`
    readable chunks are always kept and count toward `top_k`.

    `combine="hierarchical"` computes one attention output per chunk, and weights these outputs by a softmax
    over the selected chunk scores. So gradients reach the summaries. `"joint"` is one softmax over the tokens
    of all selected chunks. `positions` is added to every chunk's keys and values (V must then equal D). Only
    the first `lengths` steps of a chunk are read, by default all. `scale` defaults to D**-0.5.
    `stop_memory_gradient` detaches keys, values and summaries. Chunks and steps that no query may read may
    hold any values, including NaN. Scores are computed in at least float32, also under autocast. Mixed dtypes
    are promoted to the widest.

    `implementation` is an implementation of `scrubjay.kernels.dispatch`, or a variant of "torch": "dense"
    attends to every chunk, "gather" copies the selected chunks, and "listed" reads the selected chunks in
    place (CPU, float32 and float64). On a GPU, the Triton kernels support D, V, Ds up to 256 (float32: 128)
    and `top_k` up to 64. For larger sizes, "auto" runs torch.

    Args:
        query: Queries with H heads.
        keys: M chunks of C steps, G heads.
        values: Value of each step, in the layout of `keys`.
        summaries: Chunk summaries, which are scored against `summary_query`.
        valid: Numbers of leading chunks, or a mask of chunks.
        top_k: Number of chunks to keep, at least 1.
        combine: "hierarchical" or "joint".
        scale: Scale of the logits inside chunks.
        summary_query: Queries to the summaries, S heads.
        summary_scale: Scale of the chunk scores.
        positions: Position code of each step of a chunk.
        lengths: Lengths of the chunks in steps; None if all steps are used.
        num_sink_chunks: Leading readable chunks that are always kept; 0 for none.
        num_local_chunks: Trailing readable chunks that are always kept; 0 for none.
        stop_memory_gradient: Detach keys, values and summaries.
        return_lse: Also return a logsumexp for `merge`. For "joint", it covers the logits of all selected
            tokens. For "hierarchical", it covers the selected chunk scores. It is -inf for queries that read
            nothing.
        implementation: An implementation of `scrubjay.kernels.dispatch`, or a variant of "torch".

    Raises ValueError on mismatched shapes, and if `top_k` is below 1 or too small for the always-kept chunks.
    Raises TypeError on wrong dtypes.
    """
    summary_query = query if summary_query is None else summary_query
    check_memory(query, keys, values, positions, lengths, combine)
    if summaries.ndim == 4 and summaries.shape[:2] != keys.shape[:2]:
        expected = f"[{query.shape[0]}, {keys.shape[1]}, heads, width]"
        raise ValueError(f"summaries have shape {tuple(summaries.shape)}; expected {expected}")
    check_summaries(summary_query, summaries, valid)
    check_heads("heads of summary_query", summary_query.shape[2], query.shape[2])
    if summary_query.shape[:2] != query.shape[:2]:
        expected = f"[{query.shape[0]}, {query.shape[1]}, heads, width]"
        raise ValueError(f"summary_query has shape {tuple(summary_query.shape)}; expected {expected}")
    check_counts(top_k, num_sink_chunks, num_local_chunks)
    query, keys, values, positions = promote_dtypes(query, keys, values, positions)
    summary_query, summaries, *_ = promote_dtypes(summary_query, summaries, summaries, None)
    if stop_memory_gradient:
        shared = values is keys
        keys, summaries = keys.detach(), summaries.detach()
        values = keys if shared else values.detach()
    num_chunks = keys.shape[1]
    choice = Choice(
        top_k=min(top_k, max(num_chunks, 1)),
        joint=combine == "joint",
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        summary_scale=summaries.shape[-1] ** -0.5 if summary_scale is None else summary_scale,
        num_sinks=num_sink_chunks,
        num_locals=num_local_chunks,
        return_lse=return_lse,
    )
    valid = as_mask(valid, num_chunks)
    if lengths is not None:
        valid = valid & (lengths > 0)[:, None]
    problem = Problem(query, keys, values, summaries, valid, summary_query, positions, lengths)
    widths = {"head width": query.shape[-1], "value width": values.shape[-1]}
    widths["summary width"] = summaries.shape[-1]
    path = resolve(
        implementation,
        *(tensor for tensor in problem if tensor is not None),
        paths=("dense", "listed", "gather"),
        unsupported_reason=unsupported_sizes(query, widths, problem.units, choice.top_k),
    )
    if 0 in (num_chunks, keys.shape[2], *query.shape):
        out, lse = empty_output(query, values)
    elif path == "reference":
        out, lse = load_implementation("retrieval.reference").retrieve(problem, choice)
    elif path == "triton" or (path == "torch" and is_compiled()):
        out, *_, lse = _op(*problem, *choice, path)
    else:
        out, lse = load_implementation("retrieval.torch").retrieve(problem, choice, path)
    return (out, lse) if return_lse else out  # pyright: ignore[reportReturnType]


@torch.library.custom_op("scrubjay::chunk_retrieval", mutates_args=())
def _op(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    summaries: Tensor,
    valid: Tensor,
    summary_query: Tensor,
    positions: Tensor | None,
    lengths: Tensor | None,
    top_k: int,
    joint: bool,
    scale: float,
    summary_scale: float,
    num_sinks: int,
    num_locals: int,
    return_lse: bool,
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the read-out, tensors for Triton's backward (chunks, weights, log normalisers), and the lse."""
    problem = Problem(query, keys, values, summaries, valid, summary_query, positions, lengths)
    choice = Choice(top_k, joint, scale, summary_scale, num_sinks, num_locals, return_lse)
    if implementation == "triton":
        from scrubjay.kernels.retrieval import gpu

        chunks, outputs = gpu.forward(problem, choice)
        return outputs.out, chunks, outputs.weights, outputs.normalisers, outputs.lse
    empty = [query.new_empty(0, dtype=dtype) for dtype in (torch.int32, *[torch.float32] * 3)]
    out, lse = load_implementation("retrieval.torch").retrieve(problem, choice, implementation)
    # Compiled graphs rely on the layout of the fake implementation.
    lse = empty[3] if lse is None else lse.contiguous()
    return out.contiguous(), empty[0], empty[1], empty[2], lse


@_op.register_fake
def _(
    query, keys, values, summaries, valid, summary_query, positions, lengths,
    top_k, joint, scale, summary_scale, num_sinks, num_locals, return_lse, implementation,
):  # fmt: skip
    batch, time, heads, _ = query.shape
    selection_shape = (batch, time, summary_query.shape[2], top_k)
    shapes: dict[str, Any] = {
        "chunks": (selection_shape, torch.int32),
        "weights": (selection_shape, torch.float32),
        "normalisers": ((batch, time, heads, 1 if joint else top_k), torch.float32),
        "lse": ((batch, time, heads), torch.float32),
    }
    if implementation != "triton":
        exact = summary_query.dtype if not joint else query.dtype
        lse = torch.promote_types(exact, torch.float32)
        shapes = {name: ((0,), dtype) for name, (_, dtype) in shapes.items()}
        shapes["lse"] = ((batch, time, heads), lse) if return_lse else ((0,), torch.float32)
    out = query.new_empty(batch, time, heads, values.shape[-1])
    return out, *(query.new_empty(shape, dtype=dtype) for shape, dtype in shapes.values())


def _setup_context(ctx, inputs, output) -> None:
    ctx.choice, ctx.implementation = Choice(*inputs[8:15]), inputs[15]
    ctx.save_for_backward(*inputs[:8], *output)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, *others) -> tuple:
    problem, outputs = Problem(*ctx.saved_tensors[:8]), ctx.saved_tensors[8:]
    lse_grad = others[-1] if ctx.choice.return_lse else None
    needs_gradient = list(ctx.needs_input_grad[:8])
    if (grad is None and lse_grad is None) or not any(needs_gradient):
        return (None,) * 16
    grad = torch.zeros_like(outputs[0]) if grad is None else grad
    if ctx.implementation == "triton":
        grads = _backward_op(*problem, *ctx.choice, grad, lse_grad, *outputs, needs_gradient)
        return *(g if is_needed else None for g, is_needed in zip(grads, needs_gradient, strict=True)), *(
            None,
        ) * 8
    # Recompute the forward pass instead of storing it. It is differentiable again under create_graph.
    create_graph = torch.is_grad_enabled()
    inputs = dict(problem._asdict())
    sources = [name for name, want in zip(inputs, needs_gradient, strict=True) if want]
    with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
        # Separate leaves: one tensor may be several inputs, or be computed from another.
        for name in sources:
            inputs[name] = (
                inputs[name].view_as(inputs[name]) if create_graph else inputs[name].detach().requires_grad_()
            )
        out, lse = load_implementation("retrieval.torch").retrieve(
            Problem(**inputs), ctx.choice, ctx.implementation
        )
        leaves = [inputs[name] for name in sources]
        pairs = [(out, grad)] if lse is None or lse_grad is None else [(out, grad), (lse, lse_grad)]
        # Outputs that depend on no leaf have no gradient (joint, if only scores need one).
        pairs = [(value, value_grad) for value, value_grad in pairs if value.requires_grad]
        leaf_grads = torch.autograd.grad(
            [value for value, _ in pairs],
            leaves,
            [its for _, its in pairs],
            create_graph=create_graph,
            allow_unused=True,
        )
    grads = dict(zip(sources, leaf_grads, strict=True))
    return *(grads.get(name) for name in Problem._fields), *(None,) * 8


_op.register_autograd(_backward, setup_context=_setup_context)


@torch.library.custom_op("scrubjay::chunk_retrieval_backward", mutates_args=())
def _backward_op(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    summaries: Tensor,
    valid: Tensor,
    summary_query: Tensor,
    positions: Tensor | None,
    lengths: Tensor | None,
    top_k: int,
    joint: bool,
    scale: float,
    summary_scale: float,
    num_sinks: int,
    num_locals: int,
    return_lse: bool,
    grad: Tensor,
    lse_grad: Tensor | None,
    out: Tensor,
    chunks: Tensor,
    weights: Tensor,
    normalisers: Tensor,
    lse: Tensor,
    needs_gradient: list[bool],
) -> list[Tensor]:
    """Return the gradients of the first eight arguments; an empty tensor where no gradient is needed."""
    from scrubjay.kernels.retrieval import gpu

    problem = Problem(query, keys, values, summaries, valid, summary_query, positions, lengths)
    choice = Choice(top_k, joint, scale, summary_scale, num_sinks, num_locals, return_lse)
    outputs = gpu.AttentionOutputs(out, weights, normalisers, lse)
    needs = Problem(*needs_gradient)  # pyright: ignore[reportArgumentType]
    needs_memory_grads = bool(needs.keys or needs.values or needs.positions)
    grads = gpu.backward(
        problem.reading(chunks),
        choice,
        outputs,
        gpu.OutputGrads(grad, lse_grad),
        needs_memory_grads,
        score_source=problem,
    )
    for name in ("summary_query", "summaries"):
        grads.setdefault(name, torch.zeros_like(getattr(problem, name)))
    return [
        grads[name] if is_needed else query.new_empty(0)
        for name, is_needed in zip(Problem._fields, needs_gradient, strict=True)
    ]


@_backward_op.register_fake
def _(
    query, keys, values, summaries, valid, summary_query, positions, lengths,
    top_k, joint, scale, summary_scale, num_sinks, num_locals, return_lse,
    grad, lse_grad, out, chunks, weights, normalisers, lse, needs_gradient,
):  # fmt: skip
    return empty_gradients(
        (query, keys, values, summaries, valid, summary_query, positions, lengths), needs_gradient
    )
