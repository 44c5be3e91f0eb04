"""Base class of sequence tasks: sizes, and batches that depend only on seed and index."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

IGNORED = -100
"""Label of a token that is not scored; the default `ignore_index` of torch's cross-entropy."""


class Sequences(NamedTuple):
    """Batch of tokens, with target tokens at some positions."""

    tokens: Int[Tensor, "rows length"]
    labels: Int[Tensor, "rows length"]
    """Target token at each position (not shifted by one); `IGNORED` where nothing is scored."""


@dataclass(frozen=True)
class Suite(ABC):
    """Task on token sequences of one length. Raises ValueError on invalid sizes."""

    kind: ClassVar[str]
    """Name of the class in config.json."""
    items: ClassVar[str]
    """Plural noun for the items that `num_items` counts."""
    num_items: Any
    """Number of items to remember per sequence. Each subclass defines it as a field or as a constant."""

    vocab_size: int = 64
    """Vocabulary size; tokens are integers from 0 to vocab_size - 1."""
    length: int = 64
    """Sequence length in tokens."""

    @abstractmethod
    def __post_init__(self) -> None:
        """Raise ValueError on invalid sizes, naming the value and the valid range."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """Best possible accuracy with only the current token visible."""

    @abstractmethod
    def _fill(self, rows: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return tokens and labels, `[rows, length]`."""

    def draw(self, rows: int, seed: int, index: int = 0) -> Sequences:
        """Return batch `index` of a seed, with `rows` sequences. Equal arguments give equal batches."""
        tokens, labels = self._fill(rows, np.random.default_rng([seed, index]))
        return Sequences(torch.from_numpy(tokens), torch.from_numpy(labels))

    def with_sizes(self, num_items: int, length: int) -> Self:
        """Return the task with other sizes. Raises ValueError on invalid sizes."""
        if num_items == self.num_items:
            return dataclasses.replace(self, length=length)
        if "num_items" not in {field.name for field in dataclasses.fields(self)}:
            raise ValueError(
                f"num_items={num_items}: {self.kind} always has {self.num_items} {self.items} and cannot be "
                "tested with other numbers; set eval_items=()"
            )
        return dataclasses.replace(self, num_items=num_items, length=length)

    def _require(self, name: str, least: int, why: str) -> None:
        value = getattr(self, name)
        if value < least:
            raise ValueError(f"{name}={value}: must be at least {least} ({why})")


def distinct(
    generator: np.random.Generator, rows: int, low: int, high: int, count: int
) -> Int[np.ndarray, "rows count"]:
    """Return `count` distinct integers in [low, high) per row, in random order."""
    return low + generator.random((rows, high - low)).argsort(axis=1)[:, :count]
