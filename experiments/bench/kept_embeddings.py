"""Embeddings whose vectors are kept in a file, so that a benchmark that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import sqlite3
import sys
from pathlib import Path

import numpy as np
from langchain_core.embeddings import Embeddings

_BATCH = 512


class KeptEmbeddings(Embeddings):
    """What `embeddings` give, kept by the hash of the text in the SQLite file `path`, which is theirs alone."""

    def __init__(self, embeddings: Embeddings, path: str | Path) -> None:
        self._embeddings = embeddings
        self._kept = sqlite3.connect(path, isolation_level=None)
        self._kept.execute(
            "CREATE TABLE IF NOT EXISTS vectors (hash BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID"
        )

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector per text."""
        missing = sorted({text for text in texts if self._find(text) is None}, key=len)
        for first in range(0, len(missing), _BATCH):
            batch = missing[first : first + _BATCH]
            vectors = np.array(self._embeddings.embed_documents(batch), dtype=np.float32)
            rows = [(_hash(text), vector.tobytes()) for text, vector in zip(batch, vectors, strict=True)]
            self._kept.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
            if len(missing) > _BATCH:
                print(f"embedded {first + len(batch):,}/{len(missing):,}", file=sys.stderr, flush=True)
        return [np.frombuffer(self._find(text) or b"", dtype=np.float32).tolist() for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a question."""
        return self.embed_documents([text])[0]

    def _find(self, text: str) -> bytes | None:
        row = self._kept.execute("SELECT vector FROM vectors WHERE hash = ?", (_hash(text),)).fetchone()
        return None if row is None else row[0]


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
