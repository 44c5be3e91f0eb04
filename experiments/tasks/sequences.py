"""Synthetic sequence tasks that test the recall of a memory, with exact answers."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self, get_args

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
    every_count: ClassVar[bool] = False
    """True if training uses all numbers of items from 1 to `num_items`, and not only powers of two."""

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


@dataclass(frozen=True)
class MQAR(Suite):
    """Multi-query associative recall: key-value pairs, then one query per key.

    Arora et al. 2023, "Zoology", arXiv 2312.04927. A sequence starts with key-value pairs. Then every key is
    queried once, and the model must predict its value. The data follow the authors' generator
    (github.com/HazyResearch/zoology, data/multiquery_ar.py). Token 0 is filler. Keys are from the lower half
    of the vocabulary and values from the upper half, all distinct within a sequence. Queries are at even
    positions after the pairs, sampled without replacement. The i-th even position (i = 1, 2, ...) has a
    probability proportional to i^(`power` - 1). Short gaps between pairs and queries are thus common, as in
    language. Other positions hold filler: 0 or random tokens.
    """

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


@dataclass(frozen=True)
class Needle(Suite):
    """Needle in a haystack: key-value pairs among filler; the last token queries the key of one pair.

    After Kamradt 2023, github.com/gkamradt/LLMTest_NeedleInAHaystack. A needle is a key followed by its
    value, at a random position among filler tokens. The last token is the key of one needle, and there the
    model must predict its value. All other needles are distractors, as in the multi-key task of RULER (Hsieh
    et al. 2024, arXiv 2404.06654, section 3). Keys are from the first quarter of the vocabulary, values from
    the second quarter, and filler from the second half. Token 0 is not used.
    """

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


_MARKER, _DATA = 1, 2


@dataclass(frozen=True)
class SelectiveCopy(Suite):
    """Selective copying: repeat data tokens scattered in noise, in order.

    Jing et al. 2019; in this form Gu & Dao 2023, "Mamba", arXiv 2312.00752, section 4.1.1. Data tokens are
    scattered in noise, followed by one marker per data token. At the markers the model must predict the data
    in order. The spacing varies, so counting steps does not help. Token 0 is noise, token 1 is the marker,
    and all other tokens are data.
    """

    kind: ClassVar[str] = "selective-copy"
    items: ClassVar[str] = "tokens to copy"

    vocab_size: int = 16
    """Vocabulary size: noise, marker and data tokens; 16 in the paper."""
    num_items: int = 8
    """Number of data tokens, and of markers at the end."""

    def __post_init__(self) -> None:
        self._require("num_items", 1, "one token to copy")
        self._require("length", 2 * self.num_items, f"for num_items={self.num_items} data tokens and markers")
        self._require("vocab_size", _DATA + 2, "noise, marker and two data tokens")

    @property
    def chance(self) -> float:
        """Accuracy of guessing among all data tokens."""
        return 1 / (self.vocab_size - _DATA)

    def _fill(self, rows: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        context = self.length - self.num_items
        data = generator.integers(_DATA, self.vocab_size, size=(rows, self.num_items))
        places = np.sort(distinct(generator, rows, 0, context, self.num_items), axis=1)
        tokens = np.zeros((rows, self.length), dtype=np.int64)
        np.put_along_axis(tokens, places, data, axis=1)
        tokens[:, context:] = _MARKER
        labels = np.full_like(tokens, IGNORED)
        labels[:, context:] = data
        return tokens, labels


_TRIGGER = 0


@dataclass(frozen=True)
class Induction(Suite):
    """Induction task: predict the token that followed the first occurrence of a trigger.

    Olsson et al. 2022, arXiv 2209.11895, as in Gu & Dao 2023, arXiv 2312.00752, section 4.1.2. A sequence of
    random tokens contains the trigger, token 0, once. The last token is the trigger again. There the model
    must predict the token that followed the first occurrence of the trigger.
    """

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


Group = Literal["Z2", "Z3", "Z5", "S3", "S4", "S5"]
"""Cyclic group Zn (addition modulo n) or symmetric group Sn (permutations of n items)."""


@dataclass(frozen=True)
class StateTracking(Suite):
    """State tracking: predict the product of all group elements so far.

    A memory state that only decays cannot represent such products. Every token is an element of a group. At
    each token the model must predict the product of all elements so far, as in the word problems of Merrill,
    Petty & Sabharwal 2024 (arXiv 2404.08819). The group Z_2 is parity, Z_n is counting modulo n, and S_5, the
    permutations of five items, is the hardest case. Layers with decay factors between 0 and 1 solve none of
    these groups in sequences that are longer than in training (Grazzi et al. 2024, arXiv 2411.12537).
    """

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
        return tokens, _multiply(table, tokens)


_MOST_PERMUTED = 6  # the table of seven items has 25 million entries


@dataclass(frozen=True)
class Swaps(Suite):
    """State tracking with permutations of a limited distance: predict the product of all of them so far.

    Every token is a permutation that is made of at most `num_items` swaps of two items, or the identity. Such
    permutations are equally likely. With `num_items=1` the tokens are the swaps themselves, which generate
    all products. With `num_items=size - 1` the tokens are all permutations, as in `StateTracking`. A model
    that starts with few swaps (see `SequenceTaskConfig.curriculum`) learns products that it does not learn
    from all permutations at once.
    """

    kind: ClassVar[str] = "swaps"
    items: ClassVar[str] = "swaps of a permutation"
    every_count: ClassVar[bool] = True

    num_items: int = 4
    """Maximum number of swaps that a token stands for; `size - 1` swaps give every permutation."""
    vocab_size: int = 120
    """Vocabulary size, at least the number of permutations of `size` items."""
    length: int = 16
    """Sequence length in tokens."""
    size: int = 5
    """Number of items that the permutations exchange, from 2 to 6."""

    def __post_init__(self) -> None:
        if not 2 <= self.size <= _MOST_PERMUTED:
            raise ValueError(f"size={self.size}: choose from 2 to {_MOST_PERMUTED}")
        self._require("num_items", 1, "one swap")
        if self.num_items >= self.size:
            raise ValueError(
                f"num_items={self.num_items}: must be less than size={self.size}; {self.size - 1} swaps give "
                "every permutation"
            )
        self._require("length", 1, "a permutation")
        self._require("vocab_size", math.factorial(self.size), f"the permutations of size={self.size} items")

    @property
    def chance(self) -> float:
        """Accuracy of guessing if all products are equally likely, as they are with `size - 1` swaps."""
        return 1 / math.factorial(self.size)

    def _fill(self, rows: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        near = np.flatnonzero(count_swaps(self.size) <= self.num_items)
        tokens = near[generator.integers(len(near), size=(rows, self.length))]
        return tokens, _multiply(_symmetric_products(self.size), tokens)


@functools.cache
def products(group: Group) -> Int[np.ndarray, "first second"]:
    """Return the multiplication table of a group; element 0 is the identity."""
    size = int(group[1:])
    if group[0] == "Z":
        return np.add.outer(np.arange(size), np.arange(size)) % size
    return _symmetric_products(size)


@functools.cache
def _symmetric_products(size: int) -> Int[np.ndarray, "first second"]:
    elements = list(itertools.permutations(range(size)))
    number = {element: index for index, element in enumerate(elements)}
    return np.array([[number[tuple(first[i] for i in then)] for then in elements] for first in elements])


@functools.cache
def count_swaps(size: int) -> Int[np.ndarray, " permutations"]:
    """Return the least number of swaps that make each permutation of `size` items.

    It is the number of items minus the number of cycles.
    """
    return np.array(
        [size - _count_cycles(permutation) for permutation in itertools.permutations(range(size))]
    )


def _count_cycles(permutation: tuple[int, ...]) -> int:
    rest = set(permutation)
    cycles = 0
    while rest:
        cycles += 1
        item = rest.pop()
        while permutation[item] in rest:
            item = permutation[item]
            rest.remove(item)
    return cycles


def _multiply(table: Int[np.ndarray, "first second"], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the product of all elements up to each token, `[rows, length]`."""
    labels = tokens.copy()
    for t in range(1, tokens.shape[1]):
        labels[:, t] = table[labels[:, t - 1], tokens[:, t]]
    return labels
