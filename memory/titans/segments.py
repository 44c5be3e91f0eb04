"""What attention of `TitansMAC` sees where its segment is several of the learner's chunks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.contract.base import State
from scrubjay.memory.parts.grid import ChunkGrid
from scrubjay.memory.titans.attention import PersistentTokens

_CACHES = ("keys", "values")


class SegmentContext:
    """Keys and values of the segments that a layer's chunks are in, and the memory that these recall from.

    Of every segment's places, those of inputs lie before those of what was recalled for them.

    Args:
        attention: The layer's.
        state: Its `keys` and `values`, and `before`, the memory before each row's segment.
        grid: Where the steps are.
        segment_chunks: Chunks of a segment.
    """

    def __init__(
        self, attention: PersistentTokens, state: State, grid: ChunkGrid, segment_chunks: int
    ) -> None:
        self.attention, self.grid = attention, grid
        size, chunks = grid.chunk_size, grid.num_chunks
        number = grid.index % segment_chunks
        self.opens: Bool[Tensor, "batch chunks"] = grid.begins & (number == 0)
        by_chunk = number[..., None] * size + torch.arange(size, device=number.device)
        self.place = by_chunk.flatten(1)
        self.by_chunk = by_chunk.unbind(1)
        valid = torch.ones_like(by_chunk, dtype=torch.bool)
        if grid.valid is not None:
            valid = grid.valid.unflatten(1, (chunks, size))
        self.valid = valid.unbind(1)
        self.slot = torch.arange(segment_chunks * size, device=number.device)
        shape = (attention.heads, attention.width)
        # Inputs and recalls apart, `[batch, 2, places of a segment, heads, width]`.
        self.cached = [state[name].unflatten(1, (2, -1)).unflatten(-1, shape) for name in _CACHES]
        self.before = state["before"]
        self.hidden = torch.empty(0)

    def present(self, index: int) -> Bool[Tensor, "batch chunk_size"] | None:
        """Return which places of a chunk hold a step."""
        return None if self.grid.valid is None else self.valid[index]

    def recalled_from(self, index: int, learned: State) -> State:
        """Return the memory that a chunk recalls from: that before its segment."""
        self.before = torch.where(self.opens[:, index, None, None], learned["anchor"], self.before)
        return {"anchor": self.before}

    def cut(self, rows: Bool[Tensor, " batch"]) -> None:
        """Cut off from the graph the memory that these rows recall from."""
        self.before = torch.where(rows[:, None, None], self.before.detach(), self.before)

    def add(self, index: int, own: list[Tensor], recalled: Tensor) -> list[Tensor]:
        """Return keys and values that the next chunk may see, `[batch, heads, slots, width]`.

        Which of them each step does not see is `hidden` then.
        """
        place = self.by_chunk[index]
        of_recalled = self.attention.project(recalled, place)
        # Where each slot's step is in the chunk, and whether that is one.
        source = self.slot - place[:, :1]
        within = (source >= 0) & (source < place.shape[1])
        source = source.clamp(0, place.shape[1] - 1)
        here = within & self.valid[index].gather(1, source)
        for number, pair in enumerate(zip(own, of_recalled, strict=True)):
            new = torch.stack([pair[0].transpose(1, 2), pair[1]], dim=1)
            cached = self.cached[number]
            new = new.gather(2, source[:, None, :, None, None].expand(cached.shape)).to(cached.dtype)
            cached = torch.where(self.opens[:, index, None, None, None, None], 0, cached)
            self.cached[number] = torch.where(here[:, None, :, None, None], new, cached)
        seen = (self.slot <= place[..., None]).repeat(1, 1, 2)
        seen = functional.pad(seen, (self.attention.num_persistent, 0), value=True)
        hidden = torch.zeros_like(seen, dtype=recalled.dtype).masked_fill(~seen, -torch.inf)
        self.hidden = hidden.repeat_interleave(self.attention.heads, 0)
        keys, values = (cached.flatten(1, 2).to(recalled.dtype) for cached in self.cached)
        return [part.transpose(1, 2) for part in self.attention.before(keys, values)]

    def after(self) -> State:
        """Return what the state holds of all this behind the last chunk."""
        held: dict[str, Float[Tensor, "..."]] = {}
        for name, cached in zip(_CACHES, self.cached, strict=True):
            held[name] = cached.flatten(1, 2).flatten(2)
        return held | {"before": self.before}
