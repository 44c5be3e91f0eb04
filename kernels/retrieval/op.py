"""Chunk retrieval: score a query against chunk summaries, keep the top k, attend inside them.

The shape shared by HCAM (Lampinen et al. 2021, arXiv 2105.14039), Landmark attention (arXiv 2305.16300),
LongHeads (arXiv 2402.10685) and MoBA (arXiv 2502.13189), written once for policies, caches and agents.

Letters: B batch, T queries, M chunks, C chunk length, H query heads, G key heads, S coarse heads,
D head width, V value width, K chunks kept. Query head h reads key head `h * G // H` and the selection of
coarse head `h * S // H`. A unit is a (coarse head, key head) pair in use: U = lcm(S, G) of them, each with
H / U query heads that read the same keys of the same chunks.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.dispatch import is_compiled, resolve, unsupported_dtype, without_autocast
from scrubjay.kernels.retrieval import reference, vectorised
from scrubjay.kernels.retrieval.problem import Choice, Problem

Combine = Literal["hierarchical", "joint"]
Implementation = Literal["auto", "reference", "torch", "triton", "dense", "listed", "gather"]

# Limits of the kernels on an A100: bytes of a tile of query heads, and of a row; the chunks a selection
# holds.
_LARGEST_TILE = 64 * 512
_WIDEST_ROW = 512
_MOST_KEPT = 64


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
    implementation: Implementation = "auto",
) -> Float[Tensor, "B T H V"]:
    """Return each query's read-out of its `top_k` best chunks, zeros where it may read none.

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

    Raises ValueError on mismatched shapes, `top_k` < 1 or too small for what is always kept, TypeError on
    wrong dtypes.
    """
    summary_query = query if summary_query is None else summary_query
    _check_dtypes(query, keys, values, summaries, valid, summary_query, positions, lengths)
    query, keys, values, positions = _of_one_dtype(query, keys, values, positions)
    summary_query, summaries, *_ = _of_one_dtype(summary_query, summaries, summaries, None)
    _check_shapes(query, keys, values, summaries, valid, summary_query, positions, lengths)
    if combine not in ("hierarchical", "joint"):
        raise ValueError(f"combine={combine!r}; choose 'hierarchical' or 'joint'")
    if stop_memory_gradient:
        shared = values is keys
        keys, summaries = keys.detach(), summaries.detach()
        values = keys if shared else values.detach()
    num_chunks = keys.shape[1]
    choice = Choice(
        top_k=top_k,
        joint=combine == "joint",
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        summary_scale=summaries.shape[-1] ** -0.5 if summary_scale is None else summary_scale,
        num_sinks=num_sink_chunks,
        num_locals=num_local_chunks,
    )
    _check_choice(choice)
    if valid.dtype != torch.bool:
        valid = torch.arange(num_chunks, device=valid.device) < valid[..., None]
    if lengths is not None:
        valid = valid & (lengths > 0)[:, None]
    problem = Problem(query, keys, values, summaries, valid, summary_query, positions, lengths)
    path = resolve(
        implementation,
        *(tensor for tensor in problem if tensor is not None),
        paths=("dense", "listed", "gather"),
        unsupported=_unsupported(problem, choice),
    )
    if 0 in (num_chunks, keys.shape[2], *query.shape):
        return query.new_zeros(*query.shape[:-1], values.shape[-1])
    choice = choice._replace(top_k=min(top_k, num_chunks))
    if path == "reference":
        return reference.retrieve(problem, choice)
    if path == "triton" or (path == "torch" and is_compiled()):
        return _op(*problem, *choice, path)[0]
    return vectorised.retrieve(problem, choice, path)


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
    implementation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the read-out and what Triton's backward needs: chunks kept, their weights, log normalisers."""
    problem = Problem(query, keys, values, summaries, valid, summary_query, positions, lengths)
    choice = Choice(top_k, joint, scale, summary_scale, num_sinks, num_locals)
    if implementation == "triton":
        from scrubjay.kernels.retrieval import gpu

        return gpu.forward(problem, choice)
    shapes = [query.new_empty(0, dtype=dtype) for dtype in (torch.int32, torch.float32, torch.float32)]
    return vectorised.retrieve(problem, choice, implementation), shapes[0], shapes[1], shapes[2]


