"""Needles in a haystack, as tokens (after Kamradt 2023, github.com/gkamradt/LLMTest_NeedleInAHaystack).

A needle is a key followed by its value, at a random position among filler tokens. The last token is the key
of one needle, and there the model must predict its value. All other needles are distractors, as in the
multi-key task of RULER (Hsieh et al. 2024, arXiv 2404.06654, section 3). Keys are from the first quarter of
the vocabulary, values from the second quarter, and filler from the second half. Token 0 is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scrubjay.experiments.tasks.suites.base import IGNORED, Suite, distinct


@dataclass(frozen=True)
class Needle(Suite):
    """Needle in a haystack: key-value pairs among filler; the last token queries the key of one pair."""

    kind: ClassVar[str] = "needle"
    items: ClassVar[str] = "needles"

    num_items: int = 1
    """Number of needles, one of which is queried."""

    def __post_init__(self) -> None:
        self._require("num_items", 1, "one needle to query")
        self._require(
            "length", 2 * self.num_items + 1, f"for num_items={self.num_items} needles and the question"
        )
        self._require(
            "vocab_size", 4 * (self.num_items + 1), f"to have num_items={self.num_items} different keys"
        )

    @property
    def chance(self) -> float:
        """Accuracy of guessing among all values."""
        return 1 / (self.vocab_size // 4)

    def _fill(self, rows: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        quarter, needles = self.vocab_size // 4, self.num_items
        tokens = generator.integers(2 * quarter, self.vocab_size, size=(rows, self.length))
        keys = distinct(generator, rows, 1, quarter, needles)
        values = generator.integers(quarter, 2 * quarter, size=(rows, needles))
        # Sample positions uniformly as if a needle were one token; then shift them to make room for the
        # second token of each.
        places = np.sort(distinct(generator, rows, 0, self.length - 1 - needles, needles), axis=1)
        places += np.arange(needles)
        np.put_along_axis(tokens, places, keys, axis=1)
        np.put_along_axis(tokens, places + 1, values, axis=1)
        target = generator.integers(needles, size=rows)
        labels = np.full_like(tokens, IGNORED)
        tokens[:, -1] = keys[np.arange(rows), target]
        labels[:, -1] = values[np.arange(rows), target]
        return tokens, labels
