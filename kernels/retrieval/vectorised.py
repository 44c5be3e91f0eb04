"""Chunk retrieval in vectorised torch: attend to every chunk, or fetch those chosen, or read them in place.

Letters as in `chunk_retrieval`. All paths share the choice and differ in what they move: "dense" multiplies
by all chunks in one product, "gather" copies the chunks kept, "listed" copies nothing, unless
many queries share a chunk: "grouped" multiplies it with all of them then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.dispatch import is_traced
from scrubjay.kernels.normalisers import log_normaliser, softmax_or_zero
from scrubjay.kernels.retrieval.dense import dense
from scrubjay.kernels.retrieval.grouped import are_worth_it, group, grouped
from scrubjay.kernels.retrieval.problem import Choice, Problem, Reading, Tensors, some
from scrubjay.kernels.retrieval.ranking import blank_idle, blank_summaries, select
from scrubjay.kernels.retrieval.rows import DTYPES as LISTED_DTYPES
from scrubjay.kernels.retrieval.rows import Runs, dots, mix

# Above this many scalars a block's intermediates leave the caches; larger inputs go in blocks.
_BLOCK_SCALARS = {"dense": 1 << 24, "listed": 1 << 21, "gather": 1 << 24}
_BLOCK_SCORES = 1 << 20

Read = tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"] | None]
"""What is read and, if asked for, the logarithm of its normaliser."""


def retrieve(problem: Problem, choice: Choice, path: str) -> Read:
    """Choose and read by one of the vectorised paths, in blocks of queries that fit the caches."""
    if problem.query.shape[1] > 1 and not is_traced() and not problem.valid.is_cuda:
        problem = _trim(problem)
    choice = choice._replace(top_k=min(choice.top_k, problem.keys.shape[1]))
    path = _path(problem, choice, path)
    problem = _blank_unread(blank_summaries(blank_idle(problem)), path)
    everything = choice.top_k == problem.keys.shape[1]

    def run(block: Problem) -> Read:
        reading = block.reading(*select(block, choice))
        return dense(reading, choice, everything) if path == "dense" else _PATHS[path](reading, choice)

    return _in_blocks(problem, choice, path, run)


def attend(reading: Reading, choice: Choice, path: str) -> Read:
    """Read by one of the vectorised paths chunks that are chosen; those with a score of -inf are absent."""
    assert reading.scores is not None
    path = _path(reading, choice, path)
    absent = reading.scores == -math.inf
    # One column more than there are chunks takes the absent; elsewhere any is looked at, with weight zero.
    nowhere = reading.keys.shape[1] if path == "dense" else 0
    reading = reading._replace(chunks=reading.chunks.masked_fill(absent, nowhere))
    idle = absent.all(dim=-1).repeat_interleave(reading.query.shape[2] // absent.shape[2], dim=2)
    reading = _blank_unchosen(reading._replace(query=reading.query.masked_fill(idle[..., None], 0)), path)
    return _in_blocks(reading, choice, path, lambda block: _PATHS[path](block, choice))


def _in_blocks(tensors: Tensors, choice: Choice, path: str, run: Callable[[Tensors], Read]) -> Read:
    rows, queries = _block_sizes(tensors, choice, path)
    batch, time = tensors.query.shape[:2]
    # An exported graph is for any number of rows, so that they are not counted.
    at_once = torch.compiler.is_exporting() or rows >= batch
    if at_once and queries >= time:
        return run(tensors)
    of_rows = [tensors] if at_once else [tensors.rows(slice(n, n + rows)) for n in range(0, batch, rows)]
    blocks = []
    for block in of_rows:
        pieces = [run(block.times(slice(t, t + queries))) for t in range(0, time, queries)]
        blocks.append(_joined(pieces, dim=1))
    return _joined(blocks, dim=0)


def _joined(parts: Sequence[Read], dim: int) -> Read:
    normalisers = [lse for _, lse in parts if lse is not None]
    return torch.cat([out for out, _ in parts], dim=dim), torch.cat(
        normalisers, dim=dim
    ) if normalisers else None


def _path(tensors: Problem | Reading, choice: Choice, path: str) -> str:
    """Return which path runs: as asked for, or the one that moves least."""
    if path == "listed":
        reason = _not_listable(tensors)
        if reason is not None:
            raise ValueError(f"implementation='listed': {reason}; use 'torch'")
    if path != "torch":
        return path
    query, keys = tensors.query, tensors.keys
    listable = not is_traced() and tensors.lengths is None and _not_listable(tensors) is None
    several, chunks = query.shape[1] > 1, keys.shape[1]
    if listable:
        return "dense" if several and chunks <= choice.top_k else "listed"
    # Fetching a chunk for each unit costs about as much as multiplying by three chunks in one large product.
    units_per_key_head = tensors.units // keys.shape[3]
    return "dense" if several and chunks <= 3 * choice.top_k * units_per_key_head else "gather"


def _block_sizes(tensors: Problem | Reading, choice: Choice, path: str) -> tuple[int, int]:
    """Return how many rows, and how many queries of each, to take at once."""
    _, time, heads, width = tensors.query.shape
    chunks, length = tensors.keys.shape[1:3]
    per_query = {
        "dense": heads * chunks * length,
        "listed": heads * choice.top_k * length,
        "gather": tensors.units * choice.top_k * length * width,
    }[path]
    queries = max(1, _BLOCK_SCALARS[path] // max(1, per_query))
    if isinstance(tensors, Problem):
        # Of a large store the scores outgrow what is read.
        queries = min(queries, max(1, _BLOCK_SCORES // (tensors.summary_query.shape[2] * chunks)))
    return max(1, queries // max(1, time)), queries


def _trim(problem: Problem) -> Problem:
    """Leave out the chunks before the first and after the last that any query may read.

    Young episodes fill a corner of a large store; on a GPU finding out would cost a wait for the device.
    """
    read = some(problem.valid, (0, 1)).nonzero().flatten()
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


def _blank_unread(problem: Problem, path: str) -> Problem:
    """Zero what no query may read, where its NaN would survive a multiplication by weight zero."""
    in_memory, in_tails = _where_seen(problem, path)
    if not (in_memory or in_tails):
        return problem
    unread = ~some(problem.valid, 1)
    if not in_tails and not is_traced() and (not unread.any() or _is_finite(problem)):
        return problem
    return _blank_memory(problem, unread, in_tails)


def _is_finite(tensors: Problem | Reading) -> bool:
    """Return whether all is: finding out is ten times cheaper than zeroing, but a wait on a GPU."""
    keys, values = tensors.keys.detach(), tensors.values.detach()
    return bool(not keys.is_cuda and keys.sum().isfinite() and values.sum().isfinite())


def _blank_unchosen(reading: Reading, path: str) -> Reading:
    """Do so for chunks that no query has chosen."""
    in_memory, in_tails = _where_seen(reading, path)
    if not (in_memory or in_tails):
        return reading
    if not in_tails and not is_traced() and _is_finite(reading):
        return reading
    batch, chunks = reading.keys.shape[:2]
    assert reading.scores is not None
    chosen = reading.chunks.masked_fill(reading.scores == -math.inf, chunks).flatten(1)
    read = torch.zeros(batch, chunks + 1, dtype=torch.bool, device=chosen.device).scatter(1, chosen, True)
    return _blank_memory(reading, ~read[:, :chunks], in_tails)


def _where_seen(tensors: Problem | Reading, path: str) -> tuple[bool, bool]:
    """Return whether unread chunks, and steps beyond a chunk's length, are multiplied by weight zero."""
    several = tensors.query.shape[1] > 1
    # One query a row blanks what it has fetched, which is less; listed rows are never those of unread chunks.
    in_memory = path == "dense" or (path == "gather" and several)
    return in_memory, tensors.lengths is not None and (in_memory or path == "listed")


