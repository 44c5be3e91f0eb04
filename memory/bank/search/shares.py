"""An arm's scores as shares of one whole, and what records lend of theirs to neighbours in the chunk.

A softmax, as in HCAM's attention: an arm that knows one answer gives it nearly all, one that knows none
spreads thin. A turn that surely answers draws the turns around it along, as a reply need not repeat what it
replies to; one of many that are alike draws nothing, or its neighbours would crowd out the others. So a share
is lent to the power of 1.5.
"""

from __future__ import annotations

import numpy as np

PORTIONS = (2 / 3, 1 / 3, 1 / 6, 1 / 12)
"""Of what is lent, one step away in the chunk, two, and so on. With more, the worse of two neighbours,
borrowing from the better, could overtake it."""
_CROWD = 60  # the best that the whole is divided among, so that it does not thin out as a bank grows
_POWER = 1.5


def shares(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Return the softmax of scores [records] over the best 60.

    What is below has as little as its score tells.
    """
    if not len(scores):
        return np.zeros(0)
    raised = np.exp((scores.astype(np.float64) - scores.max()) / max(temperature, 1e-6))
    crowd = raised if len(raised) <= _CROWD else np.partition(raised, -_CROWD)[-_CROWD:]
    return raised / crowd.sum()


def lent(share: np.ndarray) -> np.ndarray:
    """Return what records of such shares lend, of which a neighbour gets its portion."""
    return share**_POWER
