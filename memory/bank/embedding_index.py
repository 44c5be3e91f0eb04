"""Embeddings of a bank: the embedding model, an index of stored vectors, and an optional neural memory."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from scrubjay.memory.bank.embedding_model import (
    Embeddings,
    VerifiedRecord,
    check_dimension,
    check_model,
    fluency,
    normalize_vectors,
    question_pairs,
    read_dimension,
    script_of,
)
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.record import Draft
from scrubjay.memory.bank.search.approximate import ApproximateIndex
from scrubjay.memory.bank.search.candidates import Filter
from scrubjay.memory.bank.search.completeness import find_lost_vectors
from scrubjay.memory.bank.search.dense import Scan, ScopePredicate, VectorIndex
from scrubjay.memory.bank.search.quantized import QuantizedIndex
from scrubjay.memory.bank.search.relevance import QuestionLevel, question_level
from scrubjay.memory.bank.search.segments import require_usearch
from scrubjay.memory.bank.title import text_to_embed
from scrubjay.memory.parts.device import resolve_device

if TYPE_CHECKING:
    import torch

    from scrubjay.memory.bank.surprise import Surprise, SurpriseConfig

_MAX_LEVELS = 1000  # levels of questions, one per owner
_BATCH = 500  # lost embeddings to compute at a time


class EmbeddingIndex:
    """Embedding model of a bank, with an index of the stored vectors and an optional neural memory.

    Args: as for `MemoryBank`; `device` is the result of `check_options`.
    """

    def __init__(
        self,
        store: Store,
        embeddings: Embeddings,
        surprise: SurpriseConfig | None,
        device: torch.device | None,
        approximate: bool,
    ) -> None:
        self._store, self._embeddings = store, embeddings
        self._approximate = approximate
        self._device = device
        self._fluencies: dict[str, float] = {}
        self._questions: dict[str, Float[np.ndarray, "Q D"]] = {}
        self._levels: dict[tuple[object, ...], tuple[int, QuestionLevel]] = {}
        self._verified_record: VerifiedRecord | None = None
        self._index: VectorIndex | QuantizedIndex | ApproximateIndex | None = None
        self._surprise_config = surprise
        self._surprise: Surprise | None = None
        self._has_complete_vectors = False

    def embed_texts(self, texts: list[str]) -> list[Float[np.ndarray, "D"]]:
        """Return the unit vectors of texts to store."""
        if not texts:
            return []
        self.check_model()
        return list(normalize_vectors(self._embeddings.embed_documents(texts), len(texts)))

    def embed_drafts(self, drafts: list[Draft]) -> list[Draft]:
        """Return the drafts with their vectors; an importance from surprise replaces an importance of 0.5.

        Without a neural memory, or if its config disables `importance`, the importance stays unchanged.
        """
        vectors = self.embed_texts([text_to_embed(draft.text, draft.provenance) for draft in drafts])
        drafts = [draft._replace(vector=vector) for draft, vector in zip(drafts, vectors, strict=True)]
        surprise = self._get_surprise(len(vectors[0])) if vectors else None
        return drafts if surprise is None else surprise.add_importance(drafts)

    def embed_query(self, text: str, alone: bool = False) -> Float[np.ndarray, "D"]:
        """Return the unit vector of a query, and build missing parts of the index.

        If the bank has a neural memory, its output is added to the vector unless `alone` is True.
        """
        if self._verified_record is None:
            self.check_model()  # outside a transaction, as embedding is slow; `scan` repeats it
        vector = normalize_vectors([self._embeddings.embed_query(text)], 1)[0]
        self._restore_vectors()
        surprise = None if alone else self._get_surprise(len(vector))
        if surprise is not None and surprise.config.recall_weight:
            vector = surprise.blend_recall(vector)
        for _ in self.build_index(must_write=False):
            pass
        return vector

    def fluency(self, text: str) -> float:
        """Return how well the embedding model knows the script of a text, from 0.02 (not at all) to 1."""
        script = script_of(text)
        if script not in self._fluencies:
            self._fluencies[script] = fluency(self._embeddings, script)
        return self._fluencies[script]

    def scan(
        self, connection: sqlite3.Connection, vector: Float[np.ndarray, "D"], allows: ScopePredicate
    ) -> Scan:
        """Return the similarities to a query vector, for records in `connection` that `allows` accepts."""
        check_dimension(read_dimension(connection), vector)
        self.check_model()  # again: another process may have replaced all embeddings since
        index = self._get_index(len(vector))
        self._store.on_rollback(self._clear_cache)
        index.refresh(connection)
        return index.scan(vector, allows)

    def embed_questions(self, query: str) -> Float[np.ndarray, "Q D"]:
        """Return the vectors of questions in the query's script, for `question_level`; slow at first."""
        script = script_of(query)
        script = script if script in question_pairs() else "latin"
        if script not in self._questions:
            vectors = [self._embeddings.embed_query(question) for question, _ in question_pairs()[script]]
            self._questions[script] = normalize_vectors(vectors, len(vectors))
        return self._questions[script]

    def question_level(
        self, questions: Float[np.ndarray, "Q D"], filter: Filter, count: int
    ) -> QuestionLevel:
        """Return the level of cosines of questions that the records do not answer.

        It is computed again when the number of accepted records, `count`, has changed by more than a
        twentieth. Call this method after `scan`, in the same transaction.
        """
        key = (id(questions), filter.namespace, filter.kinds)
        old_count, level = self._levels.get(key, (-1, QuestionLevel(0.0, 1.0)))
        if abs(count - old_count) > count / 20 or old_count < 0:
            index = self._get_index(questions.shape[1])
            level = question_level(index.scan(vector, filter.allows) for vector in questions)
            if len(self._levels) >= _MAX_LEVELS:
                self._levels.clear()
            self._levels[key] = (count, level)
        return level

    def build_index(self, must_write: bool = True) -> Iterator[tuple[int, int]]:
        """Build the missing segments of an approximate index, or the missing blocks of quantized embeddings.

        Yield a pair after each segment: the last indexed record number and the highest record number. If
        `must_write` is False, blocks that cannot be written at once are left out.
        """
        if self._device is None:
            with self._store.reading() as connection:
                dimension = read_dimension(connection)
                index = None if dimension is None else self._get_index(dimension)
            if isinstance(index, QuantizedIndex):
                yield from index.catch_up(must_write)
            elif isinstance(index, ApproximateIndex):
                yield from index.catch_up()

    def note_dimension(self, connection: sqlite3.Connection, vector: Float[np.ndarray, "D"]) -> None:
        """Store the embedding dimension in the file. Raises ValueError if the file has another dimension."""
        check_dimension(read_dimension(connection), vector)
        # Cheap here: the model was checked before the transaction, unless all embeddings of the file are
        # newer.
        self.check_model()
        connection.execute("UPDATE facts SET value = ? WHERE name = 'dimension'", (len(vector),))

    def _restore_vectors(self) -> None:
        """Compute lost embeddings of the file again, and warn. Embeddings are looked for once per index."""
        if self._has_complete_vectors:
            return
        with self._store.reading() as connection:
            lost_records = find_lost_vectors(connection)
        if lost_records:
            warnings.warn(
                f"{self._store.path!r} has lost {len(lost_records)} embeddings, by damage or by another "
                "program; computing them again",
                stacklevel=4,
            )
        for first in range(0, len(lost_records), _BATCH):
            numbers, texts, provenances = zip(*lost_records[first : first + _BATCH], strict=True)
            vectors = self.embed_texts(list(map(text_to_embed, texts, provenances)))
            with self._store.writing() as connection:
                check_dimension(read_dimension(connection), vectors[0])
                connection.executemany(
                    "INSERT OR IGNORE INTO vectors SELECT number, ? FROM records WHERE number = ?",
                    [(vector.tobytes(), number) for vector, number in zip(vectors, numbers, strict=True)],
                )
        if lost_records:  # otherwise the index that another thread has just built would be lost
            self._clear_cache()
        self._has_complete_vectors = True

    def check_model(self) -> None:
        """Raise ValueError if the file was written with another embedding model."""
        self._verified_record = check_model(self._store, self._embeddings, self._verified_record)

    def _get_surprise(self, dimension: int) -> Surprise | None:
        if self._surprise_config is not None and self._surprise is None:
            from scrubjay.memory.bank.surprise import Surprise  # imports torch

            self._surprise = Surprise(self._store, self._surprise_config, dimension)
        self._store.on_rollback(self._clear_cache)
        return self._surprise

    def _get_index(self, dimension: int) -> VectorIndex | QuantizedIndex | ApproximateIndex:
        """Return the index that all threads share.

        Call this method inside a transaction, since only one thread at a time has a transaction.
        """
        if self._index is None:
            if self._approximate:
                self._index = ApproximateIndex(self._store, dimension)
            elif self._device is None:
                self._index = QuantizedIndex(self._store, dimension)
            else:
                self._index = VectorIndex(dimension, self._device)
        return self._index

    def _clear_cache(self) -> None:
        self._index = self._surprise = None
        self._levels.clear()


