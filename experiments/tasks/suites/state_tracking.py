"""State tracking: products of group elements. A memory state that only decays cannot represent them.

Every token is an element of a group. At each token the model must predict the product of all elements so far,
as in the word problems of Merrill, Petty & Sabharwal 2024 (arXiv 2404.08819). The group Z_2 is parity, Z_n is
counting modulo n, and S_5, the permutations of five items, is the hardest case. Layers with decay factors
between 0 and 1 solve none of these groups in sequences that are longer than in training (Grazzi et al. 2024,
arXiv 2411.12537).
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from scrubjay.experiments.tasks.suites.base import Suite

Group = Literal["Z2", "Z3", "Z5", "S3", "S4", "S5"]
"""Cyclic group Zn (addition modulo n) or symmetric group Sn (permutations of n items)."""


@dataclass(frozen=True)
class StateTracking(Suite):
    """State tracking: predict the product of all group elements so far."""

    kind: ClassVar[str] = "state-tracking"
    items: ClassVar[str] = "products"
    num_items: ClassVar[int] = 1

    vocab_size: int = 6
    """Vocabulary size, at least the order of the group: n for Zn, n! for Sn."""
    group: Group = "S3"
    """Group: Z2 is parity, Zn counting modulo n, Sn permutations of n items."""

    def __post_init__(self) -> None:
        if self.group not in get_args(Group):
            raise ValueError(f"group={self.group!r}; choose from {', '.join(get_args(Group))}")
        self._require("length", 1, "an element")
        self._require("vocab_size", len(products(self.group)), f"the elements of {self.group}")

    @property
    def chance(self) -> float:
        """Accuracy of guessing. Without the earlier elements, all products are equally likely."""
        return 1 / len(products(self.group))

    def _fill(self, rows: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        table = products(self.group)
        tokens = generator.integers(len(table), size=(rows, self.length))
        labels = tokens.copy()
        for t in range(1, self.length):
            labels[:, t] = table[labels[:, t - 1], tokens[:, t]]
        return tokens, labels


@functools.cache
def products(group: Group) -> Int[np.ndarray, "first second"]:
    """Return the multiplication table of a group; element 0 is the identity."""
    size = int(group[1:])
    if group[0] == "Z":
        return np.add.outer(np.arange(size), np.arange(size)) % size
    elements = list(itertools.permutations(range(size)))
    number = {element: index for index, element in enumerate(elements)}
    return np.array([[number[tuple(first[i] for i in then)] for then in elements] for first in elements])
