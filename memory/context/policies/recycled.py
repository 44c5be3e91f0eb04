"""Recycled attention: most generated tokens read only a copy of a small part of the cache.

RefreshKV (Xu et al. 2024, arXiv 2411.05787) keeps the whole cache, but only every `stride`-th token reads
all of it. Such a full step also makes a new copy of the tokens that receive the most attention. To select
them, the attention is max-pooled along the text and over the query heads of a key head. Prompts use full
attention.

The policy `recycled` makes every `stride`-th step full, and adds all tokens in between to the copy. The
policy `refreshkv` compares queries first, as in the paper (section 3). At every `stride`-th token each layer
takes the mean of the query over the heads, and compares it with the mean at the last full step of the layer.
The step is full only if the cosine similarity is below `similarity`. The copy has at most `budget` tokens:
each new token replaces the token to which its own query attends least.

Differences from the paper: the first tokens always stay in the copy, and each batch row decides for itself.
The queries of the comparison have their rotary positions.
Memory: the cache of all tokens, the copy, and with a similarity one mean query for each layer and row.
Use it for long answers about a text, if no token may be dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.memory.context.policies.base import (
    CacheShape,
    LayerMemory,
    RetainedValues,
    Step,
    check_kernel,
    check_minimums,
    extend_valid,
)
from scrubjay.memory.context.policies.budget import BudgetPolicy
from scrubjay.memory.context.policies.buffers import compute_capacity, gather_columns, keep_best, rate_tokens
from scrubjay.memory.context.policies.dense import Scoring, causal_attention
from scrubjay.memory.context.policies.full import FullMemory


@dataclass(frozen=True)
class RecycledPolicy(BudgetPolicy):
    """Keep all tokens; every `stride`-th new token reads all of them, the others read `budget` tokens."""

    budget: int | None = None
    """Number of tokens that a generated token reads if it does not read the whole cache. This includes all
    tokens since the last read of the whole cache, at most `stride`. With a `similarity` it is the size of the
    copy, which a generated token reads in addition to itself. Default: the model's window, at most 8,192."""
    stride: int = 10
    """Every `stride`-th generated token reads the whole cache; all other tokens read `budget` tokens. With a
    `similarity`, queries are compared at every `stride`-th token."""
    kernel: int = 15
    """Width of the max pooling of attention along the text, an odd number of tokens.

    The RefreshKV paper uses a width of 7. With this width, a model retrieves only half of a
    seven-digit number if each digit is a token."""
    num_sinks: int = 4
    """Number of first tokens that are always read."""
    similarity: float | None = None
    """Cosine similarity of mean queries, from -1 to 1, below which a `stride`-th token reads the whole cache.

    1 reads it every time, -1 only in prompts. None also reads it every time, and adds all tokens in between
    to the copy."""

    split_invariant: ClassVar[bool] = False
    query_aware: ClassVar[bool] = True
    can_crop: ClassVar[bool] = True
    drops: ClassVar[bool] = False
    reads_whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_minimums(self, stride=1, num_sinks=0)
        check_kernel(self.kernel)
        if self.similarity is not None:
            if not -1 <= self.similarity <= 1:
                raise ValueError(f"similarity={self.similarity}: must be from -1 to 1, or None")
            if self.copy_size < self.num_sinks + 1:
                raise ValueError(
                    f"budget={self.num_tokens}: must be at least {self.num_sinks + 1}, for {self.num_sinks} "
                    "sinks and a token that can be replaced"
                )
        if self.copy_size < max(self.num_sinks, 1):
            raise ValueError(
                f"budget={self.num_tokens}: must be at least {max(self.num_sinks, 1) + self.stride}, for "
                f"{self.num_sinks} sinks and the {self.stride} tokens between full steps"
            )

    @property
    def copy_size(self) -> int:
        """Number of tokens that are copied after a read of the whole cache."""
        return self.num_tokens - (self.stride if self.similarity is None else 0)

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return RecycledMemory(self) if self.similarity is None else RefreshedMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of the whole cache, unused capacity included, and of the copied tokens.

        With a similarity, the mean queries of the layers are included.
        """
        if self.similarity is not None:
            mean_query = shape.layers * shape.batch * shape.key_width * shape.itemsize if tokens else 0
            return (compute_capacity(tokens) + min(self.copy_size, tokens)) * shape.token_bytes + mean_query
        since = 0 if at_once else max(tokens - 1, 0) % self.stride
        copy_length = min(self.copy_size, tokens - since) + since
        return (compute_capacity(tokens) + copy_length) * shape.token_bytes


@dataclass(frozen=True)
class RefreshKVPolicy(RecycledPolicy):
    """Keep all tokens; read all of them if the query has changed, else a copy of `budget` tokens."""

    similarity: float | None = 0.95
    """Cosine similarity of mean queries, from -1 to 1, below which a `stride`-th token reads the whole cache.

    1 reads it every time, -1 only in prompts. None also reads it every time, and adds all tokens in between
    to the copy."""


class RecycledMemory(FullMemory):
    """Memory of one layer.

    State: the tensors of `FullMemory`, and a copy of the keys and values that most queries read, in
    `copied_keys` and `copied_values`. If rows have
    different token counts, the mask `copied_valid` is True for the used entries of the copy.
    """

    state_names = frozenset(("keys", "values", "since"))

    def __init__(self, policy: RecycledPolicy) -> None:
        super().__init__()
        self.policy = policy
        self._since = 0

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Return the attention output of the new tokens.

        A full step reads all cached tokens, and copies those with the most attention. All other steps read
        only this copy.
        """
        if step.length > 1 or not self._since or self._since == self.policy.stride:
            out = super().attend(query, keys, values, step, scoring)
            self._refresh(query[:, :, -1:], scoring)
            self._since = 1
            return out
        self._since += 1
        copy_length = self.state["copied_keys"].shape[2]
        self.compress(query, keys, values, step, scoring)
        for name, new in (("copied_keys", keys), ("copied_values", values)):
            self.state[name] = torch.cat([self.state[name], new], dim=2)
        if "valid" in self.state:
            self.state["copied_valid"] = extend_valid(self.state.get("copied_valid"), copy_length, step)
        copy = self.state
        return causal_attention(
            query, copy["copied_keys"], copy["copied_values"], copy.get("copied_valid"), scoring
        )

    def get_retained_values(self, count: Int[Tensor, " batch"]) -> RetainedValues | None:
        """Return the values that the memory retains for texts of `count` tokens; None before the first token.

        `values` of the result has the values of all tokens. If the last token has read only the copy of the
        best tokens, `read_values` has the values in this copy, and `fetched_values` has the values of the
        tokens that were selected by score.
        """
        retained_values, copy = super().get_retained_values(count), self.state.get("copied_values")
        if retained_values is None or copy is None or self._since == 1:
            return retained_values
        since = copy.shape[2] - self._since + 1
        return RetainedValues(retained_values.values, copy, copy[:, :, self.policy.num_sinks : since])

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Remove the last `columns` tokens, and delete the copy of the best tokens.

        The next token then reads all tokens.
        """
        super().crop(columns, count)
        self.state = {name: tensor for name, tensor in self.state.items() if not name.startswith("copied")}
        self._since = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state, and the number of steps since the last full step, the full step included."""
        return super().state_dict() | {"since": torch.tensor(self._since)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors that `state_dict` returned."""
        self._since = int(state["since"])
        super().load_state_dict({name: tensor for name, tensor in state.items() if name != "since"})

    def _refresh(self, query: Float[Tensor, "batch heads 1 width"], scoring: Scoring) -> None:
        """Copy the tokens that the last query attends to most."""
        keys, valid = self.get_columns("keys").detach(), self.state.get("valid")
        batch, groups, columns, width = keys.shape
        most = min(self.policy.copy_size, columns)
        count = torch.full((batch,), columns, device=keys.device) if valid is None else valid.sum(dim=1)
        counts = count.clamp(max=most)
        products = query.detach().reshape(batch, groups, -1, width) @ keys.mT
        if valid is not None:
            # Padding comes first, so that consecutive tokens of the text are adjacent.
            order = valid.byte().argsort(dim=1, stable=True)[:, None].expand(-1, groups, -1)
            products = products.gather(3, order[:, :, None].expand_as(products))
        hidden = torch.arange(columns, device=keys.device) < columns - count[:, None]
        weights = scoring.compute_weights(products[:, :, :, None], hidden[:, None, None, None])
        attention, policy = weights[:, :, :, 0].amax(dim=2), self.policy
        worth = rate_tokens(attention, count, policy.num_sinks, 0, functional.max_pool1d, policy.kernel)
        best = keep_best(worth, counts, most)
        if valid is not None:
            best = order.gather(2, best)
            self.state["copied_valid"] = torch.arange(most, device=keys.device) >= most - counts[:, None]
        self.state |= {
            f"copied_{name}": gather_columns(self.get_columns(name), best) for name in ("keys", "values")
        }


_COPIES = ("copied_keys", "copied_values", "copied_valid")


class RefreshedMemory(RecycledMemory):
    """Memory of one layer that reads the whole cache only if the query has changed.

    State: the tensors of `RecycledMemory`, and the mean over the heads of the query at each row's last full
    step, in `mean_query`. The copy is in the order of the text, after its padding.
    """

    def __init__(self, policy: RecycledPolicy) -> None:
        super().__init__(policy)
        # With `tracks_reads`: the values that the last token read, and those that were selected by score.
        self._read_values: Tensor | None = None
        self._fetched_values: Tensor | None = None

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Return the attention output of the new tokens.

        A full step reads all cached tokens, and copies those with the most attention. All other steps read
        the copy. At every `stride`-th token, each batch row selects one of both by the similarity of queries.
        """
        self.compress(query, keys, values, step, scoring)
        mean_query = query[:, :, -1].detach().mean(dim=1)
        self._read_values = self._fetched_values = None
        if step.length > 1 or not self._since:
            self._since, self.state["mean_query"] = 1, mean_query
            return self._attend_to_all(query, scoring)
        is_changed = None
        if self._since == self.policy.stride:
            self._since, is_changed = 0, self._find_changed(mean_query) & (step.time[:, -1] >= 0)
        self._since += 1
        if is_changed is None or not bool(is_changed.any()):
            return self._attend_to_copy(query, keys, values, step, scoring)
        if bool(is_changed.all()):
            self.state["mean_query"] = mean_query
            return self._attend_to_all(query, scoring)
        copy_out = self._attend_to_copy(query, keys, values, step, scoring)
        copy = {name: self.state[name] for name in _COPIES if name in self.state}
        all_out = self._attend_to_all(query, scoring)
        copy["mean_query"], self.state["mean_query"] = self.state["mean_query"], mean_query

        def select_rows(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(is_changed.view(-1, *[1] * (new.ndim - 1)), new, old)

        self.state |= {name: select_rows(self.state[name], old) for name, old in copy.items()}
        if self._read_values is not None and self._fetched_values is not None:
            all_values = self._mask_padding(self.get_columns("values"), self.state.get("valid"))
            more = all_values.shape[2] - self._read_values.shape[2]
            read_values = functional.pad(self._read_values, (0, 0, 0, max(more, 0)))
            self._read_values = select_rows(functional.pad(all_values, (0, 0, 0, max(-more, 0))), read_values)
            self._fetched_values = select_rows(torch.zeros_like(self._fetched_values), self._fetched_values)
        return select_rows(all_out, copy_out)

    def get_retained_values(self, count: Int[Tensor, " batch"]) -> RetainedValues | None:
        """Return the values that the memory retains for texts of `count` tokens; None before the first token.

        In `values` are the values of all tokens. If a row of the last token has read only the copy and
        `tracks_reads` is set, `read_values` has the values that it read, and `fetched_values` those of them
        that are neither first tokens nor the last one.
        """
        retained_values = FullMemory.get_retained_values(self, count)
        if retained_values is None:
            return None
        return RetainedValues(retained_values.values, self._read_values, self._fetched_values)

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Remove the last `columns` tokens, and delete the copy of the best tokens.

        The next token then reads all tokens.
        """
        super().crop(columns, count)
        self.state.pop("mean_query", None)
        self._read_values = self._fetched_values = None

    def reorder(self, rows: Int[Tensor, " selected"]) -> None:
        """Select the batch rows with the indices `rows`, in this order; indices may repeat."""
        super().reorder(rows)
        for name in ("_read_values", "_fetched_values"):
            if (values := getattr(self, name)) is not None:
                setattr(self, name, values.index_select(0, rows.to(values.device)))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors that `state_dict` returned."""
        if int(state["since"]) and (missing := {"copied_keys", "mean_query"} - state.keys()):
            raise TypeError(f"a layer lacks the tensor {min(missing)!r}")
        super().load_state_dict(state)

    def _find_changed(self, mean_query: Float[Tensor, "batch width"]) -> Bool[Tensor, " batch"]:
        """Return a mask of the rows whose query has changed since their last full step."""
        least = self.policy.similarity
        assert least is not None
        if least == 1:
            return torch.ones(len(mean_query), dtype=torch.bool, device=mean_query.device)
        similarity = torch.cosine_similarity(mean_query.float(), self.state["mean_query"].float())
        return similarity.clamp(-1, 1) < least

    def _attend_to_all(self, query: Tensor, scoring: Scoring) -> Tensor:
        """Return the attention output over all tokens, and copy those with the most attention."""
        all_tokens = (self.get_columns("keys"), self.get_columns("values"), self.state.get("valid"))
        out = causal_attention(query, *all_tokens, scoring)
        self._refresh(query[:, :, -1:], scoring)
        return out

    def _attend_to_copy(
        self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring
    ) -> Tensor:
        """Return the attention output over the copy and the new token, and add the token to the copy."""
        copied_keys = torch.cat([self.state["copied_keys"], keys], dim=2)
        copied_values = torch.cat([self.state["copied_values"], values], dim=2)
        batch, groups, columns, width = copied_keys.shape
        valid = None
        if "valid" in self.state:
            valid = extend_valid(self.state.get("copied_valid"), columns - 1, step)
        own = torch.arange(columns, device=keys.device) == columns - 1
        hidden = None if valid is None else ~(valid | own)[:, None, None, None]
        products = query.reshape(batch, groups, -1, width) @ copied_keys.mT
        weights = scoring.compute_weights(products[:, :, :, None], hidden)[:, :, :, 0]
        out = (weights.to(values.dtype) @ copied_values).flatten(1, 2)[:, :, None]
        if self.tracks_reads:
            self._record_read(copied_values, valid)
        if columns > self.policy.copy_size:
            stays = self._drop_one(weights.detach().amax(dim=2), valid)
            copied_keys, copied_values = (
                gather_columns(copied_keys, stays),
                gather_columns(copied_values, stays),
            )
            # While a row has padding, all of its heads drop the same column.
            valid = None if valid is None else valid.gather(1, stays[:, 0])
        self.state |= {"copied_keys": copied_keys, "copied_values": copied_values}
        if valid is not None:
            self.state["copied_valid"] = valid
        return out

    def _drop_one(
        self,
        attention: Float[Tensor, "batch key_heads columns"],
        valid: Bool[Tensor, "batch columns"] | None,
    ) -> Int[Tensor, "batch key_heads fewer"]:
        """Return the columns of the copy without the one with the least attention, or without a padding."""
        columns = attention.shape[2]
        column = torch.arange(columns, device=attention.device)
        slots = column[None] if valid is None else valid.cumsum(dim=1) - 1
        safe = (slots < self.policy.num_sinks) | (column == columns - 1)
        worth = attention.masked_fill(safe[:, None], float("inf"))
        if valid is not None:
            worth = torch.where(valid[:, None], worth, -1.0 - column)
        worst = worth.argmin(dim=2, keepdim=True)
        return column[:-1] + (column[:-1] >= worst)

    def _record_read(self, values: Tensor, valid: Bool[Tensor, "batch columns"] | None) -> None:
        """Record which values the new token reads."""
        self._read_values = self._mask_padding(values, valid)
        column = torch.arange(values.shape[2], device=values.device)
        slots = column[None] if valid is None else valid.cumsum(dim=1) - 1
        is_selected = (slots >= self.policy.num_sinks) & (column < values.shape[2] - 1)
        self._fetched_values = self._read_values * is_selected[:, None, :, None]

    @staticmethod
    def _mask_padding(values: Tensor, valid: Bool[Tensor, "batch columns"] | None) -> Tensor:
        return values if valid is None else values * valid[:, None, :, None]
