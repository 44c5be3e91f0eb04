"""Attention elsewhere: most keys and values of a cache live in other processes or on other machines.

Lamina (Chen et al. 2024, arXiv 2405.01814): generation with a long cache is limited by the bandwidth of the
memory in which the cache lies. So the model runs on one device, and attention runs where the keys and values
lie. The queries of a token travel to all stores. Each store returns the attention over its own keys with the
log-sum-exp of its scores, from which the exact attention over all keys follows (`kernels.merge`).

Traffic per token and layer, in numbers: to each store the query of every head, back an output and one
normaliser per head; once in the life of a token its keys and values.

Differences from the paper: the most recent tokens stay with the model until a block is full, layers wait for
each other, and nothing is overlapped between batches. A prompt is read in pieces of 1,024 tokens.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.kernels.normalisers import Part, merge
from scrubjay.memory.context.elsewhere.stores import Store
from scrubjay.memory.context.elsewhere.table import Columns, Table, partial_attention
from scrubjay.memory.context.policies.base import (
    CacheShape,
    ContextPolicy,
    LayerMemory,
    RetainedValues,
    Step,
    check_minimums,
)
from scrubjay.memory.context.policies.buffers import compute_capacity
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.full import FullPolicy

_names = itertools.count()


@dataclass(frozen=True)
class ElsewherePolicy(ContextPolicy):
    """Keep all tokens, in blocks that are spread over stores.

    `PolicyCache(ElsewherePolicy((StoreProcess(), StoreProcess())), model)` keeps them in two processes. A
    saved cache has the file of `FullPolicy`, so each of the two policies loads caches of the other.

    Raises:
        TypeError: If `stores` is not a tuple of stores.
        ValueError: On no stores, on a store that is named twice, and on a block below 1.
    """

    stores: tuple[Store, ...]
    """Places of the keys and values. Block i lies in store i modulo their number."""
    block: int = 256
    """Number of tokens that move together. Up to `block - 1` recent tokens stay with the model."""

    can_crop: ClassVar[bool] = True
    drops: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_minimums(self, block=1)
        if not isinstance(self.stores, tuple) or any(isinstance(store, str) for store in self.stores):
            raise TypeError(f"stores={self.stores!r}: pass a tuple of stores, such as (StoreProcess(),)")
        if not self.stores:
            raise ValueError("stores=(): pass at least one store, such as StoreProcess()")
        if len(set(map(id, self.stores))) < len(self.stores):
            raise ValueError(f"stores={self.stores!r}: a store is named twice; pass each store once")

    @property
    def file_policy(self) -> ContextPolicy:
        """`FullPolicy()`: a cache file has the keys and values of all tokens, and no stores."""
        return FullPolicy()

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return ElsewhereMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return the bytes of the recent tokens and of their mask, unused capacity included."""
        columns = compute_capacity(tokens % self.block)
        return columns * (shape.token_bytes + shape.layers * shape.batch)


