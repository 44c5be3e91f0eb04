"""Selective copying (Jing et al. 2019; in this form Gu & Dao 2023, "Mamba", arXiv 2312.00752, section 4.1.1).

Data tokens are scattered in noise, followed by one marker per data token. At the markers the model must
predict the data in order. The spacing varies, so counting steps does not help. Token 0 is noise, token 1 is
the marker, and all other tokens are data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scrubjay.experiments.tasks.suites.base import IGNORED, Suite, distinct

_MARKER, _DATA = 1, 2


@dataclass(frozen=True)
class SelectiveCopy(Suite):
    """Selective copying: repeat data tokens scattered in noise, in order."""

    kind: ClassVar[str] = "selective-copy"
    items: ClassVar[str] = "tokens to copy"

    vocab_size: int = 16
    """Vocabulary size: noise, marker and data tokens; 16 in the paper."""
    num_items: int = 8
    """Number of data tokens, and of markers at the end."""

    def __post_init__(self) -> None:
        self._require("num_items", 1, "one token to copy")
        self._require("length", 2 * self.num_items, f"for num_items={self.num_items} data tokens and markers")
        self._require("vocab_size", _DATA + 2, "noise, marker and two data tokens")

    @property
    def chance(self) -> float:
        """Accuracy of guessing among all data tokens."""
        return 1 / (self.vocab_size - _DATA)

    def _fill(self, rows: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        context = self.length - self.num_items
        data = generator.integers(_DATA, self.vocab_size, size=(rows, self.num_items))
        places = np.sort(distinct(generator, rows, 0, context, self.num_items), axis=1)
        tokens = np.zeros((rows, self.length), dtype=np.int64)
        np.put_along_axis(tokens, places, data, axis=1)
        tokens[:, context:] = _MARKER
        labels = np.full_like(tokens, IGNORED)
        labels[:, context:] = data
        return tokens, labels
