"""Titans with memory as a context: attention inside a chunk, over what memory recalls and the chunk.

Titans (Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663), section 4.1, equations 21 to 25. A segment of the
paper is the memory's chunk here, so the memory before the segment is its anchor. For every step of a chunk
memory recalls a token; attention sees persistent tokens and, up to the present step, recalled tokens and
inputs; what it read, added to its input, is learned, recalled after that, and gated. The paper's last recall
comes after the whole segment is learned, which would show a step its future; here it comes after the step's
own write. The memory has no convolution: attention stands before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.memory.contract.base import State
from scrubjay.memory.parts.window import resolve_heads
from scrubjay.memory.titans.attention import NARROWEST_HEAD, MemoryGate, PersistentTokens
from scrubjay.memory.titans.lmm import Titans, TitansConfig, TitansLayer
from scrubjay.memory.titans.neural import cut_rows


@dataclass(frozen=True)
class TitansMACConfig(TitansConfig):
    """Sizes of `TitansMAC`; `chunk_size` is its segment, too. Raises ValueError on one that cannot work."""

    convolution: int = 1
    """Always 1: attention mixes what a key is made of."""
    read_before_write: bool = False
    """Whether the last recall comes before the write of its own step."""
    num_persistent: int = 4
    """Learned keys and values that attention always sees."""
    attention_heads: int | None = None
    """Attention heads, at least 4 wide; by default as many as divide `dim`, up to 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.convolution != 1:
            raise ValueError(
                f"convolution={self.convolution}: the memory of titans_mac has none; leave it at 1"
            )
        if self.num_persistent < 0:
            raise ValueError(f"num_persistent={self.num_persistent}: must not be negative")
        resolve_heads(self.dim, self.attention_heads, NARROWEST_HEAD, "attention_heads")

    def build(self) -> TitansMAC:
        """Return a freshly initialised memory of these sizes."""
        return TitansMAC(self)


