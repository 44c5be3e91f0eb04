"""Neural memory over a bank's embeddings: surprise of new records, and query expansion.

Titans' memory (`memory/titans/neural.py`; Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663) learns at test
time to reconstruct embeddings; the gradient norm of a new embedding is its surprise. The memory is not
pretrained: keys, queries and values are the embedding itself, the learning rate is large, forgetting is slow,
and momentum is nearly zero.

The state of the memory depends only on the embeddings in the file. The embeddings are learned in chunks, in
the order of the record numbers. The state is therefore bit-identical in every process. A copy of the state is
saved in the file, so that a process need not learn all records again. When a record is deleted, the copy is
deleted, too, and the remaining records are learned again.
"""

from __future__ import annotations

import math
import sqlite3
import statistics
from dataclasses import dataclass

import numpy as np
import torch

from scrubjay.memory.bank.file.damage import UnreadableError, read_fact, unpack_vectors
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.record import Draft
from scrubjay.memory.titans.lmm import TitansConfig
from scrubjay.memory.titans.neural import NeuralMemory

_CHUNK = 16
_CHUNKS_PER_SAVE = 16
_SCALE = 4.0  # scale of unit vectors, so that SiLU is neither linear nor a step function
_STEP, _MOMENTUM, _FORGETTING = 3.0, -6.0, -9.0  # logits


@dataclass(frozen=True)
class SurpriseConfig:
    """Options of a bank's neural memory. Neither option improved recall in our measurements."""

    importance: bool = True
    """Derive importance from surprise: a record that is added with importance 0.5 (neutral) gets the
    percentile, from 0 to 1, of its surprise among earlier records."""
    recall_weight: float = 0.0
    """Weight of the memory's output in the query vector; 0 searches with the query's embedding alone."""


class Surprise:
    """Neural memory of a bank. It also learns records that other processes write."""

    def __init__(self, store: Store, config: SurpriseConfig, dimension: int) -> None:
        self.config, self._store, self._dimension = config, store, dimension
        store.add_tables("surprise")
        self._memory = _build_memory(dimension)
        self._reset()

    def add_importance(self, drafts: list[Draft]) -> list[Draft]:
        """Return the drafts, in which the percentile of surprise replaces an importance of 0.5 (neutral)."""
        if not self.config.importance:
            return drafts
        self.catch_up()
        vectors = np.array([draft.vector for draft in drafts], dtype=np.float32)
        return [
            draft._replace(importance=self._percentile(surprise)) if draft.importance == 0.5 else draft
            for draft, surprise in zip(drafts, self._measure_surprise(vectors), strict=True)
        ]

    def blend_recall(self, query: np.ndarray) -> np.ndarray:
        """Return query + `recall_weight` * normalized output of the memory, scaled to length 1."""
        self.catch_up()
        with torch.inference_mode():
            queries = self._memory.normalize_queries(_SCALE * torch.from_numpy(query)[None, None])
            output = self._memory.recall(queries, self._state)[0, 0].numpy()
        blend = query + self.config.recall_weight * output / max(float(np.linalg.norm(output)), 1e-12)
        return blend / np.linalg.norm(blend)

    def catch_up(self) -> None:
        """Learn the records that any process has written since the last call, in whole chunks only."""
        with self._store.reading() as connection:
            deletions = read_fact(connection, "deletions") or 0
            if deletions != self._deletions:
                self._reset()
                self._deletions = deletions
            self._load(connection)
            num_unsaved = self._learn(connection)
        if num_unsaved >= _CHUNK * _CHUNKS_PER_SAVE:
            self._save()

    def state_bytes(self) -> bytes:
        """Return the learned state as bytes."""
        return b"".join(self._state[name].numpy().tobytes() for name in sorted(self._state))

    def _reset(self) -> None:
        self._state = self._memory.initial_state(1, torch.float32, torch.device("cpu"))
        self._last, self._saved_count, self._deletions = 0, 0, 0
        self._count, self._mean, self._spread = 0, 0.0, 0.0

    def _learn(self, connection: sqlite3.Connection) -> int:
        """Learn new records in whole chunks; return the number of records learned since the last save."""
        rows = connection.execute(
            "SELECT number, vector FROM vectors WHERE number > ? ORDER BY number", (self._last,)
        )
        while len(batch := rows.fetchmany(_CHUNK)) == _CHUNK:
            for surprise in self._learn_chunk(unpack_vectors([vector for _, vector in batch])):
                # Welford 1962: running mean and sum of squared deviations.
                self._count += 1
                gap = surprise - self._mean
                self._mean += gap / self._count
                self._spread += gap * (surprise - self._mean)
            self._last = batch[-1][0]
        return self._count - self._saved_count

    def _load(self, connection: sqlite3.Connection) -> None:
        row = connection.execute(
            "SELECT last, count, mean, spread, state FROM surprise WHERE last > ?", (self._last,)
        ).fetchone()
        if row is None:
            return
        state = row[-1]
        if not isinstance(state, bytes) or len(state) != len(self.state_bytes()):
            raise UnreadableError("the stored state of the neural memory has the wrong size")
        self._last, self._count, self._mean, self._spread, _ = row
        self._saved_count, numbers = self._count, np.frombuffer(state, dtype=np.float32)
        for name in sorted(self._state):
            size, shape = self._state[name].numel(), self._state[name].shape
            self._state[name] = torch.from_numpy(numbers[:size].copy()).reshape(shape)
            numbers = numbers[size:]

    def _save(self) -> None:
        with self._store.writing() as connection:
            if read_fact(connection, "deletions") == self._deletions:
                connection.execute("DELETE FROM surprise WHERE last < ?", (self._last,))
                connection.execute(
                    "INSERT OR IGNORE INTO surprise VALUES (?, ?, ?, ?, ?)",
                    (self._last, self._count, self._mean, self._spread, self.state_bytes()),
                )
        self._saved_count = self._count

    def _learn_chunk(self, vectors: np.ndarray) -> list[float]:
        with torch.inference_mode():
            x = _SCALE * torch.from_numpy(vectors.copy())[None]
            _, surprise, self._state = self._memory.learn(x, self._state, None)
        return surprise[0].tolist()

    def _measure_surprise(self, vectors: np.ndarray) -> list[float]:
        """Return the surprise of each new vector, under the memory weights after the last whole chunk."""
        surprises = []
        with torch.inference_mode():
            for vector in _SCALE * torch.from_numpy(vectors):
                _, surprise, _ = self._memory.step(
                    vector[None], self._state, torch.zeros(1, dtype=torch.int64)
                )
                surprises.append(float(surprise))
        return surprises

    def _percentile(self, surprise: float) -> float:
        """Return the percentile of a surprise, from 0 to 1, under a normal distribution of past surprises."""
        if self._count < _CHUNK or self._spread <= 0:
            return 0.5
        return statistics.NormalDist(self._mean, math.sqrt(self._spread / self._count)).cdf(surprise)


def _build_memory(dimension: int) -> NeuralMemory:
    memory = NeuralMemory(TitansConfig(dim=dimension, chunk_size=_CHUNK, convolution=1, output_gate=False))
    with torch.no_grad():
        identity = torch.eye(dimension)
        memory.project_in.weight.copy_(torch.cat([identity, identity, identity]))
        memory.out.weight.copy_(identity)
        memory.gates.weight.zero_()
        gates = torch.tensor([_STEP, _MOMENTUM, _FORGETTING])
        memory.gates.bias.copy_(gates.repeat_interleave(memory.heads))
    return memory.requires_grad_(False)
