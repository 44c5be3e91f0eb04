"""Split a joint token budget among the layers of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