class _ContextLayer(TitansLayer):
    """State, beside that of memory.

    `keys` and `values` `[batch, 2 chunk_size, dim]` of the chunk's inputs and recalls.
    """

    def __init__(self, config: TitansMACConfig) -> None:
        super().__init__(config)
        self.config = config
        self.attention = PersistentTokens(config.dim, config.attention_heads, config.num_persistent)
        self.recall_query = nn.Linear(config.dim, config.dim, bias=False)
        self.write_norm = nn.LayerNorm(config.dim)
        self.gate = MemoryGate(config.dim)

    def initial_state(self, batch_size: int, dtype: torch.dtype, device: torch.device) -> State:
        """Return the layer's state at the birth of an episode."""
        shape = (batch_size, 2 * self.config.chunk_size, self.config.dim)
        caches = {name: torch.zeros(shape, dtype=dtype, device=device) for name in ("keys", "values")}
        return self.memory.initial_state(batch_size, dtype, device) | caches

    def step(self, x, state, time):
        size = self.config.chunk_size
        place = time % size
        state = self.memory.cut(state, time)
        normed = self.memory_norm(x)[:, None]
        slot = torch.arange(2 * size, device=x.device)
        caches = {}
        for name, new in self._context(normed, place[:, None], state).items():
            written = torch.cat([new[:, :1].expand(-1, size, -1), new[:, 1:].expand(-1, size, -1)], dim=1)
            here = (slot % size == place[:, None])[..., None]
            # A new chunk begins with nothing of the last.
            kept = torch.where((place == 0)[:, None, None], 0, state[name])
            caches[name] = torch.where(here, written.to(kept.dtype), kept)
        visible = slot % size <= place[:, None]
        query = self.attention.project_query(normed, place[:, None])
        attended = x + self._attend(query, caches, visible[:, None])[:, 0]
        recalled, surprise, learned = self.memory.step(self.write_norm(attended), state, time)
        return self.feed(x + self.gate(attended, recalled)), surprise, learned | caches

    def segment(self, x, state, grid):
        size = self.config.chunk_size
        every = self.config.bptt_chunks
        cuts = grid.boundaries(every) if every else None
        laid = grid.lay(x).unflatten(1, (grid.num_chunks, size))
        normed = self.memory_norm(laid)
        valid = None if grid.valid is None else grid.valid.unflatten(1, (grid.num_chunks, size))
        place = torch.arange(size, device=x.device).expand(x.shape[0], -1)
        slot = torch.arange(2 * size, device=x.device)
        visible = (slot % size <= torch.arange(size, device=x.device)[:, None]).expand(x.shape[0], -1, -1)
        learned = {name: value for name, value in state.items() if name not in ("keys", "values")}
        caches = {name: state[name] for name in ("keys", "values")}
        attended_chunks, recalled_chunks, surprises = [], [], []
        for chunk in range(grid.num_chunks):
            if grid.fresh is not None:
                fresh = grid.fresh[:, chunk, None, None]
                learned = {name: torch.where(fresh, 0, value) for name, value in learned.items()}
            present = None if valid is None else valid[:, chunk]
            if cuts is not None:
                learned = cut_rows(learned, cuts[:, chunk])
            context = self._context(normed[:, chunk], place, learned)
            if present is not None:
                # What a chunk holds already was written by the segment before; only the first of a row can.
                new_chunk = grid.begins[:, chunk, None, None]
                here = present.repeat(1, 2)[..., None]
                context = {
                    name: torch.where(here, new, caches[name].to(new.dtype).masked_fill(new_chunk, 0))
                    for name, new in context.items()
                }
                some = present.any(dim=1)[:, None, None]
                caches = {name: torch.where(some, context[name].to(c.dtype), c) for name, c in caches.items()}
            else:
                caches = {name: context[name].to(cache.dtype) for name, cache in caches.items()}
            query = self.attention.project_query(normed[:, chunk], place)
            attended = laid[:, chunk] + self._attend(query, context, visible)
            recalled, surprise, learned = self.memory.chunk(self.write_norm(attended), learned, present)
            attended_chunks.append(attended)
            recalled_chunks.append(recalled)
            surprises.append(surprise)
        attended, recalled = (grid.collect(torch.cat(x, dim=1)) for x in (attended_chunks, recalled_chunks))
        surprise = grid.collect(torch.cat(surprises, dim=1)[..., None])[..., 0]
        return self.feed(x + self.gate(attended, recalled)), surprise, learned | caches

    def _context(self, normed: Tensor, place: Tensor, learned: State) -> State:
        """Return keys and values `[batch, 2 time, dim]` of inputs, then of what memory recalls for them."""
        recalled = self.memory.recall(self.recall_query(normed), learned)
        parts = [self.attention.project(tokens, place) for tokens in (normed, recalled)]
        return {
            name: torch.cat([part[index].flatten(2) for part in parts], dim=1)
            for index, name in enumerate(("keys", "values"))
        }

    def _attend(
        self, query: Float[Tensor, "batch time heads width"], context: State, visible: Tensor
    ) -> Float[Tensor, "batch time dim"]:
        attention = self.attention
        keys, values = (
            context[name].to(query.dtype).unflatten(-1, (attention.heads, attention.width))
            for name in ("keys", "values")
        )
        keys, values = attention.before(keys, values)
        mask = functional.pad(visible, (attention.num_persistent, 0), value=True)[:, None]
        query, keys, values = (part.transpose(1, 2) for part in (query, keys, values))
        # Written out, for the sake of higher derivatives; the context is two chunks long.
        scores = (query @ keys.mT * attention.width**-0.5).masked_fill(~mask, -torch.inf)
        dtype = torch.promote_types(scores.dtype, torch.float32)
        read = torch.softmax(scores, dim=-1, dtype=dtype).to(values.dtype) @ values
        return attention.out(read.transpose(1, 2).flatten(2))


class TitansMAC(Titans):
    """Layers of attention over a chunk and its recalls, learned by neural memory, and feed-forward.

    State: that of `Titans`, and for every layer the keys and values of the chunk that is open.
    """

    layer_class: ClassVar[type[TitansLayer]] = _ContextLayer