@_op.register_fake
def _(
    query, keys, values, summaries, valid, summary_query, positions, lengths,
    top_k, joint, scale, summary_scale, num_sinks, num_locals, implementation,
):  # fmt: skip
    batch, time, heads, _ = query.shape
    out = query.new_empty(batch, time, heads, values.shape[-1])
    if implementation != "triton":
        return out, *(query.new_empty(0, dtype=d) for d in (torch.int32, torch.float32, torch.float32))
    kept = (batch, time, summary_query.shape[2], top_k)
    normalisers = (batch, time, heads, 1 if joint else top_k)
    return (
        out,
        query.new_empty(kept, dtype=torch.int32),
        query.new_empty(kept, dtype=torch.float32),
        query.new_empty(normalisers, dtype=torch.float32),
    )


def _setup_context(ctx, inputs, output) -> None:
    ctx.choice, ctx.implementation = Choice(*inputs[8:14]), inputs[14]
    ctx.save_for_backward(*inputs[:8], *output)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, *_) -> tuple:
    problem, (out, chunks, weights, normalisers) = Problem(*ctx.saved_tensors[:8]), ctx.saved_tensors[8:]
    wanted = list(ctx.needs_input_grad[:8])
    if grad is None or not any(wanted):
        return (None,) * 15
    if ctx.implementation == "triton":
        grads = _backward_op(*problem, *ctx.choice, grad, out, chunks, weights, normalisers, wanted)
        return *(g if want else None for g, want in zip(grads, wanted, strict=True)), *(None,) * 7
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
        out = vectorised.retrieve(Problem(**inputs), ctx.choice, ctx.implementation)
        leaves = [inputs[name] for name in sources]
        found = torch.autograd.grad(out, leaves, grad, create_graph=again, allow_unused=True)
    grads = dict(zip(sources, found, strict=True))
    return *(grads.get(name) for name in Problem._fields), *(None,) * 7


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
    grad: Tensor,
    out: Tensor,
    chunks: Tensor,
    weights: Tensor,
    normalisers: Tensor,
    wanted: list[bool],
) -> list[Tensor]:
    """Return a gradient for each of the eight tensors, empty where none is wanted."""
    from scrubjay.kernels.retrieval import gpu

    problem = Problem(query, keys, values, summaries, valid, summary_query, positions, lengths)
    choice = Choice(top_k, joint, scale, summary_scale, num_sinks, num_locals)
    saved = (chunks, weights, normalisers)
    return gpu.backward(problem, choice, grad, out, saved, wanted)


@_backward_op.register_fake
def _(
    query, keys, values, summaries, valid, summary_query, positions, lengths,
    top_k, joint, scale, summary_scale, num_sinks, num_locals,
    grad, out, chunks, weights, normalisers, wanted,
):  # fmt: skip
    tensors = (query, keys, values, summaries, valid, summary_query, positions, lengths)
    return [
        t.new_empty(t.shape) if want and t is not None else query.new_empty(0)
        for t, want in zip(tensors, wanted, strict=True)
    ]


def _unsupported(problem: Problem, choice: Choice) -> str | None:
    """Return why the Triton kernels cannot do these sizes, None if they can."""
    widths = {
        "head width": problem.query.shape[-1],
        "value width": problem.values.shape[-1],
        "summary width": problem.summaries.shape[-1],
    }
    size = problem.query.element_size()
    for name, width in widths.items():
        if width * size > _WIDEST_ROW:
            return f"a {name} of {width} does not fit in shared memory, at most {_WIDEST_ROW // size} does"
    rows = problem.query.shape[2] // problem.units
    if rows * max(widths.values()) * size > _LARGEST_TILE:
        return f"{rows} query heads of one selection and key head do not fit in shared memory"
    if min(choice.top_k, problem.keys.shape[1]) > _MOST_KEPT:
        return f"top_k={choice.top_k} is more than the {_MOST_KEPT} chunks its selection holds"
    return unsupported_dtype(problem.query)


