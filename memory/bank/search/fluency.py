"""How well embeddings know a script: whether they tell answers to twelve questions written in it apart.

A model that never saw a language gives its texts vectors all the same, as near and as far as those it
understands, and nothing in the cosines of one query says so. So they are tried once, on questions and answers
that share no word (`bank_fluency.json`): an English model finds nearly all pairs in Latin letters and none in
Chinese.
"""

from __future__ import annotations

import collections
import functools
import json
import unicodedata
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from scrubjay.memory.bank.file.words import normalise
from scrubjay.memory.bank.search.dense import unit_vectors

_LEAST = 0.02  # With it they still order what words leave equal.
_FILE = Path(__file__).with_suffix(".json")


@runtime_checkable
class Embeddings(Protocol):
    """What turns texts into vectors; any langchain embeddings do."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector per text to remember."""
        ...

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a question."""
        ...


def script_of(text: str) -> str:
    """Return the script of most letters by its Unicode name, lower-cased.

    Where there is any kana, "hiragana".
    """
    found = collections.Counter(_script(letter) for letter in normalise(text) if letter.isalpha())
    if found["hiragana"]:
        return "hiragana"
    return max(found, key=found.__getitem__, default="latin")


def fluency(embeddings: Embeddings, script: str) -> float:
    """Return how well the embeddings know a script, from 0.02 to 1.

    1 where there are no questions to try them on.

    It is twice the probability by which a question's answer is nearer than another's, less one (the area
    under the receiver's curve, scaled so that chance is 0). One call embeds all 24 texts. Raises ValueError
    on embeddings that are none.
    """
    pairs = question_pairs().get(script)
    if pairs is None:
        return 1.0
    texts = [text for pair in pairs for text in pair]
    vectors = unit_vectors(embeddings.embed_documents(texts), len(texts))
    cosines = vectors[::2] @ vectors[1::2].T
    right = np.diag(cosines)
    others = ~np.eye(len(pairs), dtype=bool)
    nearer = np.mean([(right[:, None] > cosines)[others], (right[None, :] > cosines)[others]])
    return max(_LEAST, 2 * float(nearer) - 1)


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").partition(" ")[0].lower()
    return "hiragana" if name.startswith("katakana") else name


@functools.cache
def question_pairs() -> dict[str, list[list[str]]]:
    """Return twelve questions and their answers by script."""
    return json.loads(_FILE.read_text(encoding="utf-8"))
