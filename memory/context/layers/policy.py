"""Transformers cache layer that attends under a context policy.

With `track_tokens`, extra coordinates of each value vector identify its token (marks). A policy needs no code
for marks. It moves and evicts whole value vectors, and it selects tokens only by queries and keys. So the
marks in a policy's tensors show which tokens the policy retains. The first marks are the token's index in the
text, as digits that are exact in every precision. The last mark is 1 for the first tokens of the text and 0
for all other tokens. The attention output at the last mark is the share of attention that the first tokens
receive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from scrubjay.memory.context.layers.local import LocalWindowPolicy
from scrubjay.memory.context.policies.base import CacheShape, ContextPolicy, Step
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.rotary import Rotary


class LayeredCache(Protocol):
    """Protocol of the cache that a layer belongs to."""

    call_started: bool
    """True once a layer has processed tokens of the current call."""

    track_tokens: bool
    """True if each value vector gets extra coordinates that identify its token, for `get_retained_tokens`."""

    @property
    def rotaries(self) -> Sequence[Rotary | None]:
        """Rotary positions of each layer; None for a layer whose policy keeps the model's positions."""
        ...

    def step(self, keys: Tensor, past_length: int, mask: Tensor | None) -> Step:
        """Return the new tokens of this call as a `Step`."""
        ...

    def allocate(self, index: int, length: int) -> None:
        """Set the token budgets of layers 0 to `index`."""
        ...

    @property
    def attention_layers(self) -> list[PolicyLayer]:
        """Layers with keys and values, in order."""
        ...


class PolicyLayer(CacheLayerMixin):
    """Transformers cache layer with the memory of one layer under its policy.

    `shared_index` is the index of the first layer with an equal policy and equal rotary positions. Layers
    with the same `shared_index` share the results of `Step.compute_once`.
    """

    def __init__(self, cache: LayeredCache, index: int, policy: ContextPolicy, shared_index: int) -> None:
        super().__init__()
        self.policy = policy
        self._cache, self.index, self._shared_index = cache, index, shared_index
        self.reset()

    def reset(self) -> None:
        """Clear the layer."""
        self.memory = self.policy.build()
        self.memory.tracks_reads = self._cache.track_tokens
        self.memory.num_marks = MARKS if self._cache.track_tokens else 0
        rotary = self._cache.rotaries[self.index]
        if rotary is not None:
            self.memory.layout = rotary.layout
        # Budget set by `allocate`; None for the policy's configured budget.
        self.budget: int | None = None
        self.past_length = 0
        self.shape: CacheShape | None = None
        # With `track_tokens`: share of the last token's attention that the first tokens received.
        self.first_share: Float[Tensor, "batch heads"] | None = None

    @property
    def sees_everything(self) -> bool:
        """True for a layer with full attention. The cache's policy applies only to such layers."""
        return not isinstance(self.policy, LocalWindowPolicy)

    def attend(
        self,
        query: Float[Tensor, "batch heads length width"],
        keys: Float[Tensor, "batch key_heads length width"],
        values: Float[Tensor, "batch key_heads length value_width"],
        mask: Tensor | None,
        scoring: Scoring,
    ) -> Float[Tensor, "batch heads length value_width"]:
        """Return the attention output of the new tokens, and update the memory.

        Args:
            query: Queries of the new tokens, already rotated by the model.
            keys: Keys of the new tokens, already rotated by the model.
            values: Values of the new tokens.
            mask: The tokenizer's mask of past and new tokens, "batch tokens"; None without padding.
            scoring: The model's scale, soft cap and learned sinks.
        """
        # A layer with its own budget may retain other tokens than all other layers.
        shared_key = (self._shared_index,) if self.budget is None else (self.index, self.budget)
        rotary = self._cache.rotaries[self.index]
        step = self._cache.step(keys, self.past_length, mask).for_policy(shared_key, rotary)
        self._cache.call_started = True
        if step.length > 1 and self.policy.prompt_reader is not None:
            scoring = dataclasses.replace(scoring, prompt_reader=self.policy.prompt_reader)
        if self._cache.track_tokens:
            out = self.memory.attend(query, keys, add_marks(values, step.time), step, scoring)
            out, self.first_share = out[..., :-MARKS], out[:, :, -1, -1].clone()
        else:
            out = self.memory.attend(query, keys, values, step, scoring)
        self.past_length += step.length
        if self.shape is None:
            batch, heads, _, width = keys.shape
            self.shape = CacheShape(
                1,
                batch,
                query.shape[1],
                heads,
                width,
                values.shape[-1],
                keys.element_size(),
                keys.device.type,
            )
        if self.sees_everything:
            self._cache.allocate(self.index, step.length)
        return out

    def get_retained_tokens(self, counts: Int[Tensor, " batch"]) -> RetainedTokens:
        """Return the tokens that the layer retains; `counts` is the number of tokens of each text.

        Raises ValueError if the layer has read no token since it was built or loaded.
        """
        values, count = self.memory.get_retained_values(counts), int(counts.max())
        if values is None or self.first_share is None:
            raise ValueError(
                "the cache has read no token yet, or none since it was loaded; call the model with this "
                "cache first"
            )
        stored_mask = find_tokens(values.values, count)
        read_mask = stored_mask if values.read_values is None else find_tokens(values.read_values, count)
        fetched_mask = (
            torch.zeros_like(stored_mask)
            if values.fetched_values is None
            else find_tokens(values.fetched_values, count)
        )
        return RetainedTokens(stored_mask, read_mask, fetched_mask, self.first_share)

    def shrink(self, budget: int) -> None:
        """Reduce the layer's budget to `budget` tokens.

        This also evicts tokens of the prompt that the layer has just read, if the budget is not yet final.
        """
        self.memory.shrink(budget)
        self.budget = budget

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that `load_state_dict` needs."""
        return self.memory.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors that `state_dict` returned."""
        self.memory.load_state_dict(state)

    def nbytes(self, place: str | None = None) -> int:
        """Return the bytes in the memory of the model's device, or those offloaded to `place` instead."""
        share = self.first_share if place is None else None
        return self.memory.nbytes(place) + (0 if share is None else share.nbytes)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the layer's memory allocates tensors when it receives tokens."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the new keys and values unchanged; the attention function passes them to the policy."""
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length of a padding mask over past and new tokens, and its offset, which is 0."""
        return self.past_length + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of tokens read so far, with evicted tokens and padding included."""
        return self.past_length

    def get_max_length(self) -> int:
        """Return -1: the length of a text is not limited."""
        return -1

    def reorder_cache(self, beam_idx: Int[Tensor, " selected"]) -> None:
        """Select the batch rows with the indices `beam_idx`, in this order."""
        self.memory.reorder(beam_idx)
        if self.shape is not None:
            self.shape = dataclasses.replace(self.shape, batch=len(beam_idx))


