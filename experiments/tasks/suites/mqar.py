"""Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv 2312.04927).

First the pairs, key value key value, then every key once again; at that query the model is to name its value.
As in the authors' generator (github.com/HazyResearch/zoology, data/multiquery_ar.py): token 0 is filler, keys
are of the lower half of the vocabulary and values of the upper, no two alike in a sequence; queries fall on
even places behind the pairs, and which ones is drawn without replacement with p(i) ~ a i^(a - 1), i counted
from 1, so that short gaps are common, as in language. Elsewhere stands filler, zero or any token at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scrubjay.experiments.tasks.suites.base import IGNORED, Suite, distinct


@dataclass(frozen=True)
class MQAR(Suite):
    """Key-value pairs, then each key once more: say its value."""

    kind: ClassVar[str] = "mqar"
    items: ClassVar[str] = "key-value pairs"

    num_items: int = 8
    """Key-value pairs, every one of them asked for once."""
    power: float = 0.01
    """The a of the power law of gaps; 1 makes all gaps equally likely."""
    random_filler: bool = True
    """Whether filler is any token of the vocabulary, keys and values too, or always 0."""

    def __post_init__(self) -> None:
        self._require("num_items", 1, "as something has to be asked")
        self._require(
            "length", 4 * self.num_items, f"four tokens for each of num_items={self.num_items} pairs"
        )
        self._require(
            "vocab_size", 2 * self.num_items + 2, f"for num_items={self.num_items} keys, as many values and 0"
        )
        if not self.power > 0:
            raise ValueError(f"power={self.power}: must be positive; 1 makes all gaps equally likely")

    @property
    def chance(self) -> float:
        """Guess among all values."""
        return 1 / (self.vocab_size - self.vocab_size // 2)

    def _fill(self, rows: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        half, pairs = self.vocab_size // 2, self.num_items
        keys = distinct(generator, rows, 1, half, pairs)
        values = distinct(generator, rows, half, self.vocab_size, pairs)
        places = np.arange(1, (self.length - 2 * pairs) // 2 + 1)
        # The order in which exponential clocks of these rates ring is a draw without replacement by these
        # weights.
        rings = generator.exponential(size=(rows, len(places))) / places ** (self.power - 1)
        queries = 2 * pairs + 2 * rings.argsort(axis=1)[:, :pairs]
        tokens = np.zeros((rows, self.length), dtype=np.int64)
        if self.random_filler:
            tokens = generator.integers(self.vocab_size, size=(rows, self.length))
        tokens[:, 0 : 2 * pairs : 2] = keys
        tokens[:, 1 : 2 * pairs : 2] = values
        np.put_along_axis(tokens, queries, keys, axis=1)
        labels = np.full_like(tokens, IGNORED)
        np.put_along_axis(labels, queries, values, axis=1)
        return tokens, labels
