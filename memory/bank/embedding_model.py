"""Embedding model of a bank: what a bank needs of it, whether it wrote the file, and which scripts it knows.

Two models may have the same dimension. A search that compares vectors of different models returns noise, but
raises no error. A file does not name its model. Therefore one text of the file is embedded again, and the new
vector is compared with the stored one.

A model also returns vectors for a language that it was not trained on. The cosines of a single query do not
reveal this. The model is therefore tested once per script, on twelve questions and answers that share no
words (`fluency.json`). An English model matches nearly all pairs in Latin script and none in Chinese.
"""

from __future__ import annotations

import collections
import functools
import json
import sqlite3
import unicodedata
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from scrubjay.memory.bank.file.damage import UnreadableError, read_fact, unpack_vectors
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.file.words import normalise
from scrubjay.memory.bank.title import text_to_embed

_MIN_COSINE = 0.9  # a 4-bit model and its 32-bit original reach 0.98
_MIN_FLUENCY = 0.02  # above 0, so that embeddings still break ties between equal keyword scores
_FILE = Path(__file__).with_name("fluency.json")


@runtime_checkable
class Embeddings(Protocol):
    """Embedding model; LangChain embeddings implement this protocol."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per text to store."""
        ...

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        ...


class VerifiedRecord(NamedTuple):
    """Record whose stored embedding was reproduced by the model."""

    number: int
    """Record number."""
    vector: bytes
    """Stored embedding. Number and embedding together identify a record, since a number may be reused after a
    rollback."""


def check_model(
    store: Store, embeddings: Embeddings, previous: VerifiedRecord | None = None
) -> VerifiedRecord | None:
    """Return a record whose stored embedding the model reproduces; None if the file has no embeddings.

    If `previous` is still in the file, it is returned without a check. Otherwise the text of the newest
    record with an embedding is embedded again. Raises ValueError if the file was written with another model.
    """
    with store.reading() as connection:
        if (
            previous
            and connection.execute(
                "SELECT 1 FROM vectors WHERE number = ? AND vector = ?", previous
            ).fetchone()
        ):
            return previous
        row = connection.execute(
            "SELECT number, text, provenance, vector FROM records JOIN vectors USING (number) "
            "WHERE number = (SELECT MAX(number) FROM vectors)"
        ).fetchone()
        dimension = read_dimension(connection)
        if row is None:
            return None
        number, text, provenance, stored_blob = row
        stored_vector = unpack_vectors([stored_blob], dimension)[0]
        if not isinstance(text, str):
            raise UnreadableError(f"record {number} has {text!r:.80} in place of a text")
    squared_distances: list[float] = []
    # Versions before 0.3.0 embedded the text without its title.
    for document in dict.fromkeys((text_to_embed(text, provenance), text)):
        (vector,) = normalize_vectors(embeddings.embed_documents([document]), 1)
        check_dimension(dimension, vector)
        # Compare by distance, since a text of unknown tokens may have a zero vector.
        squared_distances.append(float(np.sum((vector - stored_vector) ** 2)))
        if squared_distances[-1] <= 2 - 2 * _MIN_COSINE:
            return VerifiedRecord(number, stored_blob)
    raise ValueError(
        f"{store.path!r} was written with other embeddings: stored and new vectors of one text have a "
        f"cosine of {1 - min(squared_distances) / 2:.2f}; open it with its original embedding model, or copy "
        "its records with `export` and `restore` into a new bank, which embeds all texts again"
    )


def lacks_embeddings(connection: sqlite3.Connection) -> bool:
    """Return True if the oldest or the newest record has no embedding; no other record is checked."""
    row = connection.execute(
        "SELECT 1 FROM records WHERE number IN ((SELECT MIN(number) FROM records), (SELECT MAX(number) FROM "
        "records)) "
        "AND NOT EXISTS (SELECT 1 FROM vectors WHERE vectors.number = records.number)"
    ).fetchone()
    return row is not None


def check_dimension(dimension: int | None, vector: Float[np.ndarray, "D"]) -> None:
    """Raise ValueError if a vector's dimension differs from the bank's `dimension`; None skips the check."""
    if dimension is not None and dimension != len(vector):
        raise ValueError(
            f"the bank's embeddings have dimension {dimension}, the model's have {len(vector)}; "
            "open the bank with its original embedding model"
        )


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


def read_dimension(connection: sqlite3.Connection) -> int | None:
    """Return the dimension of the bank's embeddings, None if it has none."""
    return read_fact(connection, "dimension")


def normalize_vectors(vectors: list[list[float]], count: int) -> Float[np.ndarray, "count dimension"]:
    """Return embeddings normalized to length 1.

    Raises ValueError unless they are `count` finite vectors of one dimension.
    """
    if len(vectors) != count or len({len(vector) for vector in vectors}) != 1:
        raise ValueError(
            f"the embedding model returned {len(vectors)} vectors for {count} texts; it must return one "
            "vector per text, and all vectors must have the same dimension"
        )
    array = np.array(vectors, dtype=np.float32)
    if not np.isfinite(array).all():
        raise ValueError("an embedding contains NaN or infinity; check the embedding model")
    return array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
