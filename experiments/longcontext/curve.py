"""Measurements along a text that a model read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Curve:
    """Losses and costs along a text that a model reads in blocks of tokens.

    `nats[i]` is the loss of token `i + 1` in nats. All other values are per block.
    """

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.nats: NDArray[np.float64] = np.concatenate([row["nats"] for row in rows])
        self.ends = np.cumsum([len(row["nats"]) for row in rows])
        self.rows = rows

    def perplexity(self, first: int = 0, last: int | None = None) -> float:
        """Return the perplexity: the exponential of the mean of the token losses `nats[first:last]`."""
        return math.exp(self.nats[first:last].mean())

    def per_block(self, name: str) -> NDArray[np.float64]:
        """Return one value per block; `name` is "cpu", "wall", "resident" or "cache_bytes"."""
        return np.array([row[name] for row in self.rows], dtype=float)

    def milliseconds(self, clock: str, first: float = 0.0) -> float:
        """Return the mean number of milliseconds per token; `clock` is "cpu" or "wall".

        The mean leaves out a fraction `first` of the blocks, from the beginning of the text.
        """
        begin = int(first * len(self.rows))
        tokens = sum(len(row["nats"]) for row in self.rows[begin:])
        return 1000 * self.per_block(clock)[begin:].sum() / tokens
