"""A layer that attends under a policy, as transformers sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence, Sized
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from scrubjay.memory.context.layers.own import OwnWindow
from scrubjay.memory.context.parts.marks import MARKS, LayerKept, marked, tokens_of
from scrubjay.memory.context.parts.rotary import Rotary
from scrubjay.memory.context.parts.scoring import Scoring
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, Step


class LayeredCache(Protocol):
    """What a layer asks of the cache that it is of."""

    touched: bool
    """Whether a layer has read of the present call."""

    marked: bool
    """Whether values are marked, to tell what is kept."""

    @property
    def layers(self) -> Sized:
        """All layers."""
        ...

    @property
    def rotaries(self) -> Sequence[Rotary | None]:
        """How each layer turns its keys; None where they are not moved."""
        ...

    def step(self, keys: Tensor, seen: int, mask: Tensor | None) -> Step:
        """Return the new tokens of this call."""
        ...

    def allocate(self, index: int, length: int) -> None:
        """Give layers up to `index` the budgets that the policy sets by now."""
        ...


class PolicyLayer(CacheLayerMixin):
    """One layer's memory under its own policy, as transformers sees it: it counts tokens seen, and attends.

    `alike` is the first layer under an equal policy whose keys are turned alike.
    """

    def __init__(self, cache: LayeredCache, index: int, policy: ContextPolicy, alike: int) -> None:
        super().__init__()
        self.policy = policy
        self._cache, self.index, self._alike = cache, index, alike
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.memory = self.policy.build()
        rotary = self._cache.rotaries[self.index]
        self.memory.layout = None if rotary is None else rotary.layout
        # What `allocate` has set; None for what the policy is configured to.
        self.budget: int | None = None
        self.seen = 0
        self.shape: CacheShape | None = None
        # Of a marked cache: what share of the last token's attention the first tokens got.
        self.to_first: Float[Tensor, "batch heads"] | None = None

    @property
    def sees_everything(self) -> bool:
        """Whether the model would attend to everything here, and so the cache's policy says what is kept."""
        return not isinstance(self.policy, OwnWindow)

    def attend(
        self,
        query: Float[Tensor, "batch heads length width"],
        keys: Float[Tensor, "batch key_heads length width"],
        values: Float[Tensor, "batch key_heads length value_width"],
        mask: Tensor | None,
        scoring: Scoring,
    ) -> Float[Tensor, "batch heads length value_width"]:
        """Return what the new tokens read, and keep what the policy keeps of them.

        Args:
            query: Of the new tokens, as the model turned them.
            keys: Theirs.
            values: Theirs.
            mask: The tokenizer's padding mask, "batch columns"; None without padding.
            scoring: What the model does to scores.
        """
        # A layer with a budget of its own may hold other tokens than any other.
        alike = (self._alike,) if self.budget is None else (self.index, self.budget)
        rotary = self._cache.rotaries[self.index]
        step = self._cache.step(keys, self.seen, mask).under(alike, rotary)
        self._cache.touched = True
        if self._cache.marked:
            out = self.memory.attend(query, keys, marked(values, step.time), step, scoring)
            out, self.to_first = out[..., :-MARKS], out[:, :, -1, -1]
        else:
            out = self.memory.attend(query, keys, values, step, scoring)
        self.seen += step.length
        if self.shape is None:
            batch, heads, _, width = keys.shape
            self.shape = CacheShape(
                len(self._cache.layers),
                batch,
                query.shape[1],
                heads,
                width,
                values.shape[-1],
                keys.element_size(),
            )
        if self.sees_everything:
            self._cache.allocate(self.index, step.length)
        return out

    def kept(self, counts: Int[Tensor, " batch"]) -> LayerKept:
        """Return what is kept of texts of so many tokens. Raises ValueError before the first."""
        kept, count = self.memory.kept(counts), int(counts.max())
        if kept is None or self.to_first is None:
            raise ValueError("the cache has seen no token yet, or was loaded and has read none since")
        held = tokens_of(kept.held, count)
        read = held if kept.read is None else tokens_of(kept.read, count)
        fetched = torch.zeros_like(held) if kept.fetched is None else tokens_of(kept.fetched, count)
        return LayerKept(held, read, fetched, self.to_first)

    def shrink(self, budget: int) -> None:
        """Keep `budget` tokens from now on, of the prompt just read as well."""
        self.memory.shrink(budget)
        self.budget = budget

    def saved(self) -> dict[str, Tensor]:
        """Return all that `restore` needs to go on."""
        return self.memory.saved()

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Take up what `saved` returned."""
        self.memory.restore(saved)

    def nbytes(self, place: str | None = None) -> int:
        """Return the bytes of the memory: with the model, or those offloaded to "cpu" or "disk"."""
        return self.memory.nbytes(place)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: a memory allocates as it sees tokens."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the new tokens as they are; `PolicyCache.update` says who reads them."""
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns a padding mask has, and that it has them from the first on."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Return the columns seen, kept or not, padding included."""
        return self.seen

    def get_max_length(self) -> int:
        """Return -1: there is no text too long."""
        return -1

    def reorder_cache(self, beam_idx: Int[Tensor, " chosen"]) -> None:
        """Keep the given rows, in their order."""
        self.memory.reorder(beam_idx)
        if self.shape is not None:
            self.shape = dataclasses.replace(self.shape, batch=len(beam_idx))