def _check_choice(choice: Choice) -> None:
    if choice.top_k < 1:
        raise ValueError(f"top_k={choice.top_k}: at least one chunk must be kept")
    for name, count in (("num_sink_chunks", choice.num_sinks), ("num_local_chunks", choice.num_locals)):
        if count < 0:
            raise ValueError(f"{name}={count}: must not be negative")
    if choice.num_sinks + choice.num_locals > choice.top_k:
        raise ValueError(
            f"num_sink_chunks={choice.num_sinks} and num_local_chunks={choice.num_locals} do not fit in "
            f"top_k={choice.top_k}; raise top_k to at least {choice.num_sinks + choice.num_locals}"
        )


def _of_one_dtype(
    query: Tensor, keys: Tensor, values: Tensor, positions: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return all in the widest of their dtypes, `values` still `keys` where it was."""
    dtype = torch.promote_types(torch.promote_types(query.dtype, keys.dtype), values.dtype)
    dtype = dtype if positions is None else torch.promote_types(dtype, positions.dtype)
    shared = values is keys
    keys = keys.to(dtype)
    values = keys if shared else values.to(dtype)
    return query.to(dtype), keys, values, None if positions is None else positions.to(dtype)


def _check_dtypes(query, keys, values, summaries, valid, summary_query, positions, lengths) -> None:
    floating = {"query": query, "keys": keys, "values": values, "summaries": summaries}
    for name, tensor in (floating | {"summary_query": summary_query, "positions": positions}).items():
        if tensor is not None and not tensor.is_floating_point():
            raise TypeError(f"{name} has dtype {tensor.dtype}; expected a floating-point one")
    if valid.is_floating_point() or valid.is_complex():
        raise TypeError(f"valid has dtype {valid.dtype}; expected an integer count or a bool mask")
    if lengths is not None and lengths.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"lengths have dtype {lengths.dtype}; expected torch.int32 or torch.int64")


def _check_shapes(query, keys, values, summaries, valid, summary_query, positions, lengths) -> None:
    ranks = {"query": (query, 4), "keys": (keys, 5), "values": (values, 5), "summaries": (summaries, 4)}
    for name, (tensor, rank) in (ranks | {"summary_query": (summary_query, 4)}).items():
        if tensor.ndim != rank:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {rank} dimensions")
    batch, time, heads, width = query.shape
    groups = keys.shape[3]
    if 0 in (width, values.shape[-1], summaries.shape[-1]):
        raise ValueError(
            f"widths D={width}, V={values.shape[-1]}, Ds={summaries.shape[-1]} must be at least 1"
        )
    if keys.shape[0] != batch or keys.shape[4] != width:
        raise ValueError(f"keys have shape {tuple(keys.shape)}; expected [{batch}, M, C, G, {width}]")
    if values.shape[:4] != keys.shape[:4]:
        raise ValueError(f"values have shape {tuple(values.shape)}; expected {tuple(keys.shape[:4])} + (V,)")
    if summaries.shape[:2] != keys.shape[:2] or summaries.shape[3] != summary_query.shape[3]:
        expected = f"[{batch}, {keys.shape[1]}, Gs, {summary_query.shape[3]}]"
        raise ValueError(f"summaries have shape {tuple(summaries.shape)}; expected {expected}")
    if summary_query.shape[:2] != (batch, time):
        raise ValueError(
            f"summary_query has shape {tuple(summary_query.shape)}; expected [{batch}, {time}, S, Ds]"
        )
    for name, count, of in (
        ("key heads", groups, heads),
        ("coarse heads", summary_query.shape[2], heads),
        ("summary heads", summaries.shape[2], summary_query.shape[2]),
    ):
        if count < 1 or of % count:
            raise ValueError(f"{count} {name} do not divide {of} query heads evenly")
    if valid.dtype == torch.bool:
        if valid.shape != (batch, time, keys.shape[1]):
            raise ValueError(
                f"valid has shape {tuple(valid.shape)}; expected [{batch}, {time}, {keys.shape[1]}]"
            )
    elif valid.shape != (batch, time):
        raise ValueError(f"valid has shape {tuple(valid.shape)}; expected [{batch}, {time}]")
    if positions is not None and (positions.shape != (keys.shape[2], width) or values.shape[4] != width):
        raise ValueError(
            f"positions have shape {tuple(positions.shape)}; expected ({keys.shape[2]}, {width}) and V = D"
        )
    if lengths is not None and lengths.shape != keys.shape[:2]:
        raise ValueError(f"lengths have shape {tuple(lengths.shape)}; expected {tuple(keys.shape[:2])}")
