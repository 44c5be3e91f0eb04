"""Questions about long texts. Needles in haystacks are facts hidden in a text about something else.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scrubjay.memory.context.foreign.rendering import render_chat
from scrubjay.memory.context.quotes import ControlTokens, Quotes, select_template

SLACK = 200
"""The search for a size stops when less than 1/200 of the length is unused."""


@dataclass(frozen=True)
class Example:
    """A text to remember, a question about it, and what an answer must contain."""

    instruction: str
    """Instruction before the text."""
    context: str
    """Text that contains the answer."""
    question: str
    """Question after the text."""
    answer_prefix: str
    """Beginning of the answer, appended to the prompt."""
    references: tuple[str, ...]
    """Strings, all of which a correct answer contains."""
    new_tokens: int
    """Maximum number of tokens of the answer."""

    @property
    def prompt(self) -> str:
        """Full user message."""
        return f"{self.instruction}\n\n{self.context}\n\n{self.question}"

    def render(self, tokenizer: Any) -> str:
        """Return the prompt in the tokenizer's chat template, followed by the answer prefix.

        Without a chat template, both are plain text. Control tokens in both are escaped.
        """
        template = select_template(tokenizer)
        quotes = Quotes(ControlTokens(tokenizer), template or "")
        prompt, prefix = quotes.quote(self.prompt), quotes.quote(self.answer_prefix)
        if template is None:
            return quotes.to_prompt(f"{prompt}\n{prefix}")
        turn = [{"role": "user", "content": prompt}]
        return quotes.to_prompt(render_chat(tokenizer, template, turn, add_generation_prompt=True) + prefix)


def token_counter(tokenizer: Any) -> Callable[[Example], int]:
    """Return a function that counts an example's tokens: the rendered prompt plus `new_tokens`."""

    def count(example: Example) -> int:
        return len(tokenizer(example.render(tokenizer), verbose=False)["input_ids"]) + example.new_tokens

    return count


def fit(build: Callable[[int], Example], length: int, count: Callable[[Example], int]) -> Example:
    """Return the largest example that fits: `build(size)` with the largest size whose `count` is <= `length`.

    Sizes start at 1. The search may stop at a smaller size once less than 1/200 of the length is unused.
    Raises ValueError if the example of size 1 does not fit.
    """
    size, example = 1, build(1)
    used = count(example)
    if used > length:
        raise ValueError(f"length={length}: must be at least {used} tokens, the shortest example")
    too_large = None
    while length - used > length // SLACK and (too_large is None or too_large - size > 1):
        # The fixed overhead of an example makes this guess too small; each following guess is better.
        guess = size + max(1, (length - used) * size // used)
        if too_large is not None and guess >= too_large:
            guess = (size + too_large) // 2
        candidate = build(guess)
        candidate_tokens = count(candidate)
        if candidate_tokens <= length:
            size, example, used = guess, candidate, candidate_tokens
        else:
            too_large = guess
    return example


def string_match_all(answer: str, references: Sequence[str]) -> float:
    """Return the fraction of `references` that `answer` contains, ignoring case.

    This is RULER's metric (Hsieh et al. 2024, arXiv 2404.06654). Additional text never lowers the
    score.
    """
    if not references:
        raise ValueError("references is empty; pass at least one string")
    return sum(reference.lower() in answer.lower() for reference in references) / len(references)


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
        elif self.hay == "noise":
            hay = [NOISE] * size
        elif sentences:
            hay = list(itertools.islice(itertools.cycle(sentences), size))
        else:
            raise ValueError("hay='essay' needs sentences; give a text that is not empty")
        if depth is not None:
            places = [round(size * depth / 100)] * len(needles)
        elif self.hay == "essay":
            places = [round(size * place / 100) for place in rng.sample(DEPTHS, len(needles))]
        else:
            places = [rng.randint(0, size) for _ in needles]
        context = (" " if self.hay == "essay" else "\n").join(insert(hay, needles, places))
        keys = rng.sample(list(values_by_key), self.queries)
        what = f"secret {self.value_kind}" + ("s" if self.queries * self.values > 1 else "")
        whose = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
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