def _blank_memory(tensors: Tensors, unread: Bool[Tensor, "B M"], in_tails: bool) -> Tensors:
    blank, keys = unread[..., None], tensors.keys
    if in_tails:
        step = torch.arange(keys.shape[2], device=blank.device)
        blank = blank | (step >= tensors.lengths[..., None])  # pyright: ignore[reportOptionalSubscript]
    blank = blank[..., None, None]
    blanked = keys.masked_fill(blank, 0)
    values = blanked if tensors.values is keys else tensors.values.masked_fill(blank, 0)
    return tensors._replace(keys=blanked, values=values)


def _per_unit(reading: Reading) -> tuple[Tensor, Tensor]:
    """Return the scores and numbers of the chunks kept, `[B, T, U, K]`."""
    kept, index = reading.scores, reading.chunks
    assert kept is not None
    units, coarse = reading.units, kept.shape[2]
    if coarse < units:
        unit = torch.arange(units, device=kept.device) * coarse // units
        kept, index = kept[:, :, unit], index[:, :, unit]
    return kept, index


def _group_of_units(reading: Reading) -> Int[Tensor, " U"]:
    return torch.arange(reading.units, device=reading.keys.device) * reading.keys.shape[3] // reading.units


def _attention_of_kept(
    logits: Float[Tensor, "B T U R K C"], kept: Float[Tensor, "B T U K"], choice: Choice, complete: bool
) -> tuple[Tensor, Tensor | None]:
    """Return what every step of the kept chunks weighs in the read-out, and its normaliser if asked for.

    `complete` says that no chunk is absent.
    """
    if not choice.joint:
        weights = torch.softmax(kept, dim=-1) if complete else softmax_or_zero(kept)
        attention = torch.softmax(logits, dim=-1) * weights[:, :, :, None, :, None]
        if not choice.return_lse:
            return attention, None
        return attention, log_normaliser(kept).repeat_interleave(logits.shape[3], dim=2)
    if complete:
        attention = torch.softmax(logits.flatten(-2), dim=-1).view_as(logits)
    else:
        logits = logits.masked_fill((kept == -math.inf)[:, :, :, None, :, None], -math.inf)
        attention = softmax_or_zero(logits.flatten(-2)).view_as(logits)
    return attention, log_normaliser(logits.flatten(-2)).flatten(2) if choice.return_lse else None


