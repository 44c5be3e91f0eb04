"""Chunk retrieval in vectorized torch: dense, gathered or in-place attention.

Letters as in `chunk_retrieval`. All paths select the same chunks and differ in memory traffic: "dense"
multiplies by all chunks in one product, "gather" copies the selected chunks, and "listed" reads the selected
chunks in place. If many queries share a chunk, "listed" groups the queries by chunk.
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
from scrubjay.kernels.retrieval.grouping import attend_grouped, build_groups, is_grouping_faster
from scrubjay.kernels.retrieval.problem import Choice, Problem, Reading, Tensors, any_along
from scrubjay.kernels.retrieval.rows import DTYPES as LISTED_DTYPES
from scrubjay.kernels.retrieval.rows import Runs, dots, mix
from scrubjay.kernels.retrieval.selection import select, zero_idle_queries, zero_unread_summaries

# Scalars per block, so that intermediates fit the caches; larger inputs are split into blocks.
_BLOCK_SCALARS = {"dense": 1 << 24, "listed": 1 << 21, "gather": 1 << 24}
_BLOCK_SCORES = 1 << 20

ReadOut = tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"] | None]
"""Read-out and, if requested, its log normaliser."""


def retrieve(problem: Problem, choice: Choice, path: str) -> ReadOut:
    """Select chunks and attend by a vectorized path, in blocks of queries that fit the CPU caches."""
    if problem.query.shape[1] > 1 and not is_traced() and not problem.valid.is_cuda:
        problem = _trim(problem)
    choice = choice._replace(top_k=min(choice.top_k, problem.keys.shape[1]))
    path = _select_path(problem, choice, path)
    problem = _zero_unread(zero_unread_summaries(zero_idle_queries(problem)), path)
    all_chunks = choice.top_k == problem.keys.shape[1]

    def run(block: Problem) -> ReadOut:
        reading = block.reading(*select(block, choice))
        return dense(reading, choice, all_chunks) if path == "dense" else _PATHS[path](reading, choice)

    return _in_blocks(problem, choice, path, run)


def attend(reading: Reading, choice: Choice, path: str) -> ReadOut:
    """Attend to selected chunks by a vectorized path. Chunks with a score of -inf are absent."""
    assert reading.scores is not None
    path = _select_path(reading, choice, path)
    absent = reading.scores == -math.inf
    # "dense" collects absent chunks in an extra column; other paths read chunk 0 with weight zero.
    nowhere = reading.keys.shape[1] if path == "dense" else 0
    reading = reading._replace(chunks=reading.chunks.masked_fill(absent, nowhere))
    idle = absent.all(dim=-1).repeat_interleave(reading.query.shape[2] // absent.shape[2], dim=2)
    reading = _zero_unselected(reading._replace(query=reading.query.masked_fill(idle[..., None], 0)), path)
    return _in_blocks(reading, choice, path, lambda block: _PATHS[path](block, choice))


def _in_blocks(tensors: Tensors, choice: Choice, path: str, run: Callable[[Tensors], ReadOut]) -> ReadOut:
    rows, queries = _block_sizes(tensors, choice, path)
    batch, time = tensors.query.shape[:2]
    # An exported graph supports any batch size, so the batch is not split.
    at_once = torch.compiler.is_exporting() or rows >= batch
    if at_once and queries >= time:
        return run(tensors)
    row_blocks = [tensors] if at_once else [tensors.rows(slice(n, n + rows)) for n in range(0, batch, rows)]
    blocks = []
    for block in row_blocks:
        pieces = [run(block.times(slice(t, t + queries))) for t in range(0, time, queries)]
        blocks.append(_concatenate(pieces, dim=1))
    return _concatenate(blocks, dim=0)


def _concatenate(
    parts: Sequence[tuple[Float[Tensor, "_ _ H V"], Float[Tensor, "_ _ H"] | None]], dim: int
) -> ReadOut:
    normalisers = [lse for _, lse in parts if lse is not None]
    return torch.cat([out for out, _ in parts], dim=dim), torch.cat(
        normalisers, dim=dim
    ) if normalisers else None


def _select_path(tensors: Problem | Reading, choice: Choice, path: str) -> str:
    """Return the implementation to run: "dense", "gather" or "listed".

    For "torch" this is the one with the least memory traffic. Any other name is returned unchanged. Raises
    ValueError if "listed" does not support the inputs.
    """
    if path == "listed":
        reason = _why_not_listable(tensors)
        if reason is not None:
            raise ValueError(f"implementation='listed': {reason}; use 'torch'")
    if path != "torch":
        return path
    query, keys = tensors.query, tensors.keys
    listable = not is_traced() and tensors.lengths is None and _why_not_listable(tensors) is None
    several, chunks = query.shape[1] > 1, keys.shape[1]
    if listable:
        return "dense" if several and chunks <= choice.top_k else "listed"
    # Fetching a chunk for each unit costs about as much as multiplying by three chunks in one large product.
    units_per_key_head = tensors.units // keys.shape[3]
    return "dense" if several and chunks <= 3 * choice.top_k * units_per_key_head else "gather"


def _block_sizes(tensors: Problem | Reading, choice: Choice, path: str) -> tuple[int, int]:
    """Return the number of sequences in a block, and the number of queries of each sequence."""
    _, time, heads, width = tensors.query.shape
    chunks, length = tensors.keys.shape[1:3]
    per_query = {
        "dense": heads * chunks * length,
        "listed": heads * choice.top_k * length,
        "gather": tensors.units * choice.top_k * length * width,
    }[path]
    queries = max(1, _BLOCK_SCALARS[path] // max(1, per_query))
    if isinstance(tensors, Problem):
        # For large stores the scores are larger than the attention's intermediates.
        queries = min(queries, max(1, _BLOCK_SCORES // (tensors.summary_query.shape[2] * chunks)))
    return max(1, queries // max(1, time)), queries


def _trim(problem: Problem) -> Problem:
    """Drop the leading and trailing chunks that no query may read.

    Early in an episode, most chunks of a large store are unused. `retrieve` does not call this function on a
    GPU, because the search for the first and the last chunk would synchronize with the device.
    """
    read = any_along(problem.valid, (0, 1)).nonzero().flatten()
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


def _zero_unread(problem: Problem, path: str) -> Problem:
    """Zero the chunks that no query may read, if they may hold NaN.

    A weight of zero would not remove the NaN.
    """
    in_memory, in_tails = _needs_blanking(problem, path)
    if not (in_memory or in_tails):
        return problem
    unread = ~any_along(problem.valid, 1)
    if not in_tails and not is_traced() and (not unread.any() or _is_finite(problem)):
        return problem
    return _zero_memory(problem, unread, in_tails)


def _is_finite(tensors: Problem | Reading) -> bool:
    """Return True if keys and values are known to be finite.

    On a CPU this check is ten times cheaper than zeroing. On a GPU it would synchronize, so the result is
    False.
    """
    keys, values = tensors.keys.detach(), tensors.values.detach()
    return bool(not keys.is_cuda and keys.sum().isfinite() and values.sum().isfinite())


def _zero_unselected(reading: Reading, path: str) -> Reading:
    """Zero the chunks that no query selected, if they may hold NaN.

    A weight of zero would not remove the NaN.
    """
    in_memory, in_tails = _needs_blanking(reading, path)
    if not (in_memory or in_tails):
        return reading
    if not in_tails and not is_traced() and _is_finite(reading):
        return reading
    batch, chunks = reading.keys.shape[:2]
    assert reading.scores is not None
    chunk_index = reading.chunks.masked_fill(reading.scores == -math.inf, chunks).flatten(1)
    read = torch.zeros(batch, chunks + 1, dtype=torch.bool, device=chunk_index.device).scatter(
        1, chunk_index, True
    )
    return _zero_memory(reading, ~read[:, :chunks], in_tails)


def _needs_blanking(tensors: Problem | Reading, path: str) -> tuple[bool, bool]:
    """Return two flags: unread chunks must be zeroed, and steps beyond a chunk's length must be zeroed.

    They must be zeroed if `path` multiplies them by a weight of zero, because 0 * NaN is NaN.
    """
    several = tensors.query.shape[1] > 1
    # With one query per sequence "gather" zeros only the fetched chunks; "listed" skips unread chunks.
    in_memory = path == "dense" or (path == "gather" and several)
    return in_memory, tensors.lengths is not None and (in_memory or path == "listed")


def _zero_memory(tensors: Tensors, unread: Bool[Tensor, "B M"], in_tails: bool) -> Tensors:
    blank, keys = unread[..., None], tensors.keys
    if in_tails:
        step = torch.arange(keys.shape[2], device=blank.device)
        blank = blank | (step >= tensors.lengths[..., None])  # pyright: ignore[reportOptionalSubscript]
    blank = blank[..., None, None]
    zeroed_keys = keys.masked_fill(blank, 0)
    values = zeroed_keys if tensors.values is keys else tensors.values.masked_fill(blank, 0)
    return tensors._replace(keys=zeroed_keys, values=values)


def _per_unit(reading: Reading) -> tuple[Tensor, Tensor]:
    """Return the scores and indices of the selected chunks, `[B, T, U, K]`."""
    scores, index = reading.scores, reading.chunks
    assert scores is not None
    units, coarse = reading.units, scores.shape[2]
    if coarse < units:
        unit = torch.arange(units, device=scores.device) * coarse // units
        scores, index = scores[:, :, unit], index[:, :, unit]
    return scores, index


def _group_of_units(reading: Reading) -> Int[Tensor, " U"]:
    return torch.arange(reading.units, device=reading.keys.device) * reading.keys.shape[3] // reading.units


def _chunk_attention(
    logits: Float[Tensor, "B T U R K C"], scores: Float[Tensor, "B T U K"], choice: Choice, complete: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the weight of every step of the selected chunks, and the log normaliser if requested.

    `complete` means that no chunk is absent.
    """
    if not choice.joint:
        weights = torch.softmax(scores, dim=-1) if complete else softmax_or_zero(scores)
        attention = torch.softmax(logits, dim=-1) * weights[:, :, :, None, :, None]
        if not choice.return_lse:
            return attention, None
        return attention, log_normaliser(scores).repeat_interleave(logits.shape[3], dim=2)
    if complete:
        attention = torch.softmax(logits.flatten(-2), dim=-1).view_as(logits)
    else:
        logits = logits.masked_fill((scores == -math.inf)[:, :, :, None, :, None], -math.inf)
        attention = softmax_or_zero(logits.flatten(-2)).view_as(logits)
    return attention, log_normaliser(logits.flatten(-2)).flatten(2) if choice.return_lse else None


