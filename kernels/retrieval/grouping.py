"""Attention to selected chunks with queries grouped by chunk: matrix products instead of single rows.

Best where many queries share a chunk. All queries of a chunk are multiplied with the chunk at once. Then the
partial outputs of each query, one for each of its chunks, are combined. Letters as in `chunk_retrieval`; N =
B * U.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.normalisers import log_normaliser, softmax_or_zero
from scrubjay.kernels.retrieval.problem import Choice, Reading

# Minimum rows per chunk, steps per chunk and multiplications per unit for grouping: a unit takes about thirty
# operations, and narrow products are slow.
_MIN_ROWS_PER_CHUNK = 8
_MIN_STEPS = 64
_MIN_PRODUCTS = 1 << 23


class Groups(NamedTuple):
    """Queries grouped by chunk, in tiles of P slots.

    Each chunk has at least one tile; a chunk with over P queries has several.
    Units with fewer tiles than the largest unit are padded with unused slots.
    """

    query: Int[Tensor, "N slots"]
    """Index of the query in each slot; an unused slot has T, the number of queries."""
    slot: Int[Tensor, "B T U K"]
    """Slot, in `query`, that each query has for its k-th chunk; arbitrary if the query has no k-th chunk."""
    extra_chunks: list[Int[Tensor, " some"]]
    """Chunk index of each extra tile, one tensor per unit. All tiles of a chunk but its first are extra."""
    size: int
    """Slots per tile, P."""


def is_grouping_faster(reading: Reading, top_k: int) -> bool:
    """Return True if grouping is faster than reading rows one by one."""
    (_, time, heads, width), (chunks, length) = reading.query.shape, reading.keys.shape[1:3]
    rows = time * top_k * heads // reading.units
    products = rows * length * (width + reading.values.shape[-1])
    return rows >= _MIN_ROWS_PER_CHUNK * chunks and length >= _MIN_STEPS and products >= _MIN_PRODUCTS


def build_groups(scores: Float[Tensor, "B T U K"], index: Int[Tensor, "B T U K"], chunks: int) -> Groups:
    """Group queries by the chunks in `index`. Entries with a score of -inf are ignored."""
    batch, time, units, top_k = scores.shape
    size = math.ceil(1.25 * time * top_k / chunks)
    unit = torch.arange(batch * units).view(batch, 1, units, 1)
    absent = scores == -math.inf
    # Sort by unit, chunk and query, with absent chunks last.
    list_index = (unit * chunks + index).masked_fill_(absent, batch * units * chunks).flatten()
    list_index, order = list_index.sort(stable=True)
    counts = torch.bincount(list_index, minlength=batch * units * chunks + 1)
    first_of_list = counts.cumsum(0) - counts
    num_extra = (((counts[:-1] + size - 1) // size).clamp(min=1) - 1).view(-1, chunks)
    # A chunk's first tile is at its index; extra tiles follow all first tiles.
    first_extra = chunks - 1 + num_extra.cumsum(dim=1) - num_extra
    present = list_index[: int(first_of_list[-1])]
    rank = torch.arange(len(present)) - first_of_list[present]
    tile = torch.where(rank < size, present % chunks, first_extra.flatten()[present] + rank // size)
    place = tile * size + rank % size
    slots = (chunks + int(num_extra.sum(dim=1).max())) * size
    query = torch.full((batch * units * slots,), time)
    query[present // chunks * slots + place] = order[: len(present)] // (units * top_k) % time
    slot = torch.zeros_like(order).index_copy_(0, order[: len(present)], place)
    number_of = torch.arange(chunks)
    extra_chunks = [number_of.repeat_interleave(of_unit) for of_unit in num_extra]
    return Groups(query.view(-1, slots), slot.view_as(scores), extra_chunks, size)


def attend_grouped(
    reading: Reading, choice: Choice, scores: Float[Tensor, "B T U K"], groups: Groups
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"] | None]:
    """Return the read-out and, if `choice.return_lse` is set, its log normaliser.

    Inputs that need a gradient must be finite.
    """
    query, keys, values = reading.query, reading.keys, reading.values
    batch, time, _, width = query.shape
    units, key_heads = reading.units, keys.shape[3]
    scaled_query = (query * choice.scale).view(batch, time, units, -1, width)
    # Unbind once: each slice's gradient would be as large as the whole tensor.
    queries = [part for row in scaled_query.unbind() for part in row.unbind(1)]
    memory = [list(zip(k.unbind(2), v.unbind(2), strict=True)) for k, v in zip(keys, values, strict=True)]
    beyond = None
    if reading.lengths is not None:
        beyond = torch.arange(keys.shape[2]) >= reading.lengths.clamp(min=1)[..., None]
    unit_outs: list[Tensor] = []
    normalisers: list[Tensor] = []
    for number, unit_query in enumerate(queries):
        row, unit = divmod(number, units)
        tiles = _UnitMemory(*memory[row][unit * key_heads // units], groups.extra_chunks[number])
        parts, lse = _attend_tiles(
            unit_query,
            tiles,
            groups.query[number, : groups.size * (len(tiles.keys) + len(tiles.extra_chunks))],
            reading.positions,
            None if beyond is None else beyond[row],
        )
        slot = groups.slot[row, :, unit]
        unit_scores = scores[row, :, unit, :, None]
        if choice.joint:
            lse = lse.index_select(0, slot.flatten()).view(*slot.shape, -1)
            unit_scores = lse.masked_fill(unit_scores == -math.inf, -math.inf)
        unit_scores = unit_scores.transpose(1, 2)
        chunk_outs = (
            parts.flatten(1).index_select(0, slot.flatten()).view(time, slot.shape[1], *parts.shape[1:])
        )
        weights = softmax_or_zero(unit_scores).transpose(1, 2)[..., None]
        unit_outs.append((chunk_outs * weights).sum(dim=1))
        if choice.return_lse:
            normalisers.append(log_normaliser(unit_scores).expand(time, parts.shape[1]))

    def join_units(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).unflatten(0, (batch, units)).transpose(1, 2).flatten(2, 3)

    return join_units(unit_outs), join_units(normalisers) if normalisers else None


class _UnitMemory(NamedTuple):
    """Keys and values that one unit reads, and the chunk index of each extra tile (see `Groups`)."""

    keys: Float[Tensor, "M C D"]
    values: Float[Tensor, "M C V"]
    extra_chunks: Int[Tensor, " some"]

    def multiply(self, left: Float[Tensor, "tiles P N"], by_keys: bool) -> Tensor:
        """Multiply every tile by the keys or values of its chunk.

        The first tile of a chunk uses the chunk in place. An extra tile uses a copy of its chunk.
        """
        right = self.keys.mT if by_keys else self.values
        chunks = len(right)
        first = torch.bmm(left[:chunks], right)
        if len(self.extra_chunks) == 0:
            return first
        again = right.index_select(0, self.extra_chunks)
        return torch.cat([first, torch.bmm(left[chunks:], again)])


def _attend_tiles(
    query: Float[Tensor, "T each D"],
    tiles: _UnitMemory,
    slot_query: Int[Tensor, " slots"],
    positions: Float[Tensor, "C D"] | None,
    beyond: Bool[Tensor, "M C"] | None,
) -> tuple[Float[Tensor, "slots each V"], Float[Tensor, "slots each"]]:
    """Return the read-out and the log normaliser of every slot, for one unit.

    A slot holds one query. The slots of a tile attend to the tile's chunk (see `Groups`).
    """
    _, each, width = query.shape
    # Unused slots point to a row of zeros, whose gradient is dropped.
    padded_query = functional.pad(query.flatten(1), (0, 0, 0, 1))
    rows = padded_query.index_select(0, slot_query).view(len(tiles.keys) + len(tiles.extra_chunks), -1, width)
    logits = tiles.multiply(rows, by_keys=True)
    if positions is not None:
        logits = logits + rows @ positions.T
    if beyond is not None:
        logits = logits.masked_fill(torch.cat([beyond, beyond[tiles.extra_chunks]])[:, None], -math.inf)
    highest = logits.detach().amax(dim=-1, keepdim=True)
    share = (logits - highest).exp()
    total = share.sum(dim=-1, keepdim=True)
    parts = tiles.multiply(share, by_keys=False)
    if positions is not None:
        parts = parts + share @ positions
    parts = (parts / total).view(len(slot_query), each, -1)
    return parts, (highest + total.log()).view(-1, each)
