"""One seed per experiment, independent streams for what it drives."""

from __future__ import annotations

from typing import Literal

import numpy as np

_PURPOSES = ("weights", "sampling", "minibatches", "evaluation")


def derive_seed(seed: int, purpose: Literal["weights", "sampling", "minibatches", "evaluation"]) -> int:
    """Return a seed of 31 bits for one purpose of the experiment with this seed.

    A batch of environments seeds its rows with consecutive numbers, so experiments with seeds 0 and 1, or
    training and evaluation, would share nearly all their episodes if they used their seeds as they are.
    """
    words = np.random.SeedSequence([seed, _PURPOSES.index(purpose)]).generate_state(1)
    return int(words[0] >> 1)
