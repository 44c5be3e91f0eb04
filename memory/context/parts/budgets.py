"""Split a joint token budget among the layers of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Smallest preference, so that layers with preference 0 share what the others leave.
_MIN_PREFERENCE = 1e-9


def split_budget(total: int, preferences: Sequence[float], columns: Sequence[int], least: int) -> list[int]:
    """Split `total` tokens among layers in proportion to their preferences; return the budget of each layer.

    Each layer gets at least `least` tokens, and at most its `columns` until all layers have theirs; the rest
    is distributed evenly. Budgets are rounded by Webster's method, so that no budget grows when a layer is
    added.

    Raises ValueError if `total` is too small, or on a preference that is negative, NaN or infinite.
    """
    if any(not 0 <= preference < math.inf for preference in preferences):
        raise ValueError(f"preferences={list(preferences)}: each must be finite and not negative")
    if total < least * len(preferences):
        raise ValueError(f"total={total}: {len(preferences)} layers need at least {least} tokens each")
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
