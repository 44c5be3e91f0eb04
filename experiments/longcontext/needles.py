"""Needles in haystacks: facts hidden in a text that has nothing to do with them.

After RULER (Hsieh et al. 2024, arXiv 2404.06654) in its rules, not its words: a needle tells the value of a
key, keys are an adjective and a noun, values seven digits or a UUID; the hay is a novel's sentences, one
stock line again and again, or needles of other keys.
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
"""Where RULER hides needles in an essay, in percent of the text."""
_INSTALL = "the words come from wonderwords; install it with: pip install 'scrubjay[lm]'"


@dataclass(frozen=True)
class Needles:
    """How a task hides what and asks for how much of it. Raises ValueError on a task that cannot be."""

    hay: Hay = "essay"
    """Of what the text is."""
    keys: int = 1
    """Needles' different keys, distractors among them."""
    values: int = 1
    """Needles of each key, each with its own value."""
    queries: int = 1
    """Keys that are asked for, with all their values."""
    key_kind: Kind = "word"
    """What keys look like."""
    value_kind: Kind = "number"
    """What values look like."""
    new_tokens: int = 128
    """Tokens an answer may have."""

    def __post_init__(self) -> None:
        if min(self.keys, self.values, self.queries) < 1 or self.queries > self.keys:
            raise ValueError(
                f"keys={self.keys}, values={self.values}, queries={self.queries}: "
                "each is at least 1, and no more keys can be asked for than there are"
            )

    def build(
        self, size: int, rng: random.Random, sentences: Sequence[str] = (), depth: float | None = None
    ) -> Example:
        """Return the task in `size` sentences, or lines, of hay.

        `sentences` are an essay's, begun anew when they end. `depth`, in percent, is where the needle of a
        single value stands; by default each needle is at a random place. Raises ValueError if an essay has no
        sentences.
        """
        # Of one draw, so that no two keys and no two values are alike, those of the hay included.
        strangers = size if self.hay == "needles" else 0
        keys = draw_keys(rng, self.key_kind, self.keys + strangers)
        values = draw_keys(rng, self.value_kind, self.keys * self.values + strangers)
        told = {
            key: values[place * self.values :][: self.values] for place, key in enumerate(keys[: self.keys])
        }
        needles = [needle(key, value, self.value_kind) for key in told for value in told[key]]
        rng.shuffle(needles)
        if strangers:
            pairs = zip(keys[-size:], values[-size:], strict=True)
            hay = [needle(key, value, self.value_kind) for key, value in pairs]
        else:
            hay = self._hay(size, sentences)
        context = (" " if self.hay == "essay" else "\n").join(
            insert(hay, needles, self._places(size, rng, len(needles), depth))
        )
        keys = rng.sample(list(told), self.queries)
        what = f"secret {self.value_kind}" + ("s" if self.queries * self.values > 1 else "")
        whose = _enumerate(keys)
        be = "are" if self.queries * self.values > 1 else "is"
        return Example(
            f"Secret {self.value_kind}s are hidden in the following text. Remember them, "
            "for you will be asked about them.",
            context,
            f"What {be} the {what} of {whose}, as told in the text?",
            f"As told in the text, the {what} of {whose} {be}",
            tuple(value for key in keys for value in told[key]),
            self.new_tokens,
        )

    def _hay(self, size: int, sentences: Sequence[str]) -> list[str]:
        if self.hay == "noise":
            return [NOISE] * size
        if not sentences:
            raise ValueError("an essay needs sentences; give a text")
        return list(itertools.islice(itertools.cycle(sentences), size))

    def _places(self, size: int, rng: random.Random, count: int, depth: float | None) -> list[int]:
        if depth is not None:
            return [round(size * depth / 100)] * count
        if self.hay == "essay":
            return [round(size * place / 100) for place in rng.sample(DEPTHS, count)]
        return [rng.randint(0, size) for _ in range(count)]


def needle(key: str, value: str, kind: Kind) -> str:
    """Return the sentence that tells the value of a key."""
    return f"The secret {kind} of {key} is {value}."


def insert(hay: Sequence[str], needles: Sequence[str], places: Sequence[int]) -> list[str]:
    """Return the hay with each needle after as many pieces of hay as its place says.

    Those of one place stand in order.
    """
    if any(place < 0 or place > len(hay) for place in places):
        raise ValueError(f"places={list(places)}: the hay has places 0 to {len(hay)}")
    pieces, taken = [], 0
    for place, sentence in sorted(zip(places, needles, strict=True), key=lambda pair: pair[0]):
        pieces += [*hay[taken:place], sentence]
        taken = place
    return [*pieces, *hay[taken:]]


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, each with its line breaks as spaces."""
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if sentence]


def draw_keys(rng: random.Random, kind: Kind, count: int) -> list[str]:
    """Return `count` different words (as in "amber-otter"), numbers of seven digits, or UUIDs."""
    found: dict[str, None] = {}
    while len(found) < count:
        found.setdefault(_draw(rng, kind))
    return list(found)


@functools.cache
def words(part: Literal["adjective", "noun", "verb"]) -> tuple[str, ...]:
    """Return the plain words of wonderwords' list, sorted. Raises ImportError where it is not installed."""
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
