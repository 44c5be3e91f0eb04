"""How layers share out the tokens that all of them together may keep."""

from __future__ import annotations

import math
from collections.abc import Sequence

# So that layers that want nothing share what the others leave.
_FAINTEST = 1e-9


def share(total: int, preferences: Sequence[float], columns: Sequence[int], least: int) -> list[int]:
    """Return how many of `total` tokens each layer keeps, all of them in all, in proportion to preferences.

    None gets fewer than `least`, nor more than the columns that it holds until all have as many, and the rest
    is dealt evenly. Rounded by Webster's divisors, so that no share grows when one more layer joins in.

    Raises ValueError where there is too little for all, or on a preference that is negative or no number.
    """
    if any(not 0 <= preference < math.inf for preference in preferences):
        raise ValueError(f"preferences={list(preferences)}: each must be a finite number, and none negative")
    if total < least * len(preferences):
        raise ValueError(f"total={total}: {len(preferences)} layers need at least {least} tokens each")
    wanted = [max(preference, _FAINTEST) for preference in preferences]
    most = [max(count, least) for count in columns]
    if total >= sum(most):
        each, over = divmod(total - sum(most), len(most))
        return [count + each + (index < over) for index, count in enumerate(most)]

    def shares(unit: float) -> list[int]:
        return [
            math.floor(min(max(want * unit + 0.5, least), bound))
            for want, bound in zip(wanted, most, strict=True)
        ]

    below, above = 0.0, (max(most) + 1) / min(wanted)
    while below < (middle := (below + above) / 2) < above:
        if sum(shares(middle)) <= total:
            below = middle
        else:
            above = middle
    dealt = shares(below)
    # Of layers that come to their next token at the same moment, the first.
    for index, more in enumerate(shares(above)):
        dealt[index] += min(more - dealt[index], total - sum(dealt))
    return dealt
