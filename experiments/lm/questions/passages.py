"""Long texts with several questions each: facts in a novel, variables in noise, and a list of words.

All questions about one text have the same words before them, so a model can read the text once for all of
them. The facts are of four kinds: a number, a person, a place and a color. Each is one sentence in the novel,
at a random place, and the sentence after it has nothing to do with it. Needles of RULER stand in the same
text. Two facts of each kind and two needles differ in their name and answer. The two other texts are RULER's
variable tracking and common words.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from scrubjay.experiments.lm.needles import Example, draw_keys, fit, insert, needle
from scrubjay.experiments.lm.reading import tokenize
from scrubjay.experiments.lm.ruler import make_example

FACTS = "facts"
"""Passage with facts and needles."""
PASSAGES = (FACTS, "variable_tracking", "common_words")
"""Kinds of passages; the last two have one question each."""

_INSTRUCTION = "Read the following text. You will be asked about it."
_FACT_TOKENS, _NEEDLE_TOKENS = 8, 12
_PER_KIND = 2
_SURNAMES = (
    "Abernathy",
    "Blackwood",
    "Castellane",
    "Dunmore",
    "Eversley",
    "Farnsworth",
    "Galbraith",
    "Hathersage",
    "Inverness",
    "Jellicoe",
    "Kingsmill",
    "Lockridge",
    "Merriweather",
    "Netherby",
    "Oakhurst",
    "Pendleton",
    "Quillfeather",
    "Ravenscroft",
    "Silverton",
    "Thistlewood",
    "Underhill",
    "Vandermeer",
    "Wetherby",
    "Yarborough",
)
_FIRST_NAMES = (
    "Barnaby",
    "Clarissa",
    "Desmond",
    "Eudora",
    "Florian",
    "Gwendolen",
    "Horatio",
    "Isolde",
    "Jasper",
    "Leopold",
    "Minerva",
    "Octavia",
    "Percival",
    "Rosalind",
    "Sebastian",
    "Theodora",
    "Ulysses",
    "Winifred",
)
_PLACES = (
    "attic",
    "cellar",
    "barn",
    "chapel",
    "dairy",
    "greenhouse",
    "kitchen",
    "laundry",
    "nursery",
    "orchard",
    "pantry",
    "stable",
    "tower",
    "wardrobe",
)
_COLORS = (
    "black",
    "blue",
    "brown",
    "crimson",
    "gray",
    "green",
    "orange",
    "pink",
    "purple",
    "scarlet",
    "silver",
    "violet",
    "white",
    "yellow",
)


class _Fact(NamedTuple):
    """Sentence, question and possible values of one kind of fact."""

    sentence: str
    question: str
    values: Sequence[str]


_FACTS = {
    "number": _Fact(
        "The house of Mr. {name} has exactly {value} windows.",
        "How many windows does the house of Mr. {name} have?",
        tuple(map(str, range(101, 1000))),
    ),
    "person": _Fact(
        "The gray horse of Mrs. {name} was bought by {value}.",
        "Who bought the gray horse of Mrs. {name}?",
        _FIRST_NAMES,
    ),
    "place": _Fact(
        "The letters of Captain {name} are hidden in the {value}.",
        "Where are the letters of Captain {name} hidden?",
        _PLACES,
    ),
    "color": _Fact(
        "The best coat of Miss {name} is lined with silk that is {value}.",
        "What is the color of the silk in the best coat of Miss {name}?",
        _COLORS,
    ),
}
"""Kinds of facts."""
KINDS = (*_FACTS, "needle", *PASSAGES[1:])
"""Kinds of questions."""


def count_questions(kind: str) -> int:
    """Return the number of questions about a passage of this kind."""
    return _PER_KIND * (len(_FACTS) + 1) if kind == FACTS else 1


@dataclass(frozen=True)
class Passage:
    """A text and the questions about it."""

    kind: str
    """One of `PASSAGES`."""
    questions: tuple[tuple[str, Example], ...]
    """Kind of each question, and the question; all have the same instruction and context."""


def make_passage(
    kind: str, length: int, count: Callable[[Example], int], sentences: Sequence[str], seed: int | str
) -> Passage:
    """Return a passage that has at most `length` tokens with each of its questions and answers.

    Args:
        kind: One of `PASSAGES`.
        length: Largest number of tokens.
        count: Function that returns the number of tokens of an example.
        sentences: Sentences of a novel, of which each seed reads another part.
        seed: Equal seeds give equal passages.

    Raises:
        ValueError: If `length` is too short, or if the kind is unknown.
    """
    if kind != FACTS:
        if kind not in PASSAGES:
            raise ValueError(f"unknown passage {kind!r}; choose from {', '.join(PASSAGES)}")
        return Passage(kind, ((kind, make_example(kind, length, count, sentences, seed)),))
    rng = random.Random(seed)
    questions, statements = _make_questions(rng)
    first, order = rng.randrange(len(sentences)), rng.random()

    def build(size: int, question: Example) -> Example:
        hay = [sentences[(first + index) % len(sentences)] for index in range(size)]
        places = random.Random(order)
        context = " ".join(insert(hay, statements, [places.randint(0, size) for _ in statements]))
        return dataclasses.replace(question, context=context)

    # The longest question decides, so that all questions have the same text.
    longest = max((question for _, question in questions), key=lambda question: count(build(1, question)))
    context = fit(lambda size: build(size, longest), length, count).context
    return Passage(
        kind, tuple((name, dataclasses.replace(question, context=context)) for name, question in questions)
    )


def split_prompt(tokenizer: Any, example: Example) -> tuple[Int[Tensor, " text"], Int[Tensor, " question"]]:
    """Return the tokens of a rendered prompt before its question, and the tokens from the question on."""
    prompt = example.render(tokenizer)
    place = prompt.rindex(example.question)
    question = tokenizer(prompt[place:], add_special_tokens=False, verbose=False)["input_ids"]
    return tokenize(tokenizer, prompt[:place]), torch.tensor(question)


def _make_questions(rng: random.Random) -> tuple[list[tuple[str, Example]], list[str]]:
    """Return the kinds and questions of a text of facts, without the text, and the statements."""
    questions, statements = [], []

    def add(kind: str, statement: str, question: str, prefix: str, value: str, tokens: int) -> None:
        statements.append(statement)
        questions.append((kind, Example(_INSTRUCTION, "", question, prefix, (value,), tokens)))

    names = iter(rng.sample(_SURNAMES, _PER_KIND * len(_FACTS)))
    for kind, fact in _FACTS.items():
        for value, name in zip(rng.sample(fact.values, _PER_KIND), names, strict=False):
            sentence = fact.sentence.format(name=name, value=value)
            prefix = fact.sentence.format(name=name, value="\0").partition("\0")[0].rstrip()
            add(kind, sentence, fact.question.format(name=name), prefix, value, _FACT_TOKENS)
    keys, values = draw_keys(rng, "word", _PER_KIND), draw_keys(rng, "number", _PER_KIND)
    for key, value in zip(keys, values, strict=True):
        question, prefix = f"What is the secret number of {key}?", f"The secret number of {key} is"
        add("needle", needle(key, value, "number"), question, prefix, value, _NEEDLE_TOKENS)
    return questions, statements
