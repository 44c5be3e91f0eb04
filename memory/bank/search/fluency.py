"""Fluency of an embedding model in a script, measured on twelve questions and answers in that script.

A model also returns vectors for a language that it was not trained on. The cosines of a single query do not
reveal this. The model is therefore tested once per script, on questions and answers that share no words
(`fluency.json`). An English model matches nearly all pairs in Latin script and none in Chinese.
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
from scrubjay.memory.bank.search.dense import normalize_vectors

_MIN_FLUENCY = 0.02  # above 0, so that embeddings still break ties between equal keyword scores
_FILE = Path(__file__).with_suffix(".json")


@runtime_checkable
class Embeddings(Protocol):
    """Embedding model; LangChain embeddings implement this protocol."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per text to store."""
        ...

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        ...


def script_of(text: str) -> str:
    """Return the most frequent script as a lower-cased Unicode name; "hiragana" if the text has any kana."""
    counts = collections.Counter(_script(letter) for letter in normalise(text) if letter.isalpha())
    if counts["hiragana"]:
        return "hiragana"
    return max(counts, key=counts.__getitem__, default="latin")


def fluency(embeddings: Embeddings, script: str) -> float:
    """Return the fluency of an embedding model in a script, from 0.02 to 1; 1 if there are no test questions.

    Fluency is 2p - 1, which is 0 for chance. p is the probability that a question and its own answer are
    nearer than a wrong pair that shares one of the two texts (area under the ROC curve). One call embeds all
    24 texts. Raises ValueError on invalid vectors.
    """
    pairs = question_pairs().get(script)
    if pairs is None:
        return 1.0
    texts = [text for pair in pairs for text in pair]
    vectors = normalize_vectors(embeddings.embed_documents(texts), len(texts))
    cosines = vectors[::2] @ vectors[1::2].T
    right = np.diag(cosines)
    others = ~np.eye(len(pairs), dtype=bool)
    nearer = np.mean([(right[:, None] > cosines)[others], (right[None, :] > cosines)[others]])
    return max(_MIN_FLUENCY, 2 * float(nearer) - 1)


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "").partition(" ")[0].lower()
    return "hiragana" if name.startswith("katakana") else name


@functools.cache
def question_pairs() -> dict[str, list[list[str]]]:
    """Return twelve pairs of question and answer for each writing system, such as "latin"."""
    return json.loads(_FILE.read_text(encoding="utf-8"))