class ElsewhereMemory(LayerMemory):
    """Memory of one layer."""

    state_names = frozenset(("keys", "values"))
    longest_piece = 1024

    def __init__(self, policy: ElsewherePolicy) -> None:
        super().__init__()
        self.policy, self._recent = policy, Table()
        self._blocks = 0
        self._device = torch.device("cpu")
        self._name = next(_names)
        self._finalizer = weakref.finalize(self, _forget, policy.stores, self._name)
        self._finalizer.atexit = False

    def __deepcopy__(self, memo: Any) -> ElsewhereMemory:
        clone = type(self)(self.policy)
        for name, value in vars(self).items():
            if name not in ("policy", "_name", "_finalizer"):
                setattr(clone, name, copy.deepcopy(value, memo))
        for store in self._used_stores:
            store.copy(self._name, clone._name)
        return clone

    @property
    def columns(self) -> int:
        """Number of tokens of each row, padding included."""
        return self._blocks * self.policy.block + self._recent.columns

    @property
    def _used_stores(self) -> Sequence[Store]:
        return self.policy.stores[: self._blocks]

    def _piece(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> Tensor:
        """Return causal attention of the new tokens over all tokens, and move full blocks to the stores."""
        self._device = keys.device
        plain = Scoring(scoring.scale, scoring.cap)
        waits = [store.begin_attention(self._name, query, plain) for store in self._used_stores]
        self._recent.append((keys, values, step.time >= 0))
        parts = [self._attend_recent(query, step, plain), *(wait() for wait in waits)]
        out = merge_parts(parts, scoring).to(values.dtype)
        self._move()
        return out

    def _attend_recent(self, query: Tensor, step: Step, scoring: Scoring) -> Part:
        keys, values, valid = self._recent.read(0, self._recent.columns)
        length = query.shape[2]
        if length == 1 and not step.padded:
            return partial_attention(query, keys, values, None, scoring)
        past = self._recent.columns - length
        mask = torch.ones(length, past + length, dtype=torch.bool, device=query.device).tril(past)
        own = torch.eye(length, dtype=torch.bool, device=query.device)
        # A query that is padding reads itself, so that its output is finite.
        mask = (mask & valid[:, None]) | torch.cat([own.new_zeros(length, past), own], dim=1)
        return partial_attention(query, keys, values, mask, scoring)

    def _move(self) -> None:
        size, count = self.policy.block, self._recent.columns // self.policy.block
        if not count:
            return
        for number in range(count):
            store = self.policy.stores[self._blocks % len(self.policy.stores)]
            store.append(self._name, self._recent.read(number * size, (number + 1) * size))
            self._blocks += 1
        rest = self._recent.read(count * size, self._recent.columns)
        self._recent = Table()
        if rest[0].shape[2]:
            self._recent.append(rest)

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Do nothing: `attend` has already stored the new tokens."""

    def crop(self, columns: int, count: Int[Tensor, " batch"]) -> None:
        """Remove the last `columns` tokens of every row."""
        left = self.columns - columns
        blocks, rest = divmod(left, self.policy.block)
        if blocks >= self._blocks:
            self._recent.truncate(left - self._blocks * self.policy.block)
            return
        last_block = self._read_block(blocks)
        self._recent = Table()
        if rest:
            keys, values, valid = last_block
            self._recent.append((keys[:, :, :rest], values[:, :, :rest], valid[:, :rest]))
        self._keep_blocks(blocks)

    def _keep_blocks(self, blocks: int) -> None:
        stores = self.policy.stores
        for number, store in enumerate(self._used_stores):
            own_blocks = len(range(number, blocks, len(stores)))
            if own_blocks:
                store.truncate(self._name, own_blocks * self.policy.block)
            else:
                store.forget(self._name)
        self._blocks = blocks

    def _read_block(self, number: int) -> Columns:
        store = self.policy.stores[number % len(self.policy.stores)]
        first = number // len(self.policy.stores) * self.policy.block
        block = store.read(self._name, first, first + self.policy.block)
        keys, values, valid = (part.to(self._device) for part in block)
        return keys, values, valid

    def reorder(self, rows: Int[Tensor, " selected"]) -> None:
        """Select the batch rows with the indices `rows`, in this order; indices may repeat."""
        for store in self._used_stores:
            store.reorder(self._name, rows.cpu())
        if self._recent.columns:
            self._recent.reorder(rows)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the keys and values of all tokens, fetched from the stores; with padding also its mask."""
        parts = [self._read_block(number) for number in range(self._blocks)]
        if self._recent.columns:
            parts.append(self._recent.read(0, self._recent.columns))
        if not parts:
            return {}
        keys, values, valid = zip(*parts, strict=True)
        state = {"keys": torch.cat(keys, dim=2), "values": torch.cat(values, dim=2)}
        mask = torch.cat(valid, dim=1)
        return state if mask.all() else state | {"valid": mask}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Move the tokens of a saved state to the stores."""
        self._keep_blocks(0)
        self._recent = Table()
        if state:
            keys = state["keys"]
            valid = state.get("valid", keys.new_ones(len(keys), keys.shape[2], dtype=torch.bool))
            self._device = keys.device
            self._recent.append((keys, state["values"], valid))
            self._move()

    def get_retained_values(self, count: Int[Tensor, " batch"]) -> RetainedValues | None:
        """Return the attention values of all tokens, fetched from the stores."""
        state = self.state_dict()
        if not state:
            return None
        values, valid = state["values"], state.get("valid")
        return RetainedValues(values if valid is None else values * valid[:, None, :, None])

    def count_retained(self, count: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return `count`: all tokens are retained."""
        return count

    def get_tensors(self, place: str | None = None) -> Iterator[Tensor]:
        """Yield the tensors of the recent tokens; those in the stores are counted by `nbytes`."""
        return iter(()) if place else iter(self._recent.tensors)

    def nbytes(self, place: str | None = None) -> int:
        """Return the bytes on the model's device, or with the place "elsewhere" those in the stores."""
        if place == "elsewhere":
            return sum(store.nbytes(self._name) for store in self._used_stores)
        return super().nbytes(place)


def merge_parts(parts: Sequence[Part], scoring: Scoring) -> Float[Tensor, "batch heads length value_width"]:
    """Return the attention over the keys of all parts, with the learned sinks of the model."""
    output, normaliser = parts[0]
    if scoring.sinks is not None:
        sinks = scoring.sinks.to(normaliser.dtype).view(1, -1, 1).expand_as(normaliser)
        parts = [*parts, (torch.zeros_like(output), sinks)]
    return merge(parts)


def _forget(stores: Sequence[Store], name: int) -> None:
    for store in stores:
        store.forget(name)
