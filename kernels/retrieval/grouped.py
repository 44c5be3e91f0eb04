"""Attention to chosen chunks, queries grouped by the chunks they chose: products instead of single rows.

Best where many queries share a chunk: all that read it are multiplied with it at once, and what a query reads
of its chunks is joined afterwards. Letters as in `chunk_retrieval`; N = B * U.
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

# Rows to a chunk, its steps, and multiplications of a unit, that are worth products: a unit takes some thirty
# operations, and narrow products are slow.
_LEAST_ROWS = 8
_LEAST_STEPS = 64
_LEAST_PRODUCTS = 1 << 23


class Groups(NamedTuple):
    """Who reads which chunk: tiles of P slots, one for every chunk and further ones for those most asked."""

    query: Int[Tensor, "N slots"]
    """Which query of its unit each slot is for, T for none; a unit's tiles may be fewer than the most."""
    slot: Int[Tensor, "B T U K"]
    """In which slot of its unit a query's k-th chunk is read, any for an absent one."""
    further: list[Int[Tensor, " some"]]
    """Of every unit, the chunks of its further tiles."""
    size: int
    """P."""


def are_worth_it(reading: Reading, top_k: int) -> bool:
    """Return whether to group takes less time than to read rows one by one."""
    (_, time, heads, width), (chunks, length) = reading.query.shape, reading.keys.shape[1:3]
    rows = time * top_k * heads // reading.units
    products = rows * length * (width + reading.values.shape[-1])
    return rows >= _LEAST_ROWS * chunks and length >= _LEAST_STEPS and products >= _LEAST_PRODUCTS


def group(kept: Float[Tensor, "B T U K"], index: Int[Tensor, "B T U K"], chunks: int) -> Groups:
    """Return the groups for chunks `index`, of which those with scores of -inf are absent."""
    batch, time, units, top_k = kept.shape
    size = math.ceil(1.25 * time * top_k / chunks)
    unit = torch.arange(batch * units).view(batch, 1, units, 1)
    absent = kept == -math.inf
    # Sorted by unit, chunk and query; the absent behind all others.
    number = (unit * chunks + index).masked_fill_(absent, batch * units * chunks).flatten()
    number, order = number.sort(stable=True)
    counts = torch.bincount(number, minlength=batch * units * chunks + 1)
    before = counts.cumsum(0) - counts
    more = (((counts[:-1] + size - 1) // size).clamp(min=1) - 1).view(-1, chunks)
    # A chunk's first tile lies at its number, its further ones behind the first of all.
    beyond = chunks - 1 + more.cumsum(dim=1) - more
    there = number[: int(before[-1])]
    rank = torch.arange(len(there)) - before[there]
    tile = torch.where(rank < size, there % chunks, beyond.flatten()[there] + rank // size)
    place = tile * size + rank % size
    slots = (chunks + int(more.sum(dim=1).max())) * size
    query = torch.full((batch * units * slots,), time)
    query[there // chunks * slots + place] = order[: len(there)] // (units * top_k) % time
    slot = torch.zeros_like(order).index_copy_(0, order[: len(there)], place)
    number_of = torch.arange(chunks)
    further = [number_of.repeat_interleave(of_unit) for of_unit in more]
    return Groups(query.view(-1, slots), slot.view_as(kept), further, size)


def grouped(
    reading: Reading, choice: Choice, kept: Float[Tensor, "B T U K"], groups: Groups
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"] | None]:
    """Return what is read and, if asked for, its normaliser; all is finite that takes a gradient."""
    query, keys, values = reading.query, reading.keys, reading.values
    batch, time, _, width = query.shape
    units, of_keys = reading.units, keys.shape[3]
    scaled = (query * choice.scale).view(batch, time, units, -1, width)
    # Taken apart once: the gradient of each slice would be as large as the whole.
    queries = [part for row in scaled.unbind() for part in row.unbind(1)]
    memory = [list(zip(k.unbind(2), v.unbind(2), strict=True)) for k, v in zip(keys, values, strict=True)]
    beyond = None
    if reading.lengths is not None:
        beyond = torch.arange(keys.shape[2]) >= reading.lengths.clamp(min=1)[..., None]
    outs: list[Tensor] = []
    normalisers: list[Tensor] = []
    for number, asked in enumerate(queries):
        row, unit = divmod(number, units)
        tiles = _Tiles(*memory[row][unit * of_keys // units], groups.further[number])
        parts, lse = _read(
            asked,
            tiles,
            groups.query[number, : groups.size * (len(tiles.keys) + len(tiles.further))],
            reading.positions,
            None if beyond is None else beyond[row],
        )
        slot = groups.slot[row, :, unit]
        here = kept[row, :, unit, :, None]
        if choice.joint:
            lse = lse.index_select(0, slot.flatten()).view(*slot.shape, -1)
            here = lse.masked_fill(here == -math.inf, -math.inf)
        here = here.transpose(1, 2)
        found = parts.flatten(1).index_select(0, slot.flatten()).view(time, slot.shape[1], *parts.shape[1:])
        weights = softmax_or_zero(here).transpose(1, 2)[..., None]
        outs.append((found * weights).sum(dim=1))
        if choice.return_lse:
            normalisers.append(log_normaliser(here).expand(time, parts.shape[1]))

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).unflatten(0, (batch, units)).transpose(1, 2).flatten(2, 3)

    return joined(outs), joined(normalisers) if normalisers else None


class _Tiles(NamedTuple):
    """The memory of one unit."""

    keys: Float[Tensor, "M C D"]
    values: Float[Tensor, "M C V"]
    further: Int[Tensor, " some"]

    def multiply(self, left: Float[Tensor, "tiles P N"], of_keys: bool) -> Tensor:
        """Return every tile's product with its chunk's keys or values; only further tiles' are copied."""
        right = self.keys.mT if of_keys else self.values
        chunks = len(right)
        first = torch.bmm(left[:chunks], right)
        if len(self.further) == 0:
            return first
        again = right.index_select(0, self.further)
        return torch.cat([first, torch.bmm(left[chunks:], again)])


def _read(
    query: Float[Tensor, "T each D"],
    tiles: _Tiles,
    asks: Int[Tensor, " slots"],
    positions: Float[Tensor, "C D"] | None,
    beyond: Bool[Tensor, "M C"] | None,
) -> tuple[Float[Tensor, "slots each V"], Float[Tensor, "slots each"]]:
    """Return what each slot's query reads of its chunk, and the logarithm of its normaliser."""
    _, each, width = query.shape
    # What asks for nothing is a row of zeros, whose gradient goes nowhere.
    asking = functional.pad(query.flatten(1), (0, 0, 0, 1))
    rows = asking.index_select(0, asks).view(len(tiles.keys) + len(tiles.further), -1, width)
    logits = tiles.multiply(rows, of_keys=True)
    if positions is not None:
        logits = logits + rows @ positions.T
    if beyond is not None:
        logits = logits.masked_fill(torch.cat([beyond, beyond[tiles.further]])[:, None], -math.inf)
    highest = logits.detach().amax(dim=-1, keepdim=True)
    share = (logits - highest).exp()
    total = share.sum(dim=-1, keepdim=True)
    parts = tiles.multiply(share, of_keys=False)
    if positions is not None:
        parts = parts + share @ positions
    parts = (parts / total).view(len(asks), each, -1)
    return parts, (highest + total.log()).view(-1, each)
