"""Chunk retrieval: score a query against chunk summaries, keep the top k, attend inside them.

The shape shared by HCAM (Lampinen et al. 2021, arXiv 2105.14039), Landmark attention (arXiv 2305.16300),
LongHeads (arXiv 2402.10685) and MoBA (arXiv 2502.13189), written once for policies, caches and agents.

Letters: B batch, T queries, M chunks, C chunk length, H query heads, G key heads, S coarse heads,
D head width, V value width, K chunks kept. Query head h reads key head `h * G // H` and the selection of
coarse head `h * S // H`. A unit is a (coarse head, key head) pair in use: U = lcm(S, G) of them, each with
H / U query heads that read the same keys of the same chunks.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.dispatch import is_compiled, resolve, without_autocast, without_data
from scrubjay.kernels.retrieval import reference, vectorised
from scrubjay.kernels.retrieval.checks import check_heads, check_memory, nothing, of_one_dtype, unsupported
from scrubjay.kernels.retrieval.choose import check_counts, check_summaries
from scrubjay.kernels.retrieval.chosen import as_mask
from scrubjay.kernels.retrieval.problem import Choice, Problem

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
    """Return each query's read-out of its `top_k` best chunks, zeros where it may read none.

    `choose_chunks` and `attend_chosen` are its halves, for those who do something between them.

    `valid` is how many leading chunks a query may read, or exactly which; `position // C` is causal, a query
    then sees only chunks completed before it. Coarse scores are `summary_query · summaries * summary_scale`
    (`summary_query` defaults to `query`, `summary_scale` to Ds**-0.5) and among equal scores the earlier
    chunk wins. Of the chunks a query may read the first `num_sink_chunks` and the last `num_local_chunks` are
    kept whatever their scores, and count among the `top_k`. `combine="hierarchical"` weights one attention
    per chunk by a softmax over the kept scores, so gradients reach the summaries; `"joint"` is one softmax
    over all tokens kept. `positions` is added to every chunk's keys and values (then V must equal D). Of a
    chunk only its first `lengths` steps are read, by default all. `scale` defaults to D**-0.5.
    `stop_memory_gradient` cuts keys, values and summaries from the graph. Chunks and steps that no query may
    read may hold anything, NaN included. Scores are taken in at least float32, under autocast too; of
    different dtypes the widest is used.

    `implementation` is one of `scrubjay.kernels.dispatch`, or a variant of its "torch": "dense" attends to
    every chunk, "gather" copies the chunks kept, "listed" reads them in place (CPU, float32 and float64). On
    a GPU the Triton kernels take D, V, Ds up to 256 (float32: 128), `top_k` up to 64; beyond, "auto" runs
    torch.

    Args:
        query: What asks, H heads.
        keys: M chunks of C steps, G heads.
        values: What is read, a step's beside its key.
        summaries: Of the chunks, what their scores are taken with.
        valid: Counts in chunks, or a mask of them.
        top_k: In chunks, at least 1.
        combine: "hierarchical" or "joint".
        scale: Of the products inside chunks.
        summary_query: What asks the summaries, S heads.
        summary_scale: Of the products with summaries.
        positions: A code for each step of a chunk.
        lengths: Of the chunks, in steps.
        num_sink_chunks: In chunks, 0 or more.
        num_local_chunks: In chunks, 0 or more.
        stop_memory_gradient: Whether the memory is a constant.
        return_lse: Whether the logarithm of the softmax's sum comes with the read-out, for `merge`: over all
            tokens kept (joint) or over the kept scores (hierarchical); -inf where nothing is read.
        implementation: One of `scrubjay.kernels.dispatch`, or a variant of "torch".

    Raises ValueError on mismatched shapes, `top_k` < 1 or too small for what is always kept, TypeError on
    wrong dtypes.
    """
    summary_query = query if summary_query is None else summary_query
    check_memory(query, keys, values, positions, lengths, combine)
    if summaries.ndim == 4 and summaries.shape[:2] != keys.shape[:2]:
        expected = f"[{query.shape[0]}, {keys.shape[1]}, Gs, Ds]"
        raise ValueError(f"summaries have shape {tuple(summaries.shape)}; expected {expected}")
    check_summaries(summary_query, summaries, valid)
    check_heads("coarse heads", summary_query.shape[2], query.shape[2])
    if summary_query.shape[:2] != query.shape[:2]:
        expected = f"[{query.shape[0]}, {query.shape[1]}, S, Ds]"
        raise ValueError(f"summary_query has shape {tuple(summary_query.shape)}; expected {expected}")
    check_counts(top_k, num_sink_chunks, num_local_chunks)
    query, keys, values, positions = of_one_dtype(query, keys, values, positions)
    summary_query, summaries, *_ = of_one_dtype(summary_query, summaries, summaries, None)
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
        unsupported=unsupported(query, widths, problem.units, choice.top_k),
    )
    if 0 in (num_chunks, keys.shape[2], *query.shape):
        out, lse = nothing(query, values)
    elif path == "reference":
        out, lse = reference.retrieve(problem, choice)
    elif path == "triton" or (path == "torch" and is_compiled()):
        out, *_, lse = _op(*problem, *choice, path)
    else:
        out, lse = vectorised.retrieve(problem, choice, path)
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
    """Return the read-out, what Triton's backward needs (chunks, weights, log normalisers), and the lse."""
    problem = Problem(query, keys, values, summaries, valid, summary_query, positions, lengths)
    choice = Choice(top_k, joint, scale, summary_scale, num_sinks, num_locals, return_lse)
    if implementation == "triton":
        from scrubjay.kernels.retrieval import gpu

        chunks, read = gpu.forward(problem, choice)
        return read.out, chunks, read.weights, read.normalisers, read.lse
    none = [query.new_empty(0, dtype=dtype) for dtype in (torch.int32, *[torch.float32] * 3)]
    out, lse = vectorised.retrieve(problem, choice, implementation)
    # A recorded graph counts on the layout that the fake one has.
    lse = none[3] if lse is None else lse.contiguous()
    return out.contiguous(), none[0], none[1], none[2], lse


