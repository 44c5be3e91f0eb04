"""State tracking: products in a group, which a state that only fades cannot follow.

Every token is an element of a group, and at each the model is to name the product of all so far, as in the
word problems of Merrill, Petty & Sabharwal 2024 (arXiv 2404.08819). Two elements make parity, n of Z_n
counting modulo n, and permutations of five things the hardest of its kind. What a layer forgets by a factor
between 0 and 1 does none of these in sequences longer than trained on (Grazzi et al. 2024, arXiv 2411.12537).
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
"""Numbers below n, added modulo n, or permutations of n things, one after the other."""


@dataclass(frozen=True)
class StateTracking(Suite):
    """Elements of a group: name the product of all so far."""

    kind: ClassVar[str] = "state-tracking"
    items: ClassVar[str] = "products"
    num_items: ClassVar[int] = 1

    vocab_size: int = 6
    """At least the elements of the group: n, or n! of permutations."""
    group: Group = "S3"
    """Z2 is parity, Zn counting modulo n, Sn permutations of n things."""

    def __post_init__(self) -> None:
        if self.group not in get_args(Group):
            raise ValueError(f"group={self.group!r}; choose from {', '.join(get_args(Group))}")
        self._require("length", 1, "an element")
        self._require("vocab_size", len(products(self.group)), f"the elements of {self.group}")

    @property
    def chance(self) -> float:
        """Any product is as likely as any other, whatever the last element."""
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
    """Return which element two of a group make, one after the other; 0 changes nothing."""
    size = int(group[1:])
    if group[0] == "Z":
        return np.add.outer(np.arange(size), np.arange(size)) % size
    elements = list(itertools.permutations(range(size)))
    number = {element: index for index, element in enumerate(elements)}
    return np.array([[number[tuple(first[i] for i in then)] for then in elements] for first in elements])
