"""Needles in haystacks: facts hidden in a text that has nothing to do with them.

The rules follow RULER (Hsieh et al. 2024, arXiv 2404.06654) with different wording. A needle states the value
of a key. A key or value is a word pair (adjective-noun), a number of seven digits, or a UUID. The hay is
sentences of a novel, one repeated line, or needles of other keys.
"""

from __future__ import annotations

import functools
import importlib.resources
import itertools
import random
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scrubjay.experiments.longcontext.examples import Example

Kind = Literal["word", "number", "uuid"]
Hay = Literal["essay", "noise", "needles"]

NOISE = "The field is wide. The clouds are pale. The air is still. Out we walk. Home we come."
DEPTHS = tuple(100 * place / 39 for place in range(40))
"""Needle depths of RULER in an essay, in percent of the text."""
_INSTALL = "the words come from wonderwords; install it with: pip install 'scrubjay[lm]'"


@dataclass(frozen=True)
class Needles:
    """Needle task: number and type of keys, values and queries. Raises ValueError on an invalid task."""

    hay: Hay = "essay"
    """Type of the surrounding text: essay, noise (one repeated line) or needles (with other keys)."""
    keys: int = 1
    """Number of different keys among the needles, including keys without a query."""
    values: int = 1
    """Number of needles for each key; each of these needles states a different value."""
    queries: int = 1
    """Number of queried keys; an answer must contain all values of these keys."""
    key_kind: Kind = "word"
    """Type of the keys: word, number or uuid."""
    value_kind: Kind = "number"
    """Type of the values: word, number or uuid."""
    new_tokens: int = 128
    """Maximum tokens of an answer."""

    def __post_init__(self) -> None:
        if min(self.keys, self.values, self.queries) < 1 or self.queries > self.keys:
            raise ValueError(
                f"keys={self.keys}, values={self.values}, queries={self.queries}: "
                "each must be at least 1, and queries must not exceed keys"
            )

    def build(
        self, size: int, rng: random.Random, sentences: Sequence[str] = (), depth: float | None = None
    ) -> Example:
        """Return an example with the needles in `size` pieces of hay: sentences of an essay, or lines.

        `sentences` is the essay; it is repeated if it has fewer than `size` sentences. `depth`, in percent of
        the hay, is the position of all needles; by default each needle is at a random position. Raises
        ValueError if the hay is an essay and `sentences` is empty.
        """
        # One draw for all, so that keys and values are unique, those of the hay included.
        num_hay_needles = size if self.hay == "needles" else 0
        keys = draw_keys(rng, self.key_kind, self.keys + num_hay_needles)
        values = draw_keys(rng, self.value_kind, self.keys * self.values + num_hay_needles)
        values_by_key = {
            key: values[place * self.values :][: self.values] for place, key in enumerate(keys[: self.keys])
        }
        needles = [
            needle(key, value, self.value_kind) for key in values_by_key for value in values_by_key[key]
        ]
        rng.shuffle(needles)
        if num_hay_needles:
            pairs = zip(keys[-size:], values[-size:], strict=True)
            hay = [needle(key, value, self.value_kind) for key, value in pairs]
        else:
            hay = self._hay(size, sentences)
        context = (" " if self.hay == "essay" else "\n").join(
            insert(hay, needles, self._places(size, rng, len(needles), depth))
        )
        keys = rng.sample(list(values_by_key), self.queries)
        what = f"secret {self.value_kind}" + ("s" if self.queries * self.values > 1 else "")
        whose = _enumerate(keys)
        be = "are" if self.queries * self.values > 1 else "is"
        return Example(
            f"Secret {self.value_kind}s are hidden in the following text. Remember them, "
            "for you will be asked about them.",
            context,
            f"What {be} the {what} of {whose}, as told in the text?",
            f"As told in the text, the {what} of {whose} {be}",
            tuple(value for key in keys for value in values_by_key[key]),
            self.new_tokens,
        )

    def _hay(self, size: int, sentences: Sequence[str]) -> list[str]:
        if self.hay == "noise":
            return [NOISE] * size
        if not sentences:
            raise ValueError("hay='essay' needs sentences; give a text that is not empty")
        return list(itertools.islice(itertools.cycle(sentences), size))

    def _places(self, size: int, rng: random.Random, count: int, depth: float | None) -> list[int]:
        if depth is not None:
            return [round(size * depth / 100)] * count
        if self.hay == "essay":
            return [round(size * place / 100) for place in rng.sample(DEPTHS, count)]
        return [rng.randint(0, size) for _ in range(count)]


def needle(key: str, value: str, kind: Kind) -> str:
    """Return the sentence that states the value of a key."""
    return f"The secret {kind} of {key} is {value}."


def insert(hay: Sequence[str], needles: Sequence[str], places: Sequence[int]) -> list[str]:
    """Return the hay with needle i inserted before piece `places[i]` of the hay.

    Needles at the same place keep their order.
    """
    if any(place < 0 or place > len(hay) for place in places):
        raise ValueError(f"places={list(places)}: each must be from 0 to {len(hay)}")
    pieces, start = [], 0
    for place, sentence in sorted(zip(places, needles, strict=True), key=lambda pair: pair[0]):
        pieces += [*hay[start:place], sentence]
        start = place
    return [*pieces, *hay[start:]]


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, with line breaks replaced by spaces."""
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if sentence]


def draw_keys(rng: random.Random, kind: Kind, count: int) -> list[str]:
    """Return `count` different word pairs such as "amber-otter", numbers of seven digits, or UUIDs."""
    keys: dict[str, None] = {}
    while len(keys) < count:
        keys.setdefault(_draw(rng, kind))
    return list(keys)


@functools.cache
def words(part: Literal["adjective", "noun", "verb"]) -> tuple[str, ...]:
    """Return the sorted alphabetic words of a wonderwords list. Raises ImportError without wonderwords."""
    try:
        lists = importlib.resources.files("wonderwords.assets")
    except ModuleNotFoundError as error:
        raise ImportError(_INSTALL) from error
    lines = (lists / f"{part}list.txt").read_text().split("\n")
    return tuple(sorted({line.strip() for line in lines if line.strip().isalpha() and line.islower()}))


def _draw(rng: random.Random, kind: Kind) -> str:
    if kind == "word":
        return f"{rng.choice(words('adjective'))}-{rng.choice(words('noun'))}"
    if kind == "number":
        return str(rng.randint(1_000_000, 9_999_999))
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _enumerate(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