FIRST = 4
"""Number of first tokens whose share of attention is measured: enough sinks for most models (StreamingLLM,
Xiao et al. 2023, arXiv 2309.17453)."""
_BASE = 256
"""Base of the digits: integers up to 256 are exact in bfloat16."""
_DIGITS = 3
MARKS = _DIGITS + 1
"""Number of coordinates added to a value."""


class RetainedTokens(NamedTuple):
    """Masks of the tokens that one layer retains, by head and token."""

    stored_mask: Bool[Tensor, "batch key_heads tokens"]
    """Tokens that can still be read, offloaded ones included."""
    read_mask: Bool[Tensor, "batch key_heads tokens"]
    """Tokens that the last token attended to."""
    fetched_mask: Bool[Tensor, "batch key_heads tokens"]
    """Tokens that the policy selected by score for the last token; all False without such a selection."""
    first_share: Float[Tensor, "batch heads"]
    """Share of the last token's attention that the first 4 tokens of the text received."""


def add_marks(
    values: Float[Tensor, "batch key_heads length width"], time: Int[Tensor, "batch length"]
) -> Float[Tensor, "batch key_heads length wider"]:
    """Append to each value vector the extra coordinates (marks) that identify its token.

    The marks of padding (`time` below 0) are zeros.
    """
    place = (time + 1).clamp(min=0)
    digits = [place // _BASE**digit % _BASE for digit in range(_DIGITS)]
    first = (time >= 0) & (time < FIRST)
    marks = torch.stack([*digits, first.long()], dim=-1).to(values.dtype)
    return torch.cat([values, marks[:, None].expand(-1, values.shape[1], -1, -1)], dim=-1)


def find_tokens(
    values: Float[Tensor, "batch key_heads columns wider"], count: int
) -> Bool[Tensor, "batch key_heads tokens"]:
    """Return a mask of the first `count` tokens of a text, for each key head.

    The mask is True for a token if a vector in `values` belongs to the token. The last coordinates of a
    vector are the marks from `add_marks`, which identify its token. A zero vector belongs to no token.
    """
    digits = values[..., -MARKS : -MARKS + _DIGITS].float().round().long()
    place = (digits * torch.tensor([_BASE**digit for digit in range(_DIGITS)], device=values.device)).sum(-1)
    # Cropped tokens may remain in unused capacity.
    place = place.masked_fill(place > count, 0)
    is_present = torch.zeros(*place.shape[:2], count + 1, dtype=torch.bool, device=values.device)
    return is_present.scatter_(2, place, True)[..., 1:]
