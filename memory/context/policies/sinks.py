"""StreamingLLM: keep the first and the last tokens of an endless text, at positions inside the cache.

Xiao et al. 2023 (arXiv 2309.17453, section 3.2). Attention weights must sum to 1. A query that needs little
from other tokens puts the remaining weight on the first tokens, the sinks. A window without sinks drops these
tokens, and the model fails; `WindowPolicy` is this baseline.

Positions are counted inside the cache, so that no distance exceeds the distances of training. The query of
token t gets the position p(t) = min(t, budget - 1). Distances inside the window do not change. Therefore only
the scores of sinks need a query at position p(t), and no key is rotated again. All queries of a long prompt
can thus be computed at once, with gradients, in time linear in the prompt length. One softmax covers the
window and the sinks. The paper and its code process one token at a time.

A prompt uses `kernels.sink_attention`. This kernel takes only one query per token, so the scores of sinks
must be extra coordinates of queries and keys. For a single token, the extra coordinates would require a copy
of all cached keys. A call with a single token therefore uses two matrix products and one softmax. At
SmolLM2's sizes, such a call takes 0.97 times as long as with transformers' own cache. With the kernel,
the call would take 1.74 times as long (benchmark `decoding`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels import sink_attention
from scrubjay.memory.context.policies.base import CacheShape, LayerMemory, Step
from scrubjay.memory.context.policies.budget import BudgetPolicy
from scrubjay.memory.context.policies.buffers import compact, make_writable
from scrubjay.memory.context.policies.dense import BLOCK, Scoring, masked_attention
from scrubjay.memory.context.policies.rotary import Rotation
from scrubjay.memory.parts.chunks import compute_slot_steps


@dataclass(frozen=True)
class WindowPolicy(BudgetPolicy):
    """Keep the last `budget` tokens, without sinks. This baseline fails on most models."""

    budget: int | None = None
    """Number of tokens in the cache. A query reads all of them, its own token included. Default: the model's
    window, at most 8,192."""

    moves_positions: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.num_tokens < 1:
            raise ValueError(f"budget={self.num_tokens}: must be at least 1, for the query's own token")

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return StreamMemory(self.num_tokens, num_sinks=0)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of the keys and values of at most `budget` tokens."""
        return min(tokens, self.num_tokens) * shape.token_bytes


@dataclass(frozen=True)
class SinksPolicy(WindowPolicy):
    """Keep the first `num_sinks` and the last `budget - num_sinks` tokens."""

    num_sinks: int = 4
    """Number of first tokens that are never evicted. 4 are enough for every model in StreamingLLM's paper."""

    def __post_init__(self) -> None:
        if self.num_sinks < 0:
            raise ValueError(f"num_sinks={self.num_sinks}: must not be negative")
        if self.num_tokens < self.num_sinks + 1:
            raise ValueError(
                f"budget={self.num_tokens}: must be at least {self.num_sinks + 1}, for {self.num_sinks} "
                "sinks and the query's own token"
            )

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return StreamMemory(self.num_tokens, self.num_sinks)


