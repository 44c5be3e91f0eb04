"""Chunk retrieval: score a query against chunk summaries, keep the top k, attend inside them.

The shape shared by HCAM (Lampinen et al. 2021, arXiv 2105.14039), Landmark attention (arXiv 2305.16300),
LongHeads (arXiv 2402.10685) and MoBA (arXiv 2502.13189), written once for policies, caches and agents.

Letters: B batch, T queries, M chunks, C chunk length, H query heads, G key heads, S coarse heads,
D head width, K chunks kept. Query head h reads key head `h * G // H` and the selection of coarse head
`h * S // H`.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

Combine = Literal["hierarchical", "joint"]
Implementation = Literal["auto", "reference", "dense", "gather"]

# Above this many scalars a query block's intermediates leave the caches; larger inputs go in blocks of T.
_BLOCK_SCALARS = 1 << 24


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
    stop_memory_gradient: bool = False,
    implementation: Implementation = "auto",
) -> Float[Tensor, "B T H V"]:
    """Return each query's read-out of its `top_k` best chunks, zeros where it may read none.

    `valid` is how many leading chunks a query may read, or exactly which. Coarse scores are
    `summary_query · summaries * summary_scale` (`summary_query` defaults to `query`, `summary_scale` to
    Ds**-0.5) and among equal scores the earlier chunk wins. `combine="hierarchical"` weights one attention
    per chunk by a softmax over the kept scores, so gradients reach the summaries; `"joint"` is one softmax
    over all tokens kept. `positions` is added to every chunk's keys and values (then V must equal D).
    `scale` defaults to D**-0.5. `stop_memory_gradient` cuts keys, values and summaries from the graph.
    Chunks that no query may read may hold anything, NaN included. Scores are taken in at least float32.

    Raises ValueError on mismatched shapes or `top_k` < 1, TypeError on a wrong dtype of `valid`.
    """
    summary_query = query if summary_query is None else summary_query
    _check_shapes(query, keys, values, summaries, valid, summary_query, positions, top_k, combine)
    if stop_memory_gradient:
        shared = values is keys
        keys, summaries = keys.detach(), summaries.detach()
        values = keys if shared else values.detach()
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    summary_scale = summaries.shape[-1] ** -0.5 if summary_scale is None else summary_scale
    num_chunks = keys.shape[1]
    if num_chunks == 0:
        return query.new_zeros(*query.shape[:-1], values.shape[-1])
    if valid.dtype != torch.bool:
        valid = torch.arange(num_chunks, device=valid.device) < valid[..., None]
    if implementation != "reference" and not torch.compiler.is_compiling() and not valid.is_cuda:
        span = _span_read(valid)
        shared = values is keys
        keys, summaries, valid = keys[:, span], summaries[:, span], valid[..., span]
        values = keys if shared else values[:, span]
    top_k = min(top_k, keys.shape[1])
    if implementation == "auto":
        implementation = _choose(query, keys, top_k)
    if implementation == "reference":
        run = _reference
    else:
        run = _dense if implementation == "dense" else _gather
        unread = ~valid.any(dim=1)
        summaries = _blank_unread(summaries, unread)
        if run is _dense or query.shape[1] > 1:  # else cheaper on what is fetched
            shared = values is keys
            keys = _blank_unread(keys, unread)
            values = keys if shared else _blank_unread(values, unread)
    block = _block_length(implementation, query, keys, top_k)
    if block >= query.shape[1]:
        return run(
            query,
            keys,
            values,
            summaries,
            valid,
            summary_query,
            top_k,
            combine,
            scale,
            summary_scale,
            positions,
        )
    pieces = [
        run(q, keys, values, summaries, v, s, top_k, combine, scale, summary_scale, positions)
        for q, v, s in zip(
            query.split(block, 1), valid.split(block, 1), summary_query.split(block, 1), strict=True
        )
    ]
    return torch.cat(pieces, dim=1)


def select_chunks(
    scores: Float[Tensor, "*batch M"], readable: Bool[Tensor, "*batch M"], top_k: int
) -> tuple[Float[Tensor, "*batch K"], Int[Tensor, "*batch K"]]:
    """Return the `top_k` best readable scores and their chunks, the earlier of equals first.

    Where fewer are readable the rest of the scores are -inf.
    """
    scores = scores.masked_fill(~readable, -math.inf)
    # A stable sort, because topk breaks ties as it likes and a read-out must not depend on the path taken.
    ordered, chunks = scores.sort(dim=-1, descending=True, stable=True)
    return ordered[..., :top_k], chunks[..., :top_k]


def _coarse_scores(summary_query: Tensor, summaries: Tensor, summary_scale: float) -> Tensor:
    """Return `[B, T, S, M]` scores in at least float32."""
    dtype = torch.promote_types(summary_query.dtype, torch.float32)
    batch, time, heads, width = summary_query.shape
    groups = summaries.shape[2]
    grouped = (summary_query.to(dtype) * summary_scale).view(batch, time, groups, heads // groups, width)
    left = grouped.permute(0, 2, 1, 3, 4).reshape(batch, groups, time * (heads // groups), width)
    right = summaries.to(dtype).permute(0, 2, 3, 1)
    scores = (left @ right).view(batch, groups, time, heads // groups, summaries.shape[1])
    return scores.permute(0, 2, 1, 3, 4).reshape(batch, time, heads, summaries.shape[1])


def _softmax_or_zero(scores: Tensor) -> Tensor:
    """Softmax over the last dim where -inf means absent; all absent gives zeros, not NaN, in both passes."""
    absent = scores == -math.inf
    weights = torch.softmax(scores.masked_fill(absent.all(dim=-1, keepdim=True), 0.0), dim=-1)
    return weights.masked_fill(absent, 0.0)


def _dense(
    query, keys, values, summaries, valid, summary_query, top_k, combine, scale, summary_scale, positions
) -> Tensor:
    """Attend to every chunk and weight the unselected by zero: one large product, best for few chunks."""
    batch, time, heads, width = query.shape
    chunks, length, groups = keys.shape[1:4]
    coarse = summary_query.shape[2]
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = _coarse_scores(summary_query, summaries, summary_scale)
    kept, index = select_chunks(scores, valid[:, :, None].expand_as(scores), top_k)
    shared = heads // groups
    grouped = (query * scale).view(batch, time, groups, shared, width).transpose(1, 2)
    flat_keys = keys.permute(0, 3, 1, 2, 4).reshape(batch, groups, chunks * length, width)
    logits = grouped.reshape(batch, groups, time * shared, width) @ flat_keys.transpose(-1, -2)
    logits = logits.view(batch, groups, time, shared, chunks, length).to(dtype)
    if positions is not None:
        logits = logits + (grouped @ positions.T).unsqueeze(-2)
    if combine == "hierarchical":
        weights = torch.zeros_like(scores).scatter(-1, index, _softmax_or_zero(kept))
        weights = _per_query_head(weights, heads, coarse, groups)
        attention = torch.softmax(logits, dim=-1) * weights[..., None]
    else:
        keep = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, index, kept > -math.inf)
        keep = _per_query_head(keep, heads, coarse, groups)
        logits = logits.masked_fill(~keep[..., None], -math.inf)
        attention = _softmax_or_zero(logits.flatten(-2)).view_as(logits)
    attention = attention.to(values.dtype)
    flat_values = values.permute(0, 3, 1, 2, 4).reshape(batch, groups, chunks * length, values.shape[-1])
    out = attention.reshape(batch, groups, time * shared, chunks * length) @ flat_values
    out = out.view(batch, groups, time, shared, values.shape[-1])
    if positions is not None:
        out = out + attention.sum(dim=-2) @ positions
    return out.transpose(1, 2).reshape(batch, time, heads, values.shape[-1])


def _per_query_head(per_coarse_head: Tensor, heads: int, coarse: int, groups: int) -> Tensor:
    """Spread `[B, T, S, M]` over query heads as `[B, G, T, H / G, M]`."""
    spread = per_coarse_head.repeat_interleave(heads // coarse, dim=2) if coarse > 1 else per_coarse_head
    batch, time, _, chunks = spread.shape
    spread = spread.expand(batch, time, heads, chunks)
    return spread.view(batch, time, groups, heads // groups, chunks).transpose(1, 2)


def _gather(
    query, keys, values, summaries, valid, summary_query, top_k, combine, scale, summary_scale, positions
) -> Tensor:
    """Fetch each query's own chunks first: work does not grow with M beyond the summaries."""
    batch, time, heads, width = query.shape
    length, groups = keys.shape[2:4]
    coarse = summary_query.shape[2]
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = _coarse_scores(summary_query, summaries, summary_scale)
    kept, index = select_chunks(scores, valid[:, :, None].expand_as(scores), top_k)
    # A unit is a (selection, key head) pair; all query heads of a unit read the same fetched keys.
    units = math.lcm(coarse, groups)
    unit = torch.arange(units, device=query.device)
    if coarse < units:
        kept, index = kept[:, :, unit * coarse // units], index[:, :, unit * coarse // units]
    fetched_keys = _fetch(keys, index, unit * groups // units)
    fetched_values = fetched_keys if values is keys else _fetch(values, index, unit * groups // units)
    if time == 1:
        absent = (kept == -math.inf)[..., None, None]
        fetched_keys = fetched_keys.masked_fill_(absent, 0)
        fetched_values = fetched_keys if values is keys else fetched_values.masked_fill_(absent, 0)
    grouped = (query * scale).view(batch, time, units, heads // units, width)
    logits = grouped @ fetched_keys.flatten(-3, -2).transpose(-1, -2)
    logits = logits.view(batch, time, units, heads // units, top_k, length).to(dtype)
    if positions is not None:
        logits = logits + (grouped @ positions.T).unsqueeze(-2)
    if combine == "hierarchical":
        weights = _softmax_or_zero(kept)[:, :, :, None, :, None]
        attention = torch.softmax(logits, dim=-1) * weights
    else:
        logits = logits.masked_fill((kept == -math.inf)[:, :, :, None, :, None], -math.inf)
        attention = _softmax_or_zero(logits.flatten(-2)).view_as(logits)
    attention = attention.to(values.dtype)
    out = attention.flatten(-2) @ fetched_values.flatten(-3, -2)
    if positions is not None:
        out = out + attention.sum(dim=-2) @ positions
    return out.view(batch, time, heads, values.shape[-1])


def _fetch(table: Tensor, index: Tensor, group: Tensor) -> Tensor:
    """Return `[B, T, U, K, C, D]`: for unit u the chunks `index[b, t, u]` of key head `group[u]`."""
    batch, chunks, length, groups, width = table.shape
    if groups == 1 and index.shape[2] == 1:
        offset = torch.arange(batch, device=index.device).view(-1, 1, 1, 1) * chunks
        rows = table.reshape(batch * chunks, length * width).index_select(0, (index + offset).flatten())
        return rows.view(*index.shape, length, width)
    row = torch.arange(batch, device=index.device).view(-1, 1, 1, 1)
    return table[row, index, :, group.view(1, 1, -1, 1)]


def _reference(
    query, keys, values, summaries, valid, summary_query, top_k, combine, scale, summary_scale, positions
) -> Tensor:
    """Compute the definition, one query head at a time."""
    batch, time, heads, _ = query.shape
    groups, coarse, summary_groups = keys.shape[3], summary_query.shape[2], summaries.shape[2]
    dtype = torch.promote_types(query.dtype, torch.float32)
    rows = []
    for b in range(batch):
        for t in range(time):
            for h in range(heads):
                c, g = h * coarse // heads, h * groups // heads
                readable = valid[b, t].nonzero().flatten().tolist()
                score = {
                    m: summary_scale
                    * torch.dot(
                        summary_query[b, t, c].to(dtype),
                        summaries[b, m, c * summary_groups // coarse].to(dtype),
                    )
                    for m in readable
                }
                ranking = {m: (-score[m].item(), m) for m in readable}
                best = sorted(readable, key=ranking.__getitem__)[:top_k]
                if not best:
                    rows.append(query.new_zeros(values.shape[-1]))
                    continue
                offset = 0 if positions is None else positions
                logits = torch.stack([(keys[b, m, :, g] + offset) @ query[b, t, h] * scale for m in best]).to(
                    dtype
                )
                content = torch.stack([values[b, m, :, g] + offset for m in best])
                if combine == "hierarchical":
                    weights = functional.softmax(torch.stack([score[m] for m in best]), dim=0)
                    attention = functional.softmax(logits, dim=1) * weights[:, None]
                else:
                    attention = functional.softmax(logits.flatten(), dim=0).view_as(logits)
                rows.append(torch.einsum("kc,kcv->v", attention.to(content.dtype), content))
    return torch.stack(rows).view(batch, time, heads, -1)


def _span_read(valid: Bool[Tensor, "B T M"]) -> slice:
    """Return the chunks from the first to the last that any query may read, at least one.

    Young episodes fill a corner of a large store; on a GPU finding out would cost a wait for the device.
    """
    read = valid.flatten(0, 1).any(dim=0).nonzero().flatten()
    return slice(int(read[0]), int(read[-1]) + 1) if len(read) else slice(0, 1)


def _blank_unread(tensor: Tensor, unread: Bool[Tensor, "B M"]) -> Tensor:
    """Zero the chunks no query may read: their NaN would survive a multiplication by weight zero."""
    if not torch.compiler.is_compiling() and not unread.any():
        return tensor
    return tensor.masked_fill(unread.view(*unread.shape, *[1] * (tensor.ndim - 2)), 0)


def _choose(query: Tensor, keys: Tensor, top_k: int) -> Implementation:
    # Fetching k chunks per query costs about as much as multiplying by 4 to 6 k of them in one product.
    return "dense" if query.shape[1] > 1 and keys.shape[1] <= 4 * top_k else "gather"


def _block_length(implementation: Implementation, query: Tensor, keys: Tensor, top_k: int) -> int:
    batch, time, heads, width = query.shape
    chunks, length, groups = keys.shape[1:4]
    per_query = heads * chunks * length if implementation == "dense" else groups * top_k * length * width
    return max(1, _BLOCK_SCALARS // max(1, batch * per_query)) if implementation != "reference" else time


def _check_shapes(query, keys, values, summaries, valid, summary_query, positions, top_k, combine) -> None:
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: at least one chunk must be kept")
    if combine not in ("hierarchical", "joint"):
        raise ValueError(f"combine={combine!r}; choose 'hierarchical' or 'joint'")
    ranks = {"query": (query, 4), "keys": (keys, 5), "values": (values, 5), "summaries": (summaries, 4)}
    for name, (tensor, rank) in (ranks | {"summary_query": (summary_query, 4)}).items():
        if tensor.ndim != rank:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {rank} dimensions")
    batch, time, heads, width = query.shape
    groups = keys.shape[3]
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
    elif valid.is_floating_point():
        raise TypeError(f"valid has dtype {valid.dtype}; expected an integer count or a bool mask")
    elif valid.shape != (batch, time):
        raise ValueError(f"valid has shape {tuple(valid.shape)}; expected [{batch}, {time}]")
    if positions is not None and (positions.shape != (keys.shape[2], width) or values.shape[4] != width):
        raise ValueError(
            f"positions have shape {tuple(positions.shape)}; expected ({keys.shape[2]}, {width}) and V = D"
        )
