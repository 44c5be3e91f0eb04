"""One bank, one model: whether embeddings are those that a file was written with.

Two models may give as many numbers, and what one wrote is noise to the other, which no search would tell. A
file does not name its model, so one of its texts is embedded anew and compared with what is stored beside it.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from scrubjay.memory.bank.file.damage import Unreadable, unpacked
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.search.dense import stored_dimension, unit_vectors
from scrubjay.memory.bank.search.fluency import Embeddings

_LEAST_COSINE = 0.9  # a model at 4 bits and the same one at 32 are 0.98 alike


class Known(NamedTuple):
    """A record whose stored embedding a model was seen to give."""

    number: int
    """Its number."""
    vector: bytes
    """What is stored, as numbers are given again after a transaction that was rolled back."""


def check_model(store: Store, embeddings: Embeddings, known: Known | None = None) -> Known | None:
    """Return the record by which a model is known to be a file's, None if that has no embeddings.

    While what is `known` from before is there, that is enough; else the text of the newest record with an
    embedding is embedded. Raises ValueError if those stored are of another model.
    """
    with store.reading() as connection:
        if (
            known
            and connection.execute("SELECT 1 FROM vectors WHERE number = ? AND vector = ?", known).fetchone()
        ):
            return known
        row = connection.execute(
            "SELECT number, text, vector FROM records JOIN vectors USING (number) "
            "WHERE number = (SELECT MAX(number) FROM vectors)"
        ).fetchone()
        dimension = stored_dimension(connection)
        if row is None:
            return None
        number, text, blob = row
        stored = unpacked([blob], dimension)[0]
        if not isinstance(text, str):
            raise Unreadable(f"record {number} has no text but {text!r:.80}")
    (vector,) = unit_vectors(embeddings.embed_documents([text]), 1)
    check_dimension(dimension, vector)
    # By their distance, as a text of which a model knows nothing may have a vector of length 0.
    apart = float(np.sum((vector - stored) ** 2))
    if apart > 2 - 2 * _LEAST_COSINE:
        raise ValueError(
            f"{store.path!r} was written with other embeddings: those stored and these have a cosine of "
            f"{1 - apart / 2:.2f} on one text; open it with the embeddings it was written with, or export "
            "it and restore "
            "that into a new bank, which embeds all anew"
        )
    return Known(number, blob)


def lacks_embeddings(connection: sqlite3.Connection) -> bool:
    """Return whether the oldest or the newest record has no embedding.

    No other is looked at, however many there are.
    """
    row = connection.execute(
        "SELECT 1 FROM records WHERE number IN ((SELECT MIN(number) FROM records), (SELECT MAX(number) FROM "
        "records)) "
        "AND NOT EXISTS (SELECT 1 FROM vectors WHERE vectors.number = records.number)"
    ).fetchone()
    return row is not None


def check_dimension(dimension: int | None, vector: Float[np.ndarray, "D"]) -> None:
    """Raise ValueError unless a vector has as many numbers as a bank's embeddings, where there are some."""
    if dimension is not None and dimension != len(vector):
        raise ValueError(
            f"the bank's embeddings have {dimension} numbers, these give {len(vector)}; "
            "open it with the embeddings it was written with"
        )
