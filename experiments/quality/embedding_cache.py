"""Embeddings with an on-disk cache, so that an interrupted benchmark resumes without embedding again."""

from __future__ import annotations

import hashlib
import sqlite3
import sys
from pathlib import Path

import numpy as np
from langchain_core.embeddings import Embeddings

_BATCH = 512


class CachedEmbeddings(Embeddings):
    """Embeddings that cache their vectors in the SQLite file `path`; use one file per embedding model."""

    def __init__(self, embeddings: Embeddings, path: str | Path) -> None:
        self._embeddings = embeddings
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS vectors (hash BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID"
        )

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per text."""
        missing = sorted({text for text in texts if self._find(_hash(text)) is None}, key=len)
        for first in range(0, len(missing), _BATCH):
            batch = missing[first : first + _BATCH]
            self._keep([_hash(text) for text in batch], self._embeddings.embed_documents(batch))
            if len(missing) > _BATCH:
                print(f"embedded {first + len(batch):,}/{len(missing):,}", file=sys.stderr, flush=True)
        return [_unpack(self._find(_hash(text))) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query, which may differ from that of a document with the same text."""
        hash = _hash(text, person=b"query")
        if self._find(hash) is None:
            self._keep([hash], [self._embeddings.embed_query(text)])
        return _unpack(self._find(hash))

    def _keep(self, hashes: list[bytes], vectors: list[list[float]]) -> None:
        rows = [
            (hash, np.array(v, dtype=np.float32).tobytes()) for hash, v in zip(hashes, vectors, strict=True)
        ]
        self._database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

    def _find(self, hash: bytes) -> bytes | None:
        row = self._database.execute("SELECT vector FROM vectors WHERE hash = ?", (hash,)).fetchone()
        return None if row is None else row[0]


def _unpack(vector: bytes | None) -> list[float]:
    return np.frombuffer(vector or b"", dtype=np.float32).tolist()


def _hash(text: str, person: bytes = b"") -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16, person=person).digest()
