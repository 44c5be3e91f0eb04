"""Views of a conversation for a reader: records of a bank, hits of a file search, or all turns that fit.

Each view stores a conversation once and is then queried for every question.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from langchain_core.embeddings import Embeddings

from scrubjay.experiments.lm.conversations import Conversation
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank import Change, Consolidation
from scrubjay.memory.bank.file.words import index_words, query_terms
from scrubjay.memory.bank.record import Record

_BATCH = 512
"""Number of texts that are embedded at once."""
Recall = Callable[[str], Sequence[int]]
"""Function from a query to indices of turns, best first."""
ViewName = Literal["bank", "supersedes", "consolidated", "files", "full"]
LABELS: Mapping[ViewName, str] = {
    "bank": "bank",
    "supersedes": "bank with annotated replacements",
    "consolidated": "bank with error-free consolidation",
    "files": "file search (FTS5, BM25)",
    "full": "full context",
}


class View(NamedTuple):
    """Turns shown for a query."""

    places: tuple[int, ...]
    """Indices of the turns, best first."""
    tokens: int
    cut: bool
    """True if the token limit excluded some turns."""


def open_view(name: ViewName, conversation: Conversation, k: int, embeddings: Any = None) -> Recall:
    """Store a conversation and return its recall function.

    The function maps a query to the indices of at most `k` turns, or of all turns for `full`.
    """
    if name == "full":
        newest_first = range(len(conversation.turns))[::-1]
        return lambda text: newest_first
    if name == "files":
        search = bm25_index(conversation)
        return lambda text: [place for place, _ in search(text, k)]
    if name == "consolidated":
        return _consolidated_bank(conversation, k, embeddings)
    bank, place_of = store_turns(conversation, embeddings, supersedes=name == "supersedes")
    return lambda text: [place_of[hit.id] for hit in bank.search(text, k)]


def fit(places: Sequence[int], cost: Callable[[int], int], room: int, contiguous: bool) -> View:
    """Select turns in order, up to a total of `room` tokens.

    With `contiguous`, the selection ends before the first turn that does not fit. Otherwise only the turns
    that do not fit are skipped.
    """
    selected_places, tokens, cut = [], 0, False
    for place in places:
        if tokens + cost(place) > room:
            cut = True
            if contiguous:
                break
            continue
        selected_places.append(place)
        tokens += cost(place)
    return View(tuple(selected_places), tokens, cut)


def store_turns(
    conversation: Conversation, embeddings: Any, supersedes: bool, at_once: bool = True, **options: Any
) -> tuple[MemoryBank, dict[str, int]]:
    """Store the turns in a new bank with these options; return the bank, and a turn's index by record id.

    If `supersedes` is True, the bank also knows the record that each turn replaces. With `at_once`, several
    turns are embedded together.
    """
    # The clock is the time of the last turn, so that record ages are those at the time of the questions.
    bank = MemoryBank(":memory:", embeddings, clock=lambda: conversation.turns[-1].observed, **options)
    ids: list[str] = []
    waiting = []
    for turn in conversation.turns:
        replaced_turn = turn.replaces if supersedes else None
        if not at_once or (replaced_turn is not None and replaced_turn >= len(ids)):
            ids += bank.write(bank.embed_drafts(waiting))
            waiting = []
        replaced_id = None if replaced_turn is None else ids[replaced_turn]
        waiting.append(bank.draft(turn.text, observed=turn.observed, merge=False, supersedes=replaced_id))
    ids += bank.write(bank.embed_drafts(waiting))
    return bank, {id: place for place, id in enumerate(ids)}


def _consolidated_bank(conversation: Conversation, k: int, embeddings: Any) -> Recall:
    """Store a conversation with consolidation and return its recall function.

    Each turn adds a record or updates one of the `k` nearest records. The annotated facts decide between the
    two: a turn updates a record if both state a fact of the same subject and relation.
    """
    now = conversation.turns[0]
    bank = MemoryBank(":memory:", embeddings, clock=lambda: now.observed)
    place_of: dict[str, int] = {}

    def decide(text: str, records: Sequence[Record]) -> list[Change]:
        facts = [conversation.turns[place_of[record.id]].fact for record in records]
        for place, fact in enumerate(facts):
            if fact is not None and now.fact is not None and fact[:2] == now.fact[:2]:
                return [Change("update", place)]
        return [Change("add")]

    consolidation = Consolidation(bank, decide, k)
    for place, turn in enumerate(conversation.turns):
        now = turn
        (step,) = consolidation.add(turn.text, "conversation", observed=turn.observed).steps
        place_of[step.written_id or ""] = place
    return lambda text: [place_of[hit.id] for hit in bank.search(text, k)]


def bm25_index(
    conversation: Conversation, careful: bool = False
) -> Callable[[str, int], list[tuple[int, float]]]:
    """Build an FTS5 index of the turns and return its search function.

    The function maps a question and a limit to pairs of turn index and BM25 score, best first. With
    `careful`, a question's stop words are ignored, and Chinese, Japanese and Korean are split into character
    pairs.
    """
    index = sqlite3.connect(":memory:")
    tokenizer = "unicode61" if careful else "porter unicode61"
    index.execute(f'CREATE VIRTUAL TABLE words USING fts5(text, tokenize = "{tokenizer}")')
    index.executemany(
        "INSERT INTO words (rowid, text) VALUES (?, ?)",
        [
            (place, " ".join(index_words(turn.text)) if careful else turn.text)
            for place, turn in enumerate(conversation.turns)
        ],
    )

    def search(question: str, k: int) -> list[tuple[int, float]]:
        terms = [f'"{word}"' for word in re.findall(r"\w+", question)]
        if careful:
            stems = [(stem, term.is_prefix) for term in query_terms(question) for stem in term.words]
            terms = [f'"{stem}"*' if is_prefix else f'"{stem}"' for stem, is_prefix in stems]
        sql = "SELECT rowid, -rank FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?"
        return index.execute(sql, (" OR ".join(terms), k)).fetchall() if terms else []

    return search


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
