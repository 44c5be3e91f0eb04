"""What all suites share: their sizes, and batches that are a function of seed and index alone."""

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
"""Label of a token that is not scored; what torch's cross-entropy leaves out."""


class Sequences(NamedTuple):
    """A batch of tokens and, at some of them, what the model is to say there."""

    tokens: Int[Tensor, "rows length"]
    labels: Int[Tensor, "rows length"]
    """The token to name at each place, not at the one after; `IGNORED` where nothing is asked."""


@dataclass(frozen=True)
class Suite(ABC):
    """A task on token sequences of one length. Raises ValueError on sizes that cannot be."""

    kind: ClassVar[str]
    """Name in config.json of the class to rebuild."""
    items: ClassVar[str]
    """What `num_items` counts, in words."""
    num_items: Any
    """How many things a sequence gives to remember; a field where it can be chosen."""

    vocab_size: int = 64
    """Tokens are the numbers from 0 up to this, itself excluded."""
    length: int = 64
    """Tokens of a sequence."""

    @abstractmethod
    def __post_init__(self) -> None:
        """Raise ValueError on sizes that cannot be, naming the value and what can."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """The best accuracy there is for who sees the present token alone."""

    @abstractmethod
    def _fill(self, rows: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return tokens and labels, `[rows, length]`."""

    def draw(self, rows: int, seed: int, index: int = 0) -> Sequences:
        """Return batch number `index` of a seed: the same on every machine, whatever was drawn before."""
        tokens, labels = self._fill(rows, np.random.default_rng([seed, index]))
        return Sequences(torch.from_numpy(tokens), torch.from_numpy(labels))

    def resized(self, num_items: int, length: int) -> Self:
        """Return the same task with other sizes. Raises ValueError if they cannot be."""
        if num_items == self.num_items:
            return dataclasses.replace(self, length=length)
        if "num_items" not in {field.name for field in dataclasses.fields(self)}:
            raise ValueError(
                f"num_items={num_items}: {self.kind} has always {self.num_items} of {self.items}; set "
                "eval_items=()"
            )
        return dataclasses.replace(self, num_items=num_items, length=length)

    def _require(self, name: str, least: int, why: str) -> None:
        value = getattr(self, name)
        if value < least:
            raise ValueError(f"{name}={value}: must be at least {least}, {why}")


def distinct(
    generator: np.random.Generator, rows: int, low: int, high: int, count: int
) -> Int[np.ndarray, "rows count"]:
    """Return `count` different numbers from `low` up to below `high` for every row, in random order."""
    return low + generator.random((rows, high - low)).argsort(axis=1)[:, :count]
