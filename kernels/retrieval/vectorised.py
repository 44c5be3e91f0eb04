"""Chunk retrieval in vectorised torch: attend to every chunk, or fetch the chosen ones, or read them in place.

Letters as in `chunk_retrieval`. All paths share the selection and differ in what they move: "dense"
multiplies by all chunks in one product, "gather" copies the chunks kept, "listed" copies nothing.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.dispatch import is_traced
from scrubjay.kernels.retrieval.problem import Choice, Problem
from scrubjay.kernels.retrieval.rows import DTYPES as LISTED_DTYPES
from scrubjay.kernels.retrieval.rows import Runs, dots, mix

# Above this many scalars a block's intermediates leave the caches; larger inputs go in blocks.
_BLOCK_SCALARS = {"dense": 1 << 24, "listed": 1 << 21, "gather": 1 << 24}


def retrieve(problem: Problem, choice: Choice, path: str) -> Float[Tensor, "B T H V"]:
    """Run one of the vectorised paths, in blocks of queries that fit the caches."""
    if problem.query.shape[1] > 1 and not is_traced() and not problem.valid.is_cuda:
        problem = _trim(problem)
    choice = choice._replace(top_k=min(choice.top_k, problem.keys.shape[1]))
    problem = _blank_idle(problem)
    if path == "listed":
        reason = _not_listable(problem)
        if reason is not None:
            raise ValueError(f"implementation='listed': {reason}; use 'torch'")
    elif path == "torch":
        path = _choose(problem, choice)
    run = {"dense": _dense, "listed": _listed, "gather": _gather}[path]
    problem = _blank_unread(problem, path)
    rows, queries = _block_sizes(problem, choice, path)
    batch, time = problem.query.shape[:2]
    if rows >= batch and queries >= time:
        return run(problem, choice)
    blocks = [
        torch.cat([run(piece, choice) for piece in _split_time(block, queries)], dim=1)
        for block in _split_batch(problem, rows)
    ]
    return torch.cat(blocks)


def _select(
    problem: Problem, choice: Choice
) -> tuple[Float[Tensor, "B T S M"], Float[Tensor, "B T S K"], Int[Tensor, "B T S K"]]:
    """Return all coarse scores, and the scores and numbers of the chunks kept.

    Of equal scores the earlier chunk is kept. Where fewer than K are readable the rest of the scores are
    -inf.
    """
    scores = _coarse_scores(problem, choice)
    readable = problem.valid[:, :, None].expand_as(scores)
    scores = torch.where(readable, scores, -math.inf)
    ranking = scores.detach()
    if choice.num_sinks or choice.num_locals:
        ranking = ranking.masked_fill(_always_kept(readable, choice), math.inf)
    chunks = _best(ranking, problem, choice)
    return scores, scores.gather(3, chunks), chunks


def _always_kept(readable: Bool[Tensor, "*batch M"], choice: Choice) -> Bool[Tensor, "*batch M"]:
    rank = readable.cumsum(dim=-1)
    last = rank[..., -1:]
    return readable & ((rank <= choice.num_sinks) | (rank > last - choice.num_locals))


def _best(ranking: Float[Tensor, "B T S M"], problem: Problem, choice: Choice) -> Int[Tensor, "B T S K"]:
    """Return the chunks of the K largest, the earlier of equals."""
    top_k = choice.top_k
    if top_k == ranking.shape[-1]:
        return torch.arange(top_k, device=ranking.device).expand(ranking.shape)
    if is_traced() or ranking.is_cuda:
        return ranking.sort(dim=-1, descending=True, stable=True).indices[..., :top_k]
    # topk is ten times faster than a stable sort and breaks ties as it likes, and one large product may round
    # the scores of two equal summaries differently. Where the last kept and the first dropped are no farther
    # apart than rounding, the query's scores are taken again, each in the same order of summation, and
    # sorted.
    values, chunks = ranking.topk(top_k + 1, dim=-1)
    dropped, chunks = values[..., -1], chunks[..., :top_k]
    close = ~(values[..., -2] - dropped > _rounding(problem, choice))
    if close.any():
        tied = close & (dropped > -math.inf)
        chunks[tied] = _sorted_exactly(ranking, tied, problem, choice)
    return chunks


def _rounding(problem: Problem, choice: Choice) -> Float[Tensor, "B T S"]:
    """Return at least how far apart rounding may put the scores of two equal summaries."""
    query, summaries, dtype = problem.summary_query.detach(), problem.summaries.detach(), problem.coarse_dtype
    lowest, highest = torch.aminmax(summaries)  # seven times faster than a norm
    bound = 2 * query.shape[-1] * torch.finfo(dtype).eps * abs(choice.summary_scale)
    return torch.linalg.vector_norm(query, 1, dim=-1, dtype=dtype) * torch.maximum(highest, -lowest) * bound


def _sorted_exactly(
    ranking: Tensor, tied: Bool[Tensor, "B T S"], problem: Problem, choice: Choice
) -> Int[Tensor, "tied K"]:
    row, time, head = tied.nonzero().unbind(-1)
    summaries = problem.summaries.detach().to(ranking.dtype)
    group = head * summaries.shape[2] // ranking.shape[2]
    query = problem.summary_query.detach().to(ranking.dtype)[row, time, head] * choice.summary_scale
    best = []
    for piece in torch.arange(len(row)).split(max(1, _BLOCK_SCALARS["listed"] // summaries[0, :, 0].numel())):
        ranked = ranking[row[piece], time[piece], head[piece]]
        exact = (summaries[row[piece], :, group[piece]] * query[piece, None]).sum(dim=-1)
        exact = torch.where(ranked.isinf(), ranked, exact)
        best.append(exact.sort(dim=-1, descending=True, stable=True).indices[:, : choice.top_k])
    return torch.cat(best)


def _coarse_scores(problem: Problem, choice: Choice) -> Float[Tensor, "B T S M"]:
    query, summaries = problem.summary_query, problem.summaries
    dtype = problem.coarse_dtype
    batch, time, heads, width = query.shape
    chunks, groups = summaries.shape[1:3]
    query, summaries = query.to(dtype) * choice.summary_scale, summaries.to(dtype)
    if is_traced():
        # A traced graph sorts these scores as they are, so equal summaries must get equal ones.
        per_head = summaries.repeat_interleave(heads // groups, dim=2).transpose(1, 2)
        return (query[:, :, :, None] * per_head[:, None]).sum(dim=-1)
    left = query.view(batch, time, groups, -1, width)
    if batch == 1 or groups == 1:
        left = left.transpose(1, 2).reshape(batch, groups, -1, width)
        scores = left @ summaries.permute(0, 2, 3, 1)
        return (
            scores.view(batch, groups, time, -1, chunks).transpose(1, 2).reshape(batch, time, heads, chunks)
        )
    # One product per group reads the summaries where they lie; all groups at once would copy them.
    scores = [
        (left[:, :, g].flatten(1, 2) @ summaries[:, :, g].transpose(1, 2)).view(batch, time, -1, chunks)
        for g in range(groups)
    ]
    return torch.cat(scores, dim=2)


def _softmax_or_zero(scores: Tensor) -> Tensor:
    """Softmax over the last dim where -inf means absent; all absent gives zeros, not NaN, in both passes."""
    absent = scores == -math.inf
    weights = torch.softmax(scores.masked_fill(absent.all(dim=-1, keepdim=True), 0.0), dim=-1)
    return weights.masked_fill(absent, 0.0)


def _split_batch(problem: Problem, rows: int) -> list[Problem]:
    blocks = []
    for first in range(0, len(problem.query), rows):
        own = slice(first, first + rows)
        keys = problem.keys[own]
        blocks.append(
            Problem(
                query=problem.query[own],
                keys=keys,
                values=keys if problem.values is problem.keys else problem.values[own],
                summaries=problem.summaries[own],
                valid=problem.valid[own],
                summary_query=problem.summary_query[own],
                positions=problem.positions,
                lengths=None if problem.lengths is None else problem.lengths[own],
            )
        )
    return blocks


def _split_time(problem: Problem, queries: int) -> list[Problem]:
    pieces = zip(
        problem.query.split(queries, 1),
        problem.valid.split(queries, 1),
        problem.summary_query.split(queries, 1),
        strict=True,
    )
    return [problem._replace(query=q, valid=v, summary_query=s) for q, v, s in pieces]


def _trim(problem: Problem) -> Problem:
    """Leave out the chunks before the first and after the last that any query may read.

    Young episodes fill a corner of a large store; on a GPU finding out would cost a wait for the device.
    """
    read = problem.valid.flatten(0, 1).any(dim=0).nonzero().flatten()
    first, last = (int(read[0]), int(read[-1]) + 1) if len(read) else (0, 1)
    if last - first == problem.keys.shape[1]:
        return problem
    keys = problem.keys[:, first:last]
    return problem._replace(
        keys=keys,
        values=keys if problem.values is problem.keys else problem.values[:, first:last],
        summaries=problem.summaries[:, first:last],
        valid=problem.valid[..., first:last],
        lengths=None if problem.lengths is None else problem.lengths[:, first:last],
    )


def _blank_idle(problem: Problem) -> Problem:
    """Zero the queries that may read nothing: NaN in them would reach gradients through weights of zero."""
    reads = problem.valid.any(dim=-1)[..., None, None]
    if not is_traced() and not reads.is_cuda and reads.all():
        return problem
    query = torch.where(reads, problem.query, 0)
    same = problem.summary_query is problem.query
    return problem._replace(
        query=query, summary_query=query if same else torch.where(reads, problem.summary_query, 0)
    )


def _choose(problem: Problem, choice: Choice) -> str:
    query, keys = problem.query, problem.keys
    listable = not is_traced() and problem.lengths is None and _not_listable(problem) is None
    several, chunks = query.shape[1] > 1, keys.shape[1]
    if listable:
        return "dense" if several and chunks <= choice.top_k else "listed"
    # Fetching a chunk for each unit costs about as much as multiplying by three chunks in one large product.
    units_per_key_head = problem.units // keys.shape[3]
    return "dense" if several and chunks <= 3 * choice.top_k * units_per_key_head else "gather"


def _block_sizes(problem: Problem, choice: Choice, path: str) -> tuple[int, int]:
    """Return how many rows, and how many queries of each, to take at once."""
    _, time, heads, width = problem.query.shape
    chunks, length = problem.keys.shape[1:3]
    per_query = {
        "dense": heads * chunks * length,
        "listed": heads * choice.top_k * length,
        "gather": problem.units * choice.top_k * length * width,
    }[path]
    queries = max(1, _BLOCK_SCALARS[path] // max(1, per_query))
    return max(1, queries // max(1, time)), queries


def _blank_unread(problem: Problem, path: str) -> Problem:
    """Zero what no query may read, where its NaN would survive a multiplication by weight zero."""
    several = problem.query.shape[1] > 1
    # One query a row blanks what it has fetched, which is less; listed rows are never those of unread chunks.
    in_memory = path == "dense" or (path == "gather" and several)
    in_tails = problem.lengths is not None and (in_memory or path == "listed")
    in_summaries = is_traced() or problem.summaries.requires_grad or problem.summary_query.requires_grad
    if not (in_memory or in_tails or in_summaries):
        return problem
    unread = ~problem.valid.any(dim=1)
    if not in_tails and not is_traced() and not unread.any():
        return problem
    keys, values, summaries = problem.keys, problem.values, problem.summaries
    if in_memory or in_tails:
        blank = unread[..., None]
        if in_tails:
            step = torch.arange(keys.shape[2], device=blank.device)
            blank = blank | (step >= problem.lengths[..., None])  # pyright: ignore[reportOptionalSubscript]
        keys = keys.masked_fill(blank[..., None, None], 0)
        values = keys if problem.values is problem.keys else values.masked_fill(blank[..., None, None], 0)
    if in_summaries:
        summaries = summaries.masked_fill(unread[..., None, None], 0)
    return problem._replace(keys=keys, values=values, summaries=summaries)


def _dense(problem: Problem, choice: Choice) -> Float[Tensor, "B T H V"]:
    """Attend to every chunk and weight the unselected by zero: one large product, best for few chunks."""
    query, keys, values, positions = problem.query, problem.keys, problem.values, problem.positions
    batch, time, heads, width = query.shape
    chunks, length, groups = keys.shape[1:4]
    coarse = problem.summary_query.shape[2]
    scores, kept, index = _select(problem, choice)
    shared = heads // groups
    dtype = problem.score_dtype
    scaled = query.to(dtype) * choice.scale
    grouped = scaled.view(batch, time, groups, shared, width).transpose(1, 2)
    flat_keys = keys.permute(0, 3, 1, 2, 4).reshape(batch, groups, chunks * length, width)
    logits = grouped.reshape(batch, groups, time * shared, width) @ flat_keys.to(dtype).transpose(-1, -2)
    logits = logits.view(batch, groups, time, shared, chunks, length)
    if positions is not None:
        logits = logits + (grouped @ positions.to(dtype).T).unsqueeze(-2)
    beyond = None
    if problem.lengths is not None:
        beyond = torch.arange(length, device=keys.device) >= problem.lengths[..., None]
        beyond = beyond[:, None, None, None]
    if choice.joint:
        keep = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, index, kept > -math.inf)
        drop = ~_per_query_head(keep, heads, coarse, groups)[..., None]
        logits = logits.masked_fill(drop if beyond is None else drop | beyond, -math.inf)
        attention = _softmax_or_zero(logits.flatten(-2)).view_as(logits)
    else:
        weights = torch.zeros_like(scores).scatter(-1, index, _softmax_or_zero(kept))
        weights = _per_query_head(weights, heads, coarse, groups)
        if beyond is None:
            attention = torch.softmax(logits, dim=-1) * weights[..., None]
        else:
            attention = _softmax_or_zero(logits.masked_fill(beyond, -math.inf)) * weights[..., None]
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


def _select_per_unit(problem: Problem, choice: Choice) -> tuple[Tensor, Tensor]:
    """Return the scores and numbers of the chunks kept, `[B, T, U, K]`."""
    _, kept, index = _select(problem, choice)
    units, coarse = problem.units, kept.shape[2]
    if coarse < units:
        unit = torch.arange(units, device=kept.device) * coarse // units
        kept, index = kept[:, :, unit], index[:, :, unit]
    return kept, index


def _group_of_units(problem: Problem) -> Int[Tensor, " U"]:
    return torch.arange(problem.units, device=problem.keys.device) * problem.keys.shape[3] // problem.units


def _attention_of_kept(
    logits: Float[Tensor, "B T U R K C"], kept: Float[Tensor, "B T U K"], choice: Choice, complete: bool
) -> Tensor:
    """Return what every step of the kept chunks weighs in the read-out; `complete` if none is absent."""
    if not choice.joint:
        weights = torch.softmax(kept, dim=-1) if complete else _softmax_or_zero(kept)
        return torch.softmax(logits, dim=-1) * weights[:, :, :, None, :, None]
    if complete:
        return torch.softmax(logits.flatten(-2), dim=-1).view_as(logits)
    logits = logits.masked_fill((kept == -math.inf)[:, :, :, None, :, None], -math.inf)
    return _softmax_or_zero(logits.flatten(-2)).view_as(logits)


def _gather(problem: Problem, choice: Choice) -> Float[Tensor, "B T H V"]:
    """Fetch each query's own chunks first: work does not grow with M beyond the summaries."""
    query, keys, values, positions = problem.query, problem.keys, problem.values, problem.positions
    batch, time, heads, width = query.shape
    length, units = keys.shape[2], problem.units
    kept, index = _select_per_unit(problem, choice)
    group = _group_of_units(problem)
    fetched_keys = _fetch(keys, index, group)
    fetched_values = fetched_keys if values is keys else _fetch(values, index, group)
    if time == 1:
        absent = (kept == -math.inf)[..., None, None]
        fetched_keys = fetched_keys.masked_fill_(absent, 0)
        fetched_values = fetched_keys if values is keys else fetched_values.masked_fill_(absent, 0)
    beyond = None
    if problem.lengths is not None:
        row = torch.arange(batch, device=keys.device).view(-1, 1, 1, 1)
        beyond = torch.arange(length, device=keys.device) >= problem.lengths[row, index][..., None]
        if time == 1:
            fetched_keys = fetched_keys.masked_fill_(beyond[..., None], 0)
            fetched_values = (
                fetched_keys if values is keys else fetched_values.masked_fill_(beyond[..., None], 0)
            )
        # A whole chunk absent is the selection's to mask; -inf everywhere would make a softmax NaN.
        beyond = beyond & (kept > -math.inf)[..., None]
    dtype = problem.score_dtype
    grouped = (query.to(dtype) * choice.scale).view(batch, time, units, heads // units, width)
    logits = grouped @ fetched_keys.flatten(-3, -2).to(dtype).transpose(-1, -2)
    logits = logits.view(batch, time, units, heads // units, choice.top_k, length)
    if positions is not None:
        logits = logits + (grouped @ positions.to(dtype).T).unsqueeze(-2)
    if beyond is not None:
        logits = logits.masked_fill(beyond[:, :, :, None], -math.inf)
    attention = _attention_of_kept(logits, kept, choice, complete=False).to(values.dtype)
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


def _listed(problem: Problem, choice: Choice) -> Float[Tensor, "B T H V"]:
    """Read each query's own chunks where they lie, nothing copied."""
    query, keys, values, positions = problem.query, problem.keys, problem.values, problem.positions
    batch, time, heads, width = query.shape
    length, units = keys.shape[2], problem.units
    each = heads // units
    kept, index = _select_per_unit(problem, choice)
    row = torch.arange(batch).view(-1, 1, 1, 1)
    absent = kept == -math.inf
    complete = not absent.any()
    if not complete:
        # An absent chunk weighs nothing, but its rows may hold NaN: list the best one again, or any readable
        # one.
        readable = problem.valid.any(dim=1).nonzero()
        if len(readable) == 0:
            return _dense(_blank_unread(_trim(problem), "dense"), choice._replace(top_k=1))
        best, which = kept.max(dim=-1, keepdim=True)
        index = torch.where(absent, index.gather(-1, which), index)
        row = torch.where(best == -math.inf, readable[0, 0], row)
        index = torch.where(best == -math.inf, readable[0, 1], index)

    def listed(tensor: Tensor) -> tuple[Tensor, Runs]:
        table, (per_row, per_chunk, per_step, per_group) = _as_table(tensor)
        first = row * per_row + index * per_chunk
        if per_group and units > 1:
            first = first + (_group_of_units(problem) * per_group)[:, None]
        if each > 1:
            first = first[:, :, :, None].expand(-1, -1, -1, each, -1)
        return table, Runs(first.reshape(-1, choice.top_k), length, per_step, len(table))

    key_table, key_runs = listed(keys)
    if values is keys:
        value_table, value_runs = key_table, key_runs
    elif (values.shape, values.stride(), values.requires_grad) == (
        keys.shape,
        keys.stride(),
        keys.requires_grad,
    ):
        value_table, value_runs = _as_table(values)[0], key_runs
    else:
        value_table, value_runs = listed(values)
    flat_query = (query * choice.scale).reshape(-1, width)
    logits = dots(flat_query, key_table, key_runs).view(batch, time, units, each, choice.top_k, length)
    if positions is not None:
        logits = logits + (flat_query @ positions.T).view(batch, time, units, each, 1, length)
    if problem.lengths is not None:
        beyond = torch.arange(length) >= problem.lengths[row, index][..., None]
        logits = logits.masked_fill(beyond[:, :, :, None], -math.inf)
    attention = _attention_of_kept(logits, kept, choice, complete)
    out = mix(attention.reshape(-1, choice.top_k, length), value_table, value_runs)
    if positions is not None:
        out = out + attention.sum(dim=-2).view(-1, length) @ positions
    return out.view(batch, time, heads, values.shape[-1])


def _row_strides(tensor: Float[Tensor, "B M C G D"]) -> tuple[int, int, int, int] | None:
    """Return how many rows of width D apart neighbours in B, M, C and G lie, None unless rows are aligned and apart."""
    *sizes, width = tensor.shape
    *strides, last = tensor.stride()
    if (last != 1 and width > 1) or tensor.storage_offset() % width:
        return None
    reach = width
    for stride, size in sorted(zip(strides, sizes, strict=True)):
        if size > 1 and (stride % width or stride < reach):
            return None
        reach += (size - 1) * stride
    return tuple(stride // width for stride in strides)  # pyright: ignore[reportReturnType]


def _as_table(tensor: Float[Tensor, "B M C G D"]) -> tuple[Tensor, tuple[int, int, int, int]]:
    """Return a table of rows that holds `tensor`, copied only if a gradient is to flow, and its row strides."""
    strides = _row_strides(tensor)
    assert strides is not None
    if not tensor.requires_grad:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=False))
        return tensor.as_strided((last + 1, tensor.shape[-1]), (tensor.shape[-1], 1)), strides
    order = sorted(range(4), key=lambda dim: -strides[dim])
    table = tensor.permute(*order, 4).reshape(-1, tensor.shape[-1])
    counted = [0, 0, 0, 0]
    rows = 1
    for dim in reversed(order):
        counted[dim], rows = rows, rows * tensor.shape[dim]
    return table, (counted[0], counted[1], counted[2], counted[3])


def _not_listable(problem: Problem) -> str | None:
    """Return why rows cannot be read in place, None if they can."""
    query = problem.query
    if query.is_cuda or query.dtype not in LISTED_DTYPES:
        return f"it reads float32 or float64 on the CPU, not {query.dtype} on {query.device}"
    for name, tensor in (("keys", problem.keys), ("values", problem.values)):
        if _row_strides(tensor) is None:
            return (
                f"{name} have strides {tensor.stride()}, their rows are not aligned and apart, unlike "
                "those of .contiguous()"
            )
    return None
