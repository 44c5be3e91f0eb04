"""Default token budget of context policies: the model's window, at most 8,192 tokens."""

from __future__ import annotations

import functools
import logging
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
