"""Policies whose layers differ, and how the tests of policies read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from scrubjay.memory.context import CacheShape, ContextPolicy, LayerStats
from scrubjay.memory.context.parts.budgets import share
from scrubjay.memory.context.policies.sinks import SinksPolicy
from scrubjay.memory.context.policies.snapkv import SnapKVPolicy


@dataclass(frozen=True)
class AlternatingPolicy(SinksPolicy):
    """Sinks and a window: 64 keys in even layers, 128 in odd ones."""

    budget: int = 64

    def for_layer(self, index: int, count: int) -> ContextPolicy:
        return SinksPolicy(self.budget * (1 + index % 2), self.num_sinks)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        layer, count = replace(shape, layers=1), shape.layers
        return sum(self.for_layer(index, count).nbytes(tokens, layer, at_once) for index in range(count))


@dataclass(frozen=True)
class SpreadPolicy(SnapKVPolicy):
    """SnapKV whose layers keep more of a prompt the wider the prompt's window spreads its attention."""

    def prefer(self, weights: Tensor) -> Tensor:
        given = weights.sum(dim=2)
        given = given / given.sum(dim=-1, keepdim=True)
        return torch.special.entr(given).sum(dim=-1).exp().mean(dim=1)

    def allocate(self, seen: Sequence[LayerStats], shape: CacheShape) -> Sequence[int]:
        columns, preferences = zip(*seen, strict=True)
        return share(self.budget * shape.layers, preferences, columns, self.window + self.num_sinks)


BY_LAYER = {"alternating": AlternatingPolicy, "spread": SpreadPolicy}


@contextmanager
def recorded() -> Iterator[list[Sequence[int]]]:
    """Yield the budgets that spread policies have set, one list after each layer that has read."""
    budgets, allocate = [], SpreadPolicy.allocate

    def noted(self, seen, shape):
        budgets.append(allocate(self, seen, shape))
        return budgets[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpreadPolicy, "allocate", noted)
        yield budgets


@contextmanager
def replayed(budgets: list[Sequence[int]]) -> Iterator[None]:
    """Set these budgets, and then those that policies set themselves.

    The rows of a batch share budgets: what one reads alone compares to what it reads there under the batch's.
    """
    left, allocate = iter(budgets), SpreadPolicy.allocate

    def given(self, seen, shape):
        return next(left, None) or allocate(self, seen, shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SpreadPolicy, "allocate", given)
        yield


@torch.no_grad()
def read(model, cache, ids, cuts=None, mask=None):
    """Return the logits of a text fed in pieces that end at `cuts`."""
    ends = [*(cuts or []), ids.shape[1]]
    out, begin = [], cache.get_seq_length() if mask is not None else 0
    for end in ends:
        options = {} if mask is None else {"attention_mask": mask[:, :end]}
        out.append(model(ids[:, begin:end], cache=cache, **options).logits)
        begin = end
    return torch.cat(out, dim=1)


def close(left, right):
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)


def pad(ids, by):
    """Return a batch of the first row, shortened and padded on the left, and the second, and its mask."""
    length = ids.shape[1]
    padded = torch.cat([torch.zeros(1, by, dtype=torch.long), ids[:1, : length - by]], dim=1)
    mask = torch.arange(length) >= torch.tensor([[by], [0]])
    return torch.cat([padded, ids[1:2]]), mask.long()
