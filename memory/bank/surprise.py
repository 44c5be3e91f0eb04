"""A neural memory of what a bank is told: how surprising a record is, what a question calls to mind.

Titans' memory (`memory/titans/neural.py`; Behrouz, Zhong & Mirrokni 2025, arXiv 2501.00663) learns at test
time to give an embedding back; the length of the gradient that a new one gives it is its surprise. Nothing is
trained before: keys, queries and values are the embedding itself, the step is large, forgetting slow, and
there is no momentum to speak of.

What was learned follows from the embeddings in the file alone, in the order of their records and in chunks.
So it is the same to the bit in every process, however often it was opened; a copy in the file spares learning
all anew. Once something is forgotten, that copy is deleted with it and the rest is learned again.
"""

from __future__ import annotations

import math
import sqlite3
import statistics
from dataclasses import dataclass

import numpy as np
import torch

from scrubjay.memory.bank.file.damage import Unreadable, fact, unpacked
from scrubjay.memory.bank.file.store import Store
from scrubjay.memory.bank.write import Draft
from scrubjay.memory.titans.lmm import TitansConfig
from scrubjay.memory.titans.neural import NeuralMemory

_CHUNK = 16
_CHUNKS_PER_COPY = 16
_SCALE = 4.0  # of the entries of unit vectors, for SiLU to be neither linear nor a threshold
_STEP, _MOMENTUM, _FORGETTING = 3.0, -6.0, -9.0  # logits
_TABLES = (
    (
        """CREATE TABLE surprise (
            last INTEGER PRIMARY KEY, count INTEGER NOT NULL, mean REAL NOT NULL, spread REAL NOT NULL,
            state BLOB NOT NULL)""",
        # What was learned of a record goes with it.
        "CREATE TRIGGER forget_surprise AFTER DELETE ON vectors BEGIN DELETE FROM surprise; END",
    ),
)


@dataclass(frozen=True)
class SurpriseConfig:
    """What a bank uses its neural memory for; neither raised recall where we measured it."""

    importance: bool = True
    """Whether a record of neutral importance is given its surprise, as a part of those before it, for
    importance."""
    recall_weight: float = 0.0
    """Share of what the memory gives back to a question in the vector that embeddings are searched with."""


