"""Induction heads (Olsson et al. 2022, arXiv 2209.11895), as in Gu & Dao 2023 (arXiv 2312.00752, 4.1.2).

A sequence of random tokens contains the trigger, token 0, once. The last token is the trigger again. There
the model must predict the token that followed the first occurrence of the trigger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from scrubjay.experiments.tasks.suites.base import IGNORED, Suite

_TRIGGER = 0


@dataclass(frozen=True)
class Induction(Suite):
    """Induction task: predict the token that followed the first occurrence of a trigger."""

    kind: ClassVar[str] = "induction"
    items: ClassVar[str] = "triggers"
    num_items: ClassVar[int] = 1

    vocab_size: int = 16
    """Vocabulary size: the trigger and ordinary tokens; 16 in the paper."""

    def __post_init__(self) -> None:
        self._require("length", 3, "trigger, token, trigger")
        self._require("vocab_size", 3, "the trigger and two ordinary tokens")

    @property
    def chance(self) -> float:
        """Accuracy of guessing among all ordinary tokens."""
        return 1 / (self.vocab_size - 1)

    def _fill(self, rows: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        tokens = generator.integers(1, self.vocab_size, size=(rows, self.length))
        row, place = np.arange(rows), generator.integers(self.length - 2, size=rows)
        tokens[row, place] = tokens[:, -1] = _TRIGGER
        labels = np.full_like(tokens, IGNORED)
        labels[:, -1] = tokens[row, place + 1]
        return tokens, labels
