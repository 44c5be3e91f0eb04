"""Keys and values of one layer in which every head of every batch row has its own number of tokens.

The tokens of all heads stand in one flat table without gaps. Those of row 0 and head 0 come first, in the
order of the text, then those of row 0 and head 1. Evicted tokens are freed, and padding is never stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from scrubjay.memory.context.policies.dense import BLOCK, Scoring, causal_attention


@dataclass(frozen=True, eq=False)
class RaggedTokens:
    """Keys and values of the tokens of every head."""

    keys: Float[Tensor, "tokens width"]
    values: Float[Tensor, "tokens value_width"]
    lengths: Int[Tensor, "batch key_heads"]
    """Number of tokens of each head."""

    @cached_property
    def sizes(self) -> list[int]:
        """Number of tokens of each head, in the order of the table."""
        return self.lengths.flatten().tolist()

    @cached_property
    def is_uniform(self) -> bool:
        """True if all heads have equally many tokens."""
        return len(set(self.sizes)) == 1

    @property
    def longest(self) -> int:
        """Largest number of tokens of a head."""
        return max(self.sizes)

    @property
    def totals(self) -> list[int]:
        """Number of tokens of each batch row, as the sum over its heads."""
        batch, groups = self.lengths.shape
        return [sum(self.sizes[row * groups : (row + 1) * groups]) for row in range(batch)]

    @classmethod
    def from_columns(
        cls,
        keys: Float[Tensor, "batch key_heads columns width"],
        values: Float[Tensor, "batch key_heads columns value_width"],
        valid: Bool[Tensor, "batch columns"] | None,
    ) -> RaggedTokens:
        """Return the tokens of a table of columns, without the columns that are False in `valid`."""
        batch, groups, columns = keys.shape[:3]
        if valid is None:
            lengths = torch.full((batch, groups), columns, device=keys.device)
            return cls(keys.flatten(0, 2), values.flatten(0, 2), lengths)._with_sizes(
                [columns] * (batch * groups)
            )
        mask = valid[:, None].expand(batch, groups, columns)
        return cls(keys[mask], values[mask], mask.sum(dim=2))

    def append(self, new: RaggedTokens) -> RaggedTokens:
        """Return these tokens with those of `new` after them, head by head."""
        return RaggedTokens(
            self.join(self.keys, new, new.keys),
            self.join(self.values, new, new.values),
            self.lengths + new.lengths,
        )._with_sizes([size + more for size, more in zip(self.sizes, new.sizes, strict=True)])

    def join(
        self, table: Float[Tensor, "tokens *width"], new: RaggedTokens, entries: Float[Tensor, "new *width"]
    ) -> Float[Tensor, "more *width"]:
        """Return a table with an entry for each token, with the `entries` of `new` after it, head by head."""
        if self.is_uniform and new.is_uniform:
            heads = len(self.sizes)
            columns = [x.view(heads, len(x) // heads, *x.shape[1:]) for x in (table, entries)]
            return torch.cat(columns, dim=1).flatten(0, 1)
        pairs = zip(table.split(self.sizes), entries.split(new.sizes), strict=True)
        return torch.cat([part for pair in pairs for part in pair])

    def select(self, stays: Bool[Tensor, " tokens"]) -> RaggedTokens:
        """Return only the tokens that are True in `stays`."""
        lengths = torch.stack([part.sum() for part in stays.split(self.sizes)]).view_as(self.lengths)
        return RaggedTokens(self.keys[stays], self.values[stays], lengths)

    def reorder(self, rows: Int[Tensor, " selected"]) -> RaggedTokens:
        """Return the batch rows with the indices `rows`, in this order; indices may repeat."""
        groups = self.lengths.shape[1]
        parts = [row * groups + head for row in rows.tolist() for head in range(groups)]
        keys, values = (x.split(self.sizes) for x in (self.keys, self.values))
        return RaggedTokens(
            torch.cat([keys[part] for part in parts]),
            torch.cat([values[part] for part in parts]),
            self.lengths.index_select(0, rows.to(self.lengths.device)),
        )._with_sizes([self.sizes[part] for part in parts])

    def pad(self, table: Float[Tensor, "tokens *width"]) -> Float[Tensor, "batch key_heads longest *width"]:
        """Return a table with an entry for each token as columns. Zeros follow the tokens of each head."""
        padded = (
            table.view(len(self.sizes), self.longest, *table.shape[1:])
            if self.is_uniform
            else pad_sequence(list(table.split(self.sizes)), batch_first=True)
        )
        return padded.unflatten(0, self.lengths.shape)

    @cached_property
    def valid(self) -> Bool[Tensor, "batch key_heads longest"]:
        """Mask of the columns of `pad` that are tokens."""
        return torch.arange(self.longest, device=self.lengths.device) < self.lengths[..., None]

    def _with_sizes(self, sizes: list[int]) -> RaggedTokens:
        # Known sizes need no read of the tensor `lengths`, for which a GPU would stop.
        vars(self)["sizes"] = sizes
        return self


def attend_ragged(
    query: Float[Tensor, "batch heads length width"],
    keys: Float[Tensor, "batch key_heads length width"],
    values: Float[Tensor, "batch key_heads length value_width"],
    past: RaggedTokens | None,
    valid: Bool[Tensor, "batch length"] | None,
    scoring: Scoring,
) -> Float[Tensor, "batch heads length value_width"]:
    """Return the attention output of new tokens over `past` and, causally, over each other.

    Args:
        query: Queries of the new tokens.
        keys: Keys of the new tokens.
        values: Values of the new tokens.
        past: Earlier tokens; None if there are none.
        valid: True for new tokens, False for padding; None without padding. The output of padding is finite.
        scoring: The model's scale, soft cap and learned sinks.
    """
    if past is None:
        return causal_attention(query, keys, values, valid, scoring)
    past_keys, past_values = past.pad(past.keys), past.pad(past.values)
    columns, length = past_keys.shape[2], query.shape[2]
    keys, values = torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2)
    if past.is_uniform:
        if valid is not None:
            valid = torch.cat([valid.new_ones(len(valid), columns), valid], dim=1)
        return causal_attention(query, keys, values, valid, scoring)
    own = torch.ones(length, length, dtype=torch.bool, device=keys.device).tril()
    if valid is not None:
        own = (own & valid[:, None]) | torch.eye(length, dtype=torch.bool, device=keys.device)
    own = own.expand(len(keys), length, length)[:, None]
    out = []
    for first in range(0, length, BLOCK):
        rows = slice(first, first + BLOCK)
        new = own[:, :, rows].expand(-1, keys.shape[1], -1, -1)
        mask = torch.cat([past.valid[:, :, None].expand(-1, -1, new.shape[2], -1), new], dim=3)
        out.append(_attend_by_head(query[:, :, rows], keys, values, mask, scoring))
    return torch.cat(out, dim=2)


def _attend_by_head(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Bool[Tensor, "batch key_heads rows columns"],
    scoring: Scoring,
) -> Tensor:
    """Return the attention output of queries over the keys that the mask of each key head allows."""
    batch, heads, length, width = query.shape
    groups = keys.shape[1]
    queries = query.reshape(batch, groups, heads // groups * length, width)
    if scoring.is_plain:
        rows = mask[:, :, None].expand(-1, -1, heads // groups, -1, -1).flatten(2, 3)
        out = functional.scaled_dot_product_attention(queries, keys, values, rows, scale=scoring.scale)
    else:
        products = (queries @ keys.mT).unflatten(2, (-1, length))
        out = scoring.compute_weights(products, ~mask[:, :, None]).to(values.dtype).flatten(2, 3) @ values
    return out.reshape(batch, heads, length, -1)