def check_options(
    path: str | Path,
    embeddings: Embeddings | None,
    surprise: SurpriseConfig | None,
    device: str | None,
    approximate: bool,
    foreign: bool = False,
) -> torch.device | None:
    """Check that a bank's options are compatible; return the torch device of its embeddings, None for NumPy.

    Raises ValueError if options exclude each other or the device is unavailable, TypeError if `embeddings` is
    not an embedding model, and ModuleNotFoundError if `approximate` is set and usearch is not installed.

    Args: as for `MemoryBank`.
    """
    if embeddings is not None and not isinstance(embeddings, Embeddings):
        raise TypeError(
            f"embeddings={embeddings!r}: pass an object with embed_documents and embed_query, such as "
            "MiniLMEmbeddings()"
        )
    if surprise is not None and embeddings is None:
        raise ValueError(f"surprise={surprise}: needs embeddings; pass an embedding model")
    if device is not None and embeddings is None:
        raise ValueError(f"device={device!r}: needs embeddings; pass an embedding model")
    if approximate:
        if foreign:
            raise ValueError(
                "approximate=True with foreign=True: a hostile index file can crash the process; omit "
                "approximate, or copy the records with `export` and `restore` into a bank of your own"
            )
        if embeddings is None or device is not None or str(path) in ("", ":memory:"):
            raise ValueError(
                f"approximate=True with embeddings={embeddings!r}, device={device!r}, path={str(path)!r}: "
                "approximate search needs embeddings and a file path, and does not support device; change "
                "these options, or omit approximate"
            )
        require_usearch()
    return None if device is None else resolve_device(device, "hold embeddings")
