"""Independent random streams derived from the one seed of an experiment."""

from __future__ import annotations

from typing import Literal

import numpy as np

_PURPOSES = ("weights", "sampling", "minibatches", "evaluation")


def derive_seed(
    seed: int, purpose: Literal["weights", "sampling", "minibatches", "evaluation"], step: int = 0
) -> int:
    """Return a 31-bit seed for one purpose of an experiment. Different values of `step` give different seeds.

    A vector environment gives its environments consecutive seeds. Without derived seeds, experiments
    with seeds 0 and 1, or training and evaluation, would share nearly all their episodes.
    """
    # Step 0 is left out, for the same seeds as in versions without `step`.
    entropy = [seed, _PURPOSES.index(purpose), step][: 3 if step else 2]
    words = np.random.SeedSequence(entropy).generate_state(1)
    return int(words[0] >> 1)
