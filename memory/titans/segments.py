"""Attention context of `TitansMAC`: keys and values of a segment's inputs and recalls, chunk by chunk."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.contract.base import State
from scrubjay.memory.parts.attention import by_head
from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.parts.rotary import compute_cos_sin
from scrubjay.memory.titans.attention import PersistentTokens

CACHES = ("keys", "values")


class ChunkContext:
    """Context with one memory chunk per segment: persistent tokens, inputs and recalls of the chunk."""

    def __init__(self, attention: PersistentTokens, x: Tensor, state: State, grid: ChunkGrid) -> None:
        self.attention, self.grid = attention, grid
        size, batch = grid.chunk_size, len(x)
        self.persistent = [part.transpose(1, 2) for part in self.attention.persistent(batch, x.dtype)]
        self.key_value_weights = self.attention.key_value_weights()
        place = torch.arange(size, device=x.device)
        self.place = place.repeat(grid.num_chunks)[None]
        self.rotation = compute_cos_sin(place, self.attention.frequencies, self.attention.width, x.dtype)
        visible = (place[:, None] >= place).repeat(1, 2)
        visible = functional.pad(visible, (self.attention.num_persistent, 0), value=True)
        self.hidden = torch.zeros_like(visible, dtype=x.dtype).masked_fill(~visible, -torch.inf)[None]
        self.valid = None if grid.valid is None else grid.valid.unflatten(1, (grid.num_chunks, size))
        self.full_chunks = [] if self.valid is None else self.valid.all(-1).all(0).tolist()
        self.caches = {name: state[name] for name in CACHES}
        self.chunks: list[list[Tensor]] = []

    def step_mask(self, index: int) -> Bool[Tensor, "batch chunk_size"] | None:
        """Return the mask of positions in a chunk that hold a step; None if all positions do."""
        return None if self.valid is None or self.full_chunks[index] else self.valid[:, index]

    def select_memory(self, index: int, memory_state: State) -> State:
        """Return the memory from which a chunk recalls: the present memory."""
        return memory_state

    def detach(self, rows: Bool[Tensor, " batch"]) -> None:
        """Do nothing: this object stores no memory of an earlier chunk whose gradient could stop."""

    def add(self, index: int, own: list[Tensor], recalls: Tensor) -> list[Tensor]:
        """Add a chunk, and return the keys and values for its attention, `[batch, heads, slots, width]`."""
        products = functional.linear(recalls, self.key_value_weights)
        rotated_parts = self.attention.rotate_products(products, self.rotation)
        caches = [torch.cat(parts, dim=2) for parts in zip(self.persistent, own, rotated_parts, strict=True)]
        step_mask = self.step_mask(index)
        if index == 0 and step_mask is not None:
            # The previous segment may have filled part of a row's first chunk.
            earlier = self._slots(~step_mask & ~self.grid.begins[:, :1])
            for place, (old, new) in enumerate(zip(self.caches.values(), caches, strict=True)):
                old = by_head(old, self.attention.heads).to(new.dtype)
                old = functional.pad(old, (0, 0, self.attention.num_persistent, 0))
                caches[place] = torch.where(earlier, old, new)
        self.chunks.append(caches)
        return caches

    def final_state(self) -> State:
        """Return the caches of the last chunk of every row. Positions without a step are zero."""
        if self.valid is None:
            last_caches = self.chunks[-1]
        else:
            last = self.valid.any(-1).long().cumsum(1).argmax(1)
            row = torch.arange(len(last), device=last.device)
            has_step = self.valid[row, last] | ((last == 0) & ~self.grid.begins[:, 0])[:, None]
            all_chunks = [torch.stack(parts, dim=1)[row, last] for parts in zip(*self.chunks, strict=True)]
            last_caches = [torch.where(self._slots(has_step), part, 0) for part in all_chunks]
        num_persistent = self.attention.num_persistent
        return {
            name: part[:, :, num_persistent:].transpose(1, 2).flatten(2).to(self.caches[name].dtype)
            for name, part in zip(CACHES, last_caches, strict=True)
        }

    def _slots(self, places: Bool[Tensor, "batch chunk_size"]) -> Bool[Tensor, "batch 1 slots 1"]:
        return functional.pad(places.repeat(1, 2), (self.attention.num_persistent, 0))[:, None, :, None]


class SegmentContext:
    """Context with several memory chunks per segment.

    It holds the keys and values of each row's present segment, and the memory from which its chunks recall.

    Among the keys of attention, the inputs of a segment come first, and its recalls follow.

    Args:
        attention: Attention of the layer.
        state: State of the layer, with `keys`, `values` and `before`, the memory before each row's segment.
        grid: Chunk grid of the steps.
        segment_chunks: Chunks per segment.
    """

    def __init__(
        self, attention: PersistentTokens, state: State, grid: ChunkGrid, segment_chunks: int
    ) -> None:
        self.attention, self.grid = attention, grid
        size, chunks = grid.chunk_size, grid.num_chunks
        number = grid.index % segment_chunks
        self.segment_starts: Bool[Tensor, "batch chunks"] = grid.begins & (number == 0)
        by_chunk = number[..., None] * size + torch.arange(size, device=number.device)
        self.place = by_chunk.flatten(1)
        self.by_chunk = by_chunk.unbind(1)
        valid = torch.ones_like(by_chunk, dtype=torch.bool)
        if grid.valid is not None:
            valid = grid.valid.unflatten(1, (chunks, size))
        self.valid = valid.unbind(1)
        self.slot = torch.arange(segment_chunks * size, device=number.device)
        shape = (attention.heads, attention.width)
        # Inputs and recalls separated, `[batch, 2, positions of a segment, heads, width]`.
        self.caches = [state[name].unflatten(1, (2, -1)).unflatten(-1, shape) for name in CACHES]
        self.before = state["before"]
        self.hidden = torch.empty(0)

    def step_mask(self, index: int) -> Bool[Tensor, "batch chunk_size"] | None:
        """Return the mask of positions in a chunk that hold a step; None if all positions do."""
        return None if self.grid.valid is None else self.valid[index]

    def select_memory(self, index: int, memory_state: State) -> State:
        """Return the memory from which a chunk recalls: the memory before the chunk's segment."""
        self.before = torch.where(
            self.segment_starts[:, index, None, None], memory_state["anchor"], self.before
        )
        return {"anchor": self.before}

    def detach(self, rows: Bool[Tensor, " batch"]) -> None:
        """Detach the memory before the present segment from the graph, in the rows of the mask `rows`."""
        self.before = torch.where(rows[:, None, None], self.before.detach(), self.before)

    def add(self, index: int, own: list[Tensor], recalls: Tensor) -> list[Tensor]:
        """Add a chunk, and return the keys and values for its attention, `[batch, heads, slots, width]`.

        Also set `hidden`, the additive attention mask of the chunk's steps.
        """
        place = self.by_chunk[index]
        recall_projections = self.attention.project(recalls, place)
        # Position of each slot in the chunk, and the mask of slots inside it.
        source = self.slot - place[:, :1]
        within = (source >= 0) & (source < place.shape[1])
        source = source.clamp(0, place.shape[1] - 1)
        is_new = within & self.valid[index].gather(1, source)
        for number, pair in enumerate(zip(own, recall_projections, strict=True)):
            new = torch.stack([pair[0].transpose(1, 2), pair[1]], dim=1)
            cache = self.caches[number]
            new = new.gather(2, source[:, None, :, None, None].expand(cache.shape)).to(cache.dtype)
            cache = torch.where(self.segment_starts[:, index, None, None, None, None], 0, cache)
            self.caches[number] = torch.where(is_new[:, None, :, None, None], new, cache)
        visible = (self.slot <= place[..., None]).repeat(1, 1, 2)
        visible = functional.pad(visible, (self.attention.num_persistent, 0), value=True)
        hidden = torch.zeros_like(visible, dtype=recalls.dtype).masked_fill(~visible, -torch.inf)
        self.hidden = hidden.repeat_interleave(self.attention.heads, 0)
        keys, values = (cache.flatten(1, 2).to(recalls.dtype) for cache in self.caches)
        return [part.transpose(1, 2) for part in self.attention.prepend_persistent(keys, values)]

    def final_state(self) -> State:
        """Return the state entries after the last chunk."""
        keys, values = (cache.flatten(1, 2).flatten(2) for cache in self.caches)
        return {"keys": keys, "values": values, "before": self.before}