class StreamMemory(LayerMemory):
    """Memory of one layer.

    State: `keys` and `values`, sinks first, then a ring buffer (`kernels.sink_slot`). Keys are rotated to
    their exact positions in the text.
    """

    longest_piece = 1024
    """Number of tokens that attend at once without gradients, so that the copies of keys stay small."""

    state_names = frozenset(("keys", "values"))

    def __init__(self, budget: int, num_sinks: int) -> None:
        super().__init__()
        self.num_sinks, self.window = num_sinks, budget - num_sinks
        self.slots = budget

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Return the attention output of the new tokens, and store their keys and values.

        A single new token reads the cached tokens directly. Several new tokens read cached and new tokens
        under a mask for the window and the sinks.
        """
        if step.length > 1 or step.padded or torch.is_grad_enabled():
            return super().attend(query, keys, values, step, scoring)
        return self._read_one(query, keys, values, step, scoring)

    def pieces(self, step: Step) -> list[int]:
        """Return the lengths of the pieces into which a step is split: a single one with gradients."""
        return [step.length] if torch.is_grad_enabled() else super().pieces(step)

    def generate(self, query, keys, values, past, step, scoring) -> Tensor:
        """Return the attention output over the window and the sinks, in one softmax.

        The query has one rotation for the window and another rotation for the sinks.

        Args: those of `LayerMemory.generate`.
        """
        place = self._make_rotation(step)
        keys, key_time = place(keys), step.time
        if past is not None:
            columns = past.keys.shape[2]
            key_time = step.compute_once(
                f"key time {columns}",
                lambda: torch.cat(
                    [compute_slot_steps(step.before, self.num_sinks, self.window)[:, :columns], step.time],
                    dim=1,
                ),
            )
            keys, values = torch.cat([past.keys, keys], dim=2), torch.cat([past.values, values], dim=2)
        in_window, width = place(query), values.shape[-1]
        query, keys = (
            self._with_sink_scores(query, in_window, keys, key_time, step)
            if self.num_sinks
            else (in_window, keys)
        )
        if not scoring.is_plain:
            return self._read_band(query, keys, values, key_time, step, scoring)
        # Values get the width of the keys, as torch's fused attention on a CPU requires.
        padded_values = functional.pad(values, (0, max(keys.shape[-1] - width, 0))).to(keys.dtype)
        return (
            sink_attention(
                query.transpose(1, 2),
                keys.transpose(1, 2),
                padded_values.transpose(1, 2),
                step.time,
                key_time,
                torch.zeros_like(step.time),
                window=self.window,
                num_sinks=self.num_sinks,
                scale=scoring.scale,
            )[..., :width]
            .transpose(1, 2)
            .to(values.dtype)
        )

    def _read_band(
        self, query: Tensor, keys: Tensor, values: Tensor, key_time: Tensor, step: Step, scoring: Scoring
    ) -> Tensor:
        """Return the attention output for a model with a soft cap or learned sinks.

        The queries are processed in blocks of `BLOCK`, so that the full query-by-key mask is never built.
        """
        column, out = torch.arange(keys.shape[2], device=keys.device), []
        new = column[-step.length :]
        for first in range(0, step.length, BLOCK):
            rows = slice(first, first + BLOCK)
            age = step.time[:, rows, None] - key_time[:, None]
            visible = (age >= 0) & (key_time >= 0)[:, None]
            visible &= (age < self.window) | (key_time < self.num_sinks)[:, None]
            mask = visible | (column == new[rows, None])
            out.append(masked_attention(query[:, :, rows], keys, values, mask, scoring))
        return torch.cat(out, dim=2)

    def _with_sink_scores(
        self, query: Tensor, in_window: Tensor, keys: Tensor, key_time: Tensor, step: Step
    ) -> tuple[Tensor, Tensor]:
        """Append one coordinate per sink to queries and keys, and return both.

        In the coordinate of a sink, a query has its dot product with the key of this sink. The key of a sink
        is 1 in the coordinate of this sink and 0 in all other coordinates. Keys of other tokens are 0 in the
        coordinates of sinks. The dot products are thus correct for the window and for the sinks.
        """
        sink = torch.arange(self.num_sinks, device=keys.device)
        is_sink = step.compute_once(f"is sink {keys.shape[2]}", lambda: key_time[:, :, None] == sink)
        column = step.compute_once(f"sinks {keys.shape[2]}", lambda: is_sink.byte().argmax(dim=1))
        slot = step.compute_once(
            "slot", lambda: step.rotary.make_rotation(step.position_ids, step.time.clamp(max=self.slots - 1))
        )
        batch, groups, _, width = keys.shape
        sinks = keys.gather(2, column[:, None, :, None].expand(-1, groups, -1, width))
        # Half precision would round the scores twice.
        dtype = torch.promote_types(query.dtype, torch.float32)
        scores = (slot(query).reshape(batch, groups, -1, width).to(dtype) @ sinks.to(dtype).mT).view(
            *query.shape[:3], -1
        )
        ones = is_sink[:, None].expand(-1, groups, -1, -1)
        keys = keys.masked_fill(ones.any(dim=-1, keepdim=True), 0)
        return torch.cat([in_window, scores], dim=-1).to(dtype), torch.cat(
            [keys, ones.to(keys.dtype)], -1
        ).to(dtype)

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Store the new tokens. If several tokens share a slot of the cache, the last of them fills it."""
        past_columns = self._past_columns
        source = step.compute_once(f"source {past_columns}", lambda: self._sources(step, past_columns))
        for name, new in (("keys", self._make_rotation(step)(keys)), ("values", values)):
            table = torch.cat([self.state[name], new], dim=2) if past_columns else new
            index = source[:, None, :, None].expand(-1, table.shape[1], -1, table.shape[3])
            self.state[name] = table.gather(2, index)

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Remove the last `columns` tokens. Raises ValueError if a row has evicted tokens."""
        if int(count.max()) > self.slots:
            raise ValueError(
                f"crop: a text of {int(count.max())} tokens exceeds the budget of {self.slots}, and evicted "
                "tokens cannot be restored; save the cache before you add tokens, and load it instead of "
                "cropping"
            )
        columns_left = int(count.max()) - columns
        self.state = {name: compact(tensor[:, :, :columns_left]) for name, tensor in self.state.items()}

    def _make_rotation(self, step: Step) -> Rotation:
        """Return the rotation of new keys or queries to their indices in the text."""
        return step.compute_once("place", lambda: step.rotary.make_rotation(step.position_ids, step.time))

    def _read_one(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Store one token, and return its attention output.

        If the index of the token in the text is at least the budget, its dot products with sinks use a copy
        of the query at the position of the last slot.
        """
        batch, heads, _, width = query.shape
        count, groups = step.bounds[0], keys.shape[1]
        past = self.num_sinks > 0 and count >= self.slots

        def make_rotation() -> Rotation:
            if not past:
                return self._make_rotation(step)
            targets = torch.cat([step.time, torch.full_like(step.time, self.slots - 1)], dim=1)
            rotation = step.rotary.make_rotation(step.position_ids, targets)
            return rotation.expand_to_heads([heads + groups, heads])

        rotation = step.compute_once(f"turn {heads} {groups}", make_rotation)
        vectors = rotation(torch.cat([query, keys, query] if past else [query, keys], dim=1))
        self._put(vectors[:, heads : heads + groups], values, count)
        in_window, keys, values = vectors[:, :heads], self.state["keys"], self.state["values"]
        if not past:
            return masked_attention(in_window, keys, values, None, scoring)
        table, sinks = keys.flatten(0, 1), slice(0, self.num_sinks)
        at_slot = vectors[:, heads + groups :].reshape(batch * groups, -1, width)
        scores = torch.bmm(in_window.reshape(batch * groups, -1, width), table.mT)
        scores[..., sinks] = torch.bmm(at_slot, table[:, sinks].mT)
        attention = scoring.compute_weights(scores.view(batch, groups, -1, 1, self.slots))
        out = torch.bmm(attention.reshape(scores.shape).to(values.dtype), values.flatten(0, 1))
        return out.view(batch, heads, 1, -1)

    def _put(self, key: Tensor, value: Tensor, count: int) -> None:
        """Add a new token to the state; `count` is the token's index in the text.

        In a full ring buffer, the new token replaces the oldest token that is not a sink.
        """
        past_columns = self._past_columns
        self.state = make_writable(self.state)
        for name, new in (("keys", key), ("values", value)):
            if past_columns == self.slots:
                self.state[name].select(2, self.num_sinks + (count - self.num_sinks) % self.window).copy_(
                    new[:, :, 0]
                )
            else:
                self.state[name] = torch.cat([self.state[name], new], dim=2) if past_columns else compact(new)

    @property
    def _past_columns(self) -> int:
        return self.state["keys"].shape[2] if self.state else 0

    def _sources(self, step: Step, past_columns: int) -> Int[Tensor, "batch slots"]:
        """Return, for each slot, the index of the stored or new token that fills the slot."""
        token = compute_slot_steps(step.after, self.num_sinks, self.window)[
            :, : min(self.slots, step.bounds[1])
        ]
        first = step.before[:, None]
        slot = torch.arange(token.shape[1], device=token.device)
        # Columns of a row's new tokens; padding may lie between them.
        column = torch.searchsorted(
            step.time.cummax(dim=1).values.contiguous(), token.contiguous().clamp(min=0)
        )
        return torch.where(token >= first, past_columns + column, slot).clamp(
            max=past_columns + step.length - 1
        )
