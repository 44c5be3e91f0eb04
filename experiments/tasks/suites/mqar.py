"""Multi-query associative recall (Arora et al. 2023, "Zoology", arXiv 2312.04927).

A sequence starts with key-value pairs. Then every key is queried once, and the model must predict its value.
The data follow the authors' generator (github.com/HazyResearch/zoology, data/multiquery_ar.py). Token 0 is
filler. Keys are from the lower half of the vocabulary and values from the upper half, all distinct within a
sequence. Queries are at even positions after the pairs, sampled without replacement. The i-th even position
(i = 1, 2, ...) has a probability proportional to i^(`power` - 1). Short gaps between pairs and queries are
thus common, as in language. Other positions hold filler: 0 or random tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scrubjay.experiments.tasks.suites.base import IGNORED, Suite, distinct


@dataclass(frozen=True)
class MQAR(Suite):
    """Multi-query associative recall: key-value pairs, then one query per key."""

    kind: ClassVar[str] = "mqar"
    items: ClassVar[str] = "key-value pairs"

    num_items: int = 8
    """Number of key-value pairs; each is queried once."""
    power: float = 0.01
    """Exponent of the power law for gaps between pairs and queries; 1 makes all gaps equally likely."""
    random_filler: bool = True
    """Use random tokens as filler, which may equal keys or values; otherwise the filler is token 0."""

    def __post_init__(self) -> None:
        self._require("num_items", 1, "one pair to query")
        self._require(
            "length", 4 * self.num_items, f"four tokens for each of num_items={self.num_items} pairs"
        )
        self._require(
            "vocab_size",
            2 * self.num_items + 2,
            f"for num_items={self.num_items} keys, {self.num_items} values and token 0",
        )
        if not self.power > 0:
            raise ValueError(f"power={self.power}: must be positive; 1 makes all gaps equally likely")

    @property
    def chance(self) -> float:
        """Accuracy of guessing among all values."""
        return 1 / (self.vocab_size - self.vocab_size // 2)

    def _fill(self, rows: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        half, pairs = self.vocab_size // 2, self.num_items
        keys = distinct(generator, rows, 1, half, pairs)
        values = distinct(generator, rows, half, self.vocab_size, pairs)
        places = np.arange(1, (self.length - 2 * pairs) // 2 + 1)
        # The order of exponential waiting times with these rates is a sample without replacement with these
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