def _gather(reading: Reading, choice: Choice) -> Read:
    """Fetch each query's own chunks first: work does not grow with M beyond the summaries."""
    query, keys, values, _, _, positions, lengths = reading
    batch, time, heads, width = query.shape
    length, units = keys.shape[2], reading.units
    kept, index = _per_unit(reading)
    group = _group_of_units(reading)
    fetched_keys = _fetch(keys, index, group)
    fetched_values = fetched_keys if values is keys else _fetch(values, index, group)
    if time == 1:
        absent = (kept == -math.inf)[..., None, None]
        fetched_keys = fetched_keys.masked_fill_(absent, 0)
        fetched_values = fetched_keys if values is keys else fetched_values.masked_fill_(absent, 0)
    beyond = None
    if lengths is not None:
        row = torch.arange(batch, device=keys.device).view(-1, 1, 1, 1)
        beyond = torch.arange(length, device=keys.device) >= lengths[row, index][..., None]
        if time == 1:
            fetched_keys = fetched_keys.masked_fill_(beyond[..., None], 0)
            fetched_values = (
                fetched_keys if values is keys else fetched_values.masked_fill_(beyond[..., None], 0)
            )
        # A whole chunk absent is the selection's to mask; -inf everywhere would make a softmax NaN.
        beyond = beyond & (kept > -math.inf)[..., None]
    dtype = reading.score_dtype
    grouped = (query.to(dtype) * choice.scale).view(batch, time, units, heads // units, width)
    logits = grouped @ fetched_keys.flatten(-3, -2).to(dtype).transpose(-1, -2)
    logits = logits.view(batch, time, units, heads // units, choice.top_k, length)
    if positions is not None:
        logits = logits + (grouped @ positions.to(dtype).T).unsqueeze(-2)
    if beyond is not None:
        logits = logits.masked_fill(beyond[:, :, :, None], -math.inf)
    attention, lse = _attention_of_kept(logits, kept, choice, complete=False)
    attention = attention.to(values.dtype)
    out = attention.flatten(-2) @ fetched_values.flatten(-3, -2)
    if positions is not None:
        out = out + attention.sum(dim=-2) @ positions
    return out.view(batch, time, heads, values.shape[-1]), lse


def _fetch(table: Tensor, index: Tensor, group: Tensor) -> Tensor:
    """Return `[B, T, U, K, C, D]`: for unit u the chunks `index[b, t, u]` of key head `group[u]`."""
    batch, chunks, length, groups, width = table.shape
    if groups == 1 and index.shape[2] == 1:
        offset = torch.arange(batch, device=index.device).view(-1, 1, 1, 1) * chunks
        rows = table.reshape(batch * chunks, length * width).index_select(0, (index + offset).flatten())
        return rows.view(*index.shape, length, width)
    row = torch.arange(batch, device=index.device).view(-1, 1, 1, 1)
    return table[row, index, :, group.view(1, 1, -1, 1)]


def _listed(reading: Reading, choice: Choice) -> Read:
    """Read each query's own chunks where they lie, nothing copied."""
    query, keys, values, _, _, positions, lengths = reading
    batch, time, heads, width = query.shape
    length, units = keys.shape[2], reading.units
    each = heads // units
    kept, index = _per_unit(reading)
    if are_worth_it(reading, choice.top_k):
        # Products go over chunks that nobody has chosen, too.
        learnt = keys.requires_grad or values.requires_grad
        reading = _blank_unchosen(reading, "dense") if learnt else reading
        return grouped(reading, choice, kept, group(kept, index, keys.shape[1]))
    row = torch.arange(batch).view(-1, 1, 1, 1)
    absent = kept == -math.inf
    complete = not absent.any()
    if not complete:
        # An absent chunk weighs nothing, but its rows may hold NaN: list the best one again, or any that is
        # read.
        read = (~absent).nonzero()
        if len(read) == 0:
            return _nothing_read(reading, choice)
        some = tuple(read[0])
        best, which = kept.max(dim=-1, keepdim=True)
        index = torch.where(absent, index.gather(-1, which), index)
        row = torch.where(best == -math.inf, read[0, 0], row)
        index = torch.where(best == -math.inf, index[some], index)

    def listed(tensor: Tensor) -> tuple[Tensor, Runs]:
        table, (per_row, per_chunk, per_step, per_group) = _as_table(tensor)
        first = row * per_row + index * per_chunk
        if per_group and units > 1:
            first = first + (_group_of_units(reading) * per_group)[:, None]
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
    if lengths is not None:
        beyond = torch.arange(length) >= lengths[row, index][..., None]
        logits = logits.masked_fill(beyond[:, :, :, None], -math.inf)
    attention, lse = _attention_of_kept(logits, kept, choice, complete)
    out = mix(attention.reshape(-1, choice.top_k, length), value_table, value_runs)
    if positions is not None:
        out = out + attention.sum(dim=-2).view(-1, length) @ positions
    return out.view(batch, time, heads, values.shape[-1]), lse


def _nothing_read(reading: Reading, choice: Choice) -> Read:
    """Return zeros that hang on the inputs as any read-out does."""
    keys = reading.keys[:, :1].masked_fill(torch.ones((), dtype=torch.bool), 0)
    values = reading.values[:, :1].masked_fill(torch.ones((), dtype=torch.bool), 0)
    assert reading.scores is not None
    chunks, lengths = torch.ones_like(reading.chunks), reading.lengths
    return dense(
        reading._replace(
            keys=keys, values=values, chunks=chunks, lengths=None if lengths is None else lengths[:, :1]
        ),
        choice,
    )


def _row_strides(tensor: Float[Tensor, "B M C G D"]) -> tuple[int, int, int, int] | None:
    """Return how many rows apart neighbours in B, M, C and G lie, None unless rows are aligned and apart."""
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
    """Return a table of rows that holds `tensor`, copied only for a gradient, and its row strides."""
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


def _not_listable(tensors: Problem | Reading) -> str | None:
    """Return why rows cannot be read in place, None if they can."""
    query = tensors.query
    if query.is_cuda or query.dtype not in LISTED_DTYPES:
        return f"it reads float32 or float64 on the CPU, not {query.dtype} on {query.device}"
    for name, tensor in (("keys", tensors.keys), ("values", tensors.values)):
        if _row_strides(tensor) is None:
            return (
                f"{name} have strides {tensor.stride()}, their rows are not aligned and apart, unlike "
                "those of .contiguous()"
            )
    return None


_PATHS: dict[str, Callable[[Reading, Choice], Read]] = {"dense": dense, "listed": _listed, "gather": _gather}
