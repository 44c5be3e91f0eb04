"""Check that a bank's file was written with the embedding model that opens it.

Two models may have the same dimension. A search that compares vectors of different models returns noise, but
raises no error. A file does not name its model. Therefore one text of the file is embedded again, and the new
vector is compared with the stored one.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from scrubjay.memory.bank.file.damage import UnreadableError, unpack_vectors
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.search.dense import normalize_vectors, read_dimension
from scrubjay.memory.bank.search.fluency import Embeddings

_MIN_COSINE = 0.9  # a 4-bit model and its 32-bit original reach 0.98


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
            "SELECT number, text, vector FROM records JOIN vectors USING (number) "
            "WHERE number = (SELECT MAX(number) FROM vectors)"
        ).fetchone()
        dimension = read_dimension(connection)
        if row is None:
            return None
        number, text, stored_blob = row
        stored_vector = unpack_vectors([stored_blob], dimension)[0]
        if not isinstance(text, str):
            raise UnreadableError(f"record {number} has {text!r:.80} in place of a text")
    (vector,) = normalize_vectors(embeddings.embed_documents([text]), 1)
    check_dimension(dimension, vector)
    # Compare by distance, since a text of unknown tokens may have a zero vector.
    squared_distance = float(np.sum((vector - stored_vector) ** 2))
    if squared_distance > 2 - 2 * _MIN_COSINE:
        raise ValueError(
            f"{store.path!r} was written with other embeddings: stored and new vectors of one text have a "
            f"cosine of {1 - squared_distance / 2:.2f}; open it with its original embedding model, or copy "
            "its records with `export` and `restore` into a new bank, which embeds all texts again"
        )
    return VerifiedRecord(number, stored_blob)


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