def _attend_gathered(reading: Reading, choice: Choice) -> ReadOut:
    """Attend to copies of each query's chunks. The cost does not grow with the number of chunks M."""
    query, keys, values, _, _, positions, lengths = reading
    batch, time, heads, width = query.shape
    length, units = keys.shape[2], reading.units
    scores, index = _per_unit(reading)
    group = _group_of_units(reading)
    fetched_keys = _fetch(keys, index, group)
    fetched_values = fetched_keys if values is keys else _fetch(values, index, group)
    if time == 1:
        absent = (scores == -math.inf)[..., None, None]
        fetched_keys = fetched_keys.masked_fill_(absent, 0)
        fetched_values = fetched_keys if values is keys else fetched_values.masked_fill_(absent, 0)
    beyond = None
    if lengths is not None:
        batch_index = torch.arange(batch, device=keys.device).view(-1, 1, 1, 1)
        beyond = torch.arange(length, device=keys.device) >= lengths[batch_index, index][..., None]
        if time == 1:
            fetched_keys = fetched_keys.masked_fill_(beyond[..., None], 0)
            fetched_values = (
                fetched_keys if values is keys else fetched_values.masked_fill_(beyond[..., None], 0)
            )
        # Absent chunks are masked by their score; -inf everywhere would make a softmax NaN.
        beyond = beyond & (scores > -math.inf)[..., None]
    dtype = reading.score_dtype
    scaled_query = (query.to(dtype) * choice.scale).view(batch, time, units, heads // units, width)
    logits = scaled_query @ fetched_keys.flatten(-3, -2).to(dtype).transpose(-1, -2)
    logits = logits.view(batch, time, units, heads // units, choice.top_k, length)
    if positions is not None:
        logits = logits + (scaled_query @ positions.to(dtype).T).unsqueeze(-2)
    if beyond is not None:
        logits = logits.masked_fill(beyond[:, :, :, None], -math.inf)
    attention, lse = _chunk_attention(logits, scores, choice, complete=False)
    attention = attention.to(values.dtype)
    out = attention.flatten(-2) @ fetched_values.flatten(-3, -2)
    if positions is not None:
        out = out + attention.sum(dim=-2) @ positions
    return out.view(batch, time, heads, values.shape[-1]), lse


def _fetch(table: Tensor, index: Tensor, group: Tensor) -> Tensor:
    """Return copies of the selected chunks, `[B, T, U, K, C, D]`.

    Unit u gets the chunks `index[b, t, u]` of key head `group[u]`.
    """
    batch, chunks, length, groups, width = table.shape
    if groups == 1 and index.shape[2] == 1:
        offset = torch.arange(batch, device=index.device).view(-1, 1, 1, 1) * chunks
        rows = table.reshape(batch * chunks, length * width).index_select(0, (index + offset).flatten())
        return rows.view(*index.shape, length, width)
    row = torch.arange(batch, device=index.device).view(-1, 1, 1, 1)
    return table[row, index, :, group.view(1, 1, -1, 1)]


def _attend_listed(reading: Reading, choice: Choice) -> ReadOut:
    """Attend to each query's chunks in place, without copies."""
    query, keys, values, _, _, positions, lengths = reading
    batch, time, heads, width = query.shape
    length, units = keys.shape[2], reading.units
    heads_per_unit = heads // units
    scores, index = _per_unit(reading)
    if is_grouping_faster(reading, choice.top_k):
        # Grouped products include chunks that no query selected.
        needs_gradient = keys.requires_grad or values.requires_grad
        reading = _zero_unselected(reading, "dense") if needs_gradient else reading
        return attend_grouped(reading, choice, scores, build_groups(scores, index, keys.shape[1]))
    batch_index = torch.arange(batch).view(-1, 1, 1, 1)
    absent = scores == -math.inf
    complete = not absent.any()
    if not complete:
        # An absent chunk has weight zero, but its rows may hold NaN: list the best chunk again, or any
        # readable one.
        read = (~absent).nonzero()
        if len(read) == 0:
            return _empty_read_out(reading, choice)
        first_present = tuple(read[0])
        best, best_slot = scores.max(dim=-1, keepdim=True)
        index = torch.where(absent, index.gather(-1, best_slot), index)
        batch_index = torch.where(best == -math.inf, read[0, 0], batch_index)
        index = torch.where(best == -math.inf, index[first_present], index)

    def build_table(tensor: Tensor) -> tuple[Tensor, Runs]:
        table, (per_row, per_chunk, per_step, per_group) = _as_table(tensor)
        first = batch_index * per_row + index * per_chunk
        if per_group and units > 1:
            first = first + (_group_of_units(reading) * per_group)[:, None]
        if heads_per_unit > 1:
            first = first[:, :, :, None].expand(-1, -1, -1, heads_per_unit, -1)
        return table, Runs(first.reshape(-1, choice.top_k), length, per_step, len(table))

    key_table, key_runs = build_table(keys)
    if values is keys:
        value_table, value_runs = key_table, key_runs
    elif (values.shape, values.stride(), values.requires_grad) == (
        keys.shape,
        keys.stride(),
        keys.requires_grad,
    ):
        value_table, value_runs = _as_table(values)[0], key_runs
    else:
        value_table, value_runs = build_table(values)
    flat_query = (query * choice.scale).reshape(-1, width)
    logits = dots(flat_query, key_table, key_runs).view(
        batch, time, units, heads_per_unit, choice.top_k, length
    )
    if positions is not None:
        logits = logits + (flat_query @ positions.T).view(batch, time, units, heads_per_unit, 1, length)
    if lengths is not None:
        beyond = torch.arange(length) >= lengths[batch_index, index][..., None]
        logits = logits.masked_fill(beyond[:, :, :, None], -math.inf)
    attention, lse = _chunk_attention(logits, scores, choice, complete)
    out = mix(attention.reshape(-1, choice.top_k, length), value_table, value_runs)
    if positions is not None:
        out = out + attention.sum(dim=-2).view(-1, length) @ positions
    return out.view(batch, time, heads, values.shape[-1]), lse


def _empty_read_out(reading: Reading, choice: Choice) -> ReadOut:
    """Return a zero read-out that is connected to the inputs in the autograd graph."""
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
    """Return the strides of the first four dims, counted in rows; None if rows are misaligned or overlap."""
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
    """Return `tensor` as a table of rows, and its strides counted in rows.

    The table is a view, unless the tensor needs a gradient.
    """
    strides = _row_strides(tensor)
    assert strides is not None
    if not tensor.requires_grad:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=False))
        return tensor.as_strided((last + 1, tensor.shape[-1]), (tensor.shape[-1], 1)), strides
    order = sorted(range(4), key=lambda dim: -strides[dim])
    table = tensor.permute(*order, 4).reshape(-1, tensor.shape[-1])
    table_strides = [0, 0, 0, 0]
    rows = 1
    for dim in reversed(order):
        table_strides[dim], rows = rows, rows * tensor.shape[dim]
    return table, (table_strides[0], table_strides[1], table_strides[2], table_strides[3])


def _why_not_listable(tensors: Problem | Reading) -> str | None:
    """Return the reason why rows cannot be read in place; None if they can."""
    query = tensors.query
    if query.is_cuda or query.dtype not in LISTED_DTYPES:
        return f"supports float32 or float64 on the CPU, not {query.dtype} on {query.device}"
    for name, tensor in (("keys", tensors.keys), ("values", tensors.values)):
        if _row_strides(tensor) is None:
            return (
                f"{name} have strides {tensor.stride()}, so rows are misaligned or overlap; "
                "call .contiguous()"
            )
    return None


_PATHS: dict[str, Callable[[Reading, Choice], ReadOut]] = {
    "dense": dense,
    "listed": _attend_listed,
    "gather": _attend_gathered,
}