class Surprise:
    """The neural memory of one bank, kept up with its file, whoever writes it."""

    def __init__(self, store: Store, config: SurpriseConfig, dimension: int) -> None:
        self.config, self._store, self._dimension = config, store, dimension
        store.add_tables("surprise", _TABLES)
        self._memory = _untrained(dimension)
        self._birth()

    def judged(self, drafts: list[Draft]) -> list[Draft]:
        """Return the drafts, those of neutral importance with their surprise for it."""
        if not self.config.importance:
            return drafts
        self.catch_up()
        vectors = np.array([draft.vector for draft in drafts], dtype=np.float32)
        return [
            draft._replace(importance=self._rarity(surprise)) if draft.importance == 0.5 else draft
            for draft, surprise in zip(drafts, self._read(vectors), strict=True)
        ]

    def recalled(self, query: np.ndarray) -> np.ndarray:
        """Return the unit vector to search with.

        The query and, by its weight, what the memory gives back to it.
        """
        self.catch_up()
        with torch.inference_mode():
            asked = self._memory.asked(_SCALE * torch.from_numpy(query)[None, None])
            given = self._memory.recall(asked, self._state)[0, 0].numpy()
        blend = query + self.config.recall_weight * given / max(float(np.linalg.norm(given)), 1e-12)
        return blend / np.linalg.norm(blend)

    def catch_up(self) -> None:
        """Learn what was written since, by whichever process, as far as it fills chunks."""
        with self._store.reading() as connection:
            deletions = fact(connection, "deletions") or 0
            if deletions != self._deletions:
                self._birth()
                self._deletions = deletions
            self._load(connection)
            learned = self._learn(connection)
        if learned >= _CHUNK * _CHUNKS_PER_COPY:
            self._save()

    def state_bytes(self) -> bytes:
        """Return all that was learned."""
        return b"".join(self._state[name].numpy().tobytes() for name in sorted(self._state))

    def _birth(self) -> None:
        self._state = self._memory.initial_state(1, torch.float32, torch.device("cpu"))
        self._last, self._copied, self._deletions = 0, 0, 0
        self._count, self._mean, self._spread = 0, 0.0, 0.0

    def _learn(self, connection: sqlite3.Connection) -> int:
        """Learn whole chunks; return how many records were learned since the last copy."""
        rows = connection.execute(
            "SELECT number, vector FROM vectors WHERE number > ? ORDER BY number", (self._last,)
        )
        while len(batch := rows.fetchmany(_CHUNK)) == _CHUNK:
            for surprise in self._write(unpacked([vector for _, vector in batch])):
                # Welford 1962: mean and sum of squared deviations, one by one.
                self._count += 1
                gap = surprise - self._mean
                self._mean += gap / self._count
                self._spread += gap * (surprise - self._mean)
            self._last = batch[-1][0]
        return self._count - self._copied

    def _load(self, connection: sqlite3.Connection) -> None:
        row = connection.execute(
            "SELECT last, count, mean, spread, state FROM surprise WHERE last > ?", (self._last,)
        ).fetchone()
        if row is None:
            return
        state = row[-1]
        if not isinstance(state, bytes) or len(state) != len(self.state_bytes()):
            raise Unreadable("what was learned of surprise has another size")
        self._last, self._count, self._mean, self._spread, _ = row
        self._copied, numbers = self._count, np.frombuffer(state, dtype=np.float32)
        for name in sorted(self._state):
            size, shape = self._state[name].numel(), self._state[name].shape
            self._state[name] = torch.from_numpy(numbers[:size].copy()).reshape(shape)
            numbers = numbers[size:]

    def _save(self) -> None:
        with self._store.writing() as connection:
            if fact(connection, "deletions") == self._deletions:
                connection.execute("DELETE FROM surprise WHERE last < ?", (self._last,))
                connection.execute(
                    "INSERT OR IGNORE INTO surprise VALUES (?, ?, ?, ?, ?)",
                    (self._last, self._count, self._mean, self._spread, self.state_bytes()),
                )
        self._copied = self._count

    def _write(self, vectors: np.ndarray) -> list[float]:
        with torch.inference_mode():
            x = _SCALE * torch.from_numpy(vectors.copy())[None]
            _, surprise, self._state = self._memory.learn(x, self._state, None)
        return surprise[0].tolist()

    def _read(self, vectors: np.ndarray) -> list[float]:
        """Return the surprises of vectors that are not learned yet.

        All at the weights of the last whole chunk.
        """
        found = []
        with torch.inference_mode():
            for vector in _SCALE * torch.from_numpy(vectors):
                _, surprise, _ = self._memory.step(
                    vector[None], self._state, torch.zeros(1, dtype=torch.int64)
                )
                found.append(float(surprise))
        return found

    def _rarity(self, surprise: float) -> float:
        """Return which part of the records so far surprised less, if surprises were normally distributed."""
        if self._count < _CHUNK or self._spread <= 0:
            return 0.5
        return statistics.NormalDist(self._mean, math.sqrt(self._spread / self._count)).cdf(surprise)


def _untrained(dimension: int) -> NeuralMemory:
    memory = NeuralMemory(TitansConfig(dim=dimension, chunk_size=_CHUNK, convolution=1, output_gate=False))
    with torch.no_grad():
        same = torch.eye(dimension)
        memory.project_in.weight.copy_(torch.cat([same, same, same]))
        memory.out.weight.copy_(same)
        memory.gates.weight.zero_()
        gates = torch.tensor([_STEP, _MOMENTUM, _FORGETTING])
        memory.gates.bias.copy_(gates.repeat_interleave(memory.heads))
    return memory.requires_grad_(False)
