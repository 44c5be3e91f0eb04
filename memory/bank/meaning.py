"""What a bank knows by embeddings: vectors of texts, an index of those in its file, a memory of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.model import Known, check_dimension, check_model
from scrubjay.memory.bank.search.approximate import ApproximateIndex
from scrubjay.memory.bank.search.dense import (
    Allows,
    DenseIndex,
    Scan,
    VectorIndex,
    stored_dimension,
    unit_vectors,
)
from scrubjay.memory.bank.search.fluency import Embeddings, fluency, script_of
from scrubjay.memory.bank.search.segments import require_usearch
from scrubjay.memory.bank.write import Draft
from scrubjay.memory.parts.device import usable_device

if TYPE_CHECKING:
    import torch

    from scrubjay.memory.bank.surprise import Surprise, SurpriseConfig


class Meaning:
    """Embeddings of a bank's file, and all that is kept in memory of them.

    Args: those of `MemoryBank`, after `check_options`, which gives the device.
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
        self._known: Known | None = None
        self._index: DenseIndex | None = None
        self._surprise_config = surprise
        self._surprise: Surprise | None = None

    def embedded(self, texts: list[str]) -> list[Float[np.ndarray, "D"]]:
        """Return the vectors of texts to remember, of length 1."""
        if not texts:
            return []
        self.check_model()
        return list(unit_vectors(self._embeddings.embed_documents(texts), len(texts)))

    def judged(self, drafts: list[Draft]) -> list[Draft]:
        """Return the drafts, which have vectors, with how surprising they are, where that is asked for."""
        vector = drafts[0].vector if drafts else None
        surprise = None if vector is None else self._surprised(len(vector))
        return drafts if surprise is None else surprise.judged(drafts)

    def query(self, text: str, alone: bool = False) -> Float[np.ndarray, "D"]:
        """Return the vector to search with; after it there is all that it is compared with.

        That of the text `alone`, or with what a neural memory gives back to it, where that is asked for.
        """
        if self._known is None:
            self.check_model()  # here, where a model may take its time: `scan` asks again
        vector = unit_vectors([self._embeddings.embed_query(text)], 1)[0]
        surprise = None if alone else self._surprised(len(vector))
        if surprise is not None and surprise.config.recall_weight:
            vector = surprise.recalled(vector)
        for _ in self.build_index():
            pass
        return vector

    def fluency(self, text: str) -> float:
        """Return how well the embeddings know the script of a text, from 0.02 to 1."""
        script = script_of(text)
        if script not in self._fluencies:
            self._fluencies[script] = fluency(self._embeddings, script)
        return self._fluencies[script]

    def scan(self, connection: sqlite3.Connection, vector: Float[np.ndarray, "D"], allows: Allows) -> Scan:
        """Return how near all records that the connection sees are, those that may be found."""
        check_dimension(stored_dimension(connection), vector)
        self.check_model()  # again, as others may have begun the file anew since
        index = self._kept_index(len(vector))
        self._store.if_undone(self._drop_kept)
        index.refresh(connection)
        return index.scan(vector, allows)

    def build_index(self) -> Iterator[tuple[int, int]]:
        """Build what an approximate index lacks, and yield how many records are in it, of how many."""
        if self._approximate:
            with self._store.reading() as connection:
                dimension = stored_dimension(connection)
                index = None if dimension is None else self._kept_index(dimension)
            if isinstance(index, ApproximateIndex):
                yield from index.catch_up()

    def note_dimension(self, connection: sqlite3.Connection, vector: Float[np.ndarray, "D"]) -> None:
        """Note in the file how long its vectors are. Raises ValueError if it has others."""
        check_dimension(stored_dimension(connection), vector)
        # Known before others had to wait, unless the file's embeddings are all newer than that.
        self.check_model()
        connection.execute("UPDATE facts SET value = ? WHERE name = 'dimension'", (len(vector),))

    def check_model(self) -> None:
        """Raise ValueError if the file was written with other embeddings."""
        self._known = check_model(self._store, self._embeddings, self._known)

    def _surprised(self, dimension: int) -> Surprise | None:
        if self._surprise_config is not None and self._surprise is None:
            from scrubjay.memory.bank.surprise import Surprise  # it brings torch along

            self._surprise = Surprise(self._store, self._surprise_config, dimension)
        self._store.if_undone(self._drop_kept)
        return self._surprise

    def _kept_index(self, dimension: int) -> DenseIndex:
        """Return the one index of all threads; inside a transaction, as two might make one each."""
        if self._index is None:
            if self._approximate:
                self._index = ApproximateIndex(self._store, dimension)
            else:
                self._index = VectorIndex(dimension, self._device)
        return self._index

    def _drop_kept(self) -> None:
        self._index = self._surprise = None


def check_options(
    path: str | Path,
    embeddings: Embeddings | None,
    surprise: SurpriseConfig | None,
    device: str | None,
    approximate: bool,
) -> torch.device | None:
    """Return where torch is to hold embeddings, None for nowhere, if a bank's options go together.

    Raises ValueError if they do not or the device is not there, TypeError on what are no embeddings, and
    ModuleNotFoundError without usearch.

    Args: those of `MemoryBank`.
    """
    if embeddings is not None and not isinstance(embeddings, Embeddings):
        raise TypeError(
            f"embeddings={embeddings!r}: pass an object with embed_documents and embed_query, such as "
            "MiniLMEmbeddings()"
        )
    if surprise is not None and embeddings is None:
        raise ValueError(f"surprise={surprise}: it is found in embeddings; pass some")
    if device is not None and embeddings is None:
        raise ValueError(f"device={device!r}: it is to hold embeddings; pass some")
    if approximate:
        if embeddings is None or device is not None or str(path) in ("", ":memory:"):
            raise ValueError(
                f"approximate=True with embeddings={embeddings!r}, device={device!r}, path={str(path)!r}: "
                "it needs embeddings and a file, and holds nothing on a device"
            )
        require_usearch()
    return None if device is None else usable_device(device, "hold embeddings")
