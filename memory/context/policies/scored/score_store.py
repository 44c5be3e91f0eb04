"""Memory that stores a score with each of its tokens."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from scrubjay.memory.context.policies.base import Step
from scrubjay.memory.context.policies.buffers import compact
from scrubjay.memory.context.policies.flat_table import RaggedTokens
from scrubjay.memory.context.policies.scored.base import ScoredMemory


class StoredScoreMemory(ScoredMemory):
    """Memory of one layer that stores a score with each token. State: tokens and their `scores`."""

    state_names = frozenset((*ScoredMemory.state_names, "scores"))

    def append(
        self,
        keys: Float[Tensor, "batch key_heads length width"],
        values: Float[Tensor, "batch key_heads length value_width"],
        scores: Float[Tensor, "batch key_heads length"],
        step: Step,
    ) -> RaggedTokens:
        """Add the new tokens of a step with their scores, and return all tokens."""
        valid = step.time >= 0 if step.padded else None
        tokens = RaggedTokens.from_columns(keys, values, valid)
        flat = scores.flatten() if valid is None else scores[valid[:, None].expand_as(scores)]
        if (past := self.tokens) is not None:
            flat, tokens = past.join(self.state["scores"], tokens, flat), past.append(tokens)
        self.store(tokens)
        self.state["scores"] = compact(flat)
        return tokens

    def keep(self, stays: Bool[Tensor, " tokens"]) -> None:
        """Evict the tokens that are False in `stays`."""
        super().keep(stays)
        self.state["scores"] = self.state["scores"][stays]

    def reorder(self, rows: Int[Tensor, " selected"]) -> None:
        """Select the batch rows with the indices `rows`, in this order; indices may repeat."""
        tokens = self.tokens
        super().reorder(rows)
        if tokens is not None:
            heads = RaggedTokens(self.state["scores"], self.state["scores"], tokens.lengths)
            self.state["scores"] = heads.reorder(rows).keys
