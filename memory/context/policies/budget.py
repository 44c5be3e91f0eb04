"""Token budgets of context policies: the default, and the division of a joint budget among layers.

The default is the model's window, at most 8,192 tokens.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from scrubjay.memory.context.policies.base import ContextPolicy

MAX_DEFAULT_BUDGET = 8192
"""Largest default budget, in tokens."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BudgetPolicy(ContextPolicy):
    """Base class of policies with a token budget. `PolicyCache` sets a budget of None to the default."""

    budget: int | None = None
    """Number of tokens. Default: the model's window, at most 8,192."""

    margin: ClassVar[int] = 0
    """Largest number of tokens that a query reads in addition to the budget."""

    @property
    def num_tokens(self) -> int:
        """The budget; the largest default if the budget is not set."""
        return MAX_DEFAULT_BUDGET if self.budget is None else self.budget


def resolve_budget(policy: ContextPolicy, window: int | None) -> ContextPolicy:
    """Return the policy with the default budget for a model of this window, unless its budget is set."""
    return policy.map_inner(lambda inner: _resolve_own(inner, window))


def _resolve_own(policy: ContextPolicy, window: int | None) -> ContextPolicy:
    if not isinstance(policy, BudgetPolicy) or policy.budget is not None:
        return policy
    budget = MAX_DEFAULT_BUDGET if window is None else min(window - policy.margin, MAX_DEFAULT_BUDGET)
    _log_budget(type(policy).__name__, budget, window)
    return replace(policy, budget=budget)


def get_window(model: Any) -> int | None:
    """Return the longest text of a model's training, in tokens; None if the config does not contain it."""
    return getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)


@functools.cache
def _log_budget(policy: str, budget: int, window: int | None) -> None:
    length = "unknown" if window is None else f"{window:,} tokens"
    _log.info("%s: budget=%s tokens by default (the model's window is %s)", policy, f"{budget:,}", length)


# Smallest preference, so that layers with preference 0 share what the others leave.
_MIN_PREFERENCE = 1e-9


def split_budget(total: int, preferences: Sequence[float], columns: Sequence[int], least: int) -> list[int]:
    """Return one token budget per layer, in proportion to `preferences`; the budgets sum to `total`.

    Each layer gets at least `least` tokens, and at most the number of tokens that it has read (`columns`). If
    `total` exceeds the sum of these maxima, the remaining tokens are distributed evenly. Budgets are rounded
    by Webster's method, so that the budget of a layer does not grow when another layer is added.

    Raises ValueError if `total` is too small, or on a preference that is negative, NaN or infinite.
    """
    if any(not 0 <= preference < math.inf for preference in preferences):
        raise ValueError(f"preferences={list(preferences)}: each number must be finite and not negative")
    if total < least * len(preferences):
        raise ValueError(
            f"total={total}: must be at least {least * len(preferences)}, since each of the "
            f"{len(preferences)} layers needs at least {least} tokens"
        )
    weights = [max(preference, _MIN_PREFERENCE) for preference in preferences]
    most = [max(count, least) for count in columns]
    if total >= sum(most):
        each, over = divmod(total - sum(most), len(most))
        return [count + each + (index < over) for index, count in enumerate(most)]

    def compute_shares(unit: float) -> list[int]:
        return [
            math.floor(min(max(weight * unit + 0.5, least), bound))
            for weight, bound in zip(weights, most, strict=True)
        ]

    below, above = 0.0, (max(most) + 1) / min(weights)
    while below < (middle := (below + above) / 2) < above:
        if sum(compute_shares(middle)) <= total:
            below = middle
        else:
            above = middle
    budgets = compute_shares(below)
    # Ties are resolved in favour of the first layers.
    for index, more in enumerate(compute_shares(above)):
        budgets[index] += min(more - budgets[index], total - sum(budgets))
    return budgets
