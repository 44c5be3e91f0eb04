"""One seed per experiment, independent streams for what it drives."""

from __future__ import annotations

from typing import Literal

import numpy as np

_PURPOSES = ("weights", "sampling", "minibatches", "evaluation")


def derive_seed(
    seed: int, purpose: Literal["weights", "sampling", "minibatches", "evaluation"], step: int = 0
) -> int:
    """Return a seed of 31 bits for one purpose of the experiment with this seed, from a step on.

    A batch of environments seeds its rows with consecutive numbers, so experiments with seeds 0 and 1, or
    training and evaluation, would share nearly all their episodes if they used their seeds as they are.
    """
    # At step 0 without it, as runs before there was one have it.
    entropy = [seed, _PURPOSES.index(purpose), step][: 3 if step else 2]
    words = np.random.SeedSequence(entropy).generate_state(1)
    return int(words[0] >> 1)
