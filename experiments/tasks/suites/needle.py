"""Needles in a haystack, as tokens (after Kamradt 2023, github.com/gkamradt/LLMTest_NeedleInAHaystack).

A needle is a key and behind it its value, hidden anywhere in a haystack of other tokens; the last token is a
key, and there the model is to name its value. With several needles all but one distract, as in the multi-key
task of RULER (Hsieh et al. 2024, arXiv 2404.06654, section 3). Token 0 is not used; the first quarter of the
vocabulary are keys, the second values, the rest is hay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scrubjay.experiments.tasks.suites.base import IGNORED, Suite, distinct


@dataclass(frozen=True)
class Needle(Suite):
    """Keys with values, hidden in hay; the last token asks for one of them."""

    kind: ClassVar[str] = "needle"
    items: ClassVar[str] = "needles"

    num_items: int = 1
    """Needles, of which one is asked for."""

    def __post_init__(self) -> None:
        self._require("num_items", 1, "as something has to be asked")
        self._require(
            "length", 2 * self.num_items + 1, f"for num_items={self.num_items} needles and the question"
        )
        self._require(
            "vocab_size", 4 * (self.num_items + 1), f"to have num_items={self.num_items} different keys"
        )

    @property
    def chance(self) -> float:
        """Guess among all values."""
        return 1 / (self.vocab_size // 4)

    def _fill(self, rows: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        quarter, needles = self.vocab_size // 4, self.num_items
        tokens = generator.integers(2 * quarter, self.vocab_size, size=(rows, self.length))
        keys = distinct(generator, rows, 1, quarter, needles)
        values = generator.integers(quarter, 2 * quarter, size=(rows, needles))
        # Every needle shrunk to one token, all choices of places are equally likely; then each takes its
        # second.
        places = np.sort(distinct(generator, rows, 0, self.length - 1 - needles, needles), axis=1)
        places += np.arange(needles)
        np.put_along_axis(tokens, places, keys, axis=1)
        np.put_along_axis(tokens, places + 1, values, axis=1)
        asked = generator.integers(needles, size=rows)
        labels = np.full_like(tokens, IGNORED)
        tokens[:, -1] = keys[np.arange(rows), asked]
        labels[:, -1] = values[np.arange(rows), asked]
        return tokens, labels