@_op.register_fake
def _(
    query, keys, values, summaries, valid, summary_query, positions, lengths,
    top_k, joint, scale, summary_scale, num_sinks, num_locals, return_lse, implementation,
):  # fmt: skip
    batch, time, heads, _ = query.shape
    kept = (batch, time, summary_query.shape[2], top_k)
    shapes: dict[str, Any] = {
        "chunks": (kept, torch.int32),
        "weights": (kept, torch.float32),
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
    problem, read = Problem(*ctx.saved_tensors[:8]), ctx.saved_tensors[8:]
    lse_grad = others[-1] if ctx.choice.return_lse else None
    wanted = list(ctx.needs_input_grad[:8])
    if (grad is None and lse_grad is None) or not any(wanted):
        return (None,) * 16
    grad = torch.zeros_like(read[0]) if grad is None else grad
    if ctx.implementation == "triton":
        grads = _backward_op(*problem, *ctx.choice, grad, lse_grad, *read, wanted)
        return *(g if want else None for g, want in zip(grads, wanted, strict=True)), *(None,) * 8
    # Recomputed rather than stored, and differentiable again where the caller builds a graph.
    again = torch.is_grad_enabled()
    inputs = dict(problem._asdict())
    sources = [name for name, want in zip(inputs, wanted, strict=True) if want]
    with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
        # Names of their own, since one tensor may be several inputs, or be computed from another.
        for name in sources:
            inputs[name] = (
                inputs[name].view_as(inputs[name]) if again else inputs[name].detach().requires_grad_()
            )
        out, lse = vectorised.retrieve(Problem(**inputs), ctx.choice, ctx.implementation)
        leaves = [inputs[name] for name in sources]
        pairs = [(out, grad)] if lse is None or lse_grad is None else [(out, grad), (lse, lse_grad)]
        # What hangs on no leaf (joint: scores alone ask for a gradient) has none.
        pairs = [(value, its) for value, its in pairs if value.requires_grad]
        found = torch.autograd.grad(
            [value for value, _ in pairs],
            leaves,
            [its for _, its in pairs],
            create_graph=again,
            allow_unused=True,
        )
    grads = dict(zip(sources, found, strict=True))
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
    wanted: list[bool],
) -> list[Tensor]:
    """Return a gradient for each of the eight tensors, empty where none is wanted."""
    from scrubjay.kernels.retrieval import gpu

    problem = Problem(query, keys, values, summaries, valid, summary_query, positions, lengths)
    choice = Choice(top_k, joint, scale, summary_scale, num_sinks, num_locals, return_lse)
    read = gpu.Filled(out, weights, normalisers, lse)
    want = Problem(*wanted)  # pyright: ignore[reportArgumentType]
    in_memory = bool(want.keys or want.values or want.positions)
    grads = gpu.backward(
        problem.reading(chunks), choice, read, gpu.Grads(grad, lse_grad), in_memory, coarse=problem
    )
    for name in ("summary_query", "summaries"):
        grads.setdefault(name, torch.zeros_like(getattr(problem, name)))
    return [
        grads[name] if asked else query.new_empty(0)
        for name, asked in zip(Problem._fields, wanted, strict=True)
    ]


@_backward_op.register_fake
def _(
    query, keys, values, summaries, valid, summary_query, positions, lengths,
    top_k, joint, scale, summary_scale, num_sinks, num_locals, return_lse,
    grad, lse_grad, out, chunks, weights, normalisers, lse, wanted,
):  # fmt: skip
    return without_data((query, keys, values, summaries, valid, summary_query, positions, lengths), wanted)
