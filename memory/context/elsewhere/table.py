"""Table of keys and values in the place where they live, and attention over a part of the keys."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.kernels.normalisers import Part, log_normaliser, softmax_or_zero
from scrubjay.memory.context.policies.buffers import append, shrink
from scrubjay.memory.context.policies.dense import BLOCK, Scoring

Columns = tuple[
    Float[Tensor, "batch key_heads columns width"],
    Float[Tensor, "batch key_heads columns value_width"],
    Bool[Tensor, "batch columns"],
]
"""Keys, values and a mask that is False for padding, of consecutive tokens."""


class Table:
    """Keys and values of one layer of one cache."""

    def __init__(self) -> None:
        self.columns = 0
        self._buffers: dict[str, Tensor] = {}

    def append(self, new: Columns) -> None:
        """Add tokens at the end."""
        keys, values, valid = new
        for name, part in (("keys", keys), ("values", values), ("valid", valid[:, None])):
            self._buffers[name] = append(self._buffers.get(name), self.columns, part)
        self.columns += keys.shape[2]

    def read(self, first: int, last: int) -> Columns:
        """Return the tokens from `first` to `last - 1`."""
        keys, values, valid = (self._buffers[name][:, :, first:last] for name in ("keys", "values", "valid"))
        return keys, values, valid[:, 0]

    def attend(self, query: Float[Tensor, "batch heads length width"], scoring: Scoring) -> Part:
        """Return the attention output over all tokens, and the log-sum-exp of the scores."""
        keys, values, valid = self.read(0, self.columns)
        return partial_attention(query, keys, values, None if valid.all() else valid[:, None], scoring)

    def truncate(self, columns: int) -> None:
        """Keep only the first `columns` tokens."""
        self.columns = columns
        self._buffers = {name: shrink(buffer, columns) for name, buffer in self._buffers.items()}

    def reorder(self, rows: Int[Tensor, " selected"]) -> None:
        """Select the batch rows with these indices, in this order."""
        self._buffers = {
            name: buffer.index_select(0, rows.to(buffer.device)) for name, buffer in self._buffers.items()
        }

    @property
    def tensors(self) -> list[Tensor]:
        """Buffers of keys, values and mask."""
        return list(self._buffers.values())

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and mask, with unused capacity."""
        return sum(buffer.nbytes for buffer in self._buffers.values())


def partial_attention(
    query: Float[Tensor, "batch heads length width"],
    keys: Float[Tensor, "batch key_heads columns width"],
    values: Float[Tensor, "batch key_heads columns value_width"],
    mask: Bool[Tensor, "batch rows columns"] | None,
    scoring: Scoring,
) -> Part:
    """Return the attention output over these keys alone, and the log-sum-exp of the scores, in float32.

    Learned sinks are left out: `merge_parts` adds them once.

    Args:
        query: Queries.
        keys: Some of the keys that the queries read.
        values: Their values.
        mask: True where a query reads a key; `rows` is 1 or the number of queries. None: all are read.
        scoring: The model's scale and soft cap.
    """
    batch, heads, length, width = query.shape
    groups = keys.shape[1]
    outputs, normalisers = [], []
    for first in range(0, length, BLOCK):
        rows = query[:, :, first : first + BLOCK]
        count = rows.shape[2]
        products = rows.reshape(batch, groups, -1, width) @ keys.mT
        scores = scoring.compute_scores(products).to(torch.promote_types(products.dtype, torch.float32))
        scores = scores.unflatten(2, (heads // groups, count))
        if mask is None:
            # The softmax in place: half the time of `softmax` and `logsumexp` for a single token.
            highest = scores.amax(dim=-1, keepdim=True)
            weights = scores.sub_(highest).exp_()
            total = weights.sum(dim=-1)
            normaliser = total.log() + highest[..., 0]
        else:
            own_mask = mask if mask.shape[1] == 1 else mask[:, first : first + BLOCK]
            scores = scores.masked_fill(~own_mask[:, None, None], float("-inf"))
            normaliser, weights = log_normaliser(scores), softmax_or_zero(scores)
        normalisers.append(normaliser.flatten(1, 2))
        output = weights.flatten(2, 3) @ values.to(weights.dtype)
        output = output if mask is not None else output / total.flatten(2, 3)[..., None]
        outputs.append(output.unflatten(2, (heads // groups, count)).flatten(1, 2))
    return torch.cat(outputs, dim=2), torch.cat(normalisers, dim=2)
